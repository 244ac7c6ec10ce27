"""What the pages look up: each entry's kind, round and outcome, and each account's credit.

A :class:`LedgerIndex` folds the ledger for itself, a batch at a time and in whatever thread asks,
so that no page makes the daemon's own fold wait. It keeps numbers in arrays, about 100 bytes for
each entry; the entries themselves stay in the database.
"""

from __future__ import annotations

import threading
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from artel.ledger import entries
from artel.ledger.entries import KINDS, Entry
from artel.ledger.entries.state import KINDS_OF_WORK, Credit, FoldState, LeftOut, Outcome, Pending
from artel.ledger.fold.replay import check_signatures
from artel.ledger.fold.shares import apply
from artel.ledger.store.reading import LedgerReader
from artel.protocol.errors import CheckFailed

PENDING, VESTED, INVALIDATED = range(3)
_BATCH = 256
_NONE = -1


@dataclass(frozen=True)
class Credited:
    """Credit, and the entries that gave it, gave rise to it, and made it vest or go."""

    number: int
    kind: str
    account: str
    node: str
    """Peer id; "" for data."""
    round: int
    units: int
    rate: int
    source: int
    """Index of the contribution or verdict that it was given for."""
    granted: int
    """Index of the entry that granted it."""
    settled: int
    """Index of the entry by which it vested or was taken away; -1 while it is pending."""
    status: int

    @property
    def amount(self) -> int:
        return self.units * self.rate


@dataclass(frozen=True)
class Rejection:
    """Work of a node that was left out, by the entry at ``index``."""

    index: int
    round: int
    node: str
    reason: str


@dataclass(frozen=True)
class Summary:
    """What is known of an entry without reading it."""

    index: int
    kind: str
    round: int
    """-1 for entries that belong to no round."""
    reason: str
    """Why it changed nothing; "" when it counts."""


@dataclass
class _Trail:
    """What concerns one account, as numbers of credits and indices of entries."""

    credits: array[int] = field(default_factory=lambda: array("L"))
    statements: array[int] = field(default_factory=lambda: array("L"))
    rejections: array[int] = field(default_factory=lambda: array("L"))


class _Names:
    """Small numbers for long names."""

    def __init__(self) -> None:
        self._numbers: dict[str, int] = {}
        self._names: list[str] = []

    def number(self, name: str) -> int:
        number = self._numbers.setdefault(name, len(self._names))
        if number == len(self._names):
            self._names.append(name)
        return number

    def __getitem__(self, number: int) -> str:
        return self._names[number]


