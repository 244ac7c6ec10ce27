"""What is installed: one name, and a light client that works alone and names what it lacks."""

from __future__ import annotations

import importlib.metadata
import json
import os
import re
import shutil
import subprocess
import sys
import time
import tomllib
import venv
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from artel import __version__
from artel.ledger.tlog.note import VerifierKey
from artel.protocol.errors import EXIT_OK, EXIT_RESOURCE
from artel.protocol.invite import Invite
from client_world import served, write_tiles
from ledger_world import World
from listing_world import record, served_runs
from places import ROOT

PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORLD = World()
VKEY = VerifierKey(WORLD.origin, WORLD.coordinator.public).encode()
PEER = f"/ip4/127.0.0.1/tcp/9/p2p/{WORLD.coordinator.peer_id}"
AT_MOST = 80_000_000
"""Bytes of the light client, with everything that it brings, beside pip itself."""

WITHOUT = """
import json, sys

ABSENT = set(json.loads(sys.argv.pop(1)))

class Lacking:
    def __init__(self, finder):
        self.finder = finder

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] not in ABSENT:
            return self.finder.find_spec(name, path, target)

sys.meta_path = [Lacking(finder) for finder in sys.meta_path]
"""
COMMAND = "from artel import cli; sys.exit(cli.main(sys.argv[1:]))"
IMPORT_ALL = """
import importlib, pkgutil
import artel.ledger

for module in pkgutil.walk_packages(artel.ledger.__path__, "artel.ledger."):
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        print(module.name, error.name)
"""


def brought_by(requirements: Iterable[str]) -> set[str]:
    """Names of the distributions that installing these brings, here."""
    found: set[str] = set()
    open_ends = [Requirement(text) for text in requirements]
    while open_ends:
        requirement = open_ends.pop()
        name = canonicalize_name(requirement.name)
        if name in found or (requirement.marker and not requirement.marker.evaluate({"extra": ""})):
            continue
        found.add(name)
        open_ends += map(Requirement, importlib.metadata.requires(name) or [])
    return found


@pytest.fixture(scope="module")
def absent() -> list[str]:
    """Every module that is installed here and does not come with the light client."""
    light = brought_by(PROJECT["dependencies"])
    owners = importlib.metadata.packages_distributions()
    return sorted(
        module
        for module, names in owners.items()
        if module != "artel" and not light & set(map(canonicalize_name, names))
    )


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("home")
    WORLD.write(home, rounds=2)
    return home


def light(
    absent: list[str], *arguments: str, cwd: Path | None = None, code: str = COMMAND
) -> subprocess.CompletedProcess[str]:
    """An ``artel`` command in a process that finds only what the light client brings."""
    return subprocess.run(
        [sys.executable, "-c", WITHOUT + code, json.dumps(absent), *arguments],
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cwd or os.devnull)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_heavy_packages_are_no_part_of_the_light_client(absent: list[str]) -> None:
    heavy = {"torch", "hivemind", "libp2p", "numpy", "numba", "transformers", "psutil", "trio"}
    assert heavy <= set(absent)
    assert not {"pydantic", "cryptography", "aiohttp", "rich"} & set(absent)


def test_what_reads_ledgers_imports_nothing_heavy(absent: list[str]) -> None:
    done = light(absent, code=IMPORT_ALL)
    assert (done.returncode, done.stderr) == (0, "")
    needs = dict(line.split() for line in done.stdout.splitlines())
    # Work is computed again in three, a libp2p peer is asked in one, and one is for daemons alone.
    assert set(needs) <= {
        "artel.ledger.fold.layout",
        "artel.ledger.fold.recheck",
        "artel.ledger.fold.recheck_states",
        "artel.ledger.sync.lightnode",
        "artel.ledger.web.exposition",
    }, needs


@pytest.mark.parametrize("command", ["shares", "status", "log", "verify", "explain 3"])
def test_a_light_client_reads_a_home(absent: list[str], home: Path, command: str) -> None:
    done = light(absent, "ledger", *command.split(), "--home", str(home))
    assert (done.returncode, done.stderr) == (EXIT_OK, "")


def test_a_light_client_audits_over_http(absent: list[str], home: Path, tmp_path: Path) -> None:
    with served(write_tiles(home, tmp_path / "tiles")) as url:
        for arguments in (
            ("audit", url, "--vkey", VKEY, "--full"),
            ("shares", "--from", url, "--run", WORLD.run),
            ("mirror", "copy", "--from", url, "--run", WORLD.run),
            ("prove", "2", "--from", url, "--run", WORLD.run),
            ("verify", "entry-2.tlog-proof", "entry-2.json"),
        ):
            done = light(absent, "ledger", *arguments, cwd=tmp_path)
            assert (done.returncode, done.stderr) == (EXIT_OK, ""), arguments


def test_a_light_client_lists_public_runs_over_http(absent: list[str], tmp_path: Path) -> None:
    with served(served_runs(tmp_path, record(time=int(time.time())))) as url:
        done = light(absent, "runs", "--bootstrap", url)
        assert (done.returncode, done.stderr) == (EXIT_OK, "")
        assert "3 of 32" in done.stdout


