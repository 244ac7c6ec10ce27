"""Bounds on looks at what somebody offers: anybody can say to hold more of a ledger, or one of a
later term, and then be slow, or show without end.

A look has so many seconds and bytes for all that it reads. One peer is looked at once at a time,
and few at all; of those that the ledger does not know some few, so that they take no place of the
others. Who wasted a look is left alone for a while, which grows. Those who may lead have a place
each, more time, and no such while: what they say is waited for.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.signed_tree import TooMuch
from artel.protocol.errors import ArtelError, Unreachable

if TYPE_CHECKING:
    from artel.ledger.fold.shares import FoldState
    from artel.ledger.sync.signed_tree import SignedHead

LOOK_S = 5.0
LOOK_BYTES = 8 << 20
"""For what shows a handover: three entry bundles, and tiles."""
AT_ONCE = {True: 4, False: 2}
"""Looks at peers that the ledger knows, and at others."""
MOST_DOUBLINGS = 4
"""A slow line that is honest gets more after each look that was not enough."""
TRUSTED = 4
"""Who may lead gets so many times as much, always."""
REST = 4.0
"""Who wasted so many seconds is left alone for so many times as long, the first time."""
REST_S, MOST_REST_S = 1.0, 600.0
KEPT = 1024
TURN_S, PACE = 5.0, 256
"""Once others wait, who gives fewer entries a second behind the first seconds gives way. What this
machine itself needs for them does not count, but of a ledger that may be made up."""

Result = TypeVar("Result")


@dataclass
class Taking:
    """A verified head that a source shows, what was here when it was asked for, and how it is taken
    over: all of it, or nothing."""

    more: int
    """How many times as much as others the source has: what its line cannot give in one turn, it
    may in a longer one."""
    head: SignedHead | None = None
    start: int = 0
    term: int = 0
    proven: bool = False
    """Who leads its term is known here, or was sealed by electors that are."""
    bytes: float = math.inf
    """That may come in of it before it is proven, each time that more of it is."""
    sure: tuple[int, int] = (0, 0)
    """The term that it is proven to have come to, and how much of it is final."""
    known: int = 0
    """How many entries it had then."""
    taken: int = 0
    """Entries of it that came in."""
    doubted: float = math.inf
    """Since when (steady seconds) what comes in is not proven."""

    def took(self, *_: int) -> None:
        self.taken += 1
        self.doubted = min(self.doubted, time.monotonic())

    def folded(self, source: PeerSource, state: FoldState) -> None:
        """Bound what may come in by what the fold has found in it: a made-up ledger can begin as
        the true one, with handovers that are, but nothing behind that becomes final."""
        if self.proven or self.head is None:
            return
        sure = state.term.number, state.final
        self.proven = sure[0] == self.head.term
        if self.proven or sure > self.sure:
            self.sure, self.known, self.doubted = sure, state.size, math.inf
            source.limit(bytes=math.inf if self.proven else self.bytes)
        elif state.size <= self.start:  # what is here, folded once more
            self.doubted = math.inf

    def late(self, seconds: float) -> bool:
        """Whether it has to give way when somebody else waits.

        :param seconds: that it has taken
        """
        if not self.proven and time.monotonic() - self.doubted > self.more * TURN_S:
            return True
        came = self.taken if self.proven else max(0, self.known - self.start)
        return seconds > self.more * TURN_S + self.more**2 * came / PACE


class Looks:
    """Looks at the ledgers of others; one event loop owns it.

    :param clock: steady seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._under_way: dict[str, bool] = {}  # peer to whether the ledger knows it
        self._wasted: dict[str, tuple[int, float]] = {}  # peer: how often, and until when it rests
        self._turns: dict[str, asyncio.Lock] = {}  # of those who may lead
        # Not those of the event loop, which answer others.
        self._threads = ThreadPoolExecutor(32, thread_name_prefix="looks")

    @asynccontextmanager
    async def at(
        self, source: PeerSource, *, known: bool, trusted: bool = False
    ) -> AsyncIterator[int]:
        """Bound what is read from a source in this context.

        :param known: the ledger names the peer
        :param trusted: it may lead; the last look at it is waited for
        :returns: how many times as much as others it has
        :raises Unreachable: it is not looked at now
        """
        peer, began = source.peer, self._clock()
        if trusted:
            async with self._turns.setdefault(peer, asyncio.Lock()):
                source.limit(TRUSTED * LOOK_S, TRUSTED * LOOK_BYTES)
                yield TRUSTED
            return
        times, _ = self._wasted.get(peer, (0, 0.0))
        busy = list(self._under_way.values()).count(known) >= AT_ONCE[known]
        if busy or peer in self._under_way or self.resting(peer):
            raise Unreachable(f"{source.name} is not looked at now", "wait: others are, or it was")
        self._under_way[peer] = known
        more = 2 ** min(times, MOST_DOUBLINGS)
        source.limit(more * LOOK_S, more * LOOK_BYTES)
        try:
            yield more
        except (SplitViewProven, TooMuch):
            raise  # it gave what it has
        except ArtelError:
            rest = (REST_S + REST * (self._clock() - began)) * 2**times
            self._wasted.pop(peer, None)
            self._wasted[peer] = min(times + 1, 20), self._clock() + min(rest, MOST_REST_S)
            while len(self._wasted) > KEPT:
                del self._wasted[next(iter(self._wasted))]
            raise
        else:
            self._wasted.pop(peer, None)
        finally:
            del self._under_way[peer]

    def resting(self, peer: str) -> bool:
        """Whether a peer is left alone now."""
        return self._clock() < self._wasted.get(peer, (0, 0.0))[1]

    async def thread(self, work: Callable[..., Result], *given: object) -> Result:
        """As ``asyncio.to_thread``, in a thread for looks."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *given)
