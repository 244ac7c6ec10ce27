"""From a closed round to the next state: fetch what counts, have it combined, hold the outcome.

In a ``gather`` round the trainer combines all contributions. In a ``sharded`` round each accepted
node combines one slice of all of them for everybody and signs for it; a second node repeats it
before it signs the state. What an aggregator owes and does not give, and what somebody says is
wrong, every node computes by itself from the same inputs: the arithmetic is exact, so whoever
computes a slice gets the same bytes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field

from artel.ledger import entries
from artel.node.closed_rounds import ClosedRound
from artel.node.inputs import KIND, Inputs
from artel.node.session import Session
from artel.node.sync import States
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import Applied, Apply, ApplySlices, Combine, Command, Counted
from artel.protocol import assignment, messages
from artel.protocol.events import emit
from artel.protocol.identity import short_peer
from artel.protocol.net import delivery
from artel.protocol.net.delivery import Wanted
from artel.protocol.tasks import uninterrupted

log = logging.getLogger("artel.node")

POLL_S = 0.5
"""Between two looks at the ledger for aggregates that others still owe."""

Refresh = Callable[[], Awaitable[ClosedRound]]
"""The closed round with what the ledger has learnt of it by now."""


@dataclass
class _Known:
    """What this node knows of the slices of one attempt; survives a duty that was cancelled."""

    key: tuple[int, int]
    inputs: Inputs
    own: dict[int, str] = field(default_factory=dict)
    """Slice to the id of the aggregate that was computed here."""
    said: set[int] = field(default_factory=set)
    """Slices that this node has signed for, or has called wrong."""


class Applying:
    """Computes new states; owned by the worker, one call at a time."""

    def __init__(self, session: Session, states: States, max_blob: int) -> None:
        self._session, self._states, self._max_blob = session, states, max_blob
        self._known = _Known((-1, -1), Inputs(session))
        self._outcome = (-1, -1)  # the round and attempt that was computed last
        self._root = ""  # what that came to
        self._looked_at: frozenset[int] = frozenset()  # what was called wrong in it by then
        self.wrong: tuple[int, ...] = ()
        """Slices of the last computed round whose recorded aggregate was found wrong."""

    def looked_at(self, round: int, attempt: int) -> frozenset[int]:
        """The slices of this attempt that were called wrong when its outcome was computed."""
        return self._looked_at if self._outcome == (round, attempt) else frozenset()

    @property
    def outcome(self) -> tuple[int, int, str]:
        """The round and attempt that was computed last, and the root that it came to."""
        return *self._outcome, self._root

    def forget(self) -> None:
        """Attempts that were given up with their term have the numbers of others in the next."""
        self._known = _Known((-1, -1), Inputs(self._session))
        self._outcome, self._root = (-1, -1), ""

    def settled(self, closed: ClosedRound) -> bool:
        """Whether the last outcome is still what ``closed`` gives: nobody has objected since."""
        return closed.accused <= self.looked_at(closed.round, closed.attempt)

    async def compute(
        self, closed: ClosedRound, *, refresh: Refresh | None = None, patience: float = 0.0
    ) -> Applied:
        """Make the state after ``closed`` the current one; the one before it must be current.

        :param refresh: the round is under way: take part in aggregating and checking, and wait for
            what others aggregate, as long again as that took, ``grace_s`` at least and ``patience``
            seconds at most
        :raises Unreachable: nobody can give something that is needed
        :raises CheckFailed: what was given is not what was signed for
        """
        work = assignment.Work.of(self._session.manifest.config)
        if work.topology_of(len(closed.members)) == "gather":
            applied = await self._gather(closed)
            self._remember(closed, ())
            return applied
        if self._known.key != (closed.round, closed.attempt):
            self._known = _Known((closed.round, closed.attempt), Inputs(self._session))
        me = self._session.identity.peer_id
        first = me if me in closed.shown else closed.accepted[0]
        await self._known.inputs.open_indexes(closed, [first])
        if refresh is not None:
            began = time.monotonic()
            await self._do_my_part(closed, patience)
            took = time.monotonic() - began
            grace = self._session.config_at(closed.round).rounds.grace_s
            closed = await self._all_aggregates(closed, refresh, min(patience, max(grace, took)))
        return await self._sharded(closed)

    async def _gather(self, closed: ClosedRound) -> Applied:
        wanted, inputs = [], self._known.inputs
        for node in closed.accepted:
            body = closed.shown[node]
            most = min(body.size, self._max_blob)
            wanted.append(Wanted(body.blob, inputs.holders(closed, node), most, KIND))
        paths = await inputs.fetch(wanted)
        counted = [
            Counted(node, path, closed.weights[node])
            for node, path in zip(closed.accepted, paths, strict=True)
        ]
        changes = self._session.changes_at(closed.round)
        order = Apply(closed.round, counted, self._session.work_dir, changes)
        return await uninterrupted(self._advance(closed, order))

    async def _advance(self, closed: ClosedRound, order: Command[Applied]) -> Applied:
        """Trainer and book-keeping change together, or they would speak of different states."""
        applied = await self._session.trainer.do(order)
        self._session.blobs.adopt(applied.root, applied.state)
        self._states.become(closed.round + 1, applied.root)
        return applied

    # --- sharded ---

    async def _do_my_part(self, closed: ClosedRound, patience: float) -> None:
        """Aggregate the slices that are this node's, and show them to everybody."""
        session, done = self._session, closed.aggregates.keys() | self._known.said
        mine = [j for j in self._mine(closed, assignment.combined_by) if j not in done]
        needed = {*mine, *self._mine(closed, assignment.checked_by)} - self._known.own.keys()
        await self._known.inputs.learn(closed, needed)
        for number in mine:
            blob = await self._aggregate(closed, number)
            size, office = session.blobs.size_of(blob) or 0, session.link.coordinator
            await delivery.push_all(session.host, session.blobs, office, [blob], kind="slice")
            statement = entries.aggregate(
                session.identity,
                session.run,
                round=closed.round,
                attempt=closed.attempt,
                slice=number,
                slices=self._known.inputs.count,
                blob=blob,
                size=size,
            )
            await self._tell(messages.Aggregated, statement.encode(), patience)
            self._known.said.add(number)
        for number in self._mine(closed, assignment.checked_by):
            await self._aggregate(closed, number)

    def _mine(self, closed: ClosedRound, of: Callable[..., range]) -> range:
        """The slices that this node combines, or that it repeats before it signs."""
        me = self._session.identity.peer_id
        mine = me in closed.weights
        return of(closed.accepted, closed.round, self._known.inputs.count, me) if mine else range(0)

    async def _all_aggregates(
        self, closed: ClosedRound, refresh: Refresh, patience: float
    ) -> ClosedRound:
        """Wait for what others aggregate; say what is wrong with it."""
        deadline = time.monotonic() + patience
        # Once all are recorded a directive says so, and begins this anew.
        pause = max(POLL_S, len(closed.members) / messages.BEATS_S)
        while True:
            closed = await refresh()
            await self._accuse(closed, patience)
            missing = self._known.inputs.count - len(closed.aggregates)
            if not missing:
                return await refresh() if self._known.said else closed
            if time.monotonic() >= deadline:
                emit(log, "slices.missing", logging.WARNING, round=closed.round, slices=missing)
                return closed
            await asyncio.sleep(min(pause, max(0.0, deadline - time.monotonic())))

    async def _accuse(self, closed: ClosedRound, patience: float) -> None:
        """Say of a recorded aggregate that this node came to another one."""
        for number in self._mine(closed, assignment.checked_by):
            made, mine = closed.aggregates.get(number), self._known.own.get(number)
            if made is None or mine is None or made.blob == mine or number in self._known.said:
                continue
            emit(log, "slice.wrong", logging.WARNING, slice=number, node=short_peer(made.node))
            statement = entries.slice_wrong(
                self._session.identity,
                self._session.run,
                round=closed.round,
                attempt=closed.attempt,
                slice=number,
                blob=mine,
            )
            await self._tell(messages.Accuse, statement.encode(), patience)
            self._known.said.add(number)

    async def _sharded(self, closed: ClosedRound) -> Applied:
        """Fetch the aggregates, compute those that are missing or in doubt, take the outer step."""
        inputs = self._known.inputs
        count = inputs.count
        doubtful = {j for j in range(count) if j in closed.accused or j not in closed.aggregates}
        await inputs.learn(closed, doubtful - self._known.own.keys())
        for number in sorted(doubtful):
            await self._aggregate(closed, number)
        use = {j: made.blob for j, made in closed.aggregates.items() if j not in doubtful}
        wanted = [
            Wanted(
                use[j],
                inputs.holders(closed, closed.aggregates[j].node),
                self._max_blob,
                "slice",
            )
            for j in sorted(use)
        ]
        fetched = await inputs.fetch(wanted)
        paths = dict(zip(sorted(use), fetched, strict=True))
        for number in doubtful:
            path = self._session.blobs.path(self._known.own[number])
            assert path is not None
            paths[number] = path
        order = ApplySlices(
            round=closed.round,
            slices=[paths[number] for number in range(count)],
            nodes=closed.accepted,
            out=self._session.work_dir,
            count=len(closed.members),
            changes=self._session.changes_at(closed.round),
        )
        applied = await uninterrupted(self._advance(closed, order))
        wrong = (
            j
            for j in sorted(closed.accused)
            if j in closed.aggregates and closed.aggregates[j].blob != self._known.own[j]
        )
        self._remember(closed, tuple(wrong))
        return applied

    def _remember(self, closed: ClosedRound, wrong: tuple[int, ...]) -> None:
        self.wrong = wrong
        self._outcome, self._looked_at = (closed.round, closed.attempt), closed.accused
        self._root = self._states.root

    async def _aggregate(self, closed: ClosedRound, number: int) -> str:
        """Compute a slice from its inputs; returns the id of its blob, which is in the store."""
        session, known = self._session, self._known.own.get(number)
        sound = session.blobs.sound
        if known is not None and await asyncio.to_thread(sound, known) is not None:
            return known
        inputs = self._known.inputs
        await inputs.learn(closed, [number])
        paths = await inputs.slices(closed, number)
        counted = [
            Counted(node, path, closed.weights[node])
            for node, path in zip(closed.accepted, paths, strict=True)
        ]
        order = Combine(closed.round, number, len(closed.members), counted, session.work_dir)
        try:
            made = await session.trainer.do(order)
        except TrainerError as error:
            if error.code == "bad_blob" and error.node and session.holders:
                if await inputs.doubt(closed, [error.node]):
                    return await self._aggregate(closed, number)
                await inputs.say_lacking(closed, number, error.node)
            raise
        blob = await asyncio.to_thread(session.blobs.put_file, made)
        session.blobs.label("slice", blob)
        self._known.own[number] = blob
        return blob

    async def _tell(
        self, kind: type[messages.Aggregated | messages.Accuse], statement: bytes, patience: float
    ) -> None:
        message = kind(run=self._session.run, statement=statement)
        await self._session.link.tell(message, max(patience, 5.0))
