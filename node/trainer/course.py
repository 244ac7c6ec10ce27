"""A node's way through the rounds of a run: its weights, what they follow, and what it sends.

Two walk it, by the same code: the node itself (:mod:`node.trainer.training`), and whoever repeats
what another node did (:mod:`node.trainer.repeating`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from artel.node.trainer import exchange
from artel.node.trainer.agreed import Change
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.data import Batch, Windows
from artel.node.trainer.inner import Inner, training_seed
from artel.node.trainer.orders import Window
from artel.node.trainer.schedule import learning_rate, position, ramp
from artel.protocol import assignment
from artel.protocol.amending import amended
from artel.protocol.exchange import parts
from artel.protocol.exchange.feedback import Feedback
from artel.protocol.exchange.parts import Part
from artel.protocol.fingerprints import Rows, places_of
from artel.protocol.manifest import Manifest
from artel.protocol.state import Layout, State, Vector


@dataclass
class Sent:
    """A pseudo-gradient that was formed and encoded."""

    round: int
    node: str
    parts: list[Part]
    payloads: list[bytes]
    """Of each part; kept only where there is error feedback."""
    tail: int = 0
    """Steps trained since then: all of the tail or none."""


@dataclass
class Course:
    """One node's weights and what goes with them; ``inner`` may be shared, one at a time."""

    manifest: Manifest
    layout: Layout
    inner: Inner
    feedback: Feedback | None
    """Only with a sparse codec."""
    fingerprints: list[torch.Tensor] = field(default_factory=list, init=False)
    """Of the steps since the last contribution, or in it (:mod:`protocol.fingerprints`)."""
    _span: int = field(default=0, init=False)
    """The round in which the span began that the weights are of."""
    _weights: Vector | None = field(default=None, init=False)
    """Memory for the weights at which the last pseudo-gradient was formed, (N,)."""

    def begin(self, state: State) -> None:
        """Begin a span: the weights are the state, and nothing else is remembered."""
        self.inner.begin(state.params)
        self._span = state.round
        if self.feedback is not None:
            self.feedback.reset()

    def follow(self, state: State, changes: Sequence[Change], sent: Sent | None, tail: int) -> None:
        """Let the weights follow the state, and keep for later what a round has made no use of.

        :param changes: what has led to the state since ``sent``, the last pseudo-gradient
        :param tail: steps since then that stay in the weights: all of them, or none
        """
        if sent is not None and sent.tail and not tail:
            assert self._weights is not None
            self.inner.load(self._weights)
        for part in dict.fromkeys(self.fragment(change.round) for change in changes):
            self.inner.merge(part, state.params, self._weights if tail else None)
        if sent is not None:
            for change in changes:
                if change.round == sent.round:
                    self._settle(sent, change)

    def _settle(self, sent: Sent, change: Change) -> None:
        if self.feedback is None:
            return
        if sent.node not in change.counted:
            self.feedback.left_out(sent.parts, sent.payloads)
        elif change.kept is not None:
            for part, payload, kept in zip(sent.parts, sent.payloads, change.kept, strict=True):
                self.feedback.put_back(part, payload, kept)

    def begin_head(self, round: int, node: str, tail: Sequence[torch.Tensor]) -> None:
        """What is random in the head of a round is fixed from here on.

        :param tail: fingerprints of the steps of a tail that are in the weights
        """
        self.fingerprints = list(tail)
        self._seed(round, node, tail=False)

    def begin_tail(self, round: int, node: str) -> Vector:
        """The same for its tail; the weights of now, (N,), are those that were sent: returned."""
        self._weights = self.inner.read(self._weights)
        self.fingerprints = []
        self._seed(round, node, tail=True)
        return self._weights

    def _seed(self, round: int, node: str, *, tail: bool) -> None:
        self.inner.seed(training_seed(self.manifest.config.run.seed, round, node, tail=tail))

    def steps(
        self,
        windows: Sequence[Window],
        round: int,
        numbers: range,
        steps: int,
        changes: Mapping[str, str],
    ) -> Iterator[torch.Tensor]:
        """Train steps ``numbers`` of a round in which ``steps`` were assigned, one for each
        ``next``; gives their losses (:meth:`node.trainer.inner.Inner.step`).

        :param windows: exactly those of these steps
        :param changes: what was amended for the round
        :raises TrainerError: ``bad_data``, ``bad_request``: at once, before the first step
        """
        config = amended(self.manifest.config, changes)
        size = config.optimizer.batch_size
        data = Windows(self.manifest, windows)
        if len(data) != len(numbers) * size:
            raise TrainerError(
                "bad_request",
                f"{len(numbers)} steps take {len(numbers) * size} windows, {len(data)} were given",
            )
        chosen = places_of(config.run.seed, round, self.layout.parameters)
        places = torch.from_numpy(chosen).to(self.inner.device)

        def step(number: int, batch: Batch) -> torch.Tensor:
            place = position(config, round, number, steps)
            rate = learning_rate(config, place) * ramp(config, place, self._span)
            loss = self.inner.step(batch, rate)
            self.fingerprints.append(self.inner.fingerprint(loss, places))
            return loss

        return (step(*each) for each in zip(numbers, data.batches(size), strict=True))

    def send(self, round: int, node: str, base: State, slices: int) -> Sent:
        """Form and encode the pseudo-gradient of a round's fragment; the feedback changes.

        :param base: the state that the round starts from
        :param slices: of a sharded round; 0: it is one piece
        :raises TrainerError: ``diverged``; then nothing has changed
        """
        part = self.fragment(round)
        gradient = np.subtract(part.take(base.params), part.take(self.inner.look()))
        count = assignment.slices_of(self.manifest.config.exchange, slices)
        pieces = parts.cut(part, count) if slices else [part]
        payloads = exchange.encode(self.manifest, pieces, gradient, self.feedback)
        return Sent(round, node, pieces, payloads)

    def rows(self) -> Rows:
        """The fingerprints as they are kept, (steps, ROW)."""
        made: Rows = torch.stack(self.fingerprints).cpu().numpy()
        return made.astype("<f4", copy=False)

    def fragment(self, round: int) -> Part:
        """The part of the model that a round exchanges."""
        return parts.fragment(self.layout, self.manifest.config.exchange.fragments, round)
