"""Before a coordinator signs anything: is its ledger the newest that was ever signed with its key?

Whoever goes on from an older one signs a second history. What a home says of itself does not do:
a backup that is put back brings all of its files. So the coordinator asks those who have seen what
it signed (members that it knew, whoever is connected, whom the DHT names, what a person named),
takes over what they have beyond its ledger, every byte tied to a head that this run's key signed,
and goes on from there. Where nobody answers, the second memory decides
(:mod:`ledger.store.second`), and what nobody has seen yet comes from there.

The same holds later: :func:`require_newest` ends a coordinator that is shown a head which its
ledger does not hold, or one of a later term, and its process begins here again.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Iterable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from artel.coordinator.circle import Circle
from artel.coordinator.own_ledger import OwnLedger
from artel.coordinator.resuming import last_members
from artel.coordinator.takeover import TermOver, shows_handover
from artel.ledger.entries import evidence
from artel.ledger.entries.evidence import SplitView
from artel.ledger.entries.fold_state import peer_of
from artel.ledger.store.published import term_of
from artel.ledger.sync import fork
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.peers import HEADS, PeerSource, notes_in
from artel.ledger.sync.source import Holder, newest_heads
from artel.ledger.tlog.checkpoint import (
    Checkpoint,
    open_signed,
    parse_checkpoint,
    verifier_keys,
)
from artel.protocol import messages
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, Unreachable
from artel.protocol.events import emit
from artel.protocol.identity import peer_id_of, short_peer
from artel.protocol.net import wire
from artel.protocol.tasks import end, uninterrupted

if TYPE_CHECKING:
    from artel.coordinator.service import Coordinator
    from artel.protocol.net.host import Host

log = logging.getLogger("artel.coordinator")

ASK_S = 10.0
"""So long others may take to answer, and to find this coordinator again by themselves: nodes look
for one that is away every 8 s at least."""
PATIENCE_S = 60.0
"""So long somebody who knows is waited for where this home alone cannot tell."""
LOOK_S, LOOKUP_S, RETRY_S = 0.25, 5.0, 2.0
AT_ONCE, STRANGERS_AT_ONCE, MOST_STRANGERS = 16, 4, 64
FIRST_LOOK_S = 3.0
"""For the heads of a node that comes while the run goes on."""


class Behind(CheckFailed):
    """A running coordinator was shown a head of its own key that its ledger does not hold."""


# --- what others know -----------------------------------------------------------------------------


class Asking:
    """Asks others for the newest heads before a coordinator signs; :meth:`settle` does it.

    :param sources: whom a person named; the caller closes them
    :param ways: an address of other coordinators (peer ids): one of them may lead by now
    :param alone: a person says that nobody else holds more than this home
    """

    def __init__(
        self,
        own: OwnLedger,
        host: Host,
        sources: Sequence[Holder] = (),
        ways: Mapping[str, str] = MappingProxyType({}),
        *,
        alone: bool = False,
    ) -> None:
        self._own, self._host, self._sources, self._alone = own, host, sources, alone
        self._circle = Circle(own.home, host, own.run, lambda: own.replica.state)
        for peer, way in ways.items():
            host.remember(peer, self._circle.known.setdefault(peer, [way]))
        keys = own.coordinators
        self._coordinators = {peer_id_of(bytes.fromhex(key)) for key in keys} - {host.peer_id}
        self._followed: set[str] = set()  # coordinators of whom a later term is being taken over
        last = last_members(own.replica.state) if own.store.size else ()
        self._expected = self._circle.here or set(last)
        self._expected -= {host.peer_id}
        self._answered: set[str] = set()
        self._rooms = {
            True: asyncio.Semaphore(AT_ONCE),
            False: asyncio.Semaphore(STRANGERS_AT_ONCE),
        }
        self._strangers = 0
        self._asked: dict[str, asyncio.Task[None]] = {}

    async def settle(self) -> None:
        """Return when this home may sign; the ledger holds then all that anybody showed.

        :raises LostEntries: more was signed than anybody who answers has
        :raises CheckFailed: somebody has another history that was signed with this run's key
        :raises Unreachable: nobody who could know answers, and this home does not know by itself
        """
        own = self._own
        if not (own.store.size or own.lost()):
            return  # a run that begins now
        before = own.store.size
        await own.take_tail()
        learning = asyncio.create_task(self._learn_of_others())
        try:
            await self._until_enough()
        finally:
            for task in (learning, *self._asked.values()):
                await end(task)
        own.require_whole()
        if own.store.size > before:
            emit(
                log,
                "ledger.recovered",
                logging.WARNING,
                before=before,
                entries=own.store.size,
                asked=", ".join(map(_named, sorted(self._answered))),
            )
        elif not (self._answered or self._alone or own.remembered):
            raise Unreachable(
                f"nobody who took part in this run answers, and this home does not know by itself "
                f"whether its ledger of {before} entries is the newest that it signed",
                "nothing was signed; start again when a member is there, or name whoever has a "
                "copy (a member's page or address, a mirror) with --from TARGET; if nobody else "
                "has any of this run, --alone goes on from this ledger",
            )
        elif not self._answered and self._expected:
            by = "second memory" if own.remembered else "--alone"
            emit(log, "ledger.nobody_answered", entries=before, going_on_by=by)

    async def _until_enough(self) -> None:
        began = said = time.monotonic()
        while True:
            passed = time.monotonic() - began
            await self._ask_all()
            for task in self._asked.values():
                if task.done():
                    task.result()
            if self._enough(passed):
                return
            if time.monotonic() - said >= LOOKUP_S:
                said = time.monotonic()
                found = {"answered": len(self._answered), "expected": len(self._expected)}
                emit(log, "ledger.asking", **found, seconds=passed, at_most=self._patience())
            await asyncio.sleep(LOOK_S)

    def _enough(self, passed: float) -> bool:
        if self._followed:
            return passed >= PATIENCE_S
        lost = bool(self._own.lost())
        unasked = self._expected - self._answered
        named = all(task.done() for name, task in self._asked.items() if name.startswith("from "))
        if not lost and named and not unasked:
            # Nobody is missing. One who answered, or a note of our own, says that this is all.
            if self._answered or self._alone or self._own.remembered:
                return True
        elif not lost and self._alone and named:
            return True
        return passed >= (PATIENCE_S if lost and unasked else self._patience())

    def _patience(self) -> float:
        """How long to wait where not all have answered."""
        knows = self._answered or self._own.remembered or not self._expected
        return ASK_S if knows else PATIENCE_S

    async def _ask_all(self) -> None:
        for number, source in enumerate(self._sources):
            self._begin(f"from {number}", source)
        peers = await self._circle.peers()
        for peer in sorted(peers, key=lambda peer: peer not in self._coordinators):
            self._begin(peer, PeerSource(self._host, peer, self._own.run))

    def _begin(self, name: str, source: PeerSource | Holder) -> None:
        if name in self._asked:
            return
        known = name.startswith("from ") or name in self._circle.known
        known = known or (self._own.store.size > 0 and name in self._own.replica.state.nodes)
        if known or self._strangers < MOST_STRANGERS:
            self._strangers += not known
            work = self._keep_asking(name, source, self._rooms[known])
            self._asked[name] = asyncio.create_task(work)

    async def _learn_of_others(self) -> None:
        """Whom the DHT names, through those who answered, or may."""
        known = self._circle.known
        while True:
            # Nodes of before may be gone, and whoever leads now have another address.
            asked = sorted(self._answered) or random.sample(list(known), len(known))
            ways = [way for peer in asked for way in known.get(peer, [])[:1]]
            if ways:
                await self._circle.learn(ways[:2])
            await asyncio.sleep(LOOKUP_S)

    async def _keep_asking(
        self, name: str, source: PeerSource | Holder, room: asyncio.Semaphore
    ) -> None:
        level = logging.WARNING if name.startswith("from ") else logging.DEBUG
        while True:
            try:
                async with room:
                    await self._ask(name, source)
                return
            except _Refusing as refusal:
                raise refusal.error from None
            except ArtelError as error:
                emit(log, "ledger.not_asked", level, of=source.name, reason=error.message)
            level = logging.DEBUG
            await asyncio.sleep(RETRY_S)

    async def _ask(self, name: str, source: PeerSource | Holder) -> None:
        if isinstance(source, PeerSource):
            texts = notes_in(await source.files(*HEADS, timeout=ASK_S))
        else:
            texts = list(filter(None, await asyncio.to_thread(newest_heads, source)))
        for text in texts:
            await self._consider(name, source, text)
        state = self._own.replica.state
        if texts and (name.startswith("from ") or name in state.nodes):
            self._answered.add(name)

    # --- one head ---------------------------------------------------------------------------------

    async def _consider(self, name: str, source: PeerSource | Holder, text: str) -> None:
        """Take over what a head covers beyond our ledger, or refuse one of another history."""
        own, store = self._own, self._own.store
        if _term(text, own.run) > store.term:
            self._followed |= {name} & self._coordinators
            try:
                await own.follow(source)  # what is shown alone says nothing: the tree has to
            finally:
                self._followed.discard(name)
        keys = own.signers(_term(text, own.run))
        head, signed = await asyncio.to_thread(_verified, text, own.run, keys)
        if (term_of(head.origin, own.run) or 0) < store.term:
            return  # what of it counts is in the later term's tree
        try:
            if head.size > store.size:
                await own.follow(source)
                await own.take_tail()
        except SplitViewProven as found:
            raise _Refusing(await asyncio.to_thread(self._forked, found.evidence)) from None
        except ArtelError as error:
            # It was signed, so nothing may be signed here before somebody gives what it covers.
            said = {"size": head.size, "of": source.name, "reason": error.message}
            emit(log, "ledger.not_taken_over", logging.WARNING, **said)
        await asyncio.to_thread(self._hold, source, head, signed)

    def _hold(self, source: PeerSource | Holder, head: Checkpoint, signed: str) -> None:
        own, store = self._own, self._own.store
        if store.size and head.origin != store.origin:
            return  # another term was taken over meanwhile
        other, proof = own.heads.note(head.size), None
        noted = parse_checkpoint(other) if other else head
        if noted.root != head.root and noted.origin == head.origin:
            proof = evidence.build(other, store, signed, store)  # of one size: no tree is needed
        elif head.size <= store.size and store.root_at(head.size) != head.root:
            with contextlib.suppress(ArtelError):  # who shows the head may not show its tree
                proof = fork.examine(source, store, signed)
        if proof is not None:
            evidence.check(proof, verifier_keys(proof.origin, own.signers(store.term)))
            raise _Refusing(self._forked(proof))
        if head.size > store.size or store.root_at(head.size) != head.root:
            own.heads.add_note(signed)

    def _forked(self, proof: SplitView) -> CheckFailed:
        path = fork.record(self._own.home, self._own.heads, proof, self._own.store)
        return CheckFailed(
            "somebody holds another history than this home, and both were signed with this run's "
            f"key; the proof is {path}",
            "nothing more was signed. Either another program signs with a copy of this home, or it "
            "went on from an older ledger before: stop the other one, and tell the members",
        )


class _Refusing(Exception):
    """Ends the asking, unlike what is wrong with one answer."""

    def __init__(self, error: CheckFailed) -> None:
        super().__init__(error)
        self.error = error


def _term(text: str, run: str) -> int:
    """The term of a head, not verified.

    :raises DecodeError: it is malformed
    :raises CheckFailed: it is the head of another log
    """
    term = term_of(parse_checkpoint(text).origin, run)
    if term is None:
        raise CheckFailed("it is the head of another log")
    return term


def _verified(text: str, run: str, signers: Iterable[str]) -> tuple[Checkpoint, str]:
    """A head of this run, with no other line than that of who leads its term.

    :raises DecodeError: it is malformed
    :raises CheckFailed: who leads its term has not signed it
    """
    _term(text, run)
    head, signed = open_signed(text, parse_checkpoint(text).origin, signers)
    return head, signed.encode()


def _named(name: str) -> str:
    return "--from" if name.startswith("from ") else short_peer(name)


# --- while the run goes on ------------------------------------------------------------------------


async def look_at(core: Coordinator, peer: str) -> None:
    """Ask a node that has just come for its newest heads; one that does not answer is let in.

    :raises Refused: it shows more than is here: nothing is signed any more
    """
    try:
        source = PeerSource(core.host, peer, core.run)
        texts = notes_in(await source.files(*HEADS, timeout=FIRST_LOOK_S))
    except ArtelError as error:
        emit(log, "head.not_exchanged", logging.DEBUG, peer=short_peer(peer), reason=error.message)
        return
    for text in texts:
        await require_newest(core, peer, text)


async def require_newest(core: Coordinator, peer: str, text: str) -> None:
    """Stop signing at once when a head by who leads this term is not of the ledger here, or when a
    later term has begun.

    :param peer: who shows the head
    :raises Refused: so it is; the coordinator ends, and its process asks before it goes on
    """
    with contextlib.suppress(DecodeError, CheckFailed):  # not ours: it says nothing
        term = _term(text, core.run)
        if term > core.ledger.store.term:
            await require_leading(core, peer, text)
        if term != core.ledger.store.term:
            return
        head, signed = await asyncio.to_thread(_foreign, core, text)
        if not signed:
            return
        error = Behind(
            f"a member shows a head of {head.size} entries that this run's key signed, and the "
            f"ledger of {core.ledger.store.size} entries here does not hold it"
        )
        core.ledger.stop(error)
        with contextlib.suppress(CheckFailed):  # another one of that size: it is found out again
            await asyncio.to_thread(core.heads.add_note, signed)
        core.fail(error)
        raise wire.Refused(error.message, "it is mended first; try again", code="busy")


async def require_leading(core: Coordinator, peer: str, text: str) -> None:
    """Stop when a head of a later term has a tree in which that term has begun.

    :raises Refused: it has
    """
    source, ledger, shown = PeerSource(core.host, peer, core.run), core.ledger, False
    trusted = peer in map(peer_of, ledger.state.leaders())
    known = peer in ledger.state.nodes
    with contextlib.suppress(Unreachable, CheckFailed):
        async with core.looks.at(source, known=known, trusted=trusted):
            look = core.looks.thread(shows_handover, source, text, ledger.store, ledger.state)
            shown = await uninterrupted(look, source.close)
            if not shown:
                raise CheckFailed("it shows no handover that counts")
    if shown:
        over = TermOver(f"another coordinator leads term {_term(text, core.run)}")
        ledger.stop(over)
        core.fail(over)
        raise wire.Refused(over.message, "ask the others", code=messages.NOT_LEADING)


def _foreign(core: Coordinator, text: str) -> tuple[Checkpoint, str]:
    """A head, and its note if our ledger does not hold it."""
    store = core.ledger.store
    head = parse_checkpoint(text)
    if head.size <= store.size and store.root_at(head.size) == head.root:
        return head, ""
    return _verified(text, core.run, store.signers(_term(text, core.run)))
