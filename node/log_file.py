"""The log of a node as its owner reads it: the end, and what comes."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TextIO

from artel.protocol.errors import UsageError
from artel.protocol.events import LOG_PARTS

LOG_FILE = "node.log"
POLL_S = 0.5
MAX_LINE = 100_000


def last_lines(home: Path, count: int) -> list[str]:
    """The last lines of a home's log, from the parts that were set aside too.

    :raises UsageError: there is none
    """
    path = home / LOG_FILE
    if not path.exists():
        raise UsageError(f"there is no log in {home}", "name the home of a node: --home DIR")
    lines: deque[str] = deque(maxlen=count)
    parts = [path.with_name(f"{LOG_FILE}.{number}") for number in range(LOG_PARTS, 0, -1)]
    for part in (*parts, path):
        if part.exists():
            with _opened(part) as file:
                lines.extend(_lines(file))
    return list(lines)


def following(home: Path, wait: Callable[[float], None] = time.sleep) -> Iterator[str]:
    """Lines that are written from now on, without end; goes on in the next file when one is full.

    :param wait: called between two looks
    """
    path = home / LOG_FILE
    file = _opened(path)
    file.seek(0, 2)
    try:
        while True:
            before = path.exists() and path.stat().st_ino
            yield from _lines(file)
            if before and before != os.fstat(file.fileno()).st_ino:
                file.close()
                file = _opened(path)
                continue
            wait(POLL_S)
    finally:
        file.close()


def _opened(path: Path) -> TextIO:
    return path.open(encoding="utf-8", errors="replace")


def _lines(file: TextIO) -> Iterator[str]:
    """Whole lines from here on; one that is being written is left for later."""
    while True:
        at = file.tell()
        line = file.readline(MAX_LINE)
        if not line.endswith("\n") and len(line) < MAX_LINE:
            file.seek(at)
            return
        yield line.rstrip("\n")
