"""The ledger on disk: one SQLite file, and the newest checkpoint in a file beside it.

A :class:`LedgerStore` is owned by one process (the holder of the home's lock). Its methods block;
daemons call them through ``asyncio.to_thread``. Any thread may call: appends wait for each other,
and readers do not wait for appends.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

from artel.ledger.entries import Entry, Genesis, decode
from artel.ledger.store import database
from artel.ledger.store.database import storage_errors
from artel.ledger.store.published import LostEntries, published_error, read_checkpoint_file, term_of
from artel.ledger.store.reading import Head, LedgerReader
from artel.ledger.tlog.checkpoint import Checkpoint, open_checkpoint, origin_of, parse_checkpoint
from artel.ledger.tlog.edge import Edge
from artel.ledger.tlog.tiles import TILE_WIDTH, Tile
from artel.protocol import files, merkle
from artel.protocol.dsse import MAX_ENVELOPE_BYTES
from artel.protocol.errors import CheckFailed, UsageError

DATABASE_NAME = "ledger.sqlite3"
CHECKPOINT_NAME = "checkpoint"
MAX_BATCH = 256
"""Entries in one append of the sequencer. As many as a page of the ledger service holds: every page
can then end at a checkpoint, so a replica can check each page as it comes."""

Sign = Callable[[int, bytes], str]
"""``sign(size, root) -> note``"""
Beside = Callable[[sqlite3.Connection, Sequence[Entry], int], None]
"""``beside(connection, entries, first)`` writes what follows from the entries ``first`` on into
tables of its own (:data:`.database.DERIVED`), in the transaction that adds them: both are there
after a crash, or neither is. It neither begins nor ends a transaction."""


class LedgerStore(LedgerReader):
    """An append-only log with its Merkle tree. Make one with :meth:`open`."""

    def __init__(
        self,
        path: Path,
        reader: sqlite3.Connection,
        connection: sqlite3.Connection | None = None,
        term: int = 0,
    ) -> None:
        super().__init__(path, reader, term)
        self._lock = threading.RLock()  # one append at a time; guards what follows
        self._connection = connection or reader
        self._writable = connection is not None

    @classmethod
    def open(
        cls, path: Path, *, create: bool = False, run: str | None = None, term: int = 0
    ) -> LedgerStore:
        """Open a ledger for appending, and re-hash all that it holds.

        :param create: make an empty one when there is none
        :param run: the run that it must belong to (when it is not empty)
        :param term: of the checkpoints to come; those that are there may be of earlier terms
        :raises UsageError: when there is none, or it is of another run
        :raises LostEntries: when it has lost entries that were published, or is gone itself
        :raises CheckFailed: when it is damaged
        :raises ResourceError: when the disk is full or does not work
        """
        with storage_errors(path):
            if not path.exists():
                if not create:
                    raise UsageError(f"there is no ledger at {path}", "check --home")
                if read_checkpoint_file(path.with_name(CHECKPOINT_NAME)):
                    raise LostEntries(
                        f"the ledger {path} is gone; its file {CHECKPOINT_NAME} is still here",
                        path.parent,
                        run or "",
                    )
                path.parent.mkdir(parents=True, exist_ok=True)
                database.create(path)
            connection = database.connect(path)
            try:
                if database.made_with(connection) != database.sqlite_version():
                    connection.close()
                    database.migrate(path)
                    connection = database.connect(path)
                store = cls(path, database.connect(path), connection, term)
            except BaseException:
                connection.close()
                raise
            try:
                store._load()
                store._recover_checkpoint_file(run or "")
                store._fold_log()
            except BaseException:
                store.close()
                raise
        return store._of_run(run)

    @classmethod
    def open_copy(cls, path: Path, *, run: str | None = None) -> LedgerStore:
        """Open a private copy (:mod:`ledger.store.snapshot`) for reading; nothing is written."""
        with storage_errors(path):
            store = cls(path, database.connect_copy(path))
            try:
                database.made_with(store._connection)
                store._load()
            except BaseException:
                store.close()
                raise
        return store._of_run(run)

    def close(self) -> None:
        """Close the database; the store cannot be used afterwards."""
        with self._lock, self._reading:
            self._reader.close()
            self._connection.close()

    def __enter__(self) -> LedgerStore:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # --- appending --------------------------------------------------------------------------------

    def append(
        self, leaves: Sequence[bytes | Entry], sign: Sign, beside: Beside | None = None
    ) -> str:
        """Add entries as the log's sequencer; all of them or none. Returns the new note.

        When it raises, nothing was added; the one exception is named in :meth:`_commit`.

        :param leaves: bytes; or entries that came out of ``decode``, which are not decoded again
        :param sign: called once with the size and root to sign, before the commit
        :param beside: called once when the entries are inserted, before ``sign``; what it raises
            ends the append
        :raises DecodeError: when a leaf is no ledger entry
        :raises CheckFailed: when an entry is in the ledger already, or bytes changed on the way
        :raises ResourceError: when the disk is full or does not work
        """
        if not leaves:
            raise UsageError("there is nothing to append")
        if len(leaves) > MAX_BATCH:
            raise UsageError(f"at most {MAX_BATCH} entries can be appended at once")
        return self._commit(leaves, sign, beside)

    def append_replica(
        self, leaves: Sequence[bytes | Entry], note: str, beside: Beside | None = None
    ) -> None:
        """Add entries that somebody else sequenced, up to exactly the tree that ``note`` signs.

        There may be any number of them: a copy of tiles has its newest note alone.

        :param beside: as in :meth:`append`
        :raises DecodeError: when the note or a leaf is malformed
        :raises CheckFailed: when the note is not by the run's coordinators, or its tree is not
            ours plus these leaves: then the sender lies, or the log shows different histories
        :raises ResourceError: when the disk is full or does not work
        """
        with self._lock:
            genesis = self._head.genesis
            if not leaves:
                self._matching(note, self.size, self.root, self.genesis)
                return
            first = genesis or _first(leaves[0])
            self._commit(leaves, lambda size, root: self._matching(note, size, root, first), beside)

    def _matching(self, note: str, size: int, root: bytes, genesis: Genesis) -> str:
        head = open_checkpoint(note, origin_of(genesis.run, self.term), genesis.coordinators)
        if head.size != size:
            raise CheckFailed(f"the tree head covers {head.size} entries; with these it is {size}")
        if head.root != root:
            raise CheckFailed(
                f"the coordinator signed another ledger than ours at {size} entries",
                "keep this home as it is: its checkpoint and the one received are the evidence",
            )
        return note

    def _commit(self, leaves: Sequence[bytes | Entry], sign: Sign, beside: Beside | None) -> str:
        """The one way in. The order of steps is what makes a crash at any point harmless.

        1. Rows go into a transaction; they are read back from the database and hashed, and only
           that hash is signed. (In 2022 a log had to be given up because a bit flipped between
           hashing and storing: what is signed has to be what is stored.) So are the tiles that
           these entries complete. What follows from the entries goes beside them (``beside``).
        2. The note goes into the same transaction, and, durably, into ``checkpoint.new``. This
           is the last step that needs disk space.
        3. COMMIT. From here on the entries are in the ledger.
        4. ``checkpoint.new`` takes the place of ``checkpoint``. So that file is never ahead of
           the database: if it is, the database has lost entries. Should this rename fail, the
           error is raised although the entries are in (:attr:`size` says so); opening the store
           again repairs it.
        5. The caller publishes the note. Nobody has seen a note that could still be lost.
        """
        if not self._writable:
            raise UsageError("this copy of the ledger is open for reading only")
        with self._lock:
            edge = self._head.edge.copy()
            new: Path | None = None
            try:
                with storage_errors(self.path):
                    self._connection.execute("BEGIN IMMEDIATE")
                    genesis = self._head.genesis or _first(leaves[0])
                    first = edge.size
                    entries = self._insert(leaves, edge)
                    if beside is not None:
                        beside(self._connection, entries, first)
                    root = edge.root()
                    note = sign(edge.size, root)
                    self._check_note(note, genesis, edge.size, root)
                    self._connection.execute(database.INSERT_CHECKPOINT, (edge.size, note))
                    new = self._write_new_checkpoint(note)
                    self._connection.execute("COMMIT")
            except BaseException:
                # A full disk may have ended the transaction already, or fail this too; whatever is
                # not committed is gone when the connection is.
                with suppress(sqlite3.Error):
                    self._connection.execute("ROLLBACK")
                if new is not None:
                    files.discard(new)
                raise
            self._head = Head(edge, root, note, genesis)
            with storage_errors(self.path):
                os.replace(new, self._checkpoint_path)
            self._fold_log()
            return note

    def _insert(self, leaves: Sequence[bytes | Entry], edge: Edge) -> list[Entry]:
        """Insert into the open transaction, and add to ``edge`` what can be read back."""
        held = self._connection.execute("SELECT coalesce(max(idx) + 1, 0) FROM entries").fetchone()
        if held[0] != edge.size:
            raise CheckFailed(f"another process has changed {self.path}", "start again")
        entries = [decode(leaf) if isinstance(leaf, bytes) else leaf for leaf in leaves]
        rows = []
        for leaf in leaves:
            data = leaf if isinstance(leaf, bytes) else leaf.envelope.encode()
            rows.append((hashlib.sha256(data).digest(), data))
        while rows:
            # Up to the end of a tile: the tile is stored before the next entry.
            room = TILE_WIDTH - edge.size % TILE_WIDTH
            self._insert_rows(rows[:room], edge)
            rows = rows[room:]
        return entries

    def _insert_rows(self, rows: list[tuple[bytes, bytes]], edge: Edge) -> None:
        expected = [(index, *row) for index, row in enumerate(rows, edge.size)]
        values = [value for row in expected for value in row]
        try:
            self._connection.execute(database.insert_entries(len(rows)), values)
        except sqlite3.IntegrityError:
            known = self.known(digest.hex() for digest, _ in rows)
            name = f"entry {min(known)}" if known else "an entry of this append"
            raise CheckFailed(f"{name} is in the ledger already") from None
        try:
            stored = database.read_entries(self._connection, edge.size, 1 << 62)
        except ValueError:
            raise _changed(f"what was written from entry {edge.size} on") from None
        for row, (_, digest, leaf) in zip(stored, expected, strict=False):
            if row != (edge.size, digest, leaf) or hashlib.sha256(row[2]).digest() != row[1]:
                raise _changed(f"entry {edge.size}")
            for tile in edge.append(merkle.leaf_hash(row[2])):
                self._connection.execute(database.INSERT_TILE, database.tile_row(tile))
                if _stored_tile(self._connection, tile.place) != database.tile_row(tile):
                    raise _changed(Tile(tile.level, tile.index).path)
        if len(stored) != len(expected):
            raise _changed(f"entry {edge.size}")

    def _check_note(self, note: str, genesis: Genesis, size: int, root: bytes) -> None:
        if parse_checkpoint(note) != Checkpoint(origin_of(genesis.run, self.term), size, root):
            raise CheckFailed("the checkpoint to be stored is not of this tree")

    # --- the checkpoint file, and the write-ahead log ---------------------------------------------

    @property
    def _checkpoint_path(self) -> Path:
        return self.path.with_name(CHECKPOINT_NAME)

    def _write_new_checkpoint(self, note: str) -> Path:
        """The file that shall take the place of the published checkpoint, durable.

        The folder is not synced after that: a power cut may bring the older file back, which is
        one step behind the database, as after any crash between these steps.
        """
        new = files.unfinished(self._checkpoint_path)
        with files.creating(new) as file:
            file.write(note.encode())
        return new

    def _recover_checkpoint_file(self, run: str) -> None:
        """After a crash between steps 3 and 4 of an append the file is one step behind."""
        path = self._checkpoint_path
        published = read_checkpoint_file(path)
        error = published_error(published, path, self.note_at, self.size)
        if error:
            raise LostEntries(error, path.parent, run)
        if published != self.latest_note:
            os.replace(self._write_new_checkpoint(self.latest_note), path)

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
        """Hash every stored entry, and compare with the stored tiles and the newest checkpoint."""
        edge, genesis, places = Edge(), None, 0
        rows = self._connection.execute("SELECT idx, id, leaf FROM entries ORDER BY idx")
        for index, digest, leaf in rows:
            if index != edge.size or not isinstance(leaf, bytes):
                raise CheckFailed(f"the ledger {self.path} has no entry {edge.size}")
            if len(leaf) > MAX_ENVELOPE_BYTES or digest != hashlib.sha256(leaf).digest():
                raise CheckFailed(f"entry {index} of {self.path} is damaged")
            if index == 0:
                genesis = _first(leaf)
            for tile in edge.append(merkle.leaf_hash(leaf)):
                places += 1
                if _stored_tile(self._connection, tile.place) != database.tile_row(tile):
                    name = Tile(tile.level, tile.index).path
                    raise CheckFailed(f"{name} in {self.path} is not what its entries give")
        (count,) = self._connection.execute("SELECT count(*) FROM tiles").fetchone()
        if count != places:
            raise CheckFailed(f"{self.path} holds {count} tiles; its entries give {places}")
        newest = "SELECT size, note FROM checkpoints ORDER BY size DESC LIMIT 1"
        size, note = self._connection.execute(newest).fetchone() or (0, "")
        if size != edge.size:
            raise CheckFailed(
                f"{self.path} holds {edge.size} entries, its newest checkpoint covers {size}"
            )
        root = edge.root()
        if genesis is not None:
            head = parse_checkpoint(str(note))
            found = term_of(head.origin, genesis.run)
            if (head.size, head.root) != (size, root) or found is None:
                raise CheckFailed("the stored checkpoint is not of this tree")
            if not self._writable:
                self.term = found
            elif found > self.term:
                raise CheckFailed(f"{self.path} is in term {found} already, not {self.term}")
        self._head = Head(edge, root, str(note), genesis)

    def _of_run(self, run: str | None) -> LedgerStore:
        genesis = self._head.genesis
        if run is not None and genesis is not None and genesis.run != run:
            self.close()
            raise UsageError(
                f"{self.path} is the ledger of run {genesis.run[:12]}…, not {run[:12]}…",
                "use another --home for each run",
            )
        return self


def _first(leaf: bytes | Entry) -> Genesis:
    body = (decode(leaf) if isinstance(leaf, bytes) else leaf).body
    if not isinstance(body, Genesis):
        raise CheckFailed("the first entry of a ledger must be the signed manifest")
    return body


def _changed(what: str) -> CheckFailed:
    return CheckFailed(
        f"{what} reads back differently from what was written",
        "test this machine's memory and disk; nothing was signed",
    )


def _stored_tile(connection: sqlite3.Connection, place: int) -> tuple[object, ...] | None:
    query = "SELECT place, level, idx, hashes FROM tiles WHERE place = ?"
    row: tuple[object, ...] | None = connection.execute(query, (place,)).fetchone()
    return row
