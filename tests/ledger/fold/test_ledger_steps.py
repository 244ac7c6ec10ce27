"""Uneven machines and overlap in the ledger: whose steps count when, and which text they read."""

from __future__ import annotations

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read
from artel.ledger.fold.shares import FoldState
from artel.protocol import assignment
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from artel.protocol.round_state import WRONG_TOKENS
from ledger_world import (
    BATCH_SIZE,
    INNER_STEPS,
    RATE,
    SEQ_LEN,
    World,
    key,
    outcomes,
)
from log_world import Log

STEP = BATCH_SIZE * SEQ_LEN
"""Tokens of one inner step."""


def round_of(
    world: World,
    round: int,
    shown: dict[Identity, dict[str, int]],
    steps: dict[str, int] | None = None,
) -> list[Envelope]:
    """A round in which these members show head and tail like this."""
    work = {
        member.peer_id: world.contribution(member, round, **fields)
        for member, fields in shown.items()
    }
    return [
        world.opened(round, steps=steps),
        world.committed(round),
        *work.values(),
        world.closed(round, accepted=list(shown), shown=work),
        world.agreed(round + 1, nodes=list(shown)),
    ]


# --- time-boxed rounds ----------------------------------------------------------------------------

BOXED = World(ownership={"vesting_rounds": 0}, rounds={"box_s": 60.0})
A, B, C = BOXED.members
STEPS = {A.peer_id: 16, B.peer_id: 4, C.peer_id: 1}
FULL = {A: {"head": 16}, B: {"head": 4}, C: {"head": 1}}


def test_credit_and_weight_follow_the_steps_that_were_made() -> None:
    state, seen = outcomes([*BOXED.start, *round_of(BOXED, 0, FULL, STEPS)])
    assert [outcome.reason for outcome in seen if outcome.reason] == []
    vested = [state.accounts[owner.key].vested for owner in BOXED.owners]
    assert vested == [16 * STEP * RATE, 4 * STEP * RATE, STEP * RATE]
    assert (state.steps, state.node_tokens[A.peer_id]) == (21, 16 * STEP)
    slow = {A: {"head": 4}, B: {"head": 2}, C: {"head": 1}}
    state, _ = outcomes([*BOXED.start, *round_of(BOXED, 0, slow, STEPS)])
    vested = [state.accounts[owner.key].vested for owner in BOXED.owners]
    assert vested == [4 * STEP * RATE, 2 * STEP * RATE, STEP * RATE]


@pytest.mark.parametrize(
    "fields",
    [
        {"head": 17},
        {"head": 3},  # a quarter of 16 is 4
        {"head": 16, "tail": 1},  # there is no tail to speak of
        {"head": 8, "tokens": 16 * STEP},
        {"head": 16, "tokens": 8 * STEP},
    ],
)
def test_other_steps_or_tokens_than_assigned_are_ignored(fields: dict[str, int]) -> None:
    history = [BOXED.opened(0, steps=STEPS), BOXED.committed(0), BOXED.contribution(A, 0, **fields)]
    assert outcomes([*BOXED.start, *history])[1][-1].reason == WRONG_TOKENS


@pytest.mark.parametrize("steps", [0, 17, 2**52])
def test_a_coordinator_cannot_assign_any_number_of_steps(steps: int) -> None:
    if steps:
        opened = BOXED.opened(0, steps=STEPS | {B.peer_id: steps})
        assert outcomes([*BOXED.start, opened])[1][-1].reason == reasons.WRONG_STEPS
    plain = World()
    for wrong in (INNER_STEPS - 1, INNER_STEPS + 1):
        opened = plain.opened(0, steps=dict.fromkeys(STEPS, wrong))
        assert outcomes([*plain.start, opened])[1][-1].reason == reasons.WRONG_STEPS


