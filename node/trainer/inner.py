"""Inner optimisation: AdamW steps of one node between two states of the run.

The scheme is DiLoCo's (arXiv 2311.08105): AdamW (arXiv 1711.05101) on the node's own data, with the
optimiser's moments kept across rounds and never sent. Weight decay acts on matrices only, not on
vectors (norms, biases).

The module's parameters are views into one flat fp32 vector in the order of the run's layout, so
that loading a state, going back to it and forming a pseudo-gradient are single copies.

Memory, N parameters in fp32: 4N parameters, 4N gradients, 8N moments on the device, and 8N more on
the CPU for the moments at the beginning of the round (:class:`Moments`), which a repeated attempt
starts from.

Same bits: a round trained twice from the same state on one CPU, with the same number of threads and
the same software, gives the same bits. CUDA kernels may add in another order.
"""

from __future__ import annotations

import hashlib
import struct
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from node.trainer.data import Batch
from protocol.manifest import Manifest
from protocol.state import Layout, Vector

_SEED = b"artel/training/v1\0"


def training_seed(run_seed: int, round: int, node: str) -> int:
    """Seed of a node's own randomness (dropout) in a round, 63 bits."""
    digest = hashlib.sha256(_SEED + struct.pack(">QQ", run_seed, round) + node.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


@dataclass(frozen=True)
class Moments:
    """A copy, on the CPU, of the optimiser's state: by position of the parameter, then by name."""

    tensors: dict[int, dict[str, torch.Tensor]]


class Inner:
    """A model on a device, with its optimiser.

    Owned by the trainer's main thread.

    :param module: the run's model, fp32 on the CPU; its parameters are replaced by views
    :param device: "cpu" or "cuda"
    """

    def __init__(
        self, manifest: Manifest, module: torch.nn.Module, layout: Layout, device: str
    ) -> None:
        self.device = torch.device(device)
        self.layout = layout
        self.clip = manifest.config.optimizer.clip
        self._module = module.to(self.device)
        # Whole windows go in: there is nothing to remember for a next token.
        self._module.config.use_cache = False  # type: ignore[union-attr]
        self._flat = torch.empty(layout.parameters, dtype=torch.float32, device=self.device)  # (N,)
        named = dict(self._module.named_parameters())
        for tensor in layout.tensors:
            end = tensor.offset + tensor.size
            named[tensor.name].data = self._flat[tensor.offset : end].view(tensor.shape)
        self._parameters = [p for p in named.values() if p.requires_grad]
        self._optimizer = _adamw(manifest, self._parameters)
        # Weights stay fp32; only activations are narrower, and only where the hardware likes it.
        self._bf16 = self.device.type == "cuda" and torch.cuda.is_bf16_supported()

    def load(self, params: Vector) -> None:
        """Set the parameters, shape (N,); the optimiser keeps its moments."""
        self.layout.require(params)
        self._flat.copy_(torch.from_numpy(params))

    def read(self) -> Vector:
        """A copy of the parameters on the CPU, shape (N,)."""
        copy: Vector = self._flat.to("cpu", copy=True).numpy()
        return copy

    def step(self, windows: Batch, lr: float) -> torch.Tensor:
        """One optimiser step on windows (batch, seq_len + 1).

        :returns: the mean loss before the step, nats per token, a scalar still on the device
        """
        self._module.train()
        loss = self._loss(windows, "mean")
        loss.backward()  # type: ignore[no-untyped-call]
        if self.clip > 0:
            torch.nn.utils.clip_grad_norm_(self._parameters, self.clip)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.step()
        self._optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def loss_sum(self, windows: Batch) -> float:
        """Loss in nats, summed over the targets of windows (batch, seq_len + 1)."""
        self._module.eval()
        with torch.no_grad():
            return float(self._loss(windows, "sum"))

    def save_moments(self) -> Moments:
        """Copy the optimiser's state to the CPU (8 bytes per parameter once it has stepped)."""
        state = self._optimizer.state
        return Moments(
            {
                index: {name: value.to("cpu", copy=True) for name, value in state[p].items()}
                for index, p in enumerate(self._parameters)
                if p in state
            }
        )

    def restore_moments(self, moments: Moments) -> None:
        """Put the optimiser back to where :meth:`save_moments` found it."""
        self._optimizer.zero_grad(set_to_none=True)
        state = self._optimizer.state
        for index, parameter in enumerate(self._parameters):
            saved = moments.tensors.get(index)
            if saved is None:
                state.pop(parameter, None)
            else:
                for name, value in saved.items():
                    state[parameter][name].copy_(value)

    def seed(self, seed: int) -> None:
        """Fix what is random in training."""
        torch.manual_seed(seed)

    def _loss(self, windows: Batch, reduction: str) -> torch.Tensor:
        tokens = torch.from_numpy(windows).to(self.device)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self._bf16):
            output = self._module(input_ids=tokens[:, :-1])
        logits = output.logits.float()  # (batch, seq_len, vocab)
        return functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, 1:].flatten(), reduction=reduction
        )


def mean_loss(losses: list[torch.Tensor]) -> float:
    """Mean of scalar losses, in float64."""
    return float(np.mean(torch.stack(losses).cpu().numpy(), dtype=np.float64))


def _adamw(manifest: Manifest, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    settings = manifest.config.optimizer
    groups = [
        {
            "params": [p for p in parameters if p.ndim >= 2],
            "weight_decay": settings.weight_decay,
        },
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]],
        lr=settings.lr,
        betas=settings.betas,
        eps=settings.eps,
        fused=True,  # one pass over the memory; on the CPU as well
    )
