"""Checks on what a node shows: is this contribution the one that it committed to, and sound?

Nothing here computes with tensors: a blob's header, sizes and scales are looked at, no more.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from ledger import entries
from protocol import dsse, pseudogradient, rounds
from protocol.blobs import BlobStore
from protocol.codec import Codec
from protocol.errors import CheckFailed, DecodeError
from protocol.identity import public_of
from protocol.state import Layout


@dataclass(frozen=True)
class Expected:
    """What a round expects of each contribution."""

    run: str
    round: int
    attempt: int
    base: str
    tokens: int
    layout: Layout
    codec: Codec


@dataclass(frozen=True)
class Shown:
    """A checked contribution; ``fault`` is a reason code of the ledger, "" when it holds."""

    envelope: dsse.Envelope | None
    body: entries.Contribution | None
    fault: str = ""
    detail: str = ""


async def check(
    expected: Expected, node: str, commitment: str, statement: bytes, store: BlobStore
) -> Shown:
    """Check a revealed contribution and its blob.

    :param node: the peer that shows it, as the connection's handshake says
    :param commitment: what it had committed to
    :param statement: the signed contribution entry
    """
    try:
        envelope = dsse.decode(statement)
        entry = entries.decode(statement)
    except DecodeError as error:
        return Shown(None, None, rounds.MALFORMED, error.message)
    body = entry.body
    if not isinstance(body, entries.Contribution) or body.node != node:
        return Shown(None, None, rounds.MALFORMED, "not a contribution of this node")
    try:
        if envelope.verify() != (public_of(node).hex(),):
            return Shown(None, None, rounds.BAD_SIGNATURE, "signed by somebody else")
    except CheckFailed as error:
        return Shown(None, None, rounds.BAD_SIGNATURE, error.message)
    if (body.run, body.round, body.attempt) != (expected.run, expected.round, expected.attempt):
        return Shown(None, None, rounds.MALFORMED, "for another run, round or attempt")
    if body.base != expected.base:
        return Shown(None, None, rounds.WRONG_STATE, "from another base state")
    if body.tokens != expected.tokens:
        return Shown(None, None, rounds.WRONG_TOKENS, f"{body.tokens} instead of {expected.tokens}")
    salt = bytes.fromhex(body.salt)
    opened = rounds.commitment(body.run, body.round, body.attempt, node, body.blob, salt)
    if opened != commitment:
        return Shown(None, None, rounds.COMMITMENT_MISMATCH, "not what was committed to")
    path = store.path(body.blob)
    if path is None or store.size_of(body.blob) != body.size:
        return Shown(None, None, rounds.MISSING_REVEAL, "its blob was not sent")
    try:
        data = await asyncio.to_thread(path.read_bytes)
        await asyncio.to_thread(
            pseudogradient.check,
            data,
            expected.layout,
            round=expected.round,
            base=expected.base,
            codec=expected.codec,
        )
    except pseudogradient.BlobRefused as error:
        return Shown(None, None, error.reason, error.message)
    return Shown(envelope, body)
