"""The store: what was acknowledged is there after any failure, and nothing is half there."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries import Entry, entry_id
from artel.ledger.store import database
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.ledger.tlog.checkpoint import (
    open_checkpoint,
    origin_of,
    parse_checkpoint,
    sign_checkpoint,
)
from artel.ledger.tlog.edge import Edge
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import ENTRIES, Tile, decode_bundle, tile_at, tiles_of
from artel.protocol import merkle
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed, DecodeError, ResourceError, UsageError
from artel.protocol.merkle import inclusion
from leaf_hashes import LeafHashes
from ledger_world import World, key
from places import ROOT, WORLDS


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / DATABASE_NAME


@pytest.fixture
def store(world: World, path: Path) -> Iterator[LedgerStore]:
    """A store with the manifest, accounts and nodes of ``world``."""
    with LedgerStore.open(path, create=True) as store:
        store.append(world.add(world.genesis), world.sign)
        store.append(world.add(*world.introductions()), world.sign)
        yield store


def newcomer(world: World, number: int) -> bytes:
    return entries.account(key(f"newcomer {number}"), world.run).encode()


def assert_holds(store: LedgerStore, leaves: list[bytes]) -> None:
    """The store has exactly these leaves, says so, and says so again when it is opened again."""
    assert list(store.leaves()) == leaves
    assert store.size == len(leaves)
    assert store.root == merkle.root(map(merkle.leaf_hash, leaves))
    head = open_checkpoint(store.latest_note, store.origin, store.genesis.coordinators)
    assert (head.size, head.root) == (store.size, store.root)
    assert (store.path.with_name(CHECKPOINT_NAME)).read_text() == store.latest_note
    store.close()
    with LedgerStore.open(store.path) as again:
        assert (again.size, again.root, again.latest_note) == (
            head.size,
            head.root,
            store.latest_note,
        )
    result = verify_home(store.path.parent)
    assert result.verified, result.checks


def test_appended_entries_are_there_and_can_be_found(world: World, store: LedgerStore) -> None:
    assert store.genesis.run == world.run
    assert store.origin == world.origin
    for index, leaf in enumerate(world.leaves):
        assert store.leaf(index) == leaf
        assert store.index_of(entry_id(leaf)) == index
        assert store.find(entry_id(leaf)[:8].upper()) == [index]
    assert list(store.leaves(2, 4)) == world.leaves[2:4]
    assert list(store.leaves(5, 999)) == world.leaves[5:]
    assert list(store.leaves(9)) == []
    assert store.index_of("ab" * 32) is None
    for index in (-1, 7):
        with pytest.raises(UsageError, match="no entry"):
            store.leaf(index)
    for prefix in ("abc", "xyzxyzxyz", "ab" * 33):
        with pytest.raises(UsageError):
            store.find(prefix)
    assert_holds(store, world.leaves)


def test_reading_goes_on_over_many_pages(world: World, store: LedgerStore) -> None:
    many = [newcomer(world, number) for number in range(600)]
    for start in range(0, 600, 200):
        store.append(many[start : start + 200], world.sign)
    assert list(store.leaves(1)) == world.leaves[1:] + many
    with pytest.raises(UsageError, match="at most 256"):
        store.append([newcomer(world, number) for number in range(600, 857)], world.sign)


def test_an_entry_twice_is_refused_and_nothing_is_added(world: World, store: LedgerStore) -> None:
    new = newcomer(world, 1)
    for batch in ([new, world.leaves[3]], [new, new], [new, world.leaves[0]]):
        with pytest.raises(CheckFailed, match="already"):
            store.append(batch, world.sign)
    assert_holds(store, world.leaves)


def test_leaves_that_are_no_entries_are_refused(world: World, store: LedgerStore) -> None:
    for leaf in (b"", b"{}", b"x" * 9000, newcomer(world, 1) + b" "):
        with pytest.raises(DecodeError):
            store.append([newcomer(world, 1), leaf], world.sign)
    with pytest.raises(UsageError):
        store.append([], world.sign)
    assert_holds(store, world.leaves)


def test_the_first_entry_is_the_manifest(world: World, path: Path) -> None:
    with LedgerStore.open(path, create=True) as store:
        with pytest.raises(CheckFailed, match="manifest"):
            store.append([newcomer(world, 1)], world.sign)
        with pytest.raises(CheckFailed, match="empty"):
            _ = store.genesis
        assert (store.size, store.root, store.latest_note) == (0, merkle.EMPTY_ROOT, "")
        store.append(world.add(world.genesis), world.sign)
        assert_holds(store, world.leaves)


def test_a_signer_that_fails_or_signs_something_else_adds_nothing(
    world: World, store: LedgerStore
) -> None:
    def broken(_size: int, _root: bytes) -> str:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.append([newcomer(world, 1)], broken)
    with pytest.raises(CheckFailed, match="not of this tree"):
        store.append([newcomer(world, 1)], lambda size, root: world.sign(size + 1, root))
    with pytest.raises(DecodeError):
        store.append([newcomer(world, 1)], lambda _size, _root: "signed")
    assert_holds(store, world.leaves)


class Wrapped:
    """A connection with something wrong."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class FlippingConnection(Wrapped):
    """Reads back what was just written with one bit flipped, as bad memory would."""

    def __init__(self, connection: sqlite3.Connection, query: str, at: int) -> None:
        super().__init__(connection)
        self._query, self._at = query, at

    def execute(self, sql: str, parameters: Any = ()) -> Any:
        rows = self._connection.execute(sql, parameters)
        if not sql.startswith(self._query):
            return rows
        *others, last = rows.fetchone()
        flipped = bytearray(last.encode() if isinstance(last, str) else last)
        flipped[self._at] ^= 4
        changed = flipped.decode("latin-1") if isinstance(last, str) else bytes(flipped)
        return SimpleNamespace(fetchone=lambda: (*others, changed))


