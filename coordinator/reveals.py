"""Contributions that hold, on their way into the ledger: those shown meanwhile share a commit.

A commit takes as long for one entry as for a hundred, and while it is under way no other event of
the rounds is taken in. One by one, a thousand contributions would hold a round up for a thousand
commits.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from artel.coordinator import intake
from artel.ledger.entries import Contribution, Entry
from artel.ledger.fold.shares import FoldState
from artel.protocol import round_state, rounds
from artel.protocol.errors import ArtelError
from artel.protocol.net import wire
from artel.protocol.round_state import RoundRules, RunState

AT_ONCE = 128

Step = Callable[[round_state.Event, "list[Arrival]"], Awaitable[list[round_state.Action]]]


@dataclass(eq=False)
class Arrival:
    """A contribution that was checked, and the event that it is for the rounds."""

    event: round_state.Revealed
    entry: Entry
    done: asyncio.Future[None]

    @property
    def body(self) -> Contribution:
        assert isinstance(self.entry.body, Contribution)
        return self.entry.body


class Reveals:
    """What was shown and not taken in yet; owned by the coordinator."""

    def __init__(self) -> None:
        self._waiting: list[Arrival] = []

    def add(self, event: round_state.Event, entry: Entry) -> Arrival:
        """Note a contribution; ``done`` is set when it has been taken in, or was refused."""
        assert isinstance(event, round_state.Revealed)
        done: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        done.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._waiting.append(Arrival(event, entry, done))
        return self._waiting[-1]

    async def take(
        self, rules: RoundRules, state: RunState, fold: FoldState, step: Step
    ) -> list[round_state.Action]:
        """Take in those that wait, with one commit; the caller holds the lock of the rounds.

        :param step: gives an event to the rounds, and first of all these contributions to the
            ledger
        :returns: what followed
        """
        taken = shown = self._together(rules, state, fold)
        actions: list[round_state.Action] = []
        for one in taken:
            try:
                actions += await step(one.event, shown)
                one.done.set_result(None)
                shown = []  # all are recorded
            except ArtelError as error:
                one.done.set_exception(error)
        return actions

    def _together(self, rules: RoundRules, state: RunState, fold: FoldState) -> list[Arrival]:
        """Those that go into the ledger together now: nothing but the last changes the phase.

        Whoever cannot be one of them hears so at once. What has the numbers of one before it waits,
        until the fold can tell.
        """
        asked, self._waiting = self._waiting, []
        taken: dict[str, Arrival] = {}
        while asked and len(taken) < AT_ONCE:
            one = asked.pop(0)
            peer, numbers = one.event.peer, {other.body.payload for other in taken.values()}
            try:
                intake.require_first(fold, one.entry)
            except intake.NotCounted as error:
                one.done.set_exception(error)
                continue
            if peer in taken or one.body.payload in numbers:
                self._waiting.append(one)
                continue
            after, actions = rounds.step(rules, state, one.event)
            if actions and isinstance(actions[0], round_state.Refuse):
                refused = wire.Refused(actions[0].reason, code=actions[0].code)
                one.done.set_exception(refused)
                continue
            taken[peer], state = one, after
            if actions:
                break
        self._waiting += asked
        return list(taken.values())
