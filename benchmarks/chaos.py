"""Does a run survive whatever goes wrong? Faults at random, by seed, in a swarm of real processes.

Two coordinators and nodes, each on a disk of its own and behind a proxy of its own; whatever ends
is started again, as by a service manager. Faults come by the plan of a seed
(:mod:`benchmarks.chaos_plan`), and all along the disks are searched for what must never be
(:mod:`benchmarks.chaos_watch`). At the end everybody has to work again, leaves, and everything is
checked once more. With --mtbf 0 nothing goes wrong: the same run to compare the loss with, and,
over half an hour, memory and open files of every process (:mod:`benchmarks.chaos_table`).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

from artel.protocol.errors import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_OK,
    ArtelError,
    CheckFailed,
)
from benchmarks.chaos_plan import COORDINATOR, STANDBY, plan
from benchmarks.chaos_strikes import Status, Striker
from benchmarks.chaos_swarm import HOMES, ChaosSwarm, own_mounts
from benchmarks.chaos_table import Result, Usage, table
from benchmarks.chaos_watch import Accounts, Watch, settled
from swarm_world import write_run


@dataclass(frozen=True)
class Options:
    """What is asked for: see ``artel chaos --help``."""

    nodes: int
    seed: int
    duration: float
    mtbf: float
    inner_steps: int
    keep: Path | None
    as_json: bool


ROUNDS = 100_000
"""More than there will be."""
WHOLE_S, WORK_S, LEAVE_S = 900.0, 400.0, 300.0
"""So long a swarm may take to be whole at first, to work again after the last fault, to leave."""
POLL_S, LOOK_S, SAY_S = 0.5, 10.0, 15.0


class Chaos:
    """One run.

    :param folder: where everything is
    :param temporary: the folder for temporary files of all processes
    :param said: where progress goes
    """

    def __init__(
        self, options: Options, folder: Path, temporary: Path, disks: bool, said: TextIO
    ) -> None:
        self.options, self.folder, self.temporary, self.said = options, folder, temporary, said
        nodes = options.nodes
        patience = max(1.0, nodes / 3)
        run_file = write_run(
            folder,
            total=ROUNDS,
            inner_steps=options.inner_steps,
            max_nodes=nodes + 2,
            quorum=0.5,
            deadline_s=30.0 * patience,
            patience=patience,
            witnesses=2,
            audit_rate=0.02,
            founders=nodes,
            mirror_every=5,
        )
        handover_s = 4.0 * patience
        self.swarm = ChaosSwarm(
            folder,
            run_file,
            node_options=("--threads", "1", "--no-check"),
            seed=options.seed,
            disks=disks,
            tell=self.say,
            coordinator_options=("--recompute", "3", "--release-every", "0"),
        )
        with run_file.open("a") as file:
            standbys = f'standbys = ["{self.swarm.standby_key()}"]'
            file.write(f"\n[coordination]\n{standbys}\nhandover_s = {handover_s:.1f}\n")
        self.watch, self.usage = Watch(), Usage()
        self.striker = Striker(self.swarm, folder / "backups")
        self.problems: list[str] = []
        self.losses: dict[int, float] = {}
        self.status: Status = {}
        self.began = time.monotonic()

    def say(self, line: str) -> None:
        print(f"[{time.monotonic() - self.began:5.0f} s] {line}", file=self.said, flush=True)

    async def run(self) -> Result:
        """The whole of it.

        :raises CheckFailed: the swarm did not even begin
        """
        options = self.options
        self.say(f"two coordinators and {options.nodes} nodes, seed {options.seed}")
        strikes = plan(options.nodes, options.seed, options.duration, options.mtbf)
        async with self.swarm, asyncio.TaskGroup() as group:
            self.swarm.group = group
            self.swarm.keep(COORDINATOR)
            await self._until(lambda: self.swarm.invite != "", WHOLE_S, "the coordinator is ready")
            for party in (STANDBY, *range(1, options.nodes + 1)):
                self.swarm.keep(party)
            polling = group.create_task(self._poll())
            # Nobody can seal a term before all know of the first state.
            await self._until(
                lambda: len(self._here()) == options.nodes and self.swarm.least("round") >= 2,
                WHOLE_S,
                "all nodes are there, and two states are agreed and known to both coordinators",
            )
            looking = group.create_task(self._look())
            await asyncio.to_thread(self.striker.back_up)
            self.striker.began = time.monotonic()
            self.say(f"all {options.nodes} nodes are there; {len(strikes)} faults are to come")
            async with asyncio.TaskGroup() as blows:
                for strike in strikes:
                    await asyncio.sleep(strike.at - self.striker.now)
                    self.say(str(strike))
                    blows.create_task(self.striker.strike(strike, self.status["round"]))
                await asyncio.sleep(options.duration - self.striker.now)
            self.say("no more faults; everybody has to work again")
            self.swarm.heal()
            await self._work()
            looking.cancel()
            polling.cancel()
            await self._leave()
        self.say("all have ended; everything is checked once more")
        accounts = await asyncio.to_thread(settled, self.watch, self.temporary)
        return self._result(accounts)

    def _here(self) -> list[str]:
        return [row["node"] for row in self.status.get("nodes", [])]

    async def _until(self, holds: Callable[[], bool], seconds: float, why: str) -> None:
        try:
            async with asyncio.timeout(seconds):
                while not holds():  # noqa: ASYNC110  other processes can only be polled
                    await asyncio.sleep(POLL_S)
        except TimeoutError:
            raise CheckFailed(f"{why}: not within {seconds:.0f} s") from None

    # --- all along --------------------------------------------------------------------------------

    async def _poll(self) -> None:
        """Ask the coordinator how it goes, and show it."""
        shown = 0.0
        while True:
            await asyncio.sleep(POLL_S)
            try:
                self.status = status = await self.swarm.status()
            except (ArtelError, KeyError):
                continue
            self.striker.see(status)
            if last := status["validation"]["last"]:
                self.losses[last["round"]] = last["loss"]
            if time.monotonic() - shown > SAY_S:
                shown = time.monotonic()
                loss = f", loss {last['loss']:.3f}" if last else ""
                ledger = status["ledger"]
                self.say(
                    f"round {status['round']}, {status['phase']}; {len(self._here())} nodes; "
                    f"{ledger['size']} entries, {ledger['final']} final{loss}"
                )

    async def _look(self) -> None:
        """Search for what must not be."""
        suspects: set[str] = set()
        while True:
            found = await asyncio.to_thread(self.watch.look, self.swarm.homes)
            strays = set(await asyncio.to_thread(self.swarm.strays))
            # One that is seen twice was not just about to end.
            found += [f"nobody owns {stray}" for stray in strays & suspects]
            suspects = strays
            for problem in found:
                self.say(f"!! {problem}")
            self.problems += found
            await asyncio.to_thread(self.usage.measure, self.swarm, self.striker.now)
            await asyncio.sleep(LOOK_S)

    # --- the end ----------------------------------------------------------------------------------

    async def _work(self) -> None:
        """Wait until each node has been accepted in a round that began after the last fault."""
        began = self.status["round"] + 1
        try:
            await self._until(
                lambda: not self._idle(began), WORK_S, "everybody works again after the last fault"
            )
        except CheckFailed as error:
            idle = ", ".join(self.swarm.place_of(party).name for party in self._idle(began))
            self.problems.append(f"{error.message}: {idle} not")

    def _idle(self, began: int) -> list[int]:
        """Nodes that no round from ``began`` on has accepted, and coordinators that do not know of
        it."""
        newest, swarm = self.watch.accepted, self.swarm
        behind = [party for party in HOMES if swarm.said[party].get("round", -1) < began]
        return [*behind, *(n for n in swarm.kept if newest[swarm.peer_of(n)] < began)]

    async def _leave(self) -> None:
        """Everybody takes its leave, the coordinator last."""

        async def leave(party: int) -> None:
            try:
                code = await self.swarm.let_go(party, LEAVE_S)
            except TimeoutError:
                self.problems.append(f"{self.swarm.place_of(party).name} does not leave")
            else:
                if code:
                    name = self.swarm.place_of(party).name
                    self.problems.append(f"{name} left with exit code {code}")

        self.watch.there.update(self.swarm.kept, HOMES)
        await asyncio.gather(*map(leave, self.swarm.kept))
        await asyncio.gather(*map(leave, HOMES))
        self.watch.homes.update(self.swarm.homes)
        self.problems += [f"nobody owns {stray}" for stray in self.swarm.strays()]

    def _result(self, accounts: Accounts) -> Result:
        problems = [*self.problems, *self.swarm.problems, *accounts.problems]
        known = [f"{self.losses[round]:.3f}" for round in sorted(self.losses)]
        if len(known) < 2 or not self.losses[max(self.losses)] < self.losses[min(self.losses)]:
            problems.append(f"the loss has not fallen: {', '.join(known) or 'none was measured'}")
        return Result(
            options=vars(self.options),
            blows=self.striker.blows,
            terms=self.striker.terms,
            accounts=accounts,
            losses=self.losses,
            restarts=self.swarm.restarts,
            entries=len(self.watch.history),
            usage=self.usage,
            problems=list(dict.fromkeys(problems)),
        )


def survive(options: Options) -> int:
    """Do all of it; the exit code."""
    said = sys.stderr if options.as_json else sys.stdout
    disks = own_mounts()
    folder = options.keep or Path(tempfile.mkdtemp(prefix="artel-chaos-"))
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="chaos-") as temporary:
        # Of every process that is started: what it leaves there is seen.
        os.environ["TMPDIR"] = temporary
        chaos = Chaos(options, folder, Path(temporary), disks, said)
        code, kept = EXIT_FAILED, options.keep is not None
        try:
            result = asyncio.run(chaos.run())
            code = EXIT_FAILED if result.problems else EXIT_OK
            print(json.dumps(result.as_dict()) if options.as_json else table(result), flush=True)
        except (KeyboardInterrupt, asyncio.CancelledError):
            print("interrupted; everything is stopped", file=sys.stderr)
            code = EXIT_INTERRUPTED
        except ExceptionGroup as group:
            known, unknown = group.split(ArtelError)
            if unknown is not None:
                raise
            print(f"error: {leaf(known)}", file=sys.stderr)
        finally:
            kept = kept or code == EXIT_FAILED
            if kept:
                with contextlib.suppress(OSError, shutil.Error):
                    chaos.swarm.copy_homes(folder / "homes")
                print(f"the homes and logs are in {folder / 'homes'}", file=sys.stderr)
            else:
                chaos.swarm.unmount()
                shutil.rmtree(folder, ignore_errors=True)
    return code


def leaf(error: BaseException | None) -> BaseException | None:
    """The first error in groups of groups."""
    return leaf(error.exceptions[0]) if isinstance(error, BaseExceptionGroup) else error
