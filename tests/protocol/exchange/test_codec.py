"""Codecs: what they lose, what they send, and what their decoders refuse."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.exchange.codec import CODECS, Codec, NonFinite, codec
from artel.protocol.state import Layout, Vector
from codec_world import LAYOUT, numbers, vector_of

DENSE = {name: chosen for name, chosen in CODECS.items() if not chosen.sparse}

every_codec = pytest.mark.parametrize("chosen", CODECS.values(), ids=list(CODECS))
every_dense_codec = pytest.mark.parametrize("chosen", DENSE.values(), ids=list(DENSE))
blockwise = pytest.mark.parametrize("name", ["int8", "int4"])


def allowed_error(name: str, layout: Layout, vector: Vector) -> npt.NDArray[np.float64]:
    """The bound that each codec's documentation promises, element by element, float64."""
    wide: npt.NDArray[np.float64] = np.abs(vector.astype(np.float64))
    if name == "fp32":
        return np.zeros_like(wide)
    saturated = np.maximum(wide - 65504, 0)
    if name == "fp16":
        return saturated + np.minimum(wide, 65504) * 2.0**-11 + 2.0**-25
    block, top = {"int8": (4096, 127), "int4": (256, 7)}[name]
    bound = np.empty_like(wide)
    for tensor in layout.tensors:
        for start in range(tensor.offset, tensor.offset + tensor.size, block):
            part = slice(start, min(start + block, tensor.offset + tensor.size))
            peak = min(wide[part].max(), 65504)
            bound[part] = saturated[part] + peak / (2 * top) + max(peak / 1024, 2.0**-24)
    return bound * (1 + 1e-6)  # fp32 rounding of the level's value


shapes = st.lists(
    st.lists(st.integers(1, 40), max_size=3).map(tuple) | st.just((513,)) | st.just((4097,)),
    min_size=1,
    max_size=4,
)
floats = st.floats(width=32, allow_nan=False, allow_infinity=False)


@st.composite
def vectors(draw: st.DrawFn) -> tuple[Layout, Vector]:
    layout = Layout.of((f"t{i}", shape) for i, shape in enumerate(draw(shapes)))
    values = draw(
        hnp.arrays(np.float32, layout.parameters, elements=floats, fill=floats)
        | st.integers(0, 99).map(lambda seed: numbers(seed, layout.parameters))
    )
    return layout, values


@every_dense_codec
@given(case=vectors())
@settings(max_examples=60, deadline=None)
def test_error_stays_within_the_documented_bound(
    chosen: Codec, case: tuple[Layout, Vector]
) -> None:
    layout, vector = case
    payload = chosen.encode(layout, vector)
    chosen.check(layout, payload)
    decoded = vector_of(chosen, layout, payload)
    assert decoded.dtype == np.float32
    assert decoded.shape == vector.shape
    error = np.abs(decoded.astype(np.float64) - vector)
    assert (error <= allowed_error(chosen.name, layout, vector)).all()
    assert len(payload) == chosen.payload_bytes(layout)
    # A decoded vector is a fixed point: it encodes to the payload that it came from.
    assert chosen.encode(layout, decoded) == payload


@every_dense_codec
@pytest.mark.parametrize(
    "value", [0.0, -0.0, 1e-45, -1e-40, 6e-8, 2.9e-8, 65504, 65519, -65520, 3.4e38]
)
def test_extreme_values_survive(chosen: Codec, value: float) -> None:
    vector = np.full(LAYOUT.parameters, value, np.float32)
    decoded = vector_of(chosen, LAYOUT, chosen.encode(LAYOUT, vector))
    error = np.abs(decoded.astype(np.float64) - vector)
    assert (error <= allowed_error(chosen.name, LAYOUT, vector)).all()


@every_codec
def test_decoded_vector_is_writable_and_encoding_leaves_its_input_alone(chosen: Codec) -> None:
    vector = numbers(1, LAYOUT.parameters)
    before = vector.copy()
    payload = chosen.encode(LAYOUT, vector)
    vector_of(chosen, LAYOUT, memoryview(payload))[0] = 1
    assert np.array_equal(vector, before)
    assert chosen.encode(LAYOUT, before) == payload


