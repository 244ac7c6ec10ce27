"""Audit of a transparency log: is what is served the tree that was signed?

Spec: https://c2sp.org/tlog-tiles@v0.1.0. It takes any such log, not only Artel's, from any source,
and the keys to trust. The short audit computes the root from the tiles on the right edge; the full
one reads every entry and compares every tile. What the entries mean is up to ``on_entry``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from artel.ledger.sync.source import (
    Source,
    TileHashes,
    fold,
    read_bundle,
    read_checkpoint,
    read_tile,
)
from artel.ledger.tlog import note
from artel.ledger.tlog.cosignature import CosignerKey, open_cosigned, parse_key
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.tiles import ENTRIES, TILE_WIDTH, Tile, level_tiles
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.merkle import CompactRange, leaf_hash

Progress = Callable[[int, int], None]
"""Called with the number of entries that were audited and the number of all."""
OnEntry = Callable[[int, bytes], None]
"""Called with index and content of each entry in order, after it was tied to its level-0 tile; the
tree as a whole is confirmed only when the audit returns. May raise CheckFailed."""


@dataclass(frozen=True)
class Report:
    """What was found to hold, as of one checkpoint."""

    origin: str
    size: int
    root: bytes
    signers: tuple[str, ...]
    """Names of the log keys whose signatures verified."""
    cosigners: dict[str, int]
    """Names of the witnesses whose cosignatures verified, and when they signed (POSIX seconds)."""
    full: bool
    tiles: int
    """Hash tiles that were read and compared."""
    entries: int
    """Entries that were read and hashed."""
    entry_bytes: int
    checkpoint: str
    """The signed note, as served."""


def audit(
    source: Source,
    vkeys: Sequence[str],
    *,
    full: bool = False,
    origin: str | None = None,
    progress: Progress | None = None,
    on_entry: OnEntry | None = None,
) -> Report:
    """Audit the log's newest checkpoint. Memory does not grow with the log.

    :param vkeys: keys to trust, at least one of the log (type 0x01), others of witnesses (0x04)
    :param full: read all entries and tiles; ``on_entry`` is called only then
    :param origin: the log's origin line when it is not the name of its key
    :raises UsageError: when no log key is given, or ``on_entry`` without ``full``
    :raises DecodeError: when a key is malformed
    :raises CheckFailed: when something does not hold; the message names the tile or the entry
    :raises Unreachable: when the source does not answer
    """
    if on_entry is not None and not full:
        raise UsageError("entries are read only in a full audit")
    keys = [parse_key(text) for text in vkeys]
    log_keys = [key for key in keys if isinstance(key, VerifierKey)]
    if not log_keys:
        raise UsageError(
            "no key of the log to check its signature with",
            "give the log's vkey, as in example.com/log+33d7b496+AeHT…",
        )
    data = read_checkpoint(source)
    checkpoint, cosigners = open_cosigned(
        data, log_keys, [key for key in keys if isinstance(key, CosignerKey)], origin
    )
    signed = note.open_note(data, log_keys)
    if full:
        walk = _Walk(source, checkpoint.size, progress, on_entry)
        root = walk.run()
        tiles, entries, entry_bytes = walk.tiles, walk.entries, walk.entry_bytes
        if root != checkpoint.root:
            raise CheckFailed(
                f"the {checkpoint.size} entries do not give the root that the checkpoint signs"
            )
    else:
        edge = TileHashes(source, checkpoint.size, checkpoint.root)
        tiles, entries, entry_bytes = edge.edge_tiles, 0, 0
    return Report(
        origin=checkpoint.origin,
        size=checkpoint.size,
        root=checkpoint.root,
        signers=tuple(dict.fromkeys(line.name for line in signed.signatures)),
        cosigners=cosigners,
        full=full,
        tiles=tiles,
        entries=entries,
        entry_bytes=entry_bytes,
        checkpoint=data.decode(),
    )


class _Walk:
    """One pass over all entries, which rebuilds every tile from what is below it.

    Holds at most one unfinished tile for each level, and one bundle.
    """

    def __init__(
        self, source: Source, size: int, progress: Progress | None, on_entry: OnEntry | None
    ) -> None:
        self._source = source
        self._size = size
        self._progress = progress
        self._on_entry = on_entry
        self._open: list[list[bytes]] = []  # for each level, the hashes of the tile being filled
        self._done: list[int] = []  # for each level, how many full tiles were compared
        self.tiles = 0
        self.entries = 0
        self.entry_bytes = 0

    def run(self) -> bytes:
        """Read everything; returned is the root of what was read."""
        tree = CompactRange()
        for bundle in level_tiles(ENTRIES, self._size):
            leaves = read_bundle(self._source, bundle)
            hashes = [leaf_hash(leaf) for leaf in leaves]
            self._compare(Tile(0, bundle.index, bundle.width), hashes)
            if self._on_entry is not None:
                for index, leaf in enumerate(leaves, self.entries):
                    self._on_entry(index, leaf)
            for digest in hashes:
                tree.append(digest)
            self.entries += len(leaves)
            self.entry_bytes += sum(map(len, leaves))
            if bundle.width == TILE_WIDTH:
                self._add(1, fold(hashes))
            if self._progress is not None:
                self._progress(self.entries, self._size)
        for level, hashes in enumerate(self._open, 1):
            if hashes:
                self._compare(Tile(level, self._done[level - 1], len(hashes)), hashes)
        return tree.root()

    def _add(self, level: int, digest: bytes) -> None:
        """One more hash of a level above 0, the hash of a full tile of the level below."""
        if len(self._open) < level:
            self._open.append([])
            self._done.append(0)
        hashes = self._open[level - 1]
        hashes.append(digest)
        if len(hashes) == TILE_WIDTH:
            self._compare(Tile(level, self._done[level - 1]), hashes)
            self._done[level - 1] += 1
            self._open[level - 1] = []
            self._add(level + 1, fold(hashes))

    def _compare(self, tile: Tile, hashes: list[bytes]) -> None:
        served = read_tile(self._source, tile)
        self.tiles += 1
        if served == hashes:
            return
        place = next(i for i, (a, b) in enumerate(zip(served, hashes, strict=True)) if a != b)
        if tile.level == 0:
            bundle = Tile(ENTRIES, tile.index, tile.width)
            raise CheckFailed(
                f"entry {tile.start + place} in {bundle.path} does not have the hash in {tile.path}"
            )
        below = Tile(tile.level - 1, (tile.index * TILE_WIDTH) + place)
        raise CheckFailed(f"{below.path} does not have the hash that {tile.path} gives it")
