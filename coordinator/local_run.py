"""A whole swarm on this machine: a coordinator and nodes as real processes with real sockets.

Used by ``artel demo`` and by the integration tests. The swarm owns its processes: each one is tied
to the runner (:mod:`protocol.tether`), and :meth:`LocalRun.close` ends them all, their network
daemons and trainers included.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import psutil

from artel.protocol import tether
from artel.protocol.errors import CheckFailed, ResourceError, Unreachable
from artel.protocol.invite import Invite
from artel.protocol.tasks import within

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
START_TIMEOUT_S = 240.0
"""Preparing a run is part of it: the tokenizer is trained, the data is cut."""
POLL_S = 0.3
REQUEST_TIMEOUT_S = 5.0
POLITE_S = 12.0
"""Until a process that was signalled gets the next stronger signal."""
HURRY_S = 4.0
"""The same for nodes when the whole swarm is closed: their first Ctrl-C would finish a round."""
LOG_LINES = 12
MAX_READY_BYTES = 1 << 16

Status = dict[str, Any]


@dataclass
class Program:
    """One process of a swarm; owned by the :class:`LocalRun`.

    ``expected`` says that it may end: it was killed, interrupted or told to stop by us.
    """

    name: str
    home: Path
    process: asyncio.subprocess.Process
    log: Path
    expected: bool = False

    @property
    def running(self) -> bool:
        return self.process.returncode is None

    def failure(self) -> CheckFailed:
        """The error that shows how its log ends."""
        return CheckFailed(
            f"{self.name} ended with exit code {self.process.returncode}; its log ends with\n"
            + _tail(self.log),
            f"the whole log is {self.log}",
        )


@dataclass
class LocalRun:
    """A coordinator and nodes below ``folder``, which gets ``coordinator``, ``node-1`` and so on.

    :param run_file: the run that the coordinator publishes
    :param node_options: further arguments of every ``artel node start``
    :param http_port: port of the page, 0 for a free one

    Use it as an async context manager; nothing of it is left running behind the block.
    """

    folder: Path
    run_file: Path
    node_options: tuple[str, ...] = ("--threads", "1")
    http_port: int = 0
    coordinator: Program | None = None
    nodes: dict[int, Program] = field(default_factory=dict)
    invite: str = ""
    http: str = ""
    _listen: str = LOOPBACK
    _session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> LocalRun:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def members(self) -> list[Program]:
        """All processes, the coordinator first."""
        first = [self.coordinator] if self.coordinator is not None else []
        return first + [self.nodes[number] for number in sorted(self.nodes)]

    def home_of(self, number: int) -> Path:
        """Home of node ``number`` (from 1)."""
        return self.folder / f"node-{number}"

    # --- start and stop ---------------------------------------------------------------------------

    async def start(self, nodes: int = 3) -> None:
        """Start the coordinator, and then this many nodes."""
        await self.start_coordinator()
        for _ in range(nodes):
            await self.add_node()

    async def start_coordinator(self) -> None:
        """Start the coordinator, or start it again in the same home and on the same ports.

        :raises CheckFailed: it ended instead of becoming ready
        """
        home = self.folder / "coordinator"
        member = await self._spawn(
            "the coordinator",
            home,
            *("coordinator", "start", str(self.run_file), "--home", str(home), "--json"),
            *("--http", f"127.0.0.1:{self.http_port}", "--listen", self._listen),
            output=asyncio.subprocess.PIPE,
        )
        self.coordinator = member
        ready = await self._ready(member)
        self.invite, self.http = str(ready["invite"]), str(ready["http"])
        self.http_port = int(self.http.rpartition(":")[2])
        self._listen = Invite.decode(self.invite).peers[0].partition("/p2p/")[0]

    async def _ready(self, member: Program) -> dict[str, Any]:
        """The one line that a coordinator prints when it answers."""
        output = member.process.stdout
        assert output is not None
        try:
            line = await within(output.readline(), START_TIMEOUT_S)
        except TimeoutError:
            raise Unreachable(
                f"the coordinator was not ready after {START_TIMEOUT_S:.0f} s", f"see {member.log}"
            ) from None
        if not line:
            await member.process.wait()
            raise member.failure()
        ready = json.loads(line[:MAX_READY_BYTES])
        assert isinstance(ready, dict)
        return ready

    async def stop_coordinator(self, how: signal.Signals = signal.SIGINT) -> None:
        """Stop the coordinator with a signal and wait until it is gone."""
        assert self.coordinator is not None
        await self._end(self.coordinator, how)

    async def add_node(self, *options: str) -> int:
        """Start one more node; returns its number.

        :param options: further arguments of this node's ``artel node start``
        """
        number = max(self.nodes, default=0) + 1
        await self.start_node(number, *options)
        return number

    async def start_node(self, number: int, *options: str) -> None:
        """Start node ``number``, in the home that it had before if it ran already."""
        home = self.home_of(number)
        self.nodes[number] = await self._spawn(
            f"node {number}",
            home,
            *("node", "start", "--join", self.invite, "--home", str(home), "--listen", LOOPBACK),
            *self.node_options,
            *options,
        )

    async def kill_node(self, number: int) -> None:
        """SIGKILL to a node and to all that it started, as when its machine loses power."""
        await self._end(self.nodes[number], signal.SIGKILL)

    def interrupt_node(self, number: int) -> None:
        """One Ctrl-C: the node finishes its round and leaves by itself."""
        member = self.nodes[number]
        member.expected = True
        _signal(member, signal.SIGINT)

    async def left(self, number: int, timeout: float = 60.0) -> int:
        """Wait until a node has ended by itself; returns its exit code.

        :raises Unreachable: it still runs after ``timeout`` seconds
        """
        member = self.nodes[number]
        try:
            return await within(member.process.wait(), timeout)
        except TimeoutError:
            raise Unreachable(
                f"{member.name} still runs after {timeout:.0f} s", f"see {member.log}"
            ) from None

    async def close(self) -> None:
        """End every process: SIGINT, SIGTERM, SIGKILL, and then whatever they had started."""
        if self._session is not None:
            await self._session.close()
            self._session = None
        running = [member for member in self.members if member.running]
        # Nodes first, so that they can say goodbye to the coordinator.
        nodes = [member for member in running if member is not self.coordinator]
        await asyncio.gather(*(self._end(member, patience=HURRY_S) for member in nodes))
        if self.coordinator is not None and self.coordinator.running:
            await self._end(self.coordinator)

    async def _spawn(
        self, name: str, home: Path, *command: str, output: int | None = None
    ) -> Program:
        log = home / "console.log"
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            append = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            with os.fdopen(os.open(log, append, 0o600), "ab") as file:
                process = await asyncio.create_subprocess_exec(
                    *tether.command(*command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=file if output is None else output,
                    stderr=file,
                    env=tether.environment(),
                    # Ctrl-C in the runner's terminal is the runner's to pass on.
                    start_new_session=True,
                )
        except OSError as error:
            raise ResourceError(f"cannot start {name}: {error.strerror}") from None
        return Program(name, home, process, log)

    async def _end(
        self, member: Program, first: signal.Signals = signal.SIGINT, patience: float = POLITE_S
    ) -> None:
        """Signal a member until it is gone, and then kill what it had started and left behind."""
        member.expected = True
        started = _descendants(member)
        for number in (first, signal.SIGTERM) if first is signal.SIGINT else (first,):
            if member.running:
                _signal(member, number)
                with contextlib.suppress(TimeoutError):
                    await within(member.process.wait(), patience)
                patience = POLITE_S
            started |= _descendants(member)
        if member.running:
            _signal(member, signal.SIGKILL)
            await member.process.wait()
        for process in started:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.kill()

    # --- watching ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Fail when a process ended that should not have.

        :raises CheckFailed: with the end of its log
        """
        for member in self.members:
            code = member.process.returncode
            # A node ends by itself, with 0, when the run is finished.
            if code is not None and not member.expected and (code or member is self.coordinator):
                raise member.failure()

    async def get(self, path: str) -> Status:
        """A document of the coordinator's API, for example ``/api/v1/rounds?last=1000``.

        :raises Unreachable: it does not answer
        """
        if self._session is None:
            timeout = aiohttp.ClientTimeout(total=REQUEST_TIMEOUT_S)
            self._session = aiohttp.ClientSession(timeout=timeout)
        try:
            async with self._session.get(self.http + path) as reply:
                reply.raise_for_status()
                value = await reply.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as error:
            raise Unreachable(f"the coordinator does not answer {path}: {error}") from None
        assert isinstance(value, dict)
        return value

    async def status(self) -> Status:
        """``/api/v1/status``."""
        return await self.get("/api/v1/status")

    async def watch(self, period: float = POLL_S) -> AsyncIterator[Status]:
        """The status again and again, until the caller has seen enough.

        :raises CheckFailed: a process ended that should not have
        :raises Unreachable: the coordinator does not answer several times in a row
        """
        failures = 0
        while True:
            self.check()
            try:
                status = await self.status()
            except Unreachable:
                failures += 1
                if failures > 5:
                    raise
            else:
                failures = 0
                yield status
            await asyncio.sleep(period)

    async def wait_for(
        self, predicate: Callable[[Status], bool], timeout: float, why: str
    ) -> Status:
        """Poll the status until ``predicate`` holds for it; returns that status.

        :param why: what is waited for, for the error
        :raises Unreachable: it does not hold after ``timeout`` seconds
        """
        began = time.monotonic()
        async for status in self.watch():
            if predicate(status):
                return status
            if time.monotonic() - began > timeout:
                seen = {key: status[key] for key in ("phase", "round", "attempt", "members")}
                raise Unreachable(
                    f"{why}: not within {timeout:.0f} s (now {seen}, {len(status['nodes'])} nodes)",
                    f"see the console.log of each process below {self.folder}",
                )
        raise AssertionError("not reached")

    async def wait_finished(self, timeout: float) -> Status:
        """Wait until the run is finished, its last state is evaluated, and all nodes have ended."""
        status = await self.wait_for(finished, timeout, "the run is finished")
        for number, member in self.nodes.items():
            if member.running:
                await self.left(number)
        self.check()
        return status


def finished(status: Status) -> bool:
    """Whether a run is over and the loss of its last state is known."""
    last = status["validation"]["last"]
    return status["phase"] == "finished" and last is not None and last["round"] == status["total"]


def _signal(member: Program, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        member.process.send_signal(number)


def _descendants(member: Program) -> set[psutil.Process]:
    """What the member has started; psutil knows a process again even if its id is given anew."""
    try:
        return set(psutil.Process(member.process.pid).children(recursive=True))
    except psutil.NoSuchProcess:
        return set()


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "  (no log)"
    return "\n".join(f"  | {line[:300]}" for line in lines[-LOG_LINES:]) or "  (empty)"