@pytest.mark.parametrize("at", [0, 1, 2, 3, 40, 66, 67, 200, -1])
def test_a_bit_that_flips_while_storing_is_never_signed(
    world: World, store: LedgerStore, at: int
) -> None:
    sound = store._connection
    flipping = FlippingConnection(sound, "SELECT group_concat", at)
    store._connection = flipping  # type: ignore[assignment]
    signed: list[int] = []
    with pytest.raises(CheckFailed, match="reads back differently"):
        store.append([newcomer(world, 1)], lambda size, _root: str(signed.append(size)))
    store._connection = sound
    assert signed == []
    assert_holds(store, world.leaves)


def test_a_bit_that_flips_in_a_tile_is_never_signed(world: World, store: LedgerStore) -> None:
    many = [newcomer(world, number) for number in range(250)]
    store.append(many[:200], world.sign)
    sound = store._connection
    flipping = FlippingConnection(sound, "SELECT hashes", 5000)
    store._connection = flipping  # type: ignore[assignment]
    signed: list[int] = []
    with pytest.raises(CheckFailed, match="tile/0/000 reads back differently"):
        store.append(many[200:], lambda size, _root: str(signed.append(size)))
    store._connection = sound
    assert signed == []
    assert_holds(store, world.leaves + many[:200])


