"""Who has cosigned a tree head, and whether that makes it final.

A head is **final** when nodes of as many accounts as the manifest asks for have cosigned it; every
entry that it covers then is. Nodes of one account count once, those of a barred account not at all.
A ledger also records in itself which of its heads were cosigned (``witnessed``), so what is final
is the larger of the two. This is the one place that works it out, for every command and every page.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold import labels
from artel.ledger.store.published import term_of
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

    final: str
    """The newest tree head at hand that is final, as a note; "" when there is none."""
    cosigned: str
    """The newest that any account has cosigned, final or not; "" when there is none."""
    size: int
    """Entries before this index are final, by ``final`` or by what the ledger records itself."""
    needed: int
    """Cosigning accounts that make a tree head final; 0: nothing ever is."""
    seats: dict[str, list[str]]
    """Account to those of its nodes that cosigned ``final``, or else ``cosigned``."""

    @property
    def head(self) -> int:
        """Entries under ``final``; 0 without."""
        return size_of(self.final)

    @property
    def policy(self) -> list[str]:
        """How ``artel ledger verify`` is told whose cosignatures make ``final`` final.

        A proof does not say who the run's nodes are: one key for each account that is needed.
        """
        if not self.final:
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

    :param coordinators: keys (hex) of which one must have signed
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


def is_final(signed: Note, state: FoldState) -> bool:
    """Whether enough accounts have cosigned this head; its lines were verified before."""
    wanted = needed(state)
    return wanted > 0 and len(seats(signed, state)) >= wanted


def needed(state: FoldState) -> int:
    """Cosigning accounts that make a tree head final; 0: nothing ever is."""
    return state.rules.witnesses if state.rules is not None else 0


def trust(state: FoldState) -> labels.Trust:
    """What the witnesses of this run are worth; those that could cosign are not barred."""
    able = {name for name in state.nodes.values() if not state.accounts[name].barred}
    return labels.Trust(needed(state), len(able))


# --- all tree heads at hand -----------------------------------------------------------------------


def of_notes(notes: Iterable[str], tree: KnownTree, state: FoldState) -> Finality:
    """What is final by these notes, each of which is verified; "" is skipped.

    :raises DecodeError: when one is malformed
    :raises CheckFailed: when one is not signed by the run's coordinators, is of another log, or of
        another tree than this one
    """
    final = cosigned = ""
    size = tree.size
    for text in dict.fromkeys(filter(None, notes)):
        origin = parse_checkpoint(text).origin
        head, signed = verified(text, origin, state.coordinators, state.nodes)
        if term_of(origin, state.run) is None:
            raise CheckFailed(f"a checkpoint of another log: {origin[:120]!r}")
        if head.size > size:
            continue
        if tree.root_at(head.size) != head.root:
            raise CheckFailed(
                f"two histories: a cosigned checkpoint of {head.size} entries is not of the "
                "tree that is served",
                "keep both; artel ledger compare makes evidence of them",
            )
        if is_final(signed, state) and head.size > size_of(final):
            final = signed.encode()
        if seats(signed, state) and head.size > size_of(cosigned):
            cosigned = signed.encode()
    return _found(final, cosigned, state)


def of_heads(heads: HeadStore | None, state: FoldState) -> Finality:
    """What is final by the notes that a home keeps, which were verified before they were kept."""
    return _found(newest_final(heads, state), newest_cosigned(heads, state), state)


def _found(final: str, cosigned: str, state: FoldState) -> Finality:
    best = final or cosigned
    return Finality(
        final=final,
        cosigned=cosigned,
        size=max(state.final, size_of(final)),
        needed=needed(state),
        seats=seats(note.parse(best), state) if best else {},
    )


def of_home(store: LedgerReader, heads: HeadStore | None, state: FoldState) -> Finality:
    """What is final in a home; raises as :func:`of_notes`."""
    kept = (newest_final(heads, state), newest_cosigned(heads, state))
    return of_notes((*kept, store.latest_note), store, state)


def newest_final(heads: HeadStore | None, state: FoldState) -> str:
    """The newest final head that is kept here, as a note; "" when there is none."""
    wanted = needed(state)
    if heads is None or not wanted:
        return ""
    # Newer ones may have as many lines and fewer seats: of barred accounts, of nodes of one.
    notes = heads.newest_first(wanted)
    return next((text for text in notes if is_final(note.parse(text), state)), "")


def newest_cosigned(heads: HeadStore | None, state: FoldState) -> str:
    """The newest head kept here that any account has cosigned, as a note; "" when there is none."""
    notes = heads.newest_first(1) if heads is not None else iter(())
    return next((text for text in notes if seats(note.parse(text), state)), "")


# --- notes for others -----------------------------------------------------------------------------


def final_note(store: LedgerReader, heads: HeadStore | None, state: FoldState) -> str:
    """The newest final tree head as a note with all known cosignatures; "" when there is none."""
    found = newest_final(heads, state)
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
