"""What a trainer may take of its machine, changed while it works."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import psutil
import pytest

from artel.node.child import TrainerDied
from artel.node.supervisor import Trainer
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import Apply, Benchmark, Counted, Load, Steps, Train
from artel.node.trainer.throttle import Allowance
from artel.protocol.rlimit import taken
from trainer_world import NODES, World, make_world, started

ALLOWED = os.sched_getaffinity(0)
MANY = pytest.mark.skipif(len(ALLOWED) < 2, reason="needs two processors")


def held_to(trainer: Trainer) -> set[int]:
    """How many processors each thread of a trainer may use."""
    assert trainer.pid is not None
    threads = psutil.Process(trainer.pid).threads()
    return {len(os.sched_getaffinity(thread.id)) for thread in threads}


def train(world: World, round: int = 0) -> Train:
    steps = world.run.config.rounds.inner_steps
    windows = world.windows(0, round)
    return Train(round, NODES[0], windows, world.home, steps=steps, span=0)


@MANY
async def test_fewer_threads_count_at_once_and_in_the_class_from_the_next_command_on(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, inner_steps=10_000)
    trainer = await started(tmp_path / "trainer.log", threads=2)
    begun = asyncio.Event()

    def report(steps: Steps) -> None:
        begun.set()

    try:
        loaded = await trainer.do(Load(world.manifest, world.state, "cpu"))
        assert "/t2/" in loaded.hardware
        training = asyncio.create_task(trainer.do(train(world), on_progress=report))
        await begun.wait()
        assert held_to(trainer) == {len(ALLOWED)}
        trainer.limit(Allowance(1))
        async with asyncio.timeout(5):
            while held_to(trainer) != {1}:
                await asyncio.sleep(0.01)
        assert not training.done()
        training.cancel()
        await asyncio.wait({training})
        await trainer.do(Benchmark(1))
        assert held_to(trainer) == {len(ALLOWED)}
        reloaded = await trainer.do(Load(world.manifest, world.state, "cpu"))
        assert "/t1/" in reloaded.hardware
        await trainer.restart()  # and so does the next one
        again = await trainer.do(Load(world.manifest, world.state, "cpu"))
        assert again.hardware == reloaded.hardware
    finally:
        await trainer.close()


@MANY
@pytest.mark.parametrize(("threads", "span"), [(2, 0), (1, 1)])
async def test_another_number_of_threads_begins_another_span(
    tmp_path: Path, threads: int, span: int
) -> None:
    """Else an honest span would be repeated by machines of the class of its last round alone."""
    world = make_world(tmp_path, inner_steps=4, rounds={"span": 4})
    trainer = await started(tmp_path / "trainer.log", threads=2)
    try:
        await trainer.do(Load(world.manifest, world.state, "cpu"))
        first = await trainer.do(train(world))
        await trainer.do(Apply(0, [Counted(NODES[0], first.blob, first.tokens)], world.home))
        trainer.limit(Allowance(threads))
        second = await trainer.do(train(world, 1))
        assert f"/t{threads}/" in second.hardware
        assert second.span == span
    finally:
        await trainer.close()


async def test_a_bound_on_memory_is_obeyed_by_a_trainer_that_runs(world: World) -> None:
    trainer = await started(world.home / "trainer.log")
    try:
        await trainer.do(Load(world.manifest, world.state, "cpu"))
        assert trainer.pid is not None
        used = taken(trainer.pid)
        assert used is not None
        trainer.limit(Allowance(1, used + (1 << 20)))
        large = make_world(world.home / "large", hidden_size=512, intermediate_size=2048)
        with pytest.raises((TrainerError, TrainerDied)):
            await trainer.do(Load(large.manifest, large.state, "cpu"))
        trainer.limit(Allowance(1))
        if not trainer.alive:
            await trainer.restart()
        assert (await trainer.do(Load(large.manifest, large.state, "cpu"))).root
    finally:
        await trainer.close()
