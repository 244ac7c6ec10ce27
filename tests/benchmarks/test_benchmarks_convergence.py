"""The convergence benchmark trains what nodes train, and compares what may be compared."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from artel.protocol import model
from artel.protocol.assignment import Work
from benchmark_world import rows_of, run
from benchmarks.convergence_model import Corpus, fast_loss
from benchmarks.convergence_report import markdown, plots, published
from benchmarks.convergence_rows import TABLES, Plan, Row, parse
from benchmarks.convergence_train import Node, World, _lost, train_ddp, train_rounds

PLAN = Plan("test", 32, 2, 16, None, batch=2, tokens=2048, K=3, H=4)


@pytest.fixture(scope="module")
def world() -> World:
    config = PLAN.config(Row("fp32"), 257)
    loss = fast_loss(model.transformers_config(config.model, 257), bf16=False, compiled=False)
    return World(PLAN, Corpus(None), loss, bf16=False)


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """As the benchmark: tiny steps on several threads of a busy machine mostly wait."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def quiet(done: float) -> None:
    del done


def test_the_fast_loss_is_the_loss_of_the_model_that_nodes_train() -> None:
    config = PLAN.config(parse("fp32/seed=3"), 257)
    module = model.build(config.model, 257, config.run.seed)
    loss = fast_loss(model.transformers_config(config.model, 257), bf16=False, compiled=False)
    windows = torch.randint(0, 257, (3, PLAN.seq_len + 1))
    logits = module(input_ids=windows[:, :-1]).logits
    wanted = torch.nn.functional.cross_entropy(logits.flatten(0, 1), windows[:, 1:].flatten())
    named = dict(module.named_parameters())
    gradients = torch.autograd.grad(wanted, list(named.values()))
    mine = loss(named, windows)
    assert float(mine.detach()) == pytest.approx(float(wanted.detach()), rel=1e-5)
    for wanted_gradient, gradient in zip(
        gradients, torch.autograd.grad(mine, list(named.values())), strict=True
    ):
        assert torch.allclose(gradient, wanted_gradient, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("ddp", "ddp"),
        ("int4/mu=0.30/H=20", "int4/H=20/mu=0.3"),
        ("sparse/k=128/lr=4e-3", "sparse/lr=0.004"),
        ("int8/nudge=1e-6/opt=muon", "int8/opt=muon/nudge=1e-06"),
        ("int4/ramp=3/R=20", "int4/R=20/ramp=3"),
    ],
)
def test_a_row_has_one_text(text: str, key: str) -> None:
    assert parse(text).key == key
    assert parse(key) == parse(text)


@pytest.mark.parametrize(
    "text", ["int3", "int4/H", "int4/h=3", "int4/H=2.5", "int4/H=2/H=3", "int4/drop=1", "fp32/H=0"]
)
def test_a_wrong_row_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="row"):
        parse(text)


@pytest.mark.parametrize("table", TABLES)
def test_every_row_of_a_table_is_a_run_that_an_organiser_could_publish(table: str) -> None:
    plan, rows = TABLES[table].plan, TABLES[table].rows
    parsed = [parse(text) for text in rows]
    assert [row.key for row in parsed] == list(rows), "rows are written in their one way"
    assert len(set(rows)) == len(rows)
    for row in parsed:
        plan.config(row, plan.vocab_size or 257)


def test_a_row_with_a_slow_worker_sees_as_many_tokens(world: World) -> None:
    for text in ("ddp/K=2", "fp32/slow=4", "int4/tau=2/K=2"):
        row = parse(text)
        config = PLAN.config(row, 257)
        train = train_ddp if row.codec == "ddp" else train_rounds
        outcome = train(row, config, world, quiet)
        assert outcome.tokens == pytest.approx(PLAN.tokens, rel=0.12), text
        assert len(outcome.curve) >= 4
        assert outcome.curve[-1][0] == outcome.tokens


def test_without_overlap_all_workers_hold_the_agreed_state_after_a_round(world: World) -> None:
    nodes, params = one_round(world, parse("fp32"))
    for node in nodes:
        assert node.tail == 0
        assert np.array_equal(node._worker.read(), params)


def test_with_overlap_the_steps_of_the_tail_stay_on_top_of_the_agreed_state(world: World) -> None:
    row = parse("fp32/tau=2/P=2")
    nodes, params = one_round(world, row)
    part = nodes[0]._part(0)
    inside = np.zeros(len(params), bool)
    for stretch in part.runs:
        inside[stretch] = True
    first, second = (node._worker.read() for node in nodes[:2])
    assert all(node.tail == 2 for node in nodes)
    assert not np.array_equal(first, second), "each has its own tail"
    assert not np.array_equal(first[~inside], params[~inside]), "other fragments drift on"
    tails = first[inside] - params[inside]
    assert 0 < np.linalg.norm(tails) < 0.9 * np.linalg.norm(first[~inside] - params[~inside])


def one_round(world: World, row: Row) -> tuple[list[Node], Any]:
    """Workers behind round 0, and the state they agreed on: here the mean of what they sent."""
    config = PLAN.config(row, 257)
    nodes = [Node(row, config, world, k) for k in range(2)]
    params = nodes[0].initial()
    after = params.copy()
    for node in nodes:
        node._worker.load(params)
        assert node.head(0) == Work.of(config).head(0, PLAN.H)
        node.contribution(0, "0" * 64, params)
        node.run_on(0)
    part = nodes[0]._part(0)
    part.put((nodes[0]._sent + nodes[1]._sent) / 2, after)
    for node in nodes:
        node.merge(0, after)
    return nodes, after


