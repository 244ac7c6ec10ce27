"""Audit of a transparency log: is what is served the tree that was signed?

Spec: https://c2sp.org/tlog-tiles@v0.1.0. It takes any such log, not only Artel's, from any source,
and the keys to trust. The short audit computes the root from the tiles on the right edge; the full
one reads every entry and every tile. What the entries mean is up to ``on_entry``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from artel.ledger.entries.state import FoldState
from artel.ledger.fold.effects import checked
from artel.ledger.fold.shares import apply
from artel.ledger.sync.offline import run_of
from artel.ledger.sync.source import TileSource, newest_heads
from artel.ledger.sync.tree import Tree, read_tile, require_same, verified_head
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.cosignature import CosignerKey, open_cosigned, parse_key
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.tiles import CHECKPOINT_PATH, TILE_WIDTH, edge_of, level_tiles, tiles_of
from artel.protocol.errors import CheckFailed, UsageError

_BATCH = 1024
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
    data = source.get(CHECKPOINT_PATH)
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
        tiles=sum(1 for _ in tiles_of(checkpoint.size)) if full else len(edge_of(checkpoint.size)),
        entries=checkpoint.size if full else 0,
        entry_bytes=_read_all(tree, progress, on_entry) if full else 0,
        checkpoint=data.decode(),
    )


@dataclass(frozen=True)
class Audited:
    """A log that holds, and what its entries amount to, if they are a run's and were all read."""

    report: Report
    state: FoldState | None = None
    signatures: int = 0
    """That verified."""
    unsigned: int = 0
    """Entries with a bad signature, which count for nothing."""


def audit_log(
    source: TileSource,
    vkeys: Sequence[str],
    run: str,
    *,
    full: bool = False,
    origin: str | None = None,
    progress: Progress | None = None,
) -> Audited:
    """As :func:`audit`; a run's id can stand for the keys, and a full audit of a run replays it."""
    newest, _ = newest_heads(source)  # also finds out where the tiles are
    if not vkeys and not run:
        raise UsageError(
            "no key to check the log's signature with",
            "add --vkey VKEY (/ledger/run shows a run's), or --run ID for a run",
        )
    keys = vkeys or [key.encode() for key in verified_head(source, newest, run=run).keys]
    fold = _Fold() if full and run_of(parse_checkpoint(newest).origin) else None
    on_entry = fold.add if fold is not None else None
    report = audit(source, keys, full=full, origin=origin, progress=progress, on_entry=on_entry)
    if fold is None:
        return Audited(report)
    return Audited(report, fold.done(), fold.signatures, fold.unsigned)


class _Fold:
    """Decodes entries, checks their signatures on all cores and folds them, as an audit goes."""

    def __init__(self) -> None:
        self._waiting: list[bytes] = []
        self._state = FoldState()
        self.signatures = 0
        self.unsigned = 0

    def add(self, index: int, leaf: bytes) -> None:
        self._waiting.append(leaf)
        if len(self._waiting) >= _BATCH:
            self._flush()

    def done(self) -> FoldState:
        self._flush()
        if self._state.size and not self._state.run:
            raise CheckFailed("the manifest is not signed by its organiser")
        return self._state

    def _flush(self) -> None:
        for entry in checked(self._waiting, self._state.size, processes=True):
            self.signatures += len(entry.signers)
            self.unsigned += not entry.signers
            apply(self._state, entry)
        self._waiting = []


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
