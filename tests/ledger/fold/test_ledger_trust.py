"""The fold's rules for tree heads, split views, and those who gave the text."""

from __future__ import annotations

from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Outcome
from artel.protocol import assignment
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from artel.protocol.round_state import BAD_SIGNATURE
from ledger_world import (
    CREDIT,
    INNER_STEPS,
    RATE,
    SEQ_LEN,
    WINDOWS,
    World,
    digest,
    encoded,
    forged,
    key,
    outcomes,
)

WORLD = World(ledger={"witnesses": 2})
A, B, C = WORLD.members
OWNER, OTHER, THIRD = WORLD.owners
HISTORY = [*WORLD.start, *WORLD.round(0)]
LEAVES = encoded(HISTORY)
SIZE = len(LEAVES)


def after(*envelopes: Envelope) -> tuple[FoldState, Outcome]:
    """The state after a good round and these entries, and what the last of them did."""
    state, seen = outcomes([*HISTORY, *envelopes])
    return state, seen[-1]


def reason(*envelopes: Envelope) -> str:
    _, outcome = after(*envelopes)
    return outcome.reason or outcome.status


# --- witnesses ------------------------------------------------------------------------------------


def test_enough_cosignatures_over_their_own_record_make_what_they_cover_final() -> None:
    first = WORLD.witnessed(LEAVES, [A, B])
    state, outcome = after(first)
    assert outcome.status == "credited"
    assert (state.witnessed, state.final) == (SIZE, 0)
    assert state.electors.certified == [(SIZE, SIZE)]
    assert state.cosigners == sorted([OWNER.key, OTHER.key])
    more = [*LEAVES, first.encode()]
    state, _ = after(first, WORLD.witnessed(more, [B, C]))
    assert (state.witnessed, state.final) == (SIZE + 1, SIZE)
    # One account is too few, for either of the two.
    alone = WORLD.witnessed(LEAVES, [A])
    state, _ = after(alone)
    assert (state.witnessed, state.cosigners) == (SIZE, [OWNER.key])
    assert (state.final, state.electors.certified) == (0, [])
    state, _ = after(alone, WORLD.witnessed([*LEAVES, alone.encode()], [A, B]))
    assert (state.witnessed, state.final) == (SIZE + 1, 0)
    state, _ = after(first, WORLD.witnessed(more, [C]))
    assert (state.witnessed, state.final) == (SIZE + 1, 0)


def test_two_nodes_of_one_account_are_one_witness() -> None:
    moved = entries.node(B, OWNER, WORLD.run, seq=2)
    leaves = [*LEAVES, moved.encode()]
    state, outcome = after(moved, WORLD.witnessed(leaves, [A, B]))
    assert (state.electors.certified, state.cosigners) == ([], [OWNER.key])
    assert len(outcome.granted) == 1
    state, _ = after(moved, WORLD.witnessed(leaves, [A, C]))
    assert state.electors.certified == [(SIZE + 1, SIZE + 1)]


def test_a_run_without_witnesses_is_never_final() -> None:
    world = World(ledger={"witnesses": 0})
    leaves = [envelope.encode() for envelope in world.start]
    first = world.witnessed(leaves)
    second = world.witnessed([*leaves, first.encode()])
    state, seen = outcomes([*world.start, first, second])
    assert (seen[-1].status, state.witnessed) == ("recorded", len(leaves) + 1)
    assert (state.final, state.electors.certified) == (0, [])


def test_what_is_no_proper_record_of_witnesses() -> None:
    good = WORLD.witnessed(LEAVES)
    assert reason(forged(good, A)) == reasons.WRONG_SIGNERS
    assert reason(forged(good, WORLD.coordinator, A)) == reasons.WRONG_SIGNERS
    assert reason(WORLD.witnessed(LEAVES, [key("stranger")])) == reasons.UNKNOWN_NODE
    assert reason(WORLD.witnessed([*LEAVES, b"not there yet"])) == reasons.OUT_OF_ORDER
    assert reason(good, good) == reasons.OUT_OF_ORDER
    assert reason(good, WORLD.witnessed(LEAVES, [A], size=SIZE - 1)) == reasons.OUT_OF_ORDER
    assert reason(good, WORLD.witnessed([*LEAVES, good.encode()])) == "credited"


