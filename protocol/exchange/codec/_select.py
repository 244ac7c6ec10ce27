"""Exact top-k of every chunk: what the codec ``sparse`` sends.

The k elements of largest magnitude, of equal ones those of lowest index. Magnitudes are compared as
the bits of |x| (for finite numbers the same order), so the result is exact and the same everywhere.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from artel.protocol.exchange.codec.interface import CHUNK
from artel.protocol.exchange.jit import kernel
from artel.protocol.state import Vector

Bits = npt.NDArray[np.int32]

_MAGNITUDE = np.int32(0x7FFFFFFF)
_ONE, _TWO = np.int32(1), np.int32(2)
_MARGIN = np.int32(1 << 21)  # about a sixth below a chunk's threshold: a guess for the next one


@kernel
def _kth(keys: Bits, count: int, wanted: int, low: np.int32) -> tuple[np.int32, int]:
    """The ``wanted``-th largest of the first ``count`` keys, and how many keys reach it.

    Halving the range of the bits: at most 31 passes, whatever the keys are. The first element may
    be any number that ``wanted`` keys and no more reach.

    :param low: a number that all keys reach
    """
    reach = count
    largest = low
    for i in range(count):
        largest = max(largest, keys[i])
    high = largest + _ONE
    while reach != wanted and low + _ONE < high:
        middle = low + (high - low) // _TWO
        above = np.int32(0)
        for i in range(count):
            above += np.int32(keys[i] >= middle)
        if above >= wanted:
            low, reach = middle, int(above)
        else:
            high = middle
    return low, reach


@kernel
def select(
    vector: Vector,
    offsets: npt.NDArray[np.int64],
    sizes: npt.NDArray[np.int64],
    top_k: int,
    positions: npt.NDArray[np.uint16],
    values: Vector,
) -> None:
    """Fill ``positions`` (in the chunk, ascending) and ``values``, both of shape (E,).

    NaN and infinity count as the largest numbers.

    :param offsets: where the T tensors begin in ``vector`` (N,); ``sizes``: their elements
    """
    keys = np.empty(CHUNK, np.int32)
    likely = np.empty(CHUNK, np.int32)
    guess = np.int32(0)
    at = 0
    for tensor in range(len(offsets)):
        for start in range(0, sizes[tensor], CHUNK):
            width = min(CHUNK, sizes[tensor] - start)
            wanted = (top_k * width + CHUNK - 1) // CHUNK
            first = offsets[tensor] + start
            bits = vector[first : first + width].view(np.int32)
            # Most elements are far below the threshold, which changes little from chunk to chunk:
            # look closely only at those that reach a guess. A bad guess costs time, nothing else.
            count = 0
            for i in range(width):
                likely[count] = i
                count += (bits[i] & _MAGNITUDE) >= guess
            if count < wanted:
                for i in range(width):
                    likely[i] = i
                count = width
                guess = np.int32(0)
            for j in range(count):
                keys[j] = bits[likely[j]] & _MAGNITUDE
            threshold, reach = _kth(keys, count, wanted, guess)
            surplus = reach - wanted  # all but the first of those that equal the threshold
            if surplus > 0:
                equal = 0
                for j in range(count):
                    equal += keys[j] == threshold
                spare = equal - surplus
                for j in range(count):
                    if keys[j] > threshold or (keys[j] == threshold and spare > 0):
                        spare -= keys[j] == threshold
                        positions[at] = likely[j]
                        values[at] = vector[first + likely[j]]
                        at += 1
            else:
                for j in range(count):
                    if keys[j] >= threshold:
                        positions[at] = likely[j]
                        values[at] = vector[first + likely[j]]
                        at += 1
            guess = max(threshold - _MARGIN, np.int32(0))
