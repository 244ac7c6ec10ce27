"""The fold's rules for people: accounts and keys, nodes, transfers, disputes, rulings."""

from __future__ import annotations

from artel.ledger import entries
from artel.ledger.entries import reasons, recovery_digest
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.dispute import MAX_OPEN_DISPUTES
from artel.ledger.entries.records import Outcome
from artel.protocol.dsse import Envelope
from ledger_world import CREDIT, TOKENS, World, digest, forged, key, outcomes

WORLD = World()
A, B, C = WORLD.members
OWNER, OTHER, THIRD = WORLD.owners
NEW, NEWER, RECOVERY, THIEF = (key(name) for name in ("new", "newer", "recovery", "thief"))
ROUND = WORLD.round(0)
WORK = WORLD.earned(A, 0)
"""What A earned in round 0; it vests with state 4."""


def after(*envelopes: Envelope, world: World = WORLD) -> tuple[FoldState, Outcome]:
    """The state after the start and these entries, and what the last of them did."""
    state, seen = outcomes([*world.start, *envelopes])
    return state, seen[-1]


def reason(*envelopes: Envelope, world: World = WORLD) -> str:
    """Why the last of these entries is ignored, or what it did."""
    _, outcome = after(*envelopes, world=world)
    return outcome.reason or outcome.status


def rounds(first: int, last: int, world: World = WORLD) -> list[Envelope]:
    return [envelope for number in range(first, last + 1) for envelope in world.round(number)]


# --- accounts and keys ----------------------------------------------------------------------------


def registered(recovery: str = "") -> Envelope:
    return entries.account(THIEF, WORLD.run, recovery)


def test_an_account_is_registered_once_by_its_own_key() -> None:
    state, outcome = after(registered())
    assert outcome == Outcome("recorded")
    assert state.keys[THIEF.key] == THIEF.key
    assert state.accounts[THIEF.key].registered
    assert reason(registered(), registered()) == reasons.DUPLICATE
    again = entries.account(OWNER, WORLD.run, recovery_digest(THIEF.public))
    assert reason(again) == reasons.DUPLICATE
    assert reason(forged(registered(), OTHER)) == reasons.WRONG_SIGNERS
    assert reason(forged(registered(), THIEF, OTHER)) == reasons.WRONG_SIGNERS


def test_where_not_everybody_may_come_the_organiser_lets_in() -> None:
    listed = [key(f"list account {number}").key for number in range(3)]
    world = World(name="list", trust={"admission": "list", "admitted": listed})
    comes = entries.account(THIEF, world.run)
    let_in = entries.admitted(world.organiser, world.run, THIEF.key)
    state, outcome = after(comes, world=world)
    assert len(state.accounts) == 3, "who is listed in the manifest"
    assert outcome.reason == reasons.NOT_ADMITTED
    assert reason(let_in, world=world) == "recorded"
    assert after(let_in, comes, world=world)[0].accounts[THIEF.key].registered
    assert reason(let_in, let_in, world=world) == reasons.DUPLICATE
    for known in listed:
        again = entries.admitted(world.organiser, world.run, known)
        assert reason(again, world=world) == reasons.DUPLICATE
    for other in (world.coordinator, THIEF, world.owners[0]):
        assert reason(forged(let_in, other), world=world) == reasons.WRONG_SIGNERS
    open_to_all = entries.admitted(WORLD.organiser, WORLD.run, THIEF.key)
    assert reason(open_to_all) == reasons.NOT_ALLOWED


def test_a_rotated_account_keeps_its_name_and_credit_and_loses_the_old_key() -> None:
    rotated = WORLD.rotated(OWNER, NEW, OWNER)
    state, outcome = after(*ROUND, rotated)
    assert outcome == Outcome("recorded")
    account = state.accounts[OWNER.key]
    assert (account.key, account.seq, state.credit(OWNER.key)) == (NEW.key, 1, CREDIT)
    assert NEW.key not in state.accounts
    assert state.keys.get(NEW.key) == OWNER.key
    assert OWNER.key not in state.keys
    assert reason(rotated, WORLD.dispute(OWNER, WORK)) == reasons.WRONG_SIGNERS
    moved = {"account": OWNER.key, "seq": 2}
    assert reason(rotated, entries.node(B, OWNER, WORLD.run, **moved)) == reasons.WRONG_SIGNERS
    assert reason(rotated, entries.node(B, NEW, WORLD.run, **moved)) == "recorded"
    # The old key cannot even begin anew: it is the name of the account.
    assert reason(rotated, entries.account(OWNER, WORLD.run)) == reasons.DUPLICATE
    assert reason(rotated, WORLD.rotated(OWNER, NEWER, OWNER, seq=2)) == reasons.WRONG_SIGNERS


