"""Audits in the fold: who is asked to repeat what, and how false work and false verdicts end."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

import pytest

from artel.ledger import entries
from artel.ledger.entries import audits, reasons
from artel.ledger.entries.records import Audit
from artel.ledger.fold.claims import Claim, stands
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read
from artel.ledger.fold.shares import apply
from artel.ledger.fold.work_audits import audits_of, conviction
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from artel.protocol.round_state import NO_NUMBERS
from audit_world import NUMBER, Run, Says, honest
from ledger_world import CREDIT, INNER_STEPS, digest, forged, key
from log_world import Log

# --- what is repeated -----------------------------------------------------------------------------


def test_each_of_the_first_rounds_of_a_node_is_repeated_at_once_by_another_account() -> None:
    run = Run()
    for round in range(3):
        run.judge(honest())
        run.feed(*run.world.round(round))
        found = run.state.audits.values()
        assert {audit.node for audit in found} >= {m.peer_id for m in run.world.members}
        assert all((a.why, a.first) == ("newcomer", a.last) for a in found)
        assert all(len(a.draws) <= 1 for a in found)
        asked = [draw.node for audit in found for draw in audit.draws]
        assert len(set(asked)) == len(asked) >= 4  # nobody repeats two things at a time
        for audit in found:
            assert audit.account not in [draw.account for draw in audit.draws]
            assert (audit.steps, audit.tokens) == (INNER_STEPS, CREDIT // 100)
    run.play(4, honest()).checked()
    assert not run.state.audits


@pytest.mark.parametrize("round", [2, 3])
def test_a_new_node_goes_on_with_no_span(round: int) -> None:
    run = Run(span=10)
    run.play(round, honest())
    world = run.world
    old = world.contribution(world.members[0], round, span=round - 1, tail=0)
    run.feed(*world.round(round)[:2])
    assert run.feed(old).reason == "wrong_span"
    assert run.feed(world.contribution(world.members[0], round)).status == "recorded"
    run.checked()


def test_what_is_repeated_begins_where_the_node_began() -> None:
    """Otherwise an auditor would come to other numbers than an honest node, and convict it."""
    run = Run(span=10, audit_rate=0.5)
    drawn = Counter[tuple[str, str, int]]()
    for _ in range(45):
        run.judge(honest())
        known = set(run.state.audits)
        run.feed(*run.world.round(run.state.round))
        shown = {entry.id: entry.body for entry in run.log if entry.kind == "contribution"}
        for source in run.state.audits.keys() - known:
            made, audit = shown[source], run.state.audits[source]
            assert isinstance(made, entries.Contribution)
            assert (audit.first, audit.last) == (made.span, made.round)
            drawn[made.node, audit.why, made.span] += 1
    assert sum(why == "prefix" for _, why, _ in drawn) > 5
    assert max(drawn.values()) == 1, "a span is over once"
    run.checked()


def test_who_sends_zeros_is_no_better_known_for_them() -> None:
    run = Run()
    world, (idle, *_) = run.world, run.world.members
    for round in range(3):
        empty = world.contribution(idle, round, payload=NO_NUMBERS)
        closed = world.closed(round, shown={idle.peer_id: empty})
        _, _, _, *others, _ = world.until_closed(round)
        run.feed(world.opened(round), world.committed(round), empty, *others, closed)
        assert run.feed(world.agreed(round + 1)).status == "credited"
        run.judge(honest())
    assert idle.peer_id not in run.state.cleared
    work = world.contribution(idle, 3, span=3, tail=0)
    _, _, _, *others, _ = world.until_closed(3)
    closed = world.closed(3, shown={idle.peer_id: work})
    run.feed(world.opened(3), world.committed(3), work, *others, closed, world.agreed(4))
    assert run.one(0)[1].why == "newcomer"
    run.checked()


def test_without_spans_or_without_a_rate_nothing_is_repeated() -> None:
    for run in (Run(span=0), Run(audit_rate=0.0)):
        run.play(12, honest())
        assert not run.state.audits
        assert run.state.accounts[run.world.owners[0].key].vested == 10 * CREDIT
        run.checked()


def test_of_one_account_alone_nothing_is_repeated() -> None:
    run = Run(nodes=1)
    run.play(5, honest()).checked()
    assert not run.state.audits
    assert run.state.total_vested == 3 * CREDIT


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


def test_what_is_repeated_of_known_nodes_is_bounded_in_each_round() -> None:
    run = Run(nodes=9, audit_rate=1.0, newcomer_rounds=0, founders=100)
    why = set[str]()
    for _ in range(25):
        begun = {source for source, audit in run.state.audits.items() if audit.draws}
        run.judge(honest())
        run.feed(*run.world.round(run.state.round))
        now = {source for source, audit in run.state.audits.items() if audit.draws}
        assert len(now - begun) <= 3
        why |= {audit.why for audit in run.state.audits.values()}
    assert "prefix" in why
    run.checked()


def test_who_has_standing_audits_once_the_run_rests_on_such() -> None:
    run = Run(nodes=4, founders=2, standing_rounds=1000)
    for round in range(10):
        run.judge(honest())
        few = run.world.members[: 4 if round > 7 else 3]
        run.feed(
            run.world.opened(round, members=[m.peer_id for m in few]),
            run.world.committed(round, members=few),
            *(_contributed(run, member, round) for member in few),
        )
        shown = {m.peer_id: _contributed(run, m, round) for m in few}
        run.feed(
            run.world.closed(round, accepted=few, shown=shown), run.world.agreed(round + 1, few)
        )
    new = {m.peer_id for m in run.world.members[3:]}
    assert run.state.rests_on == "members"
    drawn = {d.node for audit in run.state.audits.values() for d in audit.draws}
    assert drawn
    assert not drawn & new
    assert {audit.node for audit in run.state.audits.values()} & new
    run.checked()


def _contributed(run: Run, member: Identity, round: int) -> Envelope:
    before = run.state.spans.get(member.peer_id)
    span = run.world.work.goes_on(round, before)
    return run.world.contribution(member, round, span=round if span is None else span, tail=0)


# --- verdicts -------------------------------------------------------------------------------------


def test_a_verdict_counts_once_from_who_was_drawn_after_it_was_committed() -> None:
    run = Run().play(1, honest())
    world = run.world
    source, audit = run.one(0)
    (draw,) = audit.draws
    auditor = world.members[NUMBER[draw.node]]
    other = min({1, 2} - {NUMBER[draw.node]})
    committed, shown = world.verdicts(auditor, source)

    def tried(*envelopes: Envelope) -> str:
        state = run.state.copy()
        found = [apply(state, entries.decode(e.encode())) for e in envelopes]
        return found[-1].reason

    stranger = world.verdicts(world.members[other], source)
    assert tried(stranger[0]) == tried(stranger[1]) == reasons.NOT_DRAWN
    assert tried(*world.verdicts(auditor, digest("nothing"))[:1]) == reasons.NOT_DRAWN
    assert tried(forged(committed, world.owners[0])) == reasons.WRONG_SIGNERS
    assert tried(committed, forged(shown, world.owners[0])) == reasons.WRONG_SIGNERS
    assert tried(shown) == reasons.NOT_COMMITTED
    assert tried(committed, committed) == reasons.DUPLICATE
    assert tried(committed, world.verdict(auditor, source, "reject")) == "commitment_mismatch"
    # Where steps differ is known once it has committed to all else.
    assert tried(committed, world.verdict(auditor, source, differs=(0, 3))) == ""
    assert tried(committed, world.verdict(auditor, source, rows="ab" * 32)) == "commitment_mismatch"
    rejected = world.verdicts(auditor, source, "reject")
    assert tried(*rejected, rejected[1]) == reasons.DUPLICATE
    outcome = run.feed(committed, shown)
    (credit,) = outcome.granted
    assert (credit.kind, credit.account, credit.units) == ("audit", draw.account, audit.tokens)
    assert source not in run.state.audits
    assert run.feed(shown).reason == reasons.NOT_DRAWN
    run.checked()


def test_who_owes_an_audit_may_be_assigned_less_and_nobody_else() -> None:
    run = Run().play(1, honest())
    owing = [m.peer_id for m in run.world.members if run.state.owed_by(m.peer_id)]
    (free,) = {m.peer_id for m in run.world.members} - set(owing) or {""}
    full = dict.fromkeys((m.peer_id for m in run.world.members), INNER_STEPS)

    def opened(**changes: int) -> str:
        state = run.state.copy()
        return apply(
            state, entries.decode(run.world.opened(1, steps=full | changes).encode())
        ).reason

    assert opened(**{owing[0]: INNER_STEPS // 4}) == ""
    assert opened(**{owing[0]: INNER_STEPS + 1}) == reasons.WRONG_STEPS
    if free:
        assert opened(**{free: INNER_STEPS - 1}) == reasons.WRONG_STEPS
    run.judge(honest())
    assert opened(**{owing[0]: INNER_STEPS // 4}) == ""  # it may have been told so already
    run.checked()


def test_a_newcomer_that_cheats_is_convicted_within_three_rounds_and_earns_nothing() -> None:
    run = Run().play(4, honest(liars=[2]))
    assert run.barred() == [2]
    owner = run.state.accounts[run.world.owners[2].key]
    assert (owner.vested, owner.pending) == (0, 0)
    convicted = next(n for n, o in enumerate(run.outcomes) if o.notes.get("result") == "convicted")
    before = [e.body for e in run.log[:convicted] if e.kind == "state_agreed"]
    assert len(before) <= 3
    run.play(8, honest()).checked()
    assert run.barred() == [2]
    assert all(o.vested for n, o in enumerate(map(run.account, range(5))) if n != 2)
    assert run.state.accounts[run.world.owners[2].key].vested == 0


def test_a_known_node_that_begins_to_cheat_is_convicted_in_the_end() -> None:
    run = Run(nodes=4, span=10, audit_rate=0.3, total=60)
    run.play(45, honest(liars=[1], since=12))
    assert run.barred() == [1]
    run.checked()


def test_a_false_accuser_is_not_paid_and_not_drawn_again() -> None:
    run = Run(standing_rounds=40).play(1, honest())
    accuser = NUMBER[run.one(0)[1].draws[0].node]

    def says(auditor: int, audit: Audit) -> str:
        return "reject" if auditor == accuser else "accept"

    run.play(5, says)
    run.judge(says)
    assert run.barred() == []
    peer = run.world.members[accuser].peer_id
    assert run.state.struck[run.world.owners[accuser].key] > 40
    assert run.state.accounts[run.world.owners[accuser].key].units.get("audit", 0) > 0
    pays = [item for item in run.state.pending.values() if item.credit.kind == "audit"]
    assert peer not in {item.credit.node for item in pays}
    assert sum(
        c.amount
        for o in run.outcomes
        for c in o.invalidated
        if c.node == peer and c.kind == "audit"
    )
    run.play(6, says).checked()
    assert run.state.accounts[run.world.owners[0].key].vested
    vested = [c for o in run.outcomes for c in o.vested if (c.kind, c.node) == ("audit", peer)]
    assert not vested


def test_of_two_accounts_a_reject_decides_nothing() -> None:
    """Nobody is there who could be a third."""
    run = Run(nodes=2).play(40, honest(liars=[1]))
    assert run.barred() == []
    assert not [audit for audit in run.state.audits.values() if audit.first < 3]
    assert run.account(0).vested
    assert not run.account(1).vested
    assert run.account(1).pending
    run.checked()


def test_of_three_accounts_two_rejects_convict() -> None:
    run = Run(nodes=3).play(6, honest(liars=[1]))
    assert run.barred() == [1]
    run.checked()


def test_auditors_of_a_panel_show_only_when_all_have_committed() -> None:
    run = Run().play(1, honest())
    source, audit = run.one(0)
    run.judge(lambda _, found: "reject" if found == audit else "accept")
    run.feed(*run.world.round(1))
    _, one, two = run.state.audits[source].draws
    (c1, s1), (c2, s2) = (
        run.world.verdicts(run.world.members[NUMBER[draw.node]], source, "reject")
        for draw in (one, two)
    )
    assert run.feed(c1, s1).reason == reasons.TOO_EARLY
    assert run.feed(c2, s1).notes["result"] == ""
    assert run.feed(s2).notes["result"] == "convicted"
    assert run.barred() == [0]
    run.checked()


def test_who_does_not_answer_is_replaced_and_nobody_is_paid_for_that_or_known_by_it() -> None:
    run = Run().play(4, lambda *_: "")
    sources = [source for source, audit in run.state.audits.items() if audit.draws]
    run.play(4, lambda *_: "")
    again = [run.state.audits[source] for source in sources if source in run.state.audits]
    assert any([d.verdict for d in audit.draws][:1] == ["lapsed"] for audit in again)
    run.play(30, lambda *_: "")
    assert not [audit for audit in run.state.audits.values() if audit.last < 5]
    assert not [c for o in run.outcomes for c in o.granted if c.kind == "audit"]
    assert not run.state.cleared
    assert not run.state.total_vested
    run.play(26, lambda *_: "")
    run.feed(run.world.run_closed(60))
    assert all(run.account(number).vested for number in range(5))
    run.checked()


def test_two_who_can_tell_are_asked_for_one_who_cannot_and_nobody_is_paid_where_three_cannot() -> (
    None
):
    run = Run().play(1, honest())
    source, audit = run.one(0)
    run.judge(lambda _, found: "inconclusive" if found == audit else "accept")
    run.feed(*run.world.round(1))
    assert len(run.state.audits[source].draws) == 3
    run.judge(lambda _, found: "inconclusive" if found.last == 0 else "accept")
    assert source not in run.state.audits
    assert source not in run.state.pending
    results = [outcome.notes.get("result") for outcome in run.outcomes]
    history = read(Log([entry.envelope for entry in run.log]))
    told = "\n".join(explain(history, results.index("unchecked")).lines())
    assert "could not tell" in told
    credits = [c for o in run.outcomes for c in o.granted if c.source.startswith(f"audit/{source}")]
    assert not credits
    assert run.barred() == []
    run.checked()


def test_a_pair_that_covers_for_each_other_is_found_by_the_others() -> None:
    """What one of the pair is asked to repeat of the other it accepts; chance asks others too."""

    def says(auditor: int, audit: Audit) -> str:
        if auditor in (1, 3):
            return "accept"
        return "reject" if NUMBER[audit.node] == 3 else "accept"

    run = Run(nodes=6).play(8, says)
    assert run.barred() == [3]
    # It keeps what the other one had accepted first, and what it got for an audit meanwhile.
    assert run.state.accounts[run.world.owners[3].key].vested <= 2 * CREDIT
    run.checked()


def test_who_accepts_blindly_is_not_paid_for_what_most_others_reject() -> None:
    run = Run().play(1, honest())
    source, audit = run.one(0)
    run.judge(lambda _, found: "reject" if found == audit else "accept")
    run.feed(*run.world.round(1))
    lazy = run.state.audits[source].draws[1].node
    run.judge(lambda n, found: "reject" if found.last == 0 and n != NUMBER[lazy] else "accept")
    assert run.barred() == []  # two of four
    run.feed(*run.world.round(2))
    assert [draw.verdict for draw in run.state.audits[source].draws].count("") == 1
    run.judge(lambda n, found: "reject" if found.node == audit.node else "accept")
    assert run.barred() == [0]
    lost = {credit.source for outcome in run.outcomes for credit in outcome.invalidated}
    assert audits.audit_source(source, lazy) in lost
    assert run.state.account_of(lazy) in run.state.struck
    run.checked()


# --- classes of machines --------------------------------------------------------------------------


def telling(run: Run, friends: Iterable[int] = ()) -> Says:
    """Of another class than the auditor's nobody can tell; ``friends`` accept each other's work,
    which is false, of their own class or not."""
    friends, kinds = set(friends), run.world.classes

    def says(auditor: int, audit: Audit) -> str:
        if NUMBER[audit.node] in friends and auditor in friends:
            return "accept"
        alike = kinds.get(run.world.members[auditor].peer_id) == kinds.get(audit.node)
        if not alike:
            return "inconclusive"
        return "reject" if NUMBER[audit.node] in friends else "accept"

    return says


def named(run: Run, kind: str, *numbers: int) -> Run:
    run.world.classes.update((run.world.members[n].peer_id, kind) for n in numbers)
    return run


def paid(run: Run, number: int, since: int = 0) -> int:
    """What a member's work from a round on vested."""
    peer = run.world.members[number].peer_id
    vested = (credit for outcome in run.outcomes for credit in outcome.vested)
    return sum(
        c.amount for c in vested if (c.kind, c.node) == ("compute", peer) and c.round >= since
    )


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


