"""What a replay's difference means, by the classes of the two machines."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from artel.node import preflight
from artel.protocol.manifest import Manifest
from artel.protocol.terms import ToleranceSection, TrustSection
from artel.protocol.tolerances import covered, judged, tolerance_of, verdict_of
from manifest_world import manifest

TABLE = TrustSection().tolerances
HERE = "x86_64-genuineintel/avx512/fp32/t2/torch2.13"
OTHER = "x86_64-authenticamd/avx2/fp32/t8/torch2.13"
GPU = "cuda/NVIDIA H200/bf16/torch2.13"


def test_machines_of_one_class_come_to_the_same() -> None:
    strict = tolerance_of(TABLE, HERE, HERE, 10**6)
    assert strict is not None
    assert strict.accept <= 1e-5
    wide = tolerance_of(TABLE, HERE, OTHER, 10)
    assert wide is not None
    assert wide == tolerance_of(TABLE, OTHER, HERE, 10)
    assert strict.accept < wide.accept < strict.reject <= wide.reject < 0.3


def test_of_machines_that_drift_apart_nobody_is_convicted_late_in_a_span() -> None:
    assert judged(TABLE, HERE, OTHER, 0.9, 20) == "reject"
    assert judged(TABLE, HERE, OTHER, 0.9, 100) == "inconclusive"
    assert judged(TABLE, HERE, OTHER, 1e-3, 100) == "accept"
    assert judged(TABLE, HERE, HERE, 0.9, 100) == "reject"


def test_one_contribution_decides_what_is_said_of_a_span() -> None:
    def said(*found: tuple[float, int]) -> str:
        return verdict_of(TABLE, HERE, OTHER, found)

    assert said((1e-6, 20), (1e-3, 45)) == "accept"
    assert said((1e-6, 20), (0.5, 45)) == "inconclusive"
    assert said((0.5, 20), (0.5, 45), (0.0, 70)) == "reject"
    assert said() == "inconclusive"


@pytest.mark.parametrize(
    ("made_on", "repeated_on", "error", "said"),
    [
        (HERE, HERE, 0.0, "accept"),
        (HERE, HERE, 1e-3, "inconclusive"),
        (HERE, HERE, 0.3, "reject"),
        (HERE, HERE, float("inf"), "reject"),
        (HERE, OTHER, 1e-3, "accept"),
        (OTHER, HERE, 0.3, "reject"),
        (HERE, HERE, float("nan"), "reject"),
        (HERE, GPU, 0.0, "inconclusive"),
        (HERE, GPU, 1.0, "inconclusive"),
        ("", "", 0.0, "inconclusive"),
        ("", HERE, 1.0, "inconclusive"),
    ],
)
def test_the_first_row_that_fits_the_pair_says_it(
    made_on: str, repeated_on: str, error: float, said: str
) -> None:
    assert judged(TABLE, made_on, repeated_on, error, 20) == said


def test_a_claimed_class_is_no_pattern() -> None:
    """Whoever claims stars has a class of its own."""
    rows = [ToleranceSection(one="a/b", other="a/c", accept=0.1, reject=0.2)]
    assert tolerance_of(rows, "a/c", "a/b", 1) == rows[0]
    assert tolerance_of(rows, "*/*", "a/b", 1) is None
    assert tolerance_of(rows, "a/b/c", "a/c", 1) is None


def test_a_volunteer_is_told_where_nobody_could_check_its_work() -> None:
    def run(span: int, rate: float) -> Manifest:
        made = manifest()
        rounds = made.config.rounds.model_copy(update={"span": span})
        trust = made.config.trust.model_copy(update={"audit_rate": rate})
        changed = made.config.model_copy(update={"rounds": rounds, "trust": trust})
        return made.model_copy(update={"config": changed})

    assert preflight.unchecked(run(10, 0.05), HERE) == []
    assert preflight.unchecked(run(0, 0.05), GPU) == preflight.unchecked(run(10, 0), GPU) == []
    (found,) = preflight.unchecked(run(10, 0.05), GPU)
    assert found.level == "warning"
    assert GPU in found.text
    assert "would not be paid" in found.text
    assert "artel node measure" in found.text
    near = [ToleranceSection(one="*/*", other=GPU, steps=30, accept=0.1, reject=0.2)]
    assert covered(near, GPU, 30)
    assert not covered(near, GPU, 31)


def test_there_is_room_between_honest_work_and_other_work() -> None:
    with pytest.raises(ValidationError):
        ToleranceSection(one="*", accept=0.1, reject=0.1)
