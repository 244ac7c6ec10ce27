"""``state_wrong``: an agreed state is not what follows from the contributions."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice
from typing import ClassVar, Literal

from artel.ledger.entries import lot, reasons
from artel.ledger.entries.anchors import anchor_of, oldest_anchor
from artel.ledger.entries.body import Body, Count, Digest, Entry, PeerId, Positive, signed
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.records import Charge, Effect, LeftOut, Outcome
from artel.ledger.entries.story import Fact, Story
from artel.ledger.entries.words import short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer
from artel.protocol.round_state import WRONG_STATE

JURY, MOST_JURY = 7, 10
"""Accounts that are asked at first, and at most. More than half of as many as are asked at first
decide, once they have computed the same root."""
LEAST_JURY = 2


class StateWrong(Body):
    """A node has computed the state with the number ``state`` again and got ``root``, not what is
    ``recorded``; signed by it. ``attempt`` made the state."""

    KIND: ClassVar = "state_wrong"
    TITLE: ClassVar = "State called wrong"
    kind: Literal["state_wrong"] = "state_wrong"
    state: Positive
    attempt: Count
    node: PeerId
    recorded: Digest
    root: Digest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {key_of(self.node)}:
            return reasons.WRONG_SIGNERS
        if self.node not in state.nodes:
            return reasons.UNKNOWN_NODE
        if state.closed or not oldest_anchor(state) < self.state <= state.round:
            return reasons.OUT_OF_ORDER
        anchor = anchor_of(state, self.state)
        made = anchor is not None and anchor.attempt == self.attempt
        if not made or self.recorded != state.states[self.state]:
            return WRONG_STATE
        if self.root == self.recorded:
            return reasons.SAME_ROOT
        name = state.account_of(self.node)
        if fault := _barred(state, self.state, name, self.node):
            return fault
        jury = drawn(state, self.state, name)
        if len(jury) < LEAST_JURY:
            return reasons.NO_JURY

        def effect() -> Outcome:
            charge = Charge(entry.id, state.size, self.node, name, self.root, jury)
            state.charges[self.state] = charge
            state.heard[self.state] = (*state.heard.get(self.state, ()), name, self.node)
            return Outcome("recorded", notes={"jury": list(jury[:JURY]), "needed": needed(charge)})

        return effect

    def place(self, state: FoldState) -> tuple[int, int]:
        """It is about the round that made the state."""
        return place_of(state, self.state)

    def concerns(self, state: FoldState) -> set[str]:
        return {state.account_of(self.node)}

    def says(self) -> str:
        return (
            f"node {short_peer(self.node)} says that state {self.state} is not "
            f"{short_key(self.recorded)}, but {short_key(self.root)}"
        )

    def explain(self, story: Story) -> Iterator[Fact]:
        yield Fact(
            f"state {self.state} was recorded with the root {short_key(self.recorded)}; the node "
            f"says that it computed {short_key(self.root)} from the state before and the accepted "
            "contributions, which decides nothing by itself"
        )
        notes = story.outcome.notes
        jury = ", ".join(short_key(name) for name in notes["jury"])
        yield Fact(
            f"drawn by lot to compute it too: {jury} (by standing, from all accounts that have "
            "any but the accuser's; while the run rests on its coordinator, from all with credit); "
            f"{notes['needed']} of them decide"
        )


def _barred(state: FoldState, number: int, name: str, node: str) -> str:
    """Why an account can call no state wrong now, or not this one by this node; "" when it can."""
    owner = state.accounts[name]
    if owner.barred:
        return reasons.BARRED
    if number in state.charges or {name, node} & set(state.heard.get(number, ())):
        return reasons.DUPLICATE
    if not state.credit(name):
        return reasons.NO_CREDIT
    if state.round < owner.silenced or any(one.account == name for one in state.charges.values()):
        return reasons.TOO_MANY
    stands = name in state.standings() or state.rests_on == "coordinator"
    return "" if stands else reasons.NO_STANDING


def drawn(state: FoldState, number: int, accuser: str) -> tuple[str, ...]:
    """Accounts that may decide on a state, in the order of the lot, at most :data:`MOST_JURY`.

    Those that signed it too: an honest one has computed it, or finds out that it did not. Nobody
    without standing, once there are enough who have some: keys that cost nothing would be most.
    """
    standings = state.standings()
    weights = {
        name: standings.get(name, 0)
        for name, owner in state.accounts.items()
        if name != accuser and owner.registered and not owner.barred and state.credit(name)
        if owner.silenced <= state.round
        if name in standings or state.rests_on == "coordinator"
    }
    purpose = f"state/{number}/{state.states[number]}"
    return tuple(islice(lot.order(state.lot, purpose, weights), MOST_JURY))


def needed(charge: Charge) -> int:
    """How many of the jury decide, when they have computed the same root."""
    return min(JURY, len(charge.jury)) // 2 + 1


def settle(state: FoldState, number: int, right: str) -> tuple[LeftOut, ...]:
    """The charge on a state ends, since ``right`` is its root: of those that said another one each
    loses its standing, and is not heard for ``trust.standing_rounds`` rounds."""
    charge = state.charges.pop(number)
    false = [
        (node, name, reasons.FALSE_CHECK)
        for name, (node, root) in sorted(charge.said.items())
        if root != right
    ]
    if right == state.states[number]:
        false.append((charge.node, charge.account, reasons.FALSE_ACCUSATION))
    for _, name, _ in false:
        state.standing.forfeit(name)
        silent = state.round + state.founded.trust.standing_rounds
        state.changing(name).silenced = silent
    place = place_of(state, number)
    return state.leave_out(tuple(LeftOut(*place, *one) for one in false))


def asked(state: FoldState, charge: Charge) -> tuple[str, ...]:
    """The accounts of the jury whose answers count now: one more after every few attempts of a
    round that were opened since, for those that do not answer."""
    more = charge.attempts // state.founded.trust.audit_rounds
    return charge.jury[: JURY + more]


def wait_for_jury(state: FoldState) -> None:
    """An attempt was opened: charges grow older, and lapse when nobody is left to be asked."""
    longest = (MOST_JURY - JURY + 1) * state.founded.trust.audit_rounds
    older = {at: replace(one, attempts=one.attempts + 1) for at, one in state.charges.items()}
    state.charges = {at: one for at, one in older.items() if one.attempts < longest or one.proven}


def place_of(state: FoldState, number: int) -> tuple[int, int]:
    """Round and attempt that made the state with this number; -1 when that is not known."""
    anchor = anchor_of(state, number)
    return (number - 1, anchor.attempt) if anchor is not None else (-1, -1)


def state_wrong(
    node: Identity, run: str, *, state: int, attempt: int, recorded: str, root: str
) -> Envelope:
    """The node computed ``root`` for the state with this number."""
    body = {"run": run, "node": node.peer_id, "state": state, "attempt": attempt}
    return signed(StateWrong, body | {"recorded": recorded, "root": root}, node)
