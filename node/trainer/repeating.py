"""Repeating what another node did in a span, and comparing it with what that node sent.

A span begins with an agreed state and nothing else (:mod:`protocol.assignment`), so all that a
node contributed in it follows from public data: the states, the windows that it was assigned, its
seeds, and its own contributions. The steps are those of :class:`node.trainer.course.Course`, as in
the node's own training; only the weights, the moments and the feedback are others, and they are
swapped in for as long as a command takes.

What is compared are the payloads as they decode, because only those are public: of two nodes that
made the same steps on equal machines the bytes are the same, and of the rest the difference is what
the others get of it. Afterwards the replay goes on as if it had sent what the node did send. So a
rounding that fell differently is not carried on in the error feedback: each contribution is judged
by what was done for it.

Memory with N parameters, while a replay is under way: 12N for weights and AdamW's moments (8N with
Muon), 4N with overlap, 4N with ``sparse``; 8N for as long as it compares, when there are no
gradients. The states are mapped.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from artel.node.trainer import writing
from artel.node.trainer.agreed import Change
from artel.node.trainer.channel import TrainerError, coded
from artel.node.trainer.course import Course, Sent
from artel.node.trainer.inner import Aside
from artel.node.trainer.merging import usable
from artel.node.trainer.orders import BeginReplay, Compared, Replayed, SpanRound
from artel.protocol.exchange import codec
from artel.protocol.exchange.aggregate_slice import load_blob
from artel.protocol.exchange.aggregation import norm_of
from artel.protocol.exchange.codec import Codec, Elements
from artel.protocol.exchange.next_state import Base
from artel.protocol.exchange.parts import Part
from artel.protocol.exchange.pseudogradient import SLICE_MAGIC, Header
from artel.protocol.state import Vector, map_state


class Replay:
    """One span of one node; ``course`` is the replay's own, but for the model."""

    def __init__(self, course: Course, order: BeginReplay) -> None:
        """Nothing is computed yet.

        :raises TrainerError: ``bad_request``
        """
        _require_sound(order.rounds)
        self._left = sum(one.head + one.tail for one in order.rounds) - order.rounds[-1].tail
        self._done = 0
        self._inner = course.inner
        self._aside: Aside | None = course.inner.aside()
        self._compared: list[Compared] = []
        self._out, self._rows = order.out, list[bytes]()
        self._steps = self._walk(course, order)

    def go_on(self, steps: int, check: Callable[[], None]) -> Replayed:
        """Make at most so many inner steps more.

        :param check: called before each; what it raises ends the call and nothing else
        :raises TrainerError: as :class:`node.trainer.orders.GoOn` says
        """
        if self._aside is not None:
            own = self._inner.swap(self._aside)
            try:
                for _ in range(min(steps, self._left)):
                    check()
                    next(self._steps)
                    self._left, self._done = self._left - 1, self._done + 1
            finally:
                self._aside = self._inner.swap(own)
            if not self._left:
                self._steps.close()
                self._aside = None
                if self._out is not None:
                    writing.write(self._out, self._rows)
        return Replayed(self._left, tuple(self._compared), self._inner.hardware)

    def _walk(self, course: Course, order: BeginReplay) -> Generator[None, None, None]:
        """One inner step for each ``next``; what belongs before or behind it goes with it."""
        sent: Sent | None = None
        changes: list[Change] = []
        for one in order.rounds:
            base = _base(course, one)
            if sent is None:
                course.begin(base.state)
            else:
                course.follow(base.state, changes, sent, sent.tail)
            steps = course.steps(one.windows, one.round, range(one.head), one.steps, one.changes)
            tail = course.fingerprints if sent is not None and sent.tail else []
            course.begin_head(one.round, order.node, tail)
            for _ in range(one.head - 1):
                next(steps)
                yield
            next(steps)
            if not one.blobs:  # nobody has sent anything that could be compared
                self._rows.append(course.rows().tobytes())
                yield
                return
            sent = self._compare(course, one, base, order.node)
            if one is order.rounds[-1]:
                yield
                return
            changes = [_kept(course, sent, base, one)]
            yield
            yield from _tail(course, one, sent)

    def _compare(self, course: Course, one: SpanRound, base: Base, node: str) -> Sent:
        """Make the contribution, and go on as if it had been the node's own."""
        made = course.send(one.round, node, base.state, one.slices)
        said = Header(one.round, base.root, codec.of(course.manifest.config.exchange))
        with usable():
            given = [load_blob(*each, node) for each in _blobs(made.parts, said, one.blobs)]
        self._compared.append(_compared(said.codec, made, given, self._done + 1))
        self._rows.append(course.rows().tobytes())
        if course.feedback is None:
            return replace(made, payloads=[])
        payloads = [
            bytes(said.unpack(path.read_bytes(), part.layout))
            for part, said, path in _blobs(made.parts, said, one.blobs)
        ]
        course.feedback.sent_instead(made.parts, made.payloads, payloads)
        return replace(made, payloads=payloads)


