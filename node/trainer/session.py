"""A run as the trainer's main thread holds it: the model, its weights, and what is done with them.

The weights are the node's own and live on between commands; what all nodes agree on is the state
(:mod:`node.trainer.agreed`), which the merge thread moves on while this one trains. One round r of
a member, with H its steps, the last ``tail`` of which overlap the exchange (Streaming DiLoCo, arXiv
2501.18512):

1. :meth:`Session.train` merges: the fragment that round r - 1 changed becomes ``state + (weights -
   sent)``, where ``sent`` are the weights at which the last pseudo-gradient was formed, so that the
   tail's steps are kept; then it trains the head and encodes ``state - weights`` of round r's
   fragment.
2. :meth:`Session.run_on` trains the tail, while the others' contributions come in and the merge
   thread applies them.

A command that fails leaves the weights, the optimisers and the error feedback as they were before
it, but for a tail that fails: then weights are those before it, and its steps are lost.

Memory on a CPU with N parameters in fp32: state 4N (8N with outer momentum), the next one as much
again until it is merged, weights 4N, gradients 4N, AdamW's moments 8N, the snapshot of weights and
moments at the head's beginning 12N, ``sent`` 4N with overlap, error feedback 8N with ``sparse``; an
evaluation 4N.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from artel.node.trainer import device as machine
from artel.node.trainer import exchange
from artel.node.trainer.agreed import Agreed, Change
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.data import Batch, Windows, synthetic
from artel.node.trainer.heads import Head, Order, Sent
from artel.node.trainer.inner import Inner, mean_loss, training_seed
from artel.node.trainer.laps import Laps
from artel.node.trainer.opening import read_agreed, read_manifest
from artel.node.trainer.schedule import learning_rate, position
from artel.protocol import assignment, model
from artel.protocol.cgroup import Groups
from artel.protocol.exchange import parts
from artel.protocol.exchange.feedback import Feedback
from artel.protocol.exchange.parts import Part
from artel.protocol.manifest import Manifest
from artel.protocol.state import Layout, State, Vector

REPORT_S = 0.5
"""Seconds between two progress reports."""

Result = dict[str, Any]
Report = Callable[[Result], None]
Check = Callable[[], None]
"""Called between steps; raises ``cancelled`` when somebody asked for it."""


@dataclass
class Session:
    """One loaded run; owned by the trainer's main thread, but for ``agreed``."""

    manifest: Manifest
    layout: Layout
    inner: Inner
    agreed: Agreed
    feedback: Feedback | None
    """Only with a sparse codec."""
    _head: Head | None = None
    """The head that was trained last, unless the state was set since."""
    _weights: Vector | None = None
    """Memory for the weights at which the last pseudo-gradient was formed, (N,)."""
    _laps: Laps = field(default_factory=Laps)

    def set_state(self, path: Path, root: str) -> Result:
        """Take over a state that does not come from our own applying: the weights become its.

        The optimisers keep their moments; tail and error feedback are dropped.

        :param root: what its root has to be; "": whatever it is
        :returns: round, root
        :raises TrainerError: ``bad_state``; then nothing has changed
        """
        state, found = read_agreed(self.manifest, self.layout, path)
        if root not in ("", found):
            raise TrainerError(
                "bad_state", f"the file {path.name} is damaged", "delete it; it is fetched again"
            )
        self.agreed.replace(state, found)
        self.inner.load(state.params)
        self._head = None
        if self.feedback is not None:
            self.feedback.reset()
        return {"round": state.round, "root": found}

    def benchmark(self, steps: int, check: Check) -> Result:
        """Time real inner steps on random tokens, then put everything back.

        :returns: tokens_per_second, step_seconds; the first step is run but not timed
        """
        config = self.manifest.config
        with self._laps.work():
            before = self.inner.save()
            start = 0.0
            try:
                for number, batch in enumerate(synthetic(self.manifest, steps + 1)):
                    check()
                    if number == 1:
                        start = time.perf_counter()
                    loss = self.inner.step(batch, learning_rate(config, number))
                    float(loss)  # waits for the device
                seconds = (time.perf_counter() - start) / steps
            finally:
                self.inner.restore(before)
        tokens = config.optimizer.batch_size * config.data.seq_len
        return {"tokens_per_second": tokens / seconds, "step_seconds": seconds}

    def train(self, order: Order, report: Report, check: Check) -> Result:
        """Merge, train the head of a round and encode its pseudo-gradient into files.

        The same order again, from the same state, starts where it started the first time and gives
        the same bytes.

        :returns: blob, parts, size (of all files), loss (mean of the head, nats per token), tokens
            (of the head and of the tail before it), head and tail (steps), seconds per phase
        :raises TrainerError: ``wrong_round``, ``bad_request``, ``bad_data``, ``cancelled``,
            ``diverged``, ``disk_full``, ``disk``
        """
        self.agreed.of_round(order.round)
        config = self.manifest.config
        full = order.steps - order.tail
        if not 0 <= order.tail < order.steps:
            raise TrainerError("bad_request", f"no head in {order.steps} steps of training")
        data = self._windows(order.windows, full)
        phases = exchange.Phases()
        with self._laps.work(), phases.measured("merge"):
            base, head = self._begin(order)
        try:
            self.inner.seed(training_seed(config.run.seed, order.round, order.node, tail=False))
            with phases.measured("train"):
                least = assignment.Work.of(config).least_head(order.round, order.steps)
                steps, loss = self._steps(
                    order, data, range(full), report, check, order.deadline, least
                )
            with self._laps.work(), phases.measured("encode"):
                made = self._encode(order, base, head)
        except BaseException:
            self._back_to(head)
            raise
        tokens = (head.tail + steps) * config.optimizer.batch_size * config.data.seq_len
        return {
            "blob": str(made.blob),
            "parts": [str(path) for path in made.parts],
            "size": made.size,
            "loss": loss,
            "tokens": tokens,
            "head": steps,
            "tail": head.tail,
            "seconds": {
                **phases.seconds,
                "tail": head.tail_seconds,
                "idle": self._laps.take_idle(),
            },
        }

    def run_on(
        self,
        round: int,
        node: str,
        windows: Sequence[tuple[str, int]],
        steps: int,
        report: Report,
        check: Check,
    ) -> Result:
        """Train the tail of a round whose head has been trained; once for each head.

        :param windows: those of the tail
        :param steps: all that the node was assigned, as for the head
        :returns: steps, loss, seconds
        :raises TrainerError: ``wrong_round``, ``bad_request``, ``bad_data``, ``cancelled``,
            ``diverged``; after the last three the steps are lost and the weights those before them
        """
        sent = self._head.sent if self._head is not None else None
        if sent is None or (sent.order.round, sent.order.node) != (round, node) or sent.ran_on:
            raise TrainerError("wrong_round", f"there is no head of round {round} to go on from")
        order = sent.order
        if steps != order.steps or order.tail == 0:
            raise TrainerError("bad_request", "the head was trained for another tail")
        sent.ran_on = True
        before = self._weights = self.inner.read(self._weights)
        start = time.perf_counter()
        try:
            data = self._windows(windows, order.tail)
            seed = training_seed(self.manifest.config.run.seed, round, node, tail=True)
            self.inner.seed(seed)
            numbers = range(steps - order.tail, steps)
            _, loss = self._steps(order, data, numbers, report, check)
        except BaseException:
            self.inner.load(before)
            raise
        sent.tail, sent.tail_seconds = order.tail, time.perf_counter() - start
        return {"steps": order.tail, "loss": loss, "seconds": sent.tail_seconds}

    def evaluate(self, windows: Sequence[tuple[str, int]], check: Check) -> Result:
        """Mean loss of the newest agreed state: loss (nats per token), tokens.

        :raises TrainerError: ``bad_data``, ``cancelled``, ``diverged``
        """
        data = Windows(self.manifest, windows)
        if len(data) == 0:
            raise TrainerError("bad_request", "there is nothing to evaluate")
        state, _ = self.agreed.now()

        def batches() -> Iterator[Batch]:
            for batch in data.batches(self.manifest.config.optimizer.batch_size):
                check()
                yield batch

        with self._laps.work():
            total = self.inner.loss_sum(state.params, batches())
        tokens = len(data) * self.manifest.config.data.seq_len
        return {"loss": _finite(total / tokens), "tokens": tokens}

    # --- the parts of a head ---

    def _begin(self, order: Order) -> tuple[State, Head]:
        """Weights and optimisers as they are at the beginning of the head."""
        state, root, changes = self.agreed.take_changes(order.round)
        head = self._head
        if head is not None and head.root == root:
            self._back_to(head)
            return state, head
        tail, seconds = self._merge(state, changes, order.carried)
        old, self._head = head, None
        snapshot = self.inner.save(old.snapshot if old is not None else None)
        self._head = Head(root, snapshot, tail, seconds)
        return state, self._head

    def _merge(
        self, state: State, changes: Sequence[Change], carried: int | None
    ) -> tuple[int, float]:
        """Let the weights follow the state; returns steps and seconds of the tail kept in them."""
        sent = self._head.sent if self._head is not None else None
        tail, seconds = 0, 0.0
        if sent is not None and sent.tail:
            next_one = [change.round for change in changes] == [sent.order.round]
            if next_one and carried in (None, sent.tail):
                tail, seconds = sent.tail, sent.tail_seconds
            else:  # the node sat a round out, or was assigned something else after all
                assert self._weights is not None
                self.inner.load(self._weights)
        for part in dict.fromkeys(self._fragment(change.round) for change in changes):
            self.inner.merge(part, state.params, self._weights if tail else None)
        if sent is not None:
            for change in changes:
                if change.round == sent.order.round:
                    self._settle(sent, change)
        return tail, seconds

    def _settle(self, sent: Sent, change: Change) -> None:
        """Keep for later what the round has not made use of."""
        if self.feedback is None:
            return
        if sent.order.node not in change.counted:
            self.feedback.left_out(sent.parts, sent.payloads)
        elif change.kept is not None:
            for part, payload, kept in zip(sent.parts, sent.payloads, change.kept, strict=True):
                self.feedback.put_back(part, payload, kept)

    def _back_to(self, head: Head) -> None:
        """Undo a head, and the tail behind it."""
        self.inner.restore(head.snapshot)
        if head.sent is not None and self.feedback is not None:
            self.feedback.undo()
        head.sent = None

    def _encode(self, order: Order, base: State, head: Head) -> exchange.Made:
        """The pseudo-gradient of the round's fragment, as files."""
        part = self._fragment(order.round)
        gradient = np.subtract(part.take(base.params), part.take(self.inner.look()))
        pieces = parts.cut(part, order.slices) if order.slices else [part]
        payloads = exchange.encode(self.manifest, pieces, gradient, self.feedback)
        # From here on the feedback has changed, also if the files cannot be written.
        head.sent = Sent(order, pieces, payloads if self.feedback is not None else [])
        return exchange.write_contribution(
            self.manifest,
            pieces,
            payloads,
            round=order.round,
            base=head.root,
            sharded=order.slices > 0,
            out=order.out,
        )

    # --- steps ---

    def _steps(
        self,
        order: Order,
        data: Windows,
        numbers: range,
        report: Report,
        check: Check,
        deadline: float | None = None,
        least: int = 0,
    ) -> tuple[int, float]:
        """Train steps ``numbers`` of the order, and report; returns their number and mean loss.

        :param deadline: end then, once ``least`` steps are done
        """
        config = self.manifest.config
        size = config.optimizer.batch_size
        losses: list[torch.Tensor] = []
        self._laps.resume()
        start = reported = time.perf_counter()
        fresh = 0  # steps since the last report
        try:
            for number, batch in zip(numbers, data.batches(size), strict=True):
                check()
                rate = learning_rate(config, position(config, order.round, number, order.steps))
                losses.append(self.inner.step(batch, rate))
                fresh += 1
                done = len(losses)
                late = deadline is not None and done >= least and time.monotonic() >= deadline
                last = late or done == len(numbers)
                now = time.perf_counter()
                if last or now - reported >= REPORT_S:
                    loss = _finite(mean_loss(losses[-fresh:]))  # waits for the device
                    now = time.perf_counter()
                    speed = done * size * config.data.seq_len / (now - start)
                    report(
                        {
                            "step": number + 1,
                            "steps": order.steps,
                            "loss": loss,
                            "tokens_per_second": speed,
                        }
                    )
                    reported, fresh = now, 0
                if last:
                    break
        finally:
            self._laps.pause()
        return len(losses), mean_loss(losses)

    def _windows(self, windows: Sequence[tuple[str, int]], steps: int) -> Windows:
        data = Windows(self.manifest, windows)
        needed = steps * self.manifest.config.optimizer.batch_size
        if len(data) != needed:
            raise TrainerError(
                "bad_request", f"{steps} steps take {needed} windows, {len(data)} were given"
            )
        return data

    def _fragment(self, round: int) -> Part:
        return exchange.fragment(self.manifest, self.layout, round)


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise TrainerError(
            "diverged",
            "the loss is not a number",
            "the inner steps diverged on this machine: check its numerics or the learning rate",
        )
    return loss


def open_session(manifest: Path, state: Path, device: str, threads: int) -> Session:
    """Load a run.

    :param manifest: file of the signed manifest
    :param state: file of a state of the run
    :param device: "auto", "cpu" or "cuda"
    :param threads: torch threads; 0 takes every core that this process may use
    :raises TrainerError: ``bad_manifest``, ``bad_state``, ``no_device``, ``failed``
    """
    chosen = machine.choose(device)
    torch.set_num_threads(threads or Groups().cores())
    run = read_manifest(manifest)
    config = run.config
    module = model.build(config.model, run.tokenizer.vocab_size, config.run.seed)
    layout = model.layout_of(module)
    if layout.digest != run.model.layout:
        raise TrainerError(
            "failed",
            "this version of transformers lays the model out differently than the organiser's",
            "install the versions of constraints.txt",
        )
    inner = Inner(run, module, layout, chosen)
    first, root = read_agreed(run, layout, state)
    inner.load(first.params)
    return Session(run, layout, inner, Agreed(first, root), exchange.feedback(run, layout, chosen))
