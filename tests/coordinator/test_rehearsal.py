"""A run's model is tried, and what would not work, or not as written, is said beforehand."""

from __future__ import annotations

import json
from typing import Any

import pytest

from artel.coordinator.rehearsal import rehearse
from artel.protocol import model
from artel.protocol.errors import UsageError
from artel.protocol.run_config import RunConfig

BLOCKS: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
}
MIXTRAL = BLOCKS | {"num_local_experts": 4}
LATENT = {
    "q_lora_rank": 8,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}
ROUTED = BLOCKS | {"n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
GROUPS = {"n_group": 1, "topk_group": 1, "first_k_dense_replace": 1}
DBRX = {
    "d_model": 32,
    "n_heads": 2,
    "n_layers": 1,
    "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 32},
    "attn_config": {"kv_n_heads": 2, "clip_qkv": 8, "rope_theta": 10_000},
}


def tried(kind: str, keys: dict[str, Any], precision: str = "fp32") -> tuple[str, ...]:
    config = RunConfig.model_validate_json(
        json.dumps(
            {
                "run": {"name": "tiny"},
                "model": {"type": kind, "config": keys},
                "tokenizer": {"kind": "bytes"},
                "data": {"sources": [{"kind": "stdlib"}], "seq_len": 32},
                "optimizer": {"precision": precision},
            }
        )
    )
    return rehearse(config, model.empty(config.model, 257))


@pytest.mark.parametrize(
    ("kind", "keys", "word"),
    [
        ("llama", BLOCKS, ""),
        ("mixtral", MIXTRAL, ""),
        ("mixtral", MIXTRAL | {"router_aux_loss_coef": 0.0}, "turned off"),
        ("mixtral", MIXTRAL | {"output_router_logits": False}, "turned off"),
        ("dbrx", DBRX, ""),
        ("deepseek_v2", ROUTED | LATENT | GROUPS, "no auxiliary loss"),
        ("glm4_moe", ROUTED | GROUPS, "e_score_correction_bias"),
        ("deepseek_v3", ROUTED | LATENT | GROUPS, "e_score_correction_bias"),
        # Balanced by a bias that is not trained here, and by a loss that is.
        ("minimax_m2", MIXTRAL | {"head_dim": 16, "num_experts_per_tok": 2}, ""),
        ("qwen3_moe", BLOCKS | {"mlp_only_layers": [0, 1]}, ""),  # no layer of it has experts
    ],
)
def test_experts_that_nothing_balances_are_warned_about(
    kind: str, keys: dict[str, Any], word: str
) -> None:
    warnings = tried(kind, keys)
    assert len(warnings) == (1 if word else 0)
    assert all("experts" in warning and word in warning for warning in warnings)


@pytest.mark.parametrize(
    ("kind", "keys"),
    [
        ("glm4_moe", ROUTED | GROUPS | {"output_router_logits": True}),
        ("llama4_text", MIXTRAL | {"router_aux_loss_coef": 0.1}),
        ("qwen3_moe", BLOCKS | {"mlp_only_layers": [0, 1], "router_aux_loss_coef": 0.1}),
    ],
)
def test_an_auxiliary_loss_that_there_is_not_is_refused(kind: str, keys: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="has no effect") as caught:
        tried(kind, keys)
    assert caught.value.hint.startswith("remove ")


def test_a_model_that_its_library_cannot_train_is_refused_in_one_line() -> None:
    assert tried("dbrx", DBRX, "fp32") == ()
    for precision in ("auto", "bf16"):
        with pytest.raises(UsageError, match="dbrx") as caught:
            tried("dbrx", DBRX, precision)
        assert "bf16" in caught.value.message
        assert "\n" not in caught.value.message
        assert 'precision = "fp32"' in caught.value.hint
    roberta = {key: value for key, value in BLOCKS.items() if key != "num_key_value_heads"}
    with pytest.raises(UsageError, match="roberta") as caught:
        tried("roberta", roberta | {"is_decoder": True})  # it needs a padding token
    assert "\n" not in caught.value.message


def test_trying_a_model_leaves_the_randomness_of_torch_alone() -> None:
    import torch

    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    tried("gpt2", {"n_embd": 32, "n_layer": 1, "n_head": 2}, "auto")
    assert torch.equal(torch.rand(3), expected)