@pytest.fixture
def with_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ledgers that are made now have a table beside the entries."""
    table = "CREATE TABLE kinds(idx INTEGER PRIMARY KEY, kind TEXT)"
    monkeypatch.setattr(database, "DERIVED", (*database.DERIVED, table))


def write_kinds(connection: sqlite3.Connection, new: Sequence[Entry], first: int) -> None:
    rows = [(first + at, entry.kind) for at, entry in enumerate(new)]
    connection.executemany("INSERT INTO kinds VALUES (?, ?)", rows)


@pytest.mark.usefixtures("with_kinds")
def test_what_follows_from_entries_is_written_with_them_or_not_at_all(
    world: World, path: Path, tmp_path: Path
) -> None:
    first, second, third = world.batches(1)[:3]
    expected = [(at, entries.decode(leaf).kind) for at, leaf in enumerate(world.leaves)]

    def failing(connection: sqlite3.Connection, new: Sequence[Entry], at: int) -> None:
        write_kinds(connection, new, at)
        raise CheckFailed("not with these")

    with LedgerStore.open(path, create=True) as store:
        notes = [store.append(first, world.sign, write_kinds)]
        notes.append(store.append(second, world.sign, write_kinds))
        with pytest.raises(CheckFailed, match="not with these"):
            store.append(third, world.sign, failing)
        found = store.query("SELECT idx, kind FROM kinds WHERE idx >= ? ORDER BY idx", (1,))
        assert found == expected[1 : store.size]
        with LedgerStore.open(tmp_path / "replica" / DATABASE_NAME, create=True) as replica:
            replica.append_replica(first, notes[0], write_kinds)
            with pytest.raises(CheckFailed):
                replica.append_replica([*second, *third], notes[1], write_kinds)
            replica.append_replica(second, notes[1], write_kinds)
            assert replica.query("SELECT * FROM kinds ORDER BY idx") == expected[: store.size]


# --- the tree -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tall(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[LedgerStore, LeafHashes]]:
    """A ledger with tiles of two levels (65,536 entries and some), and its leaf hashes.

    Only the first entries are entries: decoding is not what is tested here.
    """
    world = World()
    path = tmp_path_factory.mktemp("tall") / DATABASE_NAME
    leaves = [world.genesis.encode(), *(b"leaf %d" % number for number in range(65_900))]
    with LedgerStore.open(path, create=True) as store:
        store.append([leaves[0]], world.sign)
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(
                "artel.ledger.store.store.decode",
                lambda leaf: Entry(
                    entry_id(leaf),
                    SimpleNamespace(KIND="account", heads=lambda: ()),
                    Envelope("", b"", ()),
                ),
            )
            patched.setattr("artel.ledger.store.store.os.fsync", lambda _file: None)
            store._connection.execute("PRAGMA synchronous=OFF")
            for start in range(1, len(leaves), 256):
                store.append(leaves[start : start + 256], world.sign)
        yield store, LeafHashes([merkle.leaf_hash(leaf) for leaf in leaves])


def test_roots_and_proofs_are_those_of_the_leaves(tall: tuple[LedgerStore, LeafHashes]) -> None:
    store, naive = tall
    rng = random.Random(1)
    sizes = [1, 2, 255, 256, 257, 511, 512, 65_535, 65_536, 65_537, 65_792, store.size]
    for size in [*sizes, *(rng.randrange(1, store.size) for _ in range(40))]:
        assert store.root_at(size) == root_at(naive, size)
        for index in (0, size - 1, rng.randrange(size)):
            assert inclusion(store, index, size) == inclusion(naive, index, size)
    assert store.root_at(0) == merkle.EMPTY_ROOT
    assert store.root_at(store.size) == store.root
    for level, index in ((0, store.size), (17, 0), (8, store.size // 256), (-1, 0), (3, -1)):
        with pytest.raises(UsageError):
            store.subtree(level, index)
    with pytest.raises(UsageError):
        store.root_at(store.size + 1)


def test_every_tile_of_the_tree_is_served(tall: tuple[LedgerStore, LeafHashes]) -> None:
    store, naive = tall
    for tile in tiles_of(store.size):
        width, level = tile.width, 8 * tile.level
        first = tile.index * 256
        hashes = [naive.subtree(level, first + at) for at in range(width)]
        assert store.tile(tile) == b"".join(hashes)
        part = Tile(tile.level, tile.index, 1 + width // 2)
        assert store.tile(part) == b"".join(hashes[: part.width])
    assert len(store._tiles._rows) == 256, "of 258 full tiles; memory stays bounded"
    for tile in (Tile(ENTRIES, 0), Tile(ENTRIES, 3, 9), tile_at(ENTRIES, 257, store.size)):
        leaves = decode_bundle(store.tile(tile), tile.width)
        assert [merkle.leaf_hash(leaf) for leaf in leaves] == naive.hashes[tile.start : tile.end]
    last = tile_at(0, 257, store.size)
    for outside in (
        Tile(0, 257, last.width + 1),
        Tile(0, 258, 1),
        Tile(2, 0, 2),
        Tile(ENTRIES, 9999),
    ):
        with pytest.raises(UsageError):
            store.tile(outside)


def test_notes_are_found_by_size(world: World, store: LedgerStore) -> None:
    assert store.note_at(7) == store.latest_note
    assert parse_checkpoint(store.note_at(1)).size == 1
    assert [store.note_at(size) for size in (0, 2, 8, 1 << 60)] == ["", "", "", ""]


def test_a_tile_that_changes_on_the_disk_gets_into_no_proof(world: World, tmp_path: Path) -> None:
    path = world.write(tmp_path)
    many = [newcomer(world, number) for number in range(512)]
    with LedgerStore.open(path) as store:
        for start in range(0, 512, 128):
            store.append(many[start : start + 128], world.sign)
        with sqlite3.connect(path) as other:
            other.execute("UPDATE tiles SET hashes = zeroblob(8192) WHERE idx = 1")
        other.close()
        hashes = [merkle.leaf_hash(leaf) for leaf in world.leaves + many]
        assert inclusion(store, 5, 100) == inclusion(LeafHashes(hashes), 5, 100)
        for action in (
            lambda: inclusion(store, 300, 500),
            lambda: store.tile(Tile(0, 1)),
            lambda: store.leaf(300),
        ):
            with pytest.raises(CheckFailed, match="tile/0/001"):
                action()
    with pytest.raises(CheckFailed, match="not what was signed"):
        LedgerStore.open(path)
    assert not verify_home(tmp_path).verified


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET packed = zeroblob(700) WHERE idx = 40",
        "UPDATE entries SET packed = 'text' WHERE idx = 40",
        "UPDATE entries SET packed = (SELECT packed FROM entries WHERE idx = 41) WHERE idx = 40",
        "DELETE FROM entries WHERE idx = 40",
    ],
)
def test_an_entry_that_changes_on_the_disk_gets_to_nobody(
    world: World, tmp_path: Path, damage: str
) -> None:
    """Also one that lies so far back that opening the ledger does not read it."""
    path = world.write(tmp_path)
    with LedgerStore.open(path) as store:
        store.append([newcomer(world, number) for number in range(256)], world.sign)
    with sqlite3.connect(path) as other:
        other.execute(damage)
    other.close()
    with LedgerStore.open(path) as store:
        assert list(store.leaves(256)) == [newcomer(world, number) for number in range(235, 256)]
        for action in (
            lambda: store.leaf(40),
            lambda: list(store.leaves()),
            lambda: store.tile(Tile(ENTRIES, 0)),
        ):
            with pytest.raises(CheckFailed, match="damaged"):
                action()
    assert not verify_home(tmp_path).verified


def test_an_id_that_leads_to_another_entry_is_noticed(world: World, store: LedgerStore) -> None:
    with sqlite3.connect(store.path) as other:
        other.execute("UPDATE ids SET id = 0 WHERE idx = 3")
    other.close()
    assert store.index_of("00" * 32) is None
    assert store.find("00" * 8) == []
    failed = [check.name for check in verify_home(store.path.parent).checks if not check.ok]
    assert failed == ["entries"], "they can all be read: the rest is compared"


def test_an_edge_is_the_one_that_grew(tall: tuple[LedgerStore, LeafHashes]) -> None:
    store, naive = tall

    def hashes(level: int, index: int, count: int) -> Iterator[bytes]:
        return (naive.subtree(8 * level, at) for at in range(index, index + count))

    grown = Edge()
    for size, digest in enumerate(naive.hashes, 1):
        grown.append(digest)
        if size % 256 in (0, 1, 255) or size == store.size:
            found = Edge.of(size, hashes)
            assert found.root() == grown.root()
            assert found.append(bytes(32)) == grown.copy().append(bytes(32))


def test_readers_do_not_wait_for_an_append(world: World, store: LedgerStore) -> None:
    seen: list[tuple[int, bytes, int]] = []

    def look() -> None:
        seen.append((store.size, store.leaf(6), len(inclusion(store, 3, 7))))

    def sign(size: int, root: bytes) -> str:
        reader = threading.Thread(target=look)  # while the append holds its transaction
        reader.start()
        reader.join(60)
        return world.sign(size, root)

    store.append([newcomer(world, 1)], sign)
    assert seen == [(7, world.leaves[6], 3)]


def test_a_next_term_continues_the_same_tree(world: World, tmp_path: Path) -> None:
    path = world.write(tmp_path)
    origin = origin_of(world.run, 1)
    with LedgerStore.open(path) as store:
        store.begin_term(1)
        with pytest.raises(CheckFailed, match="not of this tree"):
            store.append([newcomer(world, 1)], world.sign)
        store.append([newcomer(world, 1)], partial(sign_checkpoint, world.coordinator, origin))
        assert store.origin == origin
        assert open_checkpoint(store.latest_note, origin, [world.coordinator.key]).size == 22
    assert verify_home(tmp_path).verified
    with LedgerStore.open(path) as store, pytest.raises(UsageError, match="in term 1 already"):
        store.begin_term(0)
    with LedgerReader.of(path.parent) as copy:
        assert copy.origin == origin


@pytest.mark.parametrize(
    "change", ["CREATE TABLE more(x)", "DROP TABLE tiles", "CREATE VIEW more AS SELECT 1"]
)
def test_another_format_is_named_and_left_alone(path: Path, change: str) -> None:
    LedgerStore.open(path, create=True).close()
    with sqlite3.connect(path) as other:
        other.execute(change)
    other.close()
    before = path.read_bytes()
    with pytest.raises(CheckFailed, match="another format") as caught:
        LedgerStore.open(path)
    assert "--home" in caught.value.hint
    assert path.read_bytes() == before


# --- full disks and broken ones -------------------------------------------------------------------


def test_a_full_disk_adds_nothing_and_the_store_goes_on(world: World, store: LedgerStore) -> None:
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count={pages}")
    many = [newcomer(world, number) for number in range(50)]
    with pytest.raises(ResourceError, match="full") as caught:
        store.append(many, world.sign)
    assert "space" in caught.value.hint
    assert list(store.leaves()) == world.leaves
    store._connection.execute("PRAGMA max_page_count=1000000")
    store.append(many, world.sign)
    assert_holds(store, world.leaves + many)


def test_no_room_for_the_checkpoint_file_adds_nothing(
    world: World, store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(ResourceError, match="No space left"):
            store.append([newcomer(world, 1)], world.sign)
    assert [path.name for path in store.path.parent.glob(f"*{CHECKPOINT_NAME}*")] == [
        CHECKPOINT_NAME
    ]
    assert_holds(store, world.leaves)


@pytest.mark.parametrize("statement", ["BEGIN", "INSERT INTO ent", "INSERT INTO che", "COMMIT"])
def test_an_input_output_error_at_any_statement_adds_nothing(
    world: World, store: LedgerStore, statement: str
) -> None:
    class Failing(Wrapped):
        def execute(self, sql: str, parameters: Any = ()) -> Any:
            if sql.startswith(statement):
                raise sqlite3.OperationalError("disk I/O error")
            return self._connection.execute(sql, parameters)

    sound = store._connection
    store._connection = Failing(sound)  # type: ignore[assignment]
    with pytest.raises(ResourceError, match="disk I/O error"):
        store.append([newcomer(world, 1)], world.sign)
    store._connection = sound
    assert list(store.leaves()) == world.leaves
    store.append([newcomer(world, 2)], world.sign)
    assert_holds(store, [*world.leaves, newcomer(world, 2)])


def test_a_failure_to_publish_the_checkpoint_is_repaired_on_opening(
    world: World, store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(_source: Path, _target: Path) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patched:
        patched.setattr("artel.ledger.store.store.os.replace", failing)
        with pytest.raises(ResourceError):
            store.append([newcomer(world, 1)], world.sign)
    store.close()
    leaves = [*world.leaves, newcomer(world, 1)]
    assert verify_home(store.path.parent).verified  # one step behind is not damage
    with LedgerStore.open(store.path) as again:
        assert_holds(again, leaves)


def test_a_folder_that_cannot_be_made_is_a_resource_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError):
        LedgerStore.open(tmp_path / "file" / "home" / DATABASE_NAME, create=True)


# --- opening --------------------------------------------------------------------------------------


def test_opening_what_is_not_there_or_of_another_run(world: World, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no ledger"):
        LedgerStore.open(tmp_path / DATABASE_NAME)
    path = world.write(tmp_path)
    with pytest.raises(UsageError, match="ledger of run"):
        LedgerStore.open(path, run="ab" * 32)
    LedgerStore.open(path, run=world.run).close()


def test_a_file_that_is_no_database_is_refused(path: Path) -> None:
    path.write_bytes(b"SQLite format 4\0" + bytes(5000))
    with pytest.raises(CheckFailed, match="damaged"):
        LedgerStore.open(path)
    path.unlink()
    with sqlite3.connect(path) as foreign:
        foreign.execute("CREATE TABLE meta(key, value)")
    with pytest.raises(CheckFailed, match="format"):
        LedgerStore.open(path)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE entries SET packed = zeroblob(700) WHERE idx = 4",
        "UPDATE entries SET packed = 'text' WHERE idx = 4",
        "DELETE FROM entries WHERE idx = 4",
        "DELETE FROM entries WHERE idx = 20",
        "DELETE FROM checkpoints WHERE size = 21",
        "UPDATE checkpoints SET lines = 'x' WHERE size = 21",
        "UPDATE checkpoints SET lines = x'' WHERE size = 21",
        "UPDATE checkpoints SET lines = (SELECT lines FROM checkpoints WHERE size = 1) "
        "WHERE size = 21",
        "UPDATE checkpoints SET term = 1 WHERE size = 21",
        "DROP TABLE checkpoints",
    ],
)
def test_a_changed_ledger_is_not_opened_for_appending(
    world: World, tmp_path: Path, damage: str
) -> None:
    path = world.write(tmp_path)
    with sqlite3.connect(path) as connection:
        connection.execute(damage)
    connection.close()
    with pytest.raises((CheckFailed, DecodeError)):
        LedgerStore.open(path)
    assert not verify_home(tmp_path).verified


def test_a_database_that_went_back_in_time_is_not_opened(world: World, tmp_path: Path) -> None:
    path = world.write(tmp_path, rounds=1)
    shutil.copy(path, tmp_path / "backup")
    with LedgerStore.open(path) as store:
        store.append([newcomer(world, 1)], world.sign)
    shutil.copy(tmp_path / "backup", path)
    with pytest.raises(CheckFailed, match="entries are lost"):
        LedgerStore.open(path)
    assert not verify_home(tmp_path).verified


def test_two_stores_on_one_file_do_not_mix(world: World, store: LedgerStore) -> None:
    with LedgerStore.open(store.path) as second:
        second.append([newcomer(world, 1)], world.sign)
    with pytest.raises(CheckFailed, match="another process"):
        store.append([newcomer(world, 2)], world.sign)
    assert verify_home(store.path.parent).verified


def test_threads_append_one_after_another(world: World, store: LedgerStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        notes = list(pool.map(lambda n: store.append([newcomer(world, n)], world.sign), range(40)))
    assert sorted(parse_checkpoint(note).size for note in notes) == list(range(8, 48))
    assert {newcomer(world, n) for n in range(40)} == set(store.leaves(7))
    assert_holds(store, list(store.leaves()))


# --- replicas -------------------------------------------------------------------------------------


def test_a_replica_follows_from_head_to_head(world: World, tmp_path: Path) -> None:
    source_path = world.write(tmp_path / "coordinator")
    with (
        LedgerStore.open(source_path) as source,
        LedgerStore.open(tmp_path / "node" / DATABASE_NAME, create=True) as replica,
    ):
        for note in filter(None, map(source.note_at, range(1, source.size + 1))):
            page = source.leaves(replica.size, parse_checkpoint(note).size)
            replica.append_replica(list(page), note)
        replica.append_replica([], source.latest_note)
        assert replica.root == source.root
        assert_holds(replica, world.leaves)


def test_a_replica_refuses_notes_that_are_not_of_its_tree(world: World, tmp_path: Path) -> None:
    batches = world.batches(1)
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True) as replica:
        first = world.sign(1, merkle.leaf_hash(batches[0][0]))
        replica.append_replica(batches[0], first)
        good = merkle.root(map(merkle.leaf_hash, world.leaves[:7]))
        refused = {
            "not signed": sign_checkpoint(key("impostor"), world.origin, 7, good),
            "covers 8 entries": world.sign(8, good),
            "another ledger": world.sign(7, bytes(32)),
            "not signed by any": World(name="other").sign(7, good),
        }
        for reason, note in refused.items():
            with pytest.raises(CheckFailed, match=reason):
                replica.append_replica(batches[1], note)
        with pytest.raises(DecodeError):
            replica.append_replica(batches[1], "note")
        with pytest.raises(CheckFailed, match="another ledger"):
            replica.append_replica([], world.sign(1, bytes(32)))
        with pytest.raises(CheckFailed, match="covers 7 entries"):
            replica.append_replica([], world.sign(7, good))
        assert_holds(replica, batches[0])


def test_a_reader_sees_one_state_and_leaves_nothing_behind(world: World, tmp_path: Path) -> None:
    path = world.write(tmp_path)
    with LedgerReader.of(tmp_path, world.run) as reader:
        assert list(reader.leaves()) == world.leaves
        assert (reader.term, reader.origin) == (0, world.origin)
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT_NAME, DATABASE_NAME]
    with LedgerStore.open(path) as store:
        store.append([newcomer(world, 1)], world.sign)
        with LedgerReader.of(tmp_path) as reader:
            store.append([newcomer(world, number) for number in range(2, 200)], world.sign)
            assert reader.size == 22
            assert list(reader.leaves()) == [*world.leaves, newcomer(world, 1)]
            assert reader.query("SELECT count(*) FROM entries") == [(22,)]
        assert store.size == 220
    assert sorted(os.listdir(tmp_path)) == [CHECKPOINT_NAME, DATABASE_NAME]
    with pytest.raises(UsageError, match="ledger of run"), LedgerReader.of(tmp_path, "ab"):
        pass


# --- SIGKILL --------------------------------------------------------------------------------------

APPENDER = """
import sys
from pathlib import Path
from ledger_world import World, key
from artel.ledger import entries
from artel.ledger.entries import Entry, entry_id
from artel.ledger.store.store import LedgerStore

