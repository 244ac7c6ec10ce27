"""Hosts on real sockets: what peers, network daemons and people can do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import random
import re
import signal
import socket
import struct
import subprocess
import sys
import time
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
import pytest_asyncio

import host_world
from artel.protocol import messages
from artel.protocol.errors import ArtelError, DecodeError, ResourceError, Unreachable
from artel.protocol.identity import load_or_create
from artel.protocol.net import dht, gateway, p2pd, slots, streams, wire
from artel.protocol.net import host as network
from artel.protocol.net.host import Host, peer_of
from artel.protocol.net.slots import Rank
from artel.protocol.options import LISTEN_FORM
from host_world import LOOPBACK, anybody, call, daemon_of, held, members, named, raw, swarm, until
from places import ROOT

pytestmark = pytest.mark.asyncio(loop_scope="module")

ECHO = "/artel/echo/1.0.0"
HANG = "/artel/hang/1.0.0"
STORM = 60
"""Bad streams."""
RUN = "ab" * 32


async def _echo(
    peer: str, request: messages.Message, stream: wire.ByteStream
) -> messages.Message | None:
    if isinstance(request, messages.Leave):
        raise wire.Refused("not today", "come tomorrow", code="closed")
    if isinstance(request, messages.Probe):
        await stream.write(await stream.read_exactly(request.size))
        return None
    return request


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Host]]:
    """A server with an echo and a service that does not answer, and a client."""

    async def hang(
        peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message:
        await asyncio.sleep(3)
        return messages.Ok()

    async with swarm(tmp_path_factory.mktemp("hosts"), 2) as two:
        await two[0].serve(ECHO, _echo)
        await two[0].serve(HANG, hang)
        yield two


def frame(body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + body


# --- requests ---


async def test_a_request_gets_its_reply(hosts: list[Host]) -> None:
    server, client = hosts
    request = messages.HandBack(run=RUN, round=1, attempt=2, reason="ünïcode ✓")
    assert await client.ask(server.peer_id, ECHO, request) == request


async def test_a_refusal_arrives_as_the_error_it_is(hosts: list[Host]) -> None:
    server, client = hosts
    with pytest.raises(wire.Refused) as refused:
        await client.ask(server.peer_id, ECHO, messages.Leave(run=RUN))
    error = refused.value
    assert (error.code, error.message, error.hint) == ("closed", "not today", "come tomorrow")


async def test_raw_bytes_follow_a_message_and_are_counted(hosts: list[Host]) -> None:
    server, client = hosts
    data = random.Random(1).randbytes(2 << 20)
    before = client.traffic.up["other"], server.traffic.down["other"]
    request = wire.encode(messages.Probe(size=len(data)))
    async with client.open(server.peer_id, ECHO) as stream:
        await stream.write(request)
        # The echo answers when it has read everything, so nothing waits for the other side.
        await stream.write(data)
        assert await stream.read_exactly(len(data)) == data
    assert client.traffic.up["other"] - before[0] == len(request) + len(data)
    assert server.traffic.down["other"] - before[1] == len(request) + len(data)


async def test_a_silent_peer_is_given_up_in_time(hosts: list[Host]) -> None:
    server, client = hosts
    began = time.monotonic()
    with pytest.raises(Unreachable, match="in 1 s"):
        await client.ask(server.peer_id, HANG, messages.Ok(), timeout=1)
    assert time.monotonic() - began < 3


async def test_a_stream_without_bytes_is_given_up(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = hosts
    monkeypatch.setattr(streams, "IDLE_TIMEOUT_S", 0.3)
    async with client.open(server.peer_id, HANG) as stream:
        await wire.write_message(stream, messages.Ok())
        with pytest.raises(Unreachable, match="sent nothing"):
            await stream.read_exactly(1)


async def test_a_peer_that_never_reads_is_given_up(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = hosts
    monkeypatch.setattr(streams, "IDLE_TIMEOUT_S", 1.0)
    async with client.open(server.peer_id, HANG) as stream:
        await wire.write_message(stream, messages.Ok())
        with pytest.raises(Unreachable, match="took nothing"):
            while True:  # ends when every buffer on the way is full
                await stream.write(bytes(1 << 20))


async def test_a_service_that_nobody_serves(hosts: list[Host]) -> None:
    server, client = hosts
    with pytest.raises(Unreachable, match="does not answer"):
        await client.ask(server.peer_id, "/artel/none/1.0.0", messages.Ok())


@pytest.mark.parametrize("peer", [named("nobody").peer_id, "junk", "", "0OIl"])
async def test_a_peer_that_does_not_exist(hosts: list[Host], peer: str) -> None:
    with pytest.raises(Unreachable, match="does not answer"):
        await hosts[1].ask(peer, ECHO, messages.Ok())


async def test_one_member_cannot_take_all_streams(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = hosts
    monkeypatch.setattr(server._callers, "named", anybody)
    await until(lambda: not held(server))  # those of the tests before
    opened = []
    for _ in range(slots.ROOMS[Rank.KNOWN].each):
        reader, writer = await raw(client, server.peer_id, HANG)
        writer.write(OK)  # and no answer: we are at work
        opened.append((reader, writer))
    await until(lambda: held(server, client.peer_id) == slots.ROOMS[Rank.KNOWN].each)
    await until(lambda: all(slot.asked for slot in server._reception.slots._held))
    with pytest.raises(ArtelError):
        await client.ask(server.peer_id, ECHO, messages.Ok())
    for _, writer in opened:
        writer.close()
    await until(lambda: not held(server))
    assert await client.ask(server.peer_id, ECHO, messages.Ok()) == messages.Ok()


# --- bytes that are no message ---

OK = wire.encode(messages.Ok())
HOSTILE = {
    "too large": struct.pack(">I", 1 << 30) + bytes(100),
    "just too large": struct.pack(">I", messages.MAX_LIMIT + 1) + b"\x93\x02\xa2ok\x80",
    "too large for its kind": struct.pack(">I", 8000) + b"\x93\x02\xa6commit" + bytes(8000),
    "empty frame": frame(b""),
    "unknown version": frame(b"\x93\x03" + OK[6:]),
    "unknown kind": frame(b"\x93\x02\xa4nope\x80"),
    "no array": frame(b"\x80"),
    "not canonical": frame(b"\x93\x02\xd9\x02ok\x80"),
    "more than a message": frame(OK[4:] + b"\x00"),
    "unknown field": frame(b"\x93\x02\xa2ok\x81\xa1a\x01"),
    "http": b"GET / HTTP/1.1\r\nHost: a\r\n\r\n",
    "deep": frame(b"\x93\x02\xa2ok" + b"\x91" * 4000 + b"\x80"),
}


@pytest.mark.parametrize("data", HOSTILE.values(), ids=HOSTILE.keys())
async def test_bytes_that_are_no_message_get_one_refusal(hosts: list[Host], data: bytes) -> None:
    server, client = hosts
    reply = await call(client, server.peer_id, ECHO, data, end=False)
    assert struct.unpack(">I", reply[:4])[0] == len(reply) - 4
    refusal = wire.decode(reply[4:])
    assert isinstance(refusal, messages.Refusal)
    assert refusal.code == "malformed"
    assert await client.ask(server.peer_id, ECHO, messages.Ok()) == messages.Ok()


@pytest.mark.parametrize("data", [OK[:-1], OK[:2], b""], ids=["message", "length", "nothing"])
async def test_a_message_cut_off_ends_the_stream(hosts: list[Host], data: bytes) -> None:
    server, client = hosts
    reply = await asyncio.wait_for(call(client, server.peer_id, ECHO, data), 5)
    if reply:
        assert isinstance(wire.decode(reply[4:]), messages.Refusal)
    await until(lambda: not held(server))
    assert await client.ask(server.peer_id, ECHO, messages.Ok()) == messages.Ok()


async def test_an_unknown_version_says_what_to_do(hosts: list[Host]) -> None:
    server, client = hosts
    reply = await call(client, server.peer_id, ECHO, HOSTILE["unknown version"], end=False)
    refusal = wire.decode(reply[4:])
    assert isinstance(refusal, messages.Refusal)
    assert "speaks protocol version 3" in refusal.message
    assert refusal.hint == "update the older of the two programs"


async def test_a_storm_of_garbage_costs_no_memory(
    hosts: list[Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, client = hosts
    monkeypatch.setattr(server._callers, "named", anybody)  # strangers would be shut out
    chance = random.Random(7)

    async def kept() -> int:
        """Bytes that stay after a storm."""
        gc.collect()
        before = tracemalloc.take_snapshot()
        for _ in range(STORM):
            await call(client, server.peer_id, ECHO, chance.randbytes(chance.randrange(200)))
        await until(lambda: not held(server))
        gc.collect()
        lines = tracemalloc.take_snapshot().compare_to(before, "filename")
        return sum(line.size_diff for line in lines if "tracemalloc" not in str(line.traceback))

    logging.disable()  # what pytest keeps of the log is not what we keep
    tracemalloc.start()
    try:
        # What fills a cache, or happens to run in this process too, is not in every storm alike.
        _, growth, _ = sorted([await kept() for _ in range(3)])
    finally:
        tracemalloc.stop()
        logging.disable(logging.NOTSET)
    assert growth < STORM * 300, f"{growth} bytes stay after {STORM} bad streams"
    await until(lambda: not server._reception._tasks)
    assert await client.ask(server.peer_id, ECHO, messages.Ok()) == messages.Ok()


# --- daemons that die, ports, addresses ---


class _Note(dht.RunRecord):
    """Any record of the DHT."""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["dies", "hangs"])
async def test_a_network_daemon_that_ends_is_replaced_in_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    how: signal.Signals,
) -> None:
    monkeypatch.setattr(p2pd, "PROBE_EVERY_S", 0.1)
    monkeypatch.setattr(p2pd, "PROBE_S", 0.5)
    async with swarm(tmp_path, 3, [RUN]) as (server, victim, other):
        # The first is a bootstrap peer of the two others; each of them serves.
        for host in (victim, server):
            await host.serve(ECHO, _echo)
        for number, host in enumerate((server, victim, server)):
            before = await host.addresses()
            old = daemon_of(host)
            old.send_signal(how)
            with pytest.raises(Unreachable):
                await host.ask(other.peer_id, ECHO, messages.Ok(), timeout=1)
            await until(lambda host=host, old=old: host._daemon.process.pid != old.pid, 10)
            assert not old.is_running() or old.status() == psutil.STATUS_ZOMBIE
            await _answers(other, host.peer_id)
            await _answers(host, victim.peer_id if host is server else server.peer_id)
            assert await host.addresses() == before
            await until(lambda host=host: not host._bootstrap or host._joined)
            record = _Note(name="x", addresses=[], http="", round=number, term=0)
            assert await host.publish(dht.run_key(RUN), record)
            assert (await other.lookup(dht.run_key(RUN), _Note))[host.peer_id] == record
            assert not host._keeping.done()

    loud = [r for r in caplog.records if r.exc_info or r.name == "asyncio"]
    assert not loud, loud


async def test_a_network_daemon_that_answers_some_questions_alone_holds_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p2pd, "PROBE_EVERY_S", 0.1)
    monkeypatch.setattr(p2pd, "PROBE_S", 0.5)
    monkeypatch.setattr(gateway, "ANSWER_S", 0.3)
    silent = str(tmp_path / "silent")
    asked = asyncio.Event()
    async with swarm(tmp_path, 2) as (host, other):
        server = await asyncio.start_unix_server(lambda *_: asked.set(), silent)
        host._gateway._daemon = silent
        for asking in (host._gateway.dial(b"x", ECHO), host._gateway.prefer(b"x")):
            with pytest.raises(TimeoutError):
                await asking
        asked.clear()
        host.admit(members(other.peer_id))  # whose connections are to be preferred
        await asyncio.wait_for(asked.wait(), 10)
        old = daemon_of(host)
        old.send_signal(signal.SIGSTOP)
        await until(lambda: host._daemon.process.pid != old.pid, 10)
        server.close()


async def test_a_network_daemon_that_dies_again_and_again_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p2pd, "RESTARTS", 2)
    monkeypatch.setattr(p2pd, "PAUSE_S", 0.05)
    async with swarm(tmp_path, 2) as (victim, other):
        await victim.serve(ECHO, _echo)
        watching = asyncio.create_task(victim.watch())
        began = time.monotonic()
        while not watching.done():
            daemon_of(victim).kill()
            daemon = victim._daemon
            await until(lambda daemon=daemon: watching.done() or victim._daemon is not daemon, 10)
        error = watching.exception()
        assert isinstance(error, ResourceError)
        assert "died 3 times" in error.message
        assert re.search("SIGKILL|exit code", error.message)  # a port that is not free yet
        with pytest.raises(Unreachable):
            await other.ask(victim.peer_id, ECHO, messages.Ok())
        with pytest.raises(Unreachable):
            await victim.ask(other.peer_id, ECHO, messages.Ok())
        assert await victim.addresses() == []
        assert await victim.join(await other.addresses()) is False
        assert time.monotonic() - began < 15
        await asyncio.wait_for(victim.close(), 2 * network.CLOSE_TIMEOUT_S + 1)


async def test_a_daemon_whose_port_was_taken_meanwhile_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(p2pd, "RESTARTS", 2)
    monkeypatch.setattr(p2pd, "PAUSE_S", 0.05)
    host = await host_world.start(tmp_path)
    try:
        port = int((await host.addresses())[0].split("/")[4])
        daemon = daemon_of(host)
        daemon.kill()
        _wait_dead(daemon)  # our loop stands meanwhile: nobody replaces it yet
        with (
            _taken(port),
            pytest.raises(ResourceError, match=f"{port}.* in use"),
        ):
            await asyncio.wait_for(host.watch(), 10)
    finally:
        await host.close()


async def test_signals_for_us_do_not_reach_the_network_daemon(tmp_path: Path) -> None:
    host = await host_world.start(tmp_path)
    try:
        daemon = daemon_of(host)
        assert os.getsid(daemon.pid) == daemon.pid != os.getsid(0)
        daemon.send_signal(signal.SIGHUP)
        await asyncio.sleep(0.2)
        assert await host.addresses()
        assert daemon_of(host).pid == daemon.pid
    finally:
        await host.close()


async def test_a_network_daemon_ends_with_us_however_we_end(tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "sys.path.insert(0, 'tests/worlds')\n"
        "import host_world\n"
        "async def main():\n"
        f"    host = await host_world.start(pathlib.Path({str(tmp_path)!r}))\n"
        "    print(host_world.daemon_of(host).pid, flush=True)\n"
        "    await asyncio.sleep(60)\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script),
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": "."},
    )
    assert parent.stdout is not None
    daemon = psutil.Process(int(await asyncio.wait_for(parent.stdout.readline(), 60)))
    daemon.suspend()
    parent.kill()
    await parent.wait()
    await asyncio.to_thread(daemon.wait, 10)


async def test_a_daemon_that_ends_just_before_it_is_killed_is_closed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a busy machine it was gone, and its end not yet noticed: then the node did not end."""
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def kill() -> None:
        ended.set_result(None)
        raise ProcessLookupError

    closing = object.__new__(p2pd.NetworkDaemon)
    closing.process = SimpleNamespace(terminate=lambda: None, kill=kill)  # type: ignore[assignment]
    closing._keeping, closing._ended = None, ended  # type: ignore[assignment]
    monkeypatch.setattr(p2pd, "CLOSE_S", 0.01)
    await asyncio.wait_for(closing.close(), 5)
    assert ended.done()


