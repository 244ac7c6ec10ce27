"""A node's duties in a round: sync, train, reveal, apply. One method each.

What to do comes from the coordinator's directive; the facts to do it with come from this node's own
replica of the ledger, where they are signed: the members and the data of a round, which
contributions count, which state was agreed on.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from artel.ledger import entries
from artel.ledger.entries.anchors import anchor_of
from artel.ledger.entries.kinds.diverged import in_micro, loss_message
from artel.ledger.fold.shares import Attempt
from artel.node import sync
from artel.node.applying import Applying
from artel.node.closed_rounds import ClosedRound, closed_since, under_way
from artel.node.contributing import Contributing
from artel.node.corpus import Corpus
from artel.node.progress import Progress
from artel.node.rest import Rest
from artel.node.session import Session
from artel.node.sync import States
from artel.node.trainer.orders import Evaluate
from artel.protocol import assignment, messages
from artel.protocol.errors import ArtelError, CheckFailed, Unreachable
from artel.protocol.events import emit
from artel.protocol.net import wire
from artel.protocol.tasks import end, uninterrupted

log = logging.getLogger("artel.node")

FREE_SYNCS, SYNC_PAUSE_S = 2, 2.0
"""From the third time in a row that the agreed state is to be taken over, without a duty of a round
in between, each waits for this long first."""
RESTING = "resting"
"""The phase of a node whose owner wants a rest."""
PATIENCE_FRACTION = 1 / 4
"""Part of the time to settle that a node waits for slices which others owe."""


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
        self.progress, self.rest = Progress(), Rest()
        self._changed = changed
        self._own = Contributing(session, states, corpus, self.progress)
        self._applying = Applying(session, states, max_blob)
        self.doubts: dict[int, int] = {}
        """Agreed states that this node computed otherwise, and the attempt that made each."""
        self._term = session.replica.store.term
        self._closed: ClosedRound | None = None  # what was applied last, in this term
        self._syncs = 0  # since the last duty of a round
        self._evaluated: set[int] = set()
        self._evaluation: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._evaluation.set_result(None)
        self._trains: tuple[object, ...] = ()
        """What the training under way is made of; empty while there is none."""

    async def perform(self, directive: messages.Directive) -> None:
        """Do what the directive says; returns when it is done.

        :raises ArtelError: it could not be done now; the same directive may be performed again
        """
        session = self.session
        if self.rest.why:
            await self.close()
        for peer, addresses in directive.peers.items():
            session.host.remember(peer, addresses)
        await session.replica.catch_up(
            session.host, session.link.coordinator, session.run, directive.ledger_size
        )
        if session.replica.store.term != self._term:
            self._term = session.replica.store.term
            self._applying.forget()
            self._closed = None
        if self.rests(directive):
            if directive.task == "train":
                await self.hand_back(directive, f"its owner wants a rest ({self.rest.why})")
            self.progress.phase = RESTING
            return
        if directive.task in ("train", "reveal", "apply"):
            self._syncs = 0
        match directive.task:
            case "sync":
                await self._sync(directive)
            case "train":
                await self._train(directive)
            case "reveal":
                await self._reveal(directive)
            case "apply":
                await self._apply(directive)
            case "stop" if directive.evaluate:
                await self._evaluate()
        idle = RESTING if self.rest.why else "waiting"
        self.progress.phase = "finished" if directive.task == "stop" else idle

    def rests(self, directive: messages.Directive) -> bool:
        """Whether nothing is done for a directive, as the owner wants a rest. What this node has
        committed to it shows and applies all the same: the others of the round count on it."""
        committed = directive.task in ("reveal", "apply") and self._own.committed(directive)
        return bool(self.rest.why) and directive.task != "stop" and not committed

    # --- duties ---

    async def _sync(self, directive: messages.Directive) -> None:
        agreed = self.session.replica.state.states
        if directive.root != agreed[-1]:
            raise CheckFailed("the coordinator names a state that the ledger does not")
        # Another process with this node's key may say that it holds another state; then this one is
        # told to sync again and again, and must not do so at full speed.
        if self._syncs >= FREE_SYNCS:
            await asyncio.sleep(SYNC_PAUSE_S)
        await self._hold(len(agreed) - 1, directive.root, list(directive.peers))
        self._syncs += 1

    def _doubt(self) -> None:
        """Note it when the agreed state is not what this node computed for it, and keep the one
        that it came of."""
        fold, (round, attempt, root) = self.session.replica.state, self._applying.outcome
        anchor = anchor_of(fold, round + 1)
        same = anchor is not None and anchor.attempt == attempt
        if same and fold.states[round + 1] != root:
            self.doubts[round + 1] = attempt
            self.states.spare(fold.states[round])

    async def _hold(self, round: int, root: str, others: list[str]) -> None:
        """Make the agreed state with this root the current one."""
        self.progress.phase = "syncing"
        self._doubt()
        if not await self._catch_up(root):
            everybody = [*others, self.session.link.coordinator]
            path = await self.states.obtain(root, everybody)
            await uninterrupted(self.states.switch(path, round, root))
        self._evaluated = {number for number in self._evaluated if number < round}
        emit(log, "state.synced", round=round, root=root[:12])
        self.progress.phase = "waiting"
        self._changed()

    async def _catch_up(self, root: str) -> bool:
        """Repeat the rounds that this node has missed, where that takes fewer bytes than the state.

        :returns: whether the state with this root is current now
        """
        session, agreed = self.session, self.session.replica.state.states
        behind = self.states.round
        if not 0 <= behind < len(agreed) - 1 or self.states.root != agreed[behind]:
            return False
        missed = await asyncio.to_thread(closed_since, session.replica.history, behind)
        size = sync.delta_bytes(missed, session.blobs)
        if size >= session.state_bytes or session.blobs.has(root):
            return False
        emit(log, "state.catching_up", rounds=len(missed), bytes=size)
        try:
            for closed in missed:
                await self._applying.compute(closed)
                if self.states.root != closed.root:
                    raise CheckFailed(f"round {closed.round} gives another state here")
        except (Unreachable, CheckFailed) as error:
            # What is missing or different does not matter when the whole state can be had.
            emit(log, "state.not_caught_up", logging.WARNING, reason=error.message)
        return self.states.root == root

    async def _train(self, directive: messages.Directive) -> None:
        session, attempt = self.session, self._attempt(directive)
        if not self._own.committed(directive):
            self.progress.restart()
        self._trains = self._plan(directive)
        try:
            tail = await self._own.train(directive, attempt)
        except ArtelError:
            self._measure(directive)  # of all states, one from which it cannot be trained
            raise
        finally:
            self._trains = ()
        self._measure(directive)
        self._own.go_on(attempt.round, attempt.steps[session.identity.peer_id], tail)
        await self._own.commit(directive)
        self.progress.mark("commit")

    def _measure(self, directive: messages.Directive) -> None:
        """While the others still train and reveal; the trainer is done before it has to apply."""
        if directive.evaluate and self._evaluation.done():
            self._evaluation = asyncio.create_task(self._evaluate())

    async def trains_for(self, directive: messages.Directive) -> bool:
        """Whether the training under way is what another directive wants as well: one of a
        coordinator that was started again, or took over. Hours of it may have been done."""
        session = self.session
        if not self._trains or directive.task != "train" or self.rests(directive):
            return False
        try:
            await session.replica.catch_up(
                session.host, session.link.coordinator, session.run, directive.ledger_size
            )
            same = self._plan(directive) == self._trains
        except ArtelError:
            return False
        for peer, addresses in directive.peers.items() if same else ():
            session.host.remember(peer, addresses)
        return same

    def _plan(self, directive: messages.Directive) -> tuple[object, ...]:
        """What is to be trained, and by whom.

        :raises CheckFailed: the ledger has another attempt
        """
        attempt, cursor = self._attempt(directive), self.session.replica.state.cursor
        place = attempt.round, attempt.attempt, directive.root, cursor
        return *place, dict(attempt.steps), dict(attempt.accounts)

    async def _reveal(self, directive: messages.Directive) -> None:
        self.progress.mark("commit_wait")
        self.progress.phase = "revealing"
        try:
            await self._own.reveal(directive)
        except CheckFailed as error:
            await self.hand_back(directive, error.message)

    async def _apply(self, directive: messages.Directive) -> None:
        session, attempt = self.session, self._attempt(directive)
        if attempt.phase != "applying":
            raise CheckFailed("the coordinator wants a round applied that is not closed")
        self.progress.mark("reveal_wait")
        base = session.replica.state.states[-1]
        closed = self._under_way(attempt)
        done = self.states.round == attempt.round + 1
        if not done or not self._applying.settled(closed):
            if not done and self.states.root != base:
                await self._hold(attempt.round, base, list(directive.peers))
            self.progress.phase = "applying"
            patience = max(1.0, PATIENCE_FRACTION * directive.remaining)
            applied = await self._applying.compute(
                closed, refresh=lambda: self._closed_now(directive), patience=patience
            )
            self.progress.mark("fetch", applied.seconds)
            self._forget(closed)
        await self._sign_state(directive, attempt.credits.root)
        self.progress.mark("sign")
        self.progress.last_seconds = dict(self.progress.seconds)
        self.progress.phase = "waiting"
        self._changed()

    async def _closed_now(self, directive: messages.Directive) -> ClosedRound:
        session = self.session
        await session.replica.catch_up(session.host, session.link.coordinator, session.run)
        return self._under_way(self._attempt(directive))

    def _under_way(self, attempt: Attempt) -> ClosedRound:
        self._closed = under_way(self.session.replica.store, attempt, self._closed)
        return self._closed

    async def _sign_state(self, directive: messages.Directive, credits: str) -> None:
        session = self.session
        statement = entries.state_vote(
            session.identity,
            session.run,
            round=self.states.round,
            attempt=directive.attempt,
            root=self.states.root,
            credits=credits,
            wrong=self._applying.wrong,
        )
        signed = messages.SignedState(
            run=session.run,
            statement=statement.encode(),
            accused=sorted(self._applying.looked_at(directive.round, directive.attempt)),
        )
        await session.link.tell(signed, max(directive.remaining, 5.0))
        said = {"round": self.states.round, "root": self.states.root[:12]}
        emit(log, "state.signed", logging.DEBUG, **said)

    async def _evaluate(self) -> None:
        """Measure the current state on the validation split; a failure costs only the number."""
        round, root = self.states.round, self.states.root
        if round in self._evaluated:
            return
        try:
            windows = await self.corpus.validation()
            if self.states.round != round:
                return  # fetching the data took so long that another state is current
            loss = await self.session.trainer.do(Evaluate(windows))
        except ArtelError as error:
            emit(log, "state.not_evaluated", round=round, reason=error.message)
            if getattr(error, "code", "") != "diverged":
                return
            loss = messages.MAX_LOSS  # not finite, which is worth knowing
        self._evaluated.add(round)
        said = loss_message(self.session.run, round, root, in_micro(loss))
        self.progress.validation = messages.Validation(
            round=round, loss=loss, signature=self.session.identity.sign(said).hex()
        )
        self._changed()

    async def close(self) -> None:
        """End what goes on beside the duties."""
        await self._own.close()
        await end(self._evaluation)

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
        """How long a round's assignment takes here, by the speed last seen; 0 if unknown."""
        speed, attempt = self.progress.tokens_per_second, self.session.replica.state.attempt
        work = assignment.Work.of(self.session.manifest.config)
        steps = work.inner_steps
        if attempt is not None:
            steps = attempt.steps.get(self.session.identity.peer_id, steps)
        return work.tokens(steps) / speed if speed else 0.0

    def _attempt(self, directive: messages.Directive) -> Attempt:
        """The attempt under way according to the ledger, which must be the directive's."""
        attempt = self.session.replica.state.attempt
        if attempt is None or (attempt.round, attempt.attempt) != (
            directive.round,
            directive.attempt,
        ):
            raise CheckFailed("the coordinator's directive is not about the ledger's round")
        return attempt

    def _forget(self, closed: ClosedRound) -> None:
        """Blobs of an applied round become ordinary cache, which others may still fetch."""
        self.session.blobs.unpin(*(body.blob for body in closed.shown.values()))
        self._own.forget_before(self.states.round)
