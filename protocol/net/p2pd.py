"""The network daemon's process: hivemind's ``p2pd``, started, watched and ended by us.

hivemind starts it in our own process group, where the terminal's Ctrl-C kills it, and does not
notice that it died. Importing this module imports hivemind.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import logging
import os
import resource
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import hivemind.hivemind_cli
from hivemind.p2p import P2P
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerInfo
from hivemind.p2p.p2p_daemon_bindings.utils import P2PDaemonError
from hivemind.utils.multiaddr import Multiaddr as DaemonMultiaddr

from artel.protocol import tether
from artel.protocol.errors import ResourceError
from artel.protocol.events import emit
from artel.protocol.net.knocking import Door
from artel.protocol.tasks import Result, within

log = logging.getLogger("artel.network")

START_S = 30.0
PROBE_EVERY_S, PROBE_S, PROBES = 5.0, 10.0, 2
"""A daemon that does not answer ``PROBES`` questions in a row, each for ``PROBE_S``, hangs."""
CLOSE_S = 3.0
RESTARTS, WITHIN_S = 5, 600.0
"""A daemon that dies more often than ``RESTARTS`` times within ``WITHIN_S`` is given up."""
PAUSE_S, LONGEST_PAUSE_S = 0.5, 30.0
"""Before the second restart and, doubling, the later ones; there is no pause before the first."""
KEEP_CONNECTIONS, MOST_CONNECTIONS, GRACE_S = 320, 448, 20
"""Above the second number of connections those that are wanted least (see ``Gateway.prefer``) and
are older than the grace end, until the first number is left. Only connections with a handshake
count; for the others see :mod:`protocol.net.knocking`."""
MAX_MESSAGE_BYTES = 1 << 21
"""Of one call of the DHT: all records of a key (``dht_node``) and the neighbours beside them."""
GARBAGE = "40"
"""Per cent of what the daemon holds that it may hold again before it looks for what is no longer
needed: each stream takes 64 KiB, and peers open and close them at will."""
OPEN_FILES, FEW_OPEN_FILES = 1 << 16, 4096
"""Open files that we ask the system for, and how few of them to warn of."""
_SOCKETS = "artel-net-"
_READY = b"Peer ID:"
_TELLS_NOTHING = ("", "all dials failed", "dial backoff")
_KEPT_BYTES = 4096
_PATH = Path(next(iter(hivemind.hivemind_cli.__path__))) / "p2pd"


@dataclass(frozen=True)
class Settings:
    """What a network daemon is told when it starts; the same again when it is started again.

    :param key_file: its identity
    :param listen: multiaddrs to listen on, without a peer id
    :param announce: multiaddrs to tell others instead of those that it sees
    """

    key_file: Path
    listen: tuple[str, ...]
    announce: tuple[str, ...] = ()

    def arguments(self, socket: str) -> tuple[str, ...]:
        """Its command line, with the path of its control socket."""
        # A host that listens on loopback only must not ask a router for anything.
        outside = int(not all("/127." in address for address in self.listen))
        announce = [f"-announceAddrs={','.join(self.announce)}"] if self.announce else []
        return (
            str(_PATH),
            f"-listen=/unix{socket}",
            f"-id={self.key_file.absolute()}",
            f"-hostAddrs={','.join(self.listen)}",
            *announce,
            "-dhtServer=1",
            "-connManager=1",
            f"-connLo={KEEP_CONNECTIONS}",
            f"-connHi={MOST_CONNECTIONS}",
            f"-connGrace={GRACE_S}s",
            f"-persistentConnMaxMsgSize={MAX_MESSAGE_BYTES}",
            # As hivemind starts it: left to itself, it looks for relays and dials peers for that.
            *("-relay=1", "-relayHopLimit=0", "-autoRelay=0", "-tls=1", "-b=0"),
            f"-autonat={outside}",
            f"-natPortMap={outside}",
            f"-idleTimeout={START_S:.0f}s",
        )


class NetworkDaemon:
    """A running ``p2pd``; make one with :meth:`start`, end it with :meth:`close`.

    ``p2p`` is hivemind's client of it, ``socket`` the path of its control socket.
    """

    def __init__(self, process: asyncio.subprocess.Process, socket: str) -> None:
        self.process, self.socket = process, socket
        self.p2p: P2P
        self._ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._said = b""
        self._door = Door(process.pid)
        self._keeping: asyncio.Task[None] | None = None
        self._ended = asyncio.create_task(self._listen())
        """Owns the process: reads what it says, and reaps it."""

    @classmethod
    async def start(cls, settings: Settings, socket: str) -> NetworkDaemon:
        """Start a daemon and connect to it.

        :param socket: where it listens to us; the socket of one that died is replaced
        :raises ResourceError: it does not start
        """
        with contextlib.suppress(FileNotFoundError):
            os.unlink(socket)
        try:
            process = await asyncio.create_subprocess_exec(
                *tether.tied(*settings.arguments(socket)),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
                env={"GOGC": GARBAGE} | os.environ | {"GOLOG_LOG_LEVEL": "error"},
                start_new_session=True,
            )
        except OSError as error:
            raise ResourceError(
                f"cannot start the network daemon: {error.strerror or error}",
                "free some memory or processes",
            ) from None
        daemon = cls(process, socket)
        try:
            await daemon._connect()
        except BaseException as error:
            await daemon.close()
            if not isinstance(error, P2PDaemonError | OSError | EOFError):
                raise
            raise ResourceError(
                f"the network daemon does not start: {daemon.last_words() or 'it does not answer'}",
                f"check that the addresses {', '.join(settings.listen)} exist on this machine",
            ) from None
        return daemon

    async def _connect(self) -> None:
        first: set[asyncio.Future[None]] = {self._ready, self._ended}
        await asyncio.wait(first, timeout=START_S, return_when=asyncio.FIRST_COMPLETED)
        if self._ended.done() or not self._ready.done():
            raise TimeoutError
        self.p2p = await self.during(P2P.replicate(DaemonMultiaddr(f"/unix{self.socket}")), START_S)
        control = self.p2p._client.control
        for task in (control._read_task, control._write_task):
            # They fail when the daemon dies; nobody waits for them, and asyncio would say so.
            task.add_done_callback(lambda task: task.cancelled() or task.exception())
        self._keeping = asyncio.create_task(self._door.keep(self.p2p.list_peers))

    async def during(self, work: Coroutine[Any, Any, Result], seconds: float) -> Result:
        """Await ``work``, which needs the daemon and might wait for a dead one without end.

        :raises TimeoutError: the daemon ended, or ``seconds`` have passed
        """
        task = asyncio.ensure_future(work)
        both: set[asyncio.Future[Any]] = {task, self._ended}
        try:
            await asyncio.wait(both, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise TimeoutError
            return task.result()
        finally:
            task.cancel()

    async def ends(self, each: Callable[[Sequence[PeerInfo]], Awaitable[object]]) -> str:
        """Wait until the daemon is dead, or hangs and had to be killed; returns why.

        :param each: called about every ``PROBE_EVERY_S`` while it lives, with its connections
        """
        silent = 0
        while silent < PROBES:
            await asyncio.wait({self._ended}, timeout=PROBE_EVERY_S)
            if self._ended.done():
                return self.why()
            try:
                connected = await within(self.p2p.list_peers(), PROBE_S)
                silent = 0
            except (P2PDaemonError, OSError, EOFError):
                silent += 1
            else:
                self._door.know(connected)
                await each(connected)
        self.process.kill()
        await asyncio.shield(self._ended)
        return "it did not answer any more"

    def last_words(self) -> str:
        """The last line that it printed."""
        lines = self._said.decode(errors="replace").split("\n")
        return next((line.strip()[:200] for line in reversed(lines) if line.strip()), "")

    async def close(self) -> None:
        """End the process: ask, then kill. Returns within about ``CLOSE_S``; idempotent."""
        if self._keeping is not None:
            self._keeping.cancel()
        if hasattr(self, "p2p"):
            await self.p2p.shutdown()  # only its own end of the connection: it started nothing
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        try:
            await within(asyncio.shield(self._ended), CLOSE_S)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await asyncio.shield(self._ended)

    async def _listen(self) -> None:
        output = self.process.stdout
        assert output is not None
        while piece := await output.read(1 << 14):
            self._said = (self._said + piece)[-_KEPT_BYTES:]
            if _READY in self._said and not self._ready.done():
                self._ready.set_result(None)
        await self.process.wait()

    def why(self) -> str:
        """How the dead process ended, in words."""
        return f"it {tether.ending(self.process.returncode or 0)}"


class Deaths:
    """How often a host's daemons have died lately; says when to start the next one."""

    def __init__(self) -> None:
        self._times: deque[float] = deque()

    async def another(self, reason: str) -> None:
        """Note a death and pause, so that what goes wrong at once is not done without end.

        :raises ResourceError: there were too many
        """
        now = time.monotonic()
        self._times.append(now)
        while self._times[0] < now - WITHIN_S:
            self._times.popleft()
        count = len(self._times)
        emit(log, "network.died", logging.WARNING, reason=reason, times=count)
        if count > RESTARTS:
            raise ResourceError(
                f"the network daemon of this program died {count} times within "
                f"{WITHIN_S / 60:g} minutes, the last time because {reason}",
                "free some memory, and start again: nothing is lost",
            )
        if count > 1:
            await asyncio.sleep(min(PAUSE_S * 2 ** (count - 2), LONGEST_PAUSE_S))


