"""Content on its way between real hosts: lies, losses, restarts, races and full disks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import pytest_asyncio

from artel.protocol import content, files, merkle, messages, tasks
from artel.protocol.errors import DecodeError, ResourceError, Unreachable
from artel.protocol.net import delivery, download, wire
from artel.protocol.net import swarm as swarming
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.cap import Cap
from artel.protocol.net.delivery import Wanted
from artel.protocol.net.host import Host
from artel.protocol.net.speeds import Speeds
from artel.protocol.tasks import together, uninterrupted
from delivery_world import Answer, Holder, answering, holding
from host_world import held, named, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHUNK = content.CHUNK_BYTES
DATA = random.Random(3).randbytes(6 * CHUNK + 1234)
BLOB = content.content_id(DATA)
HASHES = content.chunk_hashes(DATA)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(hosts: list[Host]) -> dict[Host, Holder]:
    """Which holder answers for a host now; handlers can be added to a host only once."""
    return await answering(hosts[1:])


@pytest.fixture
def us(hosts: list[Host]) -> Host:
    """The host that fetches; what it measured in other tests is forgotten."""
    hosts[0].speeds = Speeds()
    return hosts[0]


@pytest.fixture
def holders(hosts: list[Host], serving: dict[Host, Holder], tmp_path: Path) -> list[Holder]:
    """Three holders, of which all have the content."""
    return holding(hosts[1:], serving, tmp_path, DATA)


@pytest.fixture
def store(tmp_path: Path) -> BlobStore:
    return BlobStore(tmp_path / "ours")


async def fetch(us: Host, store: BlobStore, *holders: Holder, blob: str = BLOB) -> bytes:
    peers = [holder.peer for holder in holders]
    path = await delivery.fetch(us, store, Wanted(blob, peers, len(DATA)))
    assert {entry.name for entry in store.root.iterdir() if entry.name.startswith(blob)} == {blob}
    return path.read_bytes()


# --- honest holders ---


async def test_content_comes_from_one_holder(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    seen: list[tuple[int, int]] = []
    wanted = Wanted(BLOB, [holders[0].peer], len(DATA))
    path = await delivery.fetch(us, store, wanted, lambda done, size: seen.append((done, size)))
    assert path.read_bytes() == DATA
    assert seen == sorted(seen)
    assert len(seen) == len(HASHES)
    assert seen[-1] == (len(DATA), len(DATA))
    assert store.has(BLOB)


async def test_several_holders_share_the_work(
    us: Host, store: BlobStore, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(swarming, "HAVE_AFTER_S", 0.0)
    holders[0].host.uplink = Cap(20e6)  # time enough to learn who has it
    try:
        assert await fetch(us, store, *holders) == DATA
    finally:
        holders[0].host.uplink = Cap()
    chunks = [holder.asked["chunks"] for holder in holders]
    assert sum(chunks) == len(HASHES), "no chunk is asked for twice"
    assert sum(count > 0 for count in chunks) >= 2


@pytest.mark.parametrize("size", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1])
async def test_sizes_at_the_edges(
    us: Host, store: BlobStore, holders: list[Holder], size: int
) -> None:
    data = DATA[:size]
    blob = holders[0].store.put(data)
    assert await fetch(us, store, holders[0], blob=blob) == data


async def test_what_is_here_is_not_asked_for(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    store.put(DATA)
    assert await fetch(us, store, *holders) == DATA
    assert not any(holder.asked for holder in holders)


async def test_what_has_rotted_here_is_fetched_again_or_else_is_gone(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    path = store.root / store.put(DATA)
    for at in (0, len(DATA) - 1):
        store.pin(BLOB)
        path.write_bytes(DATA[:at] + bytes([DATA[at] ^ 1]) + DATA[at + 1 :])
        assert await fetch(us, store, *holders) == DATA
        assert BLOB in store._pinned
    path.write_bytes(DATA[:-1])
    with pytest.raises(Unreachable):
        await fetch(us, store)
    assert not store.has(BLOB)
    assert not path.exists()


async def test_holders_without_the_content_are_passed_over(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    holders[0].store.delete(BLOB)
    peers = [named("nobody").peer_id, holders[0].peer, holders[1].peer]
    path = await delivery.fetch(us, store, Wanted(BLOB, peers, len(DATA)))
    assert path.read_bytes() == DATA


async def test_content_that_nobody_has(us: Host, store: BlobStore, holders: list[Holder]) -> None:
    with pytest.raises(Unreachable, match=r"not here"):
        await fetch(us, store, *holders, blob="ab" * 32)
    with pytest.raises(Unreachable, match="nobody"):
        await fetch(us, store, blob="ab" * 32)
    assert list(store.root.iterdir()) == []


# --- holders that lie ---


async def flipped(request: messages.Message, stream: wire.ByteStream) -> bool:
    if not isinstance(request, messages.GetChunks):
        return False
    piece = bytearray(_chunks(request))
    piece[len(piece) // 2] ^= 1
    await wire.write_message(stream, messages.Chunks(size=len(piece)))
    await stream.write(bytes(piece))
    return True


async def shifted(request: messages.Message, stream: wire.ByteStream) -> bool:
    """Whole chunks of the content, but others than those asked for."""
    if not isinstance(request, messages.GetChunks):
        return False
    other = (request.first + 1) % (len(HASHES) - 1)
    piece = DATA[other * CHUNK :][: len(_chunks(request))]
    await wire.write_message(stream, messages.Chunks(size=len(_chunks(request))))
    await stream.write(piece.ljust(len(_chunks(request)), b"\0"))
    return True


async def short(request: messages.Message, stream: wire.ByteStream) -> bool:
    if not isinstance(request, messages.GetChunks):
        return False
    piece = _chunks(request)
    await wire.write_message(stream, messages.Chunks(size=len(piece)))
    await stream.write(piece[:-1])
    return True


async def promising_more(request: messages.Message, stream: wire.ByteStream) -> bool:
    if not isinstance(request, messages.GetChunks):
        return False
    await wire.write_message(stream, messages.Chunks(size=1 << 50))
    with contextlib.suppress(OSError, Unreachable):
        for _ in range(20):
            await stream.write(bytes(CHUNK))
    return True


async def endless(request: messages.Message, stream: wire.ByteStream) -> bool:
    """The right chunks, and then more than was asked for."""
    if not isinstance(request, messages.GetChunks):
        return False
    piece = _chunks(request)
    await wire.write_message(stream, messages.Chunks(size=len(piece)))
    with contextlib.suppress(OSError, Unreachable):
        await stream.write(bytes(len(piece)))
        for _ in range(20):
            await stream.write(bytes(CHUNK))
    return True


async def wrong_index(request: messages.Message, stream: wire.ByteStream) -> bool:
    if not isinstance(request, messages.GetIndex):
        return False
    await wire.write_message(stream, messages.Index(size=len(DATA)))
    await stream.write(b"".join(reversed(HASHES)))
    return True


async def wrong_size(request: messages.Message, stream: wire.ByteStream) -> bool:
    """The right hashes with another size, which no hash covers."""
    if not isinstance(request, messages.GetIndex):
        return False
    await wire.write_message(stream, messages.Index(size=len(DATA) - 1))
    await stream.write(b"".join(HASHES))
    return True


async def huge_index(request: messages.Message, stream: wire.ByteStream) -> bool:
    if not isinstance(request, messages.GetIndex):
        return False
    await wire.write_message(stream, messages.Index(size=(1 << 53) - 1))
    return True


async def another_reply(request: messages.Message, stream: wire.ByteStream) -> bool:
    await wire.write_message(stream, messages.Ok())
    return True


async def nonsense(request: messages.Message, stream: wire.ByteStream) -> bool:
    await stream.write(b"\0\0\0\5hello" * 10)
    return True


LIES = [flipped, shifted, short, promising_more, endless, wrong_index, huge_index]
LIES += [another_reply, nonsense]


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_a_lying_holder_is_dropped_and_another_serves(
    us: Host, store: BlobStore, holders: list[Holder], lie: Answer
) -> None:
    holders[0].lie = lie
    assert await fetch(us, store, holders[0], holders[1]) == DATA
    # Two requests may be on their way; a stream that broke in use is tried once more.
    assert holders[0].asked["get_chunks"] <= swarming.PER_HOLDER + (lie is short)
    assert holders[1].asked["chunks"] >= 1


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
async def test_liars_alone_give_nothing(
    us: Host, store: BlobStore, holders: list[Holder], lie: Answer
) -> None:
    holders[0].lie = holders[1].lie = lie
    with pytest.raises(Unreachable) as error:
        await fetch(us, store, holders[0], holders[1])
    assert len(error.value.message) <= 300
    assert not store.has(BLOB)
    # What a liar left behind does not hinder an honest holder.
    assert await fetch(us, store, holders[2]) == DATA


async def test_a_wrong_size_in_the_index_does_not_hinder(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    """Nor does it make honest holders look like liars."""
    holders[0].lie = wrong_size
    assert await fetch(us, store, holders[0], holders[1]) == DATA
    store.delete(BLOB)
    assert await fetch(us, store, holders[0]) == DATA


async def test_a_silent_holder_delays_only_once(
    us: Host, store: BlobStore, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def silent(request: messages.Message, stream: wire.ByteStream) -> bool:
        await asyncio.sleep(4)
        return True

    async def silent_later(request: messages.Message, stream: wire.ByteStream) -> bool:
        return isinstance(request, messages.GetChunks) and await silent(request, stream)

    monkeypatch.setattr(swarming, "SLOW_S", 0.2)
    for lie in (silent, silent_later):
        holders[0].lie = lie
        began = time.monotonic()
        assert await fetch(us, store, holders[0], holders[1]) == DATA
        assert time.monotonic() - began < 3
        store.delete(BLOB)


# --- bounds ---


async def test_content_larger_than_expected_is_not_fetched(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    with pytest.raises(Unreachable, match="at most 1000 expected"):
        await delivery.fetch(us, store, Wanted(BLOB, [holders[0].peer], 1000))
    assert holders[0].asked["get_chunks"] == 0
    assert list(store.root.iterdir()) == []


@pytest.mark.parametrize(
    ("request_", "code"),
    [
        (messages.GetIndex(id="ab" * 32), "not_here"),
        (messages.GetChunks(id="ab" * 32, first=0, count=1), "not_here"),
        (messages.GetChunks(id=BLOB, first=len(HASHES), count=1), "no_chunk"),
        (messages.GetChunks(id=BLOB, first=(1 << 53) - 1, count=64), "no_chunk"),
        (messages.Leave(run="ab" * 32), "unknown"),
    ],
)
async def test_requests_that_cannot_be_served(
    us: Host, holders: list[Holder], request_: messages.Message, code: str
) -> None:
    with pytest.raises(wire.Refused) as refused:
        await us.ask(holders[0].peer, wire.CONTENT, request_)
    assert refused.value.code == code


# --- interruptions ---


async def test_a_download_is_resumed(us: Host, store: BlobStore, holders: list[Holder]) -> None:
    part = store.partial(BLOB)
    half = bytearray(DATA[: 4 * CHUNK])
    half[CHUNK + 5] ^= 1  # chunk 1 went bad on the disk
    part.write_bytes(half)
    assert await fetch(us, store, holders[0]) == DATA
    assert holders[0].asked["chunks"] == len(HASHES) - 3


async def test_a_partial_file_that_is_too_long_or_junk_does_not_hinder(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    store.partial(BLOB).write_bytes(os.urandom(len(DATA) + 99))
    assert await fetch(us, store, holders[0]) == DATA


async def test_a_cancelled_download_goes_on_where_it_was(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    reached = asyncio.Event()

    async def stall(request: messages.Message, stream: wire.ByteStream) -> bool:
        if isinstance(request, messages.GetChunks) and request.first:
            reached.set()
            await asyncio.sleep(3)
        return False

    holders[0].lie = stall
    first = asyncio.create_task(fetch(us, store, holders[0]))
    await asyncio.wait_for(reached.wait(), 5)
    await until(lambda: store.partials[BLOB].lead() == swarming.CHUNKS_UNKNOWN)
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    holders[0].lie = None
    holders[0].asked.clear()
    assert await fetch(us, store, holders[0]) == DATA
    assert holders[0].asked["chunks"] == len(HASHES) - swarming.CHUNKS_UNKNOWN


async def test_two_downloads_of_the_same_content_share_one(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    """Two members may contribute the same bytes; nobody must stumble over that."""
    both = await together(fetch(us, store, *holders) for _ in range(4))
    assert all(data == DATA for data in both)
    assert sum(holder.asked["chunks"] for holder in holders) == len(HASHES)
    assert not store.downloads


async def test_a_second_download_takes_over_when_the_first_fails(
    us: Host, store: BlobStore, holders: list[Holder]
) -> None:
    holders[0].lie = flipped
    first, second = await asyncio.gather(
        fetch(us, store, holders[0]), fetch(us, store, holders[1]), return_exceptions=True
    )
    assert isinstance(first, Unreachable)
    assert second == DATA


# --- push and receive ---


async def test_content_can_be_pushed(us: Host, store: BlobStore, holders: list[Holder]) -> None:
    for data in (DATA[:5], b"", DATA[: 2 * CHUNK]):
        blob = store.put(data)
        await delivery.push(us, store, holders[0].peer, blob)
        path = holders[0].store.path(blob)
        assert path is not None
        assert path.read_bytes() == data
    with pytest.raises(Unreachable, match="local store"):
        await delivery.push(us, store, holders[0].peer, "ab" * 32)


async def test_pushed_bytes_that_are_not_what_was_offered_leave_nothing(
    us: Host, holders: list[Holder]
) -> None:
    taker = holders[0]
    before = sorted(taker.store.root.iterdir())
    data = bytearray(DATA[: CHUNK + 10])
    blob = content.content_id(data)
    data[-1] ^= 1
    async with us.open(taker.peer, wire.CONTENT) as stream:
        await wire.ask(stream, messages.Put(id=blob, size=len(data)))
        await stream.write(bytes(data))
        with pytest.raises(DecodeError, match="do not match"):
            raise_refusal(await wire.read_message(stream))
    async with us.open(taker.peer, wire.CONTENT) as stream:  # and then nothing more comes
        await wire.ask(stream, messages.Put(id=blob, size=len(data)))
        await stream.write(bytes(data[:-1]))
    await until(lambda: not held(taker.host))
    assert sorted(taker.store.root.iterdir()) == before


# --- our own disk ---


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 4 MB."""
    if os.geteuid() != 0 or shutil.which("mount") is None:
        pytest.skip("mounting a small file system needs root")
    place = tmp_path / "small"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("this machine does not allow mounts")
    yield place
    subprocess.run(["umount", str(place)], check=True)


