"""Commands as a test calls them, and a walk over all that there are."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cyclopts import App

from artel import cli
from artel.protocol.leaving import SIGNALS


def group(name: str) -> Callable[[list[str]], int]:
    """Runs a command of a group with the words behind it; what it raises is the test's to see."""
    return lambda words: cli.run([name, *words])


@contextmanager
def as_if_alone() -> Iterator[None]:
    """While a command runs here that takes the log and the signals of its process as its own."""
    log = logging.getLogger("artel")
    kept = log.level, log.propagate, list(log.handlers)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        yield
    finally:
        log.level, log.propagate, log.handlers = kept
        for number, handler in handlers.items():
            signal.signal(number, handler)


def commands(app: App | None = None, line: str = "artel") -> Iterator[tuple[str, App]]:
    """Every command and group with the words that name it."""
    app = app or cli.root()
    yield line, app
    for name, below in app.resolved_commands().items():
        if not name.startswith("-"):
            yield from commands(below, f"{line} {name}")
