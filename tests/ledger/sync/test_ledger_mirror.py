"""Copies of a log as static files, and homes that are restored from them: files, HTTP, kills."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import closing, nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from artel.coordinator.sequencer import Sequencer
from artel.ledger.entries import decode
from artel.ledger.entries.documents import document_of, path_of
from artel.ledger.fold.effects import Fold
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.ledger.sync import export
from artel.ledger.sync import mirror as mirrors
from artel.ledger.sync.audit import audit
from artel.ledger.sync.client import remote_view
from artel.ledger.sync.fork import SPLIT_VIEW_FILE
from artel.ledger.sync.holding import hold
from artel.ledger.sync.mirror import Mirrored, mirror
from artel.ledger.sync.offline import verify_evidence
from artel.ledger.sync.restore import restore
from artel.ledger.sync.source import (
    CERTIFIED_PATH,
    FolderSource,
    Holder,
    HttpSource,
)
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import origin_of, parse_checkpoint
from artel.ledger.tlog.cosignature import WITNESS_PREFIX
from artel.ledger.tlog.edge import perfect
from artel.ledger.tlog.note import Note, VerifierKey
from artel.ledger.tlog.tiles import (
    ENTRIES,
    Tile,
    decode_tile,
    edge_of,
    encode_bundle,
    level_tiles,
    tiles_of,
)
from artel.protocol.dsse import Leaf
from artel.protocol.errors import (
    EXIT_OK,
    ArtelError,
    CheckFailed,
    ResourceError,
    Unreachable,
    UsageError,
)
from artel.protocol.identity import HomeLock
from client_world import cosigned, served, write_key
from command_world import group
from ledger_world import World, key
from log_server import LogServer, serving
from places import ROOT
from tlog_world import leaves_of, signed, tree_of, write_file, write_log

main = group("ledger")

ROUNDS = 100  # 7 + 7 * 100 entries: two full tiles, and most of a third
SIZES = [1, 7, 255, 256, 257, 511, 512, 600]


@pytest.fixture(scope="module")
def world() -> World:
    world = World(total=200, ledger={"witnesses": 2})
    world.add(*world.start)
    for number in range(ROUNDS):
        world.add(*world.round(number))
    return world


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def append(world: World, store: LedgerStore, size: int, leaves: list[bytes] | None = None) -> None:
    """Let a log grow to ``size`` entries, with a checkpoint every hundred of them or so."""
    leaves = world.leaves if leaves is None else leaves
    while store.size < size:
        store.append(leaves[store.size : min(size, store.size + 100)], world.sign)


def write_home(world: World, home: Path, size: int, leaves: list[bytes] | None = None) -> Path:
    with LedgerStore.open(home / DATABASE_NAME, create=True, run=world.run) as store:
        append(world, store, size, leaves)
    return home


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LogServer]:
    path = tmp_path / "coordinator" / DATABASE_NAME
    with LedgerStore.open(path, create=True, run=world.run) as store:
        append(world, store, 7)
        with serving(world, store) as log:
            yield log


def forked(world: World, at: int) -> list[bytes]:
    """The same history up to entry ``at``, and then another one."""
    other = world.dispute(world.owners[0], world.earned(world.members[1], 0), "another")
    return [*world.leaves[:at], other.encode(), *world.leaves[at + 1 :]]


def vkey(world: World) -> str:
    return VerifierKey(world.origin, world.coordinator.public).encode()


def tree_files(size: int) -> set[str]:
    return {tile.path for tile in (*tiles_of(size), *level_tiles(ENTRIES, size))}


def files_in(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def copied(source: Holder, folder: Path, run: str = "", **more: Any) -> Mirrored:
    """The mirror of what a source shows."""
    with remote_view(source, run) as view:
        return mirror(view, folder, **more)


# --- mirrors --------------------------------------------------------------------------------------


def test_a_mirror_follows_a_growing_log_and_is_a_whole_log_each_time(
    world: World, server: LogServer, tmp_path: Path
) -> None:
    folder, told = tmp_path / "public", list[tuple[int, int]]()
    before = 0
    for size in SIZES:
        if size > server.store.size:
            append(world, server.store, size)
        if size < 7:
            continue
        told.clear()
        found = copied(HttpSource(server.url), folder, progress=lambda *said: told.append(said))
        assert told[-1] == (len(told), len(told))
        assert (found.before, found.size, found.behind) == (before, size, 0)
        assert found.root == server.store.root
        report = audit(FolderSource(folder), [vkey(world)], full=True)
        assert (report.size, report.entries) == (size, size)
        assert tree_files(size) <= files_in(folder)
        for path in tree_files(size):
            assert (folder / path).read_bytes() == server.store.tile(Tile.parse(path))
        assert copied(HttpSource(server.url), folder).files == 0
        before = size
    # Only partial tiles without their full tile are left from earlier, and nothing else.
    named = {path_of(document_of(leaf)) for leaf in world.leaves[:600] if isinstance(leaf, Leaf)}
    rest = files_in(folder) - tree_files(600) - {"checkpoint"}
    rest -= {path for path in rest if path.startswith("credit/")}
    assert named <= rest
    rest -= named
    assert all(
        path.startswith(("tile/1/000.p/", "tile/entries/002.p/")) or "/002.p/" in path
        for path in rest
    )


def test_any_web_server_can_serve_a_mirror(
    world: World, server: LogServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    append(world, server.store, 300)
    folder = tmp_path / "public"
    assert main(["mirror", str(folder), "--from", server.url, "--json"]) == EXIT_OK
    facts = json.loads(capsys.readouterr().out)
    assert (facts["size"], facts["root"]) == (300, server.store.root.hex())
    with served(folder) as url:
        assert audit(HttpSource(url), [vkey(world)], full=True).size == 300
        again = tmp_path / "again"  # a mirror of the mirror
        assert main(["mirror", str(again), "--from", url, "--run", world.run]) == EXIT_OK
        assert files_in(again) == files_in(folder)
        assert main(["shares", "--from", url, "--json"]) == EXIT_OK


class Watched(FolderSource):
    """A folder that counts what is asked for, and that fails at the n-th file."""

    def __init__(self, folder: Path, fail_at: int = 0, certified: str = "") -> None:
        super().__init__(folder)
        self.fail_at, self.certified = fail_at, certified
        self.asked: list[str] = []

    def get(self, path: str, skip: int = 0) -> bytes:
        if path == CERTIFIED_PATH:
            return self.certified.encode() if self.certified else super().get(path, skip)
        self.asked.append(path)
        if len(self.asked) == self.fail_at:
            raise Unreachable("the cable is out")
        return super().get(path, skip)


def tiles_folder(world: World, folder: Path, size: int, leaves: list[bytes] | None = None) -> Path:
    """The log as static files, not made by the code under test."""
    leaves = (world.leaves if leaves is None else leaves)[:size]
    tree = tree_of(leaves)
    write_log(folder, leaves, signed(tree, size, world.origin, world.coordinator))
    return folder


class Far(FolderSource):
    """A source to which every question costs a way there and back."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.trips, self.brought = 0, dict[str, bytes]()

    def get(self, path: str, skip: int = 0) -> bytes:
        if path not in self.brought:
            self.trips += 1
            return super().get(path, skip)
        return self.brought.pop(path)[skip:]

    def bring(self, *paths: str) -> None:
        self.trips += 1
        self.brought |= {path: super(Far, self).get(path) for path in paths}


