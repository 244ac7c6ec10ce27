"""Reading the newest state of a home at which a node is at work, which deletes states."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from artel import cli
from artel.ledger import entries
from artel.ledger.entries.genesis import read_genesis
from artel.ledger.fold import shares
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.node.newest import newest
from artel.protocol import dsse, model
from artel.protocol.errors import UsageError
from artel.protocol.identity import Identity
from artel.protocol.manifest import open_manifest
from artel.protocol.state import State, write_state
from ledger_world import World as Ledger
from trainer_world import World

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
def states(world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of the states after each round, named by their roots as in a content store."""
    folder = tmp_path_factory.mktemp("states")
    layout = model.layout_of(model.empty(world.run.config.model, world.run.tokenizer.vocab_size))
    random = np.random.default_rng(3)
    for number in range(1, ROUNDS + 1):
        noise = random.standard_normal(layout.parameters).astype(np.float32) * 0.1
        path = folder / "new"
        root = write_state(path, State(number, layout.digest, noise, np.zeros_like(noise)))
        path.rename(folder / f"{number}-{root}")
    return folder


@pytest.fixture
def home(world: World, states: Path, tmp_path: Path) -> Path:
    """A home that joined the run; its ledger agrees on every state, its store is empty."""
    home = tmp_path / "home"
    (home / "blobs").mkdir(parents=True)
    envelope = world.manifest.read_bytes()
    (home / "manifest.json").write_bytes(envelope)
    shutil.copy(world.tokenizer, home / "blobs" / world.run.tokenizer.id)
    write_ledger(envelope, roots_of(states), home)
    return home


def roots_of(states: Path) -> list[str]:
    """Roots of the states after round 1, 2 and so on."""
    named = (path.name.split("-") for path in states.iterdir())
    return [root for _, root in sorted(named, key=lambda parts: int(parts[0]))]


def write_ledger(envelope: bytes, roots: list[str], home: Path) -> None:
    """The ledger of a run of one node in which these states were agreed on."""
    manifest, run = open_manifest(envelope)
    log = Ledger(nodes=1)
    log.coordinator = Identity.from_seed(b"\7" * 32)
    log.genesis, log.run = dsse.decode(envelope), run
    log.work = read_genesis(log.genesis.payload).rules.work
    member, steps = log.members[0], manifest.config.rounds.inner_steps
    windows = steps * manifest.config.optimizer.batch_size
    lines = [log.genesis, *log.introductions()]
    base = manifest.initial_state
    for number, root in enumerate(roots):
        work = {"head": steps, "tail": 0, "tokens": log.work.tokens(steps), "base": base}
        shown = log.contribution(member, number, **work)
        lines += [
            log.opened(number, base=base, cursor=number * windows, steps={member.peer_id: steps}),
            log.committed(number),
            shown,
            log.closed(number, shown={member.peer_id: shown}),
            log.agreed(number + 1, root=root),
        ]
        base = root
    leaves = log.add(*lines)
    assert shares.fold(map(entries.decode, leaves)).states == [manifest.initial_state, *roots]

    sign = partial(sign_checkpoint, log.coordinator, origin_of(run))

    with LedgerStore.open(home / DATABASE_NAME, create=True, run=run) as store:
        store.append(leaves[:1], sign)
        store.append(leaves[1:], sign)


@contextlib.contextmanager
def churning(states: Path, home: Path) -> Iterator[None]:
    """Another process makes and deletes states in the home."""
    stash = home.parent / "stash"
    stash.mkdir()
    for path in states.iterdir():
        os.link(path, stash / path.name.split("-")[1])
    command = [sys.executable, "-c", CHURN, stash, home / "blobs", *roots_of(states)]
    environment = os.environ | {"PARENT": str(os.getpid())}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        try:
            yield
        finally:
            process.kill()


def test_the_newest_agreed_state_is_found(world: World, states: Path, home: Path) -> None:
    with pytest.raises(UsageError, match="no agreed state"), newest(home):
        pass
    first, *_, last = sorted(states.iterdir(), key=lambda path: int(path.name.split("-")[0]))
    (home / "blobs" / ("0" * 64)).write_bytes(last.read_bytes())  # not agreed on
    for path in (last, first):
        (home / "blobs" / path.name.split("-")[1]).write_bytes(path.read_bytes())
    with newest(home) as found:
        assert found.root == last.name.split("-")[1]
        assert found.manifest == world.run


def test_export_and_sample_hold_on_to_what_they_read(
    world: World, states: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Twenty times of twenty, though no state is there for longer than some milliseconds."""
    with churning(states, home):
        for number in range(10):
            out = tmp_path / f"model-{number}"
            assert cli.main(["node", "export", str(out), "--home", str(home), "--json"]) == 0
            root = json.loads(capsys.readouterr().out)["state"]
            assert root in (out / "README.md").read_text()
            sample = ["node", "sample", "--home", str(home), "--tokens", "1"]
            assert cli.main(sample) == 0
            capsys.readouterr()


def test_a_damaged_state_is_not_exported(
    world: World, states: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = next(states.iterdir())
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    (home / "blobs" / path.name.split("-")[1]).write_bytes(data)
    assert cli.main(["node", "export", str(tmp_path / "model"), "--home", str(home)]) == 1
    assert "damaged" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
