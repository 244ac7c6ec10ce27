"""Auditing a log: logs of other software, every tampered file, folders and web servers that lie."""

from __future__ import annotations

import http.server
import os
import subprocess
import sys
import threading
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import pytest
from tlog_scales.backend import LocalBackend
from tlog_scales.reader import TilesReader
from tlog_scales.signing import PlainEd25519Signer, Vkey
from tlog_scales.writer import TilesWriter

from artel.ledger.sync.audit import audit
from artel.ledger.sync.handing_out import read_bundle, read_tile
from artel.ledger.sync.holding import hold
from artel.ledger.sync.signed_tree import SignedTree
from artel.ledger.sync.source import (
    FolderSource,
    HttpSource,
    NotFound,
    TileSource,
)
from artel.ledger.tlog.cosignature import CosignerKey
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import ENTRIES, Tile
from artel.protocol.errors import CheckFailed, DecodeError, Unreachable, UsageError
from artel.protocol.merkle import inclusion, leaf_hash, verify_inclusion
from places import FIXTURES
from tlog_world import (
    LOG,
    LOG_KEY,
    ORIGIN,
    cosigned,
    key,
    leaves_of,
    signed,
    tree_of,
    write_file,
    write_log,
)

TESSERA = FIXTURES / "tessera"
TESSERA_KEY = "example.com/log/testdata+33d7b496+AeHTu4Q3hEIMHNqc6fASMsq3rKNx280NI+oO5xCFkkSx"
TESSERA_ENTRIES = (
    b"one two three four five six seven eit nain ten ileven twelf threeten fourten fivten".split()
)
VKEY = LOG_KEY.encode()
SIZE = 600  # three bundles, one of them partial; a level 1 tile of two hashes


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Read only."""
    folder = tmp_path_factory.mktemp("log")
    write_log(folder, leaves_of(SIZE))
    return folder


def copy_of(log: Path, folder: Path) -> Path:
    for place in log.rglob("*"):
        if place.is_file():
            write_file(folder, str(place.relative_to(log)), place.read_bytes())
    return folder


@pytest.mark.parametrize("size", range(16))
def test_every_checkpoint_of_a_tessera_log_is_audited(size: int, tmp_path: Path) -> None:
    checkpoint = (TESSERA / f"checkpoint.{size}").read_text()
    write_log(tmp_path, TESSERA_ENTRIES[:size], checkpoint)
    seen: list[bytes] = []
    source = FolderSource(tmp_path)
    report = audit(source, [TESSERA_KEY], full=True, reader=lambda leaves, _: seen.extend(leaves))
    assert seen == TESSERA_ENTRIES[:size]
    assert (report.origin, report.size) == ("example.com/log/testdata", size)
    assert report.checkpoint == checkpoint
    assert audit(source, [TESSERA_KEY]).root == report.root


@pytest.mark.parametrize("sizes", [[1], [255, 1], [256], [257], [300, 300, 1], [65_536 + 300]])
def test_a_log_that_another_implementation_wrote(sizes: list[int], tmp_path: Path) -> None:
    writer = TilesWriter.create(tmp_path / "log", ORIGIN)
    written = 0
    for count in sizes:
        for leaf in leaves_of(count, f"batch {written}"):
            writer.add_leaf(leaf)
        written += count
        writer.commit([PlainEd25519Signer(ORIGIN, LOG.seed)])
    source = FolderSource(tmp_path / "log")
    report = audit(source, [VKEY], full=True)
    assert (report.size, report.entries, report.signers) == (written, written, (ORIGIN,))
    assert audit(source, [VKEY]).root == report.root
    tree = SignedTree(source, report.size, report.root)
    for index in {0, written // 2, written - 1}:
        leaf = read_bundle(source, Tile(ENTRIES, index // 256, tile_width(index, written)))
        proof = inclusion(tree, index, written)
        verify_inclusion(leaf_hash(leaf[index % 256]), index, written, proof, report.root)
        assert proof == writer.reader.get_inclusion_proof(index, written).node_hashes


def tile_width(index: int, size: int) -> int:
    return min(256, size - index // 256 * 256)


@pytest.mark.parametrize("size", [1, 255, 256, 257, SIZE, 66_000])
def test_another_implementation_reads_our_tiles(size: int, tmp_path: Path) -> None:
    leaves = leaves_of(size)
    tree = write_log(tmp_path, leaves)
    reader = TilesReader(LocalBackend(tmp_path))
    checkpoint = reader.get_checkpoint()
    checkpoint.verify(Vkey.from_string(VKEY))
    assert reader.calculate_root_hash() == checkpoint.root_hash == root_at(tree, size)
    for index in {0, size // 2, size - 1}:
        assert reader.get_entry(index) == leaves[index]
        theirs = reader.get_inclusion_proof(index, size)
        theirs.check(leaf_hash(leaves[index]), checkpoint.root_hash)
        assert theirs.node_hashes == inclusion(tree, index, size)


def test_report_says_what_was_checked(tmp_path: Path) -> None:
    alice, bob = key("alice"), key("bob")
    leaves = leaves_of(SIZE)
    text = cosigned(signed(tree_of(leaves), SIZE), (alice, "alice"), (bob, "bob"), time=77)
    tree = write_log(tmp_path, leaves, text)
    calls: list[tuple[int, int]] = []
    keys = [VKEY, CosignerKey("alice", alice.public).encode()]
    report = audit(
        FolderSource(tmp_path),
        keys,
        full=True,
        progress=lambda done, all: calls.append((done, all)),
    )
    assert calls == [(256, SIZE), (512, SIZE), (SIZE, SIZE)]
    assert report.cosigners == {"alice": 77}
    assert (report.root, report.full) == (root_at(tree, SIZE), True)
    assert (report.tiles, report.entries, report.entry_bytes) == (4, SIZE, sum(map(len, leaves)))
    short = audit(FolderSource(tmp_path), keys)
    assert (short.tiles, short.entries, short.full) == (2, 0, False)
    assert short.cosigners == {"alice": 77}


@pytest.mark.parametrize(
    ("path", "named"),
    [
        ("tile/0/000", "entry 100 in tile/entries/000 .* tile/0/000"),
        ("tile/0/001", "entry 356 in tile/entries/001 .* tile/0/001"),
        ("tile/0/002.p/88", "root of 600 .* tile/0/002.p/88"),
        ("tile/1/000.p/2", "root of 600 .* tile/1/000.p/2"),
        ("tile/entries/000", "entry 100 "),
        ("tile/entries/002.p/88", "entry 524 "),
    ],
)
def test_a_changed_file_is_named(log: Path, tmp_path: Path, path: str, named: str) -> None:
    folder = copy_of(log, tmp_path)
    data = bytearray((folder / path).read_bytes())
    at = {"tile/1/000.p/2": 3, "tile/0/002.p/88": 12 * 32}.get(path, 100 * 32)
    if "entries" in path:  # the last byte of entry 100, or 12 of the partial bundle
        number = 100 if "000" in path else 524
        at = bytes(data).index(f"entry {number}".encode()) + 8
    data[at] ^= 1
    (folder / path).write_bytes(data)
    with pytest.raises(CheckFailed, match=named):
        audit(FolderSource(folder), [VKEY], full=True)


@pytest.mark.parametrize("path", ["tile/0/002.p/88", "tile/1/000.p/2"])
def test_a_changed_right_edge_is_found_without_reading_the_entries(
    log: Path, tmp_path: Path, path: str
) -> None:
    folder = copy_of(log, tmp_path)
    data = (folder / path).read_bytes()
    (folder / path).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(CheckFailed, match=path):
        audit(FolderSource(folder), [VKEY])


@pytest.mark.parametrize("change", [lambda d: d[:-1], lambda d: d + b"\0", lambda d: b""])
def test_files_of_another_length_are_refused(log: Path, tmp_path: Path, change) -> None:  # type: ignore[no-untyped-def]
    for number, path in enumerate(("tile/0/000", "tile/entries/002.p/88", "tile/1/000.p/2")):
        folder = copy_of(log, tmp_path / str(number))
        (folder / path).write_bytes(change((folder / path).read_bytes()))
        with pytest.raises(CheckFailed, match=path):
            audit(FolderSource(folder), [VKEY], full=True)


def test_consistent_tiles_of_another_tree_do_not_pass(tmp_path: Path) -> None:
    """Everything fits together, but it is not what the log signed."""
    honest = signed(tree_of(leaves_of(SIZE)), SIZE)
    write_log(tmp_path, [*leaves_of(SIZE - 1), b"forged"], honest)
    for full in (False, True):
        with pytest.raises(CheckFailed, match="root"):
            audit(FolderSource(tmp_path), [VKEY], full=full)


def test_a_missing_file_is_named(log: Path, tmp_path: Path) -> None:
    for number, path in enumerate(("checkpoint", "tile/0/001", "tile/entries/002.p/88")):
        folder = copy_of(log, tmp_path / str(number))
        (folder / path).unlink()
        with pytest.raises(NotFound, match=path):
            audit(FolderSource(folder), [VKEY], full=True)


def test_a_partial_tile_that_was_replaced_by_the_full_one_is_read_from_it(
    log: Path, tmp_path: Path
) -> None:
    folder = copy_of(log, tmp_path)
    old = signed(tree_of(leaves_of(300)), 300)
    (folder / "checkpoint").write_text(old)  # tile/0/001.p/44 and its bundle are gone
    write_file(folder, "tile/1/000.p/1", (folder / "tile/1/000.p/2").read_bytes()[:32])
    assert audit(FolderSource(folder), [VKEY], full=True).size == 300
    assert audit(FolderSource(folder), [VKEY]).size == 300


def test_only_the_named_keys_are_trusted(log: Path) -> None:
    source = FolderSource(log)
    stranger = key("stranger")
    with pytest.raises(CheckFailed, match="not signed"):
        audit(source, [type(LOG_KEY)(ORIGIN, stranger.public).encode()])
    with pytest.raises(CheckFailed, match="another log"):
        audit(source, [VKEY], origin="elsewhere")
    with pytest.raises(UsageError, match="no key"):
        audit(source, [CosignerKey("alice", stranger.public).encode()])
    with pytest.raises(UsageError):
        audit(source, [])
    with pytest.raises(DecodeError):
        audit(source, ["hello"])


def test_whoever_reads_the_entries_can_refuse(log: Path) -> None:
    def refuse(leaves: Iterator[bytes], _: SignedTree) -> None:
        for index, leaf in enumerate(leaves):
            assert leaf == f"entry {index}".encode()
            if index == 300:
                raise CheckFailed(f"entry {index} means nothing")

    with pytest.raises(CheckFailed, match="entry 300 means nothing"):
        audit(FolderSource(log), [VKEY], full=True, reader=refuse)


def test_memory_of_an_audit_does_not_grow_with_the_log(tmp_path: Path) -> None:
    peaks = []
    for size in (2_000, 40_000):
        write_log(tmp_path / str(size), leaves_of(size))
        source = FolderSource(tmp_path / str(size))
        tracemalloc.start()
        audit(source, [VKEY], full=True)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < peaks[0] * 1.3 + 50_000  # 38,000 more leaf hashes alone are 1.2 MB


class CountingSource:
    """Counts what is read from another source."""

    def __init__(self, source: TileSource) -> None:
        self.name, self.source = source.name, source
        self.paths: list[str] = []

    def get(self, path: str, skip: int = 0) -> bytes:
        self.paths.append(path)
        return self.source.get(path, skip)


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("large")
    write_log(folder, leaves_of(66_000))
    return folder


def test_tiles_of_a_source_are_a_tree_of_verified_hashes(large: Path) -> None:
    size = 66_000
    tree = tree_of(leaves_of(size))
    source = CountingSource(FolderSource(large))
    tiles = SignedTree(source, size, root_at(tree, size))
    assert len(source.paths) == 3
    for index in (0, 40_000, 65_535, 65_536, size - 1):
        assert inclusion(tiles, index, size) == inclusion(tree, index, size)
    for old in (1, 255, 256, 40_001, 65_536, size):
        assert root_at(tiles, old) == root_at(tree, old)
    assert len(source.paths) == len(set(source.paths)) < 12  # each tile once
    for level, index in ((0, size), (17, 0), (-1, 0)):
        with pytest.raises(UsageError):
            tiles.subtree(level, index)


def test_a_tile_that_does_not_belong_to_the_root_gives_no_hash(large: Path, tmp_path: Path) -> None:
    size = 66_000
    tree = tree_of(leaves_of(size))
    for path, index in (("tile/0/156", 40_000), ("tile/1/000", 40_000)):
        folder = copy_of(large, tmp_path / path.replace("/", "-"))
        data = bytearray((folder / path).read_bytes())
        data[5000] ^= 1
        (folder / path).write_bytes(data)
        tiles = SignedTree(FolderSource(folder), size, root_at(tree, size))
        with pytest.raises(CheckFailed, match=path):
            inclusion(tiles, index, size)


def test_a_changed_higher_tile_is_named(large: Path, tmp_path: Path) -> None:
    for path, named in (
        ("tile/1/000", "tile/1/000 does not have the hash"),
        ("tile/1/001.p/1", "root of 66000 .* tile/1/001.p/1"),
        ("tile/2/000.p/1", "root of 66000 .* tile/2/000.p/1"),
    ):
        folder = copy_of(large, tmp_path / path.replace("/", "-"))
        data = bytearray((folder / path).read_bytes())
        data[5000 if len(data) > 5000 else 0] ^= 1
        (folder / path).write_bytes(data)
        with pytest.raises(CheckFailed, match=named):
            audit(FolderSource(folder), [VKEY], full=True)


def test_cache_of_tiles_is_bounded(large: Path) -> None:
    size = 66_000
    tree = tree_of(leaves_of(size))
    source = CountingSource(FolderSource(large))
    tiles = SignedTree(source, size, root_at(tree, size), cached_tiles=2)
    for index in range(0, 65_536, 2_560):
        assert tiles.subtree(0, index) == tree.hashes[index]
    assert len(tiles._tiles._rows) <= 2


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/etc/passwd",
        "../secret",
        "tile/../../secret",
        "tile/0/../../../secret",
        "tile/0/000/../000",
        "./checkpoint",
        "checkpoint/",
        "checkpoint\0",
        "Checkpoint",
        "tile/entries/..",
    ],
)
def test_paths_that_logs_do_not_have_are_not_read(log: Path, path: str) -> None:
    (log.parent / "secret").write_text("secret")
    with pytest.raises(NotFound):
        FolderSource(log).get(path)
    with pytest.raises(NotFound):
        HttpSource("http://127.0.0.1:9/").get(path)


def test_links_and_pipes_in_a_folder_are_not_followed(tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(bytes(32))
    folder = tmp_path / "log"
    write_file(folder, "tile/0/000.p/2", b"")
    (folder / "tile/0/000.p/1").symlink_to(secret)
    (folder / "tile/entries").symlink_to(tmp_path)
    (tmp_path / "000").write_bytes(bytes(32))
    os.mkfifo(folder / "checkpoint")
    (folder / "tile/0/001").mkdir()
    (folder / "tile/0/002").symlink_to("002")
    source = FolderSource(folder)
    for path in ("tile/0/000.p/1", "tile/entries/000", "checkpoint", "tile/0/001"):
        with pytest.raises(NotFound):
            source.get(path)
    with pytest.raises(Unreachable):
        source.get("tile/0/002")


def test_more_bytes_than_a_file_can_have_are_refused(log: Path, tmp_path: Path) -> None:
    folder = copy_of(log, tmp_path)
    with (folder / "tile/0/000").open("wb") as file:
        file.truncate(1 << 40)  # a terabyte of nothing
    with pytest.raises(CheckFailed, match="8192"):
        read_tile(FolderSource(folder), Tile(0, 0))


def test_targets_of_a_person(log: Path) -> None:
    assert isinstance(hold(str(log))[0], FolderSource)
    assert isinstance(hold("https://example.com/log/")[0], HttpSource)
    for target in (
        "/no/such/folder",
        str(log / "checkpoint"),
        "ftp://example.com/log",
        "file:///etc",
        "http://",
        "http://example.com/?x",
        "http://example.com/#x",
        "http://example.com:99999/",
        "http://example.com/a b",
    ):
        with pytest.raises(UsageError) as caught:
            hold(target)
        assert caught.value.hint


class LyingHandler(http.server.SimpleHTTPRequestHandler):
    """Serves a folder, and a few other things under other prefixes."""

    folder: Path
    stop: threading.Event

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        _, kind, path = self.path.split("/", 2)
        if kind == "hang":
            self.stop.wait()
            return
        if kind == "drip":
            self.send_response(200)
            self.end_headers()
            while not self.stop.wait(0.02):
                try:
                    self.wfile.write(b"x")
                except OSError:
                    return
            return
        if kind == "cut":
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"short")
            return
        targets = {
            "there": f"/log/{path}",
            "file": "file:///etc/passwd",
            "ftp": "ftp://127.0.0.1/checkpoint",
            "loop": self.path,
        }
        if kind in targets:
            self.send_response(302)
            self.send_header("Location", targets[kind])
            self.end_headers()
            return
        place = self.folder / path
        status = {"broken": 500, "gone": 410}.get(kind, 200 if place.is_file() else 404)
        self.send_response(status)
        if kind == "packed":
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if status == 200:
            self.wfile.write(b"x" * 100_000 if kind == "long" else place.read_bytes())


@pytest.fixture
def server(log: Path) -> Iterator[str]:
    handler = type("Handler", (LyingHandler,), {"folder": log, "stop": threading.Event()})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{running.server_port}"
        finally:
            handler.stop.set()  # type: ignore[attr-defined]
            running.shutdown()
            thread.join()


def test_a_log_on_a_web_server_is_audited(server: str) -> None:
    report = audit(HttpSource(f"{server}/log/"), [VKEY], full=True)
    assert (report.size, report.entries) == (SIZE, SIZE)
    assert audit(HttpSource(f"{server}/there"), [VKEY]).root == report.root


@pytest.mark.parametrize(
    ("prefix", "error", "words"),
    [
        ("hang", Unreachable, "timed out"),
        ("drip", Unreachable, "timed out"),
        ("cut", Unreachable, "cut off after 5 bytes"),
        ("file", Unreachable, "302"),
        ("ftp", Unreachable, "302"),
        ("loop", Unreachable, "302"),
        ("broken", Unreachable, "500"),
        ("gone", NotFound, "has no"),
        ("packed", CheckFailed, "compressed"),
        ("long", CheckFailed, "longer than"),
    ],
)
def test_a_web_server_that_misbehaves(
    server: str, prefix: str, error: type[Exception], words: str
) -> None:
    source = HttpSource(f"{server}/{prefix}", timeout=0.3)
    with pytest.raises(error, match=words):
        source.get("checkpoint")


def test_a_server_that_is_not_there_is_unreachable(server: str) -> None:
    with pytest.raises(NotFound):
        HttpSource(f"{server}/log").get("tile/0/999")
    with pytest.raises(Unreachable) as caught:
        HttpSource("http://127.0.0.1:9/log").get("checkpoint")
    assert caught.value.hint


def test_reading_a_folder_does_not_load_a_web_client() -> None:
    code = "import sys, artel.ledger.sync.audit; sys.exit('http.client' in sys.modules)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    assert subprocess.run([sys.executable, "-c", code], env=environment).returncode == 0
