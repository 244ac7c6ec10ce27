"""The coordinator of :mod:`benchmarks.members`: ``artel coordinator start``, with a meter in it.

``python -m benchmarks.members_office COUNT coordinator start …`` does what ``artel coordinator
start …`` does, and two things more. Accounts and nodes of ``COUNT`` members stand in the ledger
from its first entries on: of strangers a coordinator takes ten in a minute, and it is rounds that
are measured. And after each agreed state a line of JSON goes into ``meter.jsonl`` in its home: the
processor seconds that this process has used so far, split by what it was asked.

A request's are those in which the event loop was at work for it, and those of the threads that it
had work done in. What is left of the loop's is ``loop``: the network below the requests, time and
background work; the threads that check and write entries are ``ledger``.
"""

from __future__ import annotations

import asyncio
import contextvars
import json
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from artel.coordinator import availability
from artel.coordinator import process as office
from artel.coordinator.sequencer import Sequencer, Statement
from artel.ledger import entries
from artel.ledger.fold.shares import Outcome
from artel.ledger.store.store import MAX_BATCH
from artel.protocol.messages import Message
from artel.protocol.net import wire
from benchmarks.members_crowd import SLOWER, keys_of

METER_FILE = "meter.jsonl"
TICK_S = os.sysconf("SC_CLK_TCK")

Book = Counter[str]


class Meter:
    """Processor seconds and requests by kind, so far."""

    def __init__(self) -> None:
        self.calls, self.seconds = Book(), Book()
        self._kind: contextvars.ContextVar[list[str]] = contextvars.ContextVar("kind")

    def install(self) -> None:
        """Measure every request that a host answers in this process from now on."""
        answer, in_thread = wire.answer, asyncio.to_thread

        async def metered(
            peer: str, stream: wire.ByteStream, handler: wire.Handler, first_s: float | None = None
        ) -> None:
            kind = ["?"]
            self._kind.set(kind)

            async def named(peer: str, request: Message, stream: wire.ByteStream) -> Message | None:
                kind[0] = _kind_of(request)
                return await handler(peer, request, stream)

            await _Stepped(answer(peer, stream, named, first_s), partial(self._book, kind))
            self.calls[kind[0]] += 1

        async def threaded(work: Callable[..., Any], *given: Any, **named: Any) -> Any:
            kind = self._kind.get(["background"])

            def timed() -> Any:
                began = time.thread_time()
                try:
                    return work(*given, **named)
                finally:
                    self._book(kind, time.thread_time() - began)

            return await in_thread(timed)

        wire.answer, asyncio.to_thread = metered, threaded  # type: ignore[assignment]

    def _book(self, kind: list[str], seconds: float) -> None:
        self.seconds[kind[0]] += seconds  # type: ignore[assignment]

    def reading(self) -> dict[str, Any]:
        """All that was used so far."""
        threads = Book()
        for thread in threading.enumerate():
            name = thread.name.partition("_")[0]
            threads[name] += _thread_seconds(thread.native_id or 0)  # type: ignore[assignment]
        children = Book()
        for child in psutil.Process().children(recursive=True):
            used = child.cpu_times()
            name = "p2pd" if child.name().startswith("p2pd") else "recompute"
            children[name] += used.user + used.system  # type: ignore[assignment]
        return {
            "wall": time.time(),
            "process": time.process_time(),
            "loop": threads["MainThread"],
            "ledger": threads["sequencer"],
            "threads": threads["asyncio"],
            "children": dict(children),
            "calls": dict(self.calls),
            "seconds": dict(self.seconds),
            "rss": psutil.Process().memory_info().rss,
        }


class _Stepped:
    """A coroutine whose steps are timed on the thread's own clock."""

    def __init__(self, work: Coroutine[Any, Any, None], book: Callable[[float], None]) -> None:
        self._work, self._book = work, book

    def __await__(self) -> Generator[Any, Any, None]:
        step: Callable[[], Any] = partial(self._work.send, None)
        while True:
            began = time.thread_time()
            try:
                waits = step()
            except StopIteration:
                return
            finally:
                self._book(time.thread_time() - began)
            try:
                step = partial(self._work.send, (yield waits))
            except BaseException as error:
                step = partial(self._work.throw, error)


def _kind_of(request: Message) -> str:
    """Of a request: what it is about, as the table has it."""
    paths = getattr(request, "paths", ())
    if paths:
        return "ledger_get"
    return request.KIND


def _thread_seconds(native: int) -> float:
    try:
        fields = Path(f"/proc/self/task/{native}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICK_S


class Registered(Sequencer):
    """A ledger that begins with accounts and nodes."""

    members = 0

    async def append(self, *statements: Statement) -> list[Outcome]:
        """Behind the first entry of all, the manifest, come those of the members."""
        first = not self.store.size
        outcomes = await super().append(*statements)
        if first:
            said: list[Statement] = []
            for node, account in map(keys_of, range(self.members)):
                said.append(entries.account(account, self.state.run))
                said.append(entries.node(node, account, self.state.run, seq=1))
            for start in range(0, len(said), MAX_BATCH):
                await super().append(*said[start : start + MAX_BATCH])
        return outcomes


def measured(meter: Meter, home: Path) -> None:
    """Note a reading after each agreed state."""
    from artel.coordinator.service import Coordinator
    from artel.protocol import round_state

    execute: Callable[[Coordinator, Any], Awaitable[None]] = Coordinator._execute

    async def noted(core: Coordinator, action: round_state.Action) -> None:
        await execute(core, action)
        if isinstance(action, round_state.AgreeState):
            traffic = core.host.traffic
            row = meter.reading() | {
                "round": action.round - 1,
                "size": core.ledger.store.size,
                "up": dict(traffic.up),
                "down": dict(traffic.down),
            }
            with (home / METER_FILE).open("a") as file:
                file.write(json.dumps(row) + "\n")

    Coordinator._execute = noted  # type: ignore[method-assign]


def main(argv: list[str]) -> int:
    """Run ``artel`` with what stands behind the number of members."""
    from artel.cli import main as artel

    Registered.members = int(argv[0])
    availability.SHOW_S *= SLOWER  # members share two processors, and may take their time to show
    office.Sequencer = Registered  # type: ignore[misc]
    meter = Meter()
    meter.install()
    measured(meter, Path(argv[argv.index("--home") + 1]))
    return artel(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
