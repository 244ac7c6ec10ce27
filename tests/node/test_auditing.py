"""A node's audits: what it asks its trainer to repeat, and what it says of it."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.fold.history import History, read
from artel.node.auditing import Auditing, judge
from artel.node.progress import Progress
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import BeginReplay, Compared, DropReplay, GoOn, Replayed, SpanRound
from artel.protocol import content, messages, repeated_work
from artel.protocol.dsse import Envelope
from artel.protocol.identity import public_of
from artel.protocol.net import delivery, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.run_config import ExchangeSection
from artel.protocol.terms import TrustSection
from audit_world import NUMBER, Run, honest
from ledger_world import BATCH_SIZE, HARDWARE, INNER_STEPS, SEQ_LEN
from log_world import Log


def compared(error: float, round: int = 3) -> Compared:
    return Compared(round, 20, error, None)


def test_the_contribution_that_differs_most_decides() -> None:
    def judged(*found: Compared, made_on: str = HARDWARE) -> tuple[str, Compared]:
        return judge(TrustSection().tolerances, made_on, Replayed(0, found, HARDWARE))

    assert judged(compared(0.0), compared(1e-6, 4)) == ("accept", compared(1e-6, 4))
    assert judged(compared(0.3), compared(0.0, 4))[0] == "reject"
    assert judged(compared(math.inf))[0] == "reject"
    assert judged(compared(0.01))[0] == "inconclusive"
    assert judged(compared(0.01), made_on=HARDWARE.replace("t1", "t2"))[0] == "accept"
    assert judged(compared(0.0), made_on="of an unknown kind")[0] == "inconclusive"
    found, worst = judged(compared(0.9), compared(math.nan, 5))
    assert (found, worst.round, worst.error) == ("inconclusive", 5, math.inf)


class Repeats:
    """A trainer for which each step of a replay takes a command."""

    def __init__(self, error: float | str) -> None:
        self.error, self.rounds = error, list[SpanRound]()
        self.left, self.asked = 0, list[object]()

    async def do(self, command: object) -> Replayed | None:
        self.asked.append(command)
        if isinstance(command, BeginReplay):
            self.rounds = list(command.rounds)
            self.left = sum(one.head + one.tail for one in self.rounds)
            assert command.out is not None
            command.out.write_bytes(b"rows of the steps")
        if not isinstance(command, GoOn):
            return None
        if isinstance(self.error, str):
            raise TrainerError(self.error, "so it is")
        self.left -= command.steps
        done = tuple(compared(self.error, one.round) for one in self.rounds)
        return Replayed(max(0, self.left), () if self.left > 0 else done, HARDWARE)


class Node:
    """The auditing of one member of a run; what it submits is taken as a coordinator would."""

    def __init__(self, run: Run, number: int, trainer: Repeats, folder: Path) -> None:
        self.run, self.said, self.owner = run, list[str | bytes](), list[str]()
        world, me = run.world, run.world.members[number]
        rounds = SimpleNamespace(total=60, inner_steps=INNER_STEPS, box_s=0.0, span=10)
        config = SimpleNamespace(
            rounds=rounds,
            exchange=ExchangeSection(),
            optimizer=SimpleNamespace(batch_size=BATCH_SIZE),
            data=SimpleNamespace(seq_len=SEQ_LEN),
            trust=TrustSection(),
        )
        self.folder = folder
        self.petitions = list[Envelope]()
        session: Any = SimpleNamespace(
            run=world.run,
            config_at=lambda round: config,
            changes_at=lambda round: {},
            sealing=SimpleNamespace(petitions=SimpleNamespace(add=self.petitions.append)),
            identity=me,
            account_name=world.owners[number].key,
            manifest=SimpleNamespace(config=config),
            replica=self,
            trainer=trainer,
            device="cpu",
            state_bytes=1000,
            host=SimpleNamespace(ask=self.ask, said=self.said),
            link=SimpleNamespace(coordinator="coordinator"),
            blobs=SimpleNamespace(sound=lambda root: folder / root),
            fingerprints=BlobStore(folder / "fingerprints"),
            work_dir=folder,
        )
        corpus: Any = SimpleNamespace(assigned=self.assigned)
        self.auditing = Auditing(session, corpus, Progress(), 1000, self.owner.append)

    @property
    def state(self) -> Any:
        return self.run.state

    @property
    def history(self) -> History:
        return read(Log([entry.envelope for entry in self.run.log]))

    def growth(self) -> Any:
        return SimpleNamespace(set=lambda: None)

    async def catch_up(self, *_: object) -> None:
        """It is the run's own."""

    async def assigned(
        self, steps: dict[str, int], cursor: int, node: str, *, pin: bool
    ) -> list[tuple[Path, int]]:
        assert not pin
        return [(self.folder, cursor + at) for at in range(steps[node] * BATCH_SIZE)]

    async def ask(self, peer: str, service: str, message: Any) -> messages.Message:
        assert peer == "coordinator"
        if service == wire.CONTENT:
            assert isinstance(message, repeated_work.GetDifference)
            self.said.append("get_difference")
            assert message.hardware == HARDWARE
            return repeated_work.Difference(round=1, step=7)
        assert service == wire.LEDGER
        entry = entries.decode(message.statement)
        outcome = self.run.feed(entry.envelope)
        self.said.append(outcome.reason or entry.kind)
        if outcome.status == "ignored":
            raise wire.Refused("no", code=outcome.reason)
        return messages.Ok()


