"""What each entry did, kept beside the entries: written by whoever owns the fold, read by the rest.

A :class:`Fold` follows a store. While the store appends, it applies the new entries to a copy of
its state and writes their effects into tables of the ledger's file, in the transaction that adds
the entries; when that is committed, the copy becomes the state. Now and then the state itself is
kept (:mod:`ledger.fold.kept`). Nothing in these tables says more than the entries do: they can be
thrown away, and :meth:`Loose.differing` finds what is not as a fresh fold has it.
:mod:`ledger.fold.history` reads them.
"""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple
from itertools import zip_longest
from typing import Any, Protocol

from artel.ledger import entries
from artel.ledger.entries import KINDS, Entry
from artel.ledger.entries.body import OfWork, portions, size_of
from artel.ledger.entries.fold_state import FoldState, peer_of
from artel.ledger.entries.records import KINDS_OF_WORK, Account, Outcome, Term
from artel.ledger.fold.kept import Leaves, Query, is_as_kept, keep, kept_by
from artel.ledger.fold.replay import decoded
from artel.ledger.fold.shares import apply
from artel.protocol.errors import CheckFailed, DecodeError

STATUSES = ("ignored", "recorded", "credited")
"""Of entries."""
PENDING, VESTED, INVALIDATED = range(3)
"""Of credit."""
NONE = -1
"""Stands for the index of an entry, or the number of a round, that there is not."""

TABLES = (
    # Accounts and nodes; the other tables name them by these numbers.
    "CREATE TABLE names(id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE)",
    "CREATE TABLE effects(idx INTEGER PRIMARY KEY, kind INTEGER NOT NULL, round INTEGER NOT NULL,"
    " attempt INTEGER NOT NULL, work INTEGER NOT NULL, status INTEGER NOT NULL,"
    " reason TEXT NOT NULL, notes TEXT NOT NULL)",
    "CREATE INDEX effects_by_kind ON effects(kind)",
    "CREATE INDEX effects_by_round ON effects(round) WHERE round >= 0",
    "CREATE INDEX effects_by_work ON effects(work) WHERE work >= 0",
    # Which entries say something about an account, or name a node.
    "CREATE TABLE mentions(name INTEGER, idx INTEGER, PRIMARY KEY(name, idx)) WITHOUT ROWID",
    # Which node belongs to which account from which entry on.
    "CREATE TABLE bindings(node INTEGER, idx INTEGER, account INTEGER NOT NULL,"
    " PRIMARY KEY(node, idx)) WITHOUT ROWID",
    "CREATE INDEX bindings_by_account ON bindings(account)",
    "CREATE TABLE shown(idx INTEGER PRIMARY KEY, node INTEGER NOT NULL, id TEXT NOT NULL,"
    " tokens INTEGER NOT NULL)",
    "CREATE INDEX shown_by_node ON shown(node)",
    # The source of compute is the id of the contribution, and stands in shown.
    "CREATE TABLE credits(number INTEGER PRIMARY KEY, source TEXT NOT NULL, kind INTEGER NOT NULL,"
    " account INTEGER NOT NULL, node INTEGER, round INTEGER NOT NULL, units INTEGER NOT NULL,"
    " rate INTEGER NOT NULL, work INTEGER NOT NULL, granted INTEGER NOT NULL, due INTEGER NOT NULL,"
    " settled INTEGER NOT NULL DEFAULT -1, status INTEGER NOT NULL DEFAULT 0,"
    # By which entry it was taken away after it had vested.
    " taken INTEGER NOT NULL DEFAULT -1)",
    "CREATE INDEX credits_by_account ON credits(account)",
    "CREATE INDEX credits_by_work ON credits(work)",
    "CREATE INDEX credits_by_granted ON credits(granted)",
    "CREATE INDEX credits_by_settled ON credits(settled) WHERE settled >= 0",
    "CREATE INDEX credits_by_taken ON credits(taken) WHERE taken >= 0",
    "CREATE TABLE left_out(number INTEGER PRIMARY KEY, idx INTEGER NOT NULL,"
    " round INTEGER NOT NULL, attempt INTEGER NOT NULL, node INTEGER NOT NULL,"
    " account INTEGER NOT NULL, reason TEXT NOT NULL)",
    "CREATE INDEX left_out_by_idx ON left_out(idx)",
    "CREATE INDEX left_out_by_node ON left_out(node)",
    "CREATE INDEX left_out_by_account ON left_out(account)",
    # Vested credit whenever it changed, by the number of the newest state; without a name: in all.
    "CREATE TABLE held(name INTEGER, state INTEGER, vested INTEGER NOT NULL,"
    " PRIMARY KEY(name, state)) WITHOUT ROWID",
    "CREATE TABLE terms(number INTEGER PRIMARY KEY, begins INTEGER NOT NULL, leader TEXT NOT NULL)",
    "CREATE TABLE kept(size INTEGER PRIMARY KEY, rules BLOB NOT NULL, state BLOB NOT NULL,"
    " digest BLOB NOT NULL)",
)

