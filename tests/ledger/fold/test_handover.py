"""Terms, certificates and electors, as the fold counts them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries import evidence
from artel.ledger.entries.body import signed
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.handover import Sealed, candidate, handover, open_seal, seal
from artel.ledger.entries.records import Term
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.ledger.tlog.cosignature import witness_name
from artel.protocol import dsse
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.identity import Identity
from artel.protocol.merkle import leaf_hash, root
from client_world import cosigned
from leaf_hashes import LeafHashes
from ledger_world import World, encoded, forged, key, outcomes

WORLD = World(nodes=4, waiting=1)
A, B, C, D = WORLD.members
(STANDBY,) = WORLD.standbys
LOG = [*WORLD.start, *WORLD.round(0)]
"""With its end the members are electors, one voice each."""


def handed(
    to: Identity = STANDBY,
    by: Iterable[Identity] = (A, B, C),
    *,
    term: int = 1,
    size: int = 0,
    sealed: int | None = None,
) -> Envelope:
    """A handover to a coordinator that shows the seals of these."""
    number = term - 1 if sealed is None else sealed
    known = {"term": number, "next": to.key, "size": size}
    said = [open_seal(seal(each, WORLD.run, **known).encode())[1] for each in by]
    return handover(to, WORLD.run, term=term, seals=said)


def told(*envelopes: Envelope) -> tuple[FoldState, str]:
    """The state after the first round and these, and what became of the last of them."""
    state, seen = outcomes([*LOG, *envelopes])
    return state, seen[-1].reason or seen[-1].status


def led(identity: Identity) -> Envelope:
    """An entry that only the leader may add: the next round."""
    opened = WORLD.opened(1)
    assert isinstance(opened, Envelope)
    return forged(opened, identity)


# --- terms ----------------------------------------------------------------------------------------


def test_with_seals_of_a_quorum_the_next_coordinator_leads_and_the_former_does_not() -> None:
    state, what = told(handed())
    assert what == "recorded"
    assert state.term == Term(1, len(LOG), STANDBY.key)
    assert told(handed(), led(WORLD.coordinator))[1] == "wrong_signers"
    assert told(handed(), led(STANDBY))[1] == "recorded"
    assert told(led(STANDBY))[1] == "wrong_signers"


def test_half_of_the_voices_seal_no_term() -> None:
    assert told(handed(by=(A, B)))[1] == "not_sealed"
    stranger = key("stranger")
    assert told(handed(by=(A, B, stranger)))[1] == "not_sealed"


def test_a_seal_of_another_term_does_not_count() -> None:
    assert told(handed(sealed=1))[1] == "bad_signature"


def test_a_term_is_later_than_the_present_one_and_loses_nothing_certified() -> None:
    again = handed(WORLD.coordinator, term=1, sealed=0)
    assert told(handed(), again)[1] == "out_of_order"
    assert told(handed(size=len(LOG) + 1))[1] == "out_of_order"
    assert told(handed(size=len(LOG)))[1] == "recorded"


def test_what_was_certified_in_a_term_that_is_over_does_not_hold_the_next_one_up() -> None:
    after, end = [handed()], len(LOG) + 1

    def said(node: Identity, of: int, size: int) -> Sealed:
        known = {"term": 1, "next": WORLD.coordinator.key, "of": of, "size": size}
        return open_seal(seal(node, WORLD.run, **known).encode())[1]

    def third(*seals: Sealed) -> str:
        made = handover(WORLD.coordinator, WORLD.run, term=2, seals=seals)
        return told(*after, made)[1]

    given_up = [said(A, 0, end + 40), said(B, 0, 0)]
    assert third(*given_up, said(C, 1, end)) == "recorded"
    assert third(*given_up, said(C, 0, end)) == "out_of_order"
    assert third(*given_up, said(C, 1, end + 1)) == "out_of_order"
    assert third(*given_up, said(C, 2, 1)) == "out_of_order"  # of a term that is not in the tree


def test_coordinators_take_turns_and_then_the_electors() -> None:
    # Two coordinators: terms 1 and 2 are theirs, then nobody of the manifest has come.
    assert told(handed(WORLD.coordinator))[1] == "wrong_signers"
    assert told(handed(WORLD.coordinator, term=2))[1] == "recorded"
    state, before = told(handed())[0], outcomes(LOG)[0]
    members = sorted(WORLD.members, key=lambda member: member.peer_id)
    order = [member.elected.key for member in members]
    assert [candidate(before, term) for term in (1, 2)] == [STANDBY.key, WORLD.coordinator.key]
    assert [candidate(before, term) for term in range(3, 3 + len(order))] == order
    again = [candidate(before, 3 + len(order) + number) for number in range(2)]
    assert sorted(again) == sorted([STANDBY.key, WORLD.coordinator.key]), "they begin again"
    new, other = members[0].elected, members[1].elected
    # No key but the one that the node has registered: with the same seals it could begin two terms.
    for wrong in (key("a fresh key"), members[0], other):
        assert told(handed(wrong, term=3))[1] == "wrong_signers"
    after, what = told(handed(new, term=3))
    assert (what, after.term.leader, after.starts(new.key)) == (
        "recorded",
        new.key,
        members[0].peer_id,
    )
    assert new.key in after.leaders()
    # Whoever led and came to no state has had its turn; of a run with one coordinator, too.
    assert candidate(after, 4) == order[1]
    assert candidate(state, 2) == WORLD.coordinator.key
    assert candidate(state, 3) == order[0]
    # With a state all begins anew.
    by_new = [
        made if made.signers and WORLD.coordinator.key not in made.signers else forged(made, new)
        for made in WORLD.round(1)
    ]
    worked, what = told(handed(new, term=3), *by_new)
    assert (what, worked.worked) == ("credited", 3)
    assert candidate(worked, 4) == WORLD.coordinator.key


def test_a_seal_is_for_one_alone() -> None:
    """Whose turn a term is depends on the handovers that a copy knows: with the same seals two
    could begin the same term, each of them rightly by some copies."""
    state, elected = outcomes(LOG)[0], min(WORLD.members, key=lambda member: member.peer_id)
    assert candidate(state, 3) == elected.elected.key
    known = {"term": 2, "next": STANDBY.key}
    said = [open_seal(seal(each, WORLD.run, **known).encode())[1] for each in (A, B, C)]
    made = handover(elected.elected, WORLD.run, term=3, seals=said)
    assert told(made)[1] == "bad_signature"


# --- electors that lie ----------------------------------------------------------------------------

FIRST = min(WORLD.members, key=lambda member: member.peer_id)
"""The first elector whose turn comes, in term 3."""
OWNER, REPORTER = (WORLD.owners[(WORLD.members.index(FIRST) + n) % 4] for n in (0, 1))
FRESH = key("a fresh account")


def moved(elected: Identity = FIRST.elected) -> list[Envelope]:
    """That elector is registered once more, for a fresh account."""
    body = {"run": WORLD.run, "node": FIRST.peer_id, "account": FRESH.key, "seq": 2}
    body |= {"coordinator": elected.key}
    return [entries.account(FRESH, WORLD.run), signed(entries.Node, body, FIRST, FRESH, elected)]


def proof(log: list[Any], term: int, leader: Identity, witness: Identity | None = None) -> Any:
    """That one key signed two heads, one entry larger than this log and far more than that: the
    leader's key, or that of a witness. How many entries there are who lies can make up."""
    notes, trees, leaves = [], [], encoded(log)
    for end in ([b"one"], [b"two"] * 20):
        hashes = [leaf_hash(leaf) for leaf in (*leaves, *end)]
        note = sign_checkpoint(leader, origin_of(WORLD.run, term), len(hashes), root(hashes))
        notes.append(cosigned(note, witness) if witness else note)
        trees.append(LeafHashes(hashes))
    name = witness_name(witness.peer_id) if witness else None
    return evidence.build(notes[0], trees[0], notes[1], trees[1], name).to_dict()


