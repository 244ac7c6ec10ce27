"""Compares the tree heads that others hold with this node's own ledger, and proves a split view.

A log can show each node a sound history of its own. It is found out when nodes show each other what
was signed for them: this node asks one other peer in turn for its newest heads, every 20 s and
after each agreed state. A head that a coordinator signed and that is not of our tree becomes
evidence that anybody can check (:mod:`ledger.entries.evidence`). Nothing that others *say* counts:
a head needs the coordinator's signature, a proof has to verify, and a peer that lies is only noted.

A node that holds the proof follows that coordinator no further: it cosigns and contributes nothing
more, leaves the proof in its home, and tells the others. Where electors can end the term, it waits
for whoever leads next (:mod:`.sealing`); else it ends with an error for its owner.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import evidence
from artel.ledger.entries.evidence import SplitView
from artel.ledger.entries.kinds.split_seen import signers_of
from artel.ledger.store import finality
from artel.ledger.store.heads import MAX_CONFLICTS, HeadStore
from artel.ledger.store.published import given_up, heads_error, known_heads, term_of
from artel.ledger.sync import fork
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.peers import HEADS, PeerSource, notes_in
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.source import CONFLICTS_PATH
from artel.ledger.tlog.checkpoint import (
    open_checkpoint,
    open_signed,
    parse_checkpoint,
    verifier_keys,
)
from artel.node.account_link import Linked, Owner
from artel.protocol import canonical, messages
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError
from artel.protocol.events import emit
from artel.protocol.identity import short_peer
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from artel.protocol.tasks import within

log = logging.getLogger("artel.node")

INTERVAL_S = 20.0
PATIENT_INTERVALS = 2
"""So long a head that is ahead of us may wait until we have caught up with it."""
MAX_DOUBTS = 16
MAX_TRIES = 5
SPREAD_S = 5.0
TOLD_AT_MOST = 16
MAX_HEARD = 1024
MAX_FIT = 8
"""Notes that need no second look: peers show the same ones, with a hundred signatures each."""


@dataclass
class Doubt:
    """A signed head that is ahead of us, or differs and could not be proven to differ yet."""

    note: str
    peer: str
    since: float
    tries: int = 0


class Watch:
    """Watches one run's coordinator; :meth:`run` ends only with the proof that it lies.

    :param coordinator: peer id of the coordinator in charge
    :param neighbours: peer ids that may be asked
    :param account: in whose name evidence is submitted
    :param interval: seconds between two exchanges
    """

    def __init__(
        self,
        *,
        host: Host,
        home: Path,
        run: str,
        replica: Replica,
        heads: HeadStore,
        account: Owner,
        coordinator: Callable[[], str],
        neighbours: Callable[[], Iterable[str]],
        interval: float = INTERVAL_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._home, self._run_id = host, home, run
        self._replica, self._heads, self._account = replica, heads, account
        self._coordinator, self._neighbours = coordinator, neighbours
        self._interval, self._clock = interval, clock
        self._grown = replica.growth()
        self._doubts: dict[tuple[int, bytes], Doubt] = {}
        self._fit: deque[str] = deque(maxlen=MAX_FIT)  # notes of heads of our own tree, lately
        self._heard: set[bytes] = set()  # evidence that was looked at
        self._proof: SplitView | None = None
        self._last = ""  # whom we asked last
        self._alarmed = False
        self._behind = 0  # size of the coordinator's ledger when we last asked
        self._term = replica.store.term

    @property
    def doubtful(self) -> bool:
        """Whether a signed head differs from our tree, proven or not: then nothing is cosigned."""
        size = self._replica.store.size
        return self._proof is not None or any(known <= size for known, _ in self._doubts)

    async def run(self) -> None:
        """Exchange heads until a split view is proven.

        :raises SplitViewProven: always, in the end; the proof is kept and spread by then
        """
        try:
            await self._exchange_for_ever()
        except SplitViewProven as found:
            await self.alarm(found.evidence)
            raise

    async def _exchange_for_ever(self) -> None:
        round, due = self._replica.state.round, self._clock() + self._interval
        while True:
            with contextlib.suppress(TimeoutError):
                await within(self._grown.wait(), max(0.0, due - self._clock()))
            self._grown.clear()
            await self._follow_term()
            if self._proof is not None:
                raise SplitViewProven(self._proof)
            await self._resolve()
            if self._replica.state.round != round or self._clock() >= due:
                round, due = self._replica.state.round, self._clock() + self._interval
                peer = self._next()
                if peer:
                    await self.exchange(peer)

    def _next(self) -> str:
        """The peer whose turn it is; "" when there is nobody."""
        others = sorted({*self._neighbours(), self._coordinator()} - {self._host.peer_id})
        later = [peer for peer in others if peer > self._last]
        self._last = (later or others or [""])[0]
        return self._last

    async def exchange(self, peer: str) -> None:
        """Look at the heads and the evidence that one peer has.

        :raises SplitViewProven: they prove that the coordinator signed two histories
        """
        try:
            source = PeerSource(self._host, peer, self._run_id)
            *heads, conflicts = await source.files(*HEADS, CONFLICTS_PATH)
            texts = notes_in(heads)
            for text in texts:
                await self.consider(peer, text)
            if peer == self._coordinator() and texts:
                await self._follow(peer, parse_checkpoint(texts[-1]).size)
            await self._hear(conflicts or b"")
        except SplitViewProven:
            raise
        except ArtelError as error:
            emit(
                log,
                "head.not_exchanged",
                logging.DEBUG,
                peer=short_peer(peer),
                reason=error.message,
            )

    async def _follow(self, coordinator: str, size: int) -> None:
        """Also a node without duties keeps up, and compares what it was shown."""
        if size > self._replica.store.size:
            await self._replica.catch_up(self._host, coordinator, self._run_id, size)
            await self._resolve()
        elif size < self._replica.store.size:
            # Nothing is forged, but the only one who adds entries has lost some that it signed.
            # It asks before it signs; one that has begun to is told, and stops.
            with contextlib.suppress(ArtelError):
                await PeerSource(self._host, coordinator, self._run_id).cosign(
                    self._replica.store.latest_note
                )
        if size < self._replica.store.size and size != self._behind:
            emit(
                log,
                "coordinator.lost_entries",
                logging.WARNING,
                theirs=size,
                ours=self._replica.store.size,
                hint="it takes them back from its members; tell the organiser if it does not",
            )
        self._behind = size

    async def consider(self, peer: str, text: str) -> None:
        """Hold a head that a peer showed against our tree; keep its cosignatures if it fits.

        :raises SplitViewProven: it is another history, and that is proven
        :raises DecodeError: it is malformed
        :raises CheckFailed: who leads its term has not signed it
        """
        await self._follow_term()
        store, state = self._replica.store, self._replica.state
        if not store.size or text in self._fit:
            return
        origin = parse_checkpoint(text).origin
        term = term_of(origin, self._run_id)
        keys = store.signers(term)
        if term is not None and term > store.term:
            # By whom it is signed stands in the ledger under it.
            await self._replica.catch_up(self._host, peer, self._run_id)
            await self._follow_term()
            return
        if term is not None and term < store.term:
            head = open_checkpoint(text, origin, keys)
            if not given_up(head, store.terms()) and store.root_at(head.size) != head.root:
                emit(log, "ledger.head_differs", logging.WARNING, size=head.size, term=term)
            return
        # The log's signature alone convicts it; a bad line of another key must not hide that.
        head, alone = open_signed(text, store.origin, keys)
        if head.size <= store.size and head.root == store.root_at(head.size):
            _, signed = await asyncio.to_thread(
                finality.verified, text, store.origin, keys, dict(state.nodes)
            )
            await asyncio.to_thread(self._heads.add_note, signed.encode())
            self._fit.append(text)
            return
        for (size, root), other in self._doubts.items():
            if size == head.size and root != head.root:
                proof = evidence.build(other.note, store, alone.encode(), store)
                evidence.check(proof, verifier_keys(store.origin, keys))
                raise SplitViewProven(proof)
        key = (head.size, head.root)
        if key not in self._doubts and len(self._doubts) < MAX_DOUBTS:
            self._doubts[key] = Doubt(alone.encode(), peer, self._clock())
        if head.size <= store.size and key in self._doubts:
            await self._settle(key)

    async def _follow_term(self) -> None:
        """Where a later term has begun, what was held against the one before is over."""
        store = self._replica.store
        if store.term == self._term:
            return
        self._term, self._proof, self._alarmed = store.term, None, False
        self._doubts.clear()
        self._fit.clear()
        await asyncio.to_thread(self._heads.look_again, self._run_id, store.terms())
        leader = self._replica.state.term.leader
        emit(log, "term.begun", term=store.term, size=store.size, leader=leader[:12])

    async def _resolve(self) -> None:
        """Compare what we have caught up with, and test what is ahead of us for too long."""
        now, patience = self._clock(), PATIENT_INTERVALS * self._interval
        for key, doubt in list(self._doubts.items()):
            if key[0] <= self._replica.store.size:
                if self._replica.store.root_at(key[0]) == key[1]:
                    self._doubts.pop(key, None)
                    continue
            elif now - doubt.since < patience:
                continue
            if now - doubt.since >= doubt.tries * self._interval:
                await self._settle(key)

    async def _settle(self, key: tuple[int, bytes]) -> None:
        """Ask who showed the head for the tree behind it, and compare that with ours."""
        doubt = self._doubts.get(key)
        if doubt is None:
            return
        doubt.tries += 1
        try:
            source = PeerSource(self._host, doubt.peer, self._run_id)
            proof = await asyncio.to_thread(fork.examine, source, self._replica.store, doubt.note)
        except ArtelError as error:
            differs = key[0] <= self._replica.store.size
            emit(
                log,
                "ledger.head_differs" if differs else "ledger.head_not_compared",
                logging.WARNING,
                size=key[0],
                peer=short_peer(doubt.peer),
                reason=error.message,
            )
            # One that differs stays: it is signed, so nothing more may be cosigned here.
            if not differs and doubt.tries >= MAX_TRIES:
                self._doubts.pop(key, None)
            return
        self._doubts.pop(key, None)
        if proof is not None:
            raise SplitViewProven(proof)

    # --- evidence by others -----------------------------------------------------------------------

    async def _hear(self, data: bytes) -> None:
        values = await asyncio.to_thread(canonical.loads, data)
        if not isinstance(values, list) or len(values) > MAX_CONFLICTS:
            raise DecodeError("conflicts are a list of evidence")
        for value in values:
            await self.weigh(value)
        if self._proof is not None:
            raise SplitViewProven(self._proof)

    async def weigh(self, value: Any) -> None:
        """Look at evidence that somebody shows; what does not hold is dropped."""
        digest = hashlib.sha256(canonical.dumps(value)).digest()
        if digest in self._heard or not self._replica.store.size:
            return
        if len(self._heard) >= MAX_HEARD:
            self._heard.clear()
        self._heard.add(digest)
        store = self._replica.store
        if fork.convicts_leader(value, store):
            self._proof = SplitView.from_dict(value)
            self._grown.set()
            return
        with contextlib.suppress(ArtelError):
            proof = SplitView.from_dict(value)
            culprit = evidence.check(proof, signers_of(self._replica.state, proof))
            if await asyncio.to_thread(self._heads.add_conflict, value):
                emit(log, "ledger.witness_lied", logging.WARNING, witness=culprit.name)

    async def take(self, peer: str, statement: bytes) -> None:
        """Answer ``submit``: a node takes evidence, and nothing else.

        :raises Refused: it is something else
        """
        entry = await asyncio.to_thread(entries.decode, statement)
        if not isinstance(entry.body, entries.SplitSeen):
            raise wire.Refused(
                f"a node takes no {entry.kind} entries",
                "send it to the run's coordinator",
                code=messages.NOT_COORDINATOR,
            )
        await self.weigh(entry.body.evidence)

    # --- what follows -----------------------------------------------------------------------------

    async def alarm(self, proof: SplitView) -> None:
        """Keep the proof, and show it to everybody within reach. Takes at most 5 s."""
        self._proof = proof
        if self._alarmed:
            return
        await asyncio.to_thread(fork.record, self._home, self._heads, proof, self._replica.store)
        self._alarmed = True
        if isinstance(self._account, Linked):
            return  # telling it takes the account's signature
        state, value = self._replica.state, proof.to_dict()
        name = state.keys.get(self._account.key, self._account.key)
        statement = entries.by_account(
            entries.SplitSeen, self._account, self._run_id, account=name, evidence=value
        )
        message = messages.Submit(run=self._run_id, statement=statement.encode())
        others = sorted({*self._neighbours()} - {self._host.peer_id})[:TOLD_AT_MOST]

        async def tell(peer: str) -> None:
            with contextlib.suppress(ArtelError):  # best effort; they also ask by themselves
                await self._host.ask(peer, wire.LEDGER, message, SPREAD_S)

        with contextlib.suppress(TimeoutError):
            await within(
                asyncio.gather(*(tell(peer) for peer in {*others, self._coordinator()})), SPREAD_S
            )


def refuse_convicted(replica: Replica, heads: HeadStore) -> None:
    """Take no part in a run whose coordinator is proven to lie, by evidence that this home has.

    :raises SplitViewProven: there is such evidence
    """
    store = replica.store
    for value in heads.conflicts() if store.size else ():
        if fork.convicts_leader(value, store):
            raise SplitViewProven(SplitView.from_dict(value))


def refuse_older(replica: Replica, heads: HeadStore) -> None:
    """Take no part in, and cosign nothing of, a ledger that lacks what this home saw signed.

    :raises SplitViewProven: two signed heads of one size prove that there are two histories
    :raises CheckFailed: it is older, or another one, and that is not proven for others
    """
    store = replica.store
    heads.look_again(store.genesis.run, store.terms())
    known = known_heads(heads, store.genesis.run, store.terms())
    for head in known:
        notes = store.note_at(head.size), heads.note(head.size)
        ours, seen = (parse_checkpoint(text) if text else None for text in notes)
        if ours and seen and ours.root != seen.root and ours.origin == seen.origin == store.origin:
            proof = evidence.build(notes[0], store, notes[1], store)
            evidence.check(proof, verifier_keys(store.origin, store.signers(store.term)))
            raise SplitViewProven(proof)
    error = heads_error(known, store.size, store.root_at)
    if error:
        raise CheckFailed(
            f"the ledger that the coordinator shows lacks what this node saw signed: {error}",
            "keep this home, and tell the organiser: the coordinator's ledger was put back from a "
            "backup, and has to be restored from a member's copy before anything is added to it",
        )
