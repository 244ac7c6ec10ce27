"""``node``: a node works for an account."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Body, Digest, Entry, PeerId, Positive, signed
from artel.ledger.entries.credit import invalidate, unproven
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.records import Effect, Outcome
from artel.ledger.entries.story import Fact, Story, as_of, totals
from artel.ledger.entries.words import short_key
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer

MAX_NODES = 64
"""That belong to an account at a time: each is a member in the eyes of all others, for ever."""


class Node(Body):
    """Binds a node to an account; signed by both keys, and by that of the coordinator which the
    node starts if members choose it: no key can begin its term but this, and the node answers for
    what is signed with it. A later one moves *future* credit, and names the same coordinator: else
    a node could leave what was signed with its key behind, or begin no term with seals for it.

    The node is new then. What of its work has not been found right is lost: else what it does for
    another account would prove it, and a conviction would take nothing of the one it was done for.

    ``seq`` is above that of the node's earlier bindings, so that none can be played back.
    """

    KIND: ClassVar = "node"
    TITLE: ClassVar = "Node of an account"
    kind: Literal["node"] = "node"
    node: PeerId
    account: Digest
    coordinator: Digest
    seq: Positive

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        owner = state.registered(self.account)
        if owner is None:
            return reasons.UNKNOWN_ACCOUNT
        keys = {owner.key, key_of(self.node), self.coordinator}
        if entry.signers != keys or self.coordinator in state.coordinators:
            return reasons.WRONG_SIGNERS
        if self.coordinator != state.coordinator_of.get(self.node, self.coordinator):
            return reasons.WRONG_SIGNERS
        if self.seq <= state.node_seq.get(self.node, 0):
            return reasons.WRONG_SEQUENCE
        before = state.account_of(self.node)
        if before == self.account:
            return reasons.DUPLICATE
        if list(state.nodes.values()).count(self.account) >= MAX_NODES:
            return reasons.TOO_MANY_NODES

        def effect() -> Outcome:
            state.nodes[self.node] = self.account
            state.coordinator_of[self.node] = self.coordinator
            state.node_seq[self.node] = self.seq
            if not before:
                return Outcome("recorded")
            gone_from = state.left.get(self.node, ())
            state.left[self.node] = (*gone_from, (state.size, before))
            lost = unproven(state, self.node, before)
            for kept in (state.cleared, state.found_right, state.unproven):
                kept.pop(self.node, None)
            state.spans = {node: first for node, first in state.spans.items() if node != self.node}
            gone = tuple(invalidate(state, credit.source) for credit in lost)
            return Outcome("recorded", invalidated=gone, notes={"before": before})

        return effect

    def concerns(self, state: FoldState) -> set[str]:
        return {self.account, state.account_of(self.node)}

    def says(self) -> str:
        return f"node {short_peer(self.node)} belongs to account {short_key(self.account)}"

    def explain(self, story: Story) -> Iterator[Fact]:
        yield Fact("signed by the node's and the account's key")
        yield Fact(f"if members choose it, it leads with the key {self.coordinator}")
        before = story.outcome.notes.get("before")
        if before:
            yield Fact(
                f"until then the node belonged to account {short_key(before)}; what of its work "
                "had not been found right is taken away from that one"
            )
        account = short_key(self.account)
        yield Fact(
            f"rounds that are opened after entry {story.index} give credit to account {account}"
        )
        now = story.state.account_of(self.node)
        if now != self.account:
            yield Fact(f"{as_of(story)} it belongs to account {short_key(now)}")
        yield from totals(story)


def node(
    identity: Identity, owner: Identity, run: str, *, account: str = "", seq: int = 1
) -> Envelope:
    """Bind the node ``identity`` to the account whose present key is ``owner``.

    :param account: the account's name, when it is no longer its key
    """
    body = {"run": run, "node": identity.peer_id, "account": account or owner.key, "seq": seq}
    body |= {"coordinator": identity.elected.key}
    return signed(Node, body, identity, owner, identity.elected)
