"""Overlap, fragments, error feedback: sessions against a plain reference, bit for bit."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numba.core.dispatcher import Dispatcher
from torch.nn import functional

from aggregate_world import dense
from artel.node.trainer import exchange
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.data import Windows
from artel.node.trainer.orders import (
    Apply,
    ApplySlices,
    Benchmark,
    Combine,
    Counted,
    Evaluate,
    RunOn,
    SetState,
    Steps,
    Train,
    Trained,
)
from artel.node.trainer.schedule import learning_rate
from artel.node.trainer.training import Training, open_training
from artel.protocol import model
from artel.protocol.exchange import codec, outer, parts, pseudogradient
from artel.protocol.exchange.aggregation import Weighted, aggregate
from artel.protocol.exchange.codec import Elements
from artel.protocol.exchange.parts import Part
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.state import Layout, State, Vector, read_state, state_root
from trainer_world import NODES, World, make_world

ROUNDS = 4
STEPS = 8
SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlap": {"overlap_steps": 3},
    "two-fragments": {"fragments": 2},
    "overlap-three-fragments": {"overlap_steps": 3, "fragments": 3},
    "sparse-overlap-two-fragments": {
        "codec": "sparse",
        "top_k": 64,
        "overlap_steps": 2,
        "fragments": 2,
    },
}

MakeWorld = Callable[..., World]


@pytest.fixture(scope="module")
def world_of(tmp_path_factory: pytest.TempPathFactory) -> MakeWorld:
    """Worlds by what their manifest says, each made once."""
    made: dict[str, World] = {}

    def world(**settings: Any) -> World:
        name = repr(sorted(settings.items()))
        if name not in made:
            made[name] = make_world(tmp_path_factory.mktemp("world"), **settings)
        return made[name]

    return world


# --- the reference ---


@dataclass
class Plain:
    """A node as the text books have it: a module, AdamW, and vectors."""

    world: World
    layout: Layout
    member: int
    module: torch.nn.Module
    optimizer: torch.optim.AdamW
    sent: Vector
    kept: Vector
    """Error feedback."""
    loss: float = 0.0
    trained: int = field(default=0)

    @classmethod
    def join(cls, world: World, layout: Layout, member: int, params: Vector) -> Plain:
        config = world.run.config
        module = model.build(config.model, 257, 0)
        model.load_parameters(module, params)
        matrices = [p for p in module.parameters() if p.ndim >= 2]
        vectors = [p for p in module.parameters() if p.ndim < 2]
        optimizer = torch.optim.AdamW(
            [
                {"params": matrices, "weight_decay": config.optimizer.weight_decay},
                {"params": vectors, "weight_decay": 0.0},
            ],
            betas=config.optimizer.betas,
            eps=config.optimizer.eps,
            fused=True,
        )
        return cls(world, layout, member, module, optimizer, params, np.zeros_like(params))

    def steps(self, round: int, first: int, last: int) -> None:
        config = self.world.run.config
        windows = self.world.windows(self.member, round)
        batches = list(Windows(self.world.run, windows).batches(config.optimizer.batch_size))
        for step in range(first, last):
            tokens = torch.from_numpy(batches[step])
            logits = self.module(input_ids=tokens[:, :-1]).logits
            loss = functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten())
            loss.backward()  # type: ignore[no-untyped-call]
            torch.nn.utils.clip_grad_norm_(self.module.parameters(), config.optimizer.clip)
            for group in self.optimizer.param_groups:
                group["lr"] = learning_rate(config, round * STEPS + step)
            self.optimizer.step()
            self.optimizer.zero_grad()

    def merge(self, round: int, state: State) -> None:
        """Take over what the round before ``round`` has changed."""
        if round == 0:
            return
        own = model.read_parameters(self.module)
        for piece in fragment(self.world, self.layout, round - 1).ranges:
            own[piece] = state.params[piece] + (own[piece] - self.sent[piece])
        model.load_parameters(self.module, own)

    def contribute(self, round: int, state: State) -> Vector | Elements:
        """What the others get of the node's pseudo-gradient."""
        part = fragment(self.world, self.layout, round)
        run_codec = codec.of(exchange_of(self.world))
        self.sent = model.read_parameters(self.module)
        delta = part.take(state.params) - part.take(self.sent)
        if not run_codec.sparse:
            return run_codec.decode(part.layout, run_codec.encode(part.layout, delta))
        decay = np.float32(exchange_of(self.world).error_feedback)
        delta = part.take(self.kept) * decay + delta
        payload = run_codec.encode(part.layout, delta)
        sent = run_codec.decode(part.layout, payload)
        part.put(delta - dense(sent, part.parameters), self.kept)
        return sent


