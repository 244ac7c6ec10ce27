"""The node daemon: joins a run, follows the coordinator's directives, and leaves with its credit.

Tasks side by side: the heartbeat says what this node is doing and hears what it should be doing;
the reconciler keeps exactly one duty under way, and drops it when the directive changes, but not
training that the new one wants too; the announcer keeps this node's DHT record; the cosigner
witnesses the ledger, the watch compares it with what others were shown, and the auditor repeats the
work that it was drawn for. A lost message costs time, never correctness: whatever is not done yet
is simply said again by the next directive.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Callable

from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.serving import LedgerService
from artel.node.auditing import Auditing
from artel.node.child import TrainerDied
from artel.node.corpus import Corpus
from artel.node.cosigning import Cosigning
from artel.node.judging import Judging
from artel.node.keeping import Keeping
from artel.node.link import keep_neighbours
from artel.node.session import Session
from artel.node.supervisor import MAX_RESTARTS, given_up
from artel.node.sync import States
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import Load
from artel.node.watch import Watch
from artel.node.worker import Worker
from artel.protocol import messages, repeated_work
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, ResourceError, Unreachable
from artel.protocol.events import emit
from artel.protocol.net import dht, wire
from artel.protocol.tasks import end, first_error, uninterrupted, unless, within

log = logging.getLogger("artel.node")

ANSWER_S = 10.0
"""For a heartbeat's reply, beside the time for which the coordinator may keep it back."""
RETRY_S = 1.0
LAST_HEAD_S = 5.0
"""How long a node of a finished run tries to get a certified tree head over the whole ledger."""
LEAVE_TIMEOUT_S = 3.0
HAND_OVER_S = 30.0
"""How long a leaving node whose own coordinator leads waits for another one."""
LEAVE_WITHOUT_S = 15.0
"""A leaving node that has not reached the coordinator for this long goes without a goodbye."""


class Finished(Exception):
    """The node's work is over: the run is finished, or its owner wants it to leave."""


