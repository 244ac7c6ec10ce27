"""``witnessed``: nodes cosigned a tree head."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artel.ledger.entries import reasons
from artel.ledger.entries.body import (
    LISTED,
    Body,
    Count,
    Digest,
    Entry,
    PeerId,
    Positive,
    Record,
    Signature,
    signed,
)
from artel.ledger.entries.credit import grant
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.records import Credit, Effect, Outcome
from artel.ledger.entries.story import Fact, Story, arithmetic
from artel.ledger.entries.words import plural, short_key
from artel.ledger.tlog.checkpoint import Checkpoint, origin_of
from artel.ledger.tlog.cosignature import cosigned_bytes
from artel.protocol.dsse import Envelope, Signing
from artel.protocol.identity import Identity


class Cosignature(Record):
    """A witness's cosignature (C2SP tlog-cosignature, Ed25519), made at ``time`` (seconds)."""

    node: PeerId
    time: Count
    signature: Signature


class Witnessed(Body):
    """Nodes replayed the first ``size`` entries and cosigned their tree head; by a coordinator."""

    KIND: ClassVar = "witnessed"
    TITLE: ClassVar = "Tree head cosigned"
    DOCUMENT: ClassVar = ("cosignatures",)
    kind: Literal["witnessed"] = "witnessed"
    term: Count
    size: Positive
    root: Digest
    cosignatures: Annotated[tuple[Cosignature, ...], Field(min_length=1), *LISTED]

    def signings(self) -> Iterator[Signing]:
        head = Checkpoint(origin_of(self.run, self.term), self.size, bytes.fromhex(self.root))
        text = head.encode()
        for item in self.cosignatures:
            signature = bytes.fromhex(item.signature)
            yield key_of(item.node), signature, cosigned_bytes(text, item.time)

    def heads(self) -> Iterator[tuple[int, str]]:
        yield self.size, self.root

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if not state.led_by(entry.envelope.signers):
            return reasons.WRONG_SIGNERS
        if not state.witnessed < self.size <= state.size:
            return reasons.OUT_OF_ORDER
        if not all(item.node in state.nodes for item in self.cosignatures):
            return reasons.UNKNOWN_NODE
        counted = state.trusted(item.node for item in self.cosignatures)
        seats = {state.account_of(node): node for node in reversed(counted)}
        seats = {name: seats[name] for name in sorted(seats)}

        def effect() -> Outcome:
            wanted = state.founded.witnesses
            notes = {"marks": {n: state.accounts[n].witnessed for n in seats}, "final": state.final}
            certified = 0 < wanted <= len(seats) and state.electors.quorum(counted, self.size)
            state.witnessed, state.cosigners = self.size, list(seats)
            if certified:
                state.final = max(state.final, state.electors.certify(state.size, self.size))
            notes |= {"certified": certified, "now": state.final}
            found = (self._pay(state, name, seats[name]) for name in seats)
            granted = tuple(credit for credit in found if credit is not None)
            status = "credited" if granted else "recorded"
            return Outcome(status, granted=granted, notes=notes)

        return effect

    def _pay(self, state: FoldState, name: str, node: str) -> Credit | None:
        """Pay an account for the entries that it had not cosigned before; mark them, paid or not.

        Accounts cost nothing; only those that also compute are paid for watching.
        """
        owner = state.changing(name)
        units, owner.witnessed = self.size - owner.witnessed, max(owner.witnessed, self.size)
        if units <= 0 or name not in state.recent or state.closed:
            return None
        return grant(
            state,
            "witness",
            f"witness/{self.size}/{name}",
            name,
            node=node,
            round=state.round,
            units=units,
            due=state.round + max(1, state.founded.ownership.vesting_rounds),
        )

    def says(self) -> str:
        cosigned = plural(len(self.cosignatures), "cosignature")
        return f"{cosigned} of the first {plural(self.size, 'entry', 'entries')}"

    def explain(self, story: Story) -> Iterator[Fact]:
        same, marks = story.root == self.root, story.outcome.notes["marks"]
        yield Fact(
            f"the tree over the first {plural(self.size, 'entry', 'entries')} of this ledger has "
            + (f"the root {short_key(self.root)} that was cosigned" if same else "ANOTHER root")
        )
        needed, notes = story.genesis.rules.witnesses, story.outcome.notes
        nodes, accounts = plural(len(self.cosignatures), "node"), plural(len(marks), "account")
        yield Fact(f"cosigned by {nodes} of {accounts}; {needed} must (ledger.witnesses)")
        if notes["certified"]:
            yield Fact("a quorum of the electors is among them: this head is certified")
        if (final := notes["now"]) > notes["final"]:
            yield Fact(
                f"entries {notes['final']} to {final - 1} became final: the first {self.size} hold "
                f"the record that a head of {final} was certified"
            )
        paid = {trail.credit.account: trail for trail in story.credits}
        for name, trail in paid.items():
            yield Fact(
                f"account {short_key(name)} replayed entries {marks[name]} to {self.size - 1}: "
                f"{arithmetic(trail)}"
            )
        for name in sorted(marks.keys() - paid.keys()):
            yield Fact(
                f"account {short_key(name)} earns nothing for it: it did not contribute to the "
                "newest agreed state, or had cosigned all of this before"
            )


def witnessed(
    coordinator: Identity,
    run: str,
    *,
    size: int,
    root: str,
    cosignatures: Iterable[Cosignature],
    term: int = 0,
) -> Envelope:
    """Record cosignatures of a tree head."""
    items = tuple(sorted(cosignatures, key=lambda item: item.node))
    body = {"run": run, "term": term, "size": size, "root": root, "cosignatures": items}
    return signed(Witnessed, body, coordinator)