@pytest.fixture(scope="module")
def run_file(absent: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("run")
    assert light(absent, "run", "new", "my-run", cwd=folder).returncode == EXIT_OK
    return folder / "my-run/RUN.toml"


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (("node", "start", "--join", Invite(WORLD.run, (PEER,)).encode(), "--home", "h"), "node"),
        (("model", "export", "model", "--home", "h"), "node"),
        (("runs", "--bootstrap", PEER), "node"),
        (("join", "tiny", "--bootstrap", PEER), "node"),
        (("coordinator", "start", "my-run/RUN.toml", "--home", "h"), "coordinator"),
        (("run", "check", "my-run/RUN.toml"), "coordinator"),
        (("demo", "--out", "h"), "coordinator"),
        (("ledger", "status", "--from", PEER), "p2p"),
    ],
)
def test_a_command_whose_extra_is_missing_says_which(
    absent: list[str], run_file: Path, command: tuple[str, ...], extra: str
) -> None:
    done = light(absent, *command, cwd=run_file.parent.parent)
    assert done.returncode == EXIT_RESOURCE, done.stderr
    assert done.stderr.count("\n") == 2
    assert f"{PROJECT['name']}[{extra}]" in done.stderr


@pytest.mark.parametrize("options", ["7B", "47B --active 13B --inference", "1M --write plan"])
def test_a_light_client_plans(absent: list[str], tmp_path: Path, options: str) -> None:
    done = light(absent, "plan", *options.split(), cwd=tmp_path)
    assert (done.returncode, done.stderr) == (EXIT_OK, "")
    assert (tmp_path / "plan/RUN.toml").exists() == ("--write" in options)


def test_every_extra_that_an_error_names_exists() -> None:
    assert {"p2p", "node", "coordinator"} <= PROJECT["optional-dependencies"].keys()


# --- the wheel ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout without what git ignores, where a build leaves nothing behind."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    names = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    tree = tmp_path_factory.mktemp("tree")
    for name in filter(os.path.lexists, (ROOT / name for name in names.split("\0") if name)):
        copy = tree / name.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(name, copy, follow_symlinks=False)
    return tree


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return built(tree, tmp_path_factory.mktemp("wheel"))


def built(source: Path, folder: Path) -> Path:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    subprocess.run([*pip, folder, source], check=True, timeout=200, capture_output=True)
    [wheel] = folder.glob("*.whl")
    return wheel


def contents(wheel: Path) -> set[str]:
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if ".dist-info/" not in name}


@pytest.mark.slow
def test_the_wheel_holds_what_the_tree_holds(tree: Path, wheel: Path) -> None:
    rooms = ("protocol", "ledger", "coordinator", "node", "model")
    kept = list((tree / "artel").glob("*.py"))
    kept += [
        tree / "artel" / file.relative_to(tree)
        for room in rooms
        for file in (tree / room).rglob("*")
    ]
    files = [str(file.relative_to(tree)) for file in kept if file.is_file()]
    assert sorted(contents(wheel)) == sorted(files)


@pytest.mark.slow
def test_a_source_archive_builds_the_same_wheel(tree: Path, wheel: Path, tmp_path: Path) -> None:
    code = "import sys, setuptools.build_meta as b; print(b.build_sdist(sys.argv[1]))"
    subprocess.run(
        [sys.executable, "-c", code, tmp_path], cwd=tree, check=True, capture_output=True
    )
    [archive] = tmp_path.glob("*.tar.gz")
    assert contents(built(archive, tmp_path)) == contents(wheel)


@pytest.mark.slow
def test_the_wheel_alone_is_a_light_client(wheel: Path, home: Path, tmp_path: Path) -> None:
    place = tmp_path / "venv"
    venv.create(place, with_pip=True)
    [packages] = place.glob("lib/python*/site-packages")
    size = size_of(place)
    pip = [place / "bin/pip", "install", "--quiet", "--constraint", ROOT / "constraints.txt"]
    subprocess.run([*pip, wheel], check=True, timeout=200, capture_output=True)
    grown = size_of(place) - size
    assert grown <= AT_MOST, f"{grown:,} bytes"

    ours = importlib.metadata.Distribution.at(next(packages.glob("artel_network-*.dist-info")))
    put = {file.parts[0] for file in ours.files or [] if ".." not in file.parts}
    assert put == {"artel", f"artel_network-{__version__}.dist-info"}

    def artel(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
        return subprocess.run(
            [place / "bin/artel", *arguments],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
        )

    assert artel("--version").stdout.split()[-1] == __version__
    with served(write_tiles(home, tmp_path / "tiles")) as url:
        for arguments in (
            ("--help",),
            ("ledger", "audit", url, "--vkey", VKEY, "--full"),
            ("ledger", "shares", "--from", url, "--run", WORLD.run),
            ("ledger", "verify", "--home", str(home)),
        ):
            done = artel(*arguments)
            assert (done.returncode, done.stderr) == (EXIT_OK, ""), arguments
    refused = artel("node", "start", "--join", Invite(WORLD.run, (PEER,)).encode())
    assert refused.returncode == EXIT_RESOURCE
    assert re.search(r"artel-network\[node\]", refused.stderr)


def size_of(folder: Path) -> int:
    """Bytes on disk, as ``du`` counts them."""
    return 512 * sum(path.lstat().st_blocks for path in folder.rglob("*"))
