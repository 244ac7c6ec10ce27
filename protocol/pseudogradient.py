"""The blob of a contribution: a header that says what it is, and the codec's payload.

A pseudo-gradient is the state before a node's inner steps minus the state after them (DiLoCo,
arXiv 2311.08105). The header, all integers big-endian, fixes what the numbers are relative to:

=====  ==========================================
8      magic ``ARTELPG1``
1      codec id
7      reserved, zero
8      round
32     state root of the base state
32     layout digest
8      payload length
=====  ==========================================

The ledger records why a blob does not count; the ``reason`` of :class:`BlobRefused` is that code.
"""

from __future__ import annotations

import struct
from typing import Literal

from protocol.codec import Codec, NonFinite, Payload
from protocol.errors import CheckFailed, DecodeError
from protocol.state import Layout, Vector

MAGIC = b"ARTELPG1"
_HEADER = struct.Struct(">8sB7sQ32s32sQ")
HEADER_BYTES = _HEADER.size  # 96
_RESERVED = bytes(7)

Reason = Literal["malformed", "wrong_state", "non_finite", "too_large"]


class BlobRefused(DecodeError):
    """A blob does not count.

    ``reason``: ``too_large`` (more bytes than the run's codec can need), ``malformed`` (not the one
    encoding of a vector), ``wrong_state`` (made for another round, base state or layout),
    ``non_finite`` (decodes to NaN or infinity).
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


def pack(layout: Layout, vector: Vector, *, round: int, base: str, codec: Codec) -> bytes:
    """The blob of a pseudo-gradient.

    :param vector: base state minus the state after the inner steps, shape (N,)
    :param base: state root of the base state, hex
    :raises CheckFailed: the vector has another shape or is not finite, or ``base`` is no root
    """
    payload = codec.encode(layout, vector)
    return _header(layout, round, base, codec, len(payload)) + payload


def unpack(
    blob: Payload, layout: Layout, *, round: int, base: str, codec: Codec
) -> memoryview[int]:
    """The payload of a blob, after all checks of size and header but none of the payload.

    :raises BlobRefused: ``too_large``, ``malformed`` or ``wrong_state``
    """
    view = memoryview(blob)
    limit = max_blob_bytes(layout, codec)
    if len(view) > limit:
        raise BlobRefused("too_large", f"blob of {len(view)} bytes, at most {limit} allowed")
    if len(view) < HEADER_BYTES:
        raise BlobRefused("malformed", f"blob of {len(view)} bytes is shorter than its header")
    magic, codec_id, reserved, *_, length = _HEADER.unpack_from(view)
    if magic != MAGIC or reserved != _RESERVED:
        raise BlobRefused("malformed", "not a pseudo-gradient blob")
    if codec_id != codec.id:
        raise BlobRefused("malformed", f"blob has codec {codec_id}, the run wants {codec.name}")
    if length != len(view) - HEADER_BYTES:
        raise BlobRefused("malformed", "blob's payload length does not fit its size")
    if view[:HEADER_BYTES] != _header(layout, round, base, codec, length):
        raise BlobRefused("wrong_state", "blob was made for another round, state or layout")
    return view[HEADER_BYTES:]


def check(blob: Payload, layout: Layout, *, round: int, base: str, codec: Codec) -> None:
    """Accept exactly the blobs that :func:`decode` accepts, without building the vector.

    :raises BlobRefused: with the reason
    """
    payload = unpack(blob, layout, round=round, base=base, codec=codec)
    try:
        codec.check(layout, payload)
    except DecodeError as error:
        raise _refused(error) from None


def decode(blob: Payload, layout: Layout, *, round: int, base: str, codec: Codec) -> Vector:
    """The pseudo-gradient of a blob, shape (N,), finite.

    :raises BlobRefused: with the reason
    """
    payload = unpack(blob, layout, round=round, base=base, codec=codec)
    try:
        return codec.decode(layout, payload)
    except DecodeError as error:
        raise _refused(error) from None


def max_blob_bytes(layout: Layout, codec: Codec) -> int:
    """The largest blob that a node may publish in a run."""
    return HEADER_BYTES + codec.payload_bytes(layout)


def _header(layout: Layout, round: int, base: str, codec: Codec, length: int) -> bytes:
    try:
        root = bytes.fromhex(base)
    except ValueError:
        root = b""
    if len(root) != 32:
        raise CheckFailed(f"{base[:80]!r} is not a state root")
    digest = bytes.fromhex(layout.digest)
    return _HEADER.pack(MAGIC, codec.id, _RESERVED, round, root, digest, length)


def _refused(error: DecodeError) -> BlobRefused:
    reason: Reason = "non_finite" if isinstance(error, NonFinite) else "malformed"
    return BlobRefused(reason, error.message)
