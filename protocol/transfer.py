"""Moving content between peers: serve it, fetch it from any holder, push it to one.

Nothing is trusted: the list of chunk hashes is checked against the content id, each chunk against
its hash, and a holder that sends anything else is not asked again. A download is resumed from the
chunks that already lie in its partial file.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from protocol import content, merkle, messages, wire
from protocol.blobs import BlobStore, disk_error
from protocol.errors import ArtelError, DecodeError, ResourceError, Unreachable
from protocol.events import emit
from protocol.network import Host, short
from protocol.tasks import together
from protocol.wire import CONTENT

log = logging.getLogger("artel.transfer")

CHUNKS_PER_REQUEST = 4
SOURCES = 4
"""Holders that one download asks at the same time."""
_BATCH_TIMEOUT_S = 120.0


async def serve_content(
    store: BlobStore, request: messages.Message, stream: wire.Stream
) -> messages.Message | None:
    """Answer one request of the content service."""
    if isinstance(request, messages.GetIndex):
        hashes = await asyncio.to_thread(store.chunk_hashes, request.id)
        size = store.size_of(request.id)
        if hashes is None or size is None:
            raise wire.Refused(f"content {request.id[:12]}… is not here", code="not_here")
        await wire.write_message(stream, messages.Index(size=size))
        await stream.write(b"".join(hashes))
        return None
    if isinstance(request, messages.GetChunks):
        path = store.path(request.id)
        if path is None:
            raise wire.Refused(f"content {request.id[:12]}… is not here", code="not_here")
        size = path.stat().st_size
        start = request.first * content.CHUNK_BYTES
        stop = min(size, start + request.count * content.CHUNK_BYTES)
        if start >= max(size, 1):
            raise wire.Refused("there is no such chunk", code="no_chunk")
        await wire.write_message(stream, messages.Chunks(size=stop - start))
        with path.open("rb") as file:
            file.seek(start)
            while start < stop:
                piece = await asyncio.to_thread(file.read, min(content.CHUNK_BYTES, stop - start))
                await stream.write(piece)
                start += len(piece)
        return None
    raise wire.Refused(f"the content service does not answer {request.KIND}", code="unknown")


async def fetch(
    host: Host,
    store: BlobStore,
    blob: str,
    holders: Sequence[str],
    *,
    max_bytes: int,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Bring content into the store, from as many holders as help.

    :param holders: peer ids, best first; those that fail or lie are dropped
    :param max_bytes: the most that this content may have
    :param progress: called with (bytes present, bytes in all)
    :raises Unreachable: no holder could give the rest
    """
    path = store.path(blob)
    if path is not None:
        return path
    reasons: list[str] = []
    for holder in holders:
        try:
            size, hashes = await _fetch_index(host, holder, blob, max_bytes)
            break
        except ArtelError as error:
            reasons.append(f"{short(holder)}: {error.message}")
    else:
        detail = "; ".join(reasons) or "nobody is known to have it"
        raise Unreachable(f"content {blob[:12]}… cannot be fetched ({detail})"[:300])
    download = _Download(store, blob, size, hashes, progress)
    await asyncio.to_thread(download.resume)
    await together(download.take_from(host, holder, reasons) for holder in holders[:SOURCES])
    for holder in holders[SOURCES:]:
        await download.take_from(host, holder, reasons)
    return await asyncio.to_thread(download.finish, reasons)


async def push(host: Host, store: BlobStore, peer: str, blob: str) -> None:
    """Give content to a peer that accepts it.

    :raises Refused: the peer does not want it
    :raises Unreachable: the peer went away
    """
    path = store.path(blob)
    if path is None:
        raise Unreachable(f"content {blob[:12]}… is not in the local store")
    async with host.open(peer, CONTENT) as stream:
        await wire.ask(stream, messages.Put(id=blob, size=path.stat().st_size))
        with path.open("rb") as file:
            while piece := await asyncio.to_thread(file.read, content.CHUNK_BYTES):
                await stream.write(piece)
        reply = await wire.read_message(stream)
        if isinstance(reply, messages.Refusal):
            raise wire.Refused(reply.message, reply.hint, reply.code)


async def receive(store: BlobStore, request: messages.Put, stream: wire.Stream) -> None:
    """The other side of :func:`push`, after the caller has decided that it wants the content.

    :raises DecodeError: what arrived is not the content that was offered
    """
    part = store.root / f"{request.id}.{os.urandom(4).hex()}.put"
    hashes: list[bytes] = []
    try:
        await wire.write_message(stream, messages.Ok())
        with part.open("wb") as file:
            left = request.size
            while left or not hashes:
                piece = await stream.read_exactly(min(left, content.CHUNK_BYTES))
                hashes.append(merkle.leaf_hash(piece))
                await asyncio.to_thread(file.write, piece)
                left -= len(piece)
        if merkle.root(hashes).hex() != request.id:
            raise DecodeError("the bytes that arrived do not match their content id")
        store.adopt(request.id, part)
    except OSError as error:
        raise disk_error(error, store.root) from None
    finally:
        part.unlink(missing_ok=True)


