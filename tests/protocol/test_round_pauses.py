"""Members that are silent or dissent: how long they hold a round up, and what that leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.protocol import pauses, round_state, rounds
from artel.protocol.duties import directive
from artel.protocol.pauses import MAX_PAUSE, Pause, wait_before
from artel.protocol.round_state import Phase, RoundRules, RunState

RULES = RoundRules(
    total=60,
    min_nodes=2,
    max_nodes=8,
    quorum=0.66,
    deadline=30,
    grace=5,
    reveal=10,
    settle=10,
    heartbeat_timeout=15,
)
BASE = RunState(Phase.WAITING, round=0, attempt=0, base="r0", since=0.0)
HOUR = 3600
KINDS = ("silent", "unrevealing", "unsigned", "dissent")
"""Commits to nothing, shows nothing, signs nothing, signs a root of its own. All keep beating."""


class Swarm:
    """Nodes, each of one kind, and the machine, in steps of a second."""

    def __init__(
        self, kinds: dict[str, str], rules: RoundRules = RULES, state: RunState = BASE
    ) -> None:
        here = {peer: round_state.Presence(0.0, state.base) for peer in kinds}
        self.kinds, self.rules, self.state = kinds, rules, replace(state, peers=here)
        self.roots: dict[str, str] = {}
        self.now = 0.0
        self.entries = 0
        self.attempts: Counter[int] = Counter()
        self.members: list[tuple[int, tuple[str, ...]]] = []
        self.signers: list[tuple[str, ...]] = []

    def feed(self, event: round_state.Event) -> None:
        self.state, actions = rounds.step(self.rules, self.state, event)
        if isinstance(event, round_state.Revealed) and not isinstance(
            actions[0] if actions else None, round_state.Refuse
        ):
            self.entries += 1
        for action in actions:
            self.entries += not isinstance(action, round_state.Refuse | round_state.Drop)
            if isinstance(action, round_state.OpenRound):
                self.attempts[action.round] += 1
                self.members.append((action.round, action.members))
            elif isinstance(action, round_state.AgreeState):
                self.signers.append(action.signers)

    def second(self) -> None:
        self.now += 1
        for peer in list(self.kinds):
            held = self.roots.setdefault(peer, self.state.base)
            self.feed(round_state.Seen(self.now, peer, held))
            self.act(peer, self.kinds[peer])
            if self.kinds[peer] != "good":  # it says that it holds whatever one will have to hold
                ahead = self.state.phase is Phase.APPLYING
                claimed = f"r{self.state.round + 1}" if ahead else self.state.base
                self.feed(round_state.Seen(self.now, peer, claimed))
        self.feed(round_state.Tick(self.now))

    def act(self, peer: str, kind: str) -> None:
        state, now = self.state, self.now
        place = (state.round, state.attempt)
        task = directive(self.rules, state, peer, now).task
        if task == "sync":
            self.roots[peer] = state.base
        elif kind == "hands back" and state.phase is Phase.TRAINING and peer in state.members:
            self.feed(round_state.HandedBack(now, peer, *place))
        elif task == "train" and kind not in ("silent", "hands back"):
            self.feed(round_state.Committed(now, peer, *place, f"{peer}{place}"))
        elif task == "reveal" and kind != "unrevealing":
            self.feed(round_state.Revealed(now, peer, *place, ""))
        elif task == "apply" and kind != "unsigned":
            wrong = {"dissent": f"by {peer}", "conspires": "by us"}.get(kind)
            self.roots[peer] = wrong or f"r{state.round + 1}"
            self.feed(round_state.StateSigned(now, peer, *place, self.roots[peer]))

    def until(self, enough: Callable[[], bool], seconds: int = 10 * HOUR) -> None:
        for _ in range(seconds):
            if enough():
                return
            self.second()
        raise AssertionError(f"not in {seconds} s: {self.state}")

    def rounds(self, count: int) -> None:
        self.until(lambda: self.state.round >= count)

    def honest_roots(self) -> None:
        assert self.state.base == f"r{self.state.round}"


def of(*kinds: str) -> dict[str, str]:
    return {chr(ord("a") + number): kind for number, kind in enumerate(kinds)}


@pytest.mark.parametrize("other", KINDS)
def test_two_of_four_that_are_in_the_way_cost_one_attempt_and_less_and_less(other: str) -> None:
    swarm = Swarm(of(other, "good", other, "good"))
    swarm.rounds(40)
    swarm.honest_roots()
    assert max(swarm.attempts.values()) == 2, "the first repetition is agreed on"
    assert swarm.attempts[0] == 2
    failed = [number for number, attempts in swarm.attempts.items() if attempts > 1]
    if other in ("silent", "unrevealing"):
        assert failed == [0], "a quorum of those who have delivered before is enough"
        return
    # The first time costs nothing but the repetition, then 1, 2, 4, 8, 16 rounds without them.
    assert failed == [0, 1, 3, 6, 11, 20, 37]


@pytest.mark.parametrize("kinds", [("silent", "dissent"), ("unsigned", "dissent"), KINDS[:2]])
def test_mixed_troubles_cost_a_few_attempts(kinds: tuple[str, str]) -> None:
    swarm = Swarm(of("good", *kinds, "good"))
    swarm.rounds(40)
    swarm.honest_roots()
    assert max(swarm.attempts.values()) <= 3
    assert sum(swarm.attempts.values()) <= 40 + 14


def test_one_of_three_that_dissents_costs_nothing() -> None:
    swarm = Swarm(of("dissent", "good", "good"), replace(RULES, min_nodes=3))
    swarm.rounds(20)
    swarm.honest_roots()
    assert set(swarm.attempts.values()) == {1}


def test_one_of_three_that_dissents_while_another_one_is_silent() -> None:
    """With nobody to spare: two have to agree, and each of the two is needed."""
    for order in (("dissent", "good", "silent"), ("good", "silent", "dissent")):
        swarm = Swarm(of(*order, "good"), replace(RULES, min_nodes=3))
        swarm.rounds(20)
        swarm.honest_roots()
        assert max(swarm.attempts.values()) <= 3


def test_where_enough_nodes_are_needed_a_quorum_of_them_does() -> None:
    swarm = Swarm(of("good", "silent", "silent", "good"), replace(RULES, min_nodes=3))
    swarm.rounds(20)
    swarm.honest_roots()
    assert max(swarm.attempts.values()) == 2


def test_a_stranger_that_dissents_is_put_out_by_those_who_have_agreed_before() -> None:
    swarm = Swarm(of("good"), replace(RULES, min_nodes=1))
    swarm.rounds(1)
    swarm.kinds |= {"A": "conspires", "B": "dissent"}  # they sort before the others
    swarm.rounds(20)
    swarm.honest_roots()
    assert max(swarm.attempts.values()) == 2
    assert all("a" in members for _, members in swarm.members)
    # Two that agree with each other against one would be a majority; a stranger for each is not.
    swarm = Swarm(of("good", "good"), replace(RULES, max_nodes=4))
    swarm.rounds(1)
    swarm.kinds |= {"A": "conspires", "B": "conspires"}
    swarm.rounds(20)
    swarm.honest_roots()


def test_a_new_node_breaks_a_tie_that_nobody_else_can() -> None:
    swarm = Swarm(of("good", "dissent"))
    for _ in range(100):
        swarm.second()
    assert swarm.state.round == 0
    assert not swarm.state.pauses, "nobody can say who of the two is right"
    before = swarm.state.attempt
    swarm.kinds["c"] = "good"
    swarm.rounds(1)
    swarm.honest_roots()
    assert swarm.attempts[0] <= before + 2


def test_strangers_that_come_for_each_attempt_take_nobodys_place() -> None:
    """As many fresh keys as somebody likes: one failed attempt in a round, never two."""
    rules = replace(RULES, max_nodes=4)
    swarm = Swarm(of("good", "good"), rules)
    swarm.rounds(1)
    for number in range(15):
        known = swarm.state.round
        for turn in range(20):  # "S..." sorts before the honest ones
            swarm.kinds = of("good", "good") | {f"S{number}.{turn}.{i}": "silent" for i in range(4)}
            opened = len(swarm.members)
            swarm.until(lambda: len(swarm.members) > opened or swarm.state.round > known)  # noqa: B023
            if swarm.state.round > known:
                break
    swarm.honest_roots()
    assert max(swarm.attempts.values()) <= 2
    assert all({"a", "b"} <= set(members) for _, members in swarm.members)


def test_who_has_recovered_is_back_soon() -> None:
    once = Swarm(of("silent", "good", "good", "silent"))
    once.rounds(1)
    once.kinds |= of("good", "good", "good", "good")
    once.rounds(3)
    assert ("a", "b", "c", "d") in once.signers[1:], "in the very next round"
    assert not once.state.pauses
    often = Swarm(of("silent", "good", "good", "silent"))
    often.rounds(38)
    assert often.state.pauses["a"].strikes == pauses.MAX_STRIKES
    often.kinds |= of("good", "good", "good", "good")
    often.rounds(38 + MAX_PAUSE + 1)
    assert often.signers[-1] == ("a", "b", "c", "d")
    assert not often.state.pauses, "one signature forgives all"


def test_strikes_of_a_node_that_stays_away_are_forgotten() -> None:
    swarm = Swarm(of("silent", "good", "good", "silent"))
    swarm.rounds(1)
    swarm.kinds = of("good", "good", "good")
    del swarm.kinds["a"]
    swarm.rounds(MAX_PAUSE + 3)
    assert not swarm.state.pauses


@pytest.mark.parametrize("min_nodes", [2, 3])
def test_nodes_that_sit_out_are_called_when_the_others_do_not_deliver(min_nodes: int) -> None:
    """Whatever happened before: whoever can make a round gets the chance within a few attempts."""
    out = Pause(pauses.MAX_STRIKES, 100, round_state.LATE)
    state = replace(BASE, pauses=dict.fromkeys(("a", "b", "c"), out), proven=frozenset("abc"))
    for kind in ("silent", "dissent", "unrevealing"):
        others = {f"S{i}": kind for i in range(min_nodes)}
        rules = replace(RULES, min_nodes=min_nodes)
        swarm = Swarm(of("good", "good", "good") | others, rules, state)
        swarm.rounds(1)
        swarm.honest_roots()
        assert swarm.attempts[0] <= 4
        assert not swarm.state.pauses.keys() & {"a", "b", "c"}


@pytest.mark.parametrize(
    ("kind", "each"), [("hands back", 2), ("silent", 2), ("unrevealing", 3), ("dissent", 7)]
)
def test_a_run_in_which_nobody_delivers_writes_little(kind: str, each: int) -> None:
    """``each``: entries of one attempt of four. At most 18 attempts in the first hour, then 13."""
    quick = replace(RULES, deadline=1, reveal=1, settle=1, grace=1)
    swarm = Swarm(of(*[kind] * 4), quick)
    for hour, attempts in enumerate((18, 13)):
        swarm.until(lambda end=(hour + 1) * HOUR: swarm.now >= end)  # type: ignore[misc]
        assert swarm.state.round == 0
        assert 4 < swarm.attempts[0] <= attempts
        assert swarm.entries <= each * attempts
        swarm.attempts[0] = swarm.entries = 0


def test_waits_double_up_to_five_minutes() -> None:
    waits = [wait_before(attempt) for attempt in range(12)]
    assert waits == [0, 0, 5, 10, 20, 40, 80, 160, 300, 300, 300, 300]
    assert wait_before(10**6) == 300
    state = replace(BASE, attempt=4, since=100.0)
    for peer in "ab":
        state, actions = rounds.step(RULES, state, round_state.Seen(101.0, peer, "r0"))
        assert not actions
    assert "19 s" in directive(RULES, state, "a", 101.0).reason
    _, actions = rounds.step(replace(RULES, heartbeat_timeout=99), state, round_state.Tick(120.0))
    assert isinstance(actions[0], round_state.OpenRound)


def durations(swarm: Swarm, count: int) -> list[int]:
    """Seconds that each of the next rounds took until its state was agreed on."""
    found = []
    for _ in range(count):
        before, number = swarm.now, swarm.state.round
        swarm.rounds(number + 1)
        found.append(int(swarm.now - before))
    return found


@given(
    size=st.integers(3, 40),
    bad=st.lists(st.sampled_from(KINDS), min_size=1, max_size=13),
    sharded=st.booleans(),
    known=st.booleans(),
)
@settings(max_examples=40, deadline=None, derandomize=True)
def test_less_than_a_third_neither_stalls_nor_slows_a_run(
    size: int, bad: list[str], sharded: bool, known: bool
) -> None:
    """For each way to be in the way one grace period in a round, and no attempt fails."""
    rules = replace(RULES, max_nodes=40, gather_members=0 if sharded else 40)
    bad = bad[: (size - 1) // 3]
    kinds = of(*["good"] * size)
    proven = frozenset(kinds) if known else frozenset()
    swarm = Swarm(kinds, rules, replace(BASE, proven=proven))
    swarm.kinds |= dict(zip(sorted(kinds)[:: -(-size // max(1, len(bad)))], bad, strict=False))
    usual = max(durations(Swarm(dict.fromkeys(kinds, "good"), rules), 3))
    ways = len({"signing" if kind in ("unsigned", "dissent") else kind for kind in bad})
    for seconds in durations(swarm, 24):
        assert seconds <= usual + ways * (rules.grace + 1)
    assert set(swarm.attempts.values()) == {1}
    swarm.honest_roots()


@pytest.mark.parametrize("kind", KINDS)
def test_who_was_waited_for_in_vain_does_not_cost_that_again_and_again(kind: str) -> None:
    swarm = Swarm(of("good", kind, "good", "good"))
    usual = max(durations(Swarm(of(*["good"] * 4)), 3))
    slow = sum(seconds > usual for seconds in durations(swarm, 40))
    assert slow <= 8
