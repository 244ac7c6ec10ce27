"""SQLite as the files of a home use it: every commit durable, and readers that leave no trace.

What a file says is bound by hashes and signatures in its rows (:mod:`.reading`, :mod:`.heads`), and
not by how SQLite lays them out. A bit that flips in unused space means nothing.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from artel.ledger.fold import effects
from artel.ledger.store.packing import FORM, unpack
from artel.protocol.errors import CheckFailed, ResourceError

LOCK_WAIT_S = 10.0
SIDE_FILES = ("-wal", "-shm")
_DAMAGE = ("no such", "malformed", "no column", "decode", "unsupported")
"""Words in SQLite's errors that are about what is in the file, not about the machine."""

LEDGER = (
    f"CREATE TABLE entries(idx INTEGER PRIMARY KEY, packed BLOB NOT NULL /* form {FORM} */)",
    # The first 8 bytes of each entry's id. A prefix is found by them, and compared in full.
    "CREATE TABLE ids(id INTEGER, idx INTEGER, PRIMARY KEY(id, idx)) WITHOUT ROWID",
    # The log's signatures; what they sign is made again from the entries (see .reading). Each head
    # names the size of the one before it, so that none can go unnoticed.
    "CREATE TABLE checkpoints(size INTEGER PRIMARY KEY, follows INTEGER NOT NULL,"
    " term INTEGER NOT NULL, lines BLOB NOT NULL)",
    "CREATE TABLE tiles(level INTEGER, idx INTEGER, hashes BLOB NOT NULL,"
    " PRIMARY KEY(level, idx)) WITHOUT ROWID",
    "CREATE TABLE documents(id BLOB PRIMARY KEY, content BLOB NOT NULL)",
)
DERIVED: tuple[str, ...] = effects.TABLES
"""Tables of what follows from the entries (see :data:`.store.Beside`), made with the others."""


def tables() -> tuple[str, ...]:
    """All tables of ``ledger.sqlite3``."""
    return (*LEDGER, *DERIVED)


_RESTORE = "move it aside; a node fetches it again, a coordinator restores it from a node's copy"


def holds_nothing(path: Path) -> bool:
    """Whether a file is not there, or empty: SQLite has never written anything into it."""
    return not path.exists() or path.stat().st_size == 0


def connect(path: Path, tables: Sequence[str], hint: str = _RESTORE) -> sqlite3.Connection:
    """Open for writing: WAL, every commit durable, transactions begun by hand.

    A new file gets its tables in one transaction; until then it is an empty file, which counts as
    new. (Nor does SQLite apply a log that is left of a file that is gone: it deletes the log.)

    :param hint: what to do when it is damaged
    :raises CheckFailed: when it is damaged, or in another format
    :raises ResourceError: when it cannot be read or written
    """
    with storage_errors(path, hint):
        connection = _opened(str(path))
        try:
            is_new = not _schema(connection)
            if not is_new:
                require_format(path, connection, tables)
            connection.execute("PRAGMA journal_mode=WAL")
            # FULL: a commit is on the disk before it returns, so no published checkpoint is lost.
            connection.execute("PRAGMA synchronous=FULL")
            connection.execute("PRAGMA fullfsync=ON")
            if is_new:
                with transaction(connection):
                    for statement in tables:
                        connection.execute(statement)
        except BaseException:
            connection.close()
            raise
    return connection


@contextmanager
def reading(
    path: Path, tables: Sequence[str], hint: str = _RESTORE
) -> Iterator[sqlite3.Connection]:
    """Open for reading one state of a file that a daemon may be writing; nothing in it changes.

    Beside a writer this is a plain read transaction. A file without SQLite's side files is closed:
    it is read as it is, without locks and without making any. Where a killed writer left its log in
    a folder that cannot be written, SQLite has to recover it in a copy.

    :raises CheckFailed: when it is damaged, or in another format
    :raises ResourceError: when it cannot be read
    """
    with ExitStack() as stack:
        with storage_errors(path, hint):
            connection = _for_reading(path, stack)
            require_format(path, connection, tables)
        yield connection


def _for_reading(path: Path, stack: ExitStack) -> sqlite3.Connection:
    is_open = any(path.with_name(path.name + suffix).exists() for suffix in SIDE_FILES)
    try:
        mode = "mode=ro" if is_open else "immutable=1"
        return _begun(f"{path.resolve().as_uri()}?{mode}", stack)
    except sqlite3.OperationalError as error:
        if "unable to open" not in str(error) or not is_open:
            raise
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="artel-ledger-")))
    for suffix in ("", "-wal"):
        shutil.copy(path.with_name(path.name + suffix), folder)
    return _begun(str(folder / path.name), stack)


def _begun(name: str, stack: ExitStack) -> sqlite3.Connection:
    connection = _opened(name)
    stack.callback(connection.close)
    connection.execute("BEGIN")
    _schema(connection)  # what the transaction sees is what is there now
    return connection


