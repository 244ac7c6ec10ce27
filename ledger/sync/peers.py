"""A peer of a daemon as a source of tiles, over the daemon's own libp2p host."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from artel.ledger.sync.source import NotFound
from artel.protocol import messages
from artel.protocol.errors import DecodeError, Unreachable
from artel.protocol.net import wire

if TYPE_CHECKING:
    from artel.protocol.net.host import Host

RESOURCE_TIMEOUT_S = 20.0


class HostSource:
    """The files of a log as a peer serves them (``get_resource``), for use in threads.

    Make one in the event loop that owns ``host``.
    """

    def __init__(self, host: Host, peer: str, run: str) -> None:
        self.name = f"peer {peer[-8:]}"
        self._host, self._peer, self._run = host, peer, run
        self._loop = asyncio.get_running_loop()

    def get(self, path: str, limit: int) -> bytes:
        """The content at ``path`` (see :class:`ledger.sync.source.TileSource`)."""
        asked = asyncio.run_coroutine_threadsafe(self.fetch(path, limit), self._loop)
        try:
            return asked.result(RESOURCE_TIMEOUT_S + 10)
        except TimeoutError:
            asked.cancel()
            raise Unreachable(f"{path} did not arrive from {self.name}") from None
        except wire.Refused as refusal:
            raise NotFound(refusal.message) from None

    async def fetch(self, path: str, limit: int) -> bytes:
        """The same from within the event loop.

        :raises Refused: the peer does not have that
        :raises DecodeError: the reply is malformed, or longer
        :raises Unreachable: the peer does not answer
        """
        try:
            async with (
                asyncio.timeout(RESOURCE_TIMEOUT_S),
                self._host.open(self._peer, wire.LEDGER) as stream,
            ):
                reply = await wire.ask(stream, messages.GetResource(run=self._run, path=path))
                if not isinstance(reply, messages.Resource):
                    raise DecodeError(f"unexpected reply {reply.KIND} to get_resource")
                if reply.size > limit:
                    raise DecodeError(f"{path} of {reply.size} bytes, at most {limit} allowed")
                return await stream.read_exactly(reply.size)
        except TimeoutError:
            raise Unreachable(
                f"{path} of {self.name} did not arrive in {RESOURCE_TIMEOUT_S:.0f} s"
            ) from None
