"""A cap on a line: one token bucket that everything goes through which a host writes to its
streams, and another one for what it reads.

A stream asks for one piece at a time, and pieces are let through in the order in which they were
asked for; so streams share the uplink evenly however much each has to send. Small messages go
before bulk: a heartbeat does not wait behind a model. Bulk for strangers goes behind that for
members, or a few peer ids that cost nothing would take what a round waits for.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import Callable

PIECE_BYTES = 16 * 1024
"""What a stream may write at once under a cap; at 100 kB/s the others wait 0.16 s for it."""
STRANGERS_SHARE = 8
"""While members wait, one piece of so many is a stranger's."""
BURST_S = 0.1
"""What an idle uplink may save up, in seconds at its rate."""


class Cap:
    """At most ``rate`` bytes a second, or as many as there are when it is None.

    The bucket may go below zero by one piece, which is waited for before the next one: over
    seconds the rate is exact. For the tasks of one event loop.

    :param rate: bytes per second, above 0
    """

    def __init__(
        self, rate: float | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.rate = rate
        self._clock = clock
        self._tokens = 0.0
        self._then = clock()
        self._small: deque[tuple[asyncio.Future[None], int]] = deque()
        self._bulk: deque[tuple[asyncio.Future[None], int]] = deque()
        self._strangers: deque[tuple[asyncio.Future[None], int]] = deque()
        self._passed = 0  # pieces for members since a stranger had one
        self._timer: asyncio.TimerHandle | None = None

    async def take(self, count: int, *, small: bool = False, stranger: bool = False) -> None:
        """Wait until ``count`` bytes may be written.

        :param small: a message: it goes before all bulk
        :param stranger: bulk for somebody who is no member of the run
        """
        if self.rate is None:
            return
        self._refill(self.rate)
        mine = self._small if small else self._strangers if stranger else self._bulk
        waits = self._small or mine or (stranger and self._bulk)
        if self._tokens > 0 and not waits:
            self._tokens -= count
            return
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        mine.append((turn, count))
        if self._timer is None:
            self._wait(self.rate)
        await turn

    def change(self, rate: float | None) -> None:
        """Another rate from now on; who waits already is let through by it."""
        if self.rate is not None:
            self._refill(self.rate)
        else:  # nothing was counted
            self._tokens, self._then = 0.0, self._clock()
        self.rate = rate
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if rate is not None and (self._small or self._bulk or self._strangers):
            self._wait(rate)
        for queue in (self._small, self._bulk, self._strangers) if rate is None else ():
            while queue:
                turn, _ = queue.popleft()
                if not turn.done():
                    turn.set_result(None)

    def _refill(self, rate: float) -> None:
        now = self._clock()
        most = max(BURST_S * rate, 1.0)
        self._tokens = min(most, self._tokens + max(0.0, now - self._then) * rate)
        self._then = now

    def _wait(self, rate: float) -> None:
        seconds = max(0.0, -self._tokens / rate) + 0.001
        self._timer = asyncio.get_running_loop().call_later(seconds, self._let_through)

    def _let_through(self) -> None:
        assert self.rate is not None
        self._timer = None
        self._refill(self.rate)
        while self._tokens > 0 and (queue := self._next()):
            turn, count = queue.popleft()
            if not turn.done():  # its stream may be gone
                self._tokens -= count
                turn.set_result(None)
        if self._small or self._bulk or self._strangers:
            self._wait(self.rate)

    def _next(self) -> deque[tuple[asyncio.Future[None], int]]:
        """The queue whose turn it is."""
        theirs = self._strangers and self._passed >= STRANGERS_SHARE - 1
        if self._small or (self._bulk and not theirs):
            self._passed += not self._small
            return self._small or self._bulk
        self._passed = 0
        return self._strangers
