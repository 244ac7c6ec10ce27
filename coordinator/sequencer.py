"""The sequencer: gives entries their place in the ledger and signs the tree head over them."""

from __future__ import annotations

import asyncio

from ledger import entries
from ledger.checkpoint import origin_of, sign_checkpoint
from ledger.shares import FoldState, fold
from ledger.store import LedgerStore
from protocol.dsse import Envelope
from protocol.errors import CheckFailed
from protocol.identity import Identity
from protocol.tasks import uninterrupted


class Sequencer:
    """Owns a run's ledger on the coordinator: the store, and the fold over it.

    Entries are durable, hashed again from what was read back, and covered by a signed tree head
    before :meth:`append` returns; only then may anybody be told of them.
    """

    def __init__(self, store: LedgerStore, identity: Identity, run: str) -> None:
        self.store = store
        self._identity = identity
        self._origin = origin_of(run)
        self._lock = asyncio.Lock()  # one append at a time: order and fold belong together
        self.state: FoldState = fold(map(entries.decode, store.leaves()))
        if store.size and self.state.run != run:
            raise CheckFailed(
                "the ledger in this home belongs to another run", "use another --home"
            )

    async def append(self, *envelopes: Envelope) -> None:
        """Append statements in this order; those that the ledger has already are left out."""
        async with self._lock:
            leaves = [envelope.encode() for envelope in envelopes]
            fresh = [leaf for leaf in leaves if not self._known(leaf)]
            if not fresh:
                return
            # Cancelled in between, store and fold would speak of different ledgers.
            await uninterrupted(self._append(fresh))

    async def _append(self, leaves: list[bytes]) -> None:
        await asyncio.to_thread(self.store.append, leaves, self._sign)
        self.state = await asyncio.to_thread(fold, map(entries.decode, leaves), self.state)

    def _known(self, leaf: bytes) -> bool:
        return self.store.index_of(entries.entry_id(leaf)) is not None

    def _sign(self, size: int, root: bytes) -> str:
        return sign_checkpoint(self._identity, self._origin, size, root)
