"""Do all who hold a log hold the same one? Heads of several holders, compared pair by pair."""

from __future__ import annotations

import os
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from artel.ledger.entries.evidence import SplitView, build
from artel.ledger.store.published import run_of
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import DATABASE_NAME
from artel.ledger.sync.client import home_view
from artel.ledger.sync.fork import mandate_of, shared
from artel.ledger.sync.holding import hold
from artel.ledger.sync.leadership import Mandate
from artel.ledger.sync.signed_tree import Shown, SignedHead, SignedTree, verified_head
from artel.ledger.sync.source import CERTIFIED_PATH, Holder, NotFound, text_of
from artel.ledger.tlog.checkpoint import Checkpoint, parse_checkpoint
from artel.ledger.tlog.note import open_note
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import CHECKPOINT_PATH
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, UsageError
from artel.protocol.merkle import HashReader
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
    mandate: Mandate | None
    """By what the key signs that the proof is about."""


def compare(targets: Sequence[str], run: str = "") -> Comparison:
    """Ask holders for their tree heads, and whether each two are of one history.

    :param targets: homes, folders of tiles, URLs, multiaddrs, invites
    :param run: the run that all of them have to have
    :raises UsageError: they hold different logs, or one cannot be understood
    :raises CheckFailed: what a holder shows does not hold
    :raises Unreachable: one does not answer
    """
    with ExitStack() as stack:
        heads, wrong = _heads(stack, targets, run)
        runs = {head.head.run for head in heads}
        if len(runs) > 1:
            raise UsageError("these are different runs", f"they are: {', '.join(sorted(runs))}")
        found = [_between(*pair, heads) for pair in combinations(heads, 2)]
        finding, proof = _worst([each for each in found if each is not None], heads)
        if finding is None and wrong is not None:
            raise wrong
        mandate = _mandate(proof, heads) if proof is not None else None
    return Comparison(heads, finding, proof, mandate)


def _mandate(proof: SplitView, heads: Sequence[Shown]) -> Mandate:
    """From the first tree that leads to one of the two heads, or any."""
    trees = [(head.tree, head.head.terms) for head in heads if head.tree is not None]
    made = [mandate_of(proof, tree, terms) for tree, terms in trees]
    return max(made, key=lambda mandate: len(mandate.handed))


# --- the heads ------------------------------------------------------------------------------------


def _heads(
    stack: ExitStack, targets: Sequence[str], run: str
) -> tuple[list[Shown], ArtelError | None]:
    """Of each holder its trees, and every signed head that is not of these; and what else it shows
    that does not hold, which must not hide what does."""
    found = [_held(stack, target, run) for target in targets]
    heads = [head for trees, _, _ in found for head in trees]
    known = max((head.head for head in heads), key=lambda head: head.place, default=None)
    wrong = None
    for target, (trees, texts, error) in zip(targets, found, strict=True):
        if not trees and known is None and error is not None:
            raise error
        for text in texts:
            try:
                head = parse_checkpoint(text)
                if known is not None and not any(_begins_with(tree, head) for tree in trees):
                    keys = tuple(known.keys_for(head.origin))
                    open_note(text, keys)
                    seen = SignedHead(text, head, keys)
                    terms = tuple(each for each in known.terms if each.number <= seen.term)
                    heads.append(Shown(target, replace(seen, terms=terms), None))
            except ArtelError as failure:
                wrong = wrong or failure
    return heads, wrong


_Held = tuple[list[Shown], list[str], ArtelError | None]


def _held(stack: ExitStack, target: str, run: str) -> _Held:
    """A holder's trees (of two the larger alone, when it begins with the other), the notes that
    it shows, and why a tree could not be read."""
    folder = expanded(Path(target))
    if "://" not in target and os.path.isfile(folder / DATABASE_NAME):
        view = stack.enter_context(home_view(folder))
        log = view.log
        if run and log.genesis.run != run:
            raise CheckFailed(f"{target} holds run {log.genesis.run[:12]}…, not {run[:12]}…")
        kept = list(view.heads.newest_first(0)) if view.heads is not None else []
        return [Shown.of(log, target)], kept, None
    holder, named = hold(target)
    stack.callback(holder.close)
    texts, error = _notes(holder)
    trees: list[Shown] = []
    for text in sorted(texts, key=_size, reverse=True):
        try:
            head = verified_head(holder, text, run=run or named)
            tree = SignedTree(holder, head.size, head.root)
        except ArtelError as failure:
            error = error or failure
            continue
        if not any(_begins_with(known, head.checkpoint) for known in trees):
            trees.append(Shown(target, head, tree))
    if error is not None and not any(map(_run, texts)):
        raise error
    return trees, texts, error


