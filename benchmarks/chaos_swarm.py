"""The processes of a chaos run: on disks that can be full, and started again whenever they end.

Each home lies on a small file system of its own in memory, in a mount namespace of the runner that
ends with it; so a disk that is full is really full. Where that may not be made (it needs root), a
limit on the size of files takes its place (setrlimit(2), RLIMIT_FSIZE): nothing can be written.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from artel.coordinator.local_run import Program
from artel.protocol import identity, tether
from artel.protocol.errors import ArtelError
from benchmarks.chaos_plan import COORDINATOR
from faulty_swarm import FaultySwarm

DISK = "160m"
BALLAST = "ballast"
AGAIN_S = 1.0
"""Until what ended is started again, and again."""
TRAINER, DAEMON = "artel.node.trainer", "p2pd"
_CLONE_NEWNS, _MS_REC, _MS_PRIVATE = 0x20000, 0x4000, 0x40000


def own_mounts() -> bool:
    """Give this process mounts of its own, which nobody else sees and which end with it; False when
    the system says no. To be called before anything starts a thread."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(_CLONE_NEWNS):
        return False
    return not libc.mount(None, b"/", None, _MS_REC | _MS_PRIVATE, None)


@dataclass
class ChaosSwarm(FaultySwarm):
    """A :class:`FaultySwarm` that a keeper for each party keeps up.

    :param disks: homes may be mounted (:func:`own_mounts`)
    :param tell: where a line for people goes
    :param coordinator_options: further arguments of ``artel coordinator start``
    """

    disks: bool = False
    tell: Callable[[str], None] = print
    coordinator_options: tuple[str, ...] = ()
    problems: list[str] = field(default_factory=list)
    """What ended that had no reason to."""
    away: dict[int, float] = field(default_factory=dict)
    """Party to the seconds for which it stays away when it ends next."""
    errands: dict[int, Callable[[], None]] = field(default_factory=dict)
    """What is done before a party is started again."""
    excused: dict[int, float] = field(default_factory=dict)
    """Party to the moment until which it may end by itself, for what was done to it."""
    started: dict[int, float] = field(default_factory=dict)
    """Party to the moment when its process was started last."""
    restarts: int = 0
    group: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    """Owns the keepers."""
    _keepers: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    # --- who is there -----------------------------------------------------------------------------

    def program_of(self, party: int) -> Program | None:
        """Its process, while it runs."""
        found = self.nodes.get(party) if party else self.coordinator
        return found if found is not None and found.running else None

    def place_of(self, party: int) -> Path:
        return self.home_of(party) if party else self.folder / "coordinator"

    def peer_of(self, party: int) -> str:
        """Peer id of a node; "" before it has one."""
        try:
            return identity.load(self.home_of(party) / "node.key").peer_id
        except ArtelError:
            return ""

    @property
    def homes(self) -> dict[int, Path]:
        """Of all who ever were there."""
        return {party: self.place_of(party) for party in (COORDINATOR, *self.nodes)}

    def child(self, party: int, named: str) -> psutil.Process | None:
        """What a party has started: its network daemon, or its trainer."""
        return next((p for p in self.tree(party)[1:] if named in " ".join(_words(p))), None)

    def tree(self, party: int) -> list[psutil.Process]:
        """Its process and all below it."""
        program = self.program_of(party)
        try:
            top = psutil.Process(program.process.pid) if program is not None else None
            return [top, *top.children(recursive=True)] if top is not None else []
        except psutil.NoSuchProcess:
            return []

    # --- keeping it up ----------------------------------------------------------------------------

    def keep(self, party: int) -> None:
        """Start a party, and from now on again whenever it ends."""
        self._keepers[party] = self.group.create_task(self._keep(party))

    async def let_go(self, party: int, patience: float) -> int:
        """Ask a party to leave, and keep it up no longer; its exit code.

        :raises TimeoutError: it still runs
        """
        self._keepers.pop(party).cancel()
        program = self.program_of(party)
        if program is None:
            return 0
        program.expected = True
        program.process.send_signal(signal.SIGINT)
        async with asyncio.timeout(patience):
            return await program.process.wait()

    @property
    def kept(self) -> list[int]:
        """Nodes that are to be there."""
        return [party for party in self._keepers if party]

    async def _keep(self, party: int) -> None:
        while True:
            errand = self.errands.pop(party, None)
            if errand is not None:
                await asyncio.to_thread(errand)
            self.started[party] = time.monotonic()
            failure = ""
            try:
                await (self.start_node(party) if party else self.start_coordinator())
            except ArtelError as error:
                failure = error.message
            program = self.nodes.get(party) if party else self.coordinator
            if program is not None and not failure:
                failure = f"{program.name} {tether.ending(await program.process.wait())}"
            if program is not None and program.expected:  # also while it was starting
                failure = ""
            if failure and time.monotonic() > self.excused.get(party, 0.0):
                log = program.log if program is not None else self.place_of(party)
                self.problems.append(f"{failure}, for no reason (see {log})")
            if failure:
                self.tell(f"! {failure.splitlines()[0]}; it is started again")
                self.restarts += 1
            await asyncio.sleep(self.away.pop(party, AGAIN_S))

    def kill(self, party: int, away: float) -> bool:
        """SIGKILL to its process, as when a machine loses power; the kernel ends its children."""
        program = self.program_of(party)
        if program is None:
            return False
        program.expected = True
        self.away[party] = away
        with contextlib.suppress(ProcessLookupError):
            program.process.kill()
        return True

    async def close(self) -> None:
        for process in (p for party in self.homes for p in self.tree(party)):
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()
        await super().close()

    # --- disks ------------------------------------------------------------------------------------

    async def _spawn(
        self, name: str, home: Path, *command: str, output: int | None = None
    ) -> Program:
        if self.disks and not home.is_mount():
            home.mkdir(mode=0o700, exist_ok=True)
            options = f"size={DISK},mode=0700"
            mount = ("mount", "-t", "tmpfs", "-o", options, "artel-chaos", str(home))
            await asyncio.to_thread(subprocess.run, mount, check=True)
        if command[0] == "coordinator":
            command = (*command, *self.coordinator_options)
        return await super()._spawn(name, home, *command, output=output)

    @contextlib.contextmanager
    def full(self, party: int) -> Iterator[None]:
        """The disk of a party is full for as long as this lasts."""
        ballast, limited = self.place_of(party) / BALLAST, self.tree(party)
        if self.disks:
            room = shutil.disk_usage(ballast.parent).free
            with ballast.open("wb") as file, contextlib.suppress(OSError):
                os.posix_fallocate(file.fileno(), 0, max(1, room))
        else:
            _limit(limited, 0)
        try:
            yield
        finally:
            if self.disks:
                ballast.unlink()
            else:
                _limit(limited, None)

    def copy_homes(self, to: Path) -> None:
        """Homes that are mounted nobody sees any more when the runner has ended."""
        for home in self.homes.values():
            if home.is_dir():
                shutil.copytree(home, to / home.name, ignore=_special, dirs_exist_ok=True)

    def unmount(self) -> None:
        for home in self.homes.values():
            if home.is_mount():
                subprocess.run(("umount", "--lazy", str(home)), check=False)

    # --- what is left -----------------------------------------------------------------------------

    def strays(self) -> list[str]:
        """Processes of this run that nobody owns any more, in words."""
        ours = {process.pid for process in psutil.Process().children(recursive=True)}
        mark, found = str(self.folder / "state"), []
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error, OSError):
                other = process.pid not in ours and process.pid != os.getpid()
                if other and process.environ().get("XDG_STATE_HOME") == mark:
                    found.append(f"process {process.pid}: {' '.join(_words(process))[:120]}")
        return found


def _words(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def _limit(processes: list[psutil.Process], most: int | None) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            _, hard = process.rlimit(psutil.RLIMIT_FSIZE)
            process.rlimit(psutil.RLIMIT_FSIZE, (hard if most is None else most, hard))


def _special(folder: str, names: list[str]) -> list[str]:
    """Sockets and the like, which cannot be copied."""
    paths = {name: Path(folder, name) for name in names}
    return [name for name, path in paths.items() if not path.is_file() and not path.is_dir()]
