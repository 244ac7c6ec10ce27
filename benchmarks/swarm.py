"""A run on this machine whose processes can be killed, interrupted and waited for one by one; for
benchmarks and tests."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from artel.coordinator.local_run import LocalRun, Status, finished
from artel.protocol.errors import Unreachable
from artel.protocol.tasks import within

PATIENCE_S = 280.0
"""A busy machine takes its time; what never comes is all that this is for."""


@dataclass
class Swarm(LocalRun):
    """A :class:`LocalRun` to experiment with."""

    coordinator_options: tuple[str, ...] = ("--release-every", "0")
    """A release would be measured, too."""

    async def start(self, nodes: int = 3) -> None:
        """Start the coordinator, and then this many nodes."""
        await self.start_coordinator()
        for _ in range(nodes):
            await self.add_node()

    def home_of(self, number: int) -> Path:
        """Home of node ``number`` (from 1)."""
        return self.folder / f"node-{number}"

    async def stop_coordinator(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the coordinator with a signal and wait until it is gone."""
        assert self.coordinator is not None
        await self._end(self.coordinator, how)

    async def kill_node(self, number: int) -> None:
        """SIGKILL to a node and to all that it started, as when its machine loses power."""
        await self._end(self.nodes[number], signal.SIGKILL)

    def interrupt_node(self, number: int) -> None:
        """One Ctrl-C: the node finishes its round and leaves by itself."""
        node = self.nodes[number]
        node.expected = True
        with contextlib.suppress(ProcessLookupError):
            node.process.send_signal(signal.SIGINT)

    async def left(self, number: int, timeout: float = PATIENCE_S) -> int:
        """Wait until a node has ended by itself; returns its exit code.

        :raises Unreachable: it still runs after ``timeout`` seconds
        """
        node = self.nodes[number]
        try:
            return await within(node.process.wait(), timeout)
        except TimeoutError:
            raise Unreachable(f"{node.name} still runs", f"see {node.log}") from None

    async def status(self) -> Status:
        """``/api/v1/status``."""
        return await self.get("/api/v1/status")

    async def wait_for(
        self, predicate: Callable[[Status], bool], why: str, timeout: float = PATIENCE_S
    ) -> Status:
        """Poll the status until ``predicate`` holds for it; returns that status.

        :param why: what is waited for, for the error
        :raises Unreachable: it does not hold after ``timeout`` seconds
        """
        began = time.monotonic()
        async for status in self.watch():
            if predicate(status):
                return status
            if time.monotonic() - began > timeout:
                seen = {key: status[key] for key in ("phase", "round", "attempt", "members")}
                raise Unreachable(
                    f"{why}: not within {timeout:.0f} s (now {seen}, {len(status['nodes'])} nodes)",
                    f"see the console.log of each process below {self.folder}",
                )
        raise AssertionError("not reached")

    async def wait_finished(self, timeout: float = PATIENCE_S) -> Status:
        """Wait until the run is finished, its last state is evaluated, and all nodes have ended."""
        status = await self.wait_for(finished, "the run is finished", timeout)
        await self.ended()
        return status