def test_a_weight_must_be_the_tokens_that_the_contribution_shows() -> None:
    shown = BOXED.contribution(A, 0, head=4)
    entry = entries.entry_id(shown.encode())
    for weight in (16 * STEP, 4 * STEP + 1):
        accepted = [entries.Accepted(node=A.peer_id, entry=entry, weight=weight)]
        closed = entries.round_closed(
            BOXED.coordinator, BOXED.run, round=0, attempt=0, accepted=accepted
        )
        history = [BOXED.opened(0, steps=STEPS), BOXED.committed(0), shown, closed]
        assert outcomes([*BOXED.start, *history])[1][-1].reason == WRONG_TOKENS


# --- overlap --------------------------------------------------------------------------------------

OVERLAP = World(total=3, ownership={"vesting_rounds": 0}, exchange={"overlap_steps": 1})
ALL = OVERLAP.members


def test_the_tail_counts_in_the_next_contribution_and_none_is_left_at_the_end() -> None:
    history = [*OVERLAP.start, *(e for n in range(3) for e in OVERLAP.round(n))]
    state, seen = outcomes(history)
    assert [outcome.reason for outcome in seen if outcome.reason] == []
    granted = [o.granted[0].units for o in seen if o.granted]
    assert granted == [3 * STEP, 4 * STEP, 5 * STEP]  # 3 | 1 + 3 | 1 + 4
    assert state.tails == {}
    assert outcomes(history[: -len(OVERLAP.round(2))])[0].tails == {m.peer_id: 1 for m in ALL}


def test_a_tail_that_was_never_assigned_is_ignored() -> None:
    first = OVERLAP.contribution(ALL[0], 0, tail=1)
    history = [OVERLAP.opened(0), OVERLAP.committed(0), first]
    assert outcomes([*OVERLAP.start, *history])[1][-1].reason == WRONG_TOKENS
    begun = [*OVERLAP.start, *OVERLAP.round(0), OVERLAP.opened(1), OVERLAP.committed(1)]
    many = OVERLAP.contribution(ALL[0], 1, tail=2)
    assert outcomes([*begun, many])[1][-1].reason == WRONG_TOKENS
    assert outcomes([*begun, OVERLAP.contribution(ALL[0], 1, tail=0)])[1][-1].status == "recorded"


def test_a_tail_belongs_to_members_of_the_round_before_alone() -> None:
    """A node that joins has none, one that was left out has it, one that sat out a round has lost
    it."""
    two = ALL[:2]
    steps = {member.peer_id: INNER_STEPS for member in two}
    first = [
        OVERLAP.opened(0, steps=steps),
        OVERLAP.committed(0, members=two),
        OVERLAP.contribution(two[0], 0),
        OVERLAP.closed(0, accepted=[two[0]], rejected={two[1].peer_id: "late"}),
        OVERLAP.agreed(1, nodes=[two[0]]),
    ]
    second = [OVERLAP.opened(1), OVERLAP.committed(1)]
    verdicts = []
    for member in ALL:
        shown = OVERLAP.contribution(member, 1, tail=1)
        verdicts.append(outcomes([*OVERLAP.start, *first, *second, shown])[1][-1].status)
    assert verdicts == ["recorded", "recorded", "ignored"]
    without = round_of(OVERLAP, 1, {ALL[2]: {"tail": 0}}, {ALL[2].peer_id: INNER_STEPS})
    without[1] = OVERLAP.committed(1, members=[ALL[2]])
    third = [OVERLAP.opened(2), OVERLAP.committed(2), OVERLAP.contribution(two[0], 2, tail=1)]
    assert outcomes([*OVERLAP.start, *first, *without, *third])[1][-1].reason == WRONG_TOKENS


def test_a_round_that_is_tried_again_keeps_the_tail_of_the_last_agreed_one() -> None:
    history = [*OVERLAP.start, *OVERLAP.round(0), OVERLAP.opened(1), OVERLAP.committed(1)]
    history += [OVERLAP.closed(1, accepted=[]), OVERLAP.opened(1, 1), OVERLAP.committed(1, 1)]
    state, seen = outcomes([*history, OVERLAP.contribution(ALL[0], 1, 1, tail=1)])
    assert seen[-1].status == "recorded"
    assert state.attempt is not None
    assert state.attempt.shown[ALL[0].peer_id].tokens == 4 * STEP


