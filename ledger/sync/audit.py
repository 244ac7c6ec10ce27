"""Audit of a transparency log: is what is served the tree that was signed?

Spec: https://c2sp.org/tlog-tiles@v0.1.0. It takes any such log, not only Artel's, from any source,
and the keys to trust. The short audit computes the root from the tiles on the right edge; the full
one reads every entry and every tile. What the entries mean is up to ``on_entry``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from artel.ledger.sync.source import TileSource
from artel.ledger.sync.tree import Tree, read_tile, require_same
from artel.ledger.tlog import note
from artel.ledger.tlog.cosignature import CosignerKey, open_cosigned, parse_key
from artel.ledger.tlog.note import MAX_NOTE_BYTES, VerifierKey
from artel.ledger.tlog.tiles import CHECKPOINT_PATH, TILE_WIDTH, level_tiles, tiles_of
from artel.protocol.errors import UsageError

Progress = Callable[[int, int], None]
"""Called with the number of entries that were audited and the number of all."""
OnEntry = Callable[[int, bytes], None]
"""Called with index and content of each entry in order, after it was tied to the signed root. May
raise CheckFailed."""


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
    source: TileSource,
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
    data = source.get(CHECKPOINT_PATH, MAX_NOTE_BYTES)
    checkpoint, cosigners = open_cosigned(
        data, log_keys, [key for key in keys if isinstance(key, CosignerKey)], origin
    )
    signed = note.open_note(data, log_keys)
    tree = Tree(source, checkpoint.size, checkpoint.root)
    return Report(
        origin=checkpoint.origin,
        size=checkpoint.size,
        root=checkpoint.root,
        signers=tuple(dict.fromkeys(line.name for line in signed.signatures)),
        cosigners=cosigners,
        full=full,
        tiles=sum(1 for _ in tiles_of(checkpoint.size)) if full else tree.edge_tiles,
        entries=checkpoint.size if full else 0,
        entry_bytes=_read_all(tree, progress, on_entry) if full else 0,
        checkpoint=data.decode(),
    )


def _read_all(tree: Tree, progress: Progress | None, on_entry: OnEntry | None) -> int:
    """Tie every entry to the root, and so every tile above; returned are the bytes of them all."""
    total = 0
    for tile in level_tiles(0, tree.size):
        leaves, hashes = tree.entries(tile.index)
        if tile.width == TILE_WIDTH:  # the entries gave the hash above: no tile was needed for it
            require_same(tile, read_tile(tree.source, tile), hashes)
        total += sum(map(len, leaves))
        if on_entry is not None:
            for index, leaf in enumerate(leaves, tile.start):
                on_entry(index, leaf)
        if progress is not None:
            progress(tile.start + len(leaves), tree.size)
    return total
