"""The round state machine: ordinary rounds, each failure, and invariants over random histories."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from artel.protocol import assignment, content, round_state
from artel.protocol.duties import directive
from artel.protocol.identity import Identity
from artel.protocol.round_state import (
    Accused,
    Action,
    AgreeState,
    CloseCommitments,
    CloseRound,
    Combined,
    Committed,
    Drop,
    Grounds,
    HandedBack,
    Held,
    Left,
    OpenRound,
    Phase,
    Recomputed,
    Refuse,
    Revealed,
    RoundRules,
    RunState,
    Seen,
    StateSigned,
    Tick,
    Vote,
)
from artel.protocol.rounds import step
from artel.protocol.seats import Seat, carries

RULES = RoundRules(
    total=3,
    min_nodes=2,
    max_nodes=4,
    quorum=0.66,
    deadline=100,
    grace=10,
    reveal=20,
    settle=20,
    heartbeat_timeout=15,
)
BOXED = replace(RULES, box=50)
A, B, C, D = (Identity.from_seed(bytes([i]) * 32).peer_id for i in range(4))
START = RunState(Phase.WAITING, round=0, attempt=0, base="r0", since=0)


def play(state: RunState, *events: round_state.Event) -> tuple[RunState, list[round_state.Action]]:
    """Apply events in order; returns the last state and all actions."""
    actions: list[round_state.Action] = []
    for event in events:
        state, more = step(RULES, state, event)
        actions += more
    return state, actions


def opened(*nodes: str) -> RunState:
    """A state in TRAINING with these members."""
    state, _ = play(START, *(Seen(0, node, "r0") for node in nodes[:1]))
    state = replace(state, peers={n: round_state.Presence(0, "r0") for n in nodes})
    state, actions = play(state, Tick(0))
    assert actions == [OpenRound(0, 0, "r0", tuple(sorted(nodes)))]
    return state


def committed(*nodes: str) -> RunState:
    """A state in REVEALING in which all these members have committed."""
    state, actions = play(opened(*nodes), *(Committed(1, n, 0, 0, "c" + n) for n in nodes))
    assert isinstance(actions[-1], CloseCommitments)
    return state


def revealed(*nodes: str) -> RunState:
    """A state in APPLYING with these contributions accepted."""
    state, actions = play(committed(*nodes), *(Revealed(2, n, 0, 0, "") for n in nodes))
    assert actions == [CloseRound(0, 0, tuple(sorted(nodes)), {})]
    return state


def test_a_round_opens_only_with_enough_nodes_that_hold_the_agreed_state() -> None:
    state, actions = play(START, Seen(0, A, "r0"), Seen(0, B, "other"))
    assert actions == []
    assert state.phase is Phase.WAITING
    assert directive(RULES, state, B, 0).task == "sync"
    assert "1 more" in directive(RULES, state, A, 0).reason
    state, actions = play(state, Seen(1, B, "r0"))
    assert actions == [OpenRound(0, 0, "r0", tuple(sorted((A, B))))]


def test_a_whole_round_ends_in_an_agreed_state_and_the_next_round() -> None:
    state, actions = play(
        revealed(A, B, C), *(StateSigned(3, node, 0, 0, "r1") for node in (A, B, C))
    )
    assert actions == [
        AgreeState(1, "r1", tuple(sorted((A, B, C)))),
        OpenRound(1, 0, "r1", tuple(sorted((A, B, C)))),
    ]
    assert (state.round, state.base, state.phase) == (1, "r1", Phase.TRAINING)


def test_the_grace_time_starts_with_the_quorum_and_leaves_the_late_one_out() -> None:
    state, _ = play(opened(A, B, C), Committed(5, A, 0, 0, "a"), Committed(5, B, 0, 0, "b"))
    assert state.phase is Phase.TRAINING
    assert directive(RULES, state, C, 6).remaining == 9
    keep = [Seen(14, node, "r0") for node in (A, B, C)]
    state, actions = play(state, *keep, Tick(15))
    assert actions == [CloseCommitments(0, 0, dict(sorted({A: "a", B: "b"}.items())))]
    assert state.rejected == {C: round_state.LATE}
    _, refused = play(state, Committed(16, C, 0, 0, "c"))
    assert refused == [Refuse(round_state.LATE, "this node is out of the round")]


def test_at_the_very_deadline_whatever_comes_before_the_tick_counts_and_nothing_after_it() -> None:
    """Early, on the dot and late, of commitments and of reveals."""
    keep = [Seen(14, node, "r0") for node in (A, B, C)]
    waiting, _ = play(
        opened(A, B, C), Committed(5, A, 0, 0, "a"), Committed(5, B, 0, 0, "b"), *keep
    )
    for early in (14.999, 15):
        state, actions = play(waiting, Committed(early, C, 0, 0, "c"), Tick(15))
        assert actions == [CloseCommitments(0, 0, dict(sorted({A: "a", B: "b", C: "c"}.items())))]
        assert state.rejected == {}
    for late in (15, 15.001):
        state, actions = play(waiting, Tick(15), Committed(late, C, 0, 0, "c"))
        assert actions[0] == CloseCommitments(0, 0, dict(sorted({A: "a", B: "b"}.items())))
        assert actions[1:] == [Refuse(round_state.LATE, "this node is out of the round")]

    end = 2 + RULES.grace  # the first two are a quorum
    waiting, _ = play(
        committed(A, B, C),
        *(Revealed(2, node, 0, 0, "") for node in (A, B)),
        *(Seen(end - 1, node, "r0") for node in (A, B, C)),
    )
    for early in (end - 0.001, end):
        _, actions = play(waiting, Revealed(early, C, 0, 0, ""), Tick(end))
        assert actions == [CloseRound(0, 0, tuple(sorted((A, B, C))), {})]
    for late in (end, end + 0.001):
        _, actions = play(waiting, Tick(end), Revealed(late, C, 0, 0, ""))
        missing = {C: round_state.MISSING_REVEAL}
        assert actions[0] == CloseRound(0, 0, tuple(sorted((A, B))), missing)
        assert actions[1:] == [Refuse(round_state.MISSING_REVEAL, "this node is out of the round")]


def test_without_a_quorum_the_deadline_fails_the_attempt_and_opens_the_next() -> None:
    state, _ = play(opened(A, B, C), Committed(5, A, 0, 0, "a"))
    for now in range(10, 100, 10):
        state, actions = play(state, *(Seen(now, node, "r0") for node in (A, B, C)))
        assert actions == []
    state, actions = play(state, *(Seen(100, node, "r0") for node in (A, B, C)), Tick(100))
    assert actions[0] == CloseRound(0, 0, (), dict.fromkeys(sorted((B, C)), round_state.LATE))
    # With who delivered, and so many more that there are enough.
    assert actions[1] == OpenRound(0, 1, "r0", tuple(sorted((A, min(B, C)))))


def test_a_killed_member_is_dropped_after_silence_and_the_others_finish() -> None:
    state, _ = play(opened(A, B, C), Committed(5, A, 0, 0, "a"), Committed(5, B, 0, 0, "b"))
    state, actions = play(state, Seen(14, A, "r0"), Seen(14, B, "r0"), Tick(15.5))
    assert Drop(C, "silent for 15 s") in actions
    assert any(isinstance(action, CloseCommitments) for action in actions)
    assert state.rejected == {C: round_state.DISCONNECTED}


def test_a_member_that_hands_back_is_not_waited_for() -> None:
    state, actions = play(
        opened(A, B, C),
        HandedBack(1, C, 0, 0),
        Committed(2, A, 0, 0, "a"),
        Committed(2, B, 0, 0, "b"),
    )
    assert isinstance(actions[-1], CloseCommitments)
    assert directive(RULES, state, C, 3).task == "wait"


def test_what_was_revealed_before_a_hand_back_stays() -> None:
    state, _ = play(committed(A, B), Revealed(2, A, 0, 0, ""), HandedBack(2, A, 0, 0))
    _, actions = play(state, Revealed(3, B, 0, 0, ""))
    assert actions == [CloseRound(0, 0, tuple(sorted((A, B))), {})]
    state, _ = play(committed(A, B), HandedBack(2, A, 0, 0))
    assert state.rejected == {A: round_state.HANDED_BACK}


def test_who_hands_back_while_applying_is_not_waited_for_and_still_counts() -> None:
    """The ledger knows who was accepted: the majority is one of these."""
    state, actions = play(revealed(A, B, C), HandedBack(3, C, 0, 0))
    assert (actions, state.accepted) == ([], tuple(sorted((A, B, C))))
    _, actions = play(state, StateSigned(3, A, 0, 0, "r1"), StateSigned(3, B, 0, 0, "r1"))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B))))
    state, actions = play(revealed(A, B), HandedBack(3, B, 0, 0), StateSigned(3, A, 0, 0, "r1"))
    assert actions == [CloseRound(0, 0, (), {})], "one of two is no majority"
    assert state.delivered == {A}
    # Whoever can sign after all may.
    state, _ = play(revealed(A, B), HandedBack(3, B, 0, 0))
    assert directive(RULES, state, B, 3).task == "apply"
    _, actions = play(state, StateSigned(3, B, 0, 0, "r1"), StateSigned(3, A, 0, 0, "r1"))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B))))


def test_nothing_can_be_handed_back_between_two_attempts() -> None:
    state, _ = play(revealed(A, B), StateSigned(3, A, 0, 0, "x"), StateSigned(3, B, 0, 0, "y"))
    assert state.phase is Phase.WAITING
    _, actions = play(state, HandedBack(3, A, 0, 1))
    assert isinstance(actions[0], Refuse)


def test_a_faulty_contribution_is_rejected_with_its_reason_and_sits_out_a_repeat() -> None:
    state, actions = play(
        committed(A, B, C),
        Revealed(2, A, 0, 0, ""),
        Revealed(2, B, 0, 0, round_state.NON_FINITE),
        Revealed(2, C, 0, 0, ""),
    )
    assert actions == [CloseRound(0, 0, tuple(sorted((A, C))), {B: round_state.NON_FINITE})]
    state, actions = play(committed(A, B), Revealed(2, A, 0, 0, round_state.MALFORMED), Left(3, B))
    assert isinstance(actions[-1], CloseRound)
    assert actions[-1].accepted == ()
    assert state.pauses[A].reason == round_state.MALFORMED
    assert "malformed" in directive(RULES, state, A, 4).reason


def test_what_was_committed_and_not_revealed_in_time_does_not_count() -> None:
    state, _ = play(committed(A, B, C), Revealed(2, A, 0, 0, ""), Revealed(2, B, 0, 0, ""))
    state, actions = play(state, *(Seen(14, n, "r0") for n in (A, B, C)), Tick(21.5))
    assert actions == [
        CloseRound(0, 0, tuple(sorted((A, B))), {C: round_state.MISSING_REVEAL}),
    ]


def test_revealing_before_the_commitments_are_closed_is_refused() -> None:
    _, actions = play(opened(A, B), Committed(1, A, 0, 0, "a"), Revealed(1, A, 0, 0, ""))
    assert isinstance(actions[-1], Refuse)
    assert actions[-1].code == "too_early"


def test_a_second_different_commitment_is_refused_and_a_repeated_one_is_not() -> None:
    state, actions = play(opened(A, B), Committed(1, A, 0, 0, "a"), Committed(1, A, 0, 0, "a"))
    assert actions == []
    _, actions = play(state, Committed(1, A, 0, 0, "z"))
    assert isinstance(actions[0], Refuse)


def test_a_node_with_another_root_is_outvoted_and_told_to_sync() -> None:
    state, actions = play(
        revealed(A, B, C),
        StateSigned(3, A, 0, 0, "r1"),
        StateSigned(3, B, 0, 0, "bad"),
        StateSigned(3, C, 0, 0, "r1"),
    )
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, C))))
    assert directive(RULES, state, B, 4).task == "sync"


def test_contributors_that_do_not_agree_fail_the_attempt_and_roll_back() -> None:
    state, actions = play(
        revealed(A, B), StateSigned(3, A, 0, 0, "x"), StateSigned(3, B, 0, 0, "y")
    )
    assert actions == [CloseRound(0, 0, (), {})]
    assert state.base == "r0"
    assert directive(RULES, state, A, 3).task == "sync"


def test_in_a_time_box_nobody_is_hurried_and_nobody_waits_longer_than_the_grace() -> None:
    def boxed(
        state: RunState, *events: round_state.Event
    ) -> tuple[RunState, list[round_state.Action]]:
        actions: list[round_state.Action] = []
        for event in events:
            state, more = step(BOXED, state, event)
            actions += more
        return state, actions

    state, _ = boxed(opened(A, B, C), Committed(5, A, 0, 0, "a"), Committed(5, B, 0, 0, "b"))
    keep = [Seen(now, node, "r0") for now in (14, 28, 42, 56) for node in (A, B, C)]
    state, actions = boxed(state, *keep, Tick(59))
    assert actions == [], "without a box the quorum would have closed the phase at 15"
    assert directive(BOXED, state, C, 20).remaining == 30
    assert directive(BOXED, state, C, 59).remaining == -9
    all_done, actions = boxed(state, Committed(59, C, 0, 0, "c"))
    assert isinstance(actions[0], CloseCommitments)
    assert all_done.phase is Phase.REVEALING
    state, actions = boxed(state, Tick(60))
    assert isinstance(actions[0], CloseCommitments)
    assert state.rejected == {C: round_state.LATE}


def test_a_box_that_reaches_beyond_the_deadline_ends_with_it() -> None:
    assert BOXED.training == 60
    assert replace(BOXED, deadline=55).training == 55
    assert RULES.training == RULES.deadline


def test_votes_agree_only_with_the_same_wrong_slices() -> None:
    state = revealed(A, B, C)
    state, actions = play(
        state,
        StateSigned(3, A, 0, 0, "r1", (2,)),
        StateSigned(3, B, 0, 0, "r1"),
        StateSigned(3, C, 0, 0, "r1", (2,)),
    )
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, C))), (2,))
    # B holds the right state all the same.
    assert state.members == tuple(sorted((A, B, C)))
    split, actions = play(
        revealed(A, B), StateSigned(3, A, 0, 0, "r1", (0,)), StateSigned(3, B, 0, 0, "r1", (1,))
    )
    assert actions == [CloseRound(0, 0, (), {})]
    assert split.base == "r0"
    assert not split.pauses, "nobody can say who of two is right"


def test_an_accusation_undoes_the_votes_that_did_not_know_of_it() -> None:
    state, _ = play(
        revealed(A, B, C), StateSigned(3, A, 0, 0, "bad"), StateSigned(3, B, 0, 0, "r1", (1,))
    )
    assert directive(RULES, state, A, 4).task == "wait"
    state, actions = play(state, Accused(4, B, 0, 0, 1))
    assert actions == []
    assert state.votes == {B: Vote("r1", (1,))}
    assert directive(RULES, state, A, 4).task == "apply"
    looked = frozenset({1})
    state, actions = play(
        state,
        StateSigned(5, A, 0, 0, "r1", (1,), looked),
        StateSigned(5, C, 0, 0, "bad", (), looked),
    )
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B))), (1,))
    assert directive(RULES, state, C, 5).task == "sync"


def test_a_vote_that_was_on_its_way_when_a_slice_was_called_wrong_is_refused() -> None:
    state, _ = play(revealed(A, B, C), StateSigned(3, A, 0, 0, "bad"), Accused(4, B, 0, 0, 1))
    late = StateSigned(4, C, 0, 0, "bad")
    assert play(state, late) == (
        state,
        [Refuse("stale", "a slice has been called wrong meanwhile: look again")],
    )
    # Who has looked may still come to the recorded slice.
    state, _ = play(state, replace(late, accused=frozenset({1})))
    assert state.votes == {C: Vote("bad")}
    # A repeated attempt begins without accusations.
    here = [Seen(14, node, "elsewhere") for node in (A, B, C)]
    state, _ = play(state, *here, StateSigned(14, A, 0, 0, "r1", (1,), frozenset({1})))
    state, actions = play(state, *(Seen(24, node, "r0") for node in (A, B, C)), Tick(24))
    assert OpenRound(0, 1, "r0", tuple(sorted((A, B, C)))) in actions
    assert state.accused == frozenset()


def test_a_vote_of_another_attempt_is_refused() -> None:
    state = revealed(A, B)
    _, actions = play(state, StateSigned(3, A, 0, 1, "r1"))
    assert isinstance(actions[0], Refuse)


def test_one_accusation_after_another_holds_up_a_state_for_no_longer_than_silence_does() -> None:
    """Each began the waiting for the silent anew, until the attempt failed; and it cost nothing."""
    rules = replace(RULES, gather_members=0, settle=100, heartbeat_timeout=1000)

    def look(state: RunState, *events: round_state.Event) -> tuple[RunState, list[Action]]:
        actions: list[Action] = []
        for event in events:
            state, more = step(rules, state, event)
            actions += more
        return state, actions

    begun = replace(revealed(A, B, C, D), since=0)
    accepted = begun.accepted
    one, two, three, four = accepted
    checked = {assignment.checker(accepted, 0, number): number for number in range(4)}
    grounds = Grounds(0, 0, 0, {}, False, slices=4)
    state, _ = look(begun, grounds, *(Combined(1, n, 0, 0, checked[n]) for n in accepted))
    state, _ = look(state, *(StateSigned(2, n, 0, 0, "r1") for n in (one, two, three)))
    assert state.quorum_since == 2
    state, actions = look(state, Accused(11, four, 0, 0, checked[four]))
    assert (actions, state.votes) == ([], {})
    late = Accused(12, three, 0, 0, checked[three])
    _, refused = look(state, late)
    assert isinstance(refused[0], Refuse)
    looked = frozenset({checked[four]})
    votes = [StateSigned(13, n, 0, 0, "r1", (), looked) for n in (one, two, three)]
    state, actions = look(state, *votes)
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((one, two, three))))
    assert {p: pause.reason for p, pause in state.pauses.items()} == {
        four: round_state.FALSELY_ACCUSED
    }


def test_who_looks_again_is_not_waited_for_and_not_struck() -> None:
    rules = replace(RULES, gather_members=0, settle=100, heartbeat_timeout=1000)
    state = replace(revealed(A, B, C, D), since=0)
    one, two, three, four = state.accepted
    slice = next(n for n in range(4) if assignment.checker(state.accepted, 0, n) == four)
    events = [Grounds(0, 0, 0, {}, False), *(StateSigned(2, n, 0, 0, "r1") for n in (one, two))]
    events += [StateSigned(2, three, 0, 0, "r1"), Accused(3, four, 0, 0, slice)]
    looked = frozenset({slice})
    events += [StateSigned(14, n, 0, 0, "r1", (slice,), looked) for n in (two, three, four)]
    actions: list[Action] = []
    for event in events:
        state, more = step(rules, state, event)
        actions += more
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((two, three, four))), (slice,))
    liar = assignment.aggregator((one, two, three, four), 0, slice)
    assert {p: pause.reason for p, pause in state.pauses.items()} == {liar: round_state.MISCOMBINED}


def test_accusations_at_another_time_are_refused() -> None:
    for state in (opened(A, B), committed(A, B)):
        _, actions = play(state, Accused(2, A, 0, 0, 1))
        assert isinstance(actions[0], Refuse)
    _, actions = play(revealed(A, B), Accused(2, D, 0, 0, 1))
    assert actions == [Refuse("not_member", "this node is not a member of round 0")]
    _, actions = play(revealed(A, B), Accused(2, A, 0, 1, 1))
    assert isinstance(actions[0], Refuse)


def test_the_run_finishes_after_its_last_round_and_nodes_stop() -> None:
    state = replace(revealed(A, B), round=2)
    state, actions = play(state, StateSigned(3, A, 2, 0, "r3"), StateSigned(3, B, 2, 0, "r3"))
    assert actions == [AgreeState(3, "r3", tuple(sorted((A, B))))]
    assert state.phase is Phase.FINISHED
    assert directive(RULES, state, A, 4).task == "stop"


def test_a_leaving_node_is_not_asked_to_join_another_round() -> None:
    state, _ = play(START, Seen(0, A, "r0"), Seen(0, B, "r0", leaving=True), Seen(0, C, "r0"))
    assert state.members == tuple(sorted((A, C)))


def test_a_commitment_is_bound_to_its_node_round_and_attempt() -> None:
    run, blob, salt = "ab" * 32, "cd" * 32, b"s" * 32
    digests = {
        content.commitment(run, 1, 0, A, blob, salt),
        content.commitment(run, 1, 0, B, blob, salt),
        content.commitment(run, 2, 0, A, blob, salt),
        content.commitment(run, 1, 1, A, blob, salt),
        content.commitment(run, 1, 0, A, blob, b"t" * 32),
    }
    assert len(digests) == 5


class RoundHistory(RuleBasedStateMachine):
    """Random events in any order: the machine never breaks its own rules."""

    RULES = RULES

    def __init__(self) -> None:
        super().__init__()
        self.state = START
        self.now = 0.0
        self.actions: list[round_state.Action] = []
        self.known: dict[str, frozenset[int]] = {}

    def feed(self, event: round_state.Event) -> None:
        before = self.state
        self.state, actions = step(self.RULES, self.state, event)
        if any(isinstance(action, Refuse) for action in actions):
            assert self.state == before
            assert len(actions) == 1
        self.actions += actions

    nodes = st.sampled_from((A, B, C, D))
    numbers = st.integers(0, 3)

    @rule(seconds=st.sampled_from((0.1, 3.0, 12.0, 30.0, 120.0)))
    def wait(self, seconds: float) -> None:
        self.now += seconds
        self.feed(Tick(self.now))

    @rule(node=nodes, leaving=st.booleans())
    def beat(self, node: str, leaving: bool) -> None:
        self.feed(Seen(self.now, node, self.state.base, leaving))

    @rule(node=nodes)
    def beat_with_old_state(self, node: str) -> None:
        self.feed(Seen(self.now, node, "elsewhere"))

    @rule(node=nodes)
    def leave(self, node: str) -> None:
        self.feed(Left(self.now, node))

    @rule(node=nodes)
    def hand_back(self, node: str) -> None:
        self.feed(HandedBack(self.now, node, self.state.round, self.state.attempt))

    @rule(node=nodes, off=st.sampled_from((0, 0, 0, 1)))
    def commit(self, node: str, off: int) -> None:
        attempt = self.state.attempt + off
        self.feed(Committed(self.now, node, self.state.round, attempt, f"{node}{attempt}"))

    @rule(node=nodes, fault=st.sampled_from(("", "", "", round_state.MALFORMED)))
    def reveal(self, node: str, fault: str) -> None:
        self.feed(Revealed(self.now, node, self.state.round, self.state.attempt, fault))

    @precondition(lambda self: self.state.phase is Phase.APPLYING)
    @rule(
        node=nodes,
        wrong=st.booleans(),
        slices=st.sampled_from(((), (), (1,))),
        known=st.sampled_from(((), (1,), (0, 1))),
    )
    def sign(self, node: str, wrong: bool, slices: tuple[int, ...], known: tuple[int, ...]) -> None:
        root = f"wrong{node}" if wrong else f"root{self.state.round}"
        round, attempt = self.state.round, self.state.attempt
        before, seen = self.state.accused, frozenset({*known, *slices})
        self.feed(StateSigned(self.now, node, round, attempt, root, slices, seen))
        last = self.actions[-1] if self.actions else None
        if isinstance(last, Refuse) and not before <= seen:
            assert "look again" in last.reason
            return
        self.known[node] = seen

    @precondition(lambda self: self.state.phase is Phase.APPLYING)
    @rule(node=nodes, slice=st.integers(0, 1))
    def accuse(self, node: str, slice: int) -> None:
        self.feed(Accused(self.now, node, self.state.round, self.state.attempt, slice))

    @invariant()
    def who_voted_has_looked_at_all_that_was_called_wrong(self) -> None:
        for node in self.state.votes:
            assert self.state.accused <= self.known[node]

    @invariant()
    def history_is_a_sequence_of_whole_rounds(self) -> None:
        expected_round, attempt, base, is_open = 0, 0, "r0", False
        accepted: tuple[str, ...] = ()
        members: tuple[str, ...] = ()
        for action in self.actions:
            if isinstance(action, OpenRound):
                assert not is_open
                assert (action.round, action.attempt) == (expected_round, attempt)
                assert action.base == base
                assert self.RULES.min_nodes <= len(action.members) <= self.RULES.max_nodes
                is_open, members, accepted = True, action.members, ()
            elif isinstance(action, CloseCommitments):
                assert is_open
                assert set(action.commitments) <= set(members)
            elif isinstance(action, CloseRound):
                assert (action.round, action.attempt) == (expected_round, attempt)
                assert set(action.accepted) | set(action.rejected) <= set(members)
                assert not set(action.accepted) & set(action.rejected)
                if action.accepted:
                    assert is_open
                    assert len(action.accepted) >= self.RULES.needed(len(members))
                    accepted = action.accepted
                else:
                    attempt, accepted = attempt + 1, ()
                is_open = False
            elif isinstance(action, AgreeState):
                assert not is_open
                assert accepted
                assert set(action.signers) <= set(accepted)
                assert 2 * len(action.signers) > len(accepted)
                expected_round, attempt, base = expected_round + 1, 0, action.root
                assert action.round == expected_round

    @invariant()
    def who_was_accepted_stays_accepted(self) -> None:
        if self.state.phase is Phase.APPLYING:
            closed = [action for action in self.actions if isinstance(action, CloseRound)][-1]
            assert self.state.accepted == closed.accepted

    @invariant()
    def training_ends_in_time(self) -> None:
        if self.state.phase is Phase.TRAINING:
            assert self.now - self.state.since < self.RULES.training

    @invariant()
    def everybody_has_a_duty(self) -> None:
        for node in self.state.peers:
            duty = directive(self.RULES, self.state, node, self.now)
            assert duty.reason
            assert (duty.task == "stop") <= (self.state.phase is Phase.FINISHED)


RoundHistory.TestCase.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
TestRoundHistory = RoundHistory.TestCase


class BoxedHistory(RoundHistory):
    """The same with a time box."""

    RULES = BOXED


BoxedHistory.TestCase.settings = settings(max_examples=80, stateful_step_count=60, deadline=None)
TestBoxedHistory = BoxedHistory.TestCase


# --- what a state rests on beside its signatures --------------------------------------------------

CHECKED = replace(RULES, checked=True)


def agreeing(
    *members: str, weights: dict[str, int] | None = None, decide: bool = False, outside: str = ""
) -> RunState:
    """A state in APPLYING of a run that checks states; ``decide``: it rests on its members."""
    state, here = revealed(*members), [Seen(2, peer, "r0") for peer in [outside] if peer]
    others = frozenset(filter(None, [outside]))
    return look(state, *here, Grounds(2, 0, 0, weights or {}, not decide, others))[0]


def look(state: RunState, *events: round_state.Event) -> tuple[RunState, list[round_state.Action]]:
    """As :func:`play`, in a run that checks states."""
    actions: list[round_state.Action] = []
    for event in events:
        state, more = step(CHECKED, state, event)
        actions += more
    return state, actions


def signed(root: str, *nodes: str) -> list[round_state.Event]:
    return [StateSigned(3, node, 0, 0, root) for node in nodes]


def test_standing_carries_a_state_and_where_nobody_has_any_the_number_does() -> None:
    accepted = (A, B, C, D)
    for weights, signers, enough in (
        ({}, (A, B, C), True),
        ({}, (A, B), False),
        ({}, (), False),
        ({A: 0, B: 0}, (A, B, C), True),
        ({A: 3, B: 2}, (A,), True),
        ({A: 3, B: 3}, (A, C, D), False),
        ({A: 3, B: 3}, (A, B), True),
        ({A: 1}, (B, C, D), False),
    ):
        assert carries(weights, accepted, signers) is enough
    assert not carries({A: 5}, (B, C), (A, B))  # nobody else's signature counts


def test_the_coordinator_holds_the_state_that_it_has_computed() -> None:
    state, _ = look(agreeing(A, B, C), Recomputed(2, 0, 0, "r1"), *signed("r1", A, B))
    assert (state.round, state.held) == (0, {"r1"})
    _, actions = look(state, *signed("r1", C))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B, C))), recomputed=True)


def test_a_state_is_agreed_once_it_is_held_and_recomputed() -> None:
    state, actions = look(agreeing(A, B, C), *signed("r1", A, B, C))
    assert actions == []
    state, actions = look(state, Held(4, A, 0, 0, "r1", True))
    assert actions == []
    _, actions = look(state, Recomputed(5, 0, 0, "r1"))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B, C))), recomputed=True)
    members = look(agreeing(A, B, C, decide=True), *signed("r1", A, B, C))[0]
    _, actions = look(members, Held(4, A, 0, 0, "r1", True))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B, C))))


def test_a_root_other_than_the_coordinators_is_not_agreed_however_many_sign_it() -> None:
    state, _ = look(agreeing(A, B, C, D), *signed("bad", A, B, C), *signed("r1", D))
    state, _ = look(state, Held(4, A, 0, 0, "bad", True), Held(4, D, 0, 0, "r1", True))
    state, actions = look(state, Recomputed(5, 0, 0, "r1"))
    assert actions[0] == CloseRound(0, 0, (), {})
    assert state.delivered == {D}
    assert {p: pause.reason for p, pause in state.pauses.items()} == dict.fromkeys(
        (A, B, C), round_state.DISSENT
    )
    state, _ = look(agreeing(A, B, C), *signed("r1", A, B), *signed("bad", C))
    state, _ = look(state, Held(4, B, 0, 0, "r1", True))
    state, actions = look(state, Recomputed(5, 0, 0, "r1"))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B))), recomputed=True)
    assert [*state.pauses] == [C]  # that one was wrong, whatever the others say


def test_who_does_not_give_what_it_signed_has_no_vote_in_the_attempt() -> None:
    state, _ = look(agreeing(A, B, C, decide=True), *signed("r1", A, B, C))
    state, actions = look(state, Held(4, A, 0, 0, "r1", False), *signed("r1", A))
    assert actions == []
    state, actions = look(state, Held(4, B, 0, 0, "r1", True))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((B, C))))
    assert state.pauses[A].reason == round_state.NOT_HELD
    state, _ = look(agreeing(A, B, C, decide=True), *signed("r1", A, B, C))
    state, actions = look(state, *(Held(4, node, 0, 0, "r1", False) for node in (A, B)))
    assert actions[0] == CloseRound(0, 0, (), {})  # one of three is left
    assert state.delivered == {C}


def test_standing_decides_and_not_how_many_keys_there_are() -> None:
    weights = {A: 7, B: 0, C: 0, D: 0}
    state = agreeing(A, B, C, D, weights=weights, decide=True)
    state, _ = look(state, *signed("bad", B, C, D), Held(3, B, 0, 0, "bad", True))
    state, actions = look(state, *signed("r1", A))
    assert actions == []  # nobody was seen to hold it
    _, actions = look(state, Held(4, A, 0, 0, "r1", True))
    assert actions[0] == AgreeState(1, "r1", (A,))


EVEN = {A: 2, B: 2, C: 2}


def test_a_majority_is_not_enough_where_somebody_with_standing_inside_signed_another_root() -> None:
    state = agreeing(A, B, C, weights=EVEN, decide=True)
    state, _ = look(state, *signed("bad", A, B), Held(4, A, 0, 0, "bad", True))
    assert not state.owes_root  # C is waited for
    state, actions = look(state, *signed("r1", C), Held(4, C, 0, 0, "r1", True))
    assert (actions, state.owes_root) == ([], True)
    failed, actions = look(state, Recomputed(5, 0, 0, "r1"))
    assert actions == [CloseRound(0, 0, (), {})]
    assert failed.delivered == {C}
    assert {*failed.pauses} == {A, B}
    state, actions = look(state, Recomputed(5, 0, 0, "bad"))  # so it was not: C lied
    assert actions[0] == AgreeState(1, "bad", tuple(sorted((A, B))), recomputed=True)
    assert {*state.pauses} == {C}


def test_what_was_signed_cannot_be_taken_back_before_it_is_known_to_be_wrong() -> None:
    state = agreeing(A, B, C, D, weights=EVEN | {D: 2}, decide=True, outside="E")
    for other in (A, "E"):
        lied, _ = look(state, *signed("bad", other), *signed("r1", *{A, B, C, D} - {other}))
        lied, _ = look(lied, Held(4, B, 0, 0, "r1", True))
        assert lied.owes_root
        for again in (StateSigned(5, other, 0, 0, "r1"), StateSigned(5, other, 0, 0, "bad", (1,))):
            after, (refused,) = look(lied, again)
            assert isinstance(refused, Refuse)
            assert after == lied
        assert look(lied, *signed("bad", other))[1] == [], "the same once more, where it got lost"
        lied, actions = look(lied, Recomputed(6, 0, 0, "r1"))
        assert isinstance(actions[0], AgreeState)
        assert {p: pause.reason for p, pause in lied.pauses.items()} == {other: round_state.DISSENT}


def test_a_word_without_standing_does_not_call_the_coordinator() -> None:
    state = agreeing(A, B, C, weights={A: 1, B: 1, C: 0}, decide=True)
    state, _ = look(state, *signed("bad", C), *signed("r1", A, B))
    state, actions = look(state, Held(4, A, 0, 0, "r1", True))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B))))


def test_a_node_outside_that_agrees_is_named_and_waited_for() -> None:
    state = agreeing(A, B, C, weights=EVEN, decide=True, outside=D)
    state, actions = look(state, *signed("r1", A, B, C), Held(4, A, 0, 0, "r1", True))
    assert (actions, state.outside) == ([], {D})
    assert directive(CHECKED, state, D, 4).task == "apply"
    _, actions = look(state, *signed("r1", D))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B, C))), (), (D,))


def test_one_honest_node_outside_is_enough_against_all_inside() -> None:
    state = agreeing(A, B, C, weights=EVEN, decide=True, outside=D)
    state, _ = look(state, *signed("bad", A, B, C), Held(4, A, 0, 0, "bad", True))
    state, actions = look(state, *signed("r1", D))
    assert (actions, state.owes_root) == ([], True)
    state, actions = look(state, Recomputed(5, 0, 0, "r1"))
    assert actions[0] == CloseRound(0, 0, (), {})
    assert {p: pause.reason for p, pause in state.pauses.items()} == dict.fromkeys(
        (A, B, C), round_state.DISSENT
    )
    assert state.delivered == {D}


def test_a_node_outside_that_lies_is_struck_and_the_right_state_agreed_on() -> None:
    state = agreeing(A, B, C, weights=EVEN, decide=True, outside=D)
    state, _ = look(state, *signed("bad", D), *signed("r1", A, B, C))
    state, actions = look(state, Held(4, A, 0, 0, "r1", True))
    assert actions == []
    state, actions = look(state, Recomputed(5, 0, 0, "r1"))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B, C))), recomputed=True)
    assert {p: pause.reason for p, pause in state.pauses.items()} == {D: round_state.DISSENT}


def test_a_silent_node_outside_takes_one_grace_and_is_not_waited_for_again() -> None:
    state = agreeing(A, B, C, weights=EVEN, decide=True, outside=D)
    state, _ = look(state, *signed("r1", A, B, C), Held(4, A, 0, 0, "r1", True))
    state, actions = look(state, *(Seen(11.9, node, "r1") for node in (A, B, C)), Tick(11.9))
    assert actions == []
    state, actions = look(state, Tick(12))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B, C))))
    assert (state.unawaited, state.pauses) == ({D}, {})
    again = agreeing(A, B, C, weights=EVEN, decide=True, outside=D)
    again, _ = look(replace(again, unawaited=frozenset({D})), *signed("r1", A, B, C))
    _, actions = look(again, Held(4, A, 0, 0, "r1", True))
    assert isinstance(actions[0], AgreeState)


def test_who_sits_out_or_has_not_the_state_does_not_look_from_outside() -> None:
    state = revealed(A, B, C)
    paused = {D: round_state.Pause(2, 1, round_state.DISSENT, D)}
    grounds = Grounds(2, 0, 0, EVEN, False, frozenset({A, D}))
    assert look(state, Seen(2, D, "r0"), grounds)[0].outside == {D}
    assert look(replace(state, pauses=paused), Seen(2, D, "r0"), grounds)[0].outside == set()
    # Nor another node of its account, or each of them could have the coordinator compute a state.
    paused = {"another": round_state.Pause(2, 1, round_state.DISSENT, "d")}
    state = replace(state, seats={D: Seat("d", 1, 0)}, pauses=paused)
    assert look(state, Seen(2, D, "r0"), grounds)[0].outside == set()
    assert look(state, Seen(2, D, "elsewhere"), grounds)[0].outside == set()
    assert look(state, grounds)[0].outside == set()


def test_where_nobody_can_tell_who_is_right_nothing_is_agreed_and_nobody_struck() -> None:
    state = agreeing(A, B, C, weights=EVEN, decide=True)
    state, _ = look(state, *signed("bad", A, B), *signed("r1", C))
    here = [Seen(15, node, "r1") for node in (A, B, C)]
    state, actions = look(state, *here, Held(15, A, 0, 0, "bad", True), Tick(22.1))
    assert actions == [CloseRound(0, 0, (), {})]
    assert (state.delivered, state.pauses) == ({A, B, C}, {})


def test_what_is_never_found_out_fails_the_attempt_and_is_nobodys_fault() -> None:
    held, not_held = Held(4, A, 0, 0, "r1", True), Tick(4)
    for decide, event in ((False, held), (True, not_held)):
        state, _ = look(agreeing(A, B, C, decide=decide), *signed("r1", A, B, C), event)
        here = [Seen(15, node, "r1") for node in (A, B, C)]
        state, actions = look(state, *here, Tick(21.9))
        assert actions == []
        state, actions = look(state, Tick(22.1))
        assert actions == [CloseRound(0, 0, (), {})]
        assert (state.delivered, state.pauses) == ({A, B, C}, {})


def test_what_was_found_out_too_late_is_stale() -> None:
    state, _ = look(agreeing(A, B), Recomputed(3, 0, 0, "r1"))
    state, actions = look(state, *signed("r1", A, B))
    assert isinstance(actions[0], AgreeState)
    assert (state.own, state.held) == ("", frozenset())  # the next round is open
    late = Recomputed(4, 0, 0, "x"), Held(4, A, 0, 0, "x", False), Grounds(4, 0, 0, {}, False)
    for event in late:
        after, actions = look(state, event)
        assert isinstance(actions[0], Refuse)
        assert after == state


def test_who_was_waited_for_in_vain_is_waited_for_as_long_as_the_others_are_no_majority() -> None:
    state = replace(revealed(A, B, C), unawaited=frozenset({B, C}))
    state, actions = play(state, StateSigned(3, A, 0, 0, "r1"))
    assert (actions, state.phase) == ([], Phase.APPLYING)
    _, actions = play(state, StateSigned(4, B, 0, 0, "r1"))
    assert actions[0] == AgreeState(1, "r1", tuple(sorted((A, B))))


def test_who_follows_the_run_gets_in_however_quick_its_members_are() -> None:
    """It holds each state a moment after those who made it, who could go on at once."""
    rules, now = replace(RULES, total=9, min_nodes=1), 0.0
    state, _ = step(rules, START, Seen(now, A, START.base))
    phases = []
    for round in range(4):
        new = f"state {round + 1}"
        for event in (
            Seen(now, B, state.base),
            Committed(now, A, round, 0, "c"),
            Revealed(now, A, round, 0, ""),
            StateSigned(now, A, round, 0, new),
        ):
            state, _ = step(rules, state, event)
        phases.append(state.phase)
        now += 1
        state, _ = step(rules, state, Seen(now, B, new))
    assert phases == [Phase.TRAINING] * 3 + [Phase.WAITING]
    assert state.members == tuple(sorted((A, B)))
    assert not state.pauses


def test_where_places_are_short_whose_turn_it_is_is_waited_for_and_nobody_twice_in_vain() -> None:
    peers = {n: round_state.Presence(0, "r0") for n in (A, B, C, D)}
    # A and B sat last; C is about to take the newest state over, D has not for long.
    slow = {C: round_state.Presence(0, "old"), D: round_state.Presence(0, "old")}
    sat = {A: 1, B: 1, C: 0, D: 0}
    state = replace(START, peers=peers | slow, sat=sat, proven=frozenset(peers), members=(A, B))
    rules = replace(RULES, max_nodes=2)
    state, actions = step(rules, state, Tick(1))
    assert actions == []
    state, actions = step(rules, state, Seen(2, C, "r0"))
    assert actions == []
    state, actions = step(rules, state, Tick(rules.grace))
    assert len(actions) == 1
    assert isinstance(actions[0], OpenRound)
    assert C in actions[0].members
    assert state.pauses[D].reason == round_state.BEHIND
    assert state.sat[C] == 0
