"""What does taking part cost beside the training? Start, memory, waiting and traffic, measured.

A coordinator and nodes run as real processes with real sockets on loopback and train a Llama of
about 1M parameters on the interpreter's own sources; nothing is simulated. Measured are

- the wall time of ``artel --help``, a fresh process each time;
- from the start of ``artel node start`` (a new home, nothing cached) to the end of its first inner
  step. Each node is started while no other one takes part and the run opens rounds with one node,
  so that it waits for nobody; its checks of the machine, all downloads and the loading of the
  trainer are in it. A node reports its steps twice a second; the end of the first one is reckoned
  back from the first report, by the speed that it names;
- peak resident memory (``VmHWM`` of the kernel) of the daemons, their network daemons apart and
  the trainers left out;
- of each round that all nodes took part in: the time from its opening to the opening of the next
  one, less the longest time that a member's trainer spent in inner steps. The phases below it are
  those of the member that trained longest, as it booked them (waiting for a member that had to
  evaluate first is in its ``commit_wait``); ``rest`` is what it did not book (mostly: the next
  directive is on its way, or the coordinator writes its ledger);
- bytes at the nodes' streams, by kind, from the training of a round to that of the next one;
- the time of a full check of the run's ledger.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import psutil

from artel.coordinator.local_run import Program
from artel.ledger import entries
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.verify import verify_home
from artel.node import status as node_status
from artel.protocol import dsse, tether
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ArtelError, Unreachable
from benchmarks.options import empty_folder, require_folder
from benchmarks.overhead_findings import (
    Findings,
    Observed,
    Plan,
    Round,
    Start,
    medians,
    rows,
    table,
)
from benchmarks.swarm import Swarm

HELP = """\
examples, from the root of the repository:
  python -m benchmarks.overhead                                   # 3 nodes, a few minutes
  python -m benchmarks.overhead --quick                           # 2 nodes, under a minute
  python -m benchmarks.overhead --nodes 4 --rounds 12 --json overhead.json

Numbers above their limit are marked, and are no error: the exit code is 0 when everything could be
measured. Measure on an idle machine; the last lines say how idle it was.
"""

HELP_RUNS = 5
WATCH_S = 0.3
START_POLL_S = 0.05
START_TIMEOUT_S = 300.0
STALL_S = 180.0
VERIFY_RUNS = 3

MILESTONES = {
    "node ": "interpreter",
    'run "': "network, manifest, ledger",
    "clock": "admission",
    "state ": "download of the state",
    "speed": "trainer loads, trial steps",
    "This machine": "uplink",
}
"""How lines on a starting node's console begin (after a mark), and the phase that they end."""


async def measure(plan: Plan, folder: Path, say: Callable[[str], None]) -> Findings:
    """Run the whole benchmark below ``folder``.

    :raises ArtelError: the swarm could not be started, or a part of it failed
    """
    load = os.getloadavg()[0]
    say(f"artel --help, {HELP_RUNS} times")
    result = Findings(plan, await asyncio.to_thread(help_seconds), load=load)
    run_file = folder / "RUN.toml"
    run_file.write_text(plan.run_text(), encoding="utf-8")
    async with Swarm(folder, run_file) as swarm:
        say("the coordinator prepares the run")
        await swarm.start_coordinator()
        result.parameters = int((await swarm.get("/api/v1/run"))["parameters"])
        for number in range(1, plan.alone + 1):
            start = await first_step(swarm, plan, result.observed)
            result.starts.append(start)
            say(f"node {number} has taken its first inner step after {start.seconds:.1f} s")
            if number < plan.alone:
                await leave(swarm, [number])
        for number in range(1, plan.nodes + 1):
            if number not in swarm.nodes or not swarm.nodes[number].running:
                await swarm.start_node(number)
        say(f"{plan.nodes} nodes for {plan.rounds} rounds of {plan.inner_steps} inner steps")
        await follow_rounds(swarm, result, say)
        await leave(swarm, swarm.nodes)
    say("checking the ledger")
    check_ledger(folder / "coordinator", result)
    return result


def help_seconds() -> list[float]:
    """Wall times of ``artel --help``; one more run before them fills the disk cache."""
    times = []
    for _ in range(HELP_RUNS + 1):
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-m", "artel", "--help"],
            env=tether.environment(),
            stdout=subprocess.DEVNULL,
            check=True,
            timeout=60,
        )
        times.append(time.perf_counter() - began)
    return times[1:]


