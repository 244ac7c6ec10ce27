"""What came out of a chaos run: how often what went wrong, how soon it was over, what it cost."""

from __future__ import annotations

import contextlib
import shlex
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import linear_regression, median
from typing import Any

import psutil

from benchmarks.chaos_plan import KILLS, KINDS, OF_COORDINATORS
from benchmarks.chaos_strikes import Blow, Term
from benchmarks.chaos_swarm import ChaosSwarm
from benchmarks.chaos_watch import Accounts

SETTLED = 0.3
"""The first part of a run is left out where growth is measured: caches fill."""
HOUR_S, LEAST_S = 3600.0, 540.0
"""A shorter run says nothing about growth."""
FLAT, FLAT_FILES = 1.1, 60.0
"""What still counts as flat: so many times the memory at the end, so many more files an hour."""


@dataclass
class Usage:
    """Memory and open files of each process, over time.

    :param seen: process to (seconds, bytes, descriptors); one that is started again is another
    """

    seen: dict[str, list[tuple[float, int, int]]] = field(default_factory=lambda: defaultdict(list))

    def measure(self, swarm: ChaosSwarm, now: float) -> None:
        for party, home in swarm.homes.items():
            for process in swarm.tree(party):
                with contextlib.suppress(psutil.Error):
                    memory = process.memory_info().rss
                    row = (now, memory, process.num_fds())
                    words = " ".join(process.cmdline())
                    role = next((r for r in ("trainer", "p2pd") if r in words), "daemon")
                    self.seen[f"{home.name} {role} {process.pid}"].append(row)

    def growth(self) -> Iterator[dict[str, Any]]:
        """Of each process that was there all along: what it had first, when its caches were full,
        and last, and growth in an hour."""
        last = max((rows[-1][0] for rows in self.seen.values()), default=0.0)
        if last < LEAST_S:
            return
        for name, rows in self.seen.items():
            late = [row for row in rows if row[0] >= SETTLED * last]
            if rows[0][0] > 0.1 * last or rows[-1][0] < 0.9 * last or len(late) < 10:
                continue
            times = [row[0] for row in late]
            memory, files = (linear_regression(times, [r[i] for r in late]).slope for i in (1, 2))
            ends = late[:10], late[-10:]
            sizes = [round(median(row[1] for row in end) / 1e6, 1) for end in ends]
            yield {
                "process": name.rpartition(" ")[0],
                "memory_mb": sizes,
                "memory_mb_per_hour": round(memory * HOUR_S / 1e6, 2),
                "files": [int(median(row[2] for row in end)) for end in ends],
                "files_per_hour": round(files * HOUR_S, 1),
                "flat": sizes[1] <= FLAT * sizes[0] and files * HOUR_S < FLAT_FILES,
            }


@dataclass
class Result:
    """Everything that is told of a run."""

    options: dict[str, Any]
    blows: Sequence[Blow]
    terms: Sequence[Term]
    accounts: Accounts
    losses: Mapping[int, float]
    restarts: int
    entries: int
    usage: Usage
    problems: Sequence[str]

    @property
    def command(self) -> str:
        """What replays it."""
        names = ("nodes", "seed", "duration", "mtbf", "inner_steps")
        said = [f"--{name.replace('_', '-')}={self.options[name]:g}" for name in names]
        return shlex.join(["artel", "chaos", *said])

    def kinds(self) -> Iterator[dict[str, Any]]:
        """A row for each kind of fault that there was."""
        for kind in KINDS:
            blows = [blow for blow in self.blows if blow.strike.kind == kind]
            if not blows:
                continue
            back = [b.back - b.over for b in blows if b.back is not None and b.over is not None]
            agreed = [b.agreed - b.at for b in blows if b.agreed is not None]
            row = {"kind": kind, "count": len(blows), "came_back": len(back)}
            yield row | {"back_s": _spread(back), "agreed_s": _spread(agreed)}

    def as_dict(self) -> dict[str, Any]:
        accounts = self.accounts
        return {
            "ok": not self.problems,
            "problems": list(self.problems),
            "command": self.command,
            "seed": self.options["seed"],
            "faults": len(self.blows),
            "kills": sum(blow.strike.kind in KILLS for blow in self.blows),
            "kills_of_coordinators": sum(b.strike.kind in OF_COORDINATORS for b in self.blows),
            "handovers": len(self.terms),
            "without_leader_s": _spread([term.without for term in self.terms]),
            "kinds": list(self.kinds()),
            "blows": [blow.as_dict() for blow in self.blows],
            "attempts": dict(accounts.attempts),
            "committed": round(accounts.committed, 4),
            "absences": dict(+accounts.absences),
            "entries": self.entries,
            "states_recomputed": accounts.right,
            "restarts": self.restarts,
            "losses": {str(number): loss for number, loss in sorted(self.losses.items())},
            "usage": list(self.usage.growth()),
        }


