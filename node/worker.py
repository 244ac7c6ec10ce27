"""A node's duties in a round: sync, train, reveal, apply. One method each.

What to do comes from the coordinator's directive; the facts to do it with come from this node's own
replica of the ledger, where they are signed: the members and the data of a round, which
contributions count, which state was agreed on.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ledger import entries
from ledger.replica import contributions
from ledger.shares import Attempt
from node import supervisor
from node.corpus import Corpus, Windows
from node.session import Session
from node.sync import States
from protocol import assignment, messages, rounds, transfer, wire
from protocol.errors import ArtelError, CheckFailed, Unreachable
from protocol.events import emit
from protocol.tasks import together, uninterrupted

log = logging.getLogger("artel.node")

FETCHES_AT_ONCE = 4


@dataclass(frozen=True)
class Made:
    """A finished contribution that is not yet part of a closed round."""

    round: int
    base: str
    windows: tuple[tuple[Path, int], ...]
    blob: str
    size: int


@dataclass
class Progress:
    """What the worker is doing, for the status and the heartbeats; owned by the worker."""

    phase: str = "starting"
    round: int = 0
    step: int = 0
    steps: int = 0
    loss: float | None = None
    tokens_per_second: float = 0.0
    validation: messages.Validation | None = None
    seconds: dict[str, float] = field(default_factory=dict)
    """Of the round under way, by phase."""
    last_seconds: dict[str, float] = field(default_factory=dict)
    """Of the last finished round."""


class Worker:
    """Performs duties one at a time; :meth:`perform` may be cancelled at any await.

    :param changed: called when the coordinator should hear news at once
    """

    def __init__(
        self,
        session: Session,
        states: States,
        corpus: Corpus,
        max_blob: int,
        changed: Callable[[], None],
    ) -> None:
        self.session, self.states, self.corpus = session, states, corpus
        self.progress = Progress()
        self._changed = changed
        self._max_blob = max_blob
        self._made: Made | None = None
        self._salts: dict[tuple[int, int], bytes] = {}  # by round and attempt
        self._evaluated: set[int] = set()
        self._evaluation: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._evaluation.set_result(None)
        self._marked = time.monotonic()

    async def perform(self, directive: messages.Directive) -> None:
        """Do what the directive says; returns when it is done.

        :raises ArtelError: it could not be done now; the same directive may be performed again
        """
        session = self.session
        for peer, addresses in directive.peers.items():
            session.host.remember(peer, addresses)
        await session.replica.catch_up(
            session.host, session.link.coordinator, session.run, directive.ledger_size
        )
        if directive.task == "sync":
            await self._sync(directive)
        elif directive.task == "train":
            await self._train(directive)
        elif directive.task == "reveal":
            await self._reveal(directive)
        elif directive.task == "apply":
            await self._apply(directive)
        elif directive.task == "stop":
            if directive.evaluate:
                await self._evaluate()
            self._phase("finished")
        else:
            self._phase("waiting")

    # --- duties ---

    async def _sync(self, directive: messages.Directive) -> None:
        agreed = self.session.replica.state.states
        if directive.root != agreed[-1]:
            raise CheckFailed("the coordinator names a state that the ledger does not")
        await self._hold(len(agreed) - 1, directive.root, list(directive.peers))

    async def _hold(self, round: int, root: str, others: list[str]) -> None:
        """Make the agreed state with this root the current one."""
        self._phase("syncing")
        everybody = [*others, self.session.link.coordinator]
        path = await self.states.obtain(root, everybody)
        await uninterrupted(self._switch(path, round, root))
        emit(log, "state.synced", round=round, root=root[:12])
        self._phase("waiting")
        self._changed()

    async def _switch(self, path: Path, round: int, root: str) -> None:
        """Trainer and book-keeping change together, or they would speak of different states."""
        await self.session.trainer.set_state(path)
        self.states.become(round, root)

    async def _train(self, directive: messages.Directive) -> None:
        session, attempt = self.session, self._attempt(directive)
        if self._salts.get((attempt.round, attempt.attempt)) is None:
            self.progress.seconds = {}
            self._marked = time.monotonic()
        self.progress.round = attempt.round
        self.progress.steps = session.manifest.config.rounds.inner_steps
        members = sorted(attempt.accounts)
        self._phase("fetching")
        windows = await self.corpus.assigned(
            members, session.replica.state.cursor, session.identity.peer_id
        )
        self._mark("data")
        made = await self._contribution(attempt.round, windows)
        # While the others still train and reveal; the trainer is done before it has to apply.
        if directive.evaluate and self._evaluation.done():
            self._evaluation = asyncio.create_task(self._evaluate())
        salt = self._salts.setdefault((attempt.round, attempt.attempt), os.urandom(32))
        commitment = rounds.commitment(
            session.run,
            attempt.round,
            attempt.attempt,
            session.identity.peer_id,
            made.blob,
            salt,
        )
        self._phase("committing")
        await session.link.insist(
            messages.Commit(
                run=session.run,
                round=attempt.round,
                attempt=attempt.attempt,
                commitment=commitment,
            ),
            session.run,
            max(directive.remaining, 5.0),
        )
        self._mark("commit")
        self._phase("waiting")

    async def _contribution(self, round: int, windows: Windows) -> Made:
        """Train, or take what was trained already when only the attempt is new."""
        made = self._made
        wanted = (round, self.states.root, tuple(windows))
        if (
            made is not None
            and (made.round, made.base, made.windows) == wanted
            and self.session.blobs.has(made.blob)
        ):
            return made
        self._phase("training")
        progress = self.progress

        def report(news: supervisor.Progress) -> None:
            progress.step, progress.loss = news.step, news.loss
            progress.tokens_per_second = news.tokens_per_second

        result = await self.session.trainer.train(
            round,
            self.session.identity.peer_id,
            windows,
            self.session.work_dir,
            on_progress=report,
        )
        progress.step, progress.loss = progress.steps, result.loss
        blob = await asyncio.to_thread(self.session.blobs.put_file, result.blob)
        self.session.blobs.pin(blob)
        progress.seconds |= result.seconds
        self._marked = time.monotonic()
        if made is not None and made.blob != blob:
            self.session.blobs.unpin(made.blob)
        self._made = Made(round, self.states.root, tuple(windows), blob, result.size)
        return self._made

    async def _reveal(self, directive: messages.Directive) -> None:
        session, made = self.session, self._made
        salt = self._salts.get((directive.round, directive.attempt))
        if made is None or salt is None or made.round != directive.round:
            # This process did not make the commitment: it was started again in between.
            await self.hand_back(directive, "the contribution was lost in a restart")
            return
        self._mark("commit_wait")
        self._phase("revealing")
        try:
            await transfer.push(session.host, session.blobs, session.link.coordinator, made.blob)
        except wire.Refused as refusal:
            if refusal.code != "present":
                raise
        self._mark("upload")
        statement = entries.contribution(
            session.identity,
            session.run,
            round=made.round,
            attempt=directive.attempt,
            base=made.base,
            blob=made.blob,
            size=made.size,
            salt=salt,
            tokens=assignment.assigned_tokens(session.manifest.config),
        )
        reveal = messages.Reveal(run=session.run, contribution=statement.encode())
        # Before it is sent: the next directive may cancel this duty before the reply is here.
        await asyncio.to_thread(
            session.claims.add,
            round=made.round,
            attempt=directive.attempt,
            entry=entries.entry_id(reveal.contribution),
            blob=made.blob,
            tokens=assignment.assigned_tokens(session.manifest.config),
        )
        await session.link.insist(reveal, session.run, max(directive.remaining, 5.0))
        self._mark("reveal")
        self._phase("waiting")

    async def _apply(self, directive: messages.Directive) -> None:
        session, attempt = self.session, self._attempt(directive)
        if attempt.phase != "applying":
            raise CheckFailed("the coordinator wants a round applied that is not closed")
        self._mark("reveal_wait")
        base = session.replica.state.states[-1]
        if self.states.round != attempt.round + 1:
            if self.states.root != base:
                await self._hold(attempt.round, base, list(directive.peers))
            await self._compute_state(attempt)
        await self._sign_state(directive)
        self._mark("sign")
        self.progress.last_seconds = dict(self.progress.seconds)
        self._phase("waiting")
        self._changed()

    async def _compute_state(self, attempt: Attempt) -> None:
        """Fetch what counts, aggregate, take the outer step: the new state becomes current."""
        session = self.session
        self._phase("applying")
        listed = contributions(
            session.replica.store, [attempt.contributions[node] for node in attempt.accepted]
        )
        gate = asyncio.Semaphore(FETCHES_AT_ONCE)

        async def bring(body: entries.Contribution) -> Path:
            async with gate:
                holders = [body.node, session.link.coordinator]
                holders += [peer for peer in attempt.accounts if peer not in holders]
                holders = [peer for peer in holders if peer != session.identity.peer_id]
                return await transfer.fetch(
                    session.host, session.blobs, body.blob, holders, max_bytes=self._max_blob
                )

        paths = await together(map(bring, listed))
        self._mark("fetch")
        counted = [
            supervisor.Contribution(body.node, path, attempt.accepted[body.node])
            for body, path in zip(listed, paths, strict=True)
        ]
        await uninterrupted(self._advance(attempt.round, counted))
        self._forget(listed)

    async def _advance(self, round: int, counted: list[supervisor.Contribution]) -> None:
        """Trainer and book-keeping change together, see :meth:`_switch`."""
        session = self.session
        result = await session.trainer.apply(round, counted, session.work_dir)
        session.blobs.adopt(result.root, result.state)
        self.states.become(round + 1, result.root)
        self.progress.seconds |= result.seconds
        self._marked = time.monotonic()

    async def _sign_state(self, directive: messages.Directive) -> None:
        session = self.session
        statement = entries.state_agreed(
            session.identity, session.run, round=self.states.round, root=self.states.root
        )
        signed = messages.SignedState(run=session.run, statement=statement.encode())
        await session.link.insist(signed, session.run, max(directive.remaining, 5.0))

    async def _evaluate(self) -> None:
        """Measure the current state on the validation split; a failure costs only the number."""
        round = self.states.round
        if round in self._evaluated:
            return
        try:
            windows = await self.corpus.validation()
            if self.states.round != round:
                return  # fetching the data took so long that another state is current
            measured = await self.session.trainer.evaluate(windows)
        except ArtelError as error:
            emit(log, "state.not_evaluated", round=round, reason=error.message)
            return
        self._evaluated.add(round)
        self.progress.validation = messages.Validation(round=round, loss=measured.loss)
        self._changed()

    async def close(self) -> None:
        """End what goes on beside the duties."""
        self._evaluation.cancel()
        await asyncio.wait({self._evaluation})

    async def hand_back(self, directive: messages.Directive, reason: str) -> None:
        """Tell the coordinator not to wait for this node in this attempt."""
        emit(log, "round.handed_back", logging.WARNING, round=directive.round, reason=reason)
        message = messages.HandBack(
            run=self.session.run,
            round=directive.round,
            attempt=directive.attempt,
            reason=reason[:300],
        )
        try:
            await self.session.link.ask(message)
        except (Unreachable, wire.Refused) as error:
            emit(log, "round.not_handed_back", reason=error.message)

    # --- book-keeping ---

    def training_seconds(self) -> float:
        """How long the training of a round takes here, by the speed last seen; 0 if unknown."""
        speed = self.progress.tokens_per_second
        return assignment.assigned_tokens(self.session.manifest.config) / speed if speed else 0.0

    def _attempt(self, directive: messages.Directive) -> Attempt:
        """The attempt under way according to the ledger, which must be the directive's."""
        attempt = self.session.replica.state.attempt
        if attempt is None or (attempt.round, attempt.attempt) != (
            directive.round,
            directive.attempt,
        ):
            raise CheckFailed("the coordinator's directive is not about the ledger's round")
        # A copy: the replica grows, and its fold changes, while this duty is performed.
        return copy.deepcopy(attempt)

    def _forget(self, listed: list[entries.Contribution]) -> None:
        """Blobs of an applied round become ordinary cache, which others may still fetch."""
        self.session.blobs.unpin(*(body.blob for body in listed))
        newest = self.states.round
        self._salts = {key: salt for key, salt in self._salts.items() if key[0] >= newest}

    def _phase(self, name: str) -> None:
        self.progress.phase = name

    def _mark(self, name: str) -> None:
        """Book the time since the last mark on ``name``."""
        now = time.monotonic()
        seconds = self.progress.seconds
        seconds[name] = round(seconds.get(name, 0.0) + now - self._marked, 3)
        self._marked = now

    def status(self) -> dict[str, Any]:
        """What the local status shows of the work."""
        progress = self.progress
        return {
            "phase": progress.phase,
            "round": progress.round,
            "step": progress.step,
            "steps": progress.steps,
            "loss": progress.loss,
            "tokens_per_second": progress.tokens_per_second,
            "state_round": self.states.round,
            "state_root": self.states.root,
            "seconds": progress.last_seconds,
        }
