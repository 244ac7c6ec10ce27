"""The core of ``int4`` and ``int8``: blocks with one scale each, symmetrical levels.

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

import itertools
from abc import abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from protocol.codec.interface import Codec, NonFinite, Payload, refuse_non_finite, require_length
from protocol.errors import DecodeError
from protocol.state import Layout, Vector

Bytes = npt.NDArray[np.uint8]

_LARGEST = np.float32(65504.0)
_INFINITY_BITS = 0x7C00  # fp16 bit patterns from here on are infinite, NaN or negative
_PIECE = 1 << 18  # elements handled in one go: 1 MiB of fp32 stays in the cache


@dataclass(frozen=True)
class _Run:
    """Blocks of equal width that lie one behind the other: one vectorised operation's worth."""

    values: slice  # elements of the flat vector
    blocks: int
    width: int  # elements of each block
    scales: slice  # bytes of the payload
    levels: slice  # bytes of the payload


class Blockwise(Codec):
    """A codec of blocks with an fp16 scale; subclasses pack the levels."""

    block: ClassVar[int]
    """B, elements in a full block."""
    top: ClassVar[int]
    """L, the largest level."""

    @abstractmethod
    def pack(self, levels: npt.NDArray[np.int8]) -> Bytes:
        """Bytes of levels, shape (blocks, width) -> (bytes,)."""

    @abstractmethod
    def unpack(self, packed: Bytes, blocks: int, width: int) -> Vector:
        """Levels as fp32, shape (blocks, width), fresh and writable."""

    @abstractmethod
    def magnitudes(self, packed: Bytes, blocks: int, width: int) -> Bytes:
        """Largest |level| of each block, shape (blocks,); the unused level counts as L + 1.

        :raises DecodeError: padding bits that are not zero
        """

    @abstractmethod
    def packed_bytes(self, elements: int) -> int:
        """Bytes of that many packed levels."""

    def payload_bytes(self, layout: Layout) -> int:
        return sum(
            2 * -(-tensor.size // self.block) + self.packed_bytes(tensor.size)
            for tensor in layout.tensors
        )

    def encode(self, layout: Layout, vector: Vector) -> bytes:
        layout.require(vector)
        payload = np.empty(self.payload_bytes(layout), np.uint8)
        for run in self._runs(layout):
            rows = vector[run.values].reshape(run.blocks, run.width)
            # NaN and infinity survive max and min, so this is the check for them as well.
            peaks = np.abs(np.maximum(rows.max(axis=1), -rows.min(axis=1)))
            if not np.isfinite(peaks).all():
                raise refuse_non_finite()
            scales = np.minimum(peaks, _LARGEST).astype("<f2")
            scales.view("<u2")[scales.astype(np.float32) > peaks] -= 1  # round down
            steps = scales.astype(np.float32) / np.float32(self.top)
            inverse = np.zeros_like(steps)
            np.divide(np.float32(1), steps, out=inverse, where=steps > 0)
            levels = rows * inverse[:, None]
            np.rint(levels, out=levels)
            np.clip(levels, np.float32(-self.top), np.float32(self.top), out=levels)
            payload[run.scales] = scales.view(np.uint8)
            payload[run.levels] = self.pack(levels.astype(np.int8))
        return payload.tobytes()

    def decode(self, layout: Layout, payload: Payload) -> Vector:
        packed = self._bytes(layout, payload)
        vector = np.empty(layout.parameters, np.float32)
        for run in self._runs(layout):
            scales = self._checked_scales(packed, run)
            rows = self.unpack(packed[run.levels], run.blocks, run.width)
            out = vector[run.values].reshape(run.blocks, run.width)
            # level * scale is exact (11 + 7 bits), so only the division rounds.
            np.multiply(rows, scales.astype(np.float32)[:, None], out=out)
            np.divide(out, np.float32(self.top), out=out)
        return vector

    def check(self, layout: Layout, payload: Payload) -> None:
        packed = self._bytes(layout, payload)
        for run in self._runs(layout):
            self._checked_scales(packed, run)

    def _bytes(self, layout: Layout, payload: Payload) -> Bytes:
        require_length(self.name, payload, self.payload_bytes(layout))
        return np.frombuffer(payload, np.uint8)

    def _checked_scales(self, packed: Bytes, run: _Run) -> npt.NDArray[np.float16]:
        """The scales of a run, shape (blocks,), after all checks of its scales and levels."""
        bits: npt.NDArray[np.uint16] = packed[run.scales].view("<u2")
        if (bits >= _INFINITY_BITS).any():
            if ((bits & _INFINITY_BITS) == _INFINITY_BITS).any():
                raise NonFinite(f"{self.name} payload has a scale that is not finite")
            raise DecodeError(f"{self.name} payload has a negative scale")
        expected = np.where(bits > 0, np.uint8(self.top), np.uint8(0))
        if (self.magnitudes(packed[run.levels], run.blocks, run.width) != expected).any():
            raise DecodeError(f"{self.name} payload has a block whose levels do not fit its scale")
        scales: npt.NDArray[np.float16] = bits.view("<f2")
        return scales

    def _runs(self, layout: Layout) -> Iterator[_Run]:
        """Cut a layout into runs: whole blocks a megabyte at a time, short last blocks alone."""
        at = 0
        for tensor in layout.tensors:
            whole = tensor.size // self.block * self.block
            scales = at
            levels = scales + 2 * -(-tensor.size // self.block)
            cuts = [*range(0, whole, _PIECE), whole, tensor.size]
            for start, end in itertools.pairwise(cuts):
                if start == end:
                    continue
                width = self.block if end <= whole else end - start
                first = levels + self.packed_bytes(start)
                yield _Run(
                    slice(tensor.offset + start, tensor.offset + end),
                    (end - start) // width,
                    width,
                    slice(scales, scales + 2 * ((end - start) // width)),
                    slice(first, first + self.packed_bytes(end - start)),
                )
                scales += 2 * ((end - start) // width)
            at = levels + self.packed_bytes(tensor.size)
