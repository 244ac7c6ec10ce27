"""The benchmark of attacks sends what it says, and its attackers stay bounded."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artel.protocol.state import Layout, Vector
from benchmark_world import rows_of, run
from benchmarks import attacks, attacks_paid
from benchmarks.attacks import ATTACKS, RARE, Cell, table

LAYOUT = Layout.of([("matrix", (80, 64)), ("vector", (64,))])


def vectors(seed: int, count: int) -> list[Vector]:
    drawn = np.random.default_rng(seed).standard_normal((count, LAYOUT.parameters))
    return list(drawn.astype(np.float32) * np.float32(1e-3))


HONEST, YESTERDAY, OWN = vectors(0, 6), vectors(1, 6), vectors(2, 2)


def forged(attack: str, round: int = 3) -> list[Vector]:
    cell = Cell(attack, 2, "mean", "int4", 30, 0)
    return list(attacks.forged(cell, LAYOUT, round, HONEST, YESTERDAY, OWN))


def norms(vector: Vector) -> list[float]:
    parts = (vector[t.offset : t.offset + t.size] for t in LAYOUT.tensors)
    return [float(np.linalg.norm(part)) for part in parts]


@pytest.mark.parametrize("attack", ATTACKS)
def test_every_attack_is_a_function_of_seed_and_round(attack: str) -> None:
    first, second = forged(attack)
    assert first.dtype == np.float32
    assert np.isfinite(first).all()
    assert np.array_equal([first, second], forged(attack))


def test_copies_are_those_of_honest_nodes() -> None:
    assert np.array_equal(forged("copier"), HONEST[:2])
    assert np.array_equal(forged("stale"), YESTERDAY[:2])


def test_attacks_inside_the_norm_are_as_loud_as_honest_nodes() -> None:
    wanted = np.mean([norms(vector) for vector in HONEST], 0)
    for vector in forged("rare"):
        assert norms(vector) == pytest.approx(wanted.tolist(), rel=1e-5)
    for vector, honest in zip(forged("noise"), HONEST, strict=False):
        assert norms(vector) == pytest.approx(norms(honest), rel=1e-5)
        assert abs(vector @ honest) < 0.1 * (honest @ honest)


@pytest.mark.parametrize("attack", ["rare", "constant"])
def test_colluders_push_the_same_places_in_every_round(attack: str) -> None:
    first, second = forged(attack)
    assert np.array_equal(np.sign(first), np.sign(second))
    assert np.array_equal(np.sign(first), np.sign(forged(attack, 4)[0]))
    moved = np.count_nonzero(forged("rare")[0]) / LAYOUT.parameters
    assert 0.5 / RARE < moved < 2 / RARE


def test_manipulation_points_away_from_the_honest_mean() -> None:
    mean = np.mean(HONEST, 0)
    assert forged("ipm")[0] @ mean < 0
    assert forged("alie")[0] == pytest.approx(mean - 1.5 * np.std(HONEST, 0), abs=1e-9)


def test_the_table_has_the_mean_of_seeds_in_the_order_of_attacks() -> None:
    def row(attack: str, attackers: int, seed: int, loss: float) -> dict[str, Any]:
        fields = dataclasses.asdict(Cell(attack, attackers, "mean", "int4", 30, seed))
        return fields | {"ours": loss, "ratio": loss / 2}

    rows = [row("zeros", 2, 0, 2.02), row("none", 0, 0, 2.0), row("zeros", 1, 0, 2.0)]
    rows += [row("zeros", 2, 1, 2.06), row("absent", 1, 0, 2.1)]
    lines = [line.split(" | ")[:3] for line in table(rows).splitlines()]
    assert lines[2:6] == [
        ["| none", "0", "2.0000"],
        ["| absent", "1", "+5.0 %"],
        ["| zeros", "1", "+0.0 %"],
        ["| zeros", "2", "+2.0 %"],
    ]
    assert "± 1.0 % at most" in table(rows)


@pytest.mark.parametrize(("attackers", "paid"), [(1, 0), (2, 0.005)])
def test_who_sends_what_is_rejected_is_convicted_before_it_is_paid(
    attackers: int, paid: float
) -> None:
    """But for what one of two was drawn to accept of the other."""
    found = attacks_paid.followed(attacks_paid.FALSE, attackers, False, range(2))
    assert found["convicted"] == 1
    assert found["rounds_95"] <= 10
    assert found["worst"] <= paid


def test_a_known_node_that_cheats_all_the_time_is_paid_for_none_of_it() -> None:
    found = attacks_paid.followed(attacks_paid.FALSE, 1, True, range(3))
    assert found["convicted"] == 1
    assert found["worst"] == 0


def test_zeros_and_copies_are_not_paid_and_convict_nobody() -> None:
    zeros = attacks_paid.followed(attacks_paid.ZEROS, 1, False, [0])
    assert (zeros["ours"], zeros["convicted"]) == (0, 0)
    copies = attacks_paid.followed(attacks_paid.COPY, 1, False, [0])
    assert copies["convicted"] == 0
    assert 0 < copies["ours"] < 0.01, "one round before there is anything to copy"


def test_every_attack_is_told_with_what_follows() -> None:
    errors = {"int4": dict.fromkeys(ATTACKS, 0.9)}
    lines = attacks_paid.table(errors, []).splitlines()
    follows = {line.split(" | ")[0]: line for line in lines}
    assert follows["| sign"] == "| sign | 0.90 | reject |"
    assert "`empty`" in follows["| zeros"]
    assert "`copied`" in follows["| stale"]


@pytest.mark.slow
def test_quick_attacks_do_not_blow_a_run_up(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = run("attacks", "--quick", "--json", str(file), timeout=580)
    assert done.returncode == 0, done.stderr
    found = rows_of(file)
    rows = {(row["attack"], row["codec"]): row for row in found if row["rounds"] == 8}
    for row in found:
        if row["unit"] == "tokens":
            least = {"int4": 3, "sparse": 0.3}[row["codec"]]
            assert row["sigmas"] > least, "a copy does not fit the windows of who sends it"
    for codec in ("int4", "sparse"):
        assert rows["none", codec]["ours"] < 4, "it learns: 5.5 is what it begins with"
        assert rows["absent", codec]["ratio"] < 1.1
        for attack in ("sign x1000", "ipm"):
            assert 1 < rows[attack, codec]["ratio"] < 1.3
