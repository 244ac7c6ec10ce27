"""This node as a witness: it cosigns the tree heads whose entries it has replayed.

Runs beside the rounds and never holds them up: only the newest head is cosigned, one at a time,
and what goes wrong is noted and tried again with the next one. The coordinator answers with the
newest heads and the cosignatures of others; what of that can be verified is kept.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.store.finality import needed
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.peers import HEADS, PeerSource, notes_in
from artel.ledger.sync.replica import Replica
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.cosignature import add_lines
from artel.node.session import Session
from artel.node.watch import Watch
from artel.protocol.errors import ArtelError, Unreachable
from artel.protocol.events import emit

log = logging.getLogger("artel.node")

PACE_S = 0.5
"""Between two cosignatures, so that entries in quick succession need one alone."""
RETRY_S = 2.0
RETRIES = 3
"""Of one head; after that the next one is waited for."""
CALLED = 32
"""Nodes that cosign beside the electors, on the average, in a run of many."""


def called(state: FoldState, node: str) -> bool:
    """Whether a node is to cosign the heads of the round under way.

    Electors are, whose cosignatures certify a head. Of the others as many as count beside them:
    each cosignature costs the coordinator a request and a write, and a head has room for 100. A lot
    for each round and node, so that everybody's turn comes.
    """
    if any(node in electors.weights for electors in state.electors.sets):
        return True
    others = max(len(state.recent), len(state.attempt.accounts) if state.attempt else 0)
    lot = hashlib.sha256(f"cosign/{state.run}/{state.round}/{node}".encode()).digest()
    return int.from_bytes(lot[:8], "big") * others < max(CALLED, 2 * needed(state)) * 2**64


class Cosigning:
    """Cosigns for one node.

    :param watch: looks at every head that the coordinator shows
    """

    def __init__(self, session: Session, watch: Watch) -> None:
        self._session, self._watch = session, watch
        self._grown = session.replica.growth()
        self._settled = asyncio.Event()
        self.size = 0
        """Size of the newest head that was cosigned here and taken, or is left to others."""
        self._term = session.replica.store.term

    @property
    def _replica(self) -> Replica:
        return self._session.replica

    async def run(self) -> None:
        """Cosign each newest head until cancelled.

        :raises SplitViewProven: the coordinator showed another history
        """
        self._grown.set()  # what was there at the start is worth a cosignature too
        while True:
            await self._grown.wait()
            for _ in range(RETRIES):
                self._grown.clear()
                try:
                    await self._cosign()
                except SplitViewProven:
                    raise
                except Unreachable as error:
                    self._note(error)
                    await asyncio.sleep(RETRY_S)
                    continue
                except ArtelError as error:
                    self._note(error)
                break
            self._settled.set()
            await asyncio.sleep(PACE_S)

    async def settle(self, seconds: float) -> None:
        """Wait until the newest head is cosigned, and take over what others have cosigned."""
        try:
            async with asyncio.timeout(seconds):
                while self._replica.store.size > self.size and not self._watch.doubtful:
                    self._settled.clear()
                    self._grown.set()
                    await self._settled.wait()
                    if self._replica.store.size > self.size:
                        await asyncio.sleep(RETRY_S)
                await self.ask()
        except SplitViewProven:
            raise
        except TimeoutError:
            emit(log, "head.not_cosigned", size=self._replica.store.size, reason="time is over")
        except ArtelError as error:
            self._note(error)

    async def ask(self) -> None:
        """Ask the coordinator for its newest heads, and keep them.

        :raises ArtelError: it does not answer, or what it says does not hold
        """
        await self._keep(notes_in(await self._coordinator.files(*HEADS)))

    @property
    def _coordinator(self) -> PeerSource:
        session = self._session
        return PeerSource(session.host, session.link.coordinator, session.run)

    async def _cosign(self) -> None:
        session, store = self._session, self._replica.store
        if store.term != self._term:
            self._term, self.size = store.term, 0  # its heads may be smaller
        signed = store.latest_note
        size = parse_checkpoint(signed).size if signed else 0
        # A node that is bound to no account is no witness that anybody counts.
        known = session.identity.peer_id in self._replica.state.nodes
        if self._watch.doubtful or not known or size <= self.size:
            return
        if not called(self._replica.state, session.identity.peer_id):
            self.size = size  # this one is left to others
            return
        line = await asyncio.to_thread(session.witness.cosign, signed, store)
        cosigned = add_lines(note.parse(signed), [line]).encode()
        await asyncio.to_thread(session.heads.add_note, cosigned)
        heads = await self._coordinator.cosign(cosigned)
        self.size = size
        await self._keep(heads)

    async def _keep(self, heads: list[str]) -> None:
        """Keep those heads of the coordinator that are of our own tree.

        :raises CheckFailed: no coordinator signed one
        """
        for text in heads:
            await self._watch.consider(self._session.link.coordinator, text)

    def _note(self, error: ArtelError) -> None:
        emit(log, "head.not_cosigned", logging.DEBUG, reason=error.message)
