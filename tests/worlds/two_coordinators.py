"""A swarm of real processes whose run names two coordinators: one leads, one stands by."""

from __future__ import annotations

import asyncio
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from artel.coordinator.local_run import LOOPBACK, Program, Status
from artel.coordinator.process import INVITE_FILE
from artel.ledger.store.reader import LedgerReader
from artel.protocol.errors import Unreachable
from artel.protocol.identity import load_or_create
from artel.protocol.net.http import announced_in, fetch_object
from artel.protocol.tasks import within
from benchmarks.swarm import PATIENCE_S, Swarm
from injector import Injection, inject, listening
from swarm_world import ledger_of, round_at_least, write_run

HOMES = ("coordinator", "standby")


def write_run_of_two(folder: Path, handover_s: float = 2.0) -> Path:
    """A run file that names the key of the home ``standby`` in the folder."""
    run_file = write_run(folder, total=400, inner_steps=20, mirror_every=1)
    key = load_or_create(folder / HOMES[1] / "node.key").key
    with run_file.open("a") as file:
        file.write(f'\n[coordination]\nstandbys = ["{key}"]\nhandover_s = {handover_s}\n')
    return run_file


@dataclass
class Two(Swarm):
    """The status and all that is waited for is that of whoever leads."""

    pair: dict[str, Program] = field(default_factory=dict)
    leads: str = HOMES[0]
    died: float = 0.0
    """When (steady seconds) the one that led was killed, or had handed over."""

    @property
    def programs(self) -> list[Program]:
        return [*self.pair.values(), *self.nodes.values()]

    async def begin(self, nodes: int = 3) -> None:
        await self.start_coordinator()
        assert self.coordinator is not None
        self.pair[HOMES[0]] = self.coordinator
        await self.start_again(HOMES[1])
        for _ in range(nodes):
            await self.add_node()
        # Nobody can seal a term before all know of the first state, which makes them electors.
        await self.wait_for(round_at_least(2), "two states are agreed")

    async def start_again(self, name: str, *, anew: bool = False) -> None:
        """Start the coordinator of one of the homes; it is ready when this returns.

        :param anew: it knows of nothing but its key, and of an invite
        """
        home = self.folder / name
        invite = (self.folder / self.leads / INVITE_FILE).read_text().strip()
        first = name == HOMES[0] and not anew
        command = ("start", str(self.run_file)) if first else ("standby", invite)
        program = await self._spawn(
            f"the {name}",
            home,
            *("coordinator", *command, "--home", str(home), "--json", "--verbose"),
            *("--release-every", "0"),
            *("--http", "127.0.0.1:0", "--listen", LOOPBACK),
            output=asyncio.subprocess.PIPE,
        )
        self.pair[name] = program
        await self._ready(program)

    async def _spawn(
        self, name: str, home: Path, *command: str, output: int | None = None
    ) -> Program:
        with listening(self._injections(home.name)):
            return await super()._spawn(name, home, *command, output=output)

    def _injections(self, name: str) -> Path:
        return self.folder / f"injections-{name}"

    def inject(self, name: str, *injections: Injection) -> None:
        inject(self._injections(name), *injections)

    async def status_of(self, name: str) -> Status:
        url = announced_in(self.folder / name, "coordinator")
        return await asyncio.to_thread(fetch_object, f"{url}/api/v1/status")

    async def status(self) -> Status:
        return await self.status_of(self.leads)

    async def until(
        self, name: str, holds: Callable[[Status], bool], why: str, timeout: float = PATIENCE_S
    ) -> float:
        """Wait until the status of one of the two says so; the seconds that it took."""
        began, status = time.monotonic(), {}
        while time.monotonic() - began < timeout:
            try:
                status = await self.status_of(name)
                if holds(status):
                    return time.monotonic() - began
            except Unreachable:
                self.check()
            await asyncio.sleep(0.1)
        raise Unreachable(f"{why}: not within {timeout:.0f} s ({status})", str(self.folder))

    @property
    def other(self) -> str:
        return HOMES[1 - HOMES.index(self.leads)]

    async def kill_leader(self, point: Injection | None = None) -> list[bytes]:
        """SIGKILL to whoever leads, at a point if one is named; what of its ledger was final."""
        program = self.pair[self.leads]
        program.expected = True
        if point is None:
            await self._end(program, signal.SIGKILL)
        else:
            self.inject(self.leads, point)
            await within(program.process.wait(), PATIENCE_S)
            self.inject(self.leads)
        self.died = time.monotonic()
        return final_of(self.folder / self.leads)

    async def taken_over(self) -> float:
        """The other one leads, and has opened a round: the seconds until then, from the death."""

        def opened(status: Status) -> bool:
            # One whose members have trained already goes on where it was.
            return status["role"] == "leader" and status["phase"] in ("training", "revealing")

        await self.until(self.other, opened, "the other coordinator leads")
        self.leads = self.other
        return time.monotonic() - self.died

    async def a_state(self) -> float:
        """Wait until one more state is agreed, under whoever leads now."""
        await self.until(HOMES[0], lambda status: status["phase"] != "", "it answers")
        first = (await self.status_of(HOMES[0]))["role"] == "leader"
        self.leads = HOMES[0] if first else HOMES[1]
        before = (await self.status())["round"]
        return await self.until(self.leads, lambda s: s["round"] > before, "one more state")

    async def back(self, *, anew: bool = False) -> None:
        """Start the one that was killed: it stands by, and holds the ledger.

        :param anew: its home is deleted first, but for the key
        """
        name, home = self.other, self.folder / self.other
        if anew:
            key = (home / "node.key").read_bytes()
            shutil.rmtree(home)
            home.mkdir(mode=0o700)
            (home / "node.key").touch(0o600)
            (home / "node.key").write_bytes(key)
        await self.start_again(name, anew=anew)
        size = (await self.status())["ledger"]["size"]

        def follows(status: Status) -> bool:
            return status["role"] == "standby" and status["ledger"]["size"] >= size

        await self.until(name, follows, "the former leader follows")


def final_of(home: Path) -> list[bytes]:
    """The entries of a home's ledger that are final by it."""
    _, state = ledger_of(home)
    with LedgerReader.of(home) as store:
        return list(store.leaves(0, state.final))
