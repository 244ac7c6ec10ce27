"""What auditors have to show for their verdicts: the fingerprints of the steps that they made.

Nobody but the coordinator has those of the node that is audited, so who did not make the steps can
only guess, and none of what can be guessed comes near (:func:`protocol.fingerprints.limit`). An
auditor has committed to its verdict, and with it to its fingerprints, before it gives them. An
``accept`` whose fingerprints do not fit is not taken: the auditor counts as one that did not
answer. The fold strikes nobody for it, since it would have to take the coordinator's word.

Those that were given to whoever led before are lost with it. Then an ``accept`` is taken as it is,
and no ``reject`` is: of what cannot be compared any more nobody is convicted.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

import numpy as np

from artel.coordinator.sequencer import Sequencer
from artel.ledger import entries
from artel.ledger.entries import audits, reasons
from artel.ledger.entries.reasons import explain
from artel.ledger.entries.records import Audit
from artel.ledger.fold.history import History
from artel.ledger.fold.work_audits import repeated
from artel.protocol import fingerprints, messages, repeated_work, round_state
from artel.protocol.events import emit
from artel.protocol.identity import public_of, short_peer
from artel.protocol.net import delivery, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.terms import ToleranceSection
from artel.protocol.tolerances import tolerance_of

log = logging.getLogger("artel.coordinator")

ROWS_DIFFER = "rows_differ"
WRONG_STEP = "wrong_step"
FINGERPRINTS_LOST = "fingerprints_lost"

_LOST = (0, -1)
"""In the place of the first step that differs: it cannot be told any more."""


class Verdicts:
    """Holds verdicts against what their auditors have given; owned by the coordinator.

    :param store: of fingerprints
    """

    def __init__(
        self, ledger: Sequencer, store: BlobStore, tolerances: Sequence[ToleranceSection]
    ) -> None:
        self._ledger, self._store, self._tolerances = ledger, store, tolerances
        self._given: dict[tuple[str, str], str] = {}  # content, by contribution and auditor

    def _committed(self, peer: str) -> tuple[str, Audit] | None:
        """What a node has committed to a verdict on that it has not shown."""
        for source, audit in self._ledger.state.audits.items():
            if any(draw.node == peer and draw.commitment for draw in audit.awaited):
                return source, audit
        return None

    def _told(self, audit: Audit) -> list[entries.Contribution]:
        """What an audit is about."""
        store = self._ledger.store
        history = History(store, store.query, self._ledger.state)
        return [body for body, _ in repeated(history, audit)]

    async def take(
        self, peer: str, request: messages.Put, stream: wire.ByteStream
    ) -> messages.Ok | None:
        """Receive the fingerprints of an auditor, once for each verdict: it names them already.

        :returns: None when so many bytes are not what the peer has to give as an auditor
        """
        found = self._committed(peer)
        if found is None or request.size != _bytes(await asyncio.to_thread(self._told, found[1])):
            return None
        self._forget()
        place = found[0], peer
        if place in self._given or self._store.has(request.id):
            raise wire.Refused("the fingerprints of this auditor are here already", code="present")
        await delivery.receive(self._store, request, stream, kind="fingerprints")
        self._given[place] = request.id
        return messages.Ok()

    def _forget(self) -> None:
        """Of verdicts that are in the ledger nothing has to be shown any more."""
        for (source, peer), blob in list(self._given.items()):
            audit = self._ledger.state.audits.get(source)
            draw = audit.draw_of(peer) if audit is not None else None
            if draw is None or draw.verdict:
                del self._given[source, peer]
                self._store.delete(blob)

    async def difference(
        self, peer: str, request: repeated_work.GetDifference
    ) -> repeated_work.Difference:
        """Where the steps of the audited node are others than those of an auditor that has
        committed to its verdict."""
        found = self._committed(peer)
        if found is None:
            raise wire.Refused(explain(reasons.NOT_DRAWN), code=reasons.NOT_DRAWN)
        _, first = await self._compared(found[1], peer, request.rows, request.hardware)
        if first == _LOST:
            first = (0, 0)
        return repeated_work.Difference(round=first[0], step=first[1])

    async def require_shown(self, verdict: entries.Verdict) -> None:
        """Refuse a verdict that the fold would take, and that its auditor has not shown.

        :raises Refused: the code says why
        """
        if verdict.verdict == audits.INCONCLUSIVE:
            return
        audit = self._ledger.state.audits[verdict.contribution]
        fits, first = await self._compared(audit, verdict.node, verdict.rows, verdict.hardware)
        if verdict.verdict == audits.ACCEPT and not fits:
            said = {"node": short_peer(verdict.node), "audited": short_peer(audit.node)}
            emit(log, "audit.not_shown", logging.WARNING, **said, round=first[0], step=first[1])
            raise wire.Refused(
                "the steps that this auditor made are not those of the work that it accepts: step "
                f"{first[1]} of round {first[0]} is the first that differs",
                "the verdict does not count; another node is drawn",
                code=ROWS_DIFFER,
            )
        if verdict.verdict == audits.REJECT and first == _LOST:
            raise wire.Refused(
                "the fingerprints of the work that is rejected were lost with the coordinator that "
                "led before: nobody is convicted of it any more",
                "the verdict does not count; another node is drawn",
                code=FINGERPRINTS_LOST,
            )
        if verdict.verdict == audits.REJECT and first != (
            verdict.differs_round,
            verdict.differs_step,
        ):
            raise wire.Refused(
                f"step {first[1]} of round {first[0]} is the first that differs",
                "ask with get_difference before the verdict is shown",
                code=WRONG_STEP,
            )

    async def _compared(
        self, audit: Audit, auditor: str, rows: str, hardware: str
    ) -> tuple[bool, tuple[int, int]]:
        """Whether the steps of an auditor are near those that it repeated; round and step (from 1)
        of the first that is not near, 0 and 0 when there is none, and :data:`_LOST` where what the
        audited node gave is not here.

        :param hardware: class of the auditor's machine
        """
        told = await asyncio.to_thread(self._told, audit)
        wanted = _bytes(told)
        if (path := self._store.path(rows)) is None or self._store.size_of(rows) != wanted:
            raise wire.Refused(
                f"the coordinator has no {wanted} bytes of fingerprints of this auditor",
                "put them once the verdict is committed to",
                code=round_state.NO_FINGERPRINTS,
            )

        def work() -> tuple[bool, tuple[int, int]]:
            again = fingerprints.shown_rows(public_of(auditor), path.read_bytes())
            fits, first, done = again is not None, (0, 0), 0
            for body in told:
                steps = body.tail + body.head
                given = self._store.sound(body.chain)
                if given is None:
                    emit(log, "audit.not_compared", logging.WARNING, round=body.round)
                    return True, _LOST
                theirs = fingerprints.rows_in(given.read_bytes())
                mine = again[done : done + steps] if again is not None else theirs * np.nan
                done += steps
                row = tolerance_of(self._tolerances, told[-1].hardware, hardware, done)
                most = fingerprints.limit(row.accept, row.reject) if row is not None else 0.0
                whole, each = fingerprints.apart(mine, theirs, body.tail)
                fits = fits and whole <= most
                if not first[1] and not (each <= most).all():
                    first = body.round, int(np.argmin(each <= most)) + 1
            return fits, first

        return await asyncio.to_thread(work)


def _bytes(told: Sequence[entries.Contribution]) -> int:
    """Of what an auditor gives that repeated all steps of these."""
    return fingerprints.shown_bytes(sum(body.tail + body.head for body in told))
