"""Beginning a term: whose seals let a coordinator lead, and from where it goes on.

With seals of a quorum of the electors of the term before, the coordinator whose turn it is goes on
behind the newest certified head that they name. Of what it holds itself nothing has to be taken on
trust: a seal whose head is in the own tree says nothing that could be wrong.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

from artel.coordinator.own_ledger import OwnLedger
from artel.coordinator.sequencer import Sequencer
from artel.ledger import entries
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.handover import Sealed, SealSaid, candidate, handover, open_seal
from artel.ledger.fold import shares
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync.signed_tree import SignedTree, common_size
from artel.ledger.sync.source import TileSource
from artel.ledger.tlog.checkpoint import origin_of, parse_checkpoint
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.events import emit
from artel.protocol.identity import Identity

log = logging.getLogger("artel.coordinator")


class TermOver(CheckFailed):
    """The term that a coordinator leads is over: it signs nothing more, and stands by."""


@dataclass(frozen=True)
class Turn:
    """The term that a coordinator may begin, and the seals that let it."""

    term: int
    seals: Sequence[Sealed]


class Seals:
    """The newest seal of each elector that was asked; one event loop owns it, any thread may look.

    :param run: whose terms they end
    """

    def __init__(self, run: str) -> None:
        self._run = run
        self._newest: dict[str, tuple[SealSaid, Sealed]] = {}

    def take(self, peer: str, data: bytes) -> None:
        """Note what a peer shows as its own seal.

        :raises DecodeError: it is none
        :raises CheckFailed: it is not signed, or of another node or run
        """
        said, part = open_seal(data)
        if said.run != self._run or part.node != peer:
            raise CheckFailed("the seal is of another node, or of another run")
        known = self._newest.get(peer)
        if known is None or said.term >= known[0].term:
            self._newest = self._newest | {peer: (said, part)}  # others may be going through it

    def of(self, state: FoldState, term: int) -> list[Sealed]:
        """The electors' seals of exactly this term."""
        electors = {peer for each in state.electors.sets for peer in each.weights}
        found = [part for said, part in self._newest.values() if said.term == term]
        return [part for part in found if part.node in electors]

    def some(self, state: FoldState) -> bool:
        """Whether an elector has sealed the present term or, where a quorum has sealed that, the
        next one. No honest elector is ahead of them, and one that lies is so for good."""
        present = state.term.number
        last = max(self.sealed(state) + 1, present)
        return any(self.of(state, term) for term in range(present, last + 1))

    def sealed(self, state: FoldState) -> int:
        """The latest term, not before the present one, that a quorum of the electors has sealed;
        -1 for none."""
        if not state.size:
            return -1  # seals may come before the ledger
        terms = {said.term for said, _ in self._newest.values() if said.term >= state.term.number}
        return max((term for term in terms if _quorum(state, self.of(state, term))), default=-1)

    def turn(self, own: OwnLedger, key: str) -> Turn | None:
        """The term that whoever has this key (hex) may begin, by the seals whose heads are in the
        ledger here; None for none yet."""
        state = own.replica.state
        term = self.sealed(state) + 1
        if not term or candidate(state, term) != key or not _is_new(own, term):
            return None
        if key in state.convicted:
            return None  # of two histories: nobody would follow it
        mine = {part.node for said, part in self._newest.values() if said.next == key}
        parts = [part for part in self.of(state, term - 1) if part.node in mine]
        parts = [part for part in parts if names_ours(own.store, state, part)]
        return Turn(term, parts) if _quorum(state, parts) else None


def names_ours(store: LedgerStore, state: FoldState, seal: Sealed) -> bool:
    """Whether the head that a seal names is in the tree here."""
    if seal.of > state.term.number or seal.size > store.size:
        return False
    return not seal.size or store.root_at(seal.size).hex() == seal.root


def _quorum(state: FoldState, seals: Sequence[Sealed]) -> bool:
    nodes = state.trusted(seal.node for seal in seals)
    return bool(state.electors.sets) and state.electors.quorum(nodes)


def _is_new(own: OwnLedger, term: int) -> bool:
    """Whether this home has never signed anything of a term: after its disk was put back it may
    have, and then it must not begin that once more."""
    origin = origin_of(own.run, term)
    signed = own.heads.witnessed(origin) is not None
    return not signed and not (own.second is not None and own.second.newest(origin))


async def begin(own: OwnLedger, turn: Turn, coordinator: Identity) -> Sequencer:
    """Begin a term: its first entry is in the ledger, and signed, when this returns.

    :raises CheckFailed: the fold would not take it
    """
    state = own.replica.state
    statement = handover(coordinator, own.run, term=turn.term, seals=turn.seals)
    reason = shares.check(state, entries.decode(statement.encode()))
    if reason:
        raise CheckFailed(f"term {turn.term} cannot begin: {reason}")
    own.heads.seal(own.run, turn.term - 1)
    own.store.begin_term(turn.term)
    sequencer = Sequencer(own.store, coordinator, own.run, own.heads, second=own.second)
    await sequencer.append(statement)
    said = {"term": turn.term, "size": own.store.size, "seals": len(turn.seals)}
    emit(log, "term.begun", **said, leader=coordinator.key[:12])
    return sequencer


def shows_handover(source: TileSource, note: str, store: LedgerStore, state: FoldState) -> bool:
    """Whether somebody shows a tree in which a later term has begun, by entries that count.

    The first entry that is not ours is the handover. Seals of
    a quorum are proof enough; the head above it need not be verified.

    :raises Unreachable: when the source does not answer
    """
    head = parse_checkpoint(note)
    try:
        tree = SignedTree(source, head.size, head.root)
        start = common_size(store, tree)
        if not 0 < start < tree.size:
            return False
        entry = entries.decode(tree.leaf(start))
    except (CheckFailed, DecodeError):
        return False
    return isinstance(entry.body, entries.Handover) and not shares.check(state, entry)
