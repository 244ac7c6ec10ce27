"""What has to hold for any architecture of transformers: evaluations, mixtures of experts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artel.node.trainer.data import Windows
from artel.node.trainer.orders import Apply, Counted, Evaluate, RunOn, Train
from artel.node.trainer.training import Training, open_training
from artel.protocol import model, objective
from artel.protocol.run_config import ModelSection
from artel.protocol.state import Vector
from trainer_world import NODES, World, make_world

STEPS = 4
BLOCKS = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}
EXPERTS = BLOCKS | {"num_key_value_heads": 2, "num_experts_per_tok": 2}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "llama": {},
    "gpt2": {"n_embd": 32, "n_layer": 2, "n_head": 2, "n_positions": 64},  # with dropout
    "qwen3": BLOCKS | {"head_dim": 16, "num_key_value_heads": 2},
    "gpt_neox": BLOCKS,
    "mamba": {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
    "mixtral": EXPERTS | {"num_local_experts": 4},
    "qwen3_moe": EXPERTS | {"num_experts": 4, "moe_intermediate_size": 16},
    "gpt_oss": EXPERTS | {"num_local_experts": 4, "head_dim": 16},
    # Rescales its weights in place when it goes from training to evaluation and back.
    "rwkv": {"hidden_size": 32, "num_hidden_layers": 5, "rescale_every": 2, "context_length": 64},
}


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # more of them wait for each other on a busy machine


def evaluate(world: World, session: Training) -> float:
    return session.evaluate(Evaluate(world.validation), lambda: None)


def rounds(world: World, out: Path, *, evaluations: bool) -> tuple[list[str], Vector, list[float]]:
    """Two rounds of one node that overlap: roots, its weights at the end, and losses."""
    session = open_training(world.manifest, world.state, "cpu")
    roots, losses = [], []

    def pause() -> None:
        if evaluations:
            losses.append(evaluate(world, session))

    pause()
    for round in range(2):
        head, tail, split = world.split(0, round)
        order = Train(
            round=round,
            node=NODES[0],
            windows=head,
            out=out,
            **split,
        )
        made = session.train(order, lambda _: None, lambda: None)
        pause()
        session.run_on(RunOn(round, NODES[0], tail, STEPS), lambda _: None, lambda: None)
        pause()
        listed = [Counted(NODES[0], made.blob, made.tokens)]
        applied = session.merging.apply(Apply(round, listed, out))
        roots.append(applied.root)
        pause()
        if evaluations:  # a node that has just joined with this state sees the same
            joined = open_training(world.manifest, applied.state, "cpu")
            assert evaluate(world, joined) == losses[-1]
    return roots, session.inner.read(), losses


@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_evaluation_leaves_the_training_alone(kind: str, tmp_path: Path) -> None:
    world = make_world(
        tmp_path,
        inner_steps=STEPS,
        exchange={"overlap_steps": 1},
        kind=kind,
        **ARCHITECTURES[kind],
    )
    undisturbed = rounds(world, tmp_path / "a", evaluations=False)
    watched = rounds(world, tmp_path / "b", evaluations=True)
    assert watched[0] == undisturbed[0]
    assert np.array_equal(watched[1], undisturbed[1])
    assert len({*watched[2]}) == 3  # one for each agreed state, however often it was taken
    assert watched[2][-1] < watched[2][0]


@pytest.mark.parametrize("kind", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_the_auxiliary_loss_keeps_experts_evenly_used(kind: str, tmp_path: Path) -> None:
    """It is 2 when each of the experts, two of which take a token, gets the same."""
    after: dict[float, float] = {}
    routers: dict[float, Vector] = {}
    for weight in (0.0, 0.02):
        keys = ARCHITECTURES[kind] | {"router_aux_loss_coef": weight}
        world = make_world(
            tmp_path / str(weight), optimizer={"precision": "fp32"}, kind=kind, **keys
        )
        session = open_training(world.manifest, world.state, "cpu")
        windows = [(str(p), o) for round in range(3) for p, o in world.windows(0, round)]
        batches = list(Windows(world.run, windows).batches(4))
        module = model.build(world.run.config.model, 257, 0)
        model.load_parameters(module, session.inner.read())
        with torch.no_grad():
            plain, _ = objective.losses(module, torch.from_numpy(batches[0]))
        for number in range(40):
            loss = session.inner.step(batches[number % len(batches)], 3e-3)
            if number == 0:
                # What is reported is the next token's loss alone, whatever the experts add.
                assert float(loss) == pytest.approx(float(plain), rel=1e-6)
                moved = session.inner.read() - model.read_parameters(module)
                routers[weight] = np.concatenate(
                    [
                        moved[tensor.offset : tensor.offset + tensor.size]
                        for tensor in session.layout.tensors
                        if tensor.name.endswith(("gate.weight", "router.weight"))
                    ]
                )
        model.load_parameters(module, session.inner.read())
        with torch.no_grad():
            tokens = torch.from_numpy(np.concatenate(batches))
            _, auxiliary = objective.losses(module, tokens, balance=True)
        assert auxiliary is not None
        after[weight] = float(auxiliary)
    assert not np.array_equal(routers[0.0], routers[0.02])
    assert after[0.02] - 2 < 0.5 * (after[0.0] - 2)


def test_what_an_organiser_writes_decides_whether_experts_are_balanced() -> None:
    kind, keys = "mixtral", ARCHITECTURES["mixtral"]
    for written, weight in (
        ({}, 0.001),  # transformers' default
        ({"router_aux_loss_coef": 0.0}, 0.0),
        ({"router_aux_loss_coef": 0.3, "output_router_logits": True}, 0.3),
        ({"router_aux_loss_coef": 0.3, "output_router_logits": False}, 0.0),
    ):
        described = ModelSection.model_validate({"type": kind, "config": keys | written})
        module = model.empty(described, 257)
        assert objective.balance_weight(described, module) == weight
        # The configuration, which is exported, stays what was written.
        asked = bool(written.get("output_router_logits", False))
        assert module.config.output_router_logits is asked  # type: ignore[union-attr]
