"""One step of a run's model, tried before anybody volunteers for it.

A model can be built and still not work: libraries fail in one precision, need an input that a run
does not give, or ignore a setting. Whoever describes the run is told, not its volunteers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from artel.protocol import model, objective
from artel.protocol.errors import UsageError
from artel.protocol.run_config import RunConfig

if TYPE_CHECKING:
    import torch

LARGEST = 100_000_000
"""Parameters up to which a step is tried: it takes seconds, and 8 bytes for each."""
LONGEST = 128
"""Tokens of the sequence that is tried."""
_PRECISIONS = {"fp32": (False,), "bf16": (True,), "auto": (False, True)}
"""Whether activations are bf16, in what nodes may compute in."""
_BIASES = ("correction_bias", "expert_bias")
"""Buffers or parameters that routers add when they choose, and that no gradient reaches."""


def rehearse(config: RunConfig, outline: torch.nn.Module) -> tuple[str, ...]:
    """Try a training step and an evaluation, of one short sequence.

    :param outline: the run's model without memory (:func:`protocol.model.empty`)
    :returns: warnings about experts that nothing balances
    :raises UsageError: the model cannot be trained, or a setting of its experts has no effect
    """
    weight = objective.balance_weight(config.model, outline)
    balanced = weight > 0
    if sum(value.numel() for value in outline.parameters()) <= LARGEST:
        module = model.build(config.model, config.tokenizer.vocab_size, config.run.seed)
        for bf16 in _PRECISIONS[config.optimizer.precision]:
            balanced = _try(config, module, bf16=bf16, balance=weight > 0)
    return _balance(config, outline, weight, balanced=balanced)


def _try(config: RunConfig, module: torch.nn.Module, *, bf16: bool, balance: bool) -> bool:
    """Returns whether an auxiliary loss takes part in the training."""
    import torch

    objective.without_memory(module)
    length = min(config.data.seq_len, LONGEST)
    random = torch.Generator().manual_seed(0)
    windows = torch.randint(config.tokenizer.vocab_size, (1, length + 1), generator=random)
    try:
        with torch.random.fork_rng(devices=[]):
            loss, auxiliary = objective.losses(module.train(), windows, bf16=bf16, balance=balance)
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                objective.losses(module.eval(), windows, bf16=bf16)
    except Exception as error:  # whatever a library raises
        reason = model.last_line(error)
        kind, name = config.model.type, "bf16" if bf16 else "fp32"
        if bf16 and config.optimizer.precision == "auto":
            raise UsageError(
                f"transformers cannot train this {kind} model with bf16 activations: {reason}",
                'write precision = "fp32" in [optimizer]',
            ) from None
        raise UsageError(
            f"transformers cannot train this {kind} model in {name}: {reason}",
            'write precision = "fp32" in [optimizer]' if bf16 else "correct [model.config]",
        ) from None
    return auxiliary is not None and auxiliary.requires_grad


def _balance(
    config: RunConfig, outline: torch.nn.Module, weight: float, *, balanced: bool
) -> tuple[str, ...]:
    """What there is to say about how evenly experts are used."""
    if balanced:
        return ()
    kind, written = config.model.type, config.model.config
    experts = objective.has_experts(outline)
    able = experts and any(hasattr(outline, key) for key in objective.BALANCE_KEYS)
    if weight or not able:  # otherwise it was turned off
        for key in (*objective.BALANCE_KEYS, "output_router_logits"):
            if written.get(key):
                raise UsageError(
                    f"[model.config] {key} has no effect: transformers computes no auxiliary loss "
                    f"for this {kind} model",
                    f"remove {key}",
                )
    if not experts:
        return ()
    names = [name for name, _ in [*outline.named_parameters(), *outline.named_buffers()]]
    biases = {name.rsplit(".", 1)[-1] for name in names if name.endswith(_BIASES)}
    why = (
        f"their {min(biases)} is not trained here"
        if biases
        else f"transformers computes no auxiliary loss for {kind}"
    )
    if able:
        why = "the auxiliary loss of this model is turned off"
    return (f"nothing keeps the experts evenly used: {why}; a few may end up with all tokens",)
