"""A TCP proxy that does to connections what bad networks do: by seed, and changeable while it runs.

It stands in front of one address; whoever is to be reached through it announces the proxy's address
instead of its own. ``up`` is the way to that address, ``down`` the way back. What is done to the
bytes is a :class:`Fault`; for whom, for how long and on which of the connections is a
:class:`Rule`. Which bytes are hit follows from the seed, the number of the connection, the way, and
how many bytes have passed, never from how TCP cuts them into pieces.
"""

from __future__ import annotations

import asyncio
import math
import random
import socket
import struct
from collections import Counter
from dataclasses import dataclass, field

PIECE_BYTES = 1 << 14
"""Read at a time, and passed on at once where nothing is said against it."""
LATE_PIECES = 1024
"""Pieces that wait on one way of a connection; no more are read then, and TCP holds the sender."""
TURN_S = 0.05
"""What passes at a bounded rate is let through so often."""
REPEATED_BYTES = 32
"""How many bytes come once more at a place that is repeated."""


@dataclass(frozen=True)
class Fault:
    """What happens to bytes on one way; by default nothing.

    :param delay_s: every byte arrives so much later, in the same order
    :param rate: bytes per second that pass; 0 for no bound
    :param hold: nothing passes while this lasts. What was sent meanwhile arrives afterwards, as TCP
        sends it again when a network is whole again
    :param corrupt_every: one bit of about every so many bytes is flipped; 0 for none
    :param repeat_every: after about every so many bytes the last ones come once more; 0 for never
    :param cut_after: bytes after which a connection is reset; None for never
    """

    delay_s: float = 0.0
    rate: float = 0.0
    hold: bool = False
    corrupt_every: int = 0
    repeat_every: int = 0
    cut_after: int | None = None


BLACKHOLE = Fault(hold=True)
"""Connections are accepted, and nothing passes."""


@dataclass(eq=False)
class Line:
    """One connection through the proxy.

    :param number: it was the how-manieth, from 1
    :param source: IP address that it comes from
    """

    number: int
    source: str
    ends: list[asyncio.StreamWriter]
    passed: Counter[str] = field(default_factory=Counter)
    """Bytes, by way."""

    def reset(self) -> None:
        """End it at once, on both sides, with what is still on its way."""
        for end in self.ends:
            if (plug := end.get_extra_info("socket")).fileno() >= 0:
                plug.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            end.transport.abort()


@dataclass(eq=False)
class Rule:
    """A fault, and what it holds for.

    :param way: "up" or "down", "" for both
    :param nth: number of the connection, 0 for all
    :param source: IP address that a connection comes from, "" for any
    :param until: seconds of the event loop at which it ends by itself
    """

    fault: Fault
    way: str = ""
    nth: int = 0
    source: str = ""
    until: float = math.inf
    hits: Counter[str] = field(default_factory=Counter)
    """How often it has done what: "hold", "corrupt", "repeat", "cut"."""

    def fits(self, line: Line, way: str, now: float) -> bool:
        same = self.way in ("", way) and self.nth in (0, line.number)
        return same and self.source in ("", line.source) and now < self.until


class Places:
    """Numbers of bytes in a stream, about so far apart as is asked for, that a seed chooses."""

    def __init__(self, seed: str) -> None:
        self._random, self._every, self._next = random.Random(seed), 0, 0

    def within(self, first: int, count: int, every: int) -> list[int]:
        """Those of ``count`` bytes from number ``first`` on, counted from there."""
        if every != self._every:
            self._every, self._next = every, first + self._step(every)
        found = []
        while every and self._next < first + count:
            found.append(self._next - first)
            self._next += self._step(every)
        return found

    def bit(self) -> int:
        """A byte of one bit."""
        return 1 << self._random.randrange(8)

    def _step(self, every: int) -> int:
        return self._random.randint(1, max(1, 2 * every - 1))


Late = asyncio.Queue[tuple[float, bytes]]
"""Pieces with the seconds of the event loop at which they may go on; an empty one is the end."""


