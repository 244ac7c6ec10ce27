"""Token shards: the prepared text as content-addressed pieces, and the index that lists them.

A shard is raw little-endian uint16 or uint32 tokens. Every shard of a split holds ``shard_tokens``
tokens except the last, which holds the rest: so the shape of a split follows from two numbers of
the manifest, and the index is only needed to find the bytes. The index is canonical JSON, itself
named by its content id; the manifest also holds the RFC 6962 root over the shard ids (32 raw bytes
each), so that a single id can be proven to belong to a run.
"""

from __future__ import annotations

from typing import Annotated, Literal, cast

import numpy as np
import numpy.typing as npt
from pydantic import FailFast, Field, model_validator

from artel.protocol import canonical, merkle
from artel.protocol.content import content_id
from artel.protocol.errors import CheckFailed
from artel.protocol.manifest import SplitFacts
from artel.protocol.schema import Digest, Record, parsed

DType = Literal["uint16", "uint32"]
Tokens = npt.NDArray[np.uint16] | npt.NDArray[np.uint32]
"""A flat array of tokens, shape (T,)."""

MAX_SHARDS = 65_536
MAX_INDEX_BYTES = 100 + 67 * MAX_SHARDS
"""One shard takes 67 bytes: its id in quotes and a comma."""
_NUMPY: dict[DType, np.dtype[np.uint16] | np.dtype[np.uint32]] = {
    "uint16": np.dtype("<u2"),
    "uint32": np.dtype("<u4"),
}


def dtype_for(vocab_size: int) -> DType:
    """The smallest type that holds every token of a vocabulary."""
    return "uint16" if vocab_size <= 1 << 16 else "uint32"


class ShardIndex(Record):
    """The shards of one split in order.

    ``shards`` are content ids; ``shard_tokens`` is the size of every shard but the last.
    """

    dtype: DType
    shard_tokens: Annotated[int, Field(ge=1)]
    tokens: int
    shards: Annotated[tuple[Digest, ...], FailFast(), Field(min_length=1, max_length=MAX_SHARDS)]

    @model_validator(mode="after")
    def _is_full(self) -> ShardIndex:
        if not 0 < self.tokens_in(len(self.shards) - 1) <= self.shard_tokens:
            raise ValueError("the shards do not hold as many tokens as it says")
        return self

    @property
    def root(self) -> str:
        """RFC 6962 root over the shard ids, hex."""
        return merkle.root(merkle.leaf_hash(bytes.fromhex(shard)) for shard in self.shards).hex()

    def tokens_in(self, number: int) -> int:
        """Tokens of shard ``number`` (counted from 0)."""
        last = number == len(self.shards) - 1
        return self.tokens - number * self.shard_tokens if last else self.shard_tokens

    def bytes_in(self, number: int) -> int:
        """Size of shard ``number`` in bytes."""
        return self.tokens_in(number) * _NUMPY[self.dtype].itemsize

    def encode(self) -> bytes:
        """Canonical JSON."""
        return canonical.dumps(self.model_dump(mode="json"))

    def facts(self) -> SplitFacts:
        """What the manifest says about this split."""
        return SplitFacts(
            index=content_id(self.encode()),
            root=self.root,
            shards=len(self.shards),
            tokens=self.tokens,
        )


def decode_index(data: bytes, facts: SplitFacts) -> ShardIndex:
    """Parse an index and check it against the manifest.

    :raises DecodeError: when the bytes are no index
    :raises CheckFailed: when they are another index than the manifest's
    """
    index = parsed(ShardIndex, data, "shard index", MAX_INDEX_BYTES)
    if index.facts() != facts:
        raise CheckFailed(
            "the shard index is not the one that the manifest names", "fetch it from another peer"
        )
    return index


def encode_shard(tokens: Tokens, dtype: DType) -> bytes:
    """The bytes of a shard."""
    return tokens.astype(_NUMPY[dtype], copy=False).tobytes()


def decode_shard(data: bytes, index: ShardIndex, number: int, vocab_size: int) -> Tokens:
    """Check the bytes of shard ``number`` and return its tokens, shape (tokens_in(number),).

    :param vocab_size: a token at or above it would fault inside the model
    :raises CheckFailed: when length, content or a token is wrong
    """
    if len(data) != index.bytes_in(number) or content_id(data) != index.shards[number]:
        raise CheckFailed(
            f"data shard {number} is damaged: its bytes do not match its id",
            "delete it; it is fetched again",
        )
    tokens = cast(Tokens, np.frombuffer(data, _NUMPY[index.dtype]))
    if len(tokens) and int(tokens.max()) >= vocab_size:
        raise CheckFailed(f"data shard {number} holds a token outside the vocabulary")
    return tokens
