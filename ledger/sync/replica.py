"""A ledger kept in step with another one.

A replica takes nothing on trust: what it takes over must end in a tree head that the run's
coordinators signed and that is the root of what it holds then; each entry is decoded, its
signatures are checked and the fold decides what it means.

So the head that somebody shows is looked at first, within bounds (:mod:`.looks`) and beside
whatever else goes on. Only who has proven it gets a turn to be taken over; who is slow then goes on
as long as nobody else with such a head waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.ledger.entries import Entry, decode
from artel.ledger.entries.fold_state import peer_of
from artel.ledger.fold.effects import Fold, checked
from artel.ledger.fold.history import History
from artel.ledger.fold.shares import FoldState
from artel.ledger.store.published import LostEntries, read_checkpoint_file, term_of
from artel.ledger.store.store import CHECKPOINT_NAME, LedgerStore
from artel.ledger.sync import fork, leadership
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.looks import LOOK_BYTES, LOOK_S, TRUSTED, Looks, Taking
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.signed_tree import (
    SignedHead,
    SignedTree,
    common_size,
    manifest_of,
    next_bundle,
    take_over,
    verified_head,
)
from artel.ledger.sync.source import Holder, TileSource, text_of
from artel.ledger.tlog.checkpoint import parse_checkpoint, verifier_keys
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.tiles import CHECKPOINT_PATH, encode_bundle
from artel.protocol.errors import ArtelError, CheckFailed, Unreachable
from artel.protocol.tasks import uninterrupted

if TYPE_CHECKING:
    from artel.ledger.store.heads import HeadStore
    from artel.protocol.net.host import Host

PATIENCE_S = 60.0
"""In which one more entry has to come."""
UNPROVEN_BYTES = 256 << 20
"""Of a ledger of a later term, for a copy that holds nothing: so much may come in before more of it
is final, by the electors that it has then, or another term has begun."""
WATCH_S = 0.2
"""Between two looks at whether somebody is slow."""
MOST_LOST = 4096
"""Entries at the end of a copy among which those of its owner are looked for before they may be
given up; nothing that is final is."""


class Replica:
    """This home's copy of a run's ledger: the store, and the fold over it.

    Make one with :meth:`open`. Owned by one daemon; :meth:`catch_up` may be awaited from several
    tasks and runs one at a time.
    """

    def __init__(self, store: LedgerStore, fold: Fold) -> None:
        self.store = store
        self.fold = fold
        self.most: float = math.inf
        """Bytes of entries and documents that are taken over at a time."""
        self.own: Collection[str] = ()
        """Keys (hex) whose entries are kept in :attr:`lost` when they are given up."""
        self.giving_up: Callable[[Sequence[Entry]], None] = lambda entries: None
        """Called, in a thread, with those that may be given up now, before they are."""
        self.lost: list[Entry] = []
        """Entries with an ``own`` signature that were given up with their term, oldest first."""
        self.coordinators: Collection[str] = ()
        """Peer ids of those who may lead, as long as this copy holds nothing."""
        self.looks = Looks()
        self._lock = asyncio.Lock()
        self._waiting = 0  # for it
        self._growth: list[asyncio.Event] = []

    @classmethod
    def open(cls, path: Path, run: str, heads: HeadStore | None = None) -> Replica:
        """Open or make the replica at ``path`` and fold what is new in it.

        :param heads: keeps the published head of a copy that is gone or has lost its end; what is
            fetched again then has to hold it (:func:`ledger.store.published.require_heads`)
        :raises LostEntries: without ``heads``, when it is gone or has lost its end
        :raises CheckFailed: when it is damaged
        :raises UsageError: when it belongs to another run
        """
        try:
            store = LedgerStore.open(path, create=True, run=run)
        except LostEntries as lost:
            if heads is None:
                raise
            published = path.with_name(CHECKPOINT_NAME)
            try:
                heads.add_note(read_checkpoint_file(published))
            except ArtelError:
                raise lost from None
            published.unlink()
            store = LedgerStore.open(path, create=True, run=run)
        try:
            return cls(store, Fold.open(store))
        except BaseException:
            store.close()
            raise

    @property
    def state(self) -> FoldState:
        """The fold over the store; replaced by a newer one in the event loop, never changed."""
        return self.fold.state

    @property
    def history(self) -> History:
        """What happened, as of now."""
        return History(self.store, self.store.query, self.state)

    def keys_of(self, origin: str) -> list[VerifierKey]:
        """Whose heads of this log can be cosigned: those of the leader in its present term."""
        store = self.store
        if not store.size or origin != store.origin:
            return []
        return verifier_keys(origin, [self.state.term.leader])

    def growth(self) -> asyncio.Event:
        """A new event that is set, from now on, whenever the replica has grown."""
        event = asyncio.Event()
        self._growth.append(event)
        return event

    async def catch_up(self, host: Host, peer: str, run: str, target: int = 0) -> None:
        """Take over what ``peer`` has beyond this copy, which has to be ``target`` entries then.

        :raises SplitViewProven: a coordinator has signed another history than the one here
        :raises TooMuch: it has more than ``most`` beyond this copy, which stays as it is
        :raises CheckFailed: the peer shows another history, it is shorter than ``target``, or what
            it has beyond this copy cannot be had from it: ask another one
        :raises Unreachable: the peer does not answer, or is too slow
        """
        await self.take_from(PeerSource(host, peer, run), run, target)

    async def take_from(
        self, source: PeerSource | Holder, run: str, target: int = 0, *, instead: bool = False
    ) -> None:
        """As :meth:`catch_up`, from anything that has the files of the log.

        :param instead: what it has takes the place of what is other here: the caller knows that
            the electors have certified that history, of two that were signed
        """
        if not isinstance(source, PeerSource):
            await self._taken(source, run, target, instead, TRUSTED)
        elif not target or self.store.size < target:
            known = not self.store.size or source.peer in self.state.nodes
            trusted = self._trusts(source)
            async with self.looks.at(source, known=known, trusted=trusted) as more:
                await self._taken(source, run, target, instead, more)

    def _trusts(self, source: PeerSource) -> bool:
        """Whether a peer leads the run, or may by its manifest."""
        if not self.store.size:
            return source.peer in self.coordinators
        return source.peer in map(peer_of, self.state.leaders())

    async def _taken(
        self, source: PeerSource | Holder, run: str, target: int, instead: bool, more: int
    ) -> None:
        """Look at what a source shows, then take it over when it is its turn."""
        if target and self.store.size >= target:
            return
        offer = Taking(more, start=self.store.size)
        look = self.looks.thread(self._read, source, run, target, offer)
        await self._in_time(source, look, offer)
        async with self._turn():
            if not target or self.store.size < target:
                await self._in_time(source, self._follow(source, offer, instead), offer, turn=True)
        if self.store.size < target:
            raise CheckFailed(
                f"the peer announced {target} ledger entries and shows {self.store.size}"
            )

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        self._waiting += 1
        try:
            await self._lock.acquire()
        finally:
            self._waiting -= 1
        try:
            yield
        finally:
            self._lock.release()

    async def _in_time(
        self,
        source: PeerSource | Holder,
        work: Coroutine[Any, Any, None],
        offer: Taking,
        *,
        turn: bool = False,
    ) -> None:
        """Wait for what a source gives.

        :param turn: it is its turn, for which others may wait
        :raises Unreachable: it takes too long
        """

        def clock() -> float:
            if isinstance(source, PeerSource) and (offer.proven or offer.start):
                return source.waited
            return time.monotonic()

        async def watch() -> None:
            began = last = clock()
            taken = 0
            while True:
                await asyncio.sleep(WATCH_S)
                now = clock()
                if offer.taken > taken:
                    taken, last = offer.taken, now
                others = turn and self._waiting > 0
                if now - last > PATIENCE_S or (others and offer.late(now - began)):
                    return source.close()

        watching = asyncio.create_task(watch())
        try:
            # Cancelled in between, store and fold would speak of different ledgers.
            await uninterrupted(work, source.close)
        except Unreachable:
            if not watching.done():
                raise
            raise Unreachable(f"{source.name} did not give its ledger in time") from None
        finally:
            watching.cancel()

    async def add(self, leaves: Sequence[bytes], note: str) -> None:
        """Take over entries that lie on this machine, which end in a signed head.

        :raises CheckFailed: they do not continue this copy
        """

        async def append() -> None:
            try:
                found = checked(leaves, self.store.size)
                append = self.store.append_replica
                await asyncio.to_thread(append, found, note, self.fold.beside)
            finally:
                self._settle()

        async with self._turn():
            await uninterrupted(append())

    async def _follow(self, source: PeerSource | Holder, offer: Taking, instead: bool) -> None:
        try:
            await asyncio.to_thread(self._grow, source, offer, instead)
        finally:
            self._settle()

    def _settle(self) -> None:
        # It can fail after the commit, too.
        if self.fold.anew or self.store.size > self.state.size:
            self.fold.settle()
            for event in self._growth:
                event.set()

    def _read(self, source: PeerSource | Holder, run: str, target: int, offer: Taking) -> None:
        """Read and verify the head that a source shows."""
        store = self.store
        offer.start, offer.term = store.size, store.term
        if target and isinstance(source, PeerSource):
            # What is new lies most probably there: one stream brings all.
            bundle, known = next_bundle(store, store.size, target)
            source.bring(CHECKPOINT_PATH, bundle.path, skip=len(encode_bundle(known)))
        text = text_of(source.get(CHECKPOINT_PATH), CHECKPOINT_PATH)
        head = parse_checkpoint(text)
        term = term_of(head.origin, run)
        if (term or 0) > store.term:  # who leads that stands in its tree
            if store.size:
                offer.head, offer.proven = self._sealed(source, text, run)
            else:
                offer.head = verified_head(source, text, (), run)
            if isinstance(source, PeerSource):
                offer.bytes = offer.more * LOOK_BYTES if store.size else UNPROVEN_BYTES
                offer.sure = store.term, self.state.final
                if offer.proven:
                    source.limit()
                elif not store.size or self._trusts(source):
                    source.limit(bytes=offer.bytes)
                else:  # the look may have needed all, where several terms have begun
                    source.limit(offer.more * LOOK_S, offer.bytes)
            return
        if store.size:
            signers = store.signers(term)
        else:
            signers = [leadership.first_term(manifest_of(source, run)[0]).leader]
        if not signers:
            raise CheckFailed(f"{source.name} shows a tree head of a term that nobody led")
        offer.head = verified_head(source, text, verifier_keys(head.origin, signers), run)
        offer.proven = True
        if isinstance(source, PeerSource):
            source.limit()

    def _grow(self, source: PeerSource | Holder, offer: Taking, instead: bool) -> None:
        """Append what the source has beyond this copy."""
        store, head = self.store, offer.head
        assert head is not None
        if (offer.start, offer.term) != (store.size, store.term) and isinstance(source, PeerSource):
            source.forget()  # it was asked for before this copy grew
        later = head.term > store.term
        if later and store.size and not offer.start:
            return  # its electors are known by now: it is looked at anew
        if head.size <= store.size and not (later or instead):
            self._prove_fork(source, head.note)
            return
        own = self._own_not_final() if later else []
        self.giving_up(own)

        def folded(state: FoldState) -> None:
            if isinstance(source, PeerSource):
                offer.folded(source, state)

        try:
            take_over(
                store,
                source,
                head,
                self.fold,
                most=self.most,
                instead=instead,
                progress=offer.took,
                folded=folded,
            )
            self.lost += [entry for entry in own if store.index_of(entry.id) is None]
        except CheckFailed:
            self._prove_fork(source, head.note)
            raise

    def _own_not_final(self) -> list[Entry]:
        if not self.own:
            return []
        start = max(self.state.final, self.store.size - MOST_LOST)
        known = map(decode, self.store.leaves(start))
        return [entry for entry in known if not entry.named_signers.isdisjoint(self.own)]

    def _sealed(self, source: PeerSource | Holder, text: str, run: str) -> tuple[SignedHead, bool]:
        """The head of a later term, whose first entry that is new here was checked, and whether
        a quorum of the electors sealed that for who signs the head: anybody can make a key and
        nodes that seal for it, and as much of a ledger as it likes, and show the true handover
        before its own.

        Where that entry follows what is here, the electors are known, and only their seals count.
        Else they may be others by then: some who are known here have to have sealed it, or a
        coordinator of the manifest leads; the fold decides when it comes to that entry.
        """
        store, state, genesis = self.store, self.state, self.store.genesis
        head = parse_checkpoint(text)
        tree = SignedTree(source, head.size, head.root)
        number, index = leadership.next_said(source, store.term)
        common = common_size(store, tree)
        if not common <= index < tree.size:
            raise CheckFailed(f"{source.name} shows no handover behind term {store.term}")
        body = leadership.began(tree.leaf(index), genesis, number)
        nodes = [seal.node for seal in body.seals]
        sealed = bool(state.electors.sets) and state.electors.quorum(state.trusted(nodes))
        known = body.coordinator in genesis.coordinators or state.nodes.keys() & set(nodes)
        if not sealed and (index == store.size or not known):
            raise CheckFailed(
                f"{source.name} shows a handover to term {number} that is not sealed by the "
                "electors, of whom a quorum has to",
                "whoever made it lies: ask another holder of the ledger",
            )
        last = term_of(head.origin, run) or 0
        terms = tuple(leadership.terms_shown(source, tree, genesis, last))
        leader = terms[-1].leader
        found = verified_head(source, text, verifier_keys(head.origin, [leader]), run)
        return replace(found, terms=terms), sealed and number == last

    def _prove_fork(self, source: TileSource, note: str) -> None:
        """Raise SplitViewProven if the note is by who leads now, and not of our tree."""
        proof = None
        if self.store.size and parse_checkpoint(note).origin == self.store.origin:
            with suppress(ArtelError):  # a forged or unproven head convicts nobody
                proof = fork.examine(source, self.store, note)
        if proof is not None:
            raise SplitViewProven(proof)