class FaultProxy:
    """A proxy in front of ``target``; a context manager behind which no connection is left.

    :param target: host and port; may be changed, for connections to come
    """

    def __init__(self, target: tuple[str, int] = ("127.0.0.1", 0), seed: int = 0) -> None:
        self.target = target
        self.rules: list[Rule] = []
        self.lines: dict[int, Line] = {}
        """Connections that are open."""
        self.made = 0
        """Connections so far."""
        self.port = 0
        self._seed = seed
        self._changed = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()
        self._server: asyncio.Server

    async def __aenter__(self) -> FaultProxy:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def multiaddr(self) -> str:
        """What a libp2p host that lies behind it announces."""
        return f"/ip4/127.0.0.1/tcp/{self.port}"

    def apply(
        self, fault: Fault, way: str = "", *, nth: int = 0, source: str = "", seconds: float = 0.0
    ) -> Rule:
        """Let a fault begin, on open connections too; of those that fit, the newest holds.

        :param seconds: after which it ends by itself; 0 for when it is lifted
        """
        until = asyncio.get_running_loop().time() + seconds if seconds else math.inf
        rule = Rule(fault, way, nth, source, until)
        self._become([rule, *self.rules])
        return rule

    def lift(self, *rules: Rule) -> None:
        """End these rules, or all."""
        self._become([rule for rule in self.rules if rules and rule not in rules])

    def cut(self, source: str = "") -> int:
        """Reset what is open now, from one address or from all; returns how many."""
        cut = [line for line in self.lines.values() if source in ("", line.source)]
        for line in cut:
            line.reset()
        return len(cut)

    def _become(self, rules: list[Rule]) -> None:
        self.rules = rules
        self._changed.set()
        self._changed = asyncio.Event()

    async def _pause(self, seconds: float) -> None:
        """So long, or until the rules change."""
        changing = asyncio.ensure_future(self._changed.wait())
        await asyncio.wait({changing}, timeout=None if seconds == math.inf else max(seconds, 0))
        changing.cancel()

    def _rule(self, line: Line, way: str) -> Rule:
        now = asyncio.get_running_loop().time()
        return next((rule for rule in self.rules if rule.fits(line, way, now)), Rule(Fault()))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.made += 1
        line = Line(self.made, writer.get_extra_info("peername")[0], [writer])
        try:
            there, out = await asyncio.open_connection(*self.target)
            line.ends.append(out)
            self.lines[line.number] = line
            async with asyncio.TaskGroup() as both:
                for way, source, sink in (("up", reader, out), ("down", there, writer)):
                    late: Late = asyncio.Queue(LATE_PIECES)
                    both.create_task(self._take(line, way, source, late))
                    both.create_task(self._give(line, way, late, sink))
        except* (OSError, asyncio.CancelledError):
            pass  # one end is gone, so the other goes too; or the proxy is closed
        finally:
            self.lines.pop(line.number, None)
            self._tasks.discard(task)
            line.reset()

    async def _take(self, line: Line, way: str, source: asyncio.StreamReader, late: Late) -> None:
        data = None
        while data != b"":
            data = await source.read(PIECE_BYTES)
            delay = self._rule(line, way).fault.delay_s
            await late.put((asyncio.get_running_loop().time() + delay, data))

    async def _give(self, line: Line, way: str, late: Late, sink: asyncio.StreamWriter) -> None:
        clock = asyncio.get_running_loop().time
        flips, again = (Places(f"{self._seed}/{line.number}/{way}/{what}") for what in "fa")
        passed, last = line.passed, b""
        while True:
            due, data = await late.get()
            await asyncio.sleep(due - clock())
            if not data:
                return sink.write_eof()
            while data:
                rule = self._rule(line, way)
                fault = rule.fault
                if fault.hold:
                    rule.hits["hold"] += 1
                    await self._pause(rule.until - clock())
                    continue
                most = int(fault.rate * TURN_S) + 1 if fault.rate else len(data)
                if fault.cut_after is not None:
                    most = min(most, fault.cut_after - passed[way])
                    if most <= 0:
                        rule.hits["cut"] += 1
                        raise ConnectionResetError
                piece, data = bytearray(data[:most]), data[most:]
                for place in flips.within(passed[way], len(piece), fault.corrupt_every):
                    piece[place] ^= flips.bit()
                    rule.hits["corrupt"] += 1
                places = again.within(passed[way], len(piece), fault.repeat_every)
                rule.hits["repeat"] += len(places)
                sink.write(repeating(last, bytes(piece), places))
                last = (last + piece)[-REPEATED_BYTES:]
                passed[way] += len(piece)
                await sink.drain()
                if fault.rate:
                    await self._pause(len(piece) / fault.rate)


def repeating(before: bytes, piece: bytes, places: list[int]) -> bytes:
    """A piece in which, behind each of these places, the last bytes come once more.

    :param before: the last bytes before it
    """
    out, start = b"", 0
    for place in places:
        out += piece[start : place + 1] + (before + piece[: place + 1])[-REPEATED_BYTES:]
        start = place + 1
    return out + piece[start:]
