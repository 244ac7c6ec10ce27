"""Verification: a sound ledger holds, whoever is writing it, and any changed byte is found."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.store import database
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.packing import pack, unpack
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import Verification, verify_home
from artel.ledger.tlog import note as notes
from artel.ledger.tlog.checkpoint import sign_checkpoint
from artel.ledger.tlog.tiles import Tile
from artel.protocol.dsse import Envelope
from artel.protocol.errors import DecodeError, UsageError
from ledger_world import World, key
from places import ROOT, WORLDS

LOG_NAME = DATABASE_NAME + "-wal"


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.checks if not check.ok}


@pytest.fixture(scope="module")
def closed_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger that was closed in good order, with the tree heads that a coordinator keeps."""
    home, world = tmp_path_factory.mktemp("closed"), World()
    world.write(home)
    with contextlib.closing(HeadStore(home / HEADS_NAME)) as heads:
        with LedgerReader.of(home) as store:
            assert heads.advance(store.origin, 0, store.size, store.root)
            heads.add_note(store.latest_note)
        heads.set_alias("a" * 64, "Ada", "", 1)
    return home


KILLED = """
import os, signal, sys
from pathlib import Path
from ledger_world import World
from artel.ledger.store.store import LedgerStore

world = World()
batches = world.batches(3)
store = LedgerStore.open(Path(sys.argv[1]), create=True)
for number, batch in enumerate(batches):
    store.append(batch, world.sign)
    if number == 4:  # from here on the log is not folded back into the database
        store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture(scope="module")
def killed_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger whose writer was killed with six appends still in the write-ahead log."""
    home = tmp_path_factory.mktemp("killed")
    child = subprocess.run(
        [sys.executable, "-c", KILLED, str(home / DATABASE_NAME)],
        cwd=WORLDS.parent,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{WORLDS}"},
        timeout=60,
        check=False,
    )
    assert child.returncode == -signal.SIGKILL
    assert (home / LOG_NAME).stat().st_size > 10 * 4096
    (home / (DATABASE_NAME + "-shm")).unlink(missing_ok=True)
    return home


def copy_of(home: Path, target: Path) -> Path:
    shutil.copytree(home, target, dirs_exist_ok=True)
    return target


def test_a_sound_ledger_holds(closed_home: Path) -> None:
    seen: list[tuple[int, int]] = []
    result = verify_home(closed_home, lambda done, total: seen.append((done, total)))
    assert result.verified
    assert (result.size, result.run) == (21, World().run)
    assert result.state.total == 2 * 3 * 128 * 100  # rounds, members, tokens, for each token
    assert seen == [(21, 21)]
    assert [check.name for check in result.checks] == [
        *(
            "database",
            "newest tree head",
            "entries",
            "signatures",
            "documents",
            "tiles",
            "checkpoints",
        ),
        *("published checkpoint", "kept tree heads", "credit", "effects"),
    ]


def test_a_ledger_whose_writer_was_killed_holds(killed_home: Path) -> None:
    result = verify_home(killed_home)
    assert result.verified, result.checks
    assert result.size == 28


def contents(home: Path) -> dict[str, tuple[int, bytes]]:
    """What lies in a home, but for the index of the log, which SQLite makes anew at any time."""
    paths = [path for path in home.iterdir() if path.suffix != ".sqlite3-shm"]
    return {path.name: (path.stat().st_mtime_ns, path.read_bytes()) for path in paths}


def test_checking_changes_nothing(killed_home: Path, closed_home: Path, tmp_path: Path) -> None:
    for number, home in enumerate((killed_home, closed_home)):
        copy = copy_of(home, tmp_path / str(number))
        before = contents(copy)
        assert verify_home(copy).verified
        assert contents(copy) == before
    assert not (tmp_path / "1" / f"{DATABASE_NAME}-shm").exists()


