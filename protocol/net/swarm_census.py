"""Asking the holders of wanted content, now and then, what they have of it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from artel.protocol import messages
from artel.protocol.errors import ArtelError
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from artel.protocol.net.swarm_job import Job

EVERY_S = 1.5
TIMEOUT_S = 10.0
PEERS_AT_ONCE = 8
IDS = 64
"""Content that one request asks for."""


class Census:
    """Keeps what jobs know about their holders up to date; owned by one swarm.

    :param wake: set when there is news
    """

    def __init__(self, host: Host, wake: asyncio.Event) -> None:
        self._host, self._wake = host, wake
        self._asked_at: dict[str, float] = {}
        self._tasks: set[asyncio.Task[None]] = set()

    def ask(self, jobs: Sequence[Job], now: float) -> None:
        """Ask holders in turn, those longest unasked first."""
        wanting: dict[str, list[Job]] = {}
        for job in jobs:
            holders = job.holders()
            for peer in holders if len(holders) > 1 else []:
                if peer not in job.whole:
                    wanting.setdefault(peer, []).append(job)
        due = [peer for peer in wanting if now - self._asked_at.get(peer, -EVERY_S) >= EVERY_S]
        due.sort(key=lambda peer: self._asked_at.get(peer, -EVERY_S))
        for peer in due[: max(0, PEERS_AT_ONCE - len(self._tasks))]:
            self._asked_at[peer] = now
            task = asyncio.create_task(self._have(peer, wanting[peer][:IDS]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def close(self) -> None:
        """Ask no more."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _have(self, peer: str, jobs: Sequence[Job]) -> None:
        request = messages.GetHave(ids=[job.blob for job in jobs])
        try:
            async with (
                asyncio.timeout(TIMEOUT_S),
                self._host.open(peer, wire.CONTENT, kind="control") as stream,
            ):
                reply = await wire.ask(stream, request)
        except (ArtelError, TimeoutError):
            return  # whether it is there at all shows when it is asked for chunks
        if not isinstance(reply, messages.Have) or len(reply.held) != len(jobs):
            return
        parts = iter(reply.parts)
        for job, held in zip(jobs, reply.held, strict=True):
            job.note_have(peer, held, next(parts, b"") if held == 1 else b"")
        self._wake.set()
