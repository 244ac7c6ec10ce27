"""How each kind of fault of a chaos run is done, and how it is seen that it is over."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from backup_world import Backup
from benchmarks.chaos_plan import COORDINATOR, Strike
from benchmarks.chaos_swarm import DAEMON, TRAINER, ChaosSwarm
from fault_proxy import BLACKHOLE, Fault
from injector import Injection

LEAVES_S = 240.0
"""A node that leaves finishes its round first."""
EXCUSED_S = 60.0
"""So long after its disk was full, a blob rotten or its daemon gone, a program may end for it."""
THERE_S = 60.0
"""So long is waited for somebody to be hit who is away."""
MOST_JUMP_S = 7200.0
CORRUPT_EVERY = 50_000
NEWEST_BLOBS = 6
TRAINS = (b" trainer.restarted ", b" training.half_done ", b" contribution.committed ")
"""What a node writes only with a trainer that works."""
Status = dict[str, Any]


@dataclass
class Blow:
    """A strike that was carried out. Times are seconds since the run was whole.

    :param round: the round under way
    :param over: when the cause was gone, or what was killed was started again; None: not yet
    :param back: when all of those that were hit were seen at work again
    :param agreed: when a state was agreed after it
    """

    strike: Strike
    at: float
    round: int
    over: float | None = None
    back: float | None = None
    agreed: float | None = None

    def as_dict(self) -> dict[str, Any]:
        found = {
            "planned": round(self.strike.at, 1),
            "kind": self.strike.kind,
            "parties": list(self.strike.parties),
            "seconds": round(self.strike.seconds, 1),
        }
        times = {"at": self.at, "over": self.over, "back": self.back, "agreed": self.agreed}
        return found | {name: t if t is None else round(t, 1) for name, t in times.items()}


class Striker:
    """Carries out strikes, and notes when what they hit is back.

    :param backups: folder for copies of the coordinator's home
    """

    def __init__(self, swarm: ChaosSwarm, backups: Path) -> None:
        self.swarm, self.blows = swarm, list[Blow]()
        self.began = time.monotonic()
        self._backups, self._copies = backups, 0
        self._backup: Backup | None = None
        self._from: dict[Strike, int] = {}
        """Where in the log of its node what comes after a strike begins."""

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    def back_up(self) -> None:
        """Copy the coordinator's home, while the coordinator stands still."""
        program = self.swarm.program_of(COORDINATOR)
        if program is not None:
            program.process.send_signal(signal.SIGSTOP)
        try:
            self._backup = self._copied()
        finally:
            if program is not None:
                program.process.send_signal(signal.SIGCONT)

    def _copied(self) -> Backup:
        self._copies += 1
        place = self._backups / str(self._copies)
        return Backup(self.swarm.place_of(COORDINATOR), place)

    def _put_back(self) -> None:
        old, self._backup = self._backup, self._copied()
        if old is not None:
            old.put_back()
            shutil.rmtree(old.folder)

    # --- doing it ---------------------------------------------------------------------------------

    async def strike(self, strike: Strike, round: int) -> Blow:
        """Do one; returns when its cause is gone."""
        blow = Blow(strike, self.now, round)
        self.blows.append(blow)
        await self._done(strike)
        blow.over = self.now
        return blow

    async def _done(self, strike: Strike) -> None:
        swarm, party, seconds = self.swarm, strike.parties[0], strike.seconds
        match strike.kind:
            case "node killed" | "coordinator killed" | "backup restored":
                await self._there(lambda: swarm.program_of(party))
                if strike.kind == "backup restored":
                    swarm.errands[party] = self._put_back
                before = swarm.started[party]
                swarm.kill(party, seconds)
                await self._there(lambda: swarm.started[party] > before)
            case "trainer killed":
                trainer = await self._there(lambda: swarm.child(party, TRAINER))
                self._from[strike] = self._log(party).stat().st_size
                if trainer is not None:
                    trainer.kill()
            case "network daemon killed" | "coordinator's network daemon killed":
                daemon = await self._there(lambda: swarm.child(party, DAEMON))
                if daemon is not None:
                    self._excuse(party, 0.0)  # a program that is just starting ends with it
                    daemon.kill()
            case "node frozen" | "coordinator frozen":
                await self._there(lambda: swarm.program_of(party))
                await _frozen(swarm.tree(party), seconds)
            case "partition":
                swarm.divide(strike.parties, BLACKHOLE, seconds)
                await asyncio.sleep(seconds)
            case "link slow":
                slow = Fault(rate=500 + 5000 * strike.lot, delay_s=0.2)
                swarm.sent_by(party, slow, seconds)
                await asyncio.sleep(seconds)
            case "link corrupting":
                swarm.sent_by(party, Fault(corrupt_every=CORRUPT_EVERY), seconds)
                await asyncio.sleep(seconds)
            case "link cut":
                swarm.cut(party)
            case "disk full" | "coordinator's disk full":
                await self._there(lambda: swarm.program_of(party))
                self._excuse(party, seconds)
                with swarm.full(party):
                    await asyncio.sleep(seconds)
            case "clock jump" | "coordinator's clock jump":
                jump = MOST_JUMP_S * (2 * strike.lot - 1)
                swarm.inject(party, Injection("", "clock", seconds=jump))
                await asyncio.sleep(seconds)
                swarm.inject(party, Injection("", "clock"))
            case "blob corrupted":
                self._excuse(party, 0.0)
                await asyncio.to_thread(rot, swarm.place_of(party), strike.lot)
            case "node leaves":
                await self._there(lambda: swarm.program_of(party))
                try:
                    await swarm.let_go(party, LEAVES_S)
                except TimeoutError:
                    swarm.problems.append(f"node {party} does not leave within {LEAVES_S:.0f} s")
            case "node joins":
                # It may be the one that takes its leave at this moment.
                await self._there(lambda: swarm.program_of(party) is None)
                swarm.keep(party)
            case other:
                raise ValueError(f"{other!r} is no kind of fault")

    def _excuse(self, party: int, seconds: float) -> None:
        self.swarm.excused[party] = time.monotonic() + seconds + EXCUSED_S

    async def _there(self, find: Callable[[], Any]) -> Any:
        """What is to be hit, once it is there; None when it does not come."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(THERE_S):
                while not (found := find()):  # noqa: ASYNC110  other processes can only be polled
                    await asyncio.sleep(0.1)
                return found
        return None

    # --- seeing that it is over -------------------------------------------------------------------

    def see(self, status: Status) -> None:
        """A new status of the coordinator."""
        now = self.now
        heard = {row["node"]: now - row["heard_s"] for row in status["nodes"]}
        for blow in self.blows:
            if blow.agreed is None and status["round"] > blow.round:
                blow.agreed = now
            if blow.over is None or blow.back is not None:
                continue
            strike = blow.strike
            if strike.kind == "node leaves":
                blow.back = blow.over
            elif strike.parties == (COORDINATOR,):
                if any(time > blow.over for time in heard.values()):
                    blow.back = now
            else:
                peers = [self.swarm.peer_of(party) for party in strike.parties]
                there = all(heard.get(peer, 0.0) > blow.over for peer in peers)
                if there and strike.kind == "trainer killed":
                    there = self._trains(strike)
                blow.back = now if there else None

    def _trains(self, strike: Strike) -> bool:
        """Whether a node has trained with another trainer than the one that was killed."""
        with self._log(strike.parties[0]).open("rb") as file:
            file.seek(self._from[strike])
            new = file.read()
        return any(line in new for line in TRAINS)

    def _log(self, party: int) -> Path:
        return self.swarm.place_of(party) / "node.log"


async def _frozen(processes: Sequence[psutil.Process], seconds: float) -> None:
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            process.suspend()
    try:
        await asyncio.sleep(seconds)
    finally:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()


def rot(home: Path, lot: float) -> str:
    """Turn one bit in one of the newest blobs of a home; its name, "" when there is none."""
    files = [path for path in (home / "blobs").glob("*") if path.is_file() and path.stat().st_size]
    newest = sorted(files, key=lambda path: (-path.stat().st_mtime_ns, path.name))[:NEWEST_BLOBS]
    if not newest:
        return ""
    path = newest[int(lot * len(newest))]
    place = int(lot * path.stat().st_size)
    with path.open("r+b") as file:
        byte = os.pread(file.fileno(), 1, place)
        os.pwrite(file.fileno(), bytes([byte[0] ^ 1]), place)
    return path.name
