"""A private copy of a ledger, taken without touching the home that it lies in.

Reading commands and checks work on such a copy: a daemon may go on appending, the home may be
read-only, and no lock or side file is left behind. Committed transactions that a killed process
left in the write-ahead log are part of the copy.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from artel.ledger.store import wal
from artel.ledger.store.database import PAGE_BYTES, storage_errors
from artel.ledger.store.published import read_checkpoint_file
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME
from artel.protocol.errors import CheckFailed, ResourceError, UsageError

_TRIES = 20
MAX_LOG_BYTES = 1 << 30
"""A log holds one append, seldom a few; more than this was not written by us."""


@dataclass(frozen=True)
class Snapshot:
    """``path`` is the copied database; ``note`` the published checkpoint ("" when missing).

    ``log`` is what was applied from the write-ahead log, and ``covered`` the content that the pages
    in it had in the database file itself.
    """

    path: Path
    note: str
    log: wal.Log | None
    covered: dict[int, bytes]


@contextmanager
def snapshot(home: Path) -> Iterator[Snapshot]:
    """Copy the ledger of ``home`` into a temporary folder that lives as long as the context.

    :raises UsageError: when there is no ledger
    :raises ResourceError: when there is no room for the copy
    """
    source = home / DATABASE_NAME
    if not source.is_file():
        raise UsageError(
            f"there is no ledger in {home}",
            "give the home directory of a node or a coordinator: --home DIR",
        )
    with tempfile.TemporaryDirectory(prefix="artel-ledger-") as folder:
        with storage_errors(source):
            copied = _copy(source, home / CHECKPOINT_NAME, Path(folder) / DATABASE_NAME)
        yield copied


def _copy(source: Path, checkpoint: Path, target: Path) -> Snapshot:
    log_path = source.with_name(source.name + "-wal")
    for _ in range(_TRIES):
        before = _stamp(source), _stamp(log_path)
        # First the published checkpoint, then the database, which is never behind it.
        note = read_checkpoint_file(checkpoint)
        shutil.copyfile(source, target)
        log_bytes = b""
        if log_path.exists():
            if log_path.stat().st_size > MAX_LOG_BYTES:
                raise CheckFailed(f"{log_path} is larger than any log that we write")
            log_bytes = log_path.read_bytes()
        if (_stamp(source), _stamp(log_path)) == before:
            return _applied(target, note, wal.read(log_bytes))
    raise ResourceError(f"{source} changes faster than it can be copied", "try again later")


def _stamp(path: Path) -> tuple[int, int, int]:
    """What changes when a file is written."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return (0, 0, 0)
    return status.st_ino, status.st_size, status.st_mtime_ns


def _applied(target: Path, note: str, log: wal.Log | None) -> Snapshot:
    """Write the log's pages into the copy, as SQLite's recovery would."""
    if log is None:
        return Snapshot(target, note, None, {})
    if log.page_bytes != PAGE_BYTES:
        raise CheckFailed("the write-ahead log has another page size than the ledger")
    pages_before = target.stat().st_size // PAGE_BYTES
    if log.database_pages > pages_before + len(log.frames):
        raise CheckFailed("the write-ahead log claims more pages than it holds")
    covered: dict[int, bytes] = {}
    with target.open("r+b") as file:
        for number, content in sorted(log.pages().items()):
            file.seek((number - 1) * PAGE_BYTES)
            covered[number] = file.read(PAGE_BYTES)
            file.seek((number - 1) * PAGE_BYTES)
            file.write(content)
        file.truncate(log.database_pages * PAGE_BYTES)
    return Snapshot(target, note, log, covered)
