"""Models from transformers: one flat layout, the seed decides, and wrong keys are explained."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from artel.protocol import model, objective
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.run_config import ModelSection
from artel.protocol.run_file import causal_model_types

TINY = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
}


def llama(**keys: object) -> ModelSection:
    return ModelSection.model_validate({"type": "llama", "config": TINY | keys})


def test_the_seed_decides_the_parameters_and_leaves_torch_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    first = model.read_parameters(model.build(llama(), 257, seed=1))
    assert torch.equal(torch.rand(3), expected)
    assert np.array_equal(first, model.read_parameters(model.build(llama(), 257, seed=1)))
    assert not np.array_equal(first, model.read_parameters(model.build(llama(), 257, seed=2)))


def test_parameters_round_trip_through_the_flat_vector() -> None:
    module = model.build(llama(), 257, seed=1)
    layout = model.layout_of(module)
    flat = np.arange(layout.parameters, dtype=np.float32)
    model.load_parameters(module, flat)
    assert np.array_equal(model.read_parameters(module), flat)
    named = dict(module.named_parameters())
    for tensor in layout.tensors:
        part = flat[tensor.offset : tensor.offset + tensor.size].reshape(tensor.shape)
        assert np.array_equal(named[tensor.name].detach().numpy(), part)
    assert [t.name for t in layout.tensors] == sorted(named)
    with pytest.raises(CheckFailed):
        model.load_parameters(module, flat[1:])


def test_tied_weights_are_one_tensor_and_stay_tied() -> None:
    tied = model.build(llama(tie_word_embeddings=True), 257, seed=1)
    untied = model.build(llama(tie_word_embeddings=False), 257, seed=1)
    sizes = [model.layout_of(module).parameters for module in (tied, untied)]
    assert sizes[1] - sizes[0] == 257 * 32
    flat = model.read_parameters(tied) * 2
    model.load_parameters(tied, flat)
    assert tied.get_output_embeddings().weight is tied.get_input_embeddings().weight  # type: ignore[operator, union-attr]


def test_the_layout_is_known_without_allocating() -> None:
    assert model.layout_of(model.empty(llama(), 257)) == model.layout_of(
        model.build(llama(), 257, seed=0)
    )
    huge = ModelSection.model_validate(
        {"type": "llama", "config": TINY | {"hidden_size": 12_000, "num_hidden_layers": 3}}
    )
    assert model.layout_of(model.empty(huge, 100_000)).parameters > 3 * 10**9


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 64}),
        ("qwen3", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}),
        ("gpt_neox", {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}),
    ],
)
def test_other_architectures_build(kind: str, keys: dict[str, object]) -> None:
    module = model.empty(ModelSection.model_validate({"type": kind, "config": keys}), 300)
    assert model.layout_of(module).parameters > 0
    assert module.config.pad_token_id is None  # type: ignore[union-attr]


MAMBA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_ssm": 64,
    "mamba_d_state": 4,
}


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("qwen3_moe", TINY | {"num_experts": 4, "moe_intermediate_size": 16}),
        ("glm4_moe", TINY | {"n_routed_experts": 4, "moe_intermediate_size": 16}),
        ("falcon_h1", MAMBA),
    ],
)
def test_keys_that_only_the_code_of_a_model_names_are_taken(
    kind: str, keys: dict[str, object]
) -> None:
    widths = []
    for more in ({}, {"head_dim": 64}):
        described = ModelSection.model_validate({"type": kind, "config": keys | more})
        named = dict(model.empty(described, 257).named_parameters())
        widths.append(named["model.layers.0.self_attn.q_proj.weight"].shape[0])
    assert widths == [2 * 16, 2 * 64]
    typo = ModelSection.model_validate({"type": kind, "config": keys | {"head_dims": 64}})
    with pytest.raises(UsageError, match="head_dims is no key") as caught:
        model.empty(typo, 257)
    assert "head_dim?" in caught.value.hint


def test_a_key_that_other_uses_of_a_model_read_has_no_effect() -> None:
    """GPT-2's classifiers read it; the language model does not."""
    described = ModelSection.model_validate({"type": "gpt2", "config": {"hidden_dropout": 0.5}})
    with pytest.raises(UsageError, match="hidden_dropout has no effect"):
        model.empty(described, 257)


def test_a_model_of_byte_patches_works_and_its_defaults_are_too_large() -> None:
    with pytest.raises(UsageError, match=r"4,633,124,608 parameters, at most 4,294,967,296"):
        model.empty(ModelSection(type="blt", config={}), 257)
    inner = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    outside = inner | {"hidden_size_global": 64}
    keys = {
        "encoder_hash_byte_group_vocab": 100,
        "patcher_config": inner,
        "encoder_config": outside,
        "decoder_config": outside,
        "global_config": inner | {"hidden_size": 64},
    }
    module = model.build(ModelSection.model_validate({"type": "blt", "config": keys}), 257, 0)
    objective.without_memory(module)
    windows = torch.arange(2 * 33).view(2, 33)
    for bf16 in (False, True):
        loss, _ = objective.losses(module, windows, bf16=bf16)
        loss.backward()
        assert float(loss) == pytest.approx(np.log(257), rel=0.1)


def test_token_ids_that_cannot_be_left_out_are_small_ones() -> None:
    keys = TINY | {"num_key_value_heads": 2}
    module = model.empty(ModelSection.model_validate({"type": "cwm", "config": keys}), 257)
    assert module.config.bos_token_id == 0  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("described", "message", "hint"),
    [
        (llama(hidden_sise=3), "hidden_sise is no key of the model type llama", "hidden_size"),
        (llama(hidden_size="wide"), "expected int, got str", "[model.config]"),
        (llama(hidden_size=33), "not a multiple of the number of attention heads", ""),
        (llama(hidden_act="gelUU"), "cannot build this llama model", ""),
        (llama(num_hidden_layers=9999), "9999 layers, at most 512", ""),
        (ModelSection(type="lama", config={}), "'lama' is unknown to transformers", "llama"),
    ],
)
def test_a_model_that_does_not_work_is_explained(
    described: ModelSection, message: str, hint: str
) -> None:
    with pytest.raises(UsageError) as caught:
        model.empty(described, 257)
    assert message in caught.value.message
    assert "\n" not in caught.value.message
    assert hint in caught.value.hint


def test_a_whole_number_serves_as_a_float() -> None:
    """Canonical JSON writes 1.0 as 1; transformers' own validation would refuse the integer."""
    described = llama(rms_norm_eps=1.0)
    assert described.config["rms_norm_eps"] == 1
    assert type(model.transformers_config(described, 257).rms_norm_eps) is float


def test_the_registry_of_model_types_is_found() -> None:
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    assert set(causal_model_types()) == set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
