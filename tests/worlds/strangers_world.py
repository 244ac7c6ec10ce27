"""Strangers that hold streams, as a process of their own (``slow_strangers.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil

from places import WORLDS

ATTACKER = WORLDS / "slow_strangers.py"
OPEN_S = 600.0
"""Until each has opened a stream; beside other work that takes its time."""


@contextlib.asynccontextmanager
async def slow_strangers(
    address: str, peers: int, streams: int, protocol: str, *run: str
) -> AsyncIterator[dict[str, int]]:
    """A process with that many peer ids that holds so many streams to an address with each.

    What it yields is filled when the block ends: how many streams it opened, how many DHT calls
    were answered.

    :param run: the id of a run for which each of them makes new accounts, too
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ATTACKER), address, str(peers), str(streams), protocol, *run),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=ATTACKER.anchor,
        start_new_session=True,
    )
    weigh(child.pid, 0)
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert await asyncio.wait_for(child.stdout.readline(), OPEN_S) == b"open\n"
        done: dict[str, int] = {}
        yield done
        assert child.returncode is None
        child.stdin.close()
        done |= json.loads(await asyncio.wait_for(child.stdout.readline(), OPEN_S))
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()


def weigh(pid: int, nice: int) -> None:
    """Give a process, its children and their sessions a weight, as far as we may (sched(7): nice
    value and autogroups)."""
    process = psutil.Process(pid)
    for each in (process, *process.children(recursive=True)):
        with contextlib.suppress(psutil.Error, OSError):
            Path(f"/proc/{each.pid}/autogroup").write_text(str(nice))
            each.nice(nice)