def test_what_a_killed_writer_left_can_be_read_where_nothing_can_be_written(
    killed_home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = copy_of(killed_home, tmp_path)
    before = contents(home)
    real = sqlite3.connect

    def connect(name: str, **options: Any) -> sqlite3.Connection:
        if name.startswith(home.as_uri()):  # what SQLite says when it cannot make its index there
            raise sqlite3.OperationalError("unable to open database file")
        return real(name, **options)

    monkeypatch.setattr(database.sqlite3, "connect", connect)
    assert verify_home(home).size == 28
    assert contents(home) == before


# --- flips ----------------------------------------------------------------------------------------


def leaf_of(packed: object) -> object:
    try:
        return unpack(packed) if isinstance(packed, bytes) else packed
    except DecodeError:
        return packed


def rows_of(home: Path, name: str) -> list[tuple[object, ...]]:
    """All that a database says, or where it cannot be read, the error."""
    rows: list[tuple[object, ...]] = []
    with contextlib.closing(sqlite3.connect(f"{(home / name).as_uri()}?mode=ro", uri=True)) as db:
        try:
            tables = db.execute("SELECT name, sql FROM sqlite_master ORDER BY 1").fetchall()
            for table, sql in tables:
                rows.append((table, sql))
                if sql is not None and sql.startswith("CREATE TABLE"):
                    found = db.execute(f"SELECT * FROM {table} ORDER BY 1, 2").fetchall()
                    # Some bits between the deflated text and its values mean nothing.
                    rows += (
                        [(at, leaf_of(row)) for at, row in found] if table == "entries" else found
                    )
        except (sqlite3.Error, UnicodeDecodeError) as error:
            rows.append((str(error),))
    return rows


def undetected(home: Path, name: str, offsets: Iterable[int], rng: random.Random) -> list[int]:
    """Offsets of ``name`` at which a changed byte changes what the file says, and still verifies.

    (A byte in unused space, or of SQLite's bookkeeping, means nothing.)
    """
    path = home / name
    data = bytearray(path.read_bytes())
    sound = rows_of(home, name)
    missed = []
    for offset in offsets:
        original = data[offset]
        data[offset] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        if verify_home(home).verified and rows_of(home, name) != sound:
            missed.append(offset)
        data[offset] = original
    path.write_bytes(data)
    assert verify_home(home).verified
    return missed


def telling_offsets(size: int, count: int, rng: random.Random) -> list[int]:
    """The file header, the header of every page, and ``count`` random places."""
    pages = range(0, size, 4096)
    headers = [page + offset for page in pages[1:] for offset in range(0, 12, 2)]
    return [*range(100), *headers, *(rng.randrange(size) for _ in range(count))]


@pytest.mark.parametrize("name", [DATABASE_NAME, HEADS_NAME])
def test_nothing_that_a_file_says_changes_unnoticed(
    closed_home: Path, tmp_path: Path, name: str
) -> None:
    rng = random.Random(1)
    home = copy_of(closed_home, tmp_path)
    size = (home / name).stat().st_size
    assert undetected(home, name, telling_offsets(size, 300, rng), rng) == []


def places_of(data: bytes, value: bytes) -> list[int]:
    """Where a value stands in a file; what is longer than a page is in pieces."""
    found = data.find(value)
    assert found >= 0
    return list(range(found, found + len(value)))


def test_every_flip_in_what_must_not_be_wrong_is_found(closed_home: Path, tmp_path: Path) -> None:
    """In an entry, its id, a tree head, and in what is kept of tree heads beside the ledger."""
    rng = random.Random(2)
    home = copy_of(closed_home, tmp_path)
    with LedgerReader.of(home) as store:
        leaf, note, root = store.leaf(9), store.latest_note.encode(), store.root
    packed = pack(leaf, entries.decode(leaf).envelope)
    signature = notes.parse(note).signatures[0].signature
    digest = bytes.fromhex(entries.entry_id(leaf))[:8]
    stored = (packed, digest, signature)
    for name, values in ((DATABASE_NAME, stored), (HEADS_NAME, (root, note, b"Ada"))):
        data = bytearray((home / name).read_bytes())
        for value in values:
            for offset in rng.sample(places_of(bytes(data), value), min(40, len(value))):
                data[offset] ^= 1 << rng.randrange(8)
                (home / name).write_bytes(data)
                assert not verify_home(home).verified, (name, value, offset)
                data[offset] = closed_home.joinpath(name).read_bytes()[offset]
        (home / name).write_bytes(data)
    assert verify_home(home).verified


def test_any_changed_byte_beside_a_log_is_found(killed_home: Path, tmp_path: Path) -> None:
    """A flip in the log of a killed writer ends the log there: its entries are missed."""
    rng = random.Random(2)
    home = copy_of(killed_home, tmp_path)
    data = bytearray((home / LOG_NAME).read_bytes())
    for offset in [*range(32), *(rng.randrange(len(data)) for _ in range(60))]:
        data[offset] ^= rng.randrange(1, 256)
        (home / LOG_NAME).write_bytes(data)
        (home / f"{DATABASE_NAME}-shm").unlink(missing_ok=True)
        result = verify_home(home)
        assert not result.verified or result.size == 28
        data[offset] = killed_home.joinpath(LOG_NAME).read_bytes()[offset]


def test_any_changed_byte_of_the_checkpoint_file_is_found(
    closed_home: Path, tmp_path: Path
) -> None:
    home = copy_of(closed_home, tmp_path)
    data = bytearray((home / CHECKPOINT_NAME).read_bytes())
    for offset in range(0, len(data), 5):
        data[offset] ^= 1
        (home / CHECKPOINT_NAME).write_bytes(data)
        assert failed(verify_home(home)) == {"published checkpoint"}
        data[offset] ^= 1


@pytest.mark.parametrize("change", ["cut", "cut a page", "empty"])
def test_other_lengths_are_found(closed_home: Path, tmp_path: Path, change: str) -> None:
    path = copy_of(closed_home, tmp_path) / DATABASE_NAME
    data = path.read_bytes()
    path.write_bytes({"cut": data[:-100], "cut a page": data[:-4096], "empty": b""}[change])
    assert not verify_home(tmp_path).verified


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM witnessed",
        "DELETE FROM notes",
        "DELETE FROM aliases",
        "DELETE FROM seal",
        "UPDATE witnessed SET size = 20",
        "UPDATE notes SET lines = 9",
    ],
)
def test_a_kept_row_that_is_gone_or_changed_is_found(
    closed_home: Path, tmp_path: Path, statement: str
) -> None:
    home = copy_of(closed_home, tmp_path)
    table = statement.split()[1 if statement.startswith("UPDATE") else 2]
    with contextlib.closing(sqlite3.connect(home / HEADS_NAME, isolation_level=None)) as db:
        triggers = db.execute(
            "SELECT name, sql FROM sqlite_master WHERE type = 'trigger' AND tbl_name = ?", (table,)
        ).fetchall()
        for name, _ in triggers:
            db.execute(f"DROP TRIGGER {name}")
        db.execute(statement)
        for _, sql in triggers:
            db.execute(sql)
    assert failed(verify_home(home)) == {"kept tree heads"}


