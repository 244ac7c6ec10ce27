"""A bound on the memory that this process may take (setrlimit(2))."""

from __future__ import annotations

import resource
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PROCESSES = Path("/proc")


@contextmanager
def at_most(more: int | None) -> Iterator[None]:
    """Let this process take at most ``more`` bytes of memory beside what it has (setrlimit(2)).

    What takes more fails as if the machine had no more. Nothing is bounded with None, and without
    /proc.
    """
    before = resource.getrlimit(resource.RLIMIT_DATA)
    here = taken()
    if here is not None and more is not None:
        wanted = [limit for limit in before if limit != resource.RLIM_INFINITY]
        resource.setrlimit(resource.RLIMIT_DATA, (min([here + more, *wanted]), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)


def taken(process: int | None = None) -> int | None:
    """Bytes of a process, else of this one, that count for RLIMIT_DATA; None where the system does
    not say."""
    with suppress(OSError, ValueError):
        status = _PROCESSES / str(process or "self") / "status"
        for line in status.read_text().splitlines():
            if line.startswith("VmData:"):
                return int(line.split()[1]) << 10
    return None
