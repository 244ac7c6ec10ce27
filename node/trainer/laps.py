"""Where the main thread's time goes between the inner steps."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator


class Laps:
    """Adds up the seconds in which the main thread neither trained nor worked on the run.

    Together with what is measured by :meth:`work` and the inner steps themselves, the idle seconds
    make up the whole time from the first inner step of one head to that of the next.
    """

    def __init__(self) -> None:
        self._last: float | None = None  # end of the last inner step or piece of work
        self._idle = 0.0

    def resume(self) -> None:
        """An inner step or a piece of work begins: the time since the last one was idle."""
        if self._last is not None:
            self._idle += time.perf_counter() - self._last
            self._last = None

    def pause(self) -> None:
        """The inner steps or the piece of work are over."""
        self._last = time.perf_counter()

    @contextlib.contextmanager
    def work(self) -> Iterator[None]:
        """A piece of work other than inner steps: it is not idle time."""
        self.resume()
        try:
            yield
        finally:
            self.pause()

    def take_idle(self) -> float:
        """The idle seconds since the last call."""
        idle, self._idle = self._idle, 0.0
        return idle
