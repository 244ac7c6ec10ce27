"""Time-boxed rounds: steps by speed, a slow node that stalls nobody, and what the ledger says."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.coordinator.pace import KEEP, SHARE, Pace, steps_in_box
from artel.ledger.entries.fold_state import FoldState
from artel.protocol import messages, round_state
from artel.protocol.assignment import Work
from artel.protocol.duties import directive
from artel.protocol.identity import Identity
from artel.protocol.manifest import Manifest
from artel.protocol.pauses import wait_before
from artel.protocol.round_state import Phase, RoundRules, RunState
from artel.protocol.rounds import step
from artel.protocol.state import Layout
from desk_world import Member, Office, run_of

WORK = Work(
    total=12,
    inner_steps=20,
    overlap_steps=0,
    boxed=True,
    batch_size=2,
    seq_len=50,
    topology="auto",
)
"""A step has 100 tokens; 5 to 80 steps are assigned."""
BOX = 60.0
GRACE = 10.0


# --- the arithmetic ---


def test_steps_fill_most_of_the_box() -> None:
    assert steps_in_box(WORK, BOX, 30.0) == int(SHARE * BOX * 30 / 100) == 16
    assert steps_in_box(WORK, BOX, 1.0) == 5, "never below a quarter"
    assert steps_in_box(WORK, BOX, 1e9) == 80, "never above four times"
    assert steps_in_box(WORK, BOX, None) == 20
    assert steps_in_box(WORK, 0.0, 5.0) == 20, "no box: everybody makes the same"


@given(st.floats(allow_nan=True, allow_infinity=True) | st.none())
def test_whatever_a_node_reports_the_steps_are_allowed(speed: float | None) -> None:
    assert WORK.least <= steps_in_box(WORK, BOX, speed) <= WORK.most


def test_a_speed_is_what_was_accepted_over_the_time_it_took() -> None:
    pace = Pace()
    assert pace.speed("a") is None
    pace.opened(100.0, 0)
    pace.committed("a", 150.0)
    pace.committed("a", 170.0)  # said again
    pace.accepted("a", 1000, 0)
    pace.accepted("b", 1000, 0)  # committed to nothing that was seen
    assert (pace.speed("a"), pace.speed("b")) == (20.0, None)


def test_a_tail_was_trained_since_the_commitment_before() -> None:
    pace = Pace()
    pace.opened(0.0, 0)
    pace.committed("a", 50.0)
    pace.accepted("a", 1000, 0)
    pace.opened(90.0, 0)  # the exchange took 40 s, in which 800 tokens were trained
    pace.committed("a", 100.0)
    pace.accepted("a", 200, 800)
    pace.opened(140.0, 0)  # now 30 s of it were spent waiting
    pace.committed("a", 150.0)
    pace.accepted("a", 200, 200)
    assert pace._seen["a"] == pytest.approx([20.0, 20.0, 20.0])


def test_a_repeated_attempt_says_nothing_about_speed() -> None:
    pace = Pace()
    pace.opened(0.0, 0)
    pace.opened(50.0, 1)
    pace.committed("a", 50.1)
    pace.accepted("a", 1000, 0)
    pace.late("b", 50.0, 1000)
    assert (pace.speed("a"), pace.speed("b")) == (None, None)


def test_one_odd_round_does_not_count() -> None:
    pace = Pace()
    for number in range(KEEP):
        pace.opened(100.0 * number, 0)
        pace.committed("a", 100.0 * number + (1.0 if number == 1 else 50.0))
        pace.accepted("a", 1000, 0)
    assert pace.speed("a") == 20.0
    pace.opened(1000.0, 0)
    pace.late("a", 60.0, 120)
    assert pace.speed("a") == 20.0
    pace.opened(2000.0, 0)
    pace.late("a", 60.0, 120)
    assert pace.speed("a") == 2.0


# --- a whole run of machines that are unevenly fast, over the pure machine ---


@dataclass
class Machine:
    """A node that trains at ``speed`` tokens per second and needs ``delay`` seconds to commit."""

    peer: str
    speed: float
    delay: float
    claims: float
    """The speed that it reports."""
    done_at: float = 0.0
    head: int = 0
    rounds: int = 0
    earned: int = 0
    waited: float = 0.0
    """The longest that it waited for others, from its commitment on."""


RULES = RoundRules(
    total=WORK.total,
    min_nodes=1,
    max_nodes=8,
    quorum=0.5,
    deadline=600,
    grace=GRACE,
    reveal=20,
    settle=20,
    heartbeat_timeout=1e9,
    box=BOX,
)


class Simulation:
    """Steps the pure machine as the coordinator does; events happen when the machines are done."""

    def __init__(self, machines: list[Machine]) -> None:
        self.machines = {machine.peer: machine for machine in machines}
        self.pace = Pace()
        self.state = RunState(Phase.WAITING, 0, 0, "r0", since=0.0)
        self.now = 0.0
        self.steps: dict[str, int] = {}
        self.training: list[float] = []
        self.failed = 0
        here = {machine.peer: round_state.Presence(0.0, "r0") for machine in machines}
        self.state = replace(self.state, peers=here)
        self.feed(round_state.Tick(0.0))

    def run(self) -> None:
        while self.state.phase is not Phase.FINISHED and self.failed < 5:
            self.train()
            for peer in self.state.commitments:
                if self.state.phase is Phase.REVEALING:
                    self.now += 0.1
                    round, attempt = self.state.round, self.state.attempt
                    self.feed(round_state.Revealed(self.now, peer, round, attempt, ""))
            root = f"r{self.state.round + 1}"
            while self.state.phase is Phase.APPLYING:
                self.now += 0.5
                round, attempt = self.state.round, self.state.attempt
                peer = next(p for p in self.state.accepted if p not in self.state.votes)
                self.feed(round_state.StateSigned(self.now, peer, round, attempt, root))
            for peer in self.machines:
                if self.state.phase is Phase.WAITING:
                    self.feed(round_state.Seen(self.now, peer, self.state.base))
            if self.state.phase is Phase.WAITING:
                self.now += GRACE + wait_before(self.state.attempt)
                self.feed(round_state.Tick(self.now))

    def train(self) -> None:
        assert self.state.phase is Phase.TRAINING
        opened, round, attempt = self.now, self.state.round, self.state.attempt
        for peer in self.state.members:
            machine, h = self.machines[peer], self.steps[peer]
            left = directive(RULES, self.state, peer, self.now).remaining
            assert left == BOX
            per_step = WORK.tokens(1) / machine.speed
            made = min(h, max(WORK.least_head(round, h), int(left / per_step)))
            machine.head, machine.done_at = made, opened + made * per_step + machine.delay
        waiting = sorted(self.state.members, key=lambda peer: self.machines[peer].done_at)
        for peer in waiting:
            while self.now < min(self.machines[peer].done_at, opened + BOX + GRACE):
                self.now = min(self.now + 0.25, self.machines[peer].done_at)
                self.feed(round_state.Tick(self.now))
            if self.state.phase is not Phase.TRAINING or self.state.attempt != attempt:
                break
            self.feed(round_state.Committed(self.now, peer, round, attempt, peer))
            self.pace.committed(peer, self.now)
        self.training.append(self.now - opened)
        for peer in self.state.commitments:
            machine = self.machines[peer]
            machine.waited = max(machine.waited, self.now - machine.done_at)

    def feed(self, event: round_state.Event) -> None:
        self.state, actions = step(RULES, self.state, event)
        for action in actions:
            assert not isinstance(action, round_state.Refuse), action
            if isinstance(action, round_state.OpenRound):
                self.pace.opened(self.now, action.attempt)
                self.steps = {peer: self.steps_for(peer) for peer in action.members}
            elif isinstance(action, round_state.CloseRound):
                self.failed += not action.accepted
                for peer in action.accepted:
                    machine = self.machines[peer]
                    machine.earned += WORK.tokens(machine.head)
                    machine.rounds += 1
                    self.pace.accepted(peer, WORK.tokens(machine.head), 0)
                for peer, reason in action.rejected.items():
                    if reason == round_state.LATE:
                        least = WORK.least_head(action.round, self.steps[peer])
                        self.pace.late(peer, RULES.training, WORK.tokens(least))

    def steps_for(self, peer: str) -> int:
        speed = self.pace.speed(peer) or self.machines[peer].claims
        return steps_in_box(WORK, BOX, speed)


def machines(*speeds: float, delay: float = 0.5, lie: float = 1.0) -> list[Machine]:
    names = [Identity.from_seed(bytes([n]) * 32).peer_id for n in range(len(speeds))]
    return [Machine(n, s, delay, s * lie) for n, s in zip(names, speeds, strict=True)]


def test_a_node_fifteen_times_slower_stalls_nobody_and_still_earns() -> None:
    fast = [140.0, 140.0, 130.0]
    uneven = machines(*fast, 140.0 / 15)
    simulation = Simulation(uneven)
    simulation.run()
    assert simulation.state.phase is Phase.FINISHED
    assert simulation.failed == 0
    slow = uneven[-1]
    assert {machine.rounds for machine in uneven} == {WORK.total}
    assert slow.earned / uneven[0].earned == pytest.approx(1 / 15, rel=0.1)
    # Everybody works for most of the box, and the box is kept.
    assert all(BOX * 0.8 <= seconds <= BOX for seconds in simulation.training)
    assert max(machine.waited for machine in uneven) < 0.15 * BOX
    # Alone, the fast ones would not have been quicker.
    alone = Simulation(machines(*fast))
    alone.run()
    assert simulation.now < 1.1 * alone.now


def test_a_machine_slower_than_a_quarter_in_the_box_contributes_what_it_has() -> None:
    """5 steps are the fewest that are assigned; it makes 4 of them in the box."""
    uneven = machines(100.0, 8.0)
    simulation = Simulation(uneven)
    simulation.run()
    assert simulation.steps[uneven[1].peer] == 5
    assert uneven[1].head == 4
    assert uneven[1].rounds == WORK.total
    assert max(simulation.training) <= BOX + GRACE


def test_a_node_that_boasts_costs_one_round_of_its_own() -> None:
    """It reports twenty times what it can: the first box passes, then the facts count."""
    uneven = machines(100.0, 100.0, 100.0, 10.0)
    uneven[3].claims = 200.0
    simulation = Simulation(uneven)
    simulation.run()
    assert simulation.training[0] == pytest.approx(BOX + GRACE, abs=0.5)
    assert uneven[3].rounds == WORK.total - 1
    assert {machine.rounds for machine in uneven[:3]} == {WORK.total}
    assert all(seconds <= BOX for seconds in simulation.training[2:])


speeds = st.lists(st.floats(min_value=0.3, max_value=3000.0), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(speeds, st.floats(min_value=0.0, max_value=8.0), st.floats(min_value=0.05, max_value=20.0))
def test_nobody_ever_waits_longer_than_the_box_and_the_grace(
    found: list[float], delay: float, lie: float
) -> None:
    simulation = Simulation(machines(*found, delay=delay, lie=lie))
    simulation.run()
    assert simulation.training
    assert all(seconds <= BOX + GRACE + 0.3 for seconds in simulation.training)
    # Whoever can make the fewest steps in time is never left out once that is known.
    for machine in simulation.machines.values():
        least = WORK.tokens(WORK.least_head(0, WORK.least)) / machine.speed
        if least + delay < BOX and not simulation.failed:
            assert machine.rounds >= WORK.total - 4


# --- at the coordinator's desk ---


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_of(
        tmp_path_factory.mktemp("run"),
        rounds={"box_s": 40.0, "total": 6},
        exchange={"overlap_steps": 2},
    )


def report(member: Member, speed: float) -> messages.Report:
    round = member.office.core.state.round
    return messages.Report(
        state_round=round, state_root=member.root, phase="x", tokens_per_second=speed
    )


async def open_round(members: list[Member], speeds: list[float]) -> None:
    for member, speed in zip(members, speeds, strict=True):
        await member.beat(report=report(member, speed))
    assert members[0].office.core.state.phase is Phase.TRAINING


async def finish(office: Office, members: list[Member], heads: dict[str, int]) -> None:
    for member in members:
        await member.put()
        changes = {"head": heads[member.peer]} if member.peer in heads else {}
        await member.reveal(member.statement(**changes).encode())
    root = bytes([office.core.state.round]).hex() * 32
    for member in members:
        await member.sign_state(root)


@pytest.fixture
def all_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Everybody's work was looked at long ago."""
    monkeypatch.setattr(FoldState, "most_steps", lambda state, node: state.work.most)