class SocketFolder:
    """A fresh private folder for the sockets between us and a daemon; :meth:`close` removes it.

    Its lock is ours for as long as we live. Folders of which nobody holds the lock are those of
    programs that were killed: they are removed when another one is made.

    :raises ResourceError: there is no room for one
    """

    def __init__(self) -> None:
        try:
            _sweep()
            while not self._made():
                pass
        except OSError as error:
            raise ResourceError(
                f"cannot make a folder for temporary files: {error.strerror or error}",
                "set TMPDIR to a folder that can be written",
            ) from None

    def _made(self) -> bool:
        """Make and lock one; False when another program took it for left behind meanwhile."""
        self.path = Path(tempfile.mkdtemp(prefix=_SOCKETS))
        with contextlib.suppress(FileNotFoundError, BlockingIOError):
            lock = _locked(self.path)
            if self.path.exists():
                self._lock: int | None = lock
                return True
            os.close(lock)
        return False

    def close(self) -> None:
        """Remove it with all that is in it; idempotent."""
        lock, self._lock = self._lock, None
        if lock is not None:
            shutil.rmtree(self.path, ignore_errors=True)
            os.close(lock)


def _locked(folder: Path) -> int:
    """A descriptor that holds the lock of a folder.

    :raises OSError: somebody else has it, or there is no such folder
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _sweep() -> None:
    for folder in Path(tempfile.gettempdir()).glob(f"{_SOCKETS}*"):
        with contextlib.suppress(OSError):  # it is used, or another user's
            if folder.lstat().st_uid == os.getuid():
                descriptor = _locked(folder)
                shutil.rmtree(folder, ignore_errors=True)
                os.close(descriptor)


def pinned(listen: Sequence[str], seen: Sequence[str]) -> tuple[str, ...]:
    """``listen`` with the ports that were free, taken from the addresses that a daemon sees.

    A daemon that is started again must be where it was, for others know it there.
    """
    found = []
    for address in listen:
        parts = address.split("/")
        for other in (text.split("/") for text in seen):
            if parts[4] == "0" and len(other) > 4 and (other[1], other[3]) == (parts[1], parts[3]):
                parts[4] = other[4]
        found.append("/".join(parts))
    return tuple(found)


def reason_of(error: Exception) -> str:
    """What an error of the daemon or of its library comes down to, in a few words.

    The library's own text has a line for each address that was dialled, ``* [ADDRESS] ...: WHY``.
    """
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, asyncio.IncompleteReadError):
        return "it closed the connection"
    lines = (getattr(error, "strerror", None) or str(error)).splitlines()
    said = [line.partition(": [")[0].rpartition("] ")[2].rpartition(": ")[2] for line in lines]
    telling = [text.strip() for text in said if text.strip() not in _TELLS_NOTHING]
    return telling[-1][:80] if telling else "no connection"


def raise_open_files() -> None:
    """Let this process, and the daemon that it starts, have as many open files as the system gives.

    Whoever opens a connection to the daemon costs it one, without any handshake.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # macOS may say no
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < FEW_OPEN_FILES:
        emit(log, "files.few", logging.WARNING, open_files=most, better=FEW_OPEN_FILES)
