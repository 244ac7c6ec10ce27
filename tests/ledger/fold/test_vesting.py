"""What of audited work is paid: when it vests, on which machines, and what a conviction takes."""

from __future__ import annotations

from collections import Counter

import pytest

from artel.ledger import entries
from artel.ledger.entries import audits
from artel.ledger.entries.records import Audit
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read
from audit_world import NUMBER, Run, Says, honest, named, paid, telling
from ledger_world import CREDIT, key
from log_world import Log


def test_work_vests_when_two_other_accounts_have_found_later_work_of_its_node_right() -> None:
    run = Run(audit_rate=0.5)
    right: dict[str, list[tuple[int, str]]] = {}
    for _ in range(45):
        before = dict(run.state.audits)
        made = len(run.outcomes)
        run.play(1, honest())
        for source, audit in before.items():
            if source not in run.state.audits:
                accounts = {draw.account for draw in audit.draws} or {""}
                right.setdefault(audit.node, []).extend((audit.last, name) for name in accounts)
        for credit in (c for outcome in run.outcomes[made:] for c in outcome.vested):
            if credit.kind == "compute":
                found = right[credit.node]
                later = {name for last, name in found if last >= credit.round}
                assert len(later) >= 2 or any(last == credit.round for last, _ in found)
    assert all(paid(run, number, since=20) for number in range(5))
    run.checked()


def until_barred(run: Run, says: Says) -> None:
    """Until member 1 is convicted, and nobody else."""
    for _ in range(80):
        run.play(1, says)
        if run.barred():
            break
    assert run.barred() == [1]


def test_who_cheats_all_the_time_is_paid_for_none_of_it_when_one_accomplice_covers_for_it() -> None:
    """What the accomplice is asked to repeat itself is the exception."""

    def says(auditor: int, audit: Audit) -> str:
        false = NUMBER[audit.node] == 1 and audit.last >= 30
        return "reject" if false and auditor != 2 else "accept"

    run = Run(nodes=6, audit_rate=0.1, total=200)
    run.play(30, says)
    known = paid(run, 1)
    until_barred(run, says)
    assert known
    assert paid(run, 1, since=30) <= CREDIT
    run.checked()


def test_a_conviction_takes_what_vested_lately() -> None:
    """Who cheats only where audits look late has worked for longer than what is pending."""
    run = Run(nodes=4, span=10, audit_rate=0.3, total=200, standing_rounds=1000)
    run.play(45, honest(liars=[1], since=42))
    vested = run.account(1).vested
    assert vested
    until_barred(run, honest(liars=[1], since=42))
    assert run.account(1).vested == 0
    assert run.account(1).invalidated >= vested
    (stakes,) = [outcome.stakes for outcome in run.outcomes if outcome.stakes]
    assert [name for name, _ in stakes] == [run.world.owners[1].key]
    history = read(Log([entry.envelope for entry in run.log]))
    index = [bool(outcome.stakes) for outcome in run.outcomes].index(True)
    told = "\n".join(explain(history, index).lines())
    assert "taken away of what had vested" in told
    run.checked()


def test_a_conviction_leaves_what_vested_long_ago() -> None:
    run = Run(nodes=4, span=10, audit_rate=0.3, total=200, standing_rounds=16)
    run.play(60, honest(liars=[1], since=55))
    vested = run.account(1).vested
    until_barred(run, honest(liars=[1], since=55))
    assert 0 < run.account(1).vested < vested
    run.checked()


def test_a_dismissed_dispute_makes_nothing_vest_that_nobody_has_repeated() -> None:
    run = Run(nodes=4, total=90).play(14, honest())
    world = run.world
    source = next(
        source
        for source, item in run.state.pending.items()
        if item.credit.kind == "compute" and item.credit.round == 11
    )
    accuser = next(o for o in world.owners if o.key != run.state.pending[source].credit.account)
    run.feed(world.dispute(accuser, source))
    run.play(8, honest())
    item = run.state.pending[source]
    assert run.state.round >= item.due
    assert run.feed(world.ruling(source, "dismissed")).vested == ()
    run.play(60, honest())
    assert source not in run.state.pending
    run.checked()


# --- classes of machines --------------------------------------------------------------------------


def test_of_a_class_that_nobody_has_nothing_is_paid_however_long() -> None:
    run = named(Run(nodes=6), "toaster", 0)
    run.play(40, telling(run, friends=[0])).checked()
    assert run.barred() == []
    assert paid(run, 0) == run.account(0).vested == 0
    assert run.account(0).invalidated
    assert all(paid(run, n) for n in range(1, 6))
    assert audits.new(run.state, run.world.members[0].peer_id)


def test_a_known_node_that_names_a_class_that_nobody_has_is_new_again_and_unpaid() -> None:
    run = Run(nodes=6, audit_rate=0.2)
    run.play(20, telling(run))
    peer = run.world.members[0].peer_id
    assert not audits.new(run.state, peer)
    assert run.state.spans == {}  # a span is over
    named(run, "toaster", 0).play(40, telling(run, friends=[0])).checked()
    assert audits.new(run.state, peer)
    assert paid(run, 0)
    assert paid(run, 0, since=20) == 0
    assert paid(run, 1, since=20)


