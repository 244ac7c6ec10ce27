"""Audits by this node: what the ledger has drawn it to repeat, it repeats beside its duties.

The data is public: the agreed states, the windows that were assigned, and the contributions
themselves, from whoever has them. The trainer repeats the work in short portions between its own
(:mod:`node.trainer.repeating`); the verdict is committed to, and shown as soon as the coordinator
takes it. Whatever goes wrong is tried again until the node's time for it is over; then it lapses,
which costs nothing but the pay. A verdict that is not shown yet is lost with this process.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import audits
from artel.ledger.entries.kinds.verdict import NO_ROWS
from artel.ledger.entries.records import Audit
from artel.ledger.entries.story import rounds_named
from artel.ledger.fold import work_audits
from artel.ledger.sync.fork import SplitViewProven
from artel.node import holders
from artel.node.child import TrainerDied
from artel.node.corpus import Corpus
from artel.node.progress import Progress
from artel.node.rest import Rest
from artel.node.session import Session
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import BeginReplay, Compared, DropReplay, GoOn, Replayed, SpanRound
from artel.protocol import assignment, messages, repeated_work
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError, CheckFailed
from artel.protocol.events import emit
from artel.protocol.exchange import codec, pseudogradient
from artel.protocol.identity import public_of, short_peer
from artel.protocol.net import delivery, wire
from artel.protocol.net.delivery import Wanted
from artel.protocol.tasks import unless
from artel.protocol.terms import ToleranceSection
from artel.protocol.tolerances import verdict_of

log = logging.getLogger("artel.node")

POLL_S = 1.0
"""How soon a verdict is offered again that others have to commit to first."""
RETRY_S = 2.0
PORTION_S = 0.5
"""Of repeated training; the node's own waits for the end of one."""
ALWAYS_SO = ("bad_request", "bad_blob", "diverged", "out_of_memory")
"""Failures of a replay that would come again."""


@dataclass(frozen=True)
class _Round:
    """What the ledger says of a round of the span that is repeated."""

    body: entries.Contribution
    steps: dict[str, int]
    cursor: int
    accepted: list[str]
    slices: dict[int, entries.Aggregate]
    wrong: tuple[int, ...]


@dataclass
class _Found:
    """A verdict that is not shown yet: what :func:`ledger.entries.verdict` takes."""

    fields: dict[str, Any]
    asked: str = ""
    """Which coordinator (peer id) has its steps, and has said where they differ."""


