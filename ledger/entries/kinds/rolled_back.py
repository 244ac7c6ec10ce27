"""``rolled_back``: the run goes back behind a state that was proven wrong, or worse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.anchors import anchor_of, go_back, oldest_anchor
from artel.ledger.entries.body import Body, Count, Digest, Entry, signed
from artel.ledger.entries.credit_map import CreditMap
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.jury_answer import charged
from artel.ledger.entries.kinds.round_opened import given_up
from artel.ledger.entries.kinds.state_wrong import place_of, settle
from artel.ledger.entries.records import Effect, LeftOut, Outcome
from artel.ledger.entries.story import Fact, Story, totals
from artel.ledger.entries.words import plural, short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer
from artel.protocol.round_state import WRONG_STATE


class RolledBack(Body):
    """The state that the entry ``charge`` calls wrong was proven wrong, or training diverged from
    it: the run goes on from the one with the number ``state``, whose root is ``root``.

    That is the newest right (at least as good) state which somebody still holds. ``credits`` is the
    root of the credit map (:mod:`ledger.entries.credit_map`) after it. Signed by a coordinator.
    """

    KIND: ClassVar = "rolled_back"
    TITLE: ClassVar = "Rolled back"
    kind: Literal["rolled_back"] = "rolled_back"
    charge: Digest
    state: Count
    root: Digest
    credits: Digest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if not state.led_by(entry.signers):
            return reasons.WRONG_SIGNERS
        proven = [number for number, charge in state.charges.items() if charge.proven]
        wrong = charged(state, self.charge)
        if wrong not in proven:
            return reasons.NOT_PROVEN
        better = state.charges[wrong].better
        before = min([*proven, better + 1]) if better >= 0 else min(proven)
        if state.closed or not oldest_anchor(state) <= self.state < before:
            return reasons.OUT_OF_ORDER
        if self.root != state.states[self.state]:
            return WRONG_STATE
        credits = credits_back(state, self.state, wrong)
        if self.credits != credits.root:
            return reasons.WRONG_CREDITS

        def effect() -> Outcome:
            state.rooted, state.rooted_by = credits, state.size
            return _gone_back(state, self.state, wrong)

        return effect

    def place(self, state: FoldState) -> tuple[int, int]:
        return place_of(state, charged(state, self.charge))

    def says(self) -> str:
        return f"back to state {self.state}, {short_key(self.root)}"

    def explain(self, story: Story) -> Iterator[Fact]:
        notes = story.outcome.notes
        charge, wrong, again = notes["charge"], notes["wrong"], notes["newest"] - self.state
        if notes["diverged"]:
            yield Fact(
                f"entry {charge} shows that training diverged by state {wrong}: it was much worse "
                "than an earlier one; nobody is to blame, and data that comes behind is used next",
                (charge,),
            )
        else:
            yield Fact(
                f"entry {charge} called state {wrong} wrong, and the jury computed the root "
                f"{short_key(notes['root'])}",
                (charge,),
            )
        yield Fact(
            f"made again: {plural(again, 'round')}, from round {self.state} on; what is pending "
            "for them is taken away from everybody, what has vested stays with all"
            + ("" if notes["diverged"] else " who did not sign the wrong state")
        )
        signers = [item for item in story.outcome.left_out if item.reason == reasons.SIGNED_WRONG]
        for item in signers:
            yield Fact(
                f"node {short_peer(item.node)} signed state {wrong}: account "
                f"{short_key(item.account)} loses its standing and what has vested of its work "
                f"since round {wrong - 1}, as far as it still has it"
            )
        yield from totals(story)


def credits_back(state: FoldState, number: int, wrong: int) -> CreditMap:
    """What every account has once the run has gone back; the state stays as it is."""
    after = state.copy()
    _gone_back(after, number, wrong)
    return after.credit_map()


def _gone_back(state: FoldState, number: int, wrong: int) -> Outcome:
    charge, newest, signed = state.charges[wrong], state.round, anchor_of(state, wrong)
    assert signed is not None
    places = {round: place_of(state, round + 1) for round in range(number, newest)}
    not_agreed = given_up(state, state.attempt)
    false, blamed = settle(state, wrong, charge.proven), charge.better < 0
    invalidated, taken = go_back(state, number, wrong, blamed)
    undone = (c for c in (*invalidated, *taken) if c.kind == "compute")
    left_out = [LeftOut(*places[c.round], c.node, c.account, reasons.ROLLED_BACK) for c in undone]
    for node, account in signed.signers.items() if blamed else ():
        left_out.append(LeftOut(*places[wrong - 1], node, account, reasons.SIGNED_WRONG))
    notes = {"charge": charge.index, "root": charge.proven, "newest": newest, "wrong": wrong}
    return Outcome(
        "recorded",
        invalidated=invalidated,
        taken=taken,
        left_out=(*not_agreed, *false, *state.leave_out(tuple(left_out))),
        notes=notes | {"diverged": not blamed},
    )


def rolled_back(
    coordinator: Identity, run: str, *, charge: str, state: int, root: str, credits: str
) -> Envelope:
    """Go back to the state with this number.

    :param charge: id of the entry that called a later state wrong, which is proven, or diverged
    :param credits: the root of what :func:`credits_back` says
    """
    body = {"run": run, "charge": charge, "state": state, "root": root, "credits": credits}
    return signed(RolledBack, body, coordinator)
