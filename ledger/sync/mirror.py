"""A copy of a log as a folder of static files, which any web server can serve as it is.

Spec: https://c2sp.org/tlog-tiles@v0.1.0, any log, not only Artel's. Nothing is written that is not
tied to a signed checkpoint, the checkpoint is written last, and it never goes back: a folder that
is served all the time is a whole log at every moment, and one that was interrupted goes on.
"""

from __future__ import annotations

import json
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from artel.ledger.entries import Genesis, decode, evidence
from artel.ledger.entries.evidence import SplitView
from artel.ledger.store.database import storage_errors
from artel.ledger.store.keyfiles import locked
from artel.ledger.sync.export import write_file
from artel.ledger.sync.fork import SPLIT_VIEW_FILE, write_split_view
from artel.ledger.sync.holders import Holder
from artel.ledger.sync.offline import run_of
from artel.ledger.sync.source import (
    FINAL_PATH,
    FolderSource,
    NotFound,
    Source,
    TileHashes,
    read_bundle,
    read_checkpoint,
)
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint
from artel.ledger.tlog.cosignature import add_lines
from artel.ledger.tlog.note import MAX_NOTE_BYTES, VerifierKey
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import (
    CHECKPOINT_PATH,
    ENTRIES,
    TILE_HEIGHT,
    TILE_WIDTH,
    Tile,
    edge_of,
    encode_bundle,
    tiles_of,
)
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.files import sync_folder
from artel.protocol.merkle import leaf_hash

Progress = Callable[[int, int], None]
"""``progress(files that are there, files in all)``"""


# --- whose log it is ------------------------------------------------------------------------------


@dataclass(frozen=True)
class SignedHead:
    """A checkpoint whose signature was verified, the note around it, and the keys that it is by."""

    note: str
    checkpoint: Checkpoint
    keys: tuple[VerifierKey, ...]

    @property
    def size(self) -> int:
        return self.checkpoint.size

    @property
    def root(self) -> bytes:
        return self.checkpoint.root

    def keys_for(self, origin: str) -> tuple[VerifierKey, ...]:
        """The same keys as they sign another term of the run."""
        return tuple(VerifierKey(origin, key.public) for key in self.keys)


def verified_head(
    source: Source, data: str | bytes, vkeys: Sequence[VerifierKey] = (), run: str = ""
) -> SignedHead:
    """A log's checkpoint, verified.

    Without keys, the log has to be that of a run: its origin names the manifest by its hash, and
    the manifest, entry 0, names the keys.

    :param source: where entry 0 is read from
    :param run: the run that it must be; any, when empty
    :raises DecodeError: when the checkpoint is malformed
    :raises CheckFailed: when it is not signed by such a key, or of another run
    :raises Unreachable: when the source does not answer
    """
    parsed = note.parse(data)
    checkpoint = Checkpoint.parse(parsed.text)
    if not vkeys:
        genesis = _genesis(source, checkpoint, run)
        vkeys = [VerifierKey(checkpoint.origin, bytes.fromhex(key)) for key in genesis.coordinators]
    signed = note.open_note(data, vkeys)
    if checkpoint.origin not in {line.name for line in signed.signatures}:
        raise CheckFailed(f"the checkpoint is of another log: {checkpoint.origin[:120]!r}")
    # All lines are kept: those of witnesses, too, whoever reads this copy may know their keys.
    return SignedHead(parsed.encode(), checkpoint, tuple(vkeys))


def keep_evidence(folder: Path, proof: SplitView, source: Source, size: int) -> Path:
    """Write ``split-view.json``, which ``artel ledger verify`` checks with nothing else at hand.

    :param source: a log of that run with ``size`` entries, for its manifest
    """
    if run_of(proof.origin):
        return write_split_view(folder, proof, _first_entry(source, size))
    path = folder / SPLIT_VIEW_FILE
    write_file(path, json.dumps(proof.to_dict(), indent=1).encode() + b"\n", durable=True)
    return path


def _first_entry(source: Source, size: int) -> bytes:
    return read_bundle(source, Tile(ENTRIES, 0, min(TILE_WIDTH, size)))[0]


