"""What the owner of a running node wants: its settings carried out, and when it is to rest."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.node import preflight, settings
from artel.node.control import OwnerOrder
from artel.node.rest import Use, on_battery, why_rest
from artel.node.settings import OwnerSettings
from artel.node.trainer.throttle import Allowance
from artel.protocol.errors import UsageError
from artel.protocol.events import emit
from artel.protocol.rlimit import taken
from artel.protocol.tasks import within
from artel.protocol.units import readable

if TYPE_CHECKING:
    from artel.node.daemon import Daemon

log = logging.getLogger("artel.node")

LOOK_S = 2.0
"""Between two looks at the clock, the battery and the use of the machine."""


class Owner:
    """Speaks for the owner to one node. Owned by its event loop.

    :param leave: finishes the round, and says what that takes
    :param leave_now: ends the program
    """

    def __init__(
        self,
        home: Path,
        wishes: OwnerSettings,
        leave: Callable[[], str],
        leave_now: Callable[[], None],
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.settings = wishes
        self._home, self._leave, self._leave_now, self._now = home, leave, leave_now, now
        self._daemon: Daemon | None = None
        self._use = Use()
        self._news = asyncio.Event()

    async def meet(self, daemon: Daemon) -> None:
        """The node has joined: it obeys from now on."""
        self._daemon = daemon
        self._carry_out(self.settings)
        await self._look()

    async def obey(self, order: OwnerOrder) -> str:
        """Carry out an order from the control socket; what it says is for the owner.

        :raises ArtelError: it cannot be done; nothing has changed
        """
        emit(log, "owner.ordered", do=order.do, **settings.facts(order.settings))
        if order.do == "finish":
            return self._leave()
        if order.do == "leave":
            asyncio.get_running_loop().call_soon(self._leave_now)
            return "leaving now"
        wanted = self.settings.updated(order.settings)
        self._require(wanted)
        self._carry_out(wanted)
        await asyncio.to_thread(settings.save, self._home, wanted)
        self.settings = wanted
        await self._look()
        self._news.set()
        why = self._daemon.worker.rest.why if self._daemon else "it has not joined the run yet"
        return ", ".join(wanted.words()) + (f"; {why}" if why else "")

    async def watch(self) -> None:
        """Have the node rest and work by the clock, the battery and the use of the machine."""
        while True:
            self._news.clear()
            await self._look()
            wishes = self.settings
            by_itself = wishes.hours or wishes.idle or wishes.battery == "no"
            with contextlib.suppress(TimeoutError):
                await within(self._news.wait(), LOOK_S if by_itself else 3600.0)

    def facts(self) -> dict[str, Any]:
        """For the node's status."""
        assert self._daemon is not None
        return {
            "resting": self._daemon.worker.rest.why,
            "settings": settings.facts(self.settings),
            "limits": ", ".join(self.settings.words()),
        }

    async def _look(self) -> None:
        if self._daemon is None:
            return
        asked = self.settings, self._now(), self._use.unused, on_battery
        why = await asyncio.to_thread(why_rest, *asked)
        if why != self._daemon.worker.rest.why:
            emit(log, "owner.rest" if why else "owner.work", why=why)
            self._daemon.worker.rest.set(why)

    def _require(self, wanted: OwnerSettings) -> None:
        """Refuse what a running node could not do with.

        :raises UsageError: it is too little memory
        :raises Unfit: it is too little disk
        """
        if self._daemon is None:
            return
        session = self._daemon.session
        preflight.require_quota(session.manifest, wanted.quota_bytes)
        used = taken(session.trainer.pid) if session.trainer.pid is not None else None
        if used is not None and wanted.memory_bytes is not None and wanted.memory_bytes <= used:
            raise UsageError(
                f"the trainer has taken {readable(used)} already",
                f"give it more than --memory {used // 10**6 + 1}, or end the node and join a run "
                "with a smaller model",
            )

    def _carry_out(self, wishes: OwnerSettings) -> None:
        """Keep to these from now on.

        :raises ResourceError: what may not go from the disk is more than the quota
        """
        if self._daemon is None:
            return
        session = self._daemon.session
        session.blobs.limit(wishes.quota_bytes)
        session.host.uplink.change(wishes.up)
        session.host.downlink.change(wishes.down)
        session.trainer.limit(Allowance(wishes.cores, wishes.memory_bytes, wishes.gpu_memory))
