"""Strangers that hold streams: many peer ids in one process, each stream sending a byte a second.

usage: slow_strangers.py MULTIADDR PEERS STREAMS PROTOCOL

Prints a line when all streams are open, goes on until its input ends, and opens again what is
closed.
"""

from __future__ import annotations

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
opened = 0


async def trickle(host, peer, protocol):
    global opened
    first = True
    while True:
        try:
            stream = await host.new_stream(peer.peer_id, [TProtocol(protocol)])
            opened += first
            first = False
            for byte in FRAME:
                await stream.write(bytes([byte]))
                await trio.sleep(1)
        except Exception:
            await trio.sleep(1)


async def stranger(address, streams, protocol):
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
        await host.connect(peer)
        for _ in range(streams):
            nursery.start_soon(trickle, host, peer, protocol)


async def main(address, peers, streams, protocol):
    async with trio.open_nursery() as nursery:
        for _ in range(int(peers)):
            nursery.start_soon(stranger, address, int(streams), protocol)
        while opened < int(peers) * int(streams):
            await trio.sleep(0.05)
        print("open", flush=True)
        await trio.to_thread.run_sync(sys.stdin.read, abandon_on_cancel=True)
        nursery.cancel_scope.cancel()


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
