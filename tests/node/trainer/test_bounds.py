"""What a lying manifest can make a node build: nothing, and nothing without a bound on memory."""

from __future__ import annotations

import resource
from pathlib import Path
from typing import Any

import pytest

from artel.node import join
from artel.node.trainer import bounds, training
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import Benchmark, Weigh
from artel.protocol import cgroup, model, rlimit
from artel.protocol.errors import Unfit, UsageError
from artel.protocol.identity import Identity
from artel.protocol.manifest import sign
from artel.protocol.run_config import ModelSection
from trainer_world import World, make_world, started

LIMIT = resource.RLIMIT_DATA


def lying(world: World, path: Path, **facts: Any) -> Path:
    """The world's manifest with other facts about its model."""
    changed = world.run.model_copy(update={"model": world.run.model.model_copy(update=facts)})
    path.write_bytes(sign(changed, Identity.from_seed(b"\7" * 32)).encode())
    return path


def test_memory_beyond_a_bound_is_not_there() -> None:
    before = resource.getrlimit(LIMIT)
    with rlimit.at_most(64 << 20), pytest.raises(MemoryError):
        bytearray(256 << 20)
    assert resource.getrlimit(LIMIT) == before
    assert len(bytearray(256 << 20)) == 256 << 20


async def test_a_manifest_that_names_another_model_is_refused_before_anything_is_built(
    world: World, tmp_path: Path
) -> None:
    trainer = await started(tmp_path / "log")
    try:
        weighed = await trainer.do(Weigh(world.manifest))
        assert weighed.parameters == world.run.model.parameters
        few = lying(world, tmp_path / "few.json", parameters=1000)
        with pytest.raises(Unfit, match=r"names 1,000 parameters, but its model has [\d,]+$"):
            await join._weighed(trainer, few)
        with pytest.raises(Unfit, match="lays the model out differently"):
            await join._weighed(trainer, lying(world, tmp_path / "other.json", layout="ab" * 32))
        with pytest.raises(Unfit):
            await join._weighed(trainer, tmp_path / "none")
        with pytest.raises(TrainerError, match="1,000"):
            training.open_training(few, world.state, "cpu")
        assert (await trainer.do(Weigh(world.manifest))) == weighed, "the trainer lives on"
    finally:
        await trainer.close()


def test_buffers_are_counted(tmp_path: Path) -> None:
    """This architecture keeps a mask with a place for each pair of positions."""

    def buffers(places: int) -> int:
        keys = {"n_positions": places, "n_embd": 8, "n_layer": 2, "n_head": 2}
        made = make_world(tmp_path / str(places), kind="gpt_bigcode", **keys)
        return bounds.weigh(made.run).buffers

    assert buffers(2048) - buffers(64) == 2048**2 - 64**2


def test_a_model_of_endless_parts_ends_at_a_bound(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The number of a decoder's layers has a name of its own here."""
    endless = ModelSection(type="whisper", config={"decoder_layers": 2**30})
    run = world.run.model_copy(
        update={"config": world.run.config.model_copy(update={"model": endless})}
    )
    monkeypatch.setattr(bounds, "WEIGHING_BYTES", 64 << 20)
    with pytest.raises(UsageError, match="cannot build this whisper model"):
        bounds.weigh(run)


def test_a_model_is_built_under_a_bound_that_then_goes(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, during = resource.getrlimit(LIMIT), []
    build = model.build

    def watched(*arguments: Any) -> Any:
        during.append((resource.getrlimit(LIMIT)[0], rlimit.taken() or 0))
        return build(*arguments)

    monkeypatch.setattr(model, "build", watched)
    training.open_training(world.manifest, world.state, "cpu")
    ((limit, taken),) = during
    allowed = bounds.building_bytes(bounds.weigh(world.run))
    other_threads = 64 << 20  # may have given memory back since the limit was set
    assert 0 < limit <= taken + allowed + other_threads
    assert resource.getrlimit(LIMIT) == before


def test_a_step_that_takes_more_than_is_free_fails_instead_of_the_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    large = make_world(tmp_path, optimizer={"batch_size": 8192})
    loaded = training.open_training(large.manifest, large.state, "cpu")
    free = cgroup.Memory(64 << 20, None)
    monkeypatch.setattr(cgroup.Groups, "memory", lambda self: free)
    monkeypatch.setattr(training, "_swap", lambda: 0)
    with pytest.raises(RuntimeError, match="can't allocate memory"):
        loaded.benchmark(Benchmark(1), lambda: None)