async def first_step(swarm: Swarm, plan: Plan, observed: Observed) -> Start:
    """Start one more node and follow it to its first inner step of a round.

    :raises CheckFailed: it ended instead
    :raises Unreachable: it took no step in time
    """
    began = time.monotonic()
    number = await swarm.add_node()
    member, reached, seen = swarm.nodes[number], dict[str, float](), 0
    while time.monotonic() - began < START_TIMEOUT_S:
        await asyncio.sleep(START_POLL_S)
        swarm.check()
        now = time.monotonic() - began
        lines = member.log.read_text(encoding="utf-8", errors="replace").splitlines()
        for line in lines[seen:]:
            for beginning, phase in MILESTONES.items():
                if line.lstrip("✓!✗ ").startswith(beginning):
                    reached[phase] = now
        seen = len(lines)
        node = await ask(member)
        if node is None:
            continue
        if node["phase"] == "training":
            reached.setdefault("round opens, data", now)
        if node["phase"] == "training" and node["tokens_per_second"] and node["step"]:
            observed.weigh(member)
            step = plan.batch_size * plan.seq_len / node["tokens_per_second"]
            first = max(now - (node["step"] - 1) * step, reached["round opens, data"])
            reached["first step"] = first
            return Start(first, durations(reached), processor_seconds(member))
    raise Unreachable(
        f"node {number} has taken no inner step in {START_TIMEOUT_S:.0f} s", f"see {member.log}"
    )


def processor_seconds(member: Program) -> dict[str, float]:
    """Processor time used so far by a node's daemon and by its trainer."""
    used = {}
    daemon = psutil.Process(member.process.pid)
    for process in (daemon, *daemon.children()):
        with contextlib.suppress(psutil.Error):
            times = process.cpu_times()
            is_trainer = "artel.node.trainer" in process.cmdline()
            if process == daemon or is_trainer:
                used["trainer" if is_trainer else "daemon"] = times.user + times.system
    return used


def durations(reached: dict[str, float]) -> dict[str, float]:
    """Lengths of phases from the times of their ends, in the order of these."""
    ends = sorted(reached.items(), key=lambda item: item[1])
    begins = [0.0, *(end for _, end in ends)]
    return {name: end - begin for (name, end), begin in zip(ends, begins, strict=False)}


async def leave(swarm: Swarm, numbers: Iterable[int]) -> None:
    """Interrupt nodes twice, and wait until they are gone: they leave at once, with a goodbye."""

    async def one(number: int) -> None:
        member = swarm.nodes[number]
        swarm.interrupt_node(number)
        while member.running:
            if "press Ctrl-C again" in member.log.read_text("utf-8", "replace"):
                break
            await asyncio.sleep(START_POLL_S)
        if member.running:
            swarm.interrupt_node(number)
        await swarm.left(number)

    await asyncio.gather(*(one(number) for number in numbers))


async def follow_rounds(swarm: Swarm, result: Findings, say: Callable[[str], None]) -> None:
    """Watch until enough rounds are measured, and take their numbers.

    The first round of all nodes is not measured (caches are filled in it), nor is the last one: it
    shows when the one before it was over.
    """
    plan, observed = result.plan, result.observed
    told, moved, clock = -1, time.monotonic(), None
    async for _ in watch_all(swarm, observed):
        rows = {row["round"]: row for row in await rounds_of(swarm)}
        full = [number for number, row in rows.items() if whole_round(row, plan.nodes)]
        if full and clock is None:
            clock = Processors()
        done = [n for n in full[1:] if n + 1 in full and len(observed.seconds[n]) == plan.nodes]
        done = [n for n in done if traffic_of(observed, n)]
        if len(done) >= plan.rounds:
            break
        if len(done) > told:
            told, moved = len(done), time.monotonic()
        elif time.monotonic() - moved > STALL_S:
            raise Unreachable(
                f"no round of {plan.nodes} nodes was seen as a whole in {STALL_S:.0f} s; "
                f"the newest is {max(rows, default=0)}",
                f"rounds must train for more than {WATCH_S} s; see the console.log of each process "
                f"below {swarm.folder}",
            )
    assert clock is not None
    result.others = clock.others()
    result.rounds = [round_of(n, rows, observed) for n in done]
    phases = [coordinator_phases(n, rows, observed) for n in done]
    result.coordinator = medians(phases)
    per_node = [part for n in done for part in traffic_of(observed, n)]
    totals: Counter[str] = Counter()
    for part in per_node:
        totals.update(part)
    result.traffic = {name: count / len(per_node) for name, count in sorted(totals.items())}


async def watch_all(swarm: Swarm, observed: Observed) -> AsyncIterator[None]:
    """Note memory and status of every process again and again."""
    while True:
        swarm.check()
        for member in swarm.programs:
            if not member.running:
                continue
            observed.weigh(member)
            if member is not swarm.coordinator and (node := await ask(member)) is not None:
                observed.note(node)
        yield
        await asyncio.sleep(WATCH_S)


async def ask(member: Program) -> dict[str, Any] | None:
    """A node's own status; None while it does not answer."""
    try:
        return await asyncio.to_thread(node_status.read, member.home)
    except Unreachable:
        return None


async def rounds_of(swarm: Swarm) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = (await swarm.get("/api/v1/rounds?last=1000"))["rounds"]
    return rows


def whole_round(row: dict[str, Any], nodes: int) -> bool:
    """Whether all nodes took part in a round from its opening to the agreement, and counted."""
    return bool(row["members"] == row["accepted"] == nodes and "applying" in row["seconds"]) and (
        row["ended"] > 0
    )


def opening(row: dict[str, Any]) -> float:
    """When a round was opened: its phases follow each other without gaps until it has ended."""
    return float(row["ended"] - sum(row["seconds"].values()))


