"""Training of one row of the convergence benchmark."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch

from artel.node.trainer.schedule import learning_rate, position
from artel.protocol.assignment import Work
from artel.protocol.exchange import codec as codecs
from artel.protocol.exchange import outer, parts, pseudogradient
from artel.protocol.exchange.aggregate_slice import combine
from artel.protocol.exchange.aggregation import Weighted
from artel.protocol.exchange.feedback import Feedback
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.run_config import RunConfig
from artel.protocol.state import State, Vector, state_root
from benchmarks.convergence_model import Corpus, Loss, Worker
from benchmarks.convergence_rows import Plan, Row

POINTS = 5
"""Losses of a row's curve; the last one is the result."""
VALIDATION_WINDOWS = 256
_DROPS = 0xD0

Tick = Callable[[float], None]
"""``tick(part of the row that is done)`` reports progress."""


@dataclass
class Outcome:
    """What a row gave."""

    curve: list[tuple[int, float]] = field(default_factory=list)
    """(tokens, loss in nats per token on the held-out windows), the last one at the end."""
    tokens: int = 0
    """Of all workers, those of lost contributions included."""
    bits: float = 0.0
    """Sent by a worker, per parameter and round."""
    parameters: int = 0
    rounds: int = 0
    seconds: float = 0.0
    exchange_seconds: float = 0.0
    """Of it: codec, blob, aggregation and outer step, all workers together."""


@dataclass
class World:
    """What the rows of a table share."""

    plan: Plan
    corpus: Corpus
    loss: Loss
    bf16: bool

    def __post_init__(self) -> None:
        self.validation = self.corpus.validation(VALIDATION_WINDOWS, self.plan.seq_len)

    def windows(self, row: Row, worker: int, step: int) -> torch.Tensor:
        plan = self.plan
        return self.corpus.batch(row.seed, worker, step, plan.batch, plan.seq_len)

    def measure(self, worker: Worker) -> float:
        return worker.loss(self.validation, 32)


def train_ddp(row: Row, config: RunConfig, world: World, tick: Tick) -> Outcome:
    """Every step on the batches of all workers together."""
    began, members = time.perf_counter(), world.plan.workers(row)
    worker = Worker(config, world.corpus.vocab_size, world.loss, world.bf16)
    outcome = Outcome(parameters=worker.layout.parameters, rounds=config.rounds.total)
    for step in range(config.rounds.total):
        windows = torch.cat([world.windows(row, k, step) for k in range(members)])
        worker.step(windows, learning_rate(config, step))
        outcome.tokens += members * world.plan.batch * world.plan.seq_len
        done = (step + 1) / config.rounds.total
        if _reached(done, outcome):
            outcome.curve.append((outcome.tokens, world.measure(worker)))
        tick(done)
    outcome.bits = 32.0
    outcome.seconds = time.perf_counter() - began
    return outcome


class Node:
    """A worker between two agreed states: head, contribution, tail, merge (docs/protocol.md)."""

    def __init__(self, row: Row, config: RunConfig, world: World, number: int) -> None:
        self.number = number
        self.tail = 0  # steps since the last contribution was formed
        self._row, self._config, self._world = row, config, world
        self._codec = codecs.of(config.exchange)
        self._work = Work.of(config)
        self._worker = Worker(config, world.corpus.vocab_size, world.loss, world.bf16)
        self.layout = self._worker.layout
        decay = config.exchange.error_feedback
        self.feedback = (
            Feedback(self._codec, self.layout, decay=decay)
            if isinstance(self._codec, codecs.Sparse)
            else None
        )
        slow = row.slow if number == 0 else 1
        self._steps = max(self._work.least, round(config.rounds.inner_steps / slow))
        self._able = config.rounds.inner_steps / slow  # steps that fit into the time box
        self._stream = 0
        self._lost = False  # whether the last contribution was
        self._ramped = row.ramp  # steps since the span began, as far as the ramp goes

    def initial(self) -> Vector:
        return self._worker.read()

    def begin(self, round: int, params: Vector) -> None:
        """Begin a span, where everybody does or the last contribution was lost: weights are the
        agreed state, and nothing is carried over."""
        if self._work.begins(round) or (self._work.span and self._lost):
            self._worker.load(params)
            self._worker.forget()
            self.tail = self._ramped = 0
            if self.feedback is not None:
                self.feedback.reset()
        self._lost = False

    def head(self, round: int) -> int:
        """Train the head of a round, as far as the time box allows; the steps made."""
        whole = self._work.head(round, self._steps)
        least = self._work.least_head(round, self._steps)
        made = min(whole, max(least, int(self._able)))
        self._train(round, 0, made)
        return made

    def run_on(self, round: int) -> None:
        """Train the tail of a round."""
        head = self._work.head(round, self._steps)
        self.tail = self._steps - head
        self._train(round, head, self._steps)

    def contribution(self, round: int, base: str, params: Vector) -> bytes:
        """The blob of the round's fragment."""
        part = self._part(round)
        local = part.take(self._worker.read())
        delta = part.take(params) - local
        self._sent = local.copy()
        if self.feedback is None:
            payload = self._codec.encode(part.layout, delta)
        else:
            payload = self.feedback.encode([part], [delta])[0]
        return Header(round, base, self._codec).wrap(part.layout, payload)

    def merge(self, round: int, params: Vector) -> None:
        """Take over what the round changed; the steps of the tail stay on top of it."""
        part = self._part(round)
        local = self._worker.read()
        part.put(part.take(params) + (part.take(local) - self._sent), local)
        self._worker.load(local)

    def left_out(self, round: int, payload: bytes) -> None:
        """The contribution was lost; with spans another one begins with the next round."""
        self._lost = True
        if self.feedback is not None:
            self.feedback.left_out([self._part(round)], [payload])

    def loss_of(self, params: Vector) -> float:
        """Validation loss of an agreed state; the local weights are put back."""
        local = self._worker.read()
        self._worker.load(params)
        loss = self._world.measure(self._worker)
        self._worker.load(local)
        return loss

    def _part(self, round: int) -> parts.Part:
        return parts.fragment(self.layout, self._config.exchange.fragments, round)

    def _train(self, round: int, first: int, stop: int) -> None:
        for step in range(first, stop):
            rate = learning_rate(self._config, position(self._config, round, step, self._steps))
            if self._ramped < self._row.ramp:
                self._ramped += 1
                rate *= self._ramped / (self._row.ramp + 1)
            self._worker.step(self._world.windows(self._row, self.number, self._stream), rate)
            self._stream += 1


