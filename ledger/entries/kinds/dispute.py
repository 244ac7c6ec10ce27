"""``dispute``: an account doubts a contribution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Digest, Entry, OfWork, OptionalDigest, ReasonCode
from artel.ledger.entries.credit import freeze
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Account, Effect, Outcome
from artel.ledger.entries.story import Fact, Story, earning, fate_of_work, frozen, totals
from artel.ledger.entries.words import short_key

MAX_OPEN_DISPUTES = 8
"""Of one account: a dispute is cheap to begin and delays somebody's credit."""


class Dispute(OfWork):
    """Freezes a pending contribution until somebody rules on it; signed by any account."""

    KIND: ClassVar = "dispute"
    TITLE: ClassVar = "Dispute"
    kind: Literal["dispute"] = "dispute"
    account: Digest
    reason: ReasonCode
    evidence: OptionalDigest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        owner = speaking(state, self.account, entry)
        if isinstance(owner, str):
            return owner
        item = state.work_pending(self.contribution)
        if item is None:
            return reasons.NOT_PENDING
        if item.credit.account == self.account:
            return reasons.OWN_WORK
        if item.disputed_by or item.ruled:
            return reasons.DUPLICATE
        if owner.barred:
            return reasons.BARRED
        # Accounts cost nothing: without a stake in the run, thousands could freeze all credit.
        if owner.vested + owner.pending == 0:
            return reasons.NO_CREDIT
        if owner.disputes >= MAX_OPEN_DISPUTES:
            return reasons.TOO_MANY

        def effect() -> Outcome:
            item = freeze(state, self.contribution, self.account)
            return Outcome("recorded", notes=item.frozen())

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {self.account, *super().concerns(state)}

    def event(self) -> str:
        return "disputed"

    def says(self) -> str:
        by, what = short_key(self.account), short_key(self.contribution)
        return f"account {by} disputes contribution {what}: {self.reason}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield earning(story.about)
        yield from frozen(story)
        yield Fact(f"an account can have {MAX_OPEN_DISPUTES} disputes open")
        yield from fate_of_work(story)
        yield from totals(story)


def speaking(state: FoldState, name: str, entry: Entry) -> Account | str:
    """The account, when its present key alone signed; otherwise the reason."""
    owner = state.registered(name)
    if owner is None:
        return reasons.UNKNOWN_ACCOUNT
    return owner if entry.signers == {owner.key} else reasons.WRONG_SIGNERS