def _genesis(source: Source, checkpoint: Checkpoint, run: str) -> Genesis:
    found = run_of(checkpoint.origin)
    if not found:
        raise UsageError(
            f"{checkpoint.origin[:120]!r} is not the log of a run",
            "give the key to trust, --vkey VKEY, as the log's operator publishes it",
        )
    if run and found != run:
        raise CheckFailed(f"this is the log of run {found[:12]}…, not {run[:12]}…")
    if not checkpoint.size:
        raise CheckFailed("the log is still empty", "try again when the run has started")
    body = decode(_first_entry(source, checkpoint.size)).body
    if not isinstance(body, Genesis) or body.run != found:
        raise CheckFailed("the first entry of the log is not the manifest that its origin names")
    return body


# --- copying --------------------------------------------------------------------------------------


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
    holder: Holder,
    folder: Path,
    vkeys: Sequence[VerifierKey] = (),
    run: str = "",
    progress: Progress = lambda _done, _all: None,
) -> Mirrored:
    """Bring the copy in ``folder`` up to the holder's newest checkpoint.

    :param vkeys: keys of the log; needed when it is not that of a run
    :raises CheckFailed: when something does not fit the signed checkpoint; when the holder shows
        another history than the copy (``split-view.json`` in the folder is then the proof)
    :raises UsageError: when the folder holds something else
    :raises Unreachable: when the holder does not answer
    :raises ResourceError: when the disk is full or does not work
    """
    held = held_head(folder, vkeys, run)
    wanted = run or (run_of(held.checkpoint.origin) if held is not None else "")
    text, final = holder.heads()
    source = holder.source
    origin = Checkpoint.parse(note.parse(text).text).origin
    if held is not None and not vkeys and _same_log(held.checkpoint.origin, origin):
        vkeys = held.keys_for(origin)  # entry 0 need not be fetched again
    head = verified_head(source, text, vkeys, wanted)
    if held is not None and not _same_log(held.checkpoint.origin, head.checkpoint.origin):
        raise UsageError(
            f"{folder} is a copy of {held.checkpoint.origin}, not of {head.checkpoint.origin}",
            "use another folder for each log",
        )
    before = held.size if held is not None else 0
    reader = TileHashes(source, head.size, head.root)
    if held is not None:
        _check_extends(folder, held, head, reader)
        if head.size < before:
            return _report(folder, held, before, files=0, behind=before - head.size)
    with locked(folder, "copying a log into"):
        copy = _Copy(source, folder, head, before)
        copy.run(progress)
    newest = head
    if held is not None and held.checkpoint == head.checkpoint:
        merged = add_lines(note.parse(held.note), note.parse(head.note).signatures)
        newest = SignedHead(merged.encode(), head.checkpoint, head.keys)
    _keep_final(final, folder, reader, newest)
    if held is None or newest.note != held.note:
        write_file(folder / CHECKPOINT_PATH, newest.note.encode(), durable=True)
    _drop_replaced(folder, before, head.size)
    return _report(folder, newest, before, files=copy.written, behind=0)


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
        data = read_checkpoint(source)
    except NotFound:
        if (folder / "tile").is_dir():
            return None  # the first copying was interrupted
        raise UsageError(
            f"{folder} holds files, but no log", "name an empty or a new folder"
        ) from None
    return verified_head(source, data, vkeys, run)


def _same_log(a: str, b: str) -> bool:
    """Whether two origins are of one log; that of a run has a new origin in each term."""
    return a == b or (run_of(a) == run_of(b) != "")


def _check_extends(folder: Path, held: SignedHead, head: SignedHead, theirs: TileHashes) -> None:
    """One of the two trees must begin with the other.

    :raises CheckFailed: when they do not; the evidence is then in the folder
    """
    ours = TileHashes(FolderSource(folder), held.size, held.root)
    size = min(held.size, head.size)
    if root_at(ours, size) == root_at(theirs, size):
        return
    message = f"the source shows another history than {folder} holds"
    if held.checkpoint.origin != head.checkpoint.origin:
        raise CheckFailed(f"{message}, in another term", "nothing was changed; keep both")
    proof = evidence.build(held.note, ours, head.note, theirs)
    evidence.check(proof, held.keys)
    path = keep_evidence(folder, proof, FolderSource(folder), held.size)
    raise CheckFailed(
        f"{message}: the log has signed both",
        f"nothing was changed; {path} is the proof, show it to others and enter it with "
        f"artel ledger split-view {shlex.quote(str(path))}",
    )


