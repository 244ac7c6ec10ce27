"""Layouts and state files: one encoding, and every damage noticed."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.protocol import canonical, content
from artel.protocol.errors import CheckFailed, DecodeError, ResourceError
from artel.protocol.run_config import OuterSection
from artel.protocol.state import (
    HEADER_BYTES,
    Layout,
    State,
    StateHeader,
    decode_header,
    encode_header,
    read_state,
    state_bytes,
    state_root,
    write_state,
)

LAYOUT = Layout.of([("embed.weight", (11, 3)), ("norm.weight", (3,)), ("scale", ())])


def a_state(*, momentum: bool = True, layout: Layout = LAYOUT) -> State:
    values = np.arange(layout.parameters, dtype=np.float32)
    return State(4, layout.digest, values / np.float32(7), -values if momentum else None)


def test_layout_lays_tensors_out_without_gaps() -> None:
    assert [(t.offset, t.size) for t in LAYOUT.tensors] == [(0, 33), (33, 3), (36, 1)]
    assert LAYOUT.parameters == 37


def test_layout_round_trips_through_its_canonical_json() -> None:
    assert Layout.decode(LAYOUT.encode()) == LAYOUT
    assert LAYOUT.encode() == (
        b'{"tensors":[["embed.weight",[11,3]],["norm.weight",[3]],["scale",[]]]}'
    )
    assert LAYOUT.digest == "0f62c4d49be3a20efd216df2d3ab5dad615c53c5558a650991b06693c71d38ae"


def test_layout_digest_depends_on_order_name_and_shape() -> None:
    variants = [
        [("a", (2, 3)), ("b", (6,))],
        [("b", (6,)), ("a", (2, 3))],
        [("a", (3, 2)), ("b", (6,))],
        [("a", (2, 3)), ("c", (6,))],
    ]
    assert len({Layout.of(v).digest for v in variants}) == 4


@pytest.mark.parametrize(
    "value",
    [
        {},
        [],
        {"tensors": []},
        {"tensors": {}},
        {"tensors": [["a", [0]]]},
        {"tensors": [["a", [-1]]]},
        {"tensors": [["a", [True]]]},
        {"tensors": [["a", ["1"]]]},
        {"tensors": [["a", 1]]},
        {"tensors": [["", [1]]]},
        {"tensors": [["a", [1]], ["a", [1]]]},
        {"tensors": [["a" * 257, [1]]]},
        {"tensors": [["a", [1], 0]]},
        {"tensors": [["a", [1] * 9]]},
        {"tensors": [["a", [1 << 33]]]},
        {"tensors": [["a", [1 << 31]], ["b", [1 << 31]], ["c", [1]]]},
        {"tensors": [["a", [1]]], "more": 1},
    ],
)
def test_impossible_layouts_are_refused(value: object) -> None:
    with pytest.raises(DecodeError):
        Layout.decode(canonical.dumps(value))


def test_layout_in_another_json_form_is_refused() -> None:
    with pytest.raises(DecodeError, match="canonical"):
        Layout.decode(b'{"tensors": [["a",[1]]]}')


@pytest.mark.parametrize("momentum", [False, True])
def test_state_file_round_trips(tmp_path: Path, momentum: bool) -> None:
    path = tmp_path / "state"
    state = a_state(momentum=momentum)
    root = write_state(path, state)
    again = read_state(path, LAYOUT)
    assert (again.round, again.layout_digest) == (4, LAYOUT.digest)
    assert np.array_equal(again.params, state.params)
    if state.momentum is None:
        assert again.momentum is None
    else:
        assert again.momentum is not None
        assert np.array_equal(again.momentum, state.momentum)
    assert root == state_root(state) == content.file_content_id(path)
    assert path.stat().st_size == state_bytes(
        LAYOUT.parameters, OuterSection(momentum=0.5 * momentum)
    )
    assert state_root(again) == root
    assert os.listdir(tmp_path) == ["state"]


def test_file_bytes_are_as_documented(tmp_path: Path) -> None:
    write_state(tmp_path / "state", a_state())
    data = (tmp_path / "state").read_bytes()
    text = b'{"buffers":["momentum"],"layout":"%b","params":37,"round":4}'
    text %= LAYOUT.digest.encode()
    head = b"ARTELST1" + len(text).to_bytes(4, "big") + text
    assert data[:HEADER_BYTES] == head.ljust(4096, b"\0")
    numbers = np.frombuffer(data[HEADER_BYTES:], "<f4")
    assert np.array_equal(numbers[:37], a_state().params)
    assert np.array_equal(numbers[37:], -np.arange(37))


def test_root_of_a_state_of_several_chunks_is_that_of_its_file(tmp_path: Path) -> None:
    layout = Layout.of([("a", (3, 1 << 17)), ("b", (12345,))])
    state = a_state(layout=layout)
    assert state_bytes(layout.parameters, OuterSection()) > 3 * content.CHUNK_BYTES
    root = write_state(tmp_path / "state", state)
    assert root == state_root(state) == content.file_content_id(tmp_path / "state")


def test_root_changes_with_one_bit_the_round_and_the_momentum() -> None:
    state = a_state()
    other = state.params.copy()
    other.view(np.uint32)[5] ^= 1
    roots = {
        state_root(state),
        state_root(State(5, LAYOUT.digest, state.params, state.momentum)),
        state_root(State(4, LAYOUT.digest, other, state.momentum)),
        state_root(State(4, LAYOUT.digest, state.params, state.params)),
        state_root(State(4, LAYOUT.digest, state.params, None)),
    }
    assert len(roots) == 5


def test_every_flipped_header_byte_is_refused_or_changes_the_root(tmp_path: Path) -> None:
    path = tmp_path / "state"
    root = write_state(path, a_state())
    original = path.read_bytes()
    accepted = 0
    for position in [*range(160), 161, 2000, HEADER_BYTES - 1]:
        damaged = bytearray(original)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        try:
            state = read_state(path, LAYOUT)
        except DecodeError:
            continue
        accepted += 1  # another round number is another valid state
        assert state_root(state) == content.file_content_id(path) != root
    assert accepted <= 1


@given(
    position=st.integers(0, HEADER_BYTES + 8 * 37 - 1),
    mask=st.integers(1, 255),
)
@settings(max_examples=150, deadline=None)
def test_flipped_bits_raise_decode_errors_only(
    tmp_path_factory: pytest.TempPathFactory, position: int, mask: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "flipped"
    root = write_state(path, a_state())
    damaged = bytearray(path.read_bytes())
    damaged[position] ^= mask
    path.write_bytes(damaged)
    try:
        state = read_state(path, LAYOUT)
    except DecodeError:
        return
    assert state_root(state) == content.file_content_id(path) != root


def test_file_of_another_length_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    write_state(path, a_state())
    data = path.read_bytes()
    for wrong in (b"", data[:100], data[:HEADER_BYTES], data[:-1], data + b"\0", data + data):
        path.write_bytes(wrong)
        with pytest.raises(DecodeError):
            read_state(path, LAYOUT)


@pytest.mark.parametrize("at", [0, 36, 37, 73])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_non_finite_file_is_refused(tmp_path: Path, at: int, bad: float) -> None:
    path = tmp_path / "state"
    write_state(path, a_state())
    data = bytearray(path.read_bytes())
    data[HEADER_BYTES + 4 * at : HEADER_BYTES + 4 * at + 4] = np.float32(bad).tobytes()
    path.write_bytes(data)
    with pytest.raises(DecodeError, match="NaN"):
        read_state(path, LAYOUT)


def test_state_of_another_layout_is_refused(tmp_path: Path) -> None:
    write_state(tmp_path / "state", a_state())
    other = Layout.of([("embed.weight", (3, 11)), ("norm.weight", (3,)), ("scale", ())])
    with pytest.raises(DecodeError, match="layout"):
        read_state(tmp_path / "state", other)


def test_diverged_or_misshapen_state_is_not_written(tmp_path: Path) -> None:
    path = tmp_path / "state"
    good = a_state()
    broken = good.params.copy()
    broken[3] = np.nan
    for state in (
        State(1, LAYOUT.digest, broken, None),
        State(1, LAYOUT.digest, good.params, broken),
        State(1, LAYOUT.digest, good.params, good.params[1:]),
        State(1, LAYOUT.digest, good.params.astype(np.float64), None),
    ):
        with pytest.raises(CheckFailed):
            write_state(path, state)
        with pytest.raises(CheckFailed):
            state_root(state)
    assert not path.exists()


def test_full_disk_leaves_the_old_state_and_no_litter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "state"
    root = write_state(path, a_state())

    def no_space(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(ResourceError) as error:
        write_state(path, a_state(momentum=False))
    assert "free at least" in error.value.hint
    assert content.file_content_id(path) == root
    assert os.listdir(tmp_path) == ["state"]


def test_missing_directory_or_file_is_a_resource_error(tmp_path: Path) -> None:
    with pytest.raises(ResourceError):
        write_state(tmp_path / "gone" / "state", a_state())
    with pytest.raises(ResourceError):
        read_state(tmp_path / "gone", LAYOUT)


def test_header_round_trips_and_refuses_other_values() -> None:
    header = StateHeader(round=3, layout="ab" * 32, params=10, buffers=("momentum",))
    assert decode_header(encode_header(header)) == header
    assert header.file_bytes == HEADER_BYTES + 80
    fields = {"buffers": [], "layout": "ab" * 32, "params": 10, "round": 3}
    for change in (
        {"buffers": ["other"]},
        {"buffers": ["momentum", "momentum"]},
        {"buffers": "momentum"},
        {"layout": "AB" * 32},
        {"layout": "ab" * 31},
        {"layout": 1},
        {"params": 0},
        {"params": True},
        {"params": 1 << 40},
        {"round": -1},
        {"round": "3"},
        {"more": 1},
    ):
        text = canonical.dumps(fields | change)
        page = (b"ARTELST1" + len(text).to_bytes(4, "big") + text).ljust(HEADER_BYTES, b"\0")
        with pytest.raises(DecodeError):
            decode_header(page)


@given(st.binary(max_size=4200))
def test_noise_is_no_header(noise: bytes) -> None:
    for page in (noise, (b"ARTELST1" + noise)[:HEADER_BYTES].ljust(HEADER_BYTES, b"\0")):
        with pytest.raises(DecodeError):
            decode_header(page)
