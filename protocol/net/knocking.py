"""Connections to the network daemon without a handshake: bounded from outside of it.

Whoever opens a TCP connection costs the daemon an open file and about 20 kB, whether a handshake
follows or not; it waits 15 s for one, and has no bound on their number. When its open files are all
taken, nobody is answered any more. On Linux a parent may take hold of its child's sockets
(pidfd_getfd(2)): what is set on one here holds there, and one that is shut down here ends there.
Importing this module imports hivemind.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import ipaddress
import logging
import os
import socket
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Iterable, Iterator, Mapping, Sequence

from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerInfo
from hivemind.p2p.p2p_daemon_bindings.utils import ControlFailure, P2PDaemonError

from artel.protocol.events import emit
from artel.protocol.net.limits import network_of, on_loopback
from artel.protocol.tasks import within

log = logging.getLogger("artel.network")

MOST, MOST_EACH = 128, 16
"""Connections without a handshake: of all, and of one network (see ``limits``; not on loopback).
Those that came last are kept, and those that came since the last look."""
PATIENCE_S = 10.0
"""Until a connection has to have made its handshake."""
SILENT_S = 60
"""How long the system holds a connection back that says nothing."""
SWEEP_S, ANSWER_S = 1.0, 1.0
"""Between two looks; for the daemon to say who has made a handshake."""
QUIET = 128
"""Open files of a daemon beside those of its peers, two each, up to which nobody looks closer."""
SAID = 200
"""Bytes that whoever makes a handshake has said at its end (Noise XX with a signed key).
To say as much the other end must have answered."""
_PIDFD_GETFD = 438
_BYTES_RECEIVED = struct.Struct("=128xQ")
"""Of the kernel's struct tcp_info, which only grows at its end."""

End = tuple[str, int]
"""IP address and port of the other end of a connection."""
Taken = socket.socket | None
"""A socket of the daemon; None: the file is none, or no more."""
Peers = Callable[[], Awaitable[Sequence[PeerInfo]]]


class Forbidden(Exception):
    """This system does not let a parent take hold of its child's sockets."""


