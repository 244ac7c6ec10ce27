"""The ledger of a coordinator's home, and what says what was signed with it.

What it lacks of that decides whether anything may be signed (:mod:`.recovery`), and who leads by it
decides what the coordinator does (:mod:`.process`).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from artel.ledger.entries.fold_state import peer_of
from artel.ledger.store.finality import size_of
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.published import (
    DATABASE_NAME,
    LostEntries,
    given_up,
    heads_error,
    known_heads,
)
from artel.ledger.store.second import SecondMemory
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync.replica import Replica
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.events import emit

if TYPE_CHECKING:
    from artel.ledger.sync.peers import PeerSource
    from artel.ledger.sync.source import Holder

log = logging.getLogger("artel.coordinator")


@dataclass(frozen=True)
class OwnLedger:
    """The ledger of a coordinator's home, and the two places that say what was signed with it.

    :param begun: what in the home says that the run has begun; "" for nothing
    """

    home: Path
    run: str
    coordinators: tuple[str, ...]
    begun: str
    replica: Replica
    heads: HeadStore
    second: SecondMemory | None
    begun_terms: set[int] = field(default_factory=set)
    """Later terms that were followed since it was opened."""

    @classmethod
    def open(
        cls,
        home: Path,
        run: str,
        key: str,
        coordinators: Sequence[str],
        begun: str,
        stack: contextlib.ExitStack,
    ) -> OwnLedger:
        """Open all three; ``stack`` closes them.

        :param key: of this coordinator (hex)
        :raises CheckFailed: one of them is damaged, or of another home
        """
        heads = HeadStore.owned(home, key)
        stack.callback(heads.close)
        second = SecondMemory.of(run, key)
        if second is not None:
            stack.callback(second.close)
        replica = Replica.open(home / DATABASE_NAME, run, heads)
        stack.callback(replica.store.close)
        replica.coordinators = [*map(peer_of, coordinators)]
        heads.look_again(run, replica.store.terms())
        return cls(home, run, tuple(coordinators), begun, replica, heads, second)

    @property
    def store(self) -> LedgerStore:
        return self.replica.store

    @property
    def leaders(self) -> Sequence[str]:
        """Keys (hex) that may have led, as far as this home knows."""
        return self.store.leaders() if self.store.size else self.coordinators

    def signers(self, term: int | None) -> Sequence[str]:
        """Keys (hex) by which a head of one term counts, as far as this home knows."""
        if self.store.size:
            return self.store.signers(term)
        return self.coordinators[:1] if term == 0 else ()

    def leads(self, key: str) -> bool:
        """Whether the term is a coordinator's (hex key) by this ledger, and was not sealed here."""
        state = self.replica.state
        if not state.size:
            return key == self.coordinators[0]
        return state.term.leader == key and self.heads.sealed(self.run)[0] < state.term.number

    async def follow(self, source: PeerSource | Holder) -> None:
        """Take over what somebody has beyond this ledger, or in a later term instead of its end.

        :raises ArtelError: as :meth:`ledger.sync.replica.Replica.take_from`
        """
        before = self.store.term
        await self.replica.take_from(source, self.run)
        if (term := self.store.term) != before and term not in self.begun_terms:
            self.begun_terms.add(term)
            await asyncio.to_thread(self.heads.look_again, self.run, self.store.terms())
            leader = self.replica.state.term.leader
            emit(log, "term.begun", term=term, size=self.store.size, leader=leader[:12])

    def lost(self) -> str:
        """What the ledger lacks of all that is known to have been signed; "" for nothing.

        :raises CheckFailed: what is kept of it is damaged
        """
        terms = self.store.terms()
        known = known_heads(self.heads, self.run, terms)
        if self.second is not None:
            also = self.second.known(self.run, self.leaders)
            known += [head for head in also if not given_up(head, terms)]
        error = heads_error(known, self.store.size, self.store.root_at)
        if error:
            return f"the ledger {self.store.path} was put back: {error}"
        if self.begun and not self.store.size:
            return (
                f"there is no ledger in {self.home}, and its file {self.begun} says that the run "
                "has begun"
            )
        return ""

    def require_whole(self) -> None:
        """Go on only with a ledger that holds all that is known to have been signed.

        :raises LostEntries: it does not
        """
        if lost := self.lost():
            error = LostEntries(lost, self.home, self.run)
            if not self.store.size:
                error.hint += "\nif nobody has any of it, publish a new run from a new --home"
            raise error

    @property
    def remembered(self) -> bool:
        """Whether the second memory says that this ledger is the newest; after a crash between the
        commit and that note it may be one commit behind."""
        if self.second is None or not self.store.size:
            return False
        noted = self.second.newest(self.store.origin)
        query = "SELECT follows FROM checkpoints WHERE size = ?"
        size = self.store.size
        # No row: another one is taken over at this moment, in the place of its end.
        before = [row[0] for row in self.store.query(query, (size,))]
        return bool(noted) and size_of(noted) in (size, *before)

    async def take_tail(self) -> None:
        """Take the newest entries back out of the second memory, as far as they join ours."""
        store = self.store
        noted = self.second.newest_of(self.run) if self.second is not None else ""
        if self.second is None or size_of(noted) <= store.size:
            return
        leaves = self.second.tail(store.size, size_of(noted))
        if leaves:
            with contextlib.suppress(CheckFailed, DecodeError):  # they are of another history
                await self.replica.add(leaves, noted)
