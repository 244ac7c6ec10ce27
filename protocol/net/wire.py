"""The wire: one envelope, one version, one size limit per message kind, one place that decodes.

A frame is a 4-byte big-endian length and that many bytes of canonical msgpack:
``[version, kind, body]``. The kind is read first and its limit applied to the frame *before* the
body is parsed; a body is then validated against its schema (:mod:`protocol.messages`). Raw chunks
of content follow a message on the same stream, and their length is known from the message.
"""

from __future__ import annotations

import asyncio
import logging
import struct
from collections.abc import Awaitable, Callable
from typing import Protocol

import msgpack

from artel.protocol import messages, repeated_work
from artel.protocol.errors import ArtelError, DecodeError, ResourceError, Unreachable
from artel.protocol.events import emit
from artel.protocol.net.limits import on_loopback
from artel.protocol.schema import checked
from artel.protocol.terminal import printable

log = logging.getLogger("artel.network")

VERSION = 2

CONTROL = "/artel/control/1.0.0"
"""Node to coordinator."""
CONTENT = "/artel/content/1.0.0"
"""Anybody to any holder of content."""
LEDGER = "/artel/ledger/1.0.0"
"""Anybody to any holder of a ledger."""

SCHEMAS: dict[str, type[messages.Message]] = {
    schema.KIND: schema
    for schema in (
        *(messages.Ok, messages.Refusal, messages.Hello, messages.Welcome, messages.Probe),
        *(messages.Heartbeat, messages.Directive, messages.Where, messages.There, messages.Commit),
        *(messages.Reveal, messages.Aggregated, messages.Accuse, messages.Lacks),
        *(messages.SignedState, messages.HandBack, messages.Leave, messages.GetIndex),
        *(messages.Index, messages.GetHave, messages.Have, messages.GetChunks, messages.Chunks),
        *(messages.GetItems, messages.Items, messages.Put, messages.Get, messages.File),
        *(messages.Cosigned, messages.Submit, messages.SetAlias),
        *(repeated_work.Trial, repeated_work.Repeated),
        *(repeated_work.GetDifference, repeated_work.Difference),
    )
}
"""Every message, by its kind."""

_HEADER = struct.Struct(">I")


class ByteStream(Protocol):
    """What the framing needs of a stream (asyncio's reader and writer in one)."""

    network: str
    """Where it comes from, as :func:`protocol.net.limits.network_of` says; "" when nobody knows."""

    async def read_exactly(self, count: int) -> bytes: ...

    async def write(self, data: bytes) -> None: ...


def source_of(peer: str, stream: ByteStream) -> str:
    """Under which name what a peer does is counted: its network, since keys cost nothing.

    Its own where the network is not known, or is this machine.
    """
    return peer if not stream.network or on_loopback(stream.network) else stream.network


def encode(message: messages.Message) -> bytes:
    """The frame of a message, length prefix included."""
    body = msgpack.packb([VERSION, message.KIND, message.model_dump()], use_bin_type=True)
    if len(body) > message.LIMIT:
        raise DecodeError(f"message {message.KIND} of {len(body)} bytes, at most {message.LIMIT}")
    return _HEADER.pack(len(body)) + bytes(body)


def decode(frame: bytes) -> messages.Message:
    """Decode the bytes after a length prefix.

    :raises DecodeError: on anything but the canonical encoding of a known, valid message
    """
    schema = _schema(frame, len(frame))
    kind = schema.KIND
    try:
        # The frame's size bounds every inner length, so msgpack's own limits need not be tighter;
        # a body of empty maps costs at most about 75 times LIMIT for a moment.
        value = msgpack.unpackb(frame, raw=False, strict_map_key=True, use_list=True)
        canonical = msgpack.packb(value, use_bin_type=True)
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise DecodeError(f"message {kind} is not valid msgpack: {str(error)[:100]}") from None
    if canonical != frame:
        raise DecodeError(f"message {kind} is not in canonical msgpack form")
    return checked(schema, value[2], f"message {kind}")