class _Resumed:
    """A source that need not be asked for full tiles which an interrupted run has brought."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.local = FolderSource(folder)
        self.remote = source
        self.trusting = True

    def get(self, path: str, limit: int) -> bytes:
        if self.trusting and path != CHECKPOINT_PATH and ".p/" not in path:
            with suppress(NotFound):
                return self.local.get(path, limit)
        return self.remote.get(path, limit)


class _Copy:
    """One run of the copying: the files that the tree before had not, each verified."""

    def __init__(self, source: Source, folder: Path, head: SignedHead, before: int) -> None:
        self._folder = folder
        self._source = _Resumed(folder, source)
        self._reader = TileHashes(self._source, head.size, head.root)
        self._before = before
        self._unsynced: list[Path] = []
        self.written = 0

    def run(self, progress: Progress) -> None:
        wanted = list(self._missing())
        for done, tile in enumerate(wanted, start=1):
            try:
                self._bring(tile)
            except CheckFailed:
                # A power cut may have spoilt what an earlier run brought; now from the source.
                if not self._source.trusting:
                    raise
                self._source.trusting = False
                self._bring(tile)
            progress(done, len(wanted))
        self._sync()

    def _missing(self) -> Iterator[Tile]:
        """Tiles that the tree has and had not before, bundles right before their hash tile."""
        had = set(edge_of(self._before))
        for tile in tiles_of(self._reader.size):
            if tile in had or (tile.width == TILE_WIDTH and tile.end <= self._before):
                continue
            if tile.level == 0:
                yield Tile(ENTRIES, tile.index, tile.width)
            yield tile

    def _bring(self, tile: Tile) -> None:
        """Make sure that a file is there, and what the checkpoint says it is."""
        level, first = TILE_HEIGHT * max(tile.level, 0), tile.index * TILE_WIDTH
        hashes = [self._reader.subtree(level, first + place) for place in range(tile.width)]
        if tile.level == ENTRIES:
            data = encode_bundle(self._leaves(tile, hashes))
        else:
            data = b"".join(hashes)
        path = self._folder / tile.path
        self._unsynced.append(path)
        with suppress(CheckFailed):
            if self._source.local.get(tile.path, len(data)) == data:
                return
        write_file(path, data)
        self.written += 1

    def _leaves(self, bundle: Tile, hashes: list[bytes]) -> list[bytes]:
        """The entries below a level-0 tile."""
        leaves = read_bundle(self._source, bundle)
        for index, (leaf, digest) in enumerate(zip(leaves, hashes, strict=True), bundle.start):
            if leaf_hash(leaf) != digest:
                raise CheckFailed(
                    f"entry {index} in {bundle.path} is not the one that the checkpoint covers"
                )
        return leaves

    def _sync(self) -> None:
        """Everything on the disk before a checkpoint speaks of it."""
        folders: set[Path] = set()
        with storage_errors(self._folder):
            for path in self._unsynced:
                descriptor = os.open(path, os.O_RDONLY)
                try:
                    os.fsync(descriptor)
                finally:
                    os.close(descriptor)
                folders.update(
                    parent for parent in path.parents if parent.is_relative_to(self._folder)
                )
            for folder in sorted(folders):
                sync_folder(folder)


def _keep_final(final: str, folder: Path, reader: TileHashes, head: SignedHead) -> None:
    """Keep the final checkpoint that came along, if it is newer than the one that is kept."""
    if not final:
        return
    checkpoint = Checkpoint.parse(note.parse(final).text)
    note.open_note(final, head.keys_for(checkpoint.origin))
    # One that is ahead of the tree comes with the next update.
    if not _size_of(folder / FINAL_PATH) < checkpoint.size <= head.size:
        return
    if not _same_log(checkpoint.origin, head.checkpoint.origin):
        raise CheckFailed("the final checkpoint is of another log")
    if root_at(reader, checkpoint.size) != checkpoint.root:
        raise CheckFailed("the final checkpoint is not of this tree")
    write_file(folder / FINAL_PATH, final.encode(), durable=True)


def _size_of(path: Path) -> int:
    """Size of the checkpoint in a file of ours; 0 when there is none."""
    try:
        return Checkpoint.parse(note.parse(path.read_bytes()[: MAX_NOTE_BYTES + 1]).text).size
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
        origin=head.checkpoint.origin,
        size=head.size,
        root=head.root,
        before=before,
        files=files,
        final=_size_of(folder / FINAL_PATH),
        behind=behind,
    )
