"""The trial of a newcomer: it repeats the first steps of what a member has contributed.

The run asks for it before it takes a node in whose account has done nothing yet, so that a key
costs work. All of it is public, as for an audit, but what came out: the coordinator alone knows
that, and compares.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from artel.ledger import entries
from artel.ledger.fold.attempts import attempt
from artel.node.corpus import Corpus
from artel.node.session import Session
from artel.node.sync import States
from artel.node.trainer.orders import BeginReplay, GoOn, Load, SpanRound
from artel.protocol import assignment, repeated_work
from artel.protocol.errors import CheckFailed, Unreachable
from artel.protocol.net import wire

TRIES = 3
"""Trials that a node fails before it gives up."""
GIVEN_UP = (
    "start again later, on another machine if it goes on; artel node measure compares two machines"
)


class Newcomer:
    """A node that is not admitted yet, its trainer without a run.

    :param say: shows a line to the node's owner
    """

    def __init__(
        self, session: Session, corpus: Corpus, states: States, say: Callable[[str], None]
    ) -> None:
        self._session, self._corpus, self._states, self._say = session, corpus, states, say
        self._failed = 0

    async def take(self, asked: repeated_work.Trial) -> None:
        """Do what the coordinator asks for, and tell it what came out; then say hello again.

        :raises Refused: it was wrong, a last time
        :raises CheckFailed: there is no such work
        :raises Unreachable: nobody gives the data, or the coordinator is away
        :raises TrainerError: the steps cannot be made here
        :raises TrainerDied: nor by this child
        """
        session, began = self._session, time.monotonic()
        replay = await self._replay(asked)
        (one,) = replay.rounds
        self._say(
            f"trial    repeating {one.head} steps of round {one.round}, so that the run knows that "
            "this machine can"
        )
        answer = repeated_work.Repeated(
            run=session.run,
            contribution=asked.contribution,
            ticket=asked.ticket,
            rows=await self._rows(replay),
        )
        try:
            await session.link.ask(answer)
        except wire.Refused as refusal:
            self._failed += refusal.code == repeated_work.TRIAL_FAILED
            if refusal.code not in (repeated_work.TRIAL_FAILED, repeated_work.TRIAL_OVER):
                raise
            if self._failed == TRIES:
                raise wire.Refused(refusal.message, GIVEN_UP, refusal.code) from None
            self._say(f"! trial    {refusal.message}; another one follows")
            return
        self._say(f"✓ trial    passed after {time.monotonic() - began:.0f} s")

    async def _rows(self, replay: BeginReplay) -> bytes:
        """Fingerprints of the steps."""
        session, (one,), made = self._session, replay.rounds, replay.out
        assert made is not None
        loaded = await session.trainer.do(Load(session.manifest_file, one.state, session.device))
        if loaded.root != one.base:  # torn by a crash of the machine
            session.blobs.delete(one.base)
            raise Unreachable(f"the state of round {one.round} is damaged on this disk")
        await session.trainer.do(replay)
        await session.trainer.do(GoOn(one.head))
        try:
            return await asyncio.to_thread(made.read_bytes)
        finally:
            made.unlink(missing_ok=True)

    async def _replay(self, asked: repeated_work.Trial) -> BeginReplay:
        """What the trainer is to repeat, with its files on this disk."""
        session = self._session
        replica, coordinator = session.replica, session.link.coordinator
        index = replica.store.index_of(asked.contribution)
        if index is None:  # made since this node has looked
            await replica.catch_up(session.host, coordinator, session.run)
            index = replica.store.index_of(asked.contribution)
        history = replica.history
        body = history.entry(index).body if index is not None else None
        if not isinstance(body, entries.Contribution) or body.span != body.round or body.tail:
            raise CheckFailed("the coordinator asks for a trial of work that nobody can repeat")
        head = min(asked.steps, body.head)
        trail = await asyncio.to_thread(attempt, history, body.round, body.attempt)
        assert trail.opened is not None
        cursor, work = trail.opened[1].cursor, assignment.Work.of(session.manifest.config)
        windows = await self._corpus.assigned(
            trail.steps, cursor, body.node, pin=False, first=work.windows(head)
        )
        one = SpanRound(
            round=body.round,
            state=await self._states.obtain(body.base, [coordinator]),
            base=body.base,
            steps=trail.steps[body.node],
            head=head,
            windows=windows,
            blobs=(),
            changes=session.changes_at(body.round),
        )
        return BeginReplay(body.node, [one], session.work_dir / "trial.bin")
