"""The blobs of an exchange: a header that says what they are, and the codec's payload.

A pseudo-gradient is the state before a node's inner steps minus the state after them (DiLoCo,
arXiv 2311.08105), of the fragment that the round exchanges. A **contribution** holds a node's;
where rounds are sharded there is one of them for each slice, and an **index** that lists them. A
**slice** holds the aggregate of one slice. The header of both fixes what the numbers are relative
to; all integers big-endian:

=====  ==========================================================
8      magic ``ARTELPG1`` (contribution) or ``ARTELSL1`` (slice)
1      codec id
7      reserved, zero
8      round
32     state root of the base state
32     layout digest of the fragment or slice
8      payload length
=====  ==========================================================

An index:

=====  ==========================================================
8      magic ``ARTELIX2``
8      round
32     state root of the base state
2      count, then as often:
32     content id of the contribution's blob for that slice
8      its size
32     what the numbers in it are known by (:func:`payload_digest`)
=====  ==========================================================

The ledger records why a blob does not count; the ``reason`` of :class:`BlobRefused` is that code.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np

from artel.protocol import content, merkle
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.exchange.codec import Codec, Elements, NonFinite, Payload
from artel.protocol.round_state import NO_NUMBERS
from artel.protocol.state import Layout, Vector

MAGIC = b"ARTELPG1"
SLICE_MAGIC = b"ARTELSL1"
INDEX_MAGIC = b"ARTELIX2"
_HEADER = struct.Struct(">8sB7sQ32s32sQ")
HEADER_BYTES = _HEADER.size  # 96
_RESERVED = bytes(7)

_INDEX_HEADER = struct.Struct(">8sQ32sH")
_INDEX_ITEM = struct.Struct(">32sQ32s")
MAX_INDEXED = (1 << 16) - 1
MAX_INDEX_BYTES = _INDEX_HEADER.size + MAX_INDEXED * _INDEX_ITEM.size

Reason = Literal["malformed", "wrong_state", "non_finite", "too_large"]


class IndexItem(NamedTuple):
    """What an index says of the blob for one slice: its content id and bytes, and what its numbers
    are known by (hex)."""

    blob: str
    size: int
    payload: str

    @classmethod
    def of(cls, blob: bytes) -> IndexItem:
        """What is to be said of a blob."""
        digest = payload_digest(memoryview(blob)[HEADER_BYTES:])
        return cls(content.content_id(blob), len(blob), digest)

    def pack(self) -> bytes:
        """As it stands in an index.

        :raises CheckFailed: an id or digest is none
        """
        blob, payload = _digest(self.blob, "content id"), _digest(self.payload, "digest")
        return _INDEX_ITEM.pack(blob, self.size, payload)


class BlobRefused(DecodeError):
    """A blob does not count.

    ``reason``: ``too_large`` (more bytes than the run's codec can need), ``malformed`` (not the one
    encoding of a vector), ``wrong_state`` (made for another round, base state or layout),
    ``non_finite`` (decodes to NaN or infinity).
    """

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason: Reason = reason


@dataclass(frozen=True)
class Header:
    """What a blob says of its numbers; the methods write and read blobs that say just that.

    :param base: state root of the base state, hex
    :param magic: what the blobs are: :data:`MAGIC` or :data:`SLICE_MAGIC`
    """

    round: int
    base: str
    codec: Codec
    magic: bytes = MAGIC

    def pack(self, layout: Layout, vector: Vector) -> bytes:
        """The blob of a pseudo-gradient.

        :param layout: of the fragment, or of the slice of it
        :param vector: base state minus the state after the inner steps, shape (N,)
        :raises CheckFailed: the vector has another shape or is not finite, or ``base`` is no root
        """
        return self.wrap(layout, self.codec.encode(layout, vector))

    def wrap(self, layout: Layout, payload: bytes) -> bytes:
        """As :meth:`pack`, of what the codec has made already.

        :raises CheckFailed: ``base`` is no root
        """
        return self._bytes(layout, len(payload)) + payload

    def unpack(self, blob: Payload, layout: Layout) -> memoryview[int]:
        """The payload of a blob, after all checks of size and header but none of the payload.

        :raises BlobRefused: ``too_large``, ``malformed`` or ``wrong_state``
        """
        view = memoryview(blob)
        self.begins(view, len(view), layout)
        return view[HEADER_BYTES:]

    def begins(self, start: Payload, size: int, layout: Layout) -> None:
        """Check size and header of a blob, of which this is the beginning.

        :param size: bytes of the whole blob
        :raises BlobRefused: ``too_large``, ``malformed`` or ``wrong_state``
        """
        view, limit = memoryview(start), max_blob_bytes(layout, self.codec)
        if size > limit:
            raise BlobRefused("too_large", f"blob of {size} bytes, at most {limit} allowed")
        if len(view) < HEADER_BYTES:
            raise BlobRefused("malformed", f"blob of {size} bytes is shorter than its header")
        found, codec_id, reserved, *_, length = _HEADER.unpack_from(view)
        if found != self.magic or reserved != _RESERVED:
            raise BlobRefused("malformed", f"blob begins with {found!r} instead of {self.magic!r}")
        if codec_id != self.codec.id:
            wanted = self.codec.name
            raise BlobRefused("malformed", f"blob has codec {codec_id}, the run wants {wanted}")
        if length != size - HEADER_BYTES:
            raise BlobRefused("malformed", "blob's payload length does not fit its size")
        if view[:HEADER_BYTES] != self._bytes(layout, length):
            raise BlobRefused("wrong_state", "blob was made for another round, state or layout")

    def check(self, blob: Payload, layout: Layout) -> None:
        """Accept exactly the blobs that :meth:`load` accepts, without building the vector.

        :raises BlobRefused: with the reason
        """
        payload = self.unpack(blob, layout)
        with _refusing():
            self.codec.check(layout, payload)

    def load(self, blob: Payload, layout: Layout) -> Vector | Elements:
        """What the aggregation wants: the entries of a sparse codec, else the vector (N,), finite.

        :raises BlobRefused: with the reason
        """
        payload = self.unpack(blob, layout)
        with _refusing():
            return self.codec.decode(layout, payload)

    def _bytes(self, layout: Layout, length: int) -> bytes:
        root, digest = _digest(self.base, "state root"), bytes.fromhex(layout.digest)
        return _HEADER.pack(self.magic, self.codec.id, _RESERVED, self.round, root, digest, length)


def max_blob_bytes(layout: Layout, codec: Codec) -> int:
    """The largest contribution, or slice, of this layout that a node may publish in a run."""
    return HEADER_BYTES + codec.payload_bytes(layout)


def payload_digest(payload: Payload) -> str:
    """What the numbers of a blob are known by, whatever header is put before them.

    :returns: their SHA-256, hex; :data:`~protocol.round_state.NO_NUMBERS` when no bit of them is
        set
    """
    if not np.frombuffer(payload, np.uint8).any():
        return NO_NUMBERS
    return hashlib.sha256(payload).hexdigest()


def begins_like(blob: Payload, like: Payload) -> bool:
    """Whether a blob has the header of another one for the same slice, but for its own length."""
    start, length = HEADER_BYTES - 8, len(blob) - HEADER_BYTES
    if length < 0:
        return False
    return blob[:HEADER_BYTES] == bytes(like[:start]) + length.to_bytes(8, "big")


def joined_digest(digests: Sequence[str]) -> str:
    """What the numbers of a contribution in slices are known by.

    :param digests: those of its blobs, in the order of slices
    :returns: root of the RFC 6962 tree over the digests, hex, so that each of them can be proven
        without the others; :data:`~protocol.round_state.NO_NUMBERS` when each is
    """
    if all(digest == NO_NUMBERS for digest in digests):
        return NO_NUMBERS
    return merkle.root(_leaves(digests)).hex()


def pack_index(round: int, base: str, pieces: Sequence[IndexItem]) -> bytes:
    """The index of a contribution in slices.

    :param base: state root of the base state, hex
    :param pieces: of each slice, in order
    :raises CheckFailed: ``base`` or an id is none, a size below 1, no slices or too many
    """
    if not 0 < len(pieces) <= MAX_INDEXED or any(piece.size < 1 for piece in pieces):
        raise CheckFailed("an index lists 1 to 65,535 blobs of at least one byte")
    items = [piece.pack() for piece in pieces]
    head = _INDEX_HEADER.pack(INDEX_MAGIC, round, _digest(base, "state root"), len(pieces))
    return head + b"".join(items)


def open_index(
    data: Payload,
    *,
    round: int,
    base: str,
    payload: str | None = None,
    max_sizes: Sequence[int] | None = None,
) -> list[IndexItem]:
    """What it says of each slice, in order.

    :param payload: what the numbers of all slices are known by (:func:`joined_digest`)
    :param max_sizes: :func:`max_blob_bytes` of each slice of the round, if the reader knows them:
        then there are as many slices, and none is larger
    :raises BlobRefused: ``too_large``, ``malformed`` or ``wrong_state``
    """
    view = memoryview(data)
    if len(view) > MAX_INDEX_BYTES:
        raise BlobRefused("too_large", f"index of {len(view)} bytes, at most {MAX_INDEX_BYTES}")
    if len(view) < _INDEX_HEADER.size:
        raise BlobRefused("malformed", f"index of {len(view)} bytes is shorter than its header")
    magic, number, root, count = _INDEX_HEADER.unpack_from(view)
    if magic != INDEX_MAGIC or count == 0 or len(view) != index_bytes(count):
        raise BlobRefused("malformed", "not the index of a contribution in slices")
    if number != round or root != _digest(base, "state root"):
        raise BlobRefused("wrong_state", "index was made for another round or state")
    if max_sizes is not None and len(max_sizes) != count:
        raise BlobRefused("malformed", f"index of {count} slices instead of {len(max_sizes)}")
    pieces: list[IndexItem] = []
    for piece in _items(view):
        size = piece.size
        if size <= HEADER_BYTES:
            raise BlobRefused("malformed", f"slice of {size} bytes is no longer than its header")
        if max_sizes is not None and size > max_sizes[len(pieces)]:
            raise BlobRefused(
                "too_large", f"slice of {size} bytes, at most {max_sizes[len(pieces)]} allowed"
            )
        pieces.append(piece)
    if payload is not None and joined_digest([piece.payload for piece in pieces]) != payload:
        raise BlobRefused("malformed", "its numbers are known by another digest")
    return pieces


class ProvingIndex:
    """An index that proves what it says of a slice, to whoever knows the contribution's payload.

    :raises BlobRefused: it is none
    """

    def __init__(self, data: bytes) -> None:
        magic, *_, count = _INDEX_HEADER.unpack_from(data.ljust(_INDEX_HEADER.size))
        if magic != INDEX_MAGIC or len(data) != index_bytes(count):
            raise BlobRefused("malformed", "not the index of a contribution in slices")
        self._pieces = list(_items(memoryview(data)))
        self._tree = merkle.Rows(_leaves(piece.payload for piece in self._pieces))

    def proven(self, slice: int) -> bytes:
        """The item of a slice, and behind it the inclusion proof of its digest.

        :raises UsageError: there is no such slice
        """
        proof = merkle.inclusion(self._tree, slice, len(self._pieces))
        return self._pieces[slice].pack() + b"".join(proof)


def open_proven(data: bytes, slice: int, count: int, payload: str) -> IndexItem:
    """What an index says of a slice; but only the digest of its numbers is proven, content id and
    size are the word of whoever gives it.

    :param data: as :meth:`ProvingIndex.proven` gives it
    :param count: slices of the contribution
    :param payload: of the contribution (:func:`joined_digest`)
    :raises CheckFailed: there is no such slice with such numbers in the contribution
    """
    head, step = _INDEX_ITEM.size, merkle.HASH_BYTES
    piece = _item(*_INDEX_ITEM.unpack_from(data.ljust(head)))
    proof = [data[at : at + step] for at in range(head, len(data), step)]
    (leaf,) = _leaves([piece.payload])
    merkle.verify_inclusion(leaf, slice, count, proof, _digest(payload, "digest"))
    return piece


def _leaves(digests: Iterable[str]) -> list[bytes]:
    """Hashes of the leaves over which a contribution's payload is the root."""
    return [merkle.leaf_hash(_digest(digest, "digest")) for digest in digests]


def _items(index: memoryview[int]) -> Iterator[IndexItem]:
    return itertools.starmap(_item, _INDEX_ITEM.iter_unpack(index[_INDEX_HEADER.size :]))


def _item(blob: bytes, size: int, payload: bytes) -> IndexItem:
    return IndexItem(blob.hex(), size, payload.hex())


def index_bytes(count: int) -> int:
    """Exact size of an index of ``count`` slices."""
    return _INDEX_HEADER.size + count * _INDEX_ITEM.size


def _digest(text: str, what: str) -> bytes:
    try:
        digest = bytes.fromhex(text)
    except ValueError:
        digest = b""
    if len(digest) != 32:
        raise CheckFailed(f"{text[:80]!r} is not a {what}")
    return digest


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    try:
        yield
    except DecodeError as error:
        reason: Reason = "non_finite" if isinstance(error, NonFinite) else "malformed"
        raise BlobRefused(reason, error.message) from None
