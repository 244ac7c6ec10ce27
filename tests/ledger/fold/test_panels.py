"""Who rejects honest work together: the panels that decide, over many rounds."""

from __future__ import annotations

import pytest

from artel.ledger.entries import audits
from artel.ledger.entries.records import Audit
from benchmarks.attacks_paid import FALSE, Watched

ACCOUNTS, SETTLED, FOLLOWED = 20, 12, 150
SEEDS = range(5)


class Ring(Watched):
    """The attackers accept each other's work. Once they begin they reject what everybody else did,
    or, if it ``cheats``, the first of them sends what it did not train."""

    cheats = False

    def begin(self, *, cheats: bool) -> None:
        self._since, self._sends, self.cheats = self._state.round, FALSE, cheats

    def _says(self, auditor: str, audit: Audit) -> str:
        if audit.last < self._since:
            return audits.ACCEPT
        if auditor in self.attackers:
            spared = self.cheats or audit.node in self.attackers
            return audits.ACCEPT if spared else audits.REJECT
        false = self.cheats and audit.node == self.attackers[0]
        return audits.REJECT if false else audits.ACCEPT

    def barred(self) -> list[str]:
        return [node for node in self._nodes if self._barred(node)]

    def struck(self) -> list[str]:
        """Nodes whose accounts a panel contradicted."""
        return [node for node in self._nodes if self._state.account_of(node) in self._state.struck]


def ring(attackers: int, seed: int) -> Ring:
    """A run whose accounts all have standing."""
    run = Ring(attackers, ACCOUNTS)
    for _ in range(SETTLED):
        run.play(seed)
    return run


@pytest.mark.parametrize("attackers", [3, 6])
def test_few_who_reject_all_honest_work_have_nobody_convicted(attackers: int) -> None:
    """Of three, two decided, and of seven, four: of 20 accounts six had honest ones convicted in 15
    of 25 runs of 150 rounds."""
    for seed in SEEDS:
        run = ring(attackers, seed)
        run.begin(cheats=False)
        for _ in range(FOLLOWED):
            run.play(seed)
        assert run.barred() == []
        assert run.struck(), "each of them could do so once"
        assert set(run.struck()) <= set(run.attackers)


def test_who_always_cheats_is_convicted_though_three_say_that_it_does_not() -> None:
    for seed in SEEDS:
        run = ring(4, seed)
        run.begin(cheats=True)
        for _ in range(FOLLOWED):
            run.play(seed)
        assert run.barred() == run.attackers[:1]