# --- spans of rounds ------------------------------------------------------------------------------

SPANS = World(total=6, exchange={"overlap_steps": 1}, rounds={"span": 3}, trust={"audit_rate": 0.0})
D, E, F = SPANS.members


def shown_after(rounds: list[list[Envelope]], member: Identity, round: int, **fields: int) -> str:
    """Why a contribution to a round is ignored, "" if it counts."""
    history = [*SPANS.start, *(entry for made in rounds for entry in made)]
    begun = [*history, SPANS.opened(round), SPANS.committed(round)]
    return outcomes([*begun, SPANS.contribution(member, round, **fields)])[1][-1].reason


def test_a_span_of_everybody_begins_with_every_third_round_and_has_no_tail_behind_it() -> None:
    state, seen = outcomes([*SPANS.start, *(e for n in range(6) for e in SPANS.round(n))])
    assert [outcome.reason for outcome in seen if outcome.reason] == []
    steps = [o.granted[0].units // STEP for o in seen if o.granted]
    assert steps == [3, 4, 5, 3, 4, 5]  # 3 | 1 + 3 | 1 + 4, twice
    assert state.spans == {}
    five, _ = outcomes([*SPANS.start, *(e for n in range(5) for e in SPANS.round(n))])
    assert five.spans == {member.peer_id: 3 for member in SPANS.members}
    three = [SPANS.round(n) for n in range(3)]
    assert outcomes([*SPANS.start, *(e for made in three for e in made)])[0].tails == {}
    assert shown_after(three, D, 3, span=0) == reasons.WRONG_SPAN, "that one is over"
    assert shown_after(three, D, 3, span=3) == ""


def test_a_span_goes_on_with_all_of_the_tail_or_another_one_begins_without_it() -> None:
    one = [SPANS.round(0)]
    assert shown_after(one, D, 1, span=0, tail=1) == ""
    assert shown_after(one, D, 1, span=1, tail=0) == ""
    assert shown_after(one, D, 1, span=0, tail=0) == reasons.WRONG_SPAN
    assert shown_after(one, D, 1, span=1, tail=1) == reasons.WRONG_SPAN
    assert shown_after(one, D, 1, span=2, tail=0) == reasons.WRONG_SPAN


def test_who_did_not_contribute_to_the_round_before_begins_a_span_of_its_own() -> None:
    shown: dict[Identity, dict[str, int]] = {D: {}, E: {}}
    without = [SPANS.round(0), round_of(SPANS, 1, shown)]
    assert shown_after(without, D, 2, span=0, tail=1) == ""
    assert shown_after(without, F, 2, span=0, tail=1) == reasons.WRONG_SPAN
    assert shown_after(without, F, 2, span=2, tail=0) == ""
    own = {D: {}, E: {}, F: {"span": 1, "tail": 0}}
    state, _ = outcomes([*SPANS.start, *SPANS.round(0), *round_of(SPANS, 1, own)])
    assert state.spans == {D.peer_id: 0, E.peer_id: 0, F.peer_id: 1}
    assert FoldState.decode(state.encode()) == state


def test_a_run_without_spans_has_the_number_0_for_all_of_them() -> None:
    begun = [*OVERLAP.start, *OVERLAP.round(0), OVERLAP.opened(1), OVERLAP.committed(1)]
    wrong = OVERLAP.contribution(ALL[0], 1, span=1)
    assert outcomes([*begun, wrong])[1][-1].reason == reasons.WRONG_SPAN
    assert outcomes(begun)[0].spans == {}


# --- contributed text -----------------------------------------------------------------------------

GIVER = key("giver")
TEXT = [(GIVER.key, 3000), ("", 1000), (key("second giver").key, 2000)]


def test_text_earns_for_the_windows_of_the_steps_that_were_made() -> None:
    world = World(
        contributed=TEXT,
        ownership={"vesting_rounds": 0},
        rounds={"box_s": 5.0},
        exchange={"overlap_steps": 2},
    )
    shown = {A: {"head": 3}, B: {"head": 2}, C: {"head": 1}}
    steps = {A.peer_id: 8, B.peer_id: 4, C.peer_id: 1}
    state, seen = outcomes([*world.start, *round_of(world, 0, shown, steps)])
    got = {c.account: c.units for c in seen[-1].granted if c.kind == "data"}
    split = assignment.Split(6000, 1024, SEQ_LEN, 4)
    members = sorted(steps)
    used: dict[str, int] = {}
    for member, fields in shown.items():
        windows = assignment.assign(
            *(7, split, 0, members, [steps[m] for m in members], member.peer_id),
            batch_size=BATCH_SIZE,
        )
        tail = {8: 4, 4: 2, 1: 0}[steps[member.peer_id]]
        head_windows = windows[: fields["head"] * BATCH_SIZE]
        tail_windows = windows[len(windows) - tail * BATCH_SIZE :]
        for window in (*head_windows, *tail_windows):
            token = window.shard * 1024 + window.offset
            name = TEXT[0 if token < 3000 else 1 if token < 4000 else 2][0]
            used[name] = used.get(name, 0) + SEQ_LEN
    used.pop("", None)
    assert got == used
    assert state.text_used == 13 * BATCH_SIZE


# --- kept and explained ---------------------------------------------------------------------------


def test_the_state_with_steps_survives_being_written_down() -> None:
    world = World(exchange={"overlap_steps": 2}, rounds={"box_s": 9.5})
    state, _ = outcomes([*world.start, *world.round(0), *world.until_closed(1)])
    again = FoldState.decode(state.encode())
    assert again == state
    assert again.tails
    assert again.work == world.work
    assert (again.work.least, again.work.most) == (1, 4 * INNER_STEPS)


def test_every_number_of_a_contribution_is_explained() -> None:
    history = [*OVERLAP.start, *OVERLAP.round(0), *OVERLAP.round(1)]
    index = next(
        number
        for number, envelope in enumerate(history)
        if b'"kind":"contribution"' in envelope.payload and b'"round":1' in envelope.payload
    )
    told = "\n".join(explain(read(Log(history)), index).lines())
    assert "is assigned 4 inner steps: 3 count in this round, the last 1 in the next" in told
    assert "exchange.overlap_steps 1 × 4 / rounds.inner_steps 4" in told
    assert (
        "made: (1 step of round 0, at most 1, + 3 steps of this round (1 to 3 are allowed)) × "
        "2 sequences × 16 tokens = 128 tokens"
    ) in told
    assert "it sent 2,000 bytes and received 3,000 bytes" in told
    assert "128 tokens × 100 (ownership.rates.compute) = 12,800 credit" in told
    manifest = "\n".join(explain(read(Log(history)), 0).lines())
    assert "the last 1 of 4 inner steps are trained while the exchange goes on" in manifest
    opened = "\n".join(
        explain(read(Log([*BOXED.start, *round_of(BOXED, 0, FULL, STEPS)])), 7).lines()
    )
    assert "assigned: 1 to 16 inner steps × 2 sequences × 16 tokens = 32 to 512 tokens" in opened
    assert f"node …{A.peer_id[-8:]} is assigned 16 inner steps" in opened


def test_blobs_and_sizes_do_not_matter_to_the_arithmetic() -> None:
    """Bytes up and down are a claim: nothing depends on them."""
    honest = [BOXED.opened(0, steps=STEPS), BOXED.committed(0)]
    one, other = (
        outcomes([*BOXED.start, *honest, BOXED.contribution(A, 0, head=16, up=up, down=2)])[0]
        for up in (0, 2**53 - 1)
    )
    assert one.attempt is not None
    assert other.attempt is not None
    assert [attempt.shown[A.peer_id].tokens for attempt in (one.attempt, other.attempt)] == [
        16 * STEP,
        16 * STEP,
    ]
