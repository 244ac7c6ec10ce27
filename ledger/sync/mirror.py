"""A copy of a log as a folder of static files, which any web server can serve as it is.

Spec: https://c2sp.org/tlog-tiles@v0.1.0, any log, not only Artel's. Nothing is written that is not
tied to a signed checkpoint, the checkpoint is written last, and it never goes back: a folder that
is served all the time is a whole log at every moment, and one that was interrupted goes on.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from artel.ledger.entries.credit_map import PAGE_ROWS, all_pages
from artel.ledger.entries.documents import document_of, path_of, require_named
from artel.ledger.store.database import storage_errors
from artel.ledger.store.finality import size_of
from artel.ledger.store.keyfiles import locked
from artel.ledger.store.published import read_checkpoint_file
from artel.ledger.sync.export import write_file
from artel.ledger.sync.fork import require_one_history
from artel.ledger.sync.share_proof import read_root
from artel.ledger.sync.signed_tree import (
    Offer,
    SignedHead,
    SignedTree,
    offered,
    verified_head,
    with_documents,
)
from artel.ledger.sync.source import (
    CREDIT_PATH,
    FINAL_PATH,
    Bringing,
    FolderSource,
    NotFound,
    TileSource,
    page_path,
)
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.cosignature import WITNESS_PREFIX, add_lines, node_lines
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import (
    CHECKPOINT_PATH,
    ENTRIES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    edge_of,
    encode_bundle,
    tile_at,
)
from artel.protocol.dsse import Leaf
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, UsageError
from artel.protocol.files import sync_folder
from artel.protocol.merkle import leaf_hash
from artel.protocol.telling import Tell, silent


@dataclass(frozen=True)
class Mirrored:
    """What a copy holds now."""

    origin: str
    size: int
    root: bytes
    before: int
    """Its size before."""
    files: int
    """How many were written."""
    final: int
    """Size of the final checkpoint that it holds; 0 for none."""
    behind: int
    """How many entries the source lacked; nothing was taken from it then."""


def mirror(
    source: TileSource,
    folder: Path,
    vkeys: Sequence[VerifierKey] = (),
    run: str = "",
    progress: Tell = silent,
) -> Mirrored:
    """Bring the copy in ``folder`` up to the source's newest checkpoint.

    :param vkeys: keys of the log; needed when it is not that of a run
    :raises CheckFailed: when something does not fit the signed checkpoint; when the source shows
        another history than the copy (``split-view.json`` in the folder is then the proof)
    :raises UsageError: when the folder holds something else
    :raises Unreachable: when the source does not answer
    :raises ResourceError: when the disk is full or does not work
    """
    held = held_head(folder, vkeys, run)
    known = _keys_of(folder, held) if held is not None else (lambda _origin: ())
    offer = offered(source, vkeys, run, known)
    before, had = (held.size, held.note) if held is not None else (0, "")
    if held is not None:
        ours = SignedTree(FolderSource(folder), held.size, held.root)
        require_one_history(folder, str(folder), held, ours, offer)
        if offer.head.size < before:
            return _report(folder, held, before, files=0, behind=before - offer.head.size)
    with locked(folder, "copying a log into", 0o777):
        files = _copy(folder, offer, before, progress)
    newest = replace(offer.head, note=_kept(offer.head.note, offer.head.keys, had))
    _keep_final(folder, offer)
    if newest.note != had:
        write_file(folder / CHECKPOINT_PATH, newest.note.encode(), durable=True)
    _drop_replaced(folder, before, newest.size)
    _keep_credits(folder, offer)  # last: what is wrong with it must not hold the log up
    return _report(folder, newest, before, files=files, behind=0)


def held_head(folder: Path, vkeys: Sequence[VerifierKey] = (), run: str = "") -> SignedHead | None:
    """What the copy in ``folder`` stands at, None for a new one.

    :raises CheckFailed: when its checkpoint is not signed by such a key
    :raises UsageError: when the folder holds something that is no copy of a log
    """
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"{folder} is a file", "name a folder for the copy")
    if not folder.exists() or not any(folder.iterdir()):
        return None
    source = FolderSource(folder)
    try:
        data = source.get(CHECKPOINT_PATH)
    except NotFound:
        if (folder / "tile").is_dir():
            return None  # the first copying was interrupted
        raise UsageError(
            f"{folder} holds files, but no log", "name an empty or a new folder"
        ) from None
    return verified_head(source, data, vkeys, run)


def _keys_of(folder: Path, held: SignedHead) -> Callable[[str], tuple[VerifierKey, ...]]:
    def keys_of(origin: str) -> tuple[VerifierKey, ...]:
        if not held.same_log(origin):
            raise UsageError(
                f"{folder} is a copy of {held.origin}, not of {origin[:120]}",
                "use another folder for each log",
            )
        return held.keys_for(origin)

    return keys_of


# --- copying --------------------------------------------------------------------------------------


class _Resumed:
    """A source that need not be asked for full tiles which an interrupted run has brought."""

    def __init__(self, folder: Path, source: TileSource) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.name, self._local, self._remote = source.name, FolderSource(folder), source

    def get(self, path: str, skip: int = 0) -> bytes:
        if ".p/" not in path:
            with suppress(NotFound):
                return self._local.get(path, skip)
        return self._remote.get(path, skip)

    def bring(self, *paths: str) -> None:
        if isinstance(self._remote, Bringing):
            self._remote.bring(*paths)


def _copy(folder: Path, offer: Offer, before: int, progress: Tell) -> int:
    """Bring the files that the tree before had not; returns how many were written."""
    head, source = offer.head, _Resumed(folder, offer.source)
    try:
        tree = SignedTree(source, head.size, head.root)
        return _bring(folder, tree, head.run, before, progress)
    except CheckFailed:
        # A power cut may have spoilt what an earlier run brought; now all from the source.
        return _bring(folder, offer.tree, head.run, before, progress)


def _bring(folder: Path, tree: SignedTree, run: str, before: int, progress: Tell) -> int:
    there, written = FolderSource(folder), 0
    wanted = sum(len(places) * (1 + (level == 0)) for level, places in _grown(before, tree.size))
    for done, tile in enumerate(_missing(before, tree.size), start=1):
        if tile.level == ENTRIES:
            leaves = tree.entries(tile.index)[0]
            if run:
                written += _bring_documents(folder, tree, leaves)
            data = encode_bundle(leaves)
        else:
            data = tree.hashes(tile)
        with suppress(CheckFailed):
            if there.get(tile.path) == data:
                data = b""
        if data:
            write_file(folder / tile.path, data)
            written += 1
        progress(done, wanted)
    _sync(folder, (folder / tile.path for tile in _missing(before, tree.size)))
    return written


def _bring_documents(folder: Path, tree: SignedTree, leaves: Sequence[bytes]) -> int:
    """Bring what these entries of a run name; on the disk before their bundle is."""
    there = FolderSource(folder)

    def held(name: str) -> bool:
        with suppress(CheckFailed):
            return bool(require_named(name, there.get(path_of(name))))
        return False

    named = ((document_of(leaf), leaf) for leaf in leaves)
    missing = {name: leaf for name, leaf in named if name and not held(name)}
    written = [folder / path_of(name) for name in missing]
    for path, leaf in zip(written, with_documents(tree.source, missing.values()), strict=True):
        write_file(path, leaf.document if isinstance(leaf, Leaf) else b"")
    _sync(folder, written)
    return len(written)


def _missing(before: int, size: int) -> Iterator[Tile]:
    """Tiles that the tree has and had not before, bundles right before their hash tile."""
    for level, places in _grown(before, size):
        for index in places:
            if level == 0:
                yield tile_at(ENTRIES, index, size)
            yield tile_at(level, index, size)


def _grown(before: int, size: int) -> Iterator[tuple[int, range]]:
    """Each level at which the tree has more than before, and the places of the tiles with it.

    Only arithmetic: a signed size may be any number, and nothing behind it exist.
    """
    level = 0
    while hashes := size >> TILE_HEIGHT * level:
        had = before >> TILE_HEIGHT * level
        if had < hashes:
            yield level, range(had // TILE_WIDTH, -(-hashes // TILE_WIDTH))
        level += 1


def _sync(root: Path, written: Iterable[Path]) -> None:
    """Everything on the disk before a checkpoint speaks of it."""
    folders: set[Path] = set()
    with storage_errors(root):
        for path in written:
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            folders.update(parent for parent in path.parents if parent.is_relative_to(root))
        for folder in sorted(folders):
            sync_folder(folder)


def _keep_final(folder: Path, offer: Offer) -> None:
    """Keep the final checkpoint that came along.

    Also an older one than is kept: whose cosignatures make a checkpoint final only the fold knows,
    and one that anybody has cosigned must not stay for good.
    """
    if not offer.final:
        return
    checkpoint, head = parse_checkpoint(offer.final), offer.head
    held = read_checkpoint_file(folder / FINAL_PATH)
    final = _kept(offer.final, head.keys_for(checkpoint.origin), held)
    # One that is ahead of the tree comes with the next update.
    if checkpoint.size > head.size or not node_lines(note.parse(final)):
        return
    if not head.same_log(checkpoint.origin):
        raise CheckFailed("the final checkpoint is of another log")
    if root_at(offer.tree, checkpoint.size) != checkpoint.root:
        raise CheckFailed("the final checkpoint is not of this tree")
    if final != held:
        write_file(folder / FINAL_PATH, final.encode(), durable=True)


def _kept(shown: str, keys: Sequence[VerifierKey], held: str) -> str:
    """A note as it is kept: of nodes, whose keys are in their names, only lines that verify.

    The lines of other witnesses are the source's, whatever they are worth: another source shows
    better ones. From the note that is ``held`` only lines of nodes go on, as far as there is room.
    """
    parsed = note.parse(shown)
    own = note.open_note(parsed, keys)
    lines = [line for line in parsed.signatures if not line.name.startswith(WITNESS_PREFIX)]
    kept = add_lines(own, (*node_lines(parsed), *lines))
    with suppress(DecodeError):  # there is none, or no room
        before = note.parse(held)
        for line in node_lines(before) if before.text == kept.text else ():
            kept = add_lines(kept, [line])
    return kept.encode()


def _keep_credits(folder: Path, offer: Offer) -> None:
    """Keep the credit root, unless it is older, and the pages of its map; what it replaces goes."""
    try:
        data = offer.source.get(CREDIT_PATH)
    except NotFound:
        return
    root = read_root(data, offer.head.run)
    index = root.proven.index
    if index >= offer.head.size:
        return  # it comes with the next update
    with suppress(ArtelError):  # there is none here, or it is spoilt
        if index < read_root(FolderSource(folder).get(CREDIT_PATH)).proven.index:
            return
    if offer.tree.subtree(0, index) != leaf_hash(root.leaf):
        raise CheckFailed(f"the entry in {CREDIT_PATH} is not of this tree")
    (folder / CREDIT_PATH).parent.mkdir(exist_ok=True)
    kept = {folder / CREDIT_PATH}
    most = offer.head.size + PAGE_ROWS  # the manifest, one entry, names a few
    try:
        page_of = partial(_credit_page, folder, offer.source)
        for name, page in all_pages(root.body.credits, page_of, most):
            kept.add(folder / page_path(name))
            write_file(folder / page_path(name), page)
    except NotFound:
        return  # there is a newer one meanwhile
    write_file(folder / CREDIT_PATH, data, durable=True)
    for path in (folder / CREDIT_PATH).parent.iterdir():
        if path not in kept:
            path.unlink()


def _credit_page(folder: Path, source: TileSource, name: str) -> bytes:
    """A page that is here already, or as the source has it."""
    with suppress(OSError):
        data = (folder / page_path(name)).read_bytes()
        if hashlib.sha256(data).hexdigest() == name:
            return data
    return source.get(page_path(name))


def _size_of(path: Path) -> int:
    """Size of the checkpoint in a file of ours; 0 when there is none."""
    try:
        return size_of(read_checkpoint_file(path))
    except (OSError, DecodeError):
        return 0


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


def _report(folder: Path, head: SignedHead, before: int, *, files: int, behind: int) -> Mirrored:
    return Mirrored(
        origin=head.origin,
        size=head.size,
        root=head.root,
        before=before,
        files=files,
        final=_size_of(folder / FINAL_PATH),
        behind=behind,
    )
