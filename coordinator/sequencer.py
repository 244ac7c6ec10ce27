"""The sequencer: gives entries their place in the ledger and signs the tree head over them."""

from __future__ import annotations

import asyncio
import sys
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

from artel.ledger import entries
from artel.ledger.entries import Entry, reasons
from artel.ledger.fold.effects import Fold
from artel.ledger.fold.replay import check_all, cores
from artel.ledger.fold.shares import FoldState, Outcome
from artel.ledger.store.finality import size_of
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.second import TAIL, SecondMemory
from artel.ledger.store.store import MAX_BATCH, LedgerStore
from artel.ledger.tlog.checkpoint import origin_of, parse_checkpoint, sign_checkpoint
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from artel.protocol.identity import Identity
from artel.protocol.net.wire import Refused

MAX_WAITING = 4096
"""Entries accepted and not yet durable; more are refused, as Tessera's pushback does. What comes
from outside is refused long before (:mod:`coordinator.submission`), so that rounds go on."""

SWITCH_S = 0.0005

AGAIN = Outcome("ignored", reasons.DUPLICATE)
"""Of a statement that the ledger had already."""


@dataclass(frozen=True)
class Late:
    """An entry of the coordinator's own that says what the entries before it amount to.

    It is made when its place is known, gets a commit of its own, and is appended alone.
    """

    kind: str
    make: Callable[[FoldState], Envelope]


Statement = Envelope | Entry | Late


@dataclass(eq=False)
class _Append:
    """One call of :meth:`Sequencer.append`: its entries get neighbouring places, or none."""

    statements: tuple[Statement, ...]
    done: asyncio.Future[None]
    entries: list[Entry] = field(default_factory=list)
    ids: list[str] = field(default_factory=list)
    """Of all statements, also of those that the ledger has already."""
    outcomes: list[Outcome] = field(default_factory=list)
    error: ArtelError | None = None
    dropped: bool = False
    writing: bool = False

    @property
    def late(self) -> Late | None:
        first = self.statements[0]
        return first if isinstance(first, Late) else None


@dataclass
class _Commit:
    """What one commit added, and why it failed if it did."""

    entries: list[Entry]
    error: BaseException | None = None


