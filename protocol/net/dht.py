"""DHT records: small, expiring, and signed by the peer that they speak of.

A record is stored under ``key`` with the subkey = its author's peer id, and carries an Ed25519
signature over key, subkey, value and expiration. Every node loads the same validator, so a forged
record is refused by whoever is asked to store it and again by whoever reads it. Owners store their
records again before they expire; nothing else does. Where a record lives, and what a node stores
for others, is the matter of :mod:`protocol.net.dht_node`.

Keys, for a run id R:

- ``artel/run/R``: one subkey per coordinator: :class:`RunRecord`.
- ``artel/nodes/R``: one subkey per node or coordinator: :class:`HolderRecord`, who holds which
  state and which data shards, and where to reach it.
- ``artel/runs``, the same for all runs: one subkey per coordinator that leads a public one:
  :class:`protocol.listing.ListingRecord`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from functools import lru_cache
from typing import Annotated, Any

import msgpack
import numpy as np
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord, RecordValidatorBase
from pydantic import Field

from artel.protocol.errors import ArtelError, DecodeError
from artel.protocol.identity import Identity, public_of, verify
from artel.protocol.listing import ListingRecord, open_listing
from artel.protocol.messages import Addresses, Count, Text
from artel.protocol.schema import OptionalDigest, Record, Schema, checked

MAX_RECORD_BYTES = 12_000
"""hivemind loses records above about 16 KiB in places; ours stay clear of that."""
SIGNATURE_BYTES = 64
RENEW_S = 30.0
LIFETIME_S = 3 * RENEW_S
MAX_AHEAD_S = LIFETIME_S + RENEW_S
"""Nobody stores a record that expires later than this from now: a lifetime, and clocks that differ.
Only at storing: a reader with a slow clock would else refuse all records of a key for one."""


DIRECTORY = "artel/runs"
_DIRECTORY_ID = DHTID.generate(DIRECTORY).to_bytes()


def run_key(run: str) -> str:
    return f"artel/run/{run}"


def nodes_key(run: str) -> str:
    return f"artel/nodes/{run}"


def keys_of(run: str) -> tuple[str, ...]:
    """All keys whose records a peer of a run keeps: those of the run, and the directory's."""
    return run_key(run), nodes_key(run), DIRECTORY


class RunRecord(Record):
    """Where a coordinator of a run is. ``term`` is the one that it leads, -1 while it stands by:
    a hint, for what counts is a ledger in which that term has begun."""

    name: Text
    addresses: Addresses
    http: Text
    round: Count
    term: Annotated[int, Field(ge=-1, lt=1 << 53)]


class HolderRecord(Record):
    """What a peer can serve: one model state, and data shards as a bit field (bit i = shard i)."""

    addresses: Addresses
    state: OptionalDigest
    shards: Annotated[bytes, Field(max_length=10_000)]


def encode(record: Record) -> bytes:
    """The stored value of a record."""
    return bytes(msgpack.packb(record.model_dump(), use_bin_type=True))


def decode(schema: type[Schema], value: Any) -> Schema:
    """The record inside a value that the DHT returned.

    :raises DecodeError: when it is malformed
    """
    if not isinstance(value, bytes) or len(value) > MAX_RECORD_BYTES:
        raise DecodeError(f"a DHT record is a byte string of at most {MAX_RECORD_BYTES:,} bytes")
    try:
        found = msgpack.unpackb(value, raw=False, strict_map_key=True)
    except (ValueError, TypeError, msgpack.UnpackException) as error:
        raise DecodeError(f"the DHT record is malformed: {str(error)[:100]}") from None
    return checked(schema, found, "DHT record")


class SignedRecords(RecordValidatorBase):  # type: ignore[misc]  # hivemind has no types
    """Lets only the peer that a subkey names write below it."""

    def __init__(self, identity: Identity) -> None:
        self._identity = identity

    def _message(self, record: DHTRecord, value: bytes) -> bytes:
        parts = (record.key, record.subkey, value, repr(float(record.expiration_time)).encode())
        return b"artel/dht/v1\0" + b"".join(len(part).to_bytes(4, "big") + part for part in parts)

    def sign_value(self, record: DHTRecord) -> bytes:
        return bytes(record.value) + self._identity.sign(self._message(record, record.value))

    def strip_value(self, record: DHTRecord) -> bytes:
        return bytes(record.value[:-SIGNATURE_BYTES])

    def validate(self, record: DHTRecord) -> bool:
        value, signature = record.value[:-SIGNATURE_BYTES], record.value[-SIGNATURE_BYTES:]
        if len(record.value) > MAX_RECORD_BYTES + SIGNATURE_BYTES or len(signature) != 64:
            return False
        try:
            # Not hivemind's own decoder, which builds objects that a peer chooses.
            peer = msgpack.unpackb(record.subkey, raw=False)
            public = public_of(peer if isinstance(peer, str) else "")
            if msgpack.packb(peer) != record.subkey:
                return False  # encoded anew for a reader, it would spoil all records of the key
            stored = msgpack.unpackb(value)
            if not isinstance(stored, bytes):
                return False  # a reader's search would end in an error, whatever else it found
        except (DecodeError, ValueError, TypeError, msgpack.UnpackException):
            return False
        if not _verified(public, signature, self._message(record, value)):
            return False
        return record.key != _DIRECTORY_ID or _lists(stored, peer)

    @property
    def priority(self) -> int:
        return 10


def _lists(stored: bytes, peer: str) -> bool:
    """Whether this is a listing of a public run that a peer leads: strangers keep these."""
    try:
        open_listing(decode(ListingRecord, stored), time.time(), peer)
    except ArtelError:
        return False
    return True


@lru_cache(maxsize=1024)
def _verified(public: bytes, signature: bytes, message: bytes) -> bool:
    """A search brings each record as often as there are peers that keep it."""
    return verify(public, signature, message)


def shard_bits(held: Iterable[int], count: int) -> bytes:
    """The bit field of a :class:`HolderRecord` for ``count`` shards."""
    flags = np.zeros(count, np.bool_)
    flags[list(held)] = True
    return np.packbits(flags, bitorder="little").tobytes()


def has_shard(bits: bytes, number: int) -> bool:
    """Whether the bit field names this shard."""
    return number // 8 < len(bits) and bool(bits[number // 8] >> number % 8 & 1)
