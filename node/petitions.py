"""Entries that the ledger would take and does not have: this node hands them to whoever leads until
they are there.

A coordinator cannot forge what others sign, but it could leave it out. So whoever is refused, or
does not find its entry in the ledger, shows it to a node; that hands it in itself, shows it to
electors if that does not help, and so do these. An elector that has handed it in for as long as a
coordinator may be silent, and still does not find it in the newest ledger that anybody shows, seals
the term (:mod:`.sealing`).

Nobody can use that against a coordinator that does its part. Whether the entry counts is judged by
this node's own copy of the ledger, again and again; only kinds are held of which that is all there
is to know, and nothing of accounts without accepted work
(:func:`ledger.fold.submitted.must_be_taken`). Of each account or node one entry is held, and as
soon as anything else of it gets into the ledger, and counts, its time begins anew: a coordinator
takes only so much of anybody in a minute. What counts for nothing is no reason to wait: whoever
leads could make it itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass, field

from artel.ledger import entries
from artel.ledger.entries import Entry, reasons
from artel.ledger.fold import shares
from artel.ledger.fold.submitted import BUDGETED, DECIDED, SUBMITTED, must_be_taken, speaker
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.replica import Replica
from artel.node import holders
from artel.node.link import Link
from artel.protocol import files, messages
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError, Unreachable
from artel.protocol.events import emit
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from artel.protocol.net.limits import RateLimits, network_of

log = logging.getLogger("artel.node")

FOLDER = "unsent"
"""In a node's home: entries of its own that may be given up with a term, until they are back."""
PACE_S = 2.0
"""Between two entries that are handed in, at most: well below what a coordinator takes of one."""
SHOWN = 8
"""Electors to whom an entry is shown at a time."""
MOST_HELD, MOST_OWN = 16, 256
PER_SOURCE_MINUTE, PER_SOURCE_AT_ONCE = 60, 20
ANSWER_S = 10.0


@dataclass(eq=False)
class Petition:
    """An entry that is handed in. Times are steady seconds."""

    entry: Entry
    own: bool
    tried: float
    """When it was handed in last; before that, from when on it is."""
    term: int = -1
    """That of the coordinator to which it was handed in."""
    since: float = 0.0
    """When that was for the first time, or when something else of the speaker was taken and
    counted."""
    missing: float = 0.0
    """When it was handed in last, and was in the ledger neither then nor afterwards."""
    shown: set[str] = field(default_factory=set)

    @property
    def speaker(self) -> str:
        return speaker(self.entry)


