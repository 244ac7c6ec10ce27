"""A slice of a sharded round, combined: what its aggregator publishes, and what anybody recomputes.

A slice blob follows from the accepted contributions' blobs for that slice, their tokens and the
manifest alone, bit for bit, whoever computes it on whatever machine. So a slice blob whose content
id differs from that of :func:`recompute` convicts the node that signed for it. No torch here, and
no network.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from artel.protocol import assignment
from artel.protocol.errors import ArtelError, CheckFailed
from artel.protocol.exchange import codec
from artel.protocol.exchange.aggregation import Weighted, aggregate
from artel.protocol.exchange.codec import Elements, Payload
from artel.protocol.exchange.outer import require_gradual_underflow
from artel.protocol.exchange.parts import Part, cut, fragment
from artel.protocol.exchange.pseudogradient import SLICE_MAGIC, BlobRefused, Header, max_blob_bytes
from artel.protocol.run_config import ExchangeSection
from artel.protocol.state import Layout, Vector

CACHE_BYTES = 512 << 20
"""Decoded contributions kept between the passes of the aggregation; beyond it, each is decoded for
each pass and at most one is in memory."""

Source = Payload | Path | Callable[[], Payload]
"""A blob, a file of it, or what reads it (once or more often)."""
Timing = Callable[[str], AbstractContextManager[None]]
"""Opens a block of a phase, for whoever wants to know how long phases take."""


class Unusable(CheckFailed):
    """A blob that is to be used cannot be read, or does not count.

    ``node``: whose contribution it is; "" for a slice. ``reason``: that of :class:`BlobRefused`.
    """

    def __init__(self, message: str, node: str = "", reason: str = "") -> None:
        super().__init__(message, "delete the blob; it is fetched again")
        self.node, self.reason = node, reason


def unmeasured(phase: str) -> AbstractContextManager[None]:
    """Nobody wants to know."""
    return contextlib.nullcontext()


def round_slices(layout: Layout, exchange: ExchangeSection, round: int, members: int) -> list[Part]:
    """The slices of a sharded round: its fragment, cut into one for each member of the attempt (or
    fewer, in a small model)."""
    part = fragment(layout, exchange.fragments, round)
    return cut(part, assignment.slices_of(exchange, members))


def combine(layout: Layout, contributions: Iterable[Weighted], exchange: ExchangeSection) -> Vector:
    """The update (N,) of a fragment or slice by the rules of the run.

    :raises CheckFailed: as :func:`protocol.exchange.aggregation.aggregate`; or this process cannot
        compute as the others do
    """
    require_gradual_underflow()
    return aggregate(
        layout, contributions, method=exchange.aggregator, floor=exchange.contributor_floor
    )


def combine_blobs(
    part: Part,
    exchange: ExchangeSection,
    sent: Header,
    blobs: Mapping[str, Source],
    tokens: Mapping[str, int],
    measured: Timing = unmeasured,
) -> Vector:
    """As :func:`combine`, of what nodes have published; each blob is read when it is its turn.

    :param sent: what their headers have to say
    :param blobs: peer id to the blob for this part
    :param tokens: peer id to its accepted tokens
    :param measured: told of the phases ``aggregate`` and, inside it, ``decode``
    :raises Unusable: a blob is not acceptable
    """
    keep = sent.codec.sparse or 4 * part.parameters * len(blobs) <= CACHE_BYTES
    cache: dict[str, Vector | Elements] = {}

    def load(node: str) -> Vector | Elements:
        if node in cache:
            return cache[node]
        with measured("decode"):
            values = load_blob(part, sent, blobs[node], node)
        if keep:
            cache[node] = values
        return values

    with measured("aggregate"):
        listed = [Weighted(node, tokens[node], partial(load, node)) for node in blobs]
        return combine(part.layout, listed, exchange)


def load_blob(part: Part, said: Header, source: Source, node: str = "") -> Vector | Elements:
    """The numbers of a blob that has to say ``said``.

    :param node: whose contribution it is, for the error
    :raises Unusable: it is not acceptable, or cannot be read
    """
    with _usable(node):
        return said.load(_read(source, max_blob_bytes(part.layout, said.codec)), part.layout)


def _read(source: Source, most: int) -> Payload:
    if isinstance(source, Path):
        with source.open("rb") as file:
            return file.read(most + 1)
    return source() if callable(source) else source


@contextlib.contextmanager
def _usable(node: str) -> Iterator[None]:
    whose = f"the contribution of {node}" if node else "a slice"
    try:
        yield
    except OSError as error:
        raise Unusable(f"{whose} cannot be read: {error.strerror}", node) from None
    except ArtelError as error:
        reason = error.reason if isinstance(error, BlobRefused) else ""
        raise Unusable(f"{whose} does not count: {error.message}", node, reason) from None


def recompute(
    layout: Layout,
    exchange: ExchangeSection,
    *,
    round: int,
    members: int,
    slice: int,
    base: str,
    blobs: Mapping[str, Source],
    tokens: Mapping[str, int],
    measured: Timing = unmeasured,
) -> bytes:
    """The right slice blob, from scratch: the update, encoded without error feedback.

    :param layout: of the whole model, from the manifest
    :param members: of the attempt (``round_opened``)
    :param base: state root of the base state, hex
    :param blobs: peer id to its blob for this slice, for exactly the accepted contributions
        (``round_closed``)
    :param tokens: peer id to its accepted tokens
    :raises Unusable: a blob is not acceptable
    :raises CheckFailed: there is no such slice, or blobs and tokens are not of the same nodes
    """
    slices = round_slices(layout, exchange, round, members)
    if not 0 <= slice < len(slices):
        raise CheckFailed(f"round {round} has no slice {slice}: there are {len(slices)}")
    if blobs.keys() != tokens.keys():
        raise CheckFailed("a slice is recomputed from the blobs of all accepted contributions")
    part, sent = slices[slice], Header(round, base, codec.of(exchange))
    update = combine_blobs(part, exchange, sent, blobs, tokens, measured)
    return replace(sent, magic=SLICE_MAGIC).pack(part.layout, update)
