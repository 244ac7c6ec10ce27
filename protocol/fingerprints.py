"""Fingerprints of inner steps: what a node can be held to, step by step.

Each step leaves 128 fp32 numbers: its loss, its gradient norm (before clipping; 0 where the run
does not clip), and 126 weights after it, at places that the round picks. Those of a contribution,
of its tail's steps first, are one file, row by row, little-endian; the contribution names it by its
content id (``chain``). A node thus cannot say afterwards that it went another way. The file goes to
the coordinator and to nobody else: only who repeats the steps knows what it holds.
"""

from __future__ import annotations

import hashlib
import struct
from pathlib import Path

import numpy as np
import numpy.typing as npt

from artel.protocol.errors import ResourceError

PLACES = 126
ROW = 2 + PLACES
ROW_BYTES = 4 * ROW
"""Of one step."""
TOLERANCE = 1e-3
"""Two steps are the same when loss, gradient norm and weights (L2) differ by less, relatively: what
other kernels change in a few steps is less, what another batch or a step left out changes is more.
"""

Rows = npt.NDArray[np.float32]
"""Shape (steps, ROW)."""

_SEED = b"artel/places/v1\0"


def places_of(run_seed: int, round: int, parameters: int) -> npt.NDArray[np.int64]:
    """Which of ``parameters`` weights the steps of a round show, (PLACES,); some may be equal."""
    seed = hashlib.shake_256(_SEED + struct.pack(">QQ", run_seed, round))
    numbers = np.frombuffer(seed.digest(8 * PLACES), ">u8")
    return (numbers % parameters).astype(np.int64)


def read(path: Path) -> Rows:
    """The rows of a file.

    :raises ResourceError: it cannot be read
    """
    try:
        numbers = np.fromfile(path, "<f4")
    except OSError as error:
        raise ResourceError(f"cannot read fingerprints: {error.strerror}") from None
    return numbers[: len(numbers) // ROW * ROW].reshape(-1, ROW).astype(np.float32, copy=False)


def first_different(again: Rows, given: Rows) -> int | None:
    """The first step in which ``given`` is not what it was when it was made again, from 0.

    None when there is none; steps that only one of them has differ.
    """
    common = min(len(again), len(given))
    mine, theirs = (each[:common].astype(np.float64) for each in (again, given))
    with np.errstate(over="ignore", invalid="ignore"):
        near = np.abs(theirs[:, :2] - mine[:, :2]) <= TOLERANCE * np.abs(mine[:, :2])
        off = np.linalg.norm(theirs[:, 2:] - mine[:, 2:], axis=1)
        same = near.all(axis=1) & (off <= TOLERANCE * np.linalg.norm(mine[:, 2:], axis=1))
    different = np.flatnonzero(~same)
    if len(different):
        return int(different[0])
    return common if len(again) != len(given) else None