_PAGE = 128 << 10
"""Bytes of entries whose effects are written together."""


class Store(Leaves, Protocol):
    """A ledger in a file that this process owns (:class:`ledger.store.store.LedgerStore`)."""

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]: ...

    def deriving(self) -> AbstractContextManager[sqlite3.Connection]: ...


class Fold:
    """The fold over a store, for the one process that appends to it. Make one with :meth:`open`.

    ``state`` is never changed: after a commit another one takes its place, so any thread may look
    at it. The store calls :meth:`beside`, its owner :meth:`settle` when entries are in.
    """

    def __init__(self, state: FoldState) -> None:
        self.state = state
        self.begun, self._outcomes = state.copy(), list[Outcome]()
        """The state with what :meth:`beside` was given, committed or not."""
        self.anew = False
        """Whether what is committed, and not settled, takes the place of what was there."""

    @classmethod
    def open(cls, store: Store) -> Fold:
        """The fold over all that is in a store; what has no effects yet gets them.

        Effects that do not come to what the state says are thrown away and computed again. That
        costs two passes over tables (0.1 s at 100,000 entries); :mod:`ledger.store.verify` compares
        every row.

        :raises CheckFailed: when an entry does not decode
        """
        found = kept_by(store.query, store, store.size)
        if found is None or not _adds_up(store.query, found):
            with store.deriving() as connection:
                clear(connection)
            found = FoldState()
        fold = cls(found)
        rest = checked(store.leaves(found.size), found.size)
        for page in portions(rest, 16 * _PAGE):
            with store.deriving() as connection:
                fold.beside(connection, page, fold.state.size)
            fold.settle()
        return fold

    def beside(self, connection: sqlite3.Connection, new: Sequence[Entry], first: int) -> None:
        """Apply entries and write their effects (a :data:`ledger.store.store.Beside`)."""
        if first == self.state.size:  # whatever was begun before has come to nothing
            self.begun, self._outcomes = self.state.copy(), []
        if first != self.begun.size:
            raise CheckFailed(f"the fold is at entry {self.begun.size}, the ledger at {first}")
        self._outcomes += write(connection, self.begun, new)

    def require_terms(self, terms: Iterable[Term]) -> None:
        """Refuse terms that somebody says to begin in what :meth:`beside` was given, and do not.

        :raises CheckFailed: so it is: nothing behind that entry has to be read
        """
        for term in terms:
            if term.begins < self.begun.size and term not in self.begun.terms:
                raise CheckFailed(
                    f"entry {term.begins} does not begin term {term.number}: the electors have not "
                    "sealed the one before",
                    "whoever shows it lies: ask another holder of the ledger",
                )

    def begin_anew(self, other: Fold) -> None:
        """What is committed was folded by another one, from entry 0 on: :meth:`settle` takes that
        over."""
        self.begun, self._outcomes, self.anew = other.begun, other._outcomes, True

    def settle(self) -> list[Outcome]:
        """What :meth:`beside` was given is committed: go on from there.

        :returns: what each entry did
        """
        outcomes, self._outcomes = self._outcomes, []
        self.state, self.anew = self.begun, False
        return outcomes


