"""Muon for the matrices of a model's blocks, AdamW for everything else.

Muon (Keller Jordan et al. 2024, kellerjordan.github.io/posts/muon) moves a matrix by its momentum
made orthogonal: five Newton-Schulz iterations bring all singular values near 1. Experts that a
model keeps as one tensor (experts, A, B) are made orthogonal each on its own, in one batch. As the
inner optimiser of DiLoCo it is MuLoCo (arXiv 2505.23725): embeddings, the output head and vectors
stay with AdamW, and weight decay is decoupled in both.

:class:`torch.optim.Muon` computes the same, but always iterates in bf16. On a CPU without bf16
instructions that is 30 times slower than fp32 (measured with AVX2: 230 ms against 13 ms for one
256 x 704 matrix), and such CPUs are what many nodes have; so the type is a parameter here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from artel.protocol.manifest import Manifest
from artel.protocol.model import block_matrices

NEWTON_SCHULZ_STEPS = 5
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # those of the reference: the steepest start
_EPS = 1e-7


class Muon(torch.optim.Optimizer):
    """Nesterov momentum, made orthogonal; decoupled weight decay.

    The step of an (A, B) matrix is scaled by ``sqrt(max(1, A / B))``, as in the reference.

    :param params: matrices or stacks of them (E, A, B), or groups of both
    :param dtype: what the Newton-Schulz iterations compute in
    """

    def __init__(
        self,
        params: Sequence[torch.nn.Parameter] | Sequence[dict[str, Any]],
        *,
        lr: float,
        momentum: float,
        weight_decay: float,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(params, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})
        self._dtype = dtype

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step along the gradients that there are."""
        for group in self.param_groups:
            lr, mu = group["lr"], group["momentum"]
            for matrix in group["params"]:  # (A, B) or (E, A, B)
                if matrix.grad is None:
                    continue
                state = self.state[matrix]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(matrix)
                buffer = state["momentum_buffer"]
                buffer.lerp_(matrix.grad, 1 - mu)
                update = orthogonal(matrix.grad.lerp(buffer, mu), self._dtype)
                rows, columns = matrix.shape[-2:]
                matrix.mul_(1 - lr * group["weight_decay"])
                matrix.add_(update, alpha=-lr * math.sqrt(max(1.0, rows / columns)))


def orthogonal(
    matrix: torch.Tensor,  # (A, B), or a stack (E, A, B), of which each is on its own
    dtype: torch.dtype,
) -> torch.Tensor:  # of the same shape
    """About the nearest matrix with orthonormal rows or columns, computed in ``dtype``.

    Newton-Schulz iterations x <- a x + (b G + c G^2) x with G = x x^T, as Keller Jordan's Muon has
    them: singular values end between about 0.7 and 1.2, which is as good as 1 for a step.
    """
    a, b, c = _COEFFICIENTS
    x = matrix.to(dtype)
    tall = x.shape[-2] > x.shape[-1]
    if tall:
        x = x.mT
    stack = x.ndim == 3
    norm = x.norm(dim=(1, 2), keepdim=True) if stack else x.norm()
    multiply_add = torch.baddbmm if stack else torch.addmm
    x = x / norm.clamp(min=_EPS)
    for _ in range(NEWTON_SCHULZ_STEPS):
        gram = x @ x.mT
        x = multiply_add(x, multiply_add(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.mT if tall else x


def optimizers(
    manifest: Manifest, module: torch.nn.Module, bf16: bool
) -> list[torch.optim.Optimizer]:
    """The run's inner optimisers, which together cover every trainable parameter once.

    Each group has a ``ratio``: its learning rate as a part of AdamW's. Weight decay acts on
    matrices only, not on vectors (norms, biases).

    :param bf16: whether the device computes fast in bf16
    """
    settings = manifest.config.optimizer
    parameters = [p for p in module.parameters() if p.requires_grad]
    matrices = block_matrices(module) if settings.kind == "muon" else []
    chosen = {id(p) for p in matrices}
    rest = [p for p in parameters if id(p) not in chosen]
    decayed, plain = [p for p in rest if p.ndim >= 2], [p for p in rest if p.ndim < 2]
    groups: list[dict[str, Any]] = [
        {"params": decayed, "weight_decay": settings.weight_decay, "ratio": 1.0},
        {"params": plain, "weight_decay": 0.0, "ratio": 1.0},
    ]
    groups = [group for group in groups if group["params"]]
    made: list[torch.optim.Optimizer] = []
    if groups:
        made.append(
            torch.optim.AdamW(
                groups,
                lr=settings.lr,
                betas=settings.betas,
                eps=settings.eps,
                fused=True,  # one pass over the memory; on the CPU as well
            )
        )
    if matrices:
        made.append(
            Muon(
                [{"params": matrices, "ratio": settings.muon_lr / settings.lr}],
                lr=settings.muon_lr,
                momentum=settings.muon_momentum,
                weight_decay=settings.weight_decay,
                dtype=torch.bfloat16 if bf16 else torch.float32,
            )
        )
    return made
