"""Strangers that hold streams, as a process of their own (``slow_strangers.py``)."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator

from places import WORLDS

ATTACKER = WORLDS / "slow_strangers.py"
OPEN_S = 600.0
"""Until each has opened a stream; beside other work that takes its time."""


@contextlib.asynccontextmanager
async def slow_strangers(
    address: str, peers: int, streams: int, protocol: str, *run: str
) -> AsyncIterator[None]:
    """A process with that many peer ids that holds so many streams to an address with each.

    :param run: the id of a run for which each of them makes new accounts, too
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, str(ATTACKER), address, str(peers), str(streams), protocol, *run),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        cwd=ATTACKER.anchor,
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        assert await asyncio.wait_for(child.stdout.readline(), OPEN_S) == b"open\n"
        yield
        assert child.returncode is None
    finally:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
