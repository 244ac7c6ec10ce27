"""Explanations: the arithmetic of each entry, with the entries that its numbers come from."""

from __future__ import annotations

import json
from collections.abc import Sequence

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.fold.explain import Explanation, explain
from artel.ledger.fold.history import read
from artel.protocol.dsse import Envelope
from artel.protocol.errors import UsageError
from ledger_world import World, key
from log_world import Log

GIVER = key("giver")
WORLD = World(
    total=3,
    ownership={"vesting_rounds": 1, "transfers": True},
    ledger={"witnesses": 2},
    contributed=[(GIVER.key, 6000)],
)
A, B, C = WORLD.members
OWNER, OTHER, THIRD = WORLD.owners
WORK = WORLD.earned(A, 0)


def of(envelopes: Sequence[Envelope], index: int) -> Explanation:
    """Entry ``index`` of the start and these; checks what holds for every explanation."""
    log = Log([*WORLD.start, *envelopes])
    explanation = explain(read(log), index)
    assert json.loads(json.dumps(explanation.to_dict()))["index"] == index
    lines = explanation.lines()
    assert lines[0].startswith(f"entry {index}, {explanation.did.kind}: ")
    for fact in explanation.facts:
        assert all(0 <= number < log.size for number in fact.entries)
        assert all(f"entry {number}" in fact.text for number in fact.entries)
    for credit in explanation.to_dict()["credits"]:
        assert credit["amount"] == credit["units"] * credit["rate"]
    return explanation


def told(explanation: Explanation, *sentences: str) -> None:
    """Each of these is part of some line."""
    for sentence in sentences:
        assert any(sentence in line for line in explanation.lines()), sentence


START = len(WORLD.start)
ROUND = WORLD.round(0)
OPENED, COMMITTED, SHOWN = START, START + 1, START + 2
CLOSED, AGREED = START + 5, START + 6
ASSIGNED = (
    "assigned: 4 inner steps × 2 sequences × 16 tokens = 128 tokens "
    "(rounds.inner_steps × optimizer.batch_size × data.seq_len)"
)


def test_a_contribution_from_the_assignment_to_the_vesting() -> None:
    told(
        of(ROUND, SHOWN),
        f"node …{A.peer_id[-8:]} is assigned 4 inner steps (entry {OPENED})",
        "made: 4 steps of this round (1 to 4 are allowed) × 2 sequences × 16 tokens = 128 tokens",
        f"round 0 was opened by entry {OPENED}",
        f"committed to exactly this by entry {COMMITTED}",
        f"accepted by entry {CLOSED}, agreed by entry {AGREED} with 3 of 3 contributors",
        f"128 tokens × 100 (ownership.rates.compute) = 12,800 credit to account {OWNER.key[:12]}",
        f"belonged to it, entry 4, when the round was opened, entry {OPENED}",
        f"pending since entry {AGREED}, vests when state 2 is agreed (1 round, "
        "ownership.vesting_rounds)",
    )
    told(of([*ROUND, *WORLD.round(1)], SHOWN), f"vested by entry {AGREED + 7}")
    soft = [*ROUND, WORLD.dispute(OTHER, WORK), WORLD.ruling(WORK, "soft")]
    told(
        of(soft, SHOWN),
        f"disputed (entry {AGREED + 1})",
        f"pending since entry {AGREED}, taken away by entry {AGREED + 2} (ruling: soft)",
    )


def test_the_account_is_that_of_the_time_when_the_round_was_opened() -> None:
    moved = entries.node(A, OTHER, WORLD.run, seq=2)
    first, *rest = ROUND
    explanation = of([first, moved, *rest], SHOWN + 1)
    told(explanation, f"credit to account {OWNER.key[:12]}", "belonged to it, entry 4,")
    told(of([moved, *ROUND], SHOWN + 1), f"to account {OTHER.key[:12]}", f"entry {START}, when")


