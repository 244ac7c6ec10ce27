"""What does a member cost the coordinator? Processor seconds, memory, bytes, by what it is asked.

One coordinator, as a process of its own with its own network daemon, and members: real daemons of
nodes with real streams, keys, replicas of the ledger and cosignatures, many in one process, each
with a network daemon of its own through which it asks the coordinator, but without trainers
(:mod:`benchmarks.members_crowd`). Rounds
have all members, and each has to be complete: everybody accepted. The first one is not measured.

The coordinator's processor seconds are split by what it was asked (:mod:`benchmarks.members_office`
says how), divided by members and rounds; :mod:`benchmarks.members_table` reckons from that.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psutil

from artel.coordinator.local_run import Program
from artel.ledger import entries
from artel.ledger.store.reader import LedgerReader
from artel.protocol import tether
from artel.protocol.dsse import Leaf
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ArtelError, CheckFailed, Unreachable
from artel.protocol.round_state import LATE
from benchmarks.members_office import METER_FILE
from benchmarks.members_table import PARTS, Size, rows, table
from benchmarks.options import empty_folder, require_folder, telling
from benchmarks.swarm import Swarm

HELP = """\
examples, from the root of the repository:
  python -m benchmarks.members --members 16,64 --rounds 3        # minutes
  python -m benchmarks.members --quick                           # 6 members, two rounds
  python -m benchmarks.members --members 64,256 --topology gather --json members.json

Measure on an idle machine: members and coordinator share its processors.
"""

RUN = """\
[run]
name = "members"
seed = 1

[model]
type = "llama"
[model.config]
hidden_size = {hidden}
intermediate_size = {wide}
num_hidden_layers = {layers}
num_attention_heads = 4
num_key_value_heads = 4
max_position_embeddings = 64
tie_word_embeddings = true

[tokenizer]
kind = "bytes"

[data]
sources = [{{kind = "stdlib"}}]
max_bytes = 600000
seq_len = 32
validation_windows = 2

[optimizer]
batch_size = 1
warmup_steps = 0

[rounds]
total = {total}
inner_steps = 1
min_nodes = {members}
max_nodes = {members}
deadline_s = 1800
grace_s = 600
reveal_s = 1800
settle_s = 1800
heartbeat_timeout_s = 300
mirror_every = 0

