"""Catching up from a peer whose home was restored from tiles, over real hosts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from artel.ledger.fold.replay import replay
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.ledger.sync import bundled
from artel.ledger.sync.replica import LedgerService, Replica, fetch_page
from artel.ledger.sync.restore import restore
from artel.ledger.sync.source import FolderSource
from artel.ledger.tlog.checkpoint import sign_checkpoint
from artel.ledger.tlog.tiles import ENTRIES, Tile, encode_bundle
from artel.protocol import messages
from artel.protocol.errors import CheckFailed
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from client_world import write_tiles
from host_world import start
from ledger_world import World, key

SIZE = 600


@pytest.fixture(scope="module")
def world() -> World:
    world = World(total=200, ledger={"witnesses": 2})
    world.add(*world.start)
    for number in range(100):
        world.add(*world.round(number))
    return world


def append(world: World, store: LedgerStore, size: int) -> None:
    while store.size < size:
        store.append(world.leaves[store.size : min(size, store.size + 100)], world.sign)


@dataclass
class Holder:
    """A host that serves the ledger of a home, with other bytes for some paths."""

    home: Path
    host: Host
    store: LedgerStore
    heads: HeadStore
    instead: dict[str, bytes] = field(default_factory=dict)
    note: str = ""
    """The head to show, with pages that are always empty; "" for the true ones."""
    asked: list[str] = field(default_factory=list)

    async def serve(self, run: str) -> None:
        state = replay(self.store.leaves())
        service = LedgerService(self.store, self.heads, run, lambda: state)

        async def answer(
            peer: str, request: messages.Message, stream: wire.Stream
        ) -> messages.Message | None:
            path = request.path if isinstance(request, messages.GetResource) else request.KIND
            self.asked.append(path)
            if path in self.instead:
                await wire.write_message(stream, messages.Resource(size=len(self.instead[path])))
                await stream.write(self.instead[path])
                return None
            if self.note and isinstance(request, messages.GetEntries):
                return messages.Entries(start=request.start, sizes=[], note=self.note, size=10**6)
            return await service.answer(peer, request, stream)

        await self.host.serve(wire.LEDGER, answer)


@dataclass
class Net:
    folder: Path
    world: World
    stack: AsyncExitStack

    async def holder(self, name: str, restored: int = 0) -> Holder:
        """Somebody with 600 entries: as they came, or the first ``restored`` out of tiles."""
        home = self.folder / name
        with LedgerStore.open(
            self.folder / f"{name}-log" / DATABASE_NAME, create=True, run=self.world.run
        ) as store:
            append(self.world, store, restored)
        if restored:
            tiles = write_tiles(self.folder / f"{name}-log", self.folder / f"{name}-tiles")
            restore([FolderSource(tiles)], home)
        store = LedgerStore.open(home / DATABASE_NAME, create=True, run=self.world.run)
        self.stack.callback(store.close)
        append(self.world, store, SIZE)
        heads = HeadStore(home / HEADS_NAME)
        self.stack.callback(heads.close)
        holder = Holder(home, await self.host(name), store, heads)
        await holder.serve(self.world.run)
        return holder

    async def host(self, name: str, *known: Host) -> Host:
        host = await start(self.folder / f"{name}-host", *known)
        self.stack.push_async_callback(host.close)
        return host

    def replica(self, name: str, size: int) -> Replica:
        path = self.folder / name / DATABASE_NAME
        with LedgerStore.open(path, create=True, run=self.world.run) as store:
            append(self.world, store, size)
        replica = Replica.open(path, self.world.run)
        self.stack.callback(replica.store.close)
        return replica


@pytest.fixture
async def net(tmp_path: Path, world: World) -> AsyncIterator[Net]:
    async with AsyncExitStack() as stack:
        yield Net(tmp_path, world, stack)


@asynccontextmanager
async def soon() -> AsyncIterator[None]:
    """A limit for what must never go round in circles."""
    async with asyncio.timeout(60):
        yield


def sound(replica: Replica, size: int) -> None:
    result = verify_home(replica.store.path.parent)
    assert (result.verified, result.size) == (True, size), [c for c in result.checks if not c.ok]
    assert replica.state == replay(replica.store.leaves())


@pytest.mark.parametrize("restored", [SIZE, 500])
async def test_any_copy_catches_up_from_a_restored_node(
    net: Net, world: World, restored: int
) -> None:
    holder = await net.holder("restored", restored)
    peer = holder.host.peer_id
    host = await net.host("client", holder.host)
    page, leaves = await fetch_page(host, peer, world.run, 0)
    assert (leaves, page.size) == ([], SIZE), "no page of this peer begins at 0"
    for name, size, target in (
        ("newcomer", 0, 0),
        ("at-a-tile", 256, SIZE),
        ("between", 100, 300),
        ("near", 580, 0),
    ):
        replica = net.replica(name, size)
        grown = replica.growth()
        async with soon():
            await replica.catch_up(host, peer, world.run, target)
        assert grown.is_set()
        assert replica.store.root == holder.store.root
        sound(replica, SIZE)
        async with soon():
            await replica.catch_up(host, peer, world.run)
    assert await bundled.first_entry(host, peer, world.run) == world.leaves[0]


async def test_a_wrong_bundle_is_refused_before_the_next_one_is_asked_for(
    net: Net, world: World
) -> None:
    holder = await net.holder("restored", SIZE)
    host = await net.host("client", holder.host)
    wrong = [*world.leaves[256:511], world.leaves[600]]
    holder.instead[Tile(ENTRIES, 1).path] = encode_bundle(wrong)
    for size in (0, 300):
        replica = net.replica(f"replica-{size}", size)
        with pytest.raises(CheckFailed, match="entry 511 in tile/entries/001 does not have"):
            async with soon():
                await replica.catch_up(host, holder.host.peer_id, world.run)
        assert (replica.store.size, replica.state.size) == (size, size)
    assert Tile(ENTRIES, 2, SIZE - 512).path not in holder.asked


@pytest.mark.parametrize("size", [0, 100])
async def test_the_head_must_be_of_the_run_and_of_the_tiles(
    net: Net, world: World, size: int
) -> None:
    holder = await net.holder("restored", SIZE)
    host = await net.host("client", holder.host)
    replica = net.replica("replica", size)
    head = world.head(world.leaves[:SIZE])
    other = world.head([*world.leaves[: SIZE - 2], *world.leaves[SIZE : SIZE + 2]])
    for note, said in (
        (sign_checkpoint(key("thief"), world.origin, SIZE, head.root), "not signed by any key"),
        (world.sign(SIZE, other.root), "the root of 600 entries is not that of"),
        (world.sign(SIZE + 1, head.root), "outside a tree of 600 entries|neither"),
    ):
        holder.note = note
        with pytest.raises(CheckFailed, match=said):
            async with soon():
                await replica.catch_up(host, holder.host.peer_id, world.run)
        assert (replica.store.size, replica.state.size) == (size, size)


async def test_the_manifest_must_be_that_of_the_invite(net: Net, world: World) -> None:
    holder = await net.holder("restored", SIZE)
    host = await net.host("client", holder.host)
    stranger = World(name="other")
    leaf = stranger.add(stranger.genesis)[0]
    holder.instead[Tile(ENTRIES, 0, 1).path] = encode_bundle([leaf])
    with pytest.raises(CheckFailed, match="of another run than"):
        await bundled.first_entry(host, holder.host.peer_id, world.run)
    newcomer = net.replica("newcomer", 0)
    with pytest.raises(CheckFailed, match="of another run than"):
        await newcomer.catch_up(host, holder.host.peer_id, world.run)
    assert newcomer.store.size == 0


async def test_what_is_too_much_at_once_is_had_from_another_peer(
    net: Net, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bundled, "MAX_BUNDLED", 499)
    restored, whole = await net.holder("restored", SIZE), await net.holder("whole")
    host = await net.host("client", restored.host, whole.host)
    replica = net.replica("replica", 100)
    with pytest.raises(CheckFailed, match="500 more entries and no signed tree head") as caught:
        async with soon():
            await replica.catch_up(host, restored.host.peer_id, world.run)
    assert "another peer" in caught.value.hint
    assert len(restored.asked) < 10
    await replica.catch_up(host, whole.host.peer_id, world.run)
    sound(replica, SIZE)
    assert not any(path.startswith("tile/") for path in whole.asked), "pages are enough there"


async def test_a_peer_that_only_says_that_it_is_longer_ends_the_matter(
    net: Net, world: World
) -> None:
    holder = await net.holder("whole")
    host = await net.host("client", holder.host)
    replica = net.replica("replica", SIZE)
    holder.note = holder.store.latest_note
    async with soon():
        await replica.catch_up(host, holder.host.peer_id, world.run)
        with pytest.raises(CheckFailed, match="announced 700 ledger entries and shows 600"):
            await replica.catch_up(host, holder.host.peer_id, world.run, target=700)