def test_a_span_begins_with_the_agreed_state_and_nothing_else(world: World) -> None:
    nodes, params = one_round(world, parse("sparse/opt=muon/tau=2/R=3"))
    node = nodes[0]
    node.begin(2, params)
    assert node.tail == 2
    assert node.feedback is not None
    assert node.feedback.residual.any()
    node.begin(3, params)
    assert node.tail == 0
    assert np.array_equal(node._worker.read(), params)
    assert not node.feedback.residual.any()
    assert not any(optimizer.state for optimizer in node._worker._optimizers)


def test_who_lost_a_contribution_begins_a_span_of_its_own(world: World) -> None:
    nodes, params = one_round(world, parse("int4/tau=2/R=99"))
    nodes[0].left_out(0, b"")
    for node in nodes:
        node.begin(1, params)
    assert [node.tail for node in nodes] == [0, 2]


def test_spans_cost_what_their_end_drops_and_nothing_else(world: World) -> None:
    curves = {}
    for text in ("int4", "int4/R=99", "int4/R=99/ramp=2", "int4/R=1"):
        row = parse(text)
        curves[text] = train_rounds(row, PLAN.config(row, 257), world, quiet).curve
    assert curves["int4"] == curves["int4/R=99"], "none ends in it"
    assert len({str(curve) for curve in curves.values()}) == 3


def test_lost_contributions_are_drawn_by_lot_but_never_all() -> None:
    row = parse("int4/drop=0.3")
    draws = [_lost(row, number, 4) for number in range(500)]
    assert draws == [_lost(row, number, 4) for number in range(500)]
    assert sum(map(len, draws)) / 2000 == pytest.approx(0.3, abs=0.05)
    assert all(len(_lost(parse("int4/drop=0.99"), number, 4)) < 4 for number in range(100))
    assert _lost(parse("int4"), 0, 4) == set()


def test_a_lost_sparse_contribution_stays_in_the_feedback(world: World) -> None:
    row = parse("sparse/k=64")
    node = Node(row, PLAN.config(row, 257), world, 0)
    params = node.initial()
    node.head(0)
    blob = node.contribution(0, "0" * 64, params)
    delta = params - node._worker.read()
    assert node.feedback is not None
    kept = np.linalg.norm(node.feedback.residual)
    node.left_out(0, blob[-(len(blob) - 96) :])
    assert kept < np.linalg.norm(node.feedback.residual)
    assert np.allclose(node.feedback.residual, delta, atol=1e-6), "what came in, bit by bit"


def test_gaps_compare_with_the_best_rate_of_every_method(tmp_path: Path) -> None:
    losses = {
        "ddp": 3.1,
        "ddp/lr=0.001": 3.0,
        "ddp/opt=muon": 2.8,
        "ddp/K=8": 2.0,
        "fp32/lr=0.002/mu=0.3": 3.2,
        "fp32/mu=0": 3.15,
        "fp32/H=50": 4.0,
        "int4": 3.18,
        "int4/opt=muon": 2.9,
        "fp32/K=8": 2.2,
    }
    results = [
        {
            "table": "test",
            "row": key,
            "plan": {"tokens": 1, "batch": 4, "lr": 3e-3, "precision": "bf16"},
            "curve": [(1, loss + 1), (2, loss)],
            "bits": 4.0,
            "rounds": 10,
            "exchange_seconds": 1.0,
        }
        for key, loss in losses.items()
    ]
    rows = {row["row"]: row for row in published(results)}
    assert rows["int4"]["gap_to_ddp_percent"] == pytest.approx(6.0)
    assert rows["int4"]["ratio"] == pytest.approx(1.06)
    assert rows["int4"]["gap_to_fp32_percent"] == pytest.approx(100 * (3.18 / 3.15 - 1))
    assert rows["int4/opt=muon"]["gap_to_ddp_percent"] == pytest.approx(100 * (2.9 / 3 - 1))
    assert rows["int4/opt=muon"]["gap_to_ddp_muon_percent"] == pytest.approx(100 * (2.9 / 2.8 - 1))
    assert rows["int4/opt=muon"]["gap_to_fp32_percent"] is None
    assert rows["fp32/K=8"]["gap_to_ddp_percent"] == pytest.approx(10.0)
    assert rows["ddp"]["gap_to_fp32_percent"] is None
    assert "| `int4` | 3.1800 | +6.00 % | +13.57 % | +0.95 % | 4.000 | 10 |" in markdown(
        list(rows.values())
    )
    for path in plots(list(rows.values()), tmp_path):
        assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_quick_convergence_compares_every_codec_and_goes_on_where_it_was(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = run("convergence", "--quick", "--json", str(file), timeout=580)
    assert done.returncode == 0, done.stderr
    rows = {row["row"]: row for row in rows_of(file)}
    assert {"ddp", "fp32", "fp16", "int8", "int4", "sparse"} <= set(rows)
    assert rows["ddp"]["ratio"] == 1
    bits = {key: rows[key]["bits"] for key in ("sparse", "int4", "int8", "fp32")}
    assert sorted(bits.values()) == list(bits.values())
    assert all(row["ours"] < 0.9 * math.log(257) for row in rows.values()), "nothing was learned"

    again = run("convergence", "--quick", "--json", str(file))
    assert "0 rows to train" in again.stdout
    assert json.loads(file.read_text()) == list(rows.values())
