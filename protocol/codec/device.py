"""Top-k for ``sparse`` where the weights lie: on the trainer's device, with torch.

The same selection as on the CPU, to the bit, so that ``Sparse.pack`` makes the same payload of it;
only what is sent crosses to the host.
"""

from __future__ import annotations

import numpy as np
import torch

from protocol.codec.sparse import CHUNK, Selection
from protocol.errors import CheckFailed
from protocol.state import Layout

_MAGNITUDE = 0x7FFFFFFF


def select(layout: Layout, vector: torch.Tensor, top_k: int) -> Selection:
    """What to send of ``vector``, shape (N,), float32 on any device.

    :raises CheckFailed: another dtype or shape than the layout's
    """
    if vector.dtype != torch.float32 or vector.shape != (layout.parameters,):
        raise CheckFailed(
            f"vector has {vector.dtype} {tuple(vector.shape)}, "
            f"the layout wants float32 ({layout.parameters},)"
        )
    vector = vector.detach()
    places, values, small = [], [], [vector[:0]]
    for tensor in layout.tensors:
        elements = vector[tensor.offset : tensor.offset + tensor.size]
        if tensor.size < CHUNK:
            small.append(elements)
            continue
        whole = tensor.size // CHUNK * CHUNK
        for chunks in (elements[:whole].view(-1, CHUNK), elements[whole:].view(1, -1)):
            if chunks.numel():
                chosen = _largest(chunks, -(-top_k * chunks.shape[1] // CHUNK))
                places.append(chosen.flatten())
                values.append(chunks.gather(1, chosen).flatten())
    return Selection(
        torch.cat([*places, torch.empty(0, dtype=torch.int64, device=vector.device)])
        .cpu()
        .numpy()
        .astype(np.uint16),
        torch.cat([*values, vector[:0]]).cpu().numpy(),
        torch.cat(small).cpu().numpy(),
    )


def _largest(chunks: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the largest magnitudes of each row, ascending, of equal ones the first.

    torch.topk chooses among equals as it likes, so the place is made part of the key.
    """
    keys = (chunks.view(torch.int32) & _MAGNITUDE).long() * CHUNK
    keys += torch.arange(CHUNK - 1, CHUNK - 1 - chunks.shape[1], -1, device=chunks.device)
    top = keys.topk(count, dim=1, sorted=False).values
    return (CHUNK - 1 - top % CHUNK).sort(dim=1).values