# --- the end of a run -----------------------------------------------------------------------------


@pytest.mark.parametrize("false", [9, 10, 14])
def test_who_cheats_at_the_end_of_a_run_is_found_after_it(false: int) -> None:
    """In all of its last span, or in all but the first round of it."""
    run = Run(nodes=8, total=40)
    says = honest(liars=[1], since=40 - false)
    run.play(40, says)
    for _ in range(4):
        run.judge(says)
    run.feed(run.world.run_closed(40))
    assert run.barred() == [1]
    assert run.account(1).vested == 0
    run.checked()


@pytest.mark.parametrize("answer", ["reject", "accept", ""])
def test_at_the_end_what_was_rejected_waits_for_the_others(answer: str) -> None:
    run = Run(total=3).play(3, honest())
    world = run.world
    source, audit = next((s, a) for s, a in run.state.audits.items() if a.draws)
    run.judge(lambda _, found: "reject" if found == audit else "accept")
    run.judge(lambda _, found: "" if found.node == audit.node else "accept")
    draws = run.state.audits[source].draws
    assert len(draws) == 3  # no later round has a lot
    run.feed(world.run_closed(3))
    assert list(run.state.audits) == [source]
    held = [item.credit.account for item in run.state.pending.values()]
    assert set(held) == {audit.account, draws[0].account}
    for draw in draws[1:]:
        member = world.members[NUMBER[draw.node]]
        if answer:
            run.feed(world.verdict_committed(member, world.verdict(member, source, answer)))
    for draw in draws[1:]:
        if answer:
            run.feed(world.verdict(world.members[NUMBER[draw.node]], source, answer))
    assert run.barred() == ([NUMBER[audit.node]] if answer == "reject" else [])
    run.feed(world.run_closed(3, 2))
    assert not run.state.pending
    assert not run.state.audits
    run.checked()


