"""Strangers that hold streams: many peer ids, each stream sending a byte a second.

usage: slow_strangers.py MULTIADDR PEERS STREAMS PROTOCOL [RUN]

With the id of a run each of them also hands in a new account each second, and the first stores DHT
records without end. Prints a line when each has opened a stream, goes on until its input ends,
opens again what is closed, and at last prints how many streams it has opened since that line, and
how many calls of the DHT were answered. Each peer is a network daemon of its own, without a DHT, so
that one process can be a hundred of them: hardly anything of what they send passes through Python.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgpack
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.proto import dht_pb2
from hivemind.utils import get_dht_time
from multiaddr import Multiaddr

from artel.ledger import entries
from artel.protocol import messages
from artel.protocol.errors import ArtelError
from artel.protocol.identity import Identity, load_or_create
from artel.protocol.net import dht, wire
from artel.protocol.net.gateway import Gateway
from artel.protocol.net.p2pd import NetworkDaemon, Settings, raise_open_files

FRAME = b"\x00\x00\x10\x00" + b"\x93\x02\xa2ok" + bytes(4096)  # the beginning of 4,096 bytes
PAUSE_S = 3  # before what was closed is opened again
AT_ONCE = 4
"""Daemons that are started at a time."""
BROKEN = (ControlFailure, OSError, EOFError, ArtelError)
"""TimeoutError is an OSError."""
_spawn = asyncio.create_subprocess_exec


async def _with_us(*command: str, **how: Any) -> asyncio.subprocess.Process:
    """A child in our own session: the system gives each session a share (sched(7), autogroups), and
    a hundred daemons would have a hundred."""
    return await _spawn(*command, **{**how, "start_new_session": False})


class WithoutDHT(Settings):
    """Of a daemon that finds nobody and is found by nobody."""

    def arguments(self, socket: str) -> tuple[str, ...]:
        return tuple(each for each in super().arguments(socket) if "dht" not in each)


class Stranger:
    """One peer id, connected to one address."""

    def __init__(self, daemon: NetworkDaemon, peer: bytes, done: Counter[str]) -> None:
        self._gateway = Gateway(daemon.socket, f"{daemon.socket}.streams", lambda *_: _nothing())
        self._daemon, self._peer, self._done = daemon, peer, done
        self.opened = asyncio.Event()

    @classmethod
    async def come(cls, folder: Path, address: str, done: Counter[str]) -> Stranger:
        """:raises ArtelError: no daemon can be started"""
        folder.mkdir()
        load_or_create(folder / "key")
        settings = WithoutDHT(folder / "key", ("/ip4/127.0.0.1/tcp/0",))
        daemon = await NetworkDaemon.start(settings, str(folder / "p2pd"))
        where, _, peer = address.rpartition("/p2p/")
        name = PeerID.from_base58(peer)
        while True:
            with contextlib.suppress(*BROKEN):
                await daemon.p2p._client.connect(name, [Multiaddr(where)])
                return cls(daemon, name.to_bytes(), done)
            await asyncio.sleep(PAUSE_S)

    async def trickle(self, protocol: str) -> None:
        """Hold a stream."""
        loop = asyncio.get_running_loop()
        while True:
            with contextlib.suppress(*BROKEN), await self._dial(protocol) as stream:
                for byte in FRAME:
                    await loop.sock_sendall(stream, bytes([byte]))
                    self.opened.set()
                    await asyncio.sleep(1)
            await asyncio.sleep(PAUSE_S)

    async def _dial(self, protocol: str) -> socket.socket:
        stream = await self._gateway.dial(self._peer, protocol)
        self._done["streams"] += 1
        return stream

    async def submit(self, run: str) -> None:
        """Hand accounts in."""
        loop = asyncio.get_running_loop()
        while True:
            account = entries.account(Identity.from_seed(os.urandom(32)), run)
            frame = wire.encode(messages.Submit(run=run, statement=account.encode()))
            with contextlib.suppress(*BROKEN), await self._dial(wire.LEDGER) as stream:
                await loop.sock_sendall(stream, frame)
                await asyncio.wait_for(loop.sock_recv(stream, 100), PAUSE_S)
            await asyncio.sleep(1)

    async def store(self, run: str) -> None:
        """Ask for as many records to be kept as can be asked for."""
        p2p, name = self._daemon.p2p, f"{DHTProtocol.__name__}.rpc_store"
        while True:
            for key in (*dht.keys_of(run), f"junk/{self._done['records']}"):
                request = dht_pb2.StoreRequest(
                    keys=[DHTID.generate(key).to_bytes()],
                    subkeys=[msgpack.packb(str(p2p.peer_id))],
                    values=[bytes(dht.MAX_RECORD_BYTES)],
                    expiration_time=[get_dht_time() + dht.LIFETIME_S],
                    in_cache=[False],
                )
                with contextlib.suppress(Exception):  # of the library's own kinds
                    await asyncio.wait_for(
                        p2p.call_protobuf_handler(
                            PeerID(self._peer), name, request, dht_pb2.StoreResponse
                        ),
                        PAUSE_S,
                    )
                    self._done["records"] += 1
            await asyncio.sleep(0.001)


async def _nothing() -> None:
    """Nobody opens streams to a stranger."""


async def main(address: str, peers: int, streams: int, protocol: str, *run: str) -> None:
    raise_open_files()
    asyncio.create_subprocess_exec = _with_us  # type: ignore[assignment]
    door, done = asyncio.Semaphore(AT_ONCE), Counter[str]()

    async def come(number: int) -> Stranger:
        async with door:
            return await Stranger.come(Path(folder) / str(number), address, done)

    with tempfile.TemporaryDirectory() as folder:
        strangers = await asyncio.gather(*map(come, range(peers)))
        async with asyncio.TaskGroup() as group:
            tasks = [
                group.create_task(what)
                for stranger in strangers
                for what in (
                    *(stranger.trickle(protocol) for _ in range(streams)),
                    *(stranger.submit(one) for one in run),
                )
            ]
            tasks += [group.create_task(strangers[0].store(one)) for one in run]
            for stranger in strangers:
                await stranger.opened.wait()
            print("open", flush=True)
            done.clear()
            await asyncio.to_thread(sys.stdin.read)
            print(json.dumps(done), flush=True)
            for task in tasks:
                task.cancel()


if __name__ == "__main__":
    address, peers, streams, *rest = sys.argv[1:]
    asyncio.run(main(address, int(peers), int(streams), *rest))
