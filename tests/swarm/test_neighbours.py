"""No command removes or overwrites a file that it did not make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from artel import cli
from artel.ledger import entries
from artel.ledger.store.keyfiles import write_new
from artel.ledger.store.reader import LedgerReader
from artel.ledger.sync.export import write_file
from artel.model import exporting, pretrained
from artel.model.held import held
from artel.node.trainer import writing
from artel.protocol import content, files
from artel.protocol.errors import ArtelError, UsageError
from artel.protocol.identity import HomeLock
from artel.protocol.invite import Invite
from artel.protocol.net.blobs import BlobStore
from client_world import write_tiles
from ledger_world import World as Ledger
from model_world import make_home
from trainer_world import World, make_world

SUFFIXES = (".tmp", ".part", ".new", ".put", ".old", ".bak", "~", ".replaced-1", ".replaced-2")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def ledger_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("ledger")
    Ledger().write(home, rounds=2)
    return home


@pytest.fixture
def ledger(ledger_home: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(ledger_home, tmp_path / "read-from"))


@pytest.fixture(scope="module")
def home(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home that holds the first state."""
    return make_home(world, tmp_path_factory.mktemp("model") / "home", [])


def export(home: Path, out: Path) -> None:
    with held(home) as found:
        exporting.export(found, out, home)


def surround(folder: Path, *names: str) -> dict[Path, bytes]:
    """Files, and a folder with a file, of somebody else beside what is going to be written."""
    folder.mkdir(parents=True, exist_ok=True)
    made = {}
    for name in names:
        stem = Path(name).stem
        for other in {*(name + suffix for suffix in SUFFIXES), f"{stem}.tmp", f"{stem}.new"}:
            for path in (folder / other, folder / f".{other}"):
                path.write_bytes(f"somebody's {path.name}".encode())
                made[path] = path.read_bytes()
        for place in (folder / f"{name}.d.tmp", folder / f"{name}.restoring"):
            place.mkdir()
            (place / "thesis").write_bytes(b"three years of work")
            made[place / "thesis"] = b"three years of work"
    return made


def untouched(made: dict[Path, bytes]) -> None:
    assert {path: path.read_bytes() for path in made if path.exists()} == made


def test_export_leaves_the_folder_beside_it_alone(home: Path, tmp_path: Path) -> None:
    """``X.tmp`` was removed as a left-over of an earlier export to ``X``."""
    mine = tmp_path / "model.tmp"
    mine.mkdir()
    (mine / "thesis").write_text("three years of work")
    export(home, tmp_path / "model")
    assert (mine / "thesis").read_text() == "three years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "model.tmp"]
    assert (tmp_path / "model" / "config.json").exists()


