"""The ledger on disk: one SQLite file, and the newest checkpoint in a file beside it.

A :class:`LedgerStore` is owned by one process (the holder of the home's lock). Its methods block;
daemons call them through ``asyncio.to_thread``. Any thread may call: appends wait for each other,
and readers do not wait for appends.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from hashlib import sha256
from itertools import chain, islice, zip_longest
from pathlib import Path

from artel.ledger.entries import Entry, Genesis, decode, entry_id
from artel.ledger.entries.body import portions
from artel.ledger.entries.documents import document_of
from artel.ledger.fold import effects
from artel.ledger.store import database
from artel.ledger.store.database import insert_rows, read_leaves, storage_errors
from artel.ledger.store.packing import pack
from artel.ledger.store.published import (
    CHECKPOINT_NAME,
    DATABASE_NAME,
    LostEntries,
    ledger_gone,
    published_error,
    read_checkpoint_file,
    term_of,
)
from artel.ledger.store.reader import (
    WRONG_TILE,
    LedgerHead,
    LedgerReader,
    first_entry,
    short_id,
    signed_lines,
)
from artel.ledger.tlog import note as notes
from artel.ledger.tlog.checkpoint import Checkpoint, open_signed, origin_of, parse_checkpoint
from artel.ledger.tlog.edge import Edge
from artel.ledger.tlog.tiles import TILE_WIDTH, Tile
from artel.ledger.tlog.tree import Tiles, TileTree
from artel.protocol import files, merkle
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.events import emit

log = logging.getLogger("artel.ledger")

__all__ = ["CHECKPOINT_NAME", "DATABASE_NAME", "MAX_BATCH", "Beside", "LedgerStore", "Sign"]

MAX_BATCH = 256
"""Entries in one append of the sequencer."""
_PAGE = 1 << 20
"""Bytes that are decoded and inserted at a time."""

_LAST_TERM = "SELECT number, leader FROM terms ORDER BY number DESC LIMIT 1"
_INSERT_CHECKPOINT = "INSERT INTO checkpoints(size, follows, term, lines) VALUES (?, ?, ?, ?)"
_INSERT_DOCUMENT = "INSERT OR IGNORE INTO documents(id, content) VALUES (?, ?)"
_SELECT_DOCUMENT = "SELECT content FROM documents WHERE id = ?"
_INSERT_TILE = "INSERT INTO tiles(level, idx, hashes) VALUES (?, ?, ?)"
_SELECT_TILE = "SELECT hashes FROM tiles WHERE level = ? AND idx = ?"

Sign = Callable[[int, bytes], str]
"""``sign(size, root) -> note``"""
Beside = Callable[[sqlite3.Connection, Sequence[Entry], int], None]
"""``beside(connection, entries, first)`` writes what follows from the entries ``first`` on into
tables of its own (:data:`.database.DERIVED`), in the transaction that adds them: both are there
after a crash, or neither is. It neither begins nor ends a transaction."""


class LedgerStore(LedgerReader):
    """An append-only log with its Merkle tree. Make one with :meth:`open`."""

    def __init__(
        self, path: Path, reader: sqlite3.Connection, connection: sqlite3.Connection
    ) -> None:
        super().__init__(path, reader)
        self._lock = threading.RLock()  # one append at a time; guards what follows
        self._connection = connection

    @classmethod
    def open(cls, path: Path, *, create: bool = False, run: str | None = None) -> LedgerStore:
        """Open a ledger for appending.

        :param create: make an empty one when there is none
        :param run: the run that it must belong to (when it is not empty)
        :raises UsageError: when there is none, or it is of another run
        :raises LostEntries: when it has lost entries that were published, or is gone itself
        :raises CheckFailed: when it is damaged
        :raises ResourceError: when the disk is full or does not work
        """
        if database.holds_nothing(path):
            if not create:
                raise UsageError(f"there is no ledger at {path}", "check --home")
            if read_checkpoint_file(path.with_name(CHECKPOINT_NAME)):
                raise ledger_gone(path, run or "")
            with storage_errors(path):
                path.parent.mkdir(parents=True, exist_ok=True)
        connection = database.connect(path, database.tables())
        try:
            store = cls(path, database.connect(path, database.tables()), connection)
        except BaseException:
            connection.close()
            raise
        try:
            store.term = store.load()
            store._recover_checkpoint_file(run or "")
            store._require_run(run)
        except BaseException:
            store.close()
            raise
        return store

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
        :param beside: called when entries are inserted, for each stretch of at most 256, before
            ``sign``; what it raises ends the append
        :raises DecodeError: when a leaf is no ledger entry
        :raises CheckFailed: when an entry is in the ledger already, or bytes changed on the way
        :raises ResourceError: when the disk is full or does not work
        """
        if not leaves:
            raise UsageError("there is nothing to append")
        if len(leaves) > MAX_BATCH:
            raise UsageError(f"at most {MAX_BATCH} entries can be appended at once")
        return self._commit(leaves, sign, beside)

    def begin_term(self, term: int) -> None:
        """The checkpoints to come are of this term, and the first entry begins it.

        :raises UsageError: when the ledger is in a later one
        """
        with self._lock:
            if term < self.term:
                raise UsageError(f"{self.path} is in term {self.term} already, not {term}")
            self.term = term

    def append_replica(
        self,
        leaves: Iterable[bytes | Entry],
        note: str,
        beside: Beside | None = None,
        *,
        keep: int | None = None,
    ) -> None:
        """Add entries that somebody else sequenced, up to exactly the tree that ``note`` signs.

        There may be any number of them (a copy of tiles has its newest note alone); they are taken
        and written in stretches, in one transaction.

        :param beside: as in :meth:`append`; where it writes who leads, the note has to be of that
            term and by its leader
        :param keep: what was here behind so many entries was given up with its term: these take its
            place. One of the sizes of :meth:`sizes`; effects are computed anew from entry 0 on,
            the first call of ``beside`` gets those that are kept
        :raises DecodeError: when the note or a leaf is malformed
        :raises CheckFailed: when the note is not by the run's coordinators, or its tree is not
            ours plus these leaves: then the sender lies, or the log shows different histories
        :raises ResourceError: when the disk is full or does not work
        """
        with self._lock:
            rest = iter(leaves)
            first = next(rest, None)
            genesis = self._head.genesis or first_entry(first or b"")
            if first is None:
                keys = self.signers(term_of(parse_checkpoint(note).origin, genesis.run))
                self._matching(note, self.size, self.root, genesis, keys)
                return
            term = term_of(parse_checkpoint(note).origin, genesis.run)
            if term is None:
                raise CheckFailed("the tree head is not signed by any key of this run's log")
            if term < self.term:
                raise CheckFailed(
                    f"the tree head is of term {term}; this copy is in term {self.term} already",
                    "whoever shows it does not know yet who leads the run: ask another one",
                )

            def sign(size: int, root: bytes) -> str:
                last = self._connection.execute(_LAST_TERM).fetchone()
                named = genesis.coordinators if self.term else genesis.coordinators[:1]
                number, keys = (last[0], last[1:]) if last else (self.term, named)
                if number != term:
                    raise CheckFailed(f"the tree head is of term {term}, its entries are not")
                return self._matching(note, size, root, genesis, keys)

            self._commit(chain((first,), rest), sign, beside, keep, term)

    @contextmanager
    def deriving(self) -> Iterator[sqlite3.Connection]:
        """A transaction of its own for what follows from entries that are in already.

        :raises ResourceError: when the disk is full or does not work
        """
        with self._lock, storage_errors(self.path), database.transaction(self._connection):
            yield self._connection

    def _matching(
        self, note: str, size: int, root: bytes, genesis: Genesis, keys: Iterable[str]
    ) -> str:
        origin = origin_of(genesis.run, term_of(parse_checkpoint(note).origin, genesis.run) or 0)
        head, signed = open_signed(note, origin, keys)
        if head.size != size:
            raise CheckFailed(f"the tree head covers {head.size} entries; with these it is {size}")
        if head.root != root:
            raise CheckFailed(
                f"the coordinator signed another ledger than ours at {size} entries",
                "keep this home as it is: its checkpoint and the one received are the evidence",
            )
        return signed.encode()

    def _commit(
        self,
        leaves: Iterable[bytes | Entry],
        sign: Sign,
        beside: Beside | None,
        keep: int | None = None,
        term: int | None = None,
    ) -> str:
        """The one way in. The order of steps is what makes a crash at any point harmless.

        1. Rows go into a transaction; they are read back from the database and hashed, and only
           that hash is signed. (In 2022 a log had to be given up because a bit flipped between
           hashing and storing: what is signed has to be what is stored.) So are the tiles that
           these entries complete. What follows from the entries goes beside them (``beside``).
        2. The note goes into the same transaction, and, durably, into a file of another name. This
           is the last step that needs disk space.
        3. COMMIT. From here on the entries are in the ledger.
        4. The file takes the place of ``checkpoint``, which is so never ahead of the database: if
           it is, the database has lost entries. Should this rename fail, the error is raised
           although the entries are in (:attr:`size` says so); opening the store again repairs it.
        5. The caller publishes the note. Nobody has seen a note that could still be lost.
        """
        with self._lock:
            edge, genesis, rest = self._head.tree.edge.copy(), self._head.genesis, iter(leaves)
            last = ""
            before, known, term = self.size, self._tiles, self.term if term is None else term
            if keep is not None and keep < before:
                before, known = keep, Tiles(self._stored_tile, WRONG_TILE)
                edge = Edge.of(keep, self._edge_hashes)
            new = files.unfinished(self._checkpoint_path)
            try:
                with storage_errors(self.path), database.transaction(self._connection):
                    if before < self.size:
                        self._give_up(before, beside)
                    self._require_end(edge.size)
                    # To the end of a tile: the tile is stored before the next entry.
                    written = self._written()
                    while page := self._page(rest, edge):
                        genesis = genesis or first_entry(page[0])
                        last = self._insert(page, edge, beside, written)
                    assert genesis is not None
                    root = edge.root()
                    head = Checkpoint(origin_of(genesis.run, term), edge.size, root)
                    note, lines = _own_lines(sign(edge.size, root), head)
                    place = (edge.size, before, term)
                    self._connection.execute(_INSERT_CHECKPOINT, (*place, lines))
                    self._write_new_checkpoint(new, note)
            except BaseException:
                files.discard(new)
                raise
            emit(log, "ledger.committed", logging.DEBUG, size=edge.size, last=last)
            self._tiles, self.term = known, term
            self._head = LedgerHead(TileTree(edge, self._tiles), root, note, genesis)
            with storage_errors(self.path):
                os.replace(new, self._checkpoint_path)
            return note

    def sizes(self) -> list[int]:
        """The sizes of all checkpoints, ascending."""
        return [size for (size,) in self.query("SELECT size FROM checkpoints ORDER BY size")]

    def _give_up(self, keep: int, beside: Beside | None) -> None:
        """Take away what is behind the first ``keep`` entries, in the open transaction."""
        kept = {document_of(leaf) for leaf in self.bare(0, keep)}
        gone = {document_of(leaf) for leaf in self.bare(keep)} - kept - {""}
        execute = self._connection.execute
        for name in gone:
            execute("DELETE FROM documents WHERE id = ?", (bytes.fromhex(name),))
        execute("DELETE FROM entries WHERE idx >= ?", (keep,))
        execute("DELETE FROM ids WHERE idx >= ?", (keep,))
        execute("DELETE FROM checkpoints WHERE size > ?", (keep,))
        for level, idx in execute("SELECT level, idx FROM tiles").fetchall():
            if Tile(level, idx).end > keep:
                execute("DELETE FROM tiles WHERE level = ? AND idx = ?", (level, idx))
        effects.clear(self._connection)
        if beside is not None:
            done = 0
            for page in portions(effects.checked(self.leaves(0, keep), 0), _PAGE):
                beside(self._connection, page, done)
                done += len(page)

    def _written(self) -> Tiles:
        """The full tiles as the open transaction has them, which other readers do not see yet."""

        def read(tile: Tile) -> bytes:
            found = self._connection.execute(_SELECT_TILE, (tile.level, tile.index)).fetchone()
            return bytes(found[0]) if found else b""

        return Tiles(read, WRONG_TILE)

    def _page(self, rest: Iterator[bytes | Entry], edge: Edge) -> list[bytes | Entry]:
        room = islice(rest, TILE_WIDTH - edge.size % TILE_WIDTH)
        return next(portions(room, _PAGE), [])

    def _require_end(self, size: int) -> None:
        query = "SELECT coalesce(max(idx) + 1, 0) FROM entries"
        if self._connection.execute(query).fetchone() != (size,):
            raise CheckFailed(f"another process has changed {self.path}", "start again")

    def _insert(
        self,
        page: list[bytes | Entry],
        edge: Edge,
        beside: Beside | None,
        written: Tiles,
    ) -> str:
        """Insert into the open transaction, and add to ``edge`` what can be read back.

        :param written: the tiles of the open transaction, for the heads that entries name
        :returns: the kind of the last entry
        """
        first = edge.size
        entries = [decode(leaf) if isinstance(leaf, bytes) else leaf for leaf in page]
        leaves = [leaf if isinstance(leaf, bytes) else leaf.envelope.encode() for leaf in page]
        ids = [entry.id for entry in entries]
        self._require_new(ids)
        packed = [pack(leaf, entry.envelope) for leaf, entry in zip(leaves, entries, strict=True)]
        insert_rows(self._connection, "entries(idx, packed)", enumerate(packed, first))
        named = [(short_id(entry), index) for index, entry in enumerate(ids, first)]
        insert_rows(self._connection, "ids(id, idx)", named)
        try:
            stored = read_leaves(self._connection, first, first + len(leaves))
        except (ValueError, DecodeError):
            stored = []
        for index, (leaf, read) in enumerate(zip_longest(leaves, stored), first):
            if read != (index, leaf):
                raise _changed(f"entry {index}")
            for tile in edge.append(merkle.leaf_hash(read[1])):
                place = (tile.level, tile.index)
                self._connection.execute(_INSERT_TILE, (*place, tile.hashes))
                if self._connection.execute(_SELECT_TILE, place).fetchone() != (tile.hashes,):
                    raise _changed(Tile(*place).path)
        self._insert_documents(entries)
        if beside is not None:
            beside(self._connection, entries, first)
        for entry in entries:
            entry.require_of(edge.size, TileTree(edge, written).root_at)
        return entries[-1].kind

    def _insert_documents(self, entries: Iterable[Entry]) -> None:
        """Store what these entries name; ``decode`` has held it against the name."""
        for document in filter(None, (entry.envelope.document for entry in entries)):
            name = sha256(document).digest()
            self._connection.execute(_INSERT_DOCUMENT, (name, document))
            if self._connection.execute(_SELECT_DOCUMENT, (name,)).fetchone() != (document,):
                raise _changed(f"document {name.hex()}")

    def _require_new(self, ids: list[str]) -> None:
        """Each entry is in the ledger once; asked in the transaction that adds these."""
        query = f"SELECT idx FROM ids WHERE id IN ({', '.join('?' * len(ids))})"
        alike = self._connection.execute(query, [short_id(entry) for entry in ids]).fetchall()
        held = {
            entry_id(leaf)
            for (start,) in alike
            for _, leaf in read_leaves(self._connection, start, start + 1)
        }
        for entry in ids:
            if entry in held:
                raise CheckFailed(f"entry {entry} is in the ledger already")
            held.add(entry)

    # --- the checkpoint file, and the write-ahead log ---------------------------------------------

    @property
    def _checkpoint_path(self) -> Path:
        return self.path.with_name(CHECKPOINT_NAME)

    def _write_new_checkpoint(self, new: Path, note: str) -> None:
        """Write what shall take the place of the published checkpoint, durably.

        The folder is not synced after that: a power cut may bring the older file back, which is
        one step behind the database, as after any crash between these steps.
        """
        with files.creating(new) as file:
            file.write(note.encode())

    def _recover_checkpoint_file(self, run: str) -> None:
        """After a crash between steps 3 and 4 of an append the file is one step behind."""
        path = self._checkpoint_path
        published = read_checkpoint_file(path)
        error = published_error(published, path, self.note_at, self.size, self.terms())
        if error:
            raise LostEntries(error, path.parent, run)
        if published != self.latest_note:
            with storage_errors(path):
                files.write(path, self.latest_note.encode())


def _own_lines(note: str, head: Checkpoint) -> tuple[str, bytes]:
    """The note without the lines of others, and its lines as they are stored.

    :raises CheckFailed: when it is not of this head
    """
    signed = notes.parse(note)
    lines = tuple(line for line in signed.signatures if line.name == head.origin)
    stored = b"".join(line.key_id + line.signature for line in lines)
    own = notes.Note(head.encode(), signed_lines(head.origin, stored))
    if own != notes.Note(signed.text, lines):
        raise CheckFailed("the checkpoint to be stored is not of this tree")
    return own.encode(), stored


def _changed(what: str) -> CheckFailed:
    return CheckFailed(
        f"{what} reads back differently from what was written",
        "test this machine's memory and disk; nothing was signed",
    )