def turns(state: FoldState) -> set[str]:
    """Who may begin any of the next terms."""
    many = len(state.coordinators) + len(state.electors.present)
    return {candidate(state, state.term.number + number) for number in range(1, many + 1)}


def test_a_node_answers_for_what_its_coordinator_signs() -> None:
    hand = handed(FIRST.elected, by=set(WORLD.members) - {FIRST}, term=3)
    shown = proof([*LOG, hand], 3, FIRST.elected)
    state, what = told(hand, WORLD.split_seen(REPORTER, shown))
    assert what == "recorded"
    assert FIRST.elected.key in state.convicted
    assert state.accounts[OWNER.key].barred
    assert not state.trusted([FIRST.peer_id])
    assert FIRST.elected.key not in turns(state)
    assert len(turns(state)) == 5


@pytest.mark.parametrize("what", ["leader", "witness"])
def test_a_node_that_moves_takes_no_proof_with_it(what: str) -> None:
    """The account that it belonged to when it lied answers for that, and no other; the node counts
    for no account any more."""
    hand = handed(FIRST.elected, by=set(WORLD.members) - {FIRST}, term=3)
    log, leader = (LOG, WORLD.coordinator) if what == "witness" else ([*LOG, hand], FIRST.elected)
    term, witness = (0, FIRST) if what == "witness" else (3, None)
    shown, move = proof(log, term, leader, witness), moved()
    seen = WORLD.split_seen(REPORTER, shown)
    state, became = told(*log[len(LOG) :], *move, seen)
    assert became == "recorded"
    assert state.account_of(FIRST.peer_id) == FRESH.key
    assert (state.accounts[OWNER.key].barred, state.accounts[FRESH.key].barred) == (True, False)
    assert state.accounts[OWNER.key].pending == 0
    assert not state.trusted([FIRST.peer_id])
    assert FIRST.elected.key not in turns(state)
    assert told(*log[len(LOG) :], *move, seen, seen)[1] == "duplicate"
    # What it signs later its later account answers for, also when it has owned up to the first.
    later = [*log, *move]
    again = WORLD.split_seen(REPORTER, proof(later, term, leader, witness))
    state, became = told(*later[len(LOG) :], again)
    assert became == "recorded"
    assert (state.accounts[OWNER.key].barred, state.accounts[FRESH.key].barred) == (False, True)
    state, became = told(*later[len(LOG) :], seen, again)
    assert became == "recorded"
    assert state.accounts[OWNER.key].barred
    assert state.accounts[FRESH.key].barred


