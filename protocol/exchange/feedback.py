"""Error feedback: what a sparse codec did not send is kept, and counts again in the next rounds.

    a       = decay * residual + pseudo-gradient
    payload = encode(a)
    residual = a - decode(payload)

The residual is memory and momentum in one (SparseLoCo, arXiv 2508.15706; decay 0.95), which is why
runs with it have no outer momentum. Nothing is lost: what is sent and what is kept add up to what
came in, exactly at the elements that are not sent, up to one fp32 rounding at those that are.

It belongs to one node and the state that its pseudo-gradients are relative to: a node that joins or
takes another state over begins anew. What did not count for the others goes back into it: all of a
contribution that was late or left out; in sharded rounds what the aggregate of a slice left out
(gTop-k, Shi et al., arXiv 1901.04359). A node that was left out for long could release all that at
once, so the residual of what was exchanged is scaled down when its root mean square exceeds
:data:`CAP` times the median of those of the node's last :data:`REMEMBERED` pseudo-gradients.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from artel.protocol.errors import CheckFailed
from artel.protocol.exchange.aggregation import norm_of
from artel.protocol.exchange.codec import Payload, Sparse
from artel.protocol.exchange.codec.interface import read_only
from artel.protocol.exchange.parts import Part
from artel.protocol.state import Layout, Vector

CAP = 10.0
REMEMBERED = 16

_PIECE = 1 << 16  # elements swapped at once: they stay in the cache


@dataclass(frozen=True)
class _Before:
    """What :meth:`Feedback.undo` goes back to."""

    parts: tuple[Part, ...]
    residuals: list[Vector]
    sizes: tuple[float, ...]


class Feedback:
    """The residual of one node, over the whole model. Not for two threads at once."""

    def __init__(self, codec: Sparse, layout: Layout, *, decay: float) -> None:
        """Nothing is kept yet.

        :param layout: of the whole model
        :param decay: part of the residual that survives a round (0 to 1)
        :raises CheckFailed: a decay out of bounds
        """
        if not 0 <= decay <= 1:
            raise CheckFailed(f"the decay of the error feedback is {decay}, not from 0 to 1")
        self._codec = codec
        self._decay = np.float32(decay)
        self._residual: Vector = np.zeros(layout.parameters, np.float32)
        self._sizes: deque[float] = deque(maxlen=REMEMBERED)
        self._before: _Before | None = None

    @property
    def residual(self) -> Vector:
        """What is kept, shape (N,), for the whole model; a view that must not be written to."""
        view = self._residual.view()
        view.flags.writeable = False
        return view

    def encode(
        self,
        parts: Sequence[Part],
        deltas: Sequence[Vector],  # base minus weights: (its parameters,) for each part
    ) -> list[bytes]:
        """Payloads of one round's pseudo-gradient, one for each part (fragment or slice of it).

        The residual takes the place of what it was before (SparseLoCo, arXiv 2508.15706), in this
        order: all parts are encoded first, so that one that cannot be changes none of them.

        :raises CheckFailed: a vector of another shape, NaN or infinity; then nothing has changed
        """
        from artel.protocol.exchange import kernels  # numba takes 0.4 s to import

        sums, payloads, squares = [], [], 0.0
        for part, delta in zip(parts, deltas, strict=True):
            part.layout.require(delta)
            total = np.empty(part.parameters, np.float32)
            kept = read_only(part.take(self._residual))
            squares += kernels.accumulate(kept, read_only(delta), self._decay, total)
            payloads.append(self._codec.encode(part.layout, total))
            sums.append(total)
        for part, total, payload in zip(parts, sums, payloads, strict=True):
            sent = self._codec.decode(part.layout, payload)
            total[sent.positions] -= sent.values
        before = self._replace(parts, sums)
        self._before = _Before(tuple(parts), before, tuple(self._sizes))
        self._sizes.append(_mean_root(squares, deltas))
        self._limit(parts)
        return payloads

    def undo(self) -> None:
        """Take the last :meth:`encode` back, to the bit: the same round is trained again.

        Also what followed it (:meth:`left_out`, :meth:`put_back`) goes. Once for each ``encode``;
        without one since the last :meth:`reset` nothing happens.
        """
        if self._before is None:
            return
        for part, residual in zip(self._before.parts, self._before.residuals, strict=True):
            part.put(residual, self._residual)
        self._sizes = deque(self._before.sizes, REMEMBERED)
        self._before = None

    def sent_instead(
        self, parts: Sequence[Part], payloads: Sequence[Payload], others: Sequence[Payload]
    ) -> None:
        """What was sent is not what :meth:`encode` returned, but other payloads of the same parts:
        keep what those lack. There is no :meth:`undo` from here.

        :raises DecodeError: other bytes
        """
        self._before = None
        for part, payload, other in zip(parts, payloads, others, strict=True):
            if bytes(payload) != bytes(other):
                ours, theirs = (self._codec.decode(part.layout, each) for each in (payload, other))
                self._add(part, ours.positions, ours.values)
                self._add(part, theirs.positions, -theirs.values)

    def left_out(self, parts: Sequence[Part], payloads: Sequence[Payload]) -> None:
        """The contribution did not count (it was late or rejected): keep what it sent as well.

        :param payloads: what :meth:`encode` returned for ``parts``
        :raises DecodeError: other bytes
        """
        for part, payload in zip(parts, payloads, strict=True):
            sent = self._codec.decode(part.layout, payload)
            self._add(part, sent.positions, sent.values)
        self._limit(parts)

    def put_back(self, part: Part, payload: Payload, kept: npt.NDArray[np.int64]) -> None:
        """The aggregate of a slice has only the elements ``kept``: keep what we sent elsewhere.

        :param payload: what :meth:`encode` returned for the slice
        :param kept: positions in the slice, ascending (``Elements.positions`` of the aggregate)
        :raises DecodeError: other bytes
        """
        sent = self._codec.decode(part.layout, payload)
        lost = ~np.isin(sent.positions, kept, assume_unique=True)
        self._add(part, sent.positions[lost], sent.values[lost])
        self._limit([part])

    def reset(self) -> None:
        """Forget everything: the node joined, or took another state over."""
        self._residual[:] = 0
        self._sizes.clear()
        self._before = None

    def _replace(self, parts: Sequence[Part], new: list[Vector]) -> list[Vector]:
        """Put the residuals of ``parts`` in their places; returns those that were there."""
        if len(new) == 1 and len(new[0]) == len(self._residual):
            before, self._residual = [self._residual], new[0]
            return before
        for part, residual in zip(parts, new, strict=True):
            _swap(part, residual, self._residual)
        return new

    def _add(self, part: Part, positions: npt.NDArray[np.int64], values: Vector) -> None:
        own = part.take(self._residual)
        own[positions] += values
        part.put(own, self._residual)

    def _limit(self, parts: Sequence[Part]) -> None:
        """Scale the residual of ``parts`` down to the cap.

        Root mean squares rather than norms, so that fragments of unequal size can be compared.
        """
        if not self._sizes:
            return
        own = [part.take(self._residual) for part in parts]
        size, limit = _root_mean_square(own), CAP * statistics.median(self._sizes)
        if size > limit:
            for part, residual in zip(parts, own, strict=True):
                part.put(residual * np.float32(limit / size), self._residual)


def _swap(part: Part, own: Vector, full: Vector) -> None:
    """Exchange the part's vector with its places in ``full``, without a second copy of it."""
    done = 0
    for run in part.runs:
        for start in range(run.start, run.stop, _PIECE):
            there = full[start : min(start + _PIECE, run.stop)]
            here = own[done : done + len(there)]
            kept = there.copy()
            there[:] = here
            here[:] = kept
            done += len(there)


def _root_mean_square(vectors: Sequence[Vector]) -> float:
    """Of all elements together."""
    return _mean_root(sum(norm_of(vector) ** 2 for vector in vectors), vectors)


def _mean_root(squares: float, vectors: Sequence[Vector]) -> float:
    """The root of the mean of so many squares."""
    return math.sqrt(squares / max(1, sum(len(vector) for vector in vectors)))
