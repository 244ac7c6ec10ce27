"""Who leads which term, for readers who have not folded the ledger: the ``handover`` entries of it.

A source says where they are (:data:`.source.TERMS_PATH`), a proof file brings one along. What is
checked here is the entry itself, and that it is in a signed tree: it is of this run and this term,
every signature verifies, those of the seals too, and it is signed by the coordinator of the
manifest whose turn that term was, or by a node that starts another one. What only the fold knows is
whether those who sealed the term before were its electors: whoever takes the entries over asks that
(:meth:`ledger.store.store.LedgerStore.append_replica`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from artel.ledger.entries import Entry, Genesis, decode
from artel.ledger.entries.fold_state import key_of
from artel.ledger.entries.kinds.handover import Handover
from artel.ledger.entries.records import Term
from artel.ledger.tlog.checkpoint import Checkpoint
from artel.ledger.tlog.note import decode_base64, encode_base64
from artel.ledger.tlog.proof import decode_hashes
from artel.protocol import canonical
from artel.protocol.dsse import Leaf
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.merkle import HashReader, inclusion, leaf_hash, verify_inclusion

if TYPE_CHECKING:
    from artel.ledger.sync.source import TileSource

MOST_TERMS = 64
"""The newest ones, that a source says and a reader looks at."""


def began(leaf: bytes, genesis: Genesis, term: int = 0) -> Handover:
    """An entry that begins a term of a run, which is checked as far as it goes without the others.

    :param term: which one; 0 for any
    :raises CheckFailed: it is none
    """
    try:
        entry = decode(leaf)
    except DecodeError as error:
        raise CheckFailed(f"what is shown as a handover is none: {error.message}") from None
    body = entry.body
    if not isinstance(body, Handover) or body.run != genesis.run or term not in (0, body.term):
        raise CheckFailed(f"what is shown as the beginning of term {term} is another entry")
    named = genesis.coordinators
    # Who is elected, and whether it was its turn, the fold of all entries says.
    in_turn = body.coordinator == named[body.term % len(named)] or body.coordinator not in named
    if not in_turn or entry.signers != _signers(entry, body):
        raise CheckFailed(f"the handover to term {body.term} is not signed by whose turn it was")
    return body


def _signers(entry: Entry, body: Handover) -> set[str]:
    """Whose signatures have to be there: the coordinator's, and those of the seals."""
    if set(entry.envelope.signers) != {body.coordinator}:
        return set()  # nobody's
    return {body.coordinator} | {key_of(seal.node) for seal in body.seals}


# --- in a file ------------------------------------------------------------------------------------


class EntryTree(HashReader, Protocol):
    """A tree whose entries are at hand."""

    @property
    def size(self) -> int: ...
    def leaf(self, index: int) -> bytes: ...