class Petitions:
    """What one node hands in; the event loop owns it.

    :param replica: of the node's home
    :param handover_s: ``coordination.handover_s`` of the run
    :param clock: steady seconds
    """

    def __init__(
        self,
        host: Host,
        run: str,
        replica: Replica,
        link: Link,
        handover_s: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._run, self._folder = host, run, replica.store.path.parent / FOLDER
        self._replica, self._link, self._clock = replica, link, clock
        self._pace, self._show_after = min(PACE_S, handover_s / 10), handover_s / 4
        self._limits = RateLimits(PER_SOURCE_MINUTE, PER_SOURCE_AT_ONCE, clock=clock)
        self._held: dict[str, Petition] = {}  # by entry id, those that came first at the front
        self._some = asyncio.Event()
        self._looked = 0  # so many entries of the ledger were looked at
        self.otherwise: Callable[[str, bytes], Awaitable[None]] = self._refuse
        """Takes what is handed in and is no entry that could be held."""
        replica.giving_up = self._save
        kept = self._folder.glob("?" * 64)
        for file in sorted(kept, key=lambda file: file.stat().st_mtime_ns):
            with contextlib.suppress(ArtelError, OSError):
                self._hold(entries.decode(file.read_bytes()), own=True)

    # --- what is held -----------------------------------------------------------------------------

    def add(self, *statements: Envelope) -> None:
        """Hand in what this node, or its account, has signed, if it is not there in a while."""
        for statement in statements:
            self._hold(entries.decode(statement.encode()), own=True, later=self._show_after)

    def again(self, lost: Iterable[Entry]) -> None:
        """Hand in again what was given up with a term. What belongs to an attempt is not, for the
        round is opened again; nor is a registration, which the next ``hello`` brings."""
        for entry in lost:
            if _is_sent_again(entry):
                self._hold(entry, own=True)

    async def take(self, source: str, statement: bytes) -> None:
        """Answer ``submit``: hold what would count, and hand it in.

        :param source: under which name whoever sends it is counted
        :raises Refused: it would change nothing, there is too much, or it is for the coordinator
        :raises DecodeError: it is no entry
        """
        name = entries.entry_id(statement)
        if name in self._held or self._replica.store.index_of(name) is not None:
            return
        wait = self._limits.take(network_of(source))
        if wait:
            raise _busy(f"try again in {wait + 1:.0f} seconds")
        entry = await asyncio.to_thread(_opened, statement)
        if not isinstance(entry.body, DECIDED):
            await self.otherwise(source, statement)
            return
        state = self._replica.state
        if reason := shares.check(state, entry):
            said = f"this {entry.kind} entry would change nothing: {reasons.explain(reason)}"
            raise wire.Refused(said, code=reason)
        if not must_be_taken(state, entry):
            await self._refuse(source, statement)
        others = [one for one in self._held.values() if not one.own]
        if len(others) >= MOST_HELD or speaker(entry) in {one.speaker for one in others}:
            raise _busy("wait until what was handed in before is in the ledger")
        self._hold(entry, own=False)

    def overlooked(self, patience: float) -> str:
        """The id of an entry that whoever leads has left out for this long (seconds), although it
        would count; "" for none."""
        state = self._replica.state
        for name, one in self._held.items():
            late = one.term == state.term.number and one.missing - one.since >= patience
            if late and must_be_taken(state, one.entry) and not shares.check(state, one.entry):
                return name
        return ""

    async def _refuse(self, source: str, statement: bytes) -> None:
        raise wire.Refused(
            "a node takes no such entry",
            "send it to the run's coordinator",
            code=messages.NOT_COORDINATOR,
        )

    def _hold(self, entry: Entry, *, own: bool, later: float = 0.0) -> None:
        if own and sum(one.own for one in self._held.values()) >= MOST_OWN:
            return
        if not self._held:
            self._looked = self._replica.state.size
        self._held.setdefault(entry.id, Petition(entry, own, self._clock() + later))
        self._some.set()

    def _drop(self, name: str) -> None:
        if self._held.pop(name).own:
            (self._folder / name).unlink(missing_ok=True)

    def _save(self, own: Iterable[Entry]) -> None:
        """Keep what may be given up now over the end of this process; in any thread.

        :raises ResourceError: the disk is full or does not work
        """
        for entry in filter(_is_sent_again, own):
            with files.told(self._folder):
                self._folder.mkdir(exist_ok=True)
                files.write(self._folder / entry.id, entry.envelope.encode())

    # --- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Hand in what is held until cancelled.

        :raises SplitViewProven: the coordinator that leads has signed two histories
        """
        while True:
            await self._some.wait()
            await self.look()
            await asyncio.sleep(self._pace)

    async def look(self) -> None:
        """Hand in the one that has waited longest.

        :raises SplitViewProven: as :meth:`run`
        """
        self._settle()
        if not self._held:
            self._some.clear()
            return
        if self._link.lost_since is not None or self._link.liar == self._link.coordinator:
            return
        first: dict[str, Petition] = {}  # one of each: those behind it may build on it
        for held in self._held.values():
            first.setdefault(held.speaker, held)
        one, now = min(first.values(), key=lambda held: held.tried), self._clock()
        if one.tried > now:
            return
        one.tried, term = now, self._replica.state.term.number
        if one.term != term:
            one.term, one.since, one.missing, one.shown = term, now, now, set()
        refused = await self._hand_in(one, self._link.coordinator)
        if not await self._is_current():
            return
        self._settle()
        if one.entry.id not in self._held or one.term != self._replica.state.term.number:
            return
        if refused and shares.check(self._replica.state, one.entry) not in ("", reasons.TOO_EARLY):
            self._drop(one.entry.id)
            return
        one.missing = now
        if now - one.since >= self._show_after and must_be_taken(self._replica.state, one.entry):
            await self._show(one)

    def _settle(self) -> None:
        """Let go of what is in the ledger, and of others' entries that would count no more."""
        store, state, now = self._replica.store, self._replica.state, self._clock()
        history, end = self._replica.history, min(store.size, state.size)
        start = min(self._looked, end)
        leaves = store.leaves(start, end) if self._held else ()
        for index, leaf in enumerate(leaves, start):
            entry = entries.decode(leaf)
            if not isinstance(entry.body, BUDGETED):
                continue
            same = [held for held in self._held.values() if held.speaker == speaker(entry)]
            if same and history.did(index).status != "ignored":
                for held in same:
                    held.since = now
        self._looked = end
        for name, one in list(self._held.items()):
            over = not one.own and shares.check(state, one.entry)
            if over or store.index_of(name) is not None:
                self._drop(name)

    async def _hand_in(self, one: Petition, peer: str) -> bool:
        """Whether a peer refuses it for another reason than that there is too much."""
        request = messages.Submit(run=self._run, statement=one.entry.envelope.encode())
        try:
            await self._host.ask(peer, wire.LEDGER, request, ANSWER_S)
        except Unreachable:
            return False
        except ArtelError as error:
            said = {"kind": one.entry.kind, "entry": one.entry.id[:16], "reason": error.message}
            emit(log, "entry.not_taken", logging.DEBUG, **said)
            return getattr(error, "code", "") != "busy"
        one.shown.add(peer)
        return False

    async def _is_current(self) -> bool:
        """Take over the newest ledger; whether whoever leads, or anybody, has shown it."""
        try:
            await self._link.catch_up()
        except SplitViewProven:
            raise
        except ArtelError:
            return await self._link.seek() > 0
        return True

    async def _show(self, one: Petition) -> None:
        """Show an entry to some electors that have not seen it."""
        electors = {node for each in self._replica.state.electors.sets for node in each.weights}
        others = sorted(electors - one.shown - {self._host.peer_id})
        if not others:
            return
        await holders.records(self._host, self._run)  # where they are
        some = random.sample(others, min(SHOWN, len(others)))
        await asyncio.gather(*(self._hand_in(one, peer) for peer in some))
        said = {"kind": one.entry.kind, "entry": one.entry.id[:16], "electors": len(one.shown)}
        emit(log, "entry.left_out", logging.WARNING, **said)


def _opened(statement: bytes) -> Entry:
    entry = entries.decode(statement)
    assert entry.signers is not None  # checked on first use, which is here
    return entry


def _is_sent_again(entry: Entry) -> bool:
    return isinstance(entry.body, SUBMITTED) and not isinstance(entry.body, entries.AccountBody)


def _busy(hint: str) -> wire.Refused:
    return wire.Refused("too much is handed in at once", hint, code="busy")