def test_a_rotation_takes_both_keys_and_the_next_number() -> None:
    rotated = WORLD.rotated(OWNER, NEW, OWNER)
    for signers in ([OWNER], [NEW], [OWNER, NEW, OTHER], [OTHER, NEW]):
        assert reason(forged(rotated, *signers)) == reasons.WRONG_SIGNERS
    for seq in (2, 99):
        assert reason(WORLD.rotated(OWNER, NEW, OWNER, seq)) == reasons.WRONG_SEQUENCE
    back = WORLD.rotated(NEW, NEWER, OWNER, seq=2)
    assert reason(rotated, back, rotated) == reasons.WRONG_SIGNERS
    assert reason(rotated, back, back) == reasons.WRONG_SIGNERS
    assert reason(WORLD.rotated(THIEF, NEW, THIEF)) == reasons.UNKNOWN_ACCOUNT


def test_a_key_speaks_for_one_account_and_no_account_s_name_is_another_s_key() -> None:
    assert reason(WORLD.rotated(OWNER, OTHER, OWNER)) == reasons.KEY_IN_USE
    rotated = WORLD.rotated(OWNER, NEW, OWNER)
    assert reason(rotated, WORLD.rotated(OTHER, NEW, OTHER)) == reasons.KEY_IN_USE
    assert reason(rotated, entries.account(NEW, WORLD.run)) == reasons.KEY_IN_USE
    back = WORLD.rotated(NEW, OWNER, OWNER, seq=2)
    assert reason(rotated, back) == reasons.KEY_IN_USE
    # A key that was given up is free again, for an account of its own.
    on = WORLD.rotated(NEW, NEWER, OWNER, seq=2)
    assert reason(rotated, on, entries.account(NEW, WORLD.run)) == "recorded"


def test_the_recovery_key_takes_an_account_back_from_a_thief() -> None:
    recovery = recovery_digest(RECOVERY.public)
    secured = WORLD.rotated(OWNER, NEW, OWNER, recovery=recovery)
    stolen = WORLD.rotated(NEW, THIEF, OWNER, seq=2)
    recovered = WORLD.rotated(RECOVERY, NEWER, OWNER, seq=3)
    state, outcome = after(*ROUND, secured, stolen, recovered)
    assert outcome == Outcome("recorded")
    account = state.accounts[OWNER.key]
    assert (account.key, account.recovery, state.credit(OWNER.key)) == (NEWER.key, recovery, CREDIT)
    late = WORLD.rotated(THIEF, NEW, OWNER, seq=4)
    assert reason(secured, stolen, recovered, late) == reasons.WRONG_SIGNERS


def test_only_the_recovery_key_can_name_another_recovery_key() -> None:
    recovery, other = recovery_digest(RECOVERY.public), recovery_digest(THIEF.public)
    secured = WORLD.rotated(OWNER, NEW, OWNER, recovery=recovery)
    shut_out = WORLD.rotated(NEW, NEWER, OWNER, seq=2, recovery=other)
    assert reason(secured, shut_out) == reasons.WRONG_SIGNERS
    assert reason(secured, WORLD.rotated(NEW, NEWER, OWNER, 2, recovery)) == "recorded"
    replaced = WORLD.rotated(RECOVERY, NEWER, OWNER, 2, other)
    state, _ = after(secured, replaced)
    assert state.accounts[OWNER.key].recovery == other
    assert reason(secured, replaced, WORLD.rotated(RECOVERY, NEW, OWNER, 3)) == (
        reasons.WRONG_SIGNERS
    )


def test_an_account_without_a_recovery_key_cannot_be_recovered() -> None:
    assert reason(WORLD.rotated(RECOVERY, NEW, OWNER)) == reasons.WRONG_SIGNERS


# --- nodes ----------------------------------------------------------------------------------------


