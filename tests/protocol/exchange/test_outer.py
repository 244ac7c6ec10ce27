"""The outer step: the right rule, and the same bits as ever through several whole rounds."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from aggregate_world import dense
from artel.protocol.errors import CheckFailed
from artel.protocol.exchange.aggregate_slice import recompute, round_slices
from artel.protocol.exchange.aggregation import Weighted, aggregate
from artel.protocol.exchange.codec import codec, of
from artel.protocol.exchange.next_state import Base, Given, next_state
from artel.protocol.exchange.outer import learning_rate, outer_step
from artel.protocol.exchange.parts import fragment
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.run_config import ExchangeSection
from artel.protocol.state import Layout, State, Vector, read_state, state_root, write_state


def numbers(seed: str, count: int) -> Vector:
    """Values from SHA-256 in counter mode: the same on every machine."""
    blocks = (hashlib.sha256(b"%b %d" % (seed.encode(), i)).digest() for i in range(count // 8 + 1))
    words = np.frombuffer(b"".join(blocks), "<i4")[:count]
    return words.astype(np.float32) * np.float32(2**-36)


TOKENS = {"12D3a": 512, "12D3b": 512, "12D3c": 256}


def _list(vector: Vector | None) -> object:
    return None if vector is None else vector.tolist()


def test_plain_sgd_subtracts_the_scaled_update() -> None:
    params, update = np.array([1, 2], np.float32), np.array([0.5, -0.25], np.float32)
    after, momentum = outer_step(params, None, update, lr=2, mu=0, nesterov=True)
    assert after.tolist() == [0, 2.5]
    assert momentum is None


def test_nesterov_follows_the_paper_over_two_steps() -> None:
    params = np.zeros(1, np.float32)
    buffer = np.zeros(1, np.float32)
    update = np.ones(1, np.float32)
    # b = 1, step = 1 + 0.5; then b = 1.5, step = 1 + 0.75
    params, momentum = outer_step(params, buffer, update, lr=1, mu=0.5, nesterov=True)
    assert (params.tolist(), _list(momentum)) == ([-1.5], [1])
    params, momentum = outer_step(params, momentum, update, lr=1, mu=0.5, nesterov=True)
    assert (params.tolist(), _list(momentum)) == ([-3.25], [1.5])


def test_heavy_ball_steps_by_the_buffer() -> None:
    params, buffer = np.zeros(1, np.float32), np.array([4], np.float32)
    params, momentum = outer_step(
        params, buffer, np.ones(1, np.float32), lr=2, mu=0.5, nesterov=False
    )
    assert (params.tolist(), _list(momentum)) == ([-6], [3])


@pytest.mark.parametrize(("mu", "nesterov"), [(0.5, True), (0.9, True), (0.3, False)])
def test_every_operation_is_rounded_alone(mu: float, nesterov: bool) -> None:
    """Each product and each sum is the fp32 nearest to its exact value: no fused operation."""
    params, buffer, update = (numbers(name, 500) for name in ("p", "b", "u"))
    after, momentum = outer_step(params, buffer, update, lr=0.7, mu=mu, nesterov=nesterov)
    assert momentum is not None

    def rounded(value: float) -> float:  # float64 holds a product of two fp32 exactly
        return float(np.float32(value))

    rate, decay = float(np.float32(0.7)), float(np.float32(mu))
    for p, b, u, new_p, new_b in zip(
        *(a.tolist() for a in (params, buffer, update, after, momentum)), strict=True
    ):
        expected = rounded(rounded(decay * b) + u)
        step = rounded(rounded(decay * expected) + u) if nesterov else expected
        assert new_b == expected
        assert new_p == rounded(p - rounded(rate * step))


def test_arguments_stay_as_they_are() -> None:
    arrays = [numbers(name, 100) for name in ("p", "b", "u")]
    copies = [a.copy() for a in arrays]
    outer_step(*arrays, lr=0.7, mu=0.5, nesterov=True)
    assert all(np.array_equal(a, b) for a, b in zip(arrays, copies, strict=True))


def test_wrong_use_is_refused() -> None:
    v = numbers("v", 10)
    cases: list[tuple[Any, Any, Any, float]] = [
        (v, None, v, 0.5),
        (v, v, v, 0.0),
        (v, None, v[1:], 0.0),
        (v, v[1:], v, 0.5),
        (v.reshape(2, 5), None, v.reshape(2, 5), 0.0),
        (v.astype(np.float64), None, v, 0.0),
    ]
    for params, momentum, update, mu in cases:
        with pytest.raises(CheckFailed):
            outer_step(params, momentum, update, lr=0.7, mu=mu, nesterov=True)


def test_overflow_is_refused() -> None:
    huge = np.full(3, 3e38, np.float32)
    with pytest.raises(CheckFailed, match="range"):
        outer_step(huge, None, -huge, lr=1, mu=0, nesterov=True)
    with pytest.raises(CheckFailed, match="range"):
        outer_step(huge, huge, huge, lr=1e-3, mu=0.9, nesterov=True)


@pytest.mark.parametrize(
    ("name", "mu", "golden"),
    [
        ("fp32", 0.0, "4ffa5e19447d45e791faecef5cd518c618a1139d136fe3f44ef2eba059985182"),
        ("fp32", 0.5, "a56b2c7c2f85655164437ec868e0f61ca4d62643ff8b10a2fcc694899650db08"),
        ("fp16", 0.5, "156ebf7dcabd041aef6c46a1842306aa2e329bf13ab1d7828e436017ae2d31aa"),
        ("int8", 0.5, "9cebbd027cce5d6336c0a2fd696197d4a0e11e1dc96b1d03f9a1633967705a65"),
        ("int4", 0.5, "a2700ac2ff3b3bf84d2c751df3e4b93d757676a4f657a826959821808aa22411"),
        ("int4", 0.9, "9b6a66b1cc56c6d1553d60ff75783bce1844927835cfbd412264bfca1ca6c16e"),
    ],
)
def test_golden_trace_of_three_rounds(name: str, mu: float, golden: str) -> None:
    """State root after three rounds of three nodes: blob, decode, aggregate, outer step.

    A change here means that two versions of the program can no longer train together.
    """
    layout = Layout.of([("embed", (50, 37)), ("norm", (37,)), ("head", (37, 64))])
    chosen = codec(name)
    params = numbers("initial", layout.parameters)
    momentum = np.zeros_like(params) if mu else None
    state = State(0, layout.digest, params, momentum)
    for number in range(3):
        base = state_root(state)
        given = []
        for node, tokens in TOKENS.items():
            delta = numbers(f"{number} {node}", layout.parameters)
            blob = Header(number, base, chosen).pack(layout, delta)
            vector = dense(Header(number, base, chosen).load(blob, layout), layout.parameters)
            given.append(Weighted(node, tokens, vector))
        update = aggregate(layout, given)
        params, momentum = outer_step(
            state.params, state.momentum, update, lr=0.7, mu=mu, nesterov=True
        )
        state = State(number + 1, layout.digest, params, momentum)
    assert state_root(state) == golden


def test_golden_trace_across_a_failed_attempt_a_lost_node_and_a_late_one(tmp_path: Path) -> None:
    """Three nodes; see the comments. Whoever is there, from wherever it starts, has these roots."""
    layout = Layout.of([("embed", (50, 37)), ("norm", (37,)), ("head", (37, 64))])
    exchange = ExchangeSection.model_validate({"codec": "int4", "outer": {"momentum": 0.9}})
    params = numbers("initial", layout.parameters)
    initial = State(0, layout.digest, params, np.zeros_like(params))

    def after(state: State, number: int, attempt: int, nodes: Iterable[str]) -> State:
        base = Base(state, state_root(state))
        header = Header(number, base.root, of(exchange))
        piece = fragment(layout, exchange.fragments, number)
        sent = []
        for node in nodes:
            delta = numbers(f"{number} {attempt} {node}", layout.parameters)
            blob = header.pack(piece.layout, piece.take(delta))
            sent.append(Given(node, TOKENS[node], [blob]))
        return next_state(exchange, 4, layout, base, sent).state

    a, b, c = TOKENS
    # Round 1 came to nothing the first time, and all have gone back; from round 2 on, c is dead.
    rounds = [(0, 0, (a, b, c)), (1, 1, (a, b, c)), (2, 0, (a, b)), (3, 0, (a, b, c))]
    state, roots, kept = initial, [], tmp_path / "state"
    for number, attempt, nodes in rounds:
        if number == 1:
            undone = after(state, number, 0, nodes)
            assert state_root(undone) != state_root(after(state, number, 1, nodes))
        if number == 2:
            write_state(kept, state)  # what c had when it died
        state = after(state, number, attempt, nodes)
        roots.append(state_root(state))
    assert roots == GOLDEN_RECOVERY
    # Started again, c goes on from its file by what the others sent.
    late = read_state(kept, layout)
    for number, attempt, nodes in rounds[2:]:
        late = after(late, number, attempt, nodes)
    assert state_root(late) == GOLDEN_RECOVERY[-1]
    # And whoever comes late goes through all rounds that count, from the first state.
    late = initial
    for place, root in zip(rounds, GOLDEN_RECOVERY, strict=True):
        late = after(late, *place)
        assert state_root(late) == root


GOLDEN_RECOVERY = [
    "f0c05a4614c61d97c7787534ab942e39db10d395b70d8536f5c45c7a5d997bda",
    "de766f5981cbf30f6541e030c524281e655fa563d83a3987a649e3468a98f312",
    "4b497f3de7ac4cbb99b2eda314f4c833d47273c23c2f8e33955f6abba05c2645",
    "a7c558d905f82b56ddf347f1a2b7dc1a452836c14d4f67acbcf8a0c8134e8402",
]

GOLDEN_EXCHANGES = [
    (
        "int4",
        {"fragments": 3},
        0,
        "e411c8f87d1d7740c230c7004eac336fafb10a416a617def3bcb4b608fa980f6",
    ),
    (
        "int8",
        {"fragments": 2, "outer": {"momentum": 0.9, "final_lr_fraction": 0.5}},
        0,
        "c6e15e398a02d66cd2bcb05c3ee7a9f138d5a4b27497f536cceb8d057d25f24b",
    ),
    (
        "fp16",
        {"aggregator": "centered_clip", "outer": {"nesterov": False}},
        0,
        "971ebc175f3c53c5c82bed32c4fad584c4c767818e4126e24c5991f1998e1075",
    ),
    (
        "int4",
        {"fragments": 2},
        3,
        "2fddef297748a3b42279c1bb3a8e20e7e715006014b3443d368bfe3db19dd562",
    ),
    (
        "int8",
        {"aggregator": "centered_clip"},
        4,
        "7d811bf4cd0f07b5833c53ad16aa1945e6d92a40532dd23a717c0c6760700ee0",
    ),
    (
        "sparse",
        {"top_k": 64},
        0,
        "6dbd26b9173e4f0d424e07d09ac0b1e4dd1ce281c26bebc26cbcc950c1dfca5a",
    ),
    (
        "sparse",
        {"fragments": 2, "aggregator": "centered_clip"},
        3,
        "bed343a9d2af62e0ea3bd0c4c2656bcc341936a982e125da2bd39e9671b23572",
    ),
]


@pytest.mark.parametrize(("name", "settings", "members", "golden"), GOLDEN_EXCHANGES)
def test_golden_trace_of_an_exchange(
    name: str, settings: dict[str, object], members: int, golden: str
) -> None:
    """State root after four rounds of three nodes, by the rules of a manifest; sharded when
    ``members`` is not 0. A change here means that versions can no longer train together."""
    layout = Layout.of([("embed", (150, 70)), ("norm", (70,)), ("head", (70, 150))])
    exchange = ExchangeSection.model_validate({"codec": name, "aggregator": "mean", **settings})
    params = numbers("initial", layout.parameters)
    state = State(
        0, layout.digest, params, np.zeros_like(params) if exchange.outer.momentum else None
    )
    for number in range(4):
        base = Base(state, state_root(state))
        pieces = [fragment(layout, exchange.fragments, number)]
        if members:
            pieces = round_slices(layout, exchange, number, members)
        sent = []
        for node, tokens in TOKENS.items():
            delta, header = (
                numbers(f"{number} {node}", layout.parameters),
                Header(number, base.root, of(exchange)),
            )
            blobs = [header.pack(piece.layout, piece.take(delta)) for piece in pieces]
            sent.append(Given(node, tokens, blobs))
        state, kept = next_state(exchange, 4, layout, base, sent, members=members)
        assert (kept is not None) == bool(members and of(exchange).sparse)
        if members:  # the same when others have combined all slices, or some
            slices = {
                index: recompute(
                    layout,
                    exchange,
                    round=number,
                    members=members,
                    slice=index,
                    base=base.root,
                    blobs={each.node: each.blobs[index] for each in sent},
                    tokens=TOKENS,
                )
                for index in range(len(pieces))
            }
            for known, given in ((slices, []), ({1: slices[1]}, sent)):
                again = next_state(
                    exchange, 4, layout, base, given, members=members, slices=known
                ).state
                assert state_root(again) == state_root(state)
    assert state_root(state) == golden


def test_recorded_traces_hold_without_vector_instructions() -> None:
    """Another processor takes other code paths inside numpy, and numba compiles other code for it;
    forbid this one's instructions and compare."""
    found = np.show_config(mode="dicts")["SIMD Extensions"].get("found", [])
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-k", "golden", __file__]
        + [
            __file__.replace("outer", other)
            for other in ("codec", "aggregation", "aggregation_sparse", "aggregate_slice")
        ],
        env={
            **os.environ,
            "NPY_DISABLE_CPU_FEATURES": " ".join(found),
            "NUMBA_CPU_NAME": "generic",
            "NUMBA_CPU_FEATURES": "",
        },
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr


def test_learning_rate_falls_in_the_last_quarter() -> None:
    exchange = ExchangeSection.model_validate({"outer": {"lr": 0.8, "final_lr_fraction": 0.5}})
    rates = [learning_rate(exchange, 16, number) for number in range(16)]
    assert rates[:12] == [0.8] * 12
    assert rates[12:] == pytest.approx([0.7, 0.6, 0.5, 0.4])
    assert rates[15] == 0.8 * 0.5


@pytest.mark.parametrize("total", [1, 2, 3, 4, 5, 7, 1000])
def test_learning_rate_ends_at_its_fraction(total: int) -> None:
    exchange = ExchangeSection.model_validate({"codec": "sparse"})
    rates = [learning_rate(exchange, total, number) for number in range(total)]
    assert rates[: total - total // 4] == [1.0] * (total - total // 4)
    assert rates[-1] == (0.65 if total >= 4 else 1.0)
    assert rates == sorted(rates, reverse=True)


def test_learning_rate_is_constant_by_default() -> None:
    rates = {learning_rate(ExchangeSection(), 60, number) for number in range(60)}
    assert rates == {ExchangeSection().outer.lr}


@pytest.mark.parametrize("round", [-1, 16])
def test_there_is_no_learning_rate_outside_the_run(round: int) -> None:
    with pytest.raises(CheckFailed, match="no round"):
        learning_rate(ExchangeSection(), 16, round)
