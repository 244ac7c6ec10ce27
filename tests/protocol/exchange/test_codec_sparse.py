"""The codec ``sparse``: what it chooses, what it writes, and what its decoder refuses."""

from __future__ import annotations

import subprocess
import sys
import tracemalloc
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.exchange.codec import NonFinite, codec, gpu, of
from artel.protocol.exchange.codec.blockwise import Int8
from artel.protocol.exchange.codec.sparse import CHUNK, GROUP, Selection, Sparse
from artel.protocol.run_config import ExchangeSection
from artel.protocol.state import Layout, Vector
from codec_world import LAYOUT, numbers, vector_of

LARGE = Layout.of([("a", (2, CHUNK)), ("small", (40,)), ("b", (CHUNK + 1,)), ("c", (5000,))])
ONE = Layout.of([("a", (CHUNK,))])
KS = (1, 8, 64, 128, 1024, 4096)


def golden_ratio_bits(k: int) -> int:
    """The Rice parameter whose code of geometric gaps is shortest, found by trying all."""
    p = k / 4096

    def bits(b: int) -> float:
        return b + 1 / (1 - (1 - p) ** (1 << b))

    return min(range(12), key=bits) if p < 1 else 0


def two_means(values: list[float]) -> tuple[np.float16, np.float16, list[bool]]:
    """Lloyd's algorithm on integers of 2^-30, eight rounds at most."""
    scaled = [int(min(value, 65504.0) * 2**30) for value in values]
    edge = sum(scaled) // len(scaled)
    means: list[float] = []
    for _ in range(8):
        sides = [[v for v in scaled if v <= edge], [v for v in scaled if v > edge]]
        if not sides[1]:
            break
        means = [float(sum(side)) / len(side) for side in sides]
        middle = int((means[0] + means[1]) / 2)
        if middle == edge:
            break
        edge = middle
    if means:
        low, high = (np.float16(mean / 2**30) for mean in means)
        if low < high:
            return low, high, [v > edge for v in scaled]
    mean = np.float16(float(sum(scaled)) / len(scaled) / 2**30)
    return mean, mean, [False] * len(scaled)


