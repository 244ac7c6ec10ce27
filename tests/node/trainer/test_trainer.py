"""The trainer: real child processes that train, exchange and apply rounds of a tiny run."""

from __future__ import annotations

import asyncio
import errno
import itertools
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from artel.node.supervisor import Trainer
from artel.node.trainer import channel, exchange
from artel.node.trainer.agreed import Agreed
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.merging import Merging
from artel.node.trainer.orders import (
    Apply,
    ApplySlices,
    Benchmark,
    Combine,
    Counted,
    Evaluate,
    Load,
    RunOn,
    SetState,
    Steps,
    Train,
)
from artel.node.trainer.schedule import learning_rate, position, ramp
from artel.protocol import content, model
from artel.protocol.errors import DecodeError
from artel.protocol.exchange import aggregate_slice, parts
from artel.protocol.exchange.next_state import Base
from artel.protocol.state import Vector, read_state
from trainer_world import NODES, World, started

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def processes(world: World) -> AsyncIterator[tuple[Trainer, Trainer]]:
    first = await started(world.home / "first.log")
    second = await started(world.home / "second.log")
    yield first, second
    await first.close()
    await second.close()


@pytest_asyncio.fixture(loop_scope="module")
async def pair(world: World, processes: tuple[Trainer, Trainer]) -> tuple[Trainer, Trainer]:
    """Both trainers at the beginning of the run."""
    for trainer in processes:
        loaded = await trainer.do(Load(world.manifest, world.state, device="cpu"))
        assert loaded.root == world.run.initial_state
    return processes


async def contribute(trainer: Trainer, world: World, member: int, round: int, out: Path) -> Counted:
    done = await trainer.do(Train(round, NODES[member], world.windows(member, round), out, steps=8))
    return Counted(NODES[member], done.blob, done.tokens)


async def test_two_trainers_reach_the_same_roots_and_the_loss_falls(
    world: World, pair: tuple[Trainer, Trainer], tmp_path: Path
) -> None:
    before = await pair[0].do(Evaluate(world.validation))
    assert before == pytest.approx(np.log(257), rel=0.05)
    for round in range(4):
        listed = [
            await contribute(trainer, world, member, round, tmp_path / str(member))
            for member, trainer in enumerate(pair)
        ]
        first = await pair[0].do(Apply(round, listed, tmp_path / "0"))
        second = await pair[1].do(Apply(round, list(reversed(listed)), tmp_path / "1"))
        assert first.root == second.root
        assert content.file_content_id(first.state) == first.root
        assert first.state.read_bytes() == second.state.read_bytes()
        assert set(first.seconds) == {"decode", "aggregate", "outer", "write"}
        assert all(seconds >= 0 for seconds in first.seconds.values())
    losses = [await trainer.do(Evaluate(world.validation)) for trainer in pair]
    assert losses[0] == losses[1] < 0.85 * before


async def test_the_same_round_trained_again_gives_the_same_blob(
    world: World, pair: tuple[Trainer, Trainer], tmp_path: Path
) -> None:
    """Also in the second round, when the optimiser's moments are not zero any more."""
    trainer, other = pair
    contribution = await contribute(trainer, world, 0, 0, tmp_path)
    applied = await trainer.do(Apply(0, [contribution], tmp_path))
    first = (await contribute(trainer, world, 0, 1, tmp_path / "a")).blob.read_bytes()
    await trainer.do(Benchmark(2))
    second = (await contribute(trainer, world, 0, 1, tmp_path / "b")).blob.read_bytes()
    assert first == second
    # The moments count: a node that joins with this state trains something else.
    await other.do(SetState(applied.state))
    fresh = (await contribute(other, world, 0, 1, tmp_path / "c")).blob.read_bytes()
    assert fresh != first


