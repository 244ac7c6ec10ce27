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
from artel.ledger.entries.fold_state import Charge
from artel.ledger.entries.kinds.state_wrong import asked
from artel.node.closed_rounds import ClosedRound, agreed_round
from artel.node.recompute_state import root_in_child
from artel.node.session import Session
from artel.node.worker import Worker
from artel.protocol import assignment, messages
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError
from artel.protocol.events import emit
from artel.protocol.exchange import pseudogradient
from artel.protocol.net import delivery, wire
from artel.protocol.net.delivery import Wanted

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
            await self.look()

    async def look(self) -> None:
        """Say what is to be said now."""
        fold, doubts = self._session.replica.state, self._worker.doubts
        for number, attempt in list(doubts.items()):
            anchor = anchor_of(fold, number)
            gone = anchor is None or anchor.attempt != attempt
            if gone or number <= fold.round - LASTING:
                del doubts[number]
            else:
                await self._once((number, attempt), partial(self._accuse, number, attempt))
        for number, charge in list(fold.charges.items()):
            if self._drawn(charge):
                await self._once(charge.entry, partial(self._answer, number, charge))
        if not doubts and not self._session.replica.state.charges:
            self._worker.states.spare_none()
            self._roots.clear()

    def _drawn(self, charge: Charge) -> bool:
        fold, name = self._session.replica.state, self._session.account_name
        drawn = not charge.proven and name in asked(fold, charge)
        return drawn and name not in charge.said

    async def _once(self, what: object, work: Callable[[], Awaitable[None]]) -> None:
        """Do it, unless it is done; try again later when something cannot be had now."""
        if what in self._done:
            return
        try:
            await work()
        except wire.Refused as refusal:  # decided meanwhile, or not ours to say
            emit(log, "state.not_judged", logging.WARNING, reason=refusal.message)
        except ArtelError as error:
            self._tries[what] = self._tries.get(what, 0) + 1
            emit(log, "state.not_judged", logging.WARNING, reason=error.message)
            if self._tries[what] < TRIES:
                return
        self._tries.pop(what, None)
        self._done.add(what)

    async def _accuse(self, number: int, attempt: int) -> None:
        """Say that a state is wrong, if it still is when it has been computed again."""
        session, recorded = self._session, self._session.replica.state.states[number]
        root = await self._computed(number, ())
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
        root = await self._computed(number, [charge.node])
        right = session.replica.state.states[number : number + 1] == [root]
        emit(log, "state.checked", state=number, right=right)
        me, run = session.identity, session.run
        await self._tell(entries.jury_answer(me, run, charge=charge.entry, root=root))

    async def _tell(self, statement: Envelope) -> None:
        message = messages.Accuse(run=self._session.run, statement=statement.encode())
        await self._session.link.tell(message, TELL_S)

    # --- computing --------------------------------------------------------------------------------

    async def _computed(self, number: int, holders: Sequence[str]) -> str:
        """The root that the state should have; it is computed once.

        :param holders: who has most likely what it is made of
        """
        anchor = anchor_of(self._session.replica.state, number)
        place = (number, anchor.attempt if anchor is not None else -1)
        if place not in self._roots:
            self._roots[place] = await self._compute(number, holders)
        return self._roots[place]

    async def _compute(self, number: int, holders: Sequence[str]) -> str:
        session = self._session
        history = session.replica.history
        closed = await asyncio.to_thread(agreed_round, history, number - 1)
        base = session.replica.state.states[number - 1]
        me, coordinator = session.identity.peer_id, session.link.coordinator
        named = dict.fromkeys([*holders, *self._neighbours(), *closed.members, coordinator])
        others = [peer for peer in named if peer != me]
        store = session.blobs
        await delivery.fetch(
            session.host, store, Wanted(base, others, session.state_bytes, "state")
        )
        store.label("state", base)
        await self._contributions(closed, others)
        return await self._recompute(session.home, number)

    async def _contributions(self, closed: ClosedRound, others: Sequence[str]) -> None:
        """Have the blobs of a round in the store, whatever the slices come to."""
        session, bodies = self._session, closed.shown.values()
        wanted = [Wanted(body.blob, others, body.size, "contribution") for body in bodies]
        paths = await delivery.fetch_all(session.host, session.blobs, wanted)
        work = assignment.Work.of(session.manifest.config)
        if work.topology_of(len(closed.members)) == "gather":
            return
        for body, path in zip(bodies, paths, strict=True):
            data = await asyncio.to_thread(path.read_bytes)
            listed = pseudogradient.open_index(data, round=body.round, base=body.base)
            parts = [Wanted(blob, others, size, "contribution") for blob, size in listed]
            await delivery.fetch_all(session.host, session.blobs, parts)