# --- writing --------------------------------------------------------------------------------------

_COLUMNS = {
    "effects": "idx kind round attempt work status reason notes",
    "mentions": "name idx",
    "bindings": "node idx account",
    "shown": "idx node id tokens",
    "credits": "number source kind account node round units rate work granted due",
    "left_out": "idx round attempt node account reason",
    "held": "name state vested",
    "terms": "number begins leader",
}
_NAMED = ("name", "node", "account")
_PLACES = {
    table: [at for at, column in enumerate(columns.split()) if column in _NAMED]
    for table, columns in _COLUMNS.items()
}
"""Where the rows of a table have names."""


class _Rows:
    """What is to be written."""

    def __init__(self) -> None:
        self.tables: dict[str, list[tuple[object, ...]]] = {table: [] for table in _COLUMNS}
        self.names: dict[object, None] = {}
        """In the order of the entries: numbered alike however many are written at once."""
        self.settled: list[tuple[int, int, int]] = []
        self.taken: list[tuple[int, int]] = []

    def add(self, table: str, *row: object) -> None:
        """One row, with names in the place of their numbers."""
        self.tables[table].append(row)
        for at in _PLACES[table]:
            self.names[row[at]] = None


def write(connection: sqlite3.Connection, state: FoldState, new: Sequence[Entry]) -> list[Outcome]:
    """Apply the next entries to a state of one's own, and write what they do.

    Everything of one table goes in with one statement: Python gives up its lock for each step of a
    statement, and with a busy thread beside this one getting it back can take 5 ms every time.
    """
    rows, outcomes = _Rows(), list[Outcome]()
    for entry in new:
        if isinstance(entry.body, entries.RolledBack):
            _flush(connection, rows)
            rows, before = _Rows(), state.round
            outcomes.append(_applied(state, entry, rows))
            if state.round < before:
                _fold_back(connection, state.round)
        else:
            outcomes.append(_applied(state, entry, rows))
    _flush(connection, rows)
    keep(connection, state)
    return outcomes


def _flush(connection: sqlite3.Connection, rows: _Rows) -> None:
    connection.execute(
        "INSERT OR IGNORE INTO names(name) SELECT value FROM json_each(?)",
        (json.dumps(list(rows.names)),),
    )
    for table, columns in _COLUMNS.items():
        if rows.tables[table]:
            _insert(connection, table, columns.split(), rows.tables[table])
    if rows.settled:
        connection.execute(
            "UPDATE credits SET settled = json_extract(value, '$[1]'),"
            " status = json_extract(value, '$[2]') FROM json_each(?)"
            " WHERE number = json_extract(value, '$[0]')",
            (json.dumps(rows.settled),),
        )
    if rows.taken:
        connection.execute(
            "UPDATE credits SET taken = json_extract(value, '$[1]') FROM json_each(?)"
            " WHERE number = json_extract(value, '$[0]')",
            (json.dumps(rows.taken),),
        )


def _fold_back(connection: sqlite3.Connection, state: int) -> None:
    """The run went back to this state: what was vested last is what was vested with it."""
    connection.execute(
        "INSERT OR REPLACE INTO held SELECT name, ?, vested FROM held h WHERE state ="
        " (SELECT max(state) FROM held WHERE name = h.name) AND state > ?",
        (state, state),
    )
    connection.execute("DELETE FROM held WHERE state > ?", (state,))


