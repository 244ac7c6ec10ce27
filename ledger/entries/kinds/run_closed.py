"""``run_closed``: after the last round, what is pending vests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Body, Entry, Positive, signed
from artel.ledger.entries.credit import frozen_until, vest
from artel.ledger.entries.fold_state import Effect, FoldState, Outcome
from artel.ledger.entries.story import Fact, Story, totals
from artel.ledger.entries.words import plural
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity


class RunClosed(Body):
    """After the last round: what is pending and not disputed vests; signed by a coordinator.

    The first ``closing`` is 1; closing 2 ends the disputes that nobody ruled on.
    """

    KIND: ClassVar = "run_closed"
    TITLE: ClassVar = "Run closed"
    kind: Literal["run_closed"] = "run_closed"
    round: Positive
    closing: Annotated[int, Field(ge=1, le=2)]

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if not state.led_by(entry.signers):
            return reasons.WRONG_SIGNERS
        if self.round != state.round or state.round < state.founded.total:
            return reasons.OUT_OF_ORDER
        if self.closing != state.closed + 1:
            return reasons.DUPLICATE if self.closing <= state.closed else reasons.OUT_OF_ORDER

        def effect() -> Outcome:
            state.closed = self.closing
            state.due = {}  # there will be no further state
            free = [
                source
                for source, item in state.pending.items()
                if state.closed == 2 or not frozen_until(state, item)
            ]
            return Outcome("recorded", vested=tuple(vest(state, source) for source in free))

        return effect

    def says(self) -> str:
        again = " again" if self.closing > 1 else ""
        return f"the run is closed{again} after {plural(self.round, 'round')}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield Fact(f"all {plural(self.round, 'round')} are over (rounds.total)")
        yield Fact(
            "everything that was pending vests, whatever is disputed included"
            if self.closing == 2
            else "everything that was pending and not disputed vests"
        )
        yield from totals(story)


def run_closed(coordinator: Identity, run: str, *, round: int, closing: int = 1) -> Envelope:
    """Close the accounts after the last round; ``closing`` is 1, and 2 the second time."""
    return signed(RunClosed, {"run": run, "round": round, "closing": closing}, coordinator)
