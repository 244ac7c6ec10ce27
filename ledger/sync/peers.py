"""The files of a log over libp2p: how a peer is asked for them, and one of a daemon's peers."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Sequence
from concurrent.futures import CancelledError, Future
from typing import TYPE_CHECKING

from artel.ledger.sync.source import CERTIFIED_PATH, TIMEOUT, NotFound, limit_of, text_of
from artel.ledger.tlog.tiles import CHECKPOINT_PATH
from artel.protocol import messages
from artel.protocol.errors import CheckFailed, DecodeError, Unreachable
from artel.protocol.net import wire

if TYPE_CHECKING:
    from artel.protocol.net.host import Host

BRING_TIMEOUT_S = 60.0
"""Seconds for an entry bundle, which can have 2 MiB, over a slow link."""
HEADS = (CERTIFIED_PATH, CHECKPOINT_PATH)
"""What a cosignature is answered with. The certified head first: a log that grows meanwhile
has then at least as large a newest one."""


async def ask_files(
    stream: wire.ByteStream, request: messages.Message, paths: Sequence[str]
) -> list[bytes | None]:
    """The files with which a request is answered; None for one that the peer does not have.

    :raises Refused: the peer says no to the request
    :raises CheckFailed: a file is longer than it can be
    :raises DecodeError: a reply is malformed
    """
    await wire.write_message(stream, request)
    return [await _file(stream, path) for path in paths]


async def _file(stream: wire.ByteStream, path: str) -> bytes | None:
    reply = await wire.read_message(stream)
    if isinstance(reply, messages.Refusal):
        if reply.code == "not_here":
            return None
        raise wire.refusal(reply)
    if not isinstance(reply, messages.File):
        raise DecodeError(f"the peer answered {reply.KIND}, which nobody asked for")
    if reply.size > limit_of(path):
        raise CheckFailed(f"{path} of {reply.size} bytes, at most {limit_of(path)} can be")
    return await stream.read_exactly(reply.size)


class Brought:
    """Files of a peer that are asked for together, and then read one by one."""

    name: str

    def __init__(self) -> None:
        self._brought: dict[str, bytes | None] = {}

    def get(self, path: str, skip: int = 0) -> bytes:
        """The content at ``path`` (see :class:`ledger.sync.source.TileSource`)."""
        if path not in self._brought:
            self.bring(path, skip=skip)
        data = self._brought.pop(path)
        if data is None:
            raise NotFound(f"{self.name} does not have {path}")
        return data

    def bring(self, *paths: str, skip: int = 0) -> None:
        """Ask for what :meth:`get` is asked for next, by one stream."""
        self._brought |= zip(paths, self._ask_for(paths, skip), strict=True)

    def forget(self) -> None:
        """Let go of what was brought, and not read."""
        self._brought.clear()

    def _ask_for(self, paths: Sequence[str], skip: int) -> list[bytes | None]:
        raise NotImplementedError


class PeerSource(Brought):
    """The files of a log as a peer of a daemon serves them.

    Made in the event loop that owns ``host``. :meth:`get` and :meth:`bring` are for one thread, the
    rest is for the loop.
    """

    def __init__(self, host: Host, peer: str, run: str) -> None:
        super().__init__()
        self.name = f"peer {peer[-8:]}"
        self.peer = peer
        self._host, self._run = host, run
        self._seconds, self._bytes = math.inf, math.inf  # that are left
        self._waited, self._since = 0.0, 0.0
        self._loop = asyncio.get_running_loop()
        self._asked: Future[list[bytes | None]] | None = None
        self._closed = False

    def limit(self, seconds: float = math.inf, bytes: float = math.inf) -> None:
        """So long it may take over all that :meth:`get` is asked for from now on, and so much of
        that it may be; what goes on between two files does not count."""
        self._seconds, self._bytes = seconds, bytes

    def _ask_for(self, paths: Sequence[str], skip: int) -> list[bytes | None]:
        if self._seconds <= 0:
            raise Unreachable(f"{self.name} did not give what it shows in the time that it has")
        if self._bytes <= 0:
            raise CheckFailed(
                f"{self.name} shows more than is read before it is proven to be true",
                "ask another holder of the ledger",
            )
        work = self.files(*paths, skip=skip, timeout=min(BRING_TIMEOUT_S, self._seconds))
        began = self._since = time.monotonic()
        self._asked = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            if self._closed:
                self._asked.cancel()
            found = self._asked.result(2 * BRING_TIMEOUT_S)
            self._bytes -= sum(map(len, filter(None, found)))
            return found
        except (CancelledError, TimeoutError):
            self._asked.cancel()
            raise Unreachable(f"{paths[-1]} did not arrive from {self.name}") from None
        finally:
            self._since, took = 0.0, time.monotonic() - began
            self._waited, self._seconds = self._waited + took, self._seconds - took

    @property
    def waited(self) -> float:
        """Seconds that its answers took by now, the one that is being waited for too."""
        since = self._since
        return self._waited + (time.monotonic() - since if since else 0.0)

    def close(self) -> None:
        """Whoever waits in the thread is not answered any more."""
        self._closed = True
        if self._asked is not None:
            self._asked.cancel()

    async def files(
        self, *paths: str, skip: int = 0, timeout: float = TIMEOUT
    ) -> list[bytes | None]:
        """Several files by one stream; None for one that the peer does not have.

        :param skip: leave so many bytes at the beginning of the last one out
        :param timeout: seconds for all of them
        :raises ArtelError: as :func:`ask_files`, or the peer does not answer
        """
        request = messages.Get(run=self._run, paths=list(paths), skip=skip)
        return await self.ask(request, paths, timeout)

    async def cosign(self, note: str) -> list[str]:
        """Show a cosigned head, and learn the newest heads; raises as :meth:`files`."""
        request = messages.Cosigned(run=self._run, note=note)
        return notes_in(await self.ask(request, HEADS, TIMEOUT))

    async def ask(
        self, request: messages.Message, paths: Sequence[str], timeout: float
    ) -> list[bytes | None]:
        """The files with which a request is answered, as :func:`ask_files`.

        :raises Unreachable: the peer does not answer
        """
        try:
            async with asyncio.timeout(timeout):
                async with self._host.open(self.peer, wire.LEDGER) as stream:
                    return await ask_files(stream, request, paths)
        except TimeoutError:
            raise Unreachable(f"{paths[-1]} did not arrive from {self.name} in time") from None


def notes_in(files: Sequence[bytes | None]) -> list[str]:
    """The texts of the signed heads among these files.

    :raises CheckFailed: one of them is no text
    """
    return [text_of(data, "a signed tree head") for data in files if data is not None]
