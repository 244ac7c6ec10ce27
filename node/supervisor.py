"""The daemon's side of the trainer: start the child process, talk to it, notice when it dies.

Nothing here imports torch. A :class:`Trainer` is owned by the daemon's event loop. The child has
two lanes, which work at the same time; in each the commands run in the order in which they were
called:

- main: choose, load, set_state, benchmark, train, run_on, evaluate
- merge: apply, aggregate, apply_slices

:meth:`Trainer.cancel` acts at once.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import psutil

from artel.node.child import Child, TrainerDied
from artel.node.trainer.channel import Message
from artel.node.trainer.results import (
    Aggregated,
    Applied,
    Contribution,
    Evaluation,
    Loaded,
    Progress,
    RanOn,
    Speed,
    Trained,
    Window,
)
from artel.protocol.errors import ArtelError, ResourceError

Result = TypeVar("Result")

LOAD_S = 300.0
MAX_RESTARTS = 3
"""Deaths in a row, without anything done in between, after which the trainer is given up."""
WORK_S = 600.0
"""Limit for everything but loading and training, which has none unless the caller sets one."""


class Trainer:
    """A supervised trainer process. Make one with :meth:`start`, end it with :meth:`close`."""

    def __init__(self, log_file: Path | None, threads: int) -> None:
        self._log_file = log_file
        self._threads = threads
        self._child: Child | None = None

    @classmethod
    async def start(cls, *, log_file: Path | None = None, threads: int = 0) -> Trainer:
        """Start a child process; it imports torch while the caller goes on.

        :param log_file: takes what the child and its libraries print; None: our standard error
        :param threads: torch threads; 0 takes every core that this process may use
        :raises TrainerDied: the child ended at once
        :raises ResourceError: it cannot be started
        """
        trainer = cls(log_file, threads)
        await trainer.restart()
        return trainer

    async def restart(self) -> None:
        """End the child, if it lives, and start a fresh one, without a run.

        Weights, the optimiser's moments and the error feedback are lost: they begin anew.
        """
        await self.close()
        self._child = await Child.start(self._log_file, self._threads)

    async def insist(
        self, work: Callable[[], Awaitable[Result]], died: Callable[[TrainerDied], None]
    ) -> Result:
        """Do ``work`` with this trainer; after a death again from the start, with a fresh child.

        :param died: called with each death after which it goes on
        :raises ResourceError: more than ``MAX_RESTARTS`` children died over it
        """
        deaths = 0
        while True:
            try:
                if not self.alive:
                    await self.restart()
                return await work()
            except TrainerDied as death:
                deaths += 1
                if deaths > MAX_RESTARTS:
                    raise given_up(deaths, death) from None
                died(death)

    @property
    def alive(self) -> bool:
        return self._child is not None and not self._child.dead.done()

    @property
    def pid(self) -> int | None:
        """Process id of the child while it lives."""
        return self._child.process.pid if self._child is not None and self.alive else None

    def memory_bytes(self) -> int | None:
        """Resident memory of the child, None when it is gone."""
        try:
            return None if self.pid is None else int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return None

    async def wait_dead(self) -> TrainerDied:
        """Wait until the child is gone, for whatever reason; returns why."""
        if self._child is None:
            return TrainerDied("the trainer was stopped", "", None)
        return await asyncio.shield(self._child.dead)

    async def require_device(self, device: str, *, timeout: float = LOAD_S) -> None:
        """Find out whether torch can train on a device; needs no run.

        :raises TrainerError: ``no_device``
        """
        await self._call("choose", timeout, device=device)

    async def load(
        self, manifest: Path, state: Path, *, device: str = "auto", timeout: float = LOAD_S
    ) -> Loaded:
        """Load a run from its signed manifest and one of its states.

        :raises TrainerError: ``bad_manifest``, ``bad_state``, ``no_device``, ``failed``
        :raises TrainerDied: as every command
        """
        start = time.monotonic()
        result = await self._call(
            "load",
            timeout,
            manifest=_absolute(manifest),
            state=_absolute(state),
            device=device,
            threads=self._threads,
        )
        return Loaded(**result, seconds=time.monotonic() - start)

    async def set_state(self, state: Path, *, root: str = "", timeout: float = LOAD_S) -> int:
        """Take over a state that does not come from our own applying; returns its round.

        The weights become the state's. The optimiser's moments stay; the tail of the round before
        and the error feedback are dropped.

        :param root: what the state's root has to be, so that a torn file is found out
        :raises TrainerError: ``bad_state``; then nothing has changed
        """
        result = await self._call("set_state", timeout, state=_absolute(state), root=root)
        return int(result["round"])

    async def benchmark(self, steps: int = 3, *, timeout: float = WORK_S) -> Speed:
        """Time ``steps`` inner steps (and one before them); nothing changes."""
        return Speed(**await self._call("benchmark", timeout, steps=max(1, steps)))

    async def train(
        self,
        round: int,
        node: str,
        windows: Sequence[Window],
        out: Path,
        *,
        steps: int,
        tail: int = 0,
        slices: int = 0,
        seconds: float | None = None,
        carried: int | None = None,
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float | None = None,
    ) -> Trained:
        """Train the head of the node's part of a round and write its contribution into ``out``.

        First the weights follow the newest agreed state. The same call again, from the same state,
        begins where the first one began and gives the same bytes; the tail of an attempt that
        failed is dropped. A caller that is itself cancelled cancels the training.

        :param node: peer id
        :param windows: ``(steps - tail) * batch`` windows of the head, in training order; their
            files must stay in place
        :param steps: all that the node was assigned
        :param tail: how many of them are for :meth:`run_on`
        :param slices: slices that a sharded round asks for (its members); 0: gather
        :param seconds: from this call on; the head ends then, if a quarter of it is done
        :param carried: steps of the round before that may count in this contribution; another tail
            than that is dropped. None: whatever was trained
        :param on_progress: called about twice a second
        :raises TrainerError: ``wrong_round``, ``bad_data``, ``bad_request``, ``cancelled``,
            ``timeout``, ``diverged``, ``disk_full``, ``disk``, ``out_of_memory``
        """
        result = await self._call(
            "train",
            timeout,
            on_progress,
            round=round,
            node=node,
            out=_absolute(out),
            steps=steps,
            tail=tail,
            slices=slices,
            # The clock is the machine's: both processes read the same one.
            deadline=None if seconds is None else time.monotonic() + seconds,
            carried=carried,
            **_listed(windows),
        )
        parts = tuple(Path(part) for part in result["parts"])
        return Trained(**result | {"blob": Path(result["blob"]), "parts": parts})

    async def run_on(
        self,
        round: int,
        node: str,
        windows: Sequence[Window],
        *,
        steps: int,
        on_progress: Callable[[Progress], None] | None = None,
        timeout: float | None = None,
    ) -> RanOn:
        """Train the tail of a round after its head; its steps count in the next contribution.

        Once for each head. A tail that fails or is cancelled is lost, and the weights are those
        before it.

        :param windows: those of the tail, in training order
        :param steps: all that the node was assigned, as in :meth:`train`
        :raises TrainerError: ``wrong_round`` (no head to go on from), ``bad_data``,
            ``bad_request``, ``cancelled``, ``timeout``, ``diverged``, ``out_of_memory``
        """
        result = await self._call(
            "run_on",
            timeout,
            on_progress,
            round=round,
            node=node,
            steps=steps,
            **_listed(windows),
        )
        return RanOn(**result)

    async def apply(
        self,
        round: int,
        contributions: Sequence[Contribution],
        out: Path,
        *,
        timeout: float = WORK_S,
    ) -> Applied:
        """Combine the contributions of a closed ``gather`` round and write the next state's file.

        The next state is the agreed one from then on; the weights follow it in the next
        :meth:`train`. Cannot be interrupted: after a cancelled wait, set the state before anything
        else. Until the next round is trained, the round applied last may be applied once more.

        :raises TrainerError: ``bad_blob`` (``node`` says whose), ``wrong_round``, ``diverged``,
            ``disk_full``, ``disk``, ``out_of_memory``; then nothing has changed
        """
        result = await self._call(
            "apply",
            timeout,
            round=round,
            out=_absolute(out),
            contributions=_contributions(contributions),
        )
        return _applied(result)

    async def aggregate(
        self,
        round: int,
        slice: int,
        slices: int,
        contributions: Sequence[Contribution],
        out: Path,
        *,
        timeout: float = WORK_S,
    ) -> Aggregated:
        """Combine one slice of a closed ``sharded`` round; the same bytes whoever does it.

        :param slices: as in :meth:`train`
        :param contributions: with the blobs of that slice
        :raises TrainerError: ``bad_blob`` (``node`` says whose), ``wrong_round``, ``bad_request``,
            ``disk_full``, ``disk``, ``out_of_memory``
        """
        result = await self._call(
            "aggregate",
            timeout,
            round=round,
            slice=slice,
            slices=slices,
            out=_absolute(out),
            contributions=_contributions(contributions),
        )
        return Aggregated(Path(result["blob"]), result["seconds"])

    async def apply_slices(
        self,
        round: int,
        slices: Sequence[Path],
        contributions: Sequence[str],
        out: Path,
        *,
        count: int,
        timeout: float = WORK_S,
    ) -> Applied:
        """Apply a closed ``sharded`` round from the blobs of its slices, in order.

        Otherwise as :meth:`apply`.

        :param contributions: nodes whose contributions count
        :param count: as ``slices`` in :meth:`train`; a small model has fewer slices than that
        :raises TrainerError: ``bad_blob``, ``wrong_round``, ``bad_request``, ``diverged``,
            ``disk_full``, ``disk``, ``out_of_memory``; then nothing has changed
        """
        result = await self._call(
            "apply_slices",
            timeout,
            round=round,
            slices=[_absolute(path) for path in slices],
            nodes=list(contributions),
            count=count,
            out=_absolute(out),
        )
        return _applied(result)

    async def evaluate(self, windows: Sequence[Window], *, timeout: float = WORK_S) -> Evaluation:
        """Loss of the newest agreed state on windows; the weights stay.

        :raises TrainerError: ``bad_data``, ``cancelled``, ``timeout``, ``diverged``
        """
        return Evaluation(**await self._call("evaluate", timeout, **_listed(windows)))

    def cancel(self) -> None:
        """End the commands that run or wait; each raises ``cancelled``, unless it is done before.

        What loads, sets a state, applies or aggregates is not interrupted once it runs.
        """
        if self._child is not None and self.alive:
            self._child.cancel()

    async def close(self) -> None:
        """End the child: ask, then kill. Returns within about 10 s; idempotent."""
        if self._child is not None:
            await self._child.end()
            self._child = None

    async def __aenter__(self) -> Trainer:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _call(
        self,
        command: str,
        timeout: float | None,
        on_progress: Callable[[Progress], None] | None = None,
        **arguments: Any,
    ) -> Message:
        if self._child is None or self._child.dead.done():
            raise TrainerDied("the trainer is not running", "start it again", None)
        return await self._child.call(command, timeout, on_progress, **arguments)


def given_up(times: int, cause: ArtelError) -> ResourceError:
    """The error of a trainer that failed too often in a row."""
    return ResourceError(f"the trainer failed {times} times in a row: {cause.message}", cause.hint)


def _listed(windows: Sequence[Window]) -> Message:
    """Windows as they pass to the child: every path once."""
    shards = {path: number for number, path in enumerate(dict.fromkeys(p for p, _ in windows))}
    return {
        "shards": [_absolute(path) for path in shards],
        "windows": [(shards[path], offset) for path, offset in windows],
    }


def _contributions(contributions: Sequence[Contribution]) -> list[Message]:
    return [{"node": c.node, "blob": _absolute(c.blob), "weight": c.weight} for c in contributions]


def _applied(result: Message) -> Applied:
    return Applied(**result | {"state": Path(result["state"])})


def _absolute(path: Path) -> str:
    return str(path.absolute())
