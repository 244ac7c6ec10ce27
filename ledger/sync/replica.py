"""A ledger kept in step with another one, and the service that lets others do the same.

A replica takes nothing on trust: each page must end in a tree head that the run's coordinators
signed and that is the root of what the replica holds plus the page; each entry is decoded, its
signatures are checked and the fold decides what it means.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from artel.ledger import entries
from artel.ledger.fold import alias
from artel.ledger.fold.replay import check_signatures, replay
from artel.ledger.fold.shares import FoldState, apply
from artel.ledger.store import finality
from artel.ledger.store.published import LostEntries, read_checkpoint_file
from artel.ledger.store.store import CHECKPOINT_NAME, LedgerStore
from artel.ledger.sync import fork
from artel.ledger.sync.bundled import fetch_bundled
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.source import ALIASES_PATH, CONFLICTS_PATH, FINAL_PATH
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.tiles import CHECKPOINT_PATH, Tile
from artel.protocol import canonical, messages
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, Unreachable, UsageError
from artel.protocol.net import wire
from artel.protocol.tasks import uninterrupted

if TYPE_CHECKING:
    from artel.ledger.store.heads import HeadStore
    from artel.protocol.net.host import Host

PAGE_ENTRIES = 256
PAGE_TIMEOUT_S = 60.0


class Replica:
    """This home's copy of a run's ledger: the store, and the fold over it (``state``).

    Make one with :meth:`open`. Owned by one daemon; :meth:`catch_up` may be awaited from several
    tasks and runs one at a time. ``state`` is changed in place, in the event loop, a whole page at
    a time: read it there.
    """

    def __init__(self, store: LedgerStore, state: FoldState) -> None:
        self.store = store
        self.state = state
        self._lock = asyncio.Lock()
        self._growth: list[asyncio.Event] = []

    @classmethod
    def open(cls, path: Path, run: str, heads: HeadStore | None = None) -> Replica:
        """Open or make the replica at ``path`` and replay it.

        :param heads: keeps the published head of a copy that is gone or has lost its end; what is
            fetched again then has to hold it (:func:`ledger.store.published.require_heads`)
        :raises LostEntries: without ``heads``, when it is gone or has lost its end
        :raises CheckFailed: when it is damaged
        :raises UsageError: when it belongs to another run
        """
        try:
            store = LedgerStore.open(path, create=True, run=run)
        except LostEntries:
            if heads is None:
                raise
            published = path.with_name(CHECKPOINT_NAME)
            heads.add_note(read_checkpoint_file(published))
            published.unlink()
            store = LedgerStore.open(path, create=True, run=run)
        return cls(store, replay(store.leaves()))

    def growth(self) -> asyncio.Event:
        """A new event that is set, from now on, whenever the replica has grown."""
        event = asyncio.Event()
        self._growth.append(event)
        return event

    async def catch_up(self, host: Host, peer: str, run: str, target: int = 0) -> None:
        """Take over what ``peer`` has beyond this copy, at least up to ``target`` entries.

        :raises SplitViewProven: a coordinator has signed another history than the one here
        :raises CheckFailed: the peer shows another history, it is shorter than ``target``, or what
            it has beyond this copy cannot be had from it: ask another one
        :raises Unreachable: the peer does not answer
        """
        async with self._lock:
            while not target or self.store.size < target:
                page, leaves = await fetch_page(host, peer, run, self.store.size)
                if not leaves:
                    await self._prove_fork(host, peer, run, page.note)
                    if finality.size_of(page.note) <= self.store.size:
                        break
                    # It has more, and no signed head near enough to end a page at.
                    leaves = await fetch_bundled(host, peer, run, self.store, page.note)
                try:
                    # Cancelled in between, store and fold would speak of different ledgers.
                    await uninterrupted(self._append(leaves, page.note, run))
                except CheckFailed:
                    await self._prove_fork(host, peer, run, page.note)
                    raise
                if not target and self.store.size >= page.size:
                    break
            if self.store.size < target:
                raise CheckFailed(
                    f"the peer announced {target} ledger entries and shows {self.store.size}"
                )

    async def _append(self, leaves: list[bytes], note: str, run: str) -> None:
        # What can fail comes first; a page is folded as a whole or not at all.
        page = await asyncio.to_thread(_decoded, leaves)
        if page[0].body.run != run and not self.store.size:
            raise CheckFailed("the peer shows the ledger of another run than the invite names")
        await asyncio.to_thread(self.store.append_replica, page, note)
        for entry in page:
            apply(self.state, entry)
        for event in self._growth:
            event.set()

    async def _prove_fork(self, host: Host, peer: str, run: str, note: str) -> None:
        """Raise SplitViewProven if the note is a coordinator's and not of our tree."""
        proof = None
        if self.store.size:
            with suppress(ArtelError):  # a forged or unproven head convicts nobody
                proof = await fork.examine(host, peer, run, self.store, note)
        if proof is not None:
            raise SplitViewProven(proof)


