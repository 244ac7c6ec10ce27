"""Slices of a sharded round: what they equal, and that anybody gets the same bytes."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Mapping, Sequence

import numpy as np
import pytest

from aggregate_world import dense, numbers
from artel.protocol import content
from artel.protocol.errors import CheckFailed
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.aggregate_slice import Unusable, combine, recompute, round_slices
from artel.protocol.exchange.aggregation import Weighted
from artel.protocol.exchange.codec import Elements, of
from artel.protocol.exchange.parts import CHUNK, Part, fragment, whole
from artel.protocol.exchange.pseudogradient import BlobRefused, Header
from artel.protocol.run_config import ExchangeSection
from artel.protocol.state import Layout, Vector
from codec_world import vector_of

LAYOUT = Layout.of([("embed", (300, 64)), ("up", (64, 200)), ("norm", (64,)), ("down", (200, 64))])
ROUND, BASE = 5, "5c" * 32
TOKENS = {"12D3a": 512, "12D3b": 512, "12D3c": 256, "12D3d": 2048}


def exchange(name: str, **more: object) -> ExchangeSection:
    return ExchangeSection.model_validate({"codec": name, "aggregator": "mean", **more})


def vectors(layout: Layout = LAYOUT) -> dict[str, Vector]:
    """Contributions of different norms, so that some are clipped."""
    return {
        node: numbers(node, layout.parameters, -36) * np.float32(1 + 0.3 * i)
        for i, node in enumerate(TOKENS)
    }


def sub_blobs(
    part: Part, given: Mapping[str, Vector], rules: ExchangeSection, round: int = ROUND
) -> dict[str, bytes]:
    """What every node publishes for one slice; ``given`` are vectors of the whole model."""
    return {
        node: Header(round, BASE, of(rules)).pack(part.layout, part.take(vector))
        for node, vector in given.items()
    }


def slice_blobs(
    given: Mapping[str, Vector], rules: ExchangeSection, members: int, round: int = ROUND
) -> list[bytes]:
    return [
        recompute(
            LAYOUT,
            rules,
            round=round,
            members=members,
            slice=number,
            base=BASE,
            blobs=sub_blobs(part, given, rules, round),
            tokens=TOKENS,
        )
        for number, part in enumerate(round_slices(LAYOUT, rules, round, members))
    ]


def opened(blob: bytes, layout: Layout, rules: ExchangeSection, round: int = ROUND) -> Vector:
    loaded = Header(round, BASE, of(rules), pseudogradient.SLICE_MAGIC).load(blob, layout)
    return dense(loaded, layout.parameters)


def sharded(
    given: Mapping[str, Vector], rules: ExchangeSection, members: int, round: int = ROUND
) -> Vector:
    """The update of the whole model; zero outside the round's fragment."""
    update = np.zeros(LAYOUT.parameters, np.float32)
    slices = round_slices(LAYOUT, rules, round, members)
    for part, blob in zip(slices, slice_blobs(given, rules, members, round), strict=True):
        part.put(opened(blob, part.layout, rules, round), update)
    return update


def gathered(part: Part, given: Mapping[str, Vector], rules: ExchangeSection) -> Vector:
    loaded = [Weighted(n, TOKENS[n], part.take(v)) for n, v in given.items()]
    return combine(part.layout, loaded, rules)


def of_pieces(slices: Sequence[Part]) -> Layout:
    """The layout of a model whose tensors are the pieces."""
    return Layout.of((t.name, t.shape) for part in slices for t in part.layout.tensors)


@pytest.mark.parametrize("method", ["mean", "centered_clip"])
@pytest.mark.parametrize("members", [1, 2, 3, 4, 9, 40])
def test_a_sharded_mean_is_the_gather_of_a_model_whose_tensors_are_the_pieces(
    members: int, method: str
) -> None:
    """To the bit with a codec without loss. The mean alone: the centered clip looks at a slice as
    a whole, so it is the gather of each slice."""
    rules = exchange("fp32", aggregator=method)
    update = sharded(vectors(), rules, members)
    slices = round_slices(LAYOUT, rules, ROUND, members)
    if method == "mean":
        pieces = whole(of_pieces(slices))
        assert update.tobytes() == gathered(pieces, vectors(), rules).tobytes()
    for part in slices:
        assert part.take(update).tobytes() == gathered(part, vectors(), rules).tobytes()


