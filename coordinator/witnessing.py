"""Takes in the cosignatures of witnesses, and writes the best of them into the ledger.

A node that has replayed the entries up to one of our tree heads sends its cosignature. What holds
is kept beside the ledger (:class:`ledger.store.heads.HeadStore`) and given to whoever asks; once a
round one ``witnessed`` entry records it, which makes it part of the accounts.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.ledger.fold import shares
from artel.ledger.fold.shares import FoldState
from artel.ledger.store import finality
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.published import term_of
from artel.ledger.store.store import LedgerStore
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, parse_checkpoint
from artel.ledger.tlog.cosignature import add_lines, time_of
from artel.ledger.tlog.note import Note, SignatureLine
from artel.protocol import messages
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed
from artel.protocol.events import emit
from artel.protocol.identity import Identity, short_peer
from artel.protocol.net import wire
from artel.protocol.net.limits import RateLimits

log = logging.getLogger("artel.coordinator")

KEEP_HEADS = 8
"""Cosignatures of the newest heads alone are taken; an older head says nothing more."""
COSIGNED_PER_MINUTE, COSIGNED_AT_ONCE = 240, 60
"""Of one peer. Each costs a few signature checks and one durable write."""
AHEAD_S = 3600
"""How far a witness's clock may be ahead of ours."""


