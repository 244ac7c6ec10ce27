"""The network daemon's socket protocol for streams: open one to a peer, be handed those of peers.

Only what :class:`protocol.net.host.Host` needs of it: hivemind's own client reads through buffered
readers of 64 KiB, which costs more than the network on a fast link. Importing this module imports
hivemind.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import ipaddress
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any

from google.protobuf import proto
from google.protobuf.message import DecodeError as BadProtobuf
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr as DaemonMultiaddr

from artel.protocol.events import emit
from artel.protocol.tasks import within

log = logging.getLogger("artel.network")

MAX_REPLY_BYTES = 1 << 16
"""The daemon's replies to us have some hundred bytes."""
ANSWER_S = 10.0
"""The daemon answers a command, or says whose stream it hands over, within this many seconds."""
_BACKLOG = 256

_IP4, _IP6 = 4, 41  # codes of a multiaddr's parts, each followed by the address

OnStream = Callable[[str, bytes, str, socket.socket], Awaitable[None]]
"""``on_stream(protocol, peer id bytes, IP address, socket)`` owns the socket. The address is where
the stream's connection comes from (of a relayed one, the relay's); "" when that is not known."""


class Gateway:
    """Streams of one network daemon.

    :param daemon: path of the daemon's control socket
    :param path: where we listen for the streams that peers open; made here
    :param on_stream: called in a task of its own for each of them
    """

    def __init__(self, daemon: str, path: str, on_stream: OnStream) -> None:
        self._daemon, self._path, self._on_stream = daemon, path, on_stream
        self._listener: socket.socket | None = None
        self._accepting: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def dial(self, peer: bytes, protocol: str) -> socket.socket:
        """A stream of ``protocol`` to the peer with this id (bytes).

        :raises ControlFailure: the daemon says that there is none
        :raises OSError: the daemon does not answer
        """
        return await self._command(
            p2pd_pb2.Request.STREAM_OPEN,
            streamOpen=p2pd_pb2.StreamOpenRequest(peer=peer, proto=[protocol]),
        )

    async def serve(self, protocol: str) -> None:
        """Have the daemon hand us the streams of ``protocol``."""
        if self._listener is None:
            self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            self._listener.setblocking(False)
            self._listener.bind(self._path)
            self._listener.listen(_BACKLOG)
            self._accepting = asyncio.create_task(self._accept(self._listener))
        address = DaemonMultiaddr(f"/unix{self._path}").to_bytes()
        handler = p2pd_pb2.StreamHandlerRequest(addr=address, proto=[protocol], balanced=False)
        sock = await self._command(p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler)
        sock.close()

    async def prefer(self, peer: bytes) -> None:
        """Have the daemon keep its connections with this peer when it has too many.

        :raises OSError: the daemon does not answer
        """
        tag = p2pd_pb2.ConnManagerRequest(
            type=p2pd_pb2.ConnManagerRequest.TAG_PEER, peer=peer, tag="member", weight=1000
        )
        sock = await self._command(p2pd_pb2.Request.CONNMANAGER, connManager=tag)
        sock.close()

    async def close(self) -> None:
        """Take no more streams; those that were handed over live on."""
        tasks = [*self._tasks, *([self._accepting] if self._accepting else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._listener is not None:
            self._listener.close()
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._path)

    async def _command(self, kind: int, **what: Any) -> socket.socket:
        """Ask the daemon for something; the socket that it answered on.

        :raises OSError: it does not answer in time
        """
        loop = asyncio.get_running_loop()
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        sock.setblocking(False)
        framed = io.BytesIO()
        proto.serialize_length_prefixed(p2pd_pb2.Request(type=kind, **what), framed)
        response = p2pd_pb2.Response()
        try:
            async with asyncio.timeout(ANSWER_S):
                await loop.sock_connect(sock, self._daemon)
                await loop.sock_sendall(sock, framed.getbuffer())
                response.ParseFromString(await _read_framed(loop, sock))
            if response.type == p2pd_pb2.Response.ERROR:
                raise ControlFailure(response.error.msg)
        except BaseException:
            sock.close()
            raise
        return sock

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                sock, _ = await loop.sock_accept(listener)
            except OSError as error:  # no file descriptors left: streams wait, or fail
                emit(log, "stream.not_accepted", logging.WARNING, error=error)
                await asyncio.sleep(0.2)
                continue
            sock.setblocking(False)
            task = asyncio.create_task(self._greet(sock))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _greet(self, sock: socket.socket) -> None:
        """Read who opened which stream, and hand it on."""
        info = p2pd_pb2.StreamInfo()
        try:
            loop = asyncio.get_running_loop()
            info.ParseFromString(await within(_read_framed(loop, sock), ANSWER_S))
        except BaseException as error:
            sock.close()
            if not isinstance(error, OSError | EOFError | BadProtobuf):
                raise
            return
        await self._on_stream(info.proto, info.peer, _ip_of(info.addr), sock)


def _ip_of(address: bytes) -> str:
    """The IP address that a multiaddr (bytes) begins with, "" if it begins with something else."""
    code, rest = address[:1], address[1:]
    with contextlib.suppress(ValueError):
        if code == bytes([_IP4]):
            return str(ipaddress.IPv4Address(rest[:4]))
        if code == bytes([_IP6]):
            return str(ipaddress.IPv6Address(rest[:16]))
    return ""


async def _read_framed(loop: asyncio.AbstractEventLoop, sock: socket.socket) -> bytes:
    """One length-delimited protobuf message, and no byte of what follows it."""
    length = shift = 0
    while True:
        (byte,) = await _read(loop, sock, 1)
        length |= (byte & 0x7F) << shift
        shift += 7
        if not byte & 0x80:
            break
        if shift > 21:
            raise EOFError("the network daemon's reply is malformed")
    if length > MAX_REPLY_BYTES:
        raise EOFError("the network daemon's reply is too long")
    return await _read(loop, sock, length)


async def _read(loop: asyncio.AbstractEventLoop, sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = await loop.sock_recv(sock, count - len(data))
        if not piece:
            raise EOFError("the network daemon closed its socket")
        data += piece
    return data
