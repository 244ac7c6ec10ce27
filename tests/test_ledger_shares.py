"""The fold: who gets credit, what changes nothing and why, and shares that add up exactly."""

from __future__ import annotations

import json
from collections.abc import Iterable
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ledger import entries, reasons
from ledger.entries import Entry, decode
from ledger.shares import SHARE_SCALE, FoldState, Outcome, fold, shares, step
from ledger_world import TOKENS, World, digest, key
from protocol import dsse
from protocol.dsse import Envelope

WORLD = World()
A, B, C = WORLD.members
START = [WORLD.genesis, *WORLD.introductions()]
GOOD = START + WORLD.round(0) + WORLD.round(1)


def read(envelopes: Iterable[Envelope]) -> list[Entry]:
    return [decode(envelope.encode()) for envelope in envelopes]


def outcomes(envelopes: Iterable[Envelope]) -> tuple[FoldState, list[Outcome]]:
    seen: list[Outcome] = []
    state = fold(read(envelopes), observe=lambda _index, _entry, outcome: seen.append(outcome))
    return state, seen


def last(*envelopes: Envelope) -> str:
    """What the last of these entries does, after accounts and nodes: its reason or status."""
    outcome = outcomes([*START, *envelopes])[1][-1]
    return outcome.reason or outcome.status


def test_two_good_rounds_credit_every_account() -> None:
    state, seen = outcomes(GOOD)
    assert {outcome.status for outcome in seen[:-1]} == {"recorded", "credited"}
    assert seen[-1].status == "credited"
    assert set(seen[-1].credits) == {
        (owner.key, member.peer_id, TOKENS)
        for owner, member in zip(WORLD.owners, WORLD.members, strict=True)
    }
    assert state.credit == {owner.key: 2 * TOKENS for owner in WORLD.owners}
    assert state.node_credit == {member.peer_id: 2 * TOKENS for member in WORLD.members}
    assert state.states == [digest(f"state {number}") for number in range(3)]
    assert (state.round, state.total, state.pending()) == (2, 6 * TOKENS, {})
    assert (state.ignored, state.rejected) == ({}, {})


def test_credit_is_pending_until_the_state_is_agreed() -> None:
    state, _ = outcomes(START + WORLD.round(0)[:-1])
    assert state.pending() == {owner.key: TOKENS for owner in WORLD.owners}
    assert (state.total, shares(state)) == (0, [])


def test_credit_goes_to_the_account_of_the_time_when_the_round_opened() -> None:
    opened, *middle, agreed = WORLD.round(0)
    moved = entries.node(A, WORLD.owners[1], WORLD.run)
    state, seen = outcomes([*START, opened, moved, *middle, agreed, *WORLD.round(1)])
    assert seen[8].status == "recorded"
    assert state.account_of(A.peer_id) == WORLD.owners[1].key
    expected = [TOKENS, 3 * TOKENS, 2 * TOKENS]
    assert [state.credit[owner.key] for owner in WORLD.owners] == expected


def test_an_old_binding_cannot_be_played_back() -> None:
    moved = entries.node(A, WORLD.owners[1], WORLD.run)
    assert last(moved, entries.node(A, WORLD.owners[0], WORLD.run)) == reasons.DUPLICATE


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
    assert (state.pending(), state.total) == ({}, 0)
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
    assert [state.credit[owner.key] for owner in WORLD.owners] == [TOKENS, TOKENS, 0]
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
        (reasons.DUPLICATE, [WORLD.introductions()[-1]]),
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
        (reasons.OUT_OF_ORDER, [*CLOSED, WORLD.agreed(1), WORLD.agreed(1, nodes=[A, B])]),
    ],
)
def test_what_does_not_fit_changes_nothing(reason: str, history: list[Envelope]) -> None:
    before, _ = outcomes([*START, *history[:-1]])
    after, seen = outcomes([*START, *history])
    assert seen[-1] == Outcome("ignored", reason)
    assert after.ignored == {reason: 1}
    after.ignored, after.size = before.ignored, before.size
    assert after == before


def test_a_weight_other_than_the_assigned_tokens_is_ignored() -> None:
    entry = entries.entry_id(WORLD.contribution(A, 0).encode())
    generous = entries.Accepted(node=A.peer_id, entry=entry, weight=TOKENS * 2)
    closed = entries.round_closed(
        WORLD.coordinator, WORLD.run, round=0, attempt=0, accepted=[generous]
    )
    assert last(OPENED, COMMITTED, WORLD.contribution(A, 0), closed) == reasons.WRONG_TOKENS


def forged(envelope: Envelope, *signers: str) -> Envelope:
    """The same statement, signed by the identities of these names instead."""
    body = decode(envelope.encode()).body.to_dict()
    return dsse.sign(envelope.payload_type, body, *(key(name) for name in signers))


COORDINATOR, ACCOUNT, NODE = "world coordinator", "world account 0", "world node 0"


@pytest.mark.parametrize(
    ("envelope", "signers"),
    [
        (entries.account(key("new"), WORLD.run), ["stranger"]),
        (entries.account(key("new"), WORLD.run), ["new", "stranger"]),
        (entries.node(A, WORLD.owners[1], WORLD.run), [NODE]),
        (entries.node(A, WORLD.owners[1], WORLD.run), ["world account 1"]),
        (entries.node(A, WORLD.owners[1], WORLD.run), [NODE, ACCOUNT]),
        (OPENED, [NODE]),
        (OPENED, [COORDINATOR, NODE]),
        (OPENED, ["world organiser"]),
    ],
)
def test_the_wrong_signers_are_ignored(envelope: Envelope, signers: list[str]) -> None:
    assert last(forged(envelope, *signers)) == reasons.WRONG_SIGNERS


