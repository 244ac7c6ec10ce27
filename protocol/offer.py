"""What a run asks of a machine that joins, and what that may earn: in numbers, and in words.

All of it follows from the manifest, the members that are there, and a speed that is measured or
guessed. Ranges are given where only the run itself will tell: how fast rounds follow one another
depends on the others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from artel.protocol.assignment import Work
from artel.protocol.manifest import Manifest
from artel.protocol.run_config import ExchangeSection
from artel.protocol.units import readable

BASE_MEMORY_BYTES = 900 << 20
"""Daemon and trainer before the model: interpreter, torch, network daemon."""
STATES_ON_DISK = 4
DAY_S = 86_400
EXCHANGE_S = 2.0
"""Of a round beside training, at least: commitment, reveal, the new state."""
CORE_WATTS = (3, 15)
"""That a core takes at full load: of a phone-like machine, and of a workstation."""
GPU_WATTS = (75, 500)
PRIVACY = (
    "The run's ledger is public and permanent: it will hold this node's and its account's public "
    "keys, numbers of tokens, digests, and the times at which the node cosigns; no name, no IP "
    "address.",
    "A key that can be linked to you is personal data; a fresh account for each run is possible "
    "(--account FILE).",
    "A name to be shown under is optional, kept beside the ledger, and can be erased: "
    "artel ledger alias.",
)
"""Said before the first entry of an account leaves this machine."""


@dataclass(frozen=True)
class SpeedGuess:
    """How fast a machine trains a run, between two guesses."""

    slow: float
    """Tokens a second."""
    fast: float
    cores: int
    gpu: bool = False


def copies(exchange: ExchangeSection) -> int:
    """fp32 vectors of the model that a node holds at its peak: weights and their copy from the
    round's beginning, gradients, two moments and their copy, the base state with momentum, weights
    as they were sent, the pseudo-gradient, those of an aggregation (14 in all); with the codec
    "sparse" also the error feedback and its copy. While it repeats another node's work: weights and
    two moments of that, with overlap its weights as they were sent, with "sparse" its feedback."""
    own, repeated = (16, 4) if exchange.codec == "sparse" else (14, 3)
    return own + repeated + (exchange.overlap_steps > 0)


def memory_bytes(manifest: Manifest, parameters: int, buffers: int = 0) -> int:
    """What the programs and the model take at least; a batch takes more.

    :param buffers: bytes of a model's buffers, of which there are two copies
    """
    return BASE_MEMORY_BYTES + copies(manifest.config.exchange) * 4 * parameters + 2 * buffers


def disk_bytes(manifest: Manifest) -> int:
    """States and the whole data; a node needs no more of the data than it trains on."""
    width = 2 if manifest.data.dtype == "uint16" else 4
    data = width * (manifest.data.train.tokens + manifest.data.validation.tokens)
    return STATES_ON_DISK * 8 * manifest.model.parameters + data + (64 << 20)


def offer(
    manifest: Manifest, members: int | None, pace: SpeedGuess | None = None
) -> dict[str, Any]:
    """The facts: bytes, tokens and credit are counts; pairs are the least and the most.

    :param members: of the run, without this machine; None where that is not known
    :param pace: None where no machine is meant: then nothing is said for a day
    """
    from artel.protocol.exchange.traffic import round_traffic
    from artel.protocol.state import Layout, state_bytes

    config, count = manifest.config, manifest.model.parameters
    rounds, work, fragments = config.rounds, Work.of(config), config.exchange.fragments
    layout = Layout.of([(f"part {n}", (-(-count // fragments),)) for n in range(fragments)])
    in_round = min(max((members or 0) + 1, rounds.min_nodes), rounds.max_nodes)
    traffic = round_traffic(config, layout, in_round)
    longest_s = rounds.deadline_s + rounds.reveal_s + rounds.settle_s
    found: dict[str, Any] = {
        "memory_bytes": memory_bytes(manifest, count),
        "disk_bytes": disk_bytes(manifest),
        "joining_bytes": state_bytes(count, config.exchange.outer),
        "round_up_bytes": (traffic.up_least, traffic.up_most),
        "round_down_bytes": traffic.down,
        "round_tokens": (work.tokens(work.least), work.tokens(work.most)),
        "round_longest_s": longest_s,
        "credit_per_token": config.ownership.rates.compute,
        "vesting_rounds": config.ownership.vesting_rounds,
        "audited": bool(rounds.span and config.trust.audit_rate),
        "members": members,
    }
    if pace is None:
        return found
    needs_s = tuple(work.tokens(work.least) / speed for speed in (pace.fast, pace.slow))
    allowed_s = rounds.box_s or rounds.deadline_s
    shortest_s = EXCHANGE_S + (rounds.box_s or min(needs_s[0], allowed_s))
    a_day = DAY_S / max(longest_s, shortest_s), DAY_S / shortest_s
    fewest, most = found["round_tokens"]
    if rounds.box_s:  # as many steps as it can
        most = min(most, max(fewest, round(pace.fast * rounds.box_s)))
    tokens = round(a_day[0] * fewest), round(min(a_day[1] * most, DAY_S * pace.fast))
    watts = GPU_WATTS if pace.gpu else tuple(pace.cores * each for each in CORE_WATTS)
    return found | {
        "tokens_per_second": (round(pace.slow), round(pace.fast)),
        "round_needs_s": needs_s,
        "round_allowed_s": allowed_s,
        "rounds_a_day": a_day,
        "tokens_a_day": (min(tokens), max(tokens)),
        "credit_a_day": tuple(sorted(n * found["credit_per_token"] for n in tokens)),
        "up_bytes_a_day": (a_day[0] * traffic.up_least, a_day[1] * traffic.up_most),
        "down_bytes_a_day": (a_day[0] * traffic.down, a_day[1] * traffic.down),
        "kwh_a_day": tuple(24 * each / 1000 for each in watts),
    }


def offer_words(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """What to show of :func:`offer`: labels and sentences."""
    yield "memory", f"about {readable(found['memory_bytes'])}, and what a batch takes"
    joining = readable(found["joining_bytes"])
    yield "disk", f"at most {readable(found['disk_bytes'])}; {joining} are fetched to begin"
    up, down = found["round_up_bytes"], found["round_down_bytes"]
    least, most = found["round_tokens"]
    tokens = f"{least:,}" if least == most else f"{least:,} to {most:,}"
    yield (
        "a round",
        (
            f"{tokens} tokens; sends {readable(up[0])} to {readable(up[1])}, receives "
            f"{readable(down)}; at most {found['round_longest_s']:,.0f} s"
        ),
    )
    if "rounds_a_day" in found:
        yield from _day_words(found)
    wait = found["vesting_rounds"]
    vests = f"vests {wait:,} round{'' if wait == 1 else 's'} later" if wait else "vests at once"
    if found["audited"]:
        vests += ", once later work of this node was found right"
    others = found["members"]
    part = f"about 1/{others + 1} of what is trained, while {others:,} others do as much"
    if not others:
        part = "as large a part as its work is of everybody's"
    yield (
        "earns",
        (
            f"{found['credit_per_token']:,} credit for each token that is accepted; it {vests}; "
            f"of the model, {part}"
        ),
    )


def _day_words(found: dict[str, Any]) -> Iterator[tuple[str, str]]:
    slow, fast = found["tokens_per_second"]
    needs, allowed = found["round_needs_s"], found["round_allowed_s"]
    fits = "" if needs[1] <= allowed else "; it may be too slow for this run"
    if needs[0] > allowed:
        fits = "; it is too slow for this run"
    yield (
        "this machine",
        (
            f"trains about {slow:,} to {fast:,} tokens/s (a guess by its arithmetic; it is "
            f"measured before it joins): {needs[0]:,.0f} to {needs[1]:,.0f} s for its part of a "
            f"round, {allowed:,.0f} s are allowed{fits}"
        ),
    )
    rare, often = found["rounds_a_day"]
    yield (
        "a day",
        (
            f"{rare:,.0f} rounds, when each takes as long as it may, to {often:,.0f}, when nobody "
            "is slower than this machine"
        ),
    )
    up, down = found["up_bytes_a_day"], found["down_bytes_a_day"]
    yield (
        "traffic",
        (
            f"sends {readable(up[0])} to {readable(up[1])} a day, receives {readable(down[0])} to "
            f"{readable(down[1])}, and the data once"
        ),
    )
    least, most = found["credit_a_day"]
    yield "may earn", f"{least:,} to {most:,} credit a day, if all of its work is accepted"
    low, high = found["kwh_a_day"]
    yield (
        "electricity",
        (
            f"{low:.1f} to {high:.1f} kWh a day while it computes all the time, by what such "
            "machines take; a meter knows better"
        ),
    )
