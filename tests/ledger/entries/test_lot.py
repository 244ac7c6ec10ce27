"""Draws by lot: repeatable, by weight, and not to be had twice."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from hypothesis import given
from hypothesis import strategies as st

from artel.ledger.entries import lot

SEED = lot.seed(["ab" * 32, "cd" * 32])


def test_the_seed_does_not_depend_on_who_showed_first() -> None:
    assert lot.seed(["cd" * 32, "ab" * 32]) == SEED
    assert lot.seed(["ab" * 32]) != SEED


@given(st.dictionaries(st.text(max_size=8), st.integers(0, 1 << 70), max_size=12), st.text())
def test_everybody_is_drawn_once_and_whoever_has_weight_before_the_others(
    weights: dict[str, int], purpose: str
) -> None:
    drawn = list(lot.order(SEED, purpose, weights))
    assert Counter(drawn) == Counter(list(weights))
    heavy = [bool(weights[name]) for name in drawn]
    assert heavy == sorted(heavy, reverse=True)
    assert drawn == list(lot.order(SEED, purpose, dict(reversed(weights.items()))))


def test_weights_are_chances() -> None:
    weights = {"one": 1, "two": 2, "none": 0, "five": 5}
    first, last = Counter[str](), Counter[str]()
    for number in range(4000):
        drawn = list(lot.order(SEED, f"test/{number}", weights))
        first[drawn[0]] += 1
        last[drawn[-1]] += 1
    assert last == {"none": 4000}
    for name, part in (("one", 1 / 8), ("two", 2 / 8), ("five", 5 / 8)):
        assert abs(first[name] / 4000 - part) < 0.035  # 4 sigma


def test_without_weights_all_are_alike() -> None:
    names = dict.fromkeys("abcd", 0)
    first = Counter(next(lot.order(SEED, f"test/{number}", names)) for number in range(4000))
    assert all(abs(number / 4000 - 1 / 4) < 0.03 for number in first.values())
    assert len(first) == 4


def test_chances() -> None:
    hits = sum(lot.chance(SEED, f"test/{number}", 3, 10) for number in range(4000))
    assert abs(hits / 4000 - 0.3) < 0.03
    assert lot.chance(SEED, "sure", 7, 7)
    assert not lot.chance(SEED, "never", 0, 7)


def test_a_lot_of_thousands_is_cheap_when_few_are_taken() -> None:
    """Each of a thousand contributions draws its auditors from a thousand members."""
    many = {f"node {number}": 1 + number for number in range(1000)}
    assert len(set(islice(lot.order(SEED, "", many), 3))) == 3