def exchange_of(world: World) -> Any:
    return world.run.config.exchange


def fragment(world: World, layout: Layout, round: int) -> Part:
    return parts.fragment(layout, exchange_of(world).fragments, round)


def reference(world: World, layout: Layout) -> list[str]:
    """State roots of the first rounds of two nodes."""
    settings = exchange_of(world)
    state = read_state(world.state, layout)
    nodes = [Plain.join(world, layout, member, state.params) for member in range(2)]
    head = STEPS - settings.overlap_steps
    roots = []
    for round in range(ROUNDS):
        part, given = fragment(world, layout, round), []
        for node in nodes:
            node.merge(round, state)
            node.steps(round, 0, head)
            vector = node.contribute(round, state)
            given.append(Weighted(NODES[node.member], 1, vector))
            node.steps(round, head, STEPS)
        update = aggregate(part.layout, given, floor=settings.contributor_floor)
        momentum = None if state.momentum is None else state.momentum.copy()
        params = state.params.copy()
        moved, rolled = outer.outer_step(
            part.take(params),
            None if momentum is None else part.take(momentum),
            update,
            lr=settings.outer.lr,
            mu=settings.outer.momentum,
            nesterov=settings.outer.nesterov,
        )
        part.put(moved, params)
        if momentum is not None and rolled is not None:
            part.put(rolled, momentum)
        state = State(round + 1, layout.digest, params, momentum)
        roots.append(state_root(state))
    return roots


# --- the trainer ---


@dataclass
class Node:
    """A session, driven as the trainer's loop does it, but in one thread."""

    world: World
    member: int
    out: Path
    session: Training

    @classmethod
    def join(cls, world: World, member: int, out: Path) -> Node:
        return cls(world, member, out, open_training(world.manifest, world.state, "cpu"))

    @property
    def name(self) -> str:
        return NODES[self.member]

    def order(self, round: int, steps: int = STEPS, **changes: Any) -> Train:
        head, _, split = self.world.split(self.member, round, steps)
        settings = split | changes
        return Train(round=round, node=self.name, windows=head, out=self.out, **settings)

    def train(self, round: int, **changes: Any) -> Trained:
        return self.session.train(self.order(round, **changes), lambda _: None, lambda: None)

    def run_on(self, round: int, check: Callable[[], None] = lambda: None) -> None:
        tail = self.world.split(self.member, round)[1]
        self.session.run_on(RunOn(round, self.name, tail, STEPS), lambda _: None, check)

    def contribute(self, round: int, **changes: Any) -> Counted:
        made = self.train(round, **changes)
        return Counted(self.name, made.blob, made.tokens)

    def apply(self, round: int, listed: list[Counted]) -> str:
        return self.session.merging.apply(Apply(round, listed, self.out)).root

    @property
    def weights(self) -> Vector:
        return self.session.inner.read()


@pytest.fixture
def pair(tmp_path: Path) -> Callable[[World], list[Node]]:
    return lambda world: [Node.join(world, m, tmp_path / str(m)) for m in range(2)]


@pytest.mark.parametrize("kind", ["fp32", "fp16", "int8", "int4", "sparse"])
def test_nothing_is_compiled_in_the_first_round(
    world_of: MakeWorld, pair: Callable[[World], list[Node]], kind: str
) -> None:
    world = world_of(exchange={"codec": kind})
    exchange.warm_up(world.run, "cpu")
    compiled = kernels()
    nodes = pair(world)
    listed = [node.contribute(0) for node in nodes]
    nodes[0].apply(0, listed)
    assert kernels() == compiled


def kernels() -> dict[str, int]:
    """How many compiled forms each of the project's loops has."""
    return {
        f"{module.__name__}.{name}": len(value.signatures)
        for module in list(sys.modules.values())
        if module is not None and module.__name__.startswith("artel.protocol.")
        for name, value in vars(module).items()
        if isinstance(value, Dispatcher)
    }