async def _fetch_index(host: Host, holder: str, blob: str, most: int) -> tuple[int, list[bytes]]:
    try:
        async with asyncio.timeout(30), host.open(holder, CONTENT) as stream:
            reply = await wire.ask(stream, messages.GetIndex(id=blob))
            if not isinstance(reply, messages.Index):
                raise DecodeError(f"unexpected reply {reply.KIND}")
            if reply.size > min(most, content.MAX_CHUNKS * content.CHUNK_BYTES):
                raise DecodeError(f"content of {reply.size} bytes, at most {most} expected")
            raw = await stream.read_exactly(content.chunk_count(reply.size) * merkle.HASH_BYTES)
    except TimeoutError:
        raise Unreachable("no answer in 30 s") from None
    hashes = [raw[i : i + merkle.HASH_BYTES] for i in range(0, len(raw), merkle.HASH_BYTES)]
    if merkle.root(hashes).hex() != blob:
        raise DecodeError("the chunk list does not match the content id")
    return reply.size, hashes


class _Download:
    """The chunks still missing of one piece of content; owned by one :func:`fetch`."""

    def __init__(
        self,
        store: BlobStore,
        blob: str,
        size: int,
        hashes: list[bytes],
        progress: Callable[[int, int], None] | None,
    ) -> None:
        self._store, self._blob, self._size, self._hashes = store, blob, size, hashes
        self._progress = progress
        self._part = store.partial(blob)
        self._missing = list(range(len(hashes)))
        self._in_flight = 0
        self._changed = asyncio.Event()

    def resume(self) -> None:
        """Keep the chunks of an earlier try that verify."""
        try:
            with self._part.open("ab"):
                pass
            with self._part.open("r+b") as file:
                file.truncate(self._size)
                if os.fstat(file.fileno()).st_blocks == 0 and self._size:
                    return  # a fresh, sparse file
                self._missing = [
                    index
                    for index, digest in enumerate(self._hashes)
                    if merkle.leaf_hash(file.read(content.CHUNK_BYTES)) != digest
                ]
        except OSError as error:
            raise disk_error(error, self._store.root) from None

    async def take_from(self, host: Host, holder: str, reasons: list[str]) -> None:
        """Fetch missing chunks from one holder until none are left or the holder fails."""
        while True:
            while not self._missing and self._in_flight:  # another holder may yet give some back
                self._changed.clear()
                await self._changed.wait()
            if not self._missing:
                return
            batch = self._next_batch()
            done = 0
            self._in_flight += 1
            try:
                async with asyncio.timeout(_BATCH_TIMEOUT_S), host.open(holder, CONTENT) as stream:
                    request = messages.GetChunks(id=self._blob, first=batch[0], count=len(batch))
                    reply = await wire.ask(stream, request)
                    if not isinstance(reply, messages.Chunks) or reply.size != sum(
                        map(self._chunk_size, batch)
                    ):
                        raise DecodeError("unexpected number of bytes offered")
                    for index in batch:
                        piece = await stream.read_exactly(self._chunk_size(index))
                        await asyncio.to_thread(self._write, index, piece)
                        done += 1
            except ResourceError:
                raise  # our own disk; another holder does not help
            except (ArtelError, TimeoutError) as error:
                detail = error.message if isinstance(error, ArtelError) else "too slow"
                emit(log, "content.holder_failed", peer=short(holder), reason=detail)
                reasons.append(f"{short(holder)}: {detail}")
                return
            finally:
                self._in_flight -= 1
                self._missing = batch[done:] + self._missing
                self._changed.set()
                if self._progress:
                    self._progress(
                        self._size - sum(map(self._chunk_size, self._missing)), self._size
                    )

    def finish(self, reasons: list[str]) -> Path:
        """Move the complete file into the store."""
        if self._missing:
            detail = "; ".join(reasons[-3:])
            raise Unreachable(f"content {self._blob[:12]}… is incomplete ({detail})"[:300])
        self._store.adopt(self._blob, self._part)
        path = self._store.path(self._blob)
        assert path is not None
        return path

    def _next_batch(self) -> list[int]:
        """Take neighbouring missing chunks."""
        count = 1
        while (
            count < min(CHUNKS_PER_REQUEST, len(self._missing))
            and self._missing[count] == self._missing[0] + count
        ):
            count += 1
        batch, self._missing = self._missing[:count], self._missing[count:]
        return batch

    def _chunk_size(self, index: int) -> int:
        start = index * content.CHUNK_BYTES
        return min(content.CHUNK_BYTES, self._size - start)

    def _write(self, index: int, piece: bytes) -> None:
        if merkle.leaf_hash(piece) != self._hashes[index]:
            raise DecodeError(f"chunk {index} does not match its hash")
        try:
            with self._part.open("r+b") as file:
                file.seek(index * content.CHUNK_BYTES)
                file.write(piece)
        except OSError as error:
            raise disk_error(error, self._store.root) from None
