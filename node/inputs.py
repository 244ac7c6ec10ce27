"""What the accepted nodes of an attempt have contributed, got from whoever may give it.

A contribution has an index that names each of its slices by its hash. Whoever needs a few slices
gets those items of the index, with proofs; whoever needs many, or was told something wrong, the
index. What does not come in time, and what is not what its index says, the coordinator is asked
for: it gets it, or strikes who keeps it back.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from artel.node.closed_rounds import ClosedRound
from artel.node.session import Session
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
from artel.protocol.tasks import together

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

Items = dict[tuple[str, int], IndexItem]


class Inputs:
    """Those of one attempt; what is known of them survives a duty that was cancelled."""

    def __init__(self, session: Session) -> None:
        self._session = session
        self._indexes: dict[str, list[IndexItem]] = {}
        """Node to what its index says of each slice; of one node at least, and of all whose items
        were not had, not right, or no fewer bytes."""
        self._items: Items = {}
        """The same of nodes and slices whose index was not asked for; what it names was here, and
        has these numbers."""
        self.waited = 0.0
        """Seconds that items and what they name have taken."""
        self._lacked = 0.0
        """Seconds in which slices did not come that the coordinator had to be asked for."""

    @property
    def count(self) -> int:
        """Slices of the attempt."""
        return len(next(iter(self._indexes.values())))

    async def open_indexes(self, closed: ClosedRound, nodes: Sequence[str]) -> None:
        """Learn what the contributions of these nodes consist of."""
        indexes, shown, most = self._indexes, closed.shown, pseudogradient.MAX_INDEX_BYTES
        nodes = [node for node in nodes if node not in indexes]
        wanted = [Wanted(shown[n].blob, self._keepers(closed, n), most, KIND) for n in nodes]
        for node, path in zip(nodes, await self.fetch(wanted), strict=True):
            data = await asyncio.to_thread(path.read_bytes)
            body = shown[node]
            indexes[node] = pseudogradient.open_index(
                data, round=closed.round, base=body.base, payload=body.payload
            )
        if len(set(map(len, indexes.values()))) != 1:
            raise CheckFailed("the contributions of a sharded round have different slices")

    async def learn(self, closed: ClosedRound, numbers: Iterable[int]) -> None:
        """Learn what everybody has contributed to slices that are to be computed here.

        By items of indexes where these are fewer bytes; but without ``exchange.holders`` only maker
        and coordinator would keep an index that nobody fetches.
        """
        session, wanted = self._session, sorted(set(numbers))

        def unknown() -> list[str]:
            nodes = (node for node in closed.accepted if node not in self._indexes)
            return [n for n in nodes if any((n, number) not in self._items for number in wanted)]

        here = [n for n in unknown() if session.blobs.has(closed.shown[n].blob)]
        await self.open_indexes(closed, here)
        if session.holders and index_items.worth(len(wanted), self.count):
            asked = {
                n: Listed(closed.shown[n].blob, closed.shown[n].payload, self._keepers(closed, n))
                for n in unknown()
            }
            await session.link.locate({peer for one in asked.values() for peer in one.holders})
            like = next(iter(self._indexes.values()))
            with self._timed() as seconds:
                items = await index_items.ask(session.host, asked, wanted, like, seconds)
            self._items |= await self._tried(closed, items, like)
        await self.open_indexes(closed, unknown())

    async def _tried(self, closed: ClosedRound, items: Items, like: Sequence[IndexItem]) -> Items:
        """Those of the items that are right. Nobody is to blame for what an item says: so all who
        name what they then keep back take no more time together than one does."""
        among = {number: self._fetching(closed, number) for number in {j for _, j in items}}
        wanted = [
            Wanted(item.blob, self.holders(closed, node, among[number]), item.size, KIND)
            for (node, number), item in items.items()
        ]
        with self._timed() as seconds:
            await self._fetch_some(wanted, seconds)
        return await asyncio.to_thread(index_items.right, self._session.blobs, items, like)

    @contextlib.contextmanager
    def _timed(self) -> Iterator[float]:
        """The seconds that the next step with items may take."""
        began = time.monotonic()
        try:
            yield (self._session.rounds.settle_s * HINTED - self.waited) / 2
        finally:
            self.waited += time.monotonic() - began

    def _keepers(self, closed: ClosedRound, node: str) -> list[str]:
        """Who may give the index of a contribution."""
        among = self._fetching(closed, closed.committed.index(node))
        return self.holders(closed, node, among)

    def _item(self, node: str, number: int) -> IndexItem:
        """What a node has contributed to a slice."""
        return self._indexes[node][number] if node in self._indexes else self._items[node, number]

    async def slices(self, closed: ClosedRound, number: int) -> list[Path]:
        """What each accepted node has contributed to a slice, in their order.

        :raises Refused: something is not to be had, and the attempt is over
        """
        session = self._session
        others = self._fetching(closed, number)
        items = {node: self._item(node, number) for node in closed.accepted}
        wanted = {
            node: Wanted(item.blob, self.holders(closed, node, others), item.size, KIND)
            for node, item in items.items()
        }
        patience = math.inf
        if session.holders:
            rules, began = session.rounds, time.monotonic()
            # All together: who gives a slice to the coordinator alone costs others one wait.
            patience = max(MORE_S, max(LEAST_S, rules.settle_s * KEPT_BACK) - self._lacked)
            await self._fetch_some([*wanted.values()], patience=patience)
            lacking = [node for node, one in wanted.items() if not session.blobs.has(one.blob)]
            self._lacked += (time.monotonic() - began) * bool(lacking)
            if await self.doubt(closed, lacking):
                return await self.slices(closed, number)
            await together(self.say_lacking(closed, number, node) for node in lacking)
        paths = await self.fetch([*wanted.values()], patience)
        for node, path in zip(wanted, paths, strict=True) if session.holders else ():
            data = await asyncio.to_thread(path.read_bytes)
            known_by = pseudogradient.payload_digest(data[pseudogradient.HEADER_BYTES :])
            if known_by != items[node].payload:
                await self.say_lacking(closed, number, node)
        return paths

    async def doubt(self, closed: ClosedRound, nodes: Iterable[str]) -> bool:
        """Something of these nodes is not had or not right: look at their indexes before anybody is
        blamed for that. False when these are known already."""
        hinted = [node for node in nodes if node not in self._indexes]
        await self.open_indexes(closed, hinted)
        return bool(hinted)

    async def say_lacking(self, closed: ClosedRound, number: int, node: str) -> None:
        """Have the coordinator get what a node owes, or strike it for that.

        :raises Refused: the coordinator cannot get it either, and the attempt is over
        """
        emit(log, "slice.lacking", logging.WARNING, slice=number, node=short_peer(node))
        message = messages.Lacks(
            run=self._session.run,
            round=closed.round,
            attempt=closed.attempt,
            node=node,
            slice=number,
        )
        await self._session.link.ask(message, LACKING_S)

    async def fetch(self, wanted: Sequence[Wanted], patience: float = math.inf) -> list[Path]:
        """The files of all of it, from whoever has it.

        :param patience: for each of them, as of :class:`protocol.net.swarm.Swarm`
        :raises Unreachable: nobody gives something of it
        """
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

    def holders(
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
