"""``sparse``: the largest elements of every 4096, two bits and a place each. 0.15 bits a parameter.

Top-k with error feedback and two-bit values is SparseLoCo's (arXiv 2508.15706); Covenant-72B
(arXiv 2603.08163) sends 12 bits for a place and 2 for a value, 0.219 bits a parameter at the same
k. Sorted places need less: the gaps between them are nearly geometric, and a Rice code of constant
parameter comes within 2.3 percent of the log2 C(4096, 64) / 64 = 7.36 bits that are necessary.

A tensor of 4096 elements or more is cut into **chunks** of 4096 (its last may be shorter). Of a
chunk of n elements exactly ceil(k n / 4096) are sent, those of largest magnitude (of equal ones
that of lowest index). The chunks of a tensor form **groups** of 16 (its last may have fewer), each
with two magnitudes, low and high: the means of a split of its entries that keeps squared errors
small. What the two cannot express stays in the error feedback. Smaller tensors are sent whole, as
``int8`` does. Payload, with streams filled from the lowest bit of the first byte upwards:

============  ====================================================================================
means         for each group low and high, fp16 little-endian, not negative, low <= high
small         the payload of ``int8`` for the smaller tensors, in layout order
marks         2 bits for each entry: bit 0 the sign (1: negative), bit 1 which mean (1: high)
remainders    b bits for each entry: its gap mod 2^b; the gap is the number of elements between it
              and the entry before (or the start of the chunk)
quotients     for each entry, gap div 2^b zeros and a one; this alone has a variable size
============  ====================================================================================

b is the smallest number with k 2^b >= 1971 = 4096 ln(golden ratio): the best for geometric gaps.

A payload has exactly one accepted encoding: both means of a group are used, or they are equal and
nothing is marked high; an entry whose mean is zero (a chunk with too few other elements) has no
sign and the lowest place that is free; each stream ends with the zero bits of its last byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
import numpy.typing as npt

from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.exchange.codec.blockwise import Int8
from artel.protocol.exchange.codec.interface import (
    CHUNK,
    GROUP,
    Codec,
    Elements,
    NonFinite,
    Payload,
    Selection,
    read_only,
    refuse_non_finite,
)
from artel.protocol.state import Layout, Tensor, Vector

TOP_K = 128
"""The usual k: 3.1 percent of the elements, 0.26 bits a parameter."""
Integers = npt.NDArray[np.int64]
Words = npt.NDArray[np.uint64]

_SMALL = Int8()


@dataclass(frozen=True)
class Plan:
    """What the codec needs to know about a layout."""

    layout: Layout
    top_k: int

    @cached_property
    def large(self) -> tuple[Tensor, ...]:
        """The tensors that are sent in chunks."""
        return tuple(t for t in self.layout.tensors if t.size >= CHUNK)

    @cached_property
    def small(self) -> Layout | None:
        """The tensors that are sent whole, as a layout of their own."""
        shapes = [(t.name, t.shape) for t in self.layout.tensors if t.size < CHUNK]
        return Layout.of(shapes) if shapes else None

    @cached_property
    def small_bytes(self) -> int:
        return _SMALL.payload_bytes(self.small) if self.small else 0

    @cached_property
    def groups(self) -> int:
        return sum(-(-t.size // (GROUP * CHUNK)) for t in self.large)

    @cached_property
    def entries(self) -> int:
        """E."""
        return sum(
            t.size // CHUNK * self.top_k + -(-self.top_k * (t.size % CHUNK) // CHUNK)
            for t in self.large
        )

    @cached_property
    def low_bits(self) -> int:
        """b."""
        return next(b for b in range(12) if self.top_k << b >= 1971)

    @cached_property
    def most_quotients(self) -> int:
        """Bits that the quotients can take: the gaps of a chunk add up to what it does not send."""
        bits = self.entries
        for tensor in self.large:
            whole, rest = divmod(tensor.size, CHUNK)
            bits += whole * ((CHUNK - self.top_k) >> self.low_bits)
            bits += (rest - -(-self.top_k * rest // CHUNK)) >> self.low_bits
        return bits

    @cached_property
    def fixed_bytes(self) -> int:
        """Bytes of all sections but the last."""
        marks, remainders = -(-self.entries // 4), -(-self.entries * self.low_bits // 8)
        return 4 * self.groups + self.small_bytes + marks + remainders

    @cached_property
    def table(self) -> tuple[Integers, Integers]:
        """Offsets and sizes of all tensors, for the kernels."""
        return _table(self.layout.tensors)

    @cached_property
    def large_table(self) -> tuple[Integers, Integers]:
        """Offsets and sizes of the larger tensors."""
        return _table(self.large)


@lru_cache(maxsize=64)
def plan(layout: Layout, top_k: int) -> Plan:
    """The plan of a layout; remembered, since its sums go over all tensors."""
    return Plan(layout, top_k)


class Sparse(Codec):
    """Top-k of every chunk; see the module."""

    name = "sparse"
    id = 5
    sparse = True

    def __init__(self, top_k: int = TOP_K, device: str = "cpu") -> None:
        """:param top_k: k, from 1 to 4096
        :param device: where :meth:`select` computes, as torch calls it; the outcome is the same

        :raises CheckFailed: another k
        """
        if not 1 <= top_k <= CHUNK:
            raise CheckFailed(f"the codec sparse cannot send {top_k} elements of every {CHUNK}")
        self.top_k = top_k
        self.device = device

    def payload_bytes(self, layout: Layout) -> int:
        facts = plan(layout, self.top_k)
        return facts.fixed_bytes + -(-facts.most_quotients // 8)

    def encode(self, layout: Layout, vector: Vector) -> bytes:
        return self.pack(layout, self.select(layout, vector))

    def select(self, layout: Layout, vector: Vector) -> Selection:
        """What to send of ``vector``, shape (N,).

        :raises CheckFailed: another dtype or shape than the layout's
        """
        layout.require(vector)
        if self.device != "cpu":
            from artel.protocol.exchange.codec import gpu

            return gpu.select(layout, vector, self.top_k, self.device)
        from artel.protocol.exchange.codec import _select

        facts = plan(layout, self.top_k)
        positions = np.empty(facts.entries, np.uint16)
        values = np.empty(facts.entries, np.float32)
        _select.select(read_only(vector), *facts.large_table, self.top_k, positions, values)
        small = [vector[t.offset : t.offset + t.size] for t in layout.tensors if t.size < CHUNK]
        return Selection(positions, values, np.concatenate([*small, np.empty(0, np.float32)]))

    def pack(self, layout: Layout, selection: Selection) -> bytes:
        """The payload of a selection, however it was made.

        :raises CheckFailed: it does not fit the layout, or holds NaN or infinity
        """
        from artel.protocol.exchange.codec import _rice

        facts = plan(layout, self.top_k)
        if selection.positions.shape != (facts.entries,) or selection.values.shape != (
            facts.entries,
        ):
            raise CheckFailed("the selection belongs to another layout or another k")
        if not np.isfinite(selection.values).all():  # they sort above all numbers: never missed
            raise refuse_non_finite()
        small = _SMALL.encode(facts.small, selection.small) if facts.small else b""
        means = np.zeros(2 * facts.groups, np.uint16)
        marks = _words(2 * facts.entries)
        remainders = _words(facts.low_bits * facts.entries)
        quotients = _words(facts.most_quotients)
        _, sizes = facts.large_table
        end = _rice.pack(
            sizes,
            self.top_k,
            facts.low_bits,
            read_only(selection.positions),
            read_only(selection.values),
            means,
            marks,
            remainders,
            quotients,
        )
        return b"".join(
            (
                means.astype("<u2").tobytes(),
                small,
                _bytes(marks, 2 * facts.entries),
                _bytes(remainders, facts.low_bits * facts.entries),
                _bytes(quotients, end),
            )
        )

    def decode(self, layout: Layout, payload: Payload) -> Elements:
        from artel.protocol.exchange.codec import _rice

        facts = plan(layout, self.top_k)
        least, most = -(-facts.entries // 8), -(-facts.most_quotients // 8)
        quotient_bytes = len(payload) - facts.fixed_bytes
        if not least <= quotient_bytes <= most:
            raise DecodeError(
                f"sparse payload has {len(payload)} bytes, {facts.fixed_bytes + least} to "
                f"{facts.fixed_bytes + most} expected"
            )
        view = memoryview(payload)
        means = np.frombuffer(view[: 4 * facts.groups], "<u2").astype(np.uint16)
        view = view[4 * facts.groups :]
        small_part, view = view[: facts.small_bytes], view[facts.small_bytes :]
        small = np.empty(0, np.float32)
        if facts.small:
            small = _SMALL.decode(facts.small, small_part)
        mark_bits, remainder_bits = 2 * facts.entries, facts.low_bits * facts.entries
        marks, view = _words(mark_bits, view), view[-(-mark_bits // 8) :]
        remainders, view = _words(remainder_bits, view), view[-(-remainder_bits // 8) :]
        quotients = _words(8 * quotient_bytes, view)
        if _any_from(marks, mark_bits) or _any_from(remainders, remainder_bits):
            raise DecodeError("sparse payload has padding that is not zero")
        positions = np.empty(facts.entries + len(small), np.int64)
        values = np.empty(len(positions), np.float32)
        fault, count, end = _rice.unpack(
            *facts.table,
            self.top_k,
            facts.low_bits,
            read_only(small),
            means,
            marks,
            remainders,
            quotients,
            positions,
            values,
        )
        if fault:
            raise _refusal(fault, means)
        if -(-end // 8) != quotient_bytes or _any_from(quotients, end):
            raise DecodeError("sparse payload goes on behind its last entry")
        return Elements(positions[:count], values[:count])


def _table(tensors: tuple[Tensor, ...]) -> tuple[Integers, Integers]:
    return (
        np.array([t.offset for t in tensors], np.int64),
        np.array([t.size for t in tensors], np.int64),
    )


def _words(bits: int, source: memoryview[int] | None = None) -> Words:
    """A stream as words of 64 bits with one to spare: zeros, or the first bytes of ``source``."""
    size = -(-bits // 8)
    data = np.zeros(8 * (bits // 64 + 2), np.uint8)
    if source is not None:
        data[:size] = np.frombuffer(source[:size], np.uint8)
    return data.view("<u8").astype(np.uint64, copy=False)


def _bytes(words: Words, bits: int) -> bytes:
    """The first bits of a stream, with the zeros of the last byte."""
    return words.astype("<u8", copy=False).view(np.uint8)[: -(-bits // 8)].tobytes()


def _any_from(words: Words, bit: int) -> bool:
    """Whether a bit is set at ``bit`` or behind it."""
    return bool(int(words[bit // 64]) >> bit % 64 or words[bit // 64 + 1 :].any())


def _refusal(fault: int, means: npt.NDArray[np.uint16]) -> DecodeError:
    """The error for what the kernel found."""
    from artel.protocol.exchange.codec import _rice

    if fault == _rice.BAD_MEAN and ((means & 0x7C00) == 0x7C00).any():
        return NonFinite("sparse payload has a mean that is not finite")
    reasons = {
        _rice.BAD_MEAN: "a negative mean",
        _rice.BAD_ORDER: "a low mean above its high mean",
        _rice.BAD_USE: "a group whose marks do not fit its means",
        _rice.BAD_ZERO: "a zero with a sign or out of place",
        _rice.BAD_GAP: "an entry outside of its chunk",
        _rice.BAD_END: "fewer entries than its layout wants",
    }
    return DecodeError(f"sparse payload has {reasons[fault]}")
