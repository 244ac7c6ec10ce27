"""Patience with a run that cannot be reached yet: the coordinator may start after its nodes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from artel.node.link import RETRY_FIRST_S, Link
from artel.protocol.errors import Unreachable
from artel.protocol.events import emit
from artel.protocol.net.wire import Refused

log = logging.getLogger("artel.node")

JOIN_PATIENCE_S = 600.0
"""How long a node waits for a run that it has never reached; for one that it knows, without end."""
RETRY_MOST_S = 30.0

Result = TypeVar("Result")


class Waiting:
    """Retries, with one line to the node's owner however long they go on.

    :param patience: seconds for which nobody may have answered; None for no end
    """

    def __init__(
        self, link: Link, run: str, patience: float | None, say: Callable[[str], None]
    ) -> None:
        self._link, self._run, self._patience, self._say = link, run, patience, say

    async def insist(self, work: Callable[[], Awaitable[Result]]) -> Result:
        """Do ``work`` until it succeeds; the coordinator is looked for in between.

        :raises Unreachable: nobody has answered for as long as the patience goes
        :raises ArtelError: ``work`` fails in another way than ``Unreachable`` or ``busy``
        """
        began, pause, told = time.monotonic(), RETRY_FIRST_S, False
        while True:
            try:
                result = await work()
                if told:
                    self._say("✓ waiting  the run answers")
                return result
            except (Unreachable, Refused) as error:
                if isinstance(error, Refused) and error.code != "busy":
                    raise
                self._check(error, time.monotonic() - began)
                if not told and pause > RETRY_FIRST_S:  # one that fails once is no news
                    told = True
                    self._say(f"! waiting  {error.message}; this node keeps trying{self._limit()}")
                emit(log, "run.waiting", logging.DEBUG, reason=error.message)
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MOST_S)
            await self._link.find_again(self._run)

    def _check(self, error: Unreachable | Refused, waited: float) -> None:
        if self._patience is not None and waited >= self._patience:
            raise Unreachable(
                f"{error.message}, and that for {_duration(self._patience)}",
                error.hint or "ask the organiser whether the coordinator is running",
            )

    def _limit(self) -> str:
        return "" if self._patience is None else f" for {_duration(self._patience)}"


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} s"
