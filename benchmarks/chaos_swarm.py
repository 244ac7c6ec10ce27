"""The processes of a chaos run: on disks that can be full, and started again whenever they end.

Two coordinators are there, of which one leads and one stands by; who does which changes.
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

from artel.coordinator.local_run import LOOPBACK, Program, Status
from artel.coordinator.process import INVITE_FILE
from artel.ledger.store.keyfiles import NODE_KEY
from artel.protocol import identity, tether
from artel.protocol.errors import ArtelError, Unreachable
from artel.protocol.net.http import announced_in, fetch_object
from benchmarks.chaos_plan import COORDINATOR, STANDBY
from faulty_swarm import FaultySwarm

DISK = "160m"
BALLAST = "ballast"
HOMES = {COORDINATOR: "coordinator", STANDBY: "standby"}
ANSWER_S = 2.0
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
    """

    disks: bool = False
    tell: Callable[[str], None] = print
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
    coordinators: dict[int, Program] = field(default_factory=dict)
    leads: int = COORDINATOR
    """Who of them led when they were asked last."""
    said: dict[int, Status] = field(default_factory=dict)
    """What the two said last."""
    deleted: set[int] = field(default_factory=set)
    """Those of them whose home was deleted: they know an invite alone."""
    restarts: int = 0
    group: asyncio.TaskGroup = field(default_factory=asyncio.TaskGroup)
    """Owns the keepers."""
    _keepers: dict[int, asyncio.Task[None]] = field(default_factory=dict)

    # --- who is there -----------------------------------------------------------------------------

    @property
    def programs(self) -> list[Program]:
        return [*self.coordinators.values(), *self.nodes.values()]

    def _newest(self, party: int) -> Program | None:
        return (self.coordinators if party in HOMES else self.nodes).get(party)

    def program_of(self, party: int) -> Program | None:
        """Its process, while it runs."""
        found = self._newest(party)
        return found if found is not None and found.running else None

    def place_of(self, party: int) -> Path:
        return self.folder / HOMES[party] if party in HOMES else self.home_of(party)

    def party_of(self, home: Path) -> int:
        return STANDBY if home.name == HOMES[STANDBY] else super().party_of(home)

    def peer_of(self, party: int) -> str:
        """Peer id of a node; "" before it has one."""
        try:
            return identity.load(self.place_of(party) / NODE_KEY).peer_id
        except ArtelError:
            return ""

    @property
    def homes(self) -> dict[int, Path]:
        """Of all who ever were there."""
        return {party: self.place_of(party) for party in (*HOMES, *self.nodes)}

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
        return [party for party in self._keepers if party not in HOMES]

    async def _keep(self, party: int) -> None:
        while True:
            errand = self.errands.pop(party, None)
            if errand is not None:
                await asyncio.to_thread(errand)
            self.started[party] = time.monotonic()
            failure = ""
            try:
                await (self._start_one_of_two if party in HOMES else self.start_node)(party)
            except ArtelError as error:
                failure = error.message
            program = self._newest(party)
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

    # --- the two coordinators ---------------------------------------------------------------------

    def standby_key(self) -> str:
        """The key (hex) of the second one, which the run file has to name."""
        home = self.place_of(STANDBY)
        self._mount(home)
        return identity.load_or_create(home / NODE_KEY).key

    async def _start_one_of_two(self, party: int) -> None:
        """Start a coordinator; it is ready when this returns.

        :raises ArtelError: it ended instead
        """
        home = self.place_of(party)
        begins = party == COORDINATOR and party not in self.deleted
        command = ("start", str(self.run_file)) if begins else ("standby", self.invite)
        program = self.coordinators[party] = await self._spawn(
            f"the {home.name}",
            home,
            *("coordinator", *command, "--home", str(home), "--json", *self.coordinator_options),
            *("--http", "127.0.0.1:0", "--listen", LOOPBACK),
            output=asyncio.subprocess.PIPE,
        )
        ready = await self._ready(program)
        self.invite = self.invite or str(ready["invite"])

    async def status(self) -> Status:
        """The status of whoever leads the latest term.

        :raises Unreachable: nobody answers who does
        """
        found = await asyncio.gather(*map(self.status_of, HOMES))
        self.said = dict(zip(HOMES, found, strict=True))
        leading = {p: status for p, status in self.said.items() if status.get("role") == "leader"}
        if not leading:
            raise Unreachable("no coordinator leads", "try again")
        self.leads = max(leading, key=lambda party: leading[party]["term"])
        with contextlib.suppress(OSError):  # nodes that come meet the one who leads
            self.invite = (self.place_of(self.leads) / INVITE_FILE).read_text().strip()
        return leading[self.leads]

    def least(self, name: str) -> int:
        """The lesser one of what the two said of something when they were asked last."""
        return min((int(status.get(name, 0)) for status in self.said.values()), default=0)

    @property
    def stands_by(self) -> bool:
        """Whether the one that does not lead was there to take over when they were asked last."""
        return any(status.get("role") == "standby" for status in self.said.values())

    async def status_of(self, party: int) -> Status:
        """What one coordinator says; nothing when it does not answer."""
        try:
            url = announced_in(self.place_of(party), "coordinator")
            return await asyncio.to_thread(fetch_object, f"{url}/api/v1/status", ANSWER_S)
        except ArtelError:
            return {}

    async def hand_over(self, patience: float) -> str:
        """Let whoever leads end its term on purpose; why it did not, "" when it did."""
        home = str(self.place_of(self.leads))
        program = await asyncio.create_subprocess_exec(
            *tether.command("coordinator", "handover", "--home", home),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=tether.environment(),
        )
        try:
            async with asyncio.timeout(patience):
                _, said = await program.communicate()
        except TimeoutError:
            program.kill()
            await program.wait()
            return f"not within {patience:.0f} s"
        return said.decode().partition("\n")[0] if program.returncode else ""

    def delete_home(self, party: int) -> None:
        """All is lost but the key, of which its owner has a copy."""
        self.deleted.add(party)
        for path in self.place_of(party).iterdir():
            if path.name in (NODE_KEY, "console.log"):
                continue
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink()

    # --- disks ------------------------------------------------------------------------------------

    def _mount(self, home: Path) -> None:
        """Give a home a disk of its own, unless it has one."""
        home.mkdir(mode=0o700, exist_ok=True)
        if self.disks and not home.is_mount():
            options = f"size={DISK},mode=0700"
            mount = ("mount", "-t", "tmpfs", "-o", options, "artel-chaos", str(home))
            subprocess.run(mount, check=True)

    async def _spawn(
        self, name: str, home: Path, *command: str, output: int | None = None
    ) -> Program:
        await asyncio.to_thread(self._mount, home)
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
