"""The coordinator of a run: feeds the round state machine, and makes its decisions durable.

Every event goes through :meth:`Coordinator.feed`, one at a time: the pure machine decides, the
ledger records the decision, and only then is the new state visible to nodes. If the ledger cannot
be written the state does not change, and the coordinator stops. If an entry of its own changes
nothing in the fold, the attempt fails and the rounds go on from what the ledger says.

Requests of nodes are answered by :mod:`coordinator.desk`; what goes on beside the rounds (DHT
records, copies of states, old blobs) is in :mod:`coordinator.upkeep`, the closing of the accounts
after the last round in :mod:`coordinator.closing`.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import Sequence
from dataclasses import replace

from artel.coordinator import deciding, intake
from artel.coordinator.divergence import Divergence
from artel.coordinator.metrics import Clock, Metrics, Numbers
from artel.coordinator.pace import Planner
from artel.coordinator.peer import Peer, say_whether_it_goes_on, say_who_sits_out
from artel.coordinator.resuming import PHASES, NoEffect, ranked, resumed, seat, shown_so_far
from artel.coordinator.reveals import Arrival, Reveals
from artel.coordinator.sequencer import Late, Sequencer, Statement
from artel.coordinator.submission import Submissions
from artel.coordinator.verdicts import Verdicts
from artel.coordinator.witnessing import Witnessing
from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.ledger.entries.anchors import anchor_of
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.jury_answer import charged
from artel.ledger.entries.kinds.state_agreed import is_outside
from artel.ledger.store.heads import HeadStore
from artel.ledger.sync.looks import Looks
from artel.protocol import assignment, files, round_state, rounds
from artel.protocol.dsse import Envelope
from artel.protocol.errors import ArtelError
from artel.protocol.events import emit
from artel.protocol.exchange.shape import Shape, largest_contribution
from artel.protocol.identity import Identity, short_peer
from artel.protocol.manifest import Manifest
from artel.protocol.net import wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.round_state import RunState
from artel.protocol.state import Layout, state_bytes
from artel.protocol.tasks import uninterrupted

log = logging.getLogger("artel.coordinator")

TICK_S = 0.25


class Coordinator:
    """One run's coordinator.

    :param clock: steady seconds; injected so that tests own the time
    """

    def __init__(
        self,
        *,
        manifest: Manifest,
        run: str,
        layout: Layout,
        identity: Identity,
        host: Host,
        sequencer: Sequencer,
        heads: HeadStore,
        blobs: BlobStore,
        fingerprints: BlobStore,
        metrics: Metrics,
        clock: Clock = time.monotonic,
    ) -> None:
        self.manifest, self.run, self.layout = manifest, run, layout
        self.identity, self.host, self.ledger, self.blobs = identity, host, sequencer, blobs
        self.fingerprints = fingerprints
        """Of contributions' steps: secrets, which no service gives to anybody."""
        self.heads, self.metrics, self.clock, self.looks = heads, metrics, clock, Looks()
        self.witnessing = Witnessing(sequencer.store, heads, lambda: self.ledger.state, identity)
        self.verdicts = Verdicts(sequencer, fingerprints, manifest.config.trust.tolerances)
        self.submissions = Submissions(sequencer, heads, run, self.verdicts, clock)
        self.rules, self._amended = round_state.RoundRules.of(manifest.config), dict[str, str]()
        self.recompute = 0
        """It comes to one of so many states itself, by chance; 0: only where it has to."""
        self.payload_bytes = largest_contribution(manifest.config, layout)
        self.state_bytes = state_bytes(layout.parameters, manifest.config.exchange.outer)
        self.planner = Planner(manifest, self.rules)
        self.losses = Divergence(run, manifest.config.rounds)
        self.peers: dict[str, Peer] = {}
        self.changed = asyncio.Condition()
        """Notified whenever the state, or what is known of a node, is new; for what waits here.
        Nodes that wait are woken by their own :attr:`Peer.news`."""
        self.exchanged: list[entries.Contribution | entries.Aggregate] = []
        """Contributions and slices recorded since :mod:`coordinator.upkeep` last looked."""
        self.released = False
        """Whether nodes of a finished run may go; see :mod:`coordinator.upkeep`."""
        self.ending = False
        """Whether this term is to end (:mod:`coordinator.term_watch`): no round is opened."""
        self._stands = True  # nobody is here yet
        self.not_ending = ""
        """Why it goes on although its owner wanted it to end."""
        self.state = resumed(sequencer.state, clock())
        self._follow()
        self._lock = asyncio.Lock()  # one event at a time
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._reveals = Reveals()
        self._shown = shown_so_far(sequencer.state, sequencer.store)  # of this attempt, by node
        self._votes: dict[str, str] = {}  # state signatures (hex) of this round, by node
        self._shape: tuple[tuple[int, int], Shape] | None = None  # the last one asked for
        self._numbers = Numbers(metrics, clock, sequencer.state.attempt)

    @property
    def asks_seal(self) -> bool:
        """Whether electors are to seal this term now: between two rounds, no work is lost."""
        over = round_state.Phase.WAITING, round_state.Phase.FINISHED
        return self.ending and self.state.phase in over

    @property
    def work(self) -> assignment.Work:
        """What the round that is under way or comes next asks of its members."""
        return self.ledger.state.work

    def _follow(self) -> None:
        """Go by the rules of that round, and on when they were amended."""
        if (changes := self.ledger.state.changes_at(self.ledger.state.round)) != self._amended:
            self._amended = changes
            self.rules = round_state.RoundRules.of(self.manifest.config).amended(changes)
            halted = self.state.halted and (self.ending or self.ledger.state.halted)
            self.state = replace(self.state, halted=halted)

    async def _close_attempt(self) -> None:
        """Record that the attempt under way, which cannot go on, has failed."""
        attempt = self.ledger.state.attempt
        if attempt is not None and attempt.phase in PHASES:
            emit(log, "round.interrupted", round=attempt.round, attempt=attempt.attempt)
            with contextlib.suppress(NoEffect):  # a later attempt can be opened all the same
                await self.record_own(
                    entries.round_closed(
                        self.identity, self.run, round=attempt.round, attempt=attempt.attempt
                    )
                )

    async def drive(self) -> None:
        """Let time pass for the rounds; ends only with an error.

        :raises ArtelError: a decision could not be made durable
        """
        while not self._failure.done():
            await asyncio.wait([self._failure], timeout=TICK_S)
            if not self._failure.done():
                await self.feed(round_state.Tick(self.clock()))
        await self._failure

    async def tell(self, *names: str) -> None:
        """Let everybody who waits for news look again; of the nodes these alone, if any."""
        for name in names or self.peers:
            if name in self.peers:
                self.peers[name].news.set()
        async with self.changed:
            self.changed.notify_all()

    async def feed(self, event: round_state.Event, shown: Entry | str | None = None) -> None:
        """Apply one event and everything that follows from it.

        :param shown: the checked contribution behind a Revealed event, or the checked signature
            (hex) behind a StateSigned one
        :raises Refused: the event does not fit; nothing changed
        :raises NotCounted: another node showed these numbers meanwhile; nothing changed
        """
        one = self._reveals.add(event, shown) if isinstance(shown, Entry) else None
        async with self._lock:
            phase, actions = self.state.phase, list[round_state.Action]()
            if not isinstance(shown, Entry):
                actions = await self._step(event, shown or ())
            elif one is not None and not one.done.done():
                given = (self.rules, self.state, self.ledger.state, self._step)
                actions = await uninterrupted(self._reveals.take(*given))
            if any(isinstance(action, round_state.CloseRound) for action in actions):
                await self._weigh()
            general = bool(actions) or self.state.phase is not phase
        if general:
            await self.tell()
        elif not isinstance(event, round_state.Tick | round_state.Halted | round_state.Ranked):
            # What one node says changes what that one has to do.
            await self.tell(getattr(event, "peer", ""))
        if one is not None:
            await one.done

    async def _weigh(self) -> None:
        """Tell the rounds what the fold says of the attempt that was closed a moment ago."""
        fold, attempt = self.ledger.state, self.ledger.state.attempt
        if self.state.phase is not round_state.Phase.APPLYING or attempt is None:
            return
        place, weights = (attempt.round, attempt.attempt), attempt.weights
        # By a coin that nobody sees: whoever could foresee it would lie in the other rounds.
        often = self.recompute and not secrets.randbelow(self.recompute)
        own = bool(often) or attempt.rests_on == "coordinator" or not any(weights.values())
        outside = frozenset(peer for peer in self.state.peers if is_outside(fold, attempt, peer))
        slices = len(self.shape(len(attempt.accounts)).slices)
        await self._step(round_state.Grounds(self.clock(), *place, weights, own, outside, slices))

    async def record(self, entry: Entry) -> bool:
        """Put what a node says of a slice or of an agreed state into the ledger.

        :returns: False when it is there already
        :raises Refused: it does not count now; nothing changed
        """
        body = entry.body
        async with self._lock:
            if self.ledger.store.index_of(entry.id) is not None:
                return False  # the first reply got lost
            intake.require(self.ledger.state, entry)
            if isinstance(body, entries.SliceWrong | entries.Aggregate):
                place = (self.clock(), body.node, body.round, body.attempt, body.slice)
                accuses = isinstance(body, entries.SliceWrong)
                said = (round_state.Accused if accuses else round_state.Combined)(*place)
                if refused := rounds.refusal(self.rules, self.state, said):
                    raise wire.Refused(refused.reason, code=refused.code)
            try:
                await intake.append(self.ledger, entry)
            except wire.Refused:
                raise
            except ArtelError as error:
                self.fail(error)
                raise
            if isinstance(body, entries.Aggregate):
                self.exchanged.append(body)
            if isinstance(body, entries.SliceWrong | entries.Aggregate):
                await self._step(said)
            if self.ledger.state.halted:
                await self._step(round_state.Halted(self.clock()))
        await self.tell()
        return True

    async def _step(
        self, event: round_state.Event, shown: Sequence[Arrival] | str = ()
    ) -> list[round_state.Action]:
        """One event, and who has which seat after it; the caller holds the lock."""
        now, seats = event.now, self.state.seats
        # As long as nobody is ranked no round begins, and all are, as soon as this has come.
        if isinstance(event, round_state.Seen) and not (self.state.unranked or event.peer in seats):
            # Behind all others: whoever comes when the lot is known may have chosen its key by it.
            here = {event.peer: seat(self.ledger.state, event.peer, len(seats))}
            await self._turn(round_state.Ranked(now, {**seats, **here}, self.state.on_members))
        actions = await self._turn(event, shown)
        if self.state.unranked:
            actions += await self._turn(ranked(self.ledger.state, self.state.peers, now))
        return actions

    async def _turn(
        self, event: round_state.Event, shown: Sequence[Arrival] | str = ()
    ) -> list[round_state.Action]:
        self._follow()
        state, actions = rounds.step(self.rules, self.state, event)
        if actions and isinstance(actions[0], round_state.Refuse):
            raise wire.Refused(actions[0].reason, code=actions[0].code)
        if isinstance(event, round_state.Committed):
            self.planner.pace.committed(event.peer, event.now)
        try:
            try:
                if not isinstance(shown, str):
                    await self._keep_shown(shown)
                elif isinstance(event, round_state.StateSigned):
                    self._votes[event.peer] = shown
                for action in actions:
                    await self._execute(action)
            except NoEffect:
                state = await self._back_to_the_ledger(state)
        except (ArtelError, OSError) as error:
            # The machine's decision is not durable, so nobody may act upon it.
            if isinstance(error, OSError):
                error = files.disk_error(error, self.metrics.path.parent)
            self.fail(error)
            raise error from None
        say_who_sits_out(self.state, state)
        self.state = state
        self._follow()
        self._stands = say_whether_it_goes_on(self._stands, self.rules, state)
        return actions

    async def go_back(self, charge: str, number: int, grounds: str = "") -> None:
        """Go on from the state with this number, since a later one was proven wrong.

        :param charge: id of the entry that called it wrong
        :param grounds: what that rests on, in words
        """

        def back(fold: FoldState) -> Envelope:
            wrong = charged(fold, charge)
            return entries.rolled_back(
                self.identity,
                self.run,
                charge=charge,
                state=number,
                root=fold.states[number],
                credits=entries.credits_back(fold, number, wrong).root,
            )

        async with self._lock:
            fold, newest = self.ledger.state, self.state.round
            if charged(fold, charge) < 0 or anchor_of(fold, number) is None:
                return  # it was settled, or that state has become too old, while it was fetched
            await self._decide(Late(entries.RolledBack.KIND, back))
            self._shown, self._votes = {}, {}
            self.state = resumed(self.ledger.state, self.clock(), self.state)
            self.metrics.gone_back(number, newest)
        said = {"round": number, "undone": newest - number, "grounds": grounds}
        emit(log, "run.rolled_back", logging.WARNING, **said)
        await self.tell()

    async def uphold(self, charge: str, root: str) -> None:
        """Go on, since a state that a jury calls wrong has been computed here, and is right.

        :param charge: id of the entry that called it wrong
        :param root: what it came to, which is recorded
        """
        async with self._lock:
            if charged(self.ledger.state, charge) < 0:
                return
            await self._decide(
                entries.state_upheld(self.identity, self.run, charge=charge, root=root)
            )
            await self._step(round_state.Halted(self.clock(), self.ledger.state.halted))
        await self.tell()

    async def _decide(self, statement: Statement) -> None:
        """Record what settles a charge; an error ends :meth:`drive`."""
        try:
            await self.record_own(statement)
        except ArtelError as error:
            self.fail(error)
            raise

    async def record_own(self, *statements: Statement) -> None:
        """Append what the rounds rest on; all of it has to have its effect.

        :raises NoEffect: some had none; they are in the ledger nevertheless
        """
        outcomes = await self.ledger.append(*statements)
        for one, outcome in zip(statements, outcomes, strict=True):
            if outcome.status == "ignored":
                kind = (entries.decode(one.encode()) if isinstance(one, Envelope) else one).kind
                emit(log, "entry.no_effect", logging.ERROR, kind=kind, reason=outcome.reason)
                raise NoEffect(kind, outcome.reason)

    async def _back_to_the_ledger(self, intended: RunState) -> RunState:
        """After an entry without effect: the attempt fails, and the rounds go on from the ledger.

        :param intended: what the rounds would be, had the entry counted
        """
        await self._close_attempt()
        self._shown, self._votes = {}, {}
        state = resumed(self.ledger.state, self.clock(), intended)
        emit(
            log, "round.resumed", round=state.round, attempt=state.attempt, phase=state.phase.value
        )
        return state

    def fail(self, error: ArtelError) -> None:
        """End :meth:`drive`, and with it the coordinator."""
        if not self._failure.done():
            self._failure.set_exception(error)

    def shape(self, members: int) -> Shape:
        """What contributions to a round with so many members look like now."""
        key = (self.state.round, members)
        if self._shape is None or self._shape[0] != key:
            self._shape = key, Shape.of(self.manifest.config, self.layout, *key)
        return self._shape[1]

    def assigned(self, peer: str) -> int:
        """Inner steps of a member in the attempt under way; 0 for others."""
        attempt = self.ledger.state.attempt
        return attempt.steps.get(peer, 0) if attempt is not None else 0

    async def _keep_shown(self, shown: Sequence[Arrival]) -> None:
        """Record contributions that hold; only a node's first in an attempt counts.

        A signer can make many signatures, and so many entry ids, of one statement; the fold knows
        the first alone.
        """
        fresh = [one for one in shown if one.event.peer not in self._shown]
        if fresh:
            await self.record_own(*(one.entry for one in fresh))
        for one in fresh:
            self._shown[one.event.peer] = one.body
            self.exchanged.append(one.body)

    async def _execute(self, action: round_state.Action) -> None:
        """Make one decision durable."""
        sign, run, fold = self.identity, self.run, self.ledger.state
        if isinstance(action, round_state.OpenRound):
            self._shown, self._votes = {}, {}
            reported = {p: peer.report.tokens_per_second for p, peer in self.peers.items()}
            steps = self.planner.steps(fold, action.members, reported)
            place = {"round": action.round, "attempt": action.attempt}
            cursor = self.planner.cursor(fold, sum(steps.values()))
            opened = entries.round_opened(
                sign, run, **place, base=action.base, cursor=cursor, steps=steps
            )
            witnessed = self.witnessing.statement()
            await self.record_own(*([witnessed] if witnessed is not None else []), opened)
            self._numbers.opened(action.round, steps)
            self.planner.pace.opened(self.clock(), action.attempt)
            emit(log, "round.opened", round=action.round, members=len(action.members))
        elif isinstance(action, round_state.CloseCommitments):
            place, made = {"round": action.round, "attempt": action.attempt}, action.commitments
            await self.record_own(entries.round_committed(sign, run, **place, commitments=made))
            self._numbers.phase(action.round, "training")
            emit(log, "round.committed", round=action.round, commitments=len(made))
        elif isinstance(action, round_state.CloseRound):
            await self._close_round(action)
        elif isinstance(action, round_state.AgreeState):
            await self.record_own(deciding.agreed(sign, fold, action, self._votes))
            reports = {name: peer.report for name, peer in self.peers.items()}
            self._numbers.agreed(action.round - 1, action.signers, reports)
            root, signers = action.root[:12], len(action.signers)
            emit(log, "state.agreed", round=action.round, root=root, signers=signers)
        elif isinstance(action, round_state.Drop):
            self.peers.pop(action.peer, None)
            emit(log, "node.dropped", node=short_peer(action.peer), reason=action.reason)

    async def _close_round(self, action: round_state.CloseRound) -> None:
        attempt = self.ledger.state.attempt
        assert attempt is not None
        bodies, out = [self._shown[peer] for peer in action.accepted], action.rejected
        await self.record_own(deciding.closed(self.identity, self.ledger.state, action))
        self._numbers.closed(action.round, bodies, out)
        if self.rules.box:
            self.planner.learn(attempt, bodies, out)
        emit(
            log,
            "round.closed" if bodies else "round.failed",
            round=action.round,
            accepted=len(bodies),
            rejected=", ".join(f"{short_peer(p)}: {why}" for p, why in out.items()) or "-",
        )