@pytest.mark.parametrize("name", SETTINGS)
def test_rounds_are_those_of_the_reference(
    world_of: MakeWorld, pair: Callable[[World], list[Node]], name: str
) -> None:
    world = world_of(exchange=SETTINGS[name])
    nodes = pair(world)
    overlap = exchange_of(world).overlap_steps
    roots = []
    for round in range(ROUNDS):
        listed = []
        for node in nodes:
            made = node.train(round)
            assert (made.head, made.tail) == (STEPS - overlap, overlap if round else 0)
            listed.append(Counted(node.name, made.blob, made.tokens))
            if overlap:
                node.run_on(round)
        first, second = (node.apply(round, listed) for node in nodes)
        assert first == second
        roots.append(first)
    torch.set_num_threads(1)
    assert roots == reference(world, nodes[0].session.layout)
    assert len(set(roots)) == ROUNDS


@pytest.mark.parametrize("kind", ["int4", "sparse"])
def test_sharded_rounds_lead_everybody_to_one_root(
    world_of: MakeWorld, pair: Callable[[World], list[Node]], kind: str
) -> None:
    world = world_of(exchange={"codec": kind, "fragments": 2})
    nodes = pair(world)
    run_codec = codec.of(exchange_of(world))
    for round in range(3):
        made = [node.train(round, slices=2) for node in nodes]
        assert all(m.size > sum(p.stat().st_size for p in m.parts) for m in made)
        pieces = parts.cut(fragment(world, nodes[0].session.layout, round), 2)
        assert len(pieces) == len(made[0].parts) == 2
        base = nodes[0].session.agreed.now()[1]
        for m in made:
            index = m.blob.read_bytes()
            listed = pseudogradient.open_index(index, round=round, base=base)
            assert [piece.size for piece in listed] == [p.stat().st_size for p in m.parts]
        slices = []
        for number in range(2):
            inputs = [
                Counted(node.name, m.parts[number], m.tokens)
                for node, m in zip(nodes, made, strict=True)
            ]
            blobs = [
                n.session.merging.aggregate(Combine(round, number, 2, given, n.out))
                for n, given in zip(nodes, (inputs, inputs[::-1]), strict=True)
            ]
            assert blobs[0].read_bytes() == blobs[1].read_bytes()
            slices.append(blobs[number])
        kept = [n.session.feedback.residual.copy() for n in nodes if n.session.feedback]
        roots = {
            n.session.merging.apply_slices(ApplySlices(round, slices, NODES, n.out, 2)).root
            for n in nodes
        }
        assert len(roots) == 1
        if not run_codec.sparse:
            continue
        # What a node sent and no slice has is in its feedback again when the next round begins.
        changed = 0
        for node, before, m in zip(nodes, kept, made, strict=True):
            expected = before.copy()
            for piece, sent, used in zip(pieces, m.parts, slices, strict=True):
                mine, all_of_it = (
                    Header(round, base, run_codec, magic).load(path.read_bytes(), piece.layout)
                    for path, magic in (
                        (sent, pseudogradient.MAGIC),
                        (used, pseudogradient.SLICE_MAGIC),
                    )
                )
                assert isinstance(mine, Elements)
                assert isinstance(all_of_it, Elements)
                lost = ~np.isin(mine.positions, all_of_it.positions)
                own = piece.take(expected).copy()
                own[mine.positions[lost]] += mine.values[lost]
                piece.put(own, expected)
            changed += not np.array_equal(expected, before)
            with pytest.raises(TrainerError, match="cancelled"):  # merges, and goes back to that
                node.session.train(node.order(round + 1), lambda _: None, cancelled_after(0))
            assert node.session.feedback is not None
            assert np.array_equal(node.session.feedback.residual, expected)
        chunked = any(t.size >= parts.CHUNK for piece in pieces for t in piece.layout.tensors)
        assert (changed > 0) == chunked


def cancelled_after(steps: int) -> Callable[[], None]:
    """What the loop calls between steps; says no after some."""
    calls = [0]

    def check() -> None:
        calls[0] += 1
        if calls[0] > steps:
            raise TrainerError("cancelled", "the command was cancelled")

    return check


