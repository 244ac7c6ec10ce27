"""The benchmarks run, refuse wrong arguments in one line, and write rows that programs can read."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold.shares import apply
from artel.protocol.fingerprints import TRIAL_APART
from benchmark_world import ROOT, called, rows_of, run
from benchmarks.ledger_entries import NODES, PER_ROUND, Run

STARTED = ("against", "members_crowd", "members_office")
"""Have arguments of their own: one runs the others at two commits, two are started by members."""
BENCHMARKS = sorted(
    path.stem
    for path in (ROOT / "benchmarks").glob("*.py")
    if '__name__ == "__main__"' in path.read_text() and path.stem not in STARTED
)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_help_shows_how_to_run_it(name: str) -> None:
    code, out, err = called(name, "--help")
    assert (code, err) == (0, "")
    assert f"python -m benchmarks.{name} --quick" in out
    assert "--json FILE" in out


@pytest.mark.parametrize(
    ("name", "arguments", "complaint"),
    [
        ("overhead", ["--nodes", "0"], "--nodes must be from 1 to 16"),
        ("overhead", ["--rounds", "-1"], "--rounds and --inner-steps must be at least 1"),
        ("overhead", ["--json", "no-such-folder/rows.json"], "there is no folder no-such-folder"),
        ("overhead", ["--keep", "benchmarks"], "is not empty"),
        ("utilisation", ["--rounds", "0"], "counts must be at least 1"),
        ("utilisation", ["--json", "no-such-folder/rows.json"], "there is no folder"),
        ("utilisation", ["--keep", "benchmarks"], "is not empty"),
        ("overhead", ["--codec", "zip"], "invalid choice: 'zip'"),
        ("ledger", ["--only", "proof,speed"], "unknown parts ['speed']"),
        ("ledger", ["--entries", "10"], "--entries must be at least 5000"),
        ("ledger", ["--submitters", "0"], "--submitters must be from 1 to 4096"),
        ("ledger", ["--json", "no-such-folder/rows.json"], "there is no folder no-such-folder"),
        ("codec", ["--repeat", "0"], "--repeat must be from 1 to 1000"),
        ("codec", ["--json", "no-such-folder/rows.json"], "there is no folder no-such-folder"),
        ("convergence", ["--rows", "ddp,int3"], "unknown row 'int3'"),
        ("convergence", ["--rows", "int4/tau=15"], "overlap_steps = 15 is more than half"),
        ("convergence", ["--rows", "sparse/mu=0.5"], "does not go with codec"),
        ("convergence", ["--tokens", "5"], "--tokens must be at least 10000"),
        ("convergence", ["--json", "no-such-folder/rows.json"], "there is no folder"),
        ("attacks", ["--attacks", "ipm,spam"], "unknown attacks ['spam']"),
        ("attacks", ["--attackers", "4"], "--attackers must be from 1 to 3"),
        ("attacks", ["--rounds", "2"], "--rounds must be from 4 to 1000"),
        ("attacks", ["--json", "no-such-folder/rows.json"], "there is no folder no-such-folder"),
        ("replay", ["--kinds", "adamw int3"], "unknown kinds ['adamw int3']"),
        ("replay", ["--json", "no-such-folder/rows.json"], "there is no folder no-such-folder"),
        ("exchange", ["--only", "links,speed"], "unknown ['speed']"),
        ("exchange", ["--codecs", "zip"], "unknown ['zip']"),
        ("exchange", ["--sizes", "2G"], "unknown ['2G']"),
        ("exchange", ["--peers", "1"], "--peers must be from 2 to 16"),
        ("exchange", ["--peers", "two"], "--peers must be numbers"),
        ("exchange", ["--repeat", "0"], "--repeat must be at least 1"),
        ("exchange", ["--json", "no-such-folder/rows.json"], "there is no folder no-such-folder"),
    ],
)
def test_wrong_arguments_are_refused_before_anything_runs(
    name: str, arguments: list[str], complaint: str
) -> None:
    code, out, err = called(name, *arguments)
    assert (code, out) == (2, "")
    assert complaint in err


def test_quick_utilisation_says_what_larger_models_and_more_nodes_would_do(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    assert called("utilisation", "--quick", "--json", str(file))[0] == 0
    rows = json.loads(file.read_text())
    forecasts = [row for row in rows if row["name"] == "forecast"]
    assert {row["parameters"] for row in forecasts} == {10**8, 10**9, 10**10}
    at = {(r["codec"], r["overlap_steps"]): r["computing"] for r in forecasts if r["up_mbit"] == 20}
    assert at["sparse", 0] < 0.98 < at["sparse", 15]
    assert at["int4", 0] < at["sparse", 0]
    kept = [row for row in rows if row.get("topology") == "sharded" and "nodes" in row]
    sharded = {row["nodes"]: row["down_payloads"] for row in kept}
    assert sharded[8] < sharded[32] < 3 < sharded[10_000] < 3.5


def test_the_entries_of_the_ledger_benchmark_all_count() -> None:
    """They are made by hand, without the functions that runs use."""
    state, size = FoldState(), 1 + 2 * NODES + 5 * PER_ROUND
    for entry in Run(rounds=size).long(size):
        apply(state, entry)
    assert (state.size, state.round, state.ignored) == (size, 5, {})


@pytest.mark.slow
def test_quick_overhead_measures_every_limit(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = run("overhead", "--quick", "--json", str(file), timeout=580)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in rows_of(file)}
    limits = {n: r["baseline"] for n, r in rows.items() if r["baseline_is"] == "limit"}
    assert sorted(limits.values()) == [0.3, 1.5, 20.0, 400.0, 400.0]
    for row in rows.values():
        if row["baseline_is"] == "limit":
            assert row["holds"] == (row["ours"] <= row["baseline"])
        assert row["rounds"] >= 3
        assert 0.8e6 < row["parameters"] < 1.3e6
        assert row["name"] in done.stdout
    # What does not depend on how busy the machine is.
    waiting = rows["time of a round that is not training"]
    assert {"commit", "upload", "fetch", "aggregate", "outer", "rest"} <= set(waiting["phases"])
    assert waiting["round_seconds"] > waiting["train_seconds"] > 0
    start = rows["artel node start to the first inner step"]
    assert math.isclose(sum(start["phases"].values()), start["ours"], rel_tol=0.01)
    payload = rows["contribution of a node"]
    assert 0.12 < payload["ratio"] < 0.14, "int4 with a scale for 256 values, against 32 bits"
    for way in ("up", "down"):
        traffic = rows[f"bytes {way} of a node in a round"]
        assert {"contribution", "control", "ledger"} <= set(traffic["kinds"])
        assert traffic["ours"] > payload["ours"]
    assert rows["check of the ledger"]["verified"]


@pytest.mark.slow
def test_quick_ledger_measures_every_limit(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = run("ledger", "--quick", "--json", str(file), timeout=580)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in rows_of(file)}
    limits = {n for n, r in rows.items() if r["baseline_is"] == "limit"}
    assert {"submit to durable, one core", "full audit, one core", "inclusion proof"} < limits
    for name in limits:
        assert rows[name]["holds"] == (rows[name]["ours"] <= rows[name]["baseline"])
        assert name in done.stdout
    for name in ("submit to durable, one core", "full audit, one core"):
        assert 0 < rows[name]["hardware_percent"] <= 110, "no faster than its signature checks"
    assert rows["inclusion proof"]["entries"] == 50_000


def test_two_trees_are_measured_in_turns_and_compared(tmp_path: Path) -> None:
    folder = tmp_path / "tree" / "benchmarks"
    folder.mkdir(parents=True)
    (folder / "codec.py").write_text(
        "import json, pathlib, sys\n"
        "rows = [{'name': 'theirs', 'ours': 1, 'unit': 's'}]\n"
        "pathlib.Path(sys.argv[sys.argv.index('--json') + 1]).write_text(json.dumps(rows))\n"
    )
    tree, quick = str(tmp_path / "tree"), ["codec", "--quick", "--megabytes", "1", "--repeat", "1"]
    done = run("against", tree, "--turns", "1", *quick)
    assert done.returncode == 0, done.stderr
    assert "theirs" in done.stdout
    done = run("against", str(tmp_path), "--turns", "1", *quick)
    assert done.returncode == 2
    assert "has no benchmarks/codec.py" in done.stderr


@pytest.mark.slow
def test_guesses_at_fingerprints_are_further_off_than_what_is_accepted(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    arguments = ["--only", "guesses", "--kinds", "muon int4", "--json", str(file)]
    done = run("replay", *arguments, timeout=580)
    assert done.returncode == 0, done.stderr
    rows = {row["guess"]: row for row in rows_of(file)}
    assert all(row["guess"] in done.stdout for row in rows.values())
    shown = [row["ours"] for row in rows.values() if "shown" in row]
    assert min(shown) > 0.4, "what is accepted of an audited round is at most that"
    # Who has made more and more of the steps comes nearer and nearer.
    trial = [row["trial"] for row in rows.values() if "trial" in row]
    assert len(trial) == 8
    assert trial[-3] > trial[-2] > trial[-1] > 0.1
    assert min(trial[:-3]) > TRIAL_APART
