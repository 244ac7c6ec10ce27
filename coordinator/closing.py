"""After the last round: what is still pending vests, and everybody gets a certified tree head.

1. The head with the last agreed state is cosigned, and a ``witnessed`` entry says so.
2. ``closing_s`` seconds after the last state, and when the audits that nodes owe are done,
   ``run_closed``: what is not in doubt vests.
3. If disputes are open, or an auditor's reject, a second ``run_closed`` after as long again, and at
   least a minute, ends them: nobody has ruled.

The ledger says how far this is, so a coordinator that was started again goes on where it was. With
a short ``closing_s`` nodes are kept until the ledger is closed and its head is cosigned, so that
every home ends with a certified head over the whole ledger, by which all but the last record is
final. Otherwise they may go at once; who wants the rest later reads it from the coordinator.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable

from artel.coordinator.resuming import NoEffect
from artel.coordinator.sequencer import Late
from artel.coordinator.service import Coordinator
from artel.ledger import entries
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.store import finality
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.protocol.dsse import Envelope
from artel.protocol.events import emit
from artel.protocol.tasks import within

log = logging.getLogger("artel.coordinator")

SHORT_S = 10.0
"""Up to this ``closing_s`` nodes wait for the end."""
AT_LEAST_S = 60.0
"""Until the second closing, however short the first wait was."""
PATIENCE_S = 5.0
"""How long cosignatures of the nodes that are still here are waited for."""
AUDITS_S = 120.0
"""How long nodes have for the audits that they still owe."""
CHARGES_S = 120.0
"""How long a jury is waited for that decides on a state."""
TICK_S = 0.25


class Closing:
    """Closes one run's accounts; :meth:`run` ends when nothing is left to be closed.

    :param release: awaited when ``nodes_may_go`` has become true
    :param at_least: seconds until the second closing; see :data:`AT_LEAST_S`
    :param patience: seconds that witnesses are waited for each time
    """

    def __init__(
        self,
        coordinator: Coordinator,
        release: Callable[[], Awaitable[None]],
        *,
        at_least: float = AT_LEAST_S,
        patience: float = PATIENCE_S,
    ) -> None:
        self._core, self._release = coordinator, release
        self._at_least, self._patience = at_least, patience
        self.nodes_may_go = False

    async def run(self) -> None:
        """Wait for the end of the rounds, then close.

        :raises ArtelError: an entry could not be made durable
        """
        core = self._core
        closing_s = core.manifest.config.ownership.closing_s
        keep = closing_s <= SHORT_S
        while True:
            async with core.changed:
                await core.changed.wait_for(lambda: core.state.round >= core.rules.total)
            due = core.clock() + closing_s - self._elapsed()
            if core.ledger.state.closed:
                break
            await self._witness()
            await self._audited()
            if not keep:
                await self._let_go()
            await self._until(due)
            await self._settled()
            if core.state.round < core.rules.total:
                self.nodes_may_go = False  # it has gone back, or was extended
                await self._release()
                continue
            await self._close()
            await self._witness()
            break
        if keep:
            await self._cosigned()
        await self._let_go()
        if core.ledger.state.closed == 1 and core.ledger.state.pending:
            await self._until(max(due, core.clock()) + max(closing_s, self._at_least))
            if core.ledger.state.pending:
                await self._close()
                await self._witness()

    async def _settled(self) -> None:
        """Wait until no state is called wrong any more: a closed run does not go back."""
        for _ in range(int(CHARGES_S / TICK_S)):
            if not self._core.ledger.state.charges:
                return
            await asyncio.sleep(TICK_S)

    def _elapsed(self) -> float:
        """Seconds since the last state was agreed, also when that was before a restart."""
        core = self._core
        last = core.metrics.rounds.get(core.rules.total - 1)
        return max(0.0, time.time() - last.ended) if last is not None and last.ended else 0.0

    async def _until(self, due: float) -> None:
        """Wait for a time of the coordinator's clock, or until the run goes on."""
        core = self._core
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, due - core.clock())), core.changed:
                await core.changed.wait_for(lambda: core.state.round < core.rules.total)

    async def _close(self) -> None:
        core = self._core
        total, closing = core.rules.total, core.ledger.state.closed + 1

        def closed(state: FoldState) -> Envelope:
            credits = entries.credits_after(state, closing).root
            return entries.run_closed(
                core.identity, core.run, round=total, closing=closing, credits=credits
            )

        try:
            await core.record_own(Late(entries.RunClosed.KIND, closed))
        except NoEffect:
            return  # it has been said in the log; the nodes are let go all the same
        emit(log, "run.closed", disputed=len(core.ledger.state.pending))
        await core.tell()

    async def _audited(self) -> None:
        """Let the nodes that are here end the audits that they owe; for a while."""
        core = self._core
        deadline = core.clock() + AUDITS_S
        while core.clock() < deadline:
            audits = core.ledger.state.audits.values()
            if not any(draw.node in core.peers for audit in audits for draw in audit.awaited):
                return
            await asyncio.sleep(TICK_S)

    async def _witness(self) -> None:
        """Record who has cosigned the newest head, once those who are here have."""
        await self._cosigned()
        statement = self._core.witnessing.statement()
        if statement is not None:
            await self._core.ledger.append(statement)
            await self._core.tell()

    async def _cosigned(self) -> None:
        """Wait until all nodes that are here have cosigned the newest head; not for long."""
        core = self._core
        if not core.manifest.config.ledger.witnesses:
            return
        size = parse_checkpoint(core.ledger.store.latest_note).size

        async def all_have() -> None:
            while not set(core.peers) <= core.witnessing.nodes_at(size):
                core.witnessing.news.clear()
                try:
                    await within(core.witnessing.news.wait(), TICK_S)
                except TimeoutError:
                    continue  # somebody may have left

        try:
            await within(all_have(), self._patience)
        except TimeoutError:
            found = await asyncio.to_thread(finality.of_heads, core.heads, core.ledger.state)
            emit(log, "head.not_cosigned_by_all", size=size, final=found.size)

    async def _let_go(self) -> None:
        if not self.nodes_may_go:
            self.nodes_may_go = True
            await self._release()
