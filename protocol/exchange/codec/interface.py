"""What every codec offers, and the errors it may raise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.state import Layout, Vector

Payload = bytes | bytearray | memoryview
CHUNK = 4096
"""Elements of a tensor among which the largest are sought."""
GROUP = 16
"""Chunks that share two means."""


class NonFinite(DecodeError):
    """A payload is well formed but decodes to NaN or infinity."""


@dataclass(frozen=True, eq=False)
class Elements:
    """The elements of a flat vector that a sparse payload sends; all others are zero.

    Elements that a sparse codec sends only to fill a quota, with the value zero, are left out: to
    the aggregation they were not sent.
    """

    positions: npt.NDArray[np.int64]
    """Shape (M,), ascending, each once."""
    values: Vector
    """Shape (M,), finite."""


@dataclass(frozen=True, eq=False)
class Selection:
    """What :meth:`Sparse.pack` writes: E entries of the larger tensors, all of the smaller ones."""

    positions: npt.NDArray[np.uint16]
    """Shape (E,): place in the entry's chunk; chunk by chunk, ascending in each."""
    values: Vector
    """Shape (E,)."""
    small: Vector
    """Shape (S,): the elements of all tensors below a chunk, one tensor behind the other."""


class Codec(ABC):
    """Turns a flat fp32 vector of a known layout into a payload and back.

    Rules for every codec: a payload has exactly one accepted encoding; encoding and decoding use
    elementwise IEEE operations only, so that all machines get the same bits; a decoder checks the
    length before anything else and never allocates more than the layout implies.
    """

    name: ClassVar[str]
    """What a manifest calls it."""
    id: ClassVar[int]
    """Its byte in a blob's header; never reused."""
    sparse: ClassVar[bool] = False
    """Whether most elements are not sent at all; then :meth:`decode` gives those that are, and the
    encoder belongs into a :class:`protocol.exchange.feedback.Feedback`."""

    @abstractmethod
    def encode(
        self,
        layout: Layout,
        vector: Vector,  # (N,), N = layout.parameters
    ) -> bytes:
        """Payload of ``vector``.

        :raises CheckFailed: another dtype or shape than the layout's, NaN or infinity
        """

    @abstractmethod
    def decode(self, layout: Layout, payload: Payload) -> Vector | Elements:
        """The vector, shape (N,), finite, writable; of a sparse codec the elements that it sends.

        :raises DecodeError: on anything but the one encoding of a finite vector
        """

    def check(self, layout: Layout, payload: Payload) -> None:
        """Accept exactly the payloads that :meth:`decode` accepts, without the dense vector.

        :raises DecodeError: as :meth:`decode`
        """
        self.decode(layout, payload)

    @abstractmethod
    def payload_bytes(self, layout: Layout) -> int:
        """The largest payload of this layout; codecs of fixed size have no smaller one."""

    def bits_per_parameter(self, layout: Layout) -> float:
        """Bits sent for each parameter in a round, headers of the blob not counted."""
        return 8 * self.payload_bytes(layout) / layout.parameters


def require_length(name: str, payload: Payload, expected: int) -> None:
    """Check the size of a payload whose size is fixed.

    :raises DecodeError: another length
    """
    if len(payload) != expected:
        raise DecodeError(f"{name} payload has {len(payload)} bytes, {expected} expected")


def read_only(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The array as compiled kernels get their inputs: native, contiguous, aligned, read-only.

    A kernel is compiled once for each such property that differs. Copies only what does not fit.
    """
    view = np.require(array, array.dtype.newbyteorder("="), ["C_CONTIGUOUS", "ALIGNED"]).view()
    view.flags.writeable = False
    return view


def refuse_non_finite() -> CheckFailed:
    """What an encoder raises for NaN or infinity: its own training diverged."""
    return CheckFailed(
        "the pseudo-gradient holds NaN or infinity",
        "the inner steps diverged on this machine: check its numerics or the learning rate",
    )
