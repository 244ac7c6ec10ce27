"""What a model is trained on: the loss of the next token and, of experts, how evenly they are used.

The one place that runs a model forward: the steps of a node and its evaluations, and the step that
an organiser's machine tries before a run begins. torch is imported inside the functions.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from artel.protocol.run_config import ModelSection

if TYPE_CHECKING:
    import torch

BALANCE_KEYS = ("router_aux_loss_coef", "aux_loss_coef")
"""Names of the auxiliary loss's weight, in configurations and on the models that compute one."""


def balance_weight(described: ModelSection, module: torch.nn.Module) -> float:
    """How much the auxiliary loss of the routers counts in training, beside the next token's.

    It is the model's coefficient, transformers' default included; ``output_router_logits = false``
    in [model.config] turns it off. 0 without experts.
    """
    if described.config.get("output_router_logits") is False or not has_experts(module):
        return 0.0
    weights = [getattr(module, key, None) for key in BALANCE_KEYS]
    return next((float(weight) for weight in weights if weight), 0.0)


def has_experts(module: torch.nn.Module) -> bool:
    """Whether any layer has experts; those of a mixture may all be dense."""
    return any("expert" in name or "router" in name for name, _ in module.named_parameters())


def losses(
    module: torch.nn.Module,
    windows: torch.Tensor,
    *,
    reduction: str = "mean",
    bf16: bool = False,
    balance: bool = False,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Cross-entropy of the next token in nats, and the auxiliary loss of the routers.

    :param windows: token ids on the module's device, (batch, seq_len + 1)
    :param reduction: of the cross-entropy over all targets: "mean" or "sum"
    :param bf16: whether activations are bf16
    :param balance: whether to ask for the auxiliary loss: a mean over tokens and layers (Switch
        Transformers, arXiv 2101.03961, eq. 4), least when all experts get the same
    :returns: two scalars; None without ``balance`` and for models that have no such loss (the plain
        number 0 of some included)
    """
    import torch
    from torch.nn import functional

    asked = {"output_router_logits": True} if balance else {}
    with torch.autocast(windows.device.type, dtype=torch.bfloat16, enabled=bf16):
        output = module(input_ids=windows[:, :-1], **asked)
    logits = output.logits.float()  # (batch, seq_len, vocab)
    loss = functional.cross_entropy(
        logits.flatten(0, 1), windows[:, 1:].flatten(), reduction=reduction
    )
    auxiliary = getattr(output, "aux_loss", None) if balance else None
    return loss, auxiliary.float() if isinstance(auxiliary, torch.Tensor) else None


def without_memory(module: torch.nn.Module) -> None:
    """Whole windows go in: there is nothing to remember for a next token."""
    module.config.use_cache = False  # type: ignore[union-attr]
