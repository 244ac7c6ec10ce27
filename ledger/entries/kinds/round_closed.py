"""``round_closed``: whose work counts in a round, and why that of others does not."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import (
    LISTED,
    AttemptBody,
    Digest,
    Entry,
    PeerId,
    Positive,
    ReasonCode,
    Record,
    signed,
)
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.round_opened import given_up
from artel.ledger.entries.records import Effect, Outcome
from artel.ledger.entries.story import Fact, Story, outcome_of
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer
from artel.protocol.round_state import WRONG_TOKENS


class Accepted(Record):
    """An accepted contribution: its entry id, and its weight (= tokens)."""

    node: PeerId
    entry: Digest
    weight: Positive


class Rejected(Record):
    """A member whose work does not count, and why (see :mod:`ledger.entries.reasons`)."""

    node: PeerId
    reason: ReasonCode


class RoundClosed(AttemptBody):
    """Ends an attempt; with nobody accepted it failed. Signed by a coordinator."""

    KIND: ClassVar = "round_closed"
    TITLE: ClassVar = "Round closed"
    DOCUMENT: ClassVar = ("accepted", "rejected")
    kind: Literal["round_closed"] = "round_closed"
    accepted: Annotated[tuple[Accepted, ...], *LISTED]
    rejected: Annotated[tuple[Rejected, ...], *LISTED]

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if not state.led_by(entry.signers):
            return reasons.WRONG_SIGNERS
        phases = ("revealing",) if self.accepted else ("training", "revealing", "applying")
        attempt = state.current(self.round, self.attempt, *phases)
        if attempt is None:
            return reasons.OUT_OF_ORDER
        accepted = {item.node: item for item in self.accepted}
        rejected = {item.node: item.reason for item in self.rejected}
        if not rejected.keys() <= attempt.accounts.keys() - accepted.keys():
            return reasons.NOT_MEMBER
        for peer, item in accepted.items():
            shown = attempt.shown.get(peer)
            if shown is None or shown.entry != item.entry:
                return reasons.UNKNOWN_CONTRIBUTION
            if item.weight != shown.tokens:
                return WRONG_TOKENS

        def effect() -> Outcome:
            if attempt.phase == "applying":
                # Closed a second time, now with nobody: the nodes did not agree on a state. Who
                # was left out at the first closing has been counted then.
                left_out = given_up(state, attempt)
                attempt.slices, attempt.wrong = {}, {}
            else:
                left_out = state.leave_out(attempt.left_out(rejected.items()))
            attempt.accepted = {peer: item.weight for peer, item in accepted.items()}
            attempt.phase = "applying" if accepted else "failed"
            if accepted:
                attempt.credits = state.credit_map()
                attempt.weights = state.weights(attempt.accepted)
                attempt.rests_on = state.rests_on
            return Outcome("recorded", left_out=left_out)

        return effect

    def says(self) -> str:
        left_out = ", ".join(f"{short_peer(r.node)} {r.reason}" for r in self.rejected)
        accepted = f"{len(self.accepted)} accepted" if self.accepted else "nobody accepted"
        return accepted + (f", left out: {left_out}" if left_out else "")

    def explain(self, story: Story) -> Iterator[Fact]:
        for item in self.accepted:
            work = story.trail.shown[item.node]
            yield Fact(
                f"node {short_peer(item.node)}: accepted with {item.weight:,} tokens, "
                f"shown by entry {work}",
                (work,),
            )
        for left in self.rejected:
            why = f"{reasons.explain(left.reason)} ({left.reason})"
            yield Fact(f"node {short_peer(left.node)}: left out, {why}")
        yield from outcome_of(story.trail)


def round_closed(
    coordinator: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    accepted: Iterable[Accepted] = (),
    rejected: Mapping[str, str] | None = None,
) -> Envelope:
    """Close an attempt. ``rejected`` maps peer ids to reason codes."""
    body = {
        "run": run,
        "round": round,
        "attempt": attempt,
        "accepted": tuple(sorted(accepted, key=lambda item: item.node)),
        "rejected": tuple(
            Rejected(node=peer, reason=reason) for peer, reason in sorted((rejected or {}).items())
        ),
    }
    return signed(RoundClosed, body, coordinator)
