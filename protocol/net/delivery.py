"""Moving content between peers: serve it, fetch it from those who have it, push it to one.

Nothing is trusted: the list of chunk hashes is checked against the content id, each chunk against
its hash, and a holder that sends anything else is not asked again. A download is resumed from the
chunks that already lie in its partial file, and serves those to others while it is under way.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from pathlib import Path
from typing import Any

from artel.protocol import content, files, merkle, messages
from artel.protocol.errors import DecodeError, Unreachable
from artel.protocol.messages import Kind
from artel.protocol.net import wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.net.streams import Stream
from artel.protocol.net.swarm import Swarm
from artel.protocol.net.swarm_job import Wanted
from artel.protocol.net.wire import CONTENT
from artel.protocol.tasks import together, uninterrupted
from artel.protocol.telling import Tell

__all__ = [
    "Offers",
    "Wanted",
    "count_as",
    "fetch",
    "fetch_all",
    "fetch_some",
    "push",
    "push_all",
    "receive",
    "require_held",
    "serve_content",
]

PUSHES_AT_ONCE = 8
TRIES = 2
"""How often a peer may offer each blob that it owes; and once more."""
PIECES_AT_ONCE = 64
"""That are looked for at the same time, so that what a piece costs does not grow with how many are
wanted: the next request is chosen among all that are under way."""

_Bring = Callable[[Wanted], Coroutine[Any, Any, Path]]


async def serve_content(
    store: BlobStore, request: messages.Message, stream: wire.ByteStream
) -> messages.Message | None:
    """Answer one request of the content service; what of a download is here is served too."""
    if isinstance(request, messages.GetHave):
        count_as(stream, "control")
        return _have(store, request.ids)
    if not isinstance(request, messages.GetIndex | messages.GetChunks):
        raise wire.Refused(f"the content service does not answer {request.KIND}", code="unknown")
    count_as(stream, store.kind_of(request.id))
    if isinstance(request, messages.GetIndex):
        size, hashes, lead = await _index(store, request.id)
        with _opened(store, request.id) as file:
            lead = min(lead, request.lead)
            head = wire.encode(messages.Index(size=size, lead=lead))
            await stream.write(head + b"".join(hashes))
            await _send(stream, file, 0, min(size, lead * content.CHUNK_BYTES))
        return None
    with _opened(store, request.id) as file:
        partial = store.partials.get(request.id)
        size = store.size_of(request.id) or (partial.size if partial else 0)
        start = request.first * content.CHUNK_BYTES
        stop = min(size, start + request.count * content.CHUNK_BYTES)
        if start >= max(size, 1):
            raise wire.Refused("there is no such chunk", code="no_chunk")
        if not store.has(request.id) and partial is not None:
            last = request.first + content.chunk_count(stop - start)
            if not partial.here[request.first : last].all():
                raise wire.Refused("not all of these chunks are here", code="no_chunk")
        await wire.write_message(stream, messages.Chunks(size=stop - start))
        await _send(stream, file, start, stop - start)
    return None


async def fetch(
    host: Host,
    store: BlobStore,
    wanted: Wanted,
    progress: Tell | None = None,
    patience: float = math.inf,
) -> Path:
    """As :func:`fetch_all`, of one piece; ``patience`` as of :class:`.swarm.Swarm`.

    Safe to call for the same content from several tasks: one of them fetches it.
    """
    (path,) = await fetch_all(host, store, [wanted], progress, patience)
    return path


async def fetch_all(
    host: Host,
    store: BlobStore,
    wanted: Sequence[Wanted],
    progress: Tell | None = None,
    patience: float = math.inf,
) -> list[Path]:
    """Bring several pieces of content into the store: their paths, in the same order. What lies
    there already is held against its id as well, since a disk can rot.

    What several holders have is taken from the nearest, the rarest first; see
    :mod:`protocol.net.swarm`. When one piece cannot be had the others are given up as well; a later
    call goes on with what has arrived.

    :param progress: called for each piece with (bytes present, bytes in all)
    :param patience: for each of them, as of :class:`.swarm.Swarm`
    :raises Unreachable: no holder could give the rest of a piece
    :raises ResourceError: the disk is full, or the quota too small
    """
    async with _bringing(host, store, progress, patience) as bring:
        return await together(map(bring, wanted))


async def fetch_some(
    host: Host,
    store: BlobStore,
    wanted: Sequence[Wanted],
    seconds: float | None = None,
    patience: float = math.inf,
) -> None:
    """Bring into the store what of several pieces of content can be had, in this time if any.

    :param patience: for each of them, as of :class:`.swarm.Swarm`
    :raises ResourceError: as :func:`fetch_all`
    """

    async def try_to(bring: _Bring, one: Wanted) -> None:
        with contextlib.suppress(Unreachable):
            await bring(one)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds), _bringing(host, store, None, patience) as bring:
            await together(try_to(bring, one) for one in wanted)


@contextlib.asynccontextmanager
async def _bringing(
    host: Host,
    store: BlobStore,
    progress: Tell | None = None,
    patience: float = math.inf,
) -> AsyncIterator[_Bring]:
    """What fetches one piece; pieces that are fetched by it at the same time share a swarm."""
    swarm, gate = Swarm(host, store, patience), asyncio.Semaphore(PIECES_AT_ONCE)

    async def bring(one: Wanted) -> Path:
        store.label(one.kind, one.blob)
        # Two downloads would share the partial file, and the first to finish takes it away.
        lock = store.downloads.setdefault(one.blob, asyncio.Lock())
        async with gate, lock:
            # Shards are checked by who reads them (:mod:`node.corpus`), once.
            path = store.path(one.blob)
            if path is not None and one.kind != "data":
                path = await uninterrupted(asyncio.to_thread(store.sound, one.blob))
            if path is None:
                await swarm.obtain(one, progress)
                path = store.path(one.blob)
                assert path is not None
            return path

    running = asyncio.create_task(swarm.run())
    try:
        yield bring
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)


async def require_held(host: Host, peer: str, blob: str, size: int, kind: Kind) -> bytes:
    """Have a peer show that it holds content: by all its chunk hashes, its first chunk, and another
    one by chance. It is asked for both at once, since a round waits for them.

    :param size: bytes of the content
    :returns: its first chunk
    :raises ArtelError: it does not answer, or what it sends is not of this content
    """
    count = content.chunk_count(size)
    number = random.randrange(1, count) if count > 1 else 0

    async def listed() -> tuple[list[bytes], bytes]:
        async with host.open(peer, CONTENT, kind=kind) as stream:
            reply = await wire.ask(stream, messages.GetIndex(id=blob, lead=1))
            if not isinstance(reply, messages.Index) or (reply.size, reply.lead) != (size, 1):
                raise DecodeError(f"the peer does not hold content {blob[:12]}… of {size} bytes")
            raw = await stream.read_exactly(count * merkle.HASH_BYTES)
            hashes = [raw[i : i + merkle.HASH_BYTES] for i in range(0, len(raw), merkle.HASH_BYTES)]
            if merkle.root(hashes).hex() != blob:
                raise DecodeError("the chunk list does not match the content id")
            return hashes, await stream.read_exactly(min(size, content.CHUNK_BYTES))

    async def drawn() -> tuple[list[bytes], bytes]:
        length = min(size - number * content.CHUNK_BYTES, content.CHUNK_BYTES)
        async with host.open(peer, CONTENT, kind=kind) as stream:
            reply = await wire.ask(stream, messages.GetChunks(id=blob, first=number, count=1))
            if not isinstance(reply, messages.Chunks) or reply.size != length:
                raise DecodeError("unexpected number of bytes offered")
            return [], await stream.read_exactly(length)

    (hashes, first), *more = await together([listed(), drawn()] if number else [listed()])
    for at, piece in ((0, first), *((number, piece) for _, piece in more)):
        if await asyncio.to_thread(merkle.leaf_hash, piece) != hashes[at]:
            raise DecodeError("a chunk does not match its hash")
    return first


async def push(host: Host, store: BlobStore, peer: str, blob: str, *, kind: Kind = "other") -> None:
    """Give content to a peer that accepts it.

    :raises Refused: the peer does not want it
    :raises Unreachable: the peer went away
    """
    path = store.path(blob)
    if path is None:
        raise Unreachable(f"content {blob[:12]}… is not in the local store")
    store.label(kind, blob)
    size = path.stat().st_size
    async with host.open(peer, CONTENT, kind=kind) as stream:
        offer = messages.Put(id=blob, size=size, fingerprints=kind == "fingerprints")
        await wire.ask(stream, offer)
        with _opened(store, blob) as file:
            await _send(stream, file, 0, size)
        reply = await wire.read_message(stream)
        if isinstance(reply, messages.Refusal):
            raise wire.refusal(reply)


async def push_all(
    host: Host, store: BlobStore, peer: str, blobs: Sequence[str], *, kind: Kind = "other"
) -> None:
    """Give several pieces of content to a peer, some at a time; what it has already is fine.

    :raises Refused: the peer does not want one of them
    :raises Unreachable: the peer went away
    """
    gate = asyncio.Semaphore(PUSHES_AT_ONCE)

    async def give(blob: str) -> None:
        async with gate:
            try:
                await push(host, store, peer, blob, kind=kind)
            except wire.Refused as refusal:
                if refusal.code != "present":
                    raise

    await together(map(give, blobs))


class Offers:
    """What peers have offered in one phase of a round, so that nobody offers without end."""

    def __init__(self) -> None:
        self._phase: tuple[object, ...] = ()
        self._count: Counter[tuple[str, Kind]] = Counter()
        self._bytes: Counter[str] = Counter()

    def begin(self, *phase: object) -> bool:
        """Forget those of another phase; says whether this is a new one."""
        new = self._phase != phase
        if new:
            self._phase = phase
            self._count.clear()
            self._bytes.clear()
        return new

    def require(
        self, peer: str, request: messages.Put, owed: int, kind: Kind, most: int | None = None
    ) -> None:
        """Take note of one more offer.

        :param owed: how many blobs of this kind the peer owes
        :param most: bytes of all that it may offer
        :raises Refused: it has offered too much
        """
        self._count[peer, kind] += 1
        self._bytes[peer] += request.size
        large = most is not None and self._bytes[peer] > (TRIES + 1) * most
        if large or self._count[peer, kind] > TRIES * owed + 1:
            raise wire.Refused("too many tries in this round", code="too_many")


async def receive(
    store: BlobStore, request: messages.Put, stream: wire.ByteStream, *, kind: Kind = "other"
) -> bool:
    """The other side of :func:`push`, after the caller has decided that it wants the content.

    :returns: whether it was not here already, by another stream for example
    :raises DecodeError: what arrived is not the content that was offered
    """
    count_as(stream, kind)
    store.label(kind, request.id)
    part = store.unfinished(request.id)
    hashes: list[bytes] = []
    await wire.write_message(stream, messages.Ok())
    try:
        with files.told(store.root), part.open("xb") as file:
            left = request.size
            while left or not hashes:
                piece = await stream.read_exactly(min(left, content.CHUNK_BYTES))
                hashes.append(await asyncio.to_thread(merkle.leaf_hash, piece))
                await asyncio.to_thread(file.write, piece)
                left -= len(piece)
        if merkle.root(hashes).hex() != request.id:
            raise DecodeError("the bytes that arrived do not match their content id")
        new = not store.has(request.id)
        store.adopt(request.id, part, hashes)
    finally:
        part.unlink(missing_ok=True)
    return new


def _have(store: BlobStore, ids: Sequence[str]) -> messages.Have:
    held: list[int] = []
    parts: list[bytes] = []
    room = messages.Have.LIMIT - 1024
    for blob in ids:
        partial = store.partials.get(blob)
        bits = partial.bits() if partial is not None and partial.here.any() else b""
        if store.has(blob):
            held.append(2)
        elif bits and len(bits) + 8 <= room:
            held.append(1)
            parts.append(bits)
            room -= len(bits) + 8
        else:
            held.append(0)
    return messages.Have(held=held, parts=parts)


async def _index(store: BlobStore, blob: str) -> tuple[int, list[bytes], int]:
    """Size, chunk hashes, and how many chunks are here from the first one on."""
    if store.knows_hashes(blob):
        hashes = store.chunk_hashes(blob)
    else:
        hashes = await asyncio.to_thread(store.chunk_hashes, blob)
    size = store.size_of(blob)
    if hashes is not None and size is not None:
        return size, hashes, len(hashes)
    partial = store.partials.get(blob)
    if partial is None:
        raise _not_here(blob)
    return partial.size, partial.hashes, partial.lead()


@contextlib.contextmanager
def _opened(store: BlobStore, blob: str) -> Iterator[int]:
    """A descriptor of the file of content, or of its part that is here."""
    path = store.path(blob)
    if path is None and blob in store.partials:
        path = store.partial(blob)
    try:
        if path is None:
            raise FileNotFoundError
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        raise _not_here(blob) from None
    try:
        yield file
    finally:
        os.close(file)


def _not_here(blob: str) -> wire.Refused:
    return wire.Refused(f"content {blob[:12]}… is not here", code="not_here")


async def _send(stream: wire.ByteStream, file: int, start: int, count: int) -> None:
    if isinstance(stream, Stream):
        await stream.send_file(file, start, count)
        return
    while count:
        piece = await asyncio.to_thread(os.pread, file, min(content.CHUNK_BYTES, count), start)
        await stream.write(piece)
        start += len(piece)
        count -= len(piece)


def count_as(stream: wire.ByteStream, kind: Kind) -> None:
    """Say what a stream that is answered carries."""
    if isinstance(stream, Stream):
        stream.count_as(kind)
