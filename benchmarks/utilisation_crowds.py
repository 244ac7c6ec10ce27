"""Rounds of 1,000 and 10,000 members with churn: how much of the time they compute, what they move.

Drawn by chance, not by events: at each of those the state machine takes time that grows with the
members. A round is what its parts take: training; the contribution on its way; combining, checking
and fetching what was combined, with the requests that this takes; and waiting for who left in the
middle. Machines differ in speed; in each round some go, at any moment, and nothing counts of what
they did in it, and as many come, and fetch a state from the others while these exchange nothing.

``gather``, ``sharded``
    at most 64 slices, each combined by one member and checked by another one, and every
    contribution passes through the coordinator
``sharded, S = N``
    with ``exchange.holders``: as many slices as members (at most 1,024), one combines and one
    checks each, and contributions are held by those who combine them, who fetch the items of these
    slices of each index, with proofs
``groups of g``
    the members of a group combine one slice each of what the group sent; those who hold one slice
    in all groups combine that among themselves as a sharded round does; then everybody fetches the
    other slices from its own group. What groups send is packed as contributions are
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from artel.protocol.assignment import FEW_SLICES, MAX_SLICES
from artel.protocol.exchange.pseudogradient import HEADER_BYTES, index_bytes
from artel.protocol.index_items import items_bytes
from benchmarks.virtual_time import ENTRY_BYTES, MESSAGE_BYTES, MESSAGES

CROWDS = (64, 256, 1000, 10_000)
CHURN = 0.05
"""Part of the members that go in a round."""
DOWN, UP, LATENCY_S = 100e6, 20e6, 0.05
AT_ONCE = 12
"""Requests of a node under way (:data:`artel.protocol.net.swarm.AT_ONCE`)."""
ITEMS_FRAMES = 150
"""Bytes of a request for items and of what is around them in the reply."""
REQUEST_S = 0.004
"""Of a processor, for a stream at one end: docs/results/members.md."""
OFFICE_BITS_S = 1e9
"""The coordinator's line."""
SPREAD = 0.1
"""Of the machines' speed (standard deviation over mean)."""
GONE_S = 10.0
"""Until whoever waits for a node that went asks another one."""
ROUNDS = 40
GROUPS = (16, 32, 64)


@dataclass(frozen=True)
class Run:
    """What is trained; seconds of its inner steps in a round, and of those that overlap."""

    payload: float
    """Bytes of a contribution."""
    state: float
    training_s: float
    overlap_s: float
    codec_s: float


@dataclass(frozen=True)
class Plan:
    """What an exchange asks of the member that has most to do, and of the others on the mean."""

    down: float
    """Bytes; ``most`` of who combines and checks, the other number of the mean."""
    up: float
    down_most: float
    up_most: float
    requests: float
    """Of who has the most."""
    office: float
    """Bytes that pass through the coordinator, of all members."""
    stages: int
    """In each of them somebody who went is noticed late."""
    seats: int
    """Members without whom something has to be combined again."""


