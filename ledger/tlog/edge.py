"""The Merkle tree as it grows: full tiles as they come to be, and the hashes on its right edge.

Pure arithmetic. What a tree of n leaves needs in memory is at most 255 hashes for each of its tile
levels (three levels at 10^7 leaves); full tiles (https://c2sp.org/tlog-tiles) never change and are
handed out once, to be stored.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from artel.ledger.tlog.tiles import TILE_HEIGHT, TILE_WIDTH
from artel.protocol.merkle import EMPTY_ROOT, HASH_BYTES, node_hash

TILE_BYTES = TILE_WIDTH * HASH_BYTES


@dataclass(frozen=True)
class FullTile:
    """A tile that has just become full: 256 hashes, 8,192 bytes."""

    level: int
    index: int
    hashes: bytes


class Edge:
    """The right edge of a tree: for each tile level, the hashes of its partial tile."""

    __slots__ = ("_levels", "size")

    def __init__(self) -> None:
        self.size = 0
        self._levels: list[list[bytes]] = [[]]

    @classmethod
    def of(cls, size: int, hashes: Callable[[int, int, int], Iterable[bytes]]) -> Edge:
        """The edge of a tree that is there already.

        :param hashes: gives so many hashes of a tile level from an index on: (level, index, count)
        """
        edge, level = cls(), 0
        edge.size = size
        while size >> TILE_HEIGHT * level:
            end = size >> TILE_HEIGHT * level
            count = end % TILE_WIDTH
            edge._levels[level:] = [list(hashes(level, end - count, count)), []]
            level += 1
        return edge

    def append(self, digest: bytes) -> Sequence[FullTile]:
        """Add one leaf hash on the right; returns the tiles that are full now, lowest first."""
        self._levels[0].append(digest)
        self.size += 1
        return () if self.size % TILE_WIDTH else self._carry()

    def _carry(self) -> list[FullTile]:
        full: list[FullTile] = []
        for level in range(len(self._levels)):
            if len(self._levels[level]) < TILE_WIDTH:
                break
            hashes = b"".join(self._levels[level])
            index = (self.size >> TILE_HEIGHT * (level + 1)) - 1
            full.append(FullTile(level, index, hashes))
            self._levels[level] = []
            if level + 1 == len(self._levels):
                self._levels.append([])
            self._levels[level + 1].append(pyramid(hashes)[TILE_HEIGHT])
        return full

    def hashes(self, level: int) -> Sequence[bytes]:
        """The hashes of the partial tile at a tile level; none when it has no partial tile."""
        return self._levels[level] if level < len(self._levels) else ()

    def root(self) -> bytes:
        """Root of the tree so far."""
        digest = b""
        for hashes in self._levels:
            # The perfect subtrees that these hashes make, the smallest (rightmost) first.
            end = len(hashes)
            while end:
                count = end & -end
                left = perfect(hashes[end - count : end])
                digest = node_hash(left, digest) if digest else left
                end -= count
        return digest or EMPTY_ROOT

    def copy(self) -> Edge:
        twin = Edge()
        twin.size, twin._levels = self.size, [list(hashes) for hashes in self._levels]
        return twin


def perfect(hashes: Sequence[bytes]) -> bytes:
    """Root over 2^k hashes."""
    return hashes[0] if len(hashes) == 1 else halved(b"".join(hashes), 1)


def pyramid(hashes: bytes) -> tuple[bytes, ...]:
    """The rows of hashes above a full tile: 256 as they are, 128, ... and the one on top."""
    rows = [hashes]
    for _ in range(TILE_HEIGHT):
        rows.append(halved(rows[-1], len(rows[-1]) // HASH_BYTES // 2))
    return tuple(rows)


def halved(row: bytes, down_to: int) -> bytes:
    """Hash neighbours together until ``down_to`` hashes are left."""
    # Written out, because proofs and the opening of a ledger spend most of their time here.
    sha256, pair = hashlib.sha256, 2 * HASH_BYTES
    while len(row) > down_to * HASH_BYTES:
        row = b"".join(
            [sha256(b"\x01" + row[at : at + pair]).digest() for at in range(0, len(row), pair)]
        )
    return row