def _schema(frame: bytes, length: int) -> type[messages.Message]:
    """Of the kind that the first bytes of a frame name; the body is not touched.

    :param length: of the whole frame
    :raises DecodeError: another version of the protocol, a malformed head, an unknown kind, or a
        frame that is too long for its kind
    """
    # fixarray(3), positive fixint version, fixstr kind: the head has exactly one encoding.
    if len(frame) < 3 or frame[0] != 0x93:
        raise DecodeError("truncated or malformed message")
    if frame[1] != VERSION:
        raise DecodeError(
            f"the peer speaks protocol version {frame[1]}, this program speaks {VERSION}",
            "update the older of the two programs",
        )
    end = 3 + (frame[2] & 0x1F)
    if frame[2] & 0xE0 != 0xA0 or len(frame) < end:
        raise DecodeError("truncated or malformed message")
    kind = frame[3:end].decode("ascii", "replace")
    schema = SCHEMAS.get(kind)
    if schema is None:
        raise DecodeError(f"unknown message kind {kind!r}")
    if length > schema.LIMIT:
        raise DecodeError(f"message {kind} of {length} bytes, at most {schema.LIMIT} allowed")
    return schema


async def read_message(stream: ByteStream) -> messages.Message:
    """Read one message.

    :raises DecodeError: malformed, too large or invalid
    :raises Unreachable: the stream ended early
    """
    try:
        (length,) = _HEADER.unpack(await stream.read_exactly(_HEADER.size))
        if length > messages.MAX_LIMIT:
            raise DecodeError(f"frame of {length} bytes, at most {messages.MAX_LIMIT} allowed")
        head = await stream.read_exactly(min(length, 64))
        _schema(head, length)
        return decode(head + await stream.read_exactly(length - len(head)))
    except asyncio.IncompleteReadError:
        raise Unreachable("the connection closed in the middle of a message") from None


async def write_message(stream: ByteStream, message: messages.Message) -> None:
    """Write one message."""
    await stream.write(encode(message))


async def ask(stream: ByteStream, request: messages.Message) -> messages.Message:
    """Write a request and read the reply.

    :raises ArtelError: the error that the peer answered with
    """
    await write_message(stream, request)
    reply = await read_message(stream)
    if isinstance(reply, messages.Refusal):
        raise refusal(reply)
    return reply


class Refused(ArtelError):
    """The peer understood the request and says no; ``code`` is stable, for programs."""

    def __init__(self, message: str, hint: str = "", code: str = "refused") -> None:
        super().__init__(message, hint)
        self.code = code


def refusal(reply: messages.Refusal) -> Refused:
    """The error for a peer's no; its words are one line each."""
    return Refused(printable(reply.message), printable(reply.hint), printable(reply.code))


Handler = Callable[[str, messages.Message, ByteStream], Awaitable[messages.Message | None]]
"""``handler(peer id, request, stream)`` returns the reply, or None when it wrote one itself."""


async def answer(
    peer: str, stream: ByteStream, handler: Handler, first_s: float | None = None
) -> None:
    """Serve one request on a fresh stream: read, hand over, reply; errors become refusals.

    :param first_s: seconds in which the request has to be here; None for no limit
    :raises TimeoutError: it was not
    """
    try:
        async with asyncio.timeout(first_s):
            request = await read_message(stream)
        reply = await handler(peer, request, stream)
    except Refused as error:
        reply = messages.Refusal.of(error.code, error.message, error.hint)
    except DecodeError as error:
        reply = messages.Refusal.of("malformed", error.message, error.hint)
    except ResourceError as error:
        # Such as a full disk: no fault of whoever asks, and its paths are nobody's business.
        emit(log, "request.failed", logging.WARNING, reason=error.message)
        reply = messages.Refusal.of("busy", "this peer lacks something on its machine", "try again")
    except ArtelError as error:
        reply = messages.Refusal.of("failed", error.message, error.hint)
    if reply is not None:
        await write_message(stream, reply)