async def test_a_full_disk_is_said_and_a_later_try_succeeds(
    us: Host, small_disk: Path, holders: list[Holder]
) -> None:
    store = BlobStore(small_disk / "blobs")
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(2 << 20))
    data = DATA[: 3 * CHUNK]
    blob = holders[0].store.put(data)
    with pytest.raises(ResourceError, match="the disk is full") as error:
        await delivery.fetch(us, store, Wanted(blob, [holders[0].peer], len(data)))
    assert "free some space" in error.value.hint
    assert not store.has(blob)
    ballast.unlink()
    assert await fetch(us, store, holders[0], blob=blob) == data


async def test_a_full_disk_during_a_download(
    us: Host, store: BlobStore, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same without a mount: the third chunk finds no room."""
    written = 0
    write = download.Download.write

    def full(self: download.Download, index: int, piece: bytes) -> None:
        nonlocal written
        written += 1
        if written > 2:
            raise files.disk_error(OSError(28, "No space left on device"), store.root)
        write(self, index, piece)

    with monkeypatch.context() as patch:
        patch.setattr(download.Download, "write", full)
        with pytest.raises(ResourceError, match="the disk is full"):
            await fetch(us, store, *holders)
    for holder in holders:
        holder.asked.clear()
    assert await fetch(us, store, *holders) == DATA
    assert sum(holder.asked["chunks"] for holder in holders) == len(HASHES) - 2


async def test_a_full_disk_of_the_receiver_is_its_own_fault(
    us: Host, store: BlobStore, holders: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    blob = store.put(DATA[: 2 * CHUNK])
    taker = holders[0]
    taker.store.quota_bytes = sum(taker.store._sizes.values())
    taker.store.pin(BLOB)
    before = sorted(taker.store.root.iterdir())
    with pytest.raises(wire.Refused, match="lacks something on its machine") as refused:
        await delivery.push(us, store, taker.peer, blob)
    assert refused.value.code == "busy"
    assert sorted(taker.store.root.iterdir()) == before


# --- running things side by side ---


async def test_the_first_error_ends_the_others_and_comes_as_it_is() -> None:
    ended = asyncio.Event()

    async def wait() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            ended.set()

    async def fail() -> None:
        raise ResourceError("full")

    with pytest.raises(ResourceError, match="full"):
        await together([wait(), fail()])
    assert ended.is_set()
    assert await together([asyncio.sleep(0.01, 1), asyncio.sleep(0, 2)]) == [1, 2]


@pytest.mark.parametrize("slow", [False, True])
async def test_a_cancellation_counts_also_when_one_has_failed_a_moment_ago(slow: bool) -> None:
    """A node that went on here stood still for ever, and with it the run."""
    go = asyncio.Event()

    async def fail() -> None:
        await go.wait()
        raise ResourceError("full")

    async def wait() -> None:
        try:
            await asyncio.sleep(10)
        finally:
            await asyncio.sleep(0.01)  # as a stream that is closed in order

    task = asyncio.create_task(together([fail(), wait()] if slow else [fail()]))
    await asyncio.sleep(0.01)
    go.set()
    for _ in range(1 + slow):
        await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_task_that_swallows_a_cancellation_is_cancelled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tasks, "AGAIN_S", 0.01)
    swallowed = asyncio.Event()

    async def stubborn() -> None:
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(10)
        swallowed.set()
        await asyncio.sleep(10)

    task = asyncio.create_task(stubborn())
    await asyncio.sleep(0)
    await tasks.end(task)
    assert swallowed.is_set()
    assert task.cancelled()


@pytest.mark.parametrize("times", [1, 3])
async def test_uninterrupted_work_ends_before_the_cancellation_comes(times: int) -> None:
    begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        ended.set()

    async def both() -> bool:
        try:
            await uninterrupted(work())
        finally:
            assert ended.is_set()
        return True

    task = asyncio.create_task(both())
    await begun.wait()
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)
    assert not task.done()
    go.set()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_uninterrupted_work_gives_its_result_and_its_error() -> None:
    async def fail() -> None:
        raise DecodeError("bad")

    assert await uninterrupted(asyncio.sleep(0, 7)) == 7
    with pytest.raises(DecodeError, match="bad"):
        await uninterrupted(fail())


def raise_refusal(reply: messages.Message) -> None:
    assert isinstance(reply, messages.Refusal)
    raise DecodeError(reply.message)


def _chunks(request: messages.GetChunks) -> bytes:
    return DATA[request.first * CHUNK :][: request.count * CHUNK]


def test_the_index_is_the_rfc_6962_tree() -> None:
    assert merkle.root(HASHES).hex() == BLOB