class Witnessing:
    """The cosignatures of one run; the event loop owns it.

    :param state: the fold over the store
    :param clock: POSIX seconds
    """

    def __init__(
        self,
        store: LedgerStore,
        heads: HeadStore,
        state: Callable[[], FoldState],
        identity: Identity,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._store, self._kept, self._state = store, heads, state
        self._identity, self._clock = identity, clock
        self._heads: dict[int, Note] = {}  # with their cosignatures, by size; the newest few
        self._unkept: set[int] = set()  # sizes of those that are not on the disk yet
        self._writing = asyncio.Lock()
        self._limits = RateLimits(COSIGNED_PER_MINUTE, COSIGNED_AT_ONCE)
        self.news = asyncio.Event()
        """Set whenever a cosignature was taken in."""
        self._remember()

    def _remember(self) -> None:
        """After a restart: the heads that may still be worth an entry."""
        rules = self._state().rules
        for lines in {1, max(1, rules.witnesses if rules is not None else 1)}:
            heads = filter(self._is_ours, self._kept.newest_first(lines))
            if text := next(heads, ""):
                self._heads[parse_checkpoint(text).size] = note.parse(text)

    def _is_ours(self, text: str) -> bool:
        """Whether a note is of this ledger's tree: others were given up with their term."""
        head = parse_checkpoint(text)
        return head.size <= self._store.size and self._store.root_at(head.size) == head.root

    def require(self, peer: str) -> None:
        """Refuse who may send no cosignatures now, before anything is read of what it shows.

        :raises Refused: it is no node of the run, or sends too many
        """
        if peer not in self._state().nodes:
            raise wire.Refused("this node has not been admitted", "say hello", code="unknown_node")
        if self._limits.take(peer):
            raise wire.Refused("too many cosignatures", "send only the newest head's", code="busy")

    async def take(self, peer: str, message: messages.Cosigned) -> None:
        """Take in a note with cosignatures of nodes that the ledger knows.

        :raises Refused: from an unknown node, or not of our newest heads
        :raises DecodeError: it is malformed
        :raises CheckFailed: it is not one of our heads, or we have not signed it
        """
        state = self._state()
        head, given = await asyncio.to_thread(self._checked, message.note, dict(state.nodes))
        if len(self._heads) >= KEEP_HEADS and head.size < min(self._heads):
            return  # nothing wrong with it, but nobody needs it any more
        lines = finality.cosigners(given, state.nodes)
        if not lines:
            raise wire.Refused("the note carries no node's cosignature", code="unknown_node")
        known = self._heads.get(head.size)
        before = known or self._stored(head.size, given)
        merged = _merged(before, lines, state)
        if merged == known:
            return
        # In memory first: while this one is being written, another one must not get lost.
        self._heads[head.size] = merged
        for size in sorted(self._heads)[:-KEEP_HEADS]:
            del self._heads[size]
        await self._keep(head.size)
        self.news.set()
        emit(log, "head.cosigned", logging.DEBUG, size=head.size, node=short_peer(peer))

    async def _keep(self, size: int) -> None:
        """Have what is known of a head on the disk; who comes during a write shares the next."""
        self._unkept.add(size)
        async with self._writing:
            if size in self._unkept:
                self._unkept.discard(size)
                if (newest := self._heads.get(size)) is not None:  # it began with what was kept
                    await asyncio.to_thread(self._kept.add_note, newest.encode(), instead=True)

    def _stored(self, size: int, given: Note) -> Note:
        """What is kept of a head since before a restart; at least our own signature."""
        kept = self._kept.note(size)
        if kept and (stored := note.parse(kept)).text == given.text:
            return stored
        return Note(given.text, given.signatures[:1])

    def _checked(self, data: str, nodes: dict[str, str]) -> tuple[Checkpoint, Note]:
        """The note with our own signature first, and only lines that verify."""
        leader = self._state().term.leader
        head, given = finality.verified(data, self._store.origin, [leader], nodes)
        ours = self._store.note_at(head.size)
        if not ours or parse_checkpoint(ours).root != head.root:
            raise CheckFailed(f"there is no tree head of {head.size} entries with that root here")
        now = self._clock()
        for line in given.signatures:
            at = time_of(line)
            if at is not None and at > now + AHEAD_S:
                raise CheckFailed("the cosignature is from the future", "set this machine's clock")
        return head, Note(given.text, (*note.parse(ours).signatures, *given.signatures))

    def nodes_at(self, size: int) -> set[str]:
        """The nodes that cosigned exactly this head."""
        signed = self._heads.get(size)
        return set() if signed is None else set(finality.cosigners(signed, self._state().nodes))

    def statement(self) -> Entry | None:
        """The ``witnessed`` entry that is due, for a certified head before others, of these for the
        one that the most accounts have cosigned, and of these for the newest; None when there is
        none, or the fold would ignore it.

        The most, and not just enough: whoever is a moment slower has replayed the entries too.
        Certified first: accounts that cost nothing can be more than all electors.
        """
        state = self._state()
        found = (
            (finality.is_certified(signed, state), len(finality.seats(signed, state)), size)
            for size, signed in self._heads.items()
            if size > state.witnessed
        )
        _, accounts, size = max(found, default=(False, 0, 0))
        if not accounts:
            return None
        # Each cosignature was checked when it came.
        signed = self._heads[size]
        made = self._record(signed, finality.seats(signed, state), state).encode()
        entry = entries.decode(made).checked(True)
        reason = shares.check(state, entry)
        if reason:
            emit(log, "head.not_recorded", logging.WARNING, reason=reason)
            return None
        return entry

    def _record(self, signed: Note, seats: dict[str, list[str]], state: FoldState) -> Envelope:
        """One node of each account first: those that contribute, and have waited the longest."""

        def turn(account: str) -> tuple[bool, int, str]:
            return account not in state.recent, state.accounts[account].witnessed, account

        first = [seats[account][0] for account in sorted(seats, key=turn)]
        rest = sorted(peer for peers in seats.values() for peer in peers[1:])
        lines = finality.cosigners(signed, state.nodes)
        cosignatures = [
            entries.Cosignature(
                node=peer,
                time=int.from_bytes(lines[peer].signature[:8], "big"),
                signature=lines[peer].signature[8:].hex(),
            )
            for peer in (first + rest)[: entries.MAX_MEMBERS]
        ]
        head = parse_checkpoint(signed.encode())
        return entries.witnessed(
            self._identity,
            state.run,
            size=head.size,
            root=head.root.hex(),
            cosignatures=cosignatures,
            term=term_of(head.origin, state.run) or 0,
        )


def _merged(before: Note, lines: Mapping[str, SignatureLine], state: FoldState) -> Note:
    """A head's note with further cosignatures, as many as it has room for.

    Keys cost nothing, so those who are quicker must not keep others out: electors go before others,
    the first node of each account before its second one, then whose account has more standing, then
    who came first.

    :param lines: by node
    """
    room = note.MAX_SIGNATURE_LINES - 1  # beside our own signature
    there = finality.cosigners(before, state.nodes)
    if len(there.keys() | lines.keys()) <= room:
        return add_lines(before, lines.values())
    of_account: Counter[str] = Counter()
    turns: dict[str, tuple[bool, int, int]] = {}
    electors = {node for each in state.electors.sets for node in each.weights}
    for node in [*there, *(node for node in lines if node not in there)]:
        account = state.account_of(node)
        turns[node] = (node not in electors, of_account[account], -state.standing_of(node))
        of_account[account] += 1
    stay = set(sorted(turns, key=lambda node: turns[node])[:room])
    kept = [line for node, line in there.items() if node in stay]
    new = [line for node, line in lines.items() if node in stay]
    return add_lines(Note(before.text, (before.signatures[0], *kept)), new)
