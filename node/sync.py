"""State sync: bring the agreed model state to this node, from whoever has it.

The state root to fetch comes from the ledger, where a majority of contributors signed it; every
chunk is checked against it, so it does not matter who gives the bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

from protocol import dht, transfer
from protocol.blobs import BlobStore
from protocol.errors import CheckFailed
from protocol.events import emit
from protocol.network import Host

log = logging.getLogger("artel.node")

KEEP_STATES = 2
"""The present state and the one before it, for the case that a round is rolled back."""


class States:
    """The model states in this node's store; knows which one is current.

    ``round`` and ``root`` name the current state; -1 and "" before there is one.
    """

    def __init__(self, host: Host, blobs: BlobStore, run: str, max_bytes: int) -> None:
        self._host, self._blobs, self._run, self._max_bytes = host, blobs, run, max_bytes
        self._held: list[str] = []  # roots in the store, newest last
        self.round = -1
        self.root = ""

    @property
    def path(self) -> Path:
        """File of the current state."""
        path = self._blobs.path(self.root)
        if path is None:
            raise CheckFailed(
                "the current state has vanished from the disk", "it is fetched again at a restart"
            )
        return path

    async def obtain(
        self, root: str, others: list[str], progress: Callable[[int, int], None] | None = None
    ) -> Path:
        """The file of the state with this root: from the store, or fetched.

        :param others: peers that may have it, to be asked after those that say so in the DHT
        :raises Unreachable: nobody can give it
        """
        path = self._blobs.path(root)
        if path is None:
            records = await self._host.lookup(dht.nodes_key(self._run), dht.HolderRecord)
            for peer, record in records.items():
                self._host.remember(peer, record.addresses)
            sure = [peer for peer, record in records.items() if record.state == root]
            holders = [*sure, *(peer for peer in others if peer not in sure)]
            holders = [peer for peer in holders if peer != self._host.peer_id]
            emit(log, "state.fetching", root=root[:12], holders=len(holders))
            path = await transfer.fetch(
                self._host,
                self._blobs,
                root,
                holders,
                max_bytes=self._max_bytes,
                progress=progress,
            )
        return path

    def become(self, round: int, root: str) -> None:
        """Make a state in the store the current one; older ones than the last are deleted."""
        self.round, self.root = round, root
        if root in self._held:
            self._held.remove(root)
        self._held.append(root)
        self._blobs.pin(root)
        while len(self._held) > KEEP_STATES:
            self._blobs.delete(self._held.pop(0))

    def found_on_disk(self, roots: list[str]) -> None:
        """After a start: take note of states of this run that lie in the store already."""
        for root in roots:
            if self._blobs.has(root) and root not in self._held:
                self._held.append(root)
                self._blobs.pin(root)