def test_a_span_is_made_on_one_class() -> None:
    """Who may change it within one says that its first round was honest, and hides the others."""
    run = Run(span=10).play(14, honest())
    member, world = run.world.members[0], run.world
    run.feed(*world.round(14)[:2])
    assert world.began[member.peer_id, 14] < 14
    other = world.contribution(member, 14, hardware="toaster")
    assert run.feed(other).reason == "wrong_span"
    assert run.feed(world.contribution(member, 14)).status == "recorded"
    run.checked()


def test_a_common_class_is_judged_by_its_own() -> None:
    run = named(Run(nodes=8), "other", 0, 1, 2, 3)
    run.play(24, telling(run)).checked()
    results = Counter(o.notes["result"] for o in run.outcomes if o.notes.get("result"))
    assert not {"unchecked", "undecided", "convicted"} & results.keys()
    assert not any(audits.new(run.state, m.peer_id) for m in run.world.members)
    assert all(paid(run, n) for n in range(8))


def test_a_pair_that_names_a_class_of_its_own_is_not_drawn_for_each_other_for_that() -> None:
    run = named(Run(nodes=12, total=130), "private", 0, 1)
    run.play(120, telling(run, friends=[0, 1])).checked()
    honest_one = min(paid(run, n) for n in range(2, 12))
    assert max(paid(run, 0), paid(run, 1)) < honest_one / 4


@pytest.mark.parametrize("last", [4, 9])
def test_who_names_a_class_that_nobody_has_for_false_work_alone_is_paid_for_none_of_it(
    last: int,
) -> None:
    """In between it works as itself, and that is found right."""
    run = Run(nodes=8, audit_rate=0.3, total=200)
    peer, false = run.world.members[1].peer_id, set[int]()

    def says(_: int, audit: Audit) -> str:
        return "inconclusive" if audit.node == peer and audit.hardware == "toaster" else "accept"

    for round in range(90):
        run.judge(says)
        known = not audits.new(run.state, peer)
        lies = round >= 30 and known and round % 10 >= 10 - last
        if lies != (peer in run.world.classes):
            run.world.began[peer, round] = round
            if lies:
                named(run, "toaster", 1)
            else:
                del run.world.classes[peer]
        if lies:
            false.add(round)
        run.feed(*run.world.round(round))
    paid_for = {c.round for o in run.outcomes for c in o.vested if c.node == peer}
    assert false
    assert not false & paid_for
    assert paid(run, 1)
    run.checked()


# --- accounts -------------------------------------------------------------------------------------


def test_a_node_that_moves_to_another_account_is_new_and_what_was_not_found_right_is_lost() -> None:
    run = Run(total=90).play(25, honest())
    world, member = run.world, run.world.members[1]
    taker = key("another account")
    vested, pending = run.account(1).vested, run.account(1).pending
    assert vested
    assert pending
    run.feed(entries.account(taker, world.run))
    moved = run.feed(entries.node(member, taker, world.run, seq=2))
    assert moved.invalidated
    assert {(c.kind, c.node) for c in moved.invalidated} == {("compute", member.peer_id)}
    assert run.account(1).vested == vested
    assert run.account(1).pending < pending
    assert audits.new(run.state, member.peer_id)
    assert member.peer_id not in run.state.spans
    told = explain(read(Log([entry.envelope for entry in run.log])), len(run.log) - 1)
    assert "had not been found right is taken away" in "\n".join(told.lines())
    run.checked()


def test_who_moves_in_the_middle_of_a_round_does_not_go_on_with_its_span() -> None:
    run = Run(total=90).play(23, honest())
    world, member = run.world, run.world.members[1]
    taker = key("another account")
    *before, agreed = world.round(23)
    run.feed(*before)
    run.feed(entries.account(taker, world.run), entries.node(member, taker, world.run, seq=2))
    run.feed(agreed)
    assert member.peer_id not in run.state.spans
    run.checked()


def test_who_gives_up_its_standing_before_it_is_convicted_keeps_nothing() -> None:
    run = Run(nodes=8, audit_rate=0.3, total=200, standing_rounds=1000)
    says = honest(liars=[1], since=62)
    run.play(60, says)
    assert run.account(1).vested
    while not any(
        draw.verdict == "reject" for audit in run.state.audits.values() for draw in audit.draws
    ):
        run.play(1, says)
        assert run.state.round < 140
    world, number = run.world, run.state.round
    charge = world.state_wrong(world.members[1], number)
    for name in run.feed(charge).notes["jury"]:
        juror = world.members[[owner.key for owner in world.owners].index(name)]
        if run.feed(world.jury_answer(juror, charge, run.state.states[number])).left_out:
            break
    assert world.owners[1].key not in run.state.standings()
    until_barred(run, says)
    assert run.account(1).vested == 0
    run.checked()
