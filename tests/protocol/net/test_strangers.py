"""Strangers without number: streams, connections and DHT records that they may take."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import socket
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerInfo
from multiaddr import Multiaddr

from artel.protocol import messages
from artel.protocol.errors import ArtelError
from artel.protocol.net import gateway, knocking, p2pd, reception, slots, streams, wire
from artel.protocol.net.cap import Cap
from artel.protocol.net.gateway import Gateway
from artel.protocol.net.host import Host
from artel.protocol.net.knocking import Door
from artel.protocol.net.slots import ROOMS, STRANGER, Caller, Callers, Rank, Slots
from artel.protocol.net.streams import Stream, Traffic
from host_world import daemon_of, members, named, raw, start, swarm, until
from strangers_world import slow_strangers

ECHO = "/artel/echo/1.0.0"


async def _echo(peer: str, request: messages.Message, stream: wire.ByteStream) -> messages.Message:
    return request


async def seconds_of(host: Host, server: Host) -> float:
    """How long one request takes; a minute when it fails."""
    began = time.monotonic()
    try:
        await host.ask(server.peer_id, ECHO, messages.Ok(), timeout=10)
    except ArtelError:
        return 60.0
    return time.monotonic() - began


async def test_seventeen_slow_strangers_take_no_stream_of_a_member(tmp_path: Path) -> None:
    async with contextlib.AsyncExitStack() as stack:
        server = await start(tmp_path / "server")
        stack.push_async_callback(server.close)
        member = await start(tmp_path / "member", server)
        stack.push_async_callback(member.close)
        visitor = await start(tmp_path / "visitor", server)
        stack.push_async_callback(visitor.close)
        server.admit(members(member.peer_id))
        await server.serve(ECHO, _echo)
        inside, outside = [], []
        async with slow_strangers((await server.addresses())[0], 17, 16, ECHO):
            for _ in range(12):
                inside.append(await seconds_of(member, server))
                outside.append(await seconds_of(visitor, server))
                await asyncio.sleep(0.3)
        print(f"member: {max(inside):.3f} s at most, visitor: {max(outside):.3f} s at most")
        assert max(inside) < 2
        assert max(outside) < 5


async def test_no_member_is_refused_while_more_strangers_come_than_we_take_over(
    tmp_path: Path,
) -> None:
    def ask_while_nobody_listens() -> int:
        """How many of ten streams that a member opens, beside those of strangers, are answered."""
        return asyncio.run(answers())

    async def answers() -> int:
        gateway = Gateway(member._daemon.socket, "", lambda *_: None)
        peer, loop, found = (
            PeerID.from_base58(server.peer_id).to_bytes(),
            asyncio.get_running_loop(),
            0,
        )
        opened = []
        for _ in range(10):
            opened.append(await gateway.dial(peer, ECHO))
            await asyncio.sleep(0.3)
        for one in opened:
            with contextlib.suppress(OSError):
                await loop.sock_sendall(one, wire.encode(messages.Ok()))
                found += bool(await asyncio.wait_for(loop.sock_recv(one, 4), 20))
            one.close()
        return found

    async with swarm(tmp_path, 2) as (server, member):
        server.admit(members(member.peer_id))
        await server.serve(ECHO, _echo)
        assert await seconds_of(member, server) < 10, "they are connected"
        async with slow_strangers((await server.addresses())[0], 8, 200, ECHO):
            asking = asyncio.create_task(asyncio.to_thread(ask_while_nobody_listens))
            await asyncio.sleep(0)
            time.sleep(5)  # noqa: ASYNC251  what was refused before comes back in this time
            assert await asking == 10


async def test_who_is_shut_out_loses_its_connection_and_a_member_keeps_it(tmp_path: Path) -> None:
    async with swarm(tmp_path, 3) as (server, member, stranger):
        server.admit(members(member.peer_id))
        await server.serve(ECHO, _echo)

        async def connected() -> set[str]:
            return {str(info.peer_id) for info in await server._daemon.p2p.list_peers()}

        assert await seconds_of(stranger, server) < 10
        assert await seconds_of(member, server) < 10
        assert {stranger.peer_id, member.peer_id} <= await connected()

        async def open_and_close(host: Host) -> None:
            with contextlib.suppress(*reception.STREAM_ERRORS):
                (await host._dial(server.peer_id, ECHO)).close()

        for _ in range(2 * slots.LOSSES):
            await open_and_close(member)
        async with asyncio.timeout(30):
            while stranger.peer_id in await connected():
                await open_and_close(stranger)
                await asyncio.sleep(0.05)
        assert member.peer_id in await connected()
        assert await seconds_of(stranger, server) == 60
        assert await seconds_of(member, server) < 10


# --- slots ---


class Held:
    """A stream whose other end is in the test's hands."""

    def __init__(self, peer: str) -> None:
        ours, self.theirs = socket.socketpair()
        ours.setblocking(False)
        self.stream = Stream(ours, peer, "other", Traffic(), Cap(None))
        self.read = asyncio.create_task(self._read())

    async def _read(self) -> str:
        try:
            await self.stream.read_exactly(1 << 20)
        except ArtelError as error:
            return error.message
        return ""

    def take(self, places: Slots, network: str) -> slots.Slot | None:
        """A slot for this stream, which comes from there."""
        self.stream.network = network
        return places.take(self.stream)

    def at_work(self, places: Slots) -> None:
        """Take a slot for this stream, whose request has been read."""
        self.read.cancel()
        slot = self.take(places, "127.0.0.1")
        assert slot is not None
        slot.asked = True

    async def send(self, count: int) -> None:
        self.theirs.send(bytes(count))
        await asyncio.sleep(0)
        await asyncio.sleep(0.02)


