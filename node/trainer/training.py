"""A run as the trainer's main thread holds it: the model, its weights, and what is done with them.

The weights are the node's own and live on between commands; what all nodes agree on is the state
(:mod:`node.trainer.agreed`), which the merge thread moves on while this one trains. One round r of
a member, with H its steps, the last ``tail`` of which overlap the exchange (Streaming DiLoCo, arXiv
2501.18512):

1. :meth:`Training.train` merges: the fragment that round r - 1 changed becomes ``state + (weights -
   sent)``, where ``sent`` are the weights at which the last pseudo-gradient was formed, so that the
   tail's steps are kept; then it trains the head and encodes ``state - weights`` of round r's
   fragment. Where a span of rounds begins (:mod:`protocol.assignment`), weights are the whole state
   instead, and moments and error feedback are empty.
2. :meth:`Training.run_on` trains the tail, while the others' contributions come in and the merge
   thread applies them.

A command that fails leaves the weights, the optimisers and the error feedback as they were before
it, but for a tail that fails: then weights are those before it, and its steps are lost.

Memory on a CPU with N parameters in fp32: state 4N (8N with outer momentum), the next one as much
again until it is merged, weights 4N, gradients 4N, AdamW's moments 8N, the snapshot of weights and
moments at the head's beginning 12N, ``sent`` 4N with overlap, error feedback 8N with ``sparse``; an
evaluation 4N.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import psutil
import torch

from artel.node.trainer import bounds, exchange, machine, writing
from artel.node.trainer.agreed import Agreed, Change
from artel.node.trainer.channel import TrainerError, coded
from artel.node.trainer.course import Course, Sent
from artel.node.trainer.data import Batch, Windows, synthetic
from artel.node.trainer.inner import Inner, Saved, mean_loss
from artel.node.trainer.laps import Laps
from artel.node.trainer.merging import Merging
from artel.node.trainer.orders import (
    BeginReplay,
    Benchmark,
    Evaluate,
    GoOn,
    Measured,
    Replayed,
    RunOn,
    SetState,
    Steps,
    Train,
    Trained,
    Weighed,
)
from artel.node.trainer.repeating import Replay
from artel.node.trainer.schedule import learning_rate
from artel.protocol import assignment, content, model
from artel.protocol.amending import amended
from artel.protocol.cgroup import Groups
from artel.protocol.exchange.next_state import Base
from artel.protocol.manifest import Manifest, read_manifest
from artel.protocol.messages import MAX_LOSS
from artel.protocol.rlimit import at_most
from artel.protocol.state import Layout, State, read_state

REPORT_S = 0.5
"""Seconds between two progress reports."""

Report = Callable[[Steps], None]
Check = Callable[[], None]
"""Called between steps; raises ``cancelled`` when somebody asked for it."""


@dataclass
class Begun:
    """A head that was begun, and what can be done about it."""

    root: str
    """State root that it started from."""
    saved: Saved
    """Weights and optimisers at its beginning."""
    tail: int
    """Steps of the round before that are in the weights."""
    tail_seconds: float
    span: int
    """The round in which its span began; 0 in a run without spans."""
    fingerprints: list[torch.Tensor]
    """Of those steps."""
    hardware: str
    """The class that the span is computed by."""
    order: Train
    """By which it was trained last."""
    sent: Sent | None = None
    sent_tail_seconds: float = 0.0
    """Of the tail behind what was sent."""
    ran_on: bool = False
    """Whether that tail was begun."""


@dataclass
class Training(Course):
    """One loaded run; owned by the trainer's main thread, but for ``agreed``."""

    agreed: Agreed
    _head: Begun | None = None
    """The head that was trained last, unless the state was set since."""
    _replay: Replay | None = None
    _laps: Laps = field(default_factory=Laps)

    @property
    def merging(self) -> Merging:
        """What the merge thread may use."""
        return Merging(self.manifest, self.layout, self.agreed)

    def set_state(self, order: SetState) -> None:
        """Take over a state."""
        base = _read_agreed(self.manifest, self.layout, order.state)
        if order.root not in ("", base.root):
            raise TrainerError(
                "bad_state",
                f"the file {order.state.name} is damaged",
                "delete it; it is fetched again",
            )
        self.agreed.replace(base)
        self.inner.load(base.state.params)
        self._head = None
        if self.feedback is not None:
            self.feedback.reset()

    def benchmark(self, order: Benchmark, check: Check) -> Measured:
        """Time real inner steps on random tokens, all but the first; then put everything back."""
        config = self.manifest.config
        # How large a step is, a stranger says too; a GPU's memory bounds itself.
        free = Groups().memory().free + _swap() if self.inner.device.type == "cpu" else None
        with self._laps.work(), at_most(free):
            before = self.inner.save()
            start = 0.0
            try:
                for number, batch in enumerate(synthetic(self.manifest, order.steps + 1)):
                    check()
                    if number == 1:
                        start = time.perf_counter()
                    loss = self.inner.step(batch, learning_rate(config, number))
                    float(loss)  # waits for the device
                seconds = (time.perf_counter() - start) / order.steps
            finally:
                self.inner.restore(before)
        tokens = config.optimizer.batch_size * config.data.seq_len
        return Measured(tokens / seconds, seconds)

    def train(self, order: Train, report: Report, check: Check) -> Trained:
        """Merge, train the head of a round and encode its pseudo-gradient into files."""
        self.agreed.of_round(order.round)
        config = amended(self.manifest.config, order.changes)
        full = order.steps - order.tail
        if not 0 <= order.tail < order.steps:
            raise TrainerError("bad_request", f"no head in {order.steps} steps of training")
        data = self.steps(order.windows, order.round, range(full), order.steps, order.changes)
        phases = exchange.Phases()
        with self._laps.work(), phases.measured("merge"):
            base, head = self._begin(order)
        try:
            self.begin_head(order.round, order.node, head.fingerprints)
            with phases.measured("train"):
                least = assignment.Work.of(config).least_head(order.round, order.steps)
                steps, loss = self._reporting(
                    order, data, range(full), report, check, order.deadline, least
                )
            with self._laps.work(), phases.measured("encode"):
                made = self._encode(order, base, head)
                fingerprints = order.out / f"steps-{order.round}.bin"
                writing.write(fingerprints, [self.rows().tobytes()])
        except BaseException:
            self._back_to(head)
            raise
        tokens = (head.tail + steps) * config.optimizer.batch_size * config.data.seq_len
        idle = self._laps.take_idle()
        return Trained(
            blob=made.blob,
            parts=made.parts,
            size=made.size,
            fingerprints=fingerprints,
            hardware=self.inner.hardware,
            payload=made.payload,
            loss=loss,
            tokens=tokens,
            head=steps,
            tail=head.tail,
            span=head.span,
            seconds={**phases.seconds, "tail": head.tail_seconds, "idle": idle},
        )

    def run_on(self, tail: RunOn, report: Report, check: Check) -> None:
        """Train the tail of a round whose head has been trained."""
        head = self._head
        sent = head.sent if head is not None else None
        wanted = (tail.round, tail.node)
        if head is None or sent is None or (sent.round, sent.node) != wanted or head.ran_on:
            raise TrainerError(
                "wrong_round", f"there is no head of round {tail.round} to go on from"
            )
        order = head.order
        if tail.steps != order.steps or order.tail == 0:
            raise TrainerError("bad_request", "the head was trained for another tail")
        head.ran_on = True
        before = self.begin_tail(*wanted)
        start = time.perf_counter()
        try:
            numbers = range(order.steps - order.tail, order.steps)
            data = self.steps(tail.windows, tail.round, numbers, order.steps, order.changes)
            self._reporting(order, data, numbers, report, check)
        except BaseException:
            self.inner.load(before)
            raise
        sent.tail, head.sent_tail_seconds = order.tail, time.perf_counter() - start

    def evaluate(self, order: Evaluate, check: Check) -> float:
        """Mean loss of the newest agreed state, in nats per token."""
        data = Windows(self.manifest, order.windows)
        if len(data) == 0:
            raise TrainerError("bad_request", "there is nothing to evaluate")
        state, _ = self.agreed.now()

        def batches() -> Iterator[Batch]:
            for batch in data.batches(self.manifest.config.optimizer.batch_size):
                check()
                yield batch

        with self._laps.work():
            total = self.inner.loss_sum(state.params, batches())
        return _finite(total / (len(data) * self.manifest.config.data.seq_len))

    # --- another node's work ---

    def begin_replay(self, order: BeginReplay) -> None:
        """Begin to repeat a span of another node's."""
        self._replay = None  # frees the old one before the new one takes memory
        kept = exchange.feedback(self.manifest, self.layout, self.inner.device.type)
        self._replay = Replay(Course(self.manifest, self.layout, self.inner, kept), order)

    def go_on(self, order: GoOn, check: Check) -> Replayed:
        """Repeat some steps more."""
        if self._replay is None:
            raise TrainerError("not_loaded", "there is no replay to go on with", "begin one first")
        try:
            with self._laps.work():
                return self._replay.go_on(order.steps, check)
        except BaseException as error:
            if getattr(error, "code", "") != "cancelled":
                self._replay = None
            raise

    def drop_replay(self) -> None:
        """End the replay."""
        self._replay = None

    # --- the parts of a head ---

    def _begin(self, order: Train) -> tuple[State, Begun]:
        """Weights and optimisers as they are at the beginning of the head."""
        (state, root), changes = self.agreed.take_changes(order.round)
        head = self._head
        if head is not None and head.root == root and self._as_before(head):
            self._back_to(head)
            head.order = order
            return state, head
        span, tail, seconds = head.span if head is not None else 0, 0, 0.0
        if self.manifest.config.rounds.span and not self._goes_on(order, changes):
            span = order.round
            self.begin(state)
        else:
            tail, seconds = self._kept(changes, order.carried)
            self.follow(state, changes, head.sent if head is not None else None, tail)
        old, self._head = head, None
        saved = self.inner.save(old.saved if old is not None else None)
        kept = self.fingerprints if tail else []
        hardware = self.inner.hardware
        self._head = Begun(root, saved, tail, seconds, span, kept, hardware, order)
        return state, self._head

    def _goes_on(self, order: Train, changes: Sequence[Change]) -> bool:
        """Whether the node is still in the span that it may go on with, and has all of it: the
        round before, whole."""
        head = self._head
        sent = head.sent if head is not None else None
        if head is None or sent is None or head.span != order.span or not self._as_before(head):
            return False
        next_one = [change.round for change in changes] == [sent.round]
        return next_one and order.carried in (None, sent.tail)

    def _as_before(self, head: Begun) -> bool:
        """Whether the same computes as in that head: a span is repeated by one class of machines,
        and the owner may have changed the number of threads."""
        return not self.manifest.config.rounds.span or head.hardware == self.inner.hardware

    def _kept(self, changes: Sequence[Change], carried: int | None) -> tuple[int, float]:
        """Steps and seconds of the tail that stay in the weights: none when the node sat a round
        out, or was assigned something else after all."""
        head = self._head
        sent = head.sent if head is not None else None
        if head is None or sent is None or [change.round for change in changes] != [sent.round]:
            return 0, 0.0
        return (sent.tail, head.sent_tail_seconds) if carried in (None, sent.tail) else (0, 0.0)

    def _back_to(self, head: Begun) -> None:
        """Undo a head, and the tail behind it."""
        self.inner.restore(head.saved)
        if head.sent is not None and self.feedback is not None:
            self.feedback.undo()
        head.sent, head.ran_on = None, False

    def _encode(self, order: Train, base: State, head: Begun) -> exchange.Written:
        """The pseudo-gradient of the round's fragment, as files."""
        sent = self.send(order.round, order.node, base, order.slices)
        payloads = sent.payloads
        # From here on the feedback has changed, also if the files cannot be written.
        head.sent = sent if self.feedback is not None else replace(sent, payloads=[])
        return exchange.write_contribution(
            self.manifest,
            sent.parts,
            payloads,
            round=order.round,
            base=head.root,
            sharded=order.slices > 0,
            out=order.out,
        )

    # --- steps ---

    def _reporting(
        self,
        order: Train,
        data: Iterator[torch.Tensor],
        numbers: range,
        report: Report,
        check: Check,
        deadline: float | None = None,
        least: int = 0,
    ) -> tuple[int, float]:
        """Train steps ``numbers`` of the order, and report; returns their number and mean loss.

        :param data: what trains them, one for each ``next``
        :param deadline: end then, once ``least`` steps are done
        """
        config = self.manifest.config
        size = config.optimizer.batch_size
        losses: list[torch.Tensor] = []
        self._laps.resume()
        start = reported = time.perf_counter()
        fresh = 0  # steps since the last report
        try:
            for number in numbers:
                check()
                losses.append(next(data))
                fresh += 1
                done = len(losses)
                late = deadline is not None and done >= least and time.monotonic() >= deadline
                last = late or done == len(numbers)
                now = time.perf_counter()
                if last or now - reported >= REPORT_S:
                    loss = _finite(mean_loss(losses[-fresh:]))  # waits for the device
                    now = time.perf_counter()
                    speed = done * size * config.data.seq_len / (now - start)
                    report(Steps(number + 1, order.steps, loss, speed))
                    reported, fresh = now, 0
                if last:
                    break
        finally:
            self._laps.pause()
        return len(losses), mean_loss(losses)


