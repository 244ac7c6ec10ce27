"""The coordinator of a run: feeds the round state machine, and makes its decisions durable.

Every event goes through :meth:`Coordinator.feed`, one at a time: the pure machine decides, the
ledger records the decision, and only then is the new state visible to nodes. If the ledger cannot
be written the state does not change, and the coordinator stops.

Requests of nodes are answered by :mod:`coordinator.desk`; what goes on beside the rounds (DHT
records, copies of states, old blobs) is in :mod:`coordinator.upkeep`, the closing of the accounts
after the last round in :mod:`coordinator.closing`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

from coordinator.cosigning import Cosigning
from coordinator.metrics import Metrics
from coordinator.sequencer import Sequencer
from coordinator.submission import Submissions
from ledger import entries
from ledger.heads import HeadStore
from protocol import assignment, messages, pseudogradient, rounds, wire
from protocol.blobs import BlobStore, disk_error
from protocol.codec import codec
from protocol.dsse import Envelope
from protocol.errors import ArtelError
from protocol.events import emit
from protocol.identity import Identity
from protocol.manifest import Manifest
from protocol.network import Host, short
from protocol.rounds import Phase, Presence, RunState
from protocol.state import Layout

log = logging.getLogger("artel.coordinator")

TICK_S = 0.25
Clock = Callable[[], float]


@dataclass
class Peer:
    """What a connected node last said of itself; owned by the coordinator."""

    report: messages.Report
    addresses: list[str]
    heard: float
    duty: tuple[object, ...] = ()
    version: int = 0
    beats: int = 0


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
        metrics: Metrics,
        clock: Clock = time.monotonic,
    ) -> None:
        self.manifest, self.run, self.layout = manifest, run, layout
        self.identity, self.host, self.ledger, self.blobs = identity, host, sequencer, blobs
        self.heads, self.metrics, self.clock = heads, metrics, clock
        self.cosigning = Cosigning(sequencer.store, heads, lambda: self.ledger.state, identity)
        self.submissions = Submissions(sequencer, heads, run, clock)
        self.rules = rules_of(manifest)
        self.codec = codec(manifest.config.exchange.codec)
        self.max_blob = pseudogradient.max_blob_bytes(layout, self.codec)
        self.tokens = assignment.assigned_tokens(manifest.config)
        self.peers: dict[str, Peer] = {}
        self.changed = asyncio.Condition()
        """Notified whenever the state, or what is known of a node, is new."""
        self.released = False
        """Whether nodes of a finished run may go; see :mod:`coordinator.upkeep`."""
        self.state = self._restored()
        self._split = assignment.train_split(manifest)
        self._lock = asyncio.Lock()  # one event at a time
        self._failure: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._shown: dict[str, Envelope] = {}  # accepted contributions of this attempt, by node
        self._votes: dict[str, Envelope] = {}  # state signatures of this round, by node
        self._phase_began = clock()

    def _restored(self) -> RunState:
        """The round state that the ledger implies; a coordinator that was killed goes on here."""
        fold = self.ledger.state
        state = RunState(
            Phase.WAITING,
            round=fold.round,
            attempt=0,
            base=fold.states[-1],
            since=self.clock(),
        )
        attempt = fold.attempt
        if attempt is None or attempt.round != fold.round:
            return state
        if attempt.phase == "applying":
            return replace(
                state,
                phase=Phase.APPLYING,
                attempt=attempt.attempt,
                members=tuple(sorted(attempt.accounts)),
                commitments=dict(attempt.commitments),
                revealed=frozenset(attempt.accepted),
                # They are awaited, as if all had just been heard of: without anybody to wait for
                # the attempt would fail at the first tick, before their next heartbeats.
                peers={peer: Presence(state.since, "") for peer in attempt.accepted},
            )
        return replace(state, attempt=attempt.attempt + 1)

    async def close_interrupted_attempt(self) -> None:
        """Record that the attempt which was under way when the coordinator stopped has failed."""
        attempt = self.ledger.state.attempt
        if attempt is not None and attempt.phase in ("training", "revealing"):
            emit(log, "round.interrupted", round=attempt.round, attempt=attempt.attempt)
            await self.ledger.append(
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
                await self.feed(rounds.Tick(self.clock()))
        await self._failure

    async def submit(self, data: bytes, who: str) -> tuple[int, str]:
        """Put an entry that a person signed into the ledger; see :class:`Submissions`."""
        return await self.submissions.submit(data, who)

    async def set_alias(self, data: bytes, who: str) -> None:
        """Keep, or erase, the name under which an account is shown."""
        await self.submissions.set_alias(data, who)

    async def tell(self) -> None:
        """Let everybody who waits for news look again."""
        async with self.changed:
            self.changed.notify_all()

    async def feed(self, event: rounds.Event, statement: Envelope | None = None) -> None:
        """Apply one event and everything that follows from it.

        :param statement: the signed statement behind a Revealed or StateSigned event
        :raises Refused: the event does not fit; nothing changed
        """
        async with self._lock:
            state, actions = rounds.step(self.rules, self.state, event)
            if actions and isinstance(actions[0], rounds.Refuse):
                raise wire.Refused(actions[0].reason, code=actions[0].code)
            try:
                if statement is not None and isinstance(event, rounds.Revealed):
                    await self._keep_shown(event.peer, statement)
                if statement is not None and isinstance(event, rounds.StateSigned):
                    self._votes[event.peer] = statement
                for action in actions:
                    await self._execute(action)
            except (ArtelError, OSError) as error:
                # The machine's decision is not durable, so nobody may act upon it.
                if isinstance(error, OSError):
                    error = disk_error(error, self.metrics.path.parent)
                if not self._failure.done():
                    self._failure.set_exception(error)
                raise error from None
            self.state = state
        if actions or not isinstance(event, rounds.Tick):
            await self.tell()

    async def _keep_shown(self, peer: str, statement: Envelope) -> None:
        """Record a contribution that holds; only a node's first in an attempt counts.

        A signer can make many signatures, and so many entry ids, of one statement; the fold knows
        the first alone.
        """
        if peer not in self._shown:
            await self.ledger.append(statement)
            self._shown[peer] = statement

    async def _execute(self, action: rounds.Action) -> None:
        """Make one decision durable."""
        sign, run = self.identity, self.run
        if isinstance(action, rounds.OpenRound):
            self._shown, self._votes = {}, {}
            cursor = self._next_cursor(len(action.members))
            opened = entries.round_opened(
                sign,
                run,
                round=action.round,
                attempt=action.attempt,
                base=action.base,
                cursor=cursor,
                members=action.members,
            )
            witnessed = self.cosigning.statement()
            await self.ledger.append(*([witnessed] if witnessed is not None else []), opened)
            metrics = self.metrics.of(action.round)
            metrics.members, metrics.seconds = len(action.members), {}
            self._phase_began = self.clock()
            emit(log, "round.opened", round=action.round, members=len(action.members))
        elif isinstance(action, rounds.CloseCommitments):
            await self.ledger.append(
                entries.round_committed(
                    sign,
                    run,
                    round=action.round,
                    attempt=action.attempt,
                    commitments=action.commitments,
                )
            )
            self._time_phase(action.round, "training")
        elif isinstance(action, rounds.CloseRound):
            await self._close_round(action)
        elif isinstance(action, rounds.AgreeState):
            envelope = entries.state_agreed(sign, run, round=action.round, root=action.root)
            for peer in action.signers:
                envelope = envelope.merged(self._votes[peer])
            await self.ledger.append(envelope)
            self._settle(action)
        elif isinstance(action, rounds.Drop):
            self.peers.pop(action.peer, None)
            emit(log, "node.dropped", node=short(action.peer), reason=action.reason)

    async def _close_round(self, action: rounds.CloseRound) -> None:
        accepted = [
            entries.Accepted(
                node=peer,
                entry=entries.entry_id(self._shown[peer].encode()),
                weight=self.tokens,
            )
            for peer in action.accepted
        ]
        await self.ledger.append(
            entries.round_closed(
                self.identity,
                self.run,
                round=action.round,
                attempt=action.attempt,
                accepted=accepted,
                rejected=action.rejected,
            )
        )
        metrics = self.metrics.of(action.round)
        metrics.accepted = len(accepted)
        metrics.blob_bytes = sum(_blob_bytes(self._shown[peer]) for peer in action.accepted)
        metrics.rejected = dict(action.rejected)
        self._time_phase(action.round, "revealing")
        emit(
            log,
            "round.closed" if accepted else "round.failed",
            round=action.round,
            accepted=len(accepted),
            rejected=", ".join(f"{short(p)}: {why}" for p, why in action.rejected.items()) or "-",
        )

    def _settle(self, action: rounds.AgreeState) -> None:
        """Numbers of the round that is over; the ledger has its facts already."""
        closed = action.round - 1
        self._time_phase(closed, "applying")
        metrics = self.metrics.of(closed)
        losses = [
            peer.report.loss
            for name, peer in self.peers.items()
            if name in action.signers and peer.report.loss is not None
        ]
        metrics.loss = sum(losses) / len(losses) if losses else None
        metrics.ended = time.time()
        self.metrics.save(closed)
        emit(
            log,
            "state.agreed",
            round=action.round,
            root=action.root[:12],
            signers=len(action.signers),
        )

    def _time_phase(self, round: int, phase: str) -> None:
        now = self.clock()
        self.metrics.of(round).seconds[phase] = milliseconds(now - self._phase_began)
        self._phase_began = now

    def _next_cursor(self, members: int) -> int:
        """Where the data of the round that opens begins; a repeated attempt uses the same again."""
        fold, config = self.ledger.state, self.manifest.config
        if fold.attempt is not None and fold.attempt.round == fold.round:
            cursor = fold.cursor
        else:
            cursor = assignment.next_cursor(self._split, fold.cursor, fold.members, config)
        windows = members * assignment.windows_per_member(config)
        return assignment.round_start(self._split, cursor, windows)


def rules_of(manifest: Manifest) -> rounds.Rules:
    """The round rules of a manifest."""
    config = manifest.config.rounds
    return rounds.Rules(
        total=config.total,
        min_nodes=config.min_nodes,
        max_nodes=config.max_nodes,
        quorum=config.quorum,
        deadline=config.deadline_s,
        grace=config.grace_s,
        reveal=config.reveal_s,
        settle=config.settle_s,
        heartbeat_timeout=config.heartbeat_timeout_s,
    )


def _blob_bytes(contribution: Envelope) -> int:
    body = entries.decode(contribution.encode()).body
    return body.size if isinstance(body, entries.Contribution) else 0


def milliseconds(seconds: float) -> float:
    """Seconds, rounded to the millisecond."""
    return round(seconds, 3)
