"""Fingerprints of inner steps: what a node can be held to, step by step.

Each step leaves 128 fp32 numbers: its loss, its gradient norm (before clipping; 0 where the run
does not clip), and 126 weights after it, at places that the round picks. Those of a contribution,
of its tail's steps first, are one file, row by row, little-endian; the contribution names it by its
content id (``chain``). A node thus cannot say afterwards that it went another way. The file goes to
the coordinator and to nobody else: only who repeats the steps knows what it holds.
"""

from __future__ import annotations

import hashlib
import struct

import numpy as np
import numpy.typing as npt

PLACES = 126
ROW = 2 + PLACES
ROW_BYTES = 4 * ROW
"""Of one step."""
Rows = npt.NDArray[np.float32]
"""Shape (steps, ROW)."""

_SEED = b"artel/places/v1\0"
_TINY = 1e-30
LEAST_APART, MOST_APART = 0.01, 0.4
"""Between these lies the limit of what fits, whatever a row of tolerances says."""
TRIAL_APART = 0.3
"""How far whoever makes the first 8 steps of a span may be from any other machine that made them.
Measured (docs/results/replay.md): other threads and kernels 1e-5, bf16 for fp32 at most 0.07; half
of the work 0.49 and more, what is public, also after one true step, 0.65 and more."""


def places_of(run_seed: int, round: int, parameters: int) -> npt.NDArray[np.int64]:
    """Which of ``parameters`` weights the steps of a round show, (PLACES,); some may be equal."""
    seed = hashlib.shake_256(_SEED + struct.pack(">QQ", run_seed, round))
    numbers = np.frombuffer(seed.digest(8 * PLACES), ">u8")
    return (numbers % parameters).astype(np.int64)


def rows_in(data: bytes) -> Rows:
    """The rows of a file, of which each is whole."""
    return np.frombuffer(data, "<f4").reshape(-1, ROW).astype(np.float32, copy=False)


def shown_bytes(steps: int) -> int:
    """Of what an auditor gives for so many steps: its public key (32 bytes), then their rows.

    Without the key it would be the very content that the audited node's contribution names, and
    whoever names it would seem to have it.
    """
    return 32 + ROW_BYTES * steps


def shown_rows(key: bytes, data: bytes) -> Rows | None:
    """The rows that the auditor with this key gave; None when they are somebody else's."""
    return rows_in(data[32:]) if data[:32] == key else None


def apart(again: Rows, given: Rows, tail: int) -> tuple[float, npt.NDArray[np.float64]]:
    """How far the steps of a contribution are from what they were when they were made again.

    What is compared of weights is how a step moved them, since a base that both know would hide any
    difference; loss and norm are compared as they are. Each as L2 of the difference over L2 of what
    was made again, and the largest of the three counts.

    :param again: as many as ``given``
    :param tail: steps of the tail, which show weights at other places than the head's
    :returns: of all steps together, and of each, (steps,)
    """
    mine, theirs = (each.astype(np.float64) for each in (again, given))
    with np.errstate(over="ignore", invalid="ignore"):
        off = np.zeros((3, len(mine)))
        own = np.zeros((3, len(mine)))
        off[:2], own[:2] = np.abs(theirs - mine).T[:2], np.abs(mine).T[:2]
        for part in (slice(0, tail), slice(tail, None)):
            weights, strange = mine[part, 2:], (theirs - mine)[part, 2:]
            if len(weights) > 1:  # the second says how much is much for the first
                moved = np.linalg.norm(np.diff(weights, axis=0), axis=1)
                own[2, part] = np.concatenate((moved[:1], moved))
                strange = np.concatenate((strange[:1], np.diff(strange, axis=0)))
                off[2, part] = np.linalg.norm(strange, axis=1)
        each = (off / (own + _TINY)).max(axis=0)
        whole = np.linalg.norm(off, axis=1) / (np.linalg.norm(own, axis=1) + _TINY)
    return float(whole.max()), each


def limit(accept: float, reject: float) -> float:
    """How far fingerprints may be apart of work that is accepted, by a row of tolerances.

    Steps differ by more than their sum, which a row is about: honest ones by up to 3.2 times as
    much, where what can be guessed without making them was at least 0.5 away
    (``docs/results/replay.md``).
    """
    return min(reject, MOST_APART, max(LEAST_APART, 5 * accept))


def repeats(known: Rows, given: Rows) -> bool:
    """Whether somebody made these steps, the first of a span, whatever machine they were made on;
    never of steps that moved nothing, which anybody could guess."""
    with np.errstate(over="ignore", invalid="ignore"):
        if given.shape != known.shape or not np.diff(known[:, 2:], axis=0).any():
            return False
        return apart(known, given, 0)[0] <= TRIAL_APART
