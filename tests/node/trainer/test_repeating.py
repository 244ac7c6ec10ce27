"""Replays: a node's span made again by another one, to the bit, beside that one's own training."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artel.node.trainer import machine
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import (
    Apply,
    ApplySlices,
    BeginReplay,
    Combine,
    Counted,
    DropReplay,
    GoOn,
    Load,
    Replayed,
    RunOn,
    SpanRound,
    Train,
    Trained,
)
from artel.node.trainer.training import Training, open_training
from artel.protocol import content, fingerprints
from artel.protocol.fingerprints import ROW, TRIAL_APART, Rows
from artel.protocol.repeated_work import TRIAL_STEPS
from artel.protocol.state import map_state
from artel.protocol.tolerances import judged
from trainer_world import NODES, World, make_world, started

ROUNDS = 4
SETTINGS: dict[str, dict[str, Any]] = {
    "int4": {},
    "fp32-overlap-fragments": {
        "exchange": {"codec": "fp32", "overlap_steps": 3, "fragments": 3},
        "attention_dropout": 0.2,
    },
    "sparse-overlap-fragments": {
        "exchange": {"codec": "sparse", "top_k": 64, "overlap_steps": 2, "fragments": 2},
        "hidden_size": 64,
    },
    "sparse-sharded": {
        "exchange": {"codec": "sparse", "top_k": 64, "topology": "sharded"},
        "optimizer": {"kind": "muon"},
        "hidden_size": 64,
    },
}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Among other tests two threads take much longer than one."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quiet(*_: Any) -> None:
    pass


@dataclass
class Seat:
    """A node's training, driven as the loop does it, and what its rounds were."""

    world: World
    member: int
    out: Path
    session: Training
    rounds: list[SpanRound] = field(default_factory=list)
    prints: list[bytes] = field(default_factory=list)
    """The fingerprints of each contribution's steps."""
    between: Callable[[], None] = quiet

    @classmethod
    def take(cls, world: World, member: int, out: Path, state: Path | None = None) -> Seat:
        return cls(world, member, out, open_training(world.manifest, state or world.state, "cpu"))

    @property
    def name(self) -> str:
        return NODES[self.member]

    def play(self, round: int, steps: int | None = None, **changes: Any) -> Trained:
        """Head and tail of a round; what an auditor is told of it is kept."""
        config = self.world.run.config
        sharded = config.exchange.topology == "sharded"
        head, tail, split = self.world.split(self.member, round, steps)
        before = self.rounds[-1] if self.rounds else None
        state = self.out / f"state-{round}.bin"
        order = Train(
            round=round,
            node=self.name,
            windows=head,
            out=self.out,
            **split,
            slices=2 if sharded else 0,
            carried=before.tail if before else 0,
            span=self.rounds[0].round if before else None,
            **changes,
        )
        base = self.session.agreed.now().root
        self.between()
        made = self.session.train(order, quiet, quiet)
        self.between()
        self.prints.append(made.fingerprints.read_bytes())
        if split["tail"]:
            self.session.run_on(RunOn(round, self.name, tail, split["steps"]), quiet, quiet)
        self.between()
        self.rounds.append(
            SpanRound(
                round=round,
                state=state if state.exists() else self.world.state,
                base=base,
                steps=split["steps"],
                head=made.head,
                windows=head[: made.head * config.optimizer.batch_size],
                blobs=[_kept(path) for path in made.parts or [made.blob]],
                tail=split["tail"],
                tail_windows=tail,
                slices=order.slices,
            )
        )
        return made


def _kept(path: Path) -> Path:
    """A copy under another name: the next round's has the first."""
    kept = path.with_name(f"{content.file_content_id(path)}.blob")
    kept.write_bytes(path.read_bytes())
    return kept


def close(seats: list[Seat], round: int, made: list[Trained], also: Sequence[Seat] = ()) -> None:
    """All apply what the first two have made."""
    all_of_them = [*seats, *also]
    tokens = [each.tokens for each in made]
    if not made[0].parts:
        blobs = [seat.rounds[-1].blobs[0] for seat in seats]
        listed = [Counted(*one) for one in zip(NODES, blobs, tokens, strict=True)]
        roots = {s.session.merging.apply(Apply(round, listed, s.out)).root for s in all_of_them}
    else:
        slices = []
        for j in range(2):
            blobs = [seat.rounds[-1].blobs[j] for seat in seats]
            listed = [Counted(*one) for one in zip(NODES, blobs, tokens, strict=True)]
            order = Combine(round, j, 2, listed, seats[j].out)
            slices.append(_kept(seats[j].session.merging.aggregate(order)))
        for seat in all_of_them:
            seat.rounds[-1] = replace(seat.rounds[-1], aggregates=slices)
        roots = {
            s.session.merging.apply_slices(ApplySlices(round, slices, NODES, s.out, 2)).root
            for s in all_of_them
        }
    assert len(roots) == 1


