"""Any causal language model of ``transformers``, as a module with a fixed flat layout.

The parameters of a run are one flat fp32 vector (:mod:`protocol.state`): the named parameters of
the module, tied ones once, sorted by name so that the order does not depend on how a version of
transformers registers them. torch and transformers are imported inside the functions.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from artel.protocol import model_keys
from artel.protocol.errors import CheckFailed, UsageError, suggestion
from artel.protocol.run_config import MAX_PARAMETERS, ModelSection
from artel.protocol.state import Layout, Vector

if TYPE_CHECKING:
    import torch

MAX_LAYERS = 512
"""Most blocks of a model; each costs a module object even before any parameter is allocated."""


def transformers_config(model: ModelSection, vocab_size: int) -> Any:
    """The transformers configuration of a run's model.

    :raises UsageError: naming the key, when one is unknown or has a value that does not work
    """
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # its bars would get between the lines that are ours
    if model.type not in CONFIG_MAPPING:
        raise UsageError(
            f"[model] type = {model.type!r} is unknown to transformers",
            suggestion(model.type, CONFIG_MAPPING) or "for example llama, gpt2 or qwen3",
        )
    config_class = CONFIG_MAPPING[model.type]
    known = model_keys.declared(config_class)
    rest = [key for key in model.config if key not in known]
    if rest:
        honoured = model_keys.undeclared(config_class)
        for key in rest:
            if key not in honoured:
                every = sorted(honoured.union(known))
                raise UsageError(
                    f"[model.config] {key} is no key of the model type {model.type}",
                    suggestion(key, every) or "known: " + ", ".join(every[:20]),
                )
    keys = dict(model.config)
    for name, kind in known.items():
        # Canonical JSON writes 1.0 as 1, and transformers' own checks tell them apart.
        if kind == "float" and type(keys.get(name)) is int:
            keys[name] = float(str(keys[name]))
    for field in dataclasses.fields(config_class):
        # Defaults made for another vocabulary; and a padding token would silently keep one row of
        # the embedding from learning.
        if field.name == "pad_token_id" or (
            field.name in ("bos_token_id", "eos_token_id")
            and isinstance(field.default, int)
            and field.default >= vocab_size
        ):
            optional = "None" in str(field.type)
            if optional or field.name != "pad_token_id":
                keys.setdefault(field.name, None if optional else 0)
    try:
        config = AutoConfig.for_model(model.type, **keys, vocab_size=vocab_size)
        layers = getattr(config, "num_hidden_layers", 0)
    except Exception as error:  # each configuration class raises what it likes
        raise _unusable(model, error) from None
    if isinstance(layers, int) and layers > MAX_LAYERS:
        raise UsageError(f"[model.config] {layers} layers, at most {MAX_LAYERS} are possible")
    return config


def build(model: ModelSection, vocab_size: int, seed: int) -> torch.nn.Module:
    """A freshly initialised fp32 model on the CPU, in training mode.

    The numbers depend on the machine and the version of torch: only the organiser's count.

    :raises UsageError: when transformers cannot build the model
    """
    import torch

    config = transformers_config(model, vocab_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _from_config(model, config)


def empty(model: ModelSection, vocab_size: int) -> torch.nn.Module:
    """The model without memory for its parameters (torch's meta device)."""
    import torch

    config = transformers_config(model, vocab_size)
    with torch.device("meta"):
        return _from_config(model, config)


def layout_of(module: torch.nn.Module) -> Layout:
    """Names and shapes of the module's parameters, tied ones once, sorted by name."""
    return Layout.of((name, tuple(value.shape)) for name, value in _parameters(module))


def read_parameters(module: torch.nn.Module) -> Vector:
    """A copy of the parameters as one flat fp32 vector (N,), in the order of the layout."""
    parts = [value.detach().float().cpu().reshape(-1).numpy() for _, value in _parameters(module)]
    return np.concatenate(parts)


def load_parameters(module: torch.nn.Module, flat: Vector) -> None:
    """Overwrite the parameters, in place, from a flat fp32 vector (N,).

    :raises CheckFailed: when the vector has another length than the model
    """
    import torch

    parameters = _parameters(module)
    total = sum(value.numel() for _, value in parameters)
    if flat.shape != (total,):
        raise CheckFailed(f"{flat.shape} numbers for a model with {total} parameters")
    offset = 0
    with torch.no_grad():
        for _, value in parameters:
            part = np.ascontiguousarray(flat[offset : offset + value.numel()], np.float32)
            value.copy_(torch.tensor(part).view(value.shape))
            offset += value.numel()


def block_matrices(module: torch.nn.Module) -> list[torch.nn.Parameter]:
    """What Muon trains: matrices that are neither a table of embeddings nor the output head.

    Experts that are kept as one tensor, (experts, A, B), count as matrices too, but not their
    biases, (experts, B). Other tensors with three dimensions are filters or vectors.
    """
    from torch.nn import Embedding

    apart = {id(m.weight) for m in module.modules() if isinstance(m, Embedding)}
    head = module.get_output_embeddings()  # type: ignore[operator]
    if head is not None:
        apart.add(id(head.weight))
    stacks: set[int] = set()
    for owner in module.modules():
        own = list(owner.parameters(recurse=False))
        if "Expert" in type(owner).__name__ and any(p.ndim == 3 for p in own):
            stacks.update(id(p) for p in own if p.ndim == 3)
            apart.update(id(p) for p in own if p.ndim == 2)
    return [
        p
        for p in module.parameters()
        if p.requires_grad and id(p) not in apart and (p.ndim == 2 or id(p) in stacks)
    ]


def _parameters(module: torch.nn.Module) -> list[tuple[str, torch.nn.Parameter]]:
    return sorted(module.named_parameters(), key=lambda pair: pair[0])


def _from_config(model: ModelSection, config: Any) -> torch.nn.Module:
    import torch
    from transformers import AutoModelForCausalLM

    try:
        module: torch.nn.Module = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    except Exception as error:  # as above: no common base class
        raise _unusable(model, error) from None
    if any(value.dtype != torch.float32 for value in module.parameters()):
        raise UsageError(f"[model] type = {model.type!r} has parameters that are not 32-bit floats")
    size = sum(value.numel() for value in module.parameters())
    if size > MAX_PARAMETERS:
        raise UsageError(
            f"this {model.type} model has {size:,} parameters, at most {MAX_PARAMETERS:,} are "
            "possible",
            "make it narrower or give it fewer layers in [model.config]",
        )
    rest = set(model.config).difference(model_keys.declared(type(config)))
    if rest and (idle := rest.difference(model_keys.used(module))):
        raise UsageError(
            f"[model.config] {min(idle)} has no effect on a {model.type} model", "remove it"
        )
    return module.train()


def last_line(error: Exception) -> str:
    """What a library's error says, as one line; validation errors have the reason at the end."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return (lines[-1] if lines else type(error).__name__)[:300]


def _unusable(model: ModelSection, error: Exception) -> UsageError:
    return UsageError(
        f"transformers cannot build this {model.type} model: {last_line(error)}",
        "correct [model.config]",
    )
