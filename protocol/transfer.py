"""Moving content between peers: serve it, fetch it from any holder, push it to one.

Nothing is trusted: the list of chunk hashes is checked against the content id, each chunk against
its hash, and a holder that sends anything else is not asked again. A download is resumed from the
chunks that already lie in its partial file.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from protocol import content, merkle, messages, wire
from protocol.blobs import BlobStore, disk_error
from protocol.errors import ArtelError, DecodeError, ResourceError, Unreachable
from protocol.events import emit
from protocol.network import Host, short
from protocol.tasks import uninterrupted, within
from protocol.wire import CONTENT

log = logging.getLogger("artel.transfer")

CHUNKS_PER_REQUEST = 4
SOURCES = 4
"""Holders that one download asks at the same time."""
SLOW_S = 5.0
"""After this long another holder is asked too, so that a silent one delays a download only once."""
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

    Safe to call for the same content from several tasks: one of them fetches it.

    :param holders: peer ids, best first; those that fail or lie are dropped
    :param max_bytes: the most that this content may have
    :param progress: called with (bytes present, bytes in all)
    :raises Unreachable: no holder could give the rest
    """
    # Two downloads would share the partial file, and the first to finish takes it away.
    lock = store.downloads.setdefault(blob, asyncio.Lock())
    async with lock:
        path = store.path(blob)
        if path is not None:
            return path
        reasons: dict[str, str] = {}
        size, hashes = await _any_index(host, holders, blob, max_bytes, reasons)
        download = _Download(store, blob, size, hashes, progress)
        await uninterrupted(asyncio.to_thread(download.resume))
        spare = [holder for holder in holders if holder not in reasons]
        asked: set[asyncio.Task[None]] = set()
        done: set[asyncio.Task[None]] = set()
        try:
            while download.missing and (spare or asked):
                while spare and len(asked) < SOURCES:
                    work = download.take_from(host, spare.pop(0), reasons)
                    asked.add(asyncio.create_task(work))
                done, asked = await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    task.result()
        finally:
            await _cancel(asked | done)
        return await uninterrupted(asyncio.to_thread(download.finish, reasons))


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
    part = store.unfinished(request.id)
    hashes: list[bytes] = []
    await wire.write_message(stream, messages.Ok())
    try:
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


async def _any_index(
    host: Host, holders: Sequence[str], blob: str, most: int, reasons: dict[str, str]
) -> tuple[int, list[bytes]]:
    """Size and chunk hashes from the first holder that has them.

    Each next one is asked when the one before says no, or says nothing for ``SLOW_S``.
    """
    spare = list(holders)
    asked: dict[asyncio.Task[tuple[int, list[bytes]]], str] = {}
    try:
        while spare or asked:
            if spare:
                holder = spare.pop(0)
                asked[asyncio.create_task(_fetch_index(host, holder, blob, most))] = holder
            done, _ = await asyncio.wait(
                asked, timeout=SLOW_S if spare else None, return_when=asyncio.FIRST_COMPLETED
            )
            for task in done:
                try:
                    return task.result()
                except ArtelError as error:
                    reasons[asked.pop(task)] = error.message
    finally:
        await _cancel(asked)
    detail = _told(reasons) or "nobody is known to have it"
    raise Unreachable(f"content {blob[:12]}… cannot be fetched ({detail})"[:300])


async def _cancel(tasks: Iterable[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


def _told(reasons: dict[str, str]) -> str:
    return "; ".join(f"{short(holder)}: {reason}" for holder, reason in reasons.items())


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
        self.missing = set(range(len(hashes)))
        self._asked: dict[int, float] = {}  # missing chunk: when a holder was last asked for it
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
                self.missing = {
                    index
                    for index, digest in enumerate(self._hashes)
                    if merkle.leaf_hash(file.read(content.CHUNK_BYTES)) != digest
                }
        except OSError as error:
            raise disk_error(error, self._store.root) from None

    async def take_from(self, host: Host, holder: str, reasons: dict[str, str]) -> None:
        """Fetch missing chunks from one holder until none are left or the holder fails."""
        clock = asyncio.get_running_loop().time
        while self.missing:
            batch = self._next_batch(clock())
            if not batch:  # others are at work; they may fail, or become too slow
                self._changed.clear()
                with contextlib.suppress(TimeoutError):
                    await within(self._changed.wait(), SLOW_S / 4)
                continue
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
                        self._done(index)
            except ResourceError:
                raise  # our own disk; another holder does not help
            except (ArtelError, TimeoutError) as error:
                detail = error.message if isinstance(error, ArtelError) else "too slow"
                emit(log, "content.holder_failed", peer=short(holder), reason=detail)
                reasons[holder] = detail
                return
            finally:
                for index in batch:
                    self._asked.pop(index, None)
                self._changed.set()

    def finish(self, reasons: dict[str, str]) -> Path:
        """Move the complete file into the store."""
        if self.missing:
            raise Unreachable(f"content {self._blob[:12]}… is incomplete ({_told(reasons)})"[:300])
        self._store.adopt(self._blob, self._part)
        path = self._store.path(self._blob)
        assert path is not None
        return path

    def _next_batch(self, now: float) -> list[int]:
        """Neighbouring missing chunks that nobody is asked for, or not lately."""
        free = sorted(i for i in self.missing if now - self._asked.get(i, -SLOW_S) >= SLOW_S)
        batch = [i for nth, i in enumerate(free[:CHUNKS_PER_REQUEST]) if i == free[0] + nth]
        self._asked.update(dict.fromkeys(batch, now))
        return batch

    def _done(self, index: int) -> None:
        self.missing.discard(index)
        if self._progress:
            self._progress(self._size - sum(map(self._chunk_size, self.missing)), self._size)

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
