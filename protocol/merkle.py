"""The Merkle hash tree of RFC 6962 section 2.1, and inclusion proofs in it, for the ledger, for
chunked content and for the slices of a contribution alike.

``H(0x00 ‖ leaf)``, ``H(0x01 ‖ left ‖ right)``, the empty tree is ``SHA-256("")``, and a tree of n
leaves splits at the largest power of two below n; an odd leaf is *not* duplicated.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Protocol

from artel.protocol.errors import CheckFailed, UsageError

HASH_BYTES = 32
MAX_HASHES = 63
"""Of a tree with fewer than 2^63 leaves."""
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


class HashReader(Protocol):
    """A tree that can tell the hashes of its perfect subtrees."""

    def subtree(self, level: int, index: int) -> bytes:
        """Hash over the 2^level leaves that start at leaf index·2^level; level 0 is a leaf hash."""
        ...


class Rows:
    """A tree in memory, with all hashes of its perfect subtrees (a :class:`HashReader`)."""

    def __init__(self, leaf_hashes: Iterable[bytes]) -> None:
        self._rows = [list(leaf_hashes)]
        while len(below := self._rows[-1]) > 1:
            pairs = zip(below[::2], below[1::2], strict=False)
            self._rows.append([node_hash(left, right) for left, right in pairs])

    def __len__(self) -> int:
        return len(self._rows[0])

    def subtree(self, level: int, index: int) -> bytes:
        """As :meth:`HashReader.subtree`."""
        return self._rows[level][index]


def range_hash(reader: HashReader, start: int, end: int) -> bytes:
    """Hash over the leaves from ``start`` to before ``end``, a subtree of RFC 6962's recursion."""
    # The recursion splits off the largest perfect subtree on the left; here they are read left to
    # right and folded from the right.
    parts = []
    while start < end:
        level = (end - start).bit_length() - 1
        parts.append(reader.subtree(level, start >> level))
        start += 1 << level
    digest = parts.pop()
    while parts:
        digest = node_hash(parts.pop(), digest)
    return digest


def inclusion(reader: HashReader, index: int, size: int) -> list[bytes]:
    """The proof that leaf ``index`` is in the tree of ``size`` leaves: siblings, lowest first.

    Asks for at most 2·log2(size) subtrees.

    :raises UsageError: when the tree has no such leaf
    """
    if not 0 <= index < size:
        raise UsageError(f"a tree of {size} entries has no entry {index}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        # The largest power of two below the count: where RFC 6962 splits a tree.
        middle = start + (1 << (end - start - 1).bit_length() - 1)
        if index < middle:
            path.append(range_hash(reader, middle, end))
            end = middle
        else:
            path.append(range_hash(reader, start, middle))
            start = middle
    path.reverse()
    return path


def verify_inclusion(
    leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that the leaf with this hash is at ``index`` of the tree of ``size`` leaves.

    :raises CheckFailed: when the proof does not show it
    """
    _check_hashes(proof)
    if len(leaf_hash) != HASH_BYTES or not 0 <= index < size:
        raise CheckFailed(f"a tree of {size} entries has no entry {index}")
    # RFC 9162 section 2.1.3.2, with its names.
    fn, sn, r = index, size - 1, leaf_hash
    for p in proof:
        if sn == 0:
            raise CheckFailed("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            r = node_hash(r, p)
        fn >>= 1
        sn >>= 1
    if sn:
        raise CheckFailed("the inclusion proof is too short")
    if r != root:
        raise CheckFailed(f"the inclusion proof of entry {index} does not lead to the root")


def _check_hashes(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_HASHES or any(len(digest) != HASH_BYTES for digest in proof):
        raise CheckFailed(f"a proof has at most {MAX_HASHES} hashes of {HASH_BYTES} bytes")
