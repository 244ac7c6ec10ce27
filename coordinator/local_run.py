"""A whole run on this machine: a coordinator and nodes as real processes with real sockets.

It owns its processes: each one is tied to the runner (:mod:`protocol.tether`), and
:meth:`LocalRun.close` ends them all, their network daemons and trainers included. Benchmarks and
tests use it too, and do more to the processes (``benchmarks/swarm.py``).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from artel.protocol import tether
from artel.protocol.errors import CheckFailed, ResourceError, Unreachable
from artel.protocol.invite import Invite
from artel.protocol.net.http import fetch_object
from artel.protocol.tasks import within

LOOPBACK = "/ip4/127.0.0.1/tcp/0"
START_TIMEOUT_S = 240.0
"""Preparing a run is part of it: the tokenizer is trained, the data is cut."""
POLL_S = 0.3
POLITE_S = 12.0
"""Until a process that was signalled gets the next stronger signal."""
HURRY_S = 4.0
"""The same for nodes when the whole swarm is closed: their first Ctrl-C would finish a round."""
LOG_LINES = 12
MAX_READY_BYTES = 1 << 16

Status = dict[str, Any]


@dataclass
class Program:
    """One process; owned by the :class:`LocalRun`.

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
    :param coordinator_options: further arguments of ``artel coordinator start``

    Use it as an async context manager; nothing of it is left running behind the block.
    """

    folder: Path
    run_file: Path
    node_options: tuple[str, ...] = ("--threads", "1")
    http_port: int = 0
    coordinator_options: tuple[str, ...] = ()
    coordinator: Program | None = None
    nodes: dict[int, Program] = field(default_factory=dict)
    invite: str = ""
    http: str = ""
    _listen: str = LOOPBACK

    async def __aenter__(self) -> LocalRun:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def programs(self) -> list[Program]:
        """All processes, the coordinator first."""
        first = [self.coordinator] if self.coordinator is not None else []
        return first + [self.nodes[number] for number in sorted(self.nodes)]

    # --- start and stop ---------------------------------------------------------------------------

    async def start_coordinator(self) -> None:
        """Start the coordinator, or start it again in the same home and on the same ports.

        :raises CheckFailed: it ended instead of becoming ready
        """
        home = self.folder / "coordinator"
        program = await self._spawn(
            "the coordinator",
            home,
            *("coordinator", "start", str(self.run_file), "--home", str(home), "--json"),
            *self.coordinator_options,
            *("--http", f"127.0.0.1:{self.http_port}", "--listen", self._listen),
            output=asyncio.subprocess.PIPE,
        )
        self.coordinator = program
        ready = await self._ready(program)
        self.invite, self.http = str(ready["invite"]), str(ready["http"])
        self.http_port = int(self.http.rpartition(":")[2])
        self._listen = Invite.decode(self.invite).peers[0].partition("/p2p/")[0]

    async def _ready(self, program: Program) -> dict[str, Any]:
        """The one line that a coordinator prints when it answers."""
        output = program.process.stdout
        assert output is not None
        try:
            line = await within(output.readline(), START_TIMEOUT_S)
        except TimeoutError:
            raise Unreachable(
                f"the coordinator was not ready after {START_TIMEOUT_S:.0f} s", f"see {program.log}"
            ) from None
        if not line:
            await program.process.wait()
            raise program.failure()
        ready = json.loads(line[:MAX_READY_BYTES])
        assert isinstance(ready, dict)
        return ready

    async def add_node(self, *options: str) -> int:
        """Start one more node; returns its number.

        :param options: further arguments of this node's ``artel node start``
        """
        number = max(self.nodes, default=0) + 1
        await self.start_node(number, *options)
        return number

    async def start_node(self, number: int, *options: str) -> None:
        """Start node ``number``, in the home that it had before if it ran already."""
        home = self.folder / f"node-{number}"
        self.nodes[number] = await self._spawn(
            f"node {number}",
            home,
            *("node", "start", "--join", self.invite, "--home", str(home), "--listen", LOOPBACK),
            *self.node_options,
            *options,
        )

    async def ended(self, timeout: float = 60.0) -> None:
        """Wait until all nodes have ended by themselves, as they do when the run is finished.

        :raises Unreachable: one still runs after ``timeout`` seconds
        :raises CheckFailed: one failed
        """
        for program in self.nodes.values():
            try:
                await within(program.process.wait(), timeout)
            except TimeoutError:
                raise Unreachable(
                    f"{program.name} still runs after {timeout:.0f} s", f"see {program.log}"
                ) from None
        self.check()

    async def close(self) -> None:
        """End every process: SIGINT, SIGTERM, SIGKILL; the kernel ends what they had started."""
        running = [program for program in self.programs if program.running]
        # Nodes first, so that they can say goodbye to the coordinator.
        nodes = [program for program in running if program is not self.coordinator]
        await asyncio.gather(*(self._end(program, patience=HURRY_S) for program in nodes))
        if self.coordinator is not None and self.coordinator.running:
            await self._end(self.coordinator)

    def program(self, *command: str) -> tuple[str, ...]:
        """The command line that runs ``artel COMMAND``."""
        return tether.command(*command)

    async def _spawn(
        self, name: str, home: Path, *command: str, output: int | None = None
    ) -> Program:
        log = home / "console.log"
        try:
            home.mkdir(mode=0o700, parents=True, exist_ok=True)
            append = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
            with os.fdopen(os.open(log, append, 0o600), "ab") as file:
                process = await asyncio.create_subprocess_exec(
                    *self.program(*command),
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=file if output is None else output,
                    stderr=file,
                    # Nothing of a run that is gone soon stays behind elsewhere.
                    env=tether.environment(XDG_STATE_HOME=str(self.folder / "state")),
                    # Ctrl-C in the runner's terminal is the runner's to pass on.
                    start_new_session=True,
                )
        except OSError as error:
            raise ResourceError(f"cannot start {name}: {error.strerror or error}") from None
        return Program(name, home, process, log)

    async def _end(
        self, program: Program, first: signal.Signals = signal.SIGINT, patience: float = POLITE_S
    ) -> None:
        """Signal a program until it is gone; what it had started and left behind ends with it."""
        program.expected = True
        for number in (first, signal.SIGTERM) if first is signal.SIGINT else (first,):
            if program.running:
                _signal(program, number)
                with contextlib.suppress(TimeoutError):
                    await within(program.process.wait(), patience)
                patience = POLITE_S
        if program.running:
            _signal(program, signal.SIGKILL)
            await program.process.wait()

    # --- watching ---------------------------------------------------------------------------------

    def check(self) -> None:
        """Fail when a process ended that should not have.

        :raises CheckFailed: with the end of its log
        """
        for program in self.programs:
            code = program.process.returncode
            # A node ends by itself, with 0, when the run is finished.
            if code is not None and not program.expected and (code or program is self.coordinator):
                raise program.failure()

    async def get(self, path: str) -> Status:
        """A document of the coordinator's API, for example ``/api/v1/rounds?last=1000``.

        :raises Unreachable: it does not answer
        """
        return await asyncio.to_thread(fetch_object, self.http + path)

    async def watch(self, period: float = POLL_S) -> AsyncIterator[Status]:
        """The status again and again, until the caller has seen enough.

        :raises CheckFailed: a process ended that should not have
        :raises Unreachable: the coordinator does not answer several times in a row
        """
        failures = 0
        while True:
            self.check()
            try:
                status = await self.get("/api/v1/status")
            except Unreachable:
                failures += 1
                if failures > 5:
                    raise
            else:
                failures = 0
                yield status
            await asyncio.sleep(period)


def finished(status: Status) -> bool:
    """Whether a run is over and the loss of its last state is known."""
    last = status["validation"]["last"]
    return status["phase"] == "finished" and last is not None and last["round"] == status["total"]


def _signal(program: Program, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        program.process.send_signal(number)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 8192))
            lines = file.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return "  (no log)"
    return "\n".join(f"  | {line[:300]}" for line in lines[-LOG_LINES:]) or "  (empty)"
