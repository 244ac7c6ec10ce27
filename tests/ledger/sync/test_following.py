"""Following a peer's ledger, over real hosts."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import pytest

from artel.ledger.entries.documents import document_of
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.looks import Looks
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.restore import restore
from artel.ledger.sync.serving import LedgerService
from artel.ledger.sync.signed_tree import TooMuch, manifest_of
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
from log_world import replay

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
    asked: list[str] = field(default_factory=list)
    streams: int = 0
    sent: int = 0
    """Bytes of files."""
    silent: asyncio.Event | None = None
    """Set when somebody waits for an answer that does not come."""

    async def serve(self, run: str) -> None:
        state = replay(self.store.leaves())
        service = LedgerService(self.store, self.heads, run, lambda: state)

        async def answer(
            peer: str, request: messages.Message, stream: wire.ByteStream
        ) -> messages.Message | None:
            assert isinstance(request, messages.Get)
            self.asked += request.paths
            self.streams += 1
            if self.silent is not None:
                self.silent.set()
                await asyncio.Event().wait()
            for path in request.paths:
                if path in self.instead:
                    data = self.instead[path][request.skip :]
                    await wire.write_message(stream, messages.File(size=len(data)))
                    await stream.write(data)
                    return None
            before = stream.up
            reply = await service.answer(peer, request, stream)
            self.sent += stream.up - before
            return reply

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
            restore(FolderSource(tiles), home)
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


async def manifest(host: Host, peer: str, run: str) -> bytes:
    """Entry 0 as a peer shows it."""
    return (await asyncio.to_thread(manifest_of, PeerSource(host, peer, run), run))[1]


@asynccontextmanager
async def soon() -> AsyncIterator[None]:
    """A limit for what must never go round in circles."""
    async with asyncio.timeout(60):
        yield


def sound(replica: Replica, size: int) -> None:
    result = verify_home(replica.store.path.parent)
    assert (result.verified, result.size) == (True, size), [c for c in result.checks if not c.ok]
    assert replica.state == replay(replica.store.leaves())


@pytest.mark.parametrize("restored", [SIZE, 500, 0])
async def test_any_copy_catches_up_from_any_other(net: Net, world: World, restored: int) -> None:
    holder = await net.holder("restored", restored)
    peer = holder.host.peer_id
    host = await net.host("client", holder.host)
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
    assert await manifest(host, peer, world.run) == world.leaves[0]


async def test_a_follower_is_sent_what_is_new_and_little_else(net: Net, world: World) -> None:
    holder = await net.holder("whole")
    host = await net.host("client", holder.host)
    replica = net.replica("replica", SIZE - 1)
    await replica.catch_up(host, holder.host.peer_id, world.run)
    bundle = Tile(ENTRIES, 2, SIZE - 512).path
    assert holder.asked == ["checkpoint", bundle]
    assert holder.sent < len(world.leaves[SIZE - 1]) + 600
    await replica.catch_up(host, holder.host.peer_id, world.run)
    assert (holder.streams, holder.asked) == (3, ["checkpoint", bundle, "checkpoint"])


def asked_for_documents(world: World, start: int) -> int:
    """How often somebody asks who takes over what is new from this entry on: 8 entries at once."""
    named = [document_of(leaf) for leaf in world.leaves[start:SIZE]]
    parts = [set(named[first : first + 8]) - {""} for first in range(0, len(named), 8)]
    return sum(bool(part - before) for before, part in pairwise([set[str](), *parts]))


async def test_what_was_announced_comes_by_one_stream(net: Net, world: World) -> None:
    holder = await net.holder("whole")
    host = await net.host("client", holder.host)
    streams = 0
    for size in (SIZE - 1, 513):
        replica = net.replica(f"replica-{size}", size)
        await replica.catch_up(host, holder.host.peer_id, world.run, SIZE)
        assert replica.store.size == SIZE
        streams += 1 + asked_for_documents(world, size)
    assert holder.streams == streams
    behind = net.replica("behind", SIZE - 20)  # the log has grown since then
    await behind.catch_up(host, holder.host.peer_id, world.run, SIZE - 10)
    streams += 2 + asked_for_documents(world, SIZE - 20)
    assert (behind.store.size, holder.streams) == (SIZE, streams)


async def test_whoever_waits_for_a_silent_peer_can_be_cancelled(net: Net, world: World) -> None:
    holder = await net.holder("whole")
    host = await net.host("client", holder.host)
    replica = net.replica("replica", 100)
    holder.silent = asyncio.Event()
    async with soon():
        waiting = asyncio.create_task(replica.catch_up(host, holder.host.peer_id, world.run))
        await holder.silent.wait()
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert (replica.store.size, replica.state.size) == (100, 100)


@pytest.mark.parametrize("size", [0, SIZE - 20])
async def test_no_more_is_taken_over_than_a_copy_may_take(
    net: Net, world: World, size: int
) -> None:
    holder = await net.holder("whole")
    host = await net.host("client", holder.host)
    replica = net.replica("replica", size)
    replica.most = 3000
    with pytest.raises(TooMuch, match="more than 3,000 bytes"):
        await replica.catch_up(host, holder.host.peer_id, world.run)
    assert (replica.store.size, replica.state.size) == (size, size)
    replica.most = math.inf
    await replica.catch_up(host, holder.host.peer_id, world.run)
    sound(replica, SIZE)


async def test_a_wrong_bundle_is_refused_before_the_next_one_is_asked_for(
    net: Net, world: World
) -> None:
    holder = await net.holder("restored", SIZE)
    host = await net.host("client", holder.host)
    wrong = [*world.leaves[256:511], world.leaves[600]]
    holder.instead[Tile(ENTRIES, 1).path] = encode_bundle(wrong)
    for size in (0, 60):
        replica = net.replica(f"replica-{size}", size)
        with pytest.raises(CheckFailed, match="entry 511"):
            async with soon():
                await replica.catch_up(host, holder.host.peer_id, world.run)
        assert (replica.store.size, replica.state.size) == (size, size)
    assert Tile(ENTRIES, 2, SIZE - 512).path not in holder.asked


async def test_entries_that_are_not_under_the_head_are_refused(net: Net, world: World) -> None:
    """Near the end no tile is asked for: the root says it."""
    holder = await net.holder("whole")
    host = await net.host("client", holder.host)
    replica = net.replica("replica", SIZE - 2)
    path = Tile(ENTRIES, 2, SIZE - 512).path
    for wrong in ([world.leaves[SIZE - 1], world.leaves[SIZE - 2]], [b"no entry"], [b"", b""]):
        holder.instead[path] = encode_bundle([*world.leaves[512 : SIZE - 2], *wrong])
        with pytest.raises(CheckFailed):
            await replica.catch_up(host, holder.host.peer_id, world.run)
        assert (replica.store.size, replica.state.size) == (SIZE - 2, SIZE - 2)
        replica.looks = Looks()  # long after
    del holder.instead[path]
    await replica.catch_up(host, holder.host.peer_id, world.run)
    sound(replica, SIZE)


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
        (world.sign(SIZE, other.root), "the root of 600 entries is not that of|another ledger"),
        (world.sign(SIZE + 1, head.root), "outside a tree of 600 entries|neither"),
    ):
        holder.instead["checkpoint"] = note.encode()
        with pytest.raises(CheckFailed, match=said):
            async with soon():
                await replica.catch_up(host, holder.host.peer_id, world.run)
        assert (replica.store.size, replica.state.size) == (size, size)
        replica.looks = Looks()  # long after


async def test_the_manifest_must_be_that_of_the_invite(net: Net, world: World) -> None:
    holder = await net.holder("restored", SIZE)
    host = await net.host("client", holder.host)
    stranger = World(name="other")
    leaf = stranger.add(stranger.genesis)[0]
    holder.instead[Tile(ENTRIES, 0, 1).path] = encode_bundle([leaf])
    with pytest.raises(CheckFailed, match="of another run than"):
        await manifest(host, holder.host.peer_id, world.run)
    newcomer = net.replica("newcomer", 0)
    with pytest.raises(CheckFailed, match="of another run than"):
        await newcomer.catch_up(host, holder.host.peer_id, world.run)
    assert newcomer.store.size == 0


async def test_a_peer_that_only_says_that_it_is_longer_ends_the_matter(
    net: Net, world: World
) -> None:
    holder = await net.holder("whole")
    host = await net.host("client", holder.host)
    replica = net.replica("replica", SIZE)
    async with soon():
        await replica.catch_up(host, holder.host.peer_id, world.run)
        with pytest.raises(CheckFailed, match="shows 600"):
            await replica.catch_up(host, holder.host.peer_id, world.run, target=700)