def train_rounds(row: Row, config: RunConfig, world: World, tick: Tick) -> Outcome:
    """K workers, H inner steps a round, exchange as nodes do it."""
    began = time.perf_counter()
    exchange, chosen = config.exchange, codecs.of(config.exchange)
    nodes = [Node(row, config, world, k) for k in range(world.plan.workers(row))]
    layout, per_step = nodes[0].layout, world.plan.batch * world.plan.seq_len
    params = nodes[0].initial() * np.float32(1 + row.nudge)
    for node in nodes:
        node._worker.load(params)
    momentum = np.zeros_like(params) if exchange.outer.momentum else None
    outcome = Outcome(parameters=layout.parameters, rounds=config.rounds.total)
    blob_bytes = 0

    for number in range(config.rounds.total):
        part = parts.fragment(layout, exchange.fragments, number)
        blobs, weights = list[bytes](), list[int]()
        base = state_root(State(number, layout.digest, params, momentum))
        for node in nodes:
            node.begin(number, params)
            steps = node.tail + node.head(number)
            mark = time.perf_counter()
            blobs.append(node.contribution(number, base, params))
            weights.append(steps * per_step)
            outcome.exchange_seconds += time.perf_counter() - mark
            node.run_on(number)
        outcome.tokens += sum(weights)
        blob_bytes += sum(map(len, blobs))
        lost = _lost(row, number, len(nodes))

        mark = time.perf_counter()
        contributions = []
        for k, blob in enumerate(blobs):
            if k in lost:
                nodes[k].left_out(number, blob[pseudogradient.HEADER_BYTES :])
                continue
            vector = Header(number, base, chosen).load(blob, part.layout)
            contributions.append(Weighted(f"worker-{k}", weights[k], vector))
        update = combine(part.layout, contributions, exchange)
        params, momentum = advance(part, config, number, params, momentum, update)
        for node in nodes:
            node.merge(number, params)
        outcome.exchange_seconds += time.perf_counter() - mark
        done = (number + 1) / config.rounds.total
        if _reached(done, outcome):
            outcome.curve.append((outcome.tokens, nodes[0].loss_of(params)))
        tick(done)

    outcome.bits = 8 * blob_bytes / (config.rounds.total * len(nodes) * layout.parameters)
    outcome.seconds = time.perf_counter() - began
    return outcome


def advance(
    part: parts.Part,
    config: RunConfig,
    round: int,
    params: Vector,
    momentum: Vector | None,
    update: Vector,
) -> tuple[Vector, Vector | None]:
    """The outer step on the round's fragment; everything else stays."""
    settings = config.exchange.outer
    fresh, buffer = outer.outer_step(
        part.take(params),
        None if momentum is None else part.take(momentum),
        update,
        lr=outer.learning_rate(config.exchange, config.rounds.total, round),
        mu=settings.momentum,
        nesterov=settings.nesterov,
    )
    params = params.copy()
    part.put(fresh, params)
    if momentum is not None and buffer is not None:
        momentum = momentum.copy()
        part.put(buffer, momentum)
    return params, momentum


def _lost(row: Row, round: int, members: int) -> set[int]:
    """Workers whose contribution is lost; never all of them."""
    if not row.drop:
        return set()
    draws = np.random.default_rng((row.seed, _DROPS, round)).random(members)
    lost = set(np.flatnonzero(draws < row.drop).tolist())
    return lost if len(lost) < members else lost - {int(draws.argmax())}


def _reached(done: float, outcome: Outcome) -> bool:
    """Whether the next point of the curve is due."""
    return done >= (len(outcome.curve) + 1) / POINTS
