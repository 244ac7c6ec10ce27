"""A run as the trainer holds it: the model, the agreed state, and what may be done with them.

Invariant between any two commands: the model's parameters are those of the current agreed state. A
command that fails leaves the state and the optimiser as they were before it.

Memory on a CPU with N parameters in fp32: state 4N (8N with outer momentum), model 4N, gradients 4N
while training, AdamW's moments 8N and their copy from the beginning of the round 8N: 32N bytes at
most, and the activations of one inner step. Applying a round takes 8N to 12N more than the state
for a moment, while the gradients are gone.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from node.trainer.channel import TrainerError
from node.trainer.data import Windows, synthetic
from node.trainer.exchange import Listed, Phases, apply_round, write_contribution
from node.trainer.inner import Inner, Moments, mean_loss, training_seed
from node.trainer.schedule import learning_rate
from protocol import content, dsse, model
from protocol.errors import ArtelError
from protocol.manifest import Manifest, open_manifest
from protocol.state import Layout, State, read_state

REPORT_S = 0.5
"""Seconds between two progress reports."""

Result = dict[str, Any]
Check = Callable[[], None]
"""Called between steps; raises ``cancelled`` when somebody asked for it."""


@dataclass
class Session:
    """One loaded run; owned by the trainer's main thread."""

    manifest: Manifest
    layout: Layout
    inner: Inner
    state: State
    """The current agreed state."""
    root: str
    """Its state root."""
    _begun: tuple[int, Moments] | None = None
    """The last round that was trained, and the optimiser at its beginning."""

    def set_state(self, path: Path) -> Result:
        """Replace the agreed state; the optimiser keeps its moments.

        :raises TrainerError: ``bad_state``
        """
        self.state, self.root = _read_state(self.manifest, self.layout, path)
        self.inner.load(self.state.params)
        return {"round": self.state.round, "root": self.root}

    def benchmark(self, steps: int, check: Check) -> Result:
        """Time real inner steps on random tokens, then put everything back.

        :returns: tokens_per_second, step_seconds; the first step is run but not timed
        """
        config = self.manifest.config
        moments = self.inner.save_moments()
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
            self.inner.restore_moments(moments)
            self.inner.load(self.state.params)
        tokens = config.optimizer.batch_size * config.data.seq_len
        return {"tokens_per_second": tokens / seconds, "step_seconds": seconds}

    def train(
        self,
        round: int,
        node: str,
        windows: Sequence[tuple[str, int]],
        out: Path,
        report: Callable[[Result], None],
        check: Check,
    ) -> Result:
        """A node's H inner steps of a round, encoded into a blob file.

        Training the same round again starts from the optimiser of its first attempt.

        :param node: peer id; part of the seed of the node's own randomness
        :param windows: H * batch windows, those of step i from ``i * batch`` on
        :returns: blob, size, loss (mean, nats per token), tokens, seconds per phase
        :raises TrainerError: ``wrong_round``, ``bad_data``, ``cancelled``, ``diverged``,
            ``disk_full``, ``disk``
        """
        self._require_round(round)
        config = self.manifest.config
        steps, size = config.rounds.inner_steps, config.optimizer.batch_size
        data = Windows(self.manifest, windows)
        if len(data) != steps * size:
            raise TrainerError(
                "bad_request", f"a round takes {steps * size} windows, {len(data)} were given"
            )
        moments = self._moments_at_beginning_of(round)
        try:
            self.inner.seed(training_seed(config.run.seed, round, node))
            losses: list[torch.Tensor] = []
            start = reported = time.perf_counter()
            fresh = 0  # steps since the last report
            for number, batch in enumerate(data.batches(size)):
                check()
                rate = learning_rate(config, round * steps + number)
                losses.append(self.inner.step(batch, rate))
                fresh += 1
                now = time.perf_counter()
                if now - reported >= REPORT_S or number + 1 == steps:
                    done = number + 1
                    report(
                        {
                            "step": done,
                            "steps": steps,
                            "loss": _finite(mean_loss(losses[-fresh:])),
                            "tokens_per_second": done * size * config.data.seq_len / (now - start),
                        }
                    )
                    reported, fresh = now, 0
            after = self.inner.read()
            trained = time.perf_counter()
            blob = out / f"contribution-{round}.blob"
            written = write_contribution(
                self.manifest, self.layout, self.state, self.root, after, blob
            )
            encoded = time.perf_counter()
        except BaseException:
            self.inner.restore_moments(moments)
            raise
        finally:
            self.inner.load(self.state.params)
        return {
            "blob": str(blob),
            "size": written,
            "loss": mean_loss(losses),
            "tokens": steps * size * config.data.seq_len,
            "seconds": {"train": trained - start, "encode": encoded - trained},
        }

    def apply(self, round: int, listed: Sequence[Listed], out: Path) -> Result:
        """Apply a closed round; the outcome becomes the current state.

        :returns: state (path of the new file), root, seconds per phase
        :raises TrainerError: ``wrong_round`` and those of :func:`exchange.apply_round`
        """
        self._require_round(round)
        path = out / f"state-{round + 1}.bin"
        phases = Phases()
        self.state, self.root = apply_round(
            self.manifest, self.layout, self.state, self.root, listed, path, phases
        )
        with phases.measured("load"):
            self.inner.load(self.state.params)
        return {"state": str(path), "root": self.root, "seconds": phases.seconds}

    def evaluate(self, windows: Sequence[tuple[str, int]], check: Check) -> Result:
        """Mean loss of the agreed state on windows: loss (nats per token), tokens.

        :raises TrainerError: ``bad_data``, ``cancelled``, ``diverged``
        """
        data = Windows(self.manifest, windows)
        if len(data) == 0:
            raise TrainerError("bad_request", "there is nothing to evaluate")
        total = 0.0
        for batch in data.batches(self.manifest.config.optimizer.batch_size):
            check()
            total += self.inner.loss_sum(batch)
        tokens = len(data) * self.manifest.config.data.seq_len
        return {"loss": _finite(total / tokens), "tokens": tokens}

    def _require_round(self, round: int) -> None:
        if round != self.state.round:
            raise TrainerError(
                "wrong_round",
                f"the trainer holds the state of round {self.state.round}, not of round {round}",
                "set the state of that round first",
            )

    def _moments_at_beginning_of(self, round: int) -> Moments:
        """The optimiser's state that ``round`` starts from, which is then the live one too."""
        if self._begun is not None and self._begun[0] == round:
            self.inner.restore_moments(self._begun[1])
            return self._begun[1]
        self._begun = None  # frees the old copy before the new one is made
        self._begun = (round, self.inner.save_moments())
        return self._begun[1]


