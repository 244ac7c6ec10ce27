"""A ledger that lies elsewhere, read as if it were here: every byte tied to one signed tree head.

Reads tiles and entry bundles (https://c2sp.org/tlog-tiles) from a
:class:`ledger.sync.source.Source`, which is trusted with nothing. Holds the right edge of the tree
and a few tiles in memory, whatever the size of the log; full tiles and bundles are kept in a cache,
since they never change.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping

from artel.ledger.entries import Genesis, decode, entry_id
from artel.ledger.store.cache import TileCache
from artel.ledger.sync.source import TileSource
from artel.ledger.sync.tree import read_bundle, read_tile
from artel.ledger.tlog import tiles
from artel.ledger.tlog.checkpoint import Checkpoint
from artel.ledger.tlog.edge import perfect
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import ENTRIES, TILE_HEIGHT, TILE_WIDTH, Tile
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.merkle import leaf_hash

_TILES = 64
"""Hash tiles in memory, about 20 KiB each."""
_BUNDLES = 2
"""Entry bundles in memory, at most 2 MiB each."""

Memory = OrderedDict[tuple[int, int], list[bytes]]


class RemoteLog:
    """The interface of :class:`ledger.store.reading.LedgerReader` over a source, as of ``head``.

    :param head: from a checkpoint; whoever made this has verified its signature, or does so with
        the keys of :attr:`genesis` before using anything else
    :param note: the checkpoint itself
    :raises CheckFailed: when the source does not have the tree that the head names
    :raises Unreachable: when it does not answer
    """

    def __init__(self, source: TileSource, head: Checkpoint, note: str, cache: TileCache) -> None:
        self.size = head.size
        self.root = head.root
        self.origin = head.origin
        self.latest_note = note
        self.notes: dict[int, str] = {head.size: note}
        """The checkpoints that are known here, by size."""
        self._source = source
        self._cache = cache
        self._tiles: Memory = OrderedDict()
        self._bundles: Memory = OrderedDict()
        self._edge: Mapping[tuple[int, int], list[bytes]] = {
            (tile.level, tile.index): read_tile(source, tile) for tile in tiles.edge_of(head.size)
        }
        if root_at(self, head.size) != head.root:
            raise CheckFailed(
                f"the tiles that are served are not those of checkpoint {head.size}",
                "the server is broken or lies; ask another one",
            )
        self._genesis: Genesis | None = None

    @property
    def genesis(self) -> Genesis:
        """Entry 0.

        :raises CheckFailed: when the log is empty or does not begin with a manifest
        """
        if self._genesis is None:
            if not self.size:
                raise CheckFailed("the ledger is still empty")
            try:
                body = decode(self.leaf(0)).body
            except DecodeError as error:
                raise CheckFailed(f"entry 0 is no manifest: {error.message}") from None
            if not isinstance(body, Genesis):
                raise CheckFailed("the ledger does not begin with a manifest")
            self._genesis = body
        return self._genesis

    # --- entries ----------------------------------------------------------------------------------

    def leaf(self, index: int) -> bytes:
        """The bytes of one entry.

        :raises UsageError: when there is no such entry
        """
        if not 0 <= index < self.size:
            raise UsageError(f"there is no entry {index}; the ledger has {self.size}")
        bundle, place = divmod(index, TILE_WIDTH)
        return self._bundle(bundle)[place]

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Entries ``start`` to ``stop`` (default: all), read in bundles."""
        stop = self.size if stop is None else min(stop, self.size)
        index = max(0, start)
        while index < stop:
            bundle, place = divmod(index, TILE_WIDTH)
            leaves = self._bundle(bundle)[place : place + stop - index]
            yield from leaves
            index += len(leaves)

    def index_of(self, entry: str) -> int | None:
        """Index of the entry with this id (hex), if it is there; reads the log from its start."""
        return next(iter(self.find(entry, 1)), None) if len(entry) == 64 else None

    def find(self, prefix: str, limit: int = 2) -> list[int]:
        """Indices of entries whose id begins with ``prefix`` (hex, at least 8 digits)."""
        digits = prefix.lower()
        if not 8 <= len(digits) <= 64 or not set(digits) <= set("0123456789abcdef"):
            raise UsageError("an entry id is 64 hex digits, of which the first 8 or more will do")
        found: list[int] = []
        for index, leaf in enumerate(self.leaves()):
            if entry_id(leaf).startswith(digits):
                found.append(index)
                if len(found) == limit:
                    break
        return found

    def note_at(self, size: int) -> str:
        """The checkpoint of exactly this size if it is known here; otherwise ""."""
        return self.notes.get(size, "")

    def note_between(self, after: int, up_to: int) -> str:
        """The newest known checkpoint with ``after < size <= up_to``; "" when there is none."""
        fitting = [size for size in self.notes if after < size <= up_to]
        return self.notes[max(fitting)] if fitting else ""

    # --- the tree ---------------------------------------------------------------------------------

    def subtree(self, level: int, index: int) -> bytes:
        """Hash over the 2^level leaves from leaf index·2^level on (:mod:`ledger.tlog.proof`)."""
        tile, first, count = tiles.locate(level, index, self.size)
        return perfect(self._hashes(tile)[first : first + count])

    def root_at(self, size: int) -> bytes:
        """Root of the tree over the first ``size`` entries."""
        if not 0 <= size <= self.size:
            raise UsageError(f"there is no tree of {size} entries; the ledger has {self.size}")
        return root_at(self, size)

    def _hashes(self, tile: Tile) -> list[bytes]:
        edge = self._edge.get((tile.level, tile.index))
        return edge if edge is not None else self._full(tile, self._tiles, _TILES)

    def _bundle(self, index: int) -> list[bytes]:
        tile = tiles.tile_at(ENTRIES, index, self.size)
        if tile.width == TILE_WIDTH:
            return self._full(tile, self._bundles, _BUNDLES)
        leaves = self._bundles.get((ENTRIES, index))
        if leaves is None:
            leaves = read_bundle(self._source, tile)
            if list(map(leaf_hash, leaves)) != self._edge[0, index]:
                raise _wrong(tile)
            _remember(self._bundles, tile, leaves, _BUNDLES)
        return leaves

    def _full(self, tile: Tile, memory: Memory, most: int) -> list[bytes]:
        """A full tile or bundle from memory, the cache or the source, tied to what is above it."""
        items = memory.get((tile.level, tile.index))
        if items is not None:
            memory.move_to_end((tile.level, tile.index))
            return items
        expected = self.subtree(TILE_HEIGHT * (max(tile.level, 0) + 1), tile.index)
        entries = tile.level == ENTRIES
        decoder: Callable[[bytes, int], list[bytes]]
        decoder = tiles.decode_bundle if entries else tiles.decode_tile
        kept = self._cache.get(tile.path)
        if kept is not None:
            try:
                items = decoder(kept, tile.width)
            except DecodeError:
                items = None
            if items is not None and _top(items, entries) != expected:
                items = None
        if items is None:
            read = read_bundle if entries else read_tile
            items = read(self._source, tile)
            if _top(items, entries) != expected:
                raise _wrong(tile)
            encoder = tiles.encode_bundle if entries else tiles.encode_tile
            self._cache.put(tile.path, encoder(items))
        _remember(memory, tile, items, most)
        return items


def _top(items: list[bytes], entries: bool) -> bytes:
    return perfect([leaf_hash(leaf) for leaf in items] if entries else items)


def _remember(memory: Memory, tile: Tile, items: list[bytes], most: int) -> None:
    memory[tile.level, tile.index] = items
    if len(memory) > most:
        memory.popitem(last=False)


def _wrong(tile: Tile) -> CheckFailed:
    return CheckFailed(
        f"{tile.path} is not what the checkpoint signs",
        "the server is broken or lies; ask another one",
    )
