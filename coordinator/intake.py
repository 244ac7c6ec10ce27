"""Checks on what a node shows: is this contribution the one that it committed to, and sound?

Nothing here computes with tensors: the headers, sizes and scales of blobs are looked at, no more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from artel.coordinator.shape import Shape
from artel.ledger import entries
from artel.protocol import dsse, round_state, rounds
from artel.protocol.assignment import Work
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.parts import Part
from artel.protocol.identity import public_of
from artel.protocol.net.blobs import BlobStore


@dataclass(frozen=True)
class Expected:
    """What a round expects of a member's contribution.

    ``steps`` are those that it was assigned, ``tail`` those of its assignment before that count
    here at most.
    """

    run: str
    round: int
    attempt: int
    base: str
    work: Work
    steps: int
    tail: int
    shape: Shape


@dataclass(frozen=True)
class Shown:
    """A checked contribution; ``fault`` is a reason code of the ledger, "" when it holds.

    ``blobs`` are all that it consists of.
    """

    envelope: dsse.Envelope | None
    body: entries.Contribution | None
    fault: str = ""
    detail: str = ""
    blobs: tuple[str, ...] = ()


class NotCounted(Exception):
    """Why it does not count: a reason code, and words."""

    def __init__(self, reason: str, detail: str) -> None:
        super().__init__(detail)
        self.reason, self.detail = reason, detail


async def check(
    expected: Expected, node: str, commitment: str, statement: bytes, store: BlobStore
) -> Shown:
    """Check a revealed contribution and its blobs.

    :param node: the peer that shows it, as the connection's handshake says
    :param commitment: what it had committed to
    :param statement: the signed contribution entry
    """
    try:
        envelope, body = _statement(expected, node, statement)
        _require_right(expected, node, commitment, body)
        if expected.shape.slices:
            blobs = await asyncio.to_thread(_check_sharded, expected, body, store)
        else:
            blobs = await asyncio.to_thread(_check_whole, expected, body, store)
    except NotCounted as error:
        return Shown(None, None, error.reason, error.detail)
    return Shown(envelope, body, blobs=blobs)


def _statement(
    expected: Expected, node: str, statement: bytes
) -> tuple[dsse.Envelope, entries.Contribution]:
    """The statement, when this node signed it for this run, round and attempt."""
    try:
        envelope = dsse.decode(statement)
        body = entries.decode(statement).body
    except DecodeError as error:
        raise NotCounted(round_state.MALFORMED, error.message) from None
    if not isinstance(body, entries.Contribution) or body.node != node:
        raise NotCounted(round_state.MALFORMED, "not a contribution of this node")
    try:
        if envelope.verify() != (public_of(node).hex(),):
            raise NotCounted(round_state.BAD_SIGNATURE, "signed by somebody else")
    except CheckFailed as error:
        raise NotCounted(round_state.BAD_SIGNATURE, error.message) from None
    if (body.run, body.round, body.attempt) != (expected.run, expected.round, expected.attempt):
        raise NotCounted(round_state.MALFORMED, "for another run, round or attempt")
    return envelope, body


def _require_right(
    expected: Expected, node: str, commitment: str, body: entries.Contribution
) -> None:
    """Base state, steps, tokens and commitment."""
    if body.base != expected.base:
        raise NotCounted(round_state.WRONG_STATE, "from another base state")
    work, round = expected.work, expected.round
    least, most = work.least_head(round, expected.steps), work.head(round, expected.steps)
    if not least <= body.head <= most:
        raise NotCounted(
            round_state.WRONG_TOKENS, f"{body.head} steps instead of {least} to {most}"
        )
    if body.tail > expected.tail:
        raise NotCounted(
            round_state.WRONG_TOKENS,
            f"{body.tail} steps of the round before, at most {expected.tail} were left",
        )
    tokens = work.tokens(body.tail + body.head)
    if body.tokens != tokens:
        raise NotCounted(round_state.WRONG_TOKENS, f"{body.tokens} tokens instead of {tokens}")
    salt = bytes.fromhex(body.salt)
    opened = rounds.commitment(body.run, body.round, body.attempt, node, body.blob, salt)
    if opened != commitment:
        raise NotCounted(round_state.COMMITMENT_MISMATCH, "not what was committed to")


def _check_whole(
    expected: Expected, body: entries.Contribution, store: BlobStore
) -> tuple[str, ...]:
    _check_blob(expected, expected.shape.part, body.blob, body.size, store)
    return (body.blob,)


def _check_sharded(
    expected: Expected, body: entries.Contribution, store: BlobStore
) -> tuple[str, ...]:
    """The index and each blob that it lists."""
    shape = expected.shape
    data = _read(store, body.blob, store.size_of(body.blob) or 0, shape.index_bytes)
    with _counted():
        listed = pseudogradient.open_index(
            data,
            round=expected.round,
            base=expected.base,
            max_sizes=[shape.slice_bytes(number) for number in range(len(shape.slices))],
        )
    if body.size != len(data) + sum(size for _, size in listed):
        raise NotCounted(round_state.MALFORMED, "its size is not that of its blobs")
    for part, (blob, size) in zip(shape.slices, listed, strict=True):
        _check_blob(expected, part, blob, size, store)
    return (body.blob, *(blob for blob, _ in listed))


def check_slice(
    shape: Shape, round: int, base: str, body: entries.Aggregate, store: BlobStore
) -> None:
    """Check the blob that an aggregate entry names: here, and a result for that slice.

    :raises NotCounted: it is not
    """
    data = _read(store, body.blob, body.size, shape.slice_bytes(body.slice))
    layout = shape.slices[body.slice].layout
    with _counted():
        pseudogradient.check(
            data,
            layout,
            round=round,
            base=base,
            codec=shape.codec,
            magic=pseudogradient.SLICE_MAGIC,
        )


def _check_blob(expected: Expected, part: Part, blob: str, size: int, store: BlobStore) -> None:
    codec = expected.shape.codec
    data = _read(store, blob, size, pseudogradient.max_blob_bytes(part.layout, codec))
    with _counted():
        pseudogradient.check(
            data, part.layout, round=expected.round, base=expected.base, codec=codec
        )


def _read(store: BlobStore, blob: str, size: int, most: int) -> bytes:
    """Content of ``size`` bytes; what was not put by this node may be larger than it may be."""
    path = store.path(blob)
    if path is None or store.size_of(blob) != size:
        raise NotCounted(round_state.MISSING_REVEAL, "one of its blobs was not sent")
    if size > most:
        raise NotCounted(round_state.TOO_LARGE, f"a blob of {size} bytes, at most {most} allowed")
    return path.read_bytes()


@contextmanager
def _counted() -> Iterator[None]:
    """A blob that is refused is the reason why the contribution does not count."""
    try:
        yield
    except pseudogradient.BlobRefused as error:
        raise NotCounted(error.reason, error.message) from None
