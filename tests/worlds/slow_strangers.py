"""Strangers that hold streams: many peer ids in one process, each stream sending a byte a second.

usage: slow_strangers.py MULTIADDR PEERS STREAMS PROTOCOL [RUN]

With the id of a run each of them also hands in a new account each second. Prints a line when each
has opened a stream, goes on until its input ends, and opens again what is closed.
"""

from __future__ import annotations

import contextlib
import os
import sys

import trio
from libp2p import generate_new_ed25519_identity, new_host
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

FRAME = b"\x00\x00\x10\x00" + b"\x93\x01\xa2ok" + bytes(4096)  # the beginning of 4,096 bytes
PAUSE_S = 3  # before what was closed is opened again
opened = set()
all_there = trio.Event()


async def trickle(host, peer, protocol):
    while True:
        try:
            stream = await host.new_stream(peer.peer_id, [TProtocol(protocol)])
            opened.add(host)
            for byte in FRAME:
                await stream.write(bytes([byte]))
                await trio.sleep(1)
        except Exception:
            await trio.sleep(PAUSE_S)


async def submit(host, peer, run):
    from artel.ledger import entries
    from artel.protocol import messages
    from artel.protocol.identity import Identity
    from artel.protocol.net import wire

    while True:
        account = entries.account(Identity.from_seed(os.urandom(32)), run)
        frame = wire.encode(messages.Submit(run=run, statement=account.encode()))
        with contextlib.suppress(Exception):
            stream = await host.new_stream(peer.peer_id, [TProtocol(wire.LEDGER)])
            await stream.write(frame)
            await stream.read(100)
            await stream.close()
        await trio.sleep(1)


async def stranger(address, streams, protocol, run="", *, task_status):
    keys = generate_new_ed25519_identity()
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, create_new_key_pair().private_key)},
        muxer_opt={YAMUX: Yamux},
    )
    async with (
        host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]),
        trio.open_nursery() as nursery,
    ):
        peer = info_from_p2p_addr(Multiaddr(address))
        while not host.get_network().connections:
            with trio.move_on_after(20), contextlib.suppress(Exception):
                await host.connect(peer)
        task_status.started()
        await all_there.wait()
        for _ in range(streams):
            nursery.start_soon(trickle, host, peer, protocol)
        if run:
            nursery.start_soon(submit, host, peer, run)


async def main(address, peers, streams, protocol, *run):
    async with trio.open_nursery() as nursery:
        # A few at a time: so many handshakes at once take longer than they may.
        for first in range(0, int(peers), 5):
            async with trio.open_nursery() as coming:
                for _ in range(first, min(first + 5, int(peers))):
                    coming.start_soon(
                        nursery.start, stranger, address, int(streams), protocol, *run
                    )
        all_there.set()
        while len(opened) < int(peers):
            await trio.sleep(0.05)
        print("open", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
