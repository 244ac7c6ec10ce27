"""A coordinator of a node's own, for the case that no coordinator of the run is left.

Members then choose among the nodes with the most standing, one after the other. Whose turn it may
be starts a coordinator that stands by (``artel coordinator standby --node-key``) as a child process
with a home of its own, and the key that the node's registration names. It takes over when a quorum
has sealed the term before, and ends with the node.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import re
import time
from collections.abc import Sequence
from pathlib import Path

from artel.ledger.store.keyfiles import NODE_KEY
from artel.node.link import Link
from artel.protocol import tether
from artel.protocol.errors import DecodeError
from artel.protocol.events import emit
from artel.protocol.invite import MAX_PEERS, Invite
from artel.protocol.net.host import Host, peer_of
from artel.protocol.tasks import end, within

log = logging.getLogger("artel.node")

FOLDER = "coordinator"
LOG_FILE = "coordinator.log"
AGAIN_S = 10.0
"""Between two starts of one that ends by itself."""
STOP_S = 20.0
MAX_LINE = 16 << 10


class Elected:
    """The coordinator that a node starts; the event loop owns it.

    :param home: of the node; that of the coordinator lies in it
    :param invite: with which the node came
    :param listen: where the node listens; the coordinator does so at the same hosts, on any port
    """

    def __init__(
        self, home: Path, host: Host, link: Link, invite: Invite, listen: Sequence[str]
    ) -> None:
        self._home, self._host, self._link, self._invite = home, host, link, invite
        self._listen = [re.sub("/(tcp|udp)/[0-9]+", r"/\1/0", address) for address in listen]
        self._task: asyncio.Task[None] | None = None
        self._started = -AGAIN_S

    @property
    def key(self) -> str:
        """Its key (hex)."""
        return self._host.identity.elected.key

    @property
    def runs(self) -> bool:
        """Whether it was started, and has not ended."""
        return self._task is not None and not self._task.done()

    async def keep(self, wanted: bool) -> None:
        """Let it run, or not."""
        if not wanted:
            await self.end()
            return
        if not self.runs and time.monotonic() - self._started >= AGAIN_S:
            self._started = time.monotonic()
            self._task = asyncio.create_task(self._run())

    async def hand_over(self) -> None:
        """Have it end its term on purpose; returns when another one leads, or why none can."""
        process = await asyncio.create_subprocess_exec(
            *tether.command("coordinator", "handover", "--home", str(self._home / FOLDER)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=tether.environment(),
            limit=MAX_LINE,
        )
        try:
            assert process.stderr is not None
            said = await process.stderr.read(MAX_LINE)
            code = await process.wait()
            words = said.decode("utf-8", "replace").strip()
            emit(log, "elected.handed_over", logging.WARNING, code=code, words=words)
        finally:
            await _stop(process)

    async def end(self) -> None:
        """End it, if it runs."""
        if self._task is not None:
            await end(self._task)
            self._task = None

    async def _run(self) -> None:
        home = self._home / FOLDER
        identity = self._host.identity.elected
        own = await self._host.addresses()
        peers = tuple(dict.fromkeys([*own[: MAX_PEERS // 2], *self._invite.peers]))[:MAX_PEERS]
        command = tether.command(
            *("coordinator", "standby", Invite(self._invite.run, peers).encode()),
            *("--home", str(home), "--http", "127.0.0.1:0", "--json"),
            *("--node-key", str(self._home / NODE_KEY)),
            *(word for address in self._listen for word in ("--listen", address)),
        )
        emit(log, "elected.started", logging.WARNING, coordinator=identity.peer_id)
        with (self._home / LOG_FILE).open("ab") as errors:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=errors,
                env=tether.environment(),
                start_new_session=True,
                limit=MAX_LINE,
            )
        try:
            assert process.stdout is not None
            with contextlib.suppress(ValueError, KeyError, TypeError, DecodeError):
                ready = json.loads(await process.stdout.readline())
                self._host.remember(identity.peer_id, _addresses(ready["invite"], identity.peer_id))
                self._link.near = identity.peer_id
            while await process.stdout.read(MAX_LINE):
                pass
            code = await process.wait()
            emit(log, "elected.ended", logging.WARNING, how=tether.ending(code))
        finally:
            self._link.near = ""
            await _stop(process)


def _addresses(invite: str, peer: str) -> list[str]:
    return [address for address in Invite.decode(invite).peers if peer_of(address) == peer]


async def _stop(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    with contextlib.suppress(ProcessLookupError):
        process.terminate()
    try:
        await within(process.wait(), STOP_S)
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 9)
        await process.wait()
