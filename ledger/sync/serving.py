"""What a home serves of its log: its files by their paths, and what it takes in over libp2p."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from artel.ledger.entries.documents import FOLDER, named_by
from artel.ledger.fold import alias
from artel.ledger.fold.shares import FoldState
from artel.ledger.store import finality
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.reader import LedgerReader
from artel.ledger.sync import leadership
from artel.ledger.sync.client import home_view
from artel.ledger.sync.peers import HEADS
from artel.ledger.sync.share_proof import CreditFiles
from artel.ledger.sync.source import (
    ALIASES_PATH,
    CERTIFIED_PATH,
    CONFLICTS_PATH,
    SEAL_PATH,
    TERMS_PATH,
    NotFound,
    Service,
)
from artel.ledger.tlog.tiles import CHECKPOINT_PATH, Tile
from artel.protocol import canonical, messages
from artel.protocol.errors import DecodeError, UsageError
from artel.protocol.net import wire
from artel.protocol.net.slots import Caller, Rank

OTHER_RUN = "other_run"
"""The code of a refusal: it is not the run that is served here."""
Cosigned = Callable[[str, messages.Cosigned], Awaitable[None]]
"""``cosigned(peer, message)`` takes cosignatures, or refuses."""
Take = Callable[[str, bytes], Awaitable[object]]
"""``take(source, statement)`` takes a signed statement, or refuses; see
:func:`protocol.net.wire.source_of`."""


def caller(state: FoldState, peer: str) -> Caller:
    """What the ledger knows of a peer that calls."""
    account = state.account_of(peer)
    seated = state.attempt is not None and peer in state.attempt.accounts
    if seated or state.standing_of(peer):
        return Caller(Rank.KNOWN, account)
    return Caller(Rank.REGISTERED if account else Rank.STRANGER, account)


class Served:
    """The files of a home's log (a :class:`ledger.sync.source.TileSource`), for any transport.

    :param heads: None where none are kept
    :param state: the fold over all of the store
    :param seal: an elector's newest seal, empty for none
    """

    def __init__(
        self,
        store: LedgerReader,
        heads: HeadStore | None,
        state: Callable[[], FoldState],
        seal: Callable[[], bytes] = bytes,
    ) -> None:
        self.name = str(store.path)
        self._store = store
        self._files: dict[str, Callable[[str], bytes]] = {  # by the first part of the path
            CHECKPOINT_PATH: lambda _: finality.newest_note(store, heads).encode(),
            CERTIFIED_PATH: lambda _: finality.certified_note(store, heads, state()).encode(),
            ALIASES_PATH: lambda _: alias.write_table(heads.aliases() if heads else {}),
            CONFLICTS_PATH: lambda _: canonical.dumps(heads.conflicts() if heads else []),
            SEAL_PATH: lambda _: seal(),
            TERMS_PATH: lambda _: leadership.said_by(state().terms),
            "credit": CreditFiles(store, state, partial(finality.of_home, store, heads)).get,
            "tile": self._tile,
            FOLDER: self._document,
        }

    def get(self, path: str, skip: int = 0) -> bytes:
        """The content at ``path``.

        :raises NotFound: there is nothing
        :raises CheckFailed: the ledger here is damaged
        """
        read = self._files.get(path.partition("/")[0])
        data = read(path) if read is not None else b""
        if not data:
            raise NotFound(f"there is no {path[:100]} here")
        return data[skip:]

    def _document(self, path: str) -> bytes:
        name = named_by(path)
        try:
            return self._store.document(name) if name else b""
        except UsageError as error:
            raise NotFound(error.message) from None

    def _tile(self, path: str) -> bytes:
        try:
            return self._store.tile(Tile.parse(path))
        except (DecodeError, UsageError) as error:
            raise NotFound(error.message) from None


class HomeHolder(Served):
    """The home that a person named: a :class:`ledger.sync.source.Holder` on this machine.

    :raises UsageError: there is no ledger in it
    :raises CheckFailed: it is damaged
    """

    def __init__(self, home: Path) -> None:
        self._open = ExitStack()
        view = self._open.enter_context(home_view(home))
        super().__init__(view.log, view.heads, lambda: view.state)
        self.name = str(home)

    def send(self, service: Service, run: str, statement: bytes) -> None:
        raise UsageError("a home takes nothing in", "name a node or a coordinator with --from")

    def close(self) -> None:
        self._open.close()


class LedgerService:
    """Answers the ledger protocol.

    The three callables are for whoever takes such requests; without them they are refused.

    :param state: the fold over all of the store
    """

    def __init__(
        self,
        store: LedgerReader,
        heads: HeadStore,
        run: str,
        state: Callable[[], FoldState],
        *,
        cosigned: Cosigned | None = None,
        submit: Take | None = None,
        set_alias: Take | None = None,
        seal: Callable[[], bytes] = bytes,
    ) -> None:
        self._run, self._cosigned = run, cosigned
        self._taking = {messages.Submit: submit, messages.SetAlias: set_alias}
        self.files = Served(store, heads, state, seal)

    async def answer(
        self, peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message | None:
        """Answer one request of the ledger service (a :data:`protocol.net.wire.Handler`)."""
        if getattr(request, "run", "") not in ("", self._run):
            raise wire.Refused("this peer holds the ledger of another run", code=OTHER_RUN)
        if isinstance(request, messages.Get):
            await self._send(stream, request.paths, request.skip)
            return None
        if isinstance(request, messages.Cosigned):
            if self._cosigned is None:
                raise _not_here(request)
            await self._cosigned(peer, request)
            await self._send(stream, HEADS)
            return None
        if isinstance(request, messages.Submit | messages.SetAlias):
            take = self._taking[type(request)]
            if take is None:
                raise _not_here(request)
            await take(wire.source_of(peer, stream), request.statement)
            return messages.Ok()
        raise wire.Refused(f"the ledger service does not answer {request.KIND}", code="unknown")

    async def _send(self, stream: wire.ByteStream, paths: Sequence[str], skip: int = 0) -> None:
        for number, path in enumerate(paths, start=1):
            try:
                known = skip if number == len(paths) else 0
                data = await asyncio.to_thread(self.files.get, path, known)
            except NotFound as error:
                refusal = messages.Refusal.of("not_here", error.message)
                await wire.write_message(stream, refusal)
                continue
            await wire.write_message(stream, messages.File(size=len(data)))
            await stream.write(data)


def _not_here(request: messages.Message) -> wire.Refused:
    return wire.Refused(
        f"this peer does not take {request.KIND}",
        "send it to the run's coordinator",
        code=messages.NOT_COORDINATOR,
    )
