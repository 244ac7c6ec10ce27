"""Streams as sockets: bytes between us and the network daemon, counted where they cross.

The daemon hands every libp2p stream over as a connection of a local socket. This module reads and
writes that socket itself, without buffers in between: a chunk of content is received straight into
its place, and every byte is counted when the kernel has taken it or given it.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import get_args

from artel.protocol.errors import Unreachable
from artel.protocol.messages import Kind
from artel.protocol.net.cap import PIECE_BYTES, Cap

KINDS: tuple[Kind, ...] = get_args(Kind)

IDLE_TIMEOUT_S = 60.0
"""A stream that moves no byte for this long is given up."""
MIN_RATE = 1024
"""Bytes per second. Whoever is slower falls behind, and is given up when :attr:`Stream.patience` is
over; time in which we do not wait for the peer does not count."""
READ_TIMEOUT_S = 180.0
"""A read of at most 1 MiB takes no longer: whoever sends it byte by byte is given up too."""
LINGER_S = 60.0
"""How long an answered stream is kept open for a slow reader; see Stream.closed_by_peer."""
SMALL_BYTES = 4096
"""Writes up to this size go before bulk when the uplink is capped."""
_AT_ONCE = 1 << 18
_SCRAP_BYTES, _MOST_SCRAP = 1 << 12, 1 << 20
_MAX_PEERS = 4096
_OTHERS = "others"


@dataclass
class Traffic:
    """Bytes that crossed our streams; owned by one host.

    Counted are all bytes of a stream, framing included; not what Noise, Yamux, TCP and the DHT add.
    Bytes of one stream are counted alike at both ends when it ended in order.
    """

    up: Counter[str] = field(default_factory=Counter)
    """Bytes written, by :data:`Kind`."""
    down: Counter[str] = field(default_factory=Counter)
    """Bytes read, by kind."""
    served: Counter[str] = field(default_factory=Counter)
    """Bytes of content streams written, by peer id."""
    fetched: Counter[str] = field(default_factory=Counter)
    """Bytes of content streams read, by peer id."""
    wasted: Counter[str] = field(default_factory=Counter)
    """Bytes of content that were fetched twice (by hedging) or did not verify, by kind."""


class Stream:
    """A libp2p stream with time-outs and byte counts.

    :param sock: a non-blocking stream socket, closed with the stream
    :param kind: what is counted, until :meth:`count_as` says more
    :param content: whether the stream counts in ``served`` and ``fetched``
    """

    def __init__(
        self,
        sock: socket.socket,
        peer: str,
        kind: Kind,
        traffic: Traffic,
        uplink: Cap,
        downlink: Cap | None = None,
        *,
        content: bool = False,
    ) -> None:
        self.peer, self.up, self.down = peer, 0, 0
        self.network = ""
        self.stranger = False
        """Whether a peer that is no member opened it; what it takes in bulk then comes last."""
        self._sock, self._kind, self._traffic, self._uplink = sock, kind, traffic, uplink
        self._downlink = downlink or Cap()
        self._content = content
        self._loop = asyncio.get_running_loop()
        self.moved = self._loop.time()
        """When a byte was last read (the event loop's clock)."""
        self.patience = IDLE_TIMEOUT_S
        """How many seconds the peer may fall behind :data:`MIN_RATE`."""
        self.given_up = False
        """Whether the peer was too slow, or had to give way."""
        self._behind = 0.0
        self._waiter: asyncio.Future[None] | None = None
        self._waiting_since = 0.0

    @property
    def behind(self) -> float | None:
        """How many seconds the peer is behind; None while it is not waited for."""
        if self._waiter is None:
            return None
        return self._behind + self._loop.time() - self._waiting_since

    def give_up(self) -> None:
        """Let whoever waits for the peer fail, as if the peer had been too slow."""
        self.given_up = True
        if self._waiter is not None:
            _fail(self._waiter, "the peer was too slow, and others wait")

    def count_as(self, kind: Kind) -> None:
        """Count all bytes of this stream, those of before too, under ``kind``."""
        if kind != self._kind:
            for counter, count in ((self._traffic.up, self.up), (self._traffic.down, self.down)):
                if count:
                    _add(counter, self._kind, -count)
                    _add(counter, kind, count)
            self._kind = kind

    async def read_exactly(self, count: int) -> bytes:
        """Read ``count`` bytes; the caller has bounded ``count``.

        :raises asyncio.IncompleteReadError: the peer closed early
        :raises Unreachable: the peer is too slow
        """
        data = bytearray(count)
        await self.read_into(memoryview(data))
        return bytes(data)

    async def read_into(self, view: memoryview) -> None:
        """Fill ``view``; the same errors as :meth:`read_exactly`."""
        if self._downlink.rate is not None and len(view) > SMALL_BYTES:
            # What is not read yet is not sent either: the peer waits.
            for start in range(0, len(view), PIECE_BYTES):
                piece = view[start : start + PIECE_BYTES]
                await self._downlink.take(len(piece))
                await self._fill(piece)
            return
        await self._downlink.take(len(view), small=True)
        await self._fill(view)

    async def _fill(self, view: memoryview) -> None:
        got = self._receive(view)
        if got == len(view):
            return
        try:
            async with asyncio.timeout(READ_TIMEOUT_S):
                while got < len(view):
                    await self._ready(self._loop.add_reader, self._loop.remove_reader, "sent")
                    got += self._receive(view[got:])
        except TimeoutError:
            raise Unreachable(f"the peer took over {READ_TIMEOUT_S:.0f} s to send") from None

    async def write(self, data: bytes | memoryview) -> None:
        """Write all of ``data``, waiting while the peer is slower than we are, or the cap says so.

        :raises Unreachable: the peer is too slow
        """
        view = memoryview(data)
        small = len(view) <= SMALL_BYTES
        step = len(view) if self._uplink.rate is None or small else PIECE_BYTES
        for start in range(0, len(view), max(step, 1)):
            piece = view[start : start + step]
            await self._uplink.take(len(piece), small=small, stranger=self.stranger)

            def send(sent: int, piece: memoryview = piece) -> int:
                return self._sock.send(piece[sent:])

            await self._send(len(piece), send)

    async def send_file(self, descriptor: int, offset: int, count: int) -> None:
        """Write ``count`` bytes of a file from ``offset`` on, as :meth:`write` does.

        :raises OSError: the file is shorter
        """
        step = _AT_ONCE if self._uplink.rate is None else PIECE_BYTES
        for start in range(offset, offset + count, step):
            length = min(step, offset + count - start)
            await self._uplink.take(length, stranger=self.stranger)

            def send(sent: int, start: int = start, length: int = length) -> int:
                moved = os.sendfile(self._sock.fileno(), descriptor, start + sent, length - sent)
                if not moved:
                    raise OSError("the file is shorter than its content should be")
                return moved

            await self._send(length, send)

    async def closed_by_peer(self) -> None:
        """Wait until the peer has closed the stream, for at most ``LINGER_S``.

        The network daemon answers the closing of our end with a reset of the stream when it is
        quicker than the last bytes; a reply then gets lost (about one in 5,000 under load). So
        whoever asked closes first, having read everything. What the peer still sends is read and
        forgotten, up to a bound: bytes that nobody reads would turn our closing into a reset too.
        """
        scrap = memoryview(bytearray(_SCRAP_BYTES))
        left = _MOST_SCRAP
        with contextlib.suppress(Unreachable, OSError, asyncio.IncompleteReadError):
            async with asyncio.timeout(LINGER_S):
                while left > 0:
                    await self._ready(self._loop.add_reader, self._loop.remove_reader, "sent")
                    left -= self._receive(scrap)

    def close(self) -> None:
        """Close the socket; the daemon closes the stream."""
        self._sock.close()

    def _receive(self, view: memoryview) -> int:
        """Read what is there already, 0 bytes if nothing is."""
        got = 0
        while got < len(view):
            try:
                count = self._sock.recv_into(view[got:])
            except (BlockingIOError, InterruptedError):
                break
            if not count:
                raise asyncio.IncompleteReadError(b"", len(view))
            got += count
        if got:
            self.down += got
            self._caught_up(got)
            self.moved = self._loop.time()
            self._traffic.down[self._kind] += got
            if self._content:
                _add(self._traffic.fetched, self.peer, got)
        return got

    async def _send(self, count: int, send: Callable[[int], int]) -> None:
        sent = 0
        while sent < count:
            try:
                moved = send(sent)
            except (BlockingIOError, InterruptedError):
                await self._ready(self._loop.add_writer, self._loop.remove_writer, "took")
                continue
            sent += moved
            self.up += moved
            self._caught_up(moved)
            self._traffic.up[self._kind] += moved
            if self._content:
                _add(self._traffic.served, self.peer, moved)

    def _caught_up(self, count: int) -> None:
        self._behind = max(0.0, self._behind - count / MIN_RATE)

    async def _ready(
        self, add: Callable[..., object], remove: Callable[[int], object], what: str
    ) -> None:
        """Wait until the socket can be read (or written), for as long as there is patience."""
        if self.given_up:
            raise Unreachable("the peer was too slow, and others wait")
        self._waiting_since = self._loop.time()
        self._waiter = waiter = self._loop.create_future()
        number = self._sock.fileno()
        add(number, _wake, waiter)
        timer = self._loop.call_later(max(0.0, self.patience - self._behind), self._lost, what)
        try:
            await waiter
        finally:
            timer.cancel()
            remove(number)
            self._behind += self._loop.time() - self._waiting_since
            self._waiter = None

    def _lost(self, what: str) -> None:
        self.given_up = True
        if self._waiter is not None:
            _fail(
                self._waiter, f"the peer {what} nothing, or too little, for {self.patience:.0f} s"
            )


def _wake(waiter: asyncio.Future[None]) -> None:
    if not waiter.done():
        waiter.set_result(None)


def _fail(waiter: asyncio.Future[None], reason: str) -> None:
    if not waiter.done():
        waiter.set_exception(Unreachable(reason))


def _add(counter: Counter[str], key: str, count: int) -> None:
    """Count under ``key``; strangers without end share one entry."""
    if key not in counter and len(counter) >= _MAX_PEERS:
        key = _OTHERS
    counter[key] += count
    if not counter[key]:
        del counter[key]
