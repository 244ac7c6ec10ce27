"""``fp32``: the vector as it is, N little-endian fp32. 32 bits a parameter, for reference."""

from __future__ import annotations

import numpy as np

from artel.protocol.exchange.codec.interface import (
    Codec,
    NonFinite,
    Payload,
    read_only,
    refuse_non_finite,
    require_length,
)
from artel.protocol.state import Layout, Vector


class Fp32(Codec):
    """Lossless."""

    name = "fp32"
    id = 1

    def payload_bytes(self, layout: Layout) -> int:
        return 4 * layout.parameters

    def encode(self, layout: Layout, vector: Vector) -> bytes:
        from artel.protocol.exchange.codec import _blocks

        layout.require(vector)
        if not _blocks.all_finite(read_only(vector)):
            raise refuse_non_finite()
        return vector.astype("<f4", copy=False).tobytes()

    def decode(self, layout: Layout, payload: Payload) -> Vector:
        return self._checked(layout, payload).copy()

    def check(self, layout: Layout, payload: Payload) -> None:
        self._checked(layout, payload)

    def _checked(self, layout: Layout, payload: Payload) -> Vector:
        """A view of the payload's numbers."""
        from artel.protocol.exchange.codec import _blocks

        require_length(self.name, payload, self.payload_bytes(layout))
        values: Vector = read_only(np.frombuffer(payload, "<f4"))
        if not _blocks.all_finite(values):
            raise NonFinite("fp32 payload holds NaN or infinity")
        return values
