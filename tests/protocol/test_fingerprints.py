"""Fingerprints of steps: the places that a round picks, and the first step that differs."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest

from artel.protocol import fingerprints
from artel.protocol.errors import ResourceError
from artel.protocol.fingerprints import PLACES, ROW_BYTES, Rows, first_different


def honest(steps: int = 6) -> Rows:
    """Weights of a size as models have them, that move a little with each step."""
    source = np.random.default_rng(1)
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


def test_a_file_holds_what_the_steps_left(tmp_path: Path) -> None:
    made = honest()
    file = tmp_path / "steps.bin"
    file.write_bytes(made.tobytes())
    assert file.stat().st_size == len(made) * ROW_BYTES
    assert np.array_equal(fingerprints.read(file), made)
    file.write_bytes(file.read_bytes() + b"cut off")
    assert len(fingerprints.read(file)) == len(made)
    with pytest.raises(ResourceError):
        fingerprints.read(tmp_path / "none")


@pytest.mark.parametrize("column", [0, 1, 2 + PLACES // 2])
def test_the_first_step_that_differs_is_found(column: int) -> None:
    made = honest()
    assert first_different(made, made) is None
    near = made * np.float32(1 + 1e-5)
    assert first_different(made, near) is None
    off = near.copy()
    off[3:, column] += np.float32(0.1) * (1 if column > 1 else made[3:, column])
    assert first_different(made, off) == 3
    off[4, 0] = np.nan
    off[3] = near[3]
    assert first_different(made, off) == 4


def test_steps_that_are_missing_or_too_many_differ() -> None:
    made = honest()
    assert first_different(made, made[:4]) == 4
    assert first_different(made[:4], made) == 4
    assert first_different(made, made[:0]) == 0
    standing = made.copy()
    standing[2:, 2:] = made[1, 2:]  # the third step and those behind it were left out
    assert first_different(made, standing) == 2
