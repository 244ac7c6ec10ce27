"""Many pieces of content from many holders: who is asked for what, and what it costs."""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import pytest_asyncio

from artel.protocol import content, messages
from artel.protocol.errors import Unreachable
from artel.protocol.net import delivery, streams, wire
from artel.protocol.net import swarm as swarming
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.cap import Cap
from artel.protocol.net.delivery import Wanted
from artel.protocol.net.host import Host
from artel.protocol.net.slots import Rank
from artel.protocol.net.speeds import Speeds
from artel.protocol.net.streams import Traffic
from artel.protocol.net.swarm_job import Ask, Job
from delivery_world import Answer, Holder, answering
from host_world import anybody, held, members, until

pytestmark = pytest.mark.asyncio(loop_scope="module")

CHUNK = content.CHUNK_BYTES


def made(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(hosts: list[Host]) -> dict[Host, Holder]:
    return await answering(hosts)


@pytest.fixture
def peers(hosts: list[Host], serving: dict[Host, Holder], tmp_path: Path) -> list[Holder]:
    """Four nodes with empty stores, nothing measured, and no cap; all serve what they have."""
    for number, host in enumerate(hosts):
        host.speeds, host.traffic = Speeds(), Traffic()
        host.uplink, host.downlink = Cap(), Cap()
        serving[host] = Holder(host, tmp_path / f"node-{number}")
    return [serving[host] for host in hosts]


async def fetch(us: Holder, blob: str, *holders: Holder, size: int) -> bytes:
    ids = [holder.peer for holder in holders]
    wanted = delivery.Wanted(blob, ids, size, "state")
    return (await delivery.fetch(us.host, us.store, wanted)).read_bytes()


# --- accounts ---


async def test_both_sides_count_the_same_bytes_by_kind_and_by_peer(peers: list[Holder]) -> None:
    us, one, two, _ = peers
    pieces = {"contribution": made(1, 3 * CHUNK + 5), "slice": made(2, 70_000), "state": b""}
    wanted = []
    for kind, data in pieces.items():
        for holder in (one, two):
            blob = holder.store.put(data)
            holder.store.label(kind, blob)  # type: ignore[arg-type]
        wanted.append(Wanted(blob, [one.peer, two.peer], len(data), kind))  # type: ignore[arg-type]
    paths = await delivery.fetch_all(us.host, us.store, wanted)
    assert [path.read_bytes() for path in paths] == list(pieces.values())
    pushed, one.takes = us.store.put(made(3, 2 * CHUNK)), "data"
    await delivery.push_all(us.host, us.store, one.peer, [pushed], kind="data")
    await until(lambda: not held(one.host) and not held(two.host))

    ours, theirs = us.host.traffic, [one.host.traffic, two.host.traffic]
    assert ours.down == theirs[0].up + theirs[1].up
    assert ours.up == theirs[0].down + theirs[1].down
    for holder in (one, two):
        assert ours.fetched[holder.peer] == holder.host.traffic.served[us.peer]
        assert ours.served[holder.peer] == holder.host.traffic.fetched[us.peer]
    for kind, data in pieces.items():
        # 32 bytes of hash for each chunk, and less than 200 of messages for each request.
        requests = one.asked.total() + two.asked.total()
        assert len(data) <= ours.down[kind] <= len(data) + 4 * 32 + 200 * requests
    assert ours.fetched.total() == ours.down.total()
    assert 2 * CHUNK < ours.up["data"] < 2 * CHUNK + 200
    assert ours.down["other"] == ours.up["other"] == 0
    assert not ours.wasted


async def test_strangers_without_end_share_one_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "_MAX_PEERS", 3)
    traffic = Traffic()
    for number in range(10):
        streams._add(traffic.served, f"peer {number}", 5)
    assert len(traffic.served) == 4
    assert traffic.served.total() == 50


# --- the uplink cap ---


