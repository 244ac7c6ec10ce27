"""Who has cosigned a tree head, whether that certifies it, and what is final by it.

A head is **certified** when nodes of as many accounts as the manifest asks for have cosigned it,
and a quorum of the electors (:mod:`ledger.entries.electors`) is among them. Nodes of one account
count once, those of a barred account not at all. A ledger records in itself which of its heads were
cosigned (``witnessed``). An entry is **final** when a head is certified that covers the record of a
certified head that covers the entry: then a quorum holds its certificate, and no handover can lose
it. This is the one place that works it out, for every command and every page.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from artel.ledger.entries import decode
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import signers_in
from artel.ledger.fold import labels
from artel.ledger.store.published import given_up, term_of
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, open_signed, parse_checkpoint
from artel.ledger.tlog.cosignature import (
    WITNESS_PREFIX,
    add_lines,
    named_key,
    node_lines,
    witness_key,
)
from artel.ledger.tlog.note import Note, SignatureLine
from artel.protocol.errors import ArtelError, CheckFailed

if TYPE_CHECKING:
    from artel.ledger.store.heads import HeadStore
    from artel.ledger.store.reader import LedgerReader


class KnownTree(Protocol):
    """What tree heads are held against: a home's ledger, or somebody else's."""

    @property
    def size(self) -> int: ...
    def root_at(self, size: int) -> bytes: ...


@dataclass(frozen=True)
class Finality:
    """How much of a ledger is final, and who says so."""

    certified: str
    """The newest certified tree head at hand, as a note; "" when there is none."""
    cosigned: str
    """The newest that any account has cosigned; "" when there is none."""
    size: int
    """Entries before this index are final, by ``certified`` or by what the ledger records."""
    needed: int
    """Accounts that have to cosign a tree head; 0: none is ever certified, and nothing final."""
    seats: dict[str, list[str]]
    """Account to those of its nodes that cosigned ``certified``, or else ``cosigned``."""

    @property
    def head(self) -> int:
        """Entries under ``certified``; 0 without."""
        return size_of(self.certified)

    @property
    def policy(self) -> list[str]:
        """How ``artel ledger verify`` is told whose cosignatures certify ``certified``.

        A proof does not say who the run's nodes are: one key for each account that is needed.
        """
        if not self.certified:
            return []
        keys = [witness_key(nodes[0]).encode() for nodes in self.seats.values()][: self.needed]
        return ["--policy", str(len(keys)), *(word for key in keys for word in ("--vkey", key))]

    def label(self, size: int) -> str:
        """Final or pending, and up to where, of the first ``size`` entries."""
        return labels.finality(min(self.size, size), size, self.needed)

    def facts(self, state: FoldState) -> dict[str, Any]:
        """What pages and API say of the entries of a fold."""
        label = self.label(state.size)
        if state.convicted:
            label += "; somebody provably signed two histories, see the split_seen entries"
        return {
            "final": min(self.size, state.size),
            # Without a single note the ledger itself says who cosigned what it records as final.
            "witnesses": sorted(self.seats if self.cosigned else state.cosigners),
            "witnesses_wanted": self.needed,
            "label": label,
        }


# --- one tree head --------------------------------------------------------------------------------


def verified(
    data: str | bytes, origin: str, coordinators: Iterable[str], nodes: Mapping[str, str]
) -> tuple[Checkpoint, Note]:
    """A run's tree head, with no other signature lines than those that were verified here.

    :param coordinators: keys (hex) of which one must have signed: its term's leader
    :param nodes: peer ids whose cosignatures count
    :raises DecodeError: when it is malformed
    :raises CheckFailed: when no coordinator signed it, or it is of another log
    """
    parsed = note.parse(data)
    head, signed = open_signed(parsed, origin, coordinators)
    return head, Note(signed.text, (*signed.signatures, *node_lines(parsed, nodes)))


def cosigners(signed: Note, nodes: Mapping[str, str]) -> dict[str, SignatureLine]:
    """Peer id to cosignature, of the known nodes; nothing is verified."""
    found: dict[str, SignatureLine] = {}
    for line in signed.signatures:
        peer = line.name.removeprefix(WITNESS_PREFIX)
        if peer in nodes and named_key(line) is not None:
            found[peer] = line
    return found


def seats(signed: Note, state: FoldState) -> dict[str, list[str]]:
    """Account to those of its nodes that cosigned; without barred accounts."""
    found: dict[str, list[str]] = {}
    for peer in sorted(cosigners(signed, state.nodes)):
        account = state.account_of(peer)
        if not state.accounts[account].barred:
            found.setdefault(account, []).append(peer)
    return found


def is_certified(signed: Note, state: FoldState) -> bool:
    """Whether enough have cosigned this head; its lines were verified before."""
    wanted, found = needed(state), seats(signed, state)
    nodes = state.trusted(peer for peers in found.values() for peer in peers)
    size = Checkpoint.parse(signed.text).size
    return 0 < wanted <= len(found) and state.electors.quorum(nodes, size)


def needed(state: FoldState) -> int:
    """Accounts that have to cosign a tree head; 0: none is ever certified, and nothing final."""
    return state.rules.witnesses if state.rules is not None else 0


def trust(state: FoldState) -> labels.Trust:
    """What the witnesses of this run are worth; those that could cosign are not barred."""
    able = {name for name in state.nodes.values() if not state.accounts[name].barred}
    by_standing = any(each.by_standing for each in state.electors.sets[-1:])
    voices = 0 if by_standing else len(state.electors.present)
    return labels.Trust(needed(state), len(able), voices, by_standing)


# --- all tree heads at hand -----------------------------------------------------------------------


def of_notes(notes: Iterable[str], tree: KnownTree, state: FoldState) -> Finality:
    """What is final by these notes, each of which is verified; "" is skipped.

    :raises DecodeError: when one is malformed
    :raises CheckFailed: when one is not signed by the run's coordinators, is of another log, or of
        another tree than this one
    """
    certified = cosigned = ""
    size = tree.size
    for text in dict.fromkeys(filter(None, notes)):
        origin = parse_checkpoint(text).origin
        term = term_of(origin, state.run)
        if term is None:
            raise CheckFailed(f"a checkpoint of another log: {origin[:120]!r}")
        if state.terms and term > state.term.number:
            continue  # by whom it is signed stands in the tree under it
        head, signed = verified(text, origin, signers_in(term, state.terms), state.nodes)
        if head.size > size or given_up(head, state.terms):
            continue
        if tree.root_at(head.size) != head.root:
            raise CheckFailed(
                f"two histories: a cosigned checkpoint of {head.size} entries is not of the "
                "tree that is served",
                "keep both; artel ledger compare makes evidence of them",
            )
        if is_certified(signed, state) and head.size > size_of(certified):
            certified = signed.encode()
        if seats(signed, state) and head.size > size_of(cosigned):
            cosigned = signed.encode()
    return _found(certified, cosigned, state)


def of_heads(heads: HeadStore | None, state: FoldState) -> Finality:
    """What is final by the notes that a home keeps, which were verified before they were kept."""
    return _found(newest_certified(heads, state), newest_cosigned(heads, state), state)


def _found(certified: str, cosigned: str, state: FoldState) -> Finality:
    best = certified or cosigned
    return Finality(
        certified=certified,
        cosigned=cosigned,
        size=max(state.final, state.electors.final_by(size_of(certified))),
        needed=needed(state),
        seats=seats(note.parse(best), state) if best else {},
    )


def of_home(store: LedgerReader, heads: HeadStore | None, state: FoldState) -> Finality:
    """What is final in a home; raises as :func:`of_notes`."""
    kept = (newest_certified(heads, state), newest_cosigned(heads, state))
    return of_notes((*kept, store.latest_note), store, state)


def newest_certified(heads: HeadStore | None, state: FoldState) -> str:
    """The newest certified head that is kept here, as a note; "" when there is none."""
    wanted = needed(state)
    if heads is None or not wanted:
        return ""
    # Newer ones may have as many lines and fewer seats: of barred accounts, of nodes of one.
    notes = _kept(heads, wanted, state)
    return next((text for text in notes if is_certified(note.parse(text), state)), "")


def known_certified(
    store: LedgerReader, heads: HeadStore | None, state: FoldState
) -> tuple[int, int, str]:
    """Term, size and root (hex) of the newest certified head that is known here: by the notes that
    are kept, by an entry that records one, or by what the seals of the newest handover name;
    (0, 0, "") for none.

    What a node seals with. An entry is enough: whoever cosigned a head behind it holds it. It may
    have been given up with a term, and what it records not: that the seals name, which let the
    next one begin.
    """
    kept = newest_certified(heads, state)
    head = parse_checkpoint(kept) if kept else None
    found = [(head.size, term_of(head.origin, state.run) or 0)] if head is not None else []
    if state.electors.certified:
        at, size = state.electors.certified[-1]
        found.append((size, getattr(decode(store.leaf(at)).body, "term", 0)))
    if state.term.number:
        begun = decode(store.leaf(state.term.begins)).body
        of, size = max((seal.of, seal.size) for seal in getattr(begun, "seals", ()))
        found.append((size, of))
    size, term = max(found, default=(0, 0))
    return term, size, store.root_at(size).hex() if size else ""


def newest_cosigned(heads: HeadStore | None, state: FoldState) -> str:
    """The newest head kept here that any account has cosigned, as a note; "" when there is none."""
    notes = _kept(heads, 1, state) if heads is not None else iter(())
    return next((text for text in notes if seats(note.parse(text), state)), "")


def _kept(heads: HeadStore, lines: int, state: FoldState) -> Iterator[str]:
    """The notes with so many cosignatures, newest first, that were not given up with a term."""
    for text in heads.newest_first(lines):
        if not given_up(parse_checkpoint(text), state.terms):
            yield text


# --- notes for others -----------------------------------------------------------------------------


def certified_note(store: LedgerReader, heads: HeadStore | None, state: FoldState) -> str:
    """The newest certified head as a note with all known cosignatures; "" when there is none."""
    found = newest_certified(heads, state)
    return merged(store.note_at(size_of(found)), found) if found else ""


def newest_note(store: LedgerReader, heads: HeadStore | None) -> str:
    """The newest tree head with all known cosignatures; "" for an empty ledger."""
    signed = store.latest_note
    known = heads.note(size_of(signed)) if heads is not None and signed else ""
    return merged(signed, known)


def size_of(signed: str) -> int:
    """Entries that a note covers; 0 for none."""
    return parse_checkpoint(signed).size if signed else 0


def merged(signed: str, other: str) -> str:
    """The lines of both under one text; the first where they have different texts."""
    if not signed or not other:
        return signed or other
    first, second = note.parse(signed), note.parse(other)
    if first.text != second.text:
        return signed
    try:
        return add_lines(first, second.signatures).encode()
    except ArtelError:  # more lines than a note may have
        return signed
