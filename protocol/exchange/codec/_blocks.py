"""The loops of the dense codecs: ``int8``, ``int4``, ``fp16``, and the check for finite numbers.

All arithmetic is fp32, an operation at a time, as the formats say.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from artel.protocol.exchange.jit import kernel
from artel.protocol.state import Vector

Bytes = npt.NDArray[np.uint8]
Halves = npt.NDArray[np.uint16]

FINE, NOT_FINITE, NEGATIVE, BAD_LEVELS, BAD_PADDING = range(5)

_MAGNITUDE = np.int32(0x7FFFFFFF)
_INFINITY = np.int32(0x7F800000)
_HALF_INFINITY = 0x7C00
_ZERO, _ONE = np.float32(0), np.float32(1)
_LARGEST = np.float32(65504.0)
_SMALLEST_NORMAL = np.float32(2.0**-14)
# Added to a small fp32 and taken away again it leaves the nearest integer, ties to even.
_ROUNDING = np.float32(1.5 * 2**23)
_SUBNORMAL = np.float32(2.0**24)  # times a small number: its bits as a binary16
_REBIAS = np.float32(2.0**112)  # between the exponents of binary16 and fp32
HALVES: Vector = np.arange(_HALF_INFINITY, dtype=np.uint16).view(np.float16).astype(np.float32)
"""The value of every finite, not negative binary16, by its bits."""


@kernel
def largest_bits(values: Vector) -> np.int32:
    """Bits of the largest magnitude; those of infinity or more when one is not finite."""
    largest = np.int32(0)
    bits = values.view(np.int32)
    for i in range(len(bits)):
        largest = max(largest, np.int32(bits[i] & _MAGNITUDE))
    return largest


@kernel
def all_finite(values: Vector) -> bool:
    """Whether no element is NaN or infinite."""
    return bool(largest_bits(values) < _INFINITY)


@kernel
def _half_below(value: np.float32) -> int:
    """Bits of the largest binary16 that is not above a finite number from 0 on."""
    bounded = np.float32(min(value, _LARGEST))
    if bounded < _SMALLEST_NORMAL:
        return int(bounded * _SUBNORMAL)
    return (int(bounded.view(np.int32)) >> 13) - (112 << 10)


@kernel
def _level(value: np.float32, inverse: np.float32, top: np.float32) -> int:
    """The level nearest to ``value * inverse``, ties to even, in -top..top."""
    return int(min(max(value * inverse, -top), top) + _ROUNDING - _ROUNDING)


@kernel
def encode_blocks(
    values: Vector, block: int, top: np.float32, nibbles: bool, scales: Halves, levels: Bytes
) -> bool:
    """Scales and packed levels of one tensor of n elements.

    :param nibbles: two levels to a byte; then ``block`` is even
    :returns: False when an element is NaN or infinite
    """
    for number in range(len(scales)):
        part = values[number * block : min((number + 1) * block, len(values))]
        count = len(part)
        largest = largest_bits(part)
        if largest >= _INFINITY:
            return False
        scale = _half_below(np.int32(largest).view(np.float32))
        scales[number] = scale
        step = HALVES[scale] / top
        inverse = _ONE / step if step > _ZERO else _ZERO
        if nibbles:
            out = levels[number * block // 2 :]
            for i in range(count // 2):
                low = _level(part[2 * i], inverse, top) & 15
                high = _level(part[2 * i + 1], inverse, top) & 15
                out[i] = low | high << 4
            if count % 2:
                out[count // 2] = _level(part[count - 1], inverse, top) & 15
        else:
            out = levels[number * block :]
            for i in range(count):
                out[i] = _level(part[i], inverse, top) & 255
    return True


@kernel
def check_blocks(
    scales: Halves, levels: Bytes, size: int, block: int, top: int, nibbles: bool
) -> int:
    """What is wrong with a tensor of ``size`` elements."""
    for number in range(len(scales)):
        scale = scales[number]
        if scale >= _HALF_INFINITY:
            finite = scale & _HALF_INFINITY != _HALF_INFINITY
            return NEGATIVE if finite else NOT_FINITE
        count = min(block, size - number * block)
        largest = np.uint8(0)  # the unused level -top - 1 counts as top + 1
        if nibbles:
            part = levels[number * block // 2 : number * block // 2 + (count + 1) // 2]
            for i in range(len(part)):
                low, high = part[i] & 15, part[i] >> 4
                largest = max(largest, np.uint8(min(low, 16 - low)))
                largest = max(largest, np.uint8(min(high, 16 - high)))
            if count % 2 and part[count // 2] >> 4:
                return BAD_PADDING
        else:
            part = levels[number * block : number * block + count]
            for i in range(count):
                level = np.int32(np.int8(part[i]))
                largest = max(largest, np.uint8(abs(level)))
        if largest != (top if scale > 0 else 0):
            return BAD_LEVELS
    return FINE


@kernel
def decode_blocks(
    scales: Halves, levels: Bytes, block: int, top: np.float32, nibbles: bool, out: Vector
) -> None:
    """The elements of a tensor that :func:`check_blocks` found fine."""
    for number in range(len(scales)):
        scale = HALVES[scales[number]]
        part = out[number * block : min((number + 1) * block, len(out))]
        # A level times a scale is exact (7 + 11 bits), so only the division rounds.
        if nibbles:
            packed = levels[number * block // 2 :]
            for i in range(len(part) // 2):
                low, high = np.int32(packed[i] & 15), np.int32(packed[i] >> 4)
                part[2 * i] = np.float32((low ^ 8) - 8) * scale / top
                part[2 * i + 1] = np.float32((high ^ 8) - 8) * scale / top
            if len(part) % 2:
                low = np.int32(packed[len(part) // 2] & 15)
                part[len(part) - 1] = np.float32((low ^ 8) - 8) * scale / top
        else:
            packed = levels[number * block :]
            for i in range(len(part)):
                part[i] = np.float32(np.int8(packed[i])) * scale / top


@kernel
def encode_halves(values: Vector, out: Halves) -> bool:
    """fp32 to binary16, ties to even, beyond 65504 as 65504.

    :returns: False when an element is NaN or infinite
    """
    for i in range(len(values)):
        bits = np.float32(values[i]).view(np.int32)
        magnitude = np.float32(min(np.int32(bits & _MAGNITUDE).view(np.float32), _LARGEST))
        inner = np.float32(magnitude).view(np.int32)
        normal = (inner + 0xFFF + ((inner >> 13) & 1) >> 13) - (112 << 10)
        small = np.int32(magnitude * _SUBNORMAL + _ROUNDING - _ROUNDING)
        half = small if magnitude < _SMALLEST_NORMAL else normal
        out[i] = half | (bits >> 16 & 0x8000)
    return all_finite(values)


@kernel
def halves_are_finite(halves: Halves) -> bool:
    """Whether no binary16 is NaN or infinite."""
    largest = np.uint16(0)
    for i in range(len(halves)):
        largest = max(largest, np.uint16(halves[i] & 0x7FFF))
    return bool(largest < _HALF_INFINITY)


@kernel
def decode_halves(halves: Halves, out: Vector) -> None:
    """Finite binary16 to fp32, exactly."""
    for i in range(len(halves)):
        bits = np.int32(halves[i])
        magnitude = np.int32((bits & 0x7FFF) << 13).view(np.float32) * _REBIAS
        out[i] = -magnitude if bits & 0x8000 else magnitude