@pytest.mark.parametrize(
    ("field", "value"),
    [("term", 1), ("size", SIZE - 1), ("root", digest("another root"))],
)
def test_cosignatures_of_another_tree_head_do_not_count(field: str, value: Any) -> None:
    body = entries.decode(WORLD.witnessed(LEAVES).encode()).body
    assert isinstance(body, entries.Witnessed)
    fields = {name: getattr(body, name) for name in ("size", "root", "term", "cosignatures")}
    changed = entries.witnessed(WORLD.coordinator, WORLD.run, **fields | {field: value})
    assert reason(changed) == BAD_SIGNATURE
    late = tuple(
        entries.Cosignature(node=c.node, time=c.time + 1, signature=c.signature)
        for c in body.cosignatures
    )
    changed = entries.witnessed(WORLD.coordinator, WORLD.run, **fields | {"cosignatures": late})
    assert reason(changed) == BAD_SIGNATURE


def test_one_node_cannot_cosign_for_another() -> None:
    body = entries.decode(WORLD.witnessed(LEAVES, [A]).encode()).body
    assert isinstance(body, entries.Witnessed)
    stolen = entries.Cosignature(
        node=B.peer_id, time=body.cosignatures[0].time, signature=body.cosignatures[0].signature
    )
    fields = {"size": SIZE, "root": body.root, "cosignatures": [stolen]}
    assert reason(entries.witnessed(WORLD.coordinator, WORLD.run, **fields)) == BAD_SIGNATURE


def test_witnesses_are_paid_for_each_entry_once_from_their_registration_on() -> None:
    first = WORLD.witnessed(LEAVES, size=10)
    state, outcome = after(first)
    # Accounts are entries 1 to 3; each has replayed what came after it was there.
    assert {credit.account: credit.units for credit in outcome.granted} == {
        OWNER.key: 9,
        OTHER.key: 8,
        THIRD.key: 7,
    }
    assert {(credit.kind, credit.rate) for credit in outcome.granted} == {("witness", RATE)}
    assert state.credit(OWNER.key) == CREDIT + 9 * RATE
    leaves = [*LEAVES, first.encode()]
    state, outcome = after(first, WORLD.witnessed(leaves, [A, B]))
    assert {credit.account: credit.units for credit in outcome.granted} == {
        OWNER.key: SIZE + 1 - 10,
        OTHER.key: SIZE + 1 - 10,
    }
    state, outcome = after(first, *WORLD.round(1), *WORLD.round(2), *WORLD.round(3))
    assert {credit.kind for credit in outcome.vested} == {"compute", "witness"}


def test_only_accounts_that_contributed_lately_are_paid_for_watching() -> None:
    round_ = [
        WORLD.opened(1),
        WORLD.committed(1),
        WORLD.contribution(A, 1),
        WORLD.closed(1, accepted=[A]),
        WORLD.agreed(2, nodes=[A]),
    ]
    leaves = encoded([*HISTORY, *round_])
    state, outcome = after(*round_, WORLD.witnessed(leaves))
    assert [credit.account for credit in outcome.granted] == [OWNER.key]
    # The others are witnesses, though they are not paid.
    assert state.electors.certified == [(len(leaves), len(leaves))]
    again = WORLD.witnessed(leaves)
    more = [again, *WORLD.round(2)]
    leaves = encoded([*HISTORY, *round_, *more])
    state, outcome = after(*round_, *more, WORLD.witnessed(leaves))
    units = {credit.account: credit.units for credit in outcome.granted}
    assert set(units.values()) == {len(more)}  # what they once watched for nothing stays unpaid


def test_watching_is_not_paid_before_the_first_state_or_after_the_end() -> None:
    world = World(total=1)
    start = [envelope.encode() for envelope in world.start]
    assert outcomes([*world.start, world.witnessed(start)])[1][-1] == Outcome("recorded")
    whole = [*world.start, *world.round(0), world.run_closed(1)]
    leaves = encoded(whole)
    record = world.witnessed(leaves)
    again = world.witnessed([*leaves, record.encode()])
    state, seen = outcomes([*whole, record, again])
    assert (seen[-2:], state.final) == ([Outcome("recorded")] * 2, len(leaves))


# --- split views ----------------------------------------------------------------------------------

