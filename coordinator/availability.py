"""Contributions that do not pass through the coordinator: whether they can be had.

In a sharded round of a run with ``exchange.holders`` each member gives the slices of its
contribution to their holders (:func:`protocol.assignment.holders`). The coordinator takes the index
of it, has a few holders show a few slices before it counts, and gets for itself only what somebody
lacks later, or what it has to compute with.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence

from artel.coordinator import intake
from artel.coordinator.service import Coordinator
from artel.ledger import entries
from artel.ledger.entries.records import Attempt
from artel.protocol import assignment, messages, round_state
from artel.protocol.errors import ArtelError, Unreachable
from artel.protocol.events import emit
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.pseudogradient import IndexItem
from artel.protocol.exchange.shape import Shape
from artel.protocol.identity import short_peer
from artel.protocol.members import distrusted
from artel.protocol.net import delivery, wire
from artel.protocol.net.delivery import Wanted
from artel.protocol.round_state import Phase
from artel.protocol.tasks import together

log = logging.getLogger("artel.coordinator")

SAMPLES = 4
"""Slices of each contribution that are asked for, drawn by a lot that nobody else sees."""
SHOW_S = 10.0
"""In which a holder has to show a slice."""
KEPT_BACK = 1 / 16
"""Part of ``settle_s`` that what a node lacks may take, beside what comes of it, and three times as
much at the most: so who keeps it back is found out while the round still has time."""
LEAST_S = 5.0
"""However short that is."""
SAMPLED_AT_ONCE, FETCHED_AT_ONCE = 32, 4
LACKS_EACH = 8
"""Slices that a node may say in an attempt that it lacks."""


class Availability:
    """Looks after what the members of one coordinator's rounds hold."""

    def __init__(self, coordinator: Coordinator) -> None:
        self._core = coordinator
        self._sampling = asyncio.Semaphore(SAMPLED_AT_ONCE)
        self._fetching = asyncio.Semaphore(FETCHED_AT_ONCE)
        self._place = (-1, -1)  # the attempt that the next three are about
        self._lacking: Counter[str] = Counter()  # by node
        self._looks: set[asyncio.Future[None]] = set()  # under way
        self._withheld: set[str] = set()  # whose contributions cannot be had

    @property
    def needed(self) -> bool:
        """Whether the members of the round under way hold its contributions."""
        core = self._core
        sharded = core.work.topology_of(len(core.state.members)) == "sharded"
        return sharded and core.manifest.config.exchange.holders > 0

    def _holders(self, node: str, slice: int) -> list[str]:
        """Who was given a slice of a node's contribution, in an order of chance."""
        count = self._core.manifest.config.exchange.holders
        committed = sorted(self._core.state.commitments)
        found = assignment.holders(committed, self._core.state.round, slice, count)
        return random.sample([peer for peer in found if peer != node], k=len(set(found) - {node}))

    async def require(
        self, body: entries.Contribution, shape: Shape, pieces: Sequence[IndexItem]
    ) -> None:
        """Have holders show some of a contribution's slices, or get all of them for a while after
        newcomers have kept some back: of these at most one sits in a round then.

        :param pieces: what its index says of all of them
        :raises NotCounted: one is shown by nobody, or is not what the index says
        """
        if distrusted(self._core.state, body.node):
            await self._get_all(body, shape, pieces)
            return
        numbers = random.SystemRandom().sample(range(len(pieces)), k=min(SAMPLES, len(pieces)))

        async def look(number: int) -> None:
            piece = pieces[number]
            data = await self._shown(body.node, number, piece)
            await asyncio.to_thread(intake.check_piece, body, shape, number, piece, data)

        # At once: one after the other, holders that are gone would take longer than the round has.
        async with self._sampling:
            await together(map(look, numbers))

    async def _get_all(
        self, body: entries.Contribution, shape: Shape, pieces: Sequence[IndexItem]
    ) -> None:
        core = self._core
        async with self._sampling:
            await self._bring({body.node: pieces}, self._patience(), core.rules.reveal)
            for number, piece in enumerate(pieces):
                if (path := core.blobs.path(piece.blob)) is None:
                    detail = f"nobody gives its slice {number}"
                    raise intake.NotCounted(round_state.MISSING_REVEAL, detail)
                data = await asyncio.to_thread(path.read_bytes)
                await asyncio.to_thread(intake.check_piece, body, shape, number, piece, data)

    async def _shown(self, node: str, slice: int, piece: IndexItem) -> bytes:
        """The first chunk of a slice, from one of its holders; or else all of it, from its maker.

        :raises NotCounted: nobody shows it
        """
        core = self._core
        for peer in self._holders(node, slice) if not core.blobs.has(piece.blob) else ():
            try:
                async with asyncio.timeout(SHOW_S):
                    return await delivery.require_held(
                        core.host, peer, piece.blob, piece.size, "contribution"
                    )
            except (ArtelError, TimeoutError) as error:
                reason = getattr(error, "message", "it took too long")
                said = {"node": short_peer(peer), "slice": slice, "reason": reason}
                emit(log, "slice.not_shown", logging.DEBUG, **said)
        try:
            async with asyncio.timeout(SHOW_S):
                return await self._obtain([node], piece)
        except (ArtelError, TimeoutError):
            detail = f"nobody shows its slice {slice}"
            raise intake.NotCounted(round_state.MISSING_REVEAL, detail) from None

    async def _obtain(
        self, peers: Sequence[str], piece: IndexItem, patience: float = math.inf
    ) -> bytes:
        """A whole slice, which is here from then on.

        :raises ArtelError: none of these peers gives it
        """
        core = self._core
        wanted = Wanted(piece.blob, peers, piece.size, "contribution")
        path = await delivery.fetch(core.host, core.blobs, wanted, patience=patience)
        return await asyncio.to_thread(path.read_bytes)

    async def lacks(self, peer: str, request: messages.Lacks) -> None:
        """A node cannot get a slice, or says that it is not right: it is got and looked at here. If
        that fails, the attempt is over.

        :raises Refused: it is not this node's to say, or nobody gives the slice
        """
        core, state = self._core, self._core.state
        place = (request.round, request.attempt)
        if state.phase is not Phase.APPLYING or place != (state.round, state.attempt):
            raise wire.Refused("this attempt is over", code="stale")
        if not self.needed or not {peer, request.node} <= {*state.accepted}:
            raise wire.Refused("this node has no slices to combine", code="not_member")
        self._begin(place)
        self._lacking[peer] += 1
        if self._lacking[peer] > LACKS_EACH:
            raise wire.Refused("too many tries in this round", code="too_many")
        attempt = core.ledger.state.attempt
        if attempt is None:  # agreed on at this moment
            raise wire.Refused("this attempt is over", code="stale")
        await self._have(attempt, request.node, [request.slice])

    async def have_all(self, attempt: Attempt) -> None:
        """Get what all accepted nodes have contributed.

        :raises ArtelError: something cannot be had; the attempt is over
        """
        self._begin((attempt.round, attempt.attempt))
        listed = {node: (await self._listed(attempt, node))[1] for node in attempt.accepted}
        await self._bring(listed, max(LEAST_S, self._core.rules.settle / 4))
        looks = (self._have(attempt, node, range(len(of))) for node, of in listed.items())
        for error in await asyncio.gather(*looks, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error

    async def _bring(
        self,
        listed: Mapping[str, Sequence[IndexItem]],
        patience: float,
        seconds: float | None = None,
    ) -> None:
        """Get what can be had of all slices of these nodes' contributions, in this time if any."""
        wanted = [
            Wanted(piece.blob, [node, *self._holders(node, number)], piece.size, "contribution")
            for node, pieces in listed.items()
            for number, piece in enumerate(pieces)
        ]
        await delivery.fetch_some(self._core.host, self._core.blobs, wanted, seconds, patience)

    def _begin(self, place: tuple[int, int]) -> None:
        if self._place != place:
            self._place = place
            self._lacking.clear()
            self._withheld.clear()

    def _patience(self) -> float:
        return max(LEAST_S, self._core.rules.settle * KEPT_BACK)

    async def _listed(
        self, attempt: Attempt, node: str
    ) -> tuple[entries.Contribution, list[IndexItem]]:
        """What an accepted node has contributed; its index was checked before that counted."""
        body = entries.decode(self._core.ledger.store.leaf(attempt.shown[node].index)).body
        assert isinstance(body, entries.Contribution)
        core, most = self._core, pseudogradient.MAX_INDEX_BYTES
        # What was shown to whoever led before is with its maker and others.
        wanted = Wanted(body.blob, [node, *attempt.accepted], most, "contribution")
        path = await delivery.fetch(core.host, core.blobs, wanted)
        index = await asyncio.to_thread(path.read_bytes)
        return body, pseudogradient.open_index(
            index, round=body.round, base=body.base, payload=body.payload
        )

    async def _have(self, attempt: Attempt, node: str, slices: Sequence[int]) -> None:
        """Get slices of a contribution, and end the attempt if that cannot be.

        :raises Refused: it cannot; all of whom that is known by then are struck together, so that
            many cost one attempt
        """
        core, (body, pieces) = self._core, await self._listed(attempt, node)
        shape, place = core.shape(len(attempt.accounts)), (attempt.round, attempt.attempt)
        if slices and slices[-1] >= len(pieces):
            raise wire.Refused("the round has no such slice", code="malformed")
        reason, look = "", asyncio.get_running_loop().create_future()
        self._looks.add(look)
        try:
            for number in slices:
                reason = reason or await self._missing(body, shape, number, pieces[number])
            if reason and self._place == place:
                self._withheld.add(node)
        finally:
            self._looks.discard(look)
            look.set_result(None)
        if not reason:
            return
        if self._looks:
            await asyncio.wait(self._looks, timeout=self._patience())
        if self._place == place:
            named = frozenset(self._withheld)
            await core.feed(round_state.Withheld(core.clock(), *place, named))
        raise wire.Refused("nobody gives that slice as it should be", code=reason)

    async def _missing(
        self, body: entries.Contribution, shape: Shape, number: int, piece: IndexItem
    ) -> str:
        """Get one slice. Why that cannot be; "" when it is here."""
        node = body.node
        async with self._fetching:
            if node in self._withheld:
                return round_state.MISSING_REVEAL
            try:
                holders = [node, *self._holders(node, number)]
                data = await self._obtain(holders, piece, self._patience())
                await asyncio.to_thread(intake.check_piece, body, shape, number, piece, data)
            except (intake.NotCounted, Unreachable) as error:
                reason = getattr(error, "reason", round_state.MISSING_REVEAL)
                said = {"node": short_peer(node), "slice": number, "reason": reason}
                emit(log, "contribution.withheld", logging.WARNING, **said)
                return str(reason)
        return ""
