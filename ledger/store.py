"""The ledger on disk: one SQLite file, and the newest checkpoint in a file beside it.

A :class:`LedgerStore` is owned by one process (the holder of the home's lock). Its methods block;
daemons call them through ``asyncio.to_thread``. One lock serialises them, so any thread may call.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from ledger import database
from ledger.checkpoint import Checkpoint, open_checkpoint, origin_of, parse_checkpoint
from ledger.database import storage_errors
from ledger.entries import Genesis, decode, entry_id
from protocol import merkle
from protocol.dsse import MAX_ENVELOPE_BYTES
from protocol.errors import CheckFailed, DecodeError, UsageError

DATABASE_NAME = "ledger.sqlite3"
CHECKPOINT_NAME = "checkpoint"
MAX_BATCH = 256
"""Entries in one append. As many as a page of the ledger service holds: every page can then end at
a checkpoint, so a replica can check each page as it comes."""
_READ_ROWS = 256

Sign = Callable[[int, bytes], str]
"""``sign(size, root) -> note``"""


class LedgerStore:
    """An append-only log with its Merkle tree. Make one with :meth:`open`."""

    def __init__(self, path: Path, connection: sqlite3.Connection, *, writable: bool) -> None:
        self.path = path
        self._writable = writable
        self._lock = threading.RLock()  # guards everything below
        self._connection = connection
        self._tree = merkle.CompactRange()
        self._genesis: Genesis | None = None
        self._latest_note = ""

    @classmethod
    def open(cls, path: Path, *, create: bool = False, run: str | None = None) -> LedgerStore:
        """Open a ledger for appending, and re-hash all that it holds.

        :param create: make an empty one when there is none
        :param run: the run that it must belong to (when it is not empty)
        :raises UsageError: when there is none, or it is of another run
        :raises CheckFailed: when it is damaged or has lost entries that were published
        :raises ResourceError: when the disk is full or does not work
        """
        with storage_errors(path):
            if not path.exists():
                if not create:
                    raise UsageError(f"there is no ledger at {path}", "check --home")
                path.parent.mkdir(parents=True, exist_ok=True)
                database.create(path)
            connection = database.connect(path)
            try:
                if database.made_with(connection) != database.library_version():
                    connection.close()
                    database.migrate(path)
                    connection = database.connect(path)
                store = cls(path, connection, writable=True)
                store._load()
                store._recover_checkpoint_file()
                store._fold_log()
            except BaseException:
                connection.close()
                raise
        return store._of_run(run)

    @classmethod
    def open_copy(cls, path: Path, *, run: str | None = None) -> LedgerStore:
        """Open a private copy (see :mod:`ledger.snapshot`) for reading; nothing is written."""
        with storage_errors(path):
            store = cls(path, database.connect_copy(path), writable=False)
            try:
                database.made_with(store._connection)
                store._load()
            except BaseException:
                store._connection.close()
                raise
        return store._of_run(run)

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        with self._lock:
            self._connection.close()

    def __enter__(self) -> LedgerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- reading ----------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of entries."""
        with self._lock:
            return self._tree.size

    @property
    def root(self) -> bytes:
        """Merkle root over all entries, 32 bytes."""
        with self._lock:
            return self._tree.root()

    @property
    def genesis(self) -> Genesis:
        """Entry 0.

        :raises CheckFailed: when the ledger is empty
        """
        with self._lock:
            if self._genesis is None:
                raise CheckFailed(f"the ledger {self.path} is still empty")
            return self._genesis

    @property
    def origin(self) -> str:
        """The log's name."""
        return origin_of(self.genesis.run)

    @property
    def latest_note(self) -> str:
        """The newest checkpoint as a signed note; empty for an empty ledger."""
        with self._lock:
            return self._latest_note

    def leaf(self, index: int) -> bytes:
        """The bytes of one entry.

        :raises UsageError: when there is no such entry
        """
        found = next(self.leaves(index, index + 1), None) if index >= 0 else None
        if found is None:
            raise UsageError(f"there is no entry {index}; the ledger has {self.size}")
        return found

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Entries ``start`` to ``stop`` (default: all that are there now), read in pages."""
        stop = self.size if stop is None else min(stop, self.size)
        query = "SELECT leaf FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx"
        for first in range(max(0, start), stop, _READ_ROWS):
            with self._lock, storage_errors(self.path):
                last = min(first + _READ_ROWS, stop)
                rows = self._connection.execute(query, (first, last)).fetchall()
            yield from (row[0] for row in rows)

    def index_of(self, entry: str) -> int | None:
        """Index of the entry with this id (hex), if it is there."""
        return next(iter(self.find(entry)), None) if len(entry) == 64 else None

    def find(self, prefix: str, limit: int = 2) -> list[int]:
        """Indices of entries whose id begins with ``prefix`` (hex, at least 8 digits)."""
        digits = prefix.lower()
        if not 8 <= len(digits) <= 64 or not set(digits) <= set("0123456789abcdef"):
            raise UsageError("an entry id is 64 hex digits, of which the first 8 or more will do")
        low, high = bytes.fromhex(digits.ljust(64, "0")), bytes.fromhex(digits.ljust(64, "f"))
        query = "SELECT idx FROM entries WHERE id BETWEEN ? AND ? ORDER BY idx LIMIT ?"
        with self._lock, storage_errors(self.path):
            return [row[0] for row in self._connection.execute(query, (low, high, limit))]

    def note_between(self, after: int, up_to: int) -> str:
        """The newest stored note with ``after < size <= up_to``; empty when there is none.

        A replica that catches up asks for pages that end at such a note, and can check each page.
        """
        query = (
            "SELECT note FROM checkpoints WHERE size > ? AND size <= ? ORDER BY size DESC LIMIT 1"
        )
        with self._lock, storage_errors(self.path):
            row = self._connection.execute(query, (after, up_to)).fetchone()
        return str(row[0]) if row else ""

    # --- appending --------------------------------------------------------------------------------

    def append(self, leaves: Sequence[bytes], sign: Sign) -> str:
        """Add entries as the log's sequencer; all of them or none. Returns the new note.

        When it raises, nothing was added; the one exception is named in :meth:`_commit`.

        :param sign: called once with the size and root to sign, before the commit
        :raises DecodeError: when a leaf is no ledger entry
        :raises CheckFailed: when an entry is in the ledger already, or bytes changed on the way
        :raises ResourceError: when the disk is full or does not work
        """
        if not leaves:
            raise UsageError("there is nothing to append")
        return self._commit(leaves, sign)

    def append_replica(self, leaves: Sequence[bytes], note: str) -> None:
        """Add entries that somebody else sequenced, up to exactly the tree that ``note`` signs.

        :raises DecodeError: when the note or a leaf is malformed
        :raises CheckFailed: when the note is not by the run's coordinators, or its tree is not
            ours plus these leaves: then the sender lies, or the log shows different histories
        :raises ResourceError: when the disk is full or does not work
        """
        if leaves:
            self._commit(leaves, lambda size, root: self._matching(note, size, root))
            return
        with self._lock:
            self._matching(note, self._tree.size, self._tree.root())

    def _matching(self, note: str, size: int, root: bytes) -> str:
        head = open_checkpoint(note, self.origin, self.genesis.coordinators)
        if head.size != size:
            raise CheckFailed(f"the tree head covers {head.size} entries; with these it is {size}")
        if head.root != root:
            raise CheckFailed(
                f"the coordinator signed another ledger than ours at {size} entries",
                "keep this home as it is: its checkpoint and the one received are the evidence",
            )
        return note

    def _commit(self, leaves: Sequence[bytes], sign: Sign) -> str:
        """The one way in. The order of steps is what makes a crash at any point harmless.

        1. Rows go into a transaction; they are read back from the database and hashed, and only
           that hash is signed. (In 2022 a log had to be given up because a bit flipped between
           hashing and storing: what is signed has to be what is stored.)
        2. The note goes into the same transaction, and, durably, into ``checkpoint.new``. This
           is the last step that needs disk space.
        3. COMMIT. From here on the entries are in the ledger.
        4. ``checkpoint.new`` takes the place of ``checkpoint``. So that file is never ahead of
           the database: if it is, the database has lost entries. Should this rename fail, the
           error is raised although the entries are in; opening the store again repairs it.
        5. The caller publishes the note. Nobody has seen a note that could still be lost.
        """
        if not self._writable:
            raise UsageError("this copy of the ledger is open for reading only")
        if len(leaves) > MAX_BATCH:
            raise UsageError(f"at most {MAX_BATCH} entries can be appended at once")
        with self._lock:
            tree, genesis = self._tree.copy(), self._genesis
            try:
                with storage_errors(self.path):
                    self._connection.execute("BEGIN IMMEDIATE")
                    self._genesis = genesis or self._first(leaves[0])
                    self._insert(leaves, tree)
                    note = sign(tree.size, tree.root())
                    self._check_note(note, tree)
                    self._connection.execute(database.INSERT_CHECKPOINT, (tree.size, note))
                    self._write_new_checkpoint(note)
                    self._connection.execute("COMMIT")
            except BaseException:
                self._genesis = genesis
                # A full disk may have ended the transaction already, or fail this too; whatever is
                # not committed is gone when the connection is.
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                raise
            self._tree, self._latest_note = tree, note
            with storage_errors(self.path):
                self._publish_checkpoint()
            self._fold_log()
            return note

    def _first(self, leaf: bytes) -> Genesis:
        body = decode(leaf).body
        if not isinstance(body, Genesis):
            raise CheckFailed("the first entry of a ledger must be the signed manifest")
        return body

    def _insert(self, leaves: Sequence[bytes], tree: merkle.CompactRange) -> None:
        """Insert into the open transaction, and add to ``tree`` what can be read back."""
        start = tree.size
        held = self._connection.execute("SELECT coalesce(max(idx) + 1, 0) FROM entries").fetchone()
        if held[0] != start:
            raise CheckFailed(f"another process has changed {self.path}", "start again")
        for index, leaf in enumerate(leaves, start):
            decode(leaf)
            digest = bytes.fromhex(entry_id(leaf))
            try:
                self._connection.execute(database.INSERT_ENTRY, (index, digest, leaf))
            except sqlite3.IntegrityError:
                raise CheckFailed(f"entry {digest.hex()} is in the ledger already") from None
        stored = self._connection.execute(
            "SELECT idx, id, leaf FROM entries WHERE idx >= ? ORDER BY idx", (start,)
        )
        for expected, (index, digest, leaf) in zip(leaves, stored, strict=True):
            if index != tree.size or leaf != expected or digest.hex() != entry_id(leaf):
                raise CheckFailed(
                    f"entry {tree.size} reads back differently from what was written",
                    "test this machine's memory and disk; nothing was signed",
                )
            tree.append(merkle.leaf_hash(leaf))

    def _check_note(self, note: str, tree: merkle.CompactRange) -> None:
        if parse_checkpoint(note) != Checkpoint(self.origin, tree.size, tree.root()):
            raise CheckFailed("the checkpoint to be stored is not of this tree")

    # --- the checkpoint file, and the write-ahead log ---------------------------------------------

    @property
    def _checkpoint_path(self) -> Path:
        return self.path.with_name(CHECKPOINT_NAME)

    def _write_new_checkpoint(self, note: str) -> None:
        with self._checkpoint_path.with_suffix(".new").open("w", encoding="utf-8") as file:
            file.write(note)
            file.flush()
            os.fsync(file.fileno())

    def _publish_checkpoint(self) -> None:
        # The folder is not synced: a power cut may bring the older file back, which is one step
        # behind the database, as after any crash between these steps.
        os.replace(self._checkpoint_path.with_suffix(".new"), self._checkpoint_path)

    def _recover_checkpoint_file(self) -> None:
        """After a crash between steps 3 and 4 of an append the file is one step behind."""
        path = self._checkpoint_path
        published = read_checkpoint_file(path)
        error = published_error(published, path, self._note_at, self._tree.size)
        if error:
            raise CheckFailed(error, "restore the home directory from a backup or another node")
        if published != self._latest_note:
            self._write_new_checkpoint(self._latest_note)
            self._publish_checkpoint()

    def _note_at(self, size: int) -> str:
        query = "SELECT note FROM checkpoints WHERE size = ?"
        row = self._connection.execute(query, (size,)).fetchone()
        return str(row[0]) if row else ""

    def _fold_log(self) -> None:
        """Move the write-ahead log into the database file and empty it.

        Between appends the one file is then the whole ledger: it can be copied as it is, and each
        of its bytes can be checked. A reader in the way only delays it to the next append, and so
        does an error, since the commit stands in the log.
        """
        if self._writable:
            try:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except sqlite3.OperationalError:
                return

    def _load(self) -> None:
        """Hash every stored leaf, and compare with the newest checkpoint."""
        rows = self._connection.execute("SELECT idx, id, leaf FROM entries ORDER BY idx")
        for index, digest, leaf in rows:
            if index != self._tree.size or not isinstance(leaf, bytes):
                raise CheckFailed(f"the ledger {self.path} has no entry {self._tree.size}")
            if len(leaf) > MAX_ENVELOPE_BYTES or digest != bytes.fromhex(entry_id(leaf)):
                raise CheckFailed(f"entry {index} of {self.path} is damaged")
            if index == 0:
                self._genesis = self._first(leaf)
            self._tree.append(merkle.leaf_hash(leaf))
        newest = "SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1"
        size, note = self._connection.execute(newest).fetchone() or (0, "")
        if size != self._tree.size:
            raise CheckFailed(
                f"{self.path} holds {self._tree.size} entries, its newest checkpoint covers {size}"
            )
        if note:
            self._latest_note = str(note)
            self._check_note(self._latest_note, self._tree)

    def _of_run(self, run: str | None) -> LedgerStore:
        if run is not None and self._genesis is not None and self._genesis.run != run:
            self.close()
            raise UsageError(
                f"{self.path} is the ledger of run {self._genesis.run[:12]}…, not {run[:12]}…",
                "use another --home for each run",
            )
        return self


def read_checkpoint_file(path: Path) -> str:
    """The note in the file; empty when there is none."""
    try:
        return path.read_bytes()[: 1 << 17].decode("utf-8", "replace")
    except FileNotFoundError:
        return ""


def published_error(published: str, path: Path, note_at: Callable[[int], str], size: int) -> str:
    """What is wrong between the published note (of file ``path``) and the database, or "".

    :param note_at: gives the note that the database holds for a size, "" for none
    :param size: number of entries in the database
    """
    if not published:
        return ""
    try:
        head = parse_checkpoint(published)
    except DecodeError as error:
        return f"{path} is damaged: {error.message}"
    if head.size > size:
        return f"{path} covers {head.size} entries, the database holds {size}: entries are lost"
    if published != note_at(head.size):
        return f"{path} is not the checkpoint that the database holds for size {head.size}"
    return ""