OTHER_LEAVES = [*LEAVES[:-1], b"another history"]
BY_LOG = WORLD.split_view(LEAVES, OTHER_LEAVES)
BY_B = WORLD.split_view(LEAVES[:6], [*OTHER_LEAVES[:4], *OTHER_LEAVES[5:]], B)


def test_a_coordinator_that_shows_two_histories_is_convicted() -> None:
    state, outcome = after(WORLD.split_seen(OWNER, BY_LOG))
    assert outcome == Outcome("recorded")
    assert state.convicted == {WORLD.coordinator.key: SIZE}
    assert not any(account.barred for account in state.accounts.values())
    assert reason(WORLD.split_seen(OWNER, BY_LOG), WORLD.split_seen(OTHER, BY_LOG)) == (
        reasons.DUPLICATE
    )


def test_a_witness_that_cosigned_two_histories_is_barred() -> None:
    seen = WORLD.split_seen(OWNER, BY_B)
    state, outcome = after(seen)
    assert [(credit.account, credit.amount) for credit in outcome.invalidated] == [
        (OTHER.key, CREDIT)
    ]
    assert state.accounts[OTHER.key].barred
    assert (state.convicted, state.credit(OTHER.key)) == ({B.key: SIZE}, 0)
    assert reason(seen, WORLD.split_seen(THIRD, BY_B)) == reasons.DUPLICATE
    leaves = [*LEAVES, seen.encode()]
    state, outcome = after(seen, WORLD.witnessed(leaves, [A, B]))
    assert (state.cosigners, state.electors.certified) == ([OWNER.key], [])
    # Nor does it get a new seat with a new account.
    fresh = key("fresh account")
    moved = [entries.account(fresh, WORLD.run), entries.node(B, fresh, WORLD.run, seq=2)]
    leaves += [envelope.encode() for envelope in moved]
    state, _ = after(seen, *moved, WORLD.witnessed(leaves, [A, B]))
    assert (state.cosigners, state.electors.certified) == ([OWNER.key], [])


def test_evidence_that_proves_nothing_about_this_run_is_ignored() -> None:
    elsewhere = World(name="elsewhere")
    stranger = key("stranger")
    for proof in (
        elsewhere.split_view(LEAVES, OTHER_LEAVES),
        elsewhere.split_view(LEAVES, OTHER_LEAVES, B),
        WORLD.split_view(LEAVES, OTHER_LEAVES, stranger),
        broken(BY_LOG),
        BY_B | {"leaves": BY_B["leaves"][::-1]},
        BY_B | {"leaves": [BY_B["leaves"][0]] * 2},
        BY_B | {"index": BY_B["index"] + 1},
    ):
        assert reason(WORLD.split_seen(OWNER, proof)) == reasons.PROVES_NOTHING
    assert reason(forged(WORLD.split_seen(OWNER, BY_LOG), OTHER)) == reasons.WRONG_SIGNERS
    assert reason(WORLD.split_seen(stranger, BY_LOG)) == reasons.UNKNOWN_ACCOUNT


def broken(proof: dict[str, Any]) -> dict[str, Any]:
    """The same evidence with a checkpoint that says something else than was signed."""
    head, separator, lines = proof["second"].partition("\n\n")
    origin, size, _ = head.split("\n")
    changed = f"{origin}\n{size}\n{'A' * 43}=" + separator + lines
    return {"first": min(proof["first"], changed), "second": max(proof["first"], changed)}


# --- contributed text -----------------------------------------------------------------------------

GIVER, SECOND = key("giver"), key("second giver")
PARTS = [(GIVER.key, 3000), ("", 1000), (SECOND.key, 2000)]
GIVEN = World(contributed=PARTS, ownership={"vesting_rounds": 0})
SPLIT = assignment.Split(6000, 1024, SEQ_LEN, 4)


def expected(world: World, round: int, accepted: list[Identity]) -> dict[str, int]:
    """Tokens of each part that the accepted members were assigned, window by window."""
    members = sorted(member.peer_id for member in world.members)
    used = dict.fromkeys((name for name, _ in PARTS), 0)
    for member in accepted:
        windows = assignment.assign(
            7,
            SPLIT,
            round * 24,
            members,
            [INNER_STEPS] * len(members),
            member.peer_id,
            batch_size=2,
        )
        for window in windows:
            token = window.shard * 1024 + window.offset
            used[PARTS[0 if token < 3000 else 1 if token < 4000 else 2][0]] += SEQ_LEN
    return {name: tokens for name, tokens in used.items() if name and tokens}


