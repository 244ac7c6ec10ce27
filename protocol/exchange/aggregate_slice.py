"""A slice of a sharded round, combined: what its aggregator publishes, and what anybody recomputes.

A slice blob follows from the accepted contributions' blobs for that slice, their tokens and the
manifest alone, bit for bit, whoever computes it on whatever machine. So a slice blob whose content
id differs from that of :func:`recompute` convicts the node that signed for it. No torch here, and
no network.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import partial

from artel.protocol.errors import CheckFailed
from artel.protocol.exchange import codec
from artel.protocol.exchange.aggregation import Weighted, aggregate
from artel.protocol.exchange.codec import Elements, Payload
from artel.protocol.exchange.parts import Part, cut, fragment
from artel.protocol.exchange.pseudogradient import SLICE_MAGIC, Header
from artel.protocol.run_config import ExchangeSection
from artel.protocol.state import Layout, Vector


def round_slices(layout: Layout, exchange: ExchangeSection, round: int, members: int) -> list[Part]:
    """The slices of a sharded round: its fragment, cut into one for each member of the attempt (or
    fewer, in a small model)."""
    return cut(fragment(layout, exchange.fragments, round), members)


def combine(layout: Layout, contributions: Iterable[Weighted], exchange: ExchangeSection) -> Vector:
    """The update (N,) of a fragment or slice by the rules of the run.

    :raises CheckFailed: as :func:`protocol.exchange.aggregation.aggregate`
    """
    return aggregate(
        layout, contributions, method=exchange.aggregator, floor=exchange.contributor_floor
    )


def recompute(
    layout: Layout,
    exchange: ExchangeSection,
    *,
    round: int,
    members: int,
    slice: int,
    base: str,
    blobs: Mapping[str, Payload | Callable[[], Payload]],
    tokens: Mapping[str, int],
) -> bytes:
    """The right slice blob, from scratch: the update, encoded without error feedback.

    :param layout: of the whole model, from the manifest
    :param members: of the attempt (``round_opened``)
    :param base: state root of the base state, hex
    :param blobs: peer id to the bytes of its blob for this slice, or a function that reads them
        (it is called more than once), for exactly the accepted contributions (``round_closed``)
    :param tokens: peer id to its accepted tokens
    :raises BlobRefused: a blob is not acceptable
    :raises CheckFailed: there is no such slice, or blobs and tokens are not of the same nodes
    """
    slices = round_slices(layout, exchange, round, members)
    if not 0 <= slice < len(slices):
        raise CheckFailed(f"round {round} has no slice {slice}: there are {len(slices)}")
    if blobs.keys() != tokens.keys():
        raise CheckFailed("a slice is recomputed from the blobs of all accepted contributions")
    part = slices[slice].layout

    sent = Header(round, base, codec.of(exchange))

    def load(node: str) -> Vector | Elements:
        held = blobs[node]
        return sent.load(held() if callable(held) else held, part)

    contributions = [Weighted(node, tokens[node], partial(load, node)) for node in blobs]
    update = combine(part, contributions, exchange)
    return replace(sent, magic=SLICE_MAGIC).pack(part, update)
