"""Codecs of one little-endian IEEE number a parameter: ``fp16`` and ``fp32``.

``fp16`` rounds to nearest even, 16 bits a parameter. OpenDiLoCo (arXiv 2407.07852) sends
pseudo-gradients this way without loss of quality. Values beyond ±65504 are sent as ±65504: a
pseudo-gradient that large is clipped by the aggregation anyway, and an infinity would cost the node
its round. Values below 3e-8 become zero. ``fp32`` is the vector as it is, for reference.
"""

from __future__ import annotations

from typing import Any, ClassVar

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


class _Floats(Codec):
    stored: ClassVar[npt.DTypeLike]

    def _numbers(self, vector: Vector) -> npt.NDArray[Any] | None:
        """What is sent, N numbers; None when one is NaN or infinity."""
        raise NotImplementedError

    def encode(self, layout: Layout, vector: Vector) -> bytes:
        layout.require(vector)
        numbers = self._numbers(read_only(vector))
        if numbers is None:
            raise refuse_non_finite()
        return numbers.astype(self.stored, copy=False).tobytes()

    def payload_bytes(self, layout: Layout) -> int:
        return np.dtype(self.stored).itemsize * layout.parameters

    def check(self, layout: Layout, payload: Payload) -> None:
        self._checked(layout, payload)

    def _checked(self, layout: Layout, payload: Payload) -> npt.NDArray[Any]:
        """A view of the payload's numbers, of a half its bits."""
        from artel.protocol.exchange.codec import _blocks

        require_length(self.name, payload, self.payload_bytes(layout))
        values = read_only(np.frombuffer(payload, self.stored))
        finite = _blocks.all_finite if values.itemsize == 4 else _blocks.halves_are_finite
        if not finite(values):
            raise NonFinite(f"{self.name} payload holds NaN or infinity")
        return values


class Fp16(_Floats):
    """Half precision with saturation."""

    name = "fp16"
    id = 2
    stored = "<u2"

    def _numbers(self, vector: Vector) -> npt.NDArray[Any] | None:
        from artel.protocol.exchange.codec import _blocks

        halves = np.empty(len(vector), np.uint16)
        return halves if _blocks.encode_halves(vector, halves) else None

    def decode(self, layout: Layout, payload: Payload) -> Vector:
        from artel.protocol.exchange.codec import _blocks

        vector = np.empty(layout.parameters, np.float32)
        _blocks.decode_halves(self._checked(layout, payload), vector)
        return vector


class Fp32(_Floats):
    """Lossless."""

    name = "fp32"
    id = 1
    stored = "<f4"

    def _numbers(self, vector: Vector) -> npt.NDArray[Any] | None:
        from artel.protocol.exchange.codec import _blocks

        return vector if _blocks.all_finite(vector) else None

    def decode(self, layout: Layout, payload: Payload) -> Vector:
        return self._checked(layout, payload).copy()
