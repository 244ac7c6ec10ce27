"""``contribution``: what a node made in a round."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from artel.ledger.entries import reasons
from artel.ledger.entries.body import (
    AttemptBody,
    Count,
    Digest,
    Entry,
    Hardware,
    PeerId,
    Positive,
    signed,
)
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.records import RECORDED, Attempt, Effect, Outcome, ValidContribution
from artel.ledger.entries.story import (
    Fact,
    Story,
    counted,
    earning,
    fate_of_work,
    judged,
    outcome_of,
    steps_of,
)
from artel.ledger.entries.words import plural, short_key
from artel.protocol.content import commitment
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity, short_peer
from artel.protocol.round_state import (
    COMMITMENT_MISMATCH,
    COPIED,
    NO_NUMBERS,
    WRONG_SPAN,
    WRONG_STATE,
    WRONG_TOKENS,
)


class Contribution(AttemptBody):
    """A node's claim: from ``base``, with ``tokens`` assigned tokens, it made ``blob``.

    ``blob`` is a content id, ``size`` all bytes of the contribution (in a sharded round the index
    that the id names and its parts), ``payload`` what its numbers are known by whatever header
    they have (:func:`protocol.exchange.pseudogradient.payload_digest`), ``salt`` opens the
    commitment. ``tail`` and ``head`` are the
    steps in it: the last ones of the assignment of the round before, and the first ones of this
    one. ``span`` is the round since which the node has kept what training remembers, 0 in a run
    without spans (:mod:`protocol.assignment`). ``chain`` is the content id of its steps'
    fingerprints (:mod:`protocol.fingerprints`), ``hardware`` the class of what computed, by the
    node's own account. ``up`` and ``down`` are the bytes that the node's
    streams carried since its contribution before; nobody can check them, and nothing is paid for
    them. Signed by the node.
    """

    KIND: ClassVar = "contribution"
    TITLE: ClassVar = "Contribution"
    kind: Literal["contribution"] = "contribution"
    node: PeerId
    base: Digest
    blob: Digest
    size: Positive
    payload: Digest
    salt: Digest
    tokens: Positive
    tail: Count
    head: Positive
    span: Count
    chain: Digest
    hardware: Hardware
    up: Count
    down: Count

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if entry.signers != {key_of(self.node)}:
            return reasons.WRONG_SIGNERS
        attempt = state.current(self.round, self.attempt, "revealing")
        if attempt is None:
            return reasons.OUT_OF_ORDER
        if self.node not in attempt.accounts:
            return reasons.NOT_MEMBER
        if self.node not in attempt.commitments:
            return reasons.NOT_COMMITTED
        if self.node in attempt.shown:
            return reasons.DUPLICATE
        if self.base != state.states[-1]:
            return WRONG_STATE
        if not self._in_bounds(state, attempt):
            return WRONG_TOKENS
        before, left = state.spans.get(self.node), state.tails.get(self.node, 0)
        if not state.work.spans(self.round, self.span, self.tail, before, left):
            return WRONG_SPAN
        goes_on = state.work.span and self.span != self.round
        if goes_on and self.hardware != state.hardware.get(self.node):
            return WRONG_SPAN
        salt = bytes.fromhex(self.salt)
        shown = commitment(self.run, self.round, self.attempt, self.node, self.blob, salt)
        if shown != attempt.commitments[self.node]:
            return COMMITMENT_MISMATCH
        empty = self.payload == NO_NUMBERS  # zeros of two nodes are alike, whoever made them
        if not empty and state.shown_by(self.payload) not in (None, (self.node, self.round)):
            return COPIED

        def effect() -> Outcome:
            made = ValidContribution(
                entry.id,
                state.size,
                self.tokens,
                self.head,
                self.span,
                self.salt,
                self.hardware,
                empty,
            )
            attempt.shown[self.node] = made
            if not empty:
                state.remember(self.payload, self.node, self.round)
            return RECORDED

        return effect

    def _in_bounds(self, state: FoldState, attempt: Attempt) -> bool:
        """Whether the steps are ones that the node was assigned, and the tokens are theirs."""
        work, assigned = state.work, attempt.steps[self.node]
        return (
            work.least_head(self.round, assigned) <= self.head <= work.head(self.round, assigned)
            and self.tail <= state.tails.get(self.node, 0)
            and self.tokens == work.tokens(self.tail + self.head)
        )

    def says(self) -> str:
        steps = f"{self.tail} + {self.head}" if self.tail else f"{self.head}"
        tokens, size = plural(self.tokens, "token"), plural(self.size, "byte")
        many = "step" if self.tail + self.head == 1 else "steps"
        return f"node {short_peer(self.node)}: {steps} {many}, {tokens}, {size}"

    def explain(self, story: Story) -> Iterator[Fact]:
        trail = story.trail
        assert trail.opened is not None
        assert trail.committed is not None
        (opened, _), (committed, _) = trail.opened, trail.committed
        steps = steps_of(story, self.node)
        yield Fact(f"{steps} (entry {opened})", (opened,))
        yield Fact(counted(story, self))
        if every := story.genesis.rules.work.span:
            yield Fact(
                f"the node had begun anew from the agreed state in round {self.span} (rounds.span "
                f"{every}); the work follows from what the ledger names since then"
            )
        yield Fact(
            f"it computed on {self.hardware or 'a machine of unknown class'}, the node says; the "
            f"fingerprints of its steps are the content {short_key(self.chain)}"
        )
        yield Fact(
            f"the node says that it sent {plural(self.up, 'byte')} and received "
            f"{plural(self.down, 'byte')} since its contribution before; nothing is paid for that"
        )
        yield Fact(
            f"round {self.round} was opened by entry {opened}; the node had committed to "
            f"exactly this by entry {committed}",
            (opened, committed),
        )
        yield from self._unpaid(story) if story.work is None else self._paid(story)

    def _paid(self, story: Story) -> Iterator[Fact]:
        closed, chosen = story.trail.closed[0]
        agreed, accepted = story.about.granted, len(chosen.accepted)
        yield Fact(
            f"accepted by entry {closed}, agreed by entry {agreed} with "
            f"{story.trail.agreeing} of {plural(accepted, 'contributor')}",
            (closed, agreed),
        )
        yield earning(story.about)
        yield from fate_of_work(story)

    def _unpaid(self, story: Story) -> Iterator[Fact]:
        trail = story.trail
        account = trail.accounts[self.node]
        if self.node in trail.rejected:
            closed, reason = trail.rejected[self.node]
            why = f"{reasons.explain(reason)} ({reason})"
            yield Fact(f"left out by entry {closed}: {why}", (closed,))
        yield from outcome_of(trail)
        if trail.agreed is not None and story.state.accounts[account].barred:
            yield Fact(f"account {short_key(account)} is barred and earns nothing")
        if self.payload == NO_NUMBERS:
            yield Fact(f"{reasons.explain(reasons.EMPTY)} ({reasons.EMPTY})")
        for number in trail.wrong_of(self.node):
            yield from judged(trail, number)


def contribution(
    identity: Identity,
    run: str,
    *,
    round: int,
    attempt: int,
    base: str,
    blob: str,
    size: int,
    payload: str,
    salt: bytes,
    tokens: int,
    head: int,
    chain: str,
    hardware: str = "",
    tail: int = 0,
    span: int = 0,
    up: int = 0,
    down: int = 0,
) -> Envelope:
    """Claim a contribution of the node ``identity``. ``salt`` has 32 bytes.

    :param head: steps of this round's assignment in it; ``tail``: of the round before
    :param span: the round since which the node has kept what training remembers; 0 without spans
    :param chain: content id of the fingerprints of its steps
    :param hardware: class of what computed, at most 64 characters
    :param up: bytes sent since the contribution before; ``down``: bytes received
    """
    body = {"run": run, "round": round, "attempt": attempt, "node": identity.peer_id, "base": base}
    body |= {"blob": blob, "size": size, "payload": payload, "salt": salt.hex(), "tokens": tokens}
    body |= {"tail": tail, "head": head, "span": span, "chain": chain, "hardware": hardware}
    body |= {"up": up, "down": down}
    return signed(Contribution, body, identity)
