"""Whom a coordinator asks for a state, and in which order, while many keep it waiting."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import cast

import pytest

import manifest_world
from artel.coordinator import agreeing
from artel.coordinator.recomputing import Recomputer
from artel.coordinator.service import Coordinator
from artel.protocol import round_state
from artel.protocol.net import delivery
from artel.protocol.round_state import Phase, RunState
from host_world import until


class Waiting:
    """What :class:`Agreeing` sees of a coordinator, and signers that answer when they are told to.

    Of many members, whose hosts would take minutes.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *members: str) -> None:
        monkeypatch.setattr(delivery, "require_held", self._give)
        self.answers = {peer: asyncio.get_running_loop().create_future() for peer in members}
        self.asked: list[str] = []
        self.host, self.state_bytes = None, 1
        self.manifest = manifest_world.manifest()
        self.changed = asyncio.Condition()
        self.told: list[round_state.Held] = []
        commitments = dict.fromkeys(members, "")
        state = RunState(Phase.APPLYING, 5, 0, "", 0, members=members, commitments=commitments)
        self.state = replace(state, revealed=frozenset(members))

    def clock(self) -> float:
        return 0.0

    async def _give(self, host: None, peer: str, *what: object) -> None:
        self.asked.append(peer)
        await self.answers[peer]

    async def sign(self, root: str, *peers: str) -> None:
        votes = {**self.state.votes, **dict.fromkeys(peers, round_state.Vote(root))}
        await self._become(replace(self.state, votes=votes))

    async def feed(self, event: round_state.Held) -> None:
        self.told.append(event)
        names = "held" if event.held else "not_held"
        found = getattr(self.state, names) | {event.root if event.held else event.peer}
        await self._become(replace(self.state, **{names: found}))

    async def _become(self, state: RunState) -> None:
        self.state = state
        async with self.changed:
            self.changed.notify_all()
        for _ in range(9):
            await asyncio.sleep(0)

    @contextlib.asynccontextmanager
    async def asking(self) -> AsyncIterator[None]:
        core = cast(Coordinator, self)
        work = asyncio.create_task(agreeing.Agreeing(core, cast(Recomputer, None))._ask_signers())
        try:
            yield
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)


async def test_signers_of_roots_that_do_not_exist_take_no_turn_from_one_that_more_have_signed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """They compute nothing, so they sign first, and let the coordinator wait."""
    liars = [f"liar {number}" for number in range(40)]
    waiting = Waiting(monkeypatch, *liars, "a", "b")
    monkeypatch.setattr(agreeing, "HEDGE_S", 0.1)
    async with waiting.asking():
        for liar in liars:
            await waiting.sign(f"false {liar}", liar)
        assert waiting.asked == liars[: agreeing.ASKED_AT_ONCE]
        await waiting.sign("right", "a", "b")
        assert waiting.asked[agreeing.ASKED_AT_ONCE :] == ["a"]
        waiting.answers["a"].set_result(None)
        await until(lambda: waiting.state.held == {"right"})
        # They have no end of requests beside each other either.
        await until(lambda: {*waiting.asked} >= {*liars}, 20)
        open_now = [peer for peer, answer in waiting.answers.items() if not answer.cancelled()]
        assert len(open_now) <= agreeing.MOST_ASKED + 2


async def test_one_that_answers_in_the_end_spares_the_others_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waiting = Waiting(monkeypatch, "early", "one", "two", "late")
    monkeypatch.setattr(agreeing, "HEDGE_S", 0.2)
    monkeypatch.setattr(agreeing, "OVERDUE_S", 0.3)
    async with waiting.asking():
        await waiting.sign("false", "one")
        await waiting.sign("right", "early", "two")
        assert waiting.asked == ["one", "early"]
        await until(lambda: "two" in waiting.asked)
        await asyncio.sleep(0.15)
        await waiting.sign("other", "late")
        waiting.answers["two"].set_result(None)
        await until(lambda: waiting.state.held == {"right"})
        # Before it is held: then the attempt may be over.
        assert [(told.peer, told.held) for told in waiting.told] == [
            ("one", False),
            ("early", False),
            ("two", True),
        ]
