"""What goes wrong in a chaos run, when and to whom: all of it follows from a seed.

Faults come as in a Poisson process, with a mean time between them. Which kind comes next is drawn
from a deck that holds every kind at least once and is shuffled anew when it is empty, so that a run
of a quarter of an hour has met them all.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

COORDINATOR, STANDBY = 0, 99
"""The two coordinators; node n is party n. A plan says the first one for whoever leads then."""


@dataclass(frozen=True)
class Kind:
    """A kind of fault.

    :param cards: of it in a deck
    :param seconds: how long it lasts, or how long what was killed stays away: from, to
    :param leads: it happens to the coordinator that leads; else to a node
    """

    cards: int
    seconds: tuple[float, float]
    leads: bool = False


KINDS: Mapping[str, Kind] = {
    "node killed": Kind(3, (1.0, 5.0)),
    "trainer killed": Kind(2, (0.0, 0.0)),
    "network daemon killed": Kind(2, (0.0, 0.0)),
    "coordinator killed": Kind(2, (0.0, 2.0), leads=True),
    "coordinator's network daemon killed": Kind(1, (0.0, 0.0), leads=True),
    "coordinator's home deleted": Kind(1, (20.0, 40.0), leads=True),
    "backup restored": Kind(1, (0.0, 2.0), leads=True),
    "handover on purpose": Kind(1, (0.0, 0.0), leads=True),
    "node frozen": Kind(1, (3.0, 12.0)),
    "coordinator frozen": Kind(1, (2.0, 8.0), leads=True),
    "partition": Kind(2, (8.0, 20.0)),
    "link slow": Kind(1, (8.0, 20.0)),
    "link cut": Kind(1, (0.0, 0.0)),
    "link corrupting": Kind(1, (8.0, 20.0)),
    "disk full": Kind(1, (5.0, 15.0)),
    "coordinator's disk full": Kind(1, (3.0, 8.0), leads=True),
    "clock jump": Kind(1, (10.0, 30.0)),
    "coordinator's clock jump": Kind(1, (10.0, 30.0), leads=True),
    "blob corrupted": Kind(1, (0.0, 0.0)),
    "node leaves": Kind(1, (0.0, 0.0)),
    "node joins": Kind(1, (0.0, 0.0)),
}
OF_COORDINATORS = ("coordinator killed", "coordinator's home deleted", "backup restored")
"""Kills of whoever leads; what is left of its home is what they differ in."""
KILLS = (*dict.fromkeys((*(name for name in KINDS if "killed" in name), *OF_COORDINATORS)),)


@dataclass(frozen=True)
class Strike:
    """One fault of a plan.

    :param at: seconds since the run was whole
    :param parties: whom it hits; several are cut off together
    :param seconds: how long it lasts
    :param lot: for whatever else is to be chosen, from 0 to 1
    """

    at: float
    kind: str
    parties: tuple[int, ...]
    seconds: float
    lot: float

    def __str__(self) -> str:
        who = " and ".join(
            "the coordinator" if p == COORDINATOR else f"node {p}" for p in self.parties
        )
        lasts = f" for {self.seconds:.0f} s" if self.seconds else ""
        return f"{self.kind}: {who}{lasts}"


def plan(nodes: int, seed: int, duration: float, mtbf: float) -> list[Strike]:
    """All faults of a run of so many seconds, in the order of time; none with a mean time of 0."""
    lots = random.Random(f"chaos/{seed}")
    deck = _deck(lots)
    here, away, at, found = list(range(1, nodes + 1)), list[int](), 0.0, list[Strike]()
    while mtbf and (at := at + lots.expovariate(1 / mtbf)) < duration:
        kind = next(deck)
        # One more, or one less, than there were: machines have room for so many.
        if kind in ("node leaves", "node joins"):
            kind = "node joins" if len(here) < max(nodes, 3) else "node leaves"
        who = [COORDINATOR] if KINDS[kind].leads else [lots.choice(here)]
        if kind == "partition":
            who = sorted(lots.sample(here, lots.randint(1, max(1, len(here) // 3))))
        elif kind == "node joins":
            # The one that left comes back, or somebody new comes.
            again = away and lots.random() < 0.5
            who = [away.pop(0)] if again else [max(here + away) + 1]
            here.extend(who)
        elif kind == "node leaves":
            here.remove(who[0])
            away.append(who[0])
        lasts = lots.uniform(*KINDS[kind].seconds)
        found.append(Strike(at, kind, tuple(who), lasts, lots.random()))
    return found


def _deck(lots: random.Random) -> Iterator[str]:
    while True:
        cards = [name for name, kind in KINDS.items() for _ in range(kind.cards)]
        lots.shuffle(cards)
        yield from cards