async def test_training_and_benchmarking_leave_the_agreed_state_alone(
    world: World, pair: tuple[Trainer, Trainer], tmp_path: Path
) -> None:
    trainer, other = pair
    before = await trainer.do(Evaluate(world.validation))
    speed = await trainer.do(Benchmark(2))
    assert speed.tokens_per_second == pytest.approx(4 * 32 / speed.step_seconds)
    reports: list[Steps] = []
    windows = world.windows(0)
    done = await trainer.do(
        Train(0, NODES[0], windows, tmp_path, steps=8), on_progress=reports.append
    )
    assert await trainer.do(Evaluate(world.validation)) == before
    assert (reports[-1].step, reports[-1].steps) == (8, 8)
    assert done.tokens == 8 * 4 * 32
    assert (done.head, done.tail, done.parts) == (8, 0, ())
    assert done.size == done.blob.stat().st_size
    assert set(done.seconds) == {"merge", "idle", "train", "encode", "tail"}
    assert all(seconds >= 0 for seconds in done.seconds.values())
    # A benchmark before the first round changes nothing about the round.
    undisturbed = await other.do(Train(0, NODES[0], windows, tmp_path / "other", steps=8))
    assert undisturbed.blob.read_bytes() == done.blob.read_bytes()
    assert undisturbed.loss == done.loss