def played(world: World, out: Path, rounds: range = range(ROUNDS)) -> list[Seat]:
    """Two nodes after some rounds of one span."""
    seats = [Seat.take(world, member, out / str(member)) for member in range(2)]
    for round in rounds:
        close(seats, round, [seat.play(round) for seat in seats])
    return seats


def repeated(auditor: Training, order: BeginReplay) -> Replayed:
    auditor.begin_replay(order)
    return auditor.go_on(GoOn(10**6), quiet)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> tuple[World, list[Seat]]:
    home = tmp_path_factory.mktemp("plain")
    world = make_world(home, exchange={"overlap_steps": 3}, rounds={"span": 100})
    return world, played(world, home)


@pytest.mark.parametrize("name", SETTINGS)
def test_a_span_is_repeated_to_the_bit_while_the_own_training_goes_on(
    name: str, tmp_path: Path
) -> None:
    world = make_world(tmp_path, rounds={"span": 100, "total": 100, "ramp": 5}, **SETTINGS[name])
    honest = played(world, tmp_path)[0]
    alone, busy = (Seat.take(world, 1, tmp_path / each) for each in ("alone", "busy"))
    other = Seat.take(world, 0, tmp_path / "other")
    out = tmp_path / "repeated.bin"
    busy.session.begin_replay(BeginReplay(honest.name, honest.rounds, out))
    found: list[Replayed] = []
    # Prime to the rounds' steps: it stops in the middle of heads and of tails.
    busy.between = lambda: found.append(busy.session.go_on(GoOn(3), quiet))
    for round in range(ROUNDS):
        ours = [seat.play(round) for seat in (alone, busy)]
        assert ours[0].loss == ours[1].loss
        blobs = [[path.read_bytes() for path in seat.rounds[-1].blobs] for seat in (alone, busy)]
        assert blobs[0] == blobs[1]
        close([other, busy], round, [other.play(round), ours[1]], also=[alone])
    steps = sum(one.head + one.tail for one in honest.rounds) - honest.rounds[-1].tail
    assert [one.left for one in found] == [max(0, steps - 3 * n) for n in range(1, len(found) + 1)]
    assert found[-1].left == 0
    assert [(c.round, c.error) for c in found[-1].compared] == [(r, 0.0) for r in range(ROUNDS)]
    assert found[-1].compared[-1].steps == steps
    # Whoever repeats them comes to the fingerprints of all their steps.
    assert out.read_bytes() == b"".join(honest.prints)
    tails = [0, *(one.tail for one in honest.rounds)]
    made = [one.head + tail for one, tail in zip(honest.rounds, tails, strict=False)]
    assert [len(each) // 512 for each in honest.prints] == made
    sparse = world.run.config.exchange.codec == "sparse"
    assert {one.overlap for one in found[-1].compared} == ({1.0} if sparse else {None})


def test_a_span_that_begins_in_the_middle_of_a_run_and_a_box(tmp_path: Path) -> None:
    """The state is a later one, and what was made is less than what was assigned."""
    world = make_world(
        tmp_path, exchange={"overlap_steps": 4}, rounds={"span": 100, "box_s": 60.0, "ramp": 6}
    )
    first = played(world, tmp_path, range(2))[0]
    state = first.out / "state-2.bin"
    late = Seat.take(world, 1, tmp_path / "late", state)
    (late.out / state.name).parent.mkdir()
    (late.out / state.name).write_bytes(state.read_bytes())
    for round in (2, 3):
        made = late.play(round, steps=22, deadline=0.0)
        late.session.merging.apply(Apply(round, [Counted(late.name, made.blob, 1)], late.out))
    assert [(one.steps, one.head, one.tail) for one in late.rounds] == [(22, 3, 11)] * 2
    found = repeated(first.session, BeginReplay(late.name, late.rounds))
    assert [(c.round, c.error) for c in found.compared] == [(2, 0.0), (3, 0.0)]


@pytest.mark.parametrize("cheat", ["half the steps", "windows of others", "stale", "as another"])
def test_work_that_was_not_done_differs(
    plain: tuple[World, list[Seat]], cheat: str, tmp_path: Path
) -> None:
    world, (auditor, _) = plain
    node = Seat.take(world, 1, tmp_path)
    whole = node.play(0)
    told = node.rounds[0]
    match cheat:
        case "half the steps":
            short = node.session.train(replace(_order(node), deadline=0.0), quiet, quiet)
            assert short.head < told.head
            told = replace(told, blobs=[_kept(short.blob)])
        case "windows of others":
            told = replace(told, windows=world.windows(0)[: len(told.windows)])
        case "stale":
            node.play(0)
            told = replace(told, blobs=[_kept(node.session.train(_order(node), quiet, quiet).blob)])
            told = replace(told, windows=world.windows(1, 1)[: len(told.windows)])
        case "as another":
            told = replace(told, blobs=auditor.rounds[0].blobs)
    (found,) = repeated(auditor.session, BeginReplay(node.name, [told])).compared
    assert whole.head == told.head
    assert 0.3 < found.error < 3


def _order(node: Seat) -> Train:
    head, _, split = node.world.split(node.member, 0)
    return Train(round=0, node=node.name, windows=head, out=node.out, **split)


def test_a_replay_goes_on_after_a_cancel_and_ends_with_a_failure(
    plain: tuple[World, list[Seat]], tmp_path: Path
) -> None:
    _, (node, auditor) = plain
    order = BeginReplay(node.name, node.rounds[:2])
    calls = iter(range(100))

    def check() -> None:
        if next(calls) == 4:
            raise TrainerError("cancelled", "no more")

    def go_on(steps: int) -> Replayed:
        return auditor.session.go_on(GoOn(steps), check)

    with pytest.raises(TrainerError, match="no replay"):
        go_on(1)
    auditor.session.begin_replay(order)
    with pytest.raises(TrainerError, match="no more"):
        go_on(100)
    assert go_on(0).left == 2 * 5 + 3 - 4
    found = go_on(100)
    assert (found.left, [one.error for one in found.compared]) == (0, [0.0, 0.0])
    assert go_on(5) == found, "it is over, and can still be asked"

    damaged = tmp_path / "damaged.blob"
    damaged.write_bytes(node.rounds[1].blobs[0].read_bytes()[:-1])
    for changed, code in (
        (replace(order.rounds[1], blobs=[damaged]), "bad_blob"),
        (replace(order.rounds[1], state=order.rounds[0].state), "bad_state"),
        (replace(order.rounds[1], windows=order.rounds[1].windows[1:]), "bad_request"),
    ):
        weights = auditor.session.inner.read()
        auditor.session.begin_replay(replace(order, rounds=[order.rounds[0], changed]))
        with pytest.raises(TrainerError) as failure:
            auditor.session.go_on(GoOn(100), quiet)
        assert failure.value.code == code
        assert np.array_equal(auditor.session.inner.read(), weights)
        with pytest.raises(TrainerError) as failure:
            auditor.session.go_on(GoOn(100), quiet)
        assert failure.value.code == "not_loaded"
    for rounds in ([], node.rounds[::2], [replace(node.rounds[0], head=9)]):
        with pytest.raises(TrainerError) as failure:
            auditor.session.begin_replay(BeginReplay(node.name, rounds))
        assert failure.value.code == "bad_request"


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_the_first_steps_alone_tell_who_made_them_on_whatever_machine(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A newcomer's trial: what makes it pass, and what does not."""
    world = make_world(
        tmp_path,
        inner_steps=12,
        hidden_size=64,
        optimizer={"kind": kind, "precision": "bf16"},
        exchange={"overlap_steps": 2},
        rounds={"span": 100},
    )
    bf16 = [False]
    monkeypatch.setattr(machine, "computes_bf16", lambda device: bf16[0])
    node = Seat.take(world, 0, tmp_path / "node")
    node.play(0)
    (told,) = node.rounds
    known = fingerprints.rows_in(node.prints[0])[:TRIAL_STEPS]
    mine = told.windows[: 4 * TRIAL_STEPS]

    def made(windows: Sequence[Any] = mine, threads: int = 1) -> Rows:
        torch.set_num_threads(threads)
        newcomer = Seat.take(world, 1, tmp_path / "newcomer").session
        one = replace(told, head=TRIAL_STEPS, windows=windows, blobs=(), tail=0, tail_windows=())
        out = tmp_path / "rows.bin"
        found = repeated(newcomer, BeginReplay(node.name, [one], out))
        assert (found.left, found.compared) == (0, ())
        return fingerprints.rows_in(out.read_bytes())

    assert np.array_equal(made(), known)
    again = made(threads=2)
    assert fingerprints.repeats(known, again)
    bf16[0] = True
    again = made()
    assert 1e-4 < fingerprints.apart(known, again, 0)[0] < TRIAL_APART / 2
    bf16[0] = False

    # What anybody knows without all of the steps: where they begin, and what was sent.
    layout, seed = node.session.layout, world.run.config.run.seed
    places = fingerprints.places_of(seed, 0, layout.parameters)
    begin, end = map_state(told.state, layout).params[places], node.session.inner.read()[places]
    line = np.arange(1, TRIAL_STEPS + 1)[:, None] / len(told.windows) * 4
    half = TRIAL_STEPS // 2
    guesses = {
        "half of each batch": made([mine[i - i % 4 + i % 4 // 2] for i in range(len(mine))]),
        "windows of another": made(world.windows(1)[: len(mine)]),
        "the way to what was sent": begin + line * (end - begin),
        "one step, and on": begin + np.arange(1, TRIAL_STEPS + 1)[:, None] * (known[0, 2:] - begin),
        "half of the steps, and on": np.concatenate(
            (
                known[:half, 2:],
                known[half - 1, 2:]
                + np.outer(range(1, half + 1), known[half - 1, 2:] - known[half - 2, 2:]),
            )
        ),
    }
    for name, guess in guesses.items():
        rows = guess
        if guess.shape[1] == ROW - 2:  # even if it knows all losses
            rows = np.concatenate((known[:, :2], guess), axis=1).astype(np.float32)
        assert fingerprints.apart(known, rows, 0)[0] > 1.3 * TRIAL_APART, name


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_honest_node_is_convicted_in_1000_node_rounds_with_mixed_threads(tmp_path: Path) -> None:
    """Each span of 10 rounds is repeated with another number of threads than it was made with."""
    world = make_world(
        tmp_path,
        inner_steps=4,
        hidden_size=64,
        exchange={"codec": "int4", "overlap_steps": 1},
        rounds={"span": 10, "total": 10_000},
    )
    table, said = world.run.config.trust.tolerances, Counter[str]()
    state, largest, threads = world.state, 0.0, (1, 2, 4)
    for number in range(102):
        torch.set_num_threads(threads[number % 3])
        node = Seat.take(world, number % 2, tmp_path / str(number % 3), state)
        first = 10 * (number // 3)
        for round in range(first, first + 10):
            made = node.play(round)
            applied = Apply(round, [Counted(node.name, made.blob, 1)], node.out)
            state_after = node.session.merging.apply(applied).state
        node.rounds[0] = replace(node.rounds[0], state=state)
        torch.set_num_threads(threads[(number + 1 + number // 3 % 2) % 3])
        auditor = open_training(world.manifest, state, "cpu")
        found = repeated(auditor, BeginReplay(node.name, node.rounds))
        made_on = node.session.inner.hardware
        assert made_on != found.hardware
        said.update(
            judged(table, made_on, found.hardware, one.error, one.steps) for one in found.compared
        )
        largest = max(largest, *(one.error for one in found.compared))
        if number % 3 == 2:
            state = Path(shutil.copy(state_after, tmp_path / "next.bin"))
            for folder in {node.out.parent / str(n) for n in range(3)}:
                shutil.rmtree(folder)
    print(f"{dict(said)}, the largest error {largest:.2e}")
    assert said["accept"] == said.total() == 1020


async def test_the_trainer_process_repeats(plain: tuple[World, list[Seat]]) -> None:
    world, (node, _) = plain
    trainer = await started(world.home / "replay.log")
    await trainer.do(Load(world.manifest, world.state, "cpu"))
    await trainer.do(BeginReplay(node.name, node.rounds[:2]))
    found = [await trainer.do(GoOn(7)) for _ in range(2)]
    assert [(one.left, [c.error for c in one.compared]) for one in found] == [
        (6, [0.0]),
        (0, [0.0, 0.0]),
    ]
    await trainer.do(DropReplay())
    with pytest.raises(TrainerError, match="no replay"):
        await trainer.do(GoOn(1))
    await trainer.close()
