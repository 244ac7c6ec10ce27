"""Aggregation: the right mean, the same bits in any order, and attackers bounded."""

from __future__ import annotations

import math
import tracemalloc
from fractions import Fraction
from statistics import median, median_low
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregate_world import LAYOUT, contributions, fingerprint, largest, numbers
from artel.protocol.errors import CheckFailed
from artel.protocol.exchange.aggregation import APART, Method, Weighted, aggregate, norm_of, weights
from artel.protocol.exchange.codec import Elements
from artel.protocol.exchange.kernels import add_scaled, dense_dots
from artel.protocol.state import Layout, Vector


def vector_of(contribution: Weighted) -> Vector:
    vector = contribution.load(LAYOUT)
    assert isinstance(vector, np.ndarray)
    return vector


def reference(layout: Layout, given: list[Weighted]) -> list[float]:
    """The documented rule in exact rationals (the norms in float64), slowly."""
    weight = weights([c.weight for c in given])
    total = sum(weight)
    result: list[float] = []
    for tensor in layout.tensors:
        parts = [
            [Fraction(float(x)) for x in vector_of(c)[tensor.offset :][: tensor.size]]
            for c in given
        ]
        norms = [math.sqrt(sum(x * x for x in part)) for part in parts]
        middle = min(median(norms), 4 * median_low(norms))
        clips = [Fraction(min(1.0, middle / n) if n else 1.0) for n in norms]
        for column in zip(*parts, strict=True):
            terms = zip(column, clips, weight, strict=True)
            result.append(float(sum(x * k * w for x, k, w in terms) / total))
    return result


@pytest.mark.parametrize("tokens", [[5], [1, 1], [3, 1, 2], [100, 1, 7, 7], [1, 2, 3, 4, 5]])
def test_equals_the_exact_rule(tokens: list[int]) -> None:
    given = contributions(tokens)
    expected = np.array(reference(LAYOUT, given))
    update = aggregate(LAYOUT, given)
    assert update.dtype == np.float32
    scale = max(float(np.abs(vector_of(c)).max()) for c in given)
    assert np.abs(update - expected).max() < 1e-6 * scale


def test_one_contribution_passes_unchanged() -> None:
    (only,) = contributions([12345])
    assert np.array_equal(aggregate(LAYOUT, [only]), vector_of(only))


@given(order=st.permutations(range(5)))
@settings(max_examples=30, deadline=None)
def test_input_order_does_not_change_a_bit(order: list[int]) -> None:
    given = contributions([3, 1, 4, 1, 5])
    update = aggregate(LAYOUT, (given[i] for i in order))
    assert update.tobytes() == aggregate(LAYOUT, given).tobytes()


def test_lazy_contributions_give_the_same_bits_one_vector_at_a_time() -> None:
    given = contributions([3, 1, 4])
    calls: list[str] = []

    def lazy(c: Weighted) -> Weighted:
        def load() -> Vector:
            calls.append(c.peer_id)
            return vector_of(c).copy()

        return Weighted(c.peer_id, c.weight, load)

    update = aggregate(LAYOUT, [lazy(c) for c in reversed(given)])
    assert update.tobytes() == aggregate(LAYOUT, given).tobytes()
    assert calls == ["peer-0", "peer-1", "peer-2"] * 2


def test_inputs_stay_as_they_are() -> None:
    given = contributions([1, 2, 3])
    before = [vector_of(c).copy() for c in given]
    aggregate(LAYOUT, given)
    for c, old in zip(given, before, strict=True):
        assert np.array_equal(vector_of(c), old)


@pytest.mark.parametrize("factor", [1000.0, -1000.0, 1e30])
def test_attacker_times_a_thousand_moves_no_more_than_an_honest_node(factor: float) -> None:
    honest = [Weighted(f"h{i}", 1, numbers(i, LAYOUT.parameters)) for i in range(4)]
    attack = Weighted("attacker", 1, numbers(9, LAYOUT.parameters) * np.float32(factor))
    plain = aggregate(LAYOUT, honest)
    moved = aggregate(LAYOUT, [*honest, attack])
    for tensor in LAYOUT.tensors:
        part = slice(tensor.offset, tensor.offset + tensor.size)
        largest = max(norm_of(vector_of(c)[part]) for c in honest)
        assert norm_of(moved[part]) <= largest * (1 + 1e-5)
        assert norm_of(moved[part] - plain[part]) <= 2 * largest / 5 * (1 + 1e-5)


