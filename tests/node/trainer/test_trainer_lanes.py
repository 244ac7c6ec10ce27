"""The trainer's two lanes: it trains while it applies, and both can be ended."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest
import pytest_asyncio

from artel.node import child
from artel.node.child import TrainerDied
from artel.node.supervisor import Trainer
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import (
    Applied,
    Apply,
    Combine,
    Counted,
    Evaluate,
    Load,
    RunOn,
    Steps,
    Train,
)
from trainer_world import NODES, World, make_world, started

pytestmark = pytest.mark.asyncio(loop_scope="module")

STEPS = 10_000


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    """A run whose tails take half a minute."""
    return make_world(
        tmp_path_factory.mktemp("world"), inner_steps=STEPS, exchange={"overlap_steps": STEPS // 2}
    )


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def process(world: World) -> AsyncIterator[Trainer]:
    fresh = await started(world.home / "trainer.log")
    yield fresh
    await fresh.close()


@pytest_asyncio.fixture(loop_scope="module")
async def trainer(world: World, process: Trainer) -> Trainer:
    if not process.alive:
        await process.restart()
    await process.do(Load(world.manifest, world.state, device="cpu"))
    return process


class Tail:
    """A tail that is being trained after a head of four steps; counts its reports."""

    def __init__(self, trainer: Trainer, world: World, out: Path) -> None:
        self.trainer, self.world, self.out = trainer, world, out
        self.last = 0
        self.news = asyncio.Event()

    async def __aenter__(self) -> Tail:
        head, tail, split = self.world.split(0, 0)
        assert len(tail) == 4 * STEPS // 2
        # In no time at all: the shortest head there is would still take a while.
        steps = split["tail"] + 4
        made = await self.trainer.do(
            Train(0, NODES[0], head[: 4 * 4], self.out, steps=steps, tail=split["tail"])
        )
        self.contribution = Counted(NODES[0], made.blob, made.tokens)
        self.task = asyncio.ensure_future(
            self.trainer.do(RunOn(0, NODES[0], tail, steps=steps), on_progress=self._report)
        )
        await self.progress()
        return self

    async def __aexit__(self, *_: object) -> None:
        self.task.cancel()
        await asyncio.wait({self.task})

    def _report(self, news: Steps) -> None:
        assert 4 < news.step < news.steps == STEPS // 2 + 4
        self.last = news.step
        self.news.set()

    async def progress(self) -> int:
        """Wait for the next report; returns the step it is about."""
        self.news.clear()
        await asyncio.wait_for(self.news.wait(), 20)
        return self.last


def blocked(trainer: Trainer, tail: Tail, pipe: Path) -> asyncio.Future[Applied]:
    """An apply that waits for its contribution's bytes from a pipe."""
    os.mkfifo(pipe)
    listed = [Counted(NODES[0], pipe, 1)]
    return asyncio.ensure_future(trainer.do(Apply(0, listed, tail.out)))


async def test_steps_are_made_while_a_round_is_applied(
    world: World, trainer: Trainer, tmp_path: Path
) -> None:
    async with Tail(trainer, world, tmp_path) as tail:
        applying = blocked(trainer, tail, tmp_path / "pipe")
        # Opening the pipe for writing waits for the reader: then the apply is under way.
        with await asyncio.to_thread((tmp_path / "pipe").open, "wb") as pipe:
            before = await tail.progress()
            assert await tail.progress() > before
            assert not applying.done()
            pipe.write(tail.contribution.blob.read_bytes())
        applied = await asyncio.wait_for(applying, 20)
        assert not tail.task.done()
        assert applied.state.exists()
        # And the main lane has not noticed.
        assert await tail.progress() > before


async def test_the_merge_lane_works_in_the_order_of_the_calls(
    world: World, trainer: Trainer, tmp_path: Path
) -> None:
    async with Tail(trainer, world, tmp_path) as tail:
        listed = [tail.contribution]
        first = asyncio.ensure_future(trainer.do(Combine(0, 0, 1, listed, tmp_path)))
        second = asyncio.ensure_future(trainer.do(Apply(0, listed, tmp_path)))
        third = asyncio.ensure_future(trainer.do(Apply(1, listed, tmp_path)))
        assert (await first).exists()
        assert (await second).state.exists()
        with pytest.raises(TrainerError) as failure:  # a contribution of round 0 is none of round 1
            await third
        assert failure.value.code == "bad_blob"
        assert not tail.task.done()


async def test_what_waits_is_cancelled_at_once_and_the_rest_goes_on(
    world: World, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Tail(trainer, world, tmp_path) as tail:
        applying = blocked(trainer, tail, tmp_path / "pipe")
        with await asyncio.to_thread((tmp_path / "pipe").open, "wb") as pipe:
            with monkeypatch.context() as hurried, pytest.raises(TrainerError) as failure:
                hurried.setattr(Evaluate, "limit_s", 0.2)
                await asyncio.wait_for(trainer.do(Evaluate(world.validation)), 10)
            assert failure.value.code == "timeout"
            aggregating = asyncio.ensure_future(
                trainer.do(Combine(0, 0, 1, [tail.contribution], tmp_path))
            )
            await tail.progress()
            for task in (aggregating, tail.task):  # the first one waits behind the apply
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asyncio.wait_for(task, 10)
            assert not applying.done()
            pipe.write(tail.contribution.blob.read_bytes())
        await asyncio.wait_for(applying, 20)
        # The tail is lost, so the next contribution is made without one.
        head, _, split = world.split(0, 1, steps=8)
        made = await trainer.do(
            Train(
                1,
                NODES[0],
                head,
                tmp_path,
                steps=8,
                tail=split["tail"],
                deadline=time.monotonic() + 0,
            )
        )
        assert (made.tail, made.head) == (0, 1)


async def test_both_lanes_end_when_they_are_told_to(
    world: World, trainer: Trainer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "STOP_S", 1.0)
    pid = trainer.pid
    assert pid is not None
    async with Tail(trainer, world, tmp_path) as tail:
        applying = blocked(trainer, tail, tmp_path / "pipe")
        with await asyncio.to_thread((tmp_path / "pipe").open, "wb"):
            start = time.monotonic()
            await trainer.close()  # an apply that hangs does not keep it alive
            assert time.monotonic() - start < 3
        for waiting in (tail.task, applying):
            with pytest.raises((TrainerDied, TrainerError)):
                await waiting
    assert not psutil.pid_exists(pid)


async def test_a_trainer_ends_at_once_when_only_training_is_under_way(
    world: World, trainer: Trainer, tmp_path: Path
) -> None:
    async with Tail(trainer, world, tmp_path):
        start = time.monotonic()
        await trainer.close()
        assert time.monotonic() - start < child.STOP_S
