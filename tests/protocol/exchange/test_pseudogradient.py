"""Contribution blobs: accepted as packed, refused with the ledger's reason otherwise."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregate_world import dense
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.exchange.codec import CODECS, Codec, codec
from artel.protocol.exchange.pseudogradient import (
    HEADER_BYTES,
    MAX_INDEX_BYTES,
    SLICE_MAGIC,
    BlobRefused,
    Header,
    IndexItem,
    ProvingIndex,
    index_bytes,
    joined_digest,
    max_blob_bytes,
    open_index,
    open_proven,
    pack_index,
    payload_digest,
)
from artel.protocol.round_state import NO_NUMBERS
from artel.protocol.state import Layout
from codec_world import vector_of

LAYOUT = Layout.of([("a", (70, 60)), ("b", (7,))])
BASE = "5c" * 32
VECTOR = np.linspace(-1, 1, LAYOUT.parameters, dtype=np.float32) ** 3
ID = "1d" * 32

every_codec = pytest.mark.parametrize("chosen", CODECS.values(), ids=list(CODECS))


def packed(chosen: Codec) -> bytearray:
    return bytearray(Header(9, BASE, chosen).pack(LAYOUT, VECTOR))


def reason(blob: bytes | bytearray, chosen: Codec, *, round: int = 9, base: str = BASE) -> str:
    """Why the blob is refused ("" when it counts); check and load must say the same."""
    reasons = []
    header = Header(round, base, chosen)
    for accept in (header.check, header.load):
        try:
            accept(blob, LAYOUT)
            reasons.append("")
        except BlobRefused as refused:
            reasons.append(refused.reason)
    assert len(set(reasons)) == 1
    return reasons[0]


@every_codec
def test_blob_round_trips(chosen: Codec) -> None:
    blob = packed(chosen)
    assert len(blob) <= max_blob_bytes(LAYOUT, chosen)
    assert chosen.sparse or len(blob) == max_blob_bytes(LAYOUT, chosen)
    assert reason(blob, chosen) == ""
    payload = Header(9, BASE, chosen).unpack(blob, LAYOUT)
    assert bytes(payload) == chosen.encode(LAYOUT, VECTOR)
    decoded = dense(Header(9, BASE, chosen).load(blob, LAYOUT), LAYOUT.parameters)
    assert np.array_equal(decoded, vector_of(chosen, LAYOUT, payload))


def test_numbers_are_known_by_their_payloads_and_zeros_by_nothing() -> None:
    one, other = b"\0\1", b"\0\2"
    assert payload_digest(one) == hashlib.sha256(one).hexdigest()
    digests = [payload_digest(one), payload_digest(other)]
    leaves = [hashlib.sha256(b"\0" + hashlib.sha256(each).digest()) for each in (one, other)]
    root = hashlib.sha256(b"\1" + b"".join(leaf.digest() for leaf in leaves))
    assert joined_digest(digests) == root.hexdigest()
    assert payload_digest(bytes(9)) == joined_digest([NO_NUMBERS, NO_NUMBERS]) == NO_NUMBERS
    assert joined_digest([NO_NUMBERS, digests[0]]) != NO_NUMBERS
    for name in ("fp32", "fp16", "int8", "int4"):
        assert payload_digest(codec(name).encode(LAYOUT, np.zeros_like(VECTOR))) == NO_NUMBERS
        assert payload_digest(codec(name).encode(LAYOUT, VECTOR)) != NO_NUMBERS


def test_header_bytes_are_as_documented() -> None:
    blob = packed(codec("int4"))
    assert HEADER_BYTES == 96
    assert blob[:8] == b"ARTELPG1"
    assert blob[8:16] == b"\x04" + bytes(7)
    assert blob[16:24] == (9).to_bytes(8, "big")
    assert blob[24:56].hex() == BASE
    assert blob[56:88].hex() == LAYOUT.digest
    assert int.from_bytes(blob[88:96], "big") == len(blob) - 96


@every_codec
def test_every_flipped_header_byte_is_refused_with_the_right_reason(chosen: Codec) -> None:
    for position in range(HEADER_BYTES):
        blob = packed(chosen)
        blob[position] ^= 0x40
        expected = "wrong_state" if 16 <= position < 88 else "malformed"
        assert reason(blob, chosen) == expected, position


@every_codec
def test_blob_of_another_round_or_state_is_refused(chosen: Codec) -> None:
    blob = packed(chosen)
    assert reason(blob, chosen, round=10) == "wrong_state"
    assert reason(blob, chosen, base="5d" * 32) == "wrong_state"


def test_blob_of_another_layout_is_refused() -> None:
    chosen = codec("fp32")
    turned = Layout.of([("a", (60, 70)), ("b", (7,))])  # the same number of parameters
    blob = Header(9, BASE, chosen).pack(turned, VECTOR)
    assert reason(blob, chosen) == "wrong_state"


def test_blob_of_another_codec_is_malformed() -> None:
    assert reason(packed(codec("int8")), codec("fp16")) == "malformed"


@every_codec
def test_truncated_blob_is_malformed(chosen: Codec) -> None:
    blob = packed(chosen)
    for size in (0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, len(blob) - 1):
        assert reason(blob[:size], chosen) == "malformed", size


@every_codec
def test_extended_blob_is_refused(chosen: Codec) -> None:
    blob = packed(chosen)
    room = max_blob_bytes(LAYOUT, chosen) - len(blob)  # a sparse blob may be shorter than the most
    assert reason(blob + bytes(room + 1), chosen) == "too_large"
    assert room == 0 or reason(blob + b"\0", chosen) == "malformed"


@every_codec
def test_shortened_blob_with_a_fitting_length_field_is_malformed(chosen: Codec) -> None:
    blob = packed(chosen)[:-2]
    blob[88:96] = (len(blob) - 96).to_bytes(8, "big")
    assert reason(blob, chosen) == "malformed"


@every_codec
def test_non_finite_blob_has_its_own_reason(chosen: Codec) -> None:
    blob = packed(chosen)
    width = 4 if chosen.name == "fp32" else 2  # a number, or the first block's scale
    blob[96 : 96 + width] = b"\xff" * width
    assert reason(blob, chosen) == "non_finite"


@every_codec
@given(data=st.data())
@settings(max_examples=100, deadline=None)
def test_damaged_blobs_are_refused_and_nothing_else_is_raised(
    chosen: Codec, data: st.DataObject
) -> None:
    blob = packed(chosen)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(blob)))
        blob[at : at + data.draw(st.integers(0, 4))] = data.draw(st.binary(max_size=4))
    why = reason(blob, chosen)
    assert why in ("", "malformed", "wrong_state", "non_finite", "too_large")
    if why == "":
        assert np.isfinite(
            dense(Header(9, BASE, chosen).load(blob, LAYOUT), LAYOUT.parameters)
        ).all()


@given(st.binary(max_size=800))
def test_noise_is_refused(noise: bytes) -> None:
    for chosen in CODECS.values():
        assert reason(noise, chosen) != ""


def test_refusal_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        Header(9, BASE, codec("int4")).check(b"", LAYOUT)


def test_pack_refuses_a_vector_that_is_not_finite_and_a_base_that_is_no_root() -> None:
    broken = VECTOR.copy()
    broken[5] = np.inf
    with pytest.raises(CheckFailed):
        Header(9, BASE, codec("int4")).pack(LAYOUT, broken)
    for base in ("", "zz" * 32, "5c" * 31):
        with pytest.raises(CheckFailed):
            Header(9, base, codec("int4")).pack(LAYOUT, VECTOR)


@every_codec
def test_wrapped_payload_is_the_packed_vector(chosen: Codec) -> None:
    payload = chosen.encode(LAYOUT, VECTOR)
    assert Header(9, BASE, chosen).wrap(LAYOUT, payload) == packed(chosen)


@every_codec
def test_a_slice_is_no_contribution_and_no_other_way_round(chosen: Codec) -> None:
    contribution = packed(chosen)
    result = Header(9, BASE, chosen, SLICE_MAGIC).pack(LAYOUT, VECTOR)
    assert result[:8] == b"ARTELSL1"
    assert result[8:] == contribution[8:]
    Header(9, BASE, chosen, SLICE_MAGIC).check(result, LAYOUT)
    assert reason(result, chosen) == "malformed"
    with pytest.raises(BlobRefused) as refused:
        Header(9, BASE, chosen, SLICE_MAGIC).check(contribution, LAYOUT)
    assert refused.value.reason == "malformed"


KNOWN_BY = "3f" * 32
LISTED = [
    IndexItem(ID, 500, KNOWN_BY),
    IndexItem("2e" * 32, 2**40, "00" * 32),
    IndexItem(ID, HEADER_BYTES + 1, KNOWN_BY),
]


def index_reason(
    data: bytes | bytearray,
    *,
    round: int = 9,
    base: str = BASE,
    sizes: tuple[int, ...] | None = None,
) -> str:
    try:
        open_index(data, round=round, base=base, max_sizes=sizes)
    except BlobRefused as refused:
        return refused.reason
    return ""


def test_index_round_trips_as_documented() -> None:
    data = pack_index(9, BASE, LISTED)
    assert data[:8] == b"ARTELIX2"
    assert int.from_bytes(data[8:16], "big") == 9
    assert data[16:48].hex() == BASE
    assert int.from_bytes(data[48:50], "big") == 3
    first = IndexItem(data[50:82].hex(), int.from_bytes(data[82:90], "big"), data[90:122].hex())
    assert first == LISTED[0]
    assert len(data) == index_bytes(3) == 50 + 3 * 72
    assert open_index(data, round=9, base=BASE) == LISTED
    assert (
        open_index(data, round=9, base=BASE, max_sizes=[piece.size for piece in LISTED]) == LISTED
    )


def test_index_of_something_else_is_refused_with_the_right_reason() -> None:
    data = pack_index(9, BASE, LISTED)
    assert index_reason(data, round=10) == "wrong_state"
    assert index_reason(data, base="5d" * 32) == "wrong_state"
    assert index_reason(data, sizes=(500, 2**40)) == "malformed"
    assert index_reason(data, sizes=(500, 2**40, 97, 97)) == "malformed"
    assert index_reason(data, sizes=(500, 2**40 - 1, 97)) == "too_large"
    assert index_reason(data, sizes=(499, 2**40, 97)) == "too_large"
    assert index_reason(bytes(MAX_INDEX_BYTES + 1)) == "too_large"
    assert index_reason(pack_index(9, BASE, [IndexItem(ID, HEADER_BYTES, KNOWN_BY)])) == "malformed"
    assert index_reason(data[:48] + b"\0\0") == "malformed"
    for size in (0, 1, 49, 50, len(data) - 72, len(data) - 1):
        assert index_reason(data[:size]) == "malformed", size
    assert index_reason(data + b"\0") == "malformed"


def test_every_flipped_byte_of_an_indexs_header_is_refused() -> None:
    for position in range(50):
        data = bytearray(pack_index(9, BASE, LISTED))
        data[position] ^= 0x40
        assert index_reason(data) == ("wrong_state" if 8 <= position < 48 else "malformed")


@given(st.binary(max_size=300))
def test_noise_is_no_index(noise: bytes) -> None:
    assert index_reason(noise) == "malformed"


@given(st.lists(st.binary(min_size=72, max_size=72), min_size=1, max_size=5))
def test_an_accepted_index_has_one_encoding(items: list[bytes]) -> None:
    data = pack_index(9, BASE, LISTED)[:48] + len(items).to_bytes(2, "big") + b"".join(items)
    if index_reason(data) == "":
        assert pack_index(9, BASE, open_index(data, round=9, base=BASE)) == data


def test_the_largest_index_fits() -> None:
    data = pack_index(9, BASE, [IndexItem(ID, 97, KNOWN_BY)] * 65_535)
    assert len(data) == MAX_INDEX_BYTES
    assert len(open_index(data, round=9, base=BASE)) == 65_535


def test_pack_index_refuses_wrong_use() -> None:
    for base, listed in [
        (BASE, []),
        (BASE, [IndexItem(ID, 97, KNOWN_BY)] * 65_536),
        (BASE, [IndexItem(ID, 0, KNOWN_BY)]),
        (BASE, [IndexItem("1d" * 31, 97, KNOWN_BY)]),
        (BASE, [IndexItem("zz" * 32, 97, KNOWN_BY)]),
        (BASE, [IndexItem(ID, 97, "3f" * 31)]),
        ("", [IndexItem(ID, 97, KNOWN_BY)]),
    ]:
        with pytest.raises(CheckFailed):
            pack_index(9, base, listed)


def test_an_index_and_the_payload_of_its_contribution_go_together() -> None:
    data = pack_index(9, BASE, LISTED)
    payload = joined_digest([piece.payload for piece in LISTED])
    assert open_index(data, round=9, base=BASE, payload=payload) == LISTED
    with pytest.raises(BlobRefused) as caught:
        open_index(data, round=9, base=BASE, payload=joined_digest([KNOWN_BY]))
    assert caught.value.reason == "malformed"


def many(count: int) -> list[IndexItem]:
    return [IndexItem(ID, 100 + j, hashlib.sha256(b"%d" % j).hexdigest()) for j in range(count)]


@pytest.mark.parametrize("count", [1, 2, 3, 8, 13, 1000, 1024])
def test_each_item_of_an_index_is_proven_without_the_others(count: int) -> None:
    listed = many(count)
    index = ProvingIndex(pack_index(9, BASE, listed))
    payload = joined_digest([piece.payload for piece in listed])
    for slice in {0, 1 % count, count // 2, count - 1}:
        data = index.proven(slice)
        assert len(data) <= 72 + 32 * (count - 1).bit_length()
        assert open_proven(data, slice, count, payload) == listed[slice]
    with pytest.raises(UsageError):
        index.proven(count)


def test_what_no_proof_leads_to_is_not_believed() -> None:
    listed = many(13)
    payload = joined_digest([piece.payload for piece in listed])
    index = ProvingIndex(pack_index(9, BASE, listed))
    other = ProvingIndex(pack_index(9, BASE, [*listed[:-1], LISTED[0]]))
    data = index.proven(5)
    assert open_proven(data, 5, 13, payload) == listed[5]
    lies = [
        (other.proven(5), 5, 13, payload),  # another contribution's
        (data, 4, 13, payload),  # the item of another place
        (data, 13, 13, payload),
        (data, 5, 12, payload[:-1] + "0" if payload[-1] != "0" else payload[:-1] + "1"),
        (data, 5, 6, payload),  # of fewer slices: the proof is too long
        (data, 5, 64, payload),
        (data[:-32], 5, 13, payload),
        (data[:-1], 5, 13, payload),
        (data + bytes(32), 5, 13, payload),
        (data + bytes(1), 5, 13, payload),
        (data[:40] + bytes(32) + data[72:], 5, 13, payload),  # other numbers
        (data[:71], 5, 13, payload),
        (b"", 5, 13, payload),
        (bytes(72), 0, 1, NO_NUMBERS),  # zeros of all slices: there is no tree
    ]
    for number, lie in enumerate(lies):
        with pytest.raises(CheckFailed):
            open_proven(*lie)
            pytest.fail(f"lie {number}")
    # What is not proven: where the numbers are. Whoever fetches them looks.
    moved = bytes(40) + data[40:]
    assert open_proven(moved, 5, 13, payload) == IndexItem("00" * 32, 0, listed[5].payload)


def test_what_proves_nothing() -> None:
    data = pack_index(9, BASE, LISTED)
    for junk in (b"", data[:-1], data + b"\0", b"X" + data[1:], bytes(len(data))):
        with pytest.raises(BlobRefused):
            ProvingIndex(junk)
