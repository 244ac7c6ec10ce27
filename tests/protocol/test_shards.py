"""Shards and their index: exact bytes in, the same tokens out, nothing damaged accepted."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.protocol import canonical, merkle
from artel.protocol.content import content_id
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.manifest import SplitFacts
from artel.protocol.shards import (
    DType,
    ShardIndex,
    decode_index,
    decode_shard,
    dtype_for,
    encode_shard,
)

TOKENS = np.arange(2_500, dtype=np.uint32) % 700


def shard_bytes(dtype: DType) -> list[bytes]:
    return [encode_shard(TOKENS[start : start + 1000], dtype) for start in (0, 1000, 2000)]


def index_of(dtype: DType = "uint16") -> ShardIndex:
    ids = tuple(content_id(data) for data in shard_bytes(dtype))
    return ShardIndex(dtype=dtype, shard_tokens=1000, tokens=len(TOKENS), shards=ids)


@pytest.mark.parametrize(("dtype", "width"), [("uint16", 2), ("uint32", 4)])
def test_shards_round_trip(dtype: DType, width: int) -> None:
    index, pieces = index_of(dtype), shard_bytes(dtype)
    back = [decode_shard(data, index, number, 700) for number, data in enumerate(pieces)]
    assert np.array_equal(np.concatenate(back), TOKENS)
    assert [index.tokens_in(number) for number in range(3)] == [1000, 1000, 500]
    assert [index.bytes_in(number) for number in range(3)] == [len(data) for data in pieces]
    assert pieces[0][width : 2 * width] == (1).to_bytes(width, "little")


def test_a_flipped_bit_is_refused() -> None:
    index, pieces = index_of(), shard_bytes("uint16")
    for position in (0, 999, 1999):
        damaged = bytearray(pieces[0])
        damaged[position] ^= 1
        with pytest.raises(CheckFailed, match="shard 0 is damaged"):
            decode_shard(bytes(damaged), index, 0, 700)
    with pytest.raises(CheckFailed, match="damaged"):
        decode_shard(pieces[0][:-2], index, 0, 700)
    with pytest.raises(CheckFailed, match="damaged"):
        decode_shard(pieces[1], index, 0, 700)


def test_a_token_outside_the_vocabulary_is_refused() -> None:
    with pytest.raises(CheckFailed, match="outside the vocabulary"):
        decode_shard(shard_bytes("uint16")[0], index_of(), 0, 699)


def test_the_index_round_trips_and_matches_the_manifest_only() -> None:
    index = index_of()
    assert decode_index(index.encode(), index.facts()) == index
    other = index.model_copy(update={"shards": index.shards[::-1]})
    with pytest.raises(CheckFailed, match="not the one"):
        decode_index(other.encode(), index.facts())


def test_the_root_is_rfc_6962_over_the_raw_ids() -> None:
    index = index_of()
    leaves = [merkle.leaf_hash(bytes.fromhex(shard)) for shard in index.shards]
    expected = merkle.node_hash(merkle.node_hash(leaves[0], leaves[1]), leaves[2])
    assert index.root == expected.hex()


@pytest.mark.parametrize(
    "change",
    [
        {"dtype": "uint8"},
        {"shards": ()},
        {"shards": ("AB" * 32,) * 3},
        {"shards": ("ab" * 31,) * 3},
        {"tokens": 2000},
        {"tokens": 3001},
        {"shard_tokens": 0},
    ],
)
def test_an_unsound_index_is_refused(change: dict[str, object]) -> None:
    sound = index_of()
    unsound = canonical.dumps(sound.model_dump(mode="json") | change)
    with pytest.raises(DecodeError):
        decode_index(unsound, sound.facts())


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_as_an_index_raise_only_decode_errors(data: bytes) -> None:
    facts = SplitFacts(index="0" * 64, root="0" * 64, shards=1, tokens=1)
    with pytest.raises(DecodeError):
        decode_index(data, facts)


def test_the_smallest_dtype_is_chosen() -> None:
    assert dtype_for(65_536) == "uint16"
    assert dtype_for(65_537) == "uint32"
