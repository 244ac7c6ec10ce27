"""Parts of the model: every element is in exactly one of them, in order, and cuts fall right."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.protocol.errors import CheckFailed
from artel.protocol.exchange.codec import codec
from artel.protocol.exchange.parts import CHUNK, Part, cut, fragment, stretches, whole
from artel.protocol.state import Layout, Vector
from codec_world import vector_of

LAYOUT = Layout.of(
    [("embed", (300, 100)), ("norm", (100,)), ("up", (100, 200)), ("down", (200, 100)), ("b", ())]
)

sizes = st.lists(
    st.one_of(st.integers(1, 300), st.integers(CHUNK - 3, 12 * CHUNK + 3)), min_size=1, max_size=12
)


def layout_of(given: list[int]) -> Layout:
    return Layout.of([(f"t{i}", (size,)) for i, size in enumerate(given)])


def numbered(layout: Layout) -> Vector:
    return np.arange(layout.parameters, dtype=np.float32)


def names(part: Part) -> list[str]:
    return [tensor.name for tensor in part.layout.tensors]


def test_whole_is_everything_and_no_copy() -> None:
    part = whole(LAYOUT)
    full = numbered(LAYOUT)
    assert part.layout == LAYOUT
    assert part.parameters == LAYOUT.parameters
    assert np.shares_memory(part.take(full), full)
    assert np.array_equal(part.take(full), full)
    assert fragment(LAYOUT, 1, 0) is part
    assert fragment(LAYOUT, 1, 7) is part


def test_fragments_are_dealt_the_largest_tensor_first() -> None:
    first, second = (fragment(LAYOUT, 2, number) for number in range(2))
    # embed 30000 | up 20000, down 20000 | norm and b go to the smaller group
    assert names(first) == ["embed", "norm", "b"]
    assert names(second) == ["up", "down"]
    assert first.layout.tensors[1].shape == (100,)
    assert first.ranges == (slice(0, 30000), slice(30000, 30100), slice(70100, 70101))
    assert first.runs == (slice(0, 30100), slice(70100, 70101))
    assert second.runs == (slice(30100, 70100),)
    assert fragment(LAYOUT, 2, 5) is second


def test_there_are_no_more_fragments_than_tensors() -> None:
    parts = [fragment(LAYOUT, 9, number) for number in range(5)]
    assert sorted(names(part)[0] for part in parts) == ["b", "down", "embed", "norm", "up"]
    assert fragment(LAYOUT, 9, 6) is parts[1]


@given(sizes, st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_fragments_hold_every_element_once_and_are_about_equal(
    given: list[int], count: int
) -> None:
    layout = layout_of(given)
    parts = [fragment(layout, count, number) for number in range(min(count, len(given)))]
    taken = np.concatenate([part.take(numbered(layout)) for part in parts])
    assert np.array_equal(np.sort(taken), numbered(layout))
    for part in parts:
        assert np.array_equal(part.take(numbered(layout)), np.sort(part.take(numbered(layout))))
    smallest, largest = min(p.parameters for p in parts), max(p.parameters for p in parts)
    assert largest - smallest <= max(given)


@given(sizes, st.integers(1, 40), st.integers(1, 3))
@settings(max_examples=150, deadline=None)
def test_slices_hold_every_element_once_and_in_order(
    given: list[int], slices: int, fragments: int
) -> None:
    layout = layout_of(given)
    part = fragment(layout, fragments, 0)
    cuts = cut(part, slices)
    assert 1 <= len(cuts) <= slices
    vector = part.take(numbered(layout))
    assert np.array_equal(np.concatenate([c.take(numbered(layout)) for c in cuts]), vector)
    for piece, where in zip(cuts, stretches(cuts), strict=True):
        assert np.array_equal(piece.take(numbered(layout)), vector[where])
        assert Layout.decode(piece.layout.encode()) == piece.layout
    for tensor in (t for c in cuts for t in c.layout.tensors):
        if not tensor.name.endswith("]"):
            continue
        name, inside = tensor.name[:-1].split("[")
        start, stop = (int(at) for at in inside.split(":"))
        original = next(t for t in part.layout.tensors if t.name == name)
        assert tensor.shape == (stop - start,)
        assert start % CHUNK == 0
        assert stop % CHUNK == 0 or stop == original.size
        assert stop - start >= CHUNK


@given(st.lists(st.integers(1, 40 * CHUNK), min_size=1, max_size=8), st.integers(1, 16))
@settings(max_examples=60, deadline=None)
def test_slices_are_about_equal(given: list[int], slices: int) -> None:
    part = whole(layout_of(given))
    fair = part.parameters / slices
    for piece in cut(part, slices):
        assert piece.parameters <= fair + 2 * CHUNK


def test_cut_names_pieces_and_keeps_whole_tensors() -> None:
    layout = Layout.of([("a", (64, 128)), ("b", (8,)), ("c", (3, CHUNK + 5))])
    first, second = cut(whole(layout), 2)
    assert names(first) == ["a", "b", f"c[0:{CHUNK}]"]
    assert [t.shape for t in first.layout.tensors] == [(64, 128), (8,), (CHUNK,)]
    assert names(second) == [f"c[{CHUNK}:{3 * CHUNK + 15}]"]
    assert [names(p) for p in cut(whole(layout), 3)] == [
        ["a"],
        ["b", f"c[0:{CHUNK}]"],
        [f"c[{CHUNK}:{3 * CHUNK + 15}]"],
    ]


def test_a_tiny_model_has_fewer_slices_than_asked_for() -> None:
    layout = Layout.of([("a", (5,)), ("b", (6,))])
    assert [names(p) for p in cut(whole(layout), 10_000)] == [["a"], ["b"]]
    assert [names(p) for p in cut(whole(Layout.of([("a", (2 * CHUNK - 1,))])), 9)] == [["a"]]


def test_a_slice_of_another_layout_has_another_digest() -> None:
    digests = {piece.layout.digest for piece in cut(whole(LAYOUT), 6)}
    assert len(digests) == len(cut(whole(LAYOUT), 6)) == 6


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_a_cut_changes_no_block_of_a_codec(name: str) -> None:
    """The slices' payloads decode to what the whole payload decodes to."""
    rng = np.random.default_rng(3)
    vector = rng.standard_normal(LAYOUT.parameters).astype(np.float32)
    chosen = codec(name)
    decoded = vector_of(chosen, LAYOUT, chosen.encode(LAYOUT, vector))
    for piece in cut(whole(LAYOUT), 7):
        payload = chosen.encode(piece.layout, piece.take(vector))
        assert np.array_equal(vector_of(chosen, piece.layout, payload), piece.take(decoded))


