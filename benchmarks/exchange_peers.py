"""The parent's side of :mod:`benchmarks.exchange`: processes of peers, orders, what they cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from artel.protocol.errors import ResourceError, Unreachable
from benchmarks.exchange_worker import Setup
from benchmarks.links import LOOPBACK, Links, Wire

START_TIMEOUT_S = 180.0
PREPARE_TIMEOUT_S = 60.0
SYNC_TIMEOUT_S = 300.0
LEAD_S = 0.1
"""A sync begins this long after its order was sent, so that all peers have read it."""
_CLOSE_S = 5.0

ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    # glibc gives arrays above 32 MiB back at once, and every new one is then made of new pages.
    # Where a virtual machine's host takes free pages away, those cost more than the work on them.
    # The arenas of threads hold nothing above 64 MiB: there is one for all.
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
    "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
}
"""Of all peers, of whatever system: one thread, and memory that was used once is kept."""


@dataclass(frozen=True)
class Sample:
    """One synchronisation of all peers of a system."""

    seconds: float
    """From the common start until the last peer was done."""
    complete: bool
    """Whether the result of every peer holds the numbers of all."""
    phases: dict[str, float]
    """Mean over the peers."""
    cpu: float
    """Processor seconds of one peer with all its processes, mean."""
    memory: int
    """Most resident bytes of one peer's processes, added up."""
    up: float
    """Bytes on the wire, sent by one peer, mean."""
    down: float
    streams: float
    """Bytes that the program counted at its own streams, received by one peer, mean; 0: it does
    not count. (What it has sent is complete only when the others are done.)"""
    payload: int
    replies: Sequence[dict[str, Any]] = field(repr=False)


class Network:
    """Where peers run: namespaces of their own, or the machine's loopback as it is.

    :param mbit: (down, up) of every peer; None: all on one loopback
    :param isolated: whether namespaces can be made here
    """

    def __init__(self, peers: int, mbit: tuple[float, float] | None, isolated: bool) -> None:
        self.peers, self.mbit = peers, mbit
        self._links: Links | None = None
        if isolated and mbit:
            # One host more, for the lighthouse.
            self._links = Links(peers + 1, *mbit, unlimited=peers)
        elif isolated:
            self._links = Links(1)

    def __enter__(self) -> Network:
        if self._links is not None:
            self._links.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        if self._links is not None:
            self._links.__exit__(*error)

    @property
    def interface(self) -> str:
        return "eth0" if self.mbit else "lo"

    def address(self, host: int) -> str:
        return self._links.address(host) if self._links and self.mbit else LOOPBACK

    def command(self, host: int, argv: Sequence[str]) -> list[str]:
        if self._links is None:
            return list(argv)
        return self._links.command(host if self.mbit else 0, argv)

    def bytes(self) -> Wire:
        """Sent and received by all peers so far.

        On loopback a byte that one peer sends another receives, so both numbers are the same; when
        the loopback is the machine's own, other programs' bytes are in it.
        """
        if self._links is None:
            for line in Path("/proc/net/dev").read_text().splitlines():
                name, _, counters = line.partition(":")
                if name.strip() == "lo":
                    numbers = [int(number) for number in counters.split()]
                    return Wire(up=numbers[8], down=numbers[0])
            return Wire(0, 0)
        if not self.mbit:
            return self._links.bytes(0, "lo")
        hosts = [self._links.bytes(host) for host in range(self.peers)]
        return Wire(sum(host.up for host in hosts), sum(host.down for host in hosts))


