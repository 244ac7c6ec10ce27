"""Contribution blobs: accepted as packed, refused with the ledger's reason otherwise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.codec import CODECS, Codec, codec
from protocol.errors import CheckFailed, DecodeError
from protocol.pseudogradient import (
    HEADER_BYTES,
    BlobRefused,
    check,
    decode,
    max_blob_bytes,
    pack,
    unpack,
)
from protocol.state import Layout

LAYOUT = Layout.of([("a", (20, 30)), ("b", (7,))])
BASE = "5c" * 32
VECTOR = np.linspace(-1, 1, LAYOUT.parameters, dtype=np.float32)

every_codec = pytest.mark.parametrize("chosen", CODECS.values(), ids=list(CODECS))


def packed(chosen: Codec) -> bytearray:
    return bytearray(pack(LAYOUT, VECTOR, round=9, base=BASE, codec=chosen))


def reason(blob: bytes | bytearray, chosen: Codec, *, round: int = 9, base: str = BASE) -> str:
    """Why the blob is refused ("" when it counts); check and decode must say the same."""
    reasons = []
    for accept in (check, decode):
        try:
            accept(blob, LAYOUT, round=round, base=base, codec=chosen)
            reasons.append("")
        except BlobRefused as refused:
            reasons.append(refused.reason)
    assert reasons[0] == reasons[1]
    return reasons[0]


@every_codec
def test_blob_round_trips(chosen: Codec) -> None:
    blob = packed(chosen)
    assert len(blob) == max_blob_bytes(LAYOUT, chosen)
    assert reason(blob, chosen) == ""
    payload = unpack(blob, LAYOUT, round=9, base=BASE, codec=chosen)
    assert bytes(payload) == chosen.encode(LAYOUT, VECTOR)
    decoded = decode(blob, LAYOUT, round=9, base=BASE, codec=chosen)
    assert np.array_equal(decoded, chosen.decode(LAYOUT, payload))


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
    turned = Layout.of([("a", (30, 20)), ("b", (7,))])  # the same number of parameters
    blob = pack(turned, VECTOR, round=9, base=BASE, codec=chosen)
    assert reason(blob, chosen) == "wrong_state"


def test_blob_of_another_codec_is_malformed() -> None:
    assert reason(packed(codec("int8")), codec("fp16")) == "malformed"


@every_codec
def test_truncated_blob_is_malformed(chosen: Codec) -> None:
    blob = packed(chosen)
    for size in (0, 1, HEADER_BYTES - 1, HEADER_BYTES, HEADER_BYTES + 1, len(blob) - 1):
        assert reason(blob[:size], chosen) == "malformed", size


@every_codec
def test_extended_blob_is_too_large(chosen: Codec) -> None:
    assert reason(packed(chosen) + b"\0", chosen) == "too_large"


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
        assert np.isfinite(decode(blob, LAYOUT, round=9, base=BASE, codec=chosen)).all()


@given(st.binary(max_size=800))
def test_noise_is_refused(noise: bytes) -> None:
    for chosen in CODECS.values():
        assert reason(noise, chosen) != ""


def test_refusal_is_a_decode_error() -> None:
    with pytest.raises(DecodeError):
        check(b"", LAYOUT, round=9, base=BASE, codec=codec("int4"))


def test_pack_refuses_a_vector_that_is_not_finite_and_a_base_that_is_no_root() -> None:
    broken = VECTOR.copy()
    broken[5] = np.inf
    with pytest.raises(CheckFailed):
        pack(LAYOUT, broken, round=9, base=BASE, codec=codec("int4"))
    for base in ("", "zz" * 32, "5c" * 31):
        with pytest.raises(CheckFailed):
            pack(LAYOUT, VECTOR, round=9, base=base, codec=codec("int4"))