MEMBER = named("member").peer_id


@contextlib.asynccontextmanager
async def held(*peers: str) -> AsyncIterator[list[Held]]:
    made = [Held(peer) for peer in peers]
    await asyncio.sleep(0.02)
    try:
        yield made
    finally:
        for one in made:
            one.read.cancel()
            one.theirs.close()
            one.stream.close()


async def test_the_slowest_stranger_gives_way_and_never_a_member() -> None:
    count = ROOMS[Rank.STRANGER].streams
    places = Slots(members(MEMBER))
    names = [named(f"stranger {number}").peer_id for number in range(count + 1)]
    async with held(MEMBER, *names) as (member, *strangers):
        assert member.take(places, "203.0.113.1") is not None
        for number, one in enumerate(strangers[:-1]):
            assert one.take(places, f"198.51.100.{number}") is not None
        for one in (*strangers[:7], *strangers[8:-1]):
            await one.send(4096)
        assert strangers[-1].take(places, "203.0.113.2") is not None
        assert "others wait" in await asyncio.wait_for(strangers[7].read, 1)
        assert not any(one.read.done() for one in (member, *strangers[:7], *strangers[8:]))
        assert len(places._held) == count + 1


async def test_strangers_at_one_address_compete_among_themselves() -> None:
    most = ROOMS[Rank.STRANGER].address
    places = Slots(lambda peer: STRANGER)
    names = [named(f"stranger {number}").peer_id for number in range(most + 2)]
    async with held(*names) as (elsewhere, *here):
        elsewhere.take(places, "198.51.100.1")
        for one in here:
            assert one.take(places, "2001:db8::/64") is not None
        await asyncio.wait_for(here[0].read, 1)
        assert not any(one.read.done() for one in (elsewhere, *here[1:]))
    async with held(*names) as all_of_them:
        for one in all_of_them:
            assert one.take(places, "127.0.0.1") is not None
        await asyncio.sleep(0.02)
        assert not any(one.read.done() for one in all_of_them), "loopback is no address"


