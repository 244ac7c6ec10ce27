"""What a node's daemon does around its duties, with a real trainer."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger.store.heads import HeadStore
from artel.ledger.sync.replica import Replica
from artel.node.daemon import Daemon
from artel.node.session import Session
from artel.node.supervisor import Trainer
from artel.node.trainer.orders import Benchmark
from artel.protocol import messages
from artel.protocol.net import wire
from artel.protocol.net.blobs import BlobStore
from host_world import named
from trainer_world import World, death_of, started

TRAIN = messages.Directive(
    version=1,
    task="train",
    round=3,
    attempt=0,
    root="ab" * 32,
    remaining=60.0,
    ledger_size=0,
    reason="",
    evaluate=False,
    peers={},
)


WAIT = TRAIN.model_copy(update={"task": "wait"})


async def made(world: World, tmp_path: Path) -> tuple[Daemon, Trainer]:
    trainer = await started(tmp_path / "trainer.log")
    parts: dict[str, Any] = dict.fromkeys(Session.__dataclass_fields__)
    parts |= {"home": world.home, "account": named("owner"), "device": "cpu", "trainer": trainer}
    heads = HeadStore(tmp_path / "heads.sqlite3")
    replica = Replica.open(tmp_path / "ledger.sqlite3", "ab" * 32, heads)
    states: Any = SimpleNamespace(path=world.state, root="")
    parts |= {"replica": replica, "blobs": BlobStore(tmp_path / "blobs")}
    return Daemon(Session(**parts), states, None, 0, print), trainer  # type: ignore[arg-type]


async def test_a_trainer_that_dies_while_its_node_waits_is_started_again_at_once(
    world: World,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It was missed when the next round had begun: the round of a slow start was lost."""
    caplog.set_level(logging.INFO, "artel.node")
    daemon, trainer = await made(world, tmp_path)

    async def nothing(directive: messages.Directive) -> None:
        return

    monkeypatch.setattr(daemon.worker, "perform", nothing)
    waiting = asyncio.create_task(daemon._perform(WAIT))
    assert trainer.child is not None
    for deaths in (1, 2):
        trainer.child.process.kill()
        while caplog.text.count("trainer.restarted") < deaths:
            await asyncio.sleep(0.01)
    assert caplog.text.count("trainer.died") == 2
    await trainer.do(Benchmark())  # it has its run
    assert not waiting.done()
    waiting.cancel()
    await asyncio.wait({waiting})
    await trainer.close()


async def test_each_round_is_said_to_be_agreed_once(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, trainer = await made(world, tmp_path)
    await trainer.close()
    said: list[str] = []
    monkeypatch.setattr(daemon, "_say", said.append)
    fold: Any = SimpleNamespace(round=0, total=1000, credit=lambda account: fold.mine)
    fold.changes_at = lambda round: {}
    daemon.session.replica = SimpleNamespace(state=fold)  # type: ignore[assignment]
    daemon.session.manifest = world.run
    monkeypatch.setattr(Session, "account_name", "mine")
    for number, mine in ((1, 100), (1, 100), (1, 103), (1, 101), (2, 201)):
        fold.round, fold.mine = number, mine
        daemon._show_credit()
    assert [line.partition(": ")[0] for line in said] == [
        f"round 1 of {world.run.config.rounds.total} agreed",
        "credit for other work since round 1",
        "credit for other work since round 1",
        f"round 2 of {world.run.config.rounds.total} agreed",
    ]
    assert [line.partition(": ")[2].split()[0] for line in said] == ["+100", "+3", "-2", "+100"]


async def test_a_trainer_started_again_is_told_of_also_when_a_directive_comes_meanwhile(
    world: World, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The coordinator came back before the new trainer had loaded the run: nothing was logged."""
    caplog.set_level(logging.INFO, "artel.node")
    daemon, trainer = await made(world, tmp_path)
    assert trainer.child is not None
    trainer.child.process.kill()
    death, dead = await death_of(trainer), trainer.child
    reviving = asyncio.create_task(daemon._fresh_trainer(death, TRAIN))
    while trainer.child in (dead, None):
        await asyncio.sleep(0.01)
    reviving.cancel()
    await asyncio.wait({reviving})
    assert reviving.cancelled()
    assert "trainer.restarted" in caplog.text
    await trainer.do(Benchmark())  # it has its run
    await trainer.close()


async def test_a_busy_coordinator_is_asked_again(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon, trainer = await made(world, tmp_path)
    beats: list[float] = []
    loop = asyncio.get_running_loop()

    async def beat() -> None:
        beats.append(loop.time())
        if len(beats) == 1:
            raise wire.Refused("too many streams", code="busy")
        raise wire.Refused("another run", code="other_run")

    monkeypatch.setattr(daemon, "_beat", beat)
    monkeypatch.setattr("artel.node.daemon.RETRY_S", 0.1)
    with pytest.raises(wire.Refused, match="another run"):
        await daemon._heartbeat()
    assert beats[1] - beats[0] >= 0.09
    await trainer.close()


async def test_only_training_that_is_wanted_no_more_is_dropped(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each restart of the coordinator made every node begin its round's training anew."""
    daemon, trainer = await made(world, tmp_path)
    await trainer.close()
    begun: list[str] = []

    async def perform(directive: messages.Directive) -> None:
        begun.append(directive.task)
        await asyncio.Event().wait()

    async def wanted(directive: messages.Directive) -> bool:
        return directive.task == "train"

    monkeypatch.setattr(daemon, "_perform", perform)
    monkeypatch.setattr(daemon.worker, "trains_for", wanted)
    reconciling = asyncio.create_task(daemon._reconcile())
    for directive in (TRAIN, TRAIN.model_copy(update={"version": 9}), WAIT):
        daemon.directive = directive
        daemon._heard.set()
        await asyncio.sleep(0.05)
    assert begun == ["train", "wait"]
    reconciling.cancel()
    await asyncio.wait({reconciling})
