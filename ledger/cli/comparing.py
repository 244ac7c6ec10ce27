"""``artel ledger compare``: do all who hold a log hold the same one?"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ledger.cli import DEFAULT_HOME, Add, print_json, quote
from ledger.cli.opening import holding, run_id
from ledger.cli.proving import write
from protocol.errors import EXIT_FAILED, EXIT_OK, CheckFailed, UsageError
from protocol.paths import expanded

if TYPE_CHECKING:
    from ledger.evidence import SplitView
    from ledger.holders import Holder
    from ledger.proof import HashReader

EVIDENCE_FILE = Path("split-view.json")


def register(add: Add) -> None:
    """Add the command."""
    compare = add(
        "compare",
        _compare,
        "ask several holders for their tree heads: do all see one history?",
        "http://HOST:8080 http://OTHER-NODE:PORT",
        target=False,
    )
    compare.add_argument(
        "targets",
        nargs="+",
        metavar="URL",
        help="http(s) URLs, multiaddrs, invites, folders of tiles, or homes; with only one, the "
        "home is the other",
    )
    compare.add_argument(
        "--home", type=Path, default=DEFAULT_HOME, metavar="DIR", help="default: %(default)s"
    )
    compare.add_argument(
        "--vkey",
        action="append",
        default=[],
        metavar="VKEY",
        help="key of the log, for logs that are no run of Artel",
    )
    compare.add_argument("--run", metavar="ID", help="run id that all of them have to have")
    compare.add_argument(
        "-o",
        dest="output",
        type=Path,
        default=EVIDENCE_FILE,
        metavar="FILE",
        help=f"where evidence of a split view goes, replaced when it exists (default: "
        f"{EVIDENCE_FILE})",
    )


@dataclass(frozen=True)
class _Head:
    """One holder's newest tree head, its signature verified, and the tree behind it."""

    name: str
    origin: str
    size: int
    root: bytes
    note: str
    reader: HashReader
    genesis: bytes
    """Entry 0 of a run; empty for other logs."""


def _compare(arguments: argparse.Namespace) -> int:
    targets: list[str] = arguments.targets
    if len(targets) == 1:
        targets = [*targets, str(expanded(arguments.home))]
    run = run_id(arguments.run)
    with ExitStack() as stack:
        heads = [_head(stack, target, run, arguments.vkey) for target in targets]
        logs = {_log_name(head) for head in heads}
        if len(logs) > 1:
            raise UsageError("these are different logs", f"they are: {', '.join(sorted(logs))}")
        split = next((pair for pair in combinations(heads, 2) if not _consistent(*pair)), None)
        proof, why = _evidence(*split) if split is not None else (None, "")
    rows = [
        {"target": head.name, "origin": head.origin, "size": head.size, "root": head.root.hex()}
        for head in heads
    ]
    facts: dict[str, Any] = {"consistent": split is None, "heads": rows}
    if split is not None:
        facts |= {"between": [head.name for head in split], "reason": why}
        facts["evidence"] = str(arguments.output) if proof is not None else None
    if proof is not None and split is not None:
        from ledger.offline import write_evidence

        write(arguments.output, write_evidence(proof, split[0].genesis))
    if arguments.json:
        print_json(facts)
    else:
        _print_comparison(heads, split, proof, arguments.output, why)
    return EXIT_OK if split is None else EXIT_FAILED


def _print_comparison(
    heads: Sequence[_Head],
    split: tuple[_Head, _Head] | None,
    proof: SplitView | None,
    output: Path,
    why: str,
) -> None:
    from ledger import text
    from ledger.cli.table import table

    rows = [[f"{head.size:,}", head.root.hex(), text.printable(head.name)] for head in heads]
    print(table(["checkpoint", "root", "holder"], rows, right=(0,)))
    if split is None:
        print(f"\nconsistent: {len(heads)} holders show one history")
        return
    names = " and ".join(text.printable(head.name) for head in split)
    print(f"\nSPLIT VIEW: {names} show two histories of one log")
    if proof is None:
        print(f"no evidence for others: {why}")
        return
    print(f"evidence written to {output}: it proves to anybody who signed both")
    print("what to do:")
    print(f"  artel ledger verify {quote(output)}      # check it, offline")
    print(f"  artel ledger split-view {quote(output)}  # enter it into the ledger")
    print("  and tell the others: whoever holds the run's key lies, or somebody has stolen it")


def _head(stack: ExitStack, target: str, run: str, vkeys: Sequence[str]) -> _Head:
    from ledger import client
    from ledger.offline import run_of
    from ledger.store import DATABASE_NAME

    folder = expanded(Path(target))
    if "://" not in target and os.path.isfile(folder / DATABASE_NAME):
        view = stack.enter_context(client.home_view(folder, caching=False))
        log: client.Log = view.log
        if run and log.genesis.run != run:
            raise CheckFailed(f"{target} holds run {log.genesis.run[:12]}…, not {run[:12]}…")
    else:
        holder, named = stack.enter_context(holding(target))
        newest, _ = holder.heads()
        if vkeys:
            return _foreign(target, holder, newest, vkeys)
        if not run_of(_origin(newest)):
            raise UsageError(f"{target} holds a log that is no run of Artel", "add --vkey VKEY")
        log, _ = client.open_log(holder, run or named, None)
    genesis = log.leaf(0)
    return _Head(target, log.origin, log.size, log.root, log.latest_note, log, genesis)


def _foreign(target: str, holder: Holder, newest: str, vkeys: Sequence[str]) -> _Head:
    from ledger.cosignature import open_cosigned, parse_key
    from ledger.note import VerifierKey
    from ledger.source import TileHashes

    keys = [key for key in map(parse_key, vkeys) if isinstance(key, VerifierKey)]
    head, _ = open_cosigned(newest, keys, [])
    reader = TileHashes(holder.source, head.size, head.root)
    return _Head(target, head.origin, head.size, head.root, newest, reader, b"")


def _origin(newest: str) -> str:
    from ledger.checkpoint import parse_checkpoint

    return parse_checkpoint(newest).origin


def _log_name(head: _Head) -> str:
    """What must be the same: the run, whatever the term; or the origin of another log."""
    from ledger.offline import run_of

    return run_of(head.origin) or head.origin


def _consistent(a: _Head, b: _Head) -> bool:
    """Whether one tree begins with the other; each is what its checkpoint signs."""
    from ledger.proof import consistency, verify_consistency

    small, large = sorted((a, b), key=lambda head: head.size)
    try:
        proof = consistency(large.reader, small.size, large.size)
        verify_consistency(small.size, large.size, proof, small.root, large.root)
    except CheckFailed:
        return False
    return True


def _evidence(a: _Head, b: _Head) -> tuple[SplitView | None, str]:
    """Evidence for others, or why there is none."""
    from ledger import evidence

    if a.origin != b.origin:
        return None, "the two checkpoints are of different terms, signed with different names"
    try:
        return evidence.build(a.note, a.reader, b.note, b.reader), ""
    except CheckFailed as error:
        return None, error.message
