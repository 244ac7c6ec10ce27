"""Faults at named points of our processes: killed, stopped, slowed, or made to fail.

The points are the events that :func:`artel.protocol.events.emit` writes: ``contribution.committed``
of a node comes after its commitment has reached the coordinator and before it reveals anything,
``ledger.committed`` after entries are durable and before the head over them is published. A process
acts in the thread and at the moment in which it writes the line: at the n-th one, or by the lot of
a seed. What it is to do stands in a file that may be written anew while it runs.

The product knows nothing of this. A process that is started inside :func:`listening` has a
PYTHONPATH that makes Python import ``at_start/sitecustomize.py``, and the name of the file in its
environment. Its children inherit both, and count for themselves.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

VARIABLE = "ARTEL_TEST_INJECTIONS"
HERE = Path(__file__).parent
WALL = time.time


@dataclass(frozen=True)
class Injection:
    """What happens where.

    :param event: name of the point; "" for any
    :param action: ``kill`` (SIGKILL), ``stop`` (SIGSTOP, and SIGCONT after ``seconds``), ``slow``
        (the thread sleeps for ``seconds``), ``fail`` (an OSError with this ``errno`` is raised),
        ``clock`` (from here on the clock on the wall is ``seconds`` ahead of what it is)
    :param nth: at the how-manieth such event since the file was written, from 1; 0 for each
    :param odds: beside that, the chance by which it happens, drawn from ``seed``
    :param seconds: 0 of a ``stop`` for until somebody else wakes it up
    :param fields: fields that the event must have, as text
    :param child: instead of itself, the process kills or stops the child with this in its command
    """

    event: str
    action: str
    nth: int = 1
    odds: float = 1.0
    seed: int = 0
    seconds: float = 0.0
    errno: int = 5
    fields: Mapping[str, str] = field(default_factory=dict)
    child: str = ""


def inject(file: Path, *injections: Injection) -> None:
    """From now on these are what the processes with this file do; those before are forgotten."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps([asdict(one) for one in injections]))
    new.replace(file)


@contextlib.contextmanager
def listening(file: Path) -> Iterator[None]:
    """Processes that are started meanwhile do what :func:`inject` writes into this file."""
    before = {name: os.environ.get(name) for name in (VARIABLE, "PYTHONPATH")}
    places = [str(HERE / "at_start"), str(HERE), before["PYTHONPATH"] or ""]
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))
    os.environ[VARIABLE] = str(file)
    try:
        yield
    finally:
        for name, value in before.items():
            del os.environ[name]
            if value is not None:
                os.environ[name] = value


class Injector:
    """Acts on the events of this process as a file says."""

    def __init__(self, file: Path) -> None:
        self._file, self._version = file, (0, 0)
        self._injections: list[Injection] = []
        self._lots: list[random.Random] = []
        self._seen: list[int] = []

    def heard(self, record: logging.LogRecord) -> None:
        """An event has been written."""
        self._read()
        for number, one in enumerate(self._injections):
            if fits(one, record):
                self._seen[number] += 1
                if one.nth in (0, self._seen[number]) and self._lots[number].random() < one.odds:
                    act(one)

    def _read(self) -> None:
        try:
            found = self._file.stat()
        except FileNotFoundError:
            return
        version = (found.st_ino, found.st_mtime_ns)
        if version != self._version:
            self._version = version
            self._injections = [Injection(**one) for one in json.loads(self._file.read_text())]
            self._lots = [random.Random(one.seed) for one in self._injections]
            self._seen = [0] * len(self._injections)


def install() -> None:
    """Let this process act as its environment says."""
    if not (file := os.environ.get(VARIABLE)):
        return
    injector, write = Injector(Path(file)), logging.Logger.handle

    def handle(logger: logging.Logger, record: logging.LogRecord) -> None:
        write(logger, record)
        injector.heard(record)

    logging.Logger.handle = handle  # type: ignore[method-assign]


def fits(one: Injection, record: logging.LogRecord) -> bool:
    fields = getattr(record, "fields", {})
    same = all(str(fields.get(name)) == value for name, value in one.fields.items())
    return one.event in ("", getattr(record, "event", "")) and same


def act(one: Injection) -> None:
    match one.action:
        case "slow":
            time.sleep(one.seconds)
        case "fail":
            raise OSError(one.errno, os.strerror(one.errno))
        case "kill":
            os.kill(victim(one.child), signal.SIGKILL)
        case "stop":
            pid = victim(one.child)
            if one.seconds:
                wake = f"sleep {one.seconds}; kill -CONT {pid}"
                subprocess.Popen(["sh", "-c", wake], start_new_session=True)
            os.kill(pid, signal.SIGSTOP)
        case "clock":
            time.time = lambda: WALL() + one.seconds
        case other:
            raise ValueError(f"{other!r} is no action")


def victim(child: str) -> int:
    """This process, or the one of its children that is meant."""
    if not child:
        return os.getpid()
    import psutil

    named = (each for each in psutil.Process().children() if child in " ".join(each.cmdline()))
    return next(named).pid
