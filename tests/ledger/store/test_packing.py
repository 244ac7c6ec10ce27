"""How entries are stored: shorter, and to the byte what they were."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artel.ledger import entries
from artel.ledger.entries import ENTRY_TYPE, MANIFEST_TYPE
from artel.ledger.store.packing import pack, unpack
from artel.protocol import canonical, dsse
from artel.protocol.dsse import Envelope
from artel.protocol.errors import DecodeError
from artel.protocol.identity import peer_id_of
from ledger_world import World, key

WORLD = World()
WORLD.batches(3)


def test_entries_of_every_kind_take_less_than_three_fifths_of_their_bytes() -> None:
    for leaf in WORLD.leaves:
        envelope = dsse.decode(leaf)
        stored = pack(leaf, envelope)
        assert unpack(stored) == leaf
        assert len(stored) < 0.6 * len(leaf), entries.decode(leaf).kind


VALUES = st.one_of(
    st.binary(min_size=32, max_size=32).map(bytes.hex),
    st.binary(min_size=64, max_size=64).map(bytes.hex),
    st.binary(min_size=32, max_size=32).map(peer_id_of),
    st.just(key("signer").key),
    st.just(key("signer").peer_id),
    st.just("12D3KooW" + "1" * 44),  # looks like a peer id
    st.just("A" * 64),
    st.text(max_size=80),
    st.integers(-(2**53) + 1, 2**53 - 1),
)


@given(
    st.sampled_from([ENTRY_TYPE, MANIFEST_TYPE, "text/plain", ""]),
    st.recursive(VALUES, lambda part: st.lists(part) | st.dictionaries(st.text(), part)),
    st.lists(st.sampled_from(["signer", "a", "b"]), unique=True),
)
def test_whatever_is_signed_comes_back_to_the_byte(
    payload_type: str, body: object, signers: list[str]
) -> None:
    payload = canonical.dumps(body)
    signatures = sorted((key(name).key, bytes(range(64))) for name in signers)
    envelope = Envelope(payload_type, payload, tuple(signatures))
    leaf = envelope.encode()
    assert unpack(pack(leaf, envelope)) == leaf


@pytest.mark.parametrize("payload", [b"\x01\x02\x04", b'"\x01"', b"", bytes(1000), b"\xff\x03"])
def test_what_is_no_json_comes_back_too(payload: bytes) -> None:
    envelope = Envelope(ENTRY_TYPE, payload, ((key("a").key, bytes(64)),))
    leaf = envelope.encode()
    assert unpack(pack(leaf, envelope)) == leaf


def test_damaged_bytes_give_another_leaf_or_none() -> None:
    rng = random.Random(1)
    for leaf in WORLD.leaves:
        stored = pack(leaf, dsse.decode(leaf))
        for _ in range(40):
            changed = bytearray(stored)
            changed[rng.randrange(len(stored))] ^= 1 << rng.randrange(8)
            cut = bytes(changed[: rng.randrange(len(stored))])
            for data in (bytes(changed), cut, stored[: len(cut)], stored + b"\x00"):
                try:
                    found = unpack(data)
                except DecodeError:
                    continue
                assert found != leaf or len(data) == len(stored), "only in unused bits"
                assert len(found) < 1 << 20
