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
from benchmarks.chaos_plan import COORDINATOR, KINDS, Strike
from benchmarks.chaos_swarm import DAEMON, HOMES, TRAINER, ChaosSwarm
from fault_proxy import BLACKHOLE, Fault
from injector import Injection

LEAVES_S = 240.0
"""A node that leaves finishes its round first."""
EXCUSED_S = 60.0
"""So long after its disk was full, a blob rotten or its daemon gone, a program may end for it."""
HANDS_OVER_S = 120.0
"""A round has to end first, and the other coordinator may be away."""
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
    :param over: when the cause was gone, or what was killed was started again; of a coordinator the
        moment of the kill, since it need not be the same one that leads next; None: not yet
    :param back: when all of those that were hit were seen at work again, or somebody leads
    :param agreed: when a state was agreed after it
    """

    strike: Strike
    at: float
    round: int
    over: float | None = None
    back: float | None = None
    agreed: float | None = None
    refused: str = ""
    """Why a term was not ended on purpose."""

    def as_dict(self) -> dict[str, Any]:
        found = {
            "planned": round(self.strike.at, 1),
            "kind": self.strike.kind,
            "parties": list(self.strike.parties),
            "seconds": round(self.strike.seconds, 1),
        }
        times = {"at": self.at, "over": self.over, "back": self.back, "agreed": self.agreed}
        found |= {name: t if t is None else round(t, 1) for name, t in times.items()}
        return found | ({"refused": self.refused} if self.refused else {})


@dataclass(frozen=True)
class Term:
    """A term that has begun while the run was watched.

    :param at: when it was seen to be led, in seconds since the run was whole
    :param without: seconds since anybody else was seen to lead
    """

    number: int
    at: float
    without: float


class Striker:
    """Carries out strikes, and notes when what they hit is back.

    :param backups: folder for copies of the coordinators' homes
    """

    def __init__(self, swarm: ChaosSwarm, backups: Path) -> None:
        self.swarm, self.blows = swarm, list[Blow]()
        self.began = time.monotonic()
        self.terms: list[Term] = []
        self._led = (0, self.began)  # the latest term, and when somebody was seen to lead it
        self._backups, self._copies = backups, 0
        self._backup: dict[int, Backup] = {}
        self._from: dict[Strike, int] = {}
        """Where in the log of its node what comes after a strike begins."""

    @property
    def now(self) -> float:
        return time.monotonic() - self.began

    def back_up(self) -> None:
        """Copy the homes of both coordinators, while they stand still."""
        for party in HOMES:
            program = self.swarm.program_of(party)
            if program is not None:
                program.process.send_signal(signal.SIGSTOP)
            try:
                self._backup[party] = self._copied(party)
            finally:
                if program is not None:
                    program.process.send_signal(signal.SIGCONT)

    def _copied(self, party: int) -> Backup:
        self._copies += 1
        place = self._backups / str(self._copies)
        return Backup(self.swarm.place_of(party), place)

    def _put_back(self, party: int) -> None:
        old, self._backup[party] = self._backup[party], self._copied(party)
        old.put_back()
        shutil.rmtree(old.folder)

    # --- doing it ---------------------------------------------------------------------------------

    async def strike(self, strike: Strike, round: int) -> Blow:
        """Do one; returns when its cause is gone."""
        blow = Blow(strike, self.now, round)
        self.blows.append(blow)
        leads = KINDS[strike.kind].leads
        await self._done(strike, blow, self.swarm.leads if leads else strike.parties[0])
        blow.over = self.now if blow.over is None else blow.over
        return blow

    async def _done(self, strike: Strike, blow: Blow, party: int) -> None:
        """:param party: whom it hits, the first one where there are several"""
        swarm, seconds = self.swarm, strike.seconds
        match strike.kind:
            case "node killed":
                await self._there(lambda: swarm.program_of(party))
                before = swarm.started[party]
                swarm.kill(party, seconds)
                await self._there(lambda: swarm.started[party] > before)
            case "coordinator killed" | "coordinator's home deleted" | "backup restored":
                await self._there(lambda: swarm.program_of(party))
                if strike.kind == "backup restored":
                    swarm.errands[party] = lambda: self._put_back(party)
                elif strike.kind == "coordinator's home deleted":
                    swarm.errands[party] = lambda: swarm.delete_home(party)
                swarm.kill(party, seconds)
                blow.over = self.now
            case "handover on purpose":
                await self._there(lambda: swarm.stands_by)
                blow.over = self.now
                blow.refused = await swarm.hand_over(HANDS_OVER_S)
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
                self._excuse(party, seconds)  # a coordinator that starts with it ends
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
        term, seen = self._led
        if status["term"] > term:
            self.terms.append(Term(status["term"], now, now - seen))
        self._led = max(term, status["term"]), now
        heard = {row["node"]: now - row["heard_s"] for row in status["nodes"]}
        for blow in self.blows:
            if blow.agreed is None and status["round"] > blow.round:
                blow.agreed = now
            if blow.over is None or blow.back is not None:
                continue
            strike = blow.strike
            if strike.kind == "node leaves":
                blow.back = blow.over
            elif strike.kind == "handover on purpose":
                blow.back = next((each.at for each in self.terms if each.at > blow.over), None)
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
