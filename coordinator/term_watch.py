"""Whether the term that a coordinator leads is over, or is to end.

It is over when a quorum of the electors has sealed it, or a later one has begun, or when another
process leads the same one with the same key. The coordinator
itself asks for seals (``seal`` in its directives, between two rounds) when its owner wants that
(``artel coordinator handover``), and when some have sealed without which no head is certified any
more: a blip would else leave the run without anything final. For that it waits some time for
whoever leads next to be there, as nobody does until electors have waited for that one.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from pathlib import Path

from artel.coordinator.circle import Circle
from artel.coordinator.handing_over import NO_OTHER, is_asked, take
from artel.coordinator.recovery import require_newest
from artel.coordinator.service import Coordinator
from artel.coordinator.takeover import TermOver
from artel.ledger.entries.kinds.handover import candidate
from artel.ledger.store.finality import size_of
from artel.ledger.sync.peers import HEADS, PeerSource, notes_in
from artel.protocol import round_state
from artel.protocol.errors import ArtelError, Unreachable
from artel.protocol.events import emit
from artel.protocol.identity import peer_id_of, short_peer
from artel.protocol.net import wire
from artel.protocol.tasks import together

log = logging.getLogger("artel.coordinator")

LOOK_S = 0.25
ELSEWHERE_S = 5.0
LEARN_S = 60.0
ASK_S = 3.0
SEALED_WITHIN_S = 20.0
"""So long no round is opened while electors are asked for their seals."""
PAUSE_S = 60.0
"""After which they are asked again, where there is a reason for it and it came to nothing."""
BEHIND = 64
"""Entries by which the next coordinator may be behind when the term is ended on purpose."""
FOLLOWS, FOLLOWS_S = 2.0, 5.0
"""So many times ``handover_s`` a term in which nothing is certified goes on while the next
coordinator is away: as long as nobody would lead if it were ended then.
And seconds between two looks for that one."""


class TermWatch:
    """Watches the term of one coordinator; :meth:`run` ends only with an error.

    :param circle: who may know of a later term
    """

    def __init__(self, core: Coordinator, home: Path, circle: Circle) -> None:
        self._core, self._circle = core, circle
        self._home = home
        self._term = core.ledger.store.term
        self._sealed: set[str] = set()  # nodes that have sealed it
        self._asking_since = 0.0  # steady seconds; 0: nobody is asked
        self._not_before = 0.0
        self._stalled = 0.0  # steady seconds since when nothing is certified; 0: it is

    async def run(self) -> None:
        """Watch until cancelled.

        :raises TermOver: a quorum of the electors has sealed the term
        """
        take(self._home)  # it was about another term
        await together((self._watch(), self._look_elsewhere()))

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            self._require_unsealed()
            if is_asked(self._home):
                await self._end_on_purpose()
            elif not self._core.ending and time.monotonic() > self._not_before:
                await self._end_if_stalled()
            elif self._core.asks_seal:
                await self._go_on_in_time()

    def _require_unsealed(self) -> None:
        core = self._core
        self._sealed |= {name for name, peer in core.peers.items() if peer.sealed >= self._term}
        electors, sealed = core.ledger.state.electors, core.ledger.state.trusted(self._sealed)
        if electors.sets and electors.quorum(sealed):
            over = TermOver(f"a quorum of the electors has sealed term {self._term}")
            core.ledger.stop(over)
            raise over

    def _stalls(self) -> bool:
        """Whether those who are here could certify heads, had not some of them sealed the term."""
        state = self._core.ledger.state
        here = set(state.trusted(self._core.peers))
        able = here - self._sealed
        return able < here and state.electors.quorum(here) and not state.electors.quorum(able)

    async def _end_if_stalled(self) -> None:
        now = time.monotonic()
        self._stalled = (self._stalled or now) if self._stalls() else 0.0
        if not self._stalled:
            return
        longest = FOLLOWS * self._core.manifest.config.coordination.handover_s
        away = await self._nobody_follows()
        if away in ("", NO_OTHER) or now - self._stalled > longest:
            emit(log, "term.ending", logging.WARNING, term=self._term, why="some sealed it")
            await self._end(True)
        else:
            self._not_before = now + FOLLOWS_S

    # --- on purpose -------------------------------------------------------------------------------

    async def _end_on_purpose(self) -> None:
        core = self._core
        core.not_ending = await self._nobody_follows()
        if take(self._home) and not core.not_ending:  # else it was taken back meanwhile
            emit(log, "term.ending", term=self._term, why="the owner asked for it")
            await self._end(True)

    async def _nobody_follows(self) -> str:
        """Why the term cannot be ended on purpose, "" where the next coordinator is there."""
        core, state = self._core, self._core.ledger.state
        if not state.electors.sets:
            return "nobody can seal the term before the first state is agreed on"
        named = candidate(state, self._term + 1)
        if named == core.identity.key:
            return NO_OTHER
        # A node starts its coordinator when its turn has come.
        peer = state.starts(named) or peer_id_of(bytes.fromhex(named))
        try:
            source = PeerSource(core.host, peer, core.run)
            texts = notes_in(await source.files(*HEADS, timeout=ASK_S))
        except Unreachable:
            return f"the next coordinator, {short_peer(peer)}, does not answer"
        except ArtelError as error:
            return f"the next coordinator, {short_peer(peer)}, answers wrong: {error.message}"
        if max(map(size_of, texts), default=0) < core.ledger.store.size - BEHIND:
            return f"the next coordinator, {short_peer(peer)}, does not hold the ledger yet"
        return ""

    async def _end(self, ending: bool) -> None:
        """Ask electors to seal the term as soon as no attempt is under way, or go on."""
        core, fold = self._core, self._core.ledger.state
        core.ending, self._asking_since = ending, 0.0
        await core.feed(round_state.Halted(core.clock(), ending or fold.halted))
        await core.tell()

    async def _go_on_in_time(self) -> None:
        now = time.monotonic()
        if not self._asking_since:
            self._asking_since = now
            await self._core.tell()
        elif now - self._asking_since > SEALED_WITHIN_S:
            self._not_before = now + PAUSE_S
            self._core.not_ending = "too few electors have sealed the term in time"
            emit(log, "term.goes_on", logging.WARNING, term=self._term, sealed=len(self._sealed))
            await self._end(False)

    # --- what others hold -------------------------------------------------------------------------

    async def _look_elsewhere(self) -> None:
        """Ask others for their heads while too few electors are here: they may have gone on, in a
        later term, or in this one with somebody who has the same key and began it, too. And
        now and then the other coordinators: who was away, and whose notes of where others are have
        all become wrong, is so found by the one who leads."""
        core, circle, learned = self._core, self._circle, -LEARN_S
        while True:
            await asyncio.sleep(ELSEWHERE_S)
            electors, now = core.ledger.state.electors, time.monotonic()
            alone = electors.sets and not electors.quorum(core.ledger.state.trusted(core.peers))
            if not alone and now - learned < LEARN_S:
                continue
            learned = now
            await circle.learn([])
            for peer in await circle.peers() if alone else circle.coordinators:
                if peer not in core.peers:
                    await self._look_at(peer)

    async def _look_at(self, peer: str) -> None:
        core = self._core
        with contextlib.suppress(ArtelError):
            source = PeerSource(core.host, peer, core.run)
            for text in notes_in(await source.files(*HEADS, timeout=ASK_S)):
                with contextlib.suppress(wire.Refused):  # it ends the coordinator
                    await require_newest(core, peer, text)
