"""Reading the newest state of a home at which a node is at work, which deletes states."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from artel import cli
from artel.model.held import held
from artel.protocol.errors import UsageError
from model_world import make_home, write_states
from trainer_world import World, make_world

ROUNDS = 8

CHURN = """
import os, sys, time
from pathlib import Path
stash, blobs, *roots = map(str, sys.argv[1:])
held, number = [], 0
print("ready", flush=True)
while os.getppid() == int(os.environ["PARENT"]):
    root = roots[number % len(roots)]
    number += 1
    if root not in held:
        os.link(f"{stash}/{root}", f"{blobs}/{root}")
        held.append(root)
    if len(held) > 2:
        os.unlink(f"{blobs}/{held.pop(0)}")
    time.sleep(0.003)
"""
"""A node whose rounds take 3 ms: two states are there at any time."""


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture(scope="module")
def states(world: World, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return write_states(world, tmp_path_factory.mktemp("states"), ROUNDS)


@pytest.fixture
def home(world: World, states: list[Path], tmp_path: Path) -> Path:
    """Its ledger agrees on every state, and its store holds only the first one."""
    return make_home(world, tmp_path / "home", [path.name for path in states])


@contextlib.contextmanager
def churning(states: list[Path], home: Path) -> Iterator[None]:
    """Another process makes and deletes states in the home."""
    stash = home.parent / "stash"
    stash.mkdir()
    for path in states:
        os.link(path, stash / path.name)
    command = [sys.executable, "-c", CHURN, stash, home / "blobs", *(p.name for p in states)]
    environment = os.environ | {"PARENT": str(os.getpid())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_the_newest_agreed_state_is_found(world: World, states: list[Path], home: Path) -> None:
    with held(home) as found:
        assert found.root == world.run.initial_state
    (home / "blobs" / world.run.initial_state).unlink()
    with pytest.raises(UsageError, match="no agreed state"), held(home):
        pass
    first, *_, last = states
    (home / "blobs" / ("0" * 64)).write_bytes(last.read_bytes())  # not agreed on
    for path in (last, first):
        shutil.copy(path, home / "blobs")
    with held(home) as found:
        assert found.root == last.name
        assert found.manifest == world.run
    with held(home, 1) as found:
        assert found.root == first.name
    with pytest.raises(UsageError, match="after 2 rounds") as error, held(home, 2):
        pass
    assert f"those of 1, {ROUNDS}" in error.value.hint


def test_the_home_of_a_coordinator_has_states_too(
    world: World, states: list[Path], home: Path
) -> None:
    (home / "run").mkdir()
    (home / "manifest.json").rename(home / "run" / "manifest.json")
    shutil.copy(states[2], home / "blobs")
    with held(home) as found:
        assert found.root == states[2].name


def test_export_and_generate_hold_on_to_what_they_read(
    world: World, states: list[Path], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Four times of four, though no state is there for longer than some milliseconds."""
    (home / "blobs" / world.run.initial_state).unlink()
    with churning(states, home):
        for number in range(4):
            out = tmp_path / f"model-{number}"
            assert cli.main(["model", "export", str(out), "--home", str(home), "--json"]) == 0
            root = json.loads(capsys.readouterr().out)["state"]
            assert root in (out / "README.md").read_text()
            sample = ["model", "generate", "--home", str(home), "--tokens", "1"]
            assert cli.main(sample) == 0
            capsys.readouterr()


def test_a_damaged_state_is_not_exported(
    states: list[Path], home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = bytearray(states[0].read_bytes())
    data[-1] ^= 1
    (home / "blobs" / states[0].name).write_bytes(data)
    assert cli.main(["model", "export", str(tmp_path / "model"), "--home", str(home)]) == 1
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
