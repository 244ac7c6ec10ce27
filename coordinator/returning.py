"""Going back: once a state is called wrong, its forerunner is kept and it is computed here too;
once that is proven, the run goes on from the newest right state that this coordinator has or gets.

Most of a jury decide in the ledger, and they may lie. So a state that comes out here as it is
recorded, now or when it was agreed on, is not gone back behind but upheld, and the run goes on.

A state that nobody gives is of no use, however right it is: so what the run goes back to is fetched
first, from whoever may still have it: those who called the state wrong and the jury, who computed
it from the one before, and all others. When nobody has that one, the one before it is looked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Sequence

from artel.coordinator.resuming import NoEffect
from artel.coordinator.service import Coordinator
from artel.ledger import entries
from artel.ledger.entries.anchors import anchor_of, oldest_anchor
from artel.ledger.entries.records import Charge
from artel.protocol.errors import ArtelError
from artel.protocol.events import emit
from artel.protocol.net import wire

log = logging.getLogger("artel.coordinator")

RETRY_S = 5.0
"""Until all are asked again when nobody has any right state."""

COMPUTE_S = 300.0
"""In which what a state was made of has to come, and the state of that."""

Compute = Callable[[int, Sequence[str]], Awaitable[str]]
"""The root that the state with this number should have; what it takes is got from these too."""
Copy = Callable[[int, str, Sequence[str]], Awaitable[bool]]
"""Gets the state with this number and root, from its holders or these others; says whether it is
here."""


class Returning:
    """Background work for one coordinator; :meth:`run` never returns."""

    def __init__(self, coordinator: Coordinator, copy: Copy, compute: Compute) -> None:
        self._core, self._copy, self._compute = coordinator, copy, compute
        self._roots = dict[str, str]()  # entry that called a state wrong: what that came to here

    async def run(self) -> None:
        """Look after charges until cancelled."""
        core = self._core
        while True:
            async with core.changed:
                await core.changed.wait_for(lambda: self._proven() or self._new())
            for number, charge in self._new():
                self._roots[charge.entry] = ""
                if await self._have(number - 1, charge):
                    self._roots[charge.entry] = await self._come_to(number, charge)
            for number, charge in self._proven()[:1]:
                await self._go_back(number, charge)

    def _proven(self) -> list[tuple[int, Charge]]:
        """States that were proven wrong, the oldest first."""
        charges = sorted(self._core.ledger.state.charges.items())
        return [(number, charge) for number, charge in charges if charge.proven]

    def _new(self) -> list[tuple[int, Charge]]:
        charges = self._core.ledger.state.charges.items()
        new = ((n, charge) for n, charge in charges if charge.entry not in self._roots)
        return [(n, charge) for n, charge in new if charge.better < 0]

    async def _have(self, number: int, charge: Charge) -> bool:
        """Whether the state with this number is here, or can be had."""
        root = self._core.ledger.state.states[number]
        return await self._copy(number, root, self._others(charge))

    def _others(self, charge: Charge) -> list[str]:
        known = [charge.node, *(node for node, _ in charge.said.values())]
        return [name for name in dict.fromkeys([*known, *self._core.peers]) if name]

    async def _come_to(self, number: int, charge: Charge) -> str:
        """The root of the state that is called wrong; "" when it cannot be computed here."""
        try:
            async with asyncio.timeout(COMPUTE_S):
                root = await self._compute(number, self._others(charge))
        except (ArtelError, OSError) as error:  # a time-out too
            reason = getattr(error, "message", str(error)) or "it took too long"
            emit(log, "state.not_recomputed", logging.ERROR, state=number, reason=reason)
            return ""
        right = root == self._core.ledger.state.states[number]
        emit(log, "state.recomputed", logging.WARNING, state=number, root=root[:12], right=right)
        return root

    async def _go_back(self, wrong: int, charge: Charge) -> None:
        core = self._core
        if charge.better >= 0:
            await self._back_to(charge.better, charge, "training diverged")
            return
        own, recorded = self._roots.get(charge.entry, ""), core.ledger.state.states[wrong]
        made = anchor_of(core.ledger.state, wrong)
        if not own and made is not None and made.rests_on == "coordinator":
            own = recorded  # computed here when it was agreed on; its contributions are gone now
        if own == recorded:
            emit(
                log,
                "state.upheld",
                logging.ERROR,
                state=wrong,
                reason="a jury calls it wrong, and this coordinator has computed what is recorded",
                hint="see who is right: --states of artel ledger verify",
            )
            with contextlib.suppress(NoEffect):
                await core.uphold(charge.entry, own)
            return
        grounds = "computed here too" if own else "the jury's word alone"
        await self._back_to(wrong - 1, charge, grounds)

    async def _back_to(self, newest: int, charge: Charge, grounds: str) -> None:
        """To the newest state, up to this one, that somebody still gives."""
        core = self._core
        for number in range(newest, oldest_anchor(core.ledger.state) - 1, -1):
            if await self._have(number, charge):
                try:
                    await core.go_back(charge.entry, number, grounds)
                except NoEffect:
                    continue
                if core.ledger.state.stuck:
                    again = core.ledger.state.setbacks[1]
                    reason = f"training diverged {again} times in a row: its rules are at fault"
                    fix = "amend them: artel run amend"
                    emit(log, "run.stopped", logging.ERROR, reason=reason, fix=fix)
                return
            emit(log, "state.held_by_nobody", logging.WARNING, round=number)
        await asyncio.sleep(RETRY_S)


async def say_diverged(core: Coordinator) -> None:
    """Record that training diverged, once it has."""
    fold = core.ledger.state
    found = core.losses.found(fold)
    if found is None or any(number > found[1] for number in fold.charges):
        return
    number, better, losses = found
    places = {"state": number, "better": better}
    emit(log, "training.diverged", logging.ERROR, **places, nodes=len(losses))
    made = entries.diverged(
        core.identity,
        core.run,
        state=number,
        root=fold.states[number],
        better=better,
        better_root=fold.states[better],
        losses=losses,
    )
    with contextlib.suppress(wire.Refused):  # somebody called a state wrong meanwhile
        # Each signature was checked when it came.
        await core.record(entries.decode(made.encode()).checked(True))
