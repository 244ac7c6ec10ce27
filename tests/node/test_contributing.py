"""What a node makes for the attempts of a round, with everything around it faked."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.fold.shares import Attempt
from artel.node.claim_file import ClaimFile
from artel.node.contributing import Contributing
from artel.node.progress import Progress
from artel.node.trainer.orders import Train, Trained
from artel.protocol import messages
from artel.protocol.errors import Unreachable
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.streams import Traffic
from host_world import named
from trainer_world import NODES, World, make_world

ME = NODES[0]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return make_world(tmp_path / "world", rounds={"span": 4})


class Asked:
    """A trainer that keeps the orders, and whose contributions are made of their windows."""

    def __init__(self) -> None:
        self.orders: list[Train] = []

    async def do(self, order: Train, on_progress: object) -> Trained:
        self.orders.append(order)
        order.out.mkdir(exist_ok=True)
        blob = order.out / "contribution.blob"
        blob.write_bytes(repr(order.windows).encode())
        prints = order.out / "steps.bin"
        prints.write_bytes(f"{order.round} {len(self.orders)}".encode())
        return Trained(
            blob=blob,
            parts=(),
            size=1,
            fingerprints=prints,
            hardware="",
            payload="ab" * 32,
            loss=5.0,
            tokens=100,
            head=order.steps,
            span=order.span or 0,
            tail=0,
            seconds={},
        )


def attempt(number: int, *members: str) -> tuple[messages.Directive, Attempt]:
    directive = messages.Directive(
        version=1,
        task="train",
        round=2,
        attempt=number,
        root="",
        remaining=1.0,
        ledger_size=0,
        reason="",
        evaluate=False,
        peers={},
    )
    return directive, Attempt(
        2, number, dict.fromkeys(members, "account"), dict.fromkeys(members, 8)
    )


class Nobody:
    """Whoever leads does not answer."""

    coordinator, gone = "whoever leads", True

    def __init__(self) -> None:
        self.revealed: list[Any] = []

    async def tell(self, request: messages.Message, patience: float) -> messages.Message:
        if self.gone:
            raise Unreachable("it does not answer")
        self.revealed.append(request)
        return messages.Ok()


class Node:
    """What a node makes, of a run and with a trainer."""

    def __init__(self, world: World, folder: Path, identity: Any) -> None:
        self.world, self.trainer, self.link = world, Asked(), Nobody()
        self.blobs, self.fingerprints = BlobStore(folder / "blobs"), BlobStore(folder / "prints")
        spans, founded = {identity.peer_id: 1}, SimpleNamespace(audits=0)
        state = SimpleNamespace(cursor=0, tails={}, spans=spans, founded=founded, attempt=None)
        session: Any = SimpleNamespace(
            run="ab" * 32,
            manifest=world.run,
            config_at=lambda round: world.run.config,
            changes_at=lambda round: {},
            identity=identity,
            link=self.link,
            host=SimpleNamespace(traffic=Traffic()),
            claims=ClaimFile(folder),
            replica=SimpleNamespace(state=state),
            trainer=self.trainer,
            blobs=self.blobs,
            fingerprints=self.fingerprints,
            work_dir=folder / "work",
        )
        states: Any = SimpleNamespace(root="ab" * 32)
        corpus: Any = self
        self.own = Contributing(session, states, corpus, Progress())

    async def assigned(self, steps: dict[str, int], cursor: int, node: str) -> Any:
        return self.world.windows(len(steps) - 1)


async def test_what_was_made_is_taken_again_only_while_the_trainer_can_go_on_from_it(
    world: World, tmp_path: Path
) -> None:
    node = Node(world, tmp_path, SimpleNamespace(peer_id=ME))
    own, trainer, blobs = node.own, node.trainer, node.blobs

    await own.train(*attempt(0, ME))
    await own.train(*attempt(1, ME))
    assert [order.span for order in trainer.orders] == [1], "the second attempt takes the first's"
    made = own._made
    assert made is not None
    assert blobs.has(made.blob)

    # Others are there in the third: it is trained, but the duty ends before that is stored.
    before = asyncio.to_thread

    async def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("artel.node.contributing.asyncio.to_thread", cancelled)
        with pytest.raises(asyncio.CancelledError):
            await own.train(*attempt(2, *NODES))
    assert asyncio.to_thread is before
    await own.train(*attempt(3, ME))
    assert len(trainer.orders) == 3, "the trainer had gone on to something else"
    assert own._made is not None
    assert own._made.blob == made.blob
    # Fingerprints are no content that a node gives to anybody, and the old ones are gone.
    assert not blobs.has(own._made.chain)
    assert [path.name for path in node.fingerprints.root.iterdir()] == [own._made.chain]


async def test_what_was_made_outlives_the_coordinator_that_asked_for_it(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def push_all(*_: object, **__: object) -> None:
        pass

    monkeypatch.setattr("artel.node.contributing.delivery.push_all", push_all)
    node = named("a node")
    made = Node(world, tmp_path, node)
    own, trainer, link = made.own, made.trainer, made.link
    revealed = link.revealed

    first = attempt(0, node.peer_id)
    await own.train(*first)
    with pytest.raises(Unreachable):
        await own.commit(first[0])
    # The next coordinator has failed the attempt, or never heard of it and begins with its number.
    link.gone = False
    for again in (attempt(1, node.peer_id), attempt(0, node.peer_id)):
        await own.train(*again)
        await own.commit(again[0])
        await own.reveal(again[0])
    assert len(trainer.orders) == 1, "no step is trained twice"
    bodies = [entries.decode(one.statement).body for one in revealed if hasattr(one, "statement")]
    assert [(body.attempt, body.blob) for body in bodies] == [
        (1, own._made.blob),
        (0, own._made.blob),
    ]

    # With other members there is other work to do, and that is what is shown.
    other = attempt(0, node.peer_id, NODES[1])
    await own.train(*other)
    await own.commit(other[0])
    await own.reveal(other[0])
    assert len(trainer.orders) == 2
    assert entries.decode(revealed[-1].statement).body.blob == own._made.blob != bodies[0].blob