async def test_one_stranger_has_its_part_and_is_refused_the_rest() -> None:
    places, most = Slots(lambda peer: STRANGER), ROOMS[Rank.STRANGER].each
    one, other = named("one").peer_id, named("other").peer_id
    async with held(other, *[one] * (most + 1)) as (quiet, *mine):
        for stream in (quiet, *mine[:-1]):
            assert stream.take(places, "127.0.0.1") is not None
        assert mine[-1].take(places, "127.0.0.1") is None
        await asyncio.sleep(0.02)
        assert not any(stream.read.done() for stream in (quiet, *mine))
        left = places._losses.left(one)
        slot = next(slot for slot in places._held if slot.stream is mine[3].stream)
        slot.asked = slot.answered = True  # and the peer has not closed it
        assert mine[-1].take(places, "127.0.0.1") is not None
        assert "others wait" in await asyncio.wait_for(mine[3].read, 1)
        assert places._losses.left(one) == pytest.approx(left, abs=0.1), "no loss of its own"


async def test_who_is_refused_again_and_again_is_shut_out_and_a_member_never() -> None:
    out: list[str] = []
    places = Slots(lambda peer: registered(peer) if peer != KEYS[0] else STRANGER, out.append)
    for peer in (KEYS[0], KEYS[1], MEMBER):
        most = ROOMS[places._caller(peer).rank].each
        async with held(*[peer] * (most + 1)) as (*mine, more):
            for stream in mine:
                stream.at_work(places)
            await asyncio.sleep(0.02)
            for _ in range(slots.LOSSES):
                assert more.take(places, "127.0.0.1") is None
            assert out == []
            for _ in range(2):
                assert more.take(places, "127.0.0.1") is None
            assert out == ([] if peer == MEMBER else [peer] * 2)
            out.clear()
            for slot in tuple(places._held):
                places.give_back(slot)
            assert (more.take(places, "127.0.0.1") is None) == (peer != MEMBER)
            out.clear()
    assert places._count.total() == 4, "one stream, in four crowds"


async def test_of_equals_the_one_that_has_lost_the_most_gives_way() -> None:
    places = Slots(lambda peer: STRANGER)
    names = [named(f"stranger {number}").peer_id for number in range(ROOMS[Rank.STRANGER].streams)]
    async with held(names[7], *names, NEWCOMER) as (lost, *strangers, newcomer):
        slot = lost.take(places, "127.0.0.1")
        assert slot is not None
        places.give_back(slot)
        for one in strangers:
            assert one.take(places, "127.0.0.1") is not None
        assert newcomer.take(places, "127.0.0.1") is not None
        await asyncio.sleep(0.02)
        assert [n for n, one in enumerate(strangers) if one.read.done()] == [7]


async def test_who_opens_streams_and_asks_nothing_is_shut_out() -> None:
    out: list[str] = []
    places = Slots(lambda peer: STRANGER, out.append)
    async with held(KEYS[0]) as (one,):
        for _ in range(slots.LOSSES):
            slot = one.take(places, "127.0.0.1")
            assert slot is not None
            places.give_back(slot)
        assert one.take(places, "127.0.0.1") is None
        assert out == [KEYS[0]]
    assert not places._count


async def test_of_many_that_come_at_once_none_is_refused_for_those_before_it() -> None:
    places, count = Slots(lambda peer: STRANGER), ROOMS[Rank.STRANGER].streams
    names = [named(f"stranger {number}").peer_id for number in range(count + 1)]
    async with held(*names) as strangers:
        for one in strangers:
            one.read.cancel()  # nobody has begun to read
            slot = one.take(places, "127.0.0.1")
            assert slot is not None
        assert [one.stream.given_up for one in strangers] == [True] + count * [False]


async def test_a_stream_that_we_are_at_work_for_is_not_given_up() -> None:
    places = Slots(lambda peer: STRANGER)
    async with held(*[named("one").peer_id] * (ROOMS[Rank.STRANGER].each + 1)) as mine:
        for one in mine[:-1]:
            one.at_work(places)
        await asyncio.sleep(0.02)
        assert mine[-1].take(places, "127.0.0.1") is None