def test_a_contribution_that_came_to_nothing() -> None:
    shown, left = WORLD.contribution(A, 0), {B.peer_id: reasons.MALFORMED}
    history = [*ROUND[:2], shown, WORLD.contribution(B, 0)]
    told(of(history, SHOWN), "the round is still under way")
    history.append(WORLD.closed(0, accepted=[A], rejected=left))
    told(of(history, SHOWN), f"closed by entry {SHOWN + 2}; nobody has agreed on a state yet")
    told(
        of([*history, WORLD.agreed(1, [A])], SHOWN + 1),
        f"left out by entry {SHOWN + 2}: could not be decoded (malformed)",
    )
    void = [*history, WORLD.closed(0, accepted=[])]
    told(of(void, SHOWN), f"nothing came of it: given up by entry {SHOWN + 3}")
    told(of([*history, WORLD.opened(0, 1)], SHOWN), f"given up by entry {SHOWN + 3}")
    failed = [*ROUND[:3], WORLD.closed(0, accepted=[])]
    told(of(failed, SHOWN), f"closed by entry {SHOWN + 1} with nobody accepted")


def test_an_agreed_state_shows_who_got_what() -> None:
    explanation = of([*ROUND, *WORLD.round(1)], AGREED + 7)
    told(
        explanation,
        f"signed by a coordinator and 3 of the 3 contributors that entry {AGREED + 6} accepted",
        ASSIGNED,
        "credit vests after 1 more round (ownership.vesting_rounds)",
    )
    compute = [trail for trail in explanation.credits if trail.credit.kind == "compute"]
    assert {(t.credit.work, t.granted, t.status, t.settled) for t in compute} == {
        *((SHOWN + n, AGREED, "vested", AGREED + 7) for n in range(3)),
        *((AGREED + 3 + n, AGREED + 7, "pending", -1) for n in range(3)),
    }
    data = [trail.credit for trail in explanation.credits if trail.credit.kind == "data"]
    assert [(c.account, c.units, c.rate) for c in data] == [(GIVER.key, 3 * 128, 10)] * 2
    granted = sum(trail.credit.amount for trail in explanation.credits) // 2
    told(explanation, f"granted: {granted:,} credit in 4 parts", f"vested: {granted:,} credit in 4")


def test_the_other_entries_of_a_round() -> None:
    told(of(ROUND, OPENED), ASSIGNED, "since entry 4", "since entry 5", "since entry 6")
    told(of(ROUND, COMMITTED), "committed", f"agreed on by entry {AGREED}")
    some = [ROUND[0], WORLD.committed(0, members=[A])]
    told(of(some, COMMITTED), "did not commit in time", "the round is still under way")
    told(
        of([*ROUND[:3], WORLD.closed(0, accepted=[A], rejected={B.peer_id: "late"})], SHOWN + 1),
        f"accepted with 128 tokens, shown by entry {SHOWN}",
        "left out, came after the round's commitments were closed (late)",
    )


def test_the_end_of_the_run() -> None:
    rounds = [*ROUND, *WORLD.round(1), *WORLD.round(2)]
    last = WORLD.earned(A, 2)
    history = [*rounds, WORLD.dispute(OTHER, last), WORLD.run_closed(3), WORLD.run_closed(3, 2)]
    first = START + len(rounds) + 1
    explanation = of(history, first)
    told(
        explanation, "all 3 rounds are over (rounds.total)", "but what is disputed or was rejected"
    )
    assert len(explanation.credits) == 3  # two contributions, and the text
    explanation = of(history, first + 1)
    told(explanation, "whatever is in doubt included")
    assert [trail.credit.work for trail in explanation.credits] == [START + 16]


def test_witnesses_and_their_pay() -> None:
    log = Log([*WORLD.start, *ROUND])
    size = len(log)
    good = WORLD.witnessed(log, [A, B])
    told(
        of([*ROUND, good], size),
        "that was cosigned",
        "cosigned by 2 nodes of 2 accounts; 2 must (ledger.witnesses)",
        "a quorum of the electors is among them: this head is certified",
        f"account {OWNER.key[:12]} replayed entries 1 to {size - 1}: {size - 1} entries cosigned "
        f"× 100 (ownership.rates.witness) = {(size - 1) * 100:,} credit",
    )
    assert not any("final" in line for line in of([*ROUND, good], size).lines())
    second = WORLD.witnessed(Log([*WORLD.start, *ROUND, good]), [A, B])
    told(
        of([*ROUND, good, second], size + 1),
        f"entries 0 to {size - 1} became final: the first {size + 1} hold the record that a head "
        f"of {size} was certified",
    )
    alone = of([*ROUND, WORLD.witnessed(log, [A])], size)
    told(alone, "cosigned by 1 node of 1 account; 2 must")
    assert not any("certified" in line or "final" in line for line in alone.lines())
    # The fold cannot know the tree's root; whoever holds the entries can.
    told(of([*ROUND, WORLD.witnessed([*log[:-1], b"another"], [A, B])], size), "ANOTHER root")
    early = [WORLD.witnessed(Log(WORLD.start), [A])]
    told(of(early, START), f"account {OWNER.key[:12]} earns nothing for it")


