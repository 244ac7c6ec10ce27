"""What happened in a ledger, as of a number of its entries: the one reader of the effects.

Pages, ``me``, ``log``, ``explain`` and exports ask here. Every answer is a look into an index, and
costs the same in a ledger of any length; rows of later entries are left out, so that all answers of
one :class:`History` belong together while the ledger grows.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from artel.ledger import entries
from artel.ledger.entries import KINDS, Entry, Genesis, decode
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import KINDS_OF_WORK, Credit, LeftOut, Outcome
from artel.ledger.entries.trail import Trail
from artel.ledger.fold.effects import (
    INVALIDATED,
    NONE,
    PENDING,
    STATUSES,
    VESTED,
    Loose,
    checked,
    credited,
)
from artel.ledger.fold.kept import Leaves, Query, kept_by
from artel.protocol.errors import CheckFailed, UsageError

CREDIT_STATES = ("pending", "vested", "invalidated")
_CREDIT = (
    "SELECT c.number, coalesce(s.id, c.source), c.kind, a.name, n.name, c.round, c.units, c.rate,"
    " c.work, c.granted, c.due, c.settled, c.status, c.taken, s.tokens FROM"
    " credits c"
    " JOIN names a ON a.id = c.account JOIN names n ON n.id = c.node"
    " LEFT JOIN shown s ON s.idx = c.work AND c.source = ''"
)


class Log(Leaves, Protocol):
    """A ledger and its tree."""

    def index_of(self, entry: str) -> int | None: ...

    def root_at(self, size: int) -> bytes: ...


@dataclass(frozen=True)
class Did:
    """What is known of an entry without reading it."""

    index: int
    kind: str
    round: int
    """-1 for entries that belong to no round; likewise ``attempt``."""
    attempt: int
    work: int
    """Index of the contribution that it speaks of, -1 for none."""
    status: str
    """recorded, credited or ignored."""
    reason: str
    """Why it changed nothing; "" when it counts."""
    notes: dict[str, Any]


@dataclass(frozen=True)
class ContributionOutcome:
    """A contribution in the ledger; ``reason`` says why the fold ignores it, if it does."""

    index: int
    entry: str
    """Its id."""
    round: int
    attempt: int
    node: str
    tokens: int
    reason: str


@dataclass(frozen=True)
class AccountWork:
    """What an account showed, and what became of it, oldest first."""

    shown: dict[str, ContributionOutcome] = field(default_factory=dict)
    """By entry id."""
    earned: dict[str, Trail] = field(default_factory=dict)
    """By source."""
    left_out: dict[tuple[int, int, str], str] = field(default_factory=dict)
    """Reasons, by round, attempt and node; what costs nobody credit is not among them."""


class History:
    """As of the ``state`` after so many entries."""

    def __init__(self, log: Log, query: Query, state: FoldState) -> None:
        self.log, self.state, self.size = log, state, state.size
        self.query = query

    # --- entries ----------------------------------------------------------------------------------

    def did(self, index: int) -> Did:
        """What is known of the entry at ``index``.

        :raises UsageError: when there is none
        """
        found = self._did("idx = ?", (index,))
        if not found:
            raise UsageError(f"there is no entry {index:,}", f"the newest one is {self.size - 1:,}")
        return found[0]

    def chosen(
        self,
        *,
        kind: str = "",
        round: int | None = None,
        account: str | None = None,
        before: int | None = None,
        since: int = 0,
        limit: int = NONE,
    ) -> list[Did]:
        """Entries that fit, newest first.

        :param account: they speak of it, name one of its present nodes, or move its credit
        :param limit: at most so many; -1 for all
        """
        where, values = self._fitting(kind, round, account, before, since)
        return self._did(f"{where} ORDER BY idx DESC LIMIT ?", (*values, limit))

    def later(self, index: int, kind: str, limit: int) -> list[Did]:
        """Entries of a kind behind an index, oldest first."""
        where = "kind = ? AND idx > ? ORDER BY idx LIMIT ?"
        return self._did(where, (KINDS.index(kind), index, limit))

    def count(self, **wanted: Any) -> int:
        """How many entries fit; see :meth:`chosen`."""
        filled = {"kind": "", "round": None, "account": None, "before": None}
        where, values = self._fitting(**filled | {"since": 0} | wanted)
        return int(self.query(f"SELECT count(*) FROM effects WHERE {where}", values)[0][0])

    def _fitting(
        self,
        kind: str,
        round: int | None,
        account: str | None,
        before: int | None,
        since: int,
    ) -> tuple[str, tuple[object, ...]]:
        where = ["idx >= ?", "idx < ?"]
        values: list[object] = [since, min(self.size, self.size if before is None else before)]
        if kind:
            where.append("kind = ?")
            values.append(KINDS.index(kind))
        if round is not None:
            where.append(_ROUND)
            values.append(round)
        if account is not None:
            places = [f"SELECT {c} FROM credits WHERE account = {_NAME}" for c in _MOVES]
            where.append(f"idx IN ({' UNION '.join((_MENTIONS, *places))})")
            values += (
                json.dumps([account, *self.state.nodes_of(account)]),
                *[account] * len(_MOVES),
            )
        return " AND ".join(where), tuple(values)

    def _did(self, where: str, values: Sequence[object]) -> list[Did]:
        columns = "idx, kind, round, attempt, work, status, reason, notes"
        rows = self.query(
            f"SELECT {columns} FROM effects WHERE idx < ? AND {where}", (self.size, *values)
        )
        return [
            Did(
                index=index,
                kind=KINDS[kind],
                round=round,
                attempt=attempt,
                work=work,
                status=STATUSES[status],
                reason=reason,
                notes=json.loads(notes) if notes else {},
            )
            for index, kind, round, attempt, work, status, reason, notes in rows
        ]

    def outcome(self, did: Did) -> Outcome:
        """What the fold said when it came to an entry."""
        index, moved = did.index, self.moved_by(did.index)
        vested = [trail for trail in moved if trail.vested_by == index]
        gone = [trail for trail in moved if (trail.settled, trail.status) == (index, "invalidated")]
        return Outcome(
            did.status,
            did.reason,
            tuple(trail.credit for trail in self.granted_by(did.index)),
            tuple(trail.credit for trail in vested),
            tuple(trail.credit for trail in gone if trail.vested_by < 0),
            tuple(trail.credit for trail in gone if trail.vested_by >= 0),
            tuple(item for _, item in self._left_out("l.idx = ?", (did.index,))),
            notes=did.notes,
        )

    def entry(self, index: int) -> Entry:
        """The entry itself."""
        return decode(self.log.leaf(index))

    def counted(self, index: int) -> Entry:
        """An entry that counts: so its signatures have been checked."""
        return self.entry(index).checked(True)

    @cached_property
    def genesis(self) -> Genesis:
        """Entry 0."""
        body = self.entry(0).body
        assert isinstance(body, Genesis)
        return body

    # --- credit -----------------------------------------------------------------------------------

    def granted_by(self, index: int) -> list[Trail]:
        """Credit that the entry at ``index`` granted."""
        return self._credits("c.granted = ?", (index,))

    def moved_by(self, index: int) -> list[Trail]:
        """Credit that the entry at ``index`` granted, made vest or took away."""
        either = f"SELECT number FROM credits c WHERE {_SETTLED}"
        either += f" UNION SELECT number FROM credits c WHERE {_TAKEN}"
        either += " UNION SELECT number FROM credits WHERE granted = ?"
        return self._credits(f"c.number IN ({either})", (index, index, index))

    def earned_by(self, work: int) -> Trail | None:
        """The compute of the contribution at an index, if it has earned any."""
        found = self._credits("c.work = ? AND c.kind = 0", (work,))
        return found[0] if found else None

    def credits_of(
        self,
        account: str,
        *,
        kind: str = "",
        state: str = "",
        before: int | None = None,
        limit: int = NONE,
    ) -> list[Trail]:
        """Credit of an account, newest first: of a kind, in a state, before a number."""
        where, values = [f"c.account = {_NAME}"], list[object]([account])
        for condition, wanted, value in (
            ("c.kind = ?", kind, KINDS_OF_WORK.index(kind) if kind else 0),
            ("c.number < ?", before is not None, before),
            (f"{self._status} = ?", state, CREDIT_STATES.index(state) if state else 0),
        ):
            if wanted:
                where.append(condition)
                values.append(value)
        order = " ORDER BY c.number DESC LIMIT ?"
        return self._credits(" AND ".join(where), (*values, limit), order)

    def done_by(self, account: str) -> dict[str, dict[str, int]]:
        """Units of each kind of work that an account has done, their rate, and credit by state."""
        owner, rates = self.state.accounts.get(account), self.state.founded.rates
        sums, done = self.sums_of(account), owner.units if owner is not None else {}
        return {
            kind: {"units": done[kind], "rate": rates[kind], "credit": done[kind] * rates[kind]}
            | {state: sums.get((kind, state), 0) for state in CREDIT_STATES}
            for kind in KINDS_OF_WORK
            if done.get(kind)
        }

    def sums_of(self, account: str) -> dict[tuple[str, str], int]:
        """Credit of an account by kind of work and state.

        :raises CheckFailed: when it does not come to what the state says
        """
        rows = self.query(
            f"SELECT c.kind, {self._status}, sum(c.units * c.rate) FROM credits c"
            f" WHERE c.account = {_NAME} AND c.granted < ? GROUP BY 1, 2",
            (account, self.size),
        )
        sums = Counter[int]()
        for _, at, amount in rows:
            sums[at] += amount
        owner = self.state.accounts.get(account)
        if sums != (credited(owner) if owner is not None else {}):
            raise _contradiction(f"account {account[:12]}…")
        return {(KINDS_OF_WORK[kind], CREDIT_STATES[at]): amount for kind, at, amount in rows}

    @property
    def _status(self) -> str:
        return (
            f"(CASE WHEN c.taken >= 0 AND c.taken < {self.size} THEN {INVALIDATED}"
            f" WHEN c.settled < {self.size} THEN c.status ELSE {PENDING} END)"
        )

    def _credits(
        self, where: str, values: Sequence[object], order: str = " ORDER BY c.number"
    ) -> list[Trail]:
        rows = self.query(f"{_CREDIT} WHERE c.granted < ? AND {where}{order}", (self.size, *values))
        return [self._trail(*row) for row in rows]

    def _trail(
        self, number: int, source: str, kind: int, account: str, node: str, *rest: int
    ) -> Trail:
        round, units, rate, work, granted, due, settled, status, taken, tokens = rest
        work_kind = KINDS_OF_WORK[kind]
        if rate != self.state.founded.rates[work_kind] or tokens not in (None, units):
            raise _contradiction(f"the credit for entry {work}")
        credit = Credit(number, source, work_kind, account, node, round, units, rate, work)
        if settled >= self.size:
            settled, status = NONE, PENDING
        vested_by = settled if status == VESTED else NONE
        if NONE < taken < self.size:
            settled, status = taken, INVALIDATED
        item = self.state.pending.get(source)
        lapses = item.lapses if item is not None and item.disputed_by else 0
        return Trail(credit, granted, due, lapses, CREDIT_STATES[status], settled, vested_by)

    # --- accounts and nodes -----------------------------------------------------------------------

    def statements_of(self, account: str, limit: int = NONE) -> list[Did]:
        """Entries that say something about an account, newest first."""
        spoken = "SELECT idx FROM mentions WHERE name = " + _NAME
        return self._did(f"idx IN ({spoken}) ORDER BY idx DESC LIMIT ?", (account, limit))

    def left_out_of(self, account: str, limit: int = NONE) -> list[tuple[int, LeftOut]]:
        """Work of an account's nodes that was left out and by which entry, newest first."""
        return self._left_out(
            f"l.account = {_NAME}", (account, limit), " ORDER BY l.number DESC LIMIT ?"
        )

    def reasons_of(self, account: str) -> list[tuple[str, int]]:
        """Why work of an account's nodes was left out and how often, the most frequent first."""
        return self.query(
            f"SELECT reason, count(*) FROM left_out WHERE account = {_NAME} AND idx < ?"
            " GROUP BY 1 ORDER BY 2 DESC, 1",
            (account, self.size),
        )

    def _left_out(
        self, where: str, values: Sequence[object], order: str = " ORDER BY l.number"
    ) -> list[tuple[int, LeftOut]]:
        rows = self.query(
            "SELECT l.idx, l.round, l.attempt, n.name, a.name, l.reason FROM left_out l"
            " JOIN names n ON n.id = l.node JOIN names a ON a.id = l.account"
            f" WHERE l.idx < ? AND {where}{order}",
            (self.size, *values),
        )
        return [(row[0], LeftOut(*row[1:])) for row in rows]

    def work_of(self, account: str) -> AccountWork:
        """What an account's nodes showed since they belonged to it, and what became of it."""
        nodes = f"SELECT node, min(idx) AS since FROM bindings WHERE account = {_NAME} GROUP BY 1"
        rows = self.query(
            "SELECT s.idx, s.id, e.round, e.attempt, n.name, s.tokens, e.reason"
            f" FROM ({nodes}) b JOIN shown s ON s.node = b.node AND s.idx > b.since"
            " JOIN effects e ON e.idx = s.idx JOIN names n ON n.id = s.node"
            " WHERE s.idx < ? ORDER BY s.idx",
            (account, self.size),
        )
        left_out = self.query(
            "SELECT l.round, l.attempt, n.name, l.reason FROM left_out l"
            f" JOIN ({nodes}) b ON b.node = l.node JOIN names n ON n.id = l.node"
            " WHERE l.idx < ? ORDER BY l.number",
            (account, self.size),
        )
        return AccountWork(
            {row[1]: ContributionOutcome(*row) for row in rows},
            {trail.credit.source: trail for trail in reversed(self.credits_of(account))},
            {tuple(place): why for *place, why in left_out if why not in _HARMLESS},
        )

    # --- rounds -----------------------------------------------------------------------------------

    def of_round(self, round: int, *kinds: str) -> list[Did]:
        """Entries of a round that count, in order; of these kinds, or all."""
        fitting = f"{_ROUND} AND reason = '' ORDER BY idx"
        return [did for did in self._did(fitting, (round,)) if not kinds or did.kind in kinds]

    def events(self, work: int) -> list[tuple[int, str]]:
        """Disputes, verdicts and rulings on the contribution at an index: index, and in a word."""
        found = self._did("work >= 0 AND work = ? AND reason = '' ORDER BY idx", (work,))
        bodies = ((did.index, self.entry(did.index).body) for did in found)
        return [(i, body.event()) for i, body in bodies if isinstance(body, entries.body.OfWork)]

    # --- over time --------------------------------------------------------------------------------

    def vested_at(self, account: str, states: Sequence[int]) -> list[int]:
        """Vested credit of an account when each of these states was the newest; "": of all."""
        rows = self.query(
            "SELECT coalesce((SELECT h.vested FROM held h WHERE h.name = (SELECT id FROM names"
            " WHERE name = ?) AND h.state <= value ORDER BY h.state DESC LIMIT 1), 0)"
            " FROM json_each(?)",
            (account, json.dumps(states)),
        )
        return [vested for (vested,) in rows]

    @property
    def first_vested(self) -> int:
        """Number of the newest state when credit vested for the first time; 0 when none has."""
        named = "SELECT min(state) FROM held WHERE name = " + _NAME
        return int(self.query(named, ("",))[0][0] or 0)