def test_a_node_moves_and_its_old_binding_cannot_be_played_back() -> None:
    first = entries.node(A, OWNER, WORLD.run)
    there = entries.node(A, OTHER, WORLD.run, seq=5)
    back = entries.node(A, OWNER, WORLD.run, seq=6)
    state, outcome = after(there)
    assert (outcome.status, state.account_of(A.peer_id)) == ("recorded", OTHER.key)
    assert reason(there, first) == reasons.WRONG_SEQUENCE
    assert reason(there, back) == "recorded"
    assert reason(there, back, there) == reasons.WRONG_SEQUENCE
    assert reason(there, entries.node(A, OTHER, WORLD.run, seq=6)) == reasons.DUPLICATE
    for signers in ([A], [OTHER], [A, OWNER], [A, OTHER, OWNER]):
        assert reason(forged(there, *signers)) == reasons.WRONG_SIGNERS
    assert reason(entries.node(A, THIEF, WORLD.run, seq=2)) == reasons.UNKNOWN_ACCOUNT


# --- transfers ------------------------------------------------------------------------------------

GIVING = World(ownership={"transfers": True, "vesting_rounds": 1})
VESTED = rounds(0, 1, GIVING)
"""Everybody has one contribution vested and one pending."""


def test_transfers_are_off_unless_the_manifest_allows_them() -> None:
    given = WORLD.transfer(OWNER, OTHER.key, 1)
    assert reason(*rounds(0, 4), given) == reasons.NOT_ALLOWED


def test_a_transfer_moves_vested_credit() -> None:
    given = GIVING.transfer(GIVING.owners[0], GIVING.owners[1].key, 300)
    state, outcome = after(*VESTED, given, world=GIVING)
    names = [owner.key for owner in GIVING.owners[:2]]
    assert outcome == Outcome("recorded", moved=((names[0], -300), (names[1], 300)))
    giver, taker = (state.accounts[owner.key] for owner in GIVING.owners[:2])
    assert (giver.vested, giver.sent, giver.pending) == (CREDIT - 300, 300, CREDIT)
    assert (taker.vested, taker.received, taker.pending) == (CREDIT + 300, 300, CREDIT)
    assert state.total_vested == 3 * CREDIT


def test_what_cannot_be_transferred() -> None:
    def given(*transfers: Envelope) -> str:
        return reason(*VESTED, *transfers, world=GIVING)

    one, two, _ = GIVING.owners
    whole = GIVING.transfer(one, two.key, CREDIT)
    assert given(whole) == "recorded"
    assert given(GIVING.transfer(one, two.key, CREDIT + 1)) == reasons.NOT_ENOUGH  # not pending
    assert given(whole, GIVING.transfer(one, two.key, 1, seq=2)) == reasons.NOT_ENOUGH
    assert given(GIVING.transfer(one, two.key, 1), GIVING.transfer(one, two.key, 1)) == (
        reasons.WRONG_SEQUENCE
    )
    assert given(GIVING.transfer(one, two.key, 1, seq=2)) == reasons.WRONG_SEQUENCE
    assert given(GIVING.transfer(one, one.key, 1)) == reasons.NOT_ALLOWED
    assert given(GIVING.transfer(one, THIEF.key, 1)) == reasons.UNKNOWN_ACCOUNT
    assert given(GIVING.transfer(THIEF, one.key, 1)) == reasons.UNKNOWN_ACCOUNT
    assert given(forged(whole, two)) == reasons.WRONG_SIGNERS
    assert given(forged(whole, one, two)) == reasons.WRONG_SIGNERS


# --- disputes -------------------------------------------------------------------------------------


def test_a_dispute_freezes_one_contribution_until_it_lapses() -> None:
    state, outcome = after(*ROUND, WORLD.dispute(OTHER, WORK))
    assert outcome == Outcome("recorded")
    item = state.pending[WORK]
    # Granted for round 0: due with state 4, and held back until state 7.
    assert (item.due, item.disputed_by, item.lapses) == (4, OTHER.key, 7)
    assert state.accounts[OTHER.key].disputes == 1
    state, _ = after(*ROUND, WORLD.dispute(OTHER, WORK), *rounds(1, 3))
    assert [state.accounts[owner.key].vested for owner in WORLD.owners] == [0, CREDIT, CREDIT]
    state, _ = after(*ROUND, WORLD.dispute(OTHER, WORK), *rounds(1, 5))
    assert WORK in state.pending
    state, outcome = after(*ROUND, WORLD.dispute(OTHER, WORK), *rounds(1, 6))
    assert WORK in {credit.source for credit in outcome.vested}
    assert [state.accounts[owner.key].vested for owner in WORLD.owners] == [4 * CREDIT] * 3
    assert state.accounts[OTHER.key].disputes == 0


