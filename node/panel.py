"""What an owner sees of a node that runs in a terminal: one calm picture, lines above it.

Without a terminal there are the lines alone.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from artel.node.doctor import troubles
from artel.protocol.commandline import fields
from artel.protocol.identity import short_peer
from artel.protocol.terminal import printable
from artel.protocol.units import duration

BAR = 24
KEYS = "Ctrl-C finishes the round and leaves; what else there is: artel node --help"


class Panel:
    """A view of one node, from its start to its end.

    :param drawn: whether there is a picture
    :param clock: steady seconds
    """

    def __init__(
        self, out: TextIO, *, drawn: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock, self.drawn = clock, drawn
        # What draws moves the cursor, which the screen lets nobody do; it cleans what it shows.
        raw = getattr(out, "raw", out) if self.drawn else out
        console = Console(file=raw, highlight=False, markup=False, emoji=False, soft_wrap=True)
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._first: tuple[float, int] | None = None  # when which round was seen
        self._before: tuple[float, int, int] | None = None  # when how much had been sent, received

    def __enter__(self) -> Panel:
        if self.drawn:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self._live.stop()

    def say(self, line: str) -> None:
        """Print a line."""
        with contextlib.suppress(OSError):  # the terminal is gone; the node is not
            self._live.console.print(printable(line))
            self._live.console.file.flush()

    def show(self, now: dict[str, Any]) -> None:
        """Draw a node's status."""
        title = f"{now['name']}   node {short_peer(now['node'])}   up {duration(now['uptime'])}"
        rows = fields(self._rows(now))
        with contextlib.suppress(OSError):
            picture = Group(
                Text(printable(title), style="bold"), Text(str(rows)), Text(KEYS, style="dim")
            )
            self._live.update(picture, refresh=True)

    def _rows(self, now: dict[str, Any]) -> Iterator[tuple[str, str]]:
        yield "doing", f"{now['phase']} ({now['resting'] or now['reason']})"
        if now["phase"] == "training" and now["steps"]:
            full = BAR * now["step"] // now["steps"]
            bar = "█" * full + "░" * (BAR - full)
            loss = "" if now["loss"] is None else f"   loss {now['loss']:.3f}"
            yield "step", f"{bar} {now['step']}/{now['steps']}{loss}"
        yield "speed", f"{now['tokens_per_second']:,.0f} tokens/s   {self._line(now)}"
        yield (
            "earned",
            f"{now['vested']:,} credit vested, {now['pending']:,} pending   "
            f"{100 * now['share']:.1f} % of the model",
        )
        yield "until", self._until(now)
        yield "limits", now["limits"]
        for trouble in troubles(now):
            yield f"! {trouble.name}", f"{trouble.what}: {trouble.advice}"

    def _line(self, now: dict[str, Any]) -> str:
        """What goes over the line now, in megabits per second."""
        seen = self._clock(), now["bytes_up"], now["bytes_down"]
        before, self._before = self._before or seen, seen
        seconds = max(seen[0] - before[0], 1e-3)
        up, down = (8e-6 * max(0, seen[i] - before[i]) / seconds for i in (1, 2))
        return f"{up:.1f} Mbit/s up, {down:.1f} down"

    def _until(self, now: dict[str, Any]) -> str:
        """Which round it is, and how long the run goes on at the pace seen here."""
        done, total = max(0, now["state_round"]), now["rounds_total"]
        text = f"round {done} of {total} agreed"
        at, first = self._first = self._first or (self._clock(), done)
        if done > first:
            each = (self._clock() - at) / (done - first)
            text += f"; about {duration(each * (total - done))} to the end of the run"
        return text