def test_documents_are_asked_for_several_at_once(world: World, tmp_path: Path) -> None:
    far = Far(tiles_folder(world, tmp_path / "log", 500))
    copied(far, tmp_path / "copy", run=world.run)
    documents = len(files_in(tmp_path / "copy" / "document"))
    tiles = len(tree_files(500))
    assert documents > 50
    assert far.trips < tiles + documents / 2
    assert not far.brought


def test_a_mirror_that_is_interrupted_anywhere_goes_on(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, source = tmp_path / "public", tmp_path / "source"
    copied(FolderSource(tiles_folder(world, source, 300)), folder)
    tiles_folder(world, source, 600)
    left = 0

    def write(path: Path, data: bytes, *, durable: bool = False) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise ResourceError("the disk is full")
        export.write_file(path, data, durable=durable)

    monkeypatch.setattr(mirrors, "write_file", write)
    for fail_at in (*range(1, 100, 9), *range(100, 1000, 25)):
        copy = tmp_path / f"copy-{fail_at}"
        shutil.copytree(folder, copy)
        left = fail_at
        try:
            files = copied(FolderSource(source), copy).files
        except ResourceError:
            done = parse_checkpoint((copy / "checkpoint").read_text()).size  # 600: credit is last
            assert audit(FolderSource(copy), [vkey(world)], full=True).size == done in (300, 600)
            left = 0
            assert copied(FolderSource(source), copy).files < 1000
            assert audit(FolderSource(copy), [vkey(world)], full=True).size == 600
        else:
            break
    assert fail_at > files > 50


def test_what_a_power_cut_left_half_written_is_fetched_again(world: World, tmp_path: Path) -> None:
    folder, source = tmp_path / "public", tiles_folder(world, tmp_path / "source", 600)
    named = path_of(next(filter(None, map(document_of, world.leaves))))
    tiles = ("tile/entries/000", "tile/0/001", "tile/1/000.p/2", "tile/entries/002.p/88")
    for path in (*tiles, named):
        shutil.rmtree(folder, ignore_errors=True)
        copied(FolderSource(source), folder)
        (folder / "checkpoint").unlink()
        good = (folder / path).read_bytes()
        for bad in (b"", good[:-1], good + b"x", bytes(len(good))):
            (folder / path).write_bytes(bad)
            copied(FolderSource(source), folder)
            assert (folder / path).read_bytes() == good
            assert audit(FolderSource(folder), [vkey(world)], full=True).size == 600
            (folder / "checkpoint").unlink()


def test_a_mirror_never_goes_back(world: World, tmp_path: Path) -> None:
    folder = tmp_path / "public"
    copied(FolderSource(tiles_folder(world, tmp_path / "new", 600)), folder)
    before = {path: (folder / path).read_bytes() for path in files_in(folder)}
    found = copied(FolderSource(tiles_folder(world, tmp_path / "old", 300)), folder)
    assert (found.size, found.behind, found.files) == (600, 300, 0)
    assert {path: (folder / path).read_bytes() for path in files_in(folder)} == before


@pytest.mark.parametrize("size", [300, 500, 650])
def test_another_history_is_refused_and_proven(
    world: World, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "public"
    copied(FolderSource(tiles_folder(world, tmp_path / "a", 500)), folder)
    before = {path: (folder / path).read_bytes() for path in files_in(folder)}
    other = tiles_folder(world, tmp_path / "b", size, forked(world, 290))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other cache"))
    with pytest.raises(CheckFailed, match="signed both"):
        copied(FolderSource(other), folder)
    _, culprit = verify_evidence((folder / SPLIT_VIEW_FILE).read_bytes())
    assert culprit.encode() == vkey(world)
    (folder / SPLIT_VIEW_FILE).unlink()
    assert {path: (folder / path).read_bytes() for path in files_in(folder)} == before


@pytest.mark.parametrize("path", sorted(tree_files(600)))
def test_no_wrong_file_gets_into_a_mirror(world: World, tmp_path: Path, path: str) -> None:
    source, folder = tiles_folder(world, tmp_path / "source", 600), tmp_path / "public"
    data = bytearray((source / path).read_bytes())
    data[len(data) // 2] ^= 1
    (source / path).write_bytes(data)
    try:
        copied(FolderSource(source), folder)
    except CheckFailed:
        assert not folder.exists()
    else:  # what the entries give is computed
        assert audit(FolderSource(folder), [vkey(world)], full=True).size == 600


def test_only_signed_checkpoints_of_the_run_are_taken(world: World, tmp_path: Path) -> None:
    source, folder = tiles_folder(world, tmp_path / "source", 300), tmp_path / "public"
    tree = tree_of(world.leaves[:300])
    thief = key("thief")
    for text in (
        signed(tree, 300, world.origin, thief),
        signed(tree, 300, origin_of("0" * 64), world.coordinator),
        signed(tree, 300, "example.com/log", world.coordinator),
        "nonsense",
    ):
        (source / "checkpoint").write_text(text)
        with pytest.raises(ArtelError):
            copied(FolderSource(source), folder)
        assert not folder.exists() or not files_in(folder)
    (source / "checkpoint").write_text(signed(tree, 300, world.origin, world.coordinator))
    with pytest.raises(CheckFailed, match="not 000000000000"):
        copied(FolderSource(source), folder, run="0" * 64)
    assert copied(FolderSource(source), folder, run=world.run).size == 300


def test_a_folder_with_other_things_in_it_is_left_alone(world: World, tmp_path: Path) -> None:
    source, folder = tiles_folder(world, tmp_path / "source", 300), tmp_path / "photos"
    folder.mkdir()
    (folder / "cat.jpg").write_bytes(b"meow")
    with pytest.raises(UsageError, match="no log"):
        copied(FolderSource(source), folder)
    assert files_in(folder) == {"cat.jpg"}
    with pytest.raises(UsageError, match="is a file"):
        copied(FolderSource(source), folder / "cat.jpg")
    log = tmp_path / "other"
    write_log(log, leaves_of(10))
    with pytest.raises(ArtelError):
        copied(FolderSource(source), log)
    assert parse_checkpoint((log / "checkpoint").read_text()).size == 10


def test_the_certified_checkpoint_comes_along_when_it_fits(world: World, tmp_path: Path) -> None:
    source, folder = tiles_folder(world, tmp_path / "source", 300), tmp_path / "public"
    tree = tree_of(world.leaves[:300])
    certified = cosigned(signed(tree, 250, world.origin, world.coordinator), *world.members[:2])
    assert copied(Watched(source, certified=certified), folder).certified == 250
    assert (folder / CERTIFIED_PATH).read_text() == certified
    wrong = tree_of(forked(world, 100)[:300])
    bad = cosigned(signed(wrong, 260, world.origin, world.coordinator), *world.members[:2])
    with pytest.raises(CheckFailed, match="two histories"):
        copied(Watched(source, certified=bad), folder)
    with pytest.raises(CheckFailed):
        unsigned = cosigned(signed(tree, 260, world.origin, key("thief")), *world.members[:2])
        copied(Watched(source, certified=unsigned), folder)
    assert (folder / CERTIFIED_PATH).read_text() == certified


@pytest.mark.parametrize("over", ["a folder", "any web server", "one that forbids"])
def test_the_certified_checkpoint_of_a_mirror_is_read(
    world: World,
    server: LogServer,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    over: str,
) -> None:
    append(world, server.store, 300)
    append(world, server.store, 310)
    server.certified = cosigned(server.store.note_at(300), *world.members[:2])
    folder = tmp_path / "public"
    assert copied(HttpSource(server.url), folder).certified == 300
    with served(folder, forbidding=over == "one that forbids") as url:
        target = str(folder) if over == "a folder" else url
        capsys.readouterr()
        assert main(["status", "--from", target, "--json"]) == EXIT_OK
        facts = json.loads(capsys.readouterr().out)
        assert (facts["certified_size"], facts["size"]) == (300, 310)
        again = tmp_path / "again"
        assert copied(hold(target)[0], again).certified == 300
        assert (again / CERTIFIED_PATH).read_bytes() == (folder / CERTIFIED_PATH).read_bytes()
        # It is verified like every note.
        stolen = signed(tree_of(world.leaves[:305]), 305, world.origin, key("thief"))
        (folder / CERTIFIED_PATH).write_text(cosigned(stolen, *world.members[:2]))
        with pytest.raises(CheckFailed, match="not signed"):
            main(["status", "--from", target])
        other = tree_of(forked(world, 100)[:305])
        split = signed(other, 305, world.origin, world.coordinator)
        (folder / CERTIFIED_PATH).write_text(cosigned(split, *world.members[:2]))
        with pytest.raises(CheckFailed, match="two histories"):
            main(["status", "--from", target])
        (folder / CERTIFIED_PATH).write_bytes(b"\xff")
        with pytest.raises(CheckFailed, match="not UTF-8"):
            main(["status", "--from", target])


def test_cosignatures_that_come_later_are_added(world: World, tmp_path: Path) -> None:
    source, folder = tiles_folder(world, tmp_path / "source", 300), tmp_path / "public"
    text = (source / "checkpoint").read_text()
    for member in world.members:
        (source / "checkpoint").write_text(cosigned(text, member))
        copied(FolderSource(source), folder)
    assert (folder / "checkpoint").read_text().count("artel/witness/") == 3


def test_a_size_that_is_only_claimed_takes_no_memory(world: World, tmp_path: Path) -> None:
    source, size, edge = tmp_path / "source", 1 << 28, bytes(16 * 32)
    signed_head = world.sign(size, perfect(decode_tile(edge, 16)))
    bundle = encode_bundle([world.leaves[0], *[b"x"] * 255])
    for path, data in (
        ("checkpoint", signed_head.encode()),
        (edge_of(size)[0].path, edge),
        (Tile(ENTRIES, 0).path, bundle),
    ):
        write_file(source, path, data)
    tracemalloc.start()
    try:
        with pytest.raises(CheckFailed, match="has no tile/1/000"):
            copied(FolderSource(source), tmp_path / "public")
        assert tracemalloc.get_traced_memory()[1] < 32 << 20  # a bundle can have 16 MiB
    finally:
        tracemalloc.stop()


def spoiled(text: str) -> str:
    """The note with lines of its witnesses that none of them made, of a time that never comes."""
    parsed = note.parse(text)
    lines = [
        replace(line, signature=(1 << 40).to_bytes(8, "big") + bytes(64))
        if line.name.startswith(WITNESS_PREFIX)
        else line
        for line in parsed.signatures
    ]
    return Note(parsed.text, tuple(lines)).encode()


@pytest.mark.parametrize("name", ["checkpoint", CERTIFIED_PATH])
def test_lines_that_nobody_signed_neither_stay_in_a_mirror_nor_keep_others_out(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    source, folder = tiles_folder(world, tmp_path / "source", 300), tmp_path / "public"
    plain = signed_at(world, 300)
    good = cosigned(plain, *world.members[:2])
    strangers = [key(f"stranger {number}") for number in range(98)]

    def certified() -> int:
        capsys.readouterr()
        assert main(["status", "--from", str(folder), "--json"]) == EXIT_OK
        return int(json.loads(capsys.readouterr().out)["certified_size"])

    def mirrored(text: str) -> str:
        (source / name).write_text(text)
        copied(FolderSource(source), folder)
        return (folder / name).read_text() if (folder / name).exists() else ""

    for known, bad in ((0, spoiled(good)), (300, cosigned(plain, *strangers))):
        assert "AAAAAAAAAA" not in mirrored(bad)
        assert certified() == known, "what is known to be certified stays"
        assert set(note.parse(good).signatures) <= set(note.parse(mirrored(good)).signatures)
        assert certified() == 300
    mirrored(spoiled(good))
    assert certified() == 300
    # One that holds such lines already is read, and mended.
    for bad in (spoiled(good), cosigned(plain, *strangers)):
        for held in ("checkpoint", CERTIFIED_PATH):
            (folder / held).write_text(bad)
        assert certified() == 0
        mirrored(good)
        assert certified() == 300


def test_a_newer_certified_checkpoint_that_strangers_cosigned_does_not_stay(
    world: World, tmp_path: Path
) -> None:
    source, folder = tiles_folder(world, tmp_path / "source", 300), tmp_path / "public"
    certified = cosigned(signed_at(world, 250), *world.members[:2])
    worthless = cosigned(signed_at(world, 300), key("stranger"))
    for shown in (certified, worthless, certified):
        copied(Watched(source, certified=shown), folder)
        assert (folder / CERTIFIED_PATH).read_text() == certified


def test_following_goes_on_until_it_is_interrupted(
    world: World, server: LogServer, tmp_path: Path
) -> None:
    folder = tmp_path / "public"
    command = [sys.executable, "-m", "artel", "ledger", "mirror", str(folder)]
    with subprocess.Popen(
        [*command, "--from", server.url, "--follow"],
        cwd=ROOT,
        # A shell that runs this suite in the background has it ignore SIGINT, children included.
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    ) as process:
        try:
            for size in (7, 300, 700):
                append(world, server.store, size)
                wait_for(partial(holds, folder, size))
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 130
        finally:
            process.kill()
    assert audit(FolderSource(folder), [vkey(world)], full=True).size == 700


def holds(folder: Path, size: int) -> bool:
    path = folder / "checkpoint"
    return path.exists() and parse_checkpoint(path.read_text()).size == size


def wait_for(done: Callable[[], bool], seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.05)


# --- restoring ------------------------------------------------------------------------------------


def sound(home: Path, size: int) -> None:
    """The ledger of a home holds, to the last byte, and has this many entries."""
    found = verify_home(home)
    assert found.verified, [check for check in found.checks if not check.ok]
    assert found.size == size


def contents(home: Path) -> dict[str, bytes]:
    return {path: (home / path).read_bytes() for path in files_in(home) if path != "lock"}


async def test_a_coordinator_that_lost_its_disk_goes_on_with_a_nodes_copy(
    world: World, server: LogServer, tmp_path: Path
) -> None:
    append(world, server.store, 600)
    node, home = tmp_path / "node", tmp_path / "new-disk"
    copied(HttpSource(server.url), node)
    certified = cosigned(server.store.note_at(507), *world.members[:2])
    (node / "checkpoint").write_text(cosigned(server.store.latest_note, *world.members[:2]))
    replica = write_home(world, tmp_path / "replica", 507)
    write_key(home / "node.key", world.coordinator)  # from the backup
    found = restore(Watched(node, certified=certified), home)
    assert (found.size, found.certified, found.coordinator) == (600, 600, True)
    sound(home, 600)
    heads = HeadStore(home / HEADS_NAME)
    assert parse_checkpoint(next(heads.newest_first(2), "")).size == 600
    heads.close()
    with LedgerStore.open(home / DATABASE_NAME, run=world.run) as store:
        sequencer = Sequencer(store, world.coordinator, world.run)
        assert sequencer.state.size == 600
        await sequencer.append(*(decode(leaf).envelope for leaf in world.leaves[600:]))
        assert store.size == len(world.leaves)
        # Nodes that have an older copy, or none, catch up.
        for target in (replica, tmp_path / "newcomer"):
            path = target / DATABASE_NAME
            with LedgerStore.open(path, create=True, run=world.run) as copy:
                copy.append_replica(store.leaves(copy.size), store.latest_note)
                assert copy.root == store.root
    sound(home, len(world.leaves))
    sound(replica, len(world.leaves))


def test_a_home_without_the_logs_key_gets_the_newest_checkpoint_alone(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source, home = tiles_folder(world, tmp_path / "source", 600), tmp_path / "home"
    assert main(["restore", "--from", str(source), "--home", str(home), "--json"]) == EXIT_OK
    facts = json.loads(capsys.readouterr().out)
    assert (facts["size"], facts["coordinator"], facts["before"]) == (600, False, 0)
    sound(home, 600)
    with LedgerStore.open(home / DATABASE_NAME) as store:
        assert [store.note_at(size) != "" for size in (256, 512, 600)] == [False, False, True]
        beside = Fold.open(store).beside
        store.append_replica(world.leaves[600:700], signed_at(world, 700), beside)
    sound(home, 700)


def signed_at(world: World, size: int) -> str:
    return signed(tree_of(world.leaves[:size]), size, world.origin, world.coordinator)


def test_restoring_over_http_from_the_coordinators_own_server(
    world: World, server: LogServer, tmp_path: Path
) -> None:
    append(world, server.store, 300)
    holder, _ = hold(server.url)
    assert restore(holder, tmp_path / "home", world.run).size == 300
    sound(tmp_path / "home", 300)


def test_a_shorter_ledger_is_extended(world: World, tmp_path: Path) -> None:
    home = write_home(world, tmp_path / "home", 450)
    old = (home / DATABASE_NAME).read_bytes()
    found = restore(FolderSource(tiles_folder(world, tmp_path / "source", 600)), home)
    assert (found.before, found.size, found.damage) == (450, 600, "")
    assert found.kept is not None
    assert found.kept.read_bytes() == old
    sound(home, 600)


def test_a_sound_ledger_that_is_as_long_is_left_alone(world: World, tmp_path: Path) -> None:
    home = write_home(world, tmp_path / "home", 300)
    before = contents(home)
    for size in (299, 300):
        source = tiles_folder(world, tmp_path / f"source-{size}", size)
        with pytest.raises(UsageError, match="has a sound ledger"):
            restore(FolderSource(source), home)
    assert contents(home) == before


@pytest.mark.parametrize("damage", ["flip", "truncate", "empty", "text", "lost entries", "no wal"])
def test_a_damaged_ledger_is_moved_aside(world: World, tmp_path: Path, damage: str) -> None:
    home = write_home(world, tmp_path / "home", 450)
    path = home / DATABASE_NAME
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[len(data) // 2] ^= 1
        data[len(data) // 3] ^= 1
    elif damage == "truncate":
        del data[len(data) // 2 :]
    elif damage == "empty":
        data.clear()
    elif damage == "text":
        data[:] = b"this is no database" * 100
    else:
        older = write_home(world, tmp_path / "older", 300)
        data[:] = (older / DATABASE_NAME).read_bytes()
    path.write_bytes(data)
    if damage == "no wal":
        path.with_name(path.name + "-wal").write_bytes(b"garbage" * 1000)
    found = restore(FolderSource(tiles_folder(world, tmp_path / "source", 600)), home)
    assert found.size == 600
    assert found.damage
    assert found.kept is not None
    assert found.kept.read_bytes() == bytes(data)
    assert not path.with_name(path.name + "-wal").exists()
    sound(home, 600)


def test_what_the_home_has_published_must_not_be_unsaid(world: World, tmp_path: Path) -> None:
    home = write_home(world, tmp_path / "home", 450)
    (home / DATABASE_NAME).write_bytes(b"gone")
    source = FolderSource(tiles_folder(world, tmp_path / "source", 300))
    before = contents(home)
    with pytest.raises(CheckFailed, match="of 450") as caught:
        restore(source, home)
    assert "--accept-older" in caught.value.hint
    assert contents(home) == before
    assert restore(source, home, accept_older=True).size == 300
    sound(home, 300)


def test_a_home_that_published_another_history_is_not_overwritten(
    world: World, tmp_path: Path
) -> None:
    source = FolderSource(tiles_folder(world, tmp_path / "source", 600))
    home = write_home(world, tmp_path / "home", 450, forked(world, 290))
    with pytest.raises(CheckFailed, match="different histories"):
        restore(source, home)
    _, culprit = verify_evidence((home / SPLIT_VIEW_FILE).read_bytes())
    assert culprit.encode() == vkey(world)
    (home / DATABASE_NAME).write_bytes(b"gone")
    with pytest.raises(CheckFailed, match="another history"):
        restore(source, home)
    assert (home / DATABASE_NAME).read_bytes() == b"gone"


@pytest.mark.parametrize("path", ["tile/entries/000", "tile/entries/002.p/88"])
def test_wrong_entries_leave_the_home_as_it_was(world: World, tmp_path: Path, path: str) -> None:
    source = tiles_folder(world, tmp_path / "source", 600)
    home = write_home(world, tmp_path / "home", 100)
    before = contents(home)
    bundle = (source / path).read_bytes()
    for bad in (bundle.replace(b"payload", b"Payload", 1), bundle[:-1], b""):
        (source / path).write_bytes(bad)
        with pytest.raises(ArtelError):
            restore(FolderSource(source), home)
        assert contents(home) == before
    sound(home, 100)


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE credits SET units = units * 2",
        "UPDATE held SET vested = vested + 1",
        "DELETE FROM ids WHERE idx = 5",
        "UPDATE checkpoints SET lines = zeroblob(68) WHERE size = 56",
    ],
)
def test_what_follows_from_the_entries_is_made_again_without_a_source(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
) -> None:
    home = tmp_path / "home"
    with LedgerStore.open(home / DATABASE_NAME, create=True) as store:
        fold = Fold.open(store)
        for start in (0, 56):
            store.append(world.leaves[start : start + 56], world.sign, fold.beside)
            fold.settle()
    with pytest.raises(UsageError, match="sound"):
        restore(None, home)
    changed(home, damage)
    assert main(["verify", "--home", str(home)]) == 1
    told = re.search(r"^ *artel ledger (restore .*)$", capsys.readouterr().err, re.MULTILINE)
    assert told is not None
    assert main(shlex.split(told[1])) == EXIT_OK
    sound(home, 112)
    assert [path.name for path in home.glob("*.replaced-*")] == [f"{DATABASE_NAME}.replaced-1"]


def test_lost_entries_need_a_source(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UsageError, match="no ledger"):
        restore(None, tmp_path / "nobody")
    home = write_home(world, tmp_path / "home", 100)
    changed(home, "DELETE FROM entries WHERE idx = 7")
    before = contents(home)
    with pytest.raises(CheckFailed, match="missing"):
        restore(None, home)
    assert contents(home) == before
    assert main(["verify", "--home", str(home)]) == 1
    assert "--from TARGET" in capsys.readouterr().err


def changed(home: Path, statement: str) -> None:
    connection = sqlite3.connect(home / DATABASE_NAME, isolation_level=None)
    connection.execute(statement)
    connection.close()


def test_a_cosignature_that_nobody_made_hinders_no_restore(world: World, tmp_path: Path) -> None:
    source = tiles_folder(world, tmp_path / "source", 300)
    good = note.parse(cosigned(signed_at(world, 300), *world.members[:2]))
    false = note.parse(spoiled(cosigned(good.encode(), world.members[2])))
    mixed = Note(good.text, (*good.signatures, false.signatures[-1]))
    (source / "checkpoint").write_text(mixed.encode())
    assert restore(FolderSource(source), tmp_path / "home").certified == 300
    with closing(HeadStore(tmp_path / "home" / HEADS_NAME)) as heads:
        assert next(heads.newest_first(2), "") == good.encode()


def test_a_certified_checkpoint_of_another_tree_leaves_the_home_as_it_was(
    world: World, tmp_path: Path
) -> None:
    source = tiles_folder(world, tmp_path / "source", 300)
    other = tree_of(forked(world, 100)[:250])
    certified = cosigned(signed(other, 250, world.origin, world.coordinator), *world.members[:2])
    home = write_home(world, tmp_path / "home", 100)
    before = contents(home)
    with pytest.raises(CheckFailed, match="two histories"):
        restore(Watched(source, certified=certified), home)
    assert contents(home) == before


def test_another_run_is_refused(world: World, tmp_path: Path) -> None:
    other = World(name="other")
    home = write_home(other, tmp_path / "home", 1, [*(e.encode() for e in other.start)])
    source = FolderSource(tiles_folder(world, tmp_path / "source", 300))
    with pytest.raises(CheckFailed, match="holds run"):
        restore(source, home)
    (home / DATABASE_NAME).write_bytes(b"gone")
    with pytest.raises(CheckFailed, match="holds run"):
        restore(source, home)


def test_a_home_in_use_is_left_alone(world: World, tmp_path: Path) -> None:
    home = write_home(world, tmp_path / "home", 100)
    lock = HomeLock(home)
    try:
        with pytest.raises(ResourceError, match="is using the home"):
            restore(FolderSource(tiles_folder(world, tmp_path / "source", 300)), home)
    finally:
        lock.release()


def killed_at(step: int, command: Callable[[], Any]) -> bool:
    """Run something in a process that is killed before its n-th change of files; whether it was."""
    # A thread that is just ending may hold a lock of OpenSSL, which stays locked in the child.
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        left = step

        def counted(real: Callable[..., Any]) -> Callable[..., Any]:
            def call(*arguments: Any, **named: Any) -> Any:
                nonlocal left
                left -= 1
                if left == 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real(*arguments, **named)

            return call

        for name in ("link", "replace", "rename", "unlink", "fsync", "rmdir", "mkdir"):
            setattr(os, name, counted(getattr(os, name)))
        try:
            command()
        except BaseException:
            os._exit(99)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


@pytest.mark.parametrize("damaged", [False, True])
def test_a_restore_that_is_killed_at_any_step_can_be_repeated(
    world: World, tmp_path: Path, damaged: bool
) -> None:
    source = FolderSource(tiles_folder(world, tmp_path / "source", 40))
    start = write_home(world, tmp_path / "start", 14)
    if damaged:
        data = bytearray((start / DATABASE_NAME).read_bytes())
        data[len(data) // 2] ^= 1
        (start / DATABASE_NAME).write_bytes(data)
    step = 0
    while True:
        step += 1
        home = tmp_path / f"home-{step}"
        shutil.copytree(start, home)
        killed = killed_at(step, partial(restore, source, home))
        # Never a home that looks as if its run had not begun: a coordinator would begin it anew.
        assert (home / DATABASE_NAME).exists()
        if not killed:
            sound(home, 40)
            break
        try:
            with LedgerStore.open(home / DATABASE_NAME, run=world.run) as store:
                assert store.size in (14, 40)
        except CheckFailed:
            assert restore(source, home).size == 40
        else:
            with pytest.raises(UsageError) if store.size == 40 else nullcontext():
                assert restore(source, home).size == 40
        sound(home, 40)
    assert step > 8