async def test_cancelled_training_can_be_repeated_from_its_beginning(
    world: World,
    endless: World,
    pair: tuple[Trainer, Trainer],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    trainer, _ = pair
    await trainer.do(Load(endless.manifest, endless.state, device="cpu"))
    before = await trainer.do(Evaluate(endless.validation))

    def stop_at_first_report(progress: Steps) -> None:
        assert progress.step < progress.steps
        task.cancel()

    order = Train(0, NODES[0], endless.windows(0), tmp_path, steps=5000)
    task = asyncio.ensure_future(trainer.do(order, on_progress=stop_at_first_report))
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await trainer.do(Evaluate(endless.validation)) == before
    assert list(tmp_path.iterdir()) == []

    monkeypatch.setattr(Train, "limit_s", 0.2)
    with pytest.raises(TrainerError) as failure:
        await trainer.do(Train(0, NODES[0], endless.windows(0), tmp_path, steps=5000))
    assert failure.value.code == "timeout"


async def test_training_stops_when_its_caller_is_cancelled(
    endless: World, pair: tuple[Trainer, Trainer], tmp_path: Path
) -> None:
    trainer, _ = pair
    await trainer.do(Load(endless.manifest, endless.state, device="cpu"))
    reported = asyncio.Event()
    task = asyncio.ensure_future(
        trainer.do(
            Train(0, NODES[0], endless.windows(0), tmp_path, steps=5000),
            on_progress=lambda _: reported.set(),
        )
    )
    await asyncio.wait_for(reported.wait(), 20)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    # The next command has its turn at once, not after the rest of the round.
    await asyncio.wait_for(trainer.do(Benchmark(1)), 10)


async def test_a_damaged_blob_is_refused_by_name_and_nothing_changes(
    world: World, pair: tuple[Trainer, Trainer], tmp_path: Path
) -> None:
    good = [
        await contribute(trainer, world, member, 0, tmp_path / str(member))
        for member, trainer in enumerate(pair)
    ]
    trainer = pair[0]
    before = await trainer.do(Evaluate(world.validation))
    blob = bytearray(good[1].blob.read_bytes())
    damaged = {
        "flipped": bytes([blob[0] ^ 1]) + bytes(blob[1:]),
        "short": bytes(blob[:-1]),
        "long": bytes(blob) + b"\0",
        "other-round": bytes(blob[:23]) + b"\1" + bytes(blob[24:]),
    }
    for name, data in damaged.items():
        bad = tmp_path / name
        bad.write_bytes(data)
        listed = [good[0], Counted(NODES[1], bad, good[1].weight)]
        with pytest.raises(TrainerError) as failure:
            await trainer.do(Apply(0, listed, tmp_path / "bad"))
        assert (failure.value.code, failure.value.node) == ("bad_blob", NODES[1]), name
    with pytest.raises(TrainerError) as failure:
        await trainer.do(Apply(0, [Counted(NODES[1], tmp_path / "missing", 1)], tmp_path / "bad"))
    assert failure.value.code == "bad_blob"
    assert not (tmp_path / "bad").exists()
    assert await trainer.do(Evaluate(world.validation)) == before
    after = [await t.do(Apply(0, good, tmp_path / f"good-{i}")) for i, t in enumerate(pair)]
    assert after[0].root == after[1].root


async def test_commands_that_do_not_fit_are_refused_with_a_code(
    world: World, endless: World, pair: tuple[Trainer, Trainer], tmp_path: Path
) -> None:
    trainer = pair[0]
    wild = tmp_path / "wild.bin"
    wild.write_bytes(np.full(100_000, 300, "<u2").tobytes())
    count = len(world.windows(0))
    stray = tmp_path / "state.bin"
    stray.write_bytes(world.state.read_bytes()[:-4])
    calls: list[tuple[str, Any]] = [
        ("wrong_round", trainer.do(Train(3, NODES[0], world.windows(0), tmp_path, steps=8))),
        ("wrong_round", trainer.do(Apply(1, [], tmp_path))),
        ("bad_request", trainer.do(Train(0, NODES[0], world.windows(0)[:-1], tmp_path, steps=8))),
        ("bad_request", trainer.do(Train(0, NODES[0], [], tmp_path, steps=8, tail=8))),
        ("wrong_round", trainer.do(RunOn(0, NODES[0], world.windows(0), steps=8))),
        ("wrong_round", trainer.do(Combine(1, 0, 2, [], tmp_path))),
        ("bad_request", trainer.do(Combine(0, 2, 2, [], tmp_path))),
        ("bad_request", trainer.do(ApplySlices(0, [], [], tmp_path, count=2))),
        ("bad_data", trainer.do(Evaluate([(world.shard, 100_000 - 32)]))),
        ("bad_data", trainer.do(Evaluate([(tmp_path / "none", 0)]))),
        ("bad_data", trainer.do(Train(0, NODES[0], [(wild, 0)] * count, tmp_path, steps=8))),
        ("bad_state", trainer.do(SetState(stray))),
        ("bad_state", trainer.do(SetState(world.state, root="0" * 64))),
        ("bad_state", trainer.do(SetState(tmp_path / "none"))),
        ("bad_manifest", trainer.do(Load(world.shard, world.state))),
    ]
    for code, call in calls:
        with pytest.raises(TrainerError) as failure:
            await call
        assert failure.value.code == code
    with pytest.raises(TrainerError) as failure:  # the failed load took the old run away
        await trainer.do(Benchmark(1))
    assert failure.value.code == "not_loaded"


def give(world: World, base: Base, after: Vector, out: Path) -> Path:
    """The contribution of a node whose weights are ``after``, written with the trainer's code."""
    part = parts.whole(model.layout_of(model.empty(world.run.config.model, 257)))
    payloads = exchange.encode(world.run, [part], base.state.params - after, None)
    made = exchange.write_contribution(
        world.run, [part], payloads, round=0, base=base.root, sharded=False, out=out
    )
    return made.blob


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
async def test_a_full_disk_has_its_own_code_and_leaves_no_file(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    layout = model.layout_of(model.empty(world.run.config.model, 257))
    base = Base(read_state(world.state, layout), world.run.initial_state)
    after = base.state.params - np.float32(0.25)
    given = [Counted(NODES[0], give(world, base, after, tmp_path / "given"), 1)]

    def refuse(self: Path, target: Path) -> Path:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(Path, "replace", refuse)
    expected = "disk_full" if code == errno.ENOSPC else "disk"
    with pytest.raises(TrainerError) as failure:
        give(world, base, after, tmp_path / "out")
    assert failure.value.code == expected
    with pytest.raises(TrainerError) as failure:
        Merging(world.run, layout, Agreed(base)).apply(Apply(0, given, tmp_path / "out"))
    assert failure.value.code == expected
    assert list((tmp_path / "out").iterdir()) == []


async def test_decoding_one_blob_at_a_time_gives_the_same_update(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = model.layout_of(model.empty(world.run.config.model, 257))
    base = Base(read_state(world.state, layout), world.run.initial_state)
    source = np.random.default_rng(3)
    listed = []
    for weight, node in enumerate(NODES, 1):
        after = base.state.params + source.standard_normal(layout.parameters).astype(np.float32)
        listed.append(Counted(node, give(world, base, after, tmp_path / node), weight))
    roots = []
    for limit in (aggregate_slice.CACHE_BYTES, 0):
        monkeypatch.setattr(aggregate_slice, "CACHE_BYTES", limit)
        applied = Merging(world.run, layout, Agreed(base)).apply(Apply(0, listed, tmp_path))
        roots.append(applied.root)
    assert roots[0] == roots[1] != base.root


@pytest.mark.parametrize("schedule", ["cosine", "wsd", "constant"])
async def test_the_learning_rate_warms_up_and_ends_where_the_manifest_says(
    world: World, schedule: str
) -> None:
    config = world.run.config
    optimizer = config.optimizer.model_copy(
        update={"schedule": schedule, "lr": 1.0, "warmup_steps": 4, "final_lr_fraction": 0.1}
    )
    config = config.model_copy(update={"optimizer": optimizer})  # 80 steps
    rates = [learning_rate(config, step) for step in range(81)]
    assert rates[:4] == [0.25, 0.5, 0.75, 1.0]
    assert rates[4] == 1.0
    assert all(a >= b for a, b in itertools.pairwise(rates[3:]))
    assert rates[79] == rates[80] == pytest.approx(1.0 if schedule == "constant" else 0.1)
    half = {"cosine": pytest.approx(0.55, abs=0.02), "wsd": 1.0, "constant": 1.0}
    assert rates[42] == half[schedule]
    # A slow node makes one step where the others make two, and a fast one two where they make one.
    assert learning_rate(config, position(config, 1, 1, 4)) == learning_rate(config, 10)
    assert [ramp(config, step, 0) for step in (0, 1, 80)] == [1, 1, 1], "there is none by default"
    rounds = config.rounds.model_copy(update={"ramp": 3, "span": 5})
    ramped = config.model_copy(update={"rounds": rounds})
    places = [position(ramped, 5, step, 8) for step in range(5)]
    assert [ramp(ramped, place, 5) for place in places] == [0.25, 0.5, 0.75, 1, 1]
    between = learning_rate(config, position(config, 1, 1, 16))
    assert rates[9] <= between <= rates[8]
    assert [learning_rate(config, position(config, 0, i, 16)) for i in (1, 7, 8)] == [
        0.375,
        1.0,
        1.0,
    ]
    if schedule == "wsd":  # the last fifth is linear
        assert rates[63] == 1.0
        assert rates[71] == pytest.approx(0.55)


async def test_messages_are_lines_bounded_and_strict(monkeypatch: pytest.MonkeyPatch) -> None:
    line = channel.encode({"id": 1, "text": "a\nb"})
    assert line.index(b"\n") == len(line) - 1
    assert channel.decode(line) == {"id": 1, "text": "a\nb"}
    for other in (b"\n", b"[1]\n", b"\xff\n", b"{" * 100_000):
        with pytest.raises(DecodeError):
            channel.decode(other)
    with pytest.raises(TrainerError, match="JSON"):
        channel.encode({"loss": float("nan")})
    monkeypatch.setattr(channel, "MAX_BYTES", 10)
    with pytest.raises(TrainerError, match="at most 10"):
        channel.encode({"id": 1, "text": "long"})
