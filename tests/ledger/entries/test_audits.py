"""What is repeated of spans: how much that costs, and whom it finds."""

from __future__ import annotations

import random

import pytest

from artel.ledger.entries import lot
from artel.ledger.entries.odds import MILLION, chances, prefix

RATE = MILLION // 20
"""5 %."""
SPANS = [10, 12, 15, 20, 30, 50, 75, 100]
PARTS = 4000


def repeated(seed: str, rounds: int) -> list[int]:
    """The lengths that are repeated of one whole span of a known node."""
    first, c = chances(RATE, rounds)
    found = [1] if lot.chance(seed, "first/x", first, MILLION) else []
    length = prefix(seed, "prefix/x", c, rounds)
    return [*found, *([length] if length else [])]


@pytest.mark.parametrize("rounds", SPANS)
def test_about_the_rate_of_all_steps_is_repeated_and_not_more(rounds: int) -> None:
    total = sum(sum(repeated(f"{rounds} {n}", rounds)) for n in range(PARTS))
    assert 0.045 < total / (PARTS * rounds) < 0.055


@pytest.mark.parametrize("rate", [0, 1, RATE, MILLION])
@pytest.mark.parametrize("rounds", [1, 2, 7, 100, 100_000])
def test_the_expected_share_never_exceeds_the_rate(rate: int, rounds: int) -> None:
    first, c = chances(rate, rounds)
    longest = min(rounds, 5000)
    tails = [min(1.0, c / MILLION / k) for k in range(2, longest + 1)]
    expected = first / MILLION + sum(tails) + (tails[0] if tails else 0)
    assert 0 <= first <= MILLION
    assert c >= 0
    assert expected <= rate / MILLION * rounds * 1.01 + 1e-5


def test_lengths_come_as_often_as_they_should() -> None:
    found = [prefix(str(n), "p", 900_000, 12) for n in range(20_000)]
    assert set(found) <= {0, *range(2, 13)}
    for k in (2, 3, 6, 12):
        assert sum(length >= k for length in found) / len(found) == pytest.approx(0.9 / k, abs=0.01)
    assert [prefix(str(n), "p", 3 * MILLION, 12) >= 3 for n in range(50)] == [True] * 50
    assert [prefix(str(n), "p", 0, 12) for n in range(50)] == [0] * 50
    assert prefix("any", "p", 3 * MILLION, 1) == 0


def caught_after(rounds: int, chance: random.Random) -> int:
    """Rounds until the first audit of a known node's false work is drawn, if it does nothing else
    from a round on that it chooses without knowing the lots."""
    start = chance.randrange(rounds)
    for number in range(100):
        first, c = chances(RATE, rounds)
        seed = f"{chance.random()}"
        begins = number * rounds - start
        if number and lot.chance(seed, "first/x", first, MILLION):
            return begins + 1
        if prefix(seed, "prefix/x", c, rounds) > max(0, start if not number else 0):
            return begins + rounds
    return 10**6


@pytest.mark.parametrize("rounds", SPANS)
def test_who_always_cheats_is_found_within_sixty_rounds(rounds: int) -> None:
    """In spans of more than 57 rounds: within one of them, since it may have begun behind the first
    round of one."""
    chance = random.Random(rounds)
    within = max(57, rounds + 1)  # and three for the verdicts
    caught = [caught_after(rounds, chance) <= within for _ in range(PARTS)]
    assert sum(caught) / PARTS >= 0.95


def caught_behind(rounds: int, seed: str) -> int:
    """Rounds of false work until an audit of some is drawn, if the first of each span is honest."""
    for number in range(10_000):
        _, c = chances(RATE, rounds)
        if prefix(f"{seed} {number}", "prefix/x", c, rounds):
            return (number + 1) * (rounds - 1)
    raise AssertionError("never")


@pytest.mark.parametrize(("rounds", "mean"), [(10, 600), (25, 400), (50, 300)])
def test_who_is_honest_in_first_rounds_alone_is_found_after_some_hundred_rounds(
    rounds: int, mean: int
) -> None:
    """Not within sixty: that holds for who cheats all the time. With all that the rate allows in
    first rounds it took 870, 640 and 260 on the average."""
    found = [caught_behind(rounds, f"{rounds} {n}") for n in range(1000)]
    assert 150 < sum(found) / len(found) < mean


def test_the_chances_are_those_of_the_text() -> None:
    assert chances(RATE, 5)[0] == 225_000
    assert chances(RATE, 10)[0] == 416_666
    assert chances(RATE, 25)[0] == 793_650
    assert chances(RATE, 40)[0] == MILLION
    assert chances(RATE, 1) == (RATE, 0)
    first, c = chances(RATE, 100)
    harmonic = sum(1 / k for k in range(1, 101))
    assert (first, c) == (MILLION, pytest.approx(MILLION * 4 / (harmonic - 0.5), abs=50))
    assert chances(MILLION, 20)[1] > MILLION