def test_a_node_never_leads_with_another_key_than_its_first_one() -> None:
    state, what = told(*moved(key("another third key")))
    assert what == "wrong_signers"
    assert state.coordinator_of[FIRST.peer_id] == FIRST.elected.key
    assert told(*moved())[1] == "recorded"
    # Seals that are for it are so good for the handover, whatever it registers in between.
    hand = handed(FIRST.elected, term=3)
    assert told(*moved(key("another third key")), hand)[1] == "recorded"


def test_nobody_elects_a_node_whose_word_does_not_count() -> None:
    """It cosigned two histories; its coordinator's key is not convicted."""
    seen = WORLD.split_seen(REPORTER, proof(LOG, 0, WORLD.coordinator, FIRST))
    state, what = told(seen)
    assert what == "recorded"
    assert FIRST.elected.key not in state.convicted
    assert FIRST.elected.key not in turns(state)
    others = set(WORLD.members) - {FIRST}
    hand = handed(FIRST.elected, by=others, term=3)
    assert told(seen, hand)[1] == "wrong_signers"
    second = min(others, key=lambda member: member.peer_id).elected
    assert told(seen, handed(second, by=others, term=3))[1] == "recorded"


def test_before_the_first_state_there_is_nobody_who_could_seal() -> None:
    state, seen = outcomes([*WORLD.start, handed()])
    assert not state.electors.sets
    assert seen[-1].reason == "not_sealed"


def test_a_seal_is_read_back_only_as_what_it_is() -> None:
    made = seal(A, WORLD.run, term=4, next=B.key, size=9, root="ab" * 32)
    said, part = open_seal(made.encode())
    assert (said.run, said.term, said.next) == (WORLD.run, 4, B.key)
    assert (said.size, part.node) == (9, A.peer_id)
    with pytest.raises(DecodeError):
        open_seal(entries.account(A, WORLD.run).encode())
    with pytest.raises(CheckFailed):
        (_, signature), other = made.signatures[0], B.key
        stolen = dsse.Envelope(made.payload_type, made.payload, ((other, signature),))
        open_seal(stolen.encode())


# --- certificates ---------------------------------------------------------------------------------


def test_an_entry_is_final_when_a_quorum_holds_the_certificate_of_a_head_that_covers_it() -> None:
    leaves = encoded(LOG)
    first = WORLD.witnessed(leaves)
    state, _ = told(first)
    assert (state.final, state.electors.certified) == (0, [(len(LOG), len(LOG))])
    more = encoded([*LOG, first])
    second = WORLD.witnessed(more)
    state, _ = told(first, second)
    assert state.final == len(LOG)
    # A head that does not cover the record of the first proves nothing of it.
    early = WORLD.witnessed(more, size=len(LOG) - 1)
    late = WORLD.witnessed(encoded([*LOG, early]), size=len(LOG))
    assert told(early, late)[0].final == 0


def test_half_of_the_electors_certify_nothing() -> None:
    leaves = encoded(LOG)
    state, what = told(WORLD.witnessed(leaves, [A, B]))
    assert (what, state.electors.certified) == ("credited", [])
    assert told(WORLD.witnessed(leaves, [A, B, C]))[0].electors.certified


def two_sets() -> tuple[World, list[Envelope]]:
    """All four are the first electors, and the last of them alone is the second set."""
    world = World(nodes=4, name="two sets", trust={"standing_rounds": 1})
    d = world.members[-1]
    by_one = [world.committed(1, members=[d]), world.contribution(d, 1)]
    by_one += [world.closed(1, accepted=[d]), world.agreed(2, nodes=[d])]
    return world, [*world.start, *world.round(0), world.opened(1), *by_one]


def test_what_later_electors_certify_is_final_only_when_former_ones_hold_the_certificate() -> None:
    world, log = two_sets()
    a, b, _, d = world.members
    size = len(encoded(log))

    def witnessed(*by: Identity) -> FoldState:
        log.append(world.witnessed(encoded(log), by))
        return outcomes(log)[0]

    state = witnessed(a, b, d)
    assert [set(each.weights) for each in state.electors.sets][1:] == [{d.peer_id}]
    # The others have signed a head behind the change. They do not know that it is certified, and
    # could still seal the term as if there were none: a head of the new one alone decides nothing.
    assert witnessed(d).final == 0
    state = witnessed(a, b, d)
    assert (state.final, len(state.electors.sets)) == (size, 1)
    assert witnessed(d).final == size + 2


def test_a_head_is_certified_by_the_electors_of_its_size() -> None:
    """Not by those who are chosen in the entries behind it."""
    world, log = two_sets()
    a, b, c, _ = world.members
    change = outcomes(log)[0].electors.sets[-1].since
    for size, certified in ((change, True), (change + 1, False)):
        seen = world.witnessed(encoded(log), (a, b, c), size=size)
        assert bool(outcomes([*log, seen])[0].electors.certified) is certified