def _notes(holder: Holder) -> tuple[list[str], ArtelError | None]:
    """The heads that a holder shows, not verified, and why one could not be read.

    :raises ArtelError: none could
    """
    texts, error = list[str](), None
    for path in (CERTIFIED_PATH, CHECKPOINT_PATH):
        try:
            texts.append(text_of(holder.get(path), path))
        except ArtelError as failure:
            if path == CHECKPOINT_PATH and not texts:
                raise
            if not isinstance(failure, NotFound):  # many have no certified one
                error = failure
    return list(dict.fromkeys(filter(None, texts))), error


def _size(text: str) -> int:
    """Entries that a note says it covers; -1 where it cannot be read."""
    try:
        return parse_checkpoint(text).size
    except DecodeError:
        return -1


def _run(text: str) -> str:
    try:
        return run_of(parse_checkpoint(text).origin)
    except DecodeError:
        return ""


# --- two of them ----------------------------------------------------------------------------------


def _begins_with(tree: Shown, head: Checkpoint) -> bool:
    """Whether the tree that a head has behind it is known to begin with that of another."""
    if tree.tree is None or head.size > tree.size:
        return False
    try:
        return root_at(tree.tree, head.size) == head.root
    except ArtelError:  # what is served of it does not belong to the head, or does not come
        return False


def _behind(head: Shown, heads: Sequence[Shown]) -> HashReader | None:
    """The tree that a head signs, whoever shows it."""
    trees = (tree for tree in heads if _begins_with(tree, head.head.checkpoint))
    return head.tree or next((tree.tree for tree in trees), None)


def _between(a: Shown, b: Shown, heads: Sequence[Shown]) -> Mismatch | None:
    """What is wrong between two heads; None when the one tree begins with the other, or with what
    was kept of the other's term."""
    older, newer = sorted((a, b), key=lambda head: head.head.place)
    size = shared(older.head, newer.head)
    if size < min(older.size, newer.size) and _behind(older, heads) is None:
        return None  # what was given up is shown by nobody any more, and says nothing
    try:
        same = _root(older, size, heads) == _root(newer, size, heads)
        return None if same else Mismatch((a, b), True, "")
    except ArtelError as error:
        return Mismatch((a, b), False, error.message)


def _root(head: Shown, size: int, heads: Sequence[Shown]) -> bytes:
    """The root of the first ``size`` entries that a head covers."""
    if head.size == size:
        return head.head.root
    tree = _behind(head, heads)
    if tree is None:
        raise CheckFailed(f"nobody shows the tree of {head.size:,} entries")
    return root_at(tree, size)


def _worst(
    findings: Sequence[Mismatch], heads: Sequence[Shown]
) -> tuple[Mismatch | None, SplitView | None]:
    """The finding to report: one with evidence for others, or else one that is a split view."""
    splits = [finding for finding in findings if finding.split]
    for number, finding in enumerate(splits):
        a, b = finding.heads
        if a.head.origin != b.head.origin:
            older, newer = sorted((a, b), key=lambda head: head.head.place)
            tree, log = _behind(older, heads), newer.tree
            note = log.last_of(older.head.term) if isinstance(log, LedgerReader) else ""
            with suppress(ArtelError):
                if tree is not None and isinstance(log, LedgerReader) and note:
                    return finding, build(older.head.note, tree, note, log)
            why = "the two checkpoints are of different terms, and two leaders signed them"
        else:
            try:
                for head in (a, b):
                    if same := _of_one_size(head, heads):
                        return finding, build(head.head.note, _NoTree(0), same, _NoTree(0))
                trees = [_behind(head, heads) or _NoTree(head.size) for head in (a, b)]
                return finding, build(a.head.note, trees[0], b.head.note, trees[1])
            except ArtelError as error:
                why = error.message
        splits[number] = replace(finding, why=why)
    return next(iter(splits or findings), None), None


def _of_one_size(head: Shown, heads: Sequence[Shown]) -> str:
    """Another head of the same size that a ledger at hand keeps; "" for none. It needs no tree."""
    for other in heads:
        if isinstance(other.tree, LedgerReader) and other.size >= head.size:
            note = other.tree.note_at(head.size)
            if note and parse_checkpoint(note).root != head.head.root:
                return note
    return ""


@dataclass(frozen=True)
class _NoTree:
    """Stands for a tree that nobody shows; of two heads of one size, the notes alone prove it."""

    size: int

    def subtree(self, level: int, index: int) -> bytes:
        raise CheckFailed(f"nobody shows the tree of {self.size:,} entries")
