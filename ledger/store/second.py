"""What a coordinator signed last, kept outside of its home: ``signed/RUN-KEY.sqlite3``.

A home that is put back from a backup as a whole brings all of its files, and says nothing of what
was signed since. So the newest tree head is noted a second time, somewhere else, by a compare-and-
swap, as Sunlight does with its lock backend (https://github.com/FiloSottile/sunlight, README), and
the newest entries with it: those that the last heads cover may have been seen by nobody who can
give them back.

It is as good as its place: on another disk (``XDG_STATE_HOME``) it outlives that of the home. It
holds nothing that is not in the public ledger, and can be lost; then the members are asked.
"""

from __future__ import annotations

import itertools
import logging
import os
import sqlite3
import threading
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from artel.ledger.store import database
from artel.ledger.store.database import storage_errors, transaction
from artel.ledger.store.finality import size_of
from artel.ledger.store.published import term_of
from artel.ledger.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from artel.protocol.dsse import Leaf
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from artel.protocol.events import emit
from artel.protocol.paths import expanded

log = logging.getLogger("artel.ledger")

TAIL = 256
"""Entries that are kept: many times what members are behind."""
_HINT = "move it aside: a coordinator then asks its members before it signs"
_TABLES = (
    "CREATE TABLE newest(origin TEXT PRIMARY KEY, note TEXT NOT NULL)",
    "CREATE TABLE tail(idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL, document BLOB NOT NULL)",
)


def second_path(run: str, key: str) -> Path:
    """``$XDG_STATE_HOME/artel/signed/RUN-KEY.sqlite3``: on this machine, and in no home.

    Of a user without a home directory it is nowhere that could be written.

    :param key: of the coordinator (hex)
    """
    try:
        base = Path(os.environ.get("XDG_STATE_HOME") or expanded(Path("~/.local/state")))
    except UsageError:
        base = Path(os.devnull)
    return base / "artel" / "signed" / f"{run}-{key[:16]}.sqlite3"


class SecondMemory:
    """The newest heads that a key signed for a run, and the newest entries. Any thread may call."""

    def __init__(self, path: Path, reader: sqlite3.Connection | None = None) -> None:
        """Open the file at ``path``, or make it; with ``reader``, for reading alone.

        :raises CheckFailed: when it is damaged
        :raises ResourceError: when it cannot be read or written
        """
        self.path = path
        self._lock = threading.Lock()
        with storage_errors(path, _HINT):
            path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = reader or database.connect(path, _TABLES, _HINT)

    @classmethod
    def of(cls, run: str, key: str) -> SecondMemory | None:
        """That of a coordinator; None, which is said, when there is no place for it.

        :raises CheckFailed: when it is damaged
        """
        path = second_path(run, key)
        try:
            return cls(path)
        except CheckFailed:
            raise
        except ArtelError as error:
            emit(log, "memory.none", logging.WARNING, path=path, reason=error.message)
            return None

    @classmethod
    @contextmanager
    def reading(cls, run: str, key: str) -> Iterator[SecondMemory | None]:
        """The same for reading, whoever goes on writing it; None when there is none.

        :raises CheckFailed: when it is damaged
        """
        path = second_path(run, key)
        if database.holds_nothing(path):
            yield None
            return
        with database.reading(path, _TABLES, _HINT) as connection:
            yield cls(path, connection)

    def close(self) -> None:
        """Close the file; it cannot be used afterwards."""
        with self._lock:
            self._connection.close()

    def newest(self, origin: str) -> str:
        """The note of the newest tree head of a log; "" for none."""
        with self._lock, storage_errors(self.path, _HINT):
            query = "SELECT note FROM newest WHERE origin = ?"
            row = self._connection.execute(query, (origin,)).fetchone()
        return str(row[0]) if row is not None else ""

    def newest_of(self, run: str) -> str:
        """The same of the latest term of a run in which this key has signed."""
        with self._lock, storage_errors(self.path, _HINT):
            rows = self._connection.execute("SELECT origin, note FROM newest").fetchall()
        terms = {term_of(str(origin), run): str(note) for origin, note in rows}
        latest = max((term for term in terms if term is not None), default=None)
        return terms[latest] if latest is not None else ""

    def known(self, run: str, coordinators: Collection[str]) -> list[Checkpoint]:
        """The newest tree heads, which coordinators of the run have signed.

        :param coordinators: their keys (hex)
        :raises CheckFailed: no coordinator signed one
        """
        with self._lock, storage_errors(self.path, _HINT):
            notes = self._connection.execute("SELECT note FROM newest").fetchall()
        found = []
        for (text,) in notes:
            head = parse_checkpoint(str(text))
            if term_of(head.origin, run) is not None:
                open_checkpoint(str(text), head.origin, coordinators)
                found.append(Checkpoint(head.origin, head.size, head.root))
        return found

    def tail(self, start: int, stop: int) -> list[bytes]:
        """Entries ``start`` to ``stop`` with their documents; none when one of them is missing."""
        query = "SELECT leaf, document FROM tail WHERE idx >= ? AND idx < ? ORDER BY idx"
        with self._lock, storage_errors(self.path, _HINT):
            rows = self._connection.execute(query, (start, stop)).fetchall()
        leaves = [Leaf(leaf, document) if document else bytes(leaf) for leaf, document in rows]
        return leaves if len(leaves) == stop - start else []

    def keep(self, note: str, old: str, leaves: Sequence[bytes]) -> bool:
        """Note what has just been signed, before anybody is told of it.

        :param old: the note of which the caller knows that it was the newest; "" for none
        :param leaves: the entries that it covers last, with their documents
        :returns: whether it was noted; if not, somebody else has signed with this key meanwhile
        """
        head = parse_checkpoint(note)
        first = head.size - len(leaves)
        beside = [getattr(leaf, "document", b"") for leaf in leaves]
        rows = zip(itertools.count(first), leaves, beside, strict=False)
        with self._lock, storage_errors(self.path, _HINT), transaction(self._connection):
            changed = self._connection.execute(
                "INSERT INTO newest SELECT ?1, ?2 WHERE ?3 = '' OR EXISTS("
                "SELECT 1 FROM newest WHERE origin = ?1)"
                " ON CONFLICT DO UPDATE SET note = ?2 WHERE note = ?3",
                (head.origin, note, old),
            )
            if changed.rowcount != 1:
                return False
            self._connection.executemany("INSERT OR REPLACE INTO tail VALUES (?, ?, ?)", rows)
            self._connection.execute(
                "DELETE FROM tail WHERE idx < ? OR idx >= ?", (head.size - TAIL, head.size)
            )
        return True

    def begin_with(self, note: str) -> None:
        """From now on this is the newest: a person has decided it, and says who knows of more."""
        origin = parse_checkpoint(note).origin
        with self._lock, storage_errors(self.path, _HINT), transaction(self._connection):
            self._connection.execute("DELETE FROM tail WHERE idx >= ?", (size_of(note),))
            self._connection.execute(
                "INSERT INTO newest VALUES (?1, ?2) ON CONFLICT DO UPDATE SET note = ?2",
                (origin, note),
            )
