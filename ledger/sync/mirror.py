"""A copy of a run's ledger as a folder of static files, which any web server can serve as it is.

Spec: https://c2sp.org/tlog-tiles@v0.1.0. What is copied was read and checked like any ledger. The
checkpoint is written last, and it never goes back: a folder that is served all the time is a whole
log at every moment, and one that was interrupted goes on. But while the end of a term that was
given up is replaced it has no checkpoint, since tiles of the same name get other contents.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from artel.ledger.entries.documents import document_of, path_of
from artel.ledger.entries.records import signers_in
from artel.ledger.store import finality
from artel.ledger.store.finality import size_of
from artel.ledger.store.keyfiles import locked
from artel.ledger.store.published import read_checkpoint_file, term_of
from artel.ledger.sync import leadership
from artel.ledger.sync.export import write_file
from artel.ledger.sync.fork import require_one_history
from artel.ledger.sync.share_proof import CreditFiles
from artel.ledger.sync.signed_tree import Shown, SignedTree, verified_head
from artel.ledger.sync.source import (
    CERTIFIED_PATH,
    CREDIT_PATH,
    TERMS_PATH,
    FolderSource,
    page_path,
)
from artel.ledger.sync.view import LedgerView
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.tiles import (
    CHECKPOINT_PATH,
    ENTRIES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    edge_of,
    level_tiles,
    tile_at,
    tiles_of,
)
from artel.protocol.dsse import Leaf
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from artel.protocol.telling import Tell, silent


@dataclass(frozen=True)
class Mirrored:
    """What a copy holds now."""

    origin: str
    size: int
    root: bytes
    before: int
    """Its size before, without what was given up with a term."""
    files: int
    """How many were written."""
    certified: int
    """Size of the certified checkpoint that it holds; 0 for none."""
    behind: int
    """How many entries the source lacked; nothing was taken from it then."""


def mirror(view: LedgerView, folder: Path, progress: Tell = silent) -> Mirrored:
    """Bring the copy in ``folder`` up to the newest checkpoint of a ledger.

    :raises CheckFailed: when the ledger shows another history than the copy (``split-view.json`` in
        the folder is then the proof), or is empty
    :raises UsageError: when the folder holds something else
    :raises ResourceError: when the disk is full or does not work
    """
    log, size = view.log, view.log.size
    if not size:
        raise CheckFailed("the log is still empty", "try again when the run has started")
    held, before = _held(view, folder)
    shown, written = Shown.of(log, view.where).head, 0
    if held is None or held.head.place <= shown.place:
        with locked(folder, "copying a log into", 0o777):
            written = _bring(view, folder, held, before, progress)
    now = parse_checkpoint(read_checkpoint_file(folder / CHECKPOINT_PATH))
    return Mirrored(
        origin=now.origin,
        size=now.size,
        root=now.root,
        before=before,
        files=written,
        certified=size_of(read_checkpoint_file(folder / CERTIFIED_PATH)),
        behind=now.size - before if now.origin != log.origin else max(0, now.size - size),
    )


def _held(view: LedgerView, folder: Path) -> tuple[Shown | None, int]:
    """What the copy shows, None for a new one, and how many entries it has in common with the
    ledger: all that it has, or all that was not given up with a term."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "name a folder for the copy")
    if not folder.exists() or not any(folder.iterdir()):
        return None, 0
    text = read_checkpoint_file(folder / CHECKPOINT_PATH)
    if not text:
        if (folder / "tile").is_dir():
            return None, 0  # the first copying was interrupted
        raise UsageError(f"{folder} holds files, but no log", "name an empty or a new folder")
    source = FolderSource(folder)
    head = verified_head(source, text, run=view.state.run)
    held = Shown(str(folder), head, SignedTree(source, head.size, head.root))
    return held, require_one_history(folder, held, Shown.of(view.log, view.where))


