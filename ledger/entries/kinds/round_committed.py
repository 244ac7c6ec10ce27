"""``round_committed``: what the members of a round are committed to."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artel.ledger.entries import reasons
from artel.ledger.entries.body import MAX_MEMBERS, AttemptBody, Digest, Entry, PeerId, signed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import RECORDED, Effect, Outcome
from artel.ledger.entries.story import Fact, Story, outcome_of
from artel.ledger.entries.words import plural
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer


class RoundCommitted(AttemptBody):
    """The commitments that came in time; signed by a coordinator."""

    KIND: ClassVar = "round_committed"
    TITLE: ClassVar = "Commitments"
    DOCUMENT: ClassVar = ("commitments",)
    kind: Literal["round_committed"] = "round_committed"
    commitments: Annotated[dict[PeerId, Digest], Field(max_length=MAX_MEMBERS)]

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if not state.led_by(entry.signers):
            return reasons.WRONG_SIGNERS
        attempt = state.current(self.round, self.attempt, "training")
        if attempt is None:
            return reasons.OUT_OF_ORDER
        if not self.commitments.keys() <= attempt.accounts.keys():
            return reasons.NOT_MEMBER

        def effect() -> Outcome:
            attempt.commitments = dict(self.commitments)
            attempt.phase = "revealing"
            return RECORDED

        return effect

    def says(self) -> str:
        return plural(len(self.commitments), "commitment")

    def explain(self, story: Story) -> Iterator[Fact]:
        for peer in sorted(story.trail.steps):
            did = "committed" if peer in self.commitments else "did not commit in time"
            yield Fact(f"node {short_peer(peer)} {did}")
        yield from outcome_of(story.trail)


def round_committed(
    coordinator: Identity, run: str, *, round: int, attempt: int, commitments: Mapping[str, str]
) -> Envelope:
    """Publish the commitments ``{peer id: hex}``."""
    body = {"run": run, "round": round, "attempt": attempt, "commitments": dict(commitments)}
    return signed(RoundCommitted, body, coordinator)