def test_an_export_that_fails_leaves_nothing_and_takes_nothing(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = surround(tmp_path, "model")
    before = set(tmp_path.rglob("*"))

    def fail(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pretrained, "write", fail)
    with pytest.raises(ArtelError):
        export(home, tmp_path / "model")
    assert set(tmp_path.rglob("*")) == before
    untouched(made)


def test_an_empty_folder_that_is_there_is_filled_and_not_replaced(
    home: Path, tmp_path: Path
) -> None:
    out = tmp_path / "mount"
    out.mkdir()
    number = out.stat().st_ino
    export(home, out)
    assert out.stat().st_ino == number
    assert {"config.json", "model.safetensors"} <= {path.name for path in out.iterdir()}
    assert [path.name for path in out.iterdir() if path.is_dir()] == ["ledger"]


COMMANDS: list[tuple[str, tuple[str, ...], str]] = [
    ("ledger mirror {out}/copy --from {tiles} --run {run}", ("copy",), "copy"),
    ("ledger prove 3 --home {home} -o {out}/entry", ("entry", "entry.leaf"), "entry"),
    ("ledger key new --home {out}", ("account.key", "recovery.key"), "account.key"),
    (
        "ledger restore --from {tiles} --home {out} --run {run}",
        ("ledger.sqlite3",),
        "ledger.sqlite3",
    ),
    ("run new {out}/run", ("run", "RUN.toml"), "run"),
    ("run new {out}", ("RUN.toml",), "RUN.toml"),
]


@pytest.mark.parametrize(("line", "names", "result"), COMMANDS, ids=lambda value: str(value)[:28])
def test_commands_leave_everything_beside_their_output_alone(
    line: str, names: tuple[str, ...], result: str, ledger: Path, tmp_path: Path
) -> None:
    out, tiles = tmp_path / "out", tmp_path / "tiles"
    made = surround(out, *names)
    with LedgerReader.of(ledger) as store:
        run = entries.decode(store.leaf(0)).body.run
    if "{tiles}" in line:
        write_tiles(ledger, tiles)
    values = {"home": ledger, "out": out, "tiles": tiles, "run": run}
    assert cli.main([word.format(**values) for word in line.split()]) == 0
    untouched(made)
    assert list(out.glob(f"{result}*"))


def test_a_mirror_that_grows_drops_only_its_own_partial_tiles(tmp_path: Path) -> None:
    from artel.ledger.sync.mirror import _drop_replaced
    from artel.ledger.tlog.tiles import tiles_of

    (tile,) = tiles_of(10)
    path = tmp_path / tile.path
    write_file(path, b"partial")
    (path.parent / "notes.txt").write_text("somebody's")
    _drop_replaced(tmp_path, 10, 300)
    assert not path.exists()
    assert (path.parent / "notes.txt").read_text() == "somebody's"


HELPERS: list[tuple[str, Callable[[Path], object]]] = [
    ("a", lambda path: files.write(path, b"new")),
    ("b", lambda path: write_file(path, b"new", durable=True)),
    ("c", lambda path: write_new(path, b"new")),
    ("d", lambda path: writing.write(path, [b"new"])),
]


@pytest.mark.parametrize(("name", "write"), HELPERS)
def test_helpers_that_write_files(
    name: str, write: Callable[[Path], object], tmp_path: Path
) -> None:
    made = surround(tmp_path, name)
    write(tmp_path / name)
    untouched(made)
    assert (tmp_path / name).read_bytes() == b"new"
    assert set(tmp_path.rglob("*")) - {tmp_path / name} == {
        *made,
        *(path.parent for path in made if path.parent != tmp_path),
    }


def test_a_content_store_sweeps_its_own_uploads_alone(tmp_path: Path) -> None:
    mine = {tmp_path / "movie.put": b"somebody's", tmp_path / "initial.part": b"somebody's"}
    for path, data in mine.items():
        path.write_bytes(data)
    cut_off = tmp_path / f"{content.content_id(b'x')}.0a1b2c3d.put"
    cut_off.write_bytes(b"half")
    BlobStore(tmp_path)
    assert not cut_off.exists()
    untouched(mine)


def test_a_home_sweeps_what_killed_programs_left_and_nothing_else(tmp_path: Path) -> None:
    made = surround(tmp_path, "ledger.sqlite3", "checkpoint", "ledger")
    file, folder = files.unfinished(tmp_path / "state"), files.unfinished(tmp_path / "ledger")
    file.touch()
    folder.mkdir()
    (folder / "part").touch()
    HomeLock(tmp_path).release()
    assert not file.exists()
    assert not folder.exists()
    untouched(made)


@pytest.mark.parametrize("name", ["lock", "manifest.json", "api.json", "invite"])
def test_a_node_refuses_a_home_in_which_somebody_elses_files_have_its_names(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = {tmp_path / name: json.dumps({"name": "my web page"}).encode()}
    (tmp_path / name).write_bytes(mine[tmp_path / name])
    peer = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWBNn2mmzAXQXW4BAFxNEzRqVgXDGRCTPGYHGm7ioMiyru"
    invite = Invite("0" * 64, (peer,)).encode()
    assert cli.main(["node", "start", "--home", str(tmp_path), "--join", invite]) == 2
    assert "→" in capsys.readouterr().err
    untouched(mine)


@pytest.mark.parametrize("name", ["lock", "api.json", "invite"])
def test_a_coordinator_refuses_it_too(name: str, tmp_path: Path) -> None:
    run_file, home = tmp_path / "RUN.toml", tmp_path / "home"
    run_file.touch()
    home.mkdir()
    mine = {home / name: b"somebody's"}
    (home / name).write_bytes(b"somebody's")
    start = ["coordinator", "start", str(run_file), "--home", str(home), "--http", "127.0.0.1:0"]
    assert cli.main(start) == 2
    untouched(mine)


def test_outputs_that_exist_are_refused(home: Path, ledger: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    assert cli.main(["ledger", "key", "new", "--home", str(keys)]) == 0
    for name in ("model", "run"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "RUN.toml").write_text("mine")
    with pytest.raises(UsageError):
        export(home, tmp_path / "model")
    assert cli.main(["run", "new", str(tmp_path / "run")]) == 2
    assert cli.main(["ledger", "key", "new", "--home", str(keys)]) != 0
    assert cli.main(["demo", "--out", str(tmp_path / "run")]) == 2
    for name in ("model", "run"):
        assert (tmp_path / name / "RUN.toml").read_text() == "mine"