def _applied(state: FoldState, entry: Entry, rows: _Rows) -> Outcome:
    index, body = state.size, entry.body
    about, (round, attempt) = body.concerns(state), body.place(state)
    judged = state.work_pending(body.contribution) if isinstance(body, OfWork) else None
    work = judged.credit.work if judged is not None else NONE
    outcome = apply(state, entry)
    notes = json.dumps(outcome.notes) if outcome.notes else ""
    did = (STATUSES.index(outcome.status), outcome.reason, notes)
    rows.add("effects", index, KINDS.index(entry.kind), round, attempt, work, *did)
    named = (about | body.concerns(state)) & state.accounts.keys()
    named |= _nodes(entry) & state.nodes.keys()
    for name in sorted(named):
        rows.add("mentions", name, index)
    if isinstance(body, entries.Contribution):
        rows.add("shown", index, body.node, entry.id, body.tokens)
    elif isinstance(body, entries.Genesis | entries.Handover) and outcome.status != "ignored":
        rows.add("terms", *astuple(state.term))
    elif isinstance(body, entries.Node) and outcome.status != "ignored":
        rows.add("bindings", body.node, index, body.account)
    for item in outcome.left_out:
        place = (item.round, item.attempt, item.node, item.account)
        rows.add("left_out", index, *place, item.reason)
    _moved(state, index, outcome, rows)
    return outcome


def _moved(state: FoldState, index: int, outcome: Outcome, rows: _Rows) -> None:
    """Credit that an entry granted, settled or gave to another account."""
    for c in outcome.granted:
        item = state.pending.get(c.source)
        due = item.due if item is not None else state.round
        source, kind = "" if c.kind == "compute" else c.source, KINDS_OF_WORK.index(c.kind)
        row = (c.number, source, kind, c.account, c.node, c.round, c.units, c.rate, c.work)
        rows.add("credits", *row, index, due)
    rows.settled += [(c.number, index, VESTED) for c in outcome.vested]
    rows.settled += [(c.number, index, INVALIDATED) for c in outcome.invalidated]
    rows.taken += [(c.number, index) for c in outcome.taken]
    changed = {c.account for c in (*outcome.vested, *outcome.taken)}
    changed |= {name for name, _ in (*outcome.moved, *outcome.stakes)}
    for name in sorted(changed):
        rows.add("held", name, state.round, state.accounts[name].vested)
    if changed:
        rows.add("held", "", state.round, state.total_vested)


def _insert(
    connection: sqlite3.Connection, table: str, columns: list[str], rows: list[tuple[object, ...]]
) -> None:
    values = [f"json_extract(value, '$[{place}]')" for place in range(len(columns))]
    for place in _PLACES[table]:
        values[place] = f"(SELECT id FROM names WHERE name = {values[place]})"
    # A later row about the same state takes the place of an earlier one.
    verb = "INSERT OR REPLACE" if table == "held" else "INSERT"
    connection.execute(
        f"{verb} INTO {table}({', '.join(columns)}) SELECT {', '.join(values)} FROM json_each(?)",
        (json.dumps(rows),),
    )


def _nodes(entry: Entry) -> set[str]:
    """Peer ids that an entry names, as signers included."""
    fields = vars(entry.body)
    named = {peer_of(key) for key in entry.envelope.signers}
    if isinstance(node := fields.get("node"), str):
        named.add(node)
    for listed in ("members", "commitments", "signatures"):
        named.update(fields.get(listed, ()))
    for listed in ("accepted", "rejected", "cosignatures"):
        named.update(item.node for item in fields.get(listed, ()))
    return named


def clear(connection: sqlite3.Connection) -> None:
    """Throw everything away."""
    for table in tables():
        connection.execute(f"DELETE FROM {table}")


def tables() -> list[str]:
    """Names of the tables, without their indices."""
    words = [text.replace("(", " ").split() for text in TABLES]
    return [name for _, what, name, *_ in words if what == "TABLE"]


