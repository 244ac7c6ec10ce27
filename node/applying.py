"""From a closed round to the next state: fetch what counts, have it combined, hold the outcome.

In a ``gather`` round the trainer combines all contributions. In a ``sharded`` round each accepted
node combines one slice of all of them for everybody and signs for it; a second node repeats it
before it signs the state. What an aggregator owes and does not give, and what somebody says is
wrong, every node computes by itself from the same inputs: the arithmetic is exact, so whoever
computes a slice gets the same bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from artel.ledger import entries
from artel.node.closed_rounds import ClosedRound
from artel.node.session import Session
from artel.node.sync import States
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import Applied, Apply, ApplySlices, Combine, Command, Counted
from artel.protocol import assignment, index_items, messages
from artel.protocol.errors import CheckFailed
from artel.protocol.events import emit
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.pseudogradient import IndexItem
from artel.protocol.identity import short_peer
from artel.protocol.index_items import Listed
from artel.protocol.messages import Kind
from artel.protocol.net import delivery
from artel.protocol.net.delivery import Wanted
from artel.protocol.tasks import together, uninterrupted

log = logging.getLogger("artel.node")

KIND: Kind = "contribution"
HOLDERS = 12
"""Members that are named for a piece of content, beside its maker and the coordinator."""
HINTED = 1 / 4
"""Part of ``settle_s`` that items and what they name may take all together, each time half of what
is left of it. What is not here then, whole indexes have to show."""
KEPT_BACK = 1 / 8
"""Part of ``settle_s`` after which a slice of which little comes counts as lacking; three times as
much at the most. The coordinator then looks for half as long."""
LEAST_S, MORE_S = 5.0, 1.0
"""However short that is, and for each slice when all that time is over."""
LACKING_S = 90.0
"""Until the coordinator says whether it has got what this node lacks."""
POLL_S = 0.5
"""Between two looks at the ledger for aggregates that others still owe."""

Items = dict[tuple[str, int], IndexItem]
Refresh = Callable[[], Awaitable[ClosedRound]]
"""The closed round with what the ledger has learnt of it by now."""


@dataclass
class _Known:
    """What this node knows of the slices of one attempt; survives a duty that was cancelled."""

    key: tuple[int, int]
    indexes: dict[str, list[IndexItem]] = field(default_factory=dict)
    """Node to what its index says of each slice; of one node at least, and of all whose items were
    not had, not right, or no fewer bytes."""
    items: Items = field(default_factory=dict)
    """The same of nodes and slices whose index was not asked for; what it names was here, and has
    these numbers."""
    waited: float = 0.0
    """Seconds that items and what they name have taken."""
    lacked: float = 0.0
    """Seconds in which slices did not come that the coordinator had to be asked for."""
    own: dict[int, str] = field(default_factory=dict)
    """Slice to the id of the aggregate that was computed here."""
    said: set[int] = field(default_factory=set)
    """Slices that this node has signed for, or has called wrong."""

    def item(self, node: str, number: int) -> IndexItem:
        """What a node has contributed to a slice."""
        return self.indexes[node][number] if node in self.indexes else self.items[node, number]


class Applying:
    """Computes new states; owned by the worker, one call at a time."""

    def __init__(self, session: Session, states: States, max_blob: int) -> None:
        self._session, self._states, self._max_blob = session, states, max_blob
        self._known = _Known((-1, -1))
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
        self._known, self._outcome, self._root = _Known((-1, -1)), (-1, -1), ""

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
            self._known = _Known((closed.round, closed.attempt))
        me = self._session.identity.peer_id
        await self._open_indexes(closed, [me if me in closed.shown else closed.accepted[0]])
        if refresh is not None:
            began = time.monotonic()
            await self._do_my_part(closed, patience)
            took = time.monotonic() - began
            grace = self._session.manifest.config.rounds.grace_s
            closed = await self._all_aggregates(closed, refresh, min(patience, max(grace, took)))
        return await self._sharded(closed)

    async def _gather(self, closed: ClosedRound) -> Applied:
        wanted = []
        for node in closed.accepted:
            body = closed.shown[node]
            most = min(body.size, self._max_blob)
            wanted.append(Wanted(body.blob, self._holders(closed, node), most, KIND))
        paths = await self._fetch(wanted)
        counted = [
            Counted(node, path, closed.weights[node])
            for node, path in zip(closed.accepted, paths, strict=True)
        ]
        order = Apply(closed.round, counted, self._session.work_dir)
        return await uninterrupted(self._advance(closed, order))

    async def _advance(self, closed: ClosedRound, order: Command[Applied]) -> Applied:
        """Trainer and book-keeping change together, or they would speak of different states."""
        applied = await self._session.trainer.do(order)
        self._session.blobs.adopt(applied.root, applied.state)
        self._states.become(closed.round + 1, applied.root)
        return applied

    # --- sharded ---

    @property
    def _count(self) -> int:
        """Slices of the attempt."""
        return len(next(iter(self._known.indexes.values())))

    async def _open_indexes(self, closed: ClosedRound, nodes: Sequence[str]) -> None:
        """Learn what the contributions of these nodes consist of."""
        indexes, shown, most = self._known.indexes, closed.shown, pseudogradient.MAX_INDEX_BYTES
        nodes = [node for node in nodes if node not in indexes]
        wanted = [Wanted(shown[n].blob, self._keepers(closed, n), most, KIND) for n in nodes]
        for node, path in zip(nodes, await self._fetch(wanted), strict=True):
            data = await asyncio.to_thread(path.read_bytes)
            body = shown[node]
            indexes[node] = pseudogradient.open_index(
                data, round=closed.round, base=body.base, payload=body.payload
            )
        if len(set(map(len, indexes.values()))) != 1:
            raise CheckFailed("the contributions of a sharded round have different slices")

    async def _learn(self, closed: ClosedRound, numbers: Iterable[int]) -> None:
        """Learn what everybody has contributed to slices that are to be computed here.

        By items of indexes where these are fewer bytes; but without ``exchange.holders`` only maker
        and coordinator would keep an index that nobody fetches.
        """
        session, known = self._session, self._known
        wanted = sorted(set(numbers) - known.own.keys())

        def unknown() -> list[str]:
            nodes = (node for node in closed.accepted if node not in known.indexes)
            return [n for n in nodes if any((n, number) not in known.items for number in wanted)]

        here = [n for n in unknown() if session.blobs.has(closed.shown[n].blob)]
        await self._open_indexes(closed, here)
        if session.holders and index_items.worth(len(wanted), self._count):
            asked = {
                n: Listed(closed.shown[n].blob, closed.shown[n].payload, self._keepers(closed, n))
                for n in unknown()
            }
            await session.link.locate({peer for one in asked.values() for peer in one.holders})
            like = next(iter(known.indexes.values()))
            with self._timed() as seconds:
                items = await index_items.ask(session.host, asked, wanted, like, seconds)
            known.items |= await self._tried(closed, items, like)
        await self._open_indexes(closed, unknown())

    async def _tried(self, closed: ClosedRound, items: Items, like: Sequence[IndexItem]) -> Items:
        """Those of the items that are right. Nobody is to blame for what an item says: so all who
        name what they then keep back take no more time together than one does."""
        among = {number: self._fetching(closed, number) for number in {j for _, j in items}}
        wanted = [
            Wanted(item.blob, self._holders(closed, node, among[number]), item.size, KIND)
            for (node, number), item in items.items()
        ]
        with self._timed() as seconds:
            await self._fetch_some(wanted, seconds)
        return await asyncio.to_thread(index_items.right, self._session.blobs, items, like)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[float]:
        """The seconds that the next step with items may take."""
        known, began = self._known, time.monotonic()
        try:
            yield (self._session.manifest.config.rounds.settle_s * HINTED - known.waited) / 2
        finally:
            known.waited += time.monotonic() - began

    def _keepers(self, closed: ClosedRound, node: str) -> list[str]:
        """Who may give the index of a contribution."""
        among = self._fetching(closed, closed.committed.index(node))
        return self._holders(closed, node, among)

    async def _do_my_part(self, closed: ClosedRound, patience: float) -> None:
        """Aggregate the slices that are this node's, and show them to everybody."""
        session, done = self._session, closed.aggregates.keys() | self._known.said
        mine = [j for j in self._mine(closed, assignment.combined_by) if j not in done]
        await self._learn(closed, [*mine, *self._mine(closed, assignment.checked_by)])
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
                slices=self._count,
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
        return of(closed.accepted, closed.round, self._count, me) if mine else range(0)

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
            missing = self._count - len(closed.aggregates)
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
        count = self._count
        doubtful = {j for j in range(count) if j in closed.accused or j not in closed.aggregates}
        await self._learn(closed, doubtful)
        for number in sorted(doubtful):
            await self._aggregate(closed, number)
        use = {j: made.blob for j, made in closed.aggregates.items() if j not in doubtful}
        wanted = [
            Wanted(
                use[j], self._holders(closed, closed.aggregates[j].node), self._max_blob, "slice"
            )
            for j in sorted(use)
        ]
        fetched = await self._fetch(wanted)
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
        if known is not None and session.blobs.has(known):
            return known
        await self._learn(closed, [number])
        paths = await self._inputs(closed, number)
        counted = [
            Counted(node, path, closed.weights[node])
            for node, path in zip(closed.accepted, paths, strict=True)
        ]
        order = Combine(closed.round, number, len(closed.members), counted, session.work_dir)
        try:
            made = await session.trainer.do(order)
        except TrainerError as error:
            if error.code == "bad_blob" and error.node and session.holders:
                if await self._doubt(closed, [error.node]):
                    return await self._aggregate(closed, number)
                await self._say_lacking(closed, number, error.node)
            raise
        blob = await asyncio.to_thread(session.blobs.put_file, made)
        session.blobs.label("slice", blob)
        self._known.own[number] = blob
        return blob

    async def _inputs(self, closed: ClosedRound, number: int) -> list[Path]:
        """What each accepted node has contributed to a slice."""
        session, known = self._session, self._known
        others = self._fetching(closed, number)
        items = {node: known.item(node, number) for node in closed.accepted}
        wanted = {
            node: Wanted(item.blob, self._holders(closed, node, others), item.size, KIND)
            for node, item in items.items()
        }
        patience = math.inf
        if session.holders:
            rules, began = session.manifest.config.rounds, time.monotonic()
            # All together: who gives a slice to the coordinator alone costs others one wait.
            patience = max(MORE_S, max(LEAST_S, rules.settle_s * KEPT_BACK) - known.lacked)
            await self._fetch_some([*wanted.values()], patience=patience)
            lacking = [node for node, one in wanted.items() if not session.blobs.has(one.blob)]
            known.lacked += (time.monotonic() - began) * bool(lacking)
            if await self._doubt(closed, lacking):
                return await self._inputs(closed, number)
            await together(self._say_lacking(closed, number, node) for node in lacking)
        paths = await self._fetch([*wanted.values()], patience)
        for node, path in zip(wanted, paths, strict=True) if session.holders else ():
            data = await asyncio.to_thread(path.read_bytes)
            known_by = pseudogradient.payload_digest(data[pseudogradient.HEADER_BYTES :])
            if known_by != items[node].payload:
                await self._say_lacking(closed, number, node)
        return paths

    async def _doubt(self, closed: ClosedRound, nodes: Iterable[str]) -> bool:
        """Something of these nodes is not had or not right: look at their indexes before anybody is
        blamed for that. False when these are known already."""
        hinted = [node for node in nodes if node not in self._known.indexes]
        await self._open_indexes(closed, hinted)
        return bool(hinted)

    async def _say_lacking(self, closed: ClosedRound, number: int, node: str) -> None:
        """:raises Refused: the coordinator cannot get it either, and the attempt is over"""
        emit(log, "slice.lacking", logging.WARNING, slice=number, node=short_peer(node))
        message = messages.Lacks(
            run=self._session.run,
            round=closed.round,
            attempt=closed.attempt,
            node=node,
            slice=number,
        )
        await self._session.link.ask(message, LACKING_S)

    # --- what both share ---

    async def _fetch(self, wanted: Sequence[Wanted], patience: float = math.inf) -> list[Path]:
        await self._locate(wanted)
        session = self._session
        return await delivery.fetch_all(session.host, session.blobs, wanted, None, patience)

    async def _fetch_some(
        self, wanted: Sequence[Wanted], seconds: float | None = None, patience: float = math.inf
    ) -> None:
        await self._locate(wanted)
        session = self._session
        await delivery.fetch_some(session.host, session.blobs, wanted, seconds, patience)

    async def _locate(self, wanted: Sequence[Wanted]) -> None:
        here = self._session.blobs.has
        peers = {peer for one in wanted if not here(one.blob) for peer in one.holders}
        await self._session.link.locate(peers)

    def _fetching(self, closed: ClosedRound, number: int) -> list[str]:
        """Who was given a slice of each contribution; or else its aggregator and its checker, which
        fetch it: nobody else has it.

        :param number: of the slice; of an index the rank of its maker
        """
        if count := self._session.holders:
            return assignment.holders(closed.committed, closed.round, number, count)
        return assignment.holders(closed.accepted, closed.round, number, 2)

    def _holders(
        self, closed: ClosedRound, maker: str, among: Sequence[str] | None = None
    ) -> list[str]:
        """Who may give what ``maker`` made: itself, some other members (others for each
        node that asks), and last the coordinator.

        :param among: the others that may have it; None for all members
        """
        me, coordinator = self._session.identity.peer_id, self._session.link.coordinator
        others = [p for p in (closed.members if among is None else among) if p not in (maker, me)]
        if len(others) > HOLDERS:
            others = random.Random(f"{me}/{maker}").sample(others, HOLDERS)
        return [*([maker] if maker != me else []), *others, coordinator]

    async def _tell(
        self, kind: type[messages.Aggregated | messages.Accuse], statement: bytes, patience: float
    ) -> None:
        message = kind(run=self._session.run, statement=statement)
        await self._session.link.tell(message, max(patience, 5.0))
