"""When a node rests: because its owner said so, or by the clock, the desktop, the battery."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from datetime import datetime

import psutil

from artel.node.settings import OwnerSettings, spans

BUSY_SHARE = 0.2
"""Of the machine's processor time: when other programs take more, somebody uses the machine."""
ASK_S = 3.0
"""For a program that is asked how long nobody has touched the desktop."""
_DESKTOPS: tuple[tuple[tuple[str, ...], float], ...] = (
    (
        (
            *("busctl", "--user", "call", "org.gnome.Mutter.IdleMonitor"),
            *("/org/gnome/Mutter/IdleMonitor/Core", "org.gnome.Mutter.IdleMonitor", "GetIdletime"),
        ),
        1e-3,
    ),
    (
        (
            *("busctl", "--user", "call", "org.freedesktop.ScreenSaver", "/ScreenSaver"),
            *("org.freedesktop.ScreenSaver", "GetSessionIdleTime"),
        ),
        1.0,
    ),
    (("xprintidle",), 1e-3),
)
"""Commands that say it, the number last, and the seconds that it counts: GNOME, other desktops of
freedesktop.org, X11."""


class Rest:
    """Whether a node rests now, and why. Owned by its event loop.

    While it does it trains nothing: the round under way goes on without what it has not committed
    to, and the next ones are opened without it.
    """

    def __init__(self) -> None:
        self.why = ""
        """In words for the owner; "" while it works."""
        self.news: tuple[asyncio.Event, ...] = ()
        """Set at each change."""
        self.begun, self._over = asyncio.Event(), asyncio.Event()
        self._over.set()

    def set(self, why: str) -> None:
        """Rest for this reason, or work on with none."""
        self.why = why
        if why:
            self.begun.set()
            self._over.clear()
        else:
            self._over.set()
            self.begun.clear()
        for event in self.news:
            event.set()

    async def over(self) -> None:
        """Wait until it works."""
        await self._over.wait()


def why_rest(
    settings: OwnerSettings, now: datetime, unused: Callable[[], float], battery: Callable[[], bool]
) -> str:
    """Why the settings want no work now; "" when they do.

    :param now: the owner's local time
    :param unused: asked for the seconds since somebody last used the machine, where it matters
    :param battery: asked whether it runs on its battery, where it matters
    """
    if settings.paused:
        return "paused; to go on: artel node resume"
    minute = 60 * now.hour + now.minute
    parts = spans(settings.hours or "")
    if parts and not any(_within(minute, *part) for part in parts):
        return f"it works from {settings.hours} o'clock"
    if settings.battery == "no" and battery():
        return "the machine runs on its battery"
    if settings.idle and unused() < 60 * settings.idle:
        return f"the machine is in use; it works after {settings.idle} min without"
    return ""


def _within(minute: int, start: int, end: int) -> bool:
    return start <= minute < end if start < end else minute >= start or minute < end


def on_battery() -> bool:
    """Whether there is a battery, and the machine runs on it."""
    found = psutil.sensors_battery() if hasattr(psutil, "sensors_battery") else None
    return found is not None and found.power_plugged is False


class Use:
    """When somebody last used this machine: as its desktop says, else by what other programs take
    of the processors.

    :param clock: steady seconds
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._used = clock()
        self._before = self._counted()

    def unused(self) -> float:
        """Seconds; may take some, as programs are asked."""
        for command, unit in _DESKTOPS:
            if (number := _said(command)) is not None:
                return number * unit
        now, (busy, whole) = self._clock(), self._counted()
        before, self._before = self._before, (busy, whole)
        if whole > before[1] and (busy - before[0]) / (whole - before[1]) > BUSY_SHARE:
            self._used = now
        return now - self._used

    @staticmethod
    def _counted() -> tuple[float, float]:
        """Processor seconds of all other programs, and all that there were."""
        times = psutil.cpu_times()
        whole = sum(times[:8])  # guest time is in user time already
        own, me = 0.0, psutil.Process()
        for process in (me, *me.children(recursive=True)):
            with contextlib.suppress(psutil.Error):
                spent = process.cpu_times()
                own += spent.user + spent.system
        free = times.idle + sum(getattr(times, name, 0.0) for name in ("iowait", "steal"))
        return whole - free - own, whole


def _said(command: tuple[str, ...]) -> float | None:
    """The number at the end of what a command prints; None when it cannot be had."""
    if shutil.which(command[0]) is None:
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError, ValueError, IndexError):
        done = subprocess.run(command, capture_output=True, timeout=ASK_S, check=True)
        return float(done.stdout[:100].split()[-1])
    return None