def _spread(values: Sequence[float]) -> dict[str, float] | None:
    if not values:
        return None
    return {"median": round(median(values), 1), "most": round(max(values), 1)}


def table(result: Result) -> str:
    """For people."""
    return "\n".join(_lines(result))


def _lines(result: Result) -> Iterator[str]:
    facts = result.as_dict()
    yield ""
    if result.blows:
        yield f"{'fault':38}{'count':>6}{'back after':>14}{'most':>8}{'next state':>14}{'most':>8}"
        for row in facts["kinds"]:
            times = _times(row["back_s"]) + _times(row["agreed_s"])
            yield f"{row['kind']:38}{row['count']:>6}{times}"
        never = Counter(blow.strike.kind for blow in result.blows if blow.back is None)
        if never:
            yield f"not seen at work again before the end, or before another fault: {_list(never)}"
        yield ""
    attempts, losses = result.accounts.attempts, sorted(result.losses.items())
    over = attempts["agreed"] + attempts["failed"]
    yield (
        f"rounds: {attempts['agreed']} of {over} attempts led to a state "
        f"({result.accounts.committed:.1%}), {attempts['failed']} failed"
    )
    yield f"members that did not count: {_list(+result.accounts.absences) or 'none'}"
    yield (
        f"faults: {facts['faults']}, of which kills: {facts['kills']}, "
        f"of whoever led: {facts['kills_of_coordinators']}"
    )
    if without := facts["without_leader_s"]:
        yield (
            f"handovers: {facts['handovers']}; seconds between the last sight of one leader and "
            f"the first of the next: median {without['median']}, most {without['most']}"
        )
    for blow in result.blows:
        if blow.refused:
            yield f"a term was not ended on purpose: {blow.refused}"
    yield f"programs that ended by themselves and were started again: {result.restarts}"
    yield f"ledger: {result.entries} entries, one history in all homes"
    yield f"states computed once more from the contributions: {result.accounts.right}"
    ends = (f"{loss:.3f} (state {number})" for number, loss in (losses[0], losses[-1]))
    yield f"loss: {', then '.join(ends)}"
    for row in facts["usage"]:
        memory, files = row["memory_mb"], row["files"]
        yield (
            f"{row['process']}: {memory[0]:.0f} MB, then {memory[1]:.0f} "
            f"({row['memory_mb_per_hour']:+.1f} an hour); {files[0]} open files, then {files[1]} "
            f"({row['files_per_hour']:+.1f} an hour): {'flat' if row['flat'] else 'GROWS'}"
        )
    yield f"seed {facts['seed']}; again: {result.command}"
    yield ""
    for problem in result.problems:
        yield f"DOES NOT HOLD: {problem}"
    if not result.problems:
        yield "it survived: everything holds"


def _times(spread: Mapping[str, float] | None) -> str:
    if spread is None:
        return f"{'-':>14}{'-':>8}"
    return f"{spread['median']:>12.1f} s{spread['most']:>6.1f} s"


def _list(counts: Mapping[str, int]) -> str:
    found: Iterable[tuple[str, int]] = sorted(counts.items(), key=lambda item: -item[1])
    return ", ".join(f"{name} {count}" for name, count in found)