ROOM = ROOMS[Rank.REGISTERED]
KEYS = [named(f"key {number}").peer_id for number in range(ROOM.streams // ROOM.each)]
"""As many as fill all slots of those who are registered."""
NEWCOMER = named("newcomer").peer_id


def registered(peer: str) -> Caller:
    """Everybody but the member, which is known, each with an account of its own."""
    return Caller(Rank.KNOWN if peer == MEMBER else Rank.REGISTERED, f"account of {peer}")


async def test_keys_that_are_registered_and_slow_keep_nobody_out() -> None:
    places = Slots(registered)
    crowd = [peer for peer in KEYS for _ in range(ROOM.each)]
    async with held(*crowd, *KEYS, NEWCOMER, MEMBER) as made:
        *slow, newcomer, member = made
        for one in slow[: len(crowd)]:
            assert one.take(places, "127.0.0.1") is not None
        assert newcomer.take(places, "127.0.0.1") is not None
        assert member.take(places, "127.0.0.1") is not None
        for one in slow[len(crowd) :]:  # they open again what they lost
            one.take(places, "127.0.0.1")
        await asyncio.sleep(0.02)
        assert not newcomer.read.done(), "whoever keeps us waiting in many streams loses them"
        assert not member.read.done()
        assert len(places._held) == ROOM.streams + 1


async def test_among_members_too_the_slowest_gives_way() -> None:
    places = Slots(registered)
    async with held(*[MEMBER] * (ROOM.each + 3)) as mine:
        for one in mine[: ROOM.each]:
            slot = one.take(places, "127.0.0.1")
            assert slot is not None
            slot.asked = one is not mine[5]
            if one is mine[0]:
                one.read.cancel()  # its request has been read, and we are at work for it
        mine[9].stream._behind = slots.SLOW_S
        await asyncio.sleep(0.02)
        for number, one in enumerate(mine[ROOM.each :]):
            slot = one.take(places, "127.0.0.1")
            assert slot is not None
            slot.asked = True
            await asyncio.sleep(0.02)
            gone = {n for n, other in enumerate(mine[1:], 1) if other.read.done()}
            assert gone == [{9}, {5, 9}, {1, 5, 9}][number]
        assert mine[0].stream.given_up is False


async def test_one_account_has_so_many_streams_however_many_nodes_it_has() -> None:
    most = ROOM.account
    names = [named(f"node {number}").peer_id for number in range(most + 1)]
    places = Slots(lambda peer: Caller(Rank.REGISTERED, "one" if peer in names else peer))
    async with held(NEWCOMER, *names) as (other, *mine):
        for one in (other, *mine):
            assert one.take(places, "127.0.0.1") is not None
        await asyncio.wait_for(mine[0].read, 1)
        assert not any(one.read.done() for one in (other, *mine[1:]))


async def test_who_is_known_has_slots_that_nobody_else_takes() -> None:
    places = Slots(registered)
    async with held(*[peer for peer in KEYS for _ in range(ROOM.each)], NEWCOMER, MEMBER) as made:
        *busy, newcomer, member = made
        for one in busy:
            one.at_work(places)
        await asyncio.sleep(0.02)
        assert newcomer.take(places, "127.0.0.1") is None
        assert member.take(places, "127.0.0.1") is not None


@pytest.mark.parametrize(
    ("address", "ip"),
    [
        ("/ip4/198.51.100.7/tcp/4001", "198.51.100.7"),
        ("/ip6/2001:db8::1/udp/4001/quic-v1", "2001:db8::1"),
        (f"/ip4/192.0.2.1/tcp/1/p2p/{MEMBER}/p2p-circuit", "192.0.2.1"),
        ("/dns4/example.org/tcp/1", ""),
    ],
)
async def test_where_a_stream_comes_from(address: str, ip: str) -> None:
    whole = Multiaddr(address).to_bytes()
    assert gateway._ip_of(whole) == ip
    assert gateway._ip_of(whole[:3]) == gateway._ip_of(b"") == ""


async def test_members_are_we_and_those_who_sit_or_have_standing() -> None:
    callers = Callers(MEMBER)
    assert callers.is_member(MEMBER)
    for rank in Rank:
        callers.named = members(NEWCOMER, rank=rank)
        assert callers.is_member(NEWCOMER) == (rank is Rank.KNOWN)


# --- deadlines ---


async def test_a_strangers_first_frame_has_a_deadline_and_the_rest_a_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reception, "FIRST_S", 1.0)
    monkeypatch.setattr(slots, "STRANGER_PATIENCE_S", 1.5)

    async def takes(peer: str, request: messages.Message, stream: wire.ByteStream) -> messages.Ok:
        assert isinstance(request, messages.Probe)
        await stream.read_exactly(request.size)
        return messages.Ok()

    async def seconds_until_closed(size: int, pause: float, begin: bytes) -> float:
        reader, writer = await raw(client, server.peer_id, ECHO)
        writer.write(begin)
        began = time.monotonic()
        gone = asyncio.create_task(reader.read(1))
        with contextlib.suppress(OSError):
            while not gone.done() and time.monotonic() - began < 6:
                writer.write(bytes(size))
                await writer.drain()
                await asyncio.wait({gone}, timeout=pause)
        writer.close()
        with contextlib.suppress(OSError):
            await gone
        return time.monotonic() - began

    async with swarm(tmp_path, 2) as (server, client):
        await server.serve(ECHO, takes)
        frame = b"\x00\x00\x10\x00\x93\x02\xa2ok"
        probe = wire.encode(messages.Probe(size=1 << 20))
        late, slow, steady = await asyncio.gather(
            seconds_until_closed(1, 0.1, frame),
            seconds_until_closed(1, 0.1, probe),
            seconds_until_closed(400, 0.1, probe),
        )
        assert 0.8 < late < 4
        assert 1.2 < slow < 5
        assert steady > 6, "4 kB/s is quick enough"


async def test_whoever_reads_a_byte_now_and_then_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(streams, "IDLE_TIMEOUT_S", 1.0)
    async with held(MEMBER) as (one,):
        one.read.cancel()
        await asyncio.sleep(0)
        sending = asyncio.create_task(one.stream.write(bytes(8 << 20)))
        one.theirs.setblocking(False)
        began = time.monotonic()
        while not sending.done() and time.monotonic() - began < 10:
            with contextlib.suppress(BlockingIOError):
                one.theirs.recv(1)
            await asyncio.sleep(0.05)
        with pytest.raises(ArtelError, match="too little"):
            await sending


# --- connections ---


async def test_this_process_may_have_as_many_open_files_as_the_system_gives() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(600, before[1]), before[1]))
    try:
        p2pd.raise_open_files()
        most = p2pd.OPEN_FILES if before[1] == resource.RLIM_INFINITY else before[1]
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == min(most, p2pd.OPEN_FILES)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


