"""The attempts of a round, as its entries tell of them."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import groupby
from operator import attrgetter

from artel.ledger import entries
from artel.ledger.entries.trail import AttemptTrail
from artel.ledger.fold.effects import NONE
from artel.ledger.fold.history import Did, History


def attempts(history: History, dids: Iterable[Did]) -> Iterator[AttemptTrail]:
    """Attempts of a round, the newest first, as far as these entries of it say, in order."""
    return (_attempt(history, *each) for each in _by_attempt(dids))


def newest_attempt(history: History, round: int) -> AttemptTrail:
    """The newest attempt of a round that was opened."""
    return next(attempts(history, history.of_round(round)))


def attempt(history: History, round: int, number: int) -> AttemptTrail:
    """One attempt of a round that was opened."""
    found = _by_attempt(history.of_round(round))
    return next(_attempt(history, *each) for each in found if each[0][0].attempt == number)


def _attempt(history: History, dids: Sequence[Did], later: int) -> AttemptTrail:
    trail = AttemptTrail(dids[0].round, dids[0].attempt)
    shown = [did.index for did in dids if did.kind == entries.Contribution.KIND]
    rows = history.query(
        "SELECT n.name, s.idx FROM shown s JOIN names n ON n.id = s.node WHERE s.idx IN"
        " (SELECT value FROM json_each(?)) ORDER BY s.idx",
        (json.dumps(shown),),
    )
    trail.shown = dict(rows)
    for did in dids:
        if did.kind != entries.Contribution.KIND:
            _note(history, trail, did)
    if trail.agreed is None and (not trail.closed or trail.weights):
        trail.void = later
    return trail


def _note(history: History, trail: AttemptTrail, did: Did) -> None:
    index, body = did.index, history.entry(did.index).body
    match body:
        case entries.RoundOpened():
            trail.opened, trail.tails = (index, body), did.notes.get("tails", {})
            trail.accounts, trail.bound = _bound(history, body.members, index)
        case entries.RoundCommitted():
            trail.committed = index, body
        case entries.RoundClosed():
            trail.void = index if trail.closed else trail.void
            trail.closed.append((index, body))
        case entries.Aggregate():
            trail.slices[body.slice] = index, body
        case entries.SliceWrong():
            trail.accused.setdefault(body.slice, []).append((index, body))
        case entries.StateAgreed():
            trail.agreed, trail.agreeing = (index, body), did.notes["agreeing"]
            trail.undone = _undone(history, body.round, index)


def _undone(history: History, state: int, agreed: int) -> int:
    """The entry by which the run went back behind a state; -1 when it has not."""
    back = history.chosen(kind=entries.RolledBack.KIND, since=agreed)[::-1]
    counted = ((did.index, history.entry(did.index).body) for did in back if not did.reason)
    found = (i for i, body in counted if getattr(body, "state", state) < state)
    return next(found, NONE)


def _bound(
    history: History, members: Sequence[str], at: int
) -> tuple[dict[str, str], dict[str, int]]:
    """Whose each of these nodes was before the entry at an index, and by which entry."""
    rows = history.query(
        "SELECT n.name, a.name, max(b.idx) FROM bindings b JOIN names n ON n.id = b.node"
        " JOIN names a ON a.id = b.account WHERE b.idx < ? AND n.name IN"
        " (SELECT value FROM json_each(?)) GROUP BY b.node",
        (at, json.dumps(members)),
    )
    accounts, bound = {n: a for n, a, _ in rows}, {n: index for n, _, index in rows}
    return {n: accounts[n] for n in members}, {n: bound[n] for n in members}


def _by_attempt(dids: Iterable[Did]) -> list[tuple[list[Did], int]]:
    """The entries that count, of each attempt, the newest first; and where the next one begins."""
    counted = (did for did in dids if did.attempt >= 0 and not did.reason)
    found = [list(group) for _, group in groupby(counted, key=attrgetter("attempt"))]
    later = [group[0].index for group in found[1:]]
    # Of a round that is not open yet there is none.
    return list(zip(found, [*later, NONE], strict=False))[::-1]