@pytest.fixture
def audited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    async def fetched(host: object, blobs: object, wanted: list[Any]) -> list[Path]:
        return [tmp_path / each.blob for each in wanted]

    async def pushed(host: Any, store: BlobStore, peer: str, blobs: list[str], kind: str) -> None:
        assert (peer, kind) == ("coordinator", "fingerprints")
        (path,) = map(store.path, blobs)
        assert path is not None
        host.said.append(path.read_bytes())

    monkeypatch.setattr(delivery, "fetch_all", fetched)
    monkeypatch.setattr(delivery, "push_all", pushed)

    def make(run: Run, error: float | str) -> tuple[Node, Repeats]:
        audit = next(audit for audit in run.state.audits.values() if audit.draws)
        trainer = Repeats(error)
        return Node(run, NUMBER[audit.draws[0].node], trainer, tmp_path), trainer

    return make


async def test_what_is_owed_is_repeated_and_the_verdict_is_committed_to_and_shown(
    audited: Callable[..., Any], tmp_path: Path
) -> None:
    run = Run().play(2, honest())
    node, trainer = audited(run, 0.0)
    source, audit = run.state.owed_by(node.auditing._session.identity.peer_id)
    await node.auditing._repeat()
    await node.auditing._show()
    me = node.auditing._session.identity.peer_id
    shown_rows = public_of(me) + b"rows of the steps"
    assert node.said == ["verdict_committed", shown_rows, "verdict"], (
        "what it commits to comes first"
    )
    (handed_in,) = node.petitions
    assert entries.entry_id(handed_in.encode()) == run.log[-2].id
    assert source not in run.state.audits
    (order,) = trainer.rounds
    shown = next(e.body for e in run.log if e.id == source)
    assert (order.round, order.base, order.head, order.tail) == (1, shown.base, INNER_STEPS, 0)
    assert (order.state, order.blobs) == (tmp_path / shown.base, [tmp_path / shown.blob])
    assert len(order.windows) == INNER_STEPS * BATCH_SIZE
    verdict = run.log[-1].body
    assert (verdict.verdict, verdict.error, verdict.hardware) == ("accept", 0, HARDWARE)
    assert (verdict.rows, verdict.differs_step) == (content.content_id(shown_rows), 0)
    assert not list(node.auditing._session.fingerprints.root.iterdir()), "they are of no more use"
    assert verdict.round == audit.last
    assert len(node.owner) == 2
    await node.auditing._repeat()
    assert len(node.said) == 3, "nothing is owed any more"


async def test_a_prefix_is_repeated_from_the_beginning_of_its_span(
    audited: Callable[..., Any],
) -> None:
    run = Run(nodes=4, audit_rate=1.0, newcomer_rounds=0, total=60)
    while not any(a.why == "prefix" and a.draws for a in run.state.audits.values()):
        run.play(1, honest())
    source = next(s for s, a in run.state.audits.items() if a.why == "prefix" and a.draws)
    audit = run.state.audits[source]
    run.state.audits = {source: audit}
    node, trainer = audited(run, 0.6)
    await node.auditing._repeat()
    assert [one.round for one in trainer.rounds] == list(range(audit.first, audit.last + 1))
    assert audit.first % 10 == 0
    assert len({one.base for one in trainer.rounds}) == len(trainer.rounds) > 1
    await node.auditing._show()
    assert node.said[-2:] == ["get_difference", "verdict"]
    verdict = run.log[-1].body
    assert (verdict.verdict, verdict.differs_round, verdict.differs_step) == ("reject", 1, 7)


async def test_what_cannot_be_repeated_is_no_reason_to_reject(audited: Callable[..., Any]) -> None:
    run = Run().play(1, honest())
    node, _ = audited(run, "diverged")
    await node.auditing._repeat()
    await node.auditing._show()
    assert run.log[-1].body.verdict == "inconclusive"
    assert node.said == ["verdict_committed", "verdict"], "there is nothing to show"


async def test_a_replay_whose_time_is_over_is_dropped(audited: Callable[..., Any]) -> None:
    run = Run().play(1, honest())
    node, trainer = audited(run, 0.0)
    go_on = trainer.do

    async def do(command: object) -> Any:
        if isinstance(command, GoOn):
            run.state.audits.clear()
        return await go_on(command)

    trainer.do = do  # type: ignore[method-assign]
    await node.auditing._repeat()
    assert isinstance(trainer.asked[-1], DropReplay)
    assert not node.said


async def test_an_owner_hears_once_that_its_work_was_rejected_and_that_it_was_convicted(
    audited: Callable[..., Any],
) -> None:
    run = Run().play(2, honest(liars=[0]))
    node, _ = audited(run, 0.0)
    own = Node(run, 0, Repeats(0.0), node.folder)
    run.judge(honest(liars=[0]))
    for _ in range(2):
        own.auditing._tell_owner()
    assert len(own.owner) == 1
    run.play(3, honest(liars=[0]))
    assert run.barred() == [0]
    for _ in range(2):
        own.auditing._tell_owner()
    assert sum("convicted" in line for line in own.owner) == 1
