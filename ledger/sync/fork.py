"""Tree heads that others show, held against one's own tree; and the proof when both cannot be true.

A signed head that is not the root of our own tree at its size means that its signer shows different
histories. That is evidence for others (:mod:`ledger.entries.evidence`) as soon as there is one
index at which the two trees provably differ; for it, the hashes of the other tree are read from the
peer that showed the head, and each of them is tied to the head's root.
"""

from __future__ import annotations

import logging
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.entries import evidence
from artel.ledger.entries.evidence import SplitView
from artel.ledger.store.database import storage_errors
from artel.ledger.store.published import kept_of, run_of, term_of
from artel.ledger.sync.leadership import EntryTree, Mandate
from artel.ledger.sync.offline import write_evidence
from artel.ledger.sync.signed_tree import Shown, SignedHead, SignedTree
from artel.ledger.sync.source import TileSource
from artel.ledger.tlog.checkpoint import (
    Checkpoint,
    open_checkpoint,
    parse_checkpoint,
    verifier_keys,
)
from artel.ledger.tlog.proof import root_at
from artel.protocol import files
from artel.protocol.errors import ArtelError, CheckFailed
from artel.protocol.events import emit
from artel.protocol.terminal import printable

if TYPE_CHECKING:
    from artel.ledger.entries.records import Term
    from artel.ledger.store.heads import HeadStore
    from artel.ledger.store.reader import LedgerReader

log = logging.getLogger("artel.ledger")

SPLIT_VIEW_FILE = "split-view.json"


class SplitViewProven(CheckFailed):
    """A coordinator of the run has signed two histories; ``evidence`` proves it to anybody."""

    def __init__(self, proof: SplitView) -> None:
        super().__init__(
            "the coordinator is proven to have signed two histories of this run; "
            "this node follows it no further",
            f"{SPLIT_VIEW_FILE} in the node's home is the proof: keep it, show it to the others, "
            f"check it with `artel ledger verify {SPLIT_VIEW_FILE}`",
        )
        self.evidence = proof


def require_one_history(place: Path, one: Shown, other: Shown) -> int:
    """One of two trees must begin with the other; else the evidence is left in ``place``.

    Where they are of two terms, the later one must begin with what was kept of the earlier.

    :returns: how many entries they have in common
    :raises CheckFailed: when neither begins with the other
    """
    assert one.tree is not None
    assert other.tree is not None
    size = shared(one.head, other.head)
    if root_at(one.tree, size) == root_at(other.tree, size):
        return size
    message = f"{other.name} and {one.name} show different histories"
    if one.head.origin != other.head.origin:
        raise CheckFailed(f"{message}, in different terms", "nothing was changed; keep both")
    proof = evidence.build(one.head.note, one.tree, other.head.note, other.tree)
    evidence.check(proof, one.head.keys)
    mandate = mandate_of(proof, other.tree, other.head.terms)
    path = shlex.quote(str(write_split_view(place, proof, mandate)))
    raise CheckFailed(
        f"{message}: the log has signed both",
        f"nothing was changed; {path} is the proof, show it to others and enter it with "
        f"artel ledger split-view {path}",
    )


def shared(one: SignedHead, other: SignedHead) -> int:
    """How many entries two heads of a run must have in common, if nobody has signed two histories:
    of an earlier term not those that were given up with it."""
    older, newer = sorted((one, other), key=lambda head: head.place)
    return min(kept_of(older.checkpoint, newer.terms), newer.size)


def examine(source: TileSource, store: LedgerReader, note: str) -> SplitView | None:
    """Hold a head that a peer showed against our tree; the proof if its signer signed both.

    None when the one tree begins with the other. It is held against what we have of its own term:
    heads of two terms convict nobody.

    :raises DecodeError: the note is malformed
    :raises CheckFailed: no coordinator signed it; it is of a term that we have nothing of; or the
        histories differ, but the peer does not show a tree that belongs to the note, so that
        nothing is proven
    :raises Unreachable: the peer does not answer
    """
    origin = parse_checkpoint(note).origin
    term = term_of(origin, store.genesis.run)
    ours = store.last_of(term) if term is not None else ""
    if term is None or not ours:
        raise CheckFailed(f"there is nothing here of {printable(origin[:120])!r}")
    leaders = store.signers(term)
    head = open_checkpoint(note, origin, leaders)
    size = parse_checkpoint(ours).size
    if head.size <= size:
        if head.root == store.root_at(head.size):
            return None
        # Two roots of one size need no more than the two notes.
        same = store.note_at(head.size)
        if same:
            return _checked(evidence.build(same, store, note, store), origin, leaders)
    theirs = SignedTree(source, head.size, head.root)
    if head.size > size and root_at(theirs, size) == store.root_at(size):
        return None
    return _checked(evidence.build(ours, store, note, theirs), origin, leaders)


def _checked(proof: SplitView, origin: str, leaders: Sequence[str]) -> SplitView:
    evidence.check(proof, verifier_keys(origin, leaders))
    return proof


def convicts_leader(value: dict[str, Any], store: LedgerReader) -> bool:
    """Whether evidence (as JSON) proves that who leads now has signed two histories in its term."""
    try:
        proof = SplitView.from_dict(value)
        if proof.origin != store.origin:
            return False
        evidence.check(proof, verifier_keys(store.origin, store.signers(store.term)))
    except ArtelError:
        return False
    return True


def record(home: Path, heads: HeadStore, proof: SplitView, store: LedgerReader) -> Path:
    """Leave the proof in a home, durably, and in its log; returns the file."""
    path = write_split_view(home, proof, mandate_of(proof, store, store.terms()))
    heads.add_conflict(proof.to_dict())
    first, second = proof.sizes
    emit(
        log,
        "ledger.split_view",
        logging.ERROR,
        signer=proof.signer,
        sizes=f"{first} and {second}",
        proof=str(path),
        check=f"artel ledger verify {shlex.quote(str(path))}",
    )
    return path


def mandate_of(proof: SplitView, tree: EntryTree, terms: Iterable[Term]) -> Mandate:
    """What ties the key that a proof is about to the run, so that a file with both verifies with
    nothing else at hand.

    :param tree: behind one of the two heads
    :param terms: of that tree
    """
    own = term_of(proof.origin, run_of(proof.origin))
    heads = [parse_checkpoint(text) for text in (proof.first, proof.second)]
    size = next((head.size for head in heads if _is_of(tree, head)), 0)
    return Mandate.of(tree, size, [each for each in terms if size and each.number == own])


def _is_of(tree: EntryTree, head: Checkpoint) -> bool:
    try:
        return root_at(tree, head.size) == head.root
    except ArtelError:  # it is larger
        return False


def write_split_view(place: Path, proof: SplitView, mandate: Mandate) -> Path:
    """Leave the evidence in a folder as the file that ``artel ledger verify`` reads; durable.

    An older file stays: the first proof is as good as any.

    :param mandate: of the key that it is about
    """
    path = place / SPLIT_VIEW_FILE
    with storage_errors(path):
        place.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            files.write(path, write_evidence(proof, mandate))
    return path