def test_clip_is_per_tensor() -> None:
    honest = [Weighted(f"h{i}", 1, numbers(i, LAYOUT.parameters)) for i in range(3)]
    vector = numbers(9, LAYOUT.parameters)
    spiked = vector.copy()
    spiked[2800:2833] *= np.float32(1e6)  # the tensor "vector"
    update = aggregate(LAYOUT, [*honest, Weighted("x", 1, vector)])
    attacked = aggregate(LAYOUT, [*honest, Weighted("x", 1, spiked)])
    assert np.array_equal(update[:2800], attacked[:2800])
    assert np.array_equal(update[2833:], attacked[2833:])
    assert np.abs(update - attacked).max() < np.abs(vector).max()


@pytest.mark.parametrize(
    ("norms", "clipped"),
    [([1, 2, 4, 100], [1, 2, 3, 3]), ([1, 100], [1, 4]), ([1, 1, 100, 100], [1, 1, 4, 4])],
)
def test_even_number_of_contributions_clips_to_at_most_four_times_the_lower_of_the_middle_norms(
    norms: list[int], clipped: list[int]
) -> None:
    layout = Layout.of([("a", ())])
    given = [Weighted(str(i), 1, np.array([x], np.float32)) for i, x in enumerate(norms)]
    assert aggregate(layout, given)[0] == np.float32(sum(clipped) / len(clipped))


@pytest.mark.parametrize("method", ["mean", "centered_clip"])
@pytest.mark.parametrize("nodes", [2, 4, 8])
def test_half_of_all_times_a_thousand_stay_bounded(nodes: int, method: Method) -> None:
    vectors = [numbers(i, LAYOUT.parameters) for i in range(nodes)]
    for vector in vectors[: nodes // 2]:
        vector *= np.float32(-1000)
    given = [Weighted(f"p{i}", 1, vector) for i, vector in enumerate(vectors)]
    update = aggregate(LAYOUT, given, method=method)
    for tensor in LAYOUT.tensors:
        part = slice(tensor.offset, tensor.offset + tensor.size)
        largest = max(norm_of(vector[part]) for vector in vectors[nodes // 2 :])
        assert norm_of(update[part]) <= (1 + APART) / 2 * largest * (1 + 1e-5)


def test_all_zero_contributions_give_a_zero_update() -> None:
    zero = np.zeros(LAYOUT.parameters, np.float32)
    given = [Weighted(f"p{i}", 1, zero) for i in range(3)]
    assert not aggregate(LAYOUT, given).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 2815, -1])
def test_non_finite_contribution_is_refused_and_named(bad: float, at: int) -> None:
    given = contributions([1, 1, 1])
    vector_of(given[1])[at] = bad
    with pytest.raises(CheckFailed, match="peer-1"):
        aggregate(LAYOUT, given)


def test_largest_floats_do_not_overflow_the_norm() -> None:
    huge = np.full(LAYOUT.parameters, np.finfo(np.float32).max, np.float32)
    given = [Weighted("a", 1, huge), Weighted("b", 1, huge)]
    assert np.array_equal(aggregate(LAYOUT, given), huge)


def test_wrong_use_is_refused() -> None:
    good = contributions([1, 1])
    vector = numbers(1, LAYOUT.parameters)
    for wrong in (
        [],
        [good[0], good[0]],
        [Weighted("a", 0, vector)],
        [Weighted("a", -1, vector)],
        [Weighted("a", True, vector)],
        [Weighted("a", 1, vector[1:])],
        [Weighted("a", 1, vector.astype(np.float64))],
    ):
        with pytest.raises(CheckFailed):
            aggregate(LAYOUT, wrong)


@pytest.mark.parametrize("count", [1, 7, 1023, 1024, 1025, 5000, (1 << 18) + 3000])
def test_norm_is_the_norm(count: int) -> None:
    values = numbers(2, count)
    exact = math.sqrt(math.fsum(float(x) ** 2 for x in values))
    assert math.isclose(norm_of(values), exact, rel_tol=1e-13)


def test_golden_norm_and_update() -> None:
    """These bits are the protocol: a change here makes the state roots of versions differ."""
    assert norm_of(numbers(2, 300_000)).hex() == "0x1.3c39e0dbe5980p-1"
    update = aggregate(LAYOUT, contributions([3, 1, 4, 1, 5]))
    assert fingerprint(update) == "f81de5b414781713eaf23d298050cac719c590a9681b7a395d0d5e4101b94dd4"


def lanes_of(a: Vector, b: Vector) -> float:
    """The documented order of additions, in plain Python."""
    lanes = [0.0] * 1024
    for i, (x, y) in enumerate(zip(a.tolist(), b.tolist(), strict=True)):
        lanes[i % 1024] += x * y
    while len(lanes) > 1:
        half = len(lanes) // 2
        lanes = [x + y for x, y in zip(lanes[:half], lanes[half:], strict=True)]
    return lanes[0]


def test_dot_products_add_in_the_documented_order() -> None:
    sizes = [1, 5000, 1023, 1024, 33, 2048]
    offsets = np.cumsum([0, *sizes]).astype(np.int64)
    a, b = numbers("a", sum(sizes)), numbers("b", sum(sizes))
    out = np.empty(len(sizes))
    dense_dots(a, b, offsets, out)
    for got, start, stop in zip(out.tolist(), offsets, offsets[1:], strict=False):
        assert got == lanes_of(a[start:stop], b[start:stop])


def test_every_operation_is_rounded_alone() -> None:
    """A product and a sum are each the nearest fp32: nothing is fused, nothing is reordered."""
    x, y = numbers("x", 3000), numbers("y", 3000)
    offsets = np.array([0, 1000, 3000], np.int64)
    scale = np.array([1 / 3, -0.7], np.float32)
    out = np.empty_like(x)
    add_scaled(out, x, offsets, scale, True)
    each = np.repeat(scale, [1000, 2000])
    first = np.array([np.float32(float(k) * float(v)) for k, v in zip(each, x, strict=True)])
    assert np.array_equal(out, first)
    add_scaled(out, y, offsets, scale, False)
    second = [np.float32(float(k) * float(v)) for k, v in zip(each, y, strict=True)]
    sums = [np.float32(float(p) + float(q)) for p, q in zip(first, second, strict=True)]
    assert np.array_equal(out, np.array(sums))


def test_a_sum_never_becomes_minus_zero() -> None:
    layout = Layout.of([("a", (2,))])
    update = aggregate(layout, [Weighted("a", 1, np.array([-0.0, 1], np.float32))])
    assert not np.signbit(update[0])


def test_weights_are_clipped_to_a_quarter_and_twice_the_lower_median() -> None:
    assert weights([1000]) == [1000]
    assert weights([100, 1000]) == [100, 200]
    assert weights([10, 400, 401, 10_000]) == [100, 400, 401, 800]
    assert weights([1, 6, 7, 8, 9]) == [2, 6, 7, 8, 9]  # a quarter of 7 is rounded up
    assert weights([2**60, 2**60, 1]) == [2**60, 2**60, 2**58]


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=12))
def test_weights_of_weights_are_the_same(tokens: list[int]) -> None:
    weight = weights(tokens)
    assert weights(weight) == weight
    assert max(weight) <= 8 * min(weight)
    for one, other in zip(sorted(zip(tokens, weight, strict=True)), sorted(weight), strict=True):
        assert one[1] == other  # who trained more never weighs less