async def test_the_daemon_keeps_members_connections_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p2pd, "PROBE_EVERY_S", 0.05)
    async with swarm(tmp_path, 3) as (server, member, stranger):
        flags = daemon_of(server).cmdline()
        assert {"-connLo=320", "-connHi=448", "-connGrace=20s"} <= set(flags)
        server.admit(members(member.peer_id))
        for host in (member, stranger):
            assert await host.connect(server.peer_id, await server.addresses())
        await until(lambda: server._preferred == {member.peer_id}, 20)
        told: list[tuple[str, bool]] = []

        async def prefer(peer: bytes, *, wanted: bool = True) -> None:
            told.append((str(PeerID(peer)), wanted))

        monkeypatch.setattr(server._gateway, "prefer", prefer)
        server.admit(members(member.peer_id, rank=Rank.REGISTERED))  # its standing is gone
        await until(lambda: not server._preferred, 20)
        assert told == [(member.peer_id, False)]


@pytest.mark.parametrize("said", [b"", b"\x13"])
async def test_a_daemon_with_few_files_answers_beside_connections_without_a_handshake(
    said: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(knocking, "SWEEP_S", 0.2)
    monkeypatch.setattr(knocking, "ANSWER_S", 0.2)
    monkeypatch.setattr(reception, "FIRST_S", 60.0)  # a stream stands by, and the machine is busy
    async with swarm(tmp_path, 2) as (server, client):
        await server.serve(ECHO, _echo)
        server.admit(members(client.peer_id))
        reader, writer = await raw(client, server.peer_id, ECHO)
        daemon = daemon_of(server)
        daemon.rlimit(psutil.RLIMIT_NOFILE, (512, 512))
        port = int((await server.addresses())[0].split("/")[4])
        silent = []
        try:
            for number in range(2000):
                one = socket.socket()
                one.setblocking(False)
                one.connect_ex(("127.0.0.1", port))
                with contextlib.suppress(OSError):
                    one.send(said)
                silent.append(one)
                if number % 100 == 0:
                    await asyncio.sleep(0.01)
            if said:
                await until(lambda: daemon.num_fds() < 300, 15)
            assert daemon.num_fds() < 300, "a silent one does not reach it"
            writer.write(wire.encode(messages.Ok()))
            assert await asyncio.wait_for(reader.read(1), 5), "what had a handshake was ended"
            writer.close()
            for number in range(3):
                assert await seconds_of(client, server) < 2
                newcomer = await start(tmp_path / f"new-{number}", server)
                try:
                    assert await seconds_of(newcomer, server) < 3
                finally:
                    await newcomer.close()
            assert daemon == daemon_of(server), "it was not started again"
        finally:
            for one in silent:
                one.close()


async def test_where_sockets_cannot_be_taken_from_a_child_nobody_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def nobody() -> list[PeerInfo]:
        return []

    monkeypatch.setattr(knocking, "SWEEP_S", 0.01)
    monkeypatch.setattr(knocking, "QUIET", -1)
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(Door(os.getpid()).keep(nobody), 0.5)
    monkeypatch.delattr(os, "pidfd_open")
    await asyncio.wait_for(Door(os.getpid()).keep(nobody), 5)
    await asyncio.wait_for(Door(2**30).keep(nobody), 5)


def test_of_connections_without_a_handshake_the_last_ones_stay() -> None:
    def ended(since: dict[knocking.End, float], now: float = 1.0) -> set[knocking.End]:
        return set(knocking.too_many(since, now))

    crowd = {("203.0.113.1", port): port / 1000 for port in range(knocking.MOST_EACH + 3)}
    assert ended(crowd) == {("203.0.113.1", port) for port in range(3)}
    assert not ended({("127.0.0.1", port): 0.0 for port in range(knocking.MOST_EACH + 3)})
    network = {(f"2001:db8::{port:x}", port): 0.0 for port in range(knocking.MOST_EACH + 1)}
    assert len(ended(network)) == 1, "an IPv6 network of 64 bits is one address"
    many = {(f"198.51.100.{n}", 1): n / 1000 for n in range(knocking.MOST + 2)}
    assert ended(many) == {("198.51.100.0", 1), ("198.51.100.1", 1)}
    assert ended(crowd, knocking.PATIENCE_S + 1) == set(crowd)
    assert not ended(dict.fromkeys(many, 1.0)), "they were not there at the last look"


def test_those_that_have_said_as_much_as_a_handshake_takes_are_the_last_to_end() -> None:
    member, many = ("192.0.2.1", 1), [(f"198.51.100.{n}", 1) for n in range(knocking.MOST)]
    since = {member: 0.0} | dict.fromkeys(many, 0.5)
    assert list(knocking.too_many(since, 1.0)) == [member]
    (ended,) = knocking.too_many(since, 1.0, {member})
    assert ended in many
