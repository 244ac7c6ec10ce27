"""The daemon's side of the trainer: start the child process, talk to it, notice when it dies.

Nothing here imports torch. A :class:`Trainer` is owned by the daemon's event loop; what it can do
is in :mod:`node.trainer.orders`.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TypeVar

import psutil

from artel.node.child import Child, TrainerDied
from artel.node.trainer.orders import Answer, Command, Steps
from artel.node.trainer.throttle import Allowance
from artel.protocol.errors import ArtelError, ResourceError

Result = TypeVar("Result")

MAX_RESTARTS = 3
"""Deaths in a row, without anything done in between, after which the trainer is given up."""


class Trainer:
    """A supervised trainer process: :meth:`restart` starts it, :meth:`close` ends it.

    :param log_file: takes what the child and its libraries print; None: our standard error
    :param threads: torch threads; 0 takes every core that this process may use
    """

    def __init__(self, log_file: Path | None, threads: int) -> None:
        self._log_file = log_file
        self._share = Allowance(threads)
        self.child: Child | None = None

    async def restart(self) -> None:
        """End the child, if it lives, and start a fresh one, without a run.

        It imports torch while the caller goes on. Weights, the optimiser's moments and the error
        feedback are lost: they begin anew.

        :raises TrainerDied: the child ended at once
        :raises ResourceError: it cannot be started
        """
        await self.close()
        self.child = await Child.start(self._log_file, self._share.threads)
        if self._share != Allowance(self._share.threads):
            self.child.limit(self._share)

    def limit(self, share: Allowance) -> None:
        """What the child, and each that comes after it, may take from now on."""
        self._share = share
        if self.child is not None:
            self.child.limit(share)

    async def do(
        self,
        command: Command[Answer],
        *,
        on_progress: Callable[[Steps], None] | None = None,
    ) -> Answer:
        """Have a command carried out, after those of its lane before it.

        A caller that is itself cancelled cancels the command.

        :param on_progress: called with the reports of one that trains
        :raises TrainerError: the trainer says no, or the time is over
        :raises TrainerDied: there is none, or it died over it
        """
        if self.child is None or self.child.dead.done():
            raise TrainerDied("the trainer is not running", "start it again")
        return await self.child.call(command, on_progress)

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
        return self.child is not None and not self.child.dead.done()

    @property
    def pid(self) -> int | None:
        """Process id of the child while it lives."""
        return self.child.process.pid if self.child is not None and self.alive else None

    def memory_bytes(self) -> int | None:
        """Resident memory of the child, None when it is gone."""
        try:
            return None if self.pid is None else int(psutil.Process(self.pid).memory_info().rss)
        except psutil.Error:
            return None

    async def close(self) -> None:
        """End the child: ask, then kill. Returns within about 10 s; idempotent."""
        if self.child is not None:
            await self.child.end()
            self.child = None


def given_up(times: int, cause: ArtelError) -> ResourceError:
    """The error of a trainer that failed too often in a row."""
    return ResourceError(f"the trainer failed {times} times in a row: {cause.message}", cause.hint)
