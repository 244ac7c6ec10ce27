"""Numbers of a round: what nodes carried since the round before, and how much they computed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from artel.coordinator.metrics import MemberMetrics, Metrics, Numbers
from artel.protocol.messages import Report


def report(up: dict[str, int], down: dict[str, int], **seconds: float) -> Report:
    return Report(
        state_round=1,
        state_root="",
        phase="x",
        loss=2.0,
        up_by_kind=up,
        down_by_kind=down,
        seconds=seconds,
    )


def test_bytes_of_a_round_are_what_grew_since_the_one_before(tmp_path: Path) -> None:
    now = 10.0
    metrics = Metrics(tmp_path / "metrics.jsonl")
    numbers = Numbers(metrics, lambda: now, None)
    numbers.opened(0, {"a": 8, "b": 2})
    now = 15.0
    numbers.phase(0, "training")
    numbers.closed(0, [], {"b": "late"})
    numbers.agreed(0, ["a"], {"a": report({"slice": 100}, {"control": 7}), "b": report({}, {})})
    numbers.opened(1, {"a": 8})
    grown = report({"slice": 150, "control": 1}, {"control": 7}, train=3.0, tail=1.0, idle=1.0)
    numbers.agreed(1, ["a"], {"a": grown})
    numbers.opened(2, {"a": 8})
    # The node was started again: it counts from 0.
    stranger = report({"slice": 1 << 50}, {}, idle=9.0)
    numbers.agreed(2, ["a"], {"a": report({"slice": 20}, {"control": 30}), "c": stranger})
    rounds = metrics.rounds
    assert (rounds[0].up, rounds[0].down) == ({"slice": 100}, {"control": 7})
    assert (rounds[0].steps, rounds[0].left_out) == ((2, 8), {"late": 1})
    assert (rounds[0].computing, rounds[0].seconds["training"]) == (None, 5.0)
    members = rounds[1].by_member
    assert members.traffic == {"a": {"up": {"control": 1, "slice": 50}, "down": {}}}
    assert (members.steps, members.computing, rounds[1].computing) == ({"a": 8}, {"a": 0.8}, 0.8)
    members = rounds[2].by_member
    assert members.traffic == {"a": {"up": {"slice": 20}, "down": {"control": 30}}}
    assert Metrics(metrics.path).rounds == rounds, "a coordinator that starts again knows them"
    # What there was of each member stays in the file alone.
    assert rounds[0].by_member == MemberMetrics()
    first = json.loads(metrics.path.read_text().splitlines()[0])["by_member"]
    assert (first["steps"], first["rejected"]) == ({"a": 8, "b": 2}, {"b": "late"})
    assert first["traffic"]["b"] == {"up": {}, "down": {}}


@pytest.mark.parametrize(
    "line",
    [
        '{"round": 1e999}',
        '{"round": 1, "loss": 1e308}',
        '{"round": 1, "computing": NaN}',
        '{"round": 1, "by_member": {"computing": {"a": NaN}}}',
        '{"round": 1, "seconds": 5}',
        "[]",
        '{"round": 1, "loss"',
    ],
)
def test_lines_that_this_program_would_not_write_are_no_numbers(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    Metrics(path).save(0)
    path.write_text(f"{path.read_text()}{line}\n")
    assert set(Metrics(path).rounds) == {0}


@pytest.mark.parametrize(
    ("seconds", "share"),
    [
        ({}, None),
        ({"fetch": 9.0, "apply": 4.0}, None),
        ({"train": 4.0}, 1.0),
        ({"train": 2.0, "tail": 1.0, "idle": 0.5, "encode": 0.25, "merge": 0.25}, 0.75),
    ],
)
def test_computing_is_the_share_of_inner_steps_in_the_trainers_time(
    seconds: dict[str, Any], share: float | None
) -> None:
    report = Report(state_round=0, state_root="", phase="waiting", seconds=seconds)
    assert report.computing == share
