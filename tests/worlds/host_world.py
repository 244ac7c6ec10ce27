"""Real hosts on loopback, and peers that misbehave on purpose."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import psutil

from artel.protocol.identity import Identity, load_or_create
from artel.protocol.net import dht
from artel.protocol.net.host import Host
from artel.protocol.net.slots import STRANGER, Caller, Rank

LOOPBACK = "/ip4/127.0.0.1/tcp/0"


def named(name: str) -> Identity:
    """A fixed identity."""
    return Identity.from_seed(hashlib.sha256(b"host " + name.encode()).digest())


async def start(home: Path, *bootstrap: Host, runs: Sequence[str] = ()) -> Host:
    """A host with a key of its own that knows the hosts of ``bootstrap``, and keeps DHT records."""
    file = home / "node.key"
    identity = load_or_create(file)
    addresses = [address for host in bootstrap for address in await host.addresses()]
    keys = [key for run in runs for key in dht.keys_of(run)]
    host = await Host.start(identity, file, listen=[LOOPBACK], bootstrap=addresses, keys=keys)
    for other in bootstrap:
        host.remember(other.peer_id, await other.addresses())
    return host


def members(*peers: str, rank: Rank = Rank.KNOWN) -> Callable[[str], Caller]:
    """For ``Host.admit``: these have that rank, all others are strangers."""
    return lambda peer: Caller(rank) if peer in peers else STRANGER


def anybody(peer: str) -> Caller:
    """For ``Host.admit``: everybody is known."""
    return Caller(Rank.KNOWN)


@contextlib.asynccontextmanager
async def swarm(home: Path, count: int, runs: Sequence[str] = ()) -> AsyncIterator[list[Host]]:
    """``count`` hosts; all know the first."""
    hosts: list[Host] = []
    try:
        for number in range(count):
            hosts.append(await start(home / f"host-{number}", *hosts[:1], runs=runs))
        yield hosts
    finally:
        for host in reversed(hosts):
            await host.close()


async def until(condition: Callable[[], bool], seconds: float = 5.0) -> None:
    """Wait for something that another task brings about."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


def held(host: Host, peer: str = "") -> int:
    """Streams that one peer, or all of them, opened to a host."""
    return len([slot for slot in host._reception.slots._held if peer in ("", slot.stream.peer)])


def daemon_of(host: Host) -> psutil.Process:
    """The network daemon, a child process of this one."""
    return psutil.Process(host._daemon.process.pid)


async def raw(
    host: Host, peer: str, service: str
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """A stream without anything of ours on this side."""
    sock = await host._dial(peer, service)
    return await asyncio.open_unix_connection(sock=sock)


async def call(host: Host, peer: str, service: str, data: bytes, *, end: bool = True) -> bytes:
    """Write raw bytes to a service and return all that comes back."""
    reader, writer = await raw(host, peer, service)
    try:
        writer.write(data)
        with contextlib.suppress(OSError):
            await writer.drain()
            if end:
                writer.write_eof()
        with contextlib.suppress(OSError):
            return bytes(await reader.read())
        return b""
    finally:
        writer.close()
