"""A coordinator with two histories, and nodes that watch it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from artel.ledger.store.heads import HeadStore
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.serving import LedgerService
from artel.node.watch import Watch
from artel.protocol import messages
from artel.protocol.dsse import Envelope
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from host_world import named, start
from ledger_world import World, complete
from log_world import replay

INTERVAL_S = 0.05


@dataclass
class History:
    """One ledger that the coordinator's key signs."""

    store: LedgerStore
    heads: HeadStore
    world: World

    def add(self, *envelopes: Envelope) -> None:
        before = replay(self.store.leaves())
        leaves = [envelope.encode() for envelope in complete(envelopes, before)]
        self.store.append(leaves, self.world.sign)

    def service(self) -> LedgerService:
        state = replay(self.store.leaves())
        return LedgerService(self.store, self.heads, self.world.run, lambda: state)

    def close(self) -> None:
        self.store.close()
        self.heads.close()


@dataclass
class Node:
    """What of a node takes part in this: its replica, its heads, its watch, on a real host."""

    home: Path
    host: Host
    replica: Replica
    heads: HeadStore
    watch: Watch
    neighbours: list[str] = field(default_factory=list)

    async def catch_up(self, peer: str) -> None:
        await self.replica.catch_up(self.host, peer, self.replica.store.genesis.run)

    async def meet(self, other: Node) -> None:
        self.host.remember(other.host.peer_id, await other.host.addresses())
        self.neighbours.append(other.host.peer_id)

    async def close(self) -> None:
        await self.host.close()
        self.replica.store.close()
        self.heads.close()


class Net:
    """A coordinator-like host, which shows each peer the history that ``shown`` names."""

    def __init__(self, folder: Path, world: World) -> None:
        self.folder, self.world = folder, world
        self.host: Host
        self.shown: dict[str, History] = {}
        self.default: History
        self.submitted: list[bytes] = []
        self.told: list[str] = []
        self._closers: list[Callable[[], None]] = []
        self.nodes: list[Node] = []

    async def open(self) -> Net:
        self.host = await start(self.folder / "coordinator")
        await self.host.serve(wire.LEDGER, self._ledger)
        return self

    async def _ledger(
        self, peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message | None:
        if isinstance(request, messages.Submit):
            self.submitted.append(request.statement)
            raise wire.Refused("no", code="proves_nothing")
        if isinstance(request, messages.Cosigned):
            self.told.append(request.note)
        history = self.shown.get(peer, self.default)
        return await history.service().answer(peer, request, stream)

    def history(self, name: str) -> History:
        folder = self.folder / name
        store = LedgerStore.open(folder / "ledger.sqlite3", create=True, run=self.world.run)
        history = History(store, HeadStore(folder / "heads.sqlite3"), self.world)
        self._closers.append(history.close)
        return history

    async def node(self, name: str, history: History | None = None) -> Node:
        home = self.folder / name
        host = await start(home, self.host)
        if history is not None:
            self.shown[host.peer_id] = history
        replica = Replica.open(home / "ledger.sqlite3", self.world.run)
        heads = HeadStore(home / "heads.sqlite3")
        neighbours: list[str] = []
        watched = Watch(
            host=host,
            home=home,
            run=self.world.run,
            replica=replica,
            heads=heads,
            account=named(name),
            coordinator=lambda: self.host.peer_id,
            neighbours=lambda: neighbours,
            interval=INTERVAL_S,
        )
        await replica.catch_up(host, self.host.peer_id, self.world.run)
        service = LedgerService(
            replica.store, heads, self.world.run, lambda: replica.state, submit=watched.take
        )
        await host.serve(wire.LEDGER, service.answer)
        node = Node(home, host, replica, heads, watched, neighbours)
        self.nodes.append(node)
        return node

    async def close(self) -> None:
        for node in self.nodes:
            await node.close()
        await self.host.close()
        for close in self._closers:
            close()
