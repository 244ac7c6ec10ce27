"""Hosts on loopback that serve content, and lie about it when a test wants that."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

from artel.protocol import content, index_items, messages
from artel.protocol.messages import Kind
from artel.protocol.net import delivery, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from host_world import anybody, swarm

Answer = Callable[[messages.Message, wire.ByteStream], Awaitable[bool]]


class Holder:
    """A peer that serves content; ``lie`` may answer a request in another way first."""

    def __init__(self, host: Host, root: Path) -> None:
        self.host, self.store = host, BlobStore(root)
        self.lie: Answer | None = None
        self.asked: Counter[str] = Counter()
        """Requests by kind, and chunks asked for."""
        self.takes: Kind = "other"
        """What content is counted as that is put here."""
        self.order: list[str] = []
        """The content of each request for chunks or an index."""

    def count(self, blob: str) -> int:
        return content.chunk_count(self.store.size_of(blob) or 0)

    @property
    def peer(self) -> str:
        return self.host.peer_id

    async def serve(
        self, peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message | None:
        self.asked[request.KIND] += 1
        if isinstance(request, messages.GetChunks):
            self.asked["chunks"] += request.count
            self.order.append(request.id)
        if isinstance(request, messages.GetIndex):
            self.asked["chunks"] += min(request.lead, self.count(request.id))
            self.order.append(request.id)
        if isinstance(request, messages.Put):
            await delivery.receive(self.store, request, stream, kind=self.takes)
            return messages.Ok()
        if self.lie is not None and await self.lie(request, stream):
            return None
        if isinstance(request, messages.GetItems):
            return await index_items.give(self.store, request, stream)
        return await delivery.serve_content(self.store, request, stream)


def holding(
    hosts: Sequence[Host], serving: dict[Host, Holder], folder: Path, data: bytes
) -> list[Holder]:
    """New holders of the content, which answer for these hosts from now on."""
    made = [Holder(host, folder / f"holder-{number}") for number, host in enumerate(hosts)]
    for holder in made:
        holder.store.put(data)
        serving[holder.host] = holder
    return made


@contextlib.asynccontextmanager
async def acquainted(home: Path, count: int) -> AsyncIterator[list[Host]]:
    """``count`` hosts; each knows where all the others are."""
    async with swarm(home, count) as hosts:
        for host in hosts:
            for other in hosts:
                host.remember(other.peer_id, await other.addresses())
        yield hosts


async def answering(hosts: Sequence[Host]) -> dict[Host, Holder]:
    """Which holder answers for a host now; a service is added to a host only once."""
    present: dict[Host, Holder] = {}
    for host in hosts:

        async def serve(
            peer: str, request: messages.Message, stream: wire.ByteStream, host: Host = host
        ) -> messages.Message | None:
            return await present[host].serve(peer, request, stream)

        host.admit(anybody)
        await host.serve(wire.CONTENT, serve)
    return present
