"""Artel as a peer of :mod:`benchmarks.exchange`: the modules that a node runs, in one process.

One outer synchronisation, every node fetching all contributions: the difference to the agreed
state, its encoding (for "sparse" with error feedback), the blob in the store, its transfer between
real libp2p hosts, decoding, aggregation, the outer step, the root of the new state. A node learns
of the blobs of others by a short message on a stream of its own; in a run the coordinator tells it.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Coroutine, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch

from artel.protocol import messages
from artel.protocol.exchange import codec, outer, pseudogradient
from artel.protocol.exchange.aggregate_slice import combine
from artel.protocol.exchange.aggregation import Weighted
from artel.protocol.exchange.feedback import Feedback
from artel.protocol.exchange.parts import whole
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.identity import load_or_create
from artel.protocol.messages import Kind
from artel.protocol.net import delivery, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.net.slots import Caller, Rank
from artel.protocol.run_config import ExchangeSection
from artel.protocol.state import Layout, State, Vector, state_root
from benchmarks.exchange_worker import Setup, initial, layout, steps

ANNOUNCE = "/artel/benchmark/1.0.0"
TIMEOUT_S = 300.0
WEIGHT = 1000
"""Tokens of every contribution."""
_T = TypeVar("_T")


def exchange_of(variant: str) -> ExchangeSection:
    """A manifest's [exchange] with its defaults: of "int4", "fp16", "sparse64" (k = 64), ..."""
    if variant.startswith("sparse"):
        return ExchangeSection.model_validate({"codec": "sparse", "top_k": int(variant[6:])})
    return ExchangeSection.model_validate({"codec": variant})


