"""``amended``: the organiser changes rules of the run from a round on."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import AfterValidator, Field, StringConstraints

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Body, Count, Entry, Positive, signed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Amendment, Effect, Outcome, changes_of
from artel.ledger.entries.story import Fact, Story
from artel.ledger.entries.words import printable
from artel.protocol.amending import PAUSED, TOTAL, value_of
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from artel.protocol.schema import one_line

MOST = 1024
"""Amendments of a run: every fold keeps them all."""
Setting = Annotated[str, StringConstraints(pattern=r"^[a-z_]{1,20}(\.[a-z_]{1,20})?$")]
Value = Annotated[str, StringConstraints(pattern=r"^[a-z0-9.]{1,24}$")]


class Amended(Body):
    """From ``round`` on these settings have these values (:mod:`protocol.amending`), until a later
    entry says otherwise, whatever an earlier one says of later rounds: who mends a slip need not
    look for all that was said before. Signed by the organiser alone.

    ``number`` counts the amendments of the run from 1, so that none is said twice.
    """

    KIND: ClassVar = "amended"
    TITLE: ClassVar = "Run amended"
    kind: Literal["amended"] = "amended"
    number: Positive
    round: Count
    changes: Annotated[dict[Setting, Value], Field(min_length=1, max_length=16)]
    why: Annotated[str, Field(max_length=200), AfterValidator(one_line)]

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {state.organiser}:
            return reasons.WRONG_SIGNERS
        if self.number != len(state.amendments) + 1:
            return reasons.WRONG_SEQUENCE
        # What a round that was opened is made of is settled; one behind the last never comes.
        last = state.rules_at(self.round).total
        if state.closed or not earliest(state) <= self.round <= last:
            return reasons.OUT_OF_ORDER
        try:
            given = {name: value_of(name, text) for name, text in self.changes.items()}
        except ValueError:
            return reasons.NOT_AMENDABLE
        one = Amendment(state.size, self.round, dict(self.changes))
        after = [*state.amendments, one]
        if given.get(TOTAL, self.round) < self.round or self.number > MOST:
            return reasons.NOT_AMENDABLE
        for number in {each.round for each in after if each.round >= self.round}:
            rules = state.written.amended(changes_of(after, number))
            # The data was found to be enough for so many members.
            if not rules.min_nodes <= rules.max_nodes <= state.written.max_nodes:
                return reasons.NOT_AMENDABLE

        def effect() -> Outcome:
            earlier, state.amendments = state.changes_at(self.round), after
            # Under other rules the run may go back once more.
            state.setbacks = state.setbacks[0], 0
            return Outcome("recorded", notes={"before": earlier})

        return effect

    def says(self) -> str:
        said = [f"{name} = {text}" for name, text in sorted(self.changes.items()) if name != PAUSED]
        if paused := self.changes.get(PAUSED):
            said.append("no round is opened" if paused == "true" else "rounds are opened again")
        return f"from round {self.round} on: {', '.join(said)}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield Fact("signed by the organiser, who alone may change the rules of a run")
        for name, text in sorted(self.changes.items()):
            known = story.outcome.notes["before"].get(name) or _written(story, name)
            yield Fact(f"{name}: {known} before round {self.round}, {text} from it on")
        if self.why:
            yield Fact(f"because: {printable(self.why)}")


def earliest(state: FoldState) -> int:
    """The first round of which rules can still be changed: none that was opened, unless the run
    has gone back behind it."""
    return state.round + (state.attempt is not None)


def _written(story: Story, setting: str) -> str:
    """What the manifest says."""
    value: Any = story.genesis.manifest.get("config")
    for key in setting.split("."):
        value = value.get(key) if isinstance(value, dict) else None
    return "false" if value is None else printable(str(value))


def amended(
    organiser: Identity, run: str, *, number: int, round: int, changes: Mapping[str, str], why: str
) -> Envelope:
    """Change rules of the run from a round on.

    :param number: how many amendments there are, and this one
    """
    body = {"run": run, "number": number, "round": round, "changes": dict(changes), "why": why}
    return signed(Amended, body, organiser)
