"""The inner optimisers: Muon, snapshots, and what the machine computes in."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artel.node.trainer import machine
from artel.node.trainer.data import Windows
from artel.node.trainer.inner import Inner
from artel.node.trainer.muon import Muon, optimizers, orthogonal
from artel.node.trainer.orders import Train
from artel.node.trainer.training import open_training
from artel.protocol import model
from artel.protocol.errors import ArtelError
from artel.protocol.run_config import ModelSection
from trainer_world import NODES, World, make_world


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return make_world(tmp_path_factory.mktemp("world"), optimizer={"kind": "muon", "muon_lr": 0.01})


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # more of them wait for each other on a busy machine


def inner_of(world: World) -> Inner:
    module = model.build(world.run.config.model, 257, 5)
    params = model.read_parameters(module)
    inner = Inner(world.run, module, model.layout_of(module), "cpu")
    inner.load(params)
    return inner


def batches(world: World) -> list[np.ndarray]:
    return list(Windows(world.run, world.windows(0)).batches(4))


def test_muon_takes_the_matrices_of_the_blocks_and_no_others(world: World) -> None:
    module = model.build(world.run.config.model, 257, 5)
    adamw, muon = optimizers(world.run, module, bf16=False)
    names = {id(p): name for name, p in module.named_parameters()}
    taken = [
        {names[id(p)] for group in optimizer.param_groups for p in group["params"]}
        for optimizer in (adamw, muon)
    ]
    assert taken[0].isdisjoint(taken[1])
    assert taken[0] | taken[1] == set(names.values())
    assert all(".layers." in name and "norm" not in name for name in taken[1])
    assert len(taken[1]) == 2 * 7
    assert [group["ratio"] for group in muon.param_groups] == [pytest.approx(0.01 / 5e-3)]


def test_an_untied_head_stays_with_adamw(tmp_path: Path) -> None:
    world = make_world(tmp_path, optimizer={"kind": "muon"}, tie_word_embeddings=False)
    module = model.build(world.run.config.model, 257, 5)
    adamw, _ = optimizers(world.run, module, bf16=False)
    taken = {id(p) for group in adamw.param_groups for p in group["params"]}
    named = dict(module.named_parameters())
    assert {id(named["lm_head.weight"]), id(named["model.embed_tokens.weight"])} <= taken


@pytest.mark.parametrize("shape", [(8, 24), (24, 8), (16, 16)])
def test_muon_steps_as_the_one_of_torch(shape: tuple[int, int]) -> None:
    torch.manual_seed(3)
    start = torch.randn(shape)
    gradients = [torch.randn(shape) for _ in range(5)]
    settings: dict[str, Any] = {"lr": 0.02, "momentum": 0.95, "weight_decay": 0.1}
    ended = []
    for make in (
        lambda p: torch.optim.Muon([p], **settings, nesterov=True),
        lambda p: Muon([p], **settings, dtype=torch.bfloat16),
        lambda p: Muon([p], **settings, dtype=torch.float32),
    ):
        parameter = torch.nn.Parameter(start.clone())
        optimizer = make(parameter)
        for gradient in gradients:
            parameter.grad = gradient.clone()
            optimizer.step()
        ended.append(parameter.detach())
    assert torch.allclose(ended[0], ended[1], atol=1e-4)
    assert torch.allclose(ended[0], ended[2], atol=5e-3)  # 2e-2 a step, 1 % of it in bf16
    assert float((start - ended[0]).abs().max()) > 3e-2


@pytest.mark.parametrize("shape", [(5, 8, 24), (5, 24, 8), (3, 16, 16)])
def test_a_stack_of_experts_steps_as_its_matrices_one_by_one(shape: tuple[int, ...]) -> None:
    torch.manual_seed(3)
    start = torch.randn(shape)
    gradients = [torch.randn(shape) * torch.logspace(-3, 2, shape[0])[:, None, None]] * 4
    gradients[2] = gradients[2].clone()
    gradients[2][1] = 0  # an expert that no token was sent to
    whole = torch.nn.Parameter(start.clone())
    single = [torch.nn.Parameter(matrix.clone()) for matrix in start]
    made = [
        Muon(parameters, lr=0.02, momentum=0.95, weight_decay=0.1, dtype=torch.float32)
        for parameters in ([whole], single)
    ]
    for gradient in gradients:
        whole.grad = gradient.clone()
        for parameter, part in zip(single, gradient, strict=True):
            parameter.grad = part.clone()
        for optimizer in made:
            optimizer.step()
    # 2e-2 a step; the last bits may differ, as a batch is multiplied by other loops.
    assert torch.allclose(whole, torch.stack(list(single)), atol=1e-5)
    assert float((start - whole.detach()).abs().amax(dim=(1, 2)).min()) > 1e-2


EXPERTS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
}


@pytest.mark.parametrize(
    ("kind", "keys", "left"),
    [
        ("mixtral", EXPERTS | {"tie_word_embeddings": True}, ("norm",)),
        ("gpt_oss", EXPERTS | {"head_dim": 16}, ("norm", "bias", "sinks")),
        (
            "mamba",
            {"hidden_size": 32, "num_hidden_layers": 2},
            ("norm", "norm_f", "bias", "conv1d", "D"),
        ),
    ],
)
def test_muon_takes_experts_but_no_filters_and_no_vectors(
    kind: str, keys: dict[str, Any], left: tuple[str, ...]
) -> None:
    described = ModelSection.model_validate({"type": kind, "config": keys})
    module = model.empty(described, 257)
    taken = {id(p) for p in model.block_matrices(module)}
    for name, parameter in module.named_parameters():
        outside = "embed" in name or "lm_head" in name
        apart = outside or name.endswith(left) or any(f"{word}." in name for word in left)
        assert (id(parameter) in taken) is not apart, name
    if kind == "mixtral":
        share = sum(p.numel() for p in model.block_matrices(module))
        assert share > 0.75 * model.layout_of(module).parameters


def test_an_orthogonal_matrix_has_singular_values_near_one() -> None:
    torch.manual_seed(3)
    for shape in ((8, 24), (24, 8), (32, 32)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape), torch.float32))
        assert 0.3 < float(values.min()) <= float(values.max()) < 1.3
    assert not orthogonal(torch.zeros(4, 4), torch.float32).any()


def test_muon_lowers_the_loss(world: World) -> None:
    inner, adamw = inner_of(world), inner_of(make_world(world.home / "adamw"))
    losses = [
        [float(each.step(batch, 5e-3)) for batch in batches(world) * 4] for each in (inner, adamw)
    ]
    assert np.mean(losses[0][-4:]) < 0.8 * losses[0][0]
    assert np.mean(losses[0][-4:]) < 1.05 * np.mean(losses[1][-4:])


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_a_snapshot_restores_to_the_bit(tmp_path: Path, kind: str) -> None:
    world = make_world(tmp_path, optimizer={"kind": kind})
    inner, data = inner_of(world), batches(world)
    fresh = inner.save()
    for batch in data[:3]:
        inner.step(batch, 5e-3)
    snapshot = inner.save()

    def go_on() -> np.ndarray:
        for batch in data[3:]:
            inner.step(batch, 5e-3)
        return inner.read()

    after = go_on()
    inner.restore(snapshot)
    assert np.array_equal(go_on(), after)
    # Also when in between it was where there were no moments at all.
    inner.restore(fresh)
    for batch in data[:3]:
        inner.step(batch, 5e-3)
    assert np.array_equal(inner.read(), snapshot.weights)
    inner.restore(fresh)
    inner.restore(snapshot)
    assert np.array_equal(go_on(), after)
    # Memory that is used again holds the new numbers, none of the old ones.
    again = inner.save(snapshot)
    assert again is snapshot
    assert np.array_equal(again.weights, after)
    values = inner.save().moments
    for place, name in itertools.product(values, values[0]):
        if name in values[place]:
            assert torch.equal(values[place][name], again.moments[place][name])


def test_a_round_with_muon_trained_again_gives_the_same_blob(world: World, tmp_path: Path) -> None:
    session = open_training(world.manifest, world.state, "cpu")
    order = Train(
        round=0,
        node=NODES[0],
        windows=world.windows(0),
        out=tmp_path,
        steps=8,
        tail=0,
    )
    blobs = [session.train(order, lambda _: None, lambda: None).blob.read_bytes() for _ in range(2)]
    assert blobs[0] == blobs[1]


def test_bf16_is_used_where_the_machine_computes_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for able in (True, False):
        monkeypatch.setattr(machine, "computes_bf16", lambda _, able=able: able)
        for width in (32, 1024):
            assert machine.autocast("bf16", "cpu", width) is able
            assert machine.autocast("auto", "cuda", width) is able
            assert not machine.autocast("fp32", "cuda", width)
        # On a CPU narrow models are slower in it.
        assert machine.autocast("auto", "cpu", 1024) is able
        assert not machine.autocast("auto", "cpu", 32)
    for wanted in ("tpu", "cuda" if not torch.cuda.is_available() else "mps"):
        with pytest.raises(ArtelError):
            machine.choose(wanted)


def test_bf16_activations_are_close_to_fp32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "computes_bf16", lambda _: True)
    world = make_world(tmp_path, optimizer={"precision": "bf16"})
    inner, exact = inner_of(world), inner_of(make_world(tmp_path / "fp32"))
    assert (inner.bf16, exact.bf16) == (True, False)
    first = batches(world)[0]
    sums = [each.loss_sum(each.read(), [first]) for each in (inner, exact)]
    assert sums[0] != sums[1]
    assert sums[0] == pytest.approx(sums[1], rel=0.01)
    inner.step(first, 1e-3)
    assert inner.read().dtype == np.float32


def test_a_short_run_in_bf16_ends_where_one_in_fp32_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What lets "auto" mean bf16 on a CPU that has it."""
    monkeypatch.setattr(machine, "computes_bf16", lambda _: True)
    wide = {"hidden_size": machine.NARROWEST, "num_hidden_layers": 1, "num_attention_heads": 4}
    losses = []
    for precision in ("auto", "fp32"):
        world = make_world(tmp_path / precision, optimizer={"precision": precision}, **wide)
        inner, data = inner_of(world), batches(world)
        assert inner.bf16 is (precision == "auto")
        for _ in range(3):
            for batch in data:
                inner.step(batch, 2e-3)
        losses.append(inner.loss_sum(inner.read(), data) / (len(data) * data[0][:, 1:].size))
    assert losses[0] < 4 < np.log(257)
    assert losses[0] == pytest.approx(losses[1], abs=0.02)
