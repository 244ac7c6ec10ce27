"""What a home remembers about tree heads, and what it may forget: ``heads.sqlite3``.

Everything that changes or may be erased lies here, apart from the ledger, which only grows: what
this home cosigned (or, as the log itself, signed) last, notes with the witnesses' lines, evidence
of split views, the names that people gave themselves, and what newcomers have repeated. A witness
that forgot what it cosigned could cosign a second history, so every change is on the disk before
its method returns.

It is a file of its own because it is held against the ledger: whoever puts ``ledger.sqlite3`` back
from a backup, or lets a node fetch it again, would put tables inside it back as well. All rows
together have a digest, so that one that changed or is gone is noticed when the file is opened.

A home that was put back as a whole says nothing of what was signed since; for a coordinator
:mod:`ledger.store.second` does.

Methods block and may be called from any thread; daemons call them through ``asyncio.to_thread``.
"""

from __future__ import annotations

import hashlib
import logging
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.store import database
from artel.ledger.store.database import storage_errors, transaction
from artel.ledger.store.published import DATABASE_NAME, counts, run_of, term_of
from artel.ledger.tlog import note as notes
from artel.ledger.tlog.checkpoint import MAX_SIZE, Checkpoint
from artel.ledger.tlog.cosignature import COSIGNATURE_BYTES, add_lines
from artel.ledger.tlog.note import Note
from artel.protocol import canonical
from artel.protocol.dsse import MAX_ENVELOPE_BYTES
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.events import emit

if TYPE_CHECKING:
    from artel.ledger.entries.records import Term

log = logging.getLogger("artel.ledger")

HEADS_NAME = "heads.sqlite3"
GONE_HINT = (
    "without it nothing in this home says whether its ledger was put back from a backup: artel "
    "ledger compare with a member's copy tells; a start makes the file anew"
)
MAX_NOTES = 256
MAX_CONFLICTS = 64
_HINT = (
    "restore it from a backup, or move it aside: a coordinator then asks its members before it "
    "signs; a node no longer knows what it has cosigned, and should get a new key"
)
_TABLES = {
    "owner": ("key TEXT PRIMARY KEY",),
    "witnessed": ("origin TEXT PRIMARY KEY", "size INTEGER NOT NULL", "root BLOB NOT NULL"),
    "notes": (
        *("origin TEXT", "size INTEGER", "lines INTEGER NOT NULL", "note TEXT NOT NULL"),
        "PRIMARY KEY(origin, size)",
    ),
    "sealed": ("run TEXT PRIMARY KEY", "term INTEGER NOT NULL", "next TEXT NOT NULL"),
    "conflicts": ("id BLOB PRIMARY KEY", "evidence BLOB NOT NULL"),
    "aliases": (
        *("account TEXT PRIMARY KEY", "alias TEXT NOT NULL", "team TEXT NOT NULL"),
        "since INTEGER NOT NULL",
    ),
    "repeated": (
        *("contribution BLOB PRIMARY KEY", "round INTEGER NOT NULL", "times INTEGER NOT NULL"),
    ),
}
# Kept are the newest, and before them those that no newer note with as many lines replaces: the
# newest certified note must not go because many came after it that are not certified yet.
_PRUNE = f"""
    DELETE FROM notes WHERE rowid NOT IN (
        SELECT rowid FROM notes AS old ORDER BY EXISTS(
            SELECT 1 FROM notes AS new WHERE new.size > old.size AND new.lines >= old.lines
        ), size DESC, rowid DESC LIMIT {MAX_NOTES}
    )"""


def _schema() -> Iterator[str]:
    """The tables, and triggers that keep the digest over all rows.

    The digest is the exclusive or of the hashes of the rows: what adds one also takes it away.
    """
    yield "CREATE TABLE seal(digest BLOB NOT NULL)"
    yield "INSERT INTO seal VALUES (zeroblob(32))"
    for table, columns in _TABLES.items():
        yield f"CREATE TABLE {table}({', '.join(columns)})"
        names = [column.split()[0] for column in columns if not column.startswith("PRIMARY")]
        for event, rows in (("INSERT", ["new"]), ("UPDATE", ["old", "new"]), ("DELETE", ["old"])):
            updates = ""
            for row in rows:
                values = ", ".join(f"{row}.{name}" for name in names)
                updates += f" UPDATE seal SET digest = sealed(digest, '{table}', {values});"
            trigger = f"CREATE TRIGGER {table}_{event} AFTER {event} ON {table}"
            yield f"{trigger} BEGIN{updates} END"


SCHEMA = tuple(_schema())


