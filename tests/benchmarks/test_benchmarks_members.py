"""What members cost the coordinator: a small run of the benchmark, and its arithmetic."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from benchmark_world import called, rows_of, run
from benchmarks.members_table import OTHERS, PARTS, ROUND_S, Size, reckoned, table
from benchmarks.utilisation_crowds import HEADER_BYTES, Run, plan_of, simulate

BILLION = Run(34e6, 4e9, 295.0, 147.0, 4.0)


@pytest.mark.parametrize(("topology", "holders"), [("gather", 0), ("sharded", 0), ("sharded", 2)])
def test_a_round_of_members_without_trainers_is_complete_and_split_by_what_was_asked(
    tmp_path: Path, topology: str, holders: int
) -> None:
    file = tmp_path / "rows.json"
    arguments = ("--members", "3", "--rounds", "1", "--processes", "1", "--json", str(file))
    how = ("--topology", topology, "--holders", str(holders))
    done = run("members", *arguments, *how, timeout=280)
    assert done.returncode == 0, done.stderr
    rows = {row["name"]: row for row in rows_of(file)}
    # Whether a cosignature falls into the one round that is measured, is chance.
    for part in ("heartbeats", "commitments", "reveals", "votes", *OTHERS[1:3]):
        assert f"{part}, 3 members" in rows
    assert ("slices, 3 members" in rows) == (topology == "sharded")
    assert "10,000 members:" in done.stdout


def test_what_is_asked_for_is_checked() -> None:
    for arguments in (
        ["--members", "1"],
        ["--members", "x"],
        ["--slices", "1025"],
        ["--holders", "2"],
    ):
        assert called("members", *arguments)[0] == 2


def size(members: int, each: float) -> Size:
    parts = (*PARTS, *OTHERS)
    seconds = Counter(dict.fromkeys(parts, each * members))
    return Size(members, 1, seconds, Counter(dict.fromkeys(PARTS, members)))  # type: ignore[arg-type]


def test_more_members_are_reckoned_along_a_line() -> None:
    found = [size(10, 0.010), size(20, 0.015)]
    assert reckoned(found, "votes", 100) == pytest.approx(0.055)
    assert reckoned(found[:1], "votes", 100) == pytest.approx(0.010)
    # Of heartbeats there are more in a longer round.
    assert reckoned(found[:1], "heartbeats", 100) > ROUND_S / 30 * 0.010
    assert "1,000 members" in table(found)


def test_slices_for_each_member_and_groups_keep_machines_at_work_and_bytes_even() -> None:
    few, many = (simulate("sharded, S = N", count, BILLION) for count in (1000, 10_000))
    grouped = [simulate("groups", count, BILLION, 32) for count in (1000, 10_000)]
    for found in (few, many, *grouped):
        assert found.computing > 0.95
    # Who combines one slice reads an item of each index: with whole ones 1,000 members had 1.24.
    even = [simulate("sharded, S = N", count, BILLION) for count in (64, 256, 1000)]
    for one in ("down", "up"):
        least, *more = (getattr(found, one) for found in even)
        assert max(more) < 1.1 * least
    assert grouped[1].down < 1.1 * grouped[0].down
    # As built each contribution passes through one line.
    built = simulate("sharded", 10_000, BILLION)
    assert built.computing < 0.1
    assert built.limit == "coordinator's line"


def test_the_bytes_of_a_plan_are_those_of_its_parts() -> None:
    gather, groups = plan_of("gather", 100, BILLION), plan_of("groups", 1024, BILLION, 32)
    assert gather.down == 99 * BILLION.payload
    assert groups.requests == 3 * 32 + 3 * 32
    assert groups.down == pytest.approx(3 * BILLION.payload, rel=0.01 + 200 * HEADER_BYTES / 34e6)