class Daemon:
    """A node in a run; :meth:`run` returns when the run is finished or the node has left.

    :param say: shows a line to the node's owner
    """

    def __init__(
        self,
        session: Session,
        states: States,
        corpus: Corpus,
        max_blob: int,
        say: Callable[[str], None],
    ) -> None:
        self.session, self.states, self.corpus = session, states, corpus
        self._news = asyncio.Event()  # the coordinator should hear from us now
        self.worker = Worker(session, states, corpus, max_blob, self._news.set)
        self._keeping = Keeping(session, max_blob)
        self._say = say
        self.directive: messages.Directive | None = None
        """What the coordinator last said that this node should be doing."""
        self._directed_by = ""  # peer id of that one; versions of another say nothing
        self.watch = Watch(
            host=session.host,
            home=session.home,
            run=session.run,
            replica=session.replica,
            heads=session.heads,
            account=session.account,
            coordinator=lambda: session.link.coordinator,
            neighbours=self._neighbours,
        )
        self.cosigner = Cosigning(session, self.watch)
        self.auditing = Auditing(session, corpus, self.worker.progress, max_blob, say)
        self.auditing.rest = self.worker.rest
        self.judging = Judging(session, self.worker, self._neighbours)
        self._instance = secrets.token_hex(16)
        self._heard_at = time.monotonic()
        self._heard = asyncio.Event()  # a directive came that the reconciler has not looked at
        self._holds_more = asyncio.Event()  # others could fetch something new from us
        self._end, self.worker.rest.news = asyncio.Event(), (self._news, self._heard)
        self._handing_over: asyncio.Future[None] | None = None
        self.leaving = False
        self.reachable = True
        """Whether the coordinator could dial this machine when it admitted this node."""
        self._restarts, self.started = 0, time.time()
        self._credit_shown, self._round_shown = self.credit(), session.replica.state.round
        self.last_error = ""

    # --- for the owner ---

    def leave(self) -> float:
        """Finish the round under way, then go; returns the seconds that this takes at most."""
        self.leaving = True
        self._handing_over = asyncio.ensure_future(self.session.sealing.hand_over())
        self._news.set()
        self._heard.set()
        longest = self._round_left()
        asyncio.get_running_loop().call_later(longest + LEAVE_WITHOUT_S, self._end.set)
        return longest

    def credit(self) -> int:
        """Vested and pending credit of this node's account, as of the newest entry seen."""
        return self.session.replica.state.credit(self.session.account_name)

    def _neighbours(self) -> dict[str, list[str]]:
        """Where others are, as the coordinator said last."""
        return self.directive.peers if self.directive else {}

    # --- the tasks ---

    async def run(self) -> None:
        """Take part until the run is finished or :meth:`leave` was called and the round is over.

        :raises ArtelError: this node cannot go on
        """
        session, sealing = self.session, self.session.sealing
        session.host.admit(session.caller)
        await session.host.serve(wire.CONTENT, self._keeping.answer)
        files = session.replica.store, session.heads, session.run, lambda: session.replica.state
        ledger = LedgerService(*files, submit=sealing.petitions.take, seal=sealing.statement)
        await session.host.serve(wire.LEDGER, ledger.answer)
        sealing.news, sealing.alarm = self._news.set, self.watch.alarm
        sealing.petitions.otherwise = self.watch.take
        sealing.neighbours = self._neighbours
        sealing.standstill.ready = lambda: (
            not self.leaving and self.states.root == session.replica.state.states[-1]
        )
        following = (
            *(self._heartbeat, self._reconcile, self.cosigner.run, self.auditing.run),
            *(self.watch.run, self.judging.run, sealing.petitions.run),
        )
        try:
            async with asyncio.TaskGroup() as group:
                for work in following:
                    group.create_task(sealing.while_led(work))
                more = self._announce(), self.corpus.keep(), sealing.run(), session.host.watch()
                for coroutine in (*more, self._until_end()):
                    group.create_task(coroutine)
        except BaseExceptionGroup as errors:
            error = first_error(errors)
            if not isinstance(error, Finished):
                raise error from None
        finally:
            if self._handing_over is not None:
                await end(self._handing_over)
            await self.worker.close()
        await self.goodbye()

    async def goodbye(self) -> None:
        """Tell the coordinator that this node goes; it notices by itself if that fails."""
        with contextlib.suppress(ArtelError):
            goes = messages.Leave(run=self.session.run)
            await self.session.link.ask(goes, LEAVE_TIMEOUT_S)

    async def _heartbeat(self) -> None:
        pause = RETRY_S
        while True:
            self._news.clear()
            try:
                await self._beat()
                pause = RETRY_S
            except wire.Refused as refusal:
                if refusal.code == "replaced":
                    raise ResourceError(refusal.message, refusal.hint) from None
                if refusal.code == "busy":
                    await asyncio.sleep(pause)
                    pause = min(2 * pause, 8.0)
                elif refusal.code == "unknown_node":
                    await self._register()
                else:
                    raise
            except (Unreachable, DecodeError) as error:
                self.last_error = error.message
                lost = self.session.link.lost_since
                if self.leaving and lost and time.monotonic() - lost > LEAVE_WITHOUT_S:
                    self._end.set()
                with contextlib.suppress(TimeoutError):
                    await within(self._news.wait(), pause)
                pause = min(2 * pause, 8.0)
                await unless(self._news, self.session.link.find_again())

    async def _beat(self) -> None:
        """One heartbeat; given up early when there is news to report in another one."""
        leader, term = self.session.link.coordinator, self.session.sealing.present
        known = self.directive if self._directed_by == leader else None
        seen, patience = (known.version, known.patience) if known else (0, messages.PATIENCE_S)
        request = messages.Heartbeat(
            run=self.session.run,
            instance=self._instance,
            seen=seen,
            patience=patience,
            report=self.report(),
            addresses=await self.session.host.addresses(),
            sealed=self.session.sealing.term,
        )
        asking = self.session.link.ask(request, patience + ANSWER_S)
        directive = await unless(self._news, asking)
        if directive is None:
            return
        if not isinstance(directive, messages.Directive):
            raise Unreachable(f"the coordinator answered a heartbeat with {directive.KIND}")
        if known is not None and directive.version == seen:
            directive = directive.model_copy(update={"peers": known.peers})
        self.directive, self._heard_at = directive, time.monotonic()
        self._directed_by = leader
        if directive.seal:
            # That of whoever was asked, not a later one.
            self.session.sealing.ask(term, directive.ledger_size)
        if directive.version != seen:
            self._heard.set()

    def report(self) -> messages.Report:
        """What the coordinator is told of this node."""
        progress, traffic = self.worker.progress, self.session.host.traffic
        return messages.Report(
            state_round=self.states.round,
            state_root=self.states.root,
            phase=progress.phase,
            leaving=self.leaving or bool(self.worker.rest.why),
            round=progress.round,
            step=progress.step,
            steps=progress.steps,
            loss=progress.loss,
            tokens_per_second=progress.tokens_per_second,
            bytes_up=traffic.up.total(),
            bytes_down=traffic.down.total(),
            up_by_kind=dict(traffic.up),
            down_by_kind=dict(traffic.down),
            validation=progress.validation,
            seconds=progress.last_seconds,
        )

    async def _register(self) -> None:
        """Be admitted again by a coordinator that does not know this node."""
        session = self.session
        await session.replica.catch_up(session.host, session.link.coordinator, session.run)
        reply = await session.link.ask(await session.hello())
        if isinstance(reply, repeated_work.Trial):
            raise CheckFailed(
                "the coordinator does not know this node any more",
                "start it again: it is admitted anew, after a trial",
            )
        self.reachable = isinstance(reply, messages.Welcome) and reply.reachable

    async def _reconcile(self) -> None:
        """Keep the duty of the newest directive under way, and only that one."""
        duty: asyncio.Task[None] | None = None
        try:
            while True:
                heard = asyncio.create_task(self._heard.wait())
                waiting = {heard} if duty is None else {heard, duty}
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                heard.cancel()
                if duty is not None and duty.done():
                    duty.result()
                    duty = None
                if not self._heard.is_set():
                    continue
                self._heard.clear()
                if duty is not None:
                    if self.directive is not None and await self.worker.trains_for(self.directive):
                        continue
                    await end(duty)
                if self.directive is not None:
                    duty = asyncio.create_task(self._perform(self.directive))
        finally:
            if duty is not None:
                await end(duty)

    async def _perform(self, directive: messages.Directive) -> None:
        """Perform one directive until it is done, through failures that may pass, and stand by."""
        again = True
        while again:
            try:
                await self.worker.perform(directive)
                self._restarts, self.last_error, again = 0, "", False
                self._holds_more.set()
                self._show_credit()
                if directive.task == "stop":
                    await self.cosigner.settle(LAST_HEAD_S)
                self._check_end(directive)
            except TrainerDied as death:
                again = await self._revive_trainer(death, directive)
            except TrainerError as error:
                again = await self._trainer_failed(error, directive)
            except wire.Refused as refusal:
                # The round went on without us, or what we did was wrong; the next directive tells.
                self._note("request.refused", refusal, directive)
                again = False
                with contextlib.suppress(TimeoutError):
                    await within(self._heard.wait(), RETRY_S)
                self._news.set()
            except ResourceError as error:
                await self.worker.hand_back(directive, error.message)
                raise
            except SplitViewProven:
                raise
            except (Unreachable, CheckFailed, DecodeError) as error:
                self._note("duty.retry", error, directive)
                await asyncio.sleep(RETRY_S)
                if isinstance(error, Unreachable):
                    await self.session.link.find_again()
        if directive.task != "stop":
            await self._stand_by(directive)

    async def _stand_by(self, directive: messages.Directive) -> None:
        """With nothing to do: start a trainer that dies again at once, not when it is needed."""
        while (child := self.session.trainer.child) is not None:
            await asyncio.wait({child.dead})
            self._note("trainer.died", child.dead.result(), directive)
            await self._fresh_trainer(child.dead.result(), directive)

    def _note(self, event: str, error: ArtelError, directive: messages.Directive) -> None:
        self.last_error = error.message
        emit(log, event, logging.WARNING, task=directive.task, reason=error.message)

    def _show_credit(self) -> None:
        credit = self.credit()
        if credit != self._credit_shown:
            fold = self.session.replica.state
            gained, self._credit_shown = credit - self._credit_shown, credit
            what = f"credit for other work since round {fold.round}"
            if fold.round != self._round_shown:
                self._round_shown = fold.round
                total = self.session.rounds.total
                what = f"round {fold.round} of {total} agreed"
            self._say(
                f"{what}: {gained:+,} credit, {credit:,} in all (vested and pending), "
                f"{100 * credit / max(1, fold.total):.1f} % of the model so far"
            )

    def _check_end(self, directive: messages.Directive) -> None:
        if directive.task == "stop":
            # One more heartbeat carries the last validation loss; then there is nothing to do.
            asyncio.get_running_loop().call_later(1.0, self._end.set)
        elif self.leaving and directive.task == "wait" and not self._in_round():
            self._end.set()

    def _in_round(self) -> bool:
        """Whether the attempt under way counts on this node, by the ledger."""
        attempt = self.session.replica.state.attempt
        me = self.session.identity.peer_id
        return attempt is not None and me in attempt.accounts and attempt.phase != "failed"

    def _round_left(self) -> float:
        """How long the round under way can still need this node, by the run's rules; in seconds."""
        rounds, directive = self.session.rounds, self.directive
        if directive is None or not self._in_round():
            return 0.0
        left = max(0.0, directive.remaining - (time.monotonic() - self._heard_at))
        applying, revealing = rounds.settle_s, rounds.reveal_s + rounds.settle_s
        after = {"train": rounds.grace_s + revealing, "reveal": applying, "apply": 0.0}
        if directive.task in after:
            return left + after[directive.task]
        return rounds.deadline_s + revealing  # it waits for others

    async def _revive_trainer(self, death: TrainerDied, directive: messages.Directive) -> bool:
        """Start the trainer again; first hand the round back if there is no time to train anew."""
        self._note("trainer.died", death, directive)
        # The newest directive knows whether the others wait for us already.
        newest = self.directive or directive
        left = newest.remaining - (time.monotonic() - self._heard_at)
        needed = self.worker.training_seconds()
        hopeless = directive.task == "train" and needed > left
        if hopeless:
            reason = f"the trainer died; {needed:.0f} s are needed and {left:.0f} s are left"
            await self.worker.hand_back(directive, reason)
        await self._fresh_trainer(death, directive)
        return not hopeless

    async def _fresh_trainer(self, cause: ArtelError, directive: messages.Directive) -> None:
        """A new trainer process with the current state; gives up after some in a row.

        :raises ResourceError: too many trainers in a row came to nothing
        """
        self._restarts += 1
        if self._restarts > MAX_RESTARTS:
            await self.worker.hand_back(directive, cause.message)
            raise given_up(self._restarts, cause)

        async def start() -> None:
            session = self.session
            try:
                await session.trainer.restart()
                await asyncio.to_thread(session.blobs.sound, self.states.root)
                loading = Load(session.manifest_file, self.states.path, session.device)
                await session.trainer.do(loading)
                emit(log, "trainer.restarted", round=directive.round)
            except (TrainerDied, TrainerError) as error:
                self._note("trainer.not_restarted", error, directive)  # the next try says why again

        # A new directive, as when the coordinator is back, must not leave one without a run.
        await uninterrupted(start())

    async def _trainer_failed(self, error: TrainerError, directive: messages.Directive) -> bool:
        """The trainer lives and says no; True when trying again makes sense."""
        self._note("trainer.failed", error, directive)
        if error.code in ("disk_full", "disk", "out_of_memory"):
            await self.worker.hand_back(directive, error.message)
            raise ResourceError(error.message, error.hint)
        if error.code == "not_loaded":  # an earlier restart failed half-way
            await self._fresh_trainer(error, directive)
            return True
        if directive.task == "train":
            await self.worker.hand_back(directive, error.message)
            return False
        await asyncio.sleep(RETRY_S)
        return True

    async def _until_end(self) -> None:
        await self._end.wait()
        if self._handing_over is not None:
            with contextlib.suppress(TimeoutError):
                await within(self._handing_over, HAND_OVER_S)
        raise Finished

    async def _announce(self) -> None:
        """Keep this node's DHT record: again before it expires, at once when it holds more."""
        while True:
            record = dht.HolderRecord(
                addresses=await self.session.host.addresses(),
                state=self.states.root,
                shards=self.corpus.held(),
            )
            await self.session.host.publish(dht.nodes_key(self.session.run), record)
            self._holds_more.clear()
            keep_neighbours(self.session.home, self.session.run, self._neighbours())
            with contextlib.suppress(TimeoutError):
                await within(self._holds_more.wait(), dht.RENEW_S)
