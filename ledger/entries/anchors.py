"""Going back: what the fold keeps of the newest agreed states, and how it returns to one of them.

Of a state that the run goes back to, everything is as it was when that state was agreed on: what
the next round begins with, who may go on with a span, whose text has been read. The work of the
rounds behind it is in no state any more, so it earns nobody anything; whoever signed the state that
was wrong also loses what work of these rounds had vested, and its standing. Where nothing was wrong
and training diverged, nobody does, and the run goes on with data that comes behind.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from artel.ledger.entries.credit import invalidate, take_back
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Anchor, Attempt, Credit, RestsOn

ANCHORS = 32
"""Agreed states that a run can go back to, the newest one included. More than
``rounds.mirror_every`` has by default: one of them is with the coordinator then."""
OF_A_STATE = ("compute", "data", "audit")
"""Kinds of work that are worth nothing without the state that came of them."""


def remember(state: FoldState, attempt: Attempt, signers: Iterable[str], rests_on: RestsOn) -> None:
    """Keep what belongs to the newest agreed state.

    :param signers: nodes that signed it
    :param rests_on: as the entry says
    """
    anchor = Anchor(
        attempt.attempt,
        {peer: state.account_of(peer) for peer in sorted(signers)},
        rests_on,
        tuple(attempt.moved_by),
        state.cursor,
        state.steps,
        state.text_used,
        state.tails,
        state.spans,
        tuple(state.recent),
    )
    state.anchors = [*state.anchors[1 - ANCHORS :], anchor]
    oldest = oldest_anchor(state)
    state.paid = {round: some for round, some in state.paid.items() if round >= oldest}
    state.begun = {round: at for round, at in state.begun.items() if round > attempt.round}
    state.charges = {number: one for number, one in state.charges.items() if number > oldest}
    state.heard = {number: names for number, names in state.heard.items() if number > oldest}


def oldest_anchor(state: FoldState) -> int:
    """Number of the oldest state that the run can go back to."""
    return len(state.states) - len(state.anchors)


def anchor_of(state: FoldState, number: int) -> Anchor | None:
    """What is kept of the state with this number."""
    place = number - oldest_anchor(state)
    return state.anchors[place] if 0 <= place < len(state.anchors) else None


def go_back(
    state: FoldState, number: int, wrong: int, blamed: bool = True
) -> tuple[tuple[Credit, ...], tuple[Credit, ...]]:
    """Return to the state with this number; the attempt under way has been given up.

    :param wrong: number of the state that was wrong, after ``number``
    :param blamed: whether that is the fault of those who signed it
    :returns: the pending and the vested credit that is taken away
    """
    anchor, oldest = _anchor(state, number), oldest_anchor(state)
    guilty = set(_anchor(state, wrong).signers.values()) if blamed else set[str]()
    # Text whose credit has vested is paid for good, and earns no second time.
    paid_for = state.round - state.founded.ownership.vesting_rounds
    state.text_used = _anchor(state, max(number, min(state.round, paid_for))).text_used
    for round, at in _begun(state, number).items():
        state.begun[round] = max(at, state.begun.get(round, 0))
    invalidated, taken = _undone(state, number), _taken(state, guilty, wrong - 1)
    for name in guilty:
        state.standing.forfeit(name)
    _unaudited(state, number)
    # Training is undone, and not what the organiser has said: who amends rules by which training
    # diverged means the rounds that are made again, too.
    state.amendments = [
        replace(one, round=number) if number < one.round <= state.round + 1 else one
        for one in state.amendments
    ]
    del state.states[number + 1 :], state.anchors[number + 1 - oldest :]
    if blamed:
        state.cursor, state.steps = anchor.cursor, anchor.steps
    # Else other data is next: of the same one the same would come (PaLM, arXiv:2204.02311, 5.1).
    state.tails, state.spans, state.attempt = anchor.tails, anchor.spans, None
    state.recent = list(anchor.recent)
    state.paid = {round: some for round, some in state.paid.items() if round < number}
    state.charges = {at: one for at, one in state.charges.items() if at <= number}
    state.heard = {at: names for at, names in state.heard.items() if at <= number}
    return invalidated, taken


def _unaudited(state: FoldState, number: int) -> None:
    """Nobody repeats what is in no state."""
    state.audits = {source: one for source, one in state.audits.items() if one.last < number}
    state.found_right = {
        node: tuple((last, name) for last, name in found if last < number)
        for node, found in state.found_right.items()
    }
    if state.founded.audits:
        state.present = list(_anchor(state, number).moved_by)


def _anchor(state: FoldState, number: int) -> Anchor:
    found = anchor_of(state, number)
    assert found is not None
    return found


def _begun(state: FoldState, number: int) -> dict[int, int]:
    """Rounds that will be repeated, and the number that the first attempt of each gets."""
    again = range(number + 1, state.round + 1)
    found = {made - 1: _anchor(state, made).attempt + 1 for made in again}
    if state.attempt is not None and state.attempt.round == state.round:
        found[state.round] = state.attempt.attempt + 1
    return found


def _undone(state: FoldState, number: int) -> tuple[Credit, ...]:
    """What is pending for work since a round goes, whosever it is."""
    gone = [
        source
        for source, item in state.pending.items()
        if item.credit.kind in OF_A_STATE and item.credit.round >= number
    ]
    invalidated = tuple(invalidate(state, source) for source in gone)
    left = {at: [s for s in some if s in state.pending] for at, some in state.due.items()}
    state.due = {at: some for at, some in left.items() if some}
    kept = {n: [s for s in some if s in state.pending] for n, some in state.unproven.items()}
    state.unproven = {node: some for node, some in kept.items() if some}
    return invalidated


def _taken(state: FoldState, guilty: set[str], round: int) -> tuple[Credit, ...]:
    """Vested credit of these accounts for work since a round, the newest first, as far as each
    still has it: what it has given to others stays with them."""
    since = (c for at, some in sorted(state.paid.items()) if at >= round for c in some)
    owned = [credit for credit in since if credit.account in guilty]
    return tuple(credit for credit in reversed(owned) if take_back(state, credit))
