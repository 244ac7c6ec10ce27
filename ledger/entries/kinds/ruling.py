"""``ruling``: the arbiters decide on a contribution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.audits import convict
from artel.ledger.entries.body import Entry, OfWork, OptionalDigest, signed
from artel.ledger.entries.credit import audited, end_dispute, invalidate, proven, vest
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Effect, Outcome
from artel.ledger.entries.story import Fact, Story, earning, fate_of_work, totals
from artel.ledger.entries.words import plural, short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity

_DECISIONS = {
    "dismissed": "the contribution is good and cannot be disputed again; it vests when it is due",
    "soft": "the credit of this contribution is taken away",
    "hard": "all pending credit of the account is taken away, what vested lately too, and it earns "
    "no more",
}


class Ruling(OfWork):
    """Decides on a pending contribution; signed by as many arbiters as the manifest asks for.

    ``soft`` takes this contribution's credit away, ``hard`` all of the account that is pending.
    """

    KIND: ClassVar = "ruling"
    TITLE: ClassVar = "Ruling"
    kind: Literal["ruling"] = "ruling"
    decision: Literal["dismissed", "soft", "hard"]
    evidence: OptionalDigest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        rules, source = state.founded, self.contribution
        if not entry.signers <= rules.arbiters:
            return reasons.WRONG_SIGNERS
        if len(entry.signers) < rules.ownership.arbiter_quorum:
            return reasons.NO_QUORUM
        item = state.work_pending(source)
        if item is None:
            return reasons.NOT_PENDING
        if item.ruled and self.decision == "dismissed":
            return reasons.DUPLICATE

        def effect() -> Outcome:
            if self.decision == "dismissed":
                state.freezing(source).ruled = True
                end_dispute(state, source)
                # Its time may have come while it was frozen.
                right = proven(state, item)
                held = not right or audited(state, state.audits.values())(item)
                over = state.closed or (state.round >= item.due and not held)
                vested = (vest(state, source),) if over else ()
                return Outcome("recorded", vested=vested)
            if self.decision == "soft":
                return Outcome("recorded", invalidated=(invalidate(state, source),))
            lost = convict(state, item.credit.account)
            return Outcome("recorded", invalidated=lost.credits, notes=lost.notes)

        return effect

    def event(self) -> str:
        return f"ruling: {self.decision}"

    def says(self) -> str:
        return f"ruling on contribution {short_key(self.contribution)}: {self.decision}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield earning(story.about)
        quorum = story.genesis.rules.ownership.arbiter_quorum
        yield Fact(
            f"signed by {plural(len(story.entry.signers), 'arbiter')}, {quorum} must "
            "(ownership.arbiter_quorum)"
        )
        yield Fact(_DECISIONS[self.decision])
        yield from fate_of_work(story)
        yield from totals(story)


def ruling(
    run: str, *arbiters: Identity, contribution: str, decision: str, evidence: str = ""
) -> Envelope:
    """Rule on a contribution."""
    body = {"run": run, "contribution": contribution, "decision": decision, "evidence": evidence}
    return signed(Ruling, body, *arbiters)