def _finite(loss: float) -> float:
    if not 0 <= loss <= MAX_LOSS:
        raise TrainerError(
            "diverged",
            f"the loss is {loss:g}",
            "the inner steps diverged on this machine: check its numerics or the learning rate",
        )
    return loss


def weigh(manifest: Path) -> Weighed:
    """How large the model of a signed manifest is (a file).

    :raises TrainerError: ``bad_manifest``, ``failed``, ``out_of_memory``
    """
    return bounds.weigh(_read(manifest))


def _swap() -> int:
    return int(psutil.swap_memory().free)


def _read(manifest: Path) -> Manifest:
    with coded("bad_manifest"):
        return read_manifest(manifest)[0]


def open_training(manifest: Path, state: Path, device: str) -> Training:
    """Load a run.

    :param manifest: file of the signed manifest
    :param state: file of a state of the run
    :param device: "auto", "cpu" or "cuda"
    :raises TrainerError: ``bad_manifest``, ``bad_state``, ``no_device``, ``failed``
    """
    chosen = machine.choose(device)
    run = _read(manifest)
    config = run.config
    with at_most(bounds.building_bytes(bounds.weigh(run))):
        module = model.build(config.model, run.tokenizer.vocab_size, config.run.seed)
    layout = model.layout_of(module)
    inner = Inner(run, module, layout, chosen)
    first = _read_agreed(run, layout, state)
    inner.load(first.state.params)
    return Training(run, layout, inner, exchange.feedback(run, layout, chosen), Agreed(first))


def _read_agreed(manifest: Manifest, layout: Layout, path: Path) -> Base:
    """A state of this run, with its root.

    :raises TrainerError: ``bad_state``
    """
    with coded("bad_state"):
        state = read_state(path, layout)
    if (state.momentum is None) != (manifest.config.exchange.outer.momentum == 0):
        raise TrainerError(
            "bad_state", f"the state {path.name} does not fit the run's outer momentum"
        )
    return Base(state, content.file_content_id(path))