world, generation = World(), sys.argv[2]
with LedgerStore.open(Path(sys.argv[1])) as store:
    for number in range(100_000):
        batch = [
            entries.account(key(f"{generation} {number} {i}"), world.run).encode()
            for i in range(1 + number % 3)
        ]
        store.append(batch, world.sign)
        print(*map(entry_id, batch), flush=True)
"""


def test_what_was_acknowledged_survives_sigkill(world: World, tmp_path: Path) -> None:
    path = world.write(tmp_path, rounds=1)
    acknowledged: list[str] = []
    for generation in range(4):
        child = subprocess.Popen(
            [sys.executable, "-c", APPENDER, str(path), str(generation)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=WORLDS.parent,
            env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{WORLDS}"},
        )
        assert child.stdout is not None
        for _ in range(9 + 4 * generation):
            acknowledged += child.stdout.readline().split()
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()  # what readline has buffered included, as communicate is not
        child.wait(30)
        child.stdout.close()
        # What it managed to say between our last look and its end; a cut line was not said.
        acknowledged += [
            name for line in rest.splitlines(True) if line[-1] == "\n" for name in line.split()
        ]
        assert child.returncode == -signal.SIGKILL
        assert verify_home(tmp_path).verified  # even before anybody recovers it
        with LedgerStore.open(path) as store:
            held = [entry_id(leaf) for leaf in store.leaves()]
            assert len(set(held)) == len(held)
            positions = [held.index(name) for name in acknowledged]
            assert positions == sorted(positions)
            # At most the one append that was under way is there without having been said.
            assert len(held) - len(world.leaves) - len(acknowledged) <= 3 * (generation + 1)
    with LedgerStore.open(path) as store:
        assert_holds(store, list(store.leaves()))
