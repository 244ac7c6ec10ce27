"""Do all who hold a log hold the same one? Heads of several holders, compared pair by pair."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from artel.ledger.entries import Genesis, decode
from artel.ledger.entries.evidence import SplitView, build
from artel.ledger.store.finality import size_of
from artel.ledger.store.store import DATABASE_NAME
from artel.ledger.sync.client import home_view
from artel.ledger.sync.holding import hold
from artel.ledger.sync.offline import run_of
from artel.ledger.sync.source import newest_heads
from artel.ledger.sync.tree import SignedHead, Tree, verified_head
from artel.ledger.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from artel.ledger.tlog.cosignature import parse_key
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import HashReader, root_at
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.paths import expanded


@dataclass(frozen=True)
class Head:
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
class Finding:
    """Two heads that are not known to be of one history."""

    heads: tuple[Head, Head]
    split: bool
    """Whether they are of two; otherwise nobody shows the tree that would tell."""
    why: str


@dataclass(frozen=True)
class Comparison:
    """What several holders show, and the worst that was found between two of them."""

    heads: list[Head]
    finding: Finding | None
    """None: one history, as far as they show it."""
    proof: SplitView | None
    """Of the finding, for others who have seen neither."""
    genesis: bytes
    """Entry 0 of a run; empty for other logs."""


def compare(targets: Sequence[str], run: str = "", vkeys: Sequence[str] = ()) -> Comparison:
    """Ask holders for their tree heads, and whether each two are of one history.

    :param targets: homes, folders of tiles, URLs, multiaddrs, invites
    :param run: the run that all of them have to have
    :param vkeys: keys of a log that is no run
    :raises UsageError: they hold different logs, or one cannot be understood
    :raises CheckFailed: what a holder shows does not hold
    :raises Unreachable: one does not answer
    """
    with ExitStack() as stack:
        heads = _heads(stack, targets, run, vkeys)
        logs = {_log_name(head) for head in heads}
        if len(logs) > 1:
            raise UsageError("these are different logs", f"they are: {', '.join(sorted(logs))}")
        found = [_between(*pair, heads) for pair in combinations(heads, 2)]
        finding, proof = _worst([each for each in found if each is not None], heads)
    genesis = next((head.genesis for head in heads if head.genesis), b"")
    return Comparison(heads, finding, proof, genesis)


# --- the heads ------------------------------------------------------------------------------------


def _heads(stack: ExitStack, targets: Sequence[str], run: str, vkeys: Sequence[str]) -> list[Head]:
    """Of each holder its newest tree, and every signed head that is not of that tree."""
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
            heads.append(Head(target, head.origin, head.size, head.root, text, None, genesis))
    return heads


_Held = tuple[list[Head], list[str], CheckFailed | None]


def _held(stack: ExitStack, target: str, run: str, vkeys: Sequence[str]) -> _Held:
    """A holder's trees (of two the larger alone, when it begins with the other), the notes that
    it shows, and why a tree could not be read."""
    folder = expanded(Path(target))
    if "://" not in target and os.path.isfile(folder / DATABASE_NAME):
        view = stack.enter_context(home_view(folder, caching=False))
        if run and view.log.genesis.run != run:
            raise CheckFailed(f"{target} holds run {view.log.genesis.run[:12]}…, not {run[:12]}…")
        kept = view.heads.newest(0) if view.heads is not None else ""
        log = view.log
        head = SignedHead(log.latest_note, Checkpoint(log.origin, log.size, log.root), ())
        return [_shown(target, head, log, log.leaf(0))], [kept] if kept else [], None
    holder, named = hold(target)
    stack.callback(holder.close)
    keys = [key for key in map(parse_key, vkeys) if isinstance(key, VerifierKey)]
    texts = sorted(filter(None, newest_heads(holder)), key=size_of, reverse=True)
    trees: list[Head] = []
    error = None
    for text in texts:
        try:
            head = verified_head(holder, text, keys, run or named)
            tree = Tree(holder, head.size, head.root)
        except CheckFailed as failure:
            error = error or failure
            continue
        if not any(_begins_with(known, head.size, head.root) for known in trees):
            trees.append(_shown(target, head, tree, tree.leaf(0) if head.run else b""))
    if error is not None and (keys or not run_of(parse_checkpoint(texts[0]).origin)):
        raise error
    return trees, [] if keys else texts, error


def _shown(target: str, head: SignedHead, tree: HashReader, genesis: bytes) -> Head:
    return Head(target, head.origin, head.size, head.root, head.note, tree, genesis)


def _log_name(head: Head) -> str:
    """What must be the same: the run, whatever the term; or the origin of another log."""
    return run_of(head.origin) or head.origin


# --- two of them ----------------------------------------------------------------------------------


def _begins_with(tree: Head, size: int, root: bytes) -> bool:
    """Whether the tree that a head has behind it begins with that one.

    :raises CheckFailed: what is served of it does not belong to the head, or is missing
    """
    return tree.reader is not None and size <= tree.size and root_at(tree.reader, size) == root


def _behind(head: Head, heads: Sequence[Head]) -> HashReader | None:
    """The tree that a head signs, whoever shows it."""
    trees = (tree for tree in heads if _begins_with(tree, head.size, head.root))
    return head.reader or next((tree.reader for tree in trees), None)


def _between(a: Head, b: Head, heads: Sequence[Head]) -> Finding | None:
    """What is wrong between two heads; None when the one tree begins with the other."""
    small, large = sorted((a, b), key=lambda head: head.size)
    if small.size == large.size:
        return None if small.root == large.root else Finding((a, b), True, "")
    try:
        tree = _behind(large, heads)
        if tree is None:
            return Finding((a, b), False, f"nobody shows the tree of {large.size:,} entries")
        return None if root_at(tree, small.size) == small.root else Finding((a, b), True, "")
    except CheckFailed as error:
        return Finding((a, b), False, error.message)


def _worst(
    findings: Sequence[Finding], heads: Sequence[Head]
) -> tuple[Finding | None, SplitView | None]:
    """The finding to report: one with evidence for others, or else one that is a split view."""
    splits = [finding for finding in findings if finding.split]
    for number, finding in enumerate(splits):
        a, b = finding.heads
        if a.origin != b.origin:
            why = "the two checkpoints are of different terms, signed with different names"
        else:
            try:
                trees = [_behind(head, heads) or _NoTree(head.size) for head in (a, b)]
                return finding, build(a.note, trees[0], b.note, trees[1])
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
