"""The lot: draws by chance that nobody could foresee and everybody can repeat. Integers only.

A *seed* is a hash over salts that contributors of a round revealed (hex): fixed when their
commitments are closed, known when the last is shown (:attr:`FoldState.lot`). A *purpose* keeps the
draws of one seed apart. Weighted draws are without replacement: each takes a number below the
weight that is left.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping

NONE = ""
"""The seed before any round was agreed on: everybody can know what is drawn by it."""


def seed(salts: Iterable[str]) -> str:
    """The seed that these salts (hex) make, in any order.

    Of salts and not of entry ids: one can be signed in many ways until its signer likes the lot.
    """
    return hashlib.sha256("".join(sorted(salts)).encode()).hexdigest()


def order(seed: str, purpose: str, candidates: Mapping[str, int]) -> Iterator[str]:
    """All candidates in the order in which they are drawn; whoever needs few takes only these.

    :param candidates: name to weight; those of weight 0 come last, all alike
    """
    left = {name: weight for name, weight in sorted(candidates.items()) if weight > 0}
    total = sum(left.values())
    for turn in range(len(left)):
        name = _at(_number(seed, purpose, str(turn)) % total, left)
        total -= left.pop(name)
        yield name
    rest = [name for name, weight in candidates.items() if weight <= 0]
    yield from sorted(rest, key=lambda name: (_number(seed, purpose, name), name))


def _at(place: int, weights: Mapping[str, int]) -> str:
    """In whose part of the sum of the weights a place lies."""
    for name, weight in weights.items():
        if place < weight:
            return name
        place -= weight
    raise AssertionError("it lies behind them")


def chance(seed: str, purpose: str, numerator: int, denominator: int) -> bool:
    """True in ``numerator`` of ``denominator`` cases."""
    return _number(seed, purpose, "") * denominator < numerator << 256


def _number(*parts: str) -> int:
    """256 bits that follow from these texts."""
    return int.from_bytes(hashlib.sha256("/".join(("artel/lot/v1", *parts)).encode()).digest())