def test_with_cuts_between_tensors_alone_it_is_the_gather_itself() -> None:
    layout = Layout.of([("a", (20, 200)), ("b", (4000,)), ("c", (4000,)), ("d", (100, 40))])
    rules = exchange("fp32")
    slices = round_slices(layout, rules, ROUND, 4)
    assert ["".join(t.name for t in part.layout.tensors) for part in slices] == list("abcd")
    given = vectors(layout)
    together = np.concatenate([gathered(part, given, rules) for part in slices])
    assert together.tobytes() == gathered(whole(layout), given, rules).tobytes()


@pytest.mark.parametrize("members", [2, 5, 8])
def test_where_nothing_is_clipped_it_is_the_gather_itself(members: int) -> None:
    """All norms are equal in every piece when all magnitudes are."""
    magnitude = numbers("m", LAYOUT.parameters, -36)
    given = {node: np.copysign(magnitude, numbers(node, LAYOUT.parameters)) for node in TOKENS}
    rules = exchange("fp32")
    whole_update = gathered(whole(LAYOUT), given, rules)
    assert sharded(given, rules, members).tobytes() == whole_update.tobytes()


def test_clip_per_piece_changes_little() -> None:
    """In general the clips of the pieces of a tensor differ a little from that of the tensor."""
    rules = exchange("fp32")
    update = sharded(vectors(), rules, 8)
    reference = gathered(whole(LAYOUT), vectors(), rules)
    assert not np.array_equal(update, reference)
    assert np.linalg.norm(update - reference) < 0.02 * np.linalg.norm(reference)


@pytest.mark.parametrize(("name", "error"), [("fp16", 1e-3), ("int8", 0.02), ("int4", 0.2)])
def test_a_slice_blob_holds_the_update_as_well_as_its_codec_can(name: str, error: float) -> None:
    exact, rules = exchange("fp32"), exchange(name)
    reference = sharded(vectors(), exact, 5)
    update = sharded(vectors(), rules, 5)
    assert np.linalg.norm(update - reference) < error * np.linalg.norm(reference)


def test_fragments_are_exchanged_in_turn() -> None:
    rules = exchange("fp32", fragments=3)
    seen = np.zeros(LAYOUT.parameters, np.int64)
    for round in range(3):
        update = sharded(vectors(), rules, 4, round)
        part = fragment(LAYOUT, 3, round)
        changed = np.zeros_like(update)
        part.put(np.ones(part.parameters, np.float32), changed)
        assert np.array_equal(update != 0, changed != 0)
        seen += update != 0
    assert (seen == 1).all()


def test_anybody_gets_the_same_bytes_from_the_same_inputs() -> None:
    rules = exchange("int4")
    part = round_slices(LAYOUT, rules, ROUND, 4)[1]
    blobs = sub_blobs(part, vectors(), rules)
    given = [
        Weighted(node, TOKENS[node], Header(ROUND, BASE, of(rules)).load(blob, part.layout))
        for node, blob in blobs.items()
    ]
    header = Header(ROUND, BASE, of(rules), pseudogradient.SLICE_MAGIC)
    said = header.pack(part.layout, combine(part.layout, given, rules))
    backwards = dict(reversed(blobs.items()))
    reads: list[str] = []

    def reader(node: str) -> bytes:
        reads.append(node)
        return blobs[node]

    lazy = {node: (lambda node=node: reader(node)) for node in blobs}

    def again(given: Mapping[str, object], tokens: Mapping[str, int] = TOKENS) -> str:
        blob = recompute(
            LAYOUT,
            rules,
            round=ROUND,
            members=4,
            slice=1,
            base=BASE,
            blobs=given,  # type: ignore[arg-type]
            tokens=tokens,
        )
        return content.content_id(blob)

    assert again(blobs) == again(backwards) == again(lazy) == content.content_id(said)
    assert reads == sorted(blobs)
    # One contribution or one weight more or less is another blob: a wrong aggregate is seen.
    assert again(blobs, {**TOKENS, "12D3c": 512}) != content.content_id(said)
    fewer = {node: blob for node, blob in blobs.items() if node != "12D3b"}
    assert again(fewer, {node: TOKENS[node] for node in fewer}) != content.content_id(said)