async def test_a_host_knows_of_whom_it_has_to_ask_where_they_are(tmp_path: Path) -> None:
    async with swarm(tmp_path, 2) as hosts:
        first, other = hosts
        stranger = load_or_create(tmp_path / "stranger.key").peer_id
        where = await first.addresses()
        other.remember(first.peer_id, where)
        assert other.lost([first.peer_id, stranger, other.peer_id, stranger]) == [stranger]
        assert other.lost([first.peer_id]) == []
        await first.close()
        with pytest.raises(Unreachable):
            await other.ask(first.peer_id, ECHO, messages.Ok())
        assert other.lost([first.peer_id]) == [first.peer_id], "it is not there any more"
        other.remember(first.peer_id, where)
        assert other.lost([first.peer_id]) == []


async def test_a_peer_that_comes_back_is_reached_again(tmp_path: Path) -> None:
    async with swarm(tmp_path, 2) as hosts:
        first, other = hosts
        address = (await first.addresses())[0].partition("/p2p/")[0]
        await first.close()
        key = tmp_path / "host-0" / "node.key"
        hosts[0] = await Host.start(load_or_create(key), key, listen=[address])
        await hosts[0].serve(ECHO, _echo)
        # Not at once when a dial failed while it was away: libp2p then waits for 5 s.
        await _answers(other, first.peer_id)


