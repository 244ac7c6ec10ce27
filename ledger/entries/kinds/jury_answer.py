"""``jury_answer``: one of the jury has computed a state that was called wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Body, Digest, Entry, PeerId, signed
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.kinds.state_wrong import asked, needed, place_of, settle
from artel.ledger.entries.records import Effect, LeftOut, Outcome
from artel.ledger.entries.story import Fact, Story
from artel.ledger.entries.words import short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer


class JuryAnswer(Body):
    """A node whose account was drawn has computed the state that the entry ``charge`` calls wrong,
    and got ``root``; signed by it."""

    KIND: ClassVar = "jury_answer"
    TITLE: ClassVar = "Answer of the jury"
    kind: Literal["jury_answer"] = "jury_answer"
    charge: Digest
    node: PeerId
    root: Digest

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {key_of(self.node)}:
            return reasons.WRONG_SIGNERS
        number = charged(state, self.charge)
        charge = state.charges.get(number)
        if charge is None or charge.proven:
            return reasons.NOT_ACCUSED
        name = state.account_of(self.node)
        if name not in asked(state, charge):
            return reasons.NOT_DRAWN
        # A node that has moved to another account of the jury is not heard once more.
        if name in charge.said or self.node in {node for node, _ in charge.said.values()}:
            return reasons.DUPLICATE
        if state.accounts[name].barred:
            return reasons.BARRED

        def effect() -> Outcome:
            said = charge.said | {name: (self.node, self.root)}
            known = replace(charge, said=said)
            state.charges[number] = known
            agreeing = Counter(root for _, root in said.values())[self.root]
            recorded = state.states[number]
            notes = {"charge": charge.index, "recorded": recorded, "agreeing": agreeing}
            notes |= {"needed": needed(charge)}
            left_out: tuple[LeftOut, ...] = ()
            if agreeing >= needed(charge) and self.root == recorded:
                left_out = settle(state, number, recorded)
            elif agreeing >= needed(charge):
                # Nobody loses anything by that: the coordinator has to find the same first.
                state.charges[number] = replace(known, proven=self.root)
            return Outcome("recorded", left_out=left_out, notes=notes)

        return effect

    def place(self, state: FoldState) -> tuple[int, int]:
        return place_of(state, charged(state, self.charge))

    def concerns(self, state: FoldState) -> set[str]:
        return {state.account_of(self.node)} & state.accounts.keys()

    def says(self) -> str:
        node, charge = short_peer(self.node), short_key(self.charge)
        return f"node {node} computed the state of charge {charge}: {short_key(self.root)}"

    def explain(self, story: Story) -> Iterator[Fact]:
        notes = story.outcome.notes
        charge, right = notes["charge"], notes["recorded"] == self.root
        yield Fact(f"its account was drawn when entry {charge} called the state wrong", (charge,))
        yield Fact(f"what it computed is {'the recorded root' if right else 'another root'}")
        if notes["agreeing"] < notes["needed"]:
            return
        yield Fact(
            f"{notes['needed']} of those drawn say so: "
            + (
                "the state is right; whoever said another root loses its standing, and is not "
                "heard for a while (trust.standing_rounds)"
                if right
                else "no round begins until the coordinator has gone back, or has computed what is "
                "recorded (rolled_back, state_upheld)"
            )
        )
        for item in story.outcome.left_out:
            yield Fact(f"node {short_peer(item.node)}: {reasons.explain(item.reason)}")


def charged(state: FoldState, entry: str) -> int:
    """Number of the state that this entry calls wrong, while that is not settled; else -1."""
    found = (number for number, charge in state.charges.items() if charge.entry == entry)
    return next(found, -1)


def jury_answer(node: Identity, run: str, *, charge: str, root: str) -> Envelope:
    """The node, whose account was drawn, computed ``root``.

    :param charge: id of the entry that calls the state wrong
    """
    body = {"run": run, "node": node.peer_id, "charge": charge, "root": root}
    return signed(JuryAnswer, body, node)
