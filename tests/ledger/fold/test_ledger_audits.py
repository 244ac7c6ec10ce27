"""Audits in the fold: who is asked to repeat what, and how false work and false verdicts end."""

from __future__ import annotations

from collections import Counter

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
from audit_world import NUMBER, Run, honest
from ledger_world import CREDIT, INNER_STEPS, digest, forged
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
        everybodys = audits_of(history, None, 500)
        assert all(one in everybodys for one in listed)
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


@pytest.mark.parametrize("nodes", [6, 9])
def test_what_somebody_rejected_is_decided_before_others_who_are_silent_are_replaced(
    nodes: int,
) -> None:
    """Else each newcomer whose auditor does not answer would be asked about before it, and whoever
    is known to have sent noise would go on with it for tens of rounds."""
    run = Run(nodes=nodes)

    def says(_: int, audit: Audit) -> str:
        return "reject" if NUMBER[audit.node] == 2 else ""

    run.play(8, says).checked()
    assert run.barred() == [2]
