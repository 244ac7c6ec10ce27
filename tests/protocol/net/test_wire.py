"""The wire refuses everything that is not the one encoding of a valid message."""

from __future__ import annotations

import asyncio

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.protocol import messages
from artel.protocol.errors import DecodeError, ResourceError, Unreachable
from artel.protocol.net import wire

RUN = "ab" * 32
SAMPLES: list[messages.Message] = [
    messages.Ok(),
    messages.Refusal.of("late", "x" * 1000, "y" * 1000),
    messages.Leave(run=RUN),
    messages.Heartbeat(
        run=RUN,
        instance="0" * 32,
        seen=3,
        patience=5.0,
        addresses=["/ip4/127.0.0.1/tcp/1"],
        report=messages.Report(
            state_round=2,
            state_root=RUN,
            phase="training",
            loss=2.5,
            validation=messages.Validation(round=1, loss=3.25),
            seconds={"train": 1.5},
        ),
    ),
    messages.Get(run=RUN, paths=["checkpoint", "tile/entries/000.p/3"], skip=70),
]


class Pipe:
    """A stream over bytes in memory."""

    def __init__(self, data: bytes = b"") -> None:
        self.reader = asyncio.StreamReader()
        self.reader.feed_data(data)
        self.reader.feed_eof()
        self.written = b""
        self.most = 0  # bytes asked for at once

    async def read_exactly(self, count: int) -> bytes:
        self.most = max(self.most, count)
        return await self.reader.readexactly(count)

    async def write(self, data: bytes) -> None:
        self.written += data


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: message.KIND)
async def test_messages_survive_the_wire(message: messages.Message) -> None:
    assert await wire.read_message(Pipe(wire.encode(message))) == message


@pytest.mark.parametrize("message", SAMPLES, ids=lambda message: message.KIND)
async def test_every_truncation_is_noticed(message: messages.Message) -> None:
    frame = wire.encode(message)
    for length in range(len(frame)):
        with pytest.raises((DecodeError, Unreachable)):
            await wire.read_message(Pipe(frame[:length]))


async def test_a_frame_over_the_limit_of_its_kind_is_refused_before_its_body_is_read() -> None:
    body = msgpack.packb([2, "leave", {"run": "a" * 100_000}])
    pipe = Pipe(len(body).to_bytes(4, "big") + body)
    with pytest.raises(DecodeError, match="frame of 100"):
        await wire.read_message(pipe)
    body = msgpack.packb([2, "leave", {"run": "a" * 10_000}])
    pipe = Pipe(len(body).to_bytes(4, "big") + body[:64])  # the rest never comes
    with pytest.raises(DecodeError, match="leave of 10"):
        await wire.read_message(pipe)
    assert pipe.most == 64, "a length that lies takes no memory"


async def test_a_claimed_gigabyte_allocates_nothing() -> None:
    pipe = Pipe(b"\x3f\xff\xff\xff" + b"\x93\x02\xa2ok\x80")
    with pytest.raises(DecodeError, match="at most"):
        await wire.read_message(pipe)
    assert pipe.most == 4


async def test_another_version_names_both_and_the_fix() -> None:
    body = msgpack.packb([9, "ok", {}])
    with pytest.raises(DecodeError, match="version 9") as caught:
        await wire.read_message(Pipe(len(body).to_bytes(4, "big") + body))
    assert "update" in caught.value.hint


@pytest.mark.parametrize(
    "body",
    [
        [2, "nonsense", {}],
        [2, "ok", {"extra": 1}],
        [2, "leave", {}],
        [2, "leave", {"run": "short"}],
        [2, "leave", {"run": 5}],
        [2, "commit", {"run": RUN, "round": -1, "attempt": 0, "commitment": RUN}],
        [2, "commit", {"run": RUN, "round": True, "attempt": 0, "commitment": RUN}],
        [2, "ok", []],
        [2, "ok"],
        {"version": 1},
    ],
)
def test_unknown_or_invalid_bodies_are_refused(body: object) -> None:
    with pytest.raises(DecodeError):
        wire.decode(msgpack.packb(body))


def test_a_second_encoding_of_the_same_message_is_refused() -> None:
    good = msgpack.packb([2, "leave", {"run": RUN}])
    assert wire.decode(good) == messages.Leave(run=RUN)
    longer_map = good.replace(b"\x81\xa3run", b"\xde\x00\x01\xa3run")  # map16 instead of fixmap
    with pytest.raises(DecodeError, match="canonical"):
        wire.decode(longer_map)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=300))
def test_arbitrary_bytes_only_raise_our_error(data: bytes) -> None:
    for frame in (data, b"\x93\x02\xa2ok" + data, b"\x93\x02\xa9heartbeat" + data):
        try:
            wire.decode(frame)
        except DecodeError:
            continue
        assert frame == b"\x93\x02\xa2ok\x80"


async def test_a_handlers_error_reaches_the_caller_as_a_refusal() -> None:
    async def handler(peer: str, request: messages.Message, stream: wire.ByteStream) -> None:
        raise wire.Refused("too late", "try the next round", code="late")

    pipe = Pipe(wire.encode(messages.Leave(run=RUN)))
    await wire.answer("peer", pipe, handler)
    reply = await wire.read_message(Pipe(pipe.written))
    assert reply == messages.Refusal.of("late", "too late", "try the next round")


async def test_whoever_lacks_something_itself_asks_to_be_asked_again() -> None:
    """The words of a coordinator whose disk was full ended each node that it answered."""

    async def handler(peer: str, request: messages.Message, stream: wire.ByteStream) -> None:
        raise ResourceError("cannot use /home/me/ledger.sqlite3: No space left on device")

    pipe = Pipe(wire.encode(messages.Leave(run=RUN)))
    await wire.answer("peer", pipe, handler)
    reply = await wire.read_message(Pipe(pipe.written))
    assert isinstance(reply, messages.Refusal)
    assert reply.code == "busy"
    assert "/home/me" not in reply.message + reply.hint
