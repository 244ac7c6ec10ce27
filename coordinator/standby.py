"""A coordinator that stands by: it follows the ledger of whoever leads, holds what a run needs, and
waits for its turn.

The turn comes when a quorum of the electors has sealed the term (:mod:`.takeover`). Everything is
asked for: electors that cannot be dialled come by themselves, since nodes that have lost the one
who leads ask every coordinator for its heads. Whoever leads is asked twice a second, so the copy
here is that much behind; some electors are, too, in turn, for their seals. When the leader is
silent or a seal has been seen, all of them are.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from artel.coordinator.circle import Circle
from artel.coordinator.own_ledger import OwnLedger
from artel.coordinator.stock import Stock
from artel.coordinator.takeover import Seals, Turn, names_ours
from artel.ledger.entries.kinds.handover import Sealed
from artel.ledger.fold.shares import FoldState
from artel.ledger.store import finality
from artel.ledger.store.published import term_of
from artel.ledger.sync import fork
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.serving import LedgerService, caller
from artel.ledger.sync.source import CERTIFIED_PATH, SEAL_PATH, text_of
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.tiles import CHECKPOINT_PATH
from artel.protocol import messages
from artel.protocol.errors import ArtelError, CheckFailed, ResourceError, Unreachable
from artel.protocol.events import emit
from artel.protocol.identity import peer_id_of, short_peer
from artel.protocol.net import clocks, delivery, dht, elsewhere, wire
from artel.protocol.net.slots import Caller, Rank
from artel.protocol.tasks import end, together

if TYPE_CHECKING:
    from artel.protocol.net.blobs import BlobStore
    from artel.protocol.net.host import Host

log = logging.getLogger("artel.coordinator")

FOLLOW_S = 0.5
"""Between two questions to whoever leads."""
SILENT_S = 1.5
"""After which all electors are asked whether they have sealed its term."""
ANSWER_S = 3.0
LAST_S = 1.0
"""In which all are asked once more, before a term begins: whatever was signed is gone on from."""
ALONE_S = 2.0
"""In which it is found out then whether another process runs with this key."""
IN_TURN = 2
"""Electors that are asked at a time while all is well, and ..."""
PEERS_A_SECOND = 32
"""... peers in a second when it is not."""
MOST_OTHERS = 16
LEARN_S, LEARN_SOON_S = 30.0, 3.0
RETRY_S = 2.0
KNOWN_TEXTS = 256
"""Heads that are not looked at again."""


class Standby:
    """Stands by for one run. The event loop owns it.

    :param key: (hex) with which it leads when it is its turn
    """

    def __init__(
        self,
        own: OwnLedger,
        host: Host,
        blobs: BlobStore,
        stock: Stock,
        circle: Circle,
        key: str,
    ) -> None:
        self.own, self._host, self._blobs, self._stock = own, host, blobs, stock
        self._circle, self._key = circle, key
        self._seals = Seals(own.run)
        self._texts: dict[str, None] = {}  # heads that were looked at
        self._asking: dict[str, asyncio.Task[None]] = {}
        self._asked_at: dict[str, float] = {}
        self._electors: Iterator[str] = iter(())
        self._first = 0  # of those who are asked for a ledger in turn
        self._switching: asyncio.Task[None] | None = None
        self.heard = time.monotonic()
        """When whoever leads answered last."""
        self._failure: ResourceError | None = None
        self._left: int | None = None
        """The term that was left to another coordinator."""
        self._switched: set[str] = set()  # heads of seals that were gone to
        self._files = LedgerService(own.store, own.heads, own.run, lambda: self.state)

    @property
    def state(self) -> FoldState:
        return self.own.replica.state

    @property
    def leader(self) -> str:
        """Peer id of whoever leads; "" when this home did, or nothing is known."""
        if not self.state.size:
            return ""
        peer = peer_id_of(bytes.fromhex(self.state.term.leader))
        return "" if peer == self._host.peer_id else peer

    @property
    def waits(self) -> bool:
        """Whether nobody leads as far as is known here."""
        silent = not self.leader or time.monotonic() - self.heard > SILENT_S
        return self.state.size > 0 and (silent or self._seals.some(self.state))

    # --- what others are answered -----------------------------------------------------------------

    async def open(self) -> None:
        """Begin to answer."""
        self._host.admit(self._caller)
        await self._host.serve(wire.CONTROL, self._refuse)
        await self._host.serve(wire.CONTENT, self._content)
        await self._host.serve(wire.LEDGER, self._files.answer)

    def _caller(self, peer: str) -> Caller:
        return Caller(Rank.KNOWN) if peer in self._coordinators() else caller(self.state, peer)

    async def _refuse(self, peer: str, *_: object) -> messages.Message | None:
        raise wire.Refused(
            "this coordinator stands by", "ask whoever leads", code=messages.NOT_LEADING
        )

    async def _content(
        self, peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message | None:
        return await delivery.serve_content(self._blobs, request, stream)

    def present(self) -> dict[str, list[str]]:
        """Where members are, as far as is known."""
        return self._circle.where(self.state.nodes)

    # --- following --------------------------------------------------------------------------------

    async def until_turn(self) -> Turn | None:
        """Follow the ledger until a term may be begun here; None when this home leads already.

        :raises ArtelError: the home cannot be used any more
        """
        try:
            while not (self.state.size and self.own.leads(self._key)):
                for peer in await self._asked_now():
                    self._ask_soon(peer)
                await asyncio.sleep(FOLLOW_S)
                if self._failure is not None:
                    raise self._failure
                turn = self._seals.turn(self.own, self._key)
                if turn is not None and turn.term != self._left:
                    await together((self._ask_all(), self._require_alone()))
                    turn = self._seals.turn(self.own, self._key)
                    if turn is not None and not await self._leaves(turn.term):
                        return turn
                elif self.state.size and self._seals.sealed(self.state) >= 0:
                    if self._switching is None or self._switching.done():
                        self._switching = asyncio.create_task(self._switch())
                    await asyncio.wait({self._switching}, timeout=LAST_S)
            return None
        finally:
            for task in (*self._asking.values(), *filter(None, [self._switching])):
                await end(task)

    async def _asked_now(self) -> list[str]:
        """Whom to ask now: all who may know, or whoever leads and some electors in turn."""
        if not self.state.size:
            peers = await self._circle.peers()
            first = self._first % max(1, len(peers))
            self._first += MOST_OTHERS
            named = self._coordinators().intersection(peers)
            return [*named, *[*peers[first:], *peers[:first]][:MOST_OTHERS]]
        if self.waits:
            everybody, now = await self._everybody(), time.monotonic()
            before = now - len(everybody) / PEERS_A_SECOND
            self._asked_at = {peer: self._asked_at.get(peer, 0.0) for peer in everybody}
            return [peer for peer in everybody if self._asked_at[peer] <= before]
        some = list(itertools.islice(self._electors, IN_TURN))
        if len(some) < IN_TURN:
            self._electors = iter(list(self.state.electors.present))
        return [self.leader, *some]

    async def _everybody(self) -> list[str]:
        """Electors and coordinators; of others that say to lead, and of members that are connected,
        so many that they do not delay those."""
        electors = (peer for each in self.state.electors.sets for peer in each.weights)
        others = [peer for peer, term in self._circle.terms.items() if term >= 0][:MOST_OTHERS]
        nodes = [peer for peer in await self._host.connected() if peer in self.state.nodes]
        peers = [*electors, *self._coordinators(), *others, *nodes[:MOST_OTHERS]]
        return [peer for peer in dict.fromkeys(peers) if peer != self._host.peer_id]

    def _coordinators(self) -> set[str]:
        keys = self.state.leaders() if self.state.size else self.own.coordinators
        return {peer_id_of(bytes.fromhex(key)) for key in keys}

    def _ask_soon(self, peer: str) -> None:
        """Ask a peer, unless its last answer is still being waited for."""
        if peer not in self._asking:
            self._asked_at[peer] = time.monotonic()
            self._asking[peer] = asyncio.create_task(self._ask(peer))

    async def _ask_all(self) -> None:
        for peer in await self._everybody():
            self._ask_soon(peer)
        if self._asking:
            await asyncio.wait(list(self._asking.values()), timeout=LAST_S)

    async def _require_alone(self) -> None:
        """Nobody else runs with this key, as far as can be known in a moment."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(ALONE_S):
                await elsewhere.require_alone(self._host, self.own.run)

    async def _leaves(self, term: int) -> bool:
        """Whether a term is left to another coordinator of the run: this machine's clock is wrong,
        and new nodes would be refused under it. Once, and only where one answers: members wait for
        the next one then, and a run whose clock is wrong is better than none."""
        electors = self.state.electors.present
        if await clocks.right(self._host, [*self._coordinators(), *electors], LAST_S):
            return False
        others = self._coordinators()
        if self._left is not None or await clocks.ahead(self._host, others) is None:
            return False
        self._left = term
        emit(log, "term.left_to_others", logging.WARNING, term=term)
        return True

    async def _ask(self, peer: str) -> None:
        source = PeerSource(self._host, peer, self.own.run)
        paths = (CERTIFIED_PATH, CHECKPOINT_PATH, SEAL_PATH)
        try:
            async with self._noting(peer):
                certified, newest, seal = await source.files(*paths, timeout=ANSWER_S)
                if peer == self.leader:
                    self.heard = time.monotonic()
                if seal:
                    async with self._noting(peer):
                        self._seals.take(peer, seal)
                for data in filter(None, (certified, newest)):
                    async with self._noting(peer):
                        await self._consider(source, text_of(data, "a signed tree head"))
        finally:
            self._asking.pop(peer, None)

    @contextlib.asynccontextmanager
    async def _noting(self, peer: str) -> AsyncIterator[None]:
        """What is wrong with one thing that a peer shows must not hide the others."""
        try:
            yield
        except SplitViewProven as found:
            await asyncio.to_thread(
                fork.record, self.own.home, self.own.heads, found.evidence, self.own.store
            )
        except ArtelError as error:
            said = {"peer": short_peer(peer), "reason": error.message}
            emit(log, "peer.not_asked", logging.DEBUG, **said)
            if isinstance(error, ResourceError):
                self._failure = error

    async def _consider(self, source: PeerSource, text: str) -> None:
        """Take over what a head covers beyond the ledger here; keep its cosignatures."""
        own, store = self.own, self.own.store
        if text in self._texts:
            return
        head = parse_checkpoint(text)
        term = term_of(head.origin, own.run)
        if term is None:
            raise CheckFailed("it is the head of another log")
        if term > store.term or (term == store.term and head.size > store.size):
            await own.follow(source)
        if head.size <= store.size and store.root_at(head.size) != head.root:
            if term == store.term:
                proof = await asyncio.to_thread(fork.examine, source, store, text)
                if proof is not None:
                    self._texts[text] = None
                    raise SplitViewProven(proof)
        elif head.size <= store.size:
            known = dict(self.state.nodes)
            keys, check = own.signers(term), finality.verified
            _, signed = await asyncio.to_thread(check, text, head.origin, keys, known)
            await asyncio.to_thread(own.heads.add_note, signed.encode())
        self._texts[text] = None
        while len(self._texts) > KNOWN_TEXTS:
            del self._texts[next(iter(self._texts))]

    async def _switch(self) -> None:
        """Go over to the certified head that a seal names, where the tree here is another one: who
        led has signed two histories, and this one is not that of the electors."""
        for part in self._seals.of(self.state, self._seals.sealed(self.state)):
            if not names_ours(self.own.store, self.state, part) and part.root not in self._switched:
                with contextlib.suppress(ArtelError):
                    await self._go_to(part)

    async def _go_to(self, part: Sealed) -> None:
        own, state = self.own, self.state
        source = PeerSource(self._host, part.node, own.run)
        (data,) = await source.files(CERTIFIED_PATH, timeout=ANSWER_S)
        text = text_of(data or b"", CERTIFIED_PATH)
        origin = parse_checkpoint(text).origin
        keys = own.signers(term_of(origin, own.run))
        head, signed = finality.verified(text, origin, keys, state.nodes)
        same = (head.size, head.root.hex()) == (part.size, part.root)
        if same and finality.is_certified(signed, state) and term_of(origin, own.run) == part.of:
            self._switched.add(part.root)
            emit(log, "ledger.other_history", logging.WARNING, size=head.size)
            await own.replica.take_from(source, own.run, instead=True)

    # --- what goes on beside ----------------------------------------------------------------------

    async def learn(self, ways: Sequence[str]) -> None:
        """Learn where others are, until cancelled.

        :param ways: addresses of the invite
        """
        while True:
            known = self._circle.known
            near = [known[p][0] for p in await self._host.connected() if known.get(p)]
            # Not always the same two: they may know nobody.
            await self._circle.learn(random.sample(near, min(2, len(near))) or ways)
            await asyncio.sleep(LEARN_SOON_S if self.waits or not near else LEARN_S)

    async def announce(self) -> None:
        """Say in the DHT that this coordinator stands by, until cancelled.

        :raises ResourceError: another process has said so since, with the same key
        """
        while True:
            await elsewhere.require_alone(self._host, self.own.run)
            await self._stock.announce(self.state.round, -1)
            await asyncio.sleep(dht.RENEW_S)

    async def keep(self) -> None:
        """Hold the prepared run, and the states that a coordinator copies, until cancelled."""
        grown = self.own.replica.growth()
        if not self.state.size:
            await grown.wait()
        await asyncio.to_thread(self._stock.label, self.state.states)
        done, complete = -1, False
        while True:
            try:
                if not complete:
                    await self._stock.complete(await self._holders())
                    complete = True
                    await asyncio.to_thread(self._stock.label, self.state.states)
                    emit(log, "standby.ready", round=self.state.round, size=self.own.store.size)
                number, root = self.state.round, self.state.states[-1]
                if number != done and self._stock.wanted(number, self.state.founded.total):
                    held = await self._stock.mirror(number, root, await self._holders())
                    done = number if held else -1
            except Unreachable as error:
                emit(log, "standby.not_complete", logging.DEBUG, reason=error.message)
            await asyncio.sleep(RETRY_S)

    async def _holders(self) -> list[str]:
        leader = [self.leader] if self.leader else []
        return list(dict.fromkeys([*leader, *await self._circle.peers()]))

    def facts(self) -> dict[str, Any]:
        """What is known here, for the page and the API; for any thread."""
        store, state = self.own.store, self.state
        found = finality.of_heads(self.own.heads, state)
        return {
            "run": self.own.run,
            "role": "standby",
            "phase": "standing by",
            "term": state.term.number if state.size else -1,
            "leader": state.term.leader if state.size else "",
            "leads": not self.waits,
            "sealed": self._seals.sealed(state) if state.size else -1,
            "round": state.round,
            "total": state.founded.total if state.rules is not None else 0,
            "ledger": {
                "size": store.size,
                "root": store.root.hex(),
                "final": min(found.size, state.size),
            },
        }
