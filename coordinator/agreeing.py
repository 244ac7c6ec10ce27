"""What a coordinator finds out about a state before it is agreed on; :mod:`protocol.rounds` waits.

Somebody has to hold it: a signer of each root that may be agreed on is asked for two of its chunks.
And the coordinator has to come to the same root itself, while the run rests on it, when members
with standing differ, in the round or outside, and now and then by chance.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from artel.coordinator.availability import Availability
from artel.coordinator.peer import holders_of
from artel.coordinator.recomputing import Order, Recomputer
from artel.coordinator.service import Coordinator
from artel.ledger import entries
from artel.ledger.entries.records import Attempt
from artel.protocol import round_state
from artel.protocol.errors import ArtelError
from artel.protocol.events import emit
from artel.protocol.exchange import pseudogradient
from artel.protocol.identity import short_peer
from artel.protocol.net import delivery, wire
from artel.protocol.round_state import Phase

log = logging.getLogger("artel.coordinator")

HOLDS_S = 30.0
"""In which a signer has to give two chunks, 1 MiB each, and the list of all."""
HEDGE_S = 3.0
"""After which another signer of the same root is asked as well."""
OVERDUE_S = HOLDS_S / 2
"""Who was asked so long ago has not given it when another one does: what ends the waiting spares
nobody else what keeping the round waiting costs."""
ASKED_AT_ONCE = 8
MOST_ASKED = 4 * ASKED_AT_ONCE
"""Together with those that are not waited for any more."""
RETRY_S = 2.0

Place = tuple[int, int]
"""Round and attempt."""


@dataclass
class _Request:
    """One signer that is being asked."""

    root: str
    waited_for: bool
    """Not one that was slow before."""
    began: float = field(default_factory=lambda: asyncio.get_running_loop().time())
    limit: asyncio.Timeout = field(default_factory=lambda: asyncio.timeout(HOLDS_S))

    def younger(self, seconds: float) -> bool:
        return asyncio.get_running_loop().time() - self.began < seconds


class Agreeing:
    """Background work for one coordinator; :meth:`run` never returns."""

    def __init__(self, coordinator: Coordinator, recomputer: Recomputer) -> None:
        self._core, self._recomputer = coordinator, recomputer
        self._availability = Availability(coordinator)
        self._made = ""  # root that was computed here last
        self._place: Place | None = None  # what the next two are about
        self._asked: set[tuple[str, str]] = set()  # signer and root
        self._asking: dict[asyncio.Task[None], _Request] = {}  # the oldest first
        self._slow: set[str] = set()  # signers that did not give one in time

    async def run(self) -> None:
        """Find out what the rounds wait for, until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._recompute())
            group.create_task(self._ask_signers())

    def _agreeing_on(self) -> Place | None:
        """The attempt whose state is being agreed on."""
        state = self._core.state
        return (state.round, state.attempt) if state.phase is Phase.APPLYING else None

    # --- the coordinator's own root ---

    async def _recompute(self) -> None:
        core, worker = self._core, self._recomputer
        try:
            while True:
                async with core.changed:
                    await core.changed.wait_for(
                        lambda: self._owed() is not None or worker.running != self._rests_on_us()
                    )
                if (place := self._owed()) is not None:
                    await self._come_to(place)
                elif self._rests_on_us():
                    await self._start()
                else:
                    await worker.close()
        finally:
            await worker.close()

    def _rests_on_us(self) -> bool:
        """Whether all states to come have to be computed here; else a child is made for one."""
        fold = self._core.ledger.state
        asked = fold.rests_on == "coordinator" or self._core.recompute == 1
        return asked and fold.round < self._core.rules.total

    async def _start(self) -> None:
        try:
            await self._recomputer.start()
        except ArtelError as error:
            emit(log, "state.not_recomputed", logging.ERROR, reason=error.message)
            await asyncio.sleep(RETRY_S)

    def _owed(self) -> Place | None:
        return self._agreeing_on() if self._core.state.owes_root else None

    async def _come_to(self, place: Place) -> None:
        """Compute the state of an attempt, and tell the rounds."""
        core, attempt = self._core, self._core.ledger.state.attempt
        assert attempt is not None
        try:
            root = await self._computed(attempt)
        except (ArtelError, OSError) as error:
            emit(log, "state.not_recomputed", logging.ERROR, round=place[0], reason=str(error))
            await asyncio.sleep(RETRY_S)
            return
        with contextlib.suppress(wire.Refused):  # the attempt is over
            await core.feed(round_state.Recomputed(core.clock(), *place, root))

    async def _computed(self, attempt: Attempt) -> str:
        """The root of the attempt's state, whose file is in the store from then on."""
        core, blobs, base = self._core, self._core.blobs, self._core.state.base
        wanted = delivery.Wanted(base, holders_of(base, core.peers), core.state_bytes, "state")
        path = await delivery.fetch(core.host, blobs, wanted)
        if self._availability.needed:
            await self._availability.have_all(attempt)
        given = [
            (node, tokens, await self._blobs(attempt, node))
            for node, tokens in attempt.accepted.items()
        ]
        members = len(attempt.accounts)
        sharded = core.work.topology_of(members) == "sharded"
        out = blobs.unfinished(base)
        try:
            total = core.ledger.state.rules_at(attempt.round).total
            order = Order(str(path), base, given, members if sharded else 0, total, str(out))
            root = await self._recomputer.compute(order)
            if self._made and self._made not in core.ledger.state.states[-2:]:
                blobs.drop(self._made)  # of an attempt that failed
            blobs.label("state", root)
            blobs.adopt(root, out)
        finally:
            out.unlink(missing_ok=True)
        self._made = root
        return root

    async def _blobs(self, attempt: Attempt, node: str) -> list[str]:
        """The files of a contribution's numbers, in order; they were checked before it counted.

        What was shown to whoever led before, or has rotted here, is with those who fetched it.
        """
        core = self._core
        body = entries.decode(core.ledger.store.leaf(attempt.shown[node].index)).body
        assert isinstance(body, entries.Contribution)
        paths = await self._had([(body.blob, body.size)], attempt)
        if core.work.topology_of(len(attempt.accounts)) == "sharded":
            index = paths[0].read_bytes()
            listed = pseudogradient.open_index(
                index, round=body.round, base=body.base, payload=body.payload
            )
            paths = await self._had([(item.blob, item.size) for item in listed], attempt)
        return list(map(str, paths))

    async def _had(self, listed: Sequence[tuple[str, int]], attempt: Attempt) -> list[Path]:
        """The files of blobs, with the bytes that each may have."""
        core, holders = self._core, list(attempt.accounts)
        wanted = [delivery.Wanted(blob, holders, size, "contribution") for blob, size in listed]
        return await delivery.fetch_all(core.host, core.blobs, wanted)

    # --- signers ---

    async def _ask_signers(self) -> None:
        """Ask signers of each root for it: the weightiest root first, more when that takes long."""
        core = self._core
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    wait = HEDGE_S if self._asking else None
                    async with asyncio.timeout(wait), core.changed:
                        await core.changed.wait_for(lambda: self._next() is not None)
                self._begin_anew()
                while (signer := self._next()) is not None:
                    self._make_room()
                    self._asked.add(signer)
                    request = _Request(signer[1], signer[0] not in self._slow)
                    asking = self._ask(signer[0], request, self._place or (-1, -1))
                    task = asyncio.create_task(asking)
                    self._asking[task] = request
                    task.add_done_callback(lambda task: self._asking.pop(task, None))
        finally:
            self._forget()

    def _begin_anew(self) -> None:
        if self._agreeing_on() != self._place:
            self._place = self._agreeing_on()
            self._forget()

    def _forget(self) -> None:
        self._asked.clear()
        for task in self._asking:
            task.cancel()
        self._asking.clear()

    def _weights(self) -> dict[str, tuple[int, int]]:
        """Of each root: the standing and the number of the members that signed it."""
        state = self._core.state
        standing, heads = Counter[str](), Counter[str]()
        for peer in self._signers():
            standing[state.votes[peer].root] += state.weights.get(peer, 0)
            heads[state.votes[peer].root] += 1
        return {root: (standing[root], heads[root]) for root in heads}

    def _signers(self) -> list[str]:
        state = self._core.state
        return [p for p in state.accepted if p in state.votes and p not in state.not_held]

    def _next(self) -> tuple[str, str] | None:
        """A signer that is to be asked now, and the root that it signed.

        One of a root that weighs more than all that are asked for takes no turn after others: many
        can sign roots that do not exist before anybody can have computed the right one.
        """
        state, place = self._core.state, self._agreeing_on()
        if place is None or state.own:
            return None  # no other root counts, and the coordinator has its own
        asked = self._asked if place == self._place else set()
        waited_for = [r.root for r in self._asking.values() if r.waited_for and r.younger(HEDGE_S)]
        late = sum(not request.waited_for for request in self._asking.values())
        weights = self._weights()
        heaviest = max((weights.get(root, (0, 0)) for root in waited_for), default=(0, 0))
        full = len(waited_for) >= ASKED_AT_ONCE

        def rank(peer: str) -> tuple[int, int, int]:
            standing, heads = weights[state.votes[peer].root]
            return -standing, -heads, -state.weights.get(peer, 0)

        for peer in sorted(self._signers(), key=rank):
            root = state.votes[peer].root
            if root in state.held or root in waited_for or (peer, root) in asked:
                continue
            room = not full or weights[root] > heaviest
            if late < ASKED_AT_ONCE if peer in self._slow else room:
                return peer, root
        return None

    def _make_room(self) -> None:
        """Where too many are asked at once, the lightest root's oldest request gives way."""
        if len(self._asking) >= MOST_ASKED:
            weights = self._weights()
            asking = list(self._asking)
            task = min(asking, key=lambda task: weights.get(self._asking[task].root, (0, 0)))
            task.cancel()
            del self._asking[task]

    async def _ask(self, peer: str, request: _Request, place: Place) -> None:
        core, held = self._core, True
        self._slow.add(peer)  # until it has given one in time
        try:
            async with request.limit:
                await delivery.require_held(
                    core.host, peer, request.root, core.state_bytes, "state"
                )
        except (ArtelError, TimeoutError) as error:
            held = False
            reason = getattr(error, "message", "it took too long")
            emit(log, "state.not_held", logging.WARNING, node=short_peer(peer), reason=reason)
        if held and request.younger(HEDGE_S):
            self._slow.discard(peer)
        if (task := asyncio.current_task()) is not None:
            self._asking.pop(task, None)  # before others look who is asked
        if held:
            await self._end_overdue()
        with contextlib.suppress(wire.Refused):  # the attempt is over
            await core.feed(round_state.Held(core.clock(), peer, *place, request.root, held))

    async def _end_overdue(self) -> None:
        """Let all that were asked long ago have failed, before the attempt can be over."""
        overdue = {t: r for t, r in self._asking.items() if not r.younger(OVERDUE_S)}
        for request in overdue.values():
            request.limit.reschedule(request.began)
        if overdue:
            await asyncio.wait(overdue)
