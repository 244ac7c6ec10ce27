"""Streams that peers open: each is given to a handler, or closed at once.

What becomes of a stream is said before anything is spent on it, so that nobody's waits for what is
done for another one. Importing this module imports hivemind.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import socket
from collections.abc import Awaitable, Callable, Coroutine

from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure, P2PDaemonError

from artel.protocol.errors import DecodeError, Unreachable
from artel.protocol.events import emit
from artel.protocol.messages import Message
from artel.protocol.net import wire
from artel.protocol.net.limits import network_of
from artel.protocol.net.slots import FIRST_S, Callers, Slot, Slots
from artel.protocol.net.streams import Stream

log = logging.getLogger("artel.network")

STREAM_ERRORS = (ControlFailure, P2PDaemonError, OSError, EOFError)
"""TimeoutError is an OSError, IncompleteReadError an EOFError."""
END_S = 5.0
"""For what is being answered to end, when all ends."""


class Reception:
    """The streams that peers opened to one host.

    :param stream: makes a stream of a socket, for ``(socket, peer, service)``
    :param disconnect: ends the connections with the peer of this id (bytes), or raises one of
        :data:`STREAM_ERRORS`
    """

    def __init__(
        self,
        callers: Callers,
        stream: Callable[[socket.socket, str, str], Stream],
        disconnect: Callable[[bytes], Awaitable[None]],
    ) -> None:
        self.handlers: dict[str, wire.Handler] = {}
        """By service; streams of others are closed."""
        self.slots = Slots(callers.of, self._shut_out)
        self._stream, self._disconnect = stream, disconnect
        self._tasks: set[asyncio.Task[None]] = set()
        self._leaving: set[str] = set()
        """Peers whose connections are being ended."""
        self._closing = False

    def take(self, service: str, peer_id: bytes, address: str, sock: socket.socket) -> None:
        """Begin to answer the one request of a stream, or close it (a ``gateway.OnStream``)."""
        handler = self.handlers.get(service)
        stream = self._stream(sock, _name_of(peer_id), service)
        stream.network = network_of(address)
        slot = self.slots.take(stream) if handler is not None else None
        if handler is None or slot is None:
            sock.close()
            return
        stream.stranger = not slot.caller.is_member
        self._begin(self._answer(handler, slot, service))

    async def close(self) -> None:
        """End what is being answered."""
        self._closing = True
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=END_S)

    def _begin(self, work: Coroutine[object, object, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _answer(self, handler: wire.Handler, slot: Slot, service: str) -> None:
        stream, peer = slot.stream, slot.stream.peer

        async def asked(peer: str, request: Message, stream: wire.ByteStream) -> Message | None:
            if slot.stream.given_up:  # before it was read for the first time
                raise wire.Refused("too many streams", "try again in a few seconds", code="busy")
            slot.asked = True
            return await handler(peer, request, stream)

        try:
            await wire.answer(peer, stream, asked, FIRST_S)
            slot.answered = True
            await stream.closed_by_peer()
        except (*STREAM_ERRORS, Unreachable, DecodeError) as error:
            emit(log, "stream.broken", logging.DEBUG, peer=peer, service=service, error=error)
        except asyncio.CancelledError:
            # Nobody awaits this task; asyncio would print its cancellation as an error.
            if not self._closing:
                raise
        finally:
            self.slots.give_back(slot)
            stream.close()

    def _shut_out(self, peer: str) -> None:
        if peer not in self._leaving:
            self._leaving.add(peer)
            self._begin(self._end_connections(peer))

    async def _end_connections(self, peer: str) -> None:
        try:
            with contextlib.suppress(*STREAM_ERRORS):
                await self._disconnect(PeerID.from_base58(peer).to_bytes())
        finally:
            self._leaving.discard(peer)


@functools.lru_cache(maxsize=1024)
def _name_of(peer_id: bytes) -> str:
    return str(PeerID(peer_id))
