"""``artel ledger compare``: do all who hold a log hold the same one?"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import quote, write
from artel.ledger.cli.opening import DEFAULT_HOME, Home, holding
from artel.protocol.commandline import AsJson, File, RunId, Table, VKeys, show
from artel.protocol.errors import EXIT_FAILED, EXIT_OK, CheckFailed, UsageError
from artel.protocol.paths import expanded
from artel.protocol.terminal import printable

if TYPE_CHECKING:
    from artel.ledger.entries.evidence import SplitView
    from artel.ledger.sync.client import Log
    from artel.ledger.sync.source import Holder
    from artel.ledger.tlog.proof import HashReader

EVIDENCE_FILE = Path("split-view.json")


@dataclass(frozen=True)
class _Head:
    """A signed tree head that somebody shows, and the tree behind it if he shows that, too."""

    name: str
    origin: str
    size: int
    root: bytes
    note: str
    reader: HashReader | None
    """None: its signature verifies, and that is all."""
    genesis: bytes
    """Entry 0 of a run; empty for other logs."""


@dataclass(frozen=True)
class _Finding:
    """Two heads that are not known to be of one history."""

    heads: tuple[_Head, _Head]
    split: bool
    """Whether they are of two; otherwise nobody shows the tree that would tell."""
    why: str


def compare(
    target: Annotated[str, Parameter(metavar="URL")],
    /,
    *others: Annotated[str, Parameter(metavar="URL")],
    home: Home = DEFAULT_HOME,
    vkey: VKeys = (),
    run: RunId = "",
    output: Annotated[File, Parameter(name="-o")] = EVIDENCE_FILE,
    as_json: AsJson = False,
) -> int:
    """Ask several holders for their tree heads: do all see one history?

    example: artel ledger compare http://HOST:8080 http://OTHER-NODE:PORT

    :param target: http(s) URLs, multiaddrs, invites, folders of tiles, or homes
    :param others: with only one, the home is the other
    :param run: run id that all of them have to have
    :param output: where evidence of a split view goes, replaced when it exists
    """
    targets = [target, *(others or [str(expanded(home))])]
    with ExitStack() as stack:
        heads = _heads(stack, targets, run, vkey)
        logs = {_log_name(head) for head in heads}
        if len(logs) > 1:
            raise UsageError("these are different logs", f"they are: {', '.join(sorted(logs))}")
        found = [_finding(*pair, heads) for pair in combinations(heads, 2)]
        findings = [finding for finding in found if finding is not None]
        finding, proof = _worst(findings, heads)
    rows = [
        {
            "target": head.name,
            "origin": head.origin,
            "size": head.size,
            "root": head.root.hex(),
            "tree": head.reader is not None,
        }
        for head in heads
    ]
    consistent = None if finding is not None and not finding.split else finding is None
    facts: dict[str, Any] = {"consistent": consistent, "heads": rows}
    if finding is not None:
        facts |= {"between": [head.name for head in finding.heads], "reason": finding.why}
        facts["evidence"] = str(output) if proof is not None else None
        facts["notes"] = [head.note for head in finding.heads]
    if proof is not None:
        from artel.ledger.sync.offline import write_evidence

        genesis = next((head.genesis for head in heads if head.genesis), b"")
        write(output, write_evidence(proof, genesis))
    show(facts, _shown(heads, len(targets), finding, proof, output), as_json=as_json)
    return EXIT_OK if finding is None else EXIT_FAILED


def _shown(
    heads: Sequence[_Head],
    holders: int,
    finding: _Finding | None,
    proof: SplitView | None,
    output: Path,
) -> Iterator[str | Table]:
    rows = [
        [
            f"{head.size:,}",
            head.root.hex(),
            head.name + ("" if head.reader else "  (signed; no tree behind it)"),
        ]
        for head in heads
    ]
    yield Table(rows, ["checkpoint", "root", "holder"], right=(0,))
    if finding is None:
        yield f"\nconsistent: {holders} holders show one history"
        return
    one, other = finding.heads
    names = " and ".join(dict.fromkeys(printable(head.name) for head in (one, other)))
    if not finding.split:
        yield f"\nNOT COMPARED: checkpoints {one.size:,} and {other.size:,} of {names}"
        yield "proven      the log has signed both"
        yield f"not proven  that one tree begins with the other, or that it does not: {finding.why}"
        yield "what to do: name more holders, such as other members or mirrors"
        return
    yield f"\nSPLIT VIEW: {names} show two histories of one log"
    if proof is None:
        yield f"proven      to you: checkpoints {one.size:,} and {other.size:,} are both signed,"
        yield "            and neither tree begins with the other"
        yield f"not proven  to others: {finding.why}"
        yield "what to do: keep both notes (--json prints them), and name more holders"
        return
    yield f"evidence written to {output}: it proves to anybody who signed both"
    yield "what to do:"
    yield f"  artel ledger verify {quote(output)}      # check it, offline"
    yield f"  artel ledger split-view {quote(output)}  # enter it into the ledger"
    yield "  and tell the others: whoever holds the run's key lies, or somebody has stolen it"


# --- the heads ------------------------------------------------------------------------------------


def _heads(stack: ExitStack, targets: Sequence[str], run: str, vkeys: Sequence[str]) -> list[_Head]:
    """Of each holder its newest tree, and every signed head that is not of that tree."""
    from artel.ledger.entries import Genesis, decode
    from artel.ledger.tlog.checkpoint import open_checkpoint, parse_checkpoint

    found = [_held(stack, target, run, vkeys) for target in targets]
    heads = [head for trees, _, _ in found for head in trees]
    genesis = next((head.genesis for head in heads if head.genesis), b"")
    for target, (trees, texts, error) in zip(targets, found, strict=True):
        if not trees and not genesis and error is not None:
            raise error
        for text in texts:
            head = parse_checkpoint(text)
            if any(_begins_with(tree, head.size, head.root) for tree in trees):
                continue
            body = decode(genesis).body
            assert isinstance(body, Genesis)
            open_checkpoint(text, head.origin, body.coordinators)
            heads.append(_Head(target, head.origin, head.size, head.root, text, None, genesis))
    return heads


_Held = tuple[list[_Head], list[str], CheckFailed | None]


def _held(stack: ExitStack, target: str, run: str, vkeys: Sequence[str]) -> _Held:
    """A holder's trees (of two the larger alone, when it begins with the other), the notes that
    it shows, and why a tree could not be read."""
    from artel.ledger.store.finality import size_of
    from artel.ledger.store.store import DATABASE_NAME
    from artel.ledger.sync import client
    from artel.ledger.sync.offline import run_of
    from artel.ledger.sync.source import newest_heads

    folder = expanded(Path(target))
    if "://" not in target and os.path.isfile(folder / DATABASE_NAME):
        view = stack.enter_context(client.home_view(folder, caching=False))
        if run and view.log.genesis.run != run:
            raise CheckFailed(f"{target} holds run {view.log.genesis.run[:12]}…, not {run[:12]}…")
        kept = view.heads.newest(0) if view.heads is not None else ""
        return [_tree(target, view.log)], [kept] if kept else [], None
    holder, named = stack.enter_context(holding(target))
    texts = [text for text in newest_heads(holder) if text]
    if vkeys:
        return [_foreign(target, holder, texts[0], vkeys)], [], None
    if not run_of(_origin(texts[0])):
        raise UsageError(f"{target} holds a log that is no run of Artel", "add --vkey VKEY")
    if run and run_of(_origin(texts[0])) != run:
        raise CheckFailed(f"{target} holds another run than {run[:12]}…")
    trees: list[_Head] = []
    error = None
    for text in sorted(texts, key=lambda text: -size_of(text)):
        try:
            head = _tree(target, client.open_head(holder, text, run or named, None))
        except CheckFailed as failure:
            error = error or failure
            continue
        if not any(_begins_with(tree, head.size, head.root) for tree in trees):
            trees.append(head)
    return trees, texts, error


def _tree(target: str, log: Log) -> _Head:
    return _Head(target, log.origin, log.size, log.root, log.latest_note, log, log.leaf(0))


def _foreign(target: str, holder: Holder, newest: str, vkeys: Sequence[str]) -> _Head:
    from artel.ledger.sync.tree import Tree
    from artel.ledger.tlog.cosignature import open_cosigned, parse_key
    from artel.ledger.tlog.note import VerifierKey

    keys = [key for key in map(parse_key, vkeys) if isinstance(key, VerifierKey)]
    head, _ = open_cosigned(newest, keys, [])
    reader = Tree(holder, head.size, head.root)
    return _Head(target, head.origin, head.size, head.root, newest, reader, b"")


def _origin(newest: str) -> str:
    from artel.ledger.tlog.checkpoint import parse_checkpoint

    return parse_checkpoint(newest).origin


def _log_name(head: _Head) -> str:
    """What must be the same: the run, whatever the term; or the origin of another log."""
    from artel.ledger.sync.offline import run_of

    return run_of(head.origin) or head.origin


# --- two of them ----------------------------------------------------------------------------------


def _begins_with(tree: _Head, size: int, root: bytes) -> bool:
    """Whether the tree that a head has behind it begins with that one.

    :raises CheckFailed: what is served of it does not belong to the head, or is missing
    """
    from artel.ledger.tlog.proof import root_at

    return tree.reader is not None and size <= tree.size and root_at(tree.reader, size) == root


def _behind(head: _Head, heads: Sequence[_Head]) -> HashReader | None:
    """The tree that a head signs, whoever shows it."""
    trees = (tree for tree in heads if _begins_with(tree, head.size, head.root))
    return head.reader or next((tree.reader for tree in trees), None)


def _finding(a: _Head, b: _Head, heads: Sequence[_Head]) -> _Finding | None:
    """What is wrong between two heads; None when the one tree begins with the other."""
    from artel.ledger.tlog.proof import root_at

    small, large = sorted((a, b), key=lambda head: head.size)
    if small.size == large.size:
        return None if small.root == large.root else _Finding((a, b), True, "")
    try:
        tree = _behind(large, heads)
        if tree is None:
            return _Finding((a, b), False, f"nobody shows the tree of {large.size:,} entries")
        return None if root_at(tree, small.size) == small.root else _Finding((a, b), True, "")
    except CheckFailed as error:
        return _Finding((a, b), False, error.message)


def _worst(
    findings: Sequence[_Finding], heads: Sequence[_Head]
) -> tuple[_Finding | None, SplitView | None]:
    """The finding to report: one with evidence for others, or else one that is a split view."""
    from artel.ledger.entries import evidence

    splits = [finding for finding in findings if finding.split]
    for number, finding in enumerate(splits):
        a, b = finding.heads
        if a.origin != b.origin:
            why = "the two checkpoints are of different terms, signed with different names"
        else:
            try:
                trees = [_behind(head, heads) or _NoTree(head.size) for head in (a, b)]
                return finding, evidence.build(a.note, trees[0], b.note, trees[1])
            except CheckFailed as error:
                why = error.message
        splits[number] = replace(finding, why=why)
    return next(iter(splits or findings), None), None


@dataclass(frozen=True)
class _NoTree:
    """Stands for a tree that nobody shows; of two heads of one size, the notes alone prove it."""

    size: int

    def subtree(self, level: int, index: int) -> bytes:
        raise CheckFailed(f"nobody shows the tree of {self.size:,} entries")
