"""The forecast of a run: the real state machine in virtual time, and the bytes of each topology."""

from __future__ import annotations

from dataclasses import replace

import pytest

from artel.coordinator.pace import steps_in_box
from artel.protocol.assignment import Work
from artel.protocol.errors import CheckFailed
from artel.protocol.round_state import RoundRules
from benchmarks.virtual_time import Load, Machine, forecast, traffic

RULES = RoundRules(
    total=12,
    min_nodes=1,
    max_nodes=32,
    quorum=0.66,
    deadline=3600.0,
    grace=30.0,
    reveal=600.0,
    settle=600.0,
    heartbeat_timeout=1e9,
)
WORK = Work(12, 30, 0, False, 8, 1024, "auto")
LOAD = Load(100_000_000, 0.26, 1e9, 2e9, 1e9)


def homes(count: int, step_s: float = 1.0) -> list[Machine]:
    return [Machine(step_s) for _ in range(count)]


def test_without_a_network_to_speak_of_all_time_is_spent_computing() -> None:
    links = [Machine(1.0, 1e12, 1e12, 0.0)] * 4
    free = replace(LOAD, encode_bytes_per_s=1e15, decode_bytes_per_s=1e15, state_bytes_per_s=1e15)
    found = forecast(RULES, WORK, free, links, [30] * 4)
    assert found.round_s == pytest.approx(30.0, abs=0.01)
    assert found.utilisation == pytest.approx(1.0, abs=0.001)
    assert found.tokens == 4 * 12 * WORK.tokens(30)
    assert found.rejected == 0


def test_overlap_hides_the_exchange_until_it_is_longer_than_the_tail() -> None:
    plain = forecast(RULES, WORK, LOAD, homes(8), [30] * 8)
    hidden = forecast(RULES, replace(WORK, overlap_steps=15), LOAD, homes(8), [30] * 8)
    assert hidden.tokens == plain.tokens
    assert plain.utilisation < 0.95 < 0.98 < hidden.utilisation
    assert hidden.round_s < plain.round_s
    # On a line a hundred times slower the exchange outlasts any tail.
    slow = [Machine(1.0, 1e6, 0.2e6)] * 8
    patient = replace(RULES, settle=3600.0)
    waiting = forecast(patient, replace(WORK, overlap_steps=15), LOAD, slow, [30] * 8)
    assert waiting.utilisation < 0.8
    # Nobody is done in the time to settle: every attempt fails.
    with pytest.raises(CheckFailed, match="round 0"):
        forecast(RULES, replace(WORK, overlap_steps=15), LOAD, slow, [30] * 8)


def test_a_machine_fifteen_times_slower_stalls_nobody_and_still_earns() -> None:
    rules, work = replace(RULES, box=60.0, deadline=120.0), replace(WORK, boxed=True)
    machines = [*homes(3, 0.5), Machine(7.5)]
    speeds = [work.tokens(1) / machine.step_s for machine in machines]
    steps = [steps_in_box(work, 60.0, speed) for speed in speeds]
    found = forecast(rules, work, LOAD, machines, steps)
    without = forecast(rules, work, LOAD, machines[:3], steps[:3])
    assert steps[3] == 8  # a quarter of H, rounded up: 60 s on this machine
    assert found.rejected == 0
    assert found.tokens == without.tokens + 12 * work.tokens(8)
    assert found.round_s < 60.0 + 30.0 + 10.0


@pytest.mark.parametrize("members", [8, 16, 32, 100, 1000, 10_000])
def test_a_sharded_round_costs_a_node_about_three_payloads(members: int) -> None:
    load = replace(LOAD, parameters=10_000_000_000)
    sharded = replace(WORK, topology="sharded")
    for serves in (True, False):
        moved = traffic(load, sharded, members, coordinator_serves=serves)
        assert moved.down < 3.05 * load.payload
        assert moved.up < 3.05 * load.payload
    gather = traffic(load, replace(WORK, topology="gather"), members)
    assert gather.down == (members - 1) * load.payload