async def test_close_leaves_no_process_and_no_socket_behind(tmp_path: Path) -> None:
    host = await host_world.start(tmp_path)
    await host.serve(ECHO, _echo)
    daemon = daemon_of(host)
    folder = Path(host._daemon.socket).parent
    sockets = [Path(host._daemon.socket), Path(f"{host._daemon.socket}.streams")]
    assert folder.stat().st_mode & 0o777 == 0o700
    assert all(path.exists() for path in sockets)
    await host.close()
    assert not psutil.pid_exists(daemon.pid) or daemon.status() == psutil.STATUS_ZOMBIE
    assert not folder.exists()


@pytest.mark.parametrize(
    ("listen", "asks"),
    [
        (("/ip4/127.0.0.1/tcp/0",), "0"),
        (("/ip4/127.0.0.3/tcp/0", "/ip4/127.0.0.1/tcp/0"), "0"),
        (("/ip4/127.0.0.3/tcp/0", "/ip4/0.0.0.0/tcp/0"), "1"),
        (("/ip4/192.0.2.127/tcp/0",), "1"),
    ],
)
async def test_who_listens_on_loopback_alone_asks_no_router(
    listen: tuple[str, ...], asks: str
) -> None:
    told = p2pd.Settings(Path("node.key"), listen).arguments("socket")
    assert {f"-autonat={asks}", f"-natPortMap={asks}"} <= set(told)