def open_session(manifest: Path, state: Path, device: str, threads: int) -> Session:
    """Load a run.

    :param manifest: file of the signed manifest
    :param state: file of a state of the run
    :param device: "auto", "cpu" or "cuda"
    :param threads: torch threads; 0 takes every core that this process may use
    :raises TrainerError: ``bad_manifest``, ``bad_state``, ``no_device``, ``failed``
    """
    chosen = _device(device)
    torch.set_num_threads(threads or len(os.sched_getaffinity(0)))
    run = _read_manifest(manifest)
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
    first, root = _read_state(run, layout, state)
    inner.load(first.params)
    return Session(run, layout, inner, first, root)


def _device(wanted: str) -> str:
    available = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if available else "cpu"
    if wanted == "cuda" and not available:
        raise TrainerError(
            "no_device", "there is no CUDA device that torch can use", "use --device cpu"
        )
    if wanted not in ("cpu", "cuda"):
        raise TrainerError("no_device", f"{wanted[:20]!r} is no device", "use auto, cpu or cuda")
    return wanted


def _read_manifest(path: Path) -> Manifest:
    try:
        with path.open("rb") as file:
            return open_manifest(file.read(dsse.MAX_ENVELOPE_BYTES + 1))[0]
    except OSError as error:
        raise TrainerError("bad_manifest", f"cannot read {path}: {error.strerror}") from None
    except ArtelError as error:
        raise TrainerError("bad_manifest", error.message, error.hint) from None


def _read_state(manifest: Manifest, layout: Layout, path: Path) -> tuple[State, str]:
    """A state of this run, with its root."""
    try:
        state = read_state(path, layout)
    except ArtelError as error:
        raise TrainerError("bad_state", error.message, error.hint) from None
    if (state.momentum is None) != (manifest.config.exchange.outer.momentum == 0):
        raise TrainerError(
            "bad_state", f"the state {path.name} does not fit the run's outer momentum"
        )
    return state, content.file_content_id(path)


def _finite(loss: float) -> float:
    if not math.isfinite(loss):
        raise TrainerError(
            "diverged",
            "the loss is not a number",
            "the inner steps diverged on this machine: check its numerics or the learning rate",
        )
    return loss