def round_of(number: int, rows: dict[int, dict[str, Any]], observed: Observed) -> Round:
    """The numbers of one round from the coordinator's table and what the nodes booked."""
    booked = observed.seconds[number]
    slowest = max(booked, key=lambda node: booked[node]["train"])
    phases = {name: s for name, s in booked[slowest].items() if name != "train"}
    whole = opening(rows[number + 1]) - opening(rows[number])
    return Round(number, whole, booked[slowest]["train"], phases)


def coordinator_phases(
    number: int, rows: dict[int, dict[str, Any]], observed: Observed
) -> dict[str, float]:
    """Seconds of one round as the coordinator sees it, the longest training taken out."""
    seconds = dict(rows[number]["seconds"])
    train = max(booked["train"] for booked in observed.seconds[number].values())
    return {
        "before and after training": seconds["training"] - train,
        "revealing": seconds["revealing"],
        "applying": seconds["applying"],
        "opening the next": opening(rows[number + 1]) - rows[number]["ended"],
    }


def traffic_of(observed: Observed, number: int) -> list[dict[str, int]]:
    """Bytes of each node from the training of a round to that of the next; [] if one is missing."""
    found = []
    for name in observed.seconds[number]:
        before = observed.traffic.get((name, number))
        after = observed.traffic.get((name, number + 1))
        if before is None or after is None:
            return []
        found.append({key: after[key] - before.get(key, 0) for key in after})
    return found


class Processors:
    """How much of this machine's processors others use, from the making of this object on."""

    def __init__(self) -> None:
        self._began, self._busy, self._ours = time.monotonic(), _busy(), _own()

    def others(self) -> float:
        """Part (0 to 1) of all processor time that went to processes which are not ours."""
        span = (time.monotonic() - self._began) * (os.cpu_count() or 1)
        return max(0.0, (_busy() - self._busy) - (_own() - self._ours)) / span


def _own() -> float:
    """Processor seconds of this process and all that it has started and that still run."""
    total, process = 0.0, psutil.Process()
    for one in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error):
            times = one.cpu_times()
            total += times.user + times.system
    return total


def _busy() -> float:
    times = psutil.cpu_times()
    return float(sum(times[:8]) - times.idle - getattr(times, "iowait", 0.0))


def check_ledger(home: Path, result: Findings) -> None:
    """Time the full check of a home's ledger, and beside it the check of its signatures alone."""
    times = []
    for _ in range(VERIFY_RUNS):
        began = time.perf_counter()
        result.verified = verify_home(home).verified
        times.append(time.perf_counter() - began)
    result.verify_seconds = statistics.median(times)
    with LedgerReader.of(home) as store:
        leaves = list(store.leaves())
    began = time.perf_counter()
    for leaf in leaves:
        dsse.decode(leaf).verify()
    result.signatures_seconds = time.perf_counter() - began
    result.entries = len(leaves)
    shown = [entries.decode(leaf).body for leaf in leaves]
    result.payload = max(body.size for body in shown if isinstance(body, entries.Contribution))


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    plan = Plan(
        nodes=options.nodes,
        rounds=options.rounds,
        inner_steps=options.inner_steps,
        alone=1 if options.quick else options.nodes,
        batch_size=2 if options.quick else 4,
        seq_len=64 if options.quick else 128,
        codec=options.codec,
    )
    began = time.monotonic()

    def say(text: str) -> None:
        print(f"{time.monotonic() - began:5.0f} s  {text}", flush=True)

    try:
        with contextlib.ExitStack() as stack:
            folder = options.keep
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="overhead-")))
            result = asyncio.run(measure(plan, folder, say))
    except ArtelError as error:
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    found = rows(result)
    print("\n" + table(result, found))
    if options.json:
        options.json.write_text(json.dumps(found, indent=1) + "\n")
    return EXIT_OK


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.overhead",
        description="What taking part costs beside the training: start, memory, waiting, traffic.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--nodes", type=int, help="how many (default 3; quick 2)")
    parser.add_argument("--rounds", type=int, help="rounds to measure (default 8; quick 3)")
    parser.add_argument("--inner-steps", type=int, help="H (default 20; quick 15)")
    parser.add_argument(
        "--codec", default="int4", choices=("fp32", "fp16", "int8", "int4"), help="(default int4)"
    )
    parser.add_argument("--keep", type=Path, metavar="DIR", help="empty folder to leave it all in")
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(argv)
    for name, full, quick in (("nodes", 3, 2), ("rounds", 8, 3), ("inner_steps", 20, 15)):
        if getattr(options, name) is None:
            setattr(options, name, quick if options.quick else full)
    if not 1 <= options.nodes <= 16:
        parser.error("--nodes must be from 1 to 16")
    if min(options.rounds, options.inner_steps) < 1:
        parser.error("--rounds and --inner-steps must be at least 1")
    require_folder(parser, options.json)
    options.keep = empty_folder(parser, options.keep)
    return options


if __name__ == "__main__":
    sys.exit(main())