@pytest.mark.parametrize("kind", ["int4", "sparse"])
def test_a_repeated_attempt_gives_the_same_blob_and_drops_the_tail(
    world_of: MakeWorld, pair: Callable[[World], list[Node]], kind: str
) -> None:
    node, other = pair(world_of(exchange={"codec": kind, "overlap_steps": 3, "fragments": 2}))
    for round in range(2):
        contribution = node.contribute(round)
        node.run_on(round)
        node.apply(round, [contribution])
    first = node.train(2)
    assert first.tail == 3
    blob = first.blob.read_bytes()
    node.run_on(2)
    for _ in range(2):
        with pytest.raises(TrainerError, match="cancelled"):
            node.session.train(node.order(2), lambda _: None, cancelled_after(2))
        again = node.train(2)
        assert again.blob.read_bytes() == blob
        assert (again.tail, again.tokens) == (3, first.tokens)
    # With another assignment it is another contribution, and the same one again after that.
    assert node.train(2, steps=6).blob.read_bytes() != blob
    assert node.train(2).blob.read_bytes() == blob
    # And who joins with that state makes another one, since its optimiser knows nothing yet.
    other.session.set_state(SetState(node.out / "state-2.bin"))
    assert other.train(2).blob.read_bytes() != blob


@pytest.mark.parametrize("decay", [0.95, 1.0])
def test_what_was_left_out_is_kept(
    world_of: MakeWorld, pair: Callable[[World], list[Node]], decay: float
) -> None:
    world = world_of(exchange={"codec": "sparse", "error_feedback": decay})
    node, other = pair(world)
    layout, run_codec = node.session.layout, codec.of(exchange_of(world))
    assert node.session.feedback is not None

    def sent(blob: Path, round: int, base: str) -> Vector:
        data = blob.read_bytes()
        return dense(Header(round, base, run_codec).load(data, layout), layout.parameters)

    roots = [node.session.agreed.now()[1]]
    mine, theirs = node.contribute(0), other.contribute(0)
    kept = node.session.feedback.residual.copy()
    roots.append(node.apply(0, [theirs]))
    second = node.contribute(1)
    came_in = node.session.agreed.now()[0].params - node.weights
    total = np.float32(decay) * (kept + sent(mine.blob, 0, roots[0])) + came_in
    now = node.session.feedback.residual + sent(second.blob, 1, roots[1])
    assert np.allclose(now, total, rtol=1e-5, atol=1e-7)
    # A state that is not our own doing ends all that.
    other.apply(0, [theirs])
    node.session.set_state(SetState(other.out / "state-1.bin"))
    assert not node.session.feedback.residual.any()


def test_a_lost_tail_does_not_count_and_is_not_in_the_weights(
    world_of: MakeWorld, pair: Callable[[World], list[Node]]
) -> None:
    node, other = pair(world_of(exchange={"overlap_steps": 4}))
    listed = [node.contribute(0), other.contribute(0)]
    before = node.weights
    with pytest.raises(TrainerError, match="cancelled"):
        node.run_on(0, cancelled_after(2))
    assert np.array_equal(node.weights, before)
    with pytest.raises(TrainerError) as failure:
        node.run_on(0)
    assert failure.value.code == "wrong_round"
    node.apply(0, listed)
    assert node.train(1).tail == 0

    # A tail that was trained, but that the ledger knows nothing of, goes too.
    other.run_on(0)
    assert not np.array_equal(other.weights, before)
    other.apply(0, listed)
    with pytest.raises(TrainerError, match="cancelled"):
        other.session.train(other.order(1, carried=0), lambda _: None, cancelled_after(0))
    assert np.array_equal(other.weights, other.session.agreed.now()[0].params)
    assert other.train(1).tail == 0


def test_a_node_that_sits_a_round_out_begins_with_the_state(
    world_of: MakeWorld, pair: Callable[[World], list[Node]]
) -> None:
    node, other = pair(world_of(exchange={"overlap_steps": 3}))
    for round in range(2):
        contribution = other.contribute(round)
        if round == 0:
            node.train(0)
            node.run_on(0)
        for each in (node, other):
            each.apply(round, [contribution])
    with pytest.raises(TrainerError, match="cancelled"):
        node.session.train(node.order(2), lambda _: None, cancelled_after(0))
    assert np.array_equal(node.weights, node.session.agreed.now()[0].params)
    assert node.train(2).tail == 0