async def test_who_commits_at_once_gets_no_more_than_anybody(office: Office) -> None:
    """Its speed is that of one who did not train; four times the steps would be four times the
    credit, and the weight in the sum."""
    members = [Member(office, name) for name in "abc"]
    for member in members:
        await member.hello()
    await open_round(members, [1e9, 1e9, 16.0])
    for _ in range(2):
        opened = office.bodies("round_opened")[-1]
        quick, other, slow = (opened.steps[opened.members.index(m.peer)] for m in members)
        assert (quick, other) == (8, 8)
        assert 2 <= slow < 5
        office.now += 0.01
        for member in members[:2]:
            await member.commit()
        office.now += 30
        await members[2].commit()
        await finish(office, members, {})
        await open_round(members, [1e9, 1e9, 16.0])
    assert office.core.planner.pace.speed(members[0].peer) > 1e4


async def test_nobody_gets_more_than_twice_what_it_has_really_done(
    tmp_path: Path, run: tuple[Manifest, Layout]
) -> None:
    """What has vested counts, not what was accepted a moment ago, and of its own account."""
    manifest, layout = run
    changed = manifest.config.ownership.model_copy(update={"vesting_rounds": 2})
    config = manifest.config.model_copy(update={"ownership": changed})
    office = await Office(tmp_path, manifest.model_copy(update={"config": config}), layout).open()
    quick, slow, other = members = [Member(office, name) for name in "abc"]
    for member in members:
        await member.hello()
    given = []
    for _ in range(6):
        await open_round(members, [1e9, 1.0, 16.0])
        opened = office.bodies("round_opened")[-1]
        steps = dict(zip(opened.members, opened.steps, strict=True))
        given.append(steps[quick.peer])
        assert steps[slow.peer] == 2
        made: dict[str, int] = {member.peer: 0 for member in members}
        for body in office.bodies("contribution"):
            if body.round + 1 + 2 <= opened.round:
                made[body.node] = max(made[body.node], body.tail + body.head)
        for member in members:
            assert steps[member.peer] <= max(8, 2 * made[member.peer])
        office.now += 0.01
        await quick.commit()
        office.now += 36
        for member in (slow, other):
            await member.commit()
        await finish(office, members, {})
    # Its contributions of 6, 8 and 8 steps vest with states 3, 4 and 5.
    assert given == [8, 8, 8, 12, 16, 16]
    assert not office.core.ledger.state.ignored
    office.close()