def test_claiming_more_tokens_gains_little() -> None:
    honest = [Weighted(f"h{i}", 1000, numbers(i, LAYOUT.parameters)) for i in range(3)]
    vector = numbers(9, LAYOUT.parameters)
    twice = aggregate(LAYOUT, [*honest, Weighted("x", 2000, vector)])
    claimed = aggregate(LAYOUT, [*honest, Weighted("x", 10**12, vector)])
    assert np.array_equal(twice, claimed)


def test_weights_refuse_what_is_no_count() -> None:
    wrong: Any
    for wrong in ([], [0], [5, -1], [True], [2, 1.0]):
        with pytest.raises(CheckFailed):
            weights(wrong)


@pytest.mark.parametrize("sparse", [False, True])
def test_memory_stays_flat_however_many_contribute(sparse: bool) -> None:
    """One contribution and the update (sparse: and the mass), not all of them."""
    layout = Layout.of([("a", (1 << 18,))])
    vector = numbers(1, layout.parameters)

    def peak(count: int) -> int:
        def fresh() -> Vector | Elements:
            return largest(vector) if sparse else vector.copy()

        given = [Weighted(f"{i:02}", 1, fresh) for i in range(count)]
        tracemalloc.start()
        aggregate(layout, given, floor=0.25)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    peak(2)
    assert peak(8) < peak(2) + (1 << 18)
    if not sparse:
        assert peak(8) < 2.1 * 4 * layout.parameters
