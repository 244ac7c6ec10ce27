"""What a node does when the coordinator that leads is gone: it looks for the next one and, as an
elector, seals the term, so that there can be one.

An elector seals the present term when the one who leads has been silent for
``coordination.handover_s``, or has left out for as long what would count (:mod:`.petitions`), or
lets the run stand still (:mod:`.standstill`), or asks for it, or has signed two histories; and each
later term, when nobody has begun it in twice the time of the one before. Whoever may begin a term
needs a quorum's seals of exactly the one before: so no elector runs ahead, but asks others how far
they are, and goes on from where a quorum is. What it has sealed is durable before anybody is told;
from then on it cosigns nothing of it (:meth:`HeadStore.advance`). Whoever may lead next asks for
the seal. Everything else goes on meanwhile: what the node was assigned it trains, and keeps.

An elector that reaches nobody at all is cut off itself, and seals nothing: its seal would end the
term of a coordinator that all others can reach.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import evidence
from artel.ledger.entries.evidence import SplitView
from artel.ledger.entries.fold_state import FoldState, peer_of
from artel.ledger.entries.kinds.handover import candidate, seal
from artel.ledger.entries.kinds.split_seen import signers_of
from artel.ledger.store import finality
from artel.ledger.store.heads import HeadStore
from artel.ledger.sync import fork
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.replica import Replica
from artel.node.account_link import Linked, Owner
from artel.node.elected import Elected
from artel.node.link import Link
from artel.node.petitions import Petitions
from artel.node.standstill import Standstill
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError
from artel.protocol.events import emit
from artel.protocol.identity import Identity, short_peer
from artel.protocol.net.host import Host
from artel.protocol.round_state import RoundRules
from artel.protocol.tasks import end, within

log = logging.getLogger("artel.node")

LOOK_S = 1.0
"""Between two looks for whoever leads, while nobody does."""
SEEK_AFTER_S = 2.5
"""So long one who leads may be silent before others are asked."""
WAIT_S = 4.0
"""So long what others show is waited for before a term is sealed that is to be."""
AHEAD = 8
"""By how much longer an elector waits that does not know whether the others have come as far."""
MOST_DOUBLINGS = 10
"""Terms in a row without a state, for each of which an elector waits twice as long."""
NOBODY_ELSE = "no state is agreed on yet, so nobody can lead in its place: only its home can go on"
SHOWN = 4
"""Electors that are named."""
LINGER_S = 10.0
"""So long the node whose coordinator leads stays when the run is over: others hear it from that."""


class Sealing:
    """One node's part in changes of the term; the event loop owns it.

    :param account: of the node's owner
    :param rules: of the run's rounds
    :param handover_s: ``coordination.handover_s`` of the run
    :param elected: the coordinator that the node starts if members choose it
    :param say: shows a line to the node's owner
    :param clock: steady seconds
    """

    def __init__(
        self,
        *,
        host: Host,
        identity: Identity,
        account: Owner,
        run: str,
        replica: Replica,
        heads: HeadStore,
        link: Link,
        rules: RoundRules,
        handover_s: float,
        elected: Elected | None,
        say: Callable[[str], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host, self._identity, self._account, self._run = host, identity, account, run
        self._replica, self._heads, self._link = replica, heads, link
        self.petitions = Petitions(host, run, replica, link, handover_s, clock)
        self.standstill = Standstill(host, run, replica, rules, handover_s, clock)
        self._handover_s, self._elected, self._say, self._clock = handover_s, elected, say, clock
        sealed, self._next = heads.sealed(run)
        self._forgotten = -1 if self._next else sealed
        """In this term and those before, this node no longer knows what it has signed."""
        self.term = sealed if self._next else -1
        """The latest term that was sealed here; -1 for none. Whom that was for is said again and
        again, and never anew: by what this copy learns later it may be another's turn."""
        self.neighbours: Callable[[], Iterable[str]] = tuple
        self.news: Callable[[], None] = lambda: None
        """Called when the coordinator that leads should hear from this node at once."""
        self.alarm: Callable[[SplitView], Awaitable[None]] = self._record
        """Keeps evidence against the coordinator that leads, and shows it to others."""
        self._begun = asyncio.Event()  # set, and replaced, when a later term has begun
        self._grown = replica.growth()
        self._led = replica.state.term.number if replica.state.size else 0
        self._sealed_at = clock()
        self._asked = -1, 0  # term, and the size of the ledger that it is to be sealed with
        self._search: asyncio.Task[int] | None = None

    # --- what others are told ---------------------------------------------------------------------

    def statement(self) -> bytes:
        """This node's newest seal; empty when it has sealed nothing of the present term or later.

        It names the newest certified head that is known here now, which only grows.
        """
        state = self._replica.state
        if not state.size or self.term < state.term.number:
            return b""
        of, size, root = finality.known_certified(self._replica.store, self._heads, state)
        said = seal(
            self._identity, self._run, term=self.term, next=self._next, of=of, size=size, root=root
        )
        return said.encode()

    def waiting(self) -> str:
        """What is being waited for, in words; "" while somebody leads."""
        state, lost = self._replica.state, self._link.lost_since
        if not state.size or not self.waits:
            return ""
        silent = "" if lost is None else f"the coordinator has been silent for {self._for(lost)}; "
        seals = self._seals_in_words(state)
        if self.term < state.term.number:
            if not state.electors.sets:
                return f"{silent}{NOBODY_ELSE}"
            if not self._is_elector(state):
                return f"{silent}others decide whether the next one leads{seals}"
            left = self._patience(state, state.term.number)
            return f"{silent}after {left:,.0f} s this node seals its term, so that another leads"
        next = _name(state, self._next)
        return f"{silent}this node has sealed term {self.term}{seals}; waiting for {next} to lead"

    def unsealed(self) -> list[str]:
        """Electors (peer ids) of whom no seal is known here that ends the term, or the later one
        that this node has sealed; none while somebody leads, or where a quorum has sealed it."""
        state = self._replica.state
        term = max(self.term, self.present)
        if not self.waits or self._come_to(state, term):
            return []
        return sorted(self._electors(state) - self._sealed_by(term))

    def _seals_in_words(self, state: FoldState) -> str:
        missing = self.unsealed()
        if not missing:
            return ""
        names = ", ".join(map(short_peer, missing[:SHOWN]))
        more = f" and {len(missing) - SHOWN} more" if len(missing) > SHOWN else ""
        have, count = len(self._electors(state)) - len(missing), len(self._electors(state))
        return f"; sealed by {have} of {count} electors, no seal of {names}{more} is known here yet"

    def _for(self, since: float) -> str:
        return f"{max(0.0, self._clock() - since):,.0f} s"

    # --- when it is time --------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether nobody leads as far as is known here."""
        state = self._replica.state
        if not state.size or state.closed == 2:
            return False
        return self._link.lost_since is not None or self.term >= state.term.number

    @property
    def present(self) -> int:
        """The term as far as it is known here; -1 before there is a ledger."""
        state = self._replica.state
        return state.term.number if state.size else -1

    def ask(self, term: int, size: int) -> None:
        """The coordinator that leads a term wants it to be sealed.

        :param size: of its ledger. Whose turn is next hangs on whether a state was agreed on in the
            term: who does not hold that yet would seal it for another one than the others do.
        """
        if self._asked <= (term, size):
            self._asked = term, size
            self._grown.set()

    async def convict(self, found: SplitViewProven) -> None:
        """The coordinator that leads is proven to have signed two histories: it is asked nothing
        more, and its term is to end.

        :raises SplitViewProven: nobody could lead the run after it
        """
        if not fork.convicts_leader(found.evidence.to_dict(), self._replica.store):
            await self._record(found.evidence)  # of who led before: another term has begun
            return
        await self.alarm(found.evidence)
        if not self._replica.state.electors.sets:
            raise found
        if self._link.liar != self._link.coordinator:
            self._link.liar = self._link.coordinator
            self._say(f"! ledger   {found.message}; {found.hint}")
        self._grown.set()

    async def while_led(self, work: Callable[[], Coroutine[Any, Any, None]]) -> None:
        """Do what follows the coordinator that leads. When that is proven to have signed two
        histories, it stops until the next one leads.

        :raises SplitViewProven: nobody could
        """
        while True:
            begun = self._begun
            try:
                await work()
                return
            except SplitViewProven as found:
                await self.convict(found)
            await begun.wait()

    async def _record(self, proof: SplitView) -> None:
        store = self._replica.store
        await asyncio.to_thread(fork.record, store.path.parent, self._heads, proof, store)

    def due(self) -> int | None:
        """The term that is to be sealed now; None for none."""
        state = self._replica.state
        if not state.size or state.closed == 2 or not self._is_elector(state):
            return None
        present = state.term.number
        term = max(self.term + 1, present)
        proven = self._link.liar == self._link.coordinator
        asked, size = self._asked
        on_purpose = asked == present and state.size >= size
        why = proven or on_purpose or self._left_out or self._stands_still
        if term == present and why:
            return term
        since = self._link.lost_since
        if since is None:
            return None
        if term > present:
            since = max(since, self._sealed_at)
        alone = all(each.weights.keys() <= {self._host.peer_id} for each in state.electors.sets)
        patience = self._patience(state, term)
        if term > present and not self._come_to(state, term - 1):
            patience *= AHEAD
        late = self._clock() - since >= patience
        return term if late and (alone or self._link.reached) else None

    @property
    def _left_out(self) -> str:
        """The id of an entry that whoever leads leaves out; "" for none."""
        state = self._replica.state
        return self.petitions.overlooked(self._patience(state, state.term.number))

    @property
    def _stands_still(self) -> str:
        """Why whoever leads brings no round about that could be, by the newest ledger that anybody
        shows; "" while that is not so, or is being looked for."""
        state = self._replica.state
        if self._search is not None:
            return ""
        return self.standstill.overdue(self._patience(state, state.term.number))

    def _come_to(self, state: FoldState, term: int) -> bool:
        """Whether a quorum of the electors is known to have sealed a term, or a later one."""
        return state.electors.quorum(state.trusted(self._sealed_by(term)))

    def _sealed_by(self, term: int) -> set[str]:
        """Who is known to have sealed a term, or a later one."""
        known = {**self._link.seals, self._host.peer_id: self.term}
        return {peer for peer, sealed in known.items() if sealed >= term}

    def _electors(self, state: FoldState) -> set[str]:
        return {peer for each in state.electors.sets for peer in each.weights}

    def _is_elector(self, state: FoldState) -> bool:
        """Whether this node may seal the present term."""
        known = state.term.number > self._forgotten
        return known and self._host.peer_id in self._electors(state)

    def _patience(self, state: FoldState, term: int) -> float:
        """How long (seconds) an elector waits for whoever leads a term, or may begin it."""
        named = candidate(state, term) if term > state.term.number else ""
        if named and (named in state.convicted or peer_of(named) == self._link.liar):
            return 0.0
        return self._handover_s * 2.0 ** min(term - state.worked, MOST_DOUBLINGS)

    async def hand_over(self) -> None:
        """Have another coordinator lead where the one does that this node has started: its owner
        wants the node to leave. Returns when that is so, or cannot be."""
        elected, state = self._elected, self._replica.state
        if elected is None or state.closed == 2 or not self._leads_itself:
            return
        self._say("leaving  this node's coordinator leads: another one is asked to")
        asked = asyncio.create_task(elected.hand_over())
        try:
            while not asked.done() and self._leads_itself:
                await asyncio.wait({asked}, timeout=LOOK_S)
        finally:
            await end(asked)

    @property
    def _leads_itself(self) -> bool:
        """Whether the coordinator leads that this node has started."""
        state, elected = self._replica.state, self._elected
        return elected is not None and state.size > 0 and state.term.leader == elected.key

    # --- the task ---------------------------------------------------------------------------------

    async def run(self) -> None:
        """Look after the term until cancelled.

        :raises SplitViewProven: the coordinator that leads has signed two histories, and nobody
            could lead after it
        """
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await within(self._grown.wait(), LOOK_S)
                self._grown.clear()
                await self.look()
        finally:
            await self.standstill.close()
            if self._search is not None:
                await end(self._search)
            if self._elected is not None:
                if self._leads_itself and self._replica.state.closed == 2:
                    await asyncio.sleep(LINGER_S)
                await self._elected.end()

    async def look(self) -> None:
        """Do what is to be done now."""
        state = self._replica.state
        if not state.size:
            return
        if state.term.number != self._led:
            await self._begin(state)
        lost = self._link.lost_since
        # Whose network daemon is started again is back in a second; a dial that fails before makes
        # libp2p wait for 5 s, and heartbeats with it.
        soon = lost is not None and self._clock() - lost < min(SEEK_AFTER_S, self._handover_s)
        if self.waits and not (soon and self.term < state.term.number):
            await self._seek()
        elif self._is_elector(state):
            patience = self._patience(state, state.term.number)
            await self.standstill.look(patience)
            if self.standstill.overdue(patience):
                await self._seek()  # this copy may be behind
        term = self.due()
        if term is not None:
            await self._seal(term)
        if self._elected is not None:
            await self._elected.keep(self._is_chosen(self._replica.state))

    async def _seek(self) -> None:
        """Look for whoever leads; who is slow to answer holds up no seal."""
        search = self._search or asyncio.create_task(self._link.seek(self.neighbours()))
        self._search = search
        await asyncio.wait({search}, timeout=WAIT_S)
        if search.done():
            self._search = None
            try:
                search.result()
            except SplitViewProven as found:
                await self.convict(found)

    async def _seal(self, term: int) -> None:
        next = candidate(self._replica.state, term + 1)
        await asyncio.to_thread(self._heads.seal, self._run, term, next)
        self.term, self._next, self._sealed_at = term, next, self._clock()
        lost, state = self._link.lost_since, self._replica.state
        silent = 0.0 if lost is None else round(self._clock() - lost, 1)
        present = term == state.term.number
        left_out, why = self._left_out if present else "", self._stands_still if present else ""
        said = {"term": term, "silent": silent, "left_out": left_out[:16]}
        said["next"] = _name(state, next)
        emit(log, "term.sealed", logging.WARNING, **said, stands_still=why)
        why = f"the coordinator leaves out entry {left_out[:16]}…" if left_out else why
        why += "; " if why else ""
        self._say(f"! term {term}   {why}{self.waiting()}")
        self.news()

    async def _begin(self, state: FoldState) -> None:
        """Another term has begun: what went with the one before is sent to whoever leads now."""
        self._led = state.term.number
        self._begun.set()
        self._begun = asyncio.Event()
        leader = _name(state, state.term.leader)
        self._say(f"term {self._led}   of the run has begun; {leader} leads")
        lost, self._replica.lost = self._replica.lost, []
        self.petitions.again(lost)
        proofs = await asyncio.to_thread(self._heads.conflicts)
        self.petitions.add(*(said for proof in proofs if (said := self._seen(state, proof))))
        self.news()

    def _seen(self, state: FoldState, proof: dict[str, object]) -> Envelope | None:
        """The entry that shows the ledger a coordinator's two histories; None where it knows."""
        name = state.keys.get(self._account.key, "")
        try:
            view = SplitView.from_dict(proof)
            culprit = evidence.check(view, signers_of(state, view)).public.hex()
        except ArtelError:
            return None
        if isinstance(self._account, Linked):
            return None  # it takes the account's signature; the home keeps the proof
        if not name or culprit in state.convicted or culprit not in state.leaders():
            return None
        return entries.by_account(
            entries.SplitSeen, self._account, self._run, account=name, evidence=proof
        )

    def _is_chosen(self, state: FoldState) -> bool:
        """Whether members chose this node to start a coordinator, or may now."""
        assert self._elected is not None
        if self._leads_itself:
            return True
        # One that was started stays: it may be late, and its turn comes again.
        turn = candidate(state, self.term + 1) == self._elected.key
        return self.waits and self.term >= state.term.number and (turn or self._elected.runs)


def _name(state: FoldState, key: str) -> str:
    """Of whoever leads with this key (hex), for people."""
    node = state.starts(key)
    return f"node {short_peer(node)}" if node else f"coordinator {short_peer(peer_of(key))}"