def test_wrong_signers_in_the_middle_of_a_round() -> None:
    contribution = WORLD.contribution(A, 0)
    for signers in (["world node 1"], [COORDINATOR], [NODE, "world node 1"]):
        assert last(OPENED, COMMITTED, forged(contribution, *signers)) == reasons.WRONG_SIGNERS
    nodes = [f"world node {number}" for number in range(3)]
    agreed = WORLD.agreed(1)
    assert last(*CLOSED, forged(agreed, *nodes)) == reasons.WRONG_SIGNERS
    assert last(*CLOSED, forged(agreed, COORDINATOR, "stranger", *nodes)) == reasons.WRONG_SIGNERS
    assert last(*CLOSED, forged(agreed, COORDINATOR)) == reasons.NO_MAJORITY
    assert last(*CLOSED, forged(agreed, COORDINATOR, *nodes[:2])) == "credited"


def test_a_signature_that_does_not_verify_is_ignored() -> None:
    signatures = ((WORLD.coordinator.key, bytes(64)),)
    bad = Envelope(OPENED.payload_type, OPENED.payload, signatures)
    assert last(bad) == reasons.BAD_SIGNATURE


def test_entries_of_another_run_are_ignored() -> None:
    other = entries.account(key("new"), "ab" * 32)
    assert last(other) == reasons.WRONG_RUN


def test_without_its_organiser_s_signature_a_manifest_founds_nothing() -> None:
    strange = forged(WORLD.genesis, "stranger")
    state, seen = outcomes([strange, *START])
    assert seen[0].reason == reasons.WRONG_SIGNERS
    assert {outcome.reason for outcome in seen[1:]} == {reasons.NO_GENESIS}
    assert (state.run, state.size) == ("", len(seen))
    unsigned = Envelope(strange.payload_type, strange.payload, ((key("a").key, bytes(64)),))
    assert outcomes([unsigned])[1][0].reason == reasons.BAD_SIGNATURE


# --- properties -----------------------------------------------------------------------------------

POOL = read(
    [
        *GOOD,
        WORLD.opened(0, attempt=1),
        WORLD.opened(1, attempt=3),
        WORLD.closed(0, accepted=[]),
        WORLD.closed(1, accepted=[], rejected={A.peer_id: reasons.LATE}),
        WORLD.committed(0, members=[A]),
        WORLD.agreed(1, nodes=[A]),
        entries.node(A, WORLD.owners[1], WORLD.run),
        entries.account(key("new"), WORLD.run),
        forged(OPENED, "stranger"),
    ]
)
# Mostly good histories (so that rounds complete), with anything inserted anywhere.
HISTORIES = st.lists(st.tuples(st.integers(0, len(GOOD)), st.sampled_from(POOL)), max_size=12).map(
    lambda inserts: woven(inserts)
)


def woven(inserts: list[tuple[int, Entry]]) -> list[Entry]:
    history = list(POOL[: len(GOOD)])
    for position, entry in sorted(inserts, key=lambda pair: -pair[0]):
        history.insert(position, entry)
    return history


@settings(max_examples=60, deadline=None)
@given(HISTORIES, st.integers(0, 40))
def test_folding_in_two_parts_is_folding_once(history: list[Entry], split: int) -> None:
    whole = fold(history)
    prefix = fold(history[:split])
    kept = json.dumps(prefix.to_dict())
    assert fold(history[split:], prefix) == whole
    assert json.dumps(prefix.to_dict()) == kept  # and the prefix is untouched
    assert fold(history[split:], FoldState.from_dict(json.loads(kept))) == whole
    assert whole.size == len(history)


@settings(max_examples=40, deadline=None)
@given(HISTORIES)
def test_stepping_is_folding(history: list[Entry]) -> None:
    state = FoldState()
    for index, entry in enumerate(history):
        before = json.dumps(state.to_dict())
        after, outcome = step(state, index, entry)
        assert json.dumps(state.to_dict()) == before
        assert (outcome.status == "ignored") == bool(outcome.reason)
        assert after.total - state.total == sum(tokens for _, _, tokens in outcome.credits)
        state = after
    assert state == fold(history)
    with pytest.raises(ValueError, match="next entry"):
        step(state, 0, history[0])


@settings(max_examples=60, deadline=None)
@given(HISTORIES)
def test_credit_is_conserved_and_every_share_adds_up(history: list[Entry]) -> None:
    state = fold(history)
    assert sum(state.node_credit.values()) == state.total
    assert state.total % TOKENS == 0
    assert sum(share.share for share in shares(state)) == (1.0 if state.total else 0)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, len(GOOD)), st.data())
def test_repeating_what_was_said_changes_no_credit(position: int, data: st.DataObject) -> None:
    repeated = data.draw(st.sampled_from(POOL[: len(GOOD)][: max(1, position)]))
    history = POOL[: len(GOOD)]
    whole = fold([*history[:position], repeated, *history[position:]])
    assert (whole.credit, whole.states) == (fold(history).credit, fold(history).states)


CREDITS = st.dictionaries(
    st.integers(0, 2**64).map(lambda number: f"{number:064x}"),
    st.integers(0, 10) | st.integers(0, 2**52),
    max_size=40,
)


@settings(deadline=None)
@given(CREDITS)
def test_shares_add_up_to_exactly_one(credit: dict[str, int]) -> None:
    rows = shares(FoldState(credit=credit))
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
    rows = shares(FoldState(credit={"c": 5, "a": 5, "b": 5}))
    third = SHARE_SCALE // 3
    assert [(row.account, row.units) for row in rows] == [
        ("a", third + 1),
        ("b", third),
        ("c", third),
    ]
