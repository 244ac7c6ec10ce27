"""What asks a program to end: Ctrl-C, a service manager's SIGTERM, a terminal that closes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable

from artel.protocol.tether import SIGNALS

ONE_WISH_S = 1.0


def on_signals(first: Callable[[], None], again: Callable[[], None]) -> None:
    """Have the running loop call ``first`` at the first of :data:`SIGNALS`, then ``again``.

    SIGHUP never counts as a second one: when a terminal closes, kernel and shell both send it. Nor
    does another signal within ``ONE_WISH_S``: service managers can send SIGTERM and SIGHUP, and the
    lower number arrives first. A program under ``nohup`` goes on ignoring SIGHUP.
    """
    loop = asyncio.get_running_loop()
    terminals = [number for number in (0, 1, 2) if os.isatty(number)]
    last, since = 0, 0.0

    def on_signal(number: int, _: object) -> None:
        nonlocal last, since
        now = time.monotonic()
        repeated = last and (number == last or now - since > ONE_WISH_S)
        begun, last, since = last, number, now
        if number == signal.SIGHUP:
            _let_go(terminals)
            # The next one may come while the interpreter is taken apart, without handlers.
            signal.signal(number, signal.SIG_IGN)
            repeated = False
        if repeated or not begun:
            with contextlib.suppress(RuntimeError):  # the loop is closed: the program ends already
                loop.call_soon_threadsafe(again if repeated else first)

    for number in SIGNALS:
        # Not the loop's own handlers: it takes them away in the end, and the next signal would kill
        # a program that is about to return its exit code.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)


def _let_go(terminals: list[int]) -> None:
    """Point the descriptors of a terminal that goes to nowhere: writing there is about to fail."""
    nowhere = os.open(os.devnull, os.O_RDWR)
    for number in terminals:
        os.dup2(nowhere, number)
    os.close(nowhere)