def _decoded(leaves: list[bytes]) -> list[entries.Entry]:
    """The entries of a page, their signatures checked on all cores.

    :raises DecodeError: one of them is no ledger entry
    """
    page = list(check_signatures([entries.decode(leaf) for leaf in leaves]))
    for entry in page:
        _ = entry.signers  # of a short page nobody has looked at them yet
    return page


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


Cosigned = Callable[[str, messages.Cosigned], Awaitable[None]]
"""``cosigned(peer, message)`` takes cosignatures, or refuses."""
Submit = Callable[[str, bytes], Awaitable[tuple[int, str] | None]]
"""``submit(peer, statement)`` returns the entry's index and a note; None: kept, but not sequenced
here."""
SetAlias = Callable[[str, bytes], Awaitable[None]]


class LedgerService:
    """Answers the ledger protocol from a store and a :class:`HeadStore`.

    The three callables are for whoever takes such requests; without them they are refused.

    :param state: the fold over all of the store; called in the event loop
    """

    def __init__(
        self,
        store: LedgerStore,
        heads: HeadStore,
        run: str,
        state: Callable[[], FoldState],
        *,
        cosigned: Cosigned | None = None,
        submit: Submit | None = None,
        set_alias: SetAlias | None = None,
    ) -> None:
        self._store, self._heads, self._run, self._state = store, heads, run, state
        self._cosigned, self._submit, self._set_alias = cosigned, submit, set_alias

    async def answer(
        self, peer: str, request: messages.Message, stream: wire.Stream
    ) -> messages.Message | None:
        """Answer one request of the ledger service (a :data:`protocol.net.wire.Handler`)."""
        if getattr(request, "run", "") not in ("", self._run):
            raise wire.Refused("this peer holds the ledger of another run", code="other_run")
        if isinstance(request, messages.GetEntries):
            await self._entries(request, stream)
            return None
        if isinstance(request, messages.GetCheckpoint):
            return await self.checkpoints()
        if isinstance(request, messages.GetResource):
            data = await asyncio.to_thread(self._resource, request.path, self._state())
            await wire.write_message(stream, messages.Resource(size=len(data)))
            await stream.write(data)
            return None
        if isinstance(request, messages.Cosigned):
            if self._cosigned is None:
                raise _not_here(request)
            await self._cosigned(peer, request)
            return await self.checkpoints()
        if isinstance(request, messages.Submit):
            if self._submit is None:
                raise _not_here(request)
            done = await self._submit(peer, request.statement)
            if done is None:
                return messages.Ok()
            return messages.Submitted(index=done[0], note=finality.fitting(done[1]))
        if isinstance(request, messages.SetAlias):
            if self._set_alias is None:
                raise _not_here(request)
            await self._set_alias(peer, request.statement)
            return messages.Ok()
        raise wire.Refused(f"the ledger service does not answer {request.KIND}", code="unknown")

    async def checkpoints(self) -> messages.Checkpoints:
        """The newest head, and the newest final one."""
        newest = await asyncio.to_thread(self._newest)
        final = await asyncio.to_thread(
            finality.final_note, self._store, self._heads, self._state()
        )
        return messages.Checkpoints(
            run=self._run, newest=finality.fitting(newest), final=finality.fitting(final)
        )

    async def _entries(self, request: messages.GetEntries, stream: wire.Stream) -> None:
        note, leaves, size = await asyncio.to_thread(_page, self._store, request.start)
        reply = messages.Entries(
            start=request.start, sizes=[len(leaf) for leaf in leaves], note=note, size=size
        )
        await wire.write_message(stream, reply)
        await stream.write(b"".join(leaves))

    def _newest(self) -> str:
        """The newest head, with the cosignatures that are known here."""
        note = finality.newest_note(self._store, self._heads)
        if not note:
            raise wire.Refused("the ledger here is still empty", code="not_here")
        return note

    def _resource(self, path: str, state: FoldState) -> bytes:
        if path == CHECKPOINT_PATH:
            return self._newest().encode()
        if path == FINAL_PATH:
            final = finality.final_note(self._store, self._heads, state)
            if not final:
                raise wire.Refused("nothing is final here yet", code="not_here")
            return final.encode()
        if path == ALIASES_PATH:
            return alias.write_table(self._heads.aliases())
        if path == CONFLICTS_PATH:
            return canonical.dumps(self._heads.conflicts())
        try:
            return self._store.tile(Tile.parse(path))
        except (DecodeError, UsageError) as error:
            raise wire.Refused(error.message, code="not_here") from None


def _not_here(request: messages.Message) -> wire.Refused:
    return wire.Refused(
        f"this peer does not take {request.KIND}",
        "send it to the run's coordinator",
        code="not_coordinator",
    )


def _page(store: LedgerStore, start: int) -> tuple[str, list[bytes], int]:
    note = store.note_between(start, start + PAGE_ENTRIES)
    if not note:
        return store.latest_note, [], store.size
    return note, list(store.leaves(start, parse_checkpoint(note).size)), store.size