class Phases:
    """Seconds by name, of things that follow each other or overlap."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Any:
        began = time.monotonic()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - began


class Peer:
    """See :class:`benchmarks.exchange_worker.Peer`."""

    def __init__(self, setup: Setup) -> None:
        torch.set_num_threads(1)
        self._setup = setup
        self._layout = layout(setup.size)
        self._feedback: Feedback | None = None
        self._exchange = exchange = exchange_of(setup.variant)
        self._codec = codec.of(exchange)
        if isinstance(self._codec, codec.Sparse):
            self._feedback = Feedback(self._codec, self._layout, decay=exchange.error_feedback)
        base = initial(setup.size)
        momentum = np.zeros_like(base) if exchange.outer.momentum else None
        self._state = State(0, self._layout.digest, base, momentum)
        self._root = state_root(self._state)
        self._trained: Vector = base
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._host: Host | None = None
        self._others: list[str] = []
        self._told: dict[str, asyncio.Queue[messages.Put]] = {}

    # --- orders ----------------------------------------------------------------------------------

    def start(self, first: dict[str, Any] | None) -> dict[str, Any]:
        return self._await(self._start(first))

    def meet(self, others: Sequence[dict[str, Any]]) -> dict[str, Any]:
        return self._await(self._meet(others))

    def prepare(self, order: dict[str, Any]) -> dict[str, Any]:
        for blob in list(self._store.root.iterdir()):
            self._store.delete(blob.name)
        self._await(self._expect())
        self._trained = self._state.params + steps(
            self._setup.size, self._setup.number, order["round"]
        )
        return {}

    def sync(self, order: dict[str, Any]) -> dict[str, Any]:
        assert self._host is not None
        before = self._host.traffic.down.total()
        reply = self._await(self._sync())
        reply["received"] = self._host.traffic.down.total() - before
        return reply

    def end(self) -> None:
        if self._host is not None:
            self._await(self._host.close())

    def _await(self, work: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(TIMEOUT_S)

    # --- the network -----------------------------------------------------------------------------

    async def _start(self, first: dict[str, Any] | None) -> dict[str, Any]:
        home = Path(self._setup.folder)
        self._store = BlobStore(home / "blobs")
        key = home / "node.key"
        self._host = host = await Host.start(
            load_or_create(key),
            key,
            listen=[f"/ip4/{self._setup.address}/tcp/0"],
            bootstrap=first["addresses"] if first else [],
        )

        async def content(
            peer: str, request: messages.Message, stream: wire.ByteStream
        ) -> messages.Message | None:
            return await delivery.serve_content(self._store, request, stream)

        async def announced(
            peer: str, request: messages.Message, stream: wire.ByteStream
        ) -> messages.Message | None:
            if isinstance(request, messages.Put) and peer in self._told:
                self._told[peer].put_nowait(request)
                return messages.Ok()
            raise wire.Refused("nothing is expected from this peer")

        host.admit(lambda peer: Caller(Rank.KNOWN))
        await host.serve(wire.CONTENT, content)
        await host.serve(ANNOUNCE, announced)
        return {"peer": host.peer_id, "addresses": await host.addresses()}

    async def _meet(self, others: Sequence[dict[str, Any]]) -> dict[str, Any]:
        assert self._host is not None
        for other in others:
            if other["peer"] != self._host.peer_id:
                self._others.append(other["peer"])
                self._host.remember(other["peer"], other["addresses"])
        return {}

    async def _expect(self) -> None:
        self._told = {peer: asyncio.Queue(2) for peer in self._others}

    # --- the exchange ----------------------------------------------------------------------------

    async def _sync(self) -> dict[str, Any]:
        assert self._host is not None
        host, phases = self._host, Phases()
        blob = await asyncio.to_thread(self._encode, phases)
        with phases("store"):
            name = await asyncio.to_thread(self._store.put, blob)
        with phases("transfer"):
            got = [self._fetch(peer) for peer in self._others]
            fetched, _ = await asyncio.gather(asyncio.gather(*got), self._announce(name, len(blob)))
        blobs = dict(zip(self._others, fetched, strict=True))
        blobs[host.peer_id] = blob
        await asyncio.to_thread(self._apply, blobs, phases)
        return {
            "averaged": len(blobs),
            "phases": phases.seconds,
            "payload": len(blob),
            "digest": self._root,
            "ended": time.monotonic(),
        }

    def _encode(self, phases: Phases) -> bytes:
        with phases("delta"):
            delta = self._state.params - self._trained
        with phases("encode"):
            if self._feedback is None:
                return self._header().pack(self._layout, delta)
            (payload,) = self._feedback.encode([whole(self._layout)], [delta])
            return self._header().wrap(self._layout, payload)

    async def _announce(self, blob: str, size: int) -> None:
        """Tell all others what to fetch."""
        assert self._host is not None
        news = messages.Put(id=blob, size=size)
        asks = (self._host.ask(peer, ANNOUNCE, news, TIMEOUT_S) for peer in self._others)
        await asyncio.gather(*asks)

    async def _fetch(self, peer: str) -> bytes:
        """The contribution of one other peer, as soon as it says that there is one."""
        assert self._host is not None
        news = await self._told[peer].get()
        return await self._bring(news.id, peer, self._layout)

    async def _bring(
        self, blob: str, peer: str, part: Layout, kind: Kind = "contribution"
    ) -> bytes:
        """A blob that one peer has."""
        assert self._host is not None
        most = pseudogradient.max_blob_bytes(part, self._codec)
        wanted = delivery.Wanted(blob, [peer], most, kind)
        path = await delivery.fetch(self._host, self._store, wanted)
        return await asyncio.to_thread(path.read_bytes)

    def _apply(self, blobs: dict[str, bytes], phases: Phases) -> None:
        """Decode, combine, step, name the new state."""
        contributions = []
        with phases("decode"):
            for peer, blob in blobs.items():
                loaded = self._header().load(blob, self._layout)
                contributions.append(Weighted(peer, WEIGHT, loaded))
        with phases("aggregate"):
            update = combine(self._layout, contributions, self._exchange)
        self._step(update, phases)

    def _step(self, update: Vector, phases: Phases) -> None:
        rules = self._exchange.outer
        with phases("outer step"):
            params, momentum = outer.outer_step(
                self._state.params,
                self._state.momentum,
                update,
                lr=rules.lr,
                mu=rules.momentum,
                nesterov=rules.nesterov,
            )
        self._state = State(self._state.round + 1, self._layout.digest, params, momentum)
        with phases("root"):
            self._root = state_root(self._state)

    def _header(self) -> Header:
        """What the blobs of this round are relative to."""
        return Header(self._state.round, self._root, self._codec)