async def test_the_uplink_cap_is_obeyed_and_small_messages_do_not_wait(
    peers: list[Holder],
) -> None:
    us, one, *_ = peers
    rate, data = 3e6, made(4, 6 * CHUNK)
    blob = one.store.put(data)
    one.host.uplink = Cap(rate)
    began = time.monotonic()
    fetching = asyncio.create_task(fetch(us, blob, one, size=len(data)))
    await asyncio.sleep(0.5)
    waits = []
    while not fetching.done():
        asked = time.monotonic()
        await us.host.ask(one.peer, wire.CONTENT, messages.GetHave(ids=[blob]))
        waits.append(time.monotonic() - asked)
        await asyncio.sleep(0.05)
    seconds = time.monotonic() - began
    assert await fetching == data
    assert one.host.traffic.up.total() / (rate * seconds) < 1.08
    assert sorted(waits)[len(waits) // 2] < seconds / 10, "bulk does not stand before a message"


@pytest.mark.parametrize("way", ["uplink", "downlink"])
async def test_a_cap_that_is_changed_under_way_is_obeyed_within_a_tenth(
    peers: list[Holder], way: str
) -> None:
    us, one, *_ = peers
    data = made(5, 12 * CHUNK)
    blob = one.store.put(data)
    cap = one.host.uplink if way == "uplink" else us.host.downlink
    moved = one.host.traffic.up if way == "uplink" else us.host.traffic.down
    cap.change(0.25e6)
    fetching = asyncio.create_task(fetch(us, blob, one, size=len(data)))
    for rate in (0.25e6, 0.625e6, 1.25e6):  # 2, 5 and 10 Mbit/s
        cap.change(rate)
        await asyncio.sleep(1)
        began, before = time.monotonic(), moved.total()
        await asyncio.sleep(3)
        seen = (moved.total() - before) / (time.monotonic() - began)
        assert 0.9 < seen / rate < 1.1
    assert not fetching.done()
    cap.change(None)
    async with asyncio.timeout(30):
        assert await fetching == data


async def test_nobody_waits_behind_a_cap_that_was_taken_away() -> None:
    cap = Cap(1000)
    await cap.take(50_000)
    waiting = [asyncio.create_task(cap.take(50_000, small=small)) for small in (True, False)]
    await asyncio.sleep(0.05)
    assert not any(task.done() for task in waiting)
    cap.change(None)
    async with asyncio.timeout(1):
        await asyncio.gather(*waiting)
    cap.change(1e6)  # what was let through without a cap is not made up for
    async with asyncio.timeout(1):
        await cap.take(50_000)
        await cap.take(1)


async def test_streams_share_the_uplink_evenly() -> None:
    uplink, moved = Cap(2e6), [0, 0, 0]

    async def send(number: int, piece: int) -> None:
        while True:
            await uplink.take(piece)
            moved[number] += piece

    tasks = [asyncio.create_task(send(number, 16_384)) for number in range(3)]
    began = time.monotonic()
    await asyncio.sleep(1)
    for task in tasks:
        task.cancel()
    seconds = time.monotonic() - began
    assert max(moved) < 1.3 * min(moved)
    assert 0.5 < sum(moved) / (2e6 * seconds) < 1.06  # a busy machine lets some of it pass unused
    await uplink.take(10, small=True)  # those that are gone hold nobody up


async def test_strangers_take_an_eighth_of_an_uplink_that_members_want() -> None:
    uplink, moved = Cap(2e6), Counter[bool]()

    async def send(stranger: bool) -> None:
        while True:
            await uplink.take(16_384, stranger=stranger)
            moved[stranger] += 1

    strangers = [asyncio.create_task(send(True)) for _ in range(60)]
    await asyncio.sleep(0.3)
    assert moved[True] > 5
    moved.clear()
    members = [asyncio.create_task(send(False)) for _ in range(16)]  # more than fit in a burst
    await asyncio.sleep(1)
    for task in (*members, *strangers):
        task.cancel()
    assert moved[False] / 9 < moved[True] < moved[False] / 5, "who only reads is not starved"


async def test_what_strangers_fetch_comes_behind_what_members_do(peers: list[Holder]) -> None:
    us, one, other, *_ = peers
    current = ""
    seen: list[tuple[str, bool]] = []

    class Watched(Cap):
        async def take(self, count: int, *, small: bool = False, stranger: bool = False) -> None:
            seen.append((current, stranger))
            await super().take(count, small=small, stranger=stranger)

    one.host.uplink = Watched(50e6)
    for rank in Rank:
        blob = one.store.put(made(50 + rank, CHUNK))
        one.host.admit(members(us.peer, rank=rank))
        for holder in (us, other):
            current = holder.peer
            await fetch(holder, blob, one, size=CHUNK)
        assert set(seen) == {(us.peer, rank is not Rank.KNOWN), (other.peer, True)}
        seen.clear()
    one.host.admit(anybody)


async def test_no_cap_costs_nothing() -> None:
    await Cap().take(1 << 40)


# --- who is asked for what ---


async def test_the_rarest_content_is_asked_for_first(
    peers: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    us, one, two, three = peers
    common = [made(10 + n, 1000) for n in range(6)]
    rare = made(20, 1000)
    for holder in (one, two, three):
        for data in common:
            holder.store.put(data)
    blob = one.store.put(rare)
    many = [one.peer, two.peer, three.peer]
    wanted = [Wanted(content.content_id(data), many, 1000) for data in common]
    wanted.append(Wanted(blob, [one.peer], 1000))
    monkeypatch.setattr(swarming, "AT_ONCE", 1)  # so that the order can be seen
    await delivery.fetch_all(us.host, us.store, wanted)
    assert one.order[0] == blob


async def test_nodes_ask_for_equally_rare_content_in_different_orders() -> None:
    wanted = [Wanted(f"{n:064x}", ["a", "b"], 1) for n in range(8)]
    orders = {
        tuple(job.blob for job in sorted((Job(one, us, 0.0) for one in wanted), key=Job.rarity))
        for us in ("one", "two", "three")
    }
    assert len(orders) == 3


async def test_the_last_holder_is_spared_while_others_do(peers: list[Holder]) -> None:
    us, one, two, last = peers
    blobs = []
    for n in range(4):
        data = made(30 + n, CHUNK + n)
        blobs.append(one.store.put(data))
        last.store.put(data)
    holders = [one.peer, two.peer, last.peer]
    await delivery.fetch_all(us.host, us.store, [Wanted(b, holders, 2 * CHUNK) for b in blobs])
    assert not last.asked["get_chunks"] + last.asked["get_index"]
    for blob in blobs:
        us.store.delete(blob)
        one.store.delete(blob)
    await delivery.fetch_all(us.host, us.store, [Wanted(b, holders, 2 * CHUNK) for b in blobs])
    assert last.asked["get_index"] == 4


async def test_the_nearest_of_equals_is_asked(peers: list[Holder]) -> None:
    us, one, two, three = peers
    data = made(40, 100)
    blobs = {holder.store.put(data) for holder in (one, two, three)}
    for holder, seconds in ((one, 0.9), (two, 0.01), (three, 0.4)):
        us.host.speeds.waited(holder.peer, seconds)
    swarm = swarming.Swarm(us.host, us.store)
    ids = [one.peer, two.peer, three.peer, "coordinator"]
    job = Job(Wanted(blobs.pop(), ids, 100), us.peer, 0.0)
    assert list(swarm._nearest(job, 0.0, 100)) == [one.peer], "who should have it, not who may"
    doubling = list(swarm._nearest(job, 0.0, 100, doubling=True))
    assert doubling == [one.peer, two.peer, three.peer, "coordinator"]
    for holder in (one, two, three):
        job.note_have(holder.peer, 2, b"")
    assert list(swarm._nearest(job, 0.0, 100)) == [two.peer, three.peer, one.peer]
    job.note_have(two.peer, 0, b"")
    assert list(swarm._nearest(job, 0.0, 100)) == [three.peer, one.peer]


async def test_speeds_follow_measurements_and_forget_the_oldest() -> None:
    speeds = Speeds()
    guess = speeds.expected("a", 1 << 20)
    speeds.waited("a", 0.2)
    speeds.moved("a", 1 << 20, 1.0)
    assert speeds.expected("a", 1 << 20) == pytest.approx(1.2)
    for _ in range(30):
        speeds.moved("a", 1 << 20, 2.0)
    assert speeds.expected("a", 1 << 20) == pytest.approx(2.2, rel=0.01)
    speeds.moved("a", 100, 5.0)  # too little to tell
    assert speeds.expected("a", 1 << 20) == pytest.approx(2.2, rel=0.01)
    for number in range(1100):
        speeds.waited(f"peer {number}", 1.0)
    assert speeds.expected("a", 1 << 20) == guess


# --- slow holders ---


def trickle(piece: int, pause: float) -> Callable[..., object]:
    """Serves the right bytes, slowly."""

    async def lie(request: messages.Message, stream: wire.ByteStream, store: BlobStore) -> bool:
        if not isinstance(request, messages.GetChunks | messages.GetIndex):
            return False
        data = store.path(request.id).read_bytes()  # type: ignore[union-attr]
        if isinstance(request, messages.GetIndex):
            hashes = content.chunk_hashes(data)
            await wire.write_message(stream, messages.Index(size=len(data)))
            await stream.write(b"".join(hashes))
            return True
        start = request.first * CHUNK
        chunks = data[start : start + request.count * CHUNK]
        await wire.write_message(stream, messages.Chunks(size=len(chunks)))
        with contextlib.suppress(OSError, Unreachable):
            for offset in range(0, len(chunks), piece):
                await stream.write(chunks[offset : offset + piece])
                await asyncio.sleep(pause)
        return True

    return lie


def slow(holder: Holder, piece: int, pause: float) -> None:
    lie = trickle(piece, pause)
    holder.lie = lambda request, stream: lie(request, stream, holder.store)  # type: ignore


@pytest.mark.parametrize(("piece", "pause"), [(50_000, 0.1), (1, 60.0)], ids=["slow", "stalled"])
async def test_what_is_slow_is_asked_of_another_holder_too(
    peers: list[Holder], monkeypatch: pytest.MonkeyPatch, piece: int, pause: float
) -> None:
    us, one, two, _ = peers
    monkeypatch.setattr(swarming, "PATIENCE_S", 0.3)
    monkeypatch.setattr(swarming, "SLOW_S", 1.0)
    data = made(50, 4 * CHUNK)
    for holder in (one, two):
        blob = holder.store.put(data)
    slow(one, piece, pause)
    # Enough is wanted that doubling these chunks is within bounds.
    began = time.monotonic()
    assert await fetch(us, blob, one, two, size=40 * CHUNK) == data
    assert time.monotonic() - began < 4, "at the pace of the slow one it takes 8 s, or for ever"
    assert two.asked["chunks"] >= 1
    wasted = us.host.traffic.wasted["state"]
    assert wasted <= 4 * CHUNK + 100_000
    assert us.host.traffic.down["state"] >= len(data) + wasted
    assert await fetch(us, blob, one, size=40 * CHUNK) == data  # it is here
    # And the next time the quick one is the nearer one.
    assert us.host.speeds.expected(two.peer, CHUNK) < us.host.speeds.expected(one.peer, CHUNK)


async def test_two_of_three_holders_that_stall_delay_once_each(
    peers: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    us, one, two, three = peers
    monkeypatch.setattr(swarming, "PATIENCE_S", 0.3)
    monkeypatch.setattr(swarming, "SLOW_S", 0.5)
    data = made(53, 3 * CHUNK)
    for holder in (one, two, three):
        blob = holder.store.put(data)
    slow(one, 1, 60.0)
    slow(two, 1, 60.0)
    began = time.monotonic()
    assert await fetch(us, blob, one, two, three, size=len(data)) == data
    assert time.monotonic() - began < 4


async def test_slow_but_steady_is_not_doubled_beyond_the_bound(
    peers: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    us, one, two, _ = peers
    monkeypatch.setattr(swarming, "PATIENCE_S", 0.2)
    monkeypatch.setattr(swarming, "SPARE_S", 60.0)
    data = made(51, 2 * CHUNK)
    for holder in (one, two):
        blob = holder.store.put(data)
    slow(one, 100_000, 0.1)
    assert await fetch(us, blob, one, two, size=len(data)) == data
    assert not two.asked["chunks"], "an eighth of 2 MiB is less than a chunk"
    assert not us.host.traffic.wasted


async def test_a_trickle_is_given_up(peers: list[Holder], monkeypatch: pytest.MonkeyPatch) -> None:
    us, one, *_ = peers
    monkeypatch.setattr(streams, "READ_TIMEOUT_S", 0.5)
    data = made(52, CHUNK)
    blob = one.store.put(data)
    slow(one, 1, 0.02)
    with pytest.raises(Unreachable, match="took over"):
        await fetch(us, blob, one, size=len(data))


# --- parts, lies, bounds ---


async def test_what_is_half_here_is_served_already(peers: list[Holder]) -> None:
    us, middle, seed, _ = peers
    data = made(60, 6 * CHUNK + 7)
    blob = seed.store.put(data)
    seed.host.uplink = Cap(4e6)
    first = asyncio.create_task(fetch(middle, blob, seed, size=len(data)))
    await until(lambda: blob in middle.store.partials and middle.store.partials[blob].lead() > 0)
    reply = await us.host.ask(middle.peer, wire.CONTENT, messages.GetHave(ids=[blob, "ab" * 32]))
    assert isinstance(reply, messages.Have)
    assert reply.held == [1, 0]
    (said,), now = reply.parts, middle.store.partials[blob].bits()  # more may have come since
    assert any(said)
    assert all(was & bits == was for was, bits in zip(said, now, strict=True))
    missing = int((~middle.store.partials[blob].here).nonzero()[0][-1])
    with pytest.raises(wire.Refused) as refused:
        await us.host.ask(
            middle.peer, wire.CONTENT, messages.GetChunks(id=blob, first=missing, count=1)
        )
    assert refused.value.code == "no_chunk"
    assert await fetch(us, blob, middle, peers[3], seed, size=len(data)) == data
    assert await first == data
    assert us.host.traffic.fetched[middle.peer] > CHUNK
    assert us.host.traffic.fetched[seed.peer] < len(data)
    reply = await us.host.ask(middle.peer, wire.CONTENT, messages.GetHave(ids=[blob]))
    assert reply == messages.Have(held=[2], parts=[])


def saying(reply: messages.Message) -> Answer:
    """Whoever asks what is held gets this reply."""

    async def lie(request: messages.Message, stream: wire.ByteStream) -> bool:
        if isinstance(request, messages.GetHave):
            await wire.write_message(stream, reply)
        return isinstance(request, messages.GetHave)

    return lie


async def test_holders_that_only_say_that_they_have_it(
    peers: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    us, liar, seed, _ = peers
    data = made(61, 5 * CHUNK)
    blob = seed.store.put(data)
    seed.host.uplink = Cap(3e6)
    monkeypatch.setattr(swarming, "HAVE_AFTER_S", 0.0)

    liar.lie = saying(messages.Have(held=[2], parts=[]))
    assert await fetch(us, blob, seed, liar, peers[3], size=len(data)) == data
    assert liar.asked["get_have"] >= 1
    assert liar.asked["get_chunks"] + liar.asked["get_index"] <= 2


@pytest.mark.parametrize(
    "reply",
    [
        messages.Have(held=[], parts=[]),
        messages.Have(held=[1], parts=[]),
        messages.Have(held=[1], parts=[b"\x01"]),
        messages.Have(held=[1], parts=[bytes(8192)]),
        messages.Have(held=[0], parts=[b"\xff"]),
        messages.Ok(),
    ],
)
async def test_nonsense_about_having_does_no_harm(
    peers: list[Holder], monkeypatch: pytest.MonkeyPatch, reply: messages.Message
) -> None:
    us, liar, seed, _ = peers
    data = made(62, 9 * CHUNK)
    blob = seed.store.put(data)
    seed.host.uplink = Cap(20e6)
    monkeypatch.setattr(swarming, "HAVE_AFTER_S", 0.0)

    liar.lie = saying(reply)
    assert await fetch(us, blob, seed, liar, peers[3], size=len(data)) == data
    assert liar.asked["get_have"] >= 1


async def test_one_that_cannot_be_had_is_said_and_the_rest_goes_on_later(
    peers: list[Holder],
) -> None:
    us, one, *_ = peers
    blob = one.store.put(made(70, 1000))
    wanted = [Wanted(blob, [one.peer], 1000), Wanted("ab" * 32, [one.peer], 1000)]
    with pytest.raises(Unreachable, match=r"abababababab….*not here"):
        await delivery.fetch_all(us.host, us.store, wanted)
    assert await delivery.fetch_all(us.host, us.store, []) == []
    (path,) = await delivery.fetch_all(us.host, us.store, wanted[:1])
    assert path.name == blob
    assert not us.store.partials


async def test_who_is_silent_keeps_nothing_else_back(
    peers: list[Holder], monkeypatch: pytest.MonkeyPatch
) -> None:
    us, liar, one, _ = peers

    async def silent(request: messages.Message, stream: wire.ByteStream) -> bool:
        await asyncio.sleep(60)
        return True

    liar.lie = silent
    monkeypatch.setattr(swarming, "AT_ONCE", 1)
    monkeypatch.setattr(swarming, "SLOW_S", 0.5)
    there = [one.store.put(made(75 + n, 1000)) for n in range(3)]
    wanted = [Wanted("ab" * 32, [liar.peer], 1000), Wanted("cd" * 32, [one.peer], 1000)]
    wanted += [Wanted(blob, [one.peer], 1000) for blob in there]
    began = time.monotonic()
    await delivery.fetch_some(us.host, us.store, wanted, 3.0)
    assert time.monotonic() - began == pytest.approx(3.0, abs=0.5)
    assert [us.store.has(one.blob) for one in wanted] == [False, False, True, True, True]
    assert not us.store.partials
    await delivery.fetch_some(us.host, us.store, wanted[1:])


async def test_a_request_that_is_cancelled_before_it_begins_leaves_nothing(
    peers: list[Holder],
) -> None:
    us, one, *_ = peers
    swarm = swarming.Swarm(us.host, us.store)
    job = Job(Wanted("ab" * 32, [one.peer], 10), us.peer, 0.0)
    swarm._start(Ask(job, one.peer, 0.0))
    (task,) = [ask.task for ask in job.asks]
    assert task is not None
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert not job.asks
    assert not swarm._asks
    assert not swarm._busy[one.peer]
    assert not one.asked


async def test_memory_stays_flat_however_much_is_fetched(peers: list[Holder]) -> None:
    us, one, two, _ = peers
    sizes = []
    for n in range(6):
        data = made(80 + n, 8 * CHUNK)
        for holder in (one, two):
            blob = holder.store.put(data)
        sizes.append(Wanted(blob, [one.peer, two.peer], len(data)))
    del data
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        await delivery.fetch_all(us.host, us.store, sizes)
        peak = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    # Two chunks for each request under way, and four requests (two for each holder) at a time.
    assert peak < 14 * CHUNK


async def test_pushing_many_skips_what_is_there(peers: list[Holder]) -> None:
    us, one, *_ = peers
    blobs = [us.store.put(made(90 + n, 5000 * n)) for n in range(12)]
    await delivery.push_all(us.host, us.store, one.peer, blobs, kind="slice")
    assert all(one.store.has(blob) for blob in blobs)
    assert one.asked["put"] == 12
    with pytest.raises(Unreachable, match="local store"):
        await delivery.push_all(us.host, us.store, one.peer, ["ab" * 32])