async def test_a_port_in_use_is_a_clear_error(tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    with socket.create_server(("127.0.0.1", 0)) as taken:
        listen = f"/ip4/127.0.0.1/tcp/{taken.getsockname()[1]}"
        with pytest.raises(ResourceError) as error:
            await Host.start(load_or_create(key), key, listen=[listen])
    assert listen in error.value.message
    assert "in use" in error.value.message
    assert "--listen" in error.value.hint
    assert error.value.exit_code == 4


@pytest.mark.parametrize(
    ("address", "hint"),
    [
        ("127.0.0.1:4001", "/ip4/127.0.0.1/tcp/4001"),
        ("/ip4/127.0.0.1", LISTEN_FORM),
        ("/ip4/127.0.0.1/tcp/x", LISTEN_FORM),
        ("/ip4/127.0.0.1/tcp/99999", LISTEN_FORM),
        ("/ip4/300.0.0.1/tcp/0", LISTEN_FORM),
        ("/ip4/127.0.0.1/tcp/0/nonsense", LISTEN_FORM),
        ("/ip4/192.0.2.1/tcp/4001", "on this machine"),
        ("", LISTEN_FORM),
    ],
)
async def test_a_bad_address_to_listen_on(tmp_path: Path, address: str, hint: str) -> None:
    key = tmp_path / "node.key"
    children = set(psutil.Process().children())
    with pytest.raises(ResourceError) as error:
        await Host.start(load_or_create(key), key, listen=[address])
    assert hint in error.value.hint
    assert set(psutil.Process().children()) == children


async def test_a_bad_bootstrap_address_leaves_no_daemon_behind(tmp_path: Path) -> None:
    key = tmp_path / "node.key"
    children = set(psutil.Process().children())
    with pytest.raises(DecodeError, match="names no peer"):
        await Host.start(
            load_or_create(key), key, listen=[LOOPBACK], bootstrap=["/ip4/127.0.0.1/tcp/1"]
        )
    assert set(psutil.Process().children()) == children


async def test_bootstrap_peers_that_are_down_are_not_fatal(hosts: list[Host]) -> None:
    down = f"/ip4/127.0.0.1/tcp/1/p2p/{named('down').peer_id}"
    assert await hosts[1].join([down, f"/nonsense/p2p/{named('down').peer_id}"]) is False
    assert await hosts[1].join([down, *await hosts[0].addresses()]) is True


async def test_dial_back_tries_only_the_address_that_the_peer_comes_from(hosts: list[Host]) -> None:
    server, client = hosts
    with socket.create_server(("127.0.0.2", 0)) as elsewhere:
        other = f"/ip4/127.0.0.2/tcp/{elsewhere.getsockname()[1]}"
        assert await server.dial_back(client.peer_id, [other, "/junk", "/ip4/127.0.0.1/tcp/x"]) is (
            False
        )
        elsewhere.settimeout(0.1)
        with pytest.raises(TimeoutError):
            elsewhere.accept()
    assert await server.dial_back(client.peer_id, await client.addresses()) is True
    assert await server.dial_back(named("stranger").peer_id, await client.addresses()) is False


async def test_the_peer_of_an_address() -> None:
    peer = named("a").peer_id
    assert peer_of(f"/ip4/1.2.3.4/tcp/1/p2p/{peer}") == peer
    for text in ("", "/p2p/", f"/p2p/{peer}", "/ip4/1.2.3.4/tcp/1"):
        with pytest.raises(DecodeError):
            peer_of(text)


async def test_a_handler_that_fails_unexpectedly_does_not_end_the_service(
    hosts: list[Host], caplog: pytest.LogCaptureFixture
) -> None:
    server, client = hosts

    async def broken(
        peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message:
        raise OSError("the disk went away")

    await server.serve("/artel/broken/1.0.0", broken)
    with caplog.at_level(logging.DEBUG, "artel.network"), pytest.raises(Unreachable):
        await client.ask(server.peer_id, "/artel/broken/1.0.0", messages.Ok())
    assert any(record.message == "stream.broken" for record in caplog.records)
    assert await client.ask(server.peer_id, ECHO, messages.Ok()) == messages.Ok()


async def _answers(host: Host, peer: str, seconds: float = 10.0) -> None:
    """Wait until a host gets an answer from a peer."""
    async with asyncio.timeout(seconds):
        while True:
            try:
                assert await host.ask(peer, ECHO, messages.Ok()) == messages.Ok()
                return
            except Unreachable:
                await asyncio.sleep(0.05)


def _wait_dead(process: psutil.Process) -> None:
    """Wait, blocking, until a child of ours has ended."""
    with contextlib.suppress(psutil.NoSuchProcess):
        while process.status() != psutil.STATUS_ZOMBIE:
            time.sleep(0.01)


def _taken(port: int) -> socket.socket:
    """The port as somebody else's; the threads of a killed process give it up one after another."""
    for _ in range(500):
        with contextlib.suppress(OSError):
            return socket.create_server(("127.0.0.1", port))
        time.sleep(0.01)
    raise AssertionError(f"port {port} does not become free")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no connection"),
        (
            "failed to dial: all dials failed\n  * [/ip4/10.0.0.1/tcp/1] dial backoff",
            "no connection",
        ),
        (
            "failed to dial 12D3: all dials failed\n"
            "  * [/ip4/10.0.0.1/tcp/1] dial tcp4 10.0.0.1:1: connect: connection refused\n"
            "  * [/ip4/10.0.0.2/tcp/1] dial backoff",
            "connection refused",
        ),
        ("failed to open: protocols not supported: [/artel/x/1.0.0]", "protocols not supported"),
    ],
)
async def test_the_reason_of_a_failure_is_a_few_words(text: str, reason: str) -> None:
    assert p2pd.reason_of(OSError(text)) == reason
