"""A node's own contribution to a round: train, commit, go on with the tail, reveal."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from dataclasses import dataclass

from artel.ledger import entries
from artel.ledger.fold.shares import Attempt
from artel.node.corpus import Corpus, Windows
from artel.node.keeping import hand_out, handed_out
from artel.node.progress import Progress
from artel.node.session import Session
from artel.node.sync import States
from artel.node.trainer.orders import RunOn, Steps, Train, Trained, Window
from artel.protocol import assignment, content, messages
from artel.protocol.errors import ArtelError, CheckFailed
from artel.protocol.events import emit
from artel.protocol.net import delivery
from artel.protocol.tasks import end

log = logging.getLogger("artel.node")


@dataclass(frozen=True)
class Wish:
    """What a contribution is to be made of: the same wish again is met by what was made for it."""

    round: int
    base: str
    windows: tuple[Window, ...]
    members: int
    changes: tuple[tuple[str, str], ...]
    """What was amended for the round; it is settled once the round was opened."""


@dataclass(frozen=True)
class Made:
    """A finished contribution that is not yet part of a closed round.

    ``parts`` are the sub-blobs that ``blob`` lists, in a sharded round.
    """

    wish: Wish
    trained: Trained
    blob: str
    parts: tuple[str, ...]
    chain: str
    """Content id of its steps' fingerprints, which are not among the blobs."""