def _opened(name: str) -> sqlite3.Connection:
    return sqlite3.connect(
        name,
        timeout=LOCK_WAIT_S,
        isolation_level=None,
        check_same_thread=False,
        uri=name.startswith("file:"),
    )


def _schema(connection: sqlite3.Connection) -> set[str]:
    rows = connection.execute("SELECT sql FROM sqlite_master WHERE sql IS NOT NULL")
    return {str(sql) for (sql,) in rows}


class OtherFormat(CheckFailed):
    """A file of another version of this program; nothing in it is wrong."""


def require_format(path: Path, connection: sqlite3.Connection, tables: Sequence[str]) -> None:
    """Refuse what has not exactly these tables.

    :raises OtherFormat: it has others
    :raises CheckFailed: it has none
    """
    found = _schema(connection)
    if not found:
        raise damaged(path, "it is empty")
    if found != {text for text in tables if text.startswith("CREATE")}:
        raise OtherFormat(
            f"{path} is in another format than the one that this program reads and writes",
            "use the program that made it, or fetch the ledger again into a new --home; a "
            "coordinator: with its node.key in it",
        )


def integrity_error(connection: sqlite3.Connection) -> str:
    """What SQLite itself finds wrong with the file, or ""."""
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()
    return "" if found == ("ok",) else f"SQLite finds: {str(found)[:200]}"


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[None]:
    """All of what is done in the block, durable when it ends; nothing of it when it fails."""
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        # A full disk may have ended the transaction already, or fail this too; whatever is not
        # committed is gone when the connection is.
        with suppress(sqlite3.Error):
            connection.execute("ROLLBACK")
            _shrink(connection)
        raise


def _shrink(connection: sqlite3.Connection) -> None:
    """Give back what a transaction that came to nothing took of the disk: it stands in the log. A
    reader of what is in there is not waited for; then the next one that fails does it."""
    connection.execute("PRAGMA busy_timeout=0")
    try:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    finally:
        connection.execute(f"PRAGMA busy_timeout={LOCK_WAIT_S * 1000:.0f}")


@contextmanager
def storage_errors(path: Path, hint: str = _RESTORE) -> Iterator[None]:
    """Turn what SQLite and the file system raise into errors that a person can act on.

    :param hint: what to do when the file is damaged
    """
    try:
        yield
    except sqlite3.OperationalError as error:
        text = str(error)
        if "full" in text:
            raise ResourceError(
                f"the disk is full; nothing was added to {path}",
                "free some space and start again; the ledger is complete up to here",
            ) from None
        if "locked" in text or "busy" in text:
            raise ResourceError(
                f"another process is writing {path}", "stop it, or use another --home"
            ) from None
        if any(word in text for word in _DAMAGE):
            raise damaged(path, text, hint) from None
        raise ResourceError(
            f"cannot use {path}: {text}", "check the disk and the permissions of its folder"
        ) from None
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # a damaged schema's own text
        raise damaged(path, str(error), hint) from None
    except OSError as error:
        raise ResourceError(
            f"cannot use {path}: {error.strerror or error}",
            "free some space, or check the disk and the permissions of its folder",
        ) from None


def damaged(path: Path, text: str, hint: str = _RESTORE) -> CheckFailed:
    """The error of a file that does not hold what was written into it."""
    return CheckFailed(f"{path} is damaged: {text[:200]}", hint)


def insert_rows(
    connection: sqlite3.Connection, into: str, pairs: Iterable[tuple[object, object]]
) -> None:
    """Insert rows of two columns in one statement.

    Python gives up its lock for each step of a statement: with a busy thread beside this one,
    getting it back can take 5 ms every time.
    """
    values = [value for pair in pairs for value in pair]
    places = ", ".join(["(?, ?)"] * (len(values) // 2))
    connection.execute(f"INSERT INTO {into} VALUES {places}", values)


def read_leaves(connection: sqlite3.Connection, start: int, stop: int) -> list[tuple[int, bytes]]:
    """Entries ``start`` to ``stop`` with their indices, read in one step.

    :raises ValueError: when what comes out of the database is not what was put together in it
    :raises DecodeError: when it is nothing that was packed
    """
    # As one text, because of Python's lock (see insert_rows); in hex, because texts are cut at a
    # zero byte.
    query = (
        "SELECT group_concat(idx || ' ' || hex(packed)) FROM (SELECT idx, packed FROM entries"
        " WHERE idx >= ? AND idx < ? ORDER BY idx)"
    )
    (text,) = connection.execute(query, (start, stop)).fetchone()
    rows = [row.split(" ") for row in text.split(",")] if text else []
    return [(int(index), unpack(bytes.fromhex(packed))) for index, packed in rows]
