"""A ledger kept in step with another one, and the service that lets others do the same.

A replica takes nothing on trust: each page must end in a tree head that the run's coordinators
signed and that is the root of what the replica holds plus the page; each entry is decoded, its
signatures are checked and the fold decides what it means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from ledger import entries
from ledger.checkpoint import parse_checkpoint
from ledger.shares import FoldState, fold
from ledger.store import LedgerStore
from protocol import messages, wire
from protocol.errors import CheckFailed, DecodeError, Unreachable
from protocol.tasks import uninterrupted

if TYPE_CHECKING:
    from protocol.network import Host

PAGE_ENTRIES = 256
PAGE_TIMEOUT_S = 60.0


class Replica:
    """This home's copy of a run's ledger: the store, and the fold over it (``state``).

    Make one with :meth:`open`. Owned by one daemon; :meth:`catch_up` may be awaited from several
    tasks and runs one at a time.
    """

    def __init__(self, store: LedgerStore, state: FoldState) -> None:
        self.store = store
        self.state = state
        self._lock = asyncio.Lock()

    @classmethod
    def open(cls, path: Path, run: str) -> Replica:
        """Open or make the replica at ``path`` and replay it.

        :raises CheckFailed: when it is damaged
        :raises UsageError: when it belongs to another run
        """
        store = LedgerStore.open(path, create=True, run=run)
        return cls(store, fold(map(entries.decode, store.leaves())))

    async def catch_up(self, host: Host, peer: str, run: str, target: int = 0) -> None:
        """Take over what ``peer`` has beyond this copy, at least up to ``target`` entries.

        :raises CheckFailed: the peer shows another history, or it is shorter than ``target``
        :raises Unreachable: the peer does not answer
        """
        async with self._lock:
            while not target or self.store.size < target:
                page, leaves = await fetch_page(host, peer, run, self.store.size)
                if not leaves:
                    break
                # Cancelled in between, store and fold would speak of different ledgers.
                await uninterrupted(self._append(leaves, page.note, run))
                if not target and self.store.size >= page.size:
                    break
            if self.store.size < target:
                raise CheckFailed(
                    f"the peer announced {target} ledger entries and shows {self.store.size}"
                )

    async def _append(self, leaves: list[bytes], note: str, run: str) -> None:
        decoded = [entries.decode(leaf) for leaf in leaves]
        if decoded[0].body.run != run and not self.store.size:
            raise CheckFailed("the peer shows the ledger of another run than the invite names")
        await asyncio.to_thread(self.store.append_replica, leaves, note)
        self.state = await asyncio.to_thread(fold, decoded, self.state)


def contributions(store: LedgerStore, ids: Iterable[str]) -> list[entries.Contribution]:
    """The bodies of the contribution entries with these ids, in the same order.

    :raises CheckFailed: when an id names no contribution of this ledger
    """
    bodies: list[entries.Contribution] = []
    for entry in ids:
        index = store.index_of(entry)
        body = entries.decode(store.leaf(index)).body if index is not None else None
        if not isinstance(body, entries.Contribution):
            raise CheckFailed(f"the ledger has no contribution with the id {entry[:16]}…")
        bodies.append(body)
    return bodies


async def fetch_page(
    host: Host, peer: str, run: str, start: int
) -> tuple[messages.Entries, list[bytes]]:
    """One page of a peer's ledger from entry ``start`` on; not yet checked against anything.

    :raises DecodeError: the reply is malformed
    :raises Unreachable: the peer does not answer
    """
    try:
        async with asyncio.timeout(PAGE_TIMEOUT_S), host.open(peer, wire.LEDGER) as stream:
            reply = await wire.ask(stream, messages.GetEntries(run=run, start=start))
            if not isinstance(reply, messages.Entries) or reply.start != start:
                raise DecodeError(f"unexpected reply {reply.KIND} to get_entries")
            return reply, [await stream.read_exactly(size) for size in reply.sizes]
    except TimeoutError:
        raise Unreachable(
            f"the ledger of {peer[-8:]} did not arrive in {PAGE_TIMEOUT_S:.0f} s"
        ) from None


async def serve_ledger(
    store: LedgerStore, run: str, request: messages.Message, stream: wire.Stream
) -> messages.Message | None:
    """Answer one request of the ledger service."""
    if not isinstance(request, messages.GetEntries):
        raise wire.Refused(f"the ledger service does not answer {request.KIND}", code="unknown")
    if request.run != run:
        raise wire.Refused("this peer holds the ledger of another run", code="other_run")
    note, leaves, size = await asyncio.to_thread(_page, store, request.start)
    reply = messages.Entries(
        start=request.start, sizes=[len(leaf) for leaf in leaves], note=note, size=size
    )
    await wire.write_message(stream, reply)
    await stream.write(b"".join(leaves))
    return None


def _page(store: LedgerStore, start: int) -> tuple[str, list[bytes], int]:
    note = store.note_between(start, start + PAGE_ENTRIES)
    if not note:
        return store.latest_note, [], store.size
    return note, list(store.leaves(start, parse_checkpoint(note).size)), store.size