class Sequencer:
    """Owns a run's ledger on the coordinator: the store, and the fold over it.

    Entries are durable, hashed again from what was read back, and covered by a signed tree head
    before :meth:`append` returns; only then may anybody be told of them.

    Commits are shared. Calls pass two stations in the order in which they came: their entries are
    decoded and their signatures checked (a thread for each core), then everything that is ready,
    at most 256 entries, is written in one commit. While one commit is under way the calls that
    come in are checked and collect for the next one. So an entry waits for the commit under way
    and its own, and for others only when more than 256 entries are ahead of it. There is no timer
    that would let a commit wait for company: with nothing under way a commit begins at once, and
    when many submit, the time that a commit takes is what fills the next one. (Logs whose commit
    is a round trip to a cloud store collect for 250 ms or so; here that would only be delay.)

    The fold's effects are committed with the entries. Its ``state`` never speaks of entries that
    are not durable: after a commit, in the event loop, another one takes its place.

    The event loop owns it: no other thread may call.

    :param heads: keeps what was signed, so that a ledger that is put back from a backup later is
        found out; None: nothing does
    :param second: keeps the same outside of the home
    """

    def __init__(
        self,
        store: LedgerStore,
        identity: Identity,
        run: str,
        heads: HeadStore | None = None,
        *,
        second: SecondMemory | None = None,
    ) -> None:
        self.store = store
        self.fold = Fold.open(store)
        if store.size and self.state.run != run:
            raise CheckFailed(
                "the ledger in this home belongs to another run", "use another --home"
            )
        self._identity = identity
        self._run = run
        self._heads, self._second = heads, second
        self._noted = second.newest(self._origin) if second is not None else ""
        self._stopped: ArtelError | None = None
        if store.size and parse_checkpoint(store.latest_note).origin == self._origin:
            self._remember()  # a crash may have come between the commit and this
        # Not the loop's own pool: whoever fills that one up with slow work must not hold up the
        # ledger. One thread writes, the others check.
        self._cores = cores()
        # A thread that has checked a signature asks for the interpreter's lock again, and a loop
        # that is busy (with refusing a flood, say) hands it over only after this time: by default
        # 5 ms, in which 50 signatures could have been checked.
        sys.setswitchinterval(min(SWITCH_S, sys.getswitchinterval()))
        self._threads = ThreadPoolExecutor(self._cores + 1, thread_name_prefix="sequencer")
        self._arrived: deque[_Append] = deque()
        self._ready: deque[_Append] = deque()
        self._checking = self._writing = False
        self._waiting = 0

    @property
    def state(self) -> FoldState:
        """The fold over all that is durable."""
        return self.fold.state

    @property
    def waiting(self) -> int:
        """Entries that were accepted and are not durable yet."""
        return self._waiting

    async def append(self, *statements: Statement) -> list[Outcome]:
        """Append statements in this order, without others in between.

        Those that the ledger has already are left out. An :class:`Entry` (which came out of
        ``decode``) is not decoded again, nor are its signatures checked again if they have been.

        Cancelled before its commit has begun, nothing is appended; after that, the cancellation
        is raised when the commit has ended, and the entries are in the ledger or will never be.

        :returns: what the fold made of each statement; one that was there before changes nothing
            (:data:`AGAIN`)
        :raises DecodeError: a statement is no ledger entry
        :raises CheckFailed: a signature does not verify
        :raises Refused: ``busy``: too much is waiting already
        :raises ResourceError: the disk is full or does not work; nothing was appended
        """
        if not statements:
            return []
        if len(statements) > MAX_BATCH:
            raise UsageError(f"at most {MAX_BATCH} entries can be appended at once")
        if self._waiting + len(statements) > MAX_WAITING:
            raise Refused(
                f"{self._waiting} entries are waiting to be written",
                "send it again in a few seconds; nothing was kept of it",
                code="busy",
            )
        call = _Append(statements, asyncio.get_running_loop().create_future())
        self._arrived.append(call)
        self._waiting += len(statements)
        self._pump()
        try:
            await asyncio.shield(call.done)
        except asyncio.CancelledError as cancelled:
            if not call.writing:
                call.dropped = True
                self._waiting -= len(statements)
                raise
            while not call.done.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait((call.done,))
            raise cancelled from call.done.exception()
        return call.outcomes

    def stop(self, error: ArtelError) -> None:
        """Sign nothing any more; whoever waits, or appends from now on, gets ``error``."""
        self._stopped = error

    # --- the two stations -------------------------------------------------------------------------

    def _pump(self) -> None:
        """Set both stations to work, if they are idle and there is something to do."""
        loop = asyncio.get_running_loop()
        if not self._checking and (calls := _take(self._arrived)):
            self._checking = True
            parts = [calls[at :: self._cores] for at in range(min(self._cores, len(calls)))]
            check = asyncio.gather(
                *(loop.run_in_executor(self._threads, self._check, part) for part in parts)
            )
            check.add_done_callback(partial(self._checked, calls))
        if not self._writing and (calls := _take(self._ready)):
            self._writing = True
            for call in calls:
                call.writing = True
            write = loop.run_in_executor(self._threads, self._write, calls)
            write.add_done_callback(partial(self._written, calls))

    def _checked(self, calls: list[_Append], check: asyncio.Future[list[None]]) -> None:
        self._checking = False
        failure = check.exception()
        for call in calls:
            error = failure or call.error
            if call.dropped:
                continue
            if error is None:
                self._ready.append(call)
            else:
                self._end(call, error)
        self._pump()

    def _check(self, calls: list[_Append]) -> None:
        """Decode the entries of each call and check their signatures. In a thread of its own."""
        calls = [call for call in calls if call.late is None]
        leaves: dict[str, bytes] = {}
        for call in calls:
            for statement in call.statements:
                if isinstance(statement, Entry):
                    call.ids.append(statement.id)
                elif isinstance(statement, Envelope):
                    leaf = statement.encode()
                    call.ids.append(entries.entry_id(leaf))
                    leaves[call.ids[-1]] = leaf
        # What is there already costs no signature check: sending it again is the cheapest flood.
        known = self.store.known(leaves)
        for call in calls:
            try:
                for name, statement in zip(call.ids, call.statements, strict=True):
                    if isinstance(statement, Entry):
                        call.entries.append(statement)
                    elif name not in known:
                        call.entries.append(entries.decode(leaves[name]))
            except ArtelError as error:
                call.error = error
        # First all are decoded, then all are checked: few changes between holding the
        # interpreter's lock and not.
        good = [call for call in calls if call.error is None]
        check_all([entry for call in good for entry in call.entries])
        for call in good:
            unsigned = next((entry for entry in call.entries if not entry.signers), None)
            if unsigned is not None:
                name = f"{unsigned.kind} entry {unsigned.id[:16]}…"
                call.error = CheckFailed(f"a signature of the {name} does not verify")

    def _write(self, calls: list[_Append]) -> _Commit:
        """Commit what the ledger does not have yet. In a thread of its own."""
        before = self.store.size
        fresh: dict[str, Entry] = {}
        try:
            if self._stopped is not None:
                raise self._stopped
            for call in calls:
                if call.late is not None:
                    entry = entries.decode(call.late.make(self.state).encode())
                    call.entries, call.ids = [entry], [entry.id]
            found = {entry.id: entry for call in calls for entry in call.entries}
            known = self.store.known(found)
            fresh = {entry: found[entry] for entry in found if entry not in known}
            if fresh:
                self.store.append(list(fresh.values()), self._sign, self.fold.beside)
                self._remember()
        except BaseException as error:  # whatever it is, it is for those who wait
            # An error after the commit (see LedgerStore) leaves the entries in the ledger.
            added = list(fresh.values()) if self.store.size > before else []
            return _Commit(added, error)
        return _Commit(list(fresh.values()))

    def _written(self, calls: list[_Append], write: asyncio.Future[_Commit]) -> None:
        self._writing = False
        written = write.result()
        outcomes: dict[str, Outcome] = {}
        if written.entries:
            names = (entry.id for entry in written.entries)
            outcomes = dict(zip(names, self.fold.settle(), strict=True))
        for call in calls:
            call.outcomes = [outcomes.get(name, AGAIN) for name in call.ids]
            self._end(call, written.error)
        self._pump()

    def _end(self, call: _Append, error: BaseException | None) -> None:
        self._waiting -= len(call.statements)
        if error is None:
            call.done.set_result(None)
        else:
            call.done.set_exception(error)

    @property
    def _origin(self) -> str:
        return origin_of(self._run, self.store.term)

    def _sign(self, size: int, root: bytes) -> str:
        return sign_checkpoint(self._identity, self._origin, size, root)

    def _remember(self) -> None:
        """Keep the newest head, durably, before anybody is told of it.

        As a compare-and-swap: whoever else has signed meanwhile, from a copy of this home, is
        noticed by the one of both that comes second.
        """
        store, kept = self.store, True
        if self._second is not None:
            first = max(size_of(self._noted), store.size - TAIL)
            kept = self._second.keep(store.latest_note, self._noted, list(store.leaves(first)))
            self._noted = store.latest_note
        if self._heads is not None:
            known = self._heads.witnessed(self._origin)
            old = known[0] if known is not None else 0
            kept = kept and self._heads.advance(self._origin, old, store.size, store.root)
        if not kept:
            raise CheckFailed(
                "another tree head than the one before this was signed last",
                "another process signs with a copy of this home: stop it, and check with artel "
                "ledger verify",
            )


def _take(queue: deque[_Append]) -> list[_Append]:
    """Whole calls from the front, of at most one batch of entries together; a late one alone."""
    calls: list[_Append] = []
    room = MAX_BATCH
    while queue and (queue[0].dropped or len(queue[0].statements) <= room):
        if calls and queue[0].late is not None:
            break
        call = queue.popleft()
        if not call.dropped:
            calls.append(call)
            room = 0 if call.late is not None else room - len(call.statements)
    return calls