def test_wrong_inputs_are_refused() -> None:
    rules = exchange("int8")
    part = round_slices(LAYOUT, rules, ROUND, 4)[0]
    blobs = sub_blobs(part, vectors(), rules)

    def again(number: int, given: Mapping[str, bytes]) -> bytes:
        return recompute(
            LAYOUT,
            rules,
            round=ROUND,
            members=4,
            slice=number,
            base=BASE,
            blobs=given,
            tokens=TOKENS,
        )

    result = again(0, blobs)
    for number in (-1, 4):
        with pytest.raises(CheckFailed, match="no slice"):
            again(number, blobs)
    with pytest.raises(CheckFailed, match="all accepted"):
        again(0, {node: blobs[node] for node in list(blobs)[1:]})
    with pytest.raises(Unusable):
        again(1, blobs)  # blobs of slice 0
    with pytest.raises(Unusable) as unusable:
        again(0, sub_blobs(part, vectors(), rules, ROUND + 1))
    assert unusable.value.reason == "wrong_state"
    with pytest.raises(Unusable) as unusable:
        again(0, {**blobs, "12D3a": result})  # a result is no contribution
    assert (unusable.value.reason, unusable.value.node) == ("malformed", "12D3a")
    with pytest.raises(BlobRefused) as refused:
        opened(blobs["12D3a"], part.layout, rules)  # and the other way round
    assert refused.value.reason == "malformed"


def test_a_sparse_slice_keeps_the_largest_elements_of_the_update() -> None:
    rules = exchange("sparse", top_k=64)
    given = vectors()
    for part, blob in zip(
        round_slices(LAYOUT, rules, ROUND, 3), slice_blobs(given, rules, 3), strict=True
    ):
        loaded = [
            Header(ROUND, BASE, of(rules)).load(b, part.layout)
            for b in sub_blobs(part, given, rules).values()
        ]
        assert all(isinstance(entries, Elements) for entries in loaded)
        update = combine(
            part.layout,
            [Weighted(n, TOKENS[n], x) for n, x in zip(given, loaded, strict=True)],
            rules,
        )
        result = opened(blob, part.layout, rules)
        encoded = of(rules).encode(part.layout, update)
        assert np.array_equal(result, vector_of(of(rules), part.layout, encoded))
        for tensor in part.layout.tensors:
            if tensor.size < CHUNK:
                continue
            inside = slice(tensor.offset, tensor.offset + CHUNK)
            kept = np.flatnonzero(result[inside])
            assert len(kept) == 64
            left = np.delete(np.abs(update[inside]), kept)
            assert np.abs(update[inside])[kept].min() >= left.max()


def test_recomputing_needs_no_torch() -> None:
    program = (
        "import sys, artel.protocol.exchange.aggregate_slice; sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "members", "golden"),
    [
        ("fp32", 5, "5695baaa3a9e6c577960be95470c2af049b0423c04657b4cdcaa72e2126e820e"),
        ("int8", 5, "cc729a374d1744123279cb41f39f3349087335f7e6c92f96fd12337a6d839c8f"),
        ("int4", 3, "730ea9888fff41f8d183c74491ff07c4add89c8a5471584f6905afc665df2139"),
    ],
)
def test_golden_slices(name: str, members: int, golden: str) -> None:
    """These bits are the protocol: a change here convicts honest nodes of other versions."""
    blobs = slice_blobs(vectors(), exchange(name, fragments=2), members)
    ids = "".join(content.content_id(blob) for blob in blobs)
    assert hashlib.sha256(ids.encode()).hexdigest() == golden
