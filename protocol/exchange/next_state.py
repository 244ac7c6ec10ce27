"""The next state: what a closed round makes of the state before it.

It follows from that state, the accepted contributions' blobs with their tokens, and the manifest
alone, bit for bit, whoever computes it on whatever machine: so anybody can say whether the root of
an agreed state is right. No torch here, and no network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from artel.protocol import assignment
from artel.protocol.errors import CheckFailed
from artel.protocol.exchange import codec, outer, parts
from artel.protocol.exchange.aggregate_slice import (
    Source,
    Timing,
    combine_blobs,
    load_blob,
    recompute,
    unmeasured,
)
from artel.protocol.exchange.codec import Elements
from artel.protocol.exchange.parts import Part
from artel.protocol.exchange.pseudogradient import SLICE_MAGIC, Header
from artel.protocol.run_config import ExchangeSection, OuterSection
from artel.protocol.state import Layout, State, Vector


class Base(NamedTuple):
    """An agreed state, which a round starts from, and its root."""

    state: State
    root: str


@dataclass(frozen=True)
class Given:
    """An accepted contribution: its tokens, and its blob, or in a sharded round the blobs that its
    index lists, in order."""

    node: str
    tokens: int
    blobs: Sequence[Source]


class NextState(NamedTuple):
    """What a round has led to."""

    state: State
    kept: tuple[npt.NDArray[np.int64], ...] | None
    """Sharded with a sparse codec: for each slice the positions in it that the update has."""


def next_state(
    exchange: ExchangeSection,
    total_rounds: int,
    layout: Layout,
    base: Base,
    sent: Sequence[Given],
    *,
    members: int = 0,
    slices: Mapping[int, Source] | None = None,
    measured: Timing = unmeasured,
) -> NextState:
    """The state after the round that starts from ``base``.

    :param layout: of the whole model, from the manifest
    :param sent: all accepted contributions; not needed when all slices are given
    :param members: of the attempt in a sharded round; 0: everybody combines everything
    :param slices: number to blob of the slices that are known; the others are recomputed
    :param measured: told of the phases ``decode``, ``aggregate`` and ``outer``
    :raises Unusable: a blob is not acceptable
    :raises Diverged: the state is not finite
    :raises CheckFailed: something that does not fit together
    """
    part = parts.fragment(layout, exchange.fragments, base.state.round)
    if members:
        update, kept = _sharded(exchange, layout, base, part, sent, members, slices or {}, measured)
    else:
        header = Header(base.state.round, base.root, codec.of(exchange))
        tokens = {each.node: each.tokens for each in sent}
        blobs = {each.node: _only(each.blobs) for each in sent}
        update = combine_blobs(part, exchange, header, blobs, tokens, measured)
        kept = None
    with measured("outer"):
        lr = outer.learning_rate(exchange, total_rounds, base.state.round)
        return NextState(_moved(exchange.outer, lr, part, base.state, update), kept)


def _only(blobs: Sequence[Source]) -> Source:
    if len(blobs) != 1:
        raise CheckFailed("a contribution to a round without slices is one blob")
    return blobs[0]


def _sharded(
    exchange: ExchangeSection,
    layout: Layout,
    base: Base,
    fragment: Part,
    sent: Sequence[Given],
    members: int,
    slices: Mapping[int, Source],
    measured: Timing,
) -> tuple[Vector, tuple[npt.NDArray[np.int64], ...] | None]:
    """The update of a fragment from its slices; the places that it has if they are sparse."""
    number = base.state.round
    pieces = parts.cut(fragment, assignment.slices_of(exchange, members))
    if not slices.keys() <= set(range(len(pieces))):
        raise CheckFailed(f"round {number} has {len(pieces)} slices, others were given")
    if any(len(each.blobs) != len(pieces) for each in sent):
        raise CheckFailed(f"round {number} has {len(pieces)} slices, a contribution has not")
    said = Header(number, base.root, codec.of(exchange), SLICE_MAGIC)
    update = np.zeros(fragment.parameters, np.float32)
    kept: list[npt.NDArray[np.int64]] = []
    for slice, (piece, stretch) in enumerate(zip(pieces, parts.stretches(pieces), strict=True)):
        blob = slices.get(slice)
        if blob is None:
            blob = recompute(
                layout,
                exchange,
                round=number,
                members=members,
                slice=slice,
                base=base.root,
                blobs={each.node: each.blobs[slice] for each in sent},
                tokens={each.node: each.tokens for each in sent},
                measured=measured,
            )
        with measured("decode"):
            values = load_blob(piece, said, blob)
        if isinstance(values, Elements):
            update[stretch][values.positions] = values.values
            kept.append(values.positions)
        else:
            update[stretch] = values
    return update, tuple(kept) or None


def _moved(settings: OuterSection, lr: float, part: Part, old: State, update: Vector) -> State:
    """The outer step of a part; the rest of the state stays."""
    params, momentum = outer.outer_step(
        part.take(old.params),
        None if old.momentum is None else part.take(old.momentum),
        update,
        lr=lr,
        mu=settings.momentum,
        nesterov=settings.nesterov,
    )
    params = _in_place(part, params, old.params)
    if momentum is not None and old.momentum is not None:
        momentum = _in_place(part, momentum, old.momentum)
    return State(old.round + 1, old.layout_digest, params, momentum)


def _in_place(part: Part, new: Vector, old: Vector) -> Vector:
    """``old`` with the part replaced, as a vector of its own."""
    if len(new) == len(old):
        return new
    full = old.copy()
    part.put(new, full)
    return full


def warm_up(exchange: ExchangeSection) -> None:
    """Use every compiled loop of :func:`next_state` once, on next to nothing.

    Compiling them takes seconds the first time on a machine, loading them some tenths afterwards.
    """
    layout = Layout.of([("chunked", (2 * parts.CHUNK,)), ("small", (64,))])
    params = np.linspace(-1.0, 1.0, layout.parameters, dtype=np.float32)
    momentum = params if exchange.outer.momentum else None
    base = Base(State(0, layout.digest, params, momentum), "0" * 64)
    whole = exchange.model_copy(update={"fragments": 1})
    blob = Header(0, base.root, codec.of(whole)).pack(layout, params)
    next_state(whole, 1, layout, base, [Given(name, 1, [blob]) for name in ("a", "b")])
