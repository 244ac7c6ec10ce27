"""How long does one outer synchronisation take, and what does it cost? Ours and others'.

The same model is synchronised between peers that are processes with real sockets: by Artel's
modules (:mod:`benchmarks.exchange_ours`: from the trained weights in memory to the new state and
its root), by hivemind's DecentralizedAverager (:mod:`benchmarks.exchange_hivemind`) and by
torchft's DiLoCo over gloo (:mod:`benchmarks.exchange_torchft`). The systems take turns in one run.
Parts:

loopback  1M, 9M and 40M parameters, 2 and 4 peers, all on one loopback interface
links     9M parameters, every peer a host with a link of 100 Mbit/s down and 20 up
sixteen   16 peers with 1M parameters: is every round complete?
round     a whole round as users have it: a coordinator, nodes, commits, reveals, the ledger
start     what the compiled loops cost a fresh process, with and without their cache

Loopback has neither delay nor, in practice, a limit of bandwidth: there the time is the software's.
All peers share the processors of this machine.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil

from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ArtelError
from benchmarks import links
from benchmarks.exchange_extra import sixteen, start_cost, whole_rounds
from benchmarks.exchange_findings import Cell, Findings, Series, Table, rows, tables
from benchmarks.exchange_peers import Group
from benchmarks.exchange_worker import SIZES
from benchmarks.options import empty_folder, require_folder, telling

HELP = """\
examples, from the root of the repository:
  python -m benchmarks.exchange                                # everything, about 20 minutes
  python -m benchmarks.exchange --quick                        # 0.1M parameters, under a minute
  python -m benchmarks.exchange --only links --peers 2         # about 4 minutes
  python -m benchmarks.exchange --only loopback --sizes 9M --peers 2 --repeat 20 --json rows.json

