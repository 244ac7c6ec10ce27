"""What asks a program to end: Ctrl-C, a service manager's SIGTERM, a terminal that closes."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable

from protocol.tether import SIGNALS


def on_signals(first: Callable[[], None], again: Callable[[], None]) -> None:
    """Have the running loop call ``first`` at the first of :data:`SIGNALS`, then ``again``.

    SIGHUP never counts as a second one: when a terminal closes, kernel and shell both send it, and
    service managers send it after their SIGTERM. A program under ``nohup`` goes on ignoring it.
    """
    loop = asyncio.get_running_loop()
    terminals = [number for number in (0, 1, 2) if os.isatty(number)]
    asked = False

    def on_signal(number: int, _: object) -> None:
        nonlocal asked
        repeated, asked = asked, True
        if number == signal.SIGHUP:
            _let_go(terminals)
            # The next one may come while the interpreter is taken apart, without handlers.
            signal.signal(number, signal.SIG_IGN)
            if repeated:
                return
        with contextlib.suppress(RuntimeError):  # the loop is closed: the program ends already
            loop.call_soon_threadsafe(again if repeated else first)

    for number in SIGNALS:
        # Not the loop's own handlers: it takes them away in the end, and the next signal would kill
        # a program that is about to return its exit code.
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, on_signal)


def _let_go(terminals: list[int]) -> None:
    """Point the descriptors of a terminal that is gone to nowhere: writing there would fail."""
    for number in terminals:
        if not os.isatty(number):
            nowhere = os.open(os.devnull, os.O_RDWR)
            os.dup2(nowhere, number)
            os.close(nowhere)
