"""``admitted``: the organiser lets somebody in, where not everybody may take part."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Body, Digest, Entry, signed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import RECORDED, Effect, Outcome
from artel.ledger.entries.story import Fact, Story
from artel.ledger.entries.words import short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity


class Admitted(Body):
    """The account that will be named by ``key`` may register; signed by the organiser alone."""

    KIND: ClassVar = "admitted"
    TITLE: ClassVar = "Account admitted"
    kind: Literal["admitted"] = "admitted"
    key: Digest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {state.organiser}:
            return reasons.WRONG_SIGNERS
        if state.founded.trust.admission == "open":
            return reasons.NOT_ALLOWED
        if state.admits(self.key):
            return reasons.DUPLICATE

        def effect() -> Outcome:
            state.admitted[self.key] = state.size
            return RECORDED

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {self.key}

    def says(self) -> str:
        return f"account {short_key(self.key)} may take part"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield Fact("signed by the organiser, who lets in whom it names (trust.admission)")
        yield Fact(f"the key that may register: {self.key}")


def admitted(organiser: Identity, run: str, key: str) -> Envelope:
    """Let the account of this key (hex) register."""
    return signed(Admitted, {"run": run, "key": key}, organiser)
