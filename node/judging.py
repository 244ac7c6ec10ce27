"""Agreed states that are wrong: this node says so when it computed another one, and computes what
others call wrong when its account is drawn to.

Beside the duties, and never in the way of them: the rounds go on until the jury has decided. What
is said in the ledger is first computed once more, in a child process, from the contributions
themselves: a wrong accusation costs the account its standing.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from pathlib import Path

from artel.ledger import entries
from artel.ledger.entries.anchors import anchor_of
from artel.ledger.entries.kinds.state_wrong import asked
from artel.ledger.entries.records import Charge
from artel.ledger.sync.recompute_state import fetch_inputs, root_in_child
from artel.node.session import Session
from artel.node.worker import Worker
from artel.protocol import messages
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError, CheckFailed
from artel.protocol.events import emit
from artel.protocol.net import wire

log = logging.getLogger("artel.node")

RETRY_S = 5.0
"""Until what could not be fetched is tried again."""
TRIES = 24
"""For one state, which is gone from others' disks by then."""
TELL_S = 30.0
LASTING = 8
"""States after which this node no longer keeps what it had computed otherwise."""

Recompute = Callable[[Path, int], Awaitable[str]]
"""The root that a state should have, by what lies in a home."""


class Judging:
    """Background work of one node; :meth:`run` never returns.

    :param neighbours: peer ids of other nodes
    """

    def __init__(
        self,
        session: Session,
        worker: Worker,
        neighbours: Callable[[], Iterable[str]],
        recompute: Recompute = root_in_child,
    ) -> None:
        self._session, self._worker = session, worker
        self._neighbours, self._recompute = neighbours, recompute
        self._grown = session.replica.growth()
        self._done = set[object]()  # what was said, or need not be
        self._tries = dict[object, int]()
        self._roots = dict[tuple[int, int], str]()  # by state and attempt that made it

    async def run(self) -> None:
        """Look at what the ledger says of states until cancelled."""
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(RETRY_S if self._tries else None):
                    await self._grown.wait()
            self._grown.clear()
            await self._worker.rest.over()
            await self.look()

    async def look(self) -> None:
        """Say what is to be said now."""
        doubts = self._worker.doubts
        for place in list(doubts.items()):
            if self._stands(*place) and place[0] > self._session.replica.state.round - LASTING:
                await self._once(place, partial(self._accuse, *place))
            else:
                del doubts[place[0]]
        for number, charge in list(self._session.replica.state.charges.items()):
            if self._drawn(number, charge):
                await self._once(charge.entry, partial(self._answer, number, charge))
        if not doubts and not self._session.replica.state.charges:
            self._worker.states.spare_none()
            self._roots.clear()
            self._tries.clear()

    def _stands(self, number: int, attempt: int) -> bool:
        """Whether the state that this attempt made is still one of the run."""
        anchor = anchor_of(self._session.replica.state, number)
        return anchor is not None and anchor.attempt == attempt

    def _drawn(self, number: int, known: Charge) -> bool:
        """Whether this charge still waits for an answer of this node."""
        fold, name = self._session.replica.state, self._session.account_name
        charge = fold.charges.get(number)
        if charge is None or charge.entry != known.entry or charge.proven:
            return False
        return name in asked(fold, charge) and name not in charge.said

    async def _once(self, what: object, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, unless it is done; try again later when something cannot be had now."""
        if what in self._done:
            return
        try:
            await work()
        except wire.Refused as refusal:  # decided meanwhile, or not ours to say
            emit(log, "state.not_judged", logging.WARNING, reason=refusal.message)
        except (ArtelError, OSError) as error:
            self._tries[what] = self._tries.get(what, 0) + 1
            reason = getattr(error, "message", str(error))
            emit(log, "state.not_judged", logging.WARNING, reason=reason)
            if self._tries[what] < TRIES:
                return
        self._tries.pop(what, None)
        self._done.add(what)

    async def _accuse(self, number: int, attempt: int) -> None:
        """Say that a state is wrong, if it still is when it has been computed again."""
        session = self._session
        recorded = session.replica.state.states[number]
        root = await self._computed(number, attempt, ())
        if not self._stands(number, attempt):
            return
        if root == recorded:  # this machine has computed wrongly before
            emit(log, "state.right_after_all", logging.ERROR, state=number)
            return
        emit(log, "state.wrong", logging.WARNING, state=number, recorded=recorded[:12])
        statement = entries.state_wrong(
            session.identity,
            session.run,
            state=number,
            attempt=attempt,
            recorded=recorded,
            root=root,
        )
        await self._tell(statement)

    async def _answer(self, number: int, charge: Charge) -> None:
        session = self._session
        anchor = anchor_of(session.replica.state, number)
        assert anchor is not None  # charges are of states that have one
        root = await self._computed(number, anchor.attempt, [charge.node])
        if not self._drawn(number, charge):
            return
        right = session.replica.state.states[number] == root
        emit(log, "state.checked", state=number, right=right)
        me, run = session.identity, session.run
        await self._tell(entries.jury_answer(me, run, charge=charge.entry, root=root))

    async def _tell(self, statement: Envelope) -> None:
        self._session.sealing.petitions.add(statement)
        message = messages.Accuse(run=self._session.run, statement=statement.encode())
        await self._session.link.tell(message, TELL_S)

    # --- computing --------------------------------------------------------------------------------

    async def _computed(self, number: int, attempt: int, holders: Sequence[str]) -> str:
        """The root that the state should have which this attempt made; it is computed once.

        :param holders: who has most likely what it is made of
        """
        if (number, attempt) not in self._roots:
            root = await self._compute(number, holders)
            if not self._stands(number, attempt):  # then it may be that of a later attempt
                raise CheckFailed(f"the run has gone back behind state {number}")
            self._roots[number, attempt] = root
        return self._roots[number, attempt]

    async def _compute(self, number: int, holders: Sequence[str]) -> str:
        session = self._session
        others = [*holders, *self._neighbours(), session.link.coordinator]
        where = session.host, session.blobs, session.replica.history
        await fetch_inputs(*where, number, others, session.state_bytes)
        return await self._recompute(session.home, number)
