"""Artel's sharded exchange as a peer of :mod:`benchmarks.exchange`: each combines a slice for all.

As :mod:`benchmarks.exchange_ours`, with the topology of a run of more than eight nodes: a
contribution is an index and a blob for each slice; the aggregator of a slice fetches that blob of
everybody, combines, and publishes the result; everybody fetches all results. When the new state
stands, the checker of a slice fetches its inputs and combines it again ("check"), as a node does
before it signs; its bytes and its time are in the numbers.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from artel.protocol import assignment
from artel.protocol.content import content_id
from artel.protocol.errors import CheckFailed
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.aggregate_slice import combine
from artel.protocol.exchange.aggregation import Weighted
from artel.protocol.exchange.codec import Elements
from artel.protocol.exchange.parts import Part, cut, whole
from artel.protocol.exchange.pseudogradient import SLICE_MAGIC, Header, IndexItem
from benchmarks.exchange_ours import WEIGHT, Phases
from benchmarks.exchange_ours import Peer as Gathering

Listed = list[IndexItem]
"""Content id and size of a contribution's blob for each slice."""


class Peer(Gathering):
    """See :class:`benchmarks.exchange_worker.Peer`."""

    async def _sync(self) -> dict[str, Any]:
        assert self._host is not None
        me, phases, header = self._host.peer_id, Phases(), self._header()
        everybody = sorted([me, *self._others])
        parts = cut(whole(self._layout), len(everybody))
        numbers = range(len(parts))
        aggregators = [assignment.aggregator(everybody, header.round, n) for n in numbers]
        blobs = await asyncio.to_thread(self._encode_parts, parts, phases)
        with phases("store"):
            mine = await asyncio.to_thread(lambda: [IndexItem.of(blob) for blob in blobs])
            for blob in blobs:
                await asyncio.to_thread(self._store.put, blob)
            index = pseudogradient.pack_index(header.round, header.base, mine)
            name = await asyncio.to_thread(self._store.put, index)
        with phases("indexes"):
            got = [self._index(peer, header, parts) for peer in self._others]
            found, _ = await asyncio.gather(asyncio.gather(*got), self._announce(name, len(index)))
        listed = dict(zip(self._others, found, strict=True)) | {me: mine}
        results: dict[int, bytes] = {}
        for number in numbers:
            if aggregators[number] == me:
                with phases("combine"):
                    results[number] = await self._combine(number, parts[number], listed, header)
                    published = await asyncio.to_thread(self._store.put, results[number])
                    await self._announce(published, len(results[number]))
        with phases("results"):
            wanted = [n for n in numbers if aggregators[n] != me]
            others = [self._result(aggregators[n], parts[n]) for n in wanted]
            results |= dict(zip(wanted, await asyncio.gather(*others), strict=True))
        await asyncio.to_thread(self._take, parts, results, blobs, header, phases)
        for number in numbers:
            if assignment.checker(everybody, header.round, number) == me:
                with phases("check"):
                    again = await self._combine(number, parts[number], listed, header)
                    if content_id(again) != content_id(results[number]):
                        raise CheckFailed(f"slice {number} is wrong")
        return {
            "averaged": len(listed),
            "phases": phases.seconds,
            "payload": sum(map(len, blobs)) + len(index),
            "digest": self._root,
            "ended": time.monotonic(),
        }

    def _encode_parts(self, parts: Sequence[Part], phases: Phases) -> list[bytes]:
        with phases("delta"):
            delta = self._state.params - self._trained
            deltas = [part.take(delta) for part in parts]
        with phases("encode"):
            if self._feedback is not None:
                payloads = self._feedback.encode(parts, deltas)
            else:
                pairs = zip(parts, deltas, strict=True)
                payloads = [self._codec.encode(part.layout, one) for part, one in pairs]
            return [
                self._header().wrap(part.layout, payload)
                for part, payload in zip(parts, payloads, strict=True)
            ]

    async def _index(self, peer: str, header: Header, parts: Sequence[Part]) -> Listed:
        data = await self._fetch(peer)
        sizes = [pseudogradient.max_blob_bytes(part.layout, self._codec) for part in parts]
        return pseudogradient.open_index(
            data, round=header.round, base=header.base, max_sizes=sizes
        )

    async def _combine(
        self, number: int, part: Part, listed: dict[str, Listed], header: Header
    ) -> bytes:
        """Fetch everybody's blob for a slice, and make the slice blob of them."""
        inputs = [
            self._bring(blobs[number][0], peer, part.layout) for peer, blobs in listed.items()
        ]
        fetched = dict(zip(listed, await asyncio.gather(*inputs), strict=True))

        def work() -> bytes:
            contributions = [
                Weighted(peer, WEIGHT, header.load(blob, part.layout))
                for peer, blob in fetched.items()
            ]
            update = combine(part.layout, contributions, self._exchange)
            return replace(header, magic=SLICE_MAGIC).pack(part.layout, update)

        return await asyncio.to_thread(work)

    async def _result(self, peer: str, part: Part) -> bytes:
        news = await self._told[peer].get()
        return await self._bring(news.id, peer, part.layout, "slice")

    def _take(
        self,
        parts: Sequence[Part],
        results: dict[int, bytes],
        blobs: Sequence[bytes],
        header: Header,
        phases: Phases,
    ) -> None:
        """The new state, from the slice blobs."""
        update = np.zeros(self._layout.parameters, np.float32)
        combined = replace(header, magic=SLICE_MAGIC)
        with phases("decode"):
            for number, part in enumerate(parts):
                loaded = combined.load(results[number], part.layout)
                if not isinstance(loaded, Elements):
                    part.put(loaded, update)
                    continue
                assert self._feedback is not None
                dense = np.zeros(part.parameters, np.float32)
                dense[loaded.positions] = loaded.values
                part.put(dense, update)
                sent = header.unpack(blobs[number], part.layout)
                self._feedback.put_back(part, sent, loaded.positions)
        self._step(update, phases)
