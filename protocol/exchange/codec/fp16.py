"""``fp16``: N little-endian IEEE binary16, rounded to nearest even. 16 bits a parameter.

OpenDiLoCo (arXiv 2407.07852) sends pseudo-gradients this way without loss of quality. Values beyond
±65504 are sent as ±65504: a pseudo-gradient that large is clipped by the aggregation anyway, and
an infinity would cost the node its round. Values below 3e-8 become zero.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from artel.protocol.exchange.codec.interface import (
    Codec,
    NonFinite,
    Payload,
    read_only,
    refuse_non_finite,
    require_length,
)
from artel.protocol.state import Layout, Vector


class Fp16(Codec):
    """Half precision with saturation."""

    name = "fp16"
    id = 2

    def payload_bytes(self, layout: Layout) -> int:
        return 2 * layout.parameters

    def encode(self, layout: Layout, vector: Vector) -> bytes:
        from artel.protocol.exchange.codec import _blocks

        layout.require(vector)
        halves = np.empty(len(vector), np.uint16)
        if not _blocks.encode_halves(read_only(vector), halves):
            raise refuse_non_finite()
        return halves.astype("<u2", copy=False).tobytes()

    def decode(self, layout: Layout, payload: Payload) -> Vector:
        from artel.protocol.exchange.codec import _blocks

        vector = np.empty(layout.parameters, np.float32)
        _blocks.decode_halves(self._checked(layout, payload), vector)
        return vector

    def check(self, layout: Layout, payload: Payload) -> None:
        self._checked(layout, payload)

    def _checked(self, layout: Layout, payload: Payload) -> npt.NDArray[np.uint16]:
        """The bits of the payload's numbers."""
        from artel.protocol.exchange.codec import _blocks

        require_length(self.name, payload, self.payload_bytes(layout))
        bits = read_only(np.frombuffer(payload, "<u2"))
        if not _blocks.halves_are_finite(bits):
            raise NonFinite("fp16 payload holds NaN or infinity")
        return bits