def _blobs(
    parts: Sequence[Part], said: Header, paths: Sequence[Path]
) -> Iterator[tuple[Part, Header, Path]]:
    """Each blob with its part and what its header has to say."""
    if len(parts) != len(paths):
        raise TrainerError("bad_request", f"round {said.round} has {len(parts)} blobs")
    return ((part, said, path) for part, path in zip(parts, paths, strict=True))


def _kept(course: Course, sent: Sent, base: Base, one: SpanRound) -> Change:
    """What the round has made use of."""
    slices = Header(one.round, base.root, codec.of(course.manifest.config.exchange), SLICE_MAGIC)
    kept = []
    for each in _blobs(sent.parts, slices, one.aggregates) if one.aggregates else ():
        with usable():
            values = load_blob(*each)
        if isinstance(values, Elements):
            kept.append(values.positions)
    return Change(one.round, frozenset({sent.node}), tuple(kept) or None)


def _require_sound(rounds: Sequence[SpanRound]) -> None:
    first = rounds[0].round if rounds else 0
    if [one.round for one in rounds] != list(range(first, first + max(1, len(rounds)))):
        raise TrainerError("bad_request", "the rounds of a replay follow one another")
    for one in rounds:
        if min(one.head - 1, one.tail) < 0 or one.head + one.tail > one.steps:
            raise TrainerError("bad_request", f"no {one.head} + {one.tail} in {one.steps} steps")


def _base(course: Course, one: SpanRound) -> Base:
    with coded("bad_state"):
        state = map_state(one.state, course.layout)
    if state.round != one.round:
        raise TrainerError("bad_state", f"the state {one.state.name} is of round {state.round}")
    return Base(state, one.base)


def _tail(course: Course, one: SpanRound, sent: Sent) -> Iterator[None]:
    if not one.tail:
        return
    numbers = range(one.steps - one.tail, one.steps)
    steps = course.steps(one.tail_windows, one.round, numbers, one.steps, one.changes)
    course.begin_tail(one.round, sent.node)
    for _ in steps:
        yield
    sent.tail = one.tail


def _compared(
    run_codec: Codec, made: Sent, theirs: Sequence[Vector | Elements], steps: int
) -> Compared:
    """A contribution, as it decodes, beside what was made again."""
    off = whole = 0.0  # squares
    both = all_theirs = 0
    for part, payload, given in zip(made.parts, made.payloads, theirs, strict=True):
        again = run_codec.decode(part.layout, payload)
        if isinstance(again, Elements) and isinstance(given, Elements):
            shared, here, there = np.intersect1d(
                again.positions, given.positions, assume_unique=True, return_indices=True
            )
            both, all_theirs = both + len(shared), all_theirs + len(given.positions)
            off += norm_of(given.values[there] - again.values[here]) ** 2
            off += norm_of(np.delete(again.values, here)) ** 2
            off += norm_of(np.delete(given.values, there)) ** 2
            whole += norm_of(again.values) ** 2
        elif not isinstance(again, Elements) and not isinstance(given, Elements):
            whole += norm_of(again) ** 2
            np.subtract(given, again, out=again)
            off += norm_of(again) ** 2
    error = math.sqrt(off) / max(math.sqrt(whole), float(np.finfo(np.float32).tiny))
    overlap = both / max(1, all_theirs) if run_codec.sparse else None
    return Compared(made.round, steps, error, overlap)
