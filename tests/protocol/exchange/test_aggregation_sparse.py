"""Aggregation of sparse contributions: the mean over those who sent, and nobody alone decides."""

from __future__ import annotations

import math
from fractions import Fraction
from statistics import median, median_low

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregate_world import LAYOUT, dense, fingerprint, largest, numbers
from artel.protocol.errors import CheckFailed
from artel.protocol.exchange.aggregation import Method, Weighted, _exact, aggregate, weights
from artel.protocol.exchange.codec import Elements
from artel.protocol.exchange.kernels import dense_dots, sparse_dots
from artel.protocol.state import Layout, Vector

N = LAYOUT.parameters
METHODS: tuple[Method, ...] = ("mean", "centered_clip")


def sent(seed: int, part: float = 0.3) -> Elements:
    return largest(numbers(seed, N) * np.float32(1 + seed), part)


def sparse(tokens: list[int], part: float = 0.3) -> list[Weighted]:
    return [Weighted(f"peer-{i}", t, sent(i, part)) for i, t in enumerate(tokens)]


def entries_of(contribution: Weighted) -> Elements:
    loaded = contribution.load(LAYOUT)
    assert isinstance(loaded, Elements)
    return loaded


def at(position: int, value: float) -> Elements:
    return Elements(np.array([position], np.int64), np.array([value], np.float32))


def reference(given: list[Weighted], floor: float) -> Vector:
    """The documented rule in exact rationals (the norms in float64), slowly."""
    weight = weights([c.weight for c in given])
    shares = [Fraction(w, sum(weight)) for w in weight]
    least = max(Fraction(floor), min(Fraction(1), Fraction(2, len(given))))
    vectors = [dense(entries_of(c), N) for c in given]
    result = np.zeros(N, np.float32)
    for tensor in LAYOUT.tensors:
        inside = slice(tensor.offset, tensor.offset + tensor.size)
        norms = [math.sqrt(sum(float(x) ** 2 for x in v[inside])) for v in vectors]
        middle = min(median(norms), 4 * median_low(norms))
        clips = [Fraction(min(1.0, middle / n) if n else 1.0) for n in norms]
        for p in range(inside.start, inside.stop):
            who = [i for i in range(len(given)) if p in entries_of(given[i]).positions]
            total = sum(shares[i] * clips[i] * Fraction(float(vectors[i][p])) for i in who)
            mass = sum((shares[i] for i in who), Fraction(0))
            alone = min(Fraction(1), 2 * mass) if len(who) == 1 else Fraction(0)
            result[p] = float(total / max(mass, least, alone))
    return result


@pytest.mark.parametrize("tokens", [[5], [1, 1], [3, 1, 2], [100, 1, 7, 7], [9] * 9])
@pytest.mark.parametrize("floor", [0.05, 0.25, 1.0])
def test_equals_the_exact_rule(tokens: list[int], floor: float) -> None:
    given = sparse(tokens)
    expected = reference(given, floor)
    update = aggregate(LAYOUT, given, floor=floor)
    assert np.abs(update - expected).max() <= 2e-6 * np.abs(expected).max()


@pytest.mark.parametrize("method", METHODS)
def test_with_a_floor_of_one_it_is_the_mean_of_the_dense_vectors_to_the_bit(
    method: Method,
) -> None:
    given = sparse([3, 1, 4, 1, 5])
    filled = [Weighted(c.peer_id, c.weight, dense(entries_of(c), N)) for c in given]
    update = aggregate(LAYOUT, given, method=method, floor=1.0)
    assert update.tobytes() == aggregate(LAYOUT, filled, method=method).tobytes()


@pytest.mark.parametrize("method", METHODS)
def test_where_everybody_sends_everything_the_floor_does_nothing(method: Method) -> None:
    """The mean over all is divided by exactly 1, whatever the shares."""
    tokens = [3, 1, 4, 1, 5, 9, 2]
    every = [
        Weighted(f"p{i}", t, Elements(np.arange(N, dtype=np.int64), numbers(i, N)))
        for i, t in enumerate(tokens)
    ]
    plain = aggregate(LAYOUT, every, method=method, floor=1.0)
    assert aggregate(LAYOUT, every, method=method, floor=0.01).tobytes() == plain.tobytes()


@given(st.integers(2, 12), st.floats(0.01, 1), st.data())
@settings(max_examples=80, deadline=None)
def test_nobody_alone_owns_an_element(count: int, floor: float, data: st.DataObject) -> None:
    """At most half of what one peer asks for, or its share where that is more."""
    layout = Layout.of([("a", (50,))])
    tokens = data.draw(st.lists(st.integers(1, 10**6), min_size=count, max_size=count))
    given = [Weighted(f"{i:02}", t, at(i, 1.0)) for i, t in enumerate(tokens)]
    weight = weights(tokens)
    update = aggregate(layout, given, floor=floor)
    for i, w in enumerate(weight):
        assert update[i] <= max(0.5, w / sum(weight)) * (1 + 1e-6)
        assert update[i] < 1
        assert update[i] >= w / sum(weight) * (1 - 1e-6)
    assert not update[count:].any()