def by_data(outcome: Outcome) -> dict[str, int]:
    return {credit.account: credit.units for credit in outcome.granted if credit.kind == "data"}


def test_text_earns_when_accepted_members_read_it() -> None:
    state, seen = outcomes([*GIVEN.start, *GIVEN.round(0)])
    used = expected(GIVEN, 0, GIVEN.members)
    assert 0 < sum(used.values()) <= 3 * WINDOWS * SEQ_LEN
    assert by_data(seen[-1]) == used
    for name, tokens in used.items():
        assert state.accounts[name].units == {"data": tokens}
        assert state.accounts[name].vested == 10 * tokens
    some = GIVEN.members[:2]
    history = [
        GIVEN.opened(0),
        GIVEN.committed(0),
        *(GIVEN.contribution(member, 0) for member in some),
        GIVEN.closed(0, accepted=some),
        GIVEN.agreed(1),
    ]
    assert by_data(outcomes([*GIVEN.start, *history])[1][-1]) == expected(GIVEN, 0, some)


def test_text_earns_in_the_first_pass_alone() -> None:
    rounds = SPLIT.windows // 24
    history = [*GIVEN.start]
    for number in range(rounds + 2):
        # The coordinator's cursor lies before what is left of the epoch, which is too little.
        history += GIVEN.round(number)
    _, seen = outcomes(history)
    agreed = [outcome for outcome in seen if outcome.granted]
    used = [by_data(outcome) for outcome in agreed]
    assert used[:rounds] == [expected(GIVEN, n, GIVEN.members) for n in range(rounds)]
    assert used[rounds:] == [{}, {}]
    assert len(agreed) == rounds + 2


def test_reading_the_same_text_again_earns_nothing() -> None:
    opened = GIVEN.opened(1, cursor=0)
    again = [opened, *GIVEN.round(1)[1:]]
    _, seen = outcomes([*GIVEN.start, *GIVEN.round(0), *again])
    assert seen[-1].status == "credited"
    assert by_data(seen[-1]) == {}


def test_a_round_larger_than_the_text_earns_nothing_and_breaks_nothing() -> None:
    world = World(contributed=[(GIVER.key, 24 * SEQ_LEN)])  # an epoch of 20 windows
    state, seen = outcomes([*world.start, *world.round(0)])
    assert (seen[-1].status, by_data(seen[-1])) == ("credited", {})
    assert state.text_used == 0


def test_a_giver_of_text_can_register_later_and_acts_only_then() -> None:
    history = [*GIVEN.start, *GIVEN.round(0)]
    new = key("new key")
    rotated = GIVEN.rotated(GIVER, new, GIVER)
    node = key("giver's node")
    bound = entries.node(node, GIVER, GIVEN.run)
    for early in (rotated, bound, GIVEN.dispute(GIVER, digest("x"))):
        assert outcomes([*history, early])[1][-1].reason == reasons.UNKNOWN_ACCOUNT
    account = entries.account(GIVER, GIVEN.run)
    earned = outcomes(history)[0].credit(GIVER.key)
    state, seen = outcomes([*history, account, bound, rotated])
    assert [outcome.status for outcome in seen[-3:]] == ["recorded"] * 3
    assert (state.credit(GIVER.key), state.accounts[GIVER.key].key) == (earned, new.key)
    assert earned > 0
    assert outcomes([*history, account, rotated, account])[1][-1].reason == reasons.DUPLICATE
    # What came before it registered is not paid as witnessed.
    assert state.accounts[GIVER.key].witnessed == len(history)


def test_a_barred_giver_of_text_earns_no_more() -> None:
    world = World(contributed=[(World().owners[0].key, 6000)])
    assert world.owners[0].key == World().owners[0].key
    hard = world.ruling(world.earned(world.members[0], 0), "hard")
    _, seen = outcomes([*world.start, *world.round(0), hard, *world.round(1)])
    assert {credit.kind for credit in seen[-1].granted} == {"compute"}
    assert len(seen[-1].granted) == 2
