"""``verdict_committed``: an auditor has found something, and does not say yet what."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Digest, Entry, OfWork, PeerId, signed
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.kinds.verdict import promised
from artel.ledger.entries.records import RECORDED, Effect, Outcome
from artel.ledger.entries.story import Fact, Story, earning, fate_of_work
from artel.ledger.entries.words import short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer


class VerdictCommitted(OfWork):
    """The hash of a verdict (:func:`ledger.entries.kinds.verdict.promised`), so that no auditor
    repeats what another one says; signed by the auditing node."""

    KIND: ClassVar = "verdict_committed"
    TITLE: ClassVar = "Verdict committed"
    kind: Literal["verdict_committed"] = "verdict_committed"
    node: PeerId
    hash: Digest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {key_of(self.node)}:
            return reasons.WRONG_SIGNERS
        source = self.contribution
        audit = state.audits.get(source)
        draw = audit.draw_of(self.node) if audit is not None else None
        if audit is None or draw is None or draw.verdict:
            return reasons.NOT_DRAWN
        if draw.commitment:
            return reasons.DUPLICATE

        def effect() -> Outcome:
            state.audits[source] = audit.saying(replace(draw, commitment=self.hash))
            return RECORDED

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {state.account_of(self.node), *super().concerns(state)}

    def event(self) -> str:
        return f"repeated by node {short_peer(self.node)}, which does not say yet what it found"

    def says(self) -> str:
        what = short_key(self.contribution)
        return f"node {short_peer(self.node)} repeated contribution {what}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield earning(story.about)
        yield Fact(f"what it found has the hash {short_key(self.hash)}; it is shown later")
        yield from fate_of_work(story)


def verdict_committed(
    auditor: Identity, run: str, *, contribution: str, verdict: Envelope
) -> Envelope:
    """Commit to a verdict on this contribution."""
    found = promised(verdict)
    body = {"run": run, "node": auditor.peer_id, "contribution": contribution, "hash": found}
    return signed(VerdictCommitted, body, auditor)
