"""What a round costs a node in bytes: the bounds against blobs that are really packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from artel.coordinator.wording import exchange_seconds, exchange_words
from artel.protocol.exchange import codec, pseudogradient
from artel.protocol.exchange.pseudogradient import Header, IndexItem
from artel.protocol.exchange.shape import Shape, largest_contribution
from artel.protocol.exchange.traffic import round_traffic, typical_share
from artel.protocol.run_config import RunConfig
from artel.protocol.run_file import parse_config
from artel.protocol.state import Layout

LAYOUT = Layout.of([("a", (300, 300)), ("b", (40, 4096)), ("c", (77,)), ("d", (64, 1000))])
BASE = "ab" * 32

RUN = """
[run]
name = "traffic"
[model]
type = "llama"
config = {}
[tokenizer]
kind = "bytes"
[data]
sources = [{ kind = "stdlib" }]
"""


def config(**exchange: Any) -> RunConfig:
    rounds = exchange.pop("rounds", {})
    run = parse_config(RUN.encode(), "RUN.toml")
    run = run.model_copy(update={"exchange": run.exchange.model_copy(update=exchange)})
    return run.model_copy(update={"rounds": run.rounds.model_copy(update=rounds)})


def blobs(run: RunConfig, round: int, members: int) -> list[bytes]:
    """A contribution to a round, as a node makes it."""
    shape = Shape.of(run, LAYOUT, round, members)
    vector = np.random.default_rng(round).normal(size=LAYOUT.parameters).astype(np.float32)
    fixed: dict[str, Any] = {"round": round, "base": BASE, "codec": shape.codec}
    pieces = shape.slices or (shape.part,)
    packed = [Header(**fixed).pack(p.layout, p.take(vector)) for p in pieces]
    if not shape.slices:
        return packed
    listed = [IndexItem.of(blob) for blob in packed]
    return [pseudogradient.pack_index(round, BASE, listed), *packed]


@pytest.mark.parametrize("name", ["fp32", "int8", "int4", "sparse"])
@pytest.mark.parametrize("fragments", [1, 3])
@pytest.mark.parametrize("members", [1, 5, 9, 20])
def test_a_shape_bounds_what_nodes_make(name: str, fragments: int, members: int) -> None:
    run = config(codec=name, fragments=fragments)
    for round in range(fragments):
        shape = Shape.of(run, LAYOUT, round, members)
        made = blobs(run, round, members)
        assert len(made) == (shape.blobs if shape.slices else 1)
        assert bool(shape.slices) == (members > 8)
        sizes = [len(blob) for blob in made]
        assert max(sizes) <= shape.largest
        assert sum(sizes) <= shape.total <= largest_contribution(run, LAYOUT)
        if shape.slices:
            assert sizes[0] == shape.index_bytes
            assert all(s <= most for s, most in zip(sizes[1:], shape.sizes, strict=True))
        if name != "sparse":
            assert sum(sizes) == shape.total


def test_in_gather_everybody_fetches_from_all_others() -> None:
    traffic = round_traffic(config(topology="gather"), LAYOUT, 20)
    one = sum(map(len, blobs(config(topology="gather"), 0, 20)))
    assert (traffic.contribution, traffic.up_least, traffic.down) == (one, one, 19 * one)
    assert traffic.up_most == 20 * one


def test_in_sharded_it_stays_at_three_payloads_whatever_the_number_of_nodes() -> None:
    large = Layout.of([(f"layer {n}", (1024, 1024)) for n in range(40)])
    run = config(topology="sharded", codec="int4")
    payload = codec.of(run.exchange).payload_bytes(large)
    for members in (2, 8, 16, 32):
        traffic = round_traffic(run, large, members)
        assert traffic.topology == "sharded"
        assert 0 < traffic.down < 3.01 * payload
        assert traffic.up_least < 1.6 * payload
    assert round_traffic(run, large, 1).down == 0


def test_fragments_cut_the_traffic_of_a_round() -> None:
    whole = round_traffic(config(codec="int8"), LAYOUT, 4)
    third = round_traffic(config(codec="int8", fragments=3), LAYOUT, 4)
    assert third.down < 0.6 * whole.down


def test_what_sparse_usually_takes_lies_below_its_bound() -> None:
    sparse = codec.codec("sparse", 64)
    large, small = Layout.of([("a", (300, 300))]), Layout.of([("a", (60, 60)), ("b", (9,))])
    share = typical_share(sparse, large)
    assert 0.85 < share < 1
    assert share < typical_share(sparse, LAYOUT) < 1
    noise = np.random.default_rng(1).normal(size=large.parameters).astype(np.float32)
    made = len(sparse.encode(large, noise)) / sparse.payload_bytes(large)
    assert share == pytest.approx(made, rel=0.02)
    assert typical_share(sparse, small) == 1
    assert typical_share(codec.codec("int4"), LAYOUT) == 1


def test_the_words_follow_the_settings() -> None:
    plain = exchange_words(config())
    assert plain["overlap"].startswith("none")
    assert plain["fragments"].startswith("the whole model")
    assert "up to 8 members" in plain["topology"]
    assert "Nesterov" in plain["outer"]
    words = exchange_words(
        config(codec="sparse", overlap_steps=5, fragments=2, topology="sharded", top_k=64)
    )
    assert "the 64 largest of every 4,096" in words["codec"]
    assert "5 of 20 steps (25%" in words["overlap"]
    assert "every 40 steps" in words["fragments"]
    assert words["topology"].startswith("sharded")
    assert "over 25% of all weights" in words["combining"]
    assert plain["spans"].startswith("none")
    assert "every 3 rounds (60 steps)" in exchange_words(config(rounds={"span": 3}))["spans"]
    boxed = config(overlap_steps=5, rounds={"box_s": 100.0, "deadline_s": 200.0})
    assert exchange_seconds(boxed) == pytest.approx(22.5)
    assert "22.5 s" in exchange_words(boxed)["overlap"]
    assert "from 5 to 80" in exchange_words(boxed)["steps"]
    assert "longer than 110 s" in exchange_words(boxed)["steps"]
