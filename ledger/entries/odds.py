"""How likely it is that work is repeated: f and c of :mod:`ledger.entries.audits`.

``c = (p n - f) / (H_n - 1/2)``, H_n = 1 + 1/2 + ... + 1/n, so that about the part p of all steps is
repeated. f is no more than it takes to catch who cheats all the time within 60 rounds, in 95 of 100
cases: somewhat above 1 - 0.05^(n / 60). Everybody knows where spans begin, so what is left goes to
those who cheat behind their first rounds: little where spans are short, so it finds them late.
"""

from __future__ import annotations

from functools import cache

from artel.ledger.entries import lot

MILLION = 1_000_000
_HALF_FIRST = 38
"""f is a number that grows to 1 in spans of as many rounds, at a high rate."""
_LONGEST = 4096
"""Rounds that are told apart in the sum for c."""


@cache
def chances(rate: int, rounds: int) -> tuple[int, int]:
    """f and c, in millionths.

    :param rate: p in millionths
    :param rounds: that a span can have (n), at least 1
    """
    budget = rate * rounds
    first = min(MILLION, budget * 9 // 10, 2 * rounds * MILLION // (rounds + _HALF_FIRST))
    if rounds == 1:
        return min(MILLION, budget), 0
    rest = MILLION // 2 + sum(MILLION // k for k in range(2, min(rounds, _LONGEST) + 1))
    return first, (budget - first) * MILLION // rest


def prefix(seed: str, purpose: str, c: int, rounds: int) -> int:
    """How many of the first rounds of a span that is over are repeated; 0 for none, never 1.

    :param c: in millionths
    :param rounds: that the span had
    """
    if rounds < 2 or not lot.chance(seed, f"{purpose}/2", min(c, 2 * MILLION), 2 * MILLION):
        return 0
    length = 2
    while length < rounds and _longer(seed, purpose, c, length):
        length += 1
    return length


def _longer(seed: str, purpose: str, c: int, length: int) -> bool:
    """min(1, c / (k + 1)) of min(1, c / k) cases."""
    k, more = length, length + 1
    return lot.chance(
        seed, f"{purpose}/{more}", min(c, more * MILLION) * k, min(c, k * MILLION) * more
    )