class Group:
    """All peers of one system, from their start to their end; an async context manager.

    :param variant: what the system is told: a codec, a compression
    """

    def __init__(
        self,
        system: str,
        variant: str,
        size: str,
        peers: int,
        folder: Path,
        *,
        mbit: tuple[float, float] | None = None,
        isolated: bool = False,
    ) -> None:
        self.system, self.variant, self.size, self.peers = system, variant, size, peers
        self.folder = folder / f"{system}-{variant}-{size}-{peers}-{os.urandom(2).hex()}"
        self._network = Network(peers, mbit, isolated)
        self._processes: list[asyncio.subprocess.Process] = []
        self._services: subprocess.Popen[bytes] | None = None
        self._stack = contextlib.ExitStack()
        self._trees: list[list[int]] = []
        self._sockets: set[str] = set()
        self._broken = False
        self.start_seconds = 0.0

    @property
    def name(self) -> str:
        return f"{self.system} {self.variant}"

    async def __aenter__(self) -> Group:
        began = time.monotonic()
        self.folder.mkdir(parents=True)
        try:
            self._stack.enter_context(self._network)
            await self._start()
        except BaseException:
            await self._end(politely=False)
            raise
        self.start_seconds = time.monotonic() - began
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        await self._end(politely=kind is None)

    async def sync(self, round: int, *, digest: bool = True, timeout: float = 30.0) -> Sample:
        """One synchronisation with all its measurements.

        :raises Unreachable: a peer failed or said nothing
        """
        await self.order({"do": "prepare", "round": round}, PREPARE_TIMEOUT_S)
        for tree in self._trees:
            for pid in tree:
                _forget_peak(pid)
        wire, cpu = self._network.bytes(), [_cpu(tree) for tree in self._trees]
        at = time.monotonic() + LEAD_S
        order = {"do": "sync", "round": round, "at": at, "digest": digest, "timeout": timeout}
        replies = await self.order(order, SYNC_TIMEOUT_S)
        used = [_cpu(tree) - before for tree, before in zip(self._trees, cpu, strict=True)]
        moved = self._network.bytes().since(wire)
        complete = all(reply["averaged"] == self.peers for reply in replies)
        if len({reply.get("digest") for reply in replies}) != 1:
            complete = False
        phases: Counter[str] = Counter()
        for reply in replies:
            phases.update(reply.get("phases", {}))
        streams = [reply.get("received", 0) for reply in replies]
        return Sample(
            seconds=max(reply["ended"] for reply in replies) - at,
            complete=complete,
            phases={name: seconds / self.peers for name, seconds in phases.items()},
            cpu=sum(used) / self.peers,
            memory=max(sum(_peak(pid) for pid in tree) for tree in self._trees),
            up=moved.up / self.peers,
            down=moved.down / self.peers,
            streams=sum(streams) / self.peers,
            payload=max(reply.get("payload", 0) for reply in replies),
            replies=replies,
        )

    async def order(self, order: dict[str, Any], timeout: float) -> list[dict[str, Any]]:
        """The replies of all peers to one order.

        :raises Unreachable: a peer failed; a late reply would be taken for that to the next order,
            so the whole group is of no use any more
        """
        if self._broken:
            raise Unreachable(f"{self.name} failed before")
        try:
            return list(
                await asyncio.gather(*(self._tell(n, order, timeout) for n in range(self.peers)))
            )
        except BaseException:
            self._broken = True
            raise

    async def _start(self) -> None:
        services = self._start_services()
        for number in range(self.peers):
            setup = Setup(
                self.system,
                self.variant,
                number,
                self.peers,
                self.size,
                self._network.address(number),
                self._network.interface,
                str(self.folder / f"peer-{number}"),
                services,
            )
            Path(setup.folder).mkdir()
            code = "from benchmarks.exchange_worker import serve; serve()"
            argv = [sys.executable, "-c", code, json.dumps(asdict(setup))]
            with (self.folder / f"peer-{number}.log").open("wb") as log:
                process = await asyncio.create_subprocess_exec(
                    *self._network.command(number, argv),
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    start_new_session=True,
                    env=os.environ | ENVIRONMENT,
                )
            self._processes.append(process)
        first = await self._tell(0, {"do": "start", "first": None}, START_TIMEOUT_S)
        others = await asyncio.gather(
            *(
                self._tell(number, {"do": "start", "first": first}, START_TIMEOUT_S)
                for number in range(1, self.peers)
            )
        )
        await self.order({"do": "meet", "others": [first, *others]}, START_TIMEOUT_S)
        self._trees = [_tree(process.pid) for process in self._processes]
        self._sockets = {path for tree in self._trees for pid in tree for path in _sockets(pid)}

    def _start_services(self) -> str:
        """What a system needs besides its peers: torchft's lighthouse. Returns its address."""
        if self.system != "torchft":
            return ""
        program = Path(sys.executable).with_name("torchft_lighthouse")
        found = str(program) if program.exists() else shutil.which("torchft_lighthouse")
        if found is None:
            raise ResourceError("the program torchft_lighthouse is missing")
        host = self.peers
        address = f"{self._network.address(host)}:{_free_port()}"
        argv = [found, "--min_replicas", str(self.peers), "--bind", address]
        # Its default asks ten times a second whether all are there; that is nobody's limit here.
        argv += ["--quorum_tick_ms", "10", "--join_timeout_ms", "1000"]
        with (self.folder / "lighthouse.log").open("wb") as log:
            self._services = subprocess.Popen(
                self._network.command(host, argv),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        return address

    async def _tell(self, number: int, order: dict[str, Any], timeout: float) -> dict[str, Any]:
        process = self._processes[number]
        assert process.stdin is not None
        assert process.stdout is not None
        where = f"peer {number} of {self.name}"
        hint = f"see {self.folder / f'peer-{number}.log'} (kept with --keep)"
        try:
            process.stdin.write(json.dumps(order).encode() + b"\n")
            line = await asyncio.wait_for(process.stdout.readline(), timeout)
        except TimeoutError:
            raise Unreachable(f"{where}: no answer to {order['do']}", hint) from None
        except OSError:
            line = b""
        if not line:
            raise Unreachable(f"{where} ended at {order['do']}", hint)
        reply: dict[str, Any] = json.loads(line)
        if "error" in reply:
            raise Unreachable(f"{where}: {reply['error']}", hint)
        return reply

    async def _end(self, politely: bool) -> None:
        trees = self._trees or [_tree(process.pid) for process in self._processes]
        with contextlib.suppress(Unreachable):
            if politely and not self._broken:
                await self.order({"do": "end"}, _CLOSE_S)
        for process in self._processes:
            if process.stdin is not None:
                process.stdin.close()
        with contextlib.suppress(TimeoutError):
            waits = (process.wait() for process in self._processes)
            await asyncio.wait_for(asyncio.gather(*waits), _CLOSE_S if politely else 0.5)
        sessions = [process.pid for process in self._processes]
        if self._services is not None:
            sessions.append(self._services.pid)
        # What a peer has started lives in its session: hivemind leaves processes behind at times.
        for session in sessions:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(session, signal.SIGKILL)
        for process in self._processes:
            await process.wait()
        if self._services is not None:
            self._services.wait()
        self._stack.close()
        for pid in (pid for tree in trees for pid in tree):
            _remove_leftovers(pid)
        for path in self._sockets:
            Path(path).unlink(missing_ok=True)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        return int(probe.getsockname()[1])


def _tree(pid: int) -> list[int]:
    """A process and all that it has started."""
    try:
        process = psutil.Process(pid)
        return [pid, *(child.pid for child in process.children(recursive=True))]
    except psutil.NoSuchProcess:
        return []


def _cpu(tree: Sequence[int]) -> float:
    """Processor seconds of some processes so far, by the scheduler's own clock of each."""
    total = 0.0
    for pid in tree:
        with contextlib.suppress(OSError):
            total += time.clock_gettime((~pid << 3) | 2)  # CPUCLOCK_SCHED of a process
    return total


def _peak(pid: int) -> int:
    """Most resident bytes since :func:`_forget_peak`."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return 0


def _forget_peak(pid: int) -> None:
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/clear_refs").write_text("5")


def _sockets(pid: int) -> list[str]:
    """Files of hivemind's Unix sockets that a process holds: some are left behind."""
    held, found = set(), []
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                held.add(os.readlink(descriptor))
        # psutil would list the sockets of our own network namespace alone.
        for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines():
            parts = line.split()
            if "/hivemind-p2p" in parts[-1] and f"socket:[{parts[-2]}]" in held:
                found.append(parts[-1])
    return found


def _remove_leftovers(pid: int) -> None:
    """Files of torch's shared memory, named by the process that made them."""
    for path in Path("/dev/shm").glob(f"torch_{pid}_*"):
        with contextlib.suppress(OSError):
            path.unlink()
