"""The Merkle hash tree of RFC 6962 section 2.1, for the ledger and for chunked content alike.

``H(0x00 ‖ leaf)``, ``H(0x01 ‖ left ‖ right)``, the empty tree is ``SHA-256("")``, and a tree of n
leaves splits at the largest power of two below n; an odd leaf is *not* duplicated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

HASH_BYTES = 32
EMPTY_ROOT = hashlib.sha256(b"").digest()


def leaf_hash(*data: bytes | memoryview) -> bytes:
    """Hash of one leaf, whose bytes may come in pieces."""
    digest = hashlib.sha256(b"\x00")
    for piece in data:
        digest.update(piece)
    return digest.digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """Root over leaf hashes in order, in O(log n) memory."""
    subtrees: list[bytes] = []  # perfect ones, the largest first
    for index, leaf in enumerate(leaf_hashes):
        digest, size = leaf, index
        while size & 1:  # neighbours of one size become one, as a binary counter carries
            digest = node_hash(subtrees.pop(), digest)
            size >>= 1
        subtrees.append(digest)
    if not subtrees:
        return EMPTY_ROOT
    digest = subtrees.pop()
    while subtrees:
        digest = node_hash(subtrees.pop(), digest)
    return digest