def plan_of(topology: str, members: int, run: Run, group: int = 0) -> Plan:
    """The exchange of a round of so many members."""
    p, n = run.payload, members
    if topology == "gather":
        moved = p * (n - 1)
        return Plan(moved, moved, moved, moved, n - 1, n * p, 1, 0)
    if topology == "groups":
        g, m = group, max(1, n // group)
        inside = 2 * p * (g - 1) / g + HEADER_BYTES * 2 * g
        between = 3 * p / g + HEADER_BYTES * 3 * m
        spread = p * (g - 1) / g + HEADER_BYTES * g
        moved = inside + between + spread
        return Plan(moved, moved, moved, moved, 3 * g + 3 * m, 0.0, 2, 2 * n)
    slices = min(n, FEW_SLICES if topology == "sharded" else MAX_SLICES)
    piece = p / slices + HEADER_BYTES
    # Who combines or checks one slice has its inputs, and what indexes say of them.
    inputs, busy, listed = piece * n, 2 * slices / n, index_bytes(slices) * n
    if topology != "sharded":  # with holders
        wanted = max(1, round(busy))
        listed = min(listed, (ITEMS_FRAMES + items_bytes(wanted, slices)) * n)
    others = p + HEADER_BYTES * slices
    each = max(1.0, busy)  # with few members one has several slices
    most = inputs * each + others + listed
    # Everybody serves its own pieces twice, and as much of what was combined as it fetches.
    up, passes = 2 * p + others, topology == "sharded"
    up += p if passes else 0.0
    mean = inputs * busy + others + listed * min(1.0, busy)
    up += listed * min(1.0, busy)  # of its own
    requests = (each + 1) * n + slices
    return Plan(mean, up, most, up, requests, n * p if passes else 0.0, 1, 2 * slices)


@dataclass(frozen=True)
class Outcome:
    """Means over rounds; shares from 0 to 1."""

    computing: float
    """Of the time of those who are in a round."""
    with_joining: float
    """The same, with the time in which those who come fetch the state."""
    round_s: float
    exchange_s: float
    down: float
    up: float
    """Bytes of a member in a round, on the mean, with ledger and states for those who come."""
    limit: str
    """What the exchange waits for most."""


def simulate(topology: str, members: int, run: Run, group: int = 0) -> Outcome:
    """Rounds by chance; always the same for the same arguments."""
    chance = np.random.default_rng([members, group, len(topology)])
    plan = plan_of(topology, members, run, group)
    ledger = MESSAGES * MESSAGE_BYTES + members * ENTRY_BYTES
    joining = CHURN * run.state  # what each member sends to those who come
    parts = {
        "download": 8 * (plan.down_most + ledger) / DOWN,
        "upload": 8 * plan.up_most / UP,
        "requests": plan.requests * max(LATENCY_S / AT_ONCE, REQUEST_S),
        "coordinator's line": 8 * 2 * plan.office / OFFICE_BITS_S,
    }
    limit = max(parts, key=lambda part: parts[part])
    moving = max(parts.values()) + 6 * LATENCY_S
    again = 8 * run.payload / UP  # everybody combines one slice more: each sends its piece to all
    rounds, computed, spent, exchanges = [], 0.0, 0.0, []
    for _ in range(ROUNDS):
        speed = np.clip(chance.normal(1.0, SPREAD, members), 0.7, 1.3)
        # A time box: everybody makes as many steps as fit, so that nobody waits for the slow.
        trained = run.training_s * np.clip(1 - chance.exponential(0.002, members) / speed, 0.0, 1.0)
        gone = chance.random(members) < CHURN
        when = chance.random(members)
        exchange = moving + run.codec_s
        length = max(run.training_s + run.codec_s, run.training_s - run.overlap_s + exchange)
        # Seats whose member goes while it is needed; what it owed is given by who checked it.
        lost = chance.binomial(plan.seats, CHURN * min(1.0, exchange / length)) if plan.seats else 0
        both = chance.binomial(plan.seats // 2, (CHURN * min(1.0, exchange / length)) ** 2)
        exchange += plan.stages * GONE_S * (lost > 0) + (GONE_S + again) * (both > 0)
        length = max(
            run.training_s + run.codec_s,
            run.training_s - run.overlap_s + exchange,
            8 * (plan.up + joining) / UP,  # states go out when the exchange leaves room
        )
        there = np.where(gone, when, 1.0)
        computed += float((np.minimum(trained, length) * np.where(gone, 0.0, 1.0)).sum())
        spent += float((there * length).sum())
        rounds.append(length)
        exchanges.append(exchange)
    mean = float(np.mean(rounds))
    # Who comes fetches the state, at its download or what the others' uplinks give together.
    fetching = 8 * run.state / DOWN
    waits = (fetching + mean / 2) * CHURN * members * ROUNDS
    return Outcome(
        computed / spent,
        computed / (spent + waits),
        mean,
        float(np.mean(exchanges)),
        plan.down + ledger + joining,
        plan.up + joining,
        limit,
    )


def crowds(options: argparse.Namespace, parameters: int, bits: float) -> Iterator[dict[str, Any]]:
    """Every topology with every number of members.

    :param bits: of a parameter in a contribution
    """
    step = 6 * parameters * 65_536 / (options.tflops * 1e12)
    run = Run(
        payload=parameters * bits / 8 + HEADER_BYTES,
        state=4.0 * parameters,
        training_s=options.inner * step,
        overlap_s=options.inner // 2 * step,
        codec_s=4 * parameters / 1e9,
    )
    plans = [("gather", 0), ("sharded", 0), ("sharded, S = N", 0)]
    plans += [("groups", group) for group in GROUPS]
    for members in CROWDS:
        for topology, group in plans:
            found = simulate(topology, members, run, group)
            yield {
                "name": "crowd",
                "topology": f"groups of {group}" if group else topology,
                "members": members,
                **vars(found),
            }


def crowds_table(rows: Sequence[dict[str, Any]]) -> str:
    """For people."""
    lines = [
        f"{'members':>8} {'topology':<16} {'computing':>10} {'with joining':>13} {'round':>9}"
        f" {'exchange':>10} {'down':>10} {'up':>10}  waits for"
    ]
    for row in rows:
        lines.append(
            f"{row['members']:8,} {row['topology']:<16} {100 * row['computing']:8.1f} % "
            f"{100 * row['with_joining']:11.1f} % {row['round_s']:7,.0f} s"
            f" {row['exchange_s']:8,.0f} s"
            f" {row['down'] / 1e6:7,.0f} MB {row['up'] / 1e6:7,.0f} MB  {row['limit']}"
        )
    return "\n".join(lines)
