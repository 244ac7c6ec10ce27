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


class CompactRange:
    """The root of a growing tree, in O(log n) memory.

    Holds one hash per perfect subtree, the largest first (transparency-dev calls this a compact
    range); appending folds equal-sized neighbours like a binary counter.
    """

    def __init__(self, leaf_hashes: Iterable[bytes] = ()) -> None:
        self.size = 0
        self._subtrees: list[bytes] = []
        for digest in leaf_hashes:
            self.append(digest)

    def append(self, digest: bytes) -> None:
        """Add one leaf *hash* on the right."""
        size = self.size
        while size & 1:
            digest = node_hash(self._subtrees.pop(), digest)
            size >>= 1
        self._subtrees.append(digest)
        self.size += 1

    def root(self) -> bytes:
        """Root of the tree so far."""
        if not self._subtrees:
            return EMPTY_ROOT
        digest = self._subtrees[-1]
        for left in reversed(self._subtrees[:-1]):
            digest = node_hash(left, digest)
        return digest

    def copy(self) -> CompactRange:
        twin = CompactRange()
        twin.size, twin._subtrees = self.size, list(self._subtrees)
        return twin


def root(leaf_hashes: Iterable[bytes]) -> bytes:
    """Root over leaf hashes in order."""
    return CompactRange(leaf_hashes).root()
