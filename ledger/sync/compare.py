"""Do all who hold a log hold the same one? Heads of several holders, compared pair by pair."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from artel.ledger.entries.evidence import SplitView, build
from artel.ledger.store.finality import size_of
from artel.ledger.store.store import DATABASE_NAME
from artel.ledger.sync.client import home_view
from artel.ledger.sync.holding import hold
from artel.ledger.sync.offline import run_of
from artel.ledger.sync.signed_tree import Shown, SignedHead, SignedTree, verified_head
from artel.ledger.sync.source import newest_heads
from artel.ledger.tlog.checkpoint import Checkpoint, parse_checkpoint
from artel.ledger.tlog.note import open_note
from artel.ledger.tlog.proof import HashReader, root_at
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.paths import expanded


@dataclass(frozen=True)
class Mismatch:
    """Two heads that are not known to be of one history."""

    heads: tuple[Shown, Shown]
    split: bool
    """Whether they are of two; otherwise nobody shows the tree that would tell."""
    why: str


@dataclass(frozen=True)
class Comparison:
    """What several holders show, and the worst that was found between two of them."""

    heads: list[Shown]
    finding: Mismatch | None
    """None: one history, as far as they show it."""
    proof: SplitView | None
    """Of the finding, for others who have seen neither."""
    genesis: bytes
    """Entry 0."""


def compare(targets: Sequence[str], run: str = "") -> Comparison:
    """Ask holders for their tree heads, and whether each two are of one history.

    :param targets: homes, folders of tiles, URLs, multiaddrs, invites
    :param run: the run that all of them have to have
    :raises UsageError: they hold different logs, or one cannot be understood
    :raises CheckFailed: what a holder shows does not hold
    :raises Unreachable: one does not answer
    """
    with ExitStack() as stack:
        heads = _heads(stack, targets, run)
        runs = {head.head.run for head in heads}
        if len(runs) > 1:
            raise UsageError("these are different runs", f"they are: {', '.join(sorted(runs))}")
        found = [_between(*pair, heads) for pair in combinations(heads, 2)]
        finding, proof = _worst([each for each in found if each is not None], heads)
        genesis = next(head.tree.leaf(0) for head in heads if head.tree is not None)
    return Comparison(heads, finding, proof, genesis)


# --- the heads ------------------------------------------------------------------------------------


def _heads(stack: ExitStack, targets: Sequence[str], run: str) -> list[Shown]:
    """Of each holder its newest tree, and every signed head that is not of that tree."""
    found = [_held(stack, target, run) for target in targets]
    heads = [head for trees, _, _ in found for head in trees]
    known = next((head.head for head in heads), None)
    for target, (trees, texts, error) in zip(targets, found, strict=True):
        if not trees and known is None and error is not None:
            raise error
        for text in texts:
            head = parse_checkpoint(text)
            if known is not None and not any(_begins_with(tree, head) for tree in trees):
                keys = known.keys_for(known.origin)
                open_note(text, keys)
                heads.append(Shown(target, SignedHead(text, head, keys), None))
    return heads


_Held = tuple[list[Shown], list[str], CheckFailed | None]


def _held(stack: ExitStack, target: str, run: str) -> _Held:
    """A holder's trees (of two the larger alone, when it begins with the other), the notes that
    it shows, and why a tree could not be read."""
    folder = expanded(Path(target))
    if "://" not in target and os.path.isfile(folder / DATABASE_NAME):
        view = stack.enter_context(home_view(folder))
        log = view.log
        if run and log.genesis.run != run:
            raise CheckFailed(f"{target} holds run {log.genesis.run[:12]}…, not {run[:12]}…")
        kept = view.heads.newest(0) if view.heads is not None else ""
        return [Shown.of(log, target)], [kept] if kept else [], None
    holder, named = hold(target)
    stack.callback(holder.close)
    texts = sorted(filter(None, newest_heads(holder)), key=size_of, reverse=True)
    trees: list[Shown] = []
    error = None
    for text in texts:
        try:
            head = verified_head(holder, text, run=run or named)
            tree = SignedTree(holder, head.size, head.root)
        except CheckFailed as failure:
            error = error or failure
            continue
        if not any(_begins_with(known, head.checkpoint) for known in trees):
            trees.append(Shown(target, head, tree))
    if error is not None and not run_of(parse_checkpoint(texts[0]).origin):
        raise error
    return trees, texts, error


# --- two of them ----------------------------------------------------------------------------------


def _begins_with(tree: Shown, head: Checkpoint) -> bool:
    """Whether the tree that a head has behind it begins with that of another.

    :raises CheckFailed: what is served of it does not belong to the head, or is missing
    """
    if tree.tree is None or head.size > tree.size:
        return False
    return root_at(tree.tree, head.size) == head.root


def _behind(head: Shown, heads: Sequence[Shown]) -> HashReader | None:
    """The tree that a head signs, whoever shows it."""
    trees = (tree for tree in heads if _begins_with(tree, head.head.checkpoint))
    return head.tree or next((tree.tree for tree in trees), None)


def _between(a: Shown, b: Shown, heads: Sequence[Shown]) -> Mismatch | None:
    """What is wrong between two heads; None when the one tree begins with the other."""
    small, large = sorted((a, b), key=lambda head: head.size)
    if small.size == large.size:
        same = small.head.root == large.head.root
        return None if same else Mismatch((a, b), True, "")
    try:
        tree = _behind(large, heads)
        if tree is None:
            return Mismatch((a, b), False, f"nobody shows the tree of {large.size:,} entries")
        same = root_at(tree, small.size) == small.head.root
        return None if same else Mismatch((a, b), True, "")
    except CheckFailed as error:
        return Mismatch((a, b), False, error.message)


def _worst(
    findings: Sequence[Mismatch], heads: Sequence[Shown]
) -> tuple[Mismatch | None, SplitView | None]:
    """The finding to report: one with evidence for others, or else one that is a split view."""
    splits = [finding for finding in findings if finding.split]
    for number, finding in enumerate(splits):
        a, b = finding.heads
        if a.head.origin != b.head.origin:
            why = "the two checkpoints are of different terms, signed with different names"
        else:
            try:
                trees = [_behind(head, heads) or _NoTree(head.size) for head in (a, b)]
                return finding, build(a.head.note, trees[0], b.head.note, trees[1])
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
