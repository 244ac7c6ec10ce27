"""``int4`` and ``int8``: blocks with one scale each, symmetrical levels.

Every tensor is cut into blocks of B consecutive elements (its last block is as short as needed; no
block crosses tensors, because their magnitudes differ). A block sends its largest magnitude m as
fp16 and every element as a level q in -L..L; the element is the fp32 nearest to q * m / L. Absmax
blocks as in 8-bit optimizers (Dettmers et al., arXiv 2110.02861); four bits without error feedback
lose nothing measurable on pseudo-gradients (Streaming DiLoCo, arXiv 2501.18512).

Payload: for each tensor in layout order, its ceil(size / B) scales (fp16 little-endian), then its
packed levels.

m is rounded *down* to fp16, so the largest element of a non-zero block always gets level ±L. A
decoder insists on it: the scale of a block with levels but without a ±L, or with the unused level
-L - 1, is refused, and so is a zero scale with levels. With that every accepted payload is the
encoding of what it decodes to: a vector has exactly one.
Magnitudes above 65504 are sent as 65504; blocks whose largest magnitude is below 2^-24 become zero.
The error of an element is at most m / 2L, plus what its block's m lost by rounding down (at most
m / 1024, or 2^-24).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from artel.protocol.errors import DecodeError
from artel.protocol.exchange.codec.interface import (
    Codec,
    NonFinite,
    Payload,
    read_only,
    refuse_non_finite,
    require_length,
)
from artel.protocol.state import Layout, Vector


class Blockwise(Codec):
    """A codec of blocks with an fp16 scale; subclasses say how wide and how fine."""

    block: ClassVar[int]
    """B, elements in a full block; even."""
    top: ClassVar[int]
    """L, the largest level."""
    nibbles: ClassVar[bool]
    """Whether two levels share a byte, the first in its low half; else each has its own. Levels are
    two's complement; the last high half of a tensor of odd size is zero."""

    def payload_bytes(self, layout: Layout) -> int:
        return sum(
            2 * -(-tensor.size // self.block) + self._level_bytes(tensor.size)
            for tensor in layout.tensors
        )

    def encode(self, layout: Layout, vector: Vector) -> bytes:
        from artel.protocol.exchange.codec import _blocks

        layout.require(vector)
        vector = read_only(vector)
        payload = np.empty(self.payload_bytes(layout), np.uint8)
        for elements, scales, levels in self._places(layout):
            bits = np.empty((scales.stop - scales.start) // 2, np.uint16)
            if not _blocks.encode_blocks(
                vector[elements],
                self.block,
                np.float32(self.top),
                self.nibbles,
                bits,
                payload[levels],
            ):
                raise refuse_non_finite()
            payload[scales] = bits.astype("<u2", copy=False).view(np.uint8)
        return payload.tobytes()

    def decode(self, layout: Layout, payload: Payload) -> Vector:
        from artel.protocol.exchange.codec import _blocks

        vector = np.empty(layout.parameters, np.float32)
        for elements, scales, levels in self._checked(layout, payload):
            _blocks.decode_blocks(
                scales, levels, self.block, np.float32(self.top), self.nibbles, vector[elements]
            )
        return vector

    def check(self, layout: Layout, payload: Payload) -> None:
        for _ in self._checked(layout, payload):
            pass

    def _checked(
        self, layout: Layout, payload: Payload
    ) -> Iterator[tuple[slice, npt.NDArray[np.uint16], npt.NDArray[np.uint8]]]:
        """For each tensor: its elements, its scales (blocks,) and its levels, after all checks."""
        from artel.protocol.exchange.codec import _blocks

        require_length(self.name, payload, self.payload_bytes(layout))
        packed = read_only(np.frombuffer(payload, np.uint8))
        for elements, scales, levels in self._places(layout):
            bits = read_only(packed[scales].view("<u2"))
            fault = _blocks.check_blocks(
                bits,
                packed[levels],
                elements.stop - elements.start,
                self.block,
                self.top,
                self.nibbles,
            )
            if fault == _blocks.NOT_FINITE:
                raise NonFinite(f"{self.name} payload has a scale that is not finite")
            if fault:
                reason = {
                    _blocks.NEGATIVE: "a negative scale",
                    _blocks.BAD_LEVELS: "a block whose levels do not fit its scale",
                    _blocks.BAD_PADDING: "padding that is not zero",
                }[fault]
                raise DecodeError(f"{self.name} payload has {reason}")
            yield elements, bits, packed[levels]

    def _level_bytes(self, elements: int) -> int:
        return -(-elements // 2) if self.nibbles else elements

    def _places(self, layout: Layout) -> Iterator[tuple[slice, slice, slice]]:
        """For each tensor: its elements, and the bytes of its scales and of its levels."""
        at = 0
        for tensor in layout.tensors:
            levels = at + 2 * -(-tensor.size // self.block)
            end = levels + self._level_bytes(tensor.size)
            elements = slice(tensor.offset, tensor.offset + tensor.size)
            yield elements, slice(at, levels), slice(levels, end)
            at = end


class Int4(Blockwise):
    """Blocks of 256, levels -7..7, two to a byte: 4.06 bits a parameter.

    Streaming DiLoCo (arXiv 2501.18512) and Decoupled DiLoCo (arXiv 2604.21428) send four bits
    without error feedback.
    """

    name = "int4"
    id = 4
    block = 256
    top = 7
    nibbles = True


class Int8(Blockwise):
    """Blocks of 4096, levels -127..127, one byte each: 8.004 bits a parameter.

    INTELLECT-1 (arXiv 2412.01152) trained 10B parameters on 8-bit pseudo-gradients. With 255 levels
    a large block costs little: relative mean square error about 5e-5 on Gaussian values.
    """

    name = "int8"
    id = 3
    block = 4096
    top = 127
    nibbles = False
