"""Curves of a run: what its page tells is what TensorBoard and Weights & Biases read."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from artel import cli
from artel.coordinator.service import Coordinator
from artel.coordinator.web import RunPage
from artel.ledger.web import server
from artel.ledger.web.server import Gate
from ledger_world import World
from run_page_world import INVITE, coordinating, numbers_of, one_round, published


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[tuple[Coordinator, str]]:
    """A coordinator that knows three rounds, and where its page is."""
    world, folder = World(name="tracking"), tmp_path / "core"
    folder.mkdir()
    manifest, metrics = published(world), numbers_of(folder, world, 3)
    gate = Gate()
    async with coordinating(world, manifest, folder, one_round(world), metrics) as core:
        application = RunPage(core, INVITE).application(gate)
        async with gate.serving(application, server.bind(), folder) as url:
            yield core, url


async def track(*words: str) -> int:
    return await asyncio.to_thread(cli.main, ["run", "track", *words, "--once"])


def curve(folder: Path, tag: str) -> list[tuple[int, float]]:
    """Step and number as TensorBoard reads them."""
    found = EventAccumulator(str(folder))
    found.Reload()
    return [(event.step, round(event.value, 3)) for event in found.Scalars(tag)]


async def test_tensorboard_reads_what_the_page_tells_and_each_round_once(
    page: tuple[Coordinator, str], tmp_path: Path
) -> None:
    core, url = page
    rows, folder = core.metrics.rounds, tmp_path / "curves"
    for _ in range(2):  # a second look finds nothing new
        assert await track(url, "--tensorboard", str(folder)) == 0
        assert curve(folder, "loss/training") == [
            (number, round(rows[number].loss or 0, 3)) for number in range(3)
        ]
    assert curve(folder, "round/tokens") == [(n, float(rows[n].tokens)) for n in range(3)]
    assert curve(folder, "bytes/sent")[0][1] == sum(rows[0].up.values())
    made_again = core.metrics.rounds[2]
    made_again.ended += 60
    made_again.loss = 9.0
    assert await track(url + "/", "--tensorboard", str(folder)) == 0
    assert curve(folder, "loss/training")[-1] == (2, 9.0)
    assert [step for step, _ in curve(folder, "loss/training")][:2] == [0, 1]


async def test_weights_and_biases_goes_on_where_it_was(
    page: tuple[Coordinator, str], tmp_path: Path
) -> None:
    pytest.importorskip("wandb", reason="wandb is not installed")
    _, url = page
    command = (sys.executable, "-m", "artel", "run", "track", url, "--wandb", "artel", "--once")
    done = await asyncio.to_thread(
        subprocess.run,
        command,
        env={**os.environ, "WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (file,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    data = file.read_bytes()
    assert data.count(b"loss/training") >= 3
    assert b"loss/validation" in data


async def test_what_is_no_page_of_a_run_or_nobody_to_write_for_is_one_clear_error(
    page: tuple[Coordinator, str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _, url = page
    assert await track(url) == 2
    assert "--tensorboard DIR or --wandb PROJECT" in capsys.readouterr().err
    assert await track("http://127.0.0.1:9", "--tensorboard", str(tmp_path)) == 3
    monkeypatch.setitem(sys.modules, "wandb", None)
    capsys.readouterr()
    assert await track(url, "--wandb", "artel") == 4
    assert "artel-network[wandb]" in capsys.readouterr().err
