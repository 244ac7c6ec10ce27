"""The desk: answers what nodes ask of a coordinator, and turns it into events for the rounds."""

from __future__ import annotations

import asyncio
import bisect
import contextlib
import hashlib
import itertools
import logging
import time
from collections.abc import Iterable
from functools import lru_cache
from weakref import WeakValueDictionary

from artel.coordinator import intake, recovery
from artel.coordinator.availability import Availability
from artel.coordinator.peer import Peer
from artel.coordinator.puts import Puts
from artel.coordinator.returning import say_diverged
from artel.coordinator.service import Coordinator
from artel.coordinator.trials import Trials
from artel.ledger import entries
from artel.ledger.entries import Entry, reasons
from artel.ledger.entries.reasons import explain
from artel.ledger.fold import shares
from artel.ledger.sync.serving import LedgerService, caller
from artel.protocol import messages, options, repeated_work, round_state
from artel.protocol.duties import Duty, directive
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.events import emit
from artel.protocol.identity import peer_id_of, short_peer
from artel.protocol.net import wire
from artel.protocol.net.limits import RateLimits
from artel.protocol.net.slots import Caller, Rank
from artel.protocol.round_state import Phase

log = logging.getLogger("artel.coordinator")

COMINGS_MINUTE, COMINGS_AT_ONCE = 1, 5
"""How often the log says that a node has come, and then that it has gone."""
ADDRESSES_TOLD = 4
"""Addresses of each other node in a directive."""


