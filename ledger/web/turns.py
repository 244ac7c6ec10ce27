"""Answers that take work: made one at a time, and once for all who ask for the same."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Hashable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

REST = 2.0
"""How long the thread rests, in processor seconds of what it made last."""

T = TypeVar("T")


@dataclass
class _Turn:
    made: Future[Any]
    askers: int = 0


class Turns:
    """Makes what visitors ask for, and leaves the program its processor, whatever they ask.

    Threads of a program share one interpreter: several that compute starve its event loop. So here
    is one, which rests after its work: at most a third of a processor goes into answers. Who asks
    for what is still to be made gets the same answer, so none is older than its question. Owned by
    the event loop.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._lock = threading.Lock()
        self._next: dict[Hashable, _Turn] = {}  # what is to be made; under the lock
        self._rested = 0.0  # when it will be, in steady seconds
        self._closing = threading.Event()

    async def get(self, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returns or raises; it is called in the thread.

        :param key: the same for whatever is made in the same way
        """
        with self._lock:
            turn = self._next.get(key)
            if turn is None:
                made = self._thread.submit(self._make, key, make)
                turn = self._next[key] = _Turn(made)
        turn.askers += 1
        try:
            # Others may ask for it too when this one goes away.
            found: T = await asyncio.shield(asyncio.wrap_future(turn.made))
            return found
        finally:
            turn.askers -= 1
            if not turn.askers and turn.made.cancel():
                with self._lock:
                    self._next.pop(key, None)

    def _make(self, key: Hashable, make: Callable[[], T]) -> T:
        self._closing.wait(max(0.0, self._rested - time.monotonic()))
        with self._lock:
            self._next.pop(key, None)  # who asks from now on may know of later things
        began = time.thread_time()
        try:
            return make()
        finally:
            self._rested = time.monotonic() + REST * (time.thread_time() - began)

    async def close(self) -> None:
        """End the thread; nothing more is made."""
        self._closing.set()
        await asyncio.to_thread(self._thread.shutdown, wait=True, cancel_futures=True)
