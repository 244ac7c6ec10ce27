"""What the machine offers for training: the device, and whether it computes in bf16."""

from __future__ import annotations

import torch

from node.trainer.channel import TrainerError


def choose(wanted: str) -> str:
    """ "cpu" or "cuda" for "auto", "cpu" or "cuda".

    :raises TrainerError: ``no_device``
    """
    available = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if available else "cpu"
    if wanted == "cuda" and not available:
        raise TrainerError(
            "no_device", "there is no CUDA device that torch can use", "use --device cpu"
        )
    if wanted not in ("cpu", "cuda"):
        raise TrainerError("no_device", f"{wanted[:20]!r} is no device", "use auto, cpu or cuda")
    return wanted


def computes_bf16(device: str) -> bool:
    """Whether the device has instructions for bf16; in software it is slower than fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return any(features.get(name) is True for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(precision: str, device: str) -> bool:
    """Whether activations are bf16, by the manifest's ``precision``: auto, fp32 or bf16."""
    wanted = precision == "bf16" or (precision == "auto" and device == "cuda")
    return wanted and computes_bf16(device)