torchft is needed for its rows alone (pip install torchft==0.2.0), root for the links alone.
"""

PARTS = ("loopback", "links", "sixteen", "round", "start")
OURS = ("int4", "sparse64", "sparse128", "fp16")
THEIRS = (
    ("hivemind", "fp16"),
    ("hivemind", "8bit"),
    ("torchft", "tensors"),
    ("torchft", "buckets"),
)
MEMORY_PER_PEER = 0.5e9
BYTES_PER_PARAMETER = 45
"""About what a peer needs in memory: so that not more is started at once than fits."""

Say = Callable[[str], None]


async def measure(plan: argparse.Namespace, folder: Path, say: Say) -> Findings:
    """Run the parts that were asked for."""
    found = Findings(load=os.getloadavg()[0])
    refusal = links.refusal()
    found.isolated = refusal is None
    if refusal:
        found.skipped.append(f"links of limited speed: {refusal}")
        found.skipped.append("bytes on the wire without those of other programs: the same reason")
    systems = [("ours", codec) for codec in plan.codecs] + list(THEIRS)
    if importlib.util.find_spec("torchft") is None:
        systems = [system for system in systems if system[0] != "torchft"]
        found.skipped.append("torchft: it is not installed (pip install torchft==0.2.0)")
    cells = []
    if "loopback" in plan.only:
        cells += [Cell(size, peers) for size in plan.sizes for peers in plan.peers]
    if "links" in plan.only and found.isolated:
        size = "0.1M" if plan.quick else "9M"
        cells += [Cell(size, peers, (plan.down, plan.up)) for peers in plan.peers]
    for cell in cells:
        say(cell.name)
        repeat = plan.repeat if cell.mbit is None else -(-plan.repeat // 2)
        found.cells[cell] = await fill(cell, systems, repeat, folder, found.isolated, say)
    if "sixteen" in plan.only:
        found.extra += await sixteen(plan, folder, found.isolated, say)
    if "round" in plan.only:
        found.extra += await whole_rounds(plan, folder, say)
    if "start" in plan.only:
        found.extra += await start_cost(plan, folder, found.isolated, say)
    return found


async def fill(
    cell: Cell,
    systems: Sequence[tuple[str, str]],
    repeat: int,
    folder: Path,
    isolated: bool,
    say: Say,
) -> Table:
    """All systems of one cell, in turns.

    Where they fit into memory together all stay up and take turns after every sync; else each is
    started for every turn of a few syncs, in two turns.
    """
    table: Table = {f"{system} {variant}": Series() for system, variant in systems}

    def group(system: str, variant: str) -> Group:
        size, peers = cell.size, cell.peers
        return Group(system, variant, size, peers, folder, mbit=cell.mbit, isolated=isolated)

    async def one(group: Group, series: Series, number: int, cold: bool) -> None:
        try:
            sample = await group.sync(number)
        except ArtelError as error:
            series.failed = series.failed or error.message
            say(f"  {group.name}: {error.diagnostics()}")
            return
        (series.cold if cold else series.warm).append(sample)

    need = len(systems) * cell.peers * (MEMORY_PER_PEER + cell.parameters * BYTES_PER_PARAMETER)
    if need < 0.75 * psutil.virtual_memory().available:
        async with contextlib.AsyncExitStack() as stack:
            groups = [await stack.enter_async_context(group(*system)) for system in systems]
            for number in range(repeat + 1):
                for member in groups:
                    await one(member, table[member.name], number, cold=number == 0)
        return table
    turns = 2 if repeat > 1 else 1
    each = -(-repeat // turns)
    for turn in range(turns):
        for system in systems:
            async with group(*system) as member:
                for number in range(each + 1):
                    await one(member, table[member.name], number, cold=number == 0)
        say(f"  turn {turn + 1} of {turns}")
    return table


def main(argv: Sequence[str] | None = None) -> int:
    plan = _options(argv)
    say = telling()
    # Whoever ends this program must not leave its processes and namespaces behind.
    signal.signal(signal.SIGTERM, signal.getsignal(signal.SIGINT))
    try:
        with contextlib.ExitStack() as stack:
            folder = plan.keep
            if folder is None:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="exchange-")))
            found = asyncio.run(measure(plan, folder, say))
    except ArtelError as error:
        print(f"error: {error.diagnostics()}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    print("\n" + tables(found))
    if plan.json:
        plan.json.write_text(json.dumps(rows(found), indent=1) + "\n")
    return EXIT_OK


def _options(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.exchange",
        description="One outer synchronisation: Artel, hivemind's averager, torchft's DiLoCo.",
        epilog=HELP,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--only", default=",".join(PARTS), metavar="PARTS", help=f"of {','.join(PARTS)}"
    )
    parser.add_argument("--sizes", help="on loopback (default 1M,9M,40M; quick 0.1M)")
    parser.add_argument("--peers", help="(default 2,4; quick 2)")
    parser.add_argument("--codecs", help=f"ours (default {','.join(OURS)}; quick int4,sparse64)")
    parser.add_argument(
        "--repeat", type=int, help="warm syncs (default 10, half on links; quick 2)"
    )
    parser.add_argument("--down", type=float, default=100, help="Mbit/s of a link (default 100)")
    parser.add_argument("--up", type=float, default=20, help="Mbit/s of a link (default 20)")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="empty folder to leave it all in")
    parser.add_argument("--quick", action="store_true", help="less of everything")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE")
    plan = parser.parse_args(argv)
    defaults = {
        "sizes": ("1M,9M,40M", "0.1M"),
        "peers": ("2,4", "2"),
        "codecs": (",".join(OURS), "int4,sparse64"),
    }
    for name, (full, quick) in defaults.items():
        given = getattr(plan, name) or (quick if plan.quick else full)
        setattr(plan, name, given.split(","))
    plan.only = plan.only.split(",")
    plan.repeat = plan.repeat if plan.repeat is not None else 2 if plan.quick else 10
    for name, known in (("only", PARTS), ("sizes", SIZES), ("codecs", OURS)):
        if unknown := [value for value in getattr(plan, name) if value not in known]:
            parser.error(f"--{name}: unknown {unknown}; known are {','.join(known)}")
    try:
        plan.peers = [int(count) for count in plan.peers]
    except ValueError:
        parser.error("--peers must be numbers")
    if not all(2 <= count <= 16 for count in plan.peers):
        parser.error("--peers must be from 2 to 16")
    if plan.repeat < 1 or min(plan.down, plan.up) <= 0:
        parser.error("--repeat must be at least 1, --down and --up above 0")
    require_folder(parser, plan.json)
    plan.keep = empty_folder(parser, plan.keep)
    return plan


if __name__ == "__main__":
    sys.exit(main())
