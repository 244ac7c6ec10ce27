"""What somebody shows who has not made the steps of a span: guesses at its fingerprints.

How far they are from the true ones, by :func:`protocol.fingerprints.apart`, says how near honest
ones have to be. A guess knows more than anybody can: all losses and norms, and of several scales
that which comes nearest.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from artel.node import measuring
from artel.node.trainer.orders import GoOn, SpanRound, Window
from artel.node.trainer.training import open_training
from artel.protocol import fingerprints
from artel.protocol.exchange import codec as codecs
from artel.protocol.exchange.codec import Elements
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.fingerprints import Rows
from artel.protocol.repeated_work import TRIAL_STEPS
from artel.protocol.state import map_state

SCALES = np.geomspace(0.2, 5.0, 49)
KNOWN_STEPS = (4, 5, 6)
"""Of the first 8 in a trial, made in truth."""
Weights = npt.NDArray[np.float64]
"""Those that fingerprints show, after each of some steps: shape (steps, PLACES)."""


def shown(where: Path, rounds: Sequence[SpanRound]) -> list[Rows]:
    """The true fingerprints of each round."""
    return [fingerprints.rows_in((where / f"steps-{one.round}.bin").read_bytes()) for one in rounds]


def tail_of(known: Rows) -> int:
    """How many of a round's fingerprints are of the tail of the round before."""
    return len(known) - (measuring.STEPS - measuring.OVERLAP)


def beside(where: Path, again: Rows) -> dict[str, Any]:
    """How far a span's fingerprints, made again, are from those in the folder: of each round, and
    of the first steps, as in a trial."""
    known = shown(where, measuring.read_span(where).replay.rounds)
    found = np.split(again, np.cumsum([len(rows) for rows in known])[:-1])
    each = [
        fingerprints.apart(mine, theirs, tail_of(mine))[0]
        for mine, theirs in zip(known, found, strict=True)
    ]
    return {"shown": each, "trial": _apart(known[0][:TRIAL_STEPS], again[:TRIAL_STEPS])}


class Guesser:
    """Somebody who has what is public of a span, and the true fingerprints to compare with."""

    def __init__(self, where: Path) -> None:
        self._where, self._told = where, measuring.read_span(where).replay
        self._training = open_training(where / "manifest.json", where / "state-0.bin", "cpu")
        self._known = shown(where, self._told.rounds)

    def rounds(self) -> dict[str, list[float]]:
        """Of each round, how far a guess is; the least over scales."""
        known, told = self._known, self._told.rounds
        other = self._made(
            [
                replace(
                    one,
                    windows=_moved(one.windows),
                    tail_windows=_moved(one.tail_windows),
                )
                for one in told
            ]
        )
        return {
            "the same rounds on other windows": beside(self._where, other)["shown"],
            "one step of the head, and a line along the contribution": [
                self._line(number, rows[tail_of(rows) :], 1) for number, rows in enumerate(known)
            ],
            "the round before": [
                fingerprints.apart(rows, before, tail_of(rows))[0]
                for before, rows in itertools.pairwise(known[1:])
            ],
        }

    def trial(self) -> dict[str, float]:
        """Of the first steps alone, as a newcomer repeats them."""
        true = self._known[0][:TRIAL_STEPS]
        weights = true[:, 2:].astype(np.float64)
        windows, batch = self._told.rounds[0].windows, measuring.BATCH
        begin, _ = self._ends(0)
        halves = [windows[i - i % batch + i % batch // 2] for i in range(len(windows))]
        found = {
            "half of each batch, twice": _apart(true, self._first(halves)),
            "windows of another": _apart(true, self._first(_moved(windows))),
            "a line along the contribution": self._line(0, true),
            "one step, and that line": self._line(0, true, 1),
            "one step, and on in its direction": _on(true, weights[0], weights[0] - begin, 1),
        }
        for steps in KNOWN_STEPS:
            last = weights[steps - 1]
            name = f"{steps} steps, and on in the direction of the last"
            found[name] = _on(true, last, last - weights[steps - 2], steps)
        return found

    def _made(self, rounds: Sequence[SpanRound]) -> Rows:
        out = self._where / "made.bin"
        self._training.begin_replay(replace(self._told, rounds=rounds, out=out))
        self._training.go_on(GoOn(1 << 20), lambda: None)
        return fingerprints.rows_in(out.read_bytes())

    def _first(self, windows: Sequence[Window]) -> Rows:
        some = windows[: TRIAL_STEPS * measuring.BATCH]
        one = replace(self._told.rounds[0], head=TRIAL_STEPS, windows=some, blobs=())
        return self._made([replace(one, tail=0, tail_windows=())])

    def _ends(self, number: int) -> tuple[Weights, Weights]:
        """Of a round: the weights that it begins and ends with by what is public, (PLACES,)."""
        one, layout = self._told.rounds[number], self._training.layout
        config = self._training.manifest.config
        places = fingerprints.places_of(config.run.seed, one.round, layout.parameters)
        header = Header(one.round, one.base, codecs.of(config.exchange))
        sent = header.load(one.blobs[0].read_bytes(), layout)
        assert not isinstance(sent, Elements)
        begin = map_state(one.state, layout).params[places].astype(np.float64)
        return begin, begin - sent[places]

    def _line(self, number: int, true: Rows, made: int = 0) -> float:
        """The way to what was sent, straight on after ``made`` true steps; the best scale."""
        begin, end = self._ends(number)
        steps = measuring.STEPS - measuring.OVERLAP
        at = true[made - 1, 2:].astype(np.float64) if made else begin
        return min(_on(true, at, scale * (end - begin) / steps, made) for scale in SCALES)


def _on(true: Rows, at: Weights, way: Weights, made: int) -> float:
    """How far it is to take the same step again and again after ``made`` true ones."""
    guess = true.copy()
    count = len(true) - made
    guess[made:, 2:] = at + np.arange(1, count + 1)[:, np.newaxis] * way
    return _apart(true, guess)


def _apart(true: Rows, guess: Rows) -> float:
    return fingerprints.apart(true, guess, 0)[0]


def _moved(windows: Sequence[Window]) -> list[Window]:
    """Others, of the same file."""
    return [(path, (at + 7 * measuring.SEQ_LEN * len(windows)) % 20_000) for path, at in windows]