# --- spans of rounds ---

SPANS: dict[str, dict[str, Any]] = {
    "plain": {},
    "overlap": {"overlap_steps": 3},
    "sparse-overlap-two-fragments": SETTINGS["sparse-overlap-two-fragments"],
}


@pytest.mark.parametrize("name", SPANS)
def test_a_span_follows_from_the_state_that_it_begins_with(
    world_of: MakeWorld, pair: Callable[[World], list[Node]], name: str, tmp_path: Path
) -> None:
    """Who joins where a span begins, and knows nothing of before, makes the same blobs."""
    world = world_of(exchange=SPANS[name], rounds={"span": 2})
    node, _ = pair(world)
    late, spans, blobs = None, [], []
    for round in range(4):
        tail = world.split(0, round)[2]["tail"]
        assert tail == (0 if round % 2 else exchange_of(world).overlap_steps)
        carried = world.split(0, round - 1)[2]["tail"] if round else 0
        settings = {"carried": carried, "span": round - 1 if round % 2 else None}
        made = node.train(round, **settings)
        spans.append(made.span)
        blobs.append(made.blob.read_bytes())
        if round == 2:
            late = Node.join(world, 0, tmp_path / "late")
            late.session.set_state(SetState(node.out / "state-2.bin"))
        if late is not None:
            assert late.train(round, **settings).blob.read_bytes() == blobs[-1]
        for each in filter(None, (node, late)):
            if tail:
                each.run_on(round)
            each.apply(round, [Counted(node.name, made.blob, made.tokens)])
    assert spans == [0, 0, 2, 2]
    # The same state without a span to begin makes something else.
    without = Node.join(world, 0, tmp_path / "without")
    without.session.set_state(SetState(node.out / "state-3.bin"))
    assert without.train(3, span=2, carried=0).span == 3, "there is nothing to go on with"
    assert without.train(3, span=2, carried=0).blob.read_bytes() != blobs[3]


def test_a_span_goes_on_only_with_all_of_the_round_before(
    world_of: MakeWorld, pair: Callable[[World], list[Node]]
) -> None:
    world = world_of(exchange={"overlap_steps": 3}, rounds={"span": 100})
    node, other = pair(world)
    listed = [node.contribute(0), other.contribute(0)]
    node.run_on(0)
    with pytest.raises(TrainerError, match="cancelled"):
        other.run_on(0, cancelled_after(2))
    for each in (node, other):
        each.apply(0, listed)
    assert (node.train(1, span=0, carried=3).span, node.train(1, span=0, carried=3).tail) == (0, 3)
    made = other.train(1, span=0, carried=3)  # its tail is lost
    assert (made.span, made.tail) == (1, 0)
    assert other.train(1, span=0, carried=3).blob.read_bytes() == made.blob.read_bytes()
    node.apply(1, [Counted(other.name, made.blob, made.tokens)])
    late = node.train(2, carried=3)  # its contribution did not count
    assert (late.span, late.tail) == (2, 0)


def test_a_box_ends_the_head_but_not_before_a_quarter_is_done(
    world_of: MakeWorld, pair: Callable[[World], list[Node]]
) -> None:
    node, _ = pair(world_of(exchange={"overlap_steps": 4}))
    reports: list[Steps] = []
    order = node.order(0, steps=22, deadline=0.0)  # 11 of them are the tail
    made = node.session.train(order, reports.append, lambda: None)
    assert (order.tail, made.head, made.tokens) == (11, 3, 3 * 4 * 32)
    assert (reports[-1].step, reports[-1].steps) == (3, 22)
    assert made.loss == pytest.approx(np.log(257), rel=0.05)
    assert node.train(0, deadline=1e18).head == 4