@every_codec
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 333, 400, -1])
def test_encoder_refuses_non_finite_numbers(chosen: Codec, bad: float, at: int) -> None:
    vector = numbers(1, LAYOUT.parameters)
    vector[at] = bad
    with pytest.raises(CheckFailed, match="NaN or infinity"):
        chosen.encode(LAYOUT, vector)


@every_codec
def test_encoder_refuses_another_shape_or_dtype(chosen: Codec) -> None:
    with pytest.raises(CheckFailed):
        chosen.encode(LAYOUT, numbers(1, LAYOUT.parameters + 1))
    with pytest.raises(CheckFailed):
        chosen.encode(LAYOUT, numbers(1, LAYOUT.parameters).astype(np.float64))


@every_codec
def test_decoder_refuses_any_other_length(chosen: Codec) -> None:
    payload = chosen.encode(LAYOUT, numbers(1, LAYOUT.parameters))
    for wrong in (b"", payload[:-1], payload + b"\0", payload[: len(payload) // 2]):
        for accept in (chosen.decode, chosen.check):
            with pytest.raises(DecodeError, match=r"bytes|fewer entries|goes on"):
                accept(LAYOUT, wrong)


@every_codec
@given(data=st.data())
@settings(max_examples=80, deadline=None)
def test_check_and_decode_agree_on_damaged_payloads(chosen: Codec, data: st.DataObject) -> None:
    payload = bytearray(chosen.encode(LAYOUT, numbers(1, LAYOUT.parameters)))
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        chosen.check(LAYOUT, payload)
    except DecodeError as refused:
        with pytest.raises(type(refused)):
            vector_of(chosen, LAYOUT, payload)
    else:
        decoded = vector_of(chosen, LAYOUT, payload)
        assert np.isfinite(decoded).all()
        assert chosen.encode(LAYOUT, decoded) == payload  # its one and only encoding


@given(noise=st.binary(min_size=4 * 10, max_size=4 * 10))
def test_noise_of_the_right_length_raises_decode_errors_only(noise: bytes) -> None:
    layout = Layout.of([("a", (7,)), ("b", (3,))])
    for chosen in CODECS.values():
        payload = noise[: chosen.payload_bytes(layout)]
        try:
            decoded = vector_of(chosen, layout, payload)
        except DecodeError:
            continue
        assert np.isfinite(decoded).all()


@pytest.mark.parametrize(
    ("name", "position", "replacement"),
    [
        ("fp32", 0, np.float32(np.nan).tobytes()),
        ("fp32", 8, np.float32(-np.inf).tobytes()),
        ("fp16", 2, np.float16(np.inf).tobytes()),
        ("int8", 0, np.float16(np.nan).tobytes()),
        ("int4", 0, np.float16(-np.inf).tobytes()),
    ],
)
def test_non_finite_payload_is_told_apart(name: str, position: int, replacement: bytes) -> None:
    chosen = codec(name)
    payload = bytearray(chosen.encode(LAYOUT, numbers(1, LAYOUT.parameters)))
    payload[position : position + len(replacement)] = replacement
    for accept in (chosen.decode, chosen.check):
        with pytest.raises(NonFinite):
            accept(LAYOUT, payload)


@blockwise
def test_unused_level_is_refused(name: str) -> None:
    layout = Layout.of([("a", (4,))])
    payload = bytearray(codec(name).encode(layout, np.array([1, -1, 0, 0], np.float32)))
    payload[-1] = 0x80  # -128, and -8 in a high half byte
    with pytest.raises(DecodeError, match="do not fit"):
        codec(name).check(layout, payload)


@blockwise
def test_scale_that_its_levels_do_not_use_is_refused(name: str) -> None:
    layout = Layout.of([("a", (4,))])
    zero = bytearray(codec(name).encode(layout, np.zeros(4, np.float32)))
    assert not any(zero)
    with_scale, with_level, negative = bytearray(zero), bytearray(zero), bytearray(zero)
    with_scale[1] = 0x3C  # scale 1, all levels 0
    with_level[2] = 1  # scale 0, a level
    negative[1] = 0x80  # scale -0
    for payload, reason in ((with_scale, "fit"), (with_level, "fit"), (negative, "negative")):
        with pytest.raises(DecodeError, match=reason):
            codec(name).check(layout, payload)


def test_int4_padding_of_an_odd_tensor_must_be_zero() -> None:
    layout = Layout.of([("a", (3,))])
    payload = bytearray(codec("int4").encode(layout, np.array([1, 1, 0], np.float32)))
    payload[-1] |= 0x10
    with pytest.raises(DecodeError, match="padding"):
        codec("int4").check(layout, payload)


def test_int4_bytes_are_as_documented() -> None:
    layout = Layout.of([("a", (3,)), ("b", (2,))])
    vector = np.array([7, -7, 2, 0, -0.5], np.float32)
    expected = np.float16(7).tobytes() + b"\x97\x02" + np.float16(0.5).tobytes() + b"\x90"
    assert codec("int4").encode(layout, vector) == expected
    assert np.array_equal(vector_of(codec("int4"), layout, expected), vector)


def test_int8_bytes_are_as_documented() -> None:
    layout = Layout.of([("a", (3,))])
    vector = np.array([127, -127, -1], np.float32)
    expected = np.float16(127).tobytes() + b"\x7f\x81\xff"
    assert codec("int8").encode(layout, vector) == expected
    assert np.array_equal(vector_of(codec("int8"), layout, expected), vector)


def test_blocks_do_not_cross_tensors() -> None:
    layout = Layout.of([("large", (10,)), ("small", (10,))])
    vector = np.array([1000.0] * 10 + [1e-3] * 10, np.float32)
    for name in ("int8", "int4"):
        decoded = vector_of(codec(name), layout, codec(name).encode(layout, vector))
        assert np.allclose(decoded, vector, rtol=1e-3)


@pytest.mark.parametrize(
    ("name", "size"),
    [
        # LAYOUT: tensors of 333, 1, 8192 and 257 elements.
        ("fp32", 4 * 8783),
        ("fp16", 2 * 8783),
        ("int8", 2 * (1 + 1 + 2 + 1) + 8783),
        ("int4", 2 * (2 + 1 + 32 + 2) + 167 + 1 + 4096 + 129),
    ],
)
def test_payload_sizes_are_exact(name: str, size: int) -> None:
    chosen = codec(name)
    assert chosen.payload_bytes(LAYOUT) == size
    assert len(chosen.encode(LAYOUT, numbers(1, LAYOUT.parameters))) == size


def test_bits_per_parameter_of_large_tensors() -> None:
    layout = Layout.of([("a", (1024, 4096))])
    bits = {name: c.bits_per_parameter(layout) for name, c in CODECS.items()}
    # At most, and with the marks, the remainders, the quotients and the means of 16 chunks:
    sparse = (128 * (2 + 4 + 1) + (4096 - 128) // 16 + 32 / 16) / 4096
    assert bits == {
        "fp32": 32,
        "fp16": 16,
        "int8": 8 + 16 / 4096,
        "int4": 4 + 16 / 256,
        "sparse": sparse,
    }


def by_the_book(name: str, layout: Layout, vector: Vector) -> tuple[bytes, Vector]:
    """Payload and decoded vector of a dense codec, as its documentation says it, slowly."""
    payload, decoded = b"", np.empty_like(vector)
    block, top = {"int8": (4096, 127), "int4": (256, 7), "fp16": (1 << 40, 0)}[name]
    for tensor in layout.tensors:
        values = vector[tensor.offset : tensor.offset + tensor.size]
        out = decoded[tensor.offset : tensor.offset + tensor.size]
        if name == "fp16":
            halves = np.clip(values, np.float32(-65504), np.float32(65504)).astype("<f2")
            out[:] = halves
            payload += halves.tobytes()
            continue
        scales, levels = [], []
        for start in range(0, tensor.size, block):
            part = values[start : start + block]
            peak = min(np.abs(part).max(), np.float32(65504))
            scale = np.float16(peak)
            if scale > peak:
                scale = np.nextafter(scale, np.float16(0))
            step = np.float32(scale) / np.float32(top)
            inverse = np.float32(1) / step if step > 0 else np.float32(0)
            rounded = np.clip(np.rint(part * inverse), -top, top).astype(np.int32)
            exact = rounded.astype(np.float32) * np.float32(scale)
            out[start : start + block] = exact / np.float32(top)
            scales.append(scale)
            levels += rounded.tolist()
        payload += np.array(scales, "<f2").tobytes()
        if name == "int8":
            payload += np.array(levels, np.int8).tobytes()
        else:
            levels += [0] * (len(levels) % 2)
            payload += bytes(
                (low & 15) | (high & 15) << 4
                for low, high in zip(levels[::2], levels[1::2], strict=True)
            )
    return payload, decoded


@pytest.mark.parametrize("name", ["int8", "int4", "fp16"])
@given(case=vectors(), scale=st.sampled_from([1.0, 2**-8, 2**-20, 2**20]))
@settings(max_examples=60, deadline=None)
def test_compiled_loops_do_what_the_documentation_says(
    name: str, case: tuple[Layout, Vector], scale: float
) -> None:
    layout, vector = case
    with np.errstate(over="ignore"):
        vector = np.nan_to_num(vector * np.float32(scale))
    payload, decoded = by_the_book(name, layout, vector)
    assert codec(name).encode(layout, vector) == payload
    ours = vector_of(codec(name), layout, payload)
    assert np.array_equal(ours.view(np.uint32), decoded.view(np.uint32))


def test_fp16_has_every_number_and_every_rounding() -> None:
    bits = np.arange(65536, dtype=np.uint16)
    exact = bits[bits & 0x7C00 != 0x7C00].view(np.float16).astype(np.float32)
    between = (exact[1:] + exact[:-1]) / np.float32(2)
    vector = np.concatenate(
        [exact, between, np.nextafter(between, np.float32(0)), np.nextafter(between, exact[1:])]
    )
    layout = Layout.of([("a", vector.shape)])
    payload, decoded = by_the_book("fp16", layout, vector)
    assert codec("fp16").encode(layout, vector) == payload
    ours = vector_of(codec("fp16"), layout, payload)
    assert np.array_equal(ours.view(np.uint32), decoded.view(np.uint32))


@every_codec
def test_where_the_payload_lies_does_not_matter(chosen: Codec) -> None:
    vector = numbers(2, LAYOUT.parameters)
    frozen = vector.copy()
    frozen.flags.writeable = False
    payload = chosen.encode(LAYOUT, frozen)
    expected = vector_of(chosen, LAYOUT, payload)
    for places in (bytearray(payload), memoryview(b"-" + payload)[1:]):
        assert np.array_equal(vector_of(chosen, LAYOUT, places), expected)


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        ("fp32", "771df36004541abfd92b9f7c9400de8ad627faebee1d5dd9adee1ba02830df1c"),
        ("fp16", "07450a8474acdb85686031a0f80a23ca6220cb06652dfeeaae9e8092c9bc4d5d"),
        ("int8", "8662a9acbea5e6b57951e8d5297098b8394e6fac5cf5b19d0c201d5280facee7"),
        ("int4", "6f2c7f9b1e72f5a4ca0d047b052660339e3cacd1c8182fab0e0e63b1ef9f9685"),
        ("sparse", "edd5f57db37bbcb6232133f2d8550d6a819232b850e5e32932f34a8010de854f"),
    ],
)
def test_golden_payloads(name: str, digest: str) -> None:
    """These bits are the protocol: a change here splits a network of mixed versions."""
    chosen = codec(name)
    payload = chosen.encode(LAYOUT, numbers(7, LAYOUT.parameters))
    decoded = vector_of(chosen, LAYOUT, payload)
    assert hashlib.sha256(payload + decoded.astype("<f4").tobytes()).hexdigest() == digest


def test_registry_has_distinct_ids_and_names_the_choices() -> None:
    assert len({c.id for c in CODECS.values()}) == len(CODECS)
    assert all(codec(name).name == name for name in CODECS)
    with pytest.raises(UsageError) as error:
        codec("int5")
    assert "int4" in error.value.hint
