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
from collections.abc import Callable
from typing import Any

from google.protobuf import proto
from google.protobuf.message import DecodeError as BadProtobuf
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure
from hivemind.proto import p2pd_pb2
from hivemind.utils.multiaddr import Multiaddr as DaemonMultiaddr

from artel.protocol.events import emit

log = logging.getLogger("artel.network")

MAX_REPLY_BYTES = 1 << 16
"""The daemon's replies to us have some hundred bytes."""
ANSWER_S = 10.0
"""The daemon answers a command, or says whose stream it hands over, within this many seconds."""
_BACKLOG = 4096
"""Streams that wait to be taken over (Linux: at most ``net.core.somaxconn``, which is as much).
Beyond it the daemon closes what comes, whoever opened it: see :meth:`Gateway._take_over`."""
_AT_ONCE = 256
"""Streams that are taken over before anything else gets its turn."""
_PAUSE_S = 0.2
"""Until streams are taken over again, where there are no open files left."""
_MOST_SAID = 1024
"""Bytes of what the daemon says of a stream; the longest part is a relayed address."""

_IP4, _IP6 = 4, 41  # codes of a multiaddr's parts, each followed by the address

OnStream = Callable[[str, bytes, str, socket.socket], object]
"""``on_stream(protocol, peer id bytes, IP address, socket)`` owns the socket, and says at once what
becomes of it: others wait. The address is where the stream's connection comes from (of a relayed
one, the relay's); "" when that is not known."""


class Gateway:
    """Streams of one network daemon.

    :param daemon: path of the daemon's control socket
    :param path: where we listen for the streams that peers open; made here
    :param on_stream: called for each of them
    """

    def __init__(self, daemon: str, path: str, on_stream: OnStream) -> None:
        self._daemon, self._path, self._on_stream = daemon, path, on_stream
        self._loop = asyncio.get_running_loop()
        self._listener: socket.socket | None = None
        self._unnamed: dict[socket.socket, asyncio.TimerHandle] = {}
        """Streams of which the daemon has not said yet whose they are."""
        self._pause: asyncio.TimerHandle | None = None

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
            self._watch(self._listener)
        address = DaemonMultiaddr(f"/unix{self._path}").to_bytes()
        handler = p2pd_pb2.StreamHandlerRequest(addr=address, proto=[protocol], balanced=False)
        sock = await self._command(p2pd_pb2.Request.STREAM_HANDLER, streamHandler=handler)
        sock.close()

    async def prefer(self, peer: bytes, *, wanted: bool = True) -> None:
        """Have the daemon keep its connections with this peer when it has too many, or no more.

        :raises OSError: the daemon does not answer
        """
        kinds = p2pd_pb2.ConnManagerRequest
        kind = kinds.TAG_PEER if wanted else kinds.UNTAG_PEER
        tag = kinds(type=kind, peer=peer, tag="member", weight=1000)
        sock = await self._command(p2pd_pb2.Request.CONNMANAGER, connManager=tag)
        sock.close()

    async def disconnect(self, peer: bytes) -> None:
        """Have the daemon end its connections with this peer, and with them all of its streams.

        :raises OSError: the daemon does not answer
        """
        request = p2pd_pb2.DisconnectRequest(peer=peer)
        sock = await self._command(p2pd_pb2.Request.DISCONNECT, disconnect=request)
        sock.close()

    def close(self) -> None:
        """Take no more streams; those that were handed over live on. Idempotent."""
        if self._pause is not None:
            self._pause.cancel()
        for sock in tuple(self._unnamed):
            self._give_up(sock)
        if self._listener is not None:
            self._loop.remove_reader(self._listener)
            self._listener.close()
            self._listener = None
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

    def _watch(self, listener: socket.socket) -> None:
        self._loop.add_reader(listener, self._take_over, listener)

    def _take_over(self, listener: socket.socket) -> None:
        """Take over the streams that wait, and say of each what becomes of it: a stranger's that is
        refused costs some 50 us, so a whole queue of them holds a member's back for 0.2 s."""
        for _ in range(_AT_ONCE):
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as error:  # no file descriptors left: streams wait, or fail
                emit(log, "stream.not_accepted", logging.WARNING, error=error)
                self._loop.remove_reader(listener)
                self._pause = self._loop.call_later(_PAUSE_S, self._watch, listener)
                return
            sock.setblocking(False)
            self._greet(sock)

    def _greet(self, sock: socket.socket) -> None:
        """Read who opened which stream, and hand it on; wait where that is not here yet."""
        try:
            info = _said(sock)
        except (BlockingIOError, InterruptedError):
            if sock not in self._unnamed:
                self._unnamed[sock] = self._loop.call_later(ANSWER_S, self._give_up, sock)
                self._loop.add_reader(sock, self._greet, sock)
            return
        except (OSError, EOFError, BadProtobuf):
            self._forget(sock)
            sock.close()
            return
        self._forget(sock)
        self._on_stream(info.proto, info.peer, _ip_of(info.addr), sock)

    def _forget(self, sock: socket.socket) -> None:
        timer = self._unnamed.pop(sock, None)
        if timer is not None:
            timer.cancel()
            self._loop.remove_reader(sock)

    def _give_up(self, sock: socket.socket) -> None:
        self._forget(sock)
        sock.close()


def _said(sock: socket.socket) -> p2pd_pb2.StreamInfo:
    """What the daemon says of a stream before the stream begins; no byte of that is read.

    :raises BlockingIOError: it is not here yet
    :raises EOFError: there is none
    """
    head = sock.recv(_MOST_SAID, socket.MSG_PEEK)
    if not head:
        raise EOFError("the network daemon says nothing of a stream")
    begin = 1 + (head[0] >> 7)  # the message follows its length, a varint of one byte or two
    if len(head) < begin:
        raise BlockingIOError
    length = head[0] & 0x7F | (head[1] << 7 if begin == 2 else 0)
    if begin + length > _MOST_SAID:
        raise EOFError("the network daemon says too much of a stream")
    if len(head) < begin + length:
        raise BlockingIOError
    info = p2pd_pb2.StreamInfo.FromString(head[begin : begin + length])
    sock.recv(begin + length)
    return info


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