def test_evaluating_and_measuring_leave_the_weights_alone(
    world_of: MakeWorld, pair: Callable[[World], list[Node]]
) -> None:
    world = world_of(exchange={"overlap_steps": 3})
    node, other = pair(world)
    before = other.session.evaluate(Evaluate(world.validation), lambda: None)
    blobs = []
    for quiet in (node, other):
        listed = [quiet.contribute(0)]
        quiet.run_on(0)
        weights = quiet.weights
        if quiet is node:
            assert node.session.evaluate(Evaluate(world.validation), lambda: None) == before
            node.session.benchmark(Benchmark(2), lambda: None)
            assert np.array_equal(node.weights, weights)
        quiet.apply(0, listed)
        if quiet is node:  # the state that was agreed on meanwhile, not the weights
            assert node.session.evaluate(Evaluate(world.validation), lambda: None) < before
            assert np.array_equal(node.weights, weights)
        blobs.append(quiet.train(1).blob)
    # The two nodes have different windows, but the same node would not have noticed.
    again = Node.join(world, 0, node.out / "again")
    listed = [again.contribute(0)]
    again.run_on(0)
    again.apply(0, listed)
    assert again.train(1).blob.read_bytes() == blobs[0].read_bytes()


def test_a_round_can_be_applied_once_more_until_it_is_merged(
    world_of: MakeWorld, pair: Callable[[World], list[Node]]
) -> None:
    node, other = pair(world_of())
    mine, theirs = node.contribute(0), other.contribute(0)
    wrong = node.apply(0, [mine])
    right = node.apply(0, [mine, theirs])
    assert wrong != right == other.apply(0, [theirs, mine])
    assert node.session.agreed.now()[0].round == 1
    node.train(1)
    with pytest.raises(TrainerError) as failure:
        node.apply(0, [mine])
    assert failure.value.code == "wrong_round"


def test_the_seconds_add_up(world_of: MakeWorld, pair: Callable[[World], list[Node]]) -> None:
    """What a contribution reports is all of the main thread's time, once."""
    import time

    node, _ = pair(world_of(exchange={"overlap_steps": 3}))
    contribution = node.contribute(0)
    begun = time.perf_counter()
    node.run_on(0)
    node.apply(0, [contribution])
    waited = time.perf_counter()
    made = node.train(1)
    total = time.perf_counter() - begun
    seconds = made.seconds
    assert set(seconds) == {"merge", "idle", "train", "encode", "tail"}
    assert sum(seconds.values()) == pytest.approx(total, rel=0.1, abs=0.01)
    assert seconds["idle"] < waited - begun


def test_centered_clip_is_used_when_the_manifest_says_so(
    world_of: MakeWorld, pair: Callable[[World], list[Node]]
) -> None:
    roots = set()
    for aggregator in ("mean", "centered_clip"):
        nodes = pair(world_of(exchange={"aggregator": aggregator}))
        listed = [node.contribute(0) for node in nodes]
        weighted = [Counted(c.node, c.blob, weight) for weight, c in enumerate(listed, 2)]
        assert nodes[0].apply(0, weighted) == nodes[1].apply(0, weighted)
        roots.add(nodes[0].session.agreed.now()[1])
    assert len(roots) == 2


def test_slices_that_cannot_be_used_are_refused_and_nothing_changes(
    world_of: MakeWorld, pair: Callable[[World], list[Node]]
) -> None:
    node, other = pair(world_of())
    made = [n.train(0, slices=2) for n in (node, other)]
    listed = [
        [Counted(n, m.parts[j], 1) for n, m in zip(NODES, made, strict=True)] for j in range(2)
    ]
    slices = [
        node.session.merging.aggregate(Combine(0, j, 2, listed[j], node.out)) for j in range(2)
    ]
    before = node.session.agreed.now()[1]
    contribution = made[0].parts[0]
    for given in (slices[::-1], [slices[0], contribution], [slices[0], node.out / "none"]):
        with pytest.raises(TrainerError) as failure:
            node.session.merging.apply_slices(ApplySlices(0, given, NODES, node.out, 2))
        assert failure.value.code == "bad_blob"
    with pytest.raises(TrainerError) as failure:  # a slice is no contribution
        node.session.merging.aggregate(
            Combine(0, 0, 2, [Counted(NODES[0], slices[0], 1)], node.out)
        )
    assert (failure.value.code, failure.value.node) == ("bad_blob", NODES[0])
    with pytest.raises(TrainerError) as failure:
        node.session.merging.apply_slices(ApplySlices(0, slices[:1], NODES, node.out, 2))
    assert failure.value.code == "bad_request"
    assert node.session.agreed.now()[1] == before