# Said twice, so that SQLite sees that an index of a part of the rows will do.
_SETTLED, _ROUND = "c.settled >= 0 AND c.settled = ?", "round >= 0 AND round = ?"
_TAKEN = "c.taken >= 0 AND c.taken = ?"
_MOVES = ("granted", "settled", "taken")
_MENTIONS = (
    "SELECT idx FROM mentions WHERE name IN"
    " (SELECT id FROM names WHERE name IN (SELECT value FROM json_each(?)))"
)
_NAME = "(SELECT id FROM names WHERE name = ?)"
_HARMLESS = (
    entries.reasons.NOT_AGREED,
    entries.reasons.FALSE_ACCUSATION,
    entries.reasons.FALSE_CHECK,
)


def _contradiction(what: str) -> CheckFailed:
    return CheckFailed(
        f"what is stored of {what} contradicts itself",
        "artel ledger verify --home HOME says which command computes it again from the entries",
    )


def read(log: Any, size: int | None = None, *, processes: bool = True) -> History:
    """The history of a ledger, up to ``size`` entries (default: all), whoever writes it.

    Where the effects are in its file and reach so far, they are read there; otherwise all entries
    are folded once, signatures included.

    :raises CheckFailed: when an entry does not decode
    """
    size = log.size if size is None else size
    query: Callable[..., Any] | None = getattr(log, "query", None)
    if query is not None and (state := kept_by(query, log, size)) is not None:
        return History(log, query, state)
    loose = Loose()
    for entry in checked(log.leaves(0, size), 0, processes=processes):
        loose.add(entry)
    loose.flush()
    return History(log, loose.query, loose.state)
