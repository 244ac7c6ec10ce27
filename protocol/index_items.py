"""What somebody has contributed to a few slices, without the index of all of them.

In a round of a thousand members an index has 72 kB, and whoever combines a slice needs one item of
each. A holder gives it with its inclusion proof under the contribution's ``payload``, which stands
in the ledger: so the digest of the numbers is certain, whoever gives it; content id and size are
hints, until what they lead to has these numbers.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Mapping, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import NamedTuple

from artel.protocol import messages
from artel.protocol.assignment import MAX_SLICES
from artel.protocol.errors import ArtelError, DecodeError, UsageError
from artel.protocol.events import emit
from artel.protocol.exchange.pseudogradient import (
    HEADER_BYTES,
    IndexItem,
    ProvingIndex,
    begins_like,
    index_bytes,
    open_proven,
    payload_digest,
)
from artel.protocol.identity import short_peer
from artel.protocol.merkle import HASH_BYTES
from artel.protocol.net import delivery, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.round_state import NO_NUMBERS
from artel.protocol.tasks import together

log = logging.getLogger("artel.network")

ANSWER_S = 5.0
"""Until the next holder is asked."""
AT_ONCE = 32


def worth(wanted: int, count: int) -> bool:
    """Whether so many items are fewer bytes than the index of ``count`` slices."""
    return wanted <= messages.MAX_ITEMS and items_bytes(wanted, count) < index_bytes(count)


def items_bytes(wanted: int, count: int) -> int:
    """Of so many items of an index of ``count`` slices with their proofs, at most."""
    item = index_bytes(1) - index_bytes(0)
    return wanted * (item + HASH_BYTES * (count - 1).bit_length())


async def give(
    store: BlobStore, request: messages.GetItems, stream: wire.ByteStream
) -> messages.Items:
    """Answer a request of the content service.

    :raises Refused: the index is not here, it is none, or it has no such slice
    """
    delivery.count_as(stream, "contribution")
    path = store.path(request.id)
    try:
        if path is None or (store.size_of(request.id) or 0) > index_bytes(MAX_SLICES):
            raise FileNotFoundError
        index = await asyncio.to_thread(_opened, path)
        return messages.Items(items=[index.proven(slice) for slice in request.slices])
    except (OSError, DecodeError, UsageError):
        said = f"there is no index {request.id[:12]}… with such slices here"
        raise wire.Refused(said, code="not_here") from None


@lru_cache(maxsize=8)
def _opened(path: Path) -> ProvingIndex:
    """Of the file's content, which never changes: it is asked for by everybody at the same time."""
    return ProvingIndex(path.read_bytes())


class Listed(NamedTuple):
    """The index of a contribution, of which items are asked for."""

    blob: str
    """Its content id; like ``payload`` from the ledger."""
    payload: str
    holders: Sequence[str]
    """Who may have it; the next one is asked when one does not answer or is not right."""


async def ask(
    host: Host,
    listed: Mapping[str, Listed],
    slices: Sequence[int],
    like: Sequence[IndexItem],
    seconds: float,
) -> dict[tuple[str, int], IndexItem]:
    """What indexes say of some slices, by node and slice; nothing of those that nobody gives.

    :param listed: by node
    :param like: what another index of the round says: these have as many slices, and nobody is
        believed that says one of them had more than twice the bytes
    :param seconds: who has not answered then is not waited for
    """
    request, gate = partial(messages.GetItems, slices=[*slices]), asyncio.Semaphore(AT_ONCE)
    found: dict[tuple[str, int], IndexItem] = {}

    async def of(node: str) -> None:
        blob, payload, holders = listed[node]
        for peer in holders if payload != NO_NUMBERS else ():
            try:
                async with (
                    gate,
                    asyncio.timeout(ANSWER_S),
                    host.open(peer, wire.CONTENT, kind="contribution") as stream,
                ):
                    reply = await wire.ask(stream, request(id=blob))
                if not isinstance(reply, messages.Items) or len(reply.items) != len(slices):
                    raise DecodeError("another number of items than was asked for")
                given = zip(slices, reply.items, strict=True)
                items = {(node, j): open_proven(item, j, len(like), payload) for j, item in given}
                if any(item.size > 2 * like[j].size for (_, j), item in items.items()):
                    raise DecodeError("a slice with too many bytes")
                found.update(items)
                return
            except (ArtelError, TimeoutError) as error:
                reason = getattr(error, "message", "it took too long")
                said = {"peer": short_peer(peer), "node": short_peer(node), "reason": reason}
                emit(log, "items.not_given", logging.DEBUG, **said)

    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await together(map(of, listed))
    return found


def right(
    store: BlobStore, items: Mapping[tuple[str, int], IndexItem], like: Sequence[IndexItem]
) -> dict[tuple[str, int], IndexItem]:
    """Those of some items that lead to the numbers of their slice: what they name is here.

    :param items: by node and slice
    :param like: index of the round; its blobs, as far as they are here, show how one of their slice
        begins
    """

    def read(blob: str) -> bytes:
        path = store.path(blob)
        return b"" if path is None else path.read_bytes()

    heads = {slice: read(like[slice].blob)[:HEADER_BYTES] for slice in {j for _, j in items}}
    found = {}
    for (node, slice), item in items.items():
        data, head = read(item.blob), heads[slice]
        numbers = payload_digest(memoryview(data)[HEADER_BYTES:])
        if numbers == item.payload and (not head or begins_like(data, head)):
            found[node, slice] = item
    return found