class Auditing:
    """Audits for one node.

    :param max_blob: bytes of the largest contribution
    :param say: shows a line to the node's owner
    """

    def __init__(
        self,
        session: Session,
        corpus: Corpus,
        progress: Progress,
        max_blob: int,
        say: Callable[[str], None],
    ) -> None:
        self._session, self._corpus, self._progress = session, corpus, progress
        self._max_blob, self._say = max_blob, say
        self._grown = session.replica.growth()
        self._made: dict[str, _Found] = {}  # by contribution
        self._told = set[str]()
        self.rest = Rest()
        """While the owner wants one, nothing is repeated."""

    async def run(self) -> None:
        """Repeat what is to be repeated until cancelled."""
        self._grown.set()
        while True:
            with contextlib.suppress(TimeoutError):
                # A verdict that waits for those of others is offered again and again.
                async with asyncio.timeout(POLL_S if self._made else None):
                    await self._grown.wait()
            self._grown.clear()
            try:
                self._tell_owner()
                await self._show()
                await self.rest.over()
                await self._repeat()
            except SplitViewProven:
                raise
            except ArtelError as error:
                emit(log, "audit.retry", logging.WARNING, reason=error.message)
                await asyncio.sleep(RETRY_S)
                self._grown.set()

    def _tell_owner(self) -> None:
        """Say once what happens to this node's own work."""
        session, state = self._session, self._session.replica.state
        owner = state.accounts.get(session.account_name)
        if owner is not None and owner.barred and "barred" not in self._told:
            self._told.add("barred")
            self._say(
                "! audit    this account was convicted of false work: what was pending is gone and "
                "it earns no more; artel ledger me --home says why"
            )
        for source, audit in state.audits.items():
            if audit.node != session.identity.peer_id or source in self._told:
                continue
            if audits.doubts(audit):
                self._told.add(source)
                self._say(
                    f"! audit    a node rejected the work of {_named(audit)}; two more repeat it"
                )

    # --- the verdict ---

    async def _show(self) -> None:
        """Show verdicts that were committed to, where others have committed to theirs."""
        state, me = self._session.replica.state, self._session.identity.peer_id
        for source, made in list(self._made.items()):
            audit = state.audits.get(source)
            draw = audit.draw_of(me) if audit is not None else None
            over = draw is None or bool(draw.verdict)
            if not over and draw is not None and draw.commitment:
                await self._give(made)
                over = await self._submit(self._signed(made))
            if over:
                del self._made[source]
                self._session.fingerprints.delete(made.fields["rows"])

    async def _give(self, made: _Found) -> None:
        """Give the coordinator the fingerprints of the steps that this node made, and hear of work
        that it rejects where the first step differs."""
        session, fields = self._session, made.fields
        host, coordinator, rows = session.host, session.link.coordinator, fields["rows"]
        if made.asked == coordinator or fields["verdict"] == audits.INCONCLUSIVE:
            return
        store = session.fingerprints
        await delivery.push_all(host, store, coordinator, [rows], kind="fingerprints")
        if fields["verdict"] == audits.REJECT:
            question = repeated_work.GetDifference(rows=rows, hardware=fields["hardware"])
            answer = await host.ask(coordinator, wire.CONTENT, question)
            assert isinstance(answer, repeated_work.Difference)
            fields["differs"] = answer.round, answer.step
        made.asked = coordinator

    def _signed(self, made: _Found) -> Envelope:
        return entries.verdict(self._session.identity, self._session.run, **made.fields)

    async def _submit(self, statement: Envelope) -> bool:
        """Whether the coordinator has no further use for it."""
        session = self._session
        message = messages.Submit(run=session.run, statement=statement.encode())
        try:
            await session.host.ask(session.link.coordinator, wire.LEDGER, message)
        except wire.Refused as refusal:
            if refusal.code not in ("too_early", "busy"):
                emit(log, "audit.refused", logging.WARNING, reason=refusal.message)
            return refusal.code not in ("too_early", "busy")
        return True

    async def _commit(self, source: str, made: _Found) -> None:
        session = self._session
        committed = entries.verdict_committed(
            session.identity, session.run, contribution=source, verdict=self._signed(made)
        )
        session.sealing.petitions.add(committed)
        if await self._submit(committed):
            await session.replica.catch_up(session.host, session.link.coordinator, session.run)

    # --- the work ---

    async def _repeat(self) -> None:
        """Do what this node owes, if anything."""
        session = self._session
        owed = session.replica.state.owed_by(session.identity.peer_id)
        if owed is None:
            return
        source, audit = owed
        if source not in self._made:
            self._say(
                f"audit    repeating the work of node {short_peer(audit.node)} in {_named(audit)}, "
                "drawn by lot"
            )
            repeated = await self._repeated(source, audit)
            if repeated is None:
                return
            told = await asyncio.to_thread(self._rounds, audit)
            rows = NO_ROWS
            if not any(math.isnan(one.error) for one in repeated.compared):
                data = public_of(session.identity.peer_id) + self._rows_file.read_bytes()
                rows = await asyncio.to_thread(session.fingerprints.put, data)
            made_on = told[-1].body.hardware
            self._made[source] = self._verdict(source, audit, made_on, repeated, rows)
        await self._commit(source, self._made[source])
        if session.replica.state.owed_by(session.identity.peer_id) == owed:
            await asyncio.sleep(POLL_S)  # it could not be taken now
        self._grown.set()

    @property
    def _rows_file(self) -> Path:
        """Where the trainer leaves the fingerprints of what it repeats."""
        return self._session.work_dir / "repeated.bin"

    def _verdict(
        self, source: str, audit: Audit, made_on: str, repeated: Replayed, rows: str
    ) -> _Found:
        session = self._session
        found, worst = judge(session.manifest.config.trust.tolerances, made_on, repeated)
        self._say(
            f"audit    verdict on node {short_peer(audit.node)}, {_named(audit)}: {found}, "
            f"relative error {worst.error:.6f}"
        )
        emit(log, "audit.verdict", node=short_peer(audit.node), verdict=found, error=worst.error)
        fields: dict[str, Any] = {"contribution": source}
        fields |= {"verdict": found, "salt": os.urandom(32), "rows": rows}
        fields |= {"round": worst.round, "error": worst.error, "hardware": repeated.hardware}
        return _Found(fields | {"overlap": 1.0 if worst.overlap is None else worst.overlap})

    async def _repeated(self, source: str, audit: Audit) -> Replayed | None:
        """The contributions of the audit beside what comes out here; None when its time is over.

        :raises ArtelError: it could not be done now
        """
        session = self._session
        told = await asyncio.to_thread(self._rounds, audit)
        try:
            rounds = [await self._round(*pair) for pair in _pairs(told)]
            order = BeginReplay(audit.node, rounds, self._rows_file)
            await session.trainer.do(order)
            while True:
                await self.rest.over()
                done = await unless(self.rest.begun, session.trainer.do(GoOn(self._portion())))
                if done is not None and not done.left:
                    return done
                owed = session.replica.state.owed_by(session.identity.peer_id)
                if owed is None or owed[0] != source:
                    await session.trainer.do(DropReplay())
                    return None
        except TrainerDied as death:
            raise CheckFailed(death.message) from None
        except TrainerError as error:
            if error.code not in ALWAYS_SO:
                raise
            emit(log, "audit.failed", logging.WARNING, reason=error.message)
            return Replayed(0, (Compared(audit.last, 0, math.nan, None),), session.device)

    def _portion(self) -> int:
        """Steps that take about :data:`PORTION_S`."""
        each = assignment.Work.of(self._session.manifest.config).tokens(1)
        return max(1, int(PORTION_S * self._progress.tokens_per_second / each))

    def _rounds(self, audit: Audit) -> list[_Round]:
        found = []
        for body, trail in work_audits.repeated(self._session.replica.history, audit):
            assert trail.opened is not None
            slices = {number: made for number, (_, made) in trail.slices.items()}
            cursor = trail.opened[1].cursor
            found.append(
                _Round(body, trail.steps, cursor, sorted(trail.weights), slices, trail.wrong)
            )
        return found

    async def _round(self, told: _Round, after: _Round | None) -> SpanRound:
        """A round with its files on this disk.

        :raises Unreachable: nobody can give one
        :raises CheckFailed: one that is needed was never recorded
        """
        body, session = told.body, self._session
        work = assignment.Work.of(session.config_at(body.round))
        steps = told.steps[body.node]
        windows = await self._corpus.assigned(told.steps, told.cursor, body.node, pin=False)
        cut, tail = work.windows(work.head(body.round, steps)), after.body.tail if after else 0
        sharded = work.topology_of(len(told.steps)) == "sharded"
        sparse = codec.of(session.manifest.config.exchange).sparse
        peers = [body.node, *(peer for peer in told.accepted if peer != body.node)]
        return SpanRound(
            round=body.round,
            state=await self._state(body.base, told.accepted),
            base=body.base,
            steps=steps,
            head=body.head,
            windows=windows[: work.windows(body.head)],
            blobs=await self._blobs(body, peers, sharded),
            tail=tail,
            tail_windows=windows[cut:] if tail else (),
            slices=len(told.steps) if sharded else 0,
            aggregates=await self._slices(told, peers) if sharded and sparse and after else (),
            changes=session.changes_at(body.round),
        )

    async def _state(self, root: str, likely: list[str]) -> Path:
        session = self._session
        if (path := await asyncio.to_thread(session.blobs.sound, root)) is not None:
            return path
        found = await holders.records(session.host, session.run)
        others = [peer for peer in likely if peer != session.identity.peer_id]
        named = [*others, session.link.coordinator]
        asked = holders.ranked(found, root, named, lambda record: record.state == root)
        wanted = Wanted(root, asked, session.state_bytes, "state")
        return await delivery.fetch(session.host, session.blobs, wanted)

    async def _blobs(
        self, body: entries.Contribution, peers: list[str], sharded: bool
    ) -> list[Path]:
        """What a node contributed: one blob, or those that its index lists."""
        most = pseudogradient.MAX_INDEX_BYTES if sharded else min(body.size, self._max_blob)
        (path,) = await self._fetch([(body.blob, most)], peers, "contribution")
        if not sharded:
            return [path]
        data = await asyncio.to_thread(path.read_bytes)
        listed = pseudogradient.open_index(
            data, round=body.round, base=body.base, payload=body.payload
        )
        pieces = [(piece.blob, piece.size) for piece in listed]
        return await self._fetch(pieces, peers, "contribution")

    async def _slices(self, told: _Round, peers: list[str]) -> list[Path]:
        """What the next state was made with."""
        first = next(iter(told.slices.values()), None)
        if told.wrong or first is None or len(told.slices) < first.slices:
            raise CheckFailed("a slice of the round is known to nobody but those who computed it")
        made = [told.slices[number] for number in sorted(told.slices)]
        return await self._fetch([(each.blob, each.size) for each in made], peers, "slice")

    async def _fetch(
        self, listed: Sequence[tuple[str, int]], peers: list[str], kind: messages.Kind
    ) -> list[Path]:
        session = self._session
        asked = [*(p for p in peers if p != session.identity.peer_id), session.link.coordinator]
        wanted = [Wanted(blob, asked, size, kind) for blob, size in listed]
        return await delivery.fetch_all(session.host, session.blobs, wanted)


def _pairs(told: Sequence[_Round]) -> list[tuple[_Round, _Round | None]]:
    """Each round with the one after it."""
    return list(zip(told, [*told[1:], None], strict=True))


def _named(audit: Audit) -> str:
    return rounds_named(audit.first, audit.last)


def judge(
    tolerances: Sequence[ToleranceSection], made_on: str, repeated: Replayed
) -> tuple[str, Compared]:
    """What to say of repeated work, and the contribution that differs most; one whose error is no
    number could not be repeated.

    :param made_on: hardware class of the node, as it says
    """
    compared = repeated.compared
    worst = max(compared, key=lambda one: math.inf if math.isnan(one.error) else one.error)
    if math.isnan(worst.error):
        return audits.INCONCLUSIVE, replace(worst, error=math.inf)
    found = [(one.error, one.steps) for one in compared]
    return verdict_of(tolerances, made_on, repeated.hardware, found), worst
