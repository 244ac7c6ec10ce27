"""What a newcomer asks its trainer to repeat, and how it goes on after a refusal."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.fold.history import History, read
from artel.node.trainer.orders import BeginReplay, GoOn, Load, Loaded, Replayed
from artel.node.trial import GIVEN_UP, TRIES, Newcomer
from artel.protocol import messages, repeated_work
from artel.protocol.errors import CheckFailed, Unreachable
from artel.protocol.net import wire
from artel.protocol.run_config import ExchangeSection
from audit_world import Run, honest
from ledger_world import BATCH_SIZE, HARDWARE, INNER_STEPS, SEQ_LEN
from log_world import Log

STEPS = min(8, INNER_STEPS)


class Home:
    """A newcomer's home without a network: the run's ledger is here, the rest is made up."""

    def __init__(self, run: Run, folder: Path) -> None:
        self.run, self.folder = run, folder
        self.asked, self.said, self.deleted = list[Any](), list[str](), list[str]()
        self.answers = list[messages.Message]()
        self.refusal, self.root = "", ""
        rounds = SimpleNamespace(total=60, inner_steps=INNER_STEPS, box_s=0.0, span=10)
        config = SimpleNamespace(
            rounds=rounds,
            exchange=ExchangeSection(),
            optimizer=SimpleNamespace(batch_size=BATCH_SIZE),
            data=SimpleNamespace(seq_len=SEQ_LEN),
        )
        ids = [entry.id for entry in run.log]
        session: Any = SimpleNamespace(
            run=run.world.run,
            manifest=SimpleNamespace(config=config),
            config_at=lambda round: config,
            changes_at=lambda round: {},
            rounds=config.rounds,
            manifest_file=folder / "manifest.json",
            device="cpu",
            work_dir=folder,
            host=None,
            replica=SimpleNamespace(
                store=SimpleNamespace(
                    index_of=lambda one: ids.index(one) if one in ids else None,
                ),
                history=self.history,
                catch_up=self.catch_up,
            ),
            trainer=self,
            link=SimpleNamespace(coordinator="coordinator", ask=self.ask),
            blobs=SimpleNamespace(delete=self.deleted.append),
        )
        any_: Any = self
        self.newcomer = Newcomer(session, any_, any_, self.said.append)

    @property
    def history(self) -> History:
        return read(Log([entry.envelope for entry in self.run.log]))

    async def catch_up(self, *_: object) -> None:
        """There is nothing new."""

    async def obtain(self, root: str, others: list[str]) -> Path:
        return self.folder / root

    async def assigned(
        self, steps: dict[str, int], cursor: int, node: str, *, pin: bool, first: int
    ) -> list[tuple[Path, int]]:
        assert not pin
        return [(self.folder, cursor + at) for at in range(first)]

    async def do(self, command: Any) -> Any:
        self.asked.append(command)
        if isinstance(command, Load):
            return Loaded("cpu", self.root or command.state.name, HARDWARE)
        if isinstance(command, BeginReplay):
            assert command.out is not None
            command.out.write_bytes(b"rows")
        return Replayed(0, (), HARDWARE) if isinstance(command, GoOn) else None

    async def ask(self, message: messages.Message) -> messages.Message:
        self.answers.append(message)
        if self.refusal:
            raise wire.Refused("so it is", code=self.refusal)
        return messages.Ok()

    def trial(self) -> repeated_work.Trial:
        """About the first contribution of the run."""
        first = next(e for e in self.run.log if isinstance(e.body, entries.Contribution))
        return repeated_work.Trial(contribution=first.id, steps=STEPS, ticket=b"ticket")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home(Run().play(2, honest()), tmp_path)


async def test_the_first_steps_of_a_contribution_are_repeated(home: Home) -> None:
    trial = home.trial()
    await home.newcomer.take(trial)
    body = next(e.body for e in home.run.log if e.id == trial.contribution)
    load, order, on = home.asked
    (one,) = order.rounds
    assert load.state == one.state == home.folder / body.base
    assert order.node == body.node
    assert (one.round, one.base, one.head, one.steps) == (0, body.base, STEPS, INNER_STEPS)
    assert (len(one.windows), one.blobs, one.tail) == (STEPS * BATCH_SIZE, (), 0)
    assert on == GoOn(STEPS)
    (answer,) = home.answers
    assert isinstance(answer, repeated_work.Repeated)
    assert (answer.contribution, answer.ticket, answer.rows) == (
        *(trial.contribution, b"ticket"),
        b"rows",
    )
    assert not order.out.exists()
    assert [line[:9] for line in home.said] == ["trial    ", "✓ trial  "]


async def test_who_is_refused_tries_again_and_gives_up_after_some_failures(home: Home) -> None:
    home.refusal = repeated_work.TRIAL_OVER
    for _ in range(2 * TRIES):
        await home.newcomer.take(home.trial())
    home.refusal = repeated_work.TRIAL_FAILED
    for _ in range(TRIES - 1):
        await home.newcomer.take(home.trial())
    assert home.said[-1].startswith("! trial    so it is")
    with pytest.raises(wire.Refused) as last:
        await home.newcomer.take(home.trial())
    assert last.value.hint == GIVEN_UP
    home.refusal = "busy"
    with pytest.raises(wire.Refused) as busy:
        await home.newcomer.take(home.trial())
    assert busy.value.code == "busy", "it is asked again by the link"


async def test_what_cannot_be_repeated(home: Home) -> None:
    known = home.trial()
    unknown = known.model_copy(update={"contribution": "ab" * 32})
    other = next(e for e in home.run.log if not isinstance(e.body, entries.Contribution))
    late = [e for e in home.run.log if isinstance(e.body, entries.Contribution)]
    inside = next((e for e in late if e.body.span != e.body.round), None)  # type: ignore[union-attr]
    for source in (unknown.contribution, other.id, *([inside.id] if inside else [])):
        with pytest.raises(CheckFailed):
            await home.newcomer.take(known.model_copy(update={"contribution": source}))
    home.root = "another"
    with pytest.raises(Unreachable, match="damaged"):
        await home.newcomer.take(known)
    assert len(home.deleted) == 1
    assert not home.answers
