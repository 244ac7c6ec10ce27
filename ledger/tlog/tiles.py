"""Tiles: how a log's Merkle tree and its entries are cut into small files that never change.

Spec: https://c2sp.org/tlog-tiles@v0.1.0. A tile holds up to 256 hashes of one level, 8 binary
levels above the tile level below; an entry bundle holds the entries below one level-0 tile. This
module is arithmetic and encoding only, nothing here reads or writes a file.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from artel.protocol.errors import DecodeError, UsageError
from artel.protocol.merkle import HASH_BYTES

TILE_HEIGHT = 8
TILE_WIDTH = 1 << TILE_HEIGHT
ENTRIES = -1
"""The ``level`` of an entry bundle, ``tile/entries/...``."""
MAX_LEVEL = 63
MAX_ENTRY_BYTES = 0xFFFF
CHECKPOINT_PATH = "checkpoint"
MAX_PATH = 64
"""Characters of the longest path; a tile of a tree below 2^63 entries needs 42."""

_PATH = re.compile(
    r"tile/(entries|0|[1-9][0-9]?)/((?:x[0-9]{3}/)*[0-9]{3})(?:\.p/([1-9][0-9]{0,2}))?", re.ASCII
)


@dataclass(frozen=True, order=True)
class Tile:
    """One tile: which level, which place in that level, and how many hashes (or entries) wide.

    :raises DecodeError: when there can be no such tile
    """

    level: int  # 0 to 63, or ENTRIES
    index: int
    width: int = TILE_WIDTH  # 1 to 256, below 256 for a partial tile

    def __post_init__(self) -> None:
        # SPEC: <L> is the "level" of the tile, and MUST be a decimal ASCII integer between 0 and
        # 63, with no additional leading zeroes.
        if not ENTRIES <= self.level <= MAX_LEVEL:
            raise DecodeError(f"a tile's level is 0 to {MAX_LEVEL}, not {self.level}")
        # SPEC: <W> is the width of the tile, a decimal ASCII integer between 1 and 255. Full tiles
        # MUST be exactly 256 hashes wide. Empty tiles MUST NOT be served.
        if not 1 <= self.width <= TILE_WIDTH:
            raise DecodeError(f"a tile is 1 to {TILE_WIDTH} wide, not {self.width}")
        # SPEC: <N> MUST be a non-negative integer. (A tree has fewer than 2^63 entries, so the
        # higher levels have few tiles.)
        if self.index < 0 or (self.index + 1) << self._shift > 1 << 63:
            raise DecodeError(f"no tree has a tile {self.index} at level {self.level}")

    @property
    def _shift(self) -> int:
        """log2 of the number of leaves under the full tile."""
        return TILE_HEIGHT * (max(self.level, 0) + 1)

    @property
    def path(self) -> str:
        """Where it is served, without a leading slash."""
        level = "entries" if self.level == ENTRIES else str(self.level)
        # SPEC: <N> is encoded into zero-padded 3-digit path elements. All but the last path element
        # MUST begin with an x.
        rest, last = divmod(self.index, 1000)
        groups = f"{last:03}"
        while rest:
            rest, group = divmod(rest, 1000)
            groups = f"x{group:03}/{groups}"
        # SPEC: The .p/<W> suffix is only present for partial tiles.
        suffix = "" if self.width == TILE_WIDTH else f".p/{self.width}"
        return f"tile/{level}/{groups}{suffix}"

    @classmethod
    def parse(cls, path: str) -> Tile:
        """Read a path; exactly the texts that :attr:`path` writes are accepted.

        :raises DecodeError: on every other text
        """
        match = _PATH.fullmatch(path) if len(path) <= MAX_PATH else None
        if match is None:
            raise DecodeError(f"{path[:MAX_PATH]!r} is not the path of a tile")
        level, groups, width = match.groups()
        tile = cls(
            ENTRIES if level == "entries" else int(level),
            int(groups.replace("x", "").replace("/", "")),
            TILE_WIDTH if width is None else int(width),
        )
        if tile.path != path:  # x000/001, .p/256
            raise DecodeError(f"{path!r} is not how the path of a tile is written")
        return tile

    @property
    def full(self) -> Tile:
        """The tile that this one is, or will grow into."""
        return Tile(self.level, self.index)

    @property
    def start(self) -> int:
        """Index of the first leaf below it."""
        return self.index << self._shift

    @property
    def end(self) -> int:
        """Index after the last leaf below it: the smallest tree that has this tile."""
        return ((self.index << TILE_HEIGHT) + self.width) << (self._shift - TILE_HEIGHT)

    @property
    def limit(self) -> int:
        """The most bytes that its content can have."""
        return self.width * (2 + MAX_ENTRY_BYTES if self.level == ENTRIES else HASH_BYTES)


def width_at(level: int, index: int, size: int) -> int:
    """How many hashes (0 to 256) a tree of ``size`` leaves has in the tile at this place."""
    hashes = size >> TILE_HEIGHT * max(level, 0)
    return min(TILE_WIDTH, max(0, hashes - (index << TILE_HEIGHT)))


def tile_at(level: int, index: int, size: int) -> Tile:
    """The tile at this place as a tree of ``size`` leaves has it.

    :raises DecodeError: when that tree has no tile there
    """
    return Tile(level, index, width_at(level, index, size))


def level_tiles(level: int, size: int) -> Iterator[Tile]:
    """The tiles of one level (or the entry bundles) of a tree of ``size`` leaves, left to right."""
    # SPEC: The partial tile at level l for a tree of size s has floor(s / 256**l) mod 256 entries.
    full, rest = divmod(size >> TILE_HEIGHT * max(level, 0), TILE_WIDTH)
    for index in range(full):
        yield Tile(level, index)
    if rest:
        yield Tile(level, full, rest)


def tiles_of(size: int) -> Iterator[Tile]:
    """All hash tiles of a tree of ``size`` leaves, lowest level first; no entry bundles."""
    level = 0
    while size >> TILE_HEIGHT * level:
        yield from level_tiles(level, size)
        level += 1


def edge_of(size: int) -> list[Tile]:
    """The partial tiles on the right edge, lowest level first: they alone give the root."""
    edge, level = [], 0
    while hashes := size >> TILE_HEIGHT * level:
        if rest := hashes % TILE_WIDTH:
            edge.append(Tile(level, hashes // TILE_WIDTH, rest))
        level += 1
    return edge


def locate(level: int, index: int, size: int) -> tuple[Tile, int, int]:
    """Where a tree of ``size`` leaves keeps the subtree over leaves index·2^level and on.

    :param level: of the subtree, counted in binary levels: it has 2^level leaves
    :returns: the tile, the position of the subtree's first hash in it, and how many hashes it has
    :raises UsageError: when the subtree is not wholly inside the tree
    """
    if level < 0 or index < 0 or (index + 1) << level > size:
        raise UsageError(f"subtree {index} of 2^{level} leaves is outside a tree of {size}")
    tile_level, above = divmod(level, TILE_HEIGHT)
    place, first = divmod(index << above, TILE_WIDTH)
    return tile_at(tile_level, place, size), first, 1 << above


def decode_tile(data: bytes, width: int) -> list[bytes]:
    """The hashes in a tile of ``width`` hashes.

    :raises DecodeError: when it does not have exactly ``width`` hashes of 32 bytes
    """
    if len(data) != width * HASH_BYTES:
        raise DecodeError(f"tile of {len(data)} bytes where {width} hashes of {HASH_BYTES} belong")
    return [data[at : at + HASH_BYTES] for at in range(0, len(data), HASH_BYTES)]


def encode_bundle(leaves: Sequence[bytes]) -> bytes:
    """The content of an entry bundle.

    :raises UsageError: when an entry has more than 65,535 bytes
    """
    parts = []
    for leaf in leaves:
        if len(leaf) > MAX_ENTRY_BYTES:
            raise UsageError(f"entry of {len(leaf)} bytes, at most {MAX_ENTRY_BYTES} fit a bundle")
        # SPEC: Entry bundles are sequences of big-endian uint16 length-prefixed log entries.
        parts += [len(leaf).to_bytes(2, "big"), leaf]
    return b"".join(parts)


def decode_bundle(data: bytes, count: int) -> list[bytes]:
    """The ``count`` entries in a bundle.

    :raises DecodeError: when it holds another number of entries or anything else
    """
    leaves: list[bytes] = []
    at = 0
    for _ in range(count):
        start = at + 2
        end = start + int.from_bytes(data[at:start], "big")
        if end > len(data):
            raise DecodeError(f"bundle ends within entry {len(leaves)} of {count}")
        leaves.append(data[start:end])
        at = end
    if at != len(data):
        raise DecodeError(f"bundle has {len(data) - at} bytes after its {count} entries")
    return leaves
