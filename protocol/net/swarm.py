"""Many pieces of content from many holders at once.

Rarest content first, nearest holders first (:mod:`protocol.net.speeds`); of one piece each node
begins with other chunks, so that those who fetch it soon serve each other. A request that is slow
for what is known of its holder is doubled: another holder is asked for the same chunks, and whoever
is later is cut off. The last holder in a list is spared while the others do.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
from collections import Counter
from collections.abc import Iterator

from artel.protocol import content, merkle, messages
from artel.protocol.errors import ArtelError, DecodeError, ResourceError, Unreachable
from artel.protocol.events import emit
from artel.protocol.identity import short_peer
from artel.protocol.net import wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.download import Download
from artel.protocol.net.host import Host
from artel.protocol.net.streams import Stream
from artel.protocol.net.swarm_census import Census
from artel.protocol.net.swarm_job import Ask, Job, Wanted
from artel.protocol.tasks import uninterrupted
from artel.protocol.telling import Tell

log = logging.getLogger("artel.transfer")

AT_ONCE = 12
"""Requests of one swarm under way, without silent ones and those that double slow ones."""
PER_HOLDER = 2
SOURCES = 4
"""Holders that are asked for one piece of content at the same time."""
REQUEST_S = 1.0
"""A request asks for about as much as its holder gave in this time, as far as that is known."""
CHUNKS_UNKNOWN, CHUNKS_MOST = 2, 16
LEAD_BYTES = 16 << 20
"""Content up to this size comes with its index; of larger one, nodes begin where chance says."""
SLOW_S = 5.0
"""After this long without a byte another holder is asked too, whatever is known of the first."""
PATIENCE_S = 1.0
"""Before this nobody is slow."""
SPARE_S = 3.0
"""Content that takes longer is asked of the last holder in its list too."""
REST_S = 0.5
"""A holder whose stream broke after it had served is tried again after this, once."""
STUCK_S = 30.0
"""Holders that have parts of content, but none that is missing, are waited for so long."""
HAVE_AFTER_S = 0.25
"""Content that takes longer, or is larger than ``LEAD_BYTES``: others are asked what they have."""
MOST_DOUBLED = 1 / 8
"""Part of the bytes wanted that may be asked for twice because a holder is slow, not silent."""
INLINE_BYTES = 1 << 17
"""Chunks up to this size are checked at once; larger ones in a thread."""
TICK_S = 0.1
PACE, LONGEST = 4 << 10, 3
"""Bytes a second that earn a piece more time where that is bounded, and how many times as much."""


class Swarm:
    """Fetches into ``store`` what :meth:`obtain` asks for, while :meth:`run` runs.

    Owned by one call of :func:`protocol.net.delivery.fetch_all`.

    :param patience: seconds from the first request for a piece on, beside what it earns; then it
        counts as one that nobody gives
    """

    def __init__(self, host: Host, store: BlobStore, patience: float = math.inf) -> None:
        self._host, self._store, self._patience = host, store, patience
        self._loop = asyncio.get_running_loop()
        self._jobs: list[Job] = []
        self._asks: set[Ask] = set()
        self._busy: Counter[str] = Counter()
        self._wake = asyncio.Event()
        self._dropped: dict[str, str] = {}  # holders that lied or went away: why
        self._resting: dict[str, float] = {}  # until when
        self._broke: set[str] = set()
        self._served: set[str] = set()
        self._wanted_bytes = self._doubled_bytes = 0
        self._census = Census(host, self._wake)

    async def obtain(self, wanted: Wanted, progress: Tell | None = None) -> None:
        """Bring one piece of content into the store; the caller holds its lock.

        :raises Unreachable: no holder could give the rest
        :raises ResourceError: the disk is full, or the quota too small
        """
        job = Job(wanted, self._host.peer_id, self._loop.time(), progress)
        for peer in set(wanted.holders) & self._dropped.keys():
            job.drop(peer, self._dropped[peer])
        self._wanted_bytes += wanted.max_bytes
        self._jobs.append(job)
        self._wake.set()
        try:
            download = await job.done
            await uninterrupted(asyncio.to_thread(download.finish))
        finally:
            self._jobs.remove(job)
            await uninterrupted(self._close(job))

    async def run(self) -> None:
        """Ask for what is wanted until cancelled."""
        try:
            while True:
                self._wake.clear()
                self._ask_for_all()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(TICK_S if self._jobs else None):
                        await self._wake.wait()
        except Exception as error:
            for job in self._jobs:
                if not job.done.done():
                    job.done.set_exception(error)
            raise
        finally:
            await self._census.close()

    async def _close(self, job: Job) -> None:
        tasks = [ask.task for ask in job.asks if ask.task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._store.partials.pop(job.blob, None)
        if job.download is not None:  # and nobody writes to it any more
            job.download.close()

    # --- what to ask whom ------------------------------------------------------------------------

    def _ask_for_all(self) -> None:
        now = self._loop.time()
        jobs = sorted((job for job in self._jobs if not job.done.done()), key=Job.rarity)
        asking = True
        while asking:  # each piece of content gets one request before any gets its second
            asking = False
            for job in jobs:
                if sum(not ask.silent for ask in self._asks) >= AT_ONCE:
                    break
                asking = self._ask_more(job, now) or asking
        for job in jobs:
            usable = [peer for peer in job.holders() if peer not in job.lacking]
            stuck = now - job.busy_at > STUCK_S and not any(self._busy[peer] for peer in usable)
            if (not job.asks and (not usable or stuck)) or self._is_kept_back(job, now):
                self._fail(job)
        for ask in list(self._asks):
            self._double(ask, now)
        self._census.ask([job for job in jobs if not self._is_quick(job, now)], now)

    def _is_kept_back(self, job: Job, now: float) -> bool:
        """Whether nobody gives it, though nobody says so."""
        got = job.got + sum(ask.got for ask in job.asks)
        time = min(self._patience + got / PACE, LONGEST * self._patience)
        return job.asked_at is not None and now - job.asked_at > time

    def _is_quick(self, job: Job, now: float) -> bool:
        """Whether content may be here before it is known who has it."""
        return now - job.began < HAVE_AFTER_S and job.wanted.max_bytes <= LEAD_BYTES

    def _ask_more(self, job: Job, now: float) -> bool:
        if job.done.done() or len({ask.holder for ask in job.asks}) > SOURCES:
            return False
        if job.download is None:
            if job.asks:
                return False
            for holder in self._nearest(job, now, job.wanted.max_bytes):
                self._start(Ask(job, holder, now))
                return True
            return False
        others = job.others(len(job.download.hashes))
        for holder in self._nearest(job, now, content.CHUNK_BYTES):
            run = job.download.free_run(job.mask(holder), self._run_length(holder), others)
            if run:
                self._start(Ask(job, holder, now, run))
                return True
        return False

    def _nearest(
        self, job: Job, now: float, count: int, *, doubling: bool = False
    ) -> Iterator[str]:
        """Holders that can be asked now, best first.

        Who is not known to have it is asked only when nobody else is left, or to double a request:
        the census costs less than refusals.
        """
        usable = [peer for peer in job.holders() if peer not in job.lacking]
        silent = {ask.holder for ask in self._asks if ask.silent}
        best = min((job.tier(peer) for peer in usable if peer not in silent), default=2)
        if doubling or (best < 2 and now - job.began > SPARE_S):
            best = 2
        ranked = []
        for place, peer in enumerate(usable):
            if self._busy[peer] >= PER_HOLDER or self._rests(peer, now) or job.tier(peer) > best:
                continue
            seconds = self._host.speeds.expected(peer, count) * (1 + self._busy[peer])
            ranked.append((peer in silent, job.tier(peer), seconds, place, peer))
        for *_, peer in sorted(ranked):
            yield peer

    def _rests(self, peer: str, now: float) -> bool:
        until = self._resting.get(peer)
        if until is not None and now >= until:
            del self._resting[peer]
            return False
        return until is not None

    def _run_length(self, holder: str) -> int:
        rate = self._host.speeds.of(holder).rate
        if rate is None:
            return CHUNKS_UNKNOWN
        return max(1, min(CHUNKS_MOST, int(rate * REQUEST_S) // content.CHUNK_BYTES))

    def _fail(self, job: Job) -> None:
        what = "cannot be fetched" if job.download is None else "is incomplete"
        told = "; ".join(f"{short_peer(peer)}: {reason}" for peer, reason in job.reasons.items())
        detail = told or "nobody is known to have it"
        error = Unreachable(f"content {job.blob[:12]}… {what} ({detail})"[:300])
        if not job.done.done():
            job.done.set_exception(error)

    def _double(self, ask: Ask, now: float) -> None:
        """Ask somebody else too for what a holder is slow to give."""
        job = ask.job
        if ask.doubled or job.done.done():
            return
        speeds = self._host.speeds
        latency = speeds.of(ask.holder).latency
        patience = SLOW_S / 2 if latency is None else max(PATIENCE_S, 4 * latency)
        ask.silent = now - ask.moved > min(patience, SLOW_S)
        left, seconds = ask.bytes_left(), now - ask.began
        asked = {other.holder for other in job.asks if other.same_chunks(ask)}
        if len(asked) > 1 and not ask.silent:
            return
        for other in self._nearest(job, now, left, doubling=True):
            if other in asked or not ask.could_come_from(other):
                continue
            if not ask.silent:
                expected = speeds.expected(other, left)
                slow = seconds > PATIENCE_S and left * seconds > 2 * expected * max(ask.got, 1)
                if not slow or self._doubled_bytes + left > MOST_DOUBLED * self._wanted_bytes:
                    return
                self._doubled_bytes += left
            emit(
                log,
                "content.doubled",
                logging.DEBUG,
                blob=job.blob[:12],
                slow=short_peer(ask.holder),
                asked=short_peer(other),
            )
            ask.doubled = True
            self._start(Ask(job, other, now, ask.rest(), doubles=ask))
            return

    # --- one request -----------------------------------------------------------------------------

    def _start(self, ask: Ask) -> None:
        self._asks.add(ask)
        ask.job.asks.append(ask)
        ask.job.asked_at = ask.job.asked_at or ask.began
        self._busy[ask.holder] += 1
        if ask.chunks is not None and ask.job.download is not None:
            ask.job.download.asked[ask.chunks.start : ask.chunks.stop] += 1
        ask.task = asyncio.create_task(self._take(ask))
        # Not in a finally clause: a task that is cancelled before its first step runs none.
        ask.task.add_done_callback(lambda task: self._finished(ask, task))

    async def _take(self, ask: Ask) -> None:
        job, holder = ask.job, ask.holder
        try:
            async with self._host.open(holder, wire.CONTENT, kind=job.wanted.kind) as stream:
                ask.stream = stream
                if ask.chunks is None:
                    count = await self._index(ask, stream)
                else:
                    count = await self._chunks(ask, stream)
                await self._receive(ask, stream, count)
        except ResourceError as error:
            if not job.done.done():  # our own disk; another holder does not help
                job.done.set_exception(error)
        except wire.Refused as refusal:
            if refusal.code in ("not_here", "no_chunk"):
                job.lacks(holder)
            else:
                job.drop(holder, refusal.message)
        except DecodeError as error:
            self._drop(holder, error.message)
        except ArtelError as error:
            if holder in self._served and holder not in self._broke:
                self._broke.add(holder)
                self._resting[holder] = self._loop.time() + REST_S
            else:
                self._drop(holder, error.message)

    def _drop(self, holder: str, reason: str) -> None:
        """Ask this holder for nothing more in this swarm."""
        emit(log, "content.holder_failed", peer=short_peer(holder), reason=reason)
        self._dropped[holder] = reason
        for job in self._jobs:
            if holder in job.wanted.holders:
                job.drop(holder, reason)
        for ask in self._asks:
            if ask.holder == holder and ask.task and ask.task is not asyncio.current_task():
                ask.task.cancel()

    def _finished(self, ask: Ask, task: asyncio.Task[None]) -> None:
        job, now = ask.job, self._loop.time()
        error = None if task.cancelled() else task.exception()
        if error is not None and not job.done.done():
            job.done.set_exception(error)
        job.busy_at, job.got = now, job.got + ask.got
        self._asks.discard(ask)
        job.asks.remove(ask)
        self._busy[ask.holder] -= 1
        if ask.chunks is not None and job.download is not None:
            job.download.asked[ask.chunks.start : ask.chunks.stop] -= 1
        if ask.doubles is not None:
            ask.doubles.doubled = False
        if ask.before is not None:
            wasted = ask.got - ask.before - ask.used
            if wasted > 0:
                self._host.traffic.wasted[job.wanted.kind] += wasted
            self._host.speeds.moved(ask.holder, ask.got - ask.before, now - ask.began)
        elif ask.silent:
            self._host.speeds.waited(ask.holder, now - ask.began)
        self._wake.set()

    async def _index(self, ask: Ask, stream: Stream) -> int:
        """Ask for the index; returns how many bytes of chunks follow."""
        job, wanted = ask.job, ask.job.wanted
        lead = 0 if wanted.max_bytes > LEAD_BYTES else self._run_length(ask.holder)
        if self._store.partial(job.blob).exists():
            lead = 0
        reply = await wire.ask(stream, messages.GetIndex(id=job.blob, lead=lead))
        self._answered(ask)
        if not isinstance(reply, messages.Index):
            raise DecodeError(f"unexpected reply {reply.KIND}")
        if reply.size > min(wanted.max_bytes, content.MAX_CHUNKS * content.CHUNK_BYTES):
            raise DecodeError(f"content of {reply.size} bytes, at most {wanted.max_bytes} expected")
        count = content.chunk_count(reply.size)
        if reply.lead > min(lead, count):
            raise DecodeError("more chunks offered than were asked for")
        raw = await stream.read_exactly(count * merkle.HASH_BYTES)
        hashes = [raw[i : i + merkle.HASH_BYTES] for i in range(0, len(raw), merkle.HASH_BYTES)]
        if merkle.root(hashes).hex() != job.blob:
            raise DecodeError("the chunk list does not match the content id")
        async with job.opening:
            if job.download is None:
                download = Download(
                    self._store, job.blob, reply.size, hashes, wanted.max_bytes, job.progress
                )
                if not download.is_new:
                    await uninterrupted(asyncio.to_thread(download.resume))
                job.download = self._store.partials[job.blob] = download
        ask.chunks = range(reply.lead)
        job.download.asked[: reply.lead] += 1
        self._complete(job)
        self._wake.set()
        return min(reply.size, reply.lead * content.CHUNK_BYTES)

    async def _chunks(self, ask: Ask, stream: Stream) -> int:
        """Ask for the chunks of a request; returns how many bytes follow."""
        download, run = ask.job.download, ask.chunks
        assert download is not None
        assert run is not None
        request = messages.GetChunks(id=ask.job.blob, first=run.start, count=len(run))
        reply = await wire.ask(stream, request)
        self._answered(ask)
        whole = len(run) * content.CHUNK_BYTES
        least = most = whole
        if run.stop == len(download.hashes):  # only a hash says how long the last chunk is
            least = whole - content.CHUNK_BYTES + min(1, len(download.hashes) - 1)
        if not isinstance(reply, messages.Chunks) or not least <= reply.size <= most:
            raise DecodeError("unexpected number of bytes offered")
        return reply.size

    def _answered(self, ask: Ask) -> None:
        self._host.speeds.waited(ask.holder, self._loop.time() - ask.began)

    async def _receive(self, ask: Ask, stream: Stream, count: int) -> None:
        """Read the chunks of a request; while one is checked and written the next one arrives."""
        download = ask.job.download
        assert download is not None
        assert ask.chunks is not None
        ask.before = stream.down
        keeping: asyncio.Task[None] | None = None
        piece = spare = memoryview(b"")
        try:
            for index in ask.chunks:
                if download.here[index : ask.chunks.stop].all():
                    break  # another holder was faster
                length = min(content.CHUNK_BYTES, count)
                count -= length
                piece, spare = spare, piece
                if len(piece) != length:
                    piece = memoryview(bytearray(length))
                await stream.read_into(piece)
                if keeping is not None:
                    await keeping
                    keeping = None
                if len(piece) > INLINE_BYTES:
                    keeping = asyncio.create_task(self._keep_in_thread(ask, index, piece))
                else:
                    download.write(index, piece)
                    self._keep(ask, index, len(piece))
        finally:
            if keeping is not None:
                await uninterrupted(keeping)

    async def _keep_in_thread(self, ask: Ask, index: int, piece: memoryview) -> None:
        assert ask.job.download is not None
        await uninterrupted(asyncio.to_thread(ask.job.download.write, index, piece))
        self._keep(ask, index, len(piece))

    def _keep(self, ask: Ask, index: int, length: int) -> None:
        """A chunk is in its place."""
        job = ask.job
        assert job.download is not None
        if job.download.arrived(index, length):
            ask.used += length
            self._served.add(ask.holder)
            self._complete(job)
        for other in job.asks:
            if other is not ask and other.chunks and other.task and not other.bytes_left():
                other.task.cancel()

    def _complete(self, job: Job) -> None:
        assert job.download is not None
        if job.download.complete and not job.done.done():
            job.done.set_result(job.download)
