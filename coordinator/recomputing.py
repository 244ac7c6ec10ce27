"""The coordinator's own word on a state: a child process that computes it from the contributions.

A coordinator does no arithmetic itself. As long as a run rests on it, a child of its own comes to
each state that the members sign (:mod:`.apply_worker`): with bounded memory, and it ends with its
parent. One that died is started again with the next order.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from artel.protocol import tether
from artel.protocol.errors import CheckFailed, ResourceError

CHILD = "artel.coordinator.apply_worker"
MAX_LINE_BYTES = 1 << 16


@dataclass(frozen=True)
class Order:
    """A state to compute: the round's base, what counts in it, and where to write the outcome."""

    base: str
    """File of the state that the round starts from."""
    root: str
    given: Sequence[tuple[str, int, Sequence[str]]]
    """Accepted node, its tokens, its blobs as files."""
    members: int
    """Of the attempt in a sharded round, else 0."""
    total: int
    """Rounds of the run, by the rules of that round."""
    out: str


class Recomputer:
    """Owns the child; one order at a time.

    :param home: the coordinator's, with the prepared run
    """

    def __init__(self, home: Path) -> None:
        self._home = home
        self._child: asyncio.subprocess.Process | None = None
        self._lock = asyncio.Lock()

    @property
    def running(self) -> bool:
        """Whether there is a child."""
        return self._child is not None and self._child.returncode is None

    async def start(self) -> None:
        """Have the child load what it needs, unless it runs already.

        :raises ResourceError: it cannot be started
        """
        async with self._lock:
            await self._running()

    async def compute(self, order: Order) -> str:
        """The root of the next state.

        :raises CheckFailed: it cannot be computed
        :raises ResourceError: the child cannot be started, or died
        """
        async with self._lock:
            child = await self._running()
            assert child.stdin is not None
            assert child.stdout is not None
            try:
                child.stdin.write(json.dumps(asdict(order)).encode() + b"\n")
                await child.stdin.drain()
                line = await child.stdout.readline()
            except (OSError, ValueError):
                line = b""
            except asyncio.CancelledError:
                await self._end()  # its answer would be taken for that to the next order
                raise
            if not line:
                code = await self._end()
                raise ResourceError(f"the process that computes states {tether.ending(code)}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise CheckFailed(str(answer["error"]))
        return str(answer["root"])

    async def close(self) -> None:
        """End the child, if there is one."""
        async with self._lock:
            await self._end()

    async def _running(self) -> asyncio.subprocess.Process:
        if self._child is None or not self.running:
            try:
                self._child = await asyncio.create_subprocess_exec(
                    *tether.tied(sys.executable, "-P", "-m", CHILD, str(self._home)),
                    stdin=asyncio.subprocess.PIPE,
                    stdout=asyncio.subprocess.PIPE,
                    env=tether.environment(),
                    start_new_session=True,
                    limit=MAX_LINE_BYTES,
                )
            except OSError as error:
                raise ResourceError(
                    f"cannot start the process that computes states: {error.strerror or error}",
                    "free some memory or processes",
                ) from None
        return self._child

    async def _end(self) -> int:
        child, self._child = self._child, None
        if child is None:
            return 0
        with contextlib.suppress(ProcessLookupError):
            child.kill()  # what it writes is named when it is whole
        return await child.wait()
