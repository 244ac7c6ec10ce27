"""A tree in tiles: whatever is read is compared with the hash above it, up to the right edge.

The one reader of tiles (https://c2sp.org/tlog-tiles), wherever they lie: in a database, in a
folder, on a server. The edge is in memory, and whoever makes a tree has held its root against a
signed head. So no byte that is not what was signed gets into a proof, and memory does not grow with
the log.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable

from artel.ledger.tlog import edge as edges
from artel.ledger.tlog.edge import Edge
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import TILE_HEIGHT, TILE_WIDTH, Tile, locate, width_at
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.merkle import HASH_BYTES

CACHED_TILES = 256
"""Full tiles kept in memory with all rows above them, 16 KiB each: enough to compute any proof
without reading a tile twice."""


class Tiles:
    """The full tiles of a log, which never change; for any thread.

    :param read: gives the 8,192 bytes of a full tile, from where nothing is trusted
    :param hint: what to do when a tile is not the one that was signed
    """

    def __init__(
        self, read: Callable[[Tile], bytes], hint: str, cached_tiles: int = CACHED_TILES
    ) -> None:
        self._read, self._hint, self._most = read, hint, cached_tiles
        self._lock = threading.RLock()
        self._rows: OrderedDict[tuple[int, int], tuple[bytes, ...]] = OrderedDict()

    def rows(self, tree: TileTree, level: int, index: int) -> tuple[bytes, ...]:
        """The hashes of a full tile of the tree, and all rows above them.

        :raises CheckFailed: when they do not have the hash that the tile above gives them
        """
        with self._lock:
            rows = self._rows.get((level, index))
            if rows is not None:
                self._rows.move_to_end((level, index))
                return rows
            tile = Tile(level, index)
            rows = edges.pyramid(self._read(tile))
            if rows[-1] != tree.subtree(TILE_HEIGHT * (level + 1), index):
                raise CheckFailed(
                    f"{tile.path} does not have the hash that the tile above gives it", self._hint
                )
            self._rows[level, index] = rows
            if len(self._rows) > self._most:
                self._rows.popitem(last=False)
            return rows


class TileTree:
    """The tree over the first entries of a log, as a :class:`.proof.HashReader`.

    ``edge`` is never changed, only copied. Trees of one log share their full tiles.
    """

    def __init__(self, edge: Edge, tiles: Tiles) -> None:
        self.edge, self._tiles = edge, tiles

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.edge.size

    def subtree(self, level: int, index: int) -> bytes:
        """Hash over the 2^level leaves from leaf index·2^level on.

        :raises UsageError: when the subtree is not wholly inside the tree
        :raises CheckFailed: when a tile is not what was signed
        """
        tile, first, count = locate(level, index, self.size)
        if tile.width < TILE_WIDTH:
            return edges.perfect(self.edge.hashes(tile.level)[first : first + count])
        row = self._tiles.rows(self, tile.level, tile.index)[count.bit_length() - 1]
        at = first // count * HASH_BYTES
        return row[at : at + HASH_BYTES]

    def hashes(self, tile: Tile) -> bytes:
        """The content of a hash tile, full or partial.

        :raises UsageError: when the tree does not have it
        :raises CheckFailed: when it is not what was signed
        """
        if tile.end > self.size:
            raise UsageError(f"{tile.path} is outside a tree of {self.size} entries")
        if width_at(tile.level, tile.index, self.size) < TILE_WIDTH:
            return b"".join(self.edge.hashes(tile.level)[: tile.width])
        return self._tiles.rows(self, tile.level, tile.index)[0][: tile.width * HASH_BYTES]

    def root_at(self, size: int) -> bytes:
        """Root of the tree over the first ``size`` entries.

        :raises UsageError: when the tree has fewer
        """
        if not 0 <= size <= self.size:
            raise UsageError(f"there is no tree of {size} entries; the ledger has {self.size}")
        return root_at(self, size)
