"""``state_upheld``: a state that a jury calls wrong is right, the coordinator has found."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Body, Digest, Entry, signed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.jury_answer import charged
from artel.ledger.entries.kinds.state_wrong import place_of, settle
from artel.ledger.entries.records import Effect, Outcome
from artel.ledger.entries.story import Fact, Story
from artel.ledger.entries.words import short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer
from artel.protocol.round_state import WRONG_STATE


class StateUpheld(Body):
    """The coordinator that signs this has computed the state that the entry ``charge`` calls wrong
    and that a jury has proven wrong, and got ``root``, which is recorded: the run goes on.

    That is its word, which anybody can check as long as the contributions are held.
    """

    KIND: ClassVar = "state_upheld"
    TITLE: ClassVar = "State upheld"
    kind: Literal["state_upheld"] = "state_upheld"
    charge: Digest
    root: Digest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if not state.led_by(entry.signers):
            return reasons.WRONG_SIGNERS
        number = charged(state, self.charge)
        if number < 0 or not state.charges[number].proven or state.charges[number].better >= 0:
            return reasons.NOT_PROVEN
        if self.root != state.states[number]:
            return WRONG_STATE

        def effect() -> Outcome:
            notes = {"charge": state.charges[number].index, "state": number}
            return Outcome("recorded", left_out=settle(state, number, self.root), notes=notes)

        return effect

    def place(self, state: FoldState) -> tuple[int, int]:
        return place_of(state, charged(state, self.charge))

    def says(self) -> str:
        return f"charge {short_key(self.charge)}: computed {short_key(self.root)}, as is recorded"

    def explain(self, story: Story) -> Iterator[Fact]:
        notes = story.outcome.notes
        yield Fact(
            f"entry {notes['charge']} called state {notes['state']} wrong, and a jury computed "
            "another root; the coordinator says that it has computed what is recorded",
            (notes["charge"],),
        )
        for item in story.outcome.left_out:
            yield Fact(
                f"node {short_peer(item.node)} said another root: account "
                f"{short_key(item.account)} loses its standing ({item.reason})"
            )


def state_upheld(coordinator: Identity, run: str, *, charge: str, root: str) -> Envelope:
    """The coordinator has computed ``root`` too.

    :param charge: id of the entry that called the state wrong, which is proven
    """
    return signed(StateUpheld, {"run": run, "charge": charge, "root": root}, coordinator)