def test_an_accomplice_s_early_dispute_leaves_the_arbiters_no_less_time() -> None:
    early, late = WORLD.dispute(OTHER, WORK), WORLD.dispute(THIRD, WORK)
    first, _ = after(*ROUND, early, *rounds(1, 2), late)
    second, _ = after(*ROUND, *rounds(1, 2), late)
    assert first.pending[WORK].lapses == second.pending[WORK].lapses
    assert first.pending[WORK].disputed_by == OTHER.key


def test_what_cannot_be_disputed() -> None:
    dispute = WORLD.dispute(OTHER, WORK)
    assert reason(dispute) == reasons.NOT_PENDING
    assert reason(*ROUND[:-1], dispute) == reasons.NOT_PENDING
    assert reason(*ROUND, WORLD.dispute(OTHER, digest("nothing"))) == reasons.NOT_PENDING
    assert reason(*rounds(0, 3), dispute) == reasons.NOT_PENDING  # it has vested
    assert reason(*ROUND, WORLD.dispute(OWNER, WORK)) == reasons.OWN_WORK
    assert reason(*ROUND, dispute, dispute) == reasons.DUPLICATE
    assert reason(*ROUND, dispute, WORLD.dispute(THIRD, WORK)) == reasons.DUPLICATE
    dismissed = WORLD.ruling(WORK, "dismissed")
    assert reason(*ROUND, dismissed, dispute) == reasons.DUPLICATE
    assert reason(*ROUND, dispute, dismissed, dispute) == reasons.DUPLICATE
    assert reason(*ROUND, forged(dispute, THIRD)) == reasons.WRONG_SIGNERS
    assert reason(*ROUND, WORLD.dispute(THIEF, WORK)) == reasons.UNKNOWN_ACCOUNT


def test_an_account_without_credit_cannot_dispute() -> None:
    stranger = WORLD.dispute(THIEF, WORK)
    assert reason(*ROUND, registered(), stranger) == reasons.NO_CREDIT
    assert reason(*ROUND, WORLD.dispute(OTHER, WORK)) == "recorded"


def test_an_account_has_a_limited_number_of_disputes_open() -> None:
    many = World(ownership={"vesting_rounds": 20})
    history = rounds(0, MAX_OPEN_DISPUTES, many)
    work = [many.earned(many.members[0], number) for number in range(MAX_OPEN_DISPUTES + 1)]
    disputes = [many.dispute(many.owners[1], source) for source in work]
    assert reason(*history, *disputes[:-1], world=many) == "recorded"
    assert reason(*history, *disputes, world=many) == reasons.TOO_MANY
    ended = many.ruling(work[0], "dismissed")
    assert reason(*history, *disputes[:-1], ended, disputes[-1], world=many) == "recorded"


def test_disputes_that_nobody_ruled_on_end_with_the_second_closing() -> None:
    world = World(total=1)
    work = world.earned(world.members[0], 0)
    history = [*world.round(0), world.dispute(world.owners[1], work), world.run_closed(1)]
    state, outcome = after(*history, world=world)
    assert [len(outcome.vested), list(state.pending)] == [2, [work]]
    state, outcome = after(*history, world.ruling(work, "dismissed"), world=world)
    assert ([credit.source for credit in outcome.vested], state.pending) == ([work], {})
    state, outcome = after(*history, world.ruling(work, "soft"), world=world)
    assert ([credit.source for credit in outcome.invalidated], state.pending) == ([work], {})
    state, outcome = after(*history, world.run_closed(1, 2), world=world)
    assert ([credit.source for credit in outcome.vested], state.pending) == ([work], {})
    assert state.accounts[world.owners[1].key].disputes == 0


# --- rulings --------------------------------------------------------------------------------------


def test_a_dismissed_dispute_lets_credit_vest_when_it_is_due() -> None:
    dispute, dismissed = WORLD.dispute(OTHER, WORK), WORLD.ruling(WORK, "dismissed")
    state, outcome = after(*ROUND, dispute, dismissed)
    assert outcome == Outcome("recorded")
    assert (state.pending[WORK].disputed_by, state.accounts[OTHER.key].disputes) == ("", 0)
    state, outcome = after(*ROUND, dispute, dismissed, *rounds(1, 3))
    assert WORK in {credit.source for credit in outcome.vested}
    # Its time came while it was frozen: it vests with the ruling.
    state, outcome = after(*ROUND, dispute, *rounds(1, 4), dismissed)
    assert [credit.source for credit in outcome.vested] == [WORK]
    assert state.accounts[OWNER.key].vested == 2 * CREDIT


