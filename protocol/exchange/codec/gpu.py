"""Top-k for ``sparse`` on a GPU, with torch: what takes longest of encoding, on a processor.

The same selection as on the CPU, to the bit, so that the same payload comes of it. One tensor at a
time is in the device's memory, with some 30 bytes for each of its elements.
"""

from __future__ import annotations

import numpy as np
import torch

from artel.protocol.exchange.codec.interface import CHUNK, Selection
from artel.protocol.state import Layout, Vector

_MAGNITUDE = 0x7FFFFFFF


def select(layout: Layout, vector: Vector, top_k: int, device: str) -> Selection:
    """What to send of ``vector``, shape (N,).

    :param device: as torch calls it
    :raises CheckFailed: another dtype or shape than the layout's
    """
    layout.require(vector)
    places, values, small = [], [], []
    for tensor in layout.tensors:
        elements = vector[tensor.offset : tensor.offset + tensor.size]
        if tensor.size < CHUNK:
            small.append(elements)
            continue
        there = torch.tensor(elements, device=device)
        whole = tensor.size // CHUNK * CHUNK
        for chunks in (there[:whole].view(-1, CHUNK), there[whole:].view(1, -1)):
            if chunks.numel():
                chosen = _largest(chunks, -(-top_k * chunks.shape[1] // CHUNK))
                places.append(chosen.to(torch.int16).flatten().cpu().numpy().view(np.uint16))
                values.append(chunks.gather(1, chosen).flatten().cpu().numpy())
    return Selection(
        np.concatenate([*places, np.empty(0, np.uint16)]),
        np.concatenate([*values, np.empty(0, np.float32)]),
        np.concatenate([*small, np.empty(0, np.float32)]),
    )


def _largest(chunks: torch.Tensor, count: int) -> torch.Tensor:
    """Places of the largest magnitudes of each row, ascending, of equal ones the first.

    torch.topk chooses among equals as it likes, so the place is made part of the key.
    """
    keys = (chunks.view(torch.int32) & _MAGNITUDE).long() * CHUNK
    keys += torch.arange(CHUNK - 1, CHUNK - 1 - chunks.shape[1], -1, device=chunks.device)
    top = keys.topk(count, dim=1, sorted=False).values
    return (CHUNK - 1 - top % CHUNK).sort(dim=1).values
