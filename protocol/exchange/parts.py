"""Parts of the model: what one round exchanges, and the slices that one node combines for all.

A **fragment** is a group of whole tensors; with P fragments round r exchanges number r mod P
(Streaming DiLoCo, arXiv 2501.18512). A **slice** is a contiguous stretch of a fragment; in a
sharded round each accepted node combines one of them. Both are a :class:`Part`: a flat vector of
its own, with a layout of its own, and where its pieces lie in the vector of the whole model.
Everything here follows from the layout and small integers alone, so that all nodes cut alike.
"""

from __future__ import annotations

import bisect
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

import numpy as np

from artel.protocol.errors import CheckFailed
from artel.protocol.state import Layout, Tensor, Vector

CHUNK = 4096
"""A tensor is cut at multiples of this many elements from its start alone: that is the chunk of the
codec "sparse" and a multiple of the blocks of the others, so that a cut changes none of them."""


@dataclass(frozen=True)
class Part:
    """Some of the elements of a model of M elements as a flat vector of N = ``parameters``.

    ``layout`` describes the part's own vector; tensor i of it (for a slice: a piece of a tensor) is
    ``ranges[i]`` of the vector of the whole model.
    """

    layout: Layout
    ranges: tuple[slice, ...] = field(hash=False)

    @property
    def parameters(self) -> int:
        """N, the length of the part's vector."""
        return self.layout.parameters

    @cached_property
    def runs(self) -> tuple[slice, ...]:
        """``ranges`` with neighbours joined: the fewest stretches of the full vector."""
        joined: list[slice] = []
        for piece in self.ranges:
            if joined and joined[-1].stop == piece.start:
                joined[-1] = slice(joined[-1].start, piece.stop)
            else:
                joined.append(piece)
        return tuple(joined)

    def take(self, full: Vector) -> Vector:
        """The part, shape (N,), of a full vector (M,): a view when it is one stretch, else a copy.

        :raises CheckFailed: ``full`` is no flat fp32 vector, or ends before the part does
        """
        self._require(full)
        if len(self.runs) == 1:
            return full[self.runs[0]]
        return np.concatenate([full[run] for run in self.runs])

    def put(self, part: Vector, full: Vector) -> None:
        """Write the part's vector (N,) to its places in ``full`` (M,); the rest stays.

        :raises CheckFailed: vectors of another dtype or shape
        """
        self.layout.require(part)
        self._require(full)
        done = 0
        for run in self.runs:
            size = run.stop - run.start
            full[run] = part[done : done + size]
            done += size

    def _require(self, full: Vector) -> None:
        if full.dtype != np.float32 or full.ndim != 1 or len(full) < self.runs[-1].stop:
            raise CheckFailed(
                f"vector has {full.dtype} {full.shape}, the part wants float32 and at least "
                f"{self.runs[-1].stop} elements"
            )


@lru_cache(maxsize=16)
def whole(layout: Layout) -> Part:
    """All of the model as one part."""
    return Part(layout, tuple(slice(t.offset, t.offset + t.size) for t in layout.tensors))


def fragment(layout: Layout, count: int, number: int) -> Part:
    """Fragment ``number`` (mod ``count``) of a model that is dealt into ``count`` of them.

    Whole tensors, the largest first, each to the group that is smallest so far (the first of
    equals); inside a group they keep the order of the layout. There are never more fragments than
    tensors.

    :raises CheckFailed: ``count`` is below 1
    """
    parts = _fragments(layout, count)
    return parts[number % len(parts)]


@lru_cache(maxsize=16)
def _fragments(layout: Layout, count: int) -> tuple[Part, ...]:
    if count < 1:
        raise CheckFailed(f"a model cannot be dealt into {count} fragments")
    count = min(count, len(layout.tensors))
    if count == 1:
        return (whole(layout),)
    groups: list[list[Tensor]] = [[] for _ in range(count)]
    sizes = [(0, group) for group in range(count)]  # a heap: the smallest, the first of equals
    for tensor in sorted(layout.tensors, key=lambda t: -t.size):  # stable: ties stay in order
        size, group = sizes[0]
        groups[group].append(tensor)
        heapq.heapreplace(sizes, (size + tensor.size, group))
    return tuple(
        _part((t.name, t.shape, t.offset, t.size) for t in sorted(group, key=lambda t: t.offset))
        for group in groups
    )


