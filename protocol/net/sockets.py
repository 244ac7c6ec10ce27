"""What a process's TCP connections carried, as the kernel counts it (Linux, no privileges needed).

The kernel tells it of open connections alone, so :class:`SocketBytes` remembers the last reading of
each: bytes between the last reading and the close of a connection are not counted. UDP (QUIC) has
no such counters.
"""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_SOCK_DIAG, _BY_FAMILY = 4, 20  # linux/netlink.h, linux/sock_diag.h
_REQUEST, _DUMP, _DONE, _ERROR = 0x1, 0x300, 3, 2
_INFO = 2  # INET_DIAG_INFO: struct tcp_info follows
_HEADER = struct.Struct("=IHHII")
_MESSAGE_BYTES = 72  # struct inet_diag_msg: the cookie at 44, the inode at 68
_RECEIVED, _SENT = 128, 200  # tcpi_bytes_received, tcpi_bytes_sent (Linux 4.19)


@dataclass(frozen=True)
class Carried:
    """Bytes of TCP payload; retransmissions count in ``up``, headers nowhere."""

    up: int
    down: int


class SocketBytes:
    """Adds up the TCP connections of one process; :meth:`read` it often enough.

    :param pid: a process of the same user
    """

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._open: dict[int, tuple[int, int]] = {}  # by the kernel's cookie
        self._closed_up = self._closed_down = 0

    def follow(self, pid: int) -> None:
        """Go on with another process; what was counted stays."""
        self._pid = pid

    def read(self) -> Carried | None:
        """Bytes since the process began; None where the kernel does not tell. Takes about 1 ms."""
        try:
            ours = _inodes(self._pid)
            now = {
                cookie: (up, down)
                for inode, cookie, up, down in [
                    *_connections(socket.AF_INET),
                    *_connections(socket.AF_INET6),
                ]
                if inode in ours
            }
        except (OSError, AttributeError, struct.error):
            return None
        for cookie, (up, down) in self._open.items():
            if cookie not in now:
                self._closed_up += up
                self._closed_down += down
        self._open = now
        up = self._closed_up + sum(up for up, _ in now.values())
        return Carried(up, self._closed_down + sum(down for _, down in now.values()))


def _inodes(pid: int) -> set[int]:
    found = set()
    for entry in os.scandir(Path("/proc") / str(pid) / "fd"):
        with contextlib.suppress(OSError):
            name = os.readlink(entry.path)
            if name.startswith("socket:["):
                found.add(int(name[8:-1]))
    return found


def _connections(family: int) -> Iterator[tuple[int, int, int, int]]:
    """(inode, cookie, bytes sent, bytes received) of every TCP connection of the name space."""
    body = struct.pack("=BBBBI48x", family, socket.IPPROTO_TCP, 1 << (_INFO - 1), 0, 0xFFFFFFFF)
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as netlink:
        netlink.settimeout(2)
        size = _HEADER.size + len(body)
        netlink.send(_HEADER.pack(size, _BY_FAMILY, _REQUEST | _DUMP, 0, 0) + body)
        while True:
            data = memoryview(netlink.recv(1 << 18))
            while len(data) >= _HEADER.size:
                length, kind, *_ = _HEADER.unpack_from(data)
                if kind == _DONE:
                    return
                if kind == _ERROR or length < _HEADER.size + _MESSAGE_BYTES:
                    raise OSError("the kernel does not list TCP connections")
                message = data[_HEADER.size : length]
                (cookie,) = struct.unpack_from("=Q", message, 44)
                (inode,) = struct.unpack_from("=I", message, 68)
                info = _attribute(message[_MESSAGE_BYTES:], _INFO)
                if info is not None and len(info) >= _SENT + 8:
                    (sent,) = struct.unpack_from("=Q", info, _SENT)
                    (received,) = struct.unpack_from("=Q", info, _RECEIVED)
                    yield inode, cookie, sent, received
                data = data[(length + 3) & ~3 :]


def _attribute(data: memoryview, wanted: int) -> memoryview | None:
    while len(data) >= 4:
        length, kind = struct.unpack_from("=HH", data)
        if length < 4:
            return None
        if kind == wanted:
            return data[4:length]
        data = data[(length + 3) & ~3 :]
    return None
