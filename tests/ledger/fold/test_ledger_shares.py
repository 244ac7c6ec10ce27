"""The fold: who gets credit, what changes nothing and why, and shares that add up exactly."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.credit_map import CreditMap
from artel.ledger.entries.records import Account
from artel.ledger.fold.shares import SHARE_SCALE, FoldState, Outcome, check, fold, shares, step
from artel.protocol.dsse import Envelope
from ledger_world import CREDIT, RATE, TOKENS, World, digest, forged, key, outcomes, read

WORLD = World()
A, B, C = WORLD.members
START = WORLD.start
GOOD = START + WORLD.round(0) + WORLD.round(1)
NAMES = [owner.key for owner in WORLD.owners]


def last(*envelopes: Envelope) -> str:
    """What the last of these entries does, after accounts and nodes: its reason or status."""
    outcome = outcomes([*START, *envelopes])[1][-1]
    return outcome.reason or outcome.status


def credits(state: FoldState) -> list[int]:
    """Of the three accounts, vested and pending."""
    return [state.credit(name) for name in NAMES]


def test_two_good_rounds_credit_every_account() -> None:
    state, seen = outcomes(GOOD)
    assert {outcome.status for outcome in seen[:-1]} == {"recorded", "credited"}
    assert seen[-1].status == "credited"
    assert {(credit.account, credit.node, credit.amount) for credit in seen[-1].granted} == {
        (owner.key, member.peer_id, CREDIT)
        for owner, member in zip(WORLD.owners, WORLD.members, strict=True)
    }
    (mine,) = [credit for credit in seen[-1].granted if credit.node == A.peer_id]
    assert mine.source == WORLD.earned(A, 1)
    assert (mine.kind, mine.round, mine.units, mine.rate) == ("compute", 1, TOKENS, RATE)
    assert credits(state) == [2 * CREDIT] * 3
    assert state.accounts[NAMES[0]].units == {"compute": 2 * TOKENS}
    assert state.node_tokens == {member.peer_id: 2 * TOKENS for member in WORLD.members}
    assert state.states == [digest(f"state {number}") for number in range(3)]
    assert (state.round, state.total, state.awaiting()) == (2, 6 * CREDIT, {})
    assert (state.total_pending, state.total_vested) == (6 * CREDIT, 0)
    assert (state.ignored, state.rejected) == ({}, {})
    assert state.recent == sorted(NAMES)


def test_what_is_accepted_waits_for_the_state() -> None:
    state, _ = outcomes(START + WORLD.round(0)[:-1])
    assert state.awaiting() == dict.fromkeys(NAMES, CREDIT)
    assert (state.total, shares(state), shares(state, with_pending=True)) == (0, [], [])


@pytest.mark.parametrize("wait", [0, 1, 3])
def test_credit_vests_after_the_rounds_that_the_manifest_names(wait: int) -> None:
    world = World(ownership={"vesting_rounds": wait})
    envelopes = [*world.start]
    for number in range(5):
        envelopes += world.round(number)
    state, seen = outcomes(envelopes)
    agreed = [outcome for outcome in seen if outcome.granted]
    assert [len(outcome.granted) for outcome in agreed] == [3] * 5
    for number, outcome in enumerate(agreed):
        assert {credit.round for credit in outcome.vested} == (
            {number - wait} if number >= wait else set()
        )
        assert len(outcome.vested) == (3 if number >= wait else 0)
    assert state.total_vested == 3 * CREDIT * (5 - wait)
    assert state.total_pending == 3 * CREDIT * wait
    rows, provisional = shares(state), shares(state, with_pending=True)
    assert [row.credit for row in rows] == [CREDIT * (5 - wait)] * 3
    assert [row.credit for row in provisional] == [CREDIT * 5] * 3


def test_the_rate_of_the_manifest_counts_and_may_be_zero() -> None:
    for rate in (1, 0):
        world = World(ownership={"rates": {"compute": rate}, "vesting_rounds": 0})
        state, seen = outcomes(world.start + world.round(0))
        assert seen[-1].status == "credited"
        assert [account.granted for account in state.accounts.values()] == [rate * TOKENS] * 3
        assert {account.units["compute"] for account in state.accounts.values()} == {TOKENS}
        assert len(shares(state)) == (3 if rate else 0)


def test_closing_the_run_vests_what_is_pending() -> None:
    world = World(total=2)
    run = world.start + world.round(0) + world.round(1)
    state, seen = outcomes([*run, world.run_closed(2)])
    assert len(seen[-1].vested) == 6
    assert (state.total_pending, state.total_vested) == (0, 6 * CREDIT)
    assert (state.closed, state.pending, state.due) == (1, {}, {})
    state, seen = outcomes([*run, world.run_closed(2), world.run_closed(2, 2)])
    assert (state.closed, seen[-1]) == (2, Outcome("recorded"))


def test_a_run_is_closed_after_its_last_round_and_once_at_a_time() -> None:
    world = World(total=2)
    first, second = world.run_closed(2), world.run_closed(2, 2)
    run = world.start + world.round(0) + world.round(1)

    def reason(*envelopes: Envelope) -> str:
        return outcomes(envelopes)[1][-1].reason

    assert reason(*world.start, *world.round(0), world.run_closed(1)) == reasons.OUT_OF_ORDER
    assert reason(*world.start, *world.round(0), first) == reasons.OUT_OF_ORDER
    assert reason(*run, world.run_closed(3)) == reasons.OUT_OF_ORDER
    assert reason(*run, second) == reasons.OUT_OF_ORDER
    assert reason(*run, first, first) == reasons.DUPLICATE
    assert reason(*run, first, second, second) == reasons.DUPLICATE
    assert reason(*run, first, second, first) == reasons.DUPLICATE
    assert reason(*run, forged(first, world.organiser)) == reasons.WRONG_SIGNERS
    assert reason(*run, forged(first, world.coordinator, A)) == reasons.WRONG_SIGNERS


def test_no_round_is_opened_beyond_the_manifest_s_last() -> None:
    world = World(total=1)
    assert outcomes([*world.start, *world.round(0), world.opened(1)])[1][-1] == Outcome(
        "ignored", reasons.OUT_OF_ORDER
    )


def test_credit_goes_to_the_account_of_the_time_when_the_round_opened() -> None:
    opened, *middle, agreed = WORLD.round(0)
    moved = entries.node(A, WORLD.owners[1], WORLD.run, seq=2)
    state, seen = outcomes([*START, opened, moved, *middle, agreed, *WORLD.round(1)])
    assert seen[8].status == "recorded"
    assert state.account_of(A.peer_id) == NAMES[1]
    assert credits(state) == [CREDIT, 3 * CREDIT, 2 * CREDIT]
    assert state.recent == sorted(NAMES[1:])


def test_a_failed_attempt_is_followed_by_the_next_one() -> None:
    late = {C.peer_id: reasons.LATE}
    failed = [WORLD.opened(0), WORLD.closed(0, accepted=[], rejected=late)]
    again = [
        WORLD.opened(0, attempt=1),
        WORLD.committed(0, attempt=1),
        *(WORLD.contribution(member, 0, attempt=1) for member in WORLD.members),
        WORLD.closed(0, attempt=1),
        WORLD.agreed(1),
    ]
    state, seen = outcomes([*START, *failed, *again])
    assert [outcome.status for outcome in seen[-6:]] == ["recorded"] * 5 + ["credited"]
    assert state.rejected == {C.peer_id: {reasons.LATE: 1}}
    assert state.rejected_by_account() == {WORLD.owners[2].key: {reasons.LATE: 1}}
    assert last(failed[0], WORLD.opened(0)) == reasons.OUT_OF_ORDER


def test_a_round_without_agreement_is_closed_again_and_gives_nothing() -> None:
    closed = WORLD.round(0)[:-1]
    void = WORLD.closed(0, accepted=[])
    state, seen = outcomes([*START, *closed, void])
    assert seen[-1].status == "recorded"
    assert (state.awaiting(), state.total) == ({}, 0)
    assert state.rejected == {m.peer_id: {reasons.NOT_AGREED: 1} for m in WORLD.members}
    assert last(*closed, void, WORLD.agreed(1)) == reasons.OUT_OF_ORDER
    assert last(*closed, WORLD.opened(0, attempt=1)) == "recorded"
    assert last(*closed, WORLD.opened(0, attempt=1), WORLD.agreed(1)) == reasons.OUT_OF_ORDER


def test_only_accepted_contributions_are_credited() -> None:
    round_ = [
        WORLD.opened(0),
        WORLD.committed(0),
        WORLD.contribution(A, 0),
        WORLD.contribution(B, 0),
        WORLD.closed(0, accepted=[A, B], rejected={C.peer_id: reasons.MISSING_REVEAL}),
    ]
    state, _ = outcomes([*START, *round_, WORLD.agreed(1, nodes=[A, B])])
    assert credits(state) == [CREDIT, CREDIT, 0]
    # One of two is no majority, however many others sign.
    assert last(*round_, WORLD.agreed(1, nodes=[A])) == reasons.NO_MAJORITY
    assert last(*round_, WORLD.agreed(1, nodes=[A, C])) == reasons.NO_MAJORITY


OPENED, COMMITTED, *_ = WORLD.round(0)
CLOSED = WORLD.round(0)[:-1]


@pytest.mark.parametrize(
    ("reason", "history"),
    [
        (reasons.SECOND_GENESIS, [WORLD.genesis]),
        (reasons.DUPLICATE, [WORLD.introductions()[0]]),
        (reasons.UNKNOWN_ACCOUNT, [entries.node(A, key("nobody"), WORLD.run)]),
        (reasons.OUT_OF_ORDER, [WORLD.opened(1)]),
        (reasons.OUT_OF_ORDER, [WORLD.opened(0, cursor=9), WORLD.opened(0, 1, cursor=8)]),
        (reasons.WRONG_STATE, [WORLD.opened(0, base=digest("state 1"))]),
        (reasons.UNKNOWN_NODE, [WORLD.opened(0, members=[key("stranger").peer_id])]),
        (reasons.OUT_OF_ORDER, [COMMITTED]),
        (reasons.OUT_OF_ORDER, [OPENED, COMMITTED, WORLD.committed(0, members=[A])]),
        (reasons.OUT_OF_ORDER, [OPENED, WORLD.committed(0, attempt=1)]),
        (reasons.NOT_MEMBER, [WORLD.opened(0, members=[A.peer_id]), COMMITTED]),
        (reasons.OUT_OF_ORDER, [OPENED, WORLD.contribution(A, 0)]),
        (reasons.OUT_OF_ORDER, [OPENED, COMMITTED, WORLD.contribution(A, 1)]),
        (reasons.OUT_OF_ORDER, [OPENED, COMMITTED, WORLD.contribution(A, 0, attempt=1)]),
        (
            reasons.NOT_MEMBER,
            [
                WORLD.opened(0, members=[A.peer_id]),
                WORLD.committed(0, members=[A]),
                WORLD.contribution(B, 0),
            ],
        ),
        (
            reasons.NOT_COMMITTED,
            [OPENED, WORLD.committed(0, members=[A]), WORLD.contribution(B, 0)],
        ),
        (
            reasons.WRONG_STATE,
            [OPENED, COMMITTED, WORLD.contribution(A, 0, base=digest("state 9"))],
        ),
        (reasons.WRONG_TOKENS, [OPENED, COMMITTED, WORLD.contribution(A, 0, tokens=TOKENS + 1)]),
        (
            reasons.COMMITMENT_MISMATCH,
            [OPENED, COMMITTED, WORLD.contribution(A, 0, blob=digest("another blob"))],
        ),
        (
            reasons.COMMITMENT_MISMATCH,
            [OPENED, COMMITTED, WORLD.contribution(A, 0, salt=bytes(32))],
        ),
        (
            reasons.DUPLICATE,
            [
                OPENED,
                COMMITTED,
                WORLD.contribution(A, 0, size=1),
                WORLD.contribution(A, 0, size=2),
            ],
        ),
        (reasons.OUT_OF_ORDER, [OPENED, WORLD.closed(0)]),
        (reasons.UNKNOWN_CONTRIBUTION, [*CLOSED[:-2], WORLD.closed(0)]),
        (
            reasons.NOT_MEMBER,
            [*CLOSED[:-1], WORLD.closed(0, rejected={A.peer_id: reasons.LATE})],
        ),
        (
            reasons.NOT_MEMBER,
            [OPENED, WORLD.closed(0, accepted=[], rejected={key("x").peer_id: reasons.LATE})],
        ),
        (reasons.OUT_OF_ORDER, [*CLOSED, WORLD.closed(0)]),
        (reasons.OUT_OF_ORDER, [WORLD.agreed(1)]),
        (reasons.OUT_OF_ORDER, [*CLOSED[:-1], WORLD.agreed(1)]),
        (reasons.OUT_OF_ORDER, [*CLOSED, WORLD.agreed(2)]),
        (reasons.NO_MAJORITY, [*CLOSED, WORLD.agreed(1, nodes=[A])]),
        (reasons.WRONG_CREDITS, [*CLOSED, WORLD.agreed(1, credits=digest("credit after it"))]),
        (reasons.OUT_OF_ORDER, [*CLOSED, WORLD.agreed(1), WORLD.agreed(1, nodes=[A, B])]),
    ],
)
def test_what_does_not_fit_changes_nothing(reason: str, history: list[Envelope]) -> None:
    before, _ = outcomes([*START, *history[:-1]])
    after, seen = outcomes([*START, *history])
    assert seen[-1] == Outcome("ignored", reason)
    assert after.ignored == {reason: 1}
    after.ignored, after.size, after.kinds = before.ignored, before.size, before.kinds
    assert after == before


def test_a_state_names_the_credit_that_there_was_when_its_round_was_closed() -> None:
    first, _ = outcomes([*START, *CLOSED, WORLD.agreed(1)])
    assert (first.rooted_by, first.rooted.root) == (
        first.size - 1,
        CreditMap().changed(dict.fromkeys(first.accounts, (0, 0))).root,
    )
    # What comes between the closing and the agreement counts for the next state.
    moved = (
        WORLD.dispute(WORLD.owners[1], WORLD.earned(A, 0)),
        entries.account(key("x"), WORLD.run),
    )
    second, _ = outcomes([*START, *WORLD.round(0), *WORLD.until_closed(1), *moved, WORLD.agreed(2)])
    had = {name: (owner.vested, owner.pending) for name, owner in first.accounts.items()}
    assert second.round == 2
    assert second.rooted == CreditMap().changed(had)
    assert FoldState.decode(second.encode()).rooted == second.rooted


def test_a_closing_names_the_credit_that_there_is_after_it() -> None:
    world = World(total=2)
    played = [*world.start, *world.round(0), *world.round(1)]
    run = [*played, world.dispute(world.owners[1], world.earned(world.members[0], 1))]
    shared = outcomes(run)[0]
    before = shared.encode()
    roots = []
    for closing in (1, 2):
        state, seen = outcomes([*run, world.run_closed(2, closing)])
        had = {name: (owner.vested, owner.pending) for name, owner in state.accounts.items()}
        assert (len(seen[-1].vested), state.total_pending) == ((5, CREDIT), (1, 0))[closing - 1]
        assert (state.rooted, state.rooted_by) == (CreditMap().changed(had), len(run))
        roots.append(state.rooted.root)
        run.append(world.run_closed(2, closing))
    assert entries.credits_after(shared, 1).root == roots[0]
    assert shared.encode() == before, "whoever asks what would be changes nothing"
    for closing, wrong in ((1, shared.rooted.root), (1, roots[1]), (2, roots[0])):
        state, seen = outcomes(
            [*run[: len(run) + closing - 3], world.run_closed(2, closing, wrong)]
        )
        assert seen[-1] == Outcome("ignored", reasons.WRONG_CREDITS)
        assert state.closed == closing - 1
        assert state.total_pending > 0


def test_a_weight_other_than_the_assigned_tokens_is_ignored() -> None:
    entry = entries.entry_id(WORLD.contribution(A, 0).encode())
    generous = entries.Accepted(node=A.peer_id, entry=entry, weight=TOKENS * 2)
    closed = entries.round_closed(
        WORLD.coordinator, WORLD.run, round=0, attempt=0, accepted=[generous]
    )
    assert last(OPENED, COMMITTED, WORLD.contribution(A, 0), closed) == reasons.WRONG_TOKENS


COORDINATOR, ACCOUNT, NODE = "world coordinator", "world account 0", "world node 0"
MOVED = entries.node(A, WORLD.owners[1], WORLD.run, seq=2)


@pytest.mark.parametrize(
    ("envelope", "signers"),
    [
        (entries.account(key("new"), WORLD.run), ["stranger"]),
        (entries.account(key("new"), WORLD.run), ["new", "stranger"]),
        (MOVED, [NODE]),
        (MOVED, ["world account 1"]),
        (MOVED, [NODE, ACCOUNT]),
        (OPENED, [NODE]),
        (OPENED, [COORDINATOR, NODE]),
        (OPENED, ["world organiser"]),
    ],
)
def test_the_wrong_signers_are_ignored(envelope: Envelope, signers: list[str]) -> None:
    assert last(forged(envelope, *map(key, signers))) == reasons.WRONG_SIGNERS


def test_wrong_signers_in_the_middle_of_a_round() -> None:
    contribution = WORLD.contribution(A, 0)
    for signers in (["world node 1"], [COORDINATOR], [NODE, "world node 1"]):
        wrong = forged(contribution, *map(key, signers))
        assert last(OPENED, COMMITTED, wrong) == reasons.WRONG_SIGNERS
    agreed, coordinator = WORLD.agreed(1), WORLD.coordinator
    assert last(*CLOSED, forged(agreed, A, B, C)) == reasons.WRONG_SIGNERS
    assert last(*CLOSED, forged(agreed, coordinator, A)) == reasons.WRONG_SIGNERS
    assert last(*CLOSED, WORLD.agreed(1, [key("x"), A, B, C])) == reasons.WRONG_SIGNERS
    assert last(*CLOSED, WORLD.agreed(1, [])) == reasons.NO_MAJORITY
    assert last(*CLOSED, WORLD.agreed(1, [A])) == reasons.NO_MAJORITY
    assert last(*CLOSED, WORLD.agreed(1, [A, B])) == "credited"
    assert last(*CLOSED, forged(agreed, coordinator)) == "credited"


def test_a_vote_for_another_state_is_no_vote_for_this_one() -> None:
    credits = outcomes([*START, *CLOSED])[0].attempt.credits.root  # type: ignore[union-attr]
    fields: dict[str, Any] = {"round": 1, "attempt": 0, "root": digest("state 1")}
    fields["credits"] = credits
    others = ({"root": digest("x")}, {"round": 2}, {"attempt": 1}, {"credits": digest("x")})
    for change in ({}, *others):
        made = [entries.state_vote(node, WORLD.run, **fields | change) for node in (A, B)]
        votes = {
            node.peer_id: vote.signatures[0][1].hex()
            for node, vote in zip((A, B), made, strict=True)
        }
        entry = entries.state_agreed(
            WORLD.coordinator, WORLD.run, **fields, rests_on="coordinator", signatures=votes
        )
        assert last(*CLOSED, entry) == (reasons.BAD_SIGNATURE if change else "credited")


def test_a_signature_that_does_not_verify_is_ignored() -> None:
    signatures = ((WORLD.coordinator.key, bytes(64)),)
    bad = replace(OPENED, signatures=signatures)
    assert last(bad) == reasons.BAD_SIGNATURE


def test_entries_of_another_run_are_ignored() -> None:
    other = entries.account(key("new"), "ab" * 32)
    assert last(other) == reasons.WRONG_RUN


def test_without_its_organiser_s_signature_a_manifest_founds_nothing() -> None:
    strange = forged(WORLD.genesis, key("stranger"))
    state, seen = outcomes([strange, *START])
    assert seen[0].reason == reasons.WRONG_SIGNERS
    assert {outcome.reason for outcome in seen[1:]} == {reasons.NO_GENESIS}
    assert (state.run, state.size) == ("", len(seen))
    unsigned = Envelope(strange.payload_type, strange.payload, ((key("a").key, bytes(64)),))
    assert outcomes([unsigned])[1][0].reason == reasons.BAD_SIGNATURE


# --- shares ---------------------------------------------------------------------------------------


def holding(vested: dict[str, int], **fields: Any) -> FoldState:
    """A state in which these accounts have this vested credit."""
    return FoldState(accounts={a: Account(a, vested=c, **fields) for a, c in vested.items()})


CREDITS = st.dictionaries(
    st.integers(0, 2**64).map(lambda number: f"{number:064x}"),
    st.integers(0, 10) | st.integers(0, 2**52),
    max_size=40,
)


@settings(deadline=None)
@given(CREDITS)
def test_shares_add_up_to_exactly_one(credit: dict[str, int]) -> None:
    rows = shares(holding(credit))
    total = sum(credit.values())
    if not total:
        assert rows == []
        return
    assert {row.account: row.credit for row in rows} == {a: c for a, c in credit.items() if c}
    assert sum(row.units for row in rows) == SHARE_SCALE
    for order in (rows, rows[::-1], sorted(rows, key=lambda row: row.account)):
        assert sum(row.share for row in order) == 1.0  # floats, in any order, without rounding
    for row in rows:
        assert Fraction(row.share) == Fraction(row.units, SHARE_SCALE)
        assert abs(Fraction(row.units) - Fraction(row.credit * SHARE_SCALE, total)) < 1


def test_equal_remainders_go_to_the_account_that_sorts_first() -> None:
    rows = shares(holding({"c": 5, "a": 5, "b": 5}))
    third = SHARE_SCALE // 3
    assert [(row.account, row.units) for row in rows] == [
        ("a", third + 1),
        ("b", third),
        ("c", third),
    ]


@pytest.mark.parametrize("with_pending", [False, True])
def test_shares_with_pending_count_what_would_vest(with_pending: bool) -> None:
    state = holding({"a": 3, "b": 0, "c": 0}, pending=1)
    state.accounts["c"].pending = 0
    rows = shares(state, with_pending=with_pending)
    expected = [("a", 4), ("b", 1)] if with_pending else [("a", 3)]
    assert [(row.account, row.credit) for row in rows] == expected


def test_credit_beyond_what_json_and_floats_hold_still_adds_up() -> None:
    rows = shares(holding({"a": 10**30, "b": 10**30 + 1, "c": 1}))
    assert sum(row.units for row in rows) == SHARE_SCALE
    assert [row.account for row in rows] == ["a", "b", "c"]


def test_stepping_is_folding_and_leaves_the_state_before_alone() -> None:
    state = FoldState()
    for index, entry in enumerate(read([*GOOD, GOOD[3], WORLD.agreed(1)])):
        before = state.encode()
        reason = check(state, entry)
        after, outcome = step(state, index, entry)
        assert state.encode() == before
        assert outcome.reason == reason
        assert (outcome.status == "ignored") == bool(outcome.reason)
        state = after
    assert state == fold(read([*GOOD, GOOD[3], WORLD.agreed(1)]))
    with pytest.raises(ValueError, match="next entry"):
        step(state, 0, read(GOOD)[0])