def test_a_soft_ruling_takes_one_contribution_away() -> None:
    state, outcome = after(*rounds(0, 1), WORLD.ruling(WORK, "soft"))
    assert [(credit.source, credit.amount) for credit in outcome.invalidated] == [(WORK, CREDIT)]
    account = state.accounts[OWNER.key]
    assert (account.pending, account.invalidated, account.granted) == (CREDIT, CREDIT, 2 * CREDIT)
    assert not account.barred
    state, _ = after(*rounds(0, 1), WORLD.ruling(WORK, "soft"), *rounds(2, 3))
    assert [state.accounts[owner.key].vested for owner in WORLD.owners] == [0, CREDIT, CREDIT]


def test_a_hard_ruling_takes_what_is_pending_and_what_vested_lately_and_bars_the_account() -> None:
    history = [*rounds(0, 3), WORLD.ruling(WORLD.earned(A, 3), "hard")]
    state, outcome = after(*history)
    assert {credit.source for credit in outcome.invalidated} == {
        WORLD.earned(A, number) for number in (1, 2, 3)
    }
    account = state.accounts[OWNER.key]
    assert (account.vested, account.pending, account.invalidated) == (0, 0, 4 * CREDIT)
    assert outcome.stakes == [(OWNER.key, CREDIT)]
    assert account.barred
    state, outcome = after(*history, *rounds(4, 4))
    assert {credit.account for credit in outcome.granted} == {OTHER.key, THIRD.key}
    assert state.node_tokens[A.peer_id] == 4 * TOKENS
    assert state.credit(OWNER.key) == 0
    assert reason(*history, WORLD.dispute(OWNER, WORLD.earned(B, 3))) == reasons.BARRED


def test_a_barred_account_earns_nothing_for_work_that_is_under_way() -> None:
    *middle, agreed = WORLD.round(1)
    state, _ = after(*ROUND, *middle, WORLD.ruling(WORK, "hard"))
    assert state.awaiting() == {OTHER.key: CREDIT, THIRD.key: CREDIT}
    state, outcome = after(*ROUND, *middle, WORLD.ruling(WORK, "hard"), agreed)
    assert {credit.account for credit in outcome.granted} == {OTHER.key, THIRD.key}
    assert state.credit(OWNER.key) == 0


def test_nobody_rules_on_what_has_vested_or_twice() -> None:
    soft = WORLD.ruling(WORK, "soft")
    assert reason(soft) == reasons.NOT_PENDING
    assert reason(*rounds(0, 3), soft) == reasons.NOT_PENDING
    assert reason(*ROUND, soft, soft) == reasons.NOT_PENDING
    dismissed = WORLD.ruling(WORK, "dismissed")
    assert reason(*ROUND, dismissed, dismissed) == reasons.DUPLICATE
    assert reason(*ROUND, dismissed, soft) == "recorded"  # new evidence may come


def test_rulings_need_the_manifest_s_arbiters_by_default_the_organiser() -> None:
    ruling = WORLD.ruling(WORK, "soft")
    assert reason(*ROUND, ruling) == "recorded"
    for signers in ([WORLD.coordinator], [OTHER], [WORLD.organiser, OTHER]):
        assert reason(*ROUND, forged(ruling, *signers)) == reasons.WRONG_SIGNERS
    arbiters = [key(f"arbiter {number}") for number in range(3)]
    world = World(ownership={"arbiters": [a.key for a in arbiters], "arbiter_quorum": 2})
    work = world.earned(world.members[0], 0)

    def ruled(*signers: int) -> str:
        envelope = world.ruling(work, "soft", *(arbiters[number] for number in signers))
        return reason(*world.round(0), envelope, world=world)

    assert [ruled(0), ruled(2)] == [reasons.NO_QUORUM] * 2
    assert [ruled(0, 1), ruled(1, 2), ruled(0, 1, 2)] == ["recorded"] * 3
    by_organiser = world.ruling(work, "soft", world.organiser)
    assert reason(*world.round(0), by_organiser, world=world) == reasons.WRONG_SIGNERS
