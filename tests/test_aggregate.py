"""Aggregation: the right mean, the same bits in any order, and attackers bounded."""

from __future__ import annotations

import hashlib
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protocol.aggregate import Contribution, aggregate, norm_of
from protocol.errors import CheckFailed
from protocol.state import Layout, Vector

LAYOUT = Layout.of([("matrix", (40, 70)), ("vector", (33,)), ("scalar", ())])


def numbers(seed: int, count: int) -> Vector:
    """Values from SHA-256 in counter mode: the same on every machine."""
    blocks = (hashlib.sha256(b"%d %d" % (seed, i)).digest() for i in range(-(-count * 4 // 32)))
    words = np.frombuffer(b"".join(blocks), "<i4")[:count]
    return words.astype(np.float32) * np.float32(2**-40)


def contributions(weights: list[int]) -> list[Contribution]:
    return [
        Contribution(f"peer-{i}", weight, numbers(i, LAYOUT.parameters) * np.float32(1 + i))
        for i, weight in enumerate(weights)
    ]


def reference(layout: Layout, given: list[Contribution]) -> list[float]:
    """The documented rule in exact rationals (the norms in float64), slowly."""
    total = sum(c.weight for c in given)
    result: list[float] = []
    for tensor in layout.tensors:
        parts = [
            [Fraction(float(x)) for x in c.load(layout)[tensor.offset :][: tensor.size]]
            for c in given
        ]
        norms = [math.sqrt(sum(x * x for x in part)) for part in parts]
        median = float(np.median(norms))
        clips = [Fraction(min(1.0, median / n) if n else 1.0) for n in norms]
        for column in zip(*parts, strict=True):
            terms = zip(column, clips, given, strict=True)
            result.append(float(sum(x * k * c.weight for x, k, c in terms) / total))
    return result


@pytest.mark.parametrize("weights", [[5], [1, 1], [3, 1, 2], [100, 1, 7, 7], [1, 2, 3, 4, 5]])
def test_equals_the_exact_rule(weights: list[int]) -> None:
    given = contributions(weights)
    expected = np.array(reference(LAYOUT, given))
    update = aggregate(LAYOUT, given)
    assert update.dtype == np.float32
    scale = max(float(np.abs(c.load(LAYOUT)).max()) for c in given)
    assert np.abs(update - expected).max() < 1e-6 * scale


def test_one_contribution_passes_unchanged() -> None:
    (only,) = contributions([12345])
    assert np.array_equal(aggregate(LAYOUT, [only]), only.load(LAYOUT))


@given(order=st.permutations(range(5)))
@settings(max_examples=30, deadline=None)
def test_input_order_does_not_change_a_bit(order: list[int]) -> None:
    given = contributions([3, 1, 4, 1, 5])
    update = aggregate(LAYOUT, (given[i] for i in order))
    assert update.tobytes() == aggregate(LAYOUT, given).tobytes()


def test_lazy_contributions_give_the_same_bits_one_vector_at_a_time() -> None:
    given = contributions([3, 1, 4])
    calls: list[str] = []

    def lazy(c: Contribution) -> Contribution:
        def load() -> Vector:
            calls.append(c.peer_id)
            return c.load(LAYOUT).copy()

        return Contribution(c.peer_id, c.weight, load)

    update = aggregate(LAYOUT, [lazy(c) for c in reversed(given)])
    assert update.tobytes() == aggregate(LAYOUT, given).tobytes()
    assert calls == ["peer-0", "peer-1", "peer-2"] * 2


def test_inputs_stay_as_they_are() -> None:
    given = contributions([1, 2, 3])
    before = [c.load(LAYOUT).copy() for c in given]
    aggregate(LAYOUT, given)
    for c, old in zip(given, before, strict=True):
        assert np.array_equal(c.load(LAYOUT), old)


@pytest.mark.parametrize("factor", [1000.0, -1000.0, 1e30])
def test_attacker_times_a_thousand_moves_no_more_than_an_honest_node(factor: float) -> None:
    honest = [Contribution(f"h{i}", 1, numbers(i, LAYOUT.parameters)) for i in range(4)]
    attack = Contribution("attacker", 1, numbers(9, LAYOUT.parameters) * np.float32(factor))
    plain = aggregate(LAYOUT, honest)
    moved = aggregate(LAYOUT, [*honest, attack])
    for tensor in LAYOUT.tensors:
        part = slice(tensor.offset, tensor.offset + tensor.size)
        largest = max(norm_of(c.load(LAYOUT)[part]) for c in honest)
        assert norm_of(moved[part]) <= largest * (1 + 1e-5)
        assert norm_of(moved[part] - plain[part]) <= 2 * largest / 5 * (1 + 1e-5)


def test_clip_is_per_tensor() -> None:
    honest = [Contribution(f"h{i}", 1, numbers(i, LAYOUT.parameters)) for i in range(3)]
    vector = numbers(9, LAYOUT.parameters)
    spiked = vector.copy()
    spiked[2800:2833] *= np.float32(1e6)  # the tensor "vector"
    update = aggregate(LAYOUT, [*honest, Contribution("x", 1, vector)])
    attacked = aggregate(LAYOUT, [*honest, Contribution("x", 1, spiked)])
    assert np.array_equal(update[:2800], attacked[:2800])
    assert np.array_equal(update[2833:], attacked[2833:])
    assert np.abs(update - attacked).max() < np.abs(vector).max()


def test_even_number_of_contributions_clips_to_the_mean_of_the_middle_norms() -> None:
    layout = Layout.of([("a", ())])
    given = [
        Contribution(str(i), 1, np.array([x], np.float32)) for i, x in enumerate([1, 2, 4, 100])
    ]
    assert aggregate(layout, given)[0] == np.float32((1 + 2 + 3 + 3) / 4)


def test_all_zero_contributions_give_a_zero_update() -> None:
    zero = np.zeros(LAYOUT.parameters, np.float32)
    given = [Contribution(f"p{i}", 1, zero) for i in range(3)]
    assert not aggregate(LAYOUT, given).any()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("at", [0, 2815, -1])
def test_non_finite_contribution_is_refused_and_named(bad: float, at: int) -> None:
    given = contributions([1, 1, 1])
    given[1].load(LAYOUT)[at] = bad
    with pytest.raises(CheckFailed, match="peer-1"):
        aggregate(LAYOUT, given)


def test_largest_floats_do_not_overflow_the_norm() -> None:
    huge = np.full(LAYOUT.parameters, np.finfo(np.float32).max, np.float32)
    given = [Contribution("a", 1, huge), Contribution("b", 1, huge)]
    assert np.array_equal(aggregate(LAYOUT, given), huge)


def test_wrong_use_is_refused() -> None:
    good = contributions([1, 1])
    vector = numbers(1, LAYOUT.parameters)
    for wrong in (
        [],
        [good[0], good[0]],
        [Contribution("a", 0, vector)],
        [Contribution("a", -1, vector)],
        [Contribution("a", True, vector)],
        [Contribution("a", 1, vector[1:])],
        [Contribution("a", 1, vector.astype(np.float64))],
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
    assert (
        hashlib.sha256(update.astype("<f4").tobytes()).hexdigest()
        == "f81de5b414781713eaf23d298050cac719c590a9681b7a395d0d5e4101b94dd4"
    )