class LedgerIndex:
    """Follows a store; read it inside :meth:`reading`.

    :meth:`follow` may be called from any thread, and so may :meth:`reading`: whoever reads sees the
    index as it is between two batches, all of it as of the same entry.
    """

    def __init__(self, store: LedgerReader) -> None:
        self.store = store
        self.state = FoldState()
        """The fold as of :attr:`size`; only to be looked at inside :meth:`reading`."""
        self._following = threading.Lock()  # one thread reads on; guards the next one
        self._broken = False
        self._reading = threading.RLock()  # guards all that follows
        self._kinds, self._rounds, self._reasons = array("B"), array("l"), array("L")
        self._codes = _Names()
        self._codes.number("")
        self._names = _Names()
        self._by_kind: dict[str, array[int]] = {}
        self._by_round: dict[int, array[int]] = {}
        self._trails: dict[str, _Trail] = {}
        self._granted: dict[int, range] = {}
        self._settled: dict[int, list[int]] = {}
        self._agreed = array("L")  # of state 1, 2, ...: index of the entry
        self._moves: list[tuple[int, int, int]] = []  # (state number, account, vested credit)
        self._open: dict[str, int] = {}  # source of pending credit to its number
        self._sources: dict[int, str] = {}  # and back
        self._credit = tuple(array(code) for code in "BLLlQLlLlB")  # columns, as in _add_credit
        self._left_out = tuple(array(code) for code in "LlLL")  # index, round, node, reason

    # --- following --------------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Entries that are in the index."""
        return self.state.size

    def follow(self, at_most: int = 1 << 53, wait: float = -1) -> bool:
        """Read on in the store, at most this many entries (rounded up to a batch); blocks.

        :param wait: seconds to wait for another thread that reads on; -1 means until it is done
        :returns: whether the index is at the end of the store
        :raises CheckFailed: the index fell over an entry before, and is of no use any more
        """
        if not self._following.acquire(timeout=wait):
            return False
        try:
            if self._broken:
                raise CheckFailed("the explorer's index is broken", "start this process again")
            stop = min(self.store.size, self.size + at_most)
            while self.size < stop:
                start = self.size
                leaves = self.store.leaves(start, start + _BATCH)
                batch = list(check_signatures(map(entries.decode, leaves)))
                with self._reading:
                    self._broken = True  # unless all of it gets in
                    for index, entry in enumerate(batch, start):
                        self._add(index, entry)
                    self._broken = False
            return self.size >= self.store.size
        finally:
            self._following.release()

    @contextmanager
    def reading(self) -> Iterator[None]:
        """Nothing changes inside."""
        with self._reading:
            yield

    def _add(self, index: int, entry: Entry) -> None:
        state, body = self.state, entry.body
        about = body.concerns(state)
        round, _ = body.place(state)
        outcome = apply(state, entry)
        self._kinds.append(KINDS.index(body.KIND))
        self._rounds.append(round)
        self._reasons.append(self._codes.number(outcome.reason))
        self._by_kind.setdefault(body.KIND, array("L")).append(index)
        if round != _NONE:
            self._by_round.setdefault(round, array("L")).append(index)
        for account in (about | body.concerns(state)) & state.accounts.keys():
            self._trail(account).statements.append(index)
        if isinstance(body, entries.StateAgreed) and outcome.status != "ignored":
            self._agreed.append(index)
        for item in outcome.left_out:
            self._note_left_out(index, item)
        for account, amount in outcome.moved:
            self._moves.append((state.round, self._names.number(account), amount))
        self._note_credit(index, outcome)

    def _note_left_out(self, index: int, item: LeftOut) -> None:
        self._trail(item.account).rejections.append(len(self._left_out[0]))
        row = (index, item.round, self._names.number(item.node), self._codes.number(item.reason))
        for column, value in zip(self._left_out, row, strict=True):
            column.append(value)

    def _note_credit(self, index: int, outcome: Outcome) -> None:
        first = len(self._credit[0])
        for number, credit in enumerate(outcome.granted, first):
            self._open[credit.source], self._sources[number] = number, credit.source
            self._trail(credit.account).credits.append(number)
            self._add_credit(index, credit)
        if outcome.granted:
            self._granted[index] = range(first, len(self._credit[0]))
        settled, statuses = self._credit[8], self._credit[9]
        for status, gone in ((VESTED, outcome.vested), (INVALIDATED, outcome.invalidated)):
            for credit in gone:
                number = self._open.pop(credit.source)
                del self._sources[number]
                settled[number], statuses[number] = index, status
                self._settled.setdefault(index, []).append(number)
                if status == VESTED:
                    account = self._names.number(credit.account)
                    self._moves.append((self.state.round, account, credit.amount))

    def _add_credit(self, index: int, credit: Credit) -> None:
        row = (
            KINDS_OF_WORK.index(credit.kind),
            self._names.number(credit.account),
            self._names.number(credit.node),
            credit.round,
            credit.units,
            credit.rate,
            credit.work,
            index,
            _NONE,
            PENDING,
        )
        for column, value in zip(self._credit, row, strict=True):
            column.append(value)

    def _trail(self, account: str) -> _Trail:
        return self._trails.setdefault(account, _Trail())

    # --- looking up, inside reading() -------------------------------------------------------------

    def summary(self, index: int) -> Summary:
        """What is known of the entry at ``index``, which is below :attr:`size`."""
        kind, reason = KINDS[self._kinds[index]], self._codes[self._reasons[index]]
        return Summary(index, kind, self._rounds[index], reason)

    def of_kind(self, kind: str) -> Sequence[int]:
        """Indices of the entries of a kind, in order."""
        return self._by_kind.get(kind, ())

    def of_round(self, round: int) -> Sequence[int]:
        """Indices of the entries that belong to a round, in order."""
        return self._by_round.get(round, ())

    @property
    def rounds(self) -> Mapping[int, Sequence[int]]:
        """All rounds that have entries."""
        return MappingProxyType(self._by_round)

    def agreed(self, state: int) -> int | None:
        """Index of the entry that agreed on the state with this number (from 1)."""
        return self._agreed[state - 1] if 1 <= state <= len(self._agreed) else None

    def credit(self, number: int) -> Credited:
        """The credit with this number, in the order in which it was granted."""
        kind, account, node, *rest = (column[number] for column in self._credit)
        return Credited(number, KINDS_OF_WORK[kind], self._names[account], self._names[node], *rest)

    def granted_by(self, index: int) -> list[Credited]:
        """Credit that the entry at ``index`` granted."""
        return [self.credit(number) for number in self._granted.get(index, ())]

    def settled_by(self, index: int) -> list[Credited]:
        """Credit that vested or was taken away by the entry at ``index``."""
        return [self.credit(number) for number in self._settled.get(index, ())]

    def left_out_by(self, index: int) -> list[Rejection]:
        """Work that the entry at ``index`` left out."""
        column = self._left_out[0]
        found = range(bisect_left(column, index), bisect_right(column, index))
        return [self.rejection(number) for number in found]

    def credits_of(self, account: str) -> Sequence[int]:
        """Numbers of all credit of an account, oldest first."""
        trail = self._trails.get(account)
        return trail.credits if trail is not None else ()

    def statements_of(self, account: str) -> Sequence[int]:
        """Indices of entries that say something about an account, oldest first."""
        trail = self._trails.get(account)
        return trail.statements if trail is not None else ()

    def rejections_of(self, account: str) -> Sequence[int]:
        """Numbers of the rejections of an account's nodes, oldest first."""
        trail = self._trails.get(account)
        return trail.rejections if trail is not None else ()

    def rejection(self, number: int) -> Rejection:
        """The rejection with this number."""
        index, round, node, reason = (column[number] for column in self._left_out)
        return Rejection(index, round, self._names[node], self._codes[reason])

    def due(self, credit: Credited) -> int | None:
        """The number of the state at which pending credit vests; None when it is not pending."""
        item = self._waiting(credit)
        return None if item is None else max(item.due, item.lapses if item.disputed_by else 0)

    def disputed_by(self, credit: Credited) -> str:
        """The account that froze pending credit, or ""."""
        item = self._waiting(credit)
        return item.disputed_by if item is not None else ""

    def _waiting(self, credit: Credited) -> Pending | None:
        return self.state.pending.get(self._sources.get(credit.number, ""))

    def moves(self) -> Iterator[tuple[int, str, int]]:
        """Every change of vested credit: (number of the newest state then, account, amount)."""
        return ((state, self._names[account], amount) for state, account, amount in self._moves)