@given(sizes, st.integers(1, 9), st.integers(1, 4), st.integers(0, 3))
@settings(max_examples=60, deadline=None)
def test_put_writes_what_take_takes_and_nothing_else(
    given: list[int], slices: int, fragments: int, number: int
) -> None:
    layout = layout_of(given)
    cuts = cut(fragment(layout, fragments, number), slices)
    part = cuts[number % len(cuts)]
    full = numbered(layout)
    part.put(-part.take(full) - 1, full)
    changed = np.flatnonzero(full < 0)
    assert np.array_equal(changed.astype(np.float32), part.take(numbered(layout)))
    assert np.array_equal(full[changed], -changed.astype(np.float32) - 1)


def test_wrong_use_is_refused() -> None:
    part = fragment(LAYOUT, 2, 0)
    full = numbered(LAYOUT)
    wrong: Any
    for wrong in (full[:-1], full.astype(np.float64), full.reshape(1, -1)):
        with pytest.raises(CheckFailed):
            part.take(wrong)
        with pytest.raises(CheckFailed):
            part.put(part.take(full), wrong)
    short: Any
    for short in (part.take(full)[1:], part.take(full).astype(np.float64)):
        with pytest.raises(CheckFailed):
            part.put(short, full)
    for count in (0, -1):
        with pytest.raises(CheckFailed):
            fragment(LAYOUT, count, 0)
        with pytest.raises(CheckFailed):
            cut(part, count)
