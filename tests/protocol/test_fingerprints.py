"""Fingerprints of steps: the places that a round picks, and the first step that differs."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest

from artel.protocol import fingerprints
from artel.protocol.fingerprints import (
    LEAST_APART,
    MOST_APART,
    PLACES,
    ROW_BYTES,
    Rows,
    apart,
    limit,
    rows_in,
    shown_bytes,
    shown_rows,
)
from artel.protocol.terms import TOLERANCES


def honest(steps: int = 6, seed: int = 1) -> Rows:
    """Weights of a size as models have them, that move a little with each step."""
    source = np.random.default_rng(seed)
    moves = source.normal(0, 1e-3, (steps, PLACES)).cumsum(axis=0)
    weights = source.normal(0, 0.03, PLACES) + moves
    losses, norms = source.uniform(2, 6, (2, steps, 1))
    return np.concatenate((losses, norms, weights), axis=1).astype(np.float32)


def test_places_are_what_the_protocol_says() -> None:
    seed = b"artel/places/v1\0" + (5).to_bytes(8, "big") + (7).to_bytes(8, "big")
    stream = hashlib.shake_256(seed).digest(8 * PLACES)
    wanted = [int.from_bytes(stream[8 * j : 8 * j + 8], "big") % 1001 for j in range(PLACES)]
    assert fingerprints.places_of(5, 7, 1001).tolist() == wanted
    assert fingerprints.places_of(5, 8, 1001).tolist() != wanted


def test_a_file_holds_what_the_steps_left() -> None:
    made = honest()
    assert len(made.tobytes()) == len(made) * ROW_BYTES
    assert np.array_equal(rows_in(made.tobytes()), made)
    key = bytes(range(32))
    data = key + made.tobytes()
    assert len(data) == shown_bytes(len(made))
    found = shown_rows(key, data)
    assert found is not None
    assert np.array_equal(found, made)
    assert shown_rows(bytes(32), data) is None, "they are another auditor's"


def test_the_same_steps_are_not_apart_and_kernels_change_little() -> None:
    made = honest()
    whole, each = apart(made, made, 2)
    assert (whole, each.max()) == (0, 0)
    near = made.copy()
    near[:, 2:] += np.random.default_rng(2).normal(0, 1e-6, (len(made), PLACES))
    whole, each = apart(made, near, 2)
    assert 0 < whole < each.max() < 0.01


def test_the_base_does_not_hide_that_nothing_moved() -> None:
    made = honest()
    still = made.copy()
    still[:, 2:] = made[0, 2:]
    assert np.linalg.norm(still - made) < 0.05 * np.linalg.norm(made)
    assert apart(made, still, 0)[0] > 0.8


@pytest.mark.parametrize("column", [0, 1, 2 + PLACES // 2])
@pytest.mark.parametrize("tail", [0, 2, 4])
def test_each_step_that_is_another_is_seen(column: int, tail: int) -> None:
    made = honest()
    off = made.copy()
    off[4:, column] += np.float32(0.1) * (1 if column > 1 else made[4:, column])
    each = apart(made, off, tail)[1]
    assert np.flatnonzero(each > 0.05)[0] == 4
    off[1, 0] = np.nan
    assert not (apart(made, off, tail)[1] <= 0.05)[1]
    assert not apart(made, off, tail)[0] <= 1


def test_of_a_single_step_loss_and_norm_are_seen() -> None:
    made = honest(1)
    assert apart(made, made, 0)[0] == 0
    assert apart(made, made * np.float32(1.2), 0)[0] == pytest.approx(0.2, rel=1e-3)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e30])
def test_no_size_of_what_was_not_made_makes_it_fit(scale: float) -> None:
    made, other = honest(), honest(seed=3)
    with np.errstate(over="ignore"):
        assert not apart(other * np.float32(scale), made, 2)[0] <= MOST_APART


def test_a_limit_is_never_above_what_can_be_guessed() -> None:
    limits = [limit(row.accept, row.reject) for row in TOLERANCES]
    assert limits == pytest.approx([LEAST_APART, 0.1, 0.1])
    assert limit(0.13, 0.35) == 0.35
    assert limit(1.0, 10) == MOST_APART == 0.4
