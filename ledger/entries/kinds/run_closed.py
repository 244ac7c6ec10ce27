"""``run_closed``: after the last round, what is pending vests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artel.ledger.entries import audits, reasons
from artel.ledger.entries.body import Body, Digest, Entry, Positive, signed
from artel.ledger.entries.credit import audited, frozen_until, vest
from artel.ledger.entries.credit_map import CreditMap
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Credit, Effect, Outcome
from artel.ledger.entries.story import Fact, Story, totals
from artel.ledger.entries.words import plural
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity


class RunClosed(Body):
    """After the last round: what is pending and not in doubt vests; signed by a coordinator.

    The first ``closing`` is 1; closing 2 ends the disputes that nobody ruled on, and the audits
    that nobody finished. ``credits`` is the root of the credit map
    (:mod:`ledger.entries.credit_map`) after it.
    """

    KIND: ClassVar = "run_closed"
    TITLE: ClassVar = "Run closed"
    kind: Literal["run_closed"] = "run_closed"
    round: Positive
    closing: Annotated[int, Field(ge=1, le=2)]
    credits: Digest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if not state.led_by(entry.signers):
            return reasons.WRONG_SIGNERS
        if self.round != state.round or state.round < state.founded.total:
            return reasons.OUT_OF_ORDER
        if self.closing != state.closed + 1:
            return reasons.DUPLICATE if self.closing <= state.closed else reasons.OUT_OF_ORDER
        credits = credits_after(state, self.closing)
        if self.credits != credits.root:
            return reasons.WRONG_CREDITS

        def effect() -> Outcome:
            state.rooted, state.rooted_by = credits, state.size
            return Outcome("recorded", vested=_close(state, self.closing))

        return effect

    def says(self) -> str:
        again = " again" if self.closing > 1 else ""
        return f"the run is closed{again} after {plural(self.round, 'round')}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield Fact(f"all {plural(self.round, 'round')} are over (rounds.total)")
        yield Fact(
            "everything that was pending vests, whatever is in doubt included"
            if self.closing == 2
            else "everything that was pending vests, but what is disputed or was rejected by an "
            "auditor"
        )
        yield from totals(story)


def run_closed(
    coordinator: Identity, run: str, *, round: int, closing: int, credits: str
) -> Envelope:
    """Close the accounts after the last round.

    :param closing: 1, and 2 the second time
    :param credits: the root of what :func:`credits_after` says
    """
    body = {"run": run, "round": round, "closing": closing, "credits": credits}
    return signed(RunClosed, body, coordinator)


def credits_after(state: FoldState, closing: int) -> CreditMap:
    """What every account has once the run is closed; the state stays as it is."""
    after = state.copy()
    _close(after, closing)
    return after.credit_map()


def _close(state: FoldState, closing: int) -> tuple[Credit, ...]:
    """Vest what no dispute and no auditor's reject holds back; the second time all."""
    state.closed = closing
    state.due = {}  # there will be no further state
    doubted = [audit for audit in state.audits.values() if audits.doubts(audit)]
    doubtful = audited(state, doubted)
    kept = state.audits.items() if closing == 1 else ()
    state.audits = {source: audit for source, audit in kept if audits.doubts(audit)}
    free = [
        source
        for source, item in state.pending.items()
        if closing == 2 or not (frozen_until(state, item) or doubtful(item))
    ]
    return tuple(vest(state, source) for source in free)