class Contributing:
    """Makes this node's contributions; owned by the worker, one call at a time."""

    def __init__(
        self, session: Session, states: States, corpus: Corpus, progress: Progress
    ) -> None:
        self._session, self._states, self._corpus = session, states, corpus
        self._progress = progress
        self._made: Made | None = None
        self._salts: dict[tuple[int, int], bytes] = {}  # by round and attempt
        self._statements: dict[tuple[int, int, str], bytes] = {}  # and by what was trained
        self._told = (0, 0)  # bytes up and down that the contributions so far have claimed
        self._tail: asyncio.Task[None] | None = None
        self._tail_of: Made | None = None

    def committed(self, directive: messages.Directive) -> bool:
        """Whether this process has tried to commit in the directive's attempt."""
        return (directive.round, directive.attempt) in self._salts

    async def train(self, directive: messages.Directive, attempt: Attempt) -> Windows:
        """Train, or take what was trained already when only the attempt is new.

        :returns: the windows of the tail, for :meth:`go_on`
        """
        session, progress = self._session, self._progress
        config, me = session.config_at(attempt.round), session.identity.peer_id
        work = assignment.Work.of(config)
        steps = attempt.steps[me]
        progress.round = attempt.round
        progress.phase = "fetching"
        windows = await self._corpus.assigned(attempt.steps, session.replica.state.cursor, me)
        progress.mark("data")
        cut = work.windows(work.head(attempt.round, steps))
        head, tail = windows[:cut], windows[cut:]
        made = self._made
        changes = tuple(sorted(session.changes_at(attempt.round).items()))
        members = len(attempt.accounts)
        wish = Wish(attempt.round, self._states.root, tuple(windows), members, changes)
        held = made is not None and all(map(session.blobs.has, (made.blob, *made.parts)))
        if made is None or made.wish != wish or not held:
            await self._train(wish, steps, head, directive)
        return tail

    async def _train(
        self, wish: Wish, steps: int, head: Windows, directive: messages.Directive
    ) -> None:
        session, progress = self._session, self._progress
        config, me = session.config_at(wish.round), session.identity.peer_id
        work = assignment.Work.of(config)
        tail = work.tail(wish.round, steps)
        sharded = work.topology_of(wish.members) == "sharded"
        if self._made is not None and self._made.wish.round == wish.round:
            await self.close()  # the tail of an attempt that failed leads nowhere
            self._drop()  # the trainer cannot go on from it any more
        progress.phase, progress.step, progress.steps = "training", 0, steps - tail
        order = Train(
            wish.round,
            me,
            head,
            session.work_dir,
            steps=steps,
            tail=tail,
            slices=wish.members if sharded else 0,
            deadline=time.monotonic() + directive.remaining if config.rounds.box_s else None,
            carried=session.replica.state.tails.get(me, 0),
            span=work.goes_on(wish.round, session.replica.state.spans.get(me)),
            changes=dict(wish.changes),
        )
        result = await session.trainer.do(order, on_progress=self._report)
        progress.step, progress.loss = result.head, result.loss
        store = session.blobs
        blob = await asyncio.to_thread(store.put_file, result.blob)
        parts = [await asyncio.to_thread(store.put_file, part) for part in result.parts]
        self._drop()
        chain = await asyncio.to_thread(session.fingerprints.put_file, result.fingerprints)
        store.label("contribution", blob, *parts)
        progress.book(result.seconds)
        store.pin(blob, *parts)
        self._made = Made(wish, result, blob, tuple(parts), chain)

    def _drop(self) -> None:
        """Forget what was made."""
        if self._made is not None:
            self._session.blobs.unpin(self._made.blob, *self._made.parts)
            self._session.fingerprints.delete(self._made.chain)
        self._made = None

    async def commit(self, directive: messages.Directive) -> None:
        """Publish the hash of what was trained."""
        session, made = self._session, self._made
        assert made is not None
        salt = self._salts.setdefault((directive.round, directive.attempt), os.urandom(32))
        commitment = content.commitment(
            session.run,
            directive.round,
            directive.attempt,
            session.identity.peer_id,
            made.blob,
            salt,
        )
        self._progress.phase = "committing"
        await session.link.tell(
            messages.Commit(
                run=session.run,
                round=directive.round,
                attempt=directive.attempt,
                commitment=commitment,
            ),
            max(directive.remaining, 5.0),
        )
        said = {"round": directive.round, "blob": made.blob[:12]}
        emit(log, "contribution.committed", logging.DEBUG, **said)

    def go_on(self, round: int, steps: int, windows: Windows) -> None:
        """Train the tail of the round beside everything else, once.

        :param steps: of the whole assignment
        """
        if windows and self._tail_of is not self._made:
            self._tail_of = self._made
            self._tail = asyncio.create_task(self._run_on(round, steps, windows))

    async def _run_on(self, round: int, steps: int, windows: Windows) -> None:
        """The tail; if it fails, the next contribution is made without it."""
        session = self._session
        try:
            order = RunOn(round, session.identity.peer_id, windows, steps)
            await session.trainer.do(order, on_progress=self._report)
        except ArtelError as error:
            emit(log, "round.tail_lost", logging.WARNING, round=round, reason=error.message)

    def _report(self, news: Steps) -> None:
        if self._progress.step < news.steps / 2 <= news.step:
            said = {"round": self._progress.round, "step": news.step, "loss": news.loss}
            emit(log, "training.half_done", logging.DEBUG, **said)
        self._progress.step, self._progress.loss = news.step, news.loss
        self._progress.steps = news.steps
        self._progress.tokens_per_second = news.tokens_per_second

    async def reveal(self, directive: messages.Directive) -> None:
        """Send the blobs to the coordinator and the signed claim after them.

        :raises CheckFailed: this process did not make the commitment
        """
        session, made = self._session, self._made
        place = (directive.round, directive.attempt)
        salt = self._salts.get(place)
        if made is None or salt is None or made.wish.round != directive.round:
            raise CheckFailed(
                "this process did not make the contribution: it was lost in a restart, or another "
                "process uses this node's key",
                "give each node a --home of its own, and never copy one",
            )
        await delivery.push_all(
            session.host,
            session.blobs,
            session.link.coordinator,
            await self._for_coordinator(made, directive),
            kind="contribution",
        )
        if session.replica.state.founded.audits:
            await delivery.push_all(
                session.host,
                session.fingerprints,
                session.link.coordinator,
                (made.chain,),
                kind="fingerprints",
            )
        self._progress.mark("upload")
        wish, trained = made.wish, made.trained
        # An attempt that was given up with its term has the number of another one in the next.
        own = (*place, made.blob)
        if own not in self._statements:
            traffic = session.host.traffic
            totals = (traffic.up.total(), traffic.down.total())
            self._statements[own] = entries.contribution(
                session.identity,
                session.run,
                round=wish.round,
                attempt=directive.attempt,
                base=wish.base,
                blob=made.blob,
                size=trained.size,
                payload=trained.payload,
                salt=salt,
                tokens=trained.tokens,
                tail=trained.tail,
                head=trained.head,
                span=trained.span,
                chain=made.chain,
                hardware=trained.hardware,
                up=totals[0] - self._told[0],
                down=totals[1] - self._told[1],
            ).encode()
            self._told = totals
        statement = self._statements[own]
        # Before it is sent: the next directive may cancel this duty before the reply is here.
        await asyncio.to_thread(
            session.claims.add,
            round=wish.round,
            attempt=directive.attempt,
            entry=entries.entry_id(statement),
            blob=made.blob,
            tokens=trained.tokens,
        )
        reveal = messages.Reveal(run=session.run, statement=statement)
        await session.link.tell(reveal, max(directive.remaining, 5.0))
        emit(log, "contribution.revealed", logging.DEBUG, round=wish.round, tokens=trained.tokens)
        self._progress.mark("reveal")

    async def _for_coordinator(self, made: Made, directive: messages.Directive) -> list[str]:
        """The blobs that the coordinator is to take: all, but those that other members hold."""
        session, attempt = self._session, self._session.replica.state.attempt
        if not (made.parts and session.holders) or attempt is None:
            return [made.blob, *made.parts]
        me = session.identity.peer_id
        given = handed_out(attempt, me, len(made.parts), session.holders)
        limit = max(5.0, directive.remaining / 4)
        await session.link.locate(given)
        blobs = [*made.parts, made.blob]
        left = await hand_out(session.host, session.blobs, blobs, given, limit)
        return [made.blob, *(blob for blob in left if blob != made.blob)]

    def forget_before(self, round: int) -> None:
        """Drop what belongs to rounds before this one."""
        self._salts = {key: salt for key, salt in self._salts.items() if key[0] >= round}
        self._statements = {k: text for k, text in self._statements.items() if k[0] >= round}

    async def close(self) -> None:
        """End the tail, if one is under way."""
        if self._tail is not None:
            await end(self._tail)
