"""The layout of ``ledger.sqlite3``, and how to make the same file again from its entries.

The database is append-only: rows are inserted in one order and never changed or deleted. Entries go
in by index; right after an entry that completes tiles of the Merkle tree come these tiles, lowest
level first (only full tiles are stored: a partial one would have to change); a checkpoint comes
right after the last entry that it covers. SQLite then lays the file out deterministically, whatever
the grouping into transactions and statements, so a copy rebuilt from the entries and notes has the
same bytes. :mod:`ledger.store.verify` relies on it: a byte that is not explained by them is damage.

Only two header fields depend on history: the change counter (bytes 24..27, always repeated in bytes
92..95) and the version of the SQLite library that wrote last (96..99), which the ``meta`` table
records too. A database that another SQLite version made is rebuilt before it is appended to.
"""

from __future__ import annotations

import hashlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from artel.ledger.tlog.edge import Edge, FullTile
from artel.protocol import files, merkle
from artel.protocol.errors import CheckFailed, ResourceError

FORMAT = "artel-ledger-3"
PAGE_BYTES = 4096
CHANGE_COUNTER = slice(24, 28)
VALID_FOR = slice(92, 96)
WRITER_VERSION = slice(96, 100)
LOCK_WAIT_S = 10.0
REBUILD_CACHE_KIB = 64 * 1024

_SCHEMA = (
    "CREATE TABLE meta(key TEXT PRIMARY KEY, value TEXT NOT NULL)",
    "CREATE TABLE entries(idx INTEGER PRIMARY KEY, id BLOB NOT NULL UNIQUE, leaf BLOB NOT NULL)",
    "CREATE TABLE checkpoints(size INTEGER PRIMARY KEY, note TEXT NOT NULL)",
    "CREATE TABLE tiles(place INTEGER PRIMARY KEY, level INTEGER NOT NULL, idx INTEGER NOT NULL,"
    " hashes BLOB NOT NULL)",
)
DERIVED: tuple[str, ...] = ()
"""Tables of what follows from the entries (see :data:`.store.Beside`), made with the others."""
INSERT_TILE = "INSERT INTO tiles(place, level, idx, hashes) VALUES (?, ?, ?, ?)"
INSERT_CHECKPOINT = "INSERT INTO checkpoints(size, note) VALUES (?, ?)"


def insert_entries(count: int) -> str:
    """The statement that inserts ``count`` entries (idx, id, leaf) in order.

    One statement for a whole batch, because Python gives up its lock for each step of a statement:
    with a busy thread beside this one, getting it back can take 5 ms every time.
    """
    return "INSERT INTO entries(idx, id, leaf) VALUES " + ", ".join(["(?, ?, ?)"] * count)


def read_entries(
    connection: sqlite3.Connection, start: int, stop: int
) -> list[tuple[int, bytes, bytes]]:
    """The rows (idx, id, leaf) of entries ``start`` to ``stop``, read in one step.

    A row whose id or leaf is not stored as bytes is left out.

    :raises ValueError: when what comes out of the database is not what was put together in it
    """
    # As one text, because of Python's lock (see insert_entries); in hex, because texts are cut at
    # a zero byte.
    query = (
        "SELECT group_concat(idx || ' ' || hex(id) || ' ' || hex(leaf)) FROM (SELECT idx, id, leaf"
        " FROM entries WHERE idx >= ? AND idx < ? AND typeof(id) = 'blob' AND typeof(leaf) = 'blob'"
        " ORDER BY idx)"
    )
    (text,) = connection.execute(query, (start, stop)).fetchone()
    if text is None:
        return []
    rows = [row.split(" ") for row in text.split(",")]
    return [(int(idx), bytes.fromhex(digest), bytes.fromhex(leaf)) for idx, digest, leaf in rows]


def tile_row(tile: FullTile) -> tuple[int, int, int, bytes]:
    """The row of a tile, for :data:`INSERT_TILE`."""
    return tile.place, tile.level, tile.index, tile.hashes


def sqlite_version() -> int:
    """The SQLite library's version as the number that it writes into headers."""
    major, minor, patch = sqlite3.sqlite_version_info
    return major * 1_000_000 + minor * 1_000 + patch


@contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what SQLite and the file system raise into errors that a person can act on."""
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
        if "no such" in text or "malformed" in text:
            raise _damaged(path, text) from None
        raise ResourceError(
            f"cannot use {path}: {text}", "check the disk and the permissions of its folder"
        ) from None
    except (sqlite3.DatabaseError, UnicodeDecodeError) as error:  # a damaged schema's own text
        raise _damaged(path, str(error)[:200]) from None
    except OSError as error:
        raise ResourceError(
            f"cannot use {path}: {error.strerror or error}",
            "free some space, or check the disk and the permissions of its folder",
        ) from None


def _damaged(path: Path, text: str) -> CheckFailed:
    return CheckFailed(
        f"the ledger database {path} is damaged: {text}",
        "move it aside; a node fetches it again, a coordinator restores it from a node's copy",
    )


def connect(path: Path) -> sqlite3.Connection:
    """Open for appending: WAL, every commit durable, transactions begun by hand."""
    connection = sqlite3.connect(
        path, timeout=LOCK_WAIT_S, isolation_level=None, check_same_thread=False
    )
    # FULL: a commit is on the disk before it returns, so no published checkpoint can be lost.
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("PRAGMA fullfsync=ON")
    # The store itself folds the log back after each append, see LedgerStore.
    connection.execute("PRAGMA wal_autocheckpoint=0")
    return connection


def connect_copy(path: Path) -> sqlite3.Connection:
    """Open a private file that nobody writes: no locks, no side files, no recovery."""
    return sqlite3.connect(
        f"{path.resolve().as_uri()}?immutable=1",
        uri=True,
        isolation_level=None,
        check_same_thread=False,
    )


def create(path: Path) -> None:
    """Make an empty database. It appears under its name only when it is complete and durable."""
    # The side files of a database that is gone must never be applied to the new one.
    for suffix in ("-wal", "-shm"):
        files.discard(path.with_name(path.name + suffix))
    with _unfinished(path) as new:
        with closing(sqlite3.connect(new, isolation_level=None)) as connection:
            write_schema(connection, sqlite_version())
            connection.execute("PRAGMA journal_mode=WAL")
        publish(new, path)


def write_schema(connection: sqlite3.Connection, version: int) -> None:
    """Tables and ``meta`` rows; ``version`` is the SQLite version that the file was made with."""
    # Defaults can be compiled in differently; these three decide the layout.
    connection.execute(f"PRAGMA page_size={PAGE_BYTES}")
    connection.execute("PRAGMA auto_vacuum=NONE")
    connection.execute("PRAGMA encoding='UTF-8'")
    connection.execute("BEGIN")
    for statement in (*_SCHEMA, *DERIVED):
        connection.execute(statement)
    meta = (("format", FORMAT), ("sqlite", str(version)))
    connection.executemany("INSERT INTO meta(key, value) VALUES (?, ?)", meta)
    connection.execute("COMMIT")


def made_with(connection: sqlite3.Connection) -> int:
    """The SQLite version in ``meta``.

    :raises CheckFailed: when this is no ledger of a format that we know
    """
    rows = dict(connection.execute("SELECT key, value FROM meta").fetchall())
    found = str(rows.get("format"))[:40]
    if found != FORMAT:
        raise CheckFailed(
            f"the database is in the format {found}; this program reads and writes {FORMAT}",
            "use the program that made it, or fetch the ledger again into a new --home",
        )
    version = str(rows.get("sqlite"))
    if not (version.isascii() and version.isdigit() and len(version) <= 9):
        raise CheckFailed("the database does not say which SQLite version made it")
    return int(version)


def copy_rows(
    source: sqlite3.Connection,
    target: sqlite3.Connection,
    at_checkpoint: Callable[[int], None] = lambda _count: None,
) -> None:
    """Insert all that ``source`` holds into ``target`` in the order in which it was appended.

    Entry ids and tiles are computed again. ``at_checkpoint(n)`` is called, with everything
    committed, when ``n`` checkpoints (and the entries that they cover) are copied, first with 0.
    """
    at_checkpoint(0)
    entries = source.execute("SELECT idx, leaf FROM entries ORDER BY idx")
    insert_entry, edge = insert_entries(1), Edge()
    # Row values are whatever the file holds; a wrong type fails here or in the comparison.
    entry = entries.fetchone()
    checkpoints = source.execute("SELECT size, note FROM checkpoints ORDER BY size")
    for count, (size, note) in enumerate(checkpoints, start=1):
        target.execute("BEGIN")
        while entry is not None and entry[0] < size:
            index, leaf = entry
            target.execute(insert_entry, (index, hashlib.sha256(leaf).digest(), leaf))
            for tile in edge.append(merkle.leaf_hash(leaf)):
                target.execute(INSERT_TILE, tile_row(tile))
            entry = entries.fetchone()
        target.execute(INSERT_CHECKPOINT, (size, note))
        target.execute("COMMIT")
        at_checkpoint(count)
    if entry is not None:
        raise CheckFailed(f"entry {entry[0]} is covered by no checkpoint")


def rebuild(source: sqlite3.Connection, path: Path, at_checkpoint: Callable[[int], None]) -> None:
    """Make a scratch file at ``path`` with what ``source`` holds; not durable, not in WAL mode."""
    with closing(sqlite3.connect(path, isolation_level=None)) as target:
        target.execute(f"PRAGMA cache_size=-{REBUILD_CACHE_KIB}")
        target.execute("PRAGMA synchronous=OFF")
        target.execute("PRAGMA journal_mode=OFF")
        write_schema(target, made_with(source))
        copy_rows(source, target, at_checkpoint)


def migrate(path: Path) -> None:
    """Rebuild a database that another SQLite version made, so that this one can append to it."""
    with _unfinished(path) as new:
        target = sqlite3.connect(new, isolation_level=None)
        with closing(connect(path)) as source, closing(target) as db:
            # An empty log first: the old file must not leave a log behind for the new one.
            source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            write_schema(db, sqlite_version())
            copy_rows(source, db)
            db.execute("PRAGMA journal_mode=WAL")
        log = path.with_name(path.name + "-wal")
        if log.exists() and log.stat().st_size:
            raise ResourceError(f"another process is reading {path}", "stop it and start again")
        publish(new, path)


@contextmanager
def _unfinished(path: Path) -> Iterator[Path]:
    """A name beside ``path`` to make a database under; what is left there is removed."""
    new = files.unfinished(path)
    try:
        yield new
    finally:
        for suffix in ("", "-wal", "-shm", "-journal"):
            files.discard(new.with_name(new.name + suffix))


def publish(new: Path, path: Path) -> None:
    """Give a finished file its name, durably: content first, then name, then folder."""
    descriptor = os.open(new, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.replace(new, path)
    files.sync_folder(path.parent)
