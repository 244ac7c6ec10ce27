"""What a coordinator does beside the rounds: DHT records, copies of states, old blobs."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from artel.coordinator.closing import Closing
from artel.coordinator.peer import holders_of
from artel.coordinator.returning import Returning
from artel.coordinator.service import Coordinator
from artel.coordinator.stock import Stock
from artel.ledger import entries
from artel.ledger.entries import audits
from artel.ledger.fold.history import History
from artel.ledger.sync.recompute_state import fetch_inputs, root_in_child
from artel.protocol import assignment, members
from artel.protocol.errors import ArtelError
from artel.protocol.events import emit
from artel.protocol.exchange import pseudogradient
from artel.protocol.fingerprints import ROW_BYTES
from artel.protocol.listing import ListingBody, listed
from artel.protocol.net import dht, doors

log = logging.getLogger("artel.coordinator")

Exchanged = entries.Contribution | entries.Aggregate
"""What names blobs that a round exchanges."""
KEEP_ROUNDS = 4
"""Contributions of at least this many closed rounds stay, for nodes that are behind (for auditors
of more, :func:`ledger.entries.audits.rounds_kept`, and what is audited longer than that); of older
ones, as long as they are together fewer bytes than a state, which is what catching up takes
otherwise."""
LOOK_BACK = 2048
"""Entries before the end that a coordinator which was started again searches for old blobs."""
RETRY_S = 2.0
RELEASE_AFTER_S = 60.0
"""How long the nodes of a finished run are kept for the copy of the final state."""


class Upkeep:
    """Background work for one coordinator; :meth:`run` never returns.

    :param http: address of the page, for the run's DHT record; "" when there is none
    :param doors: by which the network of public runs is entered (:mod:`protocol.net.doors`)
    """

    def __init__(self, coordinator: Coordinator, http: str, doors: Sequence[str] = ()) -> None:
        core = self._core = coordinator
        self._http, self._doors = http, doors
        self._stock = Stock(core.host, core.blobs, core.manifest, core.run, http)
        self._blobs: dict[int, dict[str, Exchanged]] = {}  # by round
        self._closing = Closing(coordinator, self._release)
        self._copied = False  # this home has the final state, or never will

    async def run(self) -> None:
        """Announce, mirror and prune until cancelled."""
        await asyncio.to_thread(self._stock.label, self._core.ledger.state.states)
        await asyncio.to_thread(self._look_back)
        async with asyncio.TaskGroup() as group:
            group.create_task(self._announce())
            if self._is_listed:
                group.create_task(self._list())
            group.create_task(self._follow())
            group.create_task(self._closing.run())
            group.create_task(Returning(self._core, self._mirror, self._computed).run())

    async def _announce(self) -> None:
        """Keep the run, and what this coordinator holds, in the DHT."""
        core = self._core
        while True:
            await self._stock.announce(core.state.round, core.ledger.store.term)
            await asyncio.sleep(dht.RENEW_S)

    @property
    def _is_listed(self) -> bool:
        """Whether the organiser wants it, and others can see that this coordinator may say so."""
        manifest = self._core.manifest
        return manifest.config.run.public and self._core.identity.key in manifest.coordinators

    async def _list(self) -> None:
        """Keep a public run in the directory, and this host in the network that has it."""
        core, peers = self._core, list[str]()
        envelope = await asyncio.to_thread(core.ledger.store.leaf, 0)
        while True:
            if self._doors and not (peers and await core.host.join(peers, ours=False)):
                found = await asyncio.to_thread(doors.opened, self._doors)
                peers = [way for way in found.peers if not way.endswith(core.host.peer_id)]
                if not await core.host.join(peers, ours=False) and (peers or found.errors):
                    emit(log, "directory.unreachable", logging.WARNING)
            addresses = await core.host.addresses()
            if addresses and core.state.round < core.rules.total:
                record = listed(core.identity, envelope, self._body(addresses))
                await core.host.publish(dht.DIRECTORY, record)
            await asyncio.sleep(dht.RENEW_S)

    def _body(self, addresses: Sequence[str]) -> ListingBody:
        core = self._core
        losses = (known.validation for known in reversed(core.metrics.rounds.values()))
        return ListingBody(
            run=core.run,
            time=int(time.time()),
            term=core.ledger.store.term,
            round=core.state.round,
            total=core.rules.total,
            members=len(members.ready(core.state)),
            loss=next((loss for loss in losses if loss is not None), None),
            addresses=tuple(addresses[:4]),
            http=self._http,
        )

    async def _follow(self) -> None:
        """After each agreed state: keep a copy of it, and let old contributions go."""
        core = self._core
        done, total = -1, -1
        while True:
            async with core.changed:
                while (core.state.round, core.rules.total) == (done, total):
                    await core.changed.wait()
            done, total = core.state.round, core.rules.total
            await self._prune()
            wanted = self._stock.wanted(done, total) or core.blobs.has(core.state.base)
            copied = not wanted or await self._mirror(done, core.state.base)
            if done == total:
                since_end = core.clock() - core.state.since
                self._copied = copied or since_end > RELEASE_AFTER_S
                await self._release()
            if not copied:
                done = -1  # nobody could give it now; it is tried again unless a newer one comes
                await asyncio.sleep(RETRY_S)

    async def _release(self) -> None:
        """Let the nodes of a finished run go, once nothing is wanted of them any more."""
        self._core.released = self._copied and self._closing.nodes_may_go
        await self._core.tell()

    async def _mirror(self, round: int, root: str, others: Sequence[str] = ()) -> bool:
        """Copy one state from nodes that hold it, so that the run outlives its nodes.

        :param others: nodes that may hold it too
        """
        holders = holders_of(root, self._core.peers)
        holders += [name for name in others if name not in holders]
        return await self._stock.mirror(round, root, holders)

    async def _computed(self, number: int, others: Sequence[str]) -> str:
        """The root that an agreed state should have, from what it was made of."""
        core = self._core
        history = History(core.ledger.store, core.ledger.store.query, core.ledger.state)
        await fetch_inputs(core.host, core.blobs, history, number, others, core.state_bytes)
        return await root_in_child(core.metrics.path.parent, number)

    async def _prune(self) -> None:
        """Delete the contributions and slices of rounds that nobody can still be applying."""
        exchanged = self._core.exchanged
        while exchanged:
            self._note(exchanged.pop())
        audited = audits.under_way(self._core.ledger.state)
        for number in self._outdated():
            named = self._blobs.pop(number)
            kept = {blob: body for blob, body in named.items() if _work(body) in audited}
            if kept:
                self._blobs[number] = kept
            gone = {blob: body for blob, body in named.items() if blob not in kept}
            await asyncio.to_thread(self._delete, gone)

    def _look_back(self) -> None:
        """After a restart: find the blobs that the process before has left."""
        store = self._core.ledger.store
        for leaf in store.leaves(max(0, store.size - LOOK_BACK)):
            body = entries.decode(leaf).body
            if isinstance(body, entries.Contribution | entries.Aggregate):
                self._note(body)

    def _note(self, body: Exchanged) -> None:
        self._blobs.setdefault(body.round, {})[body.blob] = body

    def _outdated(self) -> list[int]:
        """Rounds whose contributions help nobody any more."""
        core = self._core
        room, rules = core.state_bytes, core.ledger.state.founded
        keep = max(KEEP_ROUNDS, audits.rounds_kept(rules))
        found = []
        for number in sorted(self._blobs, reverse=True):
            room -= sum(map(_bytes, self._blobs[number].values()))
            if room < 0 and number < core.state.round - keep:
                found.append(number)
        return found

    def _delete(self, named: Mapping[str, Exchanged]) -> None:
        """Delete the blobs that these contributions and aggregates name, and what those list."""
        store = self._core.blobs
        for blob, body in named.items():
            path = store.path(blob)
            if path is None:
                continue
            for part in _listed(path, body):
                store.delete(part)
            store.delete(blob)
            if isinstance(body, entries.Contribution):
                self._core.fingerprints.delete(body.chain)


def _work(body: Exchanged) -> tuple[str, int] | None:
    """By which an audit names it."""
    return (body.node, body.round) if isinstance(body, entries.Contribution) else None


def _bytes(body: Exchanged) -> int:
    """What is kept for it."""
    if isinstance(body, entries.Aggregate):
        return body.size
    return body.size + ROW_BYTES * (body.tail + body.head)


def _listed(path: Path, body: Exchanged) -> list[str]:
    """What a contribution lists when it is an index: nothing where a disk has changed it since."""
    with path.open("rb") as file:
        data = file.read(pseudogradient.index_bytes(assignment.MAX_SLICES))
    if isinstance(body, entries.Aggregate) or not data.startswith(pseudogradient.INDEX_MAGIC):
        return []
    try:
        listed = pseudogradient.open_index(data, round=body.round, base=body.base)
    except ArtelError:
        return []
    return [piece.blob for piece in listed]