def _adds_up(query: Query, state: FoldState) -> bool:
    """Whether the effects come to the credit of every account, and the entries of every kind."""
    sums = query(
        f"SELECT name, status, amount FROM (SELECT account, iif(taken < 0, status, {INVALIDATED})"
        " AS status, sum(units * rate) AS amount FROM credits GROUP BY 1, 2)"
        " JOIN names ON id = account",
        (),
    )
    owners = state.accounts.items()
    expected = {(name, at): sum for name, owner in owners for at, sum in credited(owner).items()}
    kinds, ignored = Counter[str](), Counter[str]()
    counted = query("SELECT kind, reason, count(*) FROM effects GROUP BY 1, 2", ())
    for kind, reason, count in counted:
        kinds[KINDS[kind] if kind in range(len(KINDS)) else ""] += count
        ignored[reason] += count
    del ignored[""]
    found = {(name, at): amount for name, at, amount in sums if amount}
    terms = query("SELECT number, begins, leader FROM terms ORDER BY number", ())
    told = (found, kinds, ignored, terms)
    return told == (expected, state.kinds, state.ignored, list(map(astuple, state.terms)))


def credited(owner: Account) -> dict[int, int]:
    """All that an account was ever credited with, by what became of it; without zeros.

    What a conviction took of all that had vested is of no one credit: these stay vested.
    """
    vested = owner.vested + owner.staked + owner.sent - owner.received
    gone = owner.invalidated - owner.staked
    sums = {PENDING: owner.pending, VESTED: vested, INVALIDATED: gone}
    return {status: amount for status, amount in sums.items() if amount}


def checked(leaves: Iterable[bytes], start: int, *, processes: bool = False) -> Iterator[Entry]:
    """Entries from ``start`` on with their signatures checked.

    :param processes: as in :func:`ledger.fold.replay.decoded`
    :raises CheckFailed: when one does not decode
    """
    done = start
    try:
        for _, entry in decoded(leaves, processes=processes):
            done += 1
            yield entry
    except DecodeError as error:
        raise CheckFailed(f"entry {done} does not decode: {error.message}") from None


# --- computed again -------------------------------------------------------------------------------


class Loose:
    """Effects in a passing file of their own: of a ledger that is not ours to write to, or to hold
    those of a ledger against them.

    :param kept: states that another one has kept (size, rules, state, digest)
    """

    def __init__(self, kept: Iterable[tuple[Any, ...]] = ()) -> None:
        self.connection = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        for statement in TABLES:
            self.connection.execute(statement)
        self.connection.execute("BEGIN")
        self.state = FoldState()
        self.wrong = ""
        """Which of the kept states is not the one of this fold, in words."""
        self._kept = {row[0]: row for row in kept}
        self._new, self._bytes = list[Entry](), 0

    def add(self, entry: Entry) -> None:
        """Take the next entry; it is folded with those after it."""
        self._new.append(entry)
        self._bytes += size_of(entry)
        if self._bytes >= _PAGE or self.state.size + len(self._new) in self._kept:
            self.flush()

    def flush(self) -> None:
        """Fold what was taken."""
        write(self.connection, self.state, self._new)
        self._new, self._bytes = [], 0
        row = self._kept.pop(self.state.size, None)
        if row is not None and not is_as_kept(self.state, *row[1:]):
            self.wrong = self.wrong or f"the kept state of {self.state.size} entries is another"

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a reading statement."""
        return self.connection.execute(sql, parameters).fetchall()

    def differing(self, stored: sqlite3.Connection) -> str:
        """The first effect or kept state in another ledger's file that is not as here, in words;
        "" when there is none."""
        if self._kept:
            return f"a state of {min(self._kept)} entries is kept, and there is none"
        if self.wrong:
            return self.wrong
        for table in tables()[:-1]:
            query = f"SELECT * FROM {table}"
            rows = zip_longest(stored.execute(query), self.connection.execute(query))
            for number, (row, expected) in enumerate(rows):
                if row != expected:
                    return f"row {number} of {table} is not what the entries give"
        return ""

    def close(self) -> None:
        """Throw it away."""
        self.connection.close()
