"""``transfer``: vested credit for another account."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Body, Digest, Entry, Positive
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.dispute import speaking
from artel.ledger.entries.records import Effect, Outcome
from artel.ledger.entries.story import Fact, Story
from artel.ledger.entries.words import short_key


class Transfer(Body):
    """Gives vested credit to another account, where the manifest allows it; by the giver."""

    KIND: ClassVar = "transfer"
    TITLE: ClassVar = "Transfer"
    kind: Literal["transfer"] = "transfer"
    account: Digest
    to: Digest
    amount: Positive
    seq: Positive

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        owner = speaking(state, self.account, entry)
        if isinstance(owner, str):
            return owner
        if not state.founded.ownership.transfers or self.to == self.account:
            return reasons.NOT_ALLOWED
        if state.registered(self.to) is None:
            return reasons.UNKNOWN_ACCOUNT
        if self.seq != owner.seq + 1:
            return reasons.WRONG_SEQUENCE
        if self.amount > owner.vested:
            return reasons.NOT_ENOUGH

        def effect() -> Outcome:
            giver, taker = state.changing(self.account), state.changing(self.to)
            notes = {"vested": [giver.vested, taker.vested]}
            giver.seq = self.seq
            giver.vested -= self.amount
            giver.sent += self.amount
            taker.vested += self.amount
            taker.received += self.amount
            moved = ((self.account, -self.amount), (self.to, self.amount))
            return Outcome("recorded", moved=moved, notes=notes)

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {self.account, self.to}

    def says(self) -> str:
        giver, taker = short_key(self.account), short_key(self.to)
        return f"{self.amount:,} vested credit from account {giver} to {taker}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield Fact(f"number {self.seq} of account {short_key(self.account)} (ownership.transfers)")
        giver, taker = story.outcome.notes["vested"]
        for name, before, sign, after in (
            (self.account, giver, "-", giver - self.amount),
            (self.to, taker, "+", taker + self.amount),
        ):
            yield Fact(
                f"account {short_key(name)}: {before:,} vested {sign} {self.amount:,} = {after:,}"
            )
