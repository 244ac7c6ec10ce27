"""``diverged``: training has made the model worse, though nobody cheated."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from statistics import median_low
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from artel.ledger.entries import reasons
from artel.ledger.entries.anchors import ANCHORS, anchor_of, oldest_anchor
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
from artel.ledger.entries.fold_state import FoldState, key_of
from artel.ledger.entries.kinds.state_wrong import place_of
from artel.ledger.entries.records import Charge, Effect, Outcome
from artel.ledger.entries.story import Fact, Story
from artel.ledger.entries.words import plural, short_key
from artel.protocol import canonical, dsse
from artel.protocol.dsse import Envelope, Signing
from artel.protocol.identity import Identity
from artel.protocol.messages import MAX_LOSS
from artel.protocol.round_state import WRONG_STATE
from artel.protocol.seats import carries

LOSS_TYPE = "application/vnd.artel.loss+json"
MICRO = 1_000_000
NOT_FINITE = round(MAX_LOSS * MICRO)
"""Says that a loss is not a number, is infinite, or so large that it makes no difference."""
Loss = Annotated[int, Field(ge=0, le=NOT_FINITE)]
LATEST = 2
"""Newest states that can be said to have diverged: what has come right since is left alone."""


class ToldLoss(Record):
    """What a node measured: the held-out loss of a state and of the better one before it, in
    millionths of a nat per token, each with its signature (:func:`loss_vote`)."""

    node: PeerId
    loss: Loss
    better: Loss
    signature: Signature
    better_signature: Signature


class TrainingDiverged(Body):
    """The state with the number ``state`` is worse than the one with the number ``better``: nodes
    with more than half of the say of those whose contributions it holds have measured at least five
    quarters of the loss. Signed by a coordinator.

    Nothing is wrong with the state, so nobody is to blame: training went astray, by a learning rate
    that is too high or by bad data. The run goes back (``rolled_back``).
    """

    KIND: ClassVar = "diverged"
    TITLE: ClassVar = "Training diverged"
    DOCUMENT: ClassVar = ("losses",)
    kind: Literal["diverged"] = "diverged"
    state: Positive
    root: Digest
    better: Count
    better_root: Digest
    losses: Annotated[tuple[ToldLoss, ...], Field(min_length=1), *LISTED]

    def signings(self) -> Iterator[Signing]:
        for told in self.losses:
            key = key_of(told.node)
            said = loss_message(self.run, self.state, self.root, told.loss)
            yield key, bytes.fromhex(told.signature), said
            said = loss_message(self.run, self.better, self.better_root, told.better)
            yield key, bytes.fromhex(told.better_signature), said

    def rule(self, state: FoldState, entry: Entry) -> str | Effect:
        if not state.led_by(entry.envelope.signers):
            return reasons.WRONG_SIGNERS
        newest = state.round - LATEST < self.state <= state.round
        if state.closed or not newest or not oldest_anchor(state) <= self.better < self.state:
            return reasons.OUT_OF_ORDER
        # Whether a state is wrong comes first: who has lied could go behind it unpunished.
        if any(number > self.better for number in state.charges):
            return reasons.OUT_OF_ORDER
        roots = state.states[self.state], state.states[self.better]
        if roots != (self.root, self.better_root):
            return WRONG_STATE
        if self.root == self.better_root:
            return reasons.SAME_ROOT
        if not astray(state, self.state, self.losses):
            return reasons.NO_MAJORITY

        def effect() -> Outcome:
            state.charges[self.state] = Charge(
                entry.id, state.size, "", "", "", (), proven=self.better_root, better=self.better
            )
            number, again = state.setbacks
            again = again + 1 if again and self.state <= number + ANCHORS else 1
            state.setbacks = self.state, again
            return Outcome("recorded", notes={"again": again})

        return effect

    def place(self, state: FoldState) -> tuple[int, int]:
        """It is about the round that made the state."""
        return place_of(state, self.state)

    def says(self) -> str:
        now, then = (shown_loss(found) for found in self.medians())
        return f"the loss of state {self.state} is {now}, that of state {self.better} was {then}"

    def explain(self, story: Story) -> Iterator[Fact]:
        now, then = (shown_loss(found) for found in self.medians())
        yield Fact(
            f"{plural(len(self.losses), 'node')} that made state {self.state} measured its loss on "
            f"the text that is held out ({now} nats per token, by the median) and that of "
            f"state {self.better} ({then}); five quarters of the earlier one are too many"
        )
        yield Fact(
            "nobody is to blame, and nobody loses standing: no round begins until the run has gone "
            f"back to state {self.better}, {short_key(self.better_root)}, or an earlier one"
        )
        if (again := story.outcome.notes["again"]) > 1:
            yield Fact(f"the run has diverged {again} times in a row")

    def medians(self) -> tuple[int, int]:
        """Loss of the state and of the better one, in millionths."""
        return (
            median_low(told.loss for told in self.losses),
            median_low(told.better for told in self.losses),
        )


def is_worse(loss: int, better: int) -> bool:
    """Whether a state with this loss has diverged from one with that: a quarter more for each
    token, which no round costs a run that learns."""
    return 4 * loss > 5 * better


def astray(state: FoldState, number: int, losses: Iterable[ToldLoss]) -> bool:
    """Whether enough nodes say that the state with this number is worse: as many as agree on one.

    Each compares its own two numbers, so that a few cannot move what the others have measured.
    """
    anchor = anchor_of(state, number)
    made = anchor.moved_by if anchor is not None else ()
    saying = (told.node for told in losses if is_worse(told.loss, told.better))
    return carries(state.weights(made), made, saying)


def shown_loss(micro: int) -> str:
    """For people."""
    return "not finite" if micro >= NOT_FINITE else f"{micro / MICRO:.4f}"


def in_micro(loss: float) -> int:
    """A loss (nats per token) as it is signed."""
    return min(NOT_FINITE, round(loss * MICRO))


def loss_message(run: str, state: int, root: str, loss: int) -> bytes:
    """The bytes that a node signs to say that it has measured this loss (millionths of a nat)."""
    said = {"run": run, "state": state, "root": root, "loss": loss}
    return dsse.pae(LOSS_TYPE, canonical.dumps(said))


def diverged(
    coordinator: Identity,
    run: str,
    *,
    state: int,
    root: str,
    better: int,
    better_root: str,
    losses: Iterable[ToldLoss],
) -> Envelope:
    """Record that a state is worse than an earlier one, to which the run has to go back."""
    told = tuple(sorted(losses, key=lambda one: one.node))
    body = {"run": run, "state": state, "root": root, "better": better, "better_root": better_root}
    return signed(TrainingDiverged, body | {"losses": told}, coordinator)
