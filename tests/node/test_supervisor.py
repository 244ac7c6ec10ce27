"""The daemon's side of the trainer: deaths, restarts, signals, time-outs."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from artel.node import child
from artel.node.child import TrainerDied
from artel.node.supervisor import Trainer
from artel.node.trainer import launch
from artel.node.trainer.orders import Benchmark, Load, Train
from places import ROOT
from trainer_world import NODES, World, death_of
from trainer_world import started as fresh

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module")
async def trainer(tmp_path: Path) -> AsyncIterator[Trainer]:
    """A fresh child; it answers before it has imported torch."""
    started = await fresh(tmp_path / "trainer.log")
    yield started
    await started.close()


async def test_a_killed_trainer_is_reported_and_a_fresh_one_repeats_its_work(
    world: World, endless: World, trainer: Trainer, tmp_path: Path
) -> None:
    await trainer.do(Load(world.manifest, world.state, device="cpu"))
    first = await trainer.do(Train(0, NODES[0], world.windows(0), tmp_path / "a", steps=8))
    await trainer.do(Load(endless.manifest, endless.state, device="cpu"))
    memory = trainer.memory_bytes()
    assert memory is not None
    assert memory > 100 << 20
    pid = trainer.pid
    assert pid is not None
    with pytest.raises(TrainerDied) as death:
        await trainer.do(
            Train(0, NODES[0], endless.windows(0), tmp_path / "b", steps=5000),
            on_progress=lambda _: os.kill(pid, signal.SIGKILL),
        )
    assert "SIGKILL" in death.value.message
    assert "memory" in death.value.hint
    assert await death_of(trainer) is death.value
    assert not psutil.pid_exists(pid)  # reaped, not a zombie
    assert (trainer.alive, trainer.pid, trainer.memory_bytes()) == (False, None, None)
    with pytest.raises(TrainerDied):
        await trainer.do(Benchmark())

    await trainer.restart()
    await trainer.do(Load(world.manifest, world.state, device="cpu"))
    again = await trainer.do(Train(0, NODES[0], world.windows(0), tmp_path / "c", steps=8))
    assert again.blob.read_bytes() == first.blob.read_bytes()

    # Closing in the middle of a round does not wait for its end.
    await trainer.do(Load(endless.manifest, endless.state, device="cpu"))
    training = asyncio.Event()
    task = asyncio.ensure_future(
        trainer.do(
            Train(0, NODES[0], endless.windows(0), tmp_path / "d", steps=5000),
            on_progress=lambda _: training.set(),
        )
    )
    await asyncio.wait_for(training.wait(), 20)
    start = time.monotonic()
    await trainer.close()
    assert time.monotonic() - start < child.STOP_S
    outcome = (await asyncio.gather(task, return_exceptions=True))[0]
    assert getattr(outcome, "code", "died") in ("cancelled", "died")


async def test_a_crash_names_the_signal_and_the_log(trainer: Trainer, tmp_path: Path) -> None:
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGSEGV)
    death = await asyncio.wait_for(death_of(trainer), 10)
    assert "SIGSEGV" in death.message
    assert str(tmp_path / "trainer.log") in death.hint
    assert "Segmentation fault" in (tmp_path / "trainer.log").read_text()


async def test_ctrl_c_in_the_terminal_does_not_reach_the_trainer(trainer: Trainer) -> None:
    pid = trainer.pid
    assert pid is not None
    assert os.getpgid(pid) != os.getpgid(0)
    os.kill(pid, signal.SIGINT)  # and neither does one that is sent to it alone
    with pytest.raises(asyncio.TimeoutError):
        await asyncio.wait_for(death_of(trainer), 0.3)
    assert trainer.pid == pid
    await trainer.close()
    await trainer.close()
    assert not psutil.pid_exists(pid)


async def test_a_child_that_ignores_everything_is_killed(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "STOP_S", 0.2)
    pid = trainer.pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    await trainer.close()
    assert not psutil.pid_exists(pid)


async def test_a_command_that_hangs_ends_the_child_and_says_so(
    trainer: Trainer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "CANCEL_S", 0.2)
    monkeypatch.setattr(Benchmark, "limit_s", 0.2)
    assert trainer.pid is not None
    os.kill(trainer.pid, signal.SIGSTOP)
    with pytest.raises(TrainerDied, match="hung in benchmark"):
        await trainer.do(Benchmark(1))
    assert not trainer.alive


async def test_the_trainer_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import asyncio, pathlib, sys\n"
        "from artel.node.supervisor import Trainer\n"
        "async def main():\n"
        f"    trainer = Trainer(pathlib.Path({str(tmp_path / 'log')!r}), 0)\n"
        "    await trainer.restart()\n"
        "    print(trainer.pid, 'torch' in sys.modules, flush=True)\n"
        "    await trainer.child.dead\n"
        "asyncio.run(main())\n"
    )
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", script, stdout=subprocess.PIPE, cwd=ROOT
    )
    assert parent.stdout is not None
    pid, torch_imported = (await asyncio.wait_for(parent.stdout.readline(), 30)).split()
    child = psutil.Process(int(pid))
    parent.kill()
    await parent.wait()
    assert torch_imported == b"False"
    await asyncio.to_thread(child.wait, 10)


async def test_a_log_that_grew_too_long_is_set_aside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(launch, "MAX_LOG_BYTES", 10)
    log = tmp_path / "logs" / "trainer.log"
    log.parent.mkdir()
    log.write_text("x" * 11)
    trainer = await fresh(log)
    assert trainer.alive
    await trainer.close()
    assert (tmp_path / "logs" / "trainer.log.old").read_text() == "x" * 11
    assert "x" not in log.read_text()
