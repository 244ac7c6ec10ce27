"""Assignment: a permutation, no window twice in a round, the whole epoch used, and stable."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.protocol.assignment import (
    Split,
    WindowRef,
    Work,
    aggregator,
    assign,
    checker,
    evaluation_windows,
    next_cursor,
    permuted,
    require_capacity,
    round_start,
    shards_needed,
    windows_at,
)
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.manifest_template import EXAMPLE
from artel.protocol.run_config import RunConfig

KEY = bytes(32)
SPLIT = Split(tokens=10_000, shard_tokens=3_000, seq_len=16, span_windows=4)

splits = st.builds(
    Split,
    tokens=st.integers(200, 5000),
    shard_tokens=st.integers(100, 1500),
    seq_len=st.integers(1, 12),
    span_windows=st.integers(1, 4),
)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 700), st.binary(min_size=32, max_size=32))
def test_the_permutation_is_a_bijection(size: int, key: bytes) -> None:
    assert sorted(permuted(key, size, index) for index in range(size)) == list(range(size))


def test_the_permutation_is_stable() -> None:
    """Golden: another implementation must give these; a change here breaks running networks."""
    assert [permuted(KEY, 10, index) for index in range(10)] == [6, 4, 0, 1, 2, 9, 7, 5, 3, 8]
    assert [permuted(KEY, 1_000_000, index) for index in range(4)] == [89725, 31363, 650015, 658305]
    assert windows_at(7, SPLIT, 150, 5) == [
        WindowRef(2, 1888),
        WindowRef(2, 1904),
        WindowRef(2, 2560),
        WindowRef(2, 2576),
        WindowRef(2, 2592),
    ]


def test_the_permutation_is_what_the_text_of_the_module_says() -> None:
    """Written from the formula alone, with text instead of bit operations."""

    def walk(key: bytes, size: int, x: int) -> int:
        digits = max(1, (len(f"{size - 1:b}") + 1) // 2)
        left, right = divmod(x, 2**digits)
        for number in range(8):
            block = key + bytes([number]) + right.to_bytes(8, "big")
            value = int(hashlib.sha256(block).hexdigest()[:16], 16) % 2**digits
            left, right = right, left ^ value
        x = left * 2**digits + right
        return x if x < size else walk(key, size, x)

    key = hashlib.sha256(b"artel/epoch/v1\0" + (7).to_bytes(8, "big") + bytes(8)).digest()
    for size in (2, 3, 17, 64, 65, 1000):
        assert [permuted(key, size, x) for x in range(size)] == [
            walk(key, size, x) for x in range(size)
        ]
    first = windows_at(7, SPLIT, 0, 1)[0]
    assert first == SPLIT.window(walk(key, SPLIT.spans, 0), 0)


def test_every_position_of_a_permutation_is_about_equally_likely() -> None:
    keys = [number.to_bytes(32, "big") for number in range(600)]
    counts = [0] * 6
    for key in keys:
        counts[permuted(key, 6, 0)] += 1
    assert min(counts) > 60  # 100 expected; six standard deviations are 55


@settings(max_examples=40, deadline=None)
@given(splits, st.integers(0, 2**53 - 1), st.integers(0, 3))
def test_an_epoch_hands_out_every_window_once(split: Split, seed: int, epoch: int) -> None:
    windows = windows_at(seed, split, epoch * split.windows, split.windows)
    assert len(set(windows)) == split.windows
    taken: set[tuple[int, int]] = set()
    for window in windows:
        size = min(split.shard_tokens, split.tokens - window.shard * split.shard_tokens)
        assert 0 <= window.shard < split.shards
        assert window.offset + split.seq_len + 1 <= size  # the last target lies in the shard
        targets = {(window.shard, window.offset + step) for step in range(1, split.seq_len + 1)}
        assert not targets & taken  # every token is a target at most once
        taken |= targets
    lost = split.tokens - len(taken)
    assert lost <= split.shards * (split.seq_len * split.span_windows + 1)


def test_a_new_epoch_reshuffles() -> None:
    first = windows_at(7, SPLIT, 0, SPLIT.windows)
    second = windows_at(7, SPLIT, SPLIT.windows, SPLIT.windows)
    assert first != second
    assert sorted(first) == sorted(second)
    assert windows_at(8, SPLIT, 0, SPLIT.windows) != first


@settings(max_examples=60, deadline=None)
@given(
    splits,
    st.integers(0, 10_000),
    st.lists(st.integers(1, 5), min_size=1, max_size=4),
    st.integers(1, 3),
)
def test_no_two_members_share_a_window(
    split: Split, cursor: int, steps: list[int], batch: int
) -> None:
    members = [f"peer{number}" for number in range(len(steps))]
    windows = sum(steps) * batch
    if windows > split.windows:
        with pytest.raises(UsageError, match="epoch"):
            assign(1, split, cursor, members, steps, "peer0", batch_size=batch)
        return
    handed = [
        window
        for member in members
        for window in assign(1, split, cursor, members, steps, member, batch_size=batch)
    ]
    start = round_start(split, cursor, windows)
    assert len(handed) == len(set(handed)) == windows
    assert sorted(handed) == sorted(windows_at(1, split, start, windows))
    first = steps[0] * batch  # each rank's stretch lies behind those of the ranks before it
    assert sorted(handed[:first]) == sorted(windows_at(1, split, start, first))
    last = windows - steps[-1] * batch
    assert sorted(handed[last:]) == sorted(windows_at(1, split, start + last, windows - last))
    assert start >= cursor
    assert start // split.windows == (start + windows - 1) // split.windows
    assert round_start(split, start, windows) == start


def test_a_round_that_does_not_fit_starts_at_the_next_epoch() -> None:
    windows = SPLIT.windows
    assert round_start(SPLIT, windows - 6, 6) == windows - 6
    assert round_start(SPLIT, windows - 6, 7) == windows
    assert round_start(SPLIT, windows, 7) == windows


def test_a_batch_mixes_distant_windows() -> None:
    """The windows of one inner step come from as many spans as possible."""
    got = assign(3, SPLIT, 0, ["a"], [8], "a", batch_size=4)
    spans = {(w.shard, w.offset // (SPLIT.seq_len * SPLIT.span_windows)) for w in got[:4]}
    assert len(spans) == 4
    assert sorted(got) == sorted(windows_at(3, SPLIT, 0, 32))


def test_members_must_be_ascending_and_include_the_node() -> None:
    with pytest.raises(CheckFailed, match="ascending"):
        assign(1, SPLIT, 0, ["b", "a"], [1, 1], "a", batch_size=1)
    with pytest.raises(CheckFailed, match="ascending"):
        assign(1, SPLIT, 0, ["a", "a"], [1, 1], "a", batch_size=1)
    with pytest.raises(CheckFailed, match="not a member"):
        assign(1, SPLIT, 0, ["a", "b"], [1, 1], "c", batch_size=1)


@pytest.mark.parametrize("steps", [[], [1], [1, 1, 1], [1, 0], [2, -1]])
def test_every_member_needs_steps(steps: list[int]) -> None:
    with pytest.raises(CheckFailed, match="number of steps"):
        assign(1, SPLIT, 0, ["a", "b"], steps, "a", batch_size=1)


def test_evaluation_windows_are_distinct_and_spread() -> None:
    split = Split(tokens=5_000, shard_tokens=2_000, seq_len=16, span_windows=1)
    windows = evaluation_windows(split, 20)
    assert len(set(windows)) == 20
    assert windows == sorted(windows)
    assert shards_needed(windows) == (0, 1, 2)
    assert len(evaluation_windows(split, 10**6)) == split.windows


def test_shards_needed_are_ascending_and_distinct() -> None:
    windows = [WindowRef(3, 0), WindowRef(1, 16), WindowRef(3, 16)]
    assert shards_needed(windows) == (1, 3)


def test_data_that_cannot_hold_a_round_is_refused() -> None:
    with pytest.raises(UsageError, match="5,120") as caught:
        require_capacity(SPLIT, EXAMPLE)
    assert "max_nodes" in caught.value.hint
    require_capacity(Split(10**7, 262_144, 128, 8), EXAMPLE)


def test_time_boxed_rounds_may_take_four_times_as_much() -> None:
    need = 4 * 5120
    enough, short = (Split(windows * 16 + 1, 10**6, 16, 1) for windows in (need, need - 1))
    boxed = changed(box_s=30.0)
    require_capacity(enough, boxed)
    with pytest.raises(UsageError, match="20,480") as caught:
        require_capacity(short, boxed)
    assert "a fast one in rounds of box_s = 30" in caught.value.message
    require_capacity(short, EXAMPLE)


# --- steps ----------------------------------------------------------------------------------------


def changed(
    *,
    total: int = 60,
    steps: int = 20,
    overlap: int = 0,
    box_s: float = 0.0,
    how: str = "auto",
    span: int = 0,
) -> RunConfig:
    """The example run with other rules of rounds and exchange."""
    rounds = EXAMPLE.rounds.model_copy(
        update={"total": total, "inner_steps": steps, "box_s": box_s, "span": span}
    )
    exchange = EXAMPLE.exchange.model_copy(update={"overlap_steps": overlap, "topology": how})
    return EXAMPLE.model_copy(update={"rounds": rounds, "exchange": exchange})


@pytest.mark.parametrize(
    ("steps", "overlap", "h", "tail", "least"),
    [
        (20, 0, 20, 0, 5),
        (20, 5, 20, 5, 4),  # a quarter of 15, rounded up
        (20, 5, 5, 1, 1),  # 1.25
        (20, 5, 6, 2, 1),  # 1.5: half up
        (20, 5, 80, 20, 15),
        (20, 10, 20, 10, 3),
        (20, 1, 5, 1, 1),  # 0.25: at least one
        (20, 10, 1, 0, 1),  # never all of it
        (20, 10, 2, 1, 1),
        (2, 1, 3, 2, 1),  # 1.5
        (1, 0, 1, 0, 1),
    ],
)
def test_head_and_tail_of_an_assignment(
    steps: int, overlap: int, h: int, tail: int, least: int
) -> None:
    config = changed(steps=steps, overlap=overlap)
    for number in (0, 58):
        assert Work.of(config).tail(number, h) == tail
        assert Work.of(config).head(number, h) == h - tail
        assert Work.of(config).least_head(number, h) == least
    # What would count in the round after the last one would never count.
    assert Work.of(config).tail(59, h) == 0
    assert Work.of(config).head(59, h) == h
    assert Work.of(config).least_head(59, h) == -(-h // 4)


@given(st.integers(1, 10_000), st.data())
def test_the_head_is_never_empty_and_the_tail_about_in_proportion(
    steps: int, data: st.DataObject
) -> None:
    overlap = data.draw(st.integers(0, steps // 2))
    h = data.draw(st.integers(1, 4 * steps))
    config = changed(steps=steps, overlap=overlap)
    tail, head = Work.of(config).tail(0, h), Work.of(config).head(0, h)
    assert tail + head == h
    assert head >= Work.of(config).least_head(0, h) >= 1
    assert 4 * Work.of(config).least_head(0, h) < head + 4
    if overlap and 1 <= round(overlap * h / steps) < h:
        assert abs(tail - overlap * h / steps) <= 0.5


# --- spans of rounds ------------------------------------------------------------------------------


def test_the_last_round_of_a_span_has_no_tail() -> None:
    work = Work.of(changed(overlap=5, span=3))
    assert [work.tail(number, 20) for number in range(7)] == [5, 5, 0, 5, 5, 0, 5]
    assert [work.begins(number) for number in range(4)] == [True, False, False, True]


@pytest.mark.parametrize(
    ("span", "tail", "before", "fits"),
    [
        (10, 5, 10, True),
        (9, 5, 9, True),  # one that it began in between
        (11, 0, None, True),
        (11, 0, 10, True),  # it was started again
        (10, 0, 10, False),  # its tail is lost
        (11, 5, None, False),
        (10, 5, None, False),  # its contribution to round 10 did not count
        (10, 5, 9, False),
        (12, 0, 10, False),
    ],
)
def test_a_contribution_goes_on_with_a_span_or_begins_one(
    span: int, tail: int, before: int | None, fits: bool
) -> None:
    work = Work.of(changed(overlap=5, span=4))
    assert work.spans(11, span, tail, before, 5) == fits


def test_a_span_is_over_where_the_next_one_begins() -> None:
    work = Work.of(changed(overlap=5, span=4))
    assert not work.spans(12, 8, 0, 8, 0)
    assert work.spans(12, 12, 0, 8, 0)
    assert (work.goes_on(11, 8), work.goes_on(12, 8), work.goes_on(11, None)) == (8, None, None)


def test_without_spans_nothing_begins_and_their_number_is_0() -> None:
    work = Work.of(changed(overlap=5))
    assert not any(work.begins(number) for number in range(9))
    assert work.spans(3, 0, 5, None, 5)
    assert work.spans(3, 0, 0, None, 5)
    assert not work.spans(3, 3, 0, None, 5)


def test_steps_in_windows_and_tokens() -> None:
    config = changed()  # 8 sequences of 128 tokens
    assert (Work.of(config).windows(20), Work.of(config).tokens(20)) == (160, 20_480)
    assert next_cursor(SPLIT, 10, 3, config) == 34
    # Too near the end of the epoch: it starts at the next one.
    assert next_cursor(SPLIT, SPLIT.windows - 23, 3, config) == SPLIT.windows + 24
    boxed = Work.of(changed(box_s=1.0, steps=10))
    assert (boxed.least, boxed.most) == (3, 40)
    plain = Work.of(changed(steps=10))
    assert (plain.least, plain.most) == (10, 10)


# --- who combines and checks ----------------------------------------------------------------------


def test_large_rounds_are_sharded_unless_the_manifest_says_otherwise() -> None:
    assert [Work.of(changed()).topology_of(members) for members in (1, 8, 9, 32)] == [
        *("gather", "gather", "sharded", "sharded")
    ]
    for how in ("gather", "sharded"):
        assert {Work.of(changed(how=how)).topology_of(members) for members in (1, 8, 9)} == {how}


def test_slices_go_round() -> None:
    accepted = ["a", "b", "c"]
    for number in range(7):
        owners = [aggregator(accepted, number, slice) for slice in range(6)]
        assert owners[:3] == owners[3:]
        assert sorted(owners[:3]) == accepted
        assert owners == [aggregator(accepted, 0, slice + number) for slice in range(6)]
        for slice, owner in enumerate(owners):
            assert checker(accepted, number, slice) == owners[(slice + 1) % 3] != owner
    assert [aggregator(accepted, 4, slice) for slice in range(3)] == ["b", "c", "a"]
    assert (aggregator(["a"], 3, 5), checker(["a"], 3, 5)) == ("a", None)
    for wrong in ([], ["b", "a"], ["a", "a"]):
        with pytest.raises(CheckFailed):
            aggregator(wrong, 0, 0)
