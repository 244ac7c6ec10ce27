"""``verdict``: an auditor has repeated a contribution."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Entry, OfWork, OptionalDigest, PeerId, signed
from artel.ledger.entries.credit import freeze, grant
from artel.ledger.entries.fold_state import Effect, FoldState, Outcome, key_of
from artel.ledger.entries.story import Fact, Story, earning, fate_of_work, frozen, totals
from artel.ledger.entries.words import short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer


class Verdict(OfWork):
    """An auditor drawn by lot has repeated a contribution; signed by the auditing node."""

    KIND: ClassVar = "verdict"
    TITLE: ClassVar = "Verdict of an auditor"
    kind: Literal["verdict"] = "verdict"
    node: PeerId
    verdict: Literal["accept", "reject", "inconclusive"]
    evidence: OptionalDigest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {key_of(self.node)}:
            return reasons.WRONG_SIGNERS
        item = state.work_pending(self.contribution)
        if item is None:
            return reasons.NOT_PENDING
        name = state.account_of(self.node)
        if self.node not in item.auditors or name == item.credit.account:
            return reasons.NOT_DRAWN
        if self.node in item.verdicts:
            return reasons.DUPLICATE
        if state.accounts[name].barred:
            return reasons.BARRED

        def effect() -> Outcome:
            item = state.freezing(self.contribution)
            item.verdicts = item.verdicts | {self.node: self.verdict}
            if self.verdict == "reject" and not item.disputed_by and not item.ruled:
                freeze(state, self.contribution, name)
            credit = grant(
                state,
                "audit",
                audit_source(self.contribution, self.node),
                name,
                node=self.node,
                round=item.credit.round,
                units=item.credit.units,
                # Not before what it judges: a ruling may find the verdict wrong.
                due=max(item.due, state.round + 1),
                about=self.contribution,
            )
            return Outcome("credited", granted=(credit,), notes=item.frozen())

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {state.account_of(self.node), *super().concerns(state)}

    def event(self) -> str:
        return f"audited: {self.verdict}"

    def says(self) -> str:
        what = short_key(self.contribution)
        return f"node {short_peer(self.node)} repeated contribution {what}: {self.verdict}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield earning(story.about)
        yield from frozen(story)
        count = story.genesis.rules.ownership.auditors
        yield Fact(
            f"node {short_peer(self.node)} is one of up to {count} drawn by lot from the "
            "members of other accounts (ownership.auditors)"
        )
        yield from fate_of_work(story)
        yield from totals(story)


def audit_source(contribution: str, node: str) -> str:
    """Names the credit for a verdict."""
    return f"audit/{contribution}/{node}"


def verdict(auditor: Identity, run: str, *, contribution: str, verdict: str) -> Envelope:
    """What the node ``auditor`` found when it repeated a contribution."""
    body = {"run": run, "node": auditor.peer_id, "contribution": contribution, "evidence": ""}
    return signed(Verdict, body | {"verdict": verdict}, auditor)
