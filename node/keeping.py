"""What a node holds for others: slices of contributions that do not pass through the coordinator.

In a sharded round of a run with ``exchange.holders`` every member gives each slice of its
contribution to some others (:func:`protocol.assignment.holders`), before anybody is accepted. Who
combines or checks the slice has it then. What is taken is bounded by what a member owes; it becomes
ordinary cache, which the disk quota bounds.
"""

from __future__ import annotations

import asyncio
import contextlib

from artel.ledger.fold.shares import Attempt
from artel.node.session import Session
from artel.protocol import assignment, index_items, messages
from artel.protocol.errors import ArtelError
from artel.protocol.net import delivery, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host

BEHIND_S = 5.0
"""How long a member is waited for whose commitment this node's ledger does not have yet."""
LOOK_S = 0.2
GIVEN_AT_ONCE = 8


class Keeping:
    """The content service of a node: it serves what it has, and takes what members owe it.

    :param most: bytes of a whole contribution at most
    """

    def __init__(self, session: Session, most: int) -> None:
        self._session, self._most = session, most
        self._offers = delivery.Offers()

    async def answer(
        self, peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message | None:
        """One request of the content service."""
        store = self._session.blobs
        if isinstance(request, messages.GetItems):
            return await index_items.give(store, request, stream)
        if not isinstance(request, messages.Put) or request.fingerprints:
            return await delivery.serve_content(store, request, stream)
        owed = await self._owed(peer)
        self._offers.require(peer, request, owed, "contribution", self._most)
        if store.has(request.id):
            raise wire.Refused("this content is here already", code="present")
        await delivery.receive(store, request, stream, kind="contribution")
        return messages.Ok()

    async def _owed(self, peer: str) -> int:
        """How many blobs of a peer's contribution this node is to hold, itself included.

        :raises Refused: none
        """
        for _ in range(round(BEHIND_S / LOOK_S)):
            attempt = self._session.replica.state.attempt
            if attempt is not None and attempt.phase == "revealing" and peer in attempt.commitments:
                self._offers.begin(attempt.round, attempt.attempt)
                # How many slices there are follows from the model: never more than these.
                exchange = self._session.manifest.config.exchange
                slices = assignment.slices_of(exchange, len(attempt.accounts))
                if owed := self._held(attempt, peer, slices):
                    return owed
                break
            await asyncio.sleep(LOOK_S)
        raise wire.Refused("nothing is expected from this node now", code="too_early")

    def _held(self, attempt: Attempt, maker: str, slices: int) -> int:
        """How many numbers :func:`handed_out` has for this node; it is asked for each of them."""
        me, committed = self._session.identity.peer_id, sorted(attempt.commitments)
        if maker == me or me not in attempt.commitments:
            return 0
        held = assignment.held_by(committed, attempt.round, self._session.holders, me)
        ranks = (*range(slices), committed.index(maker))
        return sum(rank % len(committed) in held for rank in ranks)


def handed_out(attempt: Attempt, maker: str, slices: int, count: int) -> dict[str, list[int]]:
    """Who is given what of a contribution: peer id to numbers of slices; the index is the last.

    :param count: holders of each
    """
    committed = sorted(attempt.commitments)
    given = dict[str, list[int]]()
    ranks = [*range(slices), committed.index(maker)]  # the index goes by the rank of its maker
    for number, rank in enumerate(ranks):
        for peer in assignment.holders(committed, attempt.round, rank, count):
            if peer != maker:
                given.setdefault(peer, []).append(number)
    return given


async def hand_out(
    host: Host, store: BlobStore, blobs: list[str], given: dict[str, list[int]], limit_s: float
) -> list[str]:
    """Give holders what they are to hold.

    :param blobs: content ids by number
    :param given: peer id to those numbers
    :param limit_s: how long one of them may take
    :returns: what nobody has taken
    """
    gate, taken = asyncio.Semaphore(GIVEN_AT_ONCE), set[str]()

    async def give(peer: str, numbers: list[int]) -> None:
        mine = [blobs[number] for number in numbers]
        with contextlib.suppress(ArtelError, TimeoutError):
            async with gate, asyncio.timeout(limit_s):
                await delivery.push_all(host, store, peer, mine, kind="contribution")
                taken.update(mine)

    await asyncio.gather(*(give(peer, numbers) for peer, numbers in given.items()))
    return [blob for blob in blobs if blob not in taken]
