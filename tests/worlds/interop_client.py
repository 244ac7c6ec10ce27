"""A reader of a run's ledger and content that shares no code with Artel: py-libp2p and the wire as
docs/protocol.md describes it. Prints one JSON object.

usage: interop_client.py MULTIADDR RUN CONTENT_ID
"""

from __future__ import annotations

import base64
import hashlib
import json
import struct
import sys

import base58
import msgpack
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from libp2p import generate_new_ed25519_identity, new_host
from libp2p.crypto.x25519 import create_new_key_pair
from libp2p.custom_types import TProtocol
from libp2p.peer.peerinfo import info_from_p2p_addr
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.stream_muxer.yamux.yamux import PROTOCOL_ID as YAMUX
from libp2p.stream_muxer.yamux.yamux import Yamux
from multiaddr import Multiaddr

CHUNK = 1 << 20


async def read(stream, count):
    data = b""
    while len(data) < count:
        piece = await stream.read(count - len(data))
        if not piece:
            raise EOFError(f"{len(data)} of {count} bytes")
        data += piece
    return data


async def send(stream, kind, body):
    """One frame: length, then [version, kind, body] in msgpack."""
    frame = msgpack.packb([2, kind, body])
    await stream.write(struct.pack(">I", len(frame)) + frame)


async def ask(stream, kind, body):
    await send(stream, kind, body)
    return await receive(stream)


async def receive(stream):
    (length,) = struct.unpack(">I", await read(stream, 4))
    version, kind, body = msgpack.unpackb(await read(stream, length))
    assert version == 2
    return kind, body


def leaf_hash(data):
    return hashlib.sha256(b"\0" + data).digest()


def root(hashes):
    """RFC 6962, section 2.1."""
    if len(hashes) == 1:
        return hashes[0]
    split = 1 << (len(hashes) - 1).bit_length() - 1
    return hashlib.sha256(b"\1" + root(hashes[:split]) + root(hashes[split:])).digest()


def check_note(note, run, leaves):
    """The signed tree head covers exactly these leaves, and a key of the manifest signed it."""
    text, _, signatures = note.rpartition("\n\n")
    origin, size, encoded = text.split("\n")
    assert origin == f"artel/{run}/term/0"
    assert int(size) == len(leaves)
    assert base64.b64decode(encoded) == root([leaf_hash(leaf) for leaf in leaves])
    _, name, blob = signatures.split("\n")[0].split(" ")
    assert name == origin
    manifest = json.loads(base64.b64decode(json.loads(leaves[0])["payload"]))
    key = bytes.fromhex(manifest["coordinators"][0])
    signed = base64.b64decode(blob)
    assert signed[:4] == hashlib.sha256(name.encode() + b"\n\x01" + key).digest()[:4]
    Ed25519PublicKey.from_public_bytes(key).verify(signed[4:], (text + "\n").encode())
    return key


async def main(address, run, content):
    keys = generate_new_ed25519_identity()
    host = new_host(
        key_pair=keys,
        sec_opt={NOISE: Noise(keys, create_new_key_pair().private_key)},
        muxer_opt={YAMUX: Yamux},
    )
    async with host.run(listen_addrs=[Multiaddr("/ip4/127.0.0.1/tcp/0")]):
        peer = info_from_p2p_addr(Multiaddr(address))
        await host.connect(peer)

        async def open_(service):
            return await host.new_stream(peer.peer_id, [TProtocol(service)])

        # A reader with nothing but an address asks for the newest head, then for the tree by tiles.
        async def files(*paths, run="", skip=0):
            """Each path's bytes, or the code of its refusal, by one stream."""
            stream = await open_("/artel/ledger/1.0.0")
            await send(stream, "get", {"run": run, "paths": list(paths), "skip": skip})
            found = []
            for _ in paths:
                kind, reply = await receive(stream)
                found.append(await read(stream, reply["size"]) if kind == "file" else reply["code"])
            return found

        note, certified, no_tile = await files("checkpoint", "certified", "tile/0/999", run=run)
        count = int(note.decode().split("\n")[1])
        assert certified == "not_here"
        assert count < 256
        path = f"tile/entries/000.p/{count}"
        tile, bundle = await files(f"tile/0/000.p/{count}", path)
        by_tiles = root([tile[i : i + 32] for i in range(0, len(tile), 32)])
        assert await files(path, skip=100) == [bundle[100:]]
        leaves = []
        while bundle:
            length = int.from_bytes(bundle[:2], "big")
            leaves.append(bundle[2 : 2 + length])
            bundle = bundle[2 + length :]
        payload = base64.b64decode(json.loads(leaves[0])["payload"])
        assert hashlib.sha256(payload).hexdigest() == run
        key = check_note(note.decode(), run, leaves)
        documents = 0
        for leaf in leaves[1:]:
            name = json.loads(base64.b64decode(json.loads(leaf)["payload"])).get("document")
            if name is not None:
                (document,) = await files(f"document/{name}")
                assert hashlib.sha256(document).hexdigest() == name
                documents += 1
        (no_document,) = await files("document/" + "00" * 32)
        stream = await open_("/artel/ledger/1.0.0")
        _, not_taken = await ask(stream, "submit", {"run": run, "statement": leaves[1]})

        stream = await open_("/artel/content/1.0.0")
        kind, index = await ask(stream, "get_index", {"id": content})
        assert kind == "index"
        count = max(1, -(-index["size"] // CHUNK))
        raw = await read(stream, 32 * count)
        hashes = [raw[i : i + 32] for i in range(0, len(raw), 32)]
        assert root(hashes).hex() == content
        stream = await open_("/artel/content/1.0.0")
        kind, offer = await ask(stream, "get_chunks", {"id": content, "first": 0, "count": count})
        assert (kind, offer["size"]) == ("chunks", index["size"])
        data = await read(stream, offer["size"])
        pieces = [data[i : i + CHUNK] for i in range(0, len(data), CHUNK)]
        assert [leaf_hash(piece) for piece in pieces] == hashes

        stream = await open_("/artel/content/1.0.0")
        refused, refusal = await ask(stream, "get_index", {"id": "00" * 32})
        (other,) = await files("checkpoint", run="00" * 32)
        codes = [refusal["code"], other, no_tile, no_document, not_taken["code"]]
        peer_id = base58.b58encode(bytes.fromhex("002408011220") + key).decode()
        print(
            json.dumps(
                {
                    "peer": str(peer.peer_id),
                    "coordinator": peer_id,
                    "entries": len(leaves),
                    "root": root([leaf_hash(leaf) for leaf in leaves]).hex(),
                    "root_by_tiles": by_tiles.hex(),
                    "documents": documents,
                    "content_sha256": hashlib.sha256(data).hexdigest(),
                    "content_bytes": len(data),
                    "refusals": [refused, *codes],
                    "modules": sorted({"hivemind", "torch", "protocol"} & set(sys.modules)),
                }
            )
        )


if __name__ == "__main__":
    trio.run(main, *sys.argv[1:])