def _bring(view: LedgerView, folder: Path, held: Shown | None, before: int, progress: Tell) -> int:
    """Write what the tree before had not; returns how many files."""
    log, size, written = view.log, view.log.size, 0
    gone = _given_up(view, held, before)
    if held is not None and held.size > before:
        (folder / CHECKPOINT_PATH).unlink()
    for leaf in log.leaves(before):
        if isinstance(leaf, Leaf):  # on the disk before the bundle that names it is
            written += _put(folder / path_of(document_of(leaf)), leaf.document)
    wanted = list(_grown(before, size))
    for done, tile in enumerate(wanted, start=1):
        written += _put(folder / tile.path, log.tile(tile))
        progress(done, len(wanted))
    if wanted:
        os.sync()  # all of it on the disk before a checkpoint speaks of it
    certified = view.certified_note
    with suppress(ArtelError):  # what is held may be spoilt
        kept = read_checkpoint_file(folder / CERTIFIED_PATH)
        certified = finality.of_notes((certified, kept), log, view.state).certified
    _put(folder / CERTIFIED_PATH, certified.encode(), durable=True)
    _put(folder / TERMS_PATH, leadership.said_by(view.state.terms), durable=True)
    newest = _newest(view, read_checkpoint_file(folder / CHECKPOINT_PATH))
    _put(folder / CHECKPOINT_PATH, newest.encode(), durable=True)
    _drop_replaced(folder, before, size)
    for path in gone:
        (folder / path).unlink(missing_ok=True)
    return written + _bring_credit(view, folder)


def _given_up(view: LedgerView, held: Shown | None, keep: int) -> set[str]:
    """The files of a copy that nothing names any more when its end is replaced."""
    if held is None or held.size <= keep or not isinstance(held.tree, SignedTree):
        return set()
    size = held.size
    old = {tile.path for tile in (*tiles_of(size), *level_tiles(ENTRIES, size)) if tile.end > keep}
    old |= {path_of(name) for name in map(document_of, held.tree.bare(keep)) if name}
    new = {tile.path for tile in _grown(keep, view.log.size)}
    return old - new - {path_of(name) for name in map(document_of, view.log.bare()) if name}


def _newest(view: LedgerView, held: str) -> str:
    """The newest checkpoint, with all cosignatures of nodes that are shown or held and verify."""
    state, found = view.state, finality.newest_note(view.log, view.heads)
    for text in (*view.notes, held):
        with suppress(ArtelError):  # what is held may be spoilt
            head = parse_checkpoint(text)
            keys = signers_in(term_of(head.origin, state.run), state.terms)
            signed = finality.verified(text, head.origin, keys, state.nodes)[1]
            found = finality.merged(found, signed.encode())
    return found


def _put(path: Path, data: bytes, *, durable: bool = False) -> bool:
    """Write a file, unless it is there already or there is nothing to write."""
    with suppress(OSError):
        if path.read_bytes() == data:
            return False
    if data:
        write_file(path, data, durable=durable)
    return bool(data)


def _grown(before: int, size: int) -> Iterator[Tile]:
    """Tiles that the tree has and had not before, bundles right before their hash tile."""
    level = 0
    while hashes := size >> TILE_HEIGHT * level:
        had = before >> TILE_HEIGHT * level
        for index in range(had // TILE_WIDTH, -(-hashes // TILE_WIDTH) if had < hashes else 0):
            if level == 0:
                yield tile_at(ENTRIES, index, size)
            yield tile_at(level, index, size)
        level += 1


def _bring_credit(view: LedgerView, folder: Path) -> int:
    """Write the credit root and the pages of its map; what it replaces goes."""
    if not view.state.rooted_by:
        return 0
    shown = CreditFiles(view.log, lambda: view.state, lambda _: view.finality)
    pages = [folder / page_path(name) for name in view.state.rooted.pages]
    written = sum(_put(path, shown.get(f"credit/{path.name}")) for path in pages)
    newest = folder / CREDIT_PATH
    written += _put(newest, shown.get(CREDIT_PATH), durable=True)
    for path in set(newest.parent.iterdir()) - {newest, *pages}:
        path.unlink()
    return written


def _drop_replaced(folder: Path, before: int, size: int) -> None:
    """Remove partial tiles whose full tile is there."""
    # SPEC: Logs MAY delete any partial tile once the corresponding full tile is available.
    for tile in edge_of(before):
        if tile.full.end <= size:
            _drop_partial(folder / tile.path)
            if tile.level == 0:
                _drop_partial(folder / Tile(ENTRIES, tile.index, tile.width).path)


def _drop_partial(path: Path) -> None:
    """Remove the partial tiles of a full one, and their folder unless it holds something else."""
    with suppress(OSError):
        for width in range(1, TILE_WIDTH):
            path.with_name(str(width)).unlink(missing_ok=True)
        path.parent.rmdir()
