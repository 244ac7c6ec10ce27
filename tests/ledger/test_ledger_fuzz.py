"""Any bytes at all: a parser refuses with our own error, or reads what it would write itself.

A million inputs for each parser, with progress: ``python tests/worlds/fuzz_parsers.py``.
"""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import Callable

import pytest

from artel.ledger import entries
from artel.ledger.tlog import note
from artel.ledger.tlog.proof import TlogProof
from artel.ledger.tlog.tiles import Tile, decode_bundle
from artel.protocol import dsse
from artel.protocol.errors import DecodeError
from artel.protocol.net import wire
from fuzz_parsers import MEMORY_BYTES, Parser, fuzz, mutated, parsers

PARSERS = parsers()
SLOW_INPUTS = int(os.environ.get("ARTEL_FUZZ_INPUTS", "100000"))
each = pytest.mark.parametrize("parser", PARSERS, ids=lambda parser: parser.name)


@each
def test_seeds_are_accepted(parser: Parser) -> None:
    for seed in parser.seeds:
        assert parser.parse(seed) in (seed, None)


@each
def test_mutated_inputs_are_refused_or_written_again_as_they_were(parser: Parser) -> None:
    result = fuzz(parser, 3000, seed=1)
    assert result.accepted > 50, "the mutations reach what lies behind the first check"


@pytest.mark.slow
@pytest.mark.timeout(7200)
@each
def test_many_more_of_them_and_memory_stays_flat(parser: Parser) -> None:
    assert fuzz(parser, SLOW_INPUTS, seed=2).grown <= MEMORY_BYTES


def test_a_parser_that_lets_another_error_out_or_changes_its_input_is_caught() -> None:
    def careless(data: bytes) -> bytes:
        return str(int(data)).encode()  # ValueError, and 007 becomes 7

    for parse in (careless, lambda data: data.strip()):
        with pytest.raises(AssertionError, match="careless"):
            fuzz(Parser("careless", (b"12 34", b"7\n"), parse), 3000, seed=1)


def test_mutations_are_the_same_every_time() -> None:
    import random

    parser = PARSERS[0]
    one, other = (
        [mutated(rng, parser) for _ in range(50)] for rng in (random.Random(3), random.Random(3))
    )
    assert one == other


# --- amplification --------------------------------------------------------------------------------

MEGABYTE = 1 << 20


def peak_of(action: Callable[[], object]) -> int:
    """Bytes allocated at most while ``action`` refuses."""
    tracemalloc.start()
    try:
        with pytest.raises(DecodeError):
            action()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


class Bytes:
    """A stream that has all of ``data``, and counts what is read."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    async def read_exactly(self, count: int) -> bytes:
        self.at += count
        return self.data[self.at - count : self.at]

    async def write(self, data: bytes) -> None:
        raise AssertionError


def bomb(kind: str, size: int) -> bytes:
    """A message of this kind whose body is an array of empty maps."""
    head = b"\x93\x02" + bytes([0xA0 | len(kind)]) + kind.encode() + b"\xdd"
    count = size - len(head) - 4
    return head + count.to_bytes(4, "big") + b"\x80" * count


@pytest.mark.parametrize("kind", sorted(wire.SCHEMAS))
def test_a_message_of_empty_maps_costs_little(kind: str) -> None:
    """A megabyte of them would cost 73 MB as objects; the size limit comes before."""
    frame = bomb(kind, MEGABYTE)
    assert peak_of(lambda: wire.decode(frame)) < 64 << 10
    stream = Bytes(len(frame).to_bytes(4, "big") + frame)
    assert peak_of(lambda: asyncio.run(wire.read_message(stream))) < MEGABYTE
    assert stream.at <= 68, "nothing of the body is read"
    # The largest message of this kind that is let through.
    largest = bomb(kind, wire.SCHEMAS[kind].LIMIT)
    assert peak_of(lambda: wire.decode(largest)) < 8 * MEGABYTE


def test_other_parsers_refuse_size_before_they_allocate() -> None:
    maps = b"[" + b"{}," * (MEGABYTE // 3) + b"{}]"
    lines, path = b"\n" * MEGABYTE, "tile/0/" + "x000/" * MEGABYTE
    for action in (
        lambda: dsse.decode(maps),
        lambda: entries.decode(maps),
        lambda: note.parse(maps),
        lambda: note.parse(lines),
        lambda: TlogProof.parse(lines),
        lambda: Tile.parse(path),
        lambda: decode_bundle(maps, 256),
        lambda: entries.decode(maps[: dsse.MAX_ENVELOPE_BYTES]),
    ):
        assert peak_of(action) < 8 * MEGABYTE