def cut(part: Part, slices: int) -> list[Part]:
    """The part in at most ``slices`` contiguous slices of about equal size, in order.

    Slices end where a tensor
    ends, or at a multiple of :data:`CHUNK` elements from its start that leaves no piece of it
    shorter than a chunk: of those places the nearest to j / ``slices`` of the part (the first of
    equals). Ends that fall together leave fewer slices. A piece of a tensor is named
    ``name[start:stop]`` (its elements) and is flat; a whole tensor keeps name and shape.

    :raises CheckFailed: ``slices`` is below 1
    """
    return list(_cut(part, slices))


@lru_cache(maxsize=16)
def _cut(part: Part, slices: int) -> tuple[Part, ...]:
    if slices < 1:
        raise CheckFailed(f"a part cannot be cut into {slices} slices")
    total = part.parameters
    starts = [tensor.offset for tensor in part.layout.tensors]
    # No more ends than chunks and tensors, however many slices are asked for.
    slices = min(slices, total // CHUNK + len(starts))
    ends = {_nearest_end(part.layout, starts, j * total, slices) for j in range(1, slices)}
    bounds = sorted(ends - {0, total})
    return tuple(
        _between(part, starts, start, stop)
        for start, stop in zip([0, *bounds], [*bounds, total], strict=True)
    )


def _nearest_end(layout: Layout, starts: Sequence[int], numerator: int, slices: int) -> int:
    """The permitted end of a slice that is nearest to ``numerator / slices``."""
    wanted = numerator // slices
    tensor = layout.tensors[bisect.bisect_right(starts, wanted) - 1]
    places = [0, tensor.size]
    last = (tensor.size - CHUNK) // CHUNK * CHUNK
    if last >= CHUNK:  # places inside the tensor: CHUNK, 2 CHUNK, ... last
        below = (wanted - tensor.offset) // CHUNK * CHUNK
        places += [min(max(place, CHUNK), last) for place in (below, below + CHUNK)]
    return min(
        (tensor.offset + place for place in places),
        key=lambda place: (abs(place * slices - numerator), place),
    )


def _between(part: Part, starts: Sequence[int], start: int, stop: int) -> Part:
    """Elements ``start`` to ``stop`` of the part's vector."""
    pieces: list[tuple[str, tuple[int, ...], int, int]] = []
    for index in range(bisect.bisect_right(starts, start) - 1, bisect.bisect_left(starts, stop)):
        tensor = part.layout.tensors[index]
        first = max(start - tensor.offset, 0)
        last = min(stop - tensor.offset, tensor.size)
        at = part.ranges[index].start + first
        if last - first == tensor.size:
            pieces.append((tensor.name, tensor.shape, at, tensor.size))
        else:
            pieces.append((f"{tensor.name}[{first}:{last}]", (last - first,), at, last - first))
    return _part(pieces)


def _part(pieces: Iterable[tuple[str, tuple[int, ...], int, int]]) -> Part:
    """A part of (name, shape, offset in the full vector, size), laid out one behind the other."""
    tensors: list[Tensor] = []
    ranges: list[slice] = []
    offset = 0
    for name, shape, at, size in pieces:
        tensors.append(Tensor(name, shape, offset, size))
        ranges.append(slice(at, at + size))
        offset += size
    return Part(Layout(tuple(tensors)), tuple(ranges))


def stretches(parts: Iterable[Part]) -> list[slice]:
    """Where the slices that :func:`cut` made lie in the vector of the part that was cut."""
    result: list[slice] = []
    start = 0
    for part in parts:
        result.append(slice(start, start + part.parameters))
        start += part.parameters
    return result
