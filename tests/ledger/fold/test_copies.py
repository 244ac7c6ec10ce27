"""Numbers that were shown before do not count again, whoever sends them under whatever header."""

from __future__ import annotations

from artel.ledger.entries import fold_state, reasons
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import read
from artel.ledger.fold.shares import FoldState
from artel.protocol.dsse import Envelope
from artel.protocol.round_state import COPIED, NO_NUMBERS
from ledger_world import World, digest, outcomes
from log_world import Log

WORLD = World()
A, B, C = WORLD.members
PAYLOAD = digest("numbers of A")


def begun(round: int, attempt: int = 0) -> list[Envelope]:
    return [WORLD.opened(round, attempt), WORLD.committed(round, attempt)]


def after(*before: Envelope) -> tuple[list[str], FoldState]:
    """Why the last three of these entries change nothing, "" for each that does."""
    state, seen = outcomes([*WORLD.start, *before])
    return [outcome.reason for outcome in seen[-3:]], state


FIRST = [WORLD.contribution(A, 0, payload=PAYLOAD), *map(WORLD.contribution, (B, C), (0, 0))]
ROUND = [
    *begun(0),
    *FIRST,
    WORLD.closed(0, shown={A.peer_id: FIRST[0]}),
    WORLD.agreed(1),
]


def test_of_two_who_trained_once_the_first_is_paid() -> None:
    again = WORLD.contribution(B, 0, payload=PAYLOAD)
    found, state = after(*begun(0), FIRST[0], again, WORLD.contribution(C, 0))
    assert found == ["", COPIED, ""]
    assert state.attempt is not None
    assert set(state.attempt.shown) == {A.peer_id, C.peer_id}


def test_what_an_earlier_round_has_seen_counts_for_nobody() -> None:
    later = [WORLD.contribution(member, 1, payload=PAYLOAD) for member in (A, B)]
    found, _ = after(*ROUND, *begun(1), *later, WORLD.contribution(C, 1))
    assert found == [COPIED, COPIED, ""]


def test_another_attempt_takes_the_nodes_own_numbers_again_and_nobody_elses() -> None:
    failed = [*begun(0), *FIRST, WORLD.closed(0, accepted=[])]
    mine = WORLD.contribution(A, 0, 1, payload=PAYLOAD)
    stolen = WORLD.contribution(B, 0, 1, payload=PAYLOAD)
    found, state = after(*failed, *begun(0, 1), stolen, mine, WORLD.contribution(C, 0, 1))
    assert found == [COPIED, "", ""]
    assert FoldState.decode(state.encode()) == state


def test_zeros_of_two_nodes_are_alike_so_they_count_and_earn_nothing() -> None:
    """Where nobody moved, as at a learning rate of 0, a round would never be agreed on."""
    empty = [WORLD.contribution(member, 0, payload=NO_NUMBERS) for member in (A, B)]
    shown = {A.peer_id: empty[0], B.peer_id: empty[1]}
    history = [*begun(0), *empty, WORLD.contribution(C, 0), WORLD.closed(0, shown=shown)]
    state, seen = outcomes([*WORLD.start, *history, WORLD.agreed(1)])
    assert [outcome.reason for outcome in seen if outcome.reason] == []
    assert [credit.node for credit in seen[-1].granted] == [C.peer_id]
    assert state.rejected == {member.peer_id: {reasons.EMPTY: 1} for member in (A, B)}
    later = [WORLD.contribution(A, 1, payload=NO_NUMBERS), *map(WORLD.contribution, (B, C), (1, 1))]
    assert after(*history, WORLD.agreed(1), *begun(1), *later)[0] == ["", "", ""]
    told = explain(read(Log([*WORLD.start, *history, WORLD.agreed(1)])), len(WORLD.start) + 2)
    assert any(reasons.EMPTY in line for line in told.lines())


def test_the_oldest_are_forgotten() -> None:
    state = FoldState()
    for number in range(3 * fold_state.REMEMBERED):
        state.remember(digest(f"{number}"), A.peer_id, number)
    assert len(state.payloads) == fold_state.REMEMBERED
    newest = 3 * fold_state.REMEMBERED - 1
    assert state.shown_by(digest(f"{newest}")) == (A.peer_id, newest)
    assert state.shown_by(digest("0")) is None