class Door:
    """The connections of one daemon; owned by one task.

    :param pid: of the daemon, a child of this process
    """

    def __init__(self, pid: int) -> None:
        self._files, self._pid = f"/proc/{pid}/fd", pid
        self._since: dict[End, float] = {}
        self._known: set[End] = set()
        self._spoke: set[End] = set()

    def know(self, peers: Iterable[PeerInfo]) -> None:
        """Note which connections have made a handshake; to be told now and then."""
        self._known = set(_ends(peers))

    async def keep(self, peers: Peers) -> None:
        """End what is too much, again and again; returns where that is not possible.

        :param peers: asks the daemon for the same, when there is a crowd
        """
        with contextlib.suppress(Forbidden, OSError):  # it is said below, when it matters
            await asyncio.to_thread(self._defer)
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self._sweep(peers)
            except (FileNotFoundError, ProcessLookupError):  # the daemon is gone; or no /proc
                return
            except Forbidden as error:
                emit(log, "connections.unbounded", logging.WARNING, reason=error)
                return
            except OSError as error:  # our own open files are all taken
                emit(log, "connections.not_counted", logging.WARNING, reason=error)

    async def _sweep(self, peers: Peers) -> None:
        if len(os.listdir(self._files)) <= QUIET + 2 * len(self._known):
            self._since.clear()
            return
        found = await asyncio.to_thread(self._connections)
        # Asked later, so that whoever makes a handshake meanwhile is known. A daemon without open
        # files left does not answer: then it is those that were known before.
        with contextlib.suppress(ControlFailure, P2PDaemonError, OSError, EOFError):
            self.know(await within(peers(), ANSWER_S))
        now = time.monotonic()
        self._since = {end: self._since.get(end, now) for end in found if end not in self._known}
        ended = list(too_many(self._since, now, self._spoke))
        if ended:
            emit(log, "connections.ended", logging.DEBUG, count=len(ended))
            await asyncio.to_thread(self._end, {found[end]: end for end in ended})

    def _defer(self) -> None:
        """Have the system hold connections back until they say something (tcp(7)): whoever dials
        speaks first, and a silent connection then costs the daemon nothing."""
        with self._taking() as take:
            for name in os.listdir(self._files):
                with take(int(name)) as taken:
                    if taken is not None and taken.getsockopt(
                        socket.SOL_SOCKET, socket.SO_ACCEPTCONN
                    ):
                        with contextlib.suppress(OSError):  # our own, of the file system
                            taken.setsockopt(socket.IPPROTO_TCP, socket.TCP_DEFER_ACCEPT, SILENT_S)

    def _connections(self) -> dict[End, int]:
        """Each connection, and the daemon's number of its file."""
        found = {}
        self._spoke.clear()
        with self._taking() as take:
            for name in os.listdir(self._files):
                with take(int(name)) as taken:
                    if taken is not None and (end := _other_end(taken)) is not None:
                        found[end] = int(name)
                        if _received(taken) >= SAID:
                            self._spoke.add(end)
        return found

    def _end(self, files: Mapping[int, End]) -> None:
        """Shut connections down, where the number still means them."""
        with self._taking() as take:
            for number, end in files.items():
                with take(number) as taken, contextlib.suppress(OSError):
                    if taken is not None and _other_end(taken) == end:
                        taken.shutdown(socket.SHUT_RDWR)

    @contextlib.contextmanager
    def _taking(self) -> Iterator[Callable[[int], contextlib.AbstractContextManager[Taken]]]:
        """A function that lends a file of the daemon, by its number, while its block runs."""
        libc = ctypes.CDLL(None, use_errno=True)
        try:
            process = os.pidfd_open(self._pid)
        except AttributeError:
            raise Forbidden("this system lends no files of other processes") from None

        @contextlib.contextmanager
        def take(number: int) -> Iterator[Taken]:
            file = libc.syscall(_PIDFD_GETFD, process, number, 0)
            if file < 0:
                if ctypes.get_errno() in (errno.EPERM, errno.ENOSYS):
                    raise Forbidden("a parent may not take its child's files here")
                yield None  # it was closed meanwhile
                return
            try:
                taken = socket.socket(fileno=file)
            except OSError:  # another kind of file
                os.close(file)
                yield None
                return
            with taken:
                yield taken

        try:
            yield take
        finally:
            os.close(process)


def too_many(since: Mapping[End, float], now: float, spoke: Collection[End] = ()) -> Iterator[End]:
    """Connections without a handshake that are to end, of those first seen at these times.

    :param spoke: those that have said as much as a handshake takes. They are the last to end: one
        may have made it since the daemon last answered.
    """
    kept, near = 0, Counter[str]()
    for end in sorted(since, key=lambda end: (end in spoke, since[end]), reverse=True):
        network = network_of(end[0])
        near[network] += 1
        crowded = near[network] > MOST_EACH and not on_loopback(network)
        late = crowded or kept >= MOST or now - since[end] > PATIENCE_S
        if late and since[end] < now:  # a crowd that has just come may be an honest one
            yield end
        else:
            kept += 1


def _other_end(taken: socket.socket) -> End | None:
    """Of a TCP connection; None of everything else."""
    if taken.family not in (socket.AF_INET, socket.AF_INET6) or taken.type != socket.SOCK_STREAM:
        return None
    try:
        host, port = taken.getpeername()[:2]
    except OSError:  # listens, or is not connected yet
        return None
    return str(ipaddress.ip_address(host)), port


def _received(connection: socket.socket) -> int:
    """How many bytes the other end has said."""
    size = _BYTES_RECEIVED.size
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, size)
    return int(_BYTES_RECEIVED.unpack(info)[0]) if len(info) == size else 0


def _ends(peers: Iterable[PeerInfo]) -> Iterator[End]:
    for peer in peers:
        for address in peer.addrs:
            with contextlib.suppress(ValueError, IndexError):
                _, _, host, _, port, *_ = str(address).split("/")
                yield str(ipaddress.ip_address(host)), int(port)