def test_mean_is_over_those_who_sent_but_never_over_less_than_the_floor() -> None:
    layout = Layout.of([("a", (4,))])

    def update(senders: int, floor: float) -> float:
        """Of 16 peers, of whom so many sent element 1 and the others element 3."""
        given = [Weighted(f"{i:02}", 1, at(1 if i < senders else 3, 1.0)) for i in range(16)]
        return float(aggregate(layout, given, floor=floor)[1])

    assert update(4, 0.25) == 1.0  # exactly at the floor: the mean over the four
    assert update(8, 0.25) == 1.0
    assert update(2, 0.25) == 0.5
    assert update(1, 0.25) == 0.25
    assert update(2, 1 / 16) == 1.0  # 2/R holds for small floors
    assert update(1, 1 / 16) == 0.5
    assert update(16, 1 / 16) == 1.0


def test_a_pair_owns_nothing_alone_and_one_peer_everything() -> None:
    layout = Layout.of([("a", (4,))])
    pair = [Weighted("a", 1, at(0, 1.0)), Weighted("b", 1, at(1, 1.0))]
    assert aggregate(layout, pair, floor=0.25).tolist() == [0.5, 0.5, 0, 0]
    assert aggregate(layout, pair[:1], floor=0.25).tolist() == [1, 0, 0, 0]


@given(order=st.permutations(range(5)))
@settings(max_examples=20, deadline=None)
def test_input_order_does_not_change_a_bit(order: list[int]) -> None:
    given = sparse([3, 1, 4, 1, 5])
    for method in METHODS:
        expected = aggregate(LAYOUT, given, method=method, floor=0.25)
        update = aggregate(LAYOUT, (given[i] for i in order), method=method, floor=0.25)
        assert update.tobytes() == expected.tobytes()


@given(st.integers(0, 2**32), st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_dot_products_are_those_of_the_dense_vectors(seed: int, some: float, more: float) -> None:
    rng = np.random.default_rng(seed)
    layout = Layout.of([("a", (2000,)), ("b", (1,)), ("c", (1500,))])
    offsets = np.array([0, 2000, 2001, 3501], np.int64)
    pair = []
    for part in (some, more):
        where = np.flatnonzero(rng.random(layout.parameters) < part).astype(np.int64)
        pair.append(Elements(where, rng.standard_normal(len(where)).astype(np.float32)))
    one, other = pair
    expected, got = np.empty(3), np.empty(3)
    filled = [dense(e, layout.parameters) for e in pair]
    dense_dots(filled[0], filled[1], offsets, expected)
    sparse_dots(one.positions, one.values, other.positions, other.values, offsets, got)
    assert np.array_equal(got, expected)


@pytest.mark.parametrize("factor", [1000.0, -1000.0, 1e30])
@pytest.mark.parametrize("method", METHODS)
def test_attacker_times_a_thousand_is_an_ordinary_one(factor: float, method: Method) -> None:
    honest = sparse([1, 1, 1, 1])
    vector = sent(9)
    loud = Elements(vector.positions, vector.values * np.float32(factor))
    bound = max(float(np.abs(entries_of(c).values).max()) for c in honest)
    update = aggregate(LAYOUT, [*honest, Weighted("x", 1, loud)], method=method, floor=0.25)
    assert np.abs(update).max() < 2 * bound


def test_nothing_sent_is_no_update() -> None:
    none = Elements(np.empty(0, np.int64), np.empty(0, np.float32))
    given = [Weighted(f"p{i}", 1, none) for i in range(3)]
    for method in METHODS:
        assert not aggregate(LAYOUT, given, method=method, floor=0.25).any()
    update = aggregate(LAYOUT, [*given, Weighted("x", 1, at(3, 1.0))], floor=0.25)
    assert update[3] == 0  # the median norm is 0: most have nothing there


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("place", [0, 300, -1])
def test_non_finite_contribution_is_refused_and_named(bad: float, place: int) -> None:
    given = sparse([1, 1, 1])
    entries_of(given[1]).values[place] = bad
    for method in METHODS:
        with pytest.raises(CheckFailed, match="peer-1"):
            aggregate(LAYOUT, given, method=method, floor=0.25)


@given(st.lists(st.integers(1, 8), min_size=1, max_size=64))
def test_exact_shares_add_up_to_one_in_any_order(tokens: list[int]) -> None:
    shares = [t / sum(tokens) for t in tokens]
    units = _exact(shares)
    for order in (units, units[::-1], sorted(units)):
        total = np.float32(0)
        for unit in order:
            total += np.float32(unit)
        assert total == 1
    assert all(abs(u - s) <= 2**-24 for u, s in zip(units, shares, strict=True))


def test_golden_sparse_updates() -> None:
    """These bits are the protocol: a change here makes the state roots of versions differ."""
    given = sparse([3, 1, 4, 1, 5])
    golden: dict[tuple[Method, float], str] = {
        ("mean", 0.25): "a3e203053b60f6c935dd84ab17334e3b9b36b6aa1d85e67e1e3ba3ce40cfc60b",
        ("mean", 0.75): "3e623b4982be550faaffd59e51cb8347197262912ce73b9e04af0c2c6d7d5b54",
        ("centered_clip", 0.25): "d437886827b4c005a71b685052488e664af5319ac181743cd261f7fd47b8a3d6",
    }
    found = {
        (method, floor): fingerprint(aggregate(LAYOUT, given, method=method, floor=floor))
        for method, floor in golden
    }
    assert found == golden
