"""Standing: how much checked work of an account vested lately. It decides seats and weighs votes.

Credit for compute and audits counts for ``trust.standing_rounds`` rounds after it has vested, to a
sixteenth of them. So old fame fades, and what one gives away or is given counts for nothing. An
account counts for at most :data:`CAP` times the median of all who have standing, so that a rich one
is no majority; a barred one has none.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median_low

CAP = 3
PARTS = 16
"""Stretches of rounds in which credit is counted together, and forgotten together."""
KINDS_THAT_COUNT = ("compute", "audit")


@dataclass
class Standings:
    """Of all accounts. Changed by the owner of the fold's state alone."""

    parts: dict[int, dict[str, int]] = field(default_factory=dict)
    """Stretch of rounds to account to the credit that vested in it, the oldest first."""
    sums: dict[str, int] = field(default_factory=dict)
    """Account to the credit of all stretches together; only those that have any."""
    void: dict[int, dict[str, int]] = field(default_factory=dict)
    """Stretch of rounds to account to what of that was forfeited, and counts no more."""

    def __post_init__(self) -> None:
        self._capped: Mapping[str, int] | None = None

    def copy(self) -> Standings:
        """An independent one; only the newest stretch, which alone grows, is not shared."""
        newest = {number: dict(part) for number, part in list(self.parts.items())[-1:]}
        void = {number: dict(part) for number, part in self.void.items()}
        return Standings(self.parts | newest, dict(self.sums), void)

    def earned(self, account: str, amount: int, round: int, rounds: int) -> None:
        """Credit vested in this round.

        :param rounds: for how many it counts (``trust.standing_rounds``)
        """
        if amount:
            # Only the newest stretch grows: copies share the others.
            number = max([round // stretch_of(rounds), *self.parts])
            part = self.parts.setdefault(number, {})
            part[account] = part.get(account, 0) + amount
            self.sums[account] = self.sums.get(account, 0) + amount
            self._capped = None

    def fade(self, round: int, rounds: int) -> None:
        """Forget what vested too long before this round."""
        stretch = stretch_of(rounds)
        oldest = round // stretch - -(-rounds // stretch)
        for number in [number for number in self.parts if number <= oldest]:
            void = self.void.pop(number, {})
            for account, amount in self.parts.pop(number).items():
                self._less(account, amount - void.get(account, 0))

    def forfeit(self, account: str) -> None:
        """The account has no standing any more, whatever vested."""
        self._less(account, self.sums.get(account, 0))
        for number, part in self.parts.items():
            if account in part:
                self.void.setdefault(number, {})[account] = part[account]

    def stake(self, account: str) -> int:
        """What vested of the account in these stretches, forfeited or not: who is about to be
        convicted could give up its standing."""
        return sum(part.get(account, 0) for part in self.parts.values())

    def of_all(self) -> Mapping[str, int]:
        """Account to its standing; only those that have any."""
        if self._capped is None:
            most = CAP * median_low(self.sums.values()) if self.sums else 0
            self._capped = {name: min(amount, most) for name, amount in self.sums.items()}
        return self._capped

    def _less(self, account: str, amount: int) -> None:
        self._capped = None
        self.sums[account] = self.sums.get(account, 0) - amount
        if not self.sums[account]:
            del self.sums[account]


def stretch_of(rounds: int) -> int:
    """Rounds of a stretch, when vested credit counts for so many."""
    return -(-rounds // PARTS)