@dataclass(frozen=True)
class Mandate:
    """By what a key signs the heads of a run, for whoever has nothing else at hand: the manifest,
    and for later terms their handovers with the proofs that they are in a signed tree."""

    genesis: bytes
    """Entry 0; its payload's hash is the run id."""
    handed: tuple[tuple[int, bytes, tuple[bytes, ...]], ...] = ()
    """Index, entry (with its document) and inclusion proof of each."""

    @classmethod
    def of(cls, tree: EntryTree, size: int, terms: Iterable[Term]) -> Mandate:
        """What shows who led in these terms, in the tree of the first ``size`` entries."""
        later = sorted({term.begins for term in terms if term.number})
        handed = ((at, tree.leaf(at), tuple(inclusion(tree, at, size))) for at in later)
        return cls(tree.leaf(0), tuple(handed))

    def encode(self) -> bytes:
        """The manifest's entry alone, or JSON with the handovers beside it."""
        if not self.handed:
            return bytes(self.genesis)
        handed = [
            {
                "index": index,
                "entry": encode_base64(leaf),
                "document": getattr(leaf, "document", b"").decode(),
                "hashes": [encode_base64(each) for each in hashes],
            }
            for index, leaf, hashes in self.handed
        ]
        return json.dumps({"genesis": encode_base64(self.genesis), "handed": handed}).encode()

    @classmethod
    def decode(cls, data: bytes) -> Mandate:
        """Read what :meth:`encode` wrote; nothing is verified.

        :raises DecodeError: when it is something else
        """
        try:
            value = json.loads(data)
            if not isinstance(value, dict) or value.keys() != {"genesis", "handed"}:
                return cls(data)
            handed = [
                (
                    int(item["index"]),
                    Leaf(decode_base64(item["entry"]), item["document"].encode()),
                    decode_hashes(item["hashes"]),
                )
                for item in value["handed"]
            ]
            return cls(decode_base64(value["genesis"]), tuple(handed))
        except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
            raise DecodeError("what shows whose log it is cannot be read") from None

    def manifest(self, run: str) -> Genesis:
        """The manifest, tied to the run id.

        :raises CheckFailed: it is that of another run, or not its organiser's
        """
        entry = decode(self.genesis)
        body = entry.body
        if not isinstance(body, Genesis) or body.run != run:
            raise CheckFailed("the manifest in the file is not that of the run in the origin line")
        if entry.signers != {body.organiser}:
            raise CheckFailed("the manifest in the file is not signed by its organiser")
        return body

    def terms(self, run: str, *heads: Checkpoint) -> list[Term]:
        """Who led, as far as it is shown here; raises as :meth:`manifest`.

        :param heads: of which one has to cover the handovers; their signatures are not looked at
        """
        genesis = self.manifest(run)
        found = [first_term(genesis)]
        for index, leaf, hashes in self.handed:
            body = began(leaf, genesis)
            if not any(_includes(head, index, leaf, hashes) for head in heads):
                raise CheckFailed(f"the handover to term {body.term} is not shown to be in the log")
            found.append(Term(body.term, index, body.coordinator))
        return found

    @property
    def sealed_by(self) -> int:
        """How many nodes sealed the term before the last that is shown; who they are is not."""
        body = decode(self.handed[-1][1]).body if self.handed else None
        return len(body.seals) if isinstance(body, Handover) else 0


def _includes(head: Checkpoint, index: int, leaf: bytes, hashes: Sequence[bytes]) -> bool:
    try:
        verify_inclusion(leaf_hash(leaf), index, head.size, hashes, head.root)
    except CheckFailed:
        return False
    return True


# --- in a tree ------------------------------------------------------------------------------------


def first_term(genesis: Genesis) -> Term:
    """The one that the manifest itself begins."""
    return Term(0, 0, genesis.coordinators[0])


def terms_shown(source: TileSource, tree: EntryTree, genesis: Genesis, last: int) -> list[Term]:
    """The terms of a tree up to ``last``, as far as the entries that begin them are shown.

    :param last: of the head that signs the tree, which has to be one of them
    :raises CheckFailed: an entry that is said to begin one does not, or none begins ``last``
    :raises Unreachable: the source does not answer
    """
    found = [first_term(genesis)]
    for number, index in _said(source) if last else ():
        if found[-1].number < number <= last and found[-1].begins < index < tree.size:
            leader = began(tree.leaf(index), genesis, number).coordinator
            found.append(Term(number, index, leader))
    if found[-1].number != last:
        raise CheckFailed(
            f"{source.name} shows a tree head of term {last}, and no handover to it",
            "ask another holder of the ledger; who leads is known only by that entry",
        )
    return found


def next_said(source: TileSource, term: int) -> tuple[int, int]:
    """The first term after this one that a source says to have begun, and with which entry.

    :raises CheckFailed: it says none
    :raises Unreachable: the source does not answer
    """
    later = [pair for pair in _said(source) if pair[0] > term]
    if not later:
        raise CheckFailed(f"{source.name} shows a tree head of a later term, and no handover to it")
    return min(later)


def _said(source: TileSource) -> list[tuple[int, int]]:
    """What a source says: terms, and with which entry each began."""
    # Whoever checks a file reads no source, and needs no database.
    from artel.ledger.sync.source import TERMS_PATH, read_json

    said = read_json(source, TERMS_PATH)
    pairs = said[-MOST_TERMS:] if isinstance(said, list) else []
    return [
        (pair[0], pair[1])
        for pair in pairs
        if isinstance(pair, list) and len(pair) == 2 and all(type(each) is int for each in pair)
    ]


def said_by(terms: Sequence[Term]) -> bytes:
    """The file that :data:`.source.TERMS_PATH` names; empty in the first term."""
    later = [[term.number, term.begins] for term in terms if term.number]
    return canonical.dumps(later[-MOST_TERMS:]) if later else b""
