"""Going back: once a state is called wrong, its forerunner is kept; once that is proven, the run
goes on from the newest right state that this coordinator has or gets.

A state that nobody gives is of no use, however right it is: so what the run goes back to is fetched
first, from whoever may still have it: those who called the state wrong and the jury, who computed
it from the one before, and all others. When nobody has that one, the one before it is looked for.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from artel.coordinator.resuming import NoEffect
from artel.coordinator.service import Coordinator
from artel.ledger.entries.anchors import oldest_anchor
from artel.ledger.entries.fold_state import Charge
from artel.protocol.events import emit

log = logging.getLogger("artel.coordinator")

RETRY_S = 5.0
"""Until all are asked again when nobody has any right state."""

Copy = Callable[[str, Sequence[str]], Awaitable[bool]]
"""Gets the state with this root, from its holders or these others; says whether it is here."""


class Returning:
    """Background work for one coordinator; :meth:`run` never returns."""

    def __init__(self, coordinator: Coordinator, copy: Copy) -> None:
        self._core, self._copy = coordinator, copy
        self._asked = set[str]()  # entries that called a state wrong, and were looked after

    async def run(self) -> None:
        """Look after charges until cancelled."""
        core = self._core
        while True:
            async with core.changed:
                await core.changed.wait_for(lambda: self._proven() or self._new())
            for number, charge in self._new():
                self._asked.add(charge.entry)
                await self._have(number - 1, charge)
            for number, charge in self._proven()[:1]:
                await self._go_back(number, charge)

    def _proven(self) -> list[tuple[int, Charge]]:
        """States that were proven wrong, the oldest first."""
        charges = sorted(self._core.ledger.state.charges.items())
        return [(number, charge) for number, charge in charges if charge.proven]

    def _new(self) -> list[tuple[int, Charge]]:
        charges = self._core.ledger.state.charges.items()
        return [(n, charge) for n, charge in charges if charge.entry not in self._asked]

    async def _have(self, number: int, charge: Charge) -> bool:
        """Whether the state with this number is here, or can be had."""
        known = [charge.node, *(node for node, _ in charge.said.values())]
        others = [*known, *(peer for peer in self._core.peers if peer not in known)]
        return await self._copy(self._core.ledger.state.states[number], others)

    async def _go_back(self, wrong: int, charge: Charge) -> None:
        core = self._core
        for number in range(wrong - 1, oldest_anchor(core.ledger.state) - 1, -1):
            if await self._have(number, charge):
                try:
                    await core.go_back(charge.entry, number)
                except NoEffect:
                    continue
                return
            emit(log, "state.held_by_nobody", logging.WARNING, round=number)
        await asyncio.sleep(RETRY_S)
