"""What a coordinator's home holds for others: the prepared run, and copies of the newest states."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from artel.protocol import shards
from artel.protocol.errors import Unreachable
from artel.protocol.events import emit
from artel.protocol.manifest import Manifest
from artel.protocol.messages import Kind
from artel.protocol.net import delivery, dht
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.state import state_bytes
from artel.protocol.tokenizer import MAX_TOKENIZER_BYTES

log = logging.getLogger("artel.coordinator")

KEEP_STATES = 2
"""Copies of this many agreed states stay, besides the initial one."""


class Stock:
    """The content in one home; the event loop owns it.

    :param http: address of the page, for the run's DHT record; "" when there is none
    """

    def __init__(
        self, host: Host, blobs: BlobStore, manifest: Manifest, run: str, http: str
    ) -> None:
        self._host, self._blobs, self._manifest = host, blobs, manifest
        self._run, self._http = run, http
        self._states: list[str] = []  # agreed states that make room for newer ones, oldest first
        self._newest = manifest.initial_state  # in the local store
        config, model = manifest.config, manifest.model
        self._state_bytes = state_bytes(model.parameters, config.exchange.outer)

    def label(self, agreed: Sequence[str]) -> None:
        """Say what the content of the prepared run is, so that its bytes are counted as that.

        :param agreed: all states of the run, the first one first
        """
        blobs, manifest = self._blobs, self._manifest
        blobs.label("state", manifest.initial_state)
        self._states = []
        for number, root in enumerate(agreed[1:], 1):
            if blobs.has(root):
                blobs.label("state", root)
                self._hold(number, root)
        blobs.label("data", manifest.tokenizer.id)
        for facts in (manifest.data.train, manifest.data.validation):
            if (path := blobs.path(facts.index)) is not None:
                index = shards.decode_index(path.read_bytes(), facts)
                blobs.label("data", facts.index, *index.shards)

    async def complete(self, holders: Sequence[str]) -> None:
        """Have all that the prepared run consists of, from those who have it.

        :raises Unreachable: nobody gives a part of it
        """
        manifest = self._manifest
        await self._fetch(manifest.tokenizer.id, holders, MAX_TOKENIZER_BYTES, "data")
        await self._fetch(manifest.initial_state, holders, self._state_bytes, "state")
        for facts in (manifest.data.train, manifest.data.validation):
            await self._fetch(facts.index, holders, shards.MAX_INDEX_BYTES, "data")
            path = self._blobs.path(facts.index)
            assert path is not None
            index = shards.decode_index(await asyncio.to_thread(path.read_bytes), facts)
            wanted = [
                delivery.Wanted(shard, holders, index.bytes_in(number), "data")
                for number, shard in enumerate(index.shards)
                if not self._blobs.has(shard)
            ]
            await delivery.fetch_all(self._host, self._blobs, wanted)

    async def _fetch(self, blob: str, holders: Sequence[str], size: int, kind: Kind) -> None:
        if not self._blobs.has(blob):
            wanted = delivery.Wanted(blob, holders, size, kind)
            await delivery.fetch(self._host, self._blobs, wanted)

    def wanted(self, round: int, total: int) -> bool:
        """Whether the state before this round, of a run of so many, is one that is copied here."""
        rounds = self._manifest.config.rounds
        some = bool(rounds.mirror_every or rounds.keep_every)
        return rounds.copies(round) or (some and round == total)

    def _hold(self, round: int, root: str) -> None:
        """Keep a state that is here: for good, or until newer ones come."""
        self._blobs.pin(root)
        self._newest = root
        kept = self._manifest.config.rounds.keep_every
        if round and not (kept and round % kept == 0) and root not in self._states:
            self._states.append(root)

    async def mirror(self, round: int, root: str, holders: Sequence[str]) -> bool:
        """Copy the state before a round from nodes that hold it, so that the run outlives them."""
        blobs = self._blobs
        try:
            await self._fetch(root, holders, self._state_bytes, "state")
        except Unreachable as error:
            emit(log, "state.not_mirrored", logging.DEBUG, root=root[:12], reason=error.message)
            return False
        self._hold(round, root)
        while len(self._states) > KEEP_STATES:
            blobs.delete(self._states.pop(0))
        return True

    async def announce(self, round: int, term: int) -> None:
        """Say in the DHT where this coordinator is and what it holds.

        :param term: the one that it leads; -1 while it stands by
        """
        host, data = self._host, self._manifest.data
        count = data.train.shards + data.validation.shards
        addresses = await host.addresses()
        record = dht.RunRecord(
            name=self._manifest.config.run.name,
            addresses=addresses,
            http=self._http,
            round=round,
            term=term,
        )
        await host.publish(dht.run_key(self._run), record)
        holder = dht.HolderRecord(
            addresses=addresses,
            state=self._newest,
            shards=dht.shard_bits(range(count), count),
        )
        await host.publish(dht.nodes_key(self._run), holder)