class Desk:
    """Serves the control, content and ledger services for one coordinator."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._core = coordinator
        self._puts = Puts(coordinator)
        self._availability = Availability(coordinator)
        self._trials = Trials(coordinator)
        self._revealing = WeakValueDictionary[str, asyncio.Lock]()  # by peer
        self._comings = RateLimits(COMINGS_MINUTE, COMINGS_AT_ONCE, clock=coordinator.clock)
        keys = map(bytes.fromhex, coordinator.manifest.coordinators)
        self._standbys = {peer_id_of(key) for key in keys}
        self._ledger = LedgerService(
            coordinator.ledger.store,
            coordinator.heads,
            coordinator.run,
            lambda: coordinator.ledger.state,
            cosigned=self._cosigned,
            submit=lambda source, statement: coordinator.submissions.submit(statement, source),
            set_alias=lambda source, statement: coordinator.submissions.set_alias(
                statement, source
            ),
        )

    async def open(self) -> None:
        """Begin to answer."""
        host = self._core.host
        host.admit(self._caller)
        await host.serve(wire.CONTROL, self._control)
        await host.serve(wire.CONTENT, self._puts.answer)
        await host.serve(wire.LEDGER, self._ledger.answer)

    def _caller(self, peer: str) -> Caller:
        """Members come before strangers, and so do those who stand by."""
        stands_by = peer in self._standbys
        return Caller(Rank.KNOWN) if stands_by else caller(self._core.ledger.state, peer)

    async def _cosigned(self, peer: str, request: messages.Cosigned) -> None:
        self._core.witnessing.require(peer)
        await recovery.require_newest(self._core, peer, request.note)
        await self._core.witnessing.take(peer, request)

    async def _control(
        self, peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message | None:
        core = self._core
        if isinstance(request, messages.Probe):
            left = request.size
            while left:
                left -= len(await stream.read_exactly(min(left, 1 << 16)))
            return messages.Ok()
        if getattr(request, "run", core.run) != core.run:
            raise wire.Refused(
                "this coordinator serves another run", "ask the organiser", code="other_run"
            )
        if isinstance(request, messages.Hello):
            await recovery.look_at(core, peer)
            return await self._hello(peer, request, wire.source_of(peer, stream))
        if isinstance(request, repeated_work.Repeated):
            await self._trials.answered(peer, request, wire.source_of(peer, stream))
            return messages.Ok()
        if peer not in core.ledger.state.nodes:
            raise wire.Refused("this node has not been admitted", "say hello", code="unknown_node")
        now = core.clock()
        if isinstance(request, messages.Heartbeat):
            return await self._heartbeat(peer, request)
        if isinstance(request, messages.Where):
            return messages.There(peers=self._told(request.peers))
        if isinstance(request, messages.Commit):
            await core.feed(
                round_state.Committed(now, peer, request.round, request.attempt, request.commitment)
            )
        elif isinstance(request, messages.Reveal):
            # One of a peer at a time: each has holders asked, and may have to wait for them.
            async with self._revealing.setdefault(peer, asyncio.Lock()):
                await self._reveal(peer, request)
        elif isinstance(request, messages.Aggregated):
            await self._aggregated(peer, request)
        elif isinstance(request, messages.Accuse):
            await self._accuse(peer, request)
        elif isinstance(request, messages.Lacks):
            await self._availability.lacks(peer, request)
        elif isinstance(request, messages.SignedState):
            await self._signed_state(peer, request)
        elif isinstance(request, messages.HandBack):
            known = core.state.handed_back
            await core.feed(round_state.HandedBack(now, peer, request.round, request.attempt))
            if peer not in known:
                emit(log, "round.handed_back", node=short_peer(peer), reason=request.reason)
        elif isinstance(request, messages.Leave):
            await core.feed(round_state.Left(now, peer))
            if (gone := core.peers.pop(peer, None)) is not None and gone.told:
                emit(log, "node.left", node=short_peer(peer))
        else:
            raise wire.Refused(f"{request.KIND} is not for a coordinator", code="unknown")
        return messages.Ok()

    async def _hello(
        self, peer: str, request: messages.Hello, source: str
    ) -> messages.Welcome | repeated_work.Trial:
        core = self._core
        statements, account = intake.registration(peer, request.statements)
        if any(core.ledger.store.index_of(entry.id) is None for entry in statements):
            core.submissions.greet(source)
        if not await asyncio.to_thread(lambda: all(entry.signers for entry in statements)):
            raise CheckFailed("a signature of the registration does not verify")
        new = next((entry for entry in statements if not self._said_before(entry)), None)
        if new is not None:
            intake.require(core.ledger.state, new)
            if trial := await self._trials.asked(peer, account, source):
                return trial  # nothing of it is recorded before it has passed
        for entry in statements:
            if not self._said_before(entry):
                await self._admit(source, entry, self._trials.passed(peer, account))
        bound = core.ledger.state.account_of(peer)
        if not bound or ("node" in [entry.kind for entry in statements] and bound != account):
            raise wire.Refused(
                "this node is not bound to an account yet", "register it", code="unknown_node"
            )
        reachable = await core.host.dial_back(peer, request.addresses)
        return messages.Welcome(
            clock=time.time(), reachable=reachable, payload_bytes=core.payload_bytes
        )

    def _said_before(self, entry: Entry) -> bool:
        """Whether a statement of a registration is in the ledger, and its reply got lost."""
        fold, body = self._core.ledger.state, entry.body
        bound = isinstance(body, entries.Node) and fold.account_of(body.node) == body.account
        return bound or shares.check(fold, entry) == reasons.DUPLICATE

    async def _admit(self, source: str, entry: Entry, passed: bool) -> None:
        """Put one statement of a registration into the ledger, if it counts.

        :param passed: the node has done a trial for it
        """
        core, body = self._core, entry.body
        await core.submissions.add(entry, source, passed=passed)
        if isinstance(body, entries.Node):
            emit(log, "node.admitted", node=short_peer(body.node), account=body.account[:12])

    async def _heartbeat(self, peer: str, request: messages.Heartbeat) -> messages.Directive:
        core = self._core
        if peer not in core.peers:
            await recovery.look_at(core, peer)
        now = core.clock()
        report = request.report
        known = core.peers.get(peer)
        if known is None:
            # Versions of a coordinator that was started again must differ from the old ones.
            version = int(time.time() * 1000) % 2**40
            known = Peer(report, [], now, version=version, instance=request.instance)
            core.peers[peer] = known
            known.told = not self._comings.take(peer)
            if known.told:
                emit(log, "node.joined", node=short_peer(peer), nodes=len(core.peers))
        if not known.speaks(request.instance):
            raise wire.Refused(
                "another process runs with this node's key, and was started later",
                "stop one of the two; a copy of a home needs a node key of its own: join with an "
                "empty home and --account FILE, this home's account.key",
                code="replaced",
            )
        told = [address for address in request.addresses if _dialable(peer, address)]
        known.report, known.addresses, known.heard = report, told[:ADDRESSES_TOLD], now
        known.sealed = max(known.sealed, request.sealed)
        known.beats = mine = known.beats + 1
        if (found := report.validation) is not None and found.round in known.evaluates:
            held = core.ledger.state.states[found.round :]
            # The node may have gone on since. It has signed the state's root: of another one with
            # its number, of before the run went back, nothing is taken.
            if report.state_root in held and core.losses.heard(core.ledger.state, peer, found):
                core.metrics.evaluated(found)
                await say_diverged(core)
        # Who was convicted gets no seat any more, as if it were about to leave.
        goes = report.leaving or self._barred(peer)
        await core.feed(round_state.Seen(now, peer, report.state_root, goes))
        patience = min(request.patience, self._patience())
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(patience):
                # A newer heartbeat of the same node has taken over when the numbers differ.
                while self._version(peer, known) == request.seen and known.beats == mine:
                    known.news.clear()
                    await known.news.wait()
        return self._directive(peer, known, request.seen)

    def _barred(self, peer: str) -> bool:
        fold = self._core.ledger.state
        return fold.accounts[fold.account_of(peer)].barred

    def _version(self, peer: str, known: Peer) -> int:
        """A number that changes whenever the duty of this peer does."""
        core = self._core
        duty = self._duty(peer)
        # Of a finished run only the ledger still changes; nodes are to see and to cosign that.
        size = core.ledger.store.size if core.state.phase is Phase.FINISHED else 0
        slices = self._slices() if core.state.phase is Phase.APPLYING else ()
        place = (core.state.round, core.state.attempt, size, slices, core.asks_seal)
        key = (duty.task, duty.root, *place)
        if key != known.duty:
            known.duty = key
            known.version += 1
        return known.version

    def _slices(self) -> tuple[bool, int]:
        """Of a sharded round: whether all slices are recorded, and how many are called wrong."""
        core, attempt = self._core, self._core.ledger.state.attempt
        if attempt is None:
            return False, 0
        wanted = len(core.shape(len(attempt.accounts)).slices)
        return len(attempt.slices) >= wanted, len(attempt.wrong)

    def _duty(self, peer: str) -> Duty:
        core = self._core
        duty = directive(core.rules, core.state, peer, core.clock())
        if duty.task == "stop" and not core.released:
            return Duty("wait", "the run is being closed", duty.root)
        if core.asks_seal:
            return Duty("wait", "another coordinator is about to lead", duty.root)
        return duty

    def _directive(self, peer: str, known: Peer, seen: int) -> messages.Directive:
        core = self._core
        version = self._version(peer, known)
        duty = self._duty(peer)
        evaluates = self._evaluates(peer)
        if evaluates:
            known.evaluates.add(core.state.round)
        return messages.Directive(
            version=version,
            task=duty.task,
            round=core.state.round,
            attempt=core.state.attempt,
            root=duty.root,
            remaining=duty.remaining,
            ledger_size=core.ledger.store.size,
            reason=duty.reason[:300],
            evaluate=evaluates,
            peers=self._neighbours(peer) if version != seen else {},
            patience=self._patience(),
            seal=core.asks_seal,
        )

    def _patience(self) -> float:
        """How long a heartbeat without news is kept back."""
        longest = min(messages.MOST_PATIENCE_S, self._core.rules.heartbeat_timeout / 3)
        return min(longest, max(messages.PATIENCE_S, len(self._core.peers) / messages.BEATS_S))

    def _neighbours(self, peer: str) -> dict[str, list[str]]:
        """Where nodes are, as many as fit; members of the round first, and of these others for each
        node. Whoever needs others asks."""
        core = self._core
        members = [name for name in core.state.members if name in core.peers] or [*core.peers]
        place = bisect.bisect(members, peer) if core.state.members else 0
        names = dict.fromkeys([*members[place:], *members[:place], *core.peers])
        return self._told(names)

    def _told(self, names: Iterable[str]) -> dict[str, list[str]]:
        """Where the first of these are that are here, as many as fit into a message."""
        core = self._core
        room = min(messages.Directive.LIMIT, messages.There.LIMIT) - 4 * messages.KIB
        found: dict[str, list[str]] = {}
        here = (name for name in names if name in core.peers)
        for name in itertools.islice(here, messages.TOLD):
            addresses = core.peers[name].addresses
            room -= len(name) + 4 + sum(len(address) + 3 for address in addresses)
            if room < 0:
                break
            found[name] = addresses
        return found

    def _evaluates(self, peer: str) -> bool:
        """Whether a node is to evaluate the state that the round starts from."""
        state = self._core.state
        fold = self._core.ledger.state
        if state.phase is Phase.FINISHED or self._core.losses.everybody(fold):
            return peer in state.members
        return peer == evaluator(self._core.run, state.round, state.members)

    async def _reveal(self, peer: str, request: messages.Reveal) -> None:
        core = self._core
        state = core.state
        if peer in state.revealed:
            return  # the first reply got lost
        self._puts.require_reveals(peer)

        def revealed(fault: str = "") -> round_state.Revealed:
            return round_state.Revealed(core.clock(), peer, state.round, state.attempt, fault)

        try:
            entry, blobs = await intake.contribution(
                core.ledger.state,
                peer,
                request.statement,
                core.shape(len(state.members)),
                core.blobs,
                core.fingerprints,
                self._availability.require if self._availability.needed else None,
            )
            await core.feed(revealed(), entry)
        except intake.NotCounted as error:
            if error.reason == reasons.DUPLICATE:
                return  # the one that it showed before is in the ledger by now
            await core.feed(revealed(error.reason))
            said = {"node": short_peer(peer), "reason": error.reason, "detail": error.detail}
            emit(log, "contribution.rejected", logging.WARNING, **said)
            raise wire.Refused(
                f"the contribution does not count: {error.detail}", code=error.reason
            ) from None
        assert isinstance(entry.body, entries.Contribution)
        self._puts.claim(*blobs, entry.body.chain)

    async def _signed_state(self, peer: str, request: messages.SignedState) -> None:
        core = self._core
        known = {*core.state.accepted, *core.state.outside}
        if core.state.phase is Phase.APPLYING and peer not in known:
            return  # its word counts for nothing; its next heartbeat says what it holds
        vote, signature = await intake.vote(peer, request.statement)
        if vote.run != core.run:
            raise DecodeError("the vote is about another run")
        attempt = core.ledger.state.attempt
        if vote.wrong and (attempt is None or not attempt.wrong.keys() >= set(vote.wrong)):
            raise wire.Refused(explain(reasons.UNKNOWN_SLICE), code=reasons.UNKNOWN_SLICE)
        # Whoever counts credit otherwise has another ledger, or another version.
        attempt = core.ledger.state.current(vote.round - 1, vote.attempt, "applying")
        if attempt is not None and vote.credits != attempt.credits.root:
            raise wire.Refused(explain(reasons.WRONG_CREDITS), code=reasons.WRONG_CREDITS)
        said = peer, vote.round - 1, vote.attempt, vote.root, vote.wrong
        event = round_state.StateSigned(core.clock(), *said, frozenset(request.accused))
        await core.feed(event, signature)

    async def _aggregated(self, peer: str, request: messages.Aggregated) -> None:
        core = self._core
        entry = await self._signed(peer, request.statement)
        body = entry.body
        if not isinstance(body, entries.Aggregate) or body.node != peer:
            raise DecodeError("not an aggregate of this node")
        if not shares.check(core.ledger.state, entry):
            await self._check_slice(body)
        await core.record(entry)
        self._puts.claim(body.blob)

    async def _check_slice(self, body: entries.Aggregate) -> None:
        """Whether the blob of a recorded slice is here, and one of that slice."""
        core, state = self._core, self._core.state
        shape = core.shape(len(state.members))
        if body.slices != len(shape.slices):
            raise wire.Refused(
                f"this round has {len(shape.slices)} slices, not {body.slices}",
                code=reasons.UNKNOWN_SLICE,
            )
        try:
            await asyncio.to_thread(
                intake.check_slice, shape, state.round, state.base, body, core.blobs
            )
        except intake.NotCounted as error:
            raise wire.Refused(f"not that slice: {error.detail}", code=error.reason) from None

    async def _accuse(self, peer: str, request: messages.Accuse) -> None:
        entry = await self._signed(peer, request.statement)
        body = entry.body
        accusing = isinstance(body, entries.SliceWrong | entries.StateWrong | entries.JuryAnswer)
        if not accusing or getattr(body, "node", "") != peer:
            raise DecodeError("not an accusation by this node, nor an answer to one")
        if not await self._core.record(entry):
            return
        said = {"node": short_peer(peer)}
        if isinstance(body, entries.SliceWrong):
            emit(log, "slice.called_wrong", logging.WARNING, **said, slice=body.slice)
        elif isinstance(body, entries.StateWrong):
            emit(log, "state.called_wrong", logging.WARNING, **said, state=body.state)
        elif isinstance(body, entries.JuryAnswer):
            emit(log, "state.checked", logging.WARNING, **said, root=body.root[:12])

    async def _signed(self, peer: str, statement: bytes) -> Entry:
        """A statement about this run, signed by this node alone."""
        entry = await intake.opened(statement, by=peer)
        if entry.body.run != self._core.run:
            raise DecodeError("the statement is about another run")
        return entry


@lru_cache(maxsize=4096)
def _dialable(peer: str, address: str) -> bool:
    """Whether others may be told that this peer is there: the form is right, and names no other."""
    try:
        options.announce(address.removesuffix(f"/p2p/{peer}"))
    except ValueError:
        return False
    return True


@lru_cache(maxsize=8)
def evaluator(run: str, round: int, members: tuple[str, ...]) -> str:
    """The member that evaluates the state which a round starts from; "" without members.

    Each heartbeat asks who it is, and drawing the lot looks at everybody.
    """

    def lot(peer: str) -> bytes:
        return hashlib.sha256(f"{run}/{round}/{peer}".encode()).digest()

    return min(members, key=lot, default="")
