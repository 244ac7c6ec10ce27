"""What a member costs the coordinator, as a table: measured, and reckoned for more of them.

With several numbers of members a line is laid through the last two (seconds of a member = a + b ×
members); 1,000 and 10,000 are reckoned from it, for rounds of ten minutes with as many heartbeats
as there would be, and with what a request costs below it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from artel.protocol.messages import BEATS_S, MOST_PATIENCE_S, PATIENCE_S

PARTS = {
    "heartbeats": ("heartbeat",),
    "commitments": ("commit",),
    "reveals": ("reveal", "put"),
    "slices": ("aggregated", "accuse"),
    "votes": ("state",),
    "cosignatures": ("cosigned",),
    "ledger served": ("ledger_get",),
    "content served": ("get_index", "get_items", "get_chunks", "get_have"),
}
"""What a coordinator is asked, by the kinds of the requests."""
OTHERS = ("ledger written", "loop and background", "network daemon", "recomputing")
EACH_REQUEST = ("loop and background", "network daemon")
NEWS = 8
"""Directives of a round that say something new."""
ROUND_S = 600.0
"""A round of the reckoning."""
REACHED = (1000, 10000)


@dataclass
class Size:
    """What was measured with so many members."""

    members: int
    rounds: int = 0
    seconds: Counter[str] = field(default_factory=Counter)
    """Processor seconds of the coordinator by part, of all measured rounds."""
    calls: Counter[str] = field(default_factory=Counter)
    wall: float = 0.0
    """Seconds of a round, with all members on this machine."""
    memory: float = 0.0
    """Bytes of the coordinator and its network daemon."""
    up: float = 0.0
    """Bytes of the coordinator's streams in a round."""
    down: float = 0.0
    ledger: float = 0.0
    """Bytes of entries and documents in a round."""
    crowd: float = 0.0
    """Processor seconds of all members and their network daemons in a round."""

    def each(self, part: str) -> float:
        """Processor seconds for one member in one round."""
        return self.seconds[part] / self.rounds / self.members


def table(found: Sequence[Size]) -> str:
    """For people."""
    head = "".join(f"{size.members:>10,}" for size in found)
    more = [f"{count:,}" for count in REACHED]
    lines = [f"{'ms of the coordinator, each':<30}{head}" + "".join(f"{m:>10}" for m in more)]
    for part in (*PARTS, *OTHERS):
        cells = "".join(f"{1000 * size.each(part):>10.2f}" for size in found)
        cells += "".join(f"{1000 * reckoned(found, part, count):>10.2f}" for count in REACHED)
        lines.append(f"{part:<30}{cells}")
    sums = "".join(f"{1000 * whole(size.each):>10.2f}" for size in found)
    sums += "".join(
        f"{1000 * whole(lambda part, n=count: reckoned(found, part, n)):>10.2f}"
        for count in REACHED
    )
    lines.append(f"{'together':<30}{sums}")
    for name, of in FACTS.items():
        lines.append(f"{name:<30}" + "".join(f"{of(size):>10,.1f}" for size in found))
    for count in REACHED:
        parts = {part: count * reckoned(found, part, count) for part in (*PARTS, *OTHERS)}
        most = max(parts, key=lambda part: parts[part])
        total = sum(parts.values())
        lines.append(
            f"{count:,} members: {total:,.0f} processor seconds of the coordinator in a round of "
            f"{ROUND_S:.0f} s, {100 * total / ROUND_S:,.0f} % of one core; most of it "
            f"{most} ({parts[most]:,.0f} s)"
        )
    return "\n".join(lines)


FACTS: dict[str, Callable[[Size], float]] = {
    "heartbeats, ms each": lambda s: 1000 * s.seconds["heartbeats"] / max(1, s.calls["heartbeats"]),
    "requests of a member": lambda s: sum(s.calls.values()) / s.rounds / s.members,
    "coordinator, MB of memory": lambda s: s.memory / 1e6,
    "coordinator, MB down a round": lambda s: s.down / 1e6,
    "coordinator, MB up a round": lambda s: s.up / 1e6,
    "ledger, kB a round": lambda s: s.ledger / 1e3,
    "a round here, s": lambda s: s.wall,
    "members, processor s a round": lambda s: s.crowd,
}


def whole(each: Callable[[str], float]) -> float:
    """All parts together."""
    return sum(map(each, (*PARTS, *OTHERS)))


def beats(members: int) -> float:
    """Heartbeats of one of so many members in a round of :data:`ROUND_S`."""
    patience = min(MOST_PATIENCE_S, max(PATIENCE_S, members / BEATS_S))
    return NEWS + ROUND_S / patience


def reckoned(found: Sequence[Size], part: str, members: int) -> float:
    """Seconds of a part for one member in one round of :data:`ROUND_S` with so many of them."""

    def each(size: Size) -> float:
        asked = sum(size.calls.values())
        if part == "heartbeats":
            return size.seconds[part] / max(1, size.calls[part]) * beats(members)
        if part in EACH_REQUEST:  # costs the same, whatever is asked
            others = (asked - size.calls["heartbeats"]) / size.rounds / size.members
            return size.seconds[part] / max(1, asked) * (others + beats(members))
        return size.each(part)

    if len(found) == 1:
        return each(found[0])
    low, high = found[-2:]
    slope = max(0.0, (each(high) - each(low)) / (high.members - low.members))
    return each(high) + slope * (members - high.members)


def rows(found: Sequence[Size]) -> list[dict[str, Any]]:
    """For programs; the baseline is the smallest number of members."""
    made = []
    for size in found:
        values = {part: size.each(part) for part in (*PARTS, *OTHERS)}
        least = {part: found[0].each(part) for part in values}
        for part in (part for part in values if values[part] > 0 and least[part] > 0):
            value = values[part]
            made.append(
                {
                    "name": f"{part}, {size.members} members",
                    "ours": 1000 * value,
                    "baseline": 1000 * least[part],
                    "baseline_is": f"{found[0].members} members",
                    "unit": "ms",
                    "ratio": value / least[part],
                    "members": size.members,
                    "facts": {name: of(size) for name, of in FACTS.items()},
                }
            )
    return made
