"""A node's duties, with everything around them faked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger.entries.records import Anchor, Attempt
from artel.node import worker
from artel.node.worker import Worker
from artel.protocol import messages

ROOT = "ab" * 32


def directive(task: messages.Task) -> messages.Directive:
    return messages.Directive(
        version=1,
        task=task,
        round=0,
        attempt=0,
        root=ROOT,
        remaining=1.0,
        ledger_size=0,
        reason="",
        evaluate=False,
        peers={},
    )


class States:
    """What the worker asks of the states that a node holds."""

    round, root, spared = -1, "", ""

    def spare(self, root: str) -> None:
        self.spared = root

    async def obtain(self, root: str, others: list[str]) -> Path:
        return Path(root)

    async def switch(self, path: Path, round: int, root: str) -> None:
        self.round, self.root = round, root


async def test_a_node_that_is_told_to_sync_again_and_again_pauses_in_between(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Two processes on copies of one home did so as fast as the coordinator answered."""
    pauses: list[float] = []

    async def sleep(seconds: float) -> None:
        pauses.append(seconds)

    async def caught_up(*_: object) -> None:
        pass

    session: Any = SimpleNamespace(
        replica=SimpleNamespace(
            state=SimpleNamespace(states=[ROOT], anchors=[Anchor()]),
            store=SimpleNamespace(term=0),
            catch_up=caught_up,
        ),
        host=None,
        link=SimpleNamespace(coordinator="coordinator"),
        run="",
        trainer=None,
    )
    states: Any = States()
    own = Worker(session, states, Any, 0, lambda: None)  # type: ignore[arg-type]
    monkeypatch.setattr(worker, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    for _ in range(worker.FREE_SYNCS):
        await own.perform(directive("sync"))
    assert (states.root, pauses) == (ROOT, [])
    for _ in range(3):
        await own.perform(directive("sync"))
    assert pauses == 3 * [worker.SYNC_PAUSE_S]
    monkeypatch.setattr(own, "_train", caught_up)
    await own.perform(directive("train"))  # it is a member again: the next time costs nothing
    await own.perform(directive("sync"))
    assert len(pauses) == 3


@pytest.mark.parametrize("attempt", [0, 1])
async def test_a_state_that_was_computed_otherwise_is_doubted_and_its_forerunner_kept(
    attempt: int,
) -> None:
    async def caught_up(*_: object) -> None:
        pass

    fold = SimpleNamespace(states=["cd" * 32, ROOT], anchors=[Anchor(), Anchor(attempt=0)])
    session: Any = SimpleNamespace(
        replica=SimpleNamespace(state=fold, store=SimpleNamespace(term=0), catch_up=caught_up),
        host=None,
        link=SimpleNamespace(coordinator="coordinator"),
        run="",
        trainer=None,
    )
    states: Any = States()
    own = Worker(session, states, Any, 0, lambda: None)  # type: ignore[arg-type]
    own._applying = SimpleNamespace(outcome=(0, attempt, "ef" * 32))  # type: ignore[assignment]
    await own.perform(directive("sync"))
    assert states.root == ROOT
    # What came of another attempt may well be another state.
    doubted = attempt == 0
    assert (own.doubts, states.spared) == (({1: 0}, "cd" * 32) if doubted else ({}, ""))


async def test_training_goes_on_for_a_coordinator_that_asks_for_the_same() -> None:
    """One that was started again, or took over, counts its directives anew."""
    begun, ended = asyncio.Event(), asyncio.Event()

    async def caught_up(*_: object) -> None:
        pass

    async def train(*_: object) -> list[object]:
        begun.set()
        await ended.wait()
        return []

    attempt = Attempt(0, 0, {"me": "ann", "other": "bob"}, {"me": 5, "other": 5})
    fold = SimpleNamespace(states=[ROOT], anchors=[Anchor()], attempt=attempt, cursor=3)
    session: Any = SimpleNamespace(
        replica=SimpleNamespace(state=fold, store=SimpleNamespace(term=0), catch_up=caught_up),
        host=None,
        link=SimpleNamespace(coordinator="coordinator"),
        identity=SimpleNamespace(peer_id="me"),
        run="",
        trainer=None,
    )
    states: Any = States()
    own = Worker(session, states, Any, 0, lambda: None)  # type: ignore[arg-type]
    own._own = SimpleNamespace(  # type: ignore[assignment]
        train=train, committed=lambda _: False, go_on=lambda *_: None, commit=caught_up
    )
    assert not await own.trains_for(directive("train"))
    duty = asyncio.create_task(own.perform(directive("train")))
    await begun.wait()
    assert await own.trains_for(directive("train").model_copy(update={"version": 2}))
    assert not await own.trains_for(directive("sync"))
    assert not await own.trains_for(directive("train").model_copy(update={"attempt": 1}))
    fold.cursor = 4  # a later term has opened that attempt with other data
    assert not await own.trains_for(directive("train"))
    fold.cursor = 3
    ended.set()
    await duty
    assert not await own.trains_for(directive("train")), "it is done: it commits again"


@pytest.mark.parametrize("committed", [False, True])
async def test_a_node_that_rests_gives_its_place_up_or_finishes_what_it_has_committed_to(
    committed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[messages.Message] = []
    done: list[str] = []

    async def caught_up(*_: object) -> None:
        pass

    async def ask(message: messages.Message) -> messages.Message:
        asked.append(message)
        return messages.Ok()

    session: Any = SimpleNamespace(
        replica=SimpleNamespace(store=SimpleNamespace(term=0), catch_up=caught_up),
        host=None,
        link=SimpleNamespace(coordinator="coordinator", ask=ask),
        run=ROOT,
    )
    own = Worker(session, States(), Any, 0, lambda: None)  # type: ignore[arg-type]
    for name in ("_train", "_reveal", "_apply", "_sync"):

        async def duty(_: object, name: str = name) -> None:
            done.append(name)

        monkeypatch.setattr(own, name, duty)
    if committed:
        own._own._salts[0, 0] = b""
    own.rest.set("its owner says so")
    for task in ("train", "reveal", "apply", "sync", "wait"):
        await own.perform(directive(task))  # type: ignore[arg-type]
        assert own.progress.phase == worker.RESTING
    assert [type(message) for message in asked] == [messages.HandBack]
    assert done == (["_reveal", "_apply"] if committed else [])
    own.rest.set("")
    await own.perform(directive("train"))
    assert done[-1] == "_train"
    assert own.progress.phase == "waiting"