@pytest.mark.usefixtures("all_stand")
async def test_the_ledger_says_who_has_how_many_steps(office: Office) -> None:
    """H = 8 steps of 128 tokens: 2 to 32 of them in a box of 40 s."""
    members = sorted((Member(office, name) for name in "abc"), key=lambda member: member.peer)
    for member in members:
        await member.hello()
    await open_round(members, [1e6, 32.0, 0.0])
    opened = office.bodies("round_opened")[-1]
    assert opened.steps == (32, 9, 8), "the most, as many as fit into 36 s, and unknown"
    train = await members[0].beat()
    assert train.remaining == pytest.approx(40)
    office.now += 20
    for member in members[:2]:
        await member.commit()
    await office.pass_time(20)
    assert office.core.state.phase is Phase.TRAINING, "the quorum's grace does not begin early"
    assert (await members[2].beat()).remaining == pytest.approx(0)
    await office.pass_time(5)
    await members[2].commit()
    # tail(32) = 8, tail(9) = 2, tail(8) = 2; the last one had time for 3 steps of 6.
    await finish(office, members, {members[2].peer: 3})
    fold = office.core.ledger.state
    assert not fold.ignored
    weights = {item.node: item.weight for item in office.bodies("round_closed")[-1].accepted}
    assert [weights[m.peer] // 128 for m in members] == [24, 7, 3]
    assert fold.tails == {members[0].peer: 8, members[1].peer: 2, members[2].peer: 2}
    # The next round knows better: 24 and 7 steps in 20 s, 3 in 45 s.
    await office.pass_time(0)
    await open_round(members, [5.0, 1e9, 1e9])
    assert office.bodies("round_opened")[-1].steps == (32, 12, 2)
    assert office.bodies("round_opened")[-1].cursor == (32 + 9 + 8) * 4
    # Tails count now, on top of the head.
    for member in members:
        await member.commit()
    await finish(office, members, {})
    weights = {item.node: item.weight for item in office.bodies("round_closed")[-1].accepted}
    assert [weights[m.peer] // 128 for m in members] == [8 + 24, 2 + 9, 2 + 1]
    assert not fold.ignored


@pytest.mark.usefixtures("all_stand")
async def test_a_late_node_gets_fewer_steps_and_who_was_done_keeps_its_own(office: Office) -> None:
    members = [Member(office, name) for name in "abc"]
    for member in members:
        await member.hello()
    await open_round(members, [64.0, 64.0, 64.0])
    before = office.core.ledger.state.attempt
    assert before is not None
    done = members[0]
    await done.commit()
    await office.pass_time(49)
    assert office.core.state.phase is Phase.TRAINING
    await office.pass_time(1.5)  # box and grace are over, without a quorum
    assert office.core.state.attempt == 1
    for member in members:
        await member.beat(report=report(member, 64.0))
    again = office.core.ledger.state.attempt
    assert again is not None
    assert again.attempt == 1
    assert again.steps[done.peer] == before.steps[done.peer] == 18
    # The least head of 18 steps is 4 of 14; that took them more than 50 s.
    assert {again.steps[m.peer] for m in members[1:]} == {int(0.9 * 40 * 4 / 50)}
    opened = office.bodies("round_opened")
    assert opened[0].cursor == opened[1].cursor
    assert not office.core.ledger.state.ignored
