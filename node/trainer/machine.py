"""What the machine offers for training: the device, and whether it computes in bf16."""

from __future__ import annotations

import platform
from contextlib import suppress
from pathlib import Path

import torch

from artel.node.trainer.channel import TrainerError

NARROWEST = 192
"""Width from which bf16 is faster on a CPU that has it: converting costs more than small products
save. Measured with AVX-512 (Llama, 4 layers, 256 and 1024 tokens a step), CPU time in fp32 divided
by that in bf16: 0.6 at 64, 0.85 to 0.94 at 128, 1.07 to 1.3 at 192, 1.3 to 1.4 at 256, 1.9 at 512.
The loss after 40 steps differs by 0.003 at most, between seeds by 0.1. It is a rule and not a
measurement so that a node computes in the same precision whenever it starts."""


_CPUS = Path("/proc/cpuinfo")


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


def hardware(device: str, bf16: bool) -> str:
    """The class of what computes here, at most 64 characters: two machines of one class, with what
    they are given equal, come to the same bits; of two classes they come to about the same.

    :param bf16: whether activations are bf16
    """
    version = "torch" + ".".join(torch.__version__.split(".")[:2])
    precision = "bf16" if bf16 else "fp32"
    if device == "cuda":
        name = torch.cuda.get_device_name().replace("/", "-")
        return f"cuda/{name[:40]}/{precision}/{version}"
    kernels = torch.backends.cpu.get_cpu_capability().lower().replace(" ", "-")
    made = f"{platform.machine()}-{_processor()}"
    return f"{made[:32]}/{kernels[:8]}/{precision}/t{torch.get_num_threads()}/{version[:12]}"


def _processor() -> str:
    """Maker, family and model of the processor: libraries choose kernels and blocks by them."""
    wanted = {"vendor_id": "", "cpu family": "", "model": ""}
    wanted |= {"CPU implementer": "", "CPU part": ""}
    with suppress(OSError):
        for line in _CPUS.read_text().splitlines():
            name, _, value = line.partition(":")
            if not wanted.get(name.strip(), "known"):
                wanted[name.strip()] = value.strip().lower()
    return "-".join(filter(None, wanted.values())) or "unknown"


def computes_bf16(device: str) -> bool:
    """Whether the device has instructions for bf16; in software it is slower than fp32."""
    if device == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    features = torch.cpu.get_capabilities()
    return any(features.get(name) is True for name in ("avx512_bf16", "amx_bf16", "bf16"))


def autocast(precision: str, device: str, width: int) -> bool:
    """Whether activations are bf16.

    :param precision: the manifest's: auto, fp32 or bf16
    :param width: of the model's hidden states
    """
    fast = device == "cuda" or width >= NARROWEST
    wanted = precision == "bf16" or (precision == "auto" and fast)
    return wanted and computes_bf16(device)
