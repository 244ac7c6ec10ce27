"""The bit streams of the codec ``sparse``: indices as Rice-coded gaps, values as two bits each.

Streams are filled from the lowest bit of the first byte upwards. What they mean is written in
:mod:`protocol.exchange.codec.sparse`.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from artel.protocol.exchange.codec._blocks import HALVES
from artel.protocol.exchange.codec.interface import CHUNK, GROUP
from artel.protocol.exchange.jit import kernel
from artel.protocol.state import Vector

Words = npt.NDArray[np.uint64]
Halves = npt.NDArray[np.uint16]
Integers = npt.NDArray[np.int64]

FINE, BAD_MEAN, BAD_ORDER, BAD_USE, BAD_ZERO, BAD_GAP, BAD_END = range(7)
"""Why :func:`unpack` stopped."""

_ROUNDS = 8  # of Lloyd's algorithm, which moves little after three
_UNIT = 2.0**30  # magnitudes are summed as integers of 1 / _UNIT: in any order the same sum
_NOTHING = 1 << 62  # above every magnitude
_LARGEST = np.float32(65504.0)

# The lowest set bit of a word: multiplied by this number each power of two has another top.
_DE_BRUIJN = np.uint64(0x03F79D71B4CB0A89)
_LOWEST = np.zeros(64, np.int64)
_LOWEST[(_DE_BRUIJN << np.arange(64, dtype=np.uint64)) >> np.uint64(58)] = np.arange(64)


@kernel
def _half(mean: float) -> int:
    """Bits of the binary16 nearest to a number from 0 to 65504, ties to even."""
    if mean < 2.0**-14:
        return int(np.rint(mean * 2.0**24))
    fraction, exponent = math.frexp(mean)
    return ((exponent + 14) << 10) + int(np.rint(fraction * 2048.0)) - 1024


@kernel
def _put(words: Words, at: int, value: int, bits: int) -> None:
    """Write ``bits`` (below 64) of ``value`` at bit ``at``."""
    word, shift = at >> 6, at & 63
    words[word] |= np.uint64(value) << np.uint64(shift)
    if shift + bits > 64:
        words[word + 1] |= np.uint64(value) >> np.uint64(64 - shift)


@kernel
def _get(words: Words, at: int, bits: int) -> int:
    """Read ``bits`` (below 64) at bit ``at``."""
    word, shift = at >> 6, at & 63
    value = words[word] >> np.uint64(shift)
    if shift + bits > 64:
        value |= words[word + 1] << np.uint64(64 - shift)
    return int(value & ((np.uint64(1) << np.uint64(bits)) - np.uint64(1)))


@kernel
def _two_means(magnitudes: Integers, count: int) -> tuple[int, int, int]:
    """Split numbers into low and high so that squared errors are small (Lloyd's algorithm).

    :returns: bits of the two means, and the number above which a magnitude is high. When one mean
        is enough both are it and nothing is high.
    """
    whole = 0
    for i in range(count):
        whole += magnitudes[i]
    edge = whole // count
    low_mean, high_mean = whole / count, 0.0
    for _ in range(_ROUNDS):
        many, high = 0, 0
        for i in range(count):
            above = magnitudes[i] > edge
            many += above
            high += magnitudes[i] if above else 0
        if many == 0:  # all are equal
            break
        low_mean, high_mean = (whole - high) / (count - many), high / many
        middle = int((low_mean + high_mean) / 2)
        if middle == edge:
            break
        edge = middle
    low, high_half = _half(low_mean / _UNIT), _half(high_mean / _UNIT)
    if low < high_half:
        return low, high_half, edge
    mean = _half(whole / count / _UNIT)
    return mean, mean, _NOTHING


@kernel
def _zeros_first(chosen: Integers, marks: Integers, count: int) -> None:
    """Move entries that are sent as zero (mark 0) to the lowest free positions of their chunk.

    They only fill the quota; with their places fixed the payload has one encoding.
    """
    kept = 0
    for i in range(count):
        if marks[i] != 0:
            chosen[kept], marks[kept] = chosen[i], marks[i]
            kept += 1
    zeros = count - kept
    # Together with the ``inside`` others that lie there they fill the first positions.
    inside = 0
    while inside < kept and chosen[inside] < zeros + inside:
        inside += 1
    for i in range(kept - 1, inside - 1, -1):
        chosen[i + zeros], marks[i + zeros] = chosen[i], marks[i]
    for i in range(zeros + inside - 1, -1, -1):
        if inside > 0 and chosen[inside - 1] == i:
            inside -= 1
            chosen[i], marks[i] = i, marks[inside]
        else:
            chosen[i], marks[i] = i, 0


@kernel
def pack(
    sizes: Integers,
    top_k: int,
    low_bits: int,
    positions: Halves,
    values: Vector,
    means: Halves,
    marks: Words,
    remainders: Words,
    quotients: Words,
) -> int:
    """Write the streams of the tensors of ``sizes``; the last three arrays start as zeros.

    :param positions: in their chunk, ascending, shape (E,); ``values``: of shape (E,), finite
    :param means: two for every group, shape (2 G,)
    :returns: how many bits of ``quotients`` were used
    """
    magnitudes = np.empty(GROUP * CHUNK, np.int64)
    chosen = np.empty(CHUNK, np.int64)
    chosen_marks = np.empty(CHUNK, np.int64)
    entry, group, end = 0, 0, 0
    for tensor in range(len(sizes)):
        for begin in range(0, sizes[tensor], GROUP * CHUNK):
            stop = min(begin + GROUP * CHUNK, sizes[tensor])
            count = 0
            for start in range(begin, stop, CHUNK):
                count += (top_k * min(CHUNK, stop - start) + CHUNK - 1) // CHUNK
            for i in range(count):
                magnitude = np.float64(min(abs(values[entry + i]), _LARGEST))
                magnitudes[i] = np.int64(magnitude * _UNIT)
            low, high, edge = _two_means(magnitudes, count)
            means[2 * group], means[2 * group + 1] = low, high
            group += 1
            done = 0  # entries of this group
            for start in range(begin, stop, CHUNK):
                wanted = (top_k * min(CHUNK, stop - start) + CHUNK - 1) // CHUNK
                for i in range(wanted):
                    mark = 2 * np.int64(magnitudes[done + i] > edge)
                    if mark > 0 or low > 0:
                        mark += values[entry + i] < 0
                    chosen[i], chosen_marks[i] = positions[entry + i], mark
                if low == 0:
                    _zeros_first(chosen, chosen_marks, wanted)
                previous = -1
                for i in range(wanted):
                    gap = chosen[i] - previous - 1
                    previous = chosen[i]
                    _put(marks, 2 * entry, chosen_marks[i], 2)
                    _put(remainders, low_bits * entry, gap & ((1 << low_bits) - 1), low_bits)
                    end += gap >> low_bits
                    _put(quotients, end, 1, 1)
                    end += 1
                    entry += 1
                done += wanted
    return end


@kernel
def unpack(
    offsets: Integers,
    sizes: Integers,
    top_k: int,
    low_bits: int,
    small: Vector,
    means: Halves,
    marks: Words,
    remainders: Words,
    quotients: Words,
    positions: Integers,
    values: Vector,
) -> tuple[int, int, int]:
    """Read the streams of the tensors of ``sizes``, which lie at ``offsets`` of the flat vector.

    Tensors below a chunk are taken from ``small``, where they lie one behind the other.

    :param positions: for the entries, in the flat vector; ``values``: as many
    :returns: why it stopped, how many entries were written, how many bits of ``quotients`` read
    """
    entry, group, end, out, taken = 0, 0, 0, 0, 0
    for tensor in range(len(sizes)):
        if sizes[tensor] < CHUNK:
            for i in range(sizes[tensor]):
                positions[out], values[out] = offsets[tensor] + i, small[taken]
                out += 1
                taken += 1
            continue
        for begin in range(0, sizes[tensor], GROUP * CHUNK):
            stop = min(begin + GROUP * CHUNK, sizes[tensor])
            low, high = means[2 * group], means[2 * group + 1]
            group += 1
            if low >= len(HALVES) or high >= len(HALVES):
                return BAD_MEAN, out, end
            if low > high:
                return BAD_ORDER, out, end
            used = 0  # bit 0: something is low, bit 1: something is high
            for start in range(begin, stop, CHUNK):
                width = min(CHUNK, stop - start)
                previous = -1
                for i in range((top_k * width + CHUNK - 1) // CHUNK):
                    word = end >> 6
                    if word >= len(quotients):
                        return BAD_END, out, end
                    ones = quotients[word] >> np.uint64(end & 63) << np.uint64(end & 63)
                    while ones == 0:
                        word += 1
                        if word >= len(quotients):
                            return BAD_END, out, end
                        ones = quotients[word]
                    lowest = (ones & (~ones + np.uint64(1))) * _DE_BRUIJN >> np.uint64(58)
                    following = (word << 6) + _LOWEST[lowest] + 1
                    gap = (following - end - 1) << low_bits
                    end = following
                    previous += 1 + gap + _get(remainders, low_bits * entry, low_bits)
                    if previous >= width:
                        return BAD_GAP, out, end
                    mark = _get(marks, 2 * entry, 2)
                    entry += 1
                    used |= 1 + (mark >> 1)
                    half = high if mark >= 2 else low
                    if half == 0:
                        # Zeros have no sign and the lowest positions that are free.
                        if mark & 1 or previous != i:
                            return BAD_ZERO, out, end
                    else:
                        value = HALVES[half]
                        values[out] = -value if mark & 1 else value
                        positions[out] = offsets[tensor] + start + previous
                        out += 1
            if used != (1 if low == high else 3):
                return BAD_USE, out, end
    return FINE, out, end