def _sealed(digest: bytes, *values: object) -> bytes:
    """The digest with a row added or taken away."""
    row = hashlib.sha256(repr(values).encode()).digest()
    return bytes(left ^ right for left, right in zip(digest, row, strict=True))


class HeadStore:
    """The changeable part of a home. Owned by one process."""

    gone = False
    """Whether it was made anew beside a ledger: what was signed with that is not known."""

    def __init__(self, path: Path, reader: sqlite3.Connection | None = None) -> None:
        """Open the file at ``path``, or make it.

        :param reader: reads it already; nothing can be changed then
        :raises CheckFailed: when it is damaged
        :raises ResourceError: when it cannot be read or written
        """
        self.path = path
        self._lock = threading.Lock()
        with self._errors():
            path.parent.mkdir(parents=True, exist_ok=True)
        self._connection = reader or database.connect(path, SCHEMA, _HINT)
        try:
            with self._errors():
                self._prepare()
        except BaseException:
            self._connection.close()
            raise

    def _prepare(self) -> None:
        self._connection.create_function("sealed", -1, _sealed, deterministic=True)
        # A name that somebody takes back is overwritten, not only unlinked.
        self._connection.execute("PRAGMA secure_delete=ON")
        error = database.integrity_error(self._connection)
        digest = bytes(32)
        for table in _TABLES:
            for row in self._connection.execute(f"SELECT * FROM {table}"):
                digest = _sealed(digest, table, *row)
        if self._connection.execute("SELECT digest FROM seal").fetchall() != [(digest,)]:
            error = error or "its rows are not those that were written"
        if error:
            raise database.damaged(self.path, error, _HINT)

    @classmethod
    def owned(cls, home: Path, key: str) -> HeadStore:
        """What a home keeps, for the daemon that owns it; made anew when gone, and that is said.

        :param key: what the home signs with (hex)
        :raises CheckFailed: when it is damaged, or of another home
        :raises ResourceError: when it cannot be read or written
        """
        path = home / HEADS_NAME
        gone = database.holds_nothing(path) and not database.holds_nothing(home / DATABASE_NAME)
        if gone:
            emit(log, "heads.gone", logging.WARNING, hint=GONE_HINT)
        store = cls(path)
        store.gone = gone
        try:
            store.require_owner(key)
            with store._changed():
                store._connection.execute("INSERT OR IGNORE INTO owner VALUES (?)", (key,))
        except BaseException:
            store.close()
            raise
        return store

    def require_owner(self, key: str) -> None:
        """Refuse the file of another home, which knows nothing of what this one signed.

        :raises CheckFailed: it is one
        """
        with self._lock, self._errors():
            owners = {str(owner) for (owner,) in self._connection.execute("SELECT key FROM owner")}
        if owners - {key}:
            raise CheckFailed(
                f"{self.path} is that of another home",
                "put this home's own file back, or move it aside: a start makes it anew",
            )

    @classmethod
    @contextmanager
    def of(cls, home: Path) -> Iterator[HeadStore | None]:
        """What a home keeps, for reading, whoever goes on writing it; None when it keeps nothing.

        :raises CheckFailed: when it is damaged
        """
        path = home / HEADS_NAME
        if database.holds_nothing(path):
            yield None
            return
        with database.reading(path, SCHEMA, _HINT) as connection:
            yield cls(path, connection)

    def close(self) -> None:
        """Close the file; the store cannot be used afterwards."""
        with self._lock:
            self._connection.close()

    # --- what this home signed and cosigned -------------------------------------------------------

    def witnessed_heads(self) -> list[Checkpoint]:
        """The newest tree head of each log that was signed or cosigned here."""
        with self._lock, self._errors():
            rows = self._connection.execute("SELECT origin, size, root FROM witnessed").fetchall()
        return [Checkpoint(*row) for row in rows]

    def witnessed(self, origin: str) -> tuple[int, bytes] | None:
        """Size and root of the newest tree head of this log that was (co)signed here."""
        heads = {head.origin: (head.size, head.root) for head in self.witnessed_heads()}
        return heads.get(origin)

    def advance(self, origin: str, old_size: int, size: int, root: bytes) -> bool:
        """Note that a tree head of ``size`` entries is about to be cosigned, before it is.

        The log itself notes what it has signed, before anybody sees it.

        :param old_size: the size that :meth:`witnessed` gave when consistency was checked; 0 for
            none
        :returns: whether it was noted. If not, another head was cosigned in the meantime (or one
            of the same size with another root), or its term is sealed here: sign nothing.
        """
        if not 0 <= old_size <= size < MAX_SIZE or len(root) != 32:
            raise UsageError(f"a witness cannot go from {old_size} to {size} entries")
        # SPEC (tlog-witness): The witness MUST check that the old size matches the size of the
        # latest checkpoint it cosigned for the checkpoint's origin, and MUST persist the new
        # checkpoint before returning the cosignature; the check and the update are atomic. Here it
        # is one statement, which changes one row or none.
        run = run_of(origin)
        with self._changed():
            query = "SELECT 1 FROM sealed WHERE run = ? AND term >= ?"
            if self._connection.execute(query, (run, term_of(origin, run))).fetchall():
                return False
            changed = self._connection.execute(
                "INSERT INTO witnessed SELECT ?1, ?2, ?3 WHERE ?4 = 0 OR EXISTS("
                "SELECT 1 FROM witnessed WHERE origin = ?1)"
                " ON CONFLICT DO UPDATE SET size = ?2, root = ?3"
                " WHERE size = ?4 AND (size < ?2 OR root = ?3)",
                (origin, size, root, old_size),
            )
            return changed.rowcount == 1

    def look_again(self, run: str, terms: Sequence[Term]) -> None:
        """Drop the notes of a run that say nothing (any more): see :func:`.published.counts`.
        What was signed or cosigned here stays, so that nothing else is signed in its place."""
        with self._changed():
            rows = self._connection.execute("SELECT origin, size, note FROM notes").fetchall()
            for origin, size, note in rows:
                if run_of(origin) == run and not counts(note, terms):
                    gone = "DELETE FROM notes WHERE origin = ? AND size = ?"
                    self._connection.execute(gone, (origin, size))

    # --- what was sealed --------------------------------------------------------------------------

    def seal(self, run: str, term: int, next: str = "") -> None:
        """Note that nothing of this term, or of those before, is signed here any more, before
        anybody is told.

        :param next: whom the seal is for, "" for nobody; what was said once of a term stays
        """
        with self._changed():
            self._connection.execute(
                "INSERT INTO sealed VALUES (?1, ?2, ?3)"
                " ON CONFLICT(run) DO UPDATE SET term = ?2, next = ?3 WHERE term < ?2",
                (run, term, next),
            )

    def sealed(self, run: str) -> tuple[int, str]:
        """The latest term that was sealed here, and whom for; -1 and "" when none was."""
        query = "SELECT term, next FROM sealed WHERE run = ?"
        with self._lock, self._errors():
            row = self._connection.execute(query, (run,)).fetchone()
        return (int(row[0]), str(row[1])) if row else (-1, "")

    def forget_after(self, note: str) -> None:
        """Forget all newer heads, of its term and later ones: for a log whose owner says that
        nobody has seen them.

        A witness must never do this.
        """
        head = Checkpoint.parse(notes.parse(note).text)
        term = term_of(head.origin, run_of(head.origin)) or 0
        newer = "(CAST(substr(origin, 77) AS INTEGER), size) > (?, ?)"  # artel/RUN/term/N
        with self._changed():
            for table in ("witnessed", "notes"):
                self._connection.execute(f"DELETE FROM {table} WHERE {newer}", (term, head.size))

    # --- notes with cosignatures ------------------------------------------------------------------

    def add_note(self, note: str, *, instead: bool = False) -> None:
        """Keep a signed note, or add its lines to the one that is here for its origin and size.

        The caller has verified every line. Of two lines by one key the later cosignature stays.

        :param instead: keep its lines alone: those that are here were chosen from
        :raises DecodeError: when it is malformed, or its lines would be too many
        :raises CheckFailed: when another tree head of this origin and size is here: a split view
        """
        new = notes.parse(note)
        head = Checkpoint.parse(new.text)
        with self._changed():
            query = "SELECT note FROM notes WHERE origin = ? AND size = ?"
            row = self._connection.execute(query, (head.origin, head.size)).fetchone()
            if row is not None:
                new = _merged(notes.parse(str(row[0])), new, instead=instead)
            self._connection.execute(
                "INSERT INTO notes VALUES (?1, ?2, ?3, ?4)"
                " ON CONFLICT DO UPDATE SET lines = ?3, note = ?4",
                (head.origin, head.size, _cosignatures(new), new.encode()),
            )
            if row is None:
                self._connection.execute(_PRUNE)

    def note(self, size: int) -> str:
        """The note of exactly this size; "" when there is none. (Of two terms the later.)"""
        query = "SELECT note FROM notes WHERE size = ? ORDER BY rowid DESC LIMIT 1"
        with self._lock, self._errors():
            row = self._connection.execute(query, (size,)).fetchone()
        return str(row[0]) if row else ""

    def newest_first(self, lines: int) -> Iterator[str]:
        """The notes with at least so many cosignatures, those of the largest trees first."""
        query = (
            "SELECT size, rowid, note FROM notes WHERE lines >= ? AND (size, rowid) < (?, ?)"
            " ORDER BY size DESC, rowid DESC LIMIT 1"
        )
        place = (MAX_SIZE, 0)
        while True:
            with self._lock, self._errors():
                row = self._connection.execute(query, (lines, *place)).fetchone()
            if row is None:
                return
            place = (int(row[0]), int(row[1]))
            yield str(row[2])

    # --- evidence of split views ------------------------------------------------------------------

    def add_conflict(self, evidence: dict[str, Any]) -> bool:
        """Keep evidence (:mod:`ledger.entries.evidence`); False when it is here, or 64 others are.

        :raises DecodeError: when it has no canonical JSON form
        """
        data = canonical.dumps(evidence)
        if len(data) > MAX_ENVELOPE_BYTES:
            raise UsageError(f"evidence of {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} allowed")
        with self._changed():
            changed = self._connection.execute(
                "INSERT INTO conflicts SELECT ?1, ?2"
                " WHERE (SELECT count(*) FROM conflicts) < ?3 ON CONFLICT DO NOTHING",
                (hashlib.sha256(data).digest(), data, MAX_CONFLICTS),
            )
            return changed.rowcount == 1

    def conflicts(self) -> list[dict[str, Any]]:
        """All evidence that was kept, the oldest first.

        :raises CheckFailed: when the file is damaged
        """
        with self._lock, self._errors():
            query = "SELECT evidence FROM conflicts ORDER BY rowid"
            rows = self._connection.execute(query).fetchall()
        return [canonical.loads(data) for (data,) in rows]

    # --- names, which may be erased ---------------------------------------------------------------

    def set_alias(self, account: str, alias: str, team: str, since: int) -> bool:
        """Let an account be shown under a name; False when a statement as new as this is here.

        :param since: when the owner signed it, seconds since 1970; an older statement, sent again
            by somebody else, brings no old name back
        """
        with self._changed():
            changed = self._connection.execute(
                "INSERT INTO aliases VALUES (?1, ?2, ?3, ?4) ON CONFLICT(account)"
                " DO UPDATE SET alias = ?2, team = ?3, since = ?4 WHERE since < ?4",
                (account, alias, team, since),
            )
        return changed.rowcount == 1

    def forget_alias(self, account: str) -> None:
        """Erase an account's names, also from the write-ahead log.

        What stays is the date of the erased statement, so that it cannot be brought back by
        sending it again.
        """
        with self._changed():
            self._connection.execute(
                "UPDATE aliases SET alias = '', team = '' WHERE account = ?", (account,)
            )
        with self._lock, self._errors():
            self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()

    def aliases(self) -> dict[str, tuple[str, str]]:
        """Account to (alias, team), for those that have either."""
        query = "SELECT account, alias, team FROM aliases WHERE alias != '' OR team != ''"
        with self._lock, self._errors():
            rows = self._connection.execute(query).fetchall()
        return {str(account): (str(alias), str(team)) for account, alias, team in rows}

    # --- what newcomers have repeated -------------------------------------------------------------

    def note_repeated(self, contribution: str, round: int, oldest: int) -> None:
        """Note that one more newcomer has repeated a contribution (entry id) to this round; of
        those to rounds before ``oldest`` nothing is known any more."""
        with self._changed():
            self._connection.execute("DELETE FROM repeated WHERE round < ?", (oldest,))
            self._connection.execute(
                "INSERT INTO repeated VALUES (?1, ?2, 1)"
                " ON CONFLICT(contribution) DO UPDATE SET times = times + 1",
                (bytes.fromhex(contribution), round),
            )

    def repeated(self) -> dict[str, int]:
        """Contribution (entry id) to how many newcomers have repeated it."""
        with self._lock, self._errors():
            rows = self._connection.execute("SELECT contribution, times FROM repeated").fetchall()
        return {contribution.hex(): int(times) for contribution, times in rows}

    # --- transactions and errors ------------------------------------------------------------------

    @contextmanager
    def _changed(self) -> Iterator[None]:
        with self._lock, self._errors(), transaction(self._connection):
            yield

    def _errors(self) -> AbstractContextManager[None]:
        return storage_errors(self.path, _HINT)


def _cosignatures(note: Note) -> int:
    return sum(len(line.signature) == COSIGNATURE_BYTES for line in note.signatures)


def _merged(old: Note, new: Note, *, instead: bool) -> Note:
    """One note with the lines of both, or with those of the new one alone."""
    if old.text != new.text:
        head = Checkpoint.parse(old.text)
        raise CheckFailed(
            f"two tree heads of {head.origin} for {head.size} entries differ",
            "keep both: they are the evidence of a split view",
        )
    return new if instead else add_lines(old, new.signatures)
