"""``round_opened``: an attempt of a round begins."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, model_validator

from artel.ledger.entries import reasons
from artel.ledger.entries.body import (
    LISTED,
    MAX_MEMBERS,
    AttemptBody,
    Count,
    Digest,
    Entry,
    PeerId,
    Positive,
    signed,
)
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.state_wrong import wait_for_jury
from artel.ledger.entries.records import Attempt, Effect, LeftOut, Outcome
from artel.ledger.entries.story import Fact, Story, assigned, belonged, outcome_of, steps_of
from artel.ledger.entries.words import plural
from artel.protocol import seats
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from artel.protocol.round_state import WRONG_STATE


class RoundOpened(AttemptBody):
    """Opens an attempt of a round for its members; signed by a coordinator.

    ``base`` is the root of the agreed state, ``cursor`` the first window that the round consumes,
    ``steps`` what each member (same order) is assigned, in inner steps.
    """

    KIND: ClassVar = "round_opened"
    TITLE: ClassVar = "Round opened"
    DOCUMENT: ClassVar = ("members", "steps")
    kind: Literal["round_opened"] = "round_opened"
    base: Digest
    cursor: Count
    members: Annotated[tuple[PeerId, ...], Field(min_length=1), *LISTED]
    steps: Annotated[tuple[Positive, ...], Field(max_length=MAX_MEMBERS, strict=False)]

    @model_validator(mode="after")
    def _as_many(self) -> RoundOpened:
        if len(self.steps) != len(self.members):
            raise ValueError("members and steps are not equally many")
        return self

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        previous = state.attempt
        if not state.led_by(entry.signers):
            return reasons.WRONG_SIGNERS
        if self.round != state.round or self.round >= state.founded.total:
            return reasons.OUT_OF_ORDER
        if self.cursor < state.cursor:
            return reasons.OUT_OF_ORDER
        # Any later attempt may begin: whatever stopped the one before must not stop the run.
        again = previous is not None and previous.round == self.round
        if previous is not None and again and self.attempt <= previous.attempt:
            return reasons.OUT_OF_ORDER
        if self.attempt < state.begun.get(self.round, 0):
            return reasons.OUT_OF_ORDER
        if state.founded.paused:
            return reasons.RUN_PAUSED
        if any(charge.proven for charge in state.charges.values()):
            return reasons.PROVEN_WRONG
        if state.stuck:
            return reasons.TOO_MANY_SETBACKS
        if self.base != state.states[-1]:
            return WRONG_STATE
        if not all(peer in state.nodes for peer in self.members):
            return reasons.UNKNOWN_NODE
        if not all(map(partial(_allowed, state), self.members, self.steps)):
            return reasons.WRONG_STEPS
        accounts = {peer: state.account_of(peer) for peer in self.members}
        names, standings = list(accounts.values()), state.standings()
        resting = state.rests_on == "members"
        if resting and len(names) > state.founded.min_nodes:  # fewer may be anybody
            if not seats.few_newcomers(names, standings):
                return reasons.NEWCOMERS
            if not seats.shared_out(names, standings):
                return reasons.TOO_MANY_SEATS

        def effect() -> Outcome:
            left_out = given_up(state, state.attempt)
            steps = dict(zip(self.members, self.steps, strict=True))
            state.attempt = Attempt(self.round, self.attempt, accounts, steps)
            state.cursor, state.steps = self.cursor, sum(self.steps)
            tails = {peer: state.tails[peer] for peer in self.members if peer in state.tails}
            wait_for_jury(state)
            notes: dict[str, Any] = {"tails": tails} if tails else {}
            newcomers = sum(name not in standings for name in names)
            notes |= {"newcomers": newcomers} if resting else {}
            return Outcome("recorded", left_out=left_out, notes=notes)

        return effect

    def says(self) -> str:
        members, steps = plural(len(self.members), "member"), plural(sum(self.steps), "step")
        return f"{members}, {steps}, data from window {self.cursor:,}"

    def explain(self, story: Story) -> Iterator[Fact]:
        trail = story.trail
        if "newcomers" in (notes := story.outcome.notes):
            quota = seats.quota(len(self.members) - notes["newcomers"])
            yield Fact(
                f"{plural(notes['newcomers'], 'member')} had no standing, of at most {quota} then, "
                "because the run rested on its members (trust.founders)"
            )
        yield Fact(assigned(story.genesis))
        for peer, account in sorted(trail.accounts.items()):
            yield Fact(belonged(peer, account, trail), (trail.bound[peer],))
            yield Fact(steps_of(story, peer))
        yield from outcome_of(trail)


def _allowed(state: FoldState, peer: str, steps: int) -> bool:
    """Whether a member can be assigned so many steps: who owed an audit has time for that."""
    work = state.work
    least = work.lightest if peer in state.lighter else work.least
    return least <= steps <= work.most


def given_up(state: FoldState, attempt: Attempt | None) -> tuple[LeftOut, ...]:
    """What was accepted but never agreed on gives no credit; say so."""
    if attempt is None:
        return ()
    left_out = attempt.left_out((peer, reasons.NOT_AGREED) for peer in attempt.accepted)
    attempt.accepted = {}
    return state.leave_out(left_out)


def round_opened(
    coordinator: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    base: str,
    cursor: int,
    steps: Mapping[str, int],
) -> Envelope:
    """Open an attempt of a round. ``steps`` maps the members (peer ids) to their inner steps."""
    body = {"run": run, "round": round, "attempt": attempt, "base": base, "cursor": cursor}
    members = tuple(sorted(steps))
    body |= {"members": members, "steps": tuple(steps[peer] for peer in members)}
    return signed(RoundOpened, body, coordinator)
