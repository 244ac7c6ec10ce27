"""Content ids: one way to name bytes and to check them piece by piece.

The **content id** of any bytes (a contribution, a data shard, a whole model state) is the RFC 6962
root over their 1 MiB chunks, in hex. A receiver first gets the list of chunk hashes, checks it
against the id, and then accepts each chunk from anybody. A state root is the content id of the
state's bytes. A **commitment** names bytes that nobody else is to know yet.
"""

from __future__ import annotations

import hashlib
from pathlib import Path

from artel.protocol import merkle
from artel.protocol.identity import public_of

CHUNK_BYTES = 1 << 20
"""1 MiB: small enough to bound what an unverified peer can make us hold, large enough to stream."""
MAX_CHUNKS = 1 << 16
"""64 GiB; the chunk list of the largest object is then 2 MiB."""


def chunk_count(size: int) -> int:
    """Number of chunks of ``size`` bytes; empty content is one empty chunk."""
    return max(1, -(-size // CHUNK_BYTES))


def chunk_hashes(data: bytes | memoryview) -> list[bytes]:
    """Leaf hashes of the chunks of ``data``."""
    view = memoryview(data)
    count = chunk_count(len(view))
    return [merkle.leaf_hash(view[i * CHUNK_BYTES : (i + 1) * CHUNK_BYTES]) for i in range(count)]


def content_id(data: bytes | memoryview) -> str:
    """Content id of bytes in memory."""
    return merkle.root(chunk_hashes(data)).hex()


def file_chunk_hashes(path: Path) -> list[bytes]:
    """Leaf hashes of a file's chunks, read one chunk at a time."""
    hashes: list[bytes] = []
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            hashes.append(merkle.leaf_hash(chunk))
    return hashes or [merkle.leaf_hash(b"")]


def file_content_id(path: Path) -> str:
    """Content id of a file."""
    return merkle.root(file_chunk_hashes(path)).hex()


def commitment(run: str, round: int, attempt: int, peer: str, blob: str, salt: bytes) -> str:
    """The hash that a node publishes before it reveals its contribution.

    It binds the peer, so that repeating somebody else's commitment is useless; the salt hides a
    blob that could be guessed.
    """
    parts = (
        b"artel/commitment/v1\0",
        bytes.fromhex(run),
        round.to_bytes(8, "big"),
        attempt.to_bytes(8, "big"),
        public_of(peer),
        bytes.fromhex(blob),
        salt,
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()
