"""``verdict``: an auditor says what it found when it repeated a contribution."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artel.ledger.entries import audits, reasons
from artel.ledger.entries.body import Count, Digest, Entry, Hardware, OfWork, PeerId, signed
from artel.ledger.entries.credit import grant
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.odds import MILLION
from artel.ledger.entries.records import Credit, Effect, Outcome
from artel.ledger.entries.story import (
    RESULTS,
    Fact,
    Story,
    audits_drawn,
    earning,
    fate_of_work,
    rounds_named,
    totals,
)
from artel.ledger.entries.words import differs, short_key
from artel.protocol import canonical
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer
from artel.protocol.round_state import COMMITMENT_MISMATCH

NO_ROWS = "0" * 64
MOST_ERROR = 1 << 52
"""What a larger relative error, or one that is no number, is written as."""


class Verdict(OfWork):
    """An auditor drawn by lot has repeated a node's work from the beginning of its span up to this
    contribution; signed by the auditing node.

    ``round`` is that of the contribution which differs most, ``error`` its relative error (L2) and
    ``overlap`` the part of its positions that the repeated one has too, both in millionths.
    ``hardware`` is the class of the auditor's machine, ``rows`` the content id of the fingerprints
    of all steps that it made (64 zeros: it made none to the end), which it has given to the
    coordinator alone. Of a reject ``differs_step``, from 1, of the contribution to
    ``differs_round`` is the first whose fingerprint differs from the audited node's; 0 and 0 when
    none does. That is known only once the auditor has committed to the rest. The salt hides what
    can be guessed.
    """

    KIND: ClassVar = "verdict"
    TITLE: ClassVar = "Verdict of an auditor"
    kind: Literal["verdict"] = "verdict"
    node: PeerId
    verdict: Literal["accept", "reject", "inconclusive"]
    round: Count
    error: Count
    overlap: Annotated[int, Field(ge=0, le=MILLION)]
    hardware: Hardware
    rows: Digest
    differs_round: Count
    differs_step: Count
    salt: Digest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {key_of(self.node)}:
            return reasons.WRONG_SIGNERS
        source = self.contribution
        audit = state.audits.get(source)
        draw = audit.draw_of(self.node) if audit is not None else None
        if audit is None or draw is None or draw.verdict == audits.LAPSED:
            return reasons.NOT_DRAWN
        if draw.verdict:
            return reasons.DUPLICATE
        if not draw.commitment:
            return reasons.NOT_COMMITTED
        if promised(entry.envelope) != draw.commitment:
            return COMMITMENT_MISMATCH
        if not all(other.commitment for other in audit.awaited):
            return reasons.TOO_EARLY

        def effect() -> Outcome:
            state.audits[source] = audit.saying(replace(draw, verdict=self.verdict))
            granted: tuple[Credit, ...] = ()
            if self.verdict != audits.INCONCLUSIVE and not state.accounts[draw.account].barred:
                credit = grant(
                    state,
                    "audit",
                    audits.audit_source(source, self.node),
                    draw.account,
                    node=self.node,
                    round=audit.last,
                    units=audit.tokens,
                    due=state.round + max(1, state.founded.ownership.vesting_rounds),
                    about=source,
                )
                granted = (credit,)
            told, lost = audits.settle(state, source)
            notes = {"rounds": [audit.first, audit.last]} | told | lost.notes
            status = "credited" if granted else "recorded"
            return Outcome(status, granted=granted, invalidated=lost.credits, notes=notes)

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {state.account_of(self.node), *super().concerns(state)}

    def event(self) -> str:
        auditor = short_peer(self.node)
        return f"audited by node {auditor}: {self.verdict}, differs {self._difference()}"

    def says(self) -> str:
        what = short_key(self.contribution)
        return f"node {short_peer(self.node)} repeated contribution {what}: {self.verdict}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield earning(story.about)
        first, last = story.outcome.notes["rounds"]
        yield Fact(
            f"node {short_peer(self.node)}, drawn by lot, trained the work of "
            f"{rounds_named(first, last)} once more from public data on "
            f"{self.hardware or 'a machine of unknown class'}: what was sent differs from what it "
            f"came to {self._difference()}"
        )
        if self.verdict == audits.INCONCLUSIVE:
            yield Fact("it could not tell whether that is right, and is not paid")
        result = story.outcome.notes["result"]
        yield Fact(
            RESULTS[result] if result else "others repeat it before anything follows from it"
        )
        yield from audits_drawn(story)
        yield from fate_of_work(story)
        yield from totals(story)

    def _difference(self) -> str:
        step = f"step {self.differs_step} of round {self.differs_round} is the first that differs"
        more = f"; {step}" if self.differs_step else ""
        return f"{differs(self.error / MILLION)} in round {self.round}{more}"


def promised(verdict: Envelope) -> str:
    """The hash by which an auditor commits to a verdict before it hears where steps differ."""
    body = canonical.loads(verdict.payload)
    assert isinstance(body, dict)
    unsaid = {"differs_round": 0, "differs_step": 0}
    return hashlib.sha256(canonical.dumps(body | unsaid)).hexdigest()


def verdict(
    auditor: Identity,
    run: str,
    *,
    contribution: str,
    verdict: str,
    salt: bytes,
    round: int,
    error: float,
    overlap: float = 1.0,
    hardware: str = "",
    rows: str = NO_ROWS,
    differs: tuple[int, int] = (0, 0),
) -> Envelope:
    """What the node ``auditor`` found; see :class:`Verdict`.

    :param salt: 32 bytes
    :param error: at least 0, or infinite
    :param overlap: 0 to 1; 1 where contributions have no positions
    :param differs: round and step (from 1) of the first step that does
    """
    most = min(error * MILLION, MOST_ERROR)
    body = {"run": run, "node": auditor.peer_id, "contribution": contribution, "round": round}
    body |= {"verdict": verdict, "salt": salt.hex(), "hardware": hardware}
    body |= {"error": int(most), "overlap": int(overlap * MILLION), "rows": rows}
    body |= {"differs_round": differs[0], "differs_step": differs[1]}
    return signed(Verdict, body, auditor)
