"""Verification: a sound ledger holds, whoever is writing it, and any changed byte is found."""

from __future__ import annotations

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

import pytest

from artel.ledger import entries
from artel.ledger.store import database, wal
from artel.ledger.store.snapshot import snapshot
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import Verification, verify_home
from artel.ledger.tlog.checkpoint import sign_checkpoint
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed, UsageError
from ledger_world import World, key
from places import ROOT, WORLDS

LOG_NAME = DATABASE_NAME + "-wal"


def failed(result: Verification) -> set[str]:
    return {check.name for check in result.checks if not check.ok}


@pytest.fixture(scope="module")
def closed_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger that was closed in good order."""
    home = tmp_path_factory.mktemp("closed")
    World().write(home)
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
    if number == 5:  # from here on the log is never folded back into the database
        LedgerStore._fold_log = lambda self: None
    store.append(batch, world.sign)
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
    assert (home / LOG_NAME).stat().st_size > 10 * database.PAGE_BYTES
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
    assert len(result.checks) == 8


def test_a_ledger_whose_writer_was_killed_holds(killed_home: Path) -> None:
    result = verify_home(killed_home)
    assert result.verified, result.checks
    assert result.size == 28
    assert "6 appends in the log" in result.checks[0].detail


def test_checking_writes_nothing_and_needs_no_right_to_write(
    killed_home: Path, closed_home: Path, tmp_path: Path
) -> None:
    for number, home in enumerate((killed_home, closed_home)):
        copy = copy_of(home, tmp_path / str(number))
        before = {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in copy.iterdir()}
        copy.chmod(0o500)
        assert verify_home(copy).verified
        copy.chmod(0o700)
        assert {p.name: (p.stat().st_mtime_ns, p.read_bytes()) for p in copy.iterdir()} == before


# --- any byte -------------------------------------------------------------------------------------


def undetected(home: Path, name: str, offsets: Iterable[int], rng: random.Random) -> list[int]:
    """Offsets of ``name`` at which a changed byte still gives a ledger that verifies."""
    path = home / name
    data = bytearray(path.read_bytes())
    missed = []
    for offset in offsets:
        original = data[offset]
        data[offset] ^= rng.randrange(1, 256)
        path.write_bytes(data)
        if verify_home(home).verified:
            missed.append(offset)
        data[offset] = original
    path.write_bytes(data)
    assert verify_home(home).verified
    return missed


def telling_offsets(size: int, count: int, rng: random.Random) -> list[int]:
    """The file header, the header of every page, and ``count`` random places."""
    pages = range(0, size, database.PAGE_BYTES)
    headers = [page + offset for page in pages[1:] for offset in range(0, 12, 2)]
    return [*range(100), *headers, *(rng.randrange(size) for _ in range(count))]


def test_any_changed_byte_is_found(closed_home: Path, tmp_path: Path) -> None:
    rng = random.Random(1)
    home = copy_of(closed_home, tmp_path)
    size = (home / DATABASE_NAME).stat().st_size
    assert undetected(home, DATABASE_NAME, telling_offsets(size, 300, rng), rng) == []


def test_any_changed_byte_is_found_beside_a_log(killed_home: Path, tmp_path: Path) -> None:
    rng = random.Random(2)
    home = copy_of(killed_home, tmp_path)
    size = (home / DATABASE_NAME).stat().st_size
    assert undetected(home, DATABASE_NAME, telling_offsets(size, 120, rng), rng) == []
    log = (home / LOG_NAME).stat().st_size
    offsets = [*range(56), *(rng.randrange(log) for _ in range(120))]
    assert undetected(home, LOG_NAME, offsets, rng) == []


def test_any_changed_byte_of_the_checkpoint_file_is_found(
    closed_home: Path, tmp_path: Path
) -> None:
    home = copy_of(closed_home, tmp_path)
    size = (home / CHECKPOINT_NAME).stat().st_size
    assert undetected(home, CHECKPOINT_NAME, range(0, size, 5), random.Random(3)) == []


def test_the_first_differing_byte_is_named(closed_home: Path, tmp_path: Path) -> None:
    path = copy_of(closed_home, tmp_path) / DATABASE_NAME
    data = bytearray(path.read_bytes())
    free = data.index(bytes(200), 4 * database.PAGE_BYTES)  # unused space, which no row explains
    data[free + 100] = 1
    path.write_bytes(data)
    result = verify_home(tmp_path)
    assert failed(result) == {"database file"}
    page = (free + 100) // database.PAGE_BYTES + 1
    assert result.checks[0].detail == f"byte {free + 100} (page {page}) is not what the rows give"


@pytest.mark.parametrize("change", ["cut", "cut a page", "append", "append a page", "empty"])
def test_other_lengths_are_found(closed_home: Path, tmp_path: Path, change: str) -> None:
    path = copy_of(closed_home, tmp_path) / DATABASE_NAME
    data = path.read_bytes()
    changed = {
        "cut": data[:-1],
        "cut a page": data[: -database.PAGE_BYTES],
        "append": data + b"\0",
        "append a page": data + bytes(database.PAGE_BYTES),
        "empty": b"",
    }
    path.write_bytes(changed[change])
    assert not verify_home(tmp_path).verified


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


def test_a_writer_killed_while_folding_its_log_back_left_a_sound_ledger(
    killed_home: Path, tmp_path: Path
) -> None:
    home = copy_of(killed_home, tmp_path)
    log = wal.read((home / LOG_NAME).read_bytes())
    assert log is not None
    with (home / DATABASE_NAME).open("r+b") as file:
        for number, content in sorted(log.pages().items()):
            file.seek((number - 1) * database.PAGE_BYTES)
            file.write(content)
            file.flush()
            result = verify_home(home)
            assert result.verified, (number, result.checks)


def test_our_reading_of_a_log_is_sqlite_s(killed_home: Path, tmp_path: Path) -> None:
    with snapshot(killed_home) as copied:
        ours = copied.path.read_bytes()
    home = copy_of(killed_home, tmp_path)
    connection = sqlite3.connect(home / DATABASE_NAME)
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()
    assert (home / DATABASE_NAME).read_bytes() == ours


def test_any_bytes_are_a_log_or_none() -> None:
    rng = random.Random(5)
    header = bytes.fromhex("377f0682002de21800001000")
    for _ in range(300):
        assert wal.read(rng.randbytes(rng.randrange(200))) is None
        assert wal.read(header + rng.randbytes(rng.randrange(5000))) is None


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
        "DELETE FROM checkpoints WHERE size = 7",
        "UPDATE entries SET idx = 30 WHERE idx = 20",
        "UPDATE entries SET leaf = CAST(leaf AS TEXT) WHERE idx = 5",
        "UPDATE checkpoints SET note = zeroblob(20) WHERE size = 7",
        "UPDATE meta SET value = '1' WHERE key = 'sqlite'",
        "UPDATE meta SET value = x'ff' WHERE key = 'sqlite'",
        "DELETE FROM meta",
        "INSERT INTO meta VALUES ('more', 'x')",
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


def test_a_tree_head_of_another_key_is_found(tmp_path: Path) -> None:
    world = World()
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True) as store:
        store.append(world.add(world.genesis), world.sign)
        store.append(
            world.add(*world.introductions()),
            lambda size, root: sign_checkpoint(key("impostor"), world.origin, size, root),
        )
    assert failed(verify_home(tmp_path)) == {"checkpoints"}


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
    assert "1 of the entries count for nothing" in result.checks[-1].detail


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
def test_a_long_ledger_fills_many_pages_and_still_rebuilds(tmp_path: Path, appends: int) -> None:
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
    "statement",
    [
        "UPDATE tiles SET hashes = zeroblob(8192) WHERE place = 1",
        "UPDATE tiles SET level = 1 WHERE place = 0",
        "DELETE FROM tiles WHERE place = 0",
        "INSERT INTO tiles SELECT 2, 0, 2, hashes FROM tiles WHERE place = 1",
    ],
)
def test_a_changed_tile_is_named(tiled_home: Path, tmp_path: Path, statement: str) -> None:
    home = copy_of(tiled_home, tmp_path)
    assert altered(home, statement) == {"database file", "tiles"}
    with pytest.raises(CheckFailed, match="tile"):
        LedgerStore.open(home / DATABASE_NAME)


def test_any_changed_byte_is_found_where_tiles_are(tiled_home: Path, tmp_path: Path) -> None:
    rng = random.Random(7)
    home = copy_of(tiled_home, tmp_path)
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        (hashes,) = connection.execute("SELECT hashes FROM tiles WHERE place = 0").fetchone()
    connection.close()
    # The end of a tile lies in pages of its own.
    start = (home / DATABASE_NAME).read_bytes().index(hashes[-2048:])
    offsets = [start + rng.randrange(2048) for _ in range(20)]
    assert undetected(home, DATABASE_NAME, offsets, rng) == []