[exchange]
codec = "int4"
topology = "{topology}"
holders = {holders}
"""

STALL_S = 900.0


class Crowd(Swarm):
    """A coordinator with a meter, and processes that hold many members each."""

    members = 0

    def program(self, *command: str) -> tuple[str, ...]:
        """The coordinator with a meter in it; the processes of members."""
        script = ("benchmarks.members_office", str(self.members))
        if command[0] != "coordinator":
            script = ("benchmarks.members_crowd",)
        line = (sys.executable, "-P", "-m", *script, *command)
        return tether.tied(*line, death=signal.SIGTERM)

    async def start_members(self, processes: int) -> None:
        """Start all members, as many in each process, and wait until they have joined."""
        first = 0
        for number in range(1, processes + 1):
            count = (self.members - first) // (processes - number + 1)
            self.nodes[number] = await self._spawn(
                f"crowd {number}",
                self.folder / f"crowd-{number}",
                *(str(self.folder / f"crowd-{number}"), self.invite, str(first), str(count)),
            )
            first += count

    def joined(self) -> int:
        """Members that have joined."""
        return sum(node.log.read_text().count("has joined") for node in self.nodes.values())

    def readings(self) -> list[dict[str, Any]]:
        """One of each agreed state, with all that was used until then."""
        file = self.folder / "coordinator" / METER_FILE
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]


async def measure(size: int, options: argparse.Namespace, folder: Path, say: Say) -> Size:
    """Measure rounds with so many members.

    :raises CheckFailed: a round was not complete
    """
    run_file = folder / "RUN.toml"
    run_file.write_text(
        RUN.format(
            members=size,
            total=options.rounds + 10,
            topology=options.topology,
            holders=options.holders,
            hidden=32,
            wide=48 if options.topology == "gather" else max(48, options.slices * 4096 // 96),
            layers=1,
        )
    )
    async with Crowd(folder, run_file) as crowd:
        crowd.members = size
        await crowd.start_coordinator()
        say(f"{size} members join")
        await crowd.start_members(min(options.processes, size))
        # Until the first state, or a moment later: rounds may be shorter than a look at them.
        joining = processor_seconds(crowd.nodes.values())
        told, moved = 0, time.monotonic()
        while len(rows := crowd.readings()) <= options.rounds:
            crowd.check()
            if len(rows) + crowd.joined() != told:
                if rows:
                    say(f"round {len(rows)} is agreed")
                told, moved = len(rows) + crowd.joined(), time.monotonic()
            if time.monotonic() - moved > STALL_S:
                raise Unreachable(
                    f"{crowd.joined()} of {size} members have joined, {len(rows)} rounds are "
                    f"agreed, and nothing moved in {STALL_S:.0f} s",
                    f"see the console.log of each process below {folder}",
                )
            if not rows:
                joining = processor_seconds(crowd.nodes.values())
            await asyncio.sleep(0.5)
        found = differences(size, rows[0], rows[options.rounds])
        found.crowd = (processor_seconds(crowd.nodes.values()) - joining) / found.rounds
        assert crowd.coordinator is not None
        found.memory = memory(crowd.coordinator)
    found.ledger = require_complete(folder / "coordinator", rows, size) / found.rounds
    return found


Say = Callable[[str], None]


def differences(members: int, first: dict[str, Any], last: dict[str, Any]) -> Size:
    """What was used between two readings."""
    found = Size(members, last["round"] - first["round"])
    kinds = {key: last["seconds"][key] - first["seconds"].get(key, 0.0) for key in last["seconds"]}
    for part, asked in PARTS.items():
        found.seconds[part] = sum(kinds.pop(kind, 0.0) for kind in asked)
        counts = (last["calls"].get(k, 0) - first["calls"].get(k, 0) for k in asked)
        found.calls[part] = sum(counts)
    whole = last["process"] - first["process"]
    found.seconds["ledger written"] = last["ledger"] - first["ledger"]
    counted = sum(found.seconds.values())
    found.seconds["loop and background"] = whole - counted
    children = {k: last["children"][k] - first["children"].get(k, 0.0) for k in last["children"]}
    found.seconds["network daemon"] = children.get("p2pd", 0.0)
    found.seconds["recomputing"] = children.get("recompute", 0.0)
    found.wall = (last["wall"] - first["wall"]) / found.rounds
    for way in ("up", "down"):
        setattr(found, way, (sum(last[way].values()) - sum(first[way].values())) / found.rounds)
    return found


def processor_seconds(programs: Any) -> float:
    """Used so far by processes and by all that they have started."""
    total = 0.0
    for program in programs:
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(program.process.pid)
            for one in (process, *process.children(recursive=True)):
                used = one.cpu_times()
                total += used.user + used.system
    return total


def memory(program: Program) -> float:
    """Bytes of a coordinator and of its network daemon."""
    process = psutil.Process(program.process.pid)
    daemons = [one for one in process.children() if one.name().startswith("p2pd")]
    return float(sum(one.memory_info().rss for one in (process, *daemons)))


def require_complete(home: Path, rows: Sequence[dict[str, Any]], members: int) -> int:
    """Bytes of the ledger between the first and the last reading.

    :raises CheckFailed: somebody was left out of a round
    """
    with LedgerReader.of(home) as store:
        leaves = list(store.leaves(rows[0]["size"], rows[-1]["size"]))
    total = 0
    for leaf in leaves:
        total += len(leaf) + (len(leaf.document) if isinstance(leaf, Leaf) else 0)
        body = entries.decode(leaf).body
        if isinstance(body, entries.RoundClosed) and len(body.accepted) != members:
            late = sum(item.reason == LATE for item in body.rejected)
            raise CheckFailed(
                f"round {body.round} was not complete: {len(body.accepted)} of {members} accepted, "
                f"{late} late",
                "measure on an idle machine, or fewer members",
            )
    return total


def main(argv: Sequence[str] | None = None) -> int:
    options = _options(argv)
    say = telling()
    found: list[Size] = []
    try:
        with contextlib.ExitStack() as stack:
            folder = options.keep
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="members-")))
            for size in options.members:
                place = folder / str(size)
                place.mkdir()
                found.append(asyncio.run(measure(size, options, place, say)))
    except ArtelError as error:
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    print(f"\n{options.topology}, load {os.getloadavg()[0]:.1f}\n{table(found)}")
    if options.json:
        options.json.write_text(json.dumps(rows(found), indent=1) + "\n")
    return EXIT_OK


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.members",
        description="What a member costs the coordinator.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--members", help="numbers of them, ascending (default 16,64; quick 6)")
    parser.add_argument("--rounds", type=int, help="measured (default 3; quick 1)")
    parser.add_argument(
        "--topology", default="gather", choices=("gather", "sharded"), help="(default gather)"
    )
    parser.add_argument("--slices", type=int, default=8, help="of a sharded round (default 8)")
    parser.add_argument(
        "--holders", type=int, default=0, help="of each slice, and not the coordinator (default 0)"
    )
    parser.add_argument("--processes", type=int, default=2, help="that hold members (default 2)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="empty folder to leave it all in")
    parser.add_argument("--quick", action="store_true", help="fewer of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    options = parser.parse_args(argv)
    options.rounds = options.rounds or (1 if options.quick else 3)
    try:
        text = options.members or ("6" if options.quick else "16,64")
        options.members = sorted({int(part) for part in text.split(",")})
    except ValueError:
        parser.error("--members takes numbers, as in 16,64")
    if not 2 <= options.members[0] <= options.members[-1] <= 1024:
        parser.error("--members must be from 2 to 1024")
    if not (options.rounds >= 1 and 1 <= options.slices <= 1024 and options.processes >= 1):
        parser.error("--rounds, --slices (at most 1024) and --processes must be at least 1")
    if not 0 <= options.holders <= 8 or (options.holders and options.topology == "gather"):
        parser.error("--holders is from 0 to 8, and goes with --topology sharded")
    require_folder(parser, options.json)
    options.keep = empty_folder(parser, options.keep)
    return options


if __name__ == "__main__":
    sys.exit(main())