def test_kept_heads_that_are_gone_are_missed(closed_home: Path, tmp_path: Path) -> None:
    home = copy_of(closed_home, tmp_path)
    (home / "node.key").touch()
    assert verify_home(home).verified
    (home / HEADS_NAME).unlink()
    assert failed(verify_home(home)) == {"kept tree heads"}
    (home / "node.key").unlink()  # a ledger that nobody signs or cosigns with never had them
    result = verify_home(home)
    assert result.verified
    assert "kept tree heads" in [item.name for item in result.unchecked]


# --- the write-ahead log --------------------------------------------------------------------------


def test_a_lost_log_is_noticed(killed_home: Path, tmp_path: Path) -> None:
    home = copy_of(killed_home, tmp_path)
    log = home / LOG_NAME
    data = log.read_bytes()
    log.write_bytes(data[: len(data) // 2])
    assert "published checkpoint" in failed(verify_home(home))
    log.unlink()
    assert "published checkpoint" in failed(verify_home(home))


def test_the_torn_end_of_an_unfinished_append_is_not_damage(
    killed_home: Path, tmp_path: Path
) -> None:
    home = copy_of(killed_home, tmp_path)
    with (home / LOG_NAME).open("ab") as log:
        log.write(random.Random(4).randbytes(6000))
    assert verify_home(home).verified


# --- what the rows say ----------------------------------------------------------------------------


def altered(home: Path, *statements: str) -> set[str]:
    """The checks that fail once these statements have been run on the database."""
    connection = sqlite3.connect(home / DATABASE_NAME)
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()
    return failed(verify_home(home))


@pytest.mark.parametrize(
    "statement",
    [
        "DELETE FROM entries WHERE idx = 20",
        "DELETE FROM checkpoints WHERE size = 21",
        "UPDATE entries SET idx = 30 WHERE idx = 20",
        "UPDATE entries SET packed = CAST(packed AS TEXT) WHERE idx = 5",
        "UPDATE checkpoints SET lines = zeroblob(68) WHERE size = 7",
        "UPDATE checkpoints SET lines = zeroblob(20) WHERE size = 7",
        "UPDATE checkpoints SET size = 2 WHERE size = 7",
        "UPDATE checkpoints SET follows = 2 WHERE size = 7",
        "DELETE FROM checkpoints WHERE size = 7",
        "DELETE FROM checkpoints WHERE size = (SELECT min(size) FROM checkpoints)",
        "UPDATE checkpoints SET term = 1 WHERE size = 7",
        "INSERT INTO checkpoints SELECT 12, 7, term, lines FROM checkpoints WHERE size = 7",
        "UPDATE ids SET id = id + 1 WHERE idx = 5",
        "UPDATE ids SET idx = 99 WHERE idx = 5",
        "DELETE FROM ids WHERE idx = 5",
        "INSERT INTO ids VALUES (1, 5)",
        "CREATE TABLE more(x)",
        "CREATE VIEW more AS SELECT * FROM entries",
        "DROP TABLE entries",
    ],
)
def test_any_change_through_sqlite_is_found(
    closed_home: Path, tmp_path: Path, statement: str
) -> None:
    home = copy_of(closed_home, tmp_path)
    assert altered(home, statement)


def test_a_lost_end_is_found_even_when_the_database_is_consistent(tmp_path: Path) -> None:
    world = World()
    path = world.write(tmp_path, rounds=1)
    shutil.copy(path, tmp_path / "earlier")
    with LedgerStore.open(path) as store:
        store.append([entries.account(key("new"), world.run).encode()], world.sign)
    shutil.move(tmp_path / "earlier", path)
    assert failed(verify_home(tmp_path)) == {"published checkpoint"}


def test_a_missing_checkpoint_file_is_a_failure(closed_home: Path, tmp_path: Path) -> None:
    home = copy_of(closed_home, tmp_path)
    (home / CHECKPOINT_NAME).unlink()
    assert failed(verify_home(home)) == {"published checkpoint"}


@pytest.mark.parametrize(("goes_on", "named"), [(False, "newest tree head"), (True, "checkpoints")])
def test_a_tree_head_of_another_key_is_found(tmp_path: Path, goes_on: bool, named: str) -> None:
    world = World()
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True) as store:
        store.append(world.add(world.genesis), world.sign)
        store.append(
            world.add(*world.introductions()),
            lambda size, root: sign_checkpoint(key("impostor"), world.origin, size, root),
        )
        if goes_on:
            store.append([entries.account(key("new"), world.run).encode()], world.sign)
    assert failed(verify_home(tmp_path)) == {named}


def test_an_entry_with_a_bad_signature_is_found(tmp_path: Path) -> None:
    world = World()
    good = entries.account(key("new"), world.run)
    bad = Envelope(good.payload_type, good.payload, ((key("new").key, bytes(64)),))
    world.write(tmp_path)
    with LedgerStore.open(tmp_path / DATABASE_NAME) as store:
        store.append([bad.encode()], world.sign)
    result = verify_home(tmp_path)
    assert failed(result) == {"signatures"}
    assert result.state.ignored == {"bad_signature": 1}
    assert "entry 21" in next(c.detail for c in result.checks if not c.ok)


def test_an_entry_that_counts_for_nothing_is_no_damage(tmp_path: Path) -> None:
    world = World()
    world.write(tmp_path)
    with LedgerStore.open(tmp_path / DATABASE_NAME) as store:
        store.append([entries.account(key("new"), "ab" * 32).encode()], world.sign)
    result = verify_home(tmp_path)
    assert result.verified
    assert "1 of the entries count for nothing" in result.checks[-2].detail


def test_an_empty_or_absent_ledger_is_not_called_sound(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        verify_home(tmp_path)
    LedgerStore.open(tmp_path / DATABASE_NAME, create=True).close()
    assert not verify_home(tmp_path).verified


def test_checking_while_a_daemon_appends(tmp_path: Path) -> None:
    world = World()
    world.write(tmp_path)
    stop = threading.Event()
    appended = 0

    def append() -> None:
        nonlocal appended
        with LedgerStore.open(tmp_path / DATABASE_NAME) as store:
            while not stop.wait(0.002):
                leaf = entries.account(key(f"new {appended}"), world.run).encode()
                store.append([leaf], world.sign)
                appended += 1

    writer = threading.Thread(target=append)
    writer.start()
    try:
        results = [verify_home(tmp_path) for _ in range(15)]
    finally:
        stop.set()
        writer.join()
    assert all(result.verified for result in results), [r.checks for r in results]
    assert results[-1].size > results[0].size >= 21
    assert verify_home(tmp_path).size == 21 + appended


@pytest.mark.parametrize("appends", [1, 6, 40])
def test_a_long_ledger_fills_many_tiles(tmp_path: Path, appends: int) -> None:
    """However its entries came in: many tiles are completed in the middle of an append."""
    world = World()
    world.write(tmp_path, rounds=1)
    rng = random.Random(6)
    new = [entries.account(key(f"new {number}"), world.run).encode() for number in range(1200)]
    for _ in range(4):  # closed and opened again in between
        with LedgerStore.open(tmp_path / DATABASE_NAME) as store:
            for _ in range(appends):
                most = 256 if appends == 1 else 2 * 200 // appends
                count = rng.randrange(1, most)
                batch, new = new[:count], new[count:]
                store.append(batch, world.sign)
                assert store.root_at(store.size) == store.root
    result = verify_home(tmp_path)
    assert result.verified, result.checks
    assert result.size == 14 + 1200 - len(new)
    assert f"{result.size // 256} full tiles" in next(
        c.detail for c in result.checks if c.name == "tiles"
    )


@pytest.fixture(scope="module")
def tiled_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with two full tiles."""
    home, world = tmp_path_factory.mktemp("tiled"), World()
    world.write(home)
    new = [entries.account(key(f"new {number}"), world.run).encode() for number in range(500)]
    with LedgerStore.open(home / DATABASE_NAME) as store:
        for start in range(0, 500, 250):
            store.append(new[start : start + 250], world.sign)
    return home


@pytest.mark.parametrize(
    ("statement", "named"),
    [
        ("UPDATE tiles SET hashes = zeroblob(8192) WHERE idx = 1", "newest tree head"),
        ("UPDATE tiles SET level = 1 WHERE idx = 0", "newest tree head"),
        ("DELETE FROM tiles WHERE idx = 0", "newest tree head"),
        ("INSERT INTO tiles SELECT 0, 2, hashes FROM tiles WHERE idx = 1", "tiles"),
    ],
)
def test_a_changed_tile_is_found(
    tiled_home: Path, tmp_path: Path, statement: str, named: str
) -> None:
    home = copy_of(tiled_home, tmp_path)
    assert altered(home, statement) == {named}


def test_every_flip_in_a_tile_is_found(tiled_home: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    home = copy_of(tiled_home, tmp_path)
    with LedgerReader.of(home) as store:
        hashes = store.tile(Tile(0, 0))
    data = bytearray((home / DATABASE_NAME).read_bytes())
    places = places_of(bytes(data), hashes[-2048:])  # which lie in one page
    for offset in rng.sample(places, 20):
        data[offset] ^= 1
        (home / DATABASE_NAME).write_bytes(data)
        assert failed(verify_home(home)) == {"newest tree head"}
        data[offset] ^= 1