# --- in words -------------------------------------------------------------------------------------


def test_an_explanation_says_by_whom_and_what_came_of_it() -> None:
    run = Run().play(4, honest(liars=[2]))
    history = read(Log([entry.envelope for entry in run.log]))
    convicted = next(n for n, o in enumerate(run.outcomes) if o.notes.get("result") == "convicted")
    text = "\n".join(explain(history, convicted).lines())
    assert "x86-64" in text
    assert "differs from what it came to by 70 % in round 0" in text
    assert "invalidated" in text
    bad = run.world.members[2]
    work = history.log.index_of(run.world.earned(bad, 0))
    told = "\n".join(explain(history, work).lines())
    assert told.count("reject") >= 2
    for number in (2, NUMBER[run.log[convicted].body.node]):
        listed = audits_of(history, run.world.owners[number].key, 50)
        rejects = [one for one in listed if one.node == bad.peer_id and one.verdict == "reject"]
        assert {one.error for one in rejects} == {0.7}
        assert "convicted" in {one.result for one in listed}
    owner = run.world.owners[2].key
    assert f"entry {convicted} convicted this account: 3 nodes" in conviction(history, owner)
    assert not conviction(history, run.world.owners[0].key)
    drawn = next(n for n, o in enumerate(run.outcomes) if "drawn" in o.notes)
    assert "by lot" in "\n".join(explain(history, drawn).lines())


def test_work_that_was_under_way_at_a_conviction_is_said_to_be_barred() -> None:
    run = Run().play(2, honest(liars=[2]))
    last, bad = run.state.round, run.world.members[2]
    assert not run.barred()
    run.feed(*run.world.until_closed(last))
    run.judge(honest(liars=[2]))
    run.feed(run.world.agreed(last + 1))
    assert run.barred() == [2]
    history = read(Log([entry.envelope for entry in run.log]))
    claim = Claim(last, 0, run.world.earned(bad, last), "", 512, 0)
    (stand,) = stands([claim], bad.peer_id, run.state, history.work_of(run.world.owners[2].key))
    assert (stand.status, stand.reason) == ("rejected", "barred")


def test_what_an_audit_holds_back_is_not_said_to_vest_with_a_state_that_was_agreed() -> None:
    run = Run().play(4, lambda auditor, audit: None)
    history = read(Log([entry.envelope for entry in run.log]))
    work = history.log.index_of(run.world.earned(run.world.members[0], 0))
    trail = history.earned_by(work)
    assert trail is not None
    assert (trail.status, trail.due) == ("pending", 3)
    told = "\n".join(explain(history, work).lines())
    assert "held back" in told
    assert "vests when state 3" not in told