def by_the_book(layout: Layout, vector: Vector, k: int) -> tuple[bytes, Vector]:
    """Payload and decoded vector as the documentation says it, with strings of bits."""
    decoded = np.zeros_like(vector)
    means, marks, remainders, quotients = b"", "", "", ""
    b = golden_ratio_bits(k)
    small: list[tuple[str, int, int]] = []
    for tensor in layout.tensors:
        if tensor.size < CHUNK:
            small.append((tensor.name, tensor.offset, tensor.size))
            continue
        for begin in range(0, tensor.size, GROUP * CHUNK):
            starts = range(begin, min(begin + GROUP * CHUNK, tensor.size), CHUNK)
            chosen: list[tuple[int, int, list[int]]] = []
            for start in starts:
                width = min(CHUNK, tensor.size - start)
                chunk = vector[tensor.offset + start : tensor.offset + start + width]
                order = sorted(range(width), key=lambda i, c=chunk: (-abs(float(c[i])), i))
                chosen.append((start, width, sorted(order[: -(-k * width // CHUNK)])))
            group = [
                float(vector[tensor.offset + start + i])
                for start, _, places in chosen
                for i in places
            ]
            low, high, is_high = two_means([abs(value) for value in group])
            means += low.tobytes() + high.tobytes()
            at = 0
            for start, width, places in chosen:
                sent: dict[int, tuple[bool, bool]] = {}
                for place in places:
                    if is_high[at] or low > 0:
                        sent[place] = group[at] < 0, is_high[at]
                    at += 1
                free = (i for i in range(width) if i not in sent)
                zeros = [next(free) for _ in range(len(places) - len(sent))]
                previous = -1
                for place in sorted([*sent, *zeros]):
                    sign, upper = sent.get(place, (False, False))
                    marks += f"{sign:d}{upper:d}"
                    gap = place - previous - 1
                    remainders += "".join(f"{gap >> bit & 1}" for bit in range(b))
                    quotients += "0" * (gap >> b) + "1"
                    previous = place
                    value = np.float32(high if upper else low)
                    if place in sent:
                        decoded[tensor.offset + start + place] = -value if sign else value
    payload = means
    if small:
        own = Layout.of([(name, (size,)) for name, _, size in small])
        values = np.concatenate([vector[offset : offset + size] for _, offset, size in small])
        payload += Int8().encode(own, values)
        at = 0
        for _, offset, size in small:
            decoded[offset : offset + size] = Int8().decode(own, Int8().encode(own, values))[
                at : at + size
            ]
            at += size
    for stream in (marks, remainders, quotients):
        padded = stream + "0" * (-len(stream) % 8)
        payload += bytes(int(padded[i : i + 8][::-1], 2) for i in range(0, len(padded), 8))
    return payload, decoded


def tiny(vector: Vector) -> Vector:
    return vector * np.float32(2**-16)


def few(vector: Vector) -> Vector:
    result = np.zeros_like(vector)
    result[::997] = vector[::997]
    return result


def coarse(vector: Vector) -> Vector:
    return np.round(vector * np.float32(2**9))


def huge(vector: Vector) -> Vector:
    return vector * np.float32(2**20)


def heavy(vector: Vector) -> Vector:
    return vector * vector * vector


changes = pytest.mark.parametrize(
    "change", [np.copy, tiny, few, coarse, huge, heavy, np.zeros_like]
)


@changes
@pytest.mark.parametrize("k", KS)
def test_payload_is_as_documented(k: int, change: Callable[[Vector], Vector]) -> None:
    vector = change(numbers(k, LARGE.parameters))
    expected, decoded = by_the_book(LARGE, vector, k)
    payload = Sparse(k).encode(LARGE, vector)
    assert payload == expected
    assert len(payload) <= Sparse(k).payload_bytes(LARGE)
    ours = vector_of(Sparse(k), LARGE, payload)
    assert np.array_equal(ours.view(np.uint32), decoded.view(np.uint32))
    assert Sparse(k).encode(LARGE, ours) == payload  # its one and only encoding


def test_groups_of_sixteen_chunks_and_their_rest() -> None:
    layout = Layout.of([("a", (17 * CHUNK + 9,))])
    vector = numbers(5, layout.parameters)
    vector[: 16 * CHUNK] *= np.float32(100)
    expected, _ = by_the_book(layout, vector, 8)
    assert Sparse(8).encode(layout, vector) == expected


@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(1, 300),
    sizes=st.lists(st.integers(1, 3 * CHUNK), min_size=1, max_size=3),
    power=st.integers(1, 5),
    scale=st.integers(-40, 20),
)
@settings(max_examples=60, deadline=None)
def test_what_is_sent_and_how_wrong_it_is(
    seed: int, k: int, sizes: list[int], power: int, scale: int
) -> None:
    layout = Layout.of((f"t{i}", (size,)) for i, size in enumerate(sizes))
    random = np.random.default_rng(seed)
    vector = (random.standard_normal(layout.parameters) ** power * 2.0**scale).astype(np.float32)
    chosen = Sparse(k)
    payload = chosen.encode(layout, vector)
    chosen.check(layout, payload)
    decoded = vector_of(chosen, layout, payload)
    assert chosen.encode(layout, decoded) == payload
    for tensor in layout.tensors:
        x = vector[tensor.offset : tensor.offset + tensor.size].astype(np.float64)
        y = decoded[tensor.offset : tensor.offset + tensor.size].astype(np.float64)
        if tensor.size < CHUNK:
            assert np.abs(x - y).max() <= min(np.abs(x).max(), 65504) / 200 + 2.0**-24 + max(
                np.abs(x).max() - 65504, 0
            )
            continue
        kept = []
        for start in range(0, tensor.size, CHUNK):
            a, b = np.abs(x[start : start + CHUNK]), y[start : start + CHUNK]
            count = -(-k * len(a) // CHUNK)
            largest = np.sort(np.argsort(-a, kind="stable")[:count])
            rest = np.delete(b, largest)
            if a[largest].min() >= 2.0**-24:
                assert not rest.any()  # nothing but the largest is sent
            kept.append(x[start : start + CHUNK][largest])
        sent = np.minimum(np.abs(np.concatenate(kept)), 65504)
        if sent.max() < 65504 and sent.min() > 2.0**-13:
            one_mean = np.sum((sent - sent.mean()) ** 2)
            unsent = np.sum(x**2) - np.sum(np.concatenate(kept) ** 2)
            # fp16 means are off by 2^-11 at most; sums of squares round.
            slack = 2.0**-20 * np.sum(sent**2) + 1e-9 * np.sum(x**2)
            assert np.sum((x - y) ** 2) <= unsent + one_mean + slack


def test_two_means_cost_half_of_what_one_costs() -> None:
    layout = Layout.of([("a", (64, CHUNK))])
    vector = np.random.default_rng(1).standard_normal(layout.parameters).astype(np.float32)
    sent = codec("sparse", 64).select(layout, vector).values.astype(np.float64)
    entries = codec("sparse", 64).decode(layout, codec("sparse", 64).encode(layout, vector))
    error = np.mean((vector[entries.positions] - entries.values) ** 2)
    assert error < 0.5 * np.mean((np.abs(sent) - np.abs(sent).mean()) ** 2)


@pytest.mark.parametrize(("k", "most"), [(64, 0.16), (128, 0.28)])
def test_bits_per_parameter(k: int, most: float) -> None:
    layout = Layout.of([("a", (256, CHUNK))])
    vector = np.random.default_rng(2).standard_normal(layout.parameters).astype(np.float32)
    payload = Sparse(k).encode(layout, vector)
    assert 8 * len(payload) / layout.parameters < Sparse(k).bits_per_parameter(layout) <= most
    if k == 64:
        assert 8 * len(payload) / layout.parameters < 0.15


@pytest.mark.parametrize("k", [*range(1, 70), 100, 128, 200, 256, 500, 1024, 2048])
def test_rice_parameter_is_the_best(k: int) -> None:
    one = Sparse(k)
    payload = one.encode(ONE, np.zeros(CHUNK, np.float32))
    # All gaps are zero, so the quotients have one bit for each entry.
    bits = 8 * (len(payload) - 4 - -(-k // 4) - -(-k // 8))
    assert bits - 7 <= k * golden_ratio_bits(k) <= bits


def test_largest_magnitudes_of_equal_ones_the_first() -> None:
    vector = np.zeros(CHUNK, np.float32)
    vector[[5, 9, 70, 4000]] = [-1, 1, -1, 1]
    vector[3000] = 2
    positions = Sparse(3).decode(ONE, Sparse(3).encode(ONE, vector)).positions
    assert positions.tolist() == [5, 9, 3000]


def test_entries_are_what_was_sent() -> None:
    vector = numbers(3, LARGE.parameters)
    vector[: 2 * CHUNK] = 0  # a group
    vector[[7, 100]] = [2, -3]
    chosen = codec("sparse", 8)
    payload = chosen.encode(LARGE, vector)
    entries = chosen.decode(LARGE, payload)
    assert entries.positions.dtype == np.int64
    assert entries.values.dtype == np.float32
    assert (np.diff(entries.positions) > 0).all()
    dense = np.zeros(LARGE.parameters, np.float32)
    dense[entries.positions] = entries.values
    assert np.array_equal(dense, vector_of(chosen, LARGE, payload))
    # A small tensor is sent whole, zeros included; what only fills a quota is no entry.
    small = LARGE.tensors[1]
    inside = (entries.positions >= small.offset) & (entries.positions < small.offset + small.size)
    assert inside.sum() == small.size
    assert not np.isin([0, 1, 2, 3, 4, 5], entries.positions).any()
    assert np.count_nonzero(entries.values[~inside]) == (~inside).sum()


@changes
@pytest.mark.parametrize("k", [8, 64, 1024])
def test_selection_on_a_device_is_the_same(k: int, change: Callable[[Vector], Vector]) -> None:
    vector = change(numbers(k + 1, LARGE.parameters))
    selection = gpu.select(LARGE, vector, k, "cpu")
    chosen = Sparse(k)
    expected = chosen.select(LARGE, vector)
    for name in ("positions", "values", "small"):
        ours, theirs = getattr(selection, name), getattr(expected, name)
        assert ours.dtype == theirs.dtype
        assert np.array_equal(ours, theirs)
    assert chosen.pack(LARGE, selection) == chosen.encode(LARGE, vector)


def test_selection_on_a_device_refuses_what_does_not_fit() -> None:
    with pytest.raises(CheckFailed):
        gpu.select(LARGE, np.zeros(LARGE.parameters), 8, "cpu")
    with pytest.raises(CheckFailed):
        gpu.select(LARGE, np.zeros(3, np.float32), 8, "cpu")
    vector = np.zeros(LARGE.parameters, np.float32)
    for at in (3, 2 * CHUNK + 1):  # in a chunk, in a small tensor
        vector[at] = np.nan
        with pytest.raises(CheckFailed, match="NaN"):
            Sparse(8).pack(LARGE, gpu.select(LARGE, vector, 8, "cpu"))
        vector[at] = 0
    with pytest.raises(CheckFailed, match="another k"):
        Sparse(9).pack(LARGE, gpu.select(LARGE, vector, 8, "cpu"))


def test_a_run_on_a_device_encodes_there_and_gives_the_same_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """There is no GPU to test with: the device is named, and the processor stands in for it."""
    asked = []

    def stand_in(layout: Layout, vector: Vector, top_k: int, where: str) -> Selection:
        asked.append(where)
        return selecting(layout, vector, top_k, "cpu")

    selecting = gpu.select
    monkeypatch.setattr(gpu, "select", stand_in)
    exchange = ExchangeSection(codec="sparse", top_k=64)
    vector = numbers(5, LARGE.parameters)
    assert of(exchange, "cuda").encode(LARGE, vector) == of(exchange).encode(LARGE, vector)
    assert asked == ["cuda"]
    assert of(ExchangeSection(codec="int4"), "cuda") is of(ExchangeSection(codec="int4"))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU here")
def test_selection_on_a_gpu_is_the_same() -> None:
    vector = numbers(6, LARGE.parameters)
    assert Sparse(64, "cuda").encode(LARGE, vector) == Sparse(64).encode(LARGE, vector)


# --- what the decoder refuses ---------------------------------------------------------------------


def chunk_payload(
    means: tuple[float, float], entries: list[tuple[int, int]], *, k: int = 512
) -> bytearray:
    """One chunk with the given (gap, mark) entries, at k = 512: b = 2."""
    assert len(entries) == k
    payload = np.array(means, "<f2").tobytes()
    streams = (
        "".join(f"{mark & 1}{mark >> 1}" for _, mark in entries),
        "".join(f"{gap & 1}{gap >> 1 & 1}" for gap, _ in entries),
        "".join("0" * (gap >> 2) + "1" for gap, _ in entries),
    )
    for stream in streams:
        padded = stream + "0" * (-len(stream) % 8)
        payload += bytes(int(padded[i : i + 8][::-1], 2) for i in range(0, len(padded), 8))
    return bytearray(payload)


REST = [(1, 0)] * 510


@pytest.mark.parametrize(
    ("means", "first", "reason"),
    [
        ((2, 1), [(0, 0), (0, 2)], "low mean above"),
        ((-1, 1), [(0, 0), (0, 2)], "negative"),
        ((-0.0, 1), [(0, 0), (0, 2)], "negative"),
        ((1, 2), [(0, 0), (0, 0)], "do not fit"),
        ((1, 1), [(0, 0), (0, 2)], "do not fit"),
        ((0, 1), [(0, 2), (0, 1)], "zero"),  # a sign
        ((0, 1), [(0, 2), (1, 0)], "zero"),  # position 1 is free
        ((1, 2), [(4096 - 1021, 0), (0, 2)], "outside"),
        ((1, 2), [(100_000, 0), (0, 2)], "bytes"),
    ],
)
def test_wrong_entries(
    means: tuple[float, float], first: list[tuple[int, int]], reason: str
) -> None:
    payload = chunk_payload(means, first + REST)
    for accept in (Sparse(512).decode, Sparse(512).check):
        with pytest.raises(DecodeError, match=reason):
            accept(ONE, payload)


def test_entries_at_the_ends_of_a_chunk_are_right() -> None:
    last = 4096 - 2 - 2 * 510
    payload = chunk_payload((1, 2), [(0, 1), (last, 2), *REST])
    decoded = vector_of(Sparse(512), ONE, payload)
    assert decoded[0] == -1
    assert decoded[-1] == 1
    assert Sparse(512).encode(ONE, decoded) == payload


@pytest.mark.parametrize("mean", [np.inf, np.nan, -np.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_means_that_are_not_finite(mean: float, which: int) -> None:
    means = [1.0, 2.0]
    means[which] = mean
    payload = chunk_payload((means[0], means[1]), [(0, 0), (0, 2), *REST])
    with pytest.raises(NonFinite):
        Sparse(512).check(ONE, payload)


def test_zeros_may_only_fill_the_front() -> None:
    entries = [(0, 0), (0, 2), (0, 0), *[(0, 0)] * 508, (7, 2)]
    payload = chunk_payload((0, 1), entries)
    decoded = vector_of(Sparse(512), ONE, payload)
    assert np.flatnonzero(decoded).tolist() == [1, 518]
    assert Sparse(512).encode(ONE, decoded) == payload
    with pytest.raises(DecodeError, match="zero"):
        Sparse(512).check(ONE, chunk_payload((0, 1), [*entries[:-2], (7, 2), (0, 0)]))


@pytest.mark.parametrize("k", [5, 7])
def test_padding_is_zero(k: int) -> None:
    chosen = Sparse(k)
    payload = chosen.encode(ONE, numbers(9, CHUNK))
    b = golden_ratio_bits(k)
    ends = [(4, 2 * k), (4 + -(-2 * k // 8), b * k)]
    for at, bits in ends:
        if bits % 8:
            damaged = bytearray(payload)
            damaged[at + bits // 8] |= 0x80
            with pytest.raises(DecodeError, match="padding"):
                chosen.check(ONE, damaged)
    damaged = bytearray(payload)
    damaged[-1] |= 0x80
    if damaged != payload:
        with pytest.raises(DecodeError, match="goes on"):
            chosen.check(ONE, damaged)
    with pytest.raises(DecodeError, match=r"goes on|bytes"):
        chosen.check(ONE, payload + b"\0")


@given(noise=st.binary(max_size=400))
@settings(max_examples=200, deadline=None)
def test_noise_raises_decode_errors_only(noise: bytes) -> None:
    for k in (8, 64):
        chosen = Sparse(k)
        limit = chosen.payload_bytes(ONE)
        for payload in (noise, (noise * limit)[:limit], (noise * limit)[: limit - 3]):
            try:
                decoded = vector_of(chosen, ONE, payload)
            except DecodeError:
                continue
            assert chosen.encode(ONE, decoded) == payload


@pytest.mark.parametrize("k", [8, 64, 512])
def test_damaged_payloads_are_refused_or_mean_something(k: int) -> None:
    """Bit flips, cuts and insertions: a DecodeError, or another vector's one encoding."""
    random = np.random.default_rng(k)
    chosen, accepted = Sparse(k), 0
    vector = few(numbers(1, LARGE.parameters))
    vector[CHUNK:] = numbers(2, LARGE.parameters)[CHUNK:]
    payload = chosen.encode(LARGE, vector)
    tracemalloc.start()
    try:
        for _ in range(600):
            damaged = bytearray(payload)
            for _ in range(random.integers(1, 4)):
                at = int(random.integers(len(damaged)))
                match random.integers(4):
                    case 0 | 1:
                        damaged[at] ^= 1 << int(random.integers(8))
                    case 2:
                        del damaged[at : at + int(random.integers(1, 9))]
                    case _:
                        damaged[at:at] = random.bytes(int(random.integers(1, 9)))
            try:
                decoded = vector_of(chosen, LARGE, damaged)
            except DecodeError as error:
                with pytest.raises(type(error)):
                    chosen.check(LARGE, damaged)
                continue
            accepted += 1
            assert np.isfinite(decoded).all()
            assert chosen.encode(LARGE, decoded) == damaged
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert accepted > 20
    assert peak < 4 << 20


# --- names ----------------------------------------------------------------------------------------


def test_top_k_comes_from_the_manifest() -> None:
    chosen = of(ExchangeSection(codec="sparse", top_k=64))
    assert isinstance(chosen, Sparse)
    assert chosen.top_k == 64
    assert chosen.sparse
    assert not of(ExchangeSection()).sparse
    assert codec("sparse").payload_bytes(LAYOUT) == codec("sparse", 128).payload_bytes(LAYOUT)


@pytest.mark.parametrize("k", [0, -1, 4097])
def test_impossible_top_k(k: int) -> None:
    with pytest.raises(CheckFailed):
        codec("sparse", k)


def test_importing_codecs_costs_nothing() -> None:
    """Commands that move no contribution must not wait for the compiler's import."""
    script = (
        "import sys, artel.protocol.exchange.codec; print({'numba', 'torch'} & set(sys.modules))"
    )
    assert subprocess.check_output([sys.executable, "-c", script], text=True) == "set()\n"


def bits_of(payload: bytes) -> npt.NDArray[np.uint8]:
    return np.unpackbits(np.frombuffer(payload, np.uint8), bitorder="little")


def test_encoding_does_not_depend_on_what_came_before() -> None:
    """The guess from the chunk before must change nothing but the time."""
    vector = numbers(4, 3 * CHUNK)
    vector[CHUNK : 2 * CHUNK] *= np.float32(1000)
    layout = Layout.of([(name, (CHUNK,)) for name in "abc"])
    together = bits_of(Sparse(64).encode(layout, vector))
    for i in range(3):
        alone = bits_of(Sparse(64).encode(ONE, vector[i * CHUNK : (i + 1) * CHUNK]))
        marks = slice(32, 32 + 128)
        assert np.array_equal(alone[marks], together[96 + 128 * i : 96 + 128 * (i + 1)])
        assert np.array_equal(alone[:32], together[32 * i : 32 * (i + 1)])
