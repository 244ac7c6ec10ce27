"""What the codec ``sparse`` has chosen to send, before it is written as bits."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from artel.protocol.state import Vector

CHUNK = 4096
"""Elements of a tensor among which the largest are sought."""
GROUP = 16
"""Chunks that share two means."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What :meth:`Sparse.pack` writes: E entries of the larger tensors, all of the smaller ones."""

    positions: npt.NDArray[np.uint16]
    """Shape (E,): place in the entry's chunk; chunk by chunk, ascending in each."""
    values: Vector
    """Shape (E,)."""
    small: Vector
    """Shape (S,): the elements of all tensors below a chunk, one tensor behind the other."""
