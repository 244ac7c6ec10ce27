"""``fp16``: N little-endian IEEE binary16, rounded to nearest even. 16 bits a parameter.

OpenDiLoCo (arXiv 2407.07852) sends pseudo-gradients this way without loss of quality. Values beyond
±65504 are sent as ±65504: a pseudo-gradient that large is clipped by the aggregation anyway, and
an infinity would cost the node its round. Values below 3e-8 become zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from protocol.codec.interface import Codec, NonFinite, Payload, refuse_non_finite, require_length
from protocol.state import Layout, Vector, all_finite

LARGEST = np.float32(65504.0)
"""The largest finite binary16."""
_EXPONENT = 0x7C00  # all exponent bits set: infinity or NaN
_PIECE = 1 << 18


class Fp16(Codec):
    """Half precision with saturation."""

    name = "fp16"
    id = 2

    def payload_bytes(self, layout: Layout) -> int:
        return 2 * layout.parameters

    def encode(self, layout: Layout, vector: Vector) -> bytes:
        layout.require(vector)
        if not all_finite(vector):
            raise refuse_non_finite()
        halves = np.empty(len(vector), "<f2")
        for start in range(0, len(vector), _PIECE):
            piece = slice(start, start + _PIECE)
            halves[piece] = np.clip(vector[piece], -LARGEST, LARGEST)
        return halves.tobytes()

    def decode(self, layout: Layout, payload: Payload) -> Vector:
        return self._checked(layout, payload).astype(np.float32)

    def check(self, layout: Layout, payload: Payload) -> None:
        self._checked(layout, payload)

    def _checked(self, layout: Layout, payload: Payload) -> npt.NDArray[np.float16]:
        """A view of the payload's numbers."""
        require_length(self.name, payload, self.payload_bytes(layout))
        bits = np.frombuffer(payload, "<u2")
        for start in range(0, len(bits), _PIECE):
            if ((bits[start : start + _PIECE] & _EXPONENT) == _EXPONENT).any():
                raise NonFinite("fp16 payload holds NaN or infinity")
        halves: npt.NDArray[np.float16] = bits.view("<f2")
        return halves