def test_disputes_and_rulings() -> None:
    dispute = WORLD.dispute(OTHER, WORK)
    history = [*ROUND, dispute, WORLD.ruling(WORK, "hard")]
    told(
        of(history, AGREED + 1),
        f"frozen for account {OTHER.key[:12]} until somebody rules on it, or state 3 is agreed",
        f"taken away by entry {AGREED + 2} (ruling: hard)",
    )
    ruling = of(history, AGREED + 2)
    told(
        ruling,
        "signed by 1 arbiter, 1 must (ownership.arbiter_quorum)",
        "all pending credit of the account is taken away, what vested lately too, and it earns",
        "taken away: 12,800 credit in 1 part",
    )
    assert {trail.status for trail in ruling.credits} == {"invalidated"}
    dispute = of([*ROUND, WORLD.dispute(OTHER, WORK)], AGREED + 1)
    told(dispute, "an account can have 8 disputes open", "disputed, so not before state 3")
    assert dispute.credits == ()


def test_transfers_and_people() -> None:
    given = [*ROUND, *WORLD.round(1), WORLD.transfer(OWNER, OTHER.key, 300)]
    told(
        of(given, AGREED + 8),
        "(ownership.transfers)",
        f"account {OWNER.key[:12]}: 12,800 vested - 300 = 12,500",
        f"account {OTHER.key[:12]}: 12,800 vested + 300 = 13,100",
    )
    recovery = entries.recovery_digest(key("recovery").public)
    new, newer = key("new"), key("newer")
    people = [
        WORLD.rotated(OWNER, new, OWNER, 1, recovery),
        WORLD.rotated(key("recovery"), newer, OWNER, 2),
        entries.node(A, OTHER, WORLD.run, seq=2),
    ]
    told(of(people, 1), "registered, signed by its own key", f"its key is {newer.key}")
    told(of(people, START), "and by the key until then", "number 1 of account")
    told(of(people, START + 1), "and by the recovery key")
    told(of(people, START + 2), f"until then the node belonged to account {OWNER.key[:12]}")
    told(of(people, 4), f"after {START + 3} entries it belongs to account {OTHER.key[:12]}")


def test_a_split_view() -> None:
    leaves = Log(WORLD.start)
    log_split = WORLD.split_view(leaves, [b"another", *leaves])
    told(
        of([WORLD.split_seen(OTHER, log_split)], START),
        f"the coordinator with the key {WORLD.coordinator.key} signed two tree heads",
    )
    split = WORLD.split_view(leaves, [b"another", *leaves], A)
    explanation = of([*ROUND, WORLD.split_seen(OTHER, split)], AGREED + 1)
    told(explanation, "loses what is pending and earns no more", "taken away: 12,800 credit")
    assert [trail.credit.work for trail in explanation.credits] == [SHOWN]


def test_the_manifest() -> None:
    told(
        of([], 0),
        ASSIGNED,
        "100 credit for each token that was assigned, trained on and agreed on "
        "(ownership.rates.compute)",
        "10 credit for each token of contributed text",
        "vested credit may be given to others (ownership.transfers)",
        "none is named, so it is the organiser",
        "a tree head is certified when 2 accounts (ledger.witnesses), a quorum of the electors",
        f"account {GIVER.key[:12]} gave 6,000 tokens of the text (data.contributed)",
    )


def test_what_is_ignored_says_why() -> None:
    again = of([*ROUND, ROUND[-1]], AGREED + 1)
    assert (again.did.status, again.did.reason) == ("ignored", reasons.OUT_OF_ORDER)
    told(again, "it changes nothing: does not fit the round, attempt or phase", "(out_of_order)")
    late = of([*ROUND, *WORLD.round(1), WORLD.dispute(OTHER, WORK)], AGREED + 8)
    told(late, "(not_pending)", f"vested by entry {AGREED + 7}")
    foreign = of([entries.account(OWNER, "ab" * 32)], START)
    told(foreign, "made for another run")


def test_there_is_nothing_beyond_the_end() -> None:
    for index in (-1, START):
        with pytest.raises(UsageError, match="no entry"):
            explain(read(Log(WORLD.start)), index)
