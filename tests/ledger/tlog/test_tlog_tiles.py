"""Tiles: the paths and widths that c2sp.org/tlog-tiles gives, strict parsing, any bytes."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from artel.ledger.tlog.tiles import (
    ENTRIES,
    TILE_WIDTH,
    Tile,
    decode_bundle,
    decode_tile,
    edge_of,
    encode_bundle,
    level_tiles,
    locate,
    tile_at,
    tiles_of,
    width_at,
)
from artel.protocol.errors import DecodeError, UsageError
from tlog_world import leaves_of, tree_of


@pytest.mark.parametrize(
    ("tile", "path"),
    [
        (Tile(0, 1234067), "tile/0/x001/x234/067"),  # the example of the spec
        (Tile(0, 0), "tile/0/000"),
        (Tile(0, 0, 1), "tile/0/000.p/1"),
        (Tile(1, 999, 255), "tile/1/999.p/255"),
        (Tile(2, 1000), "tile/2/x001/000"),
        (Tile(ENTRIES, 1234067, 17), "tile/entries/x001/x234/067.p/17"),
        (Tile(ENTRIES, 0), "tile/entries/000"),
    ],
)
def test_paths_are_those_of_the_spec(tile: Tile, path: str) -> None:
    assert tile.path == path
    assert Tile.parse(path) == tile


def test_tiles_of_seventy_thousand_entries_are_those_of_the_spec() -> None:
    # SPEC: 273 full level 0 tiles, one partial level 0 tile of width 112, one full level 1 tile,
    # one partial level 1 tile of width 17, and one partial level 2 tile of width 1.
    tiles = list(tiles_of(70_000))
    assert [tile for tile in tiles if tile.level == 0] == [
        *(Tile(0, index) for index in range(273)),
        Tile(0, 273, 112),
    ]
    assert tiles[274:] == [Tile(1, 0), Tile(1, 1, 17), Tile(2, 0, 1)]
    assert edge_of(70_000) == [Tile(0, 273, 112), Tile(1, 1, 17), Tile(2, 0, 1)]
    # SPEC: a tree of size 256 will be represented by a full level 0 tile and a partial level 1
    # tile of width 1.
    assert list(tiles_of(256)) == [Tile(0, 0), Tile(1, 0, 1)]
    assert list(tiles_of(0)) == edge_of(0) == []
    assert list(level_tiles(ENTRIES, 300)) == [Tile(ENTRIES, 0), Tile(ENTRIES, 1, 44)]


@pytest.mark.parametrize(
    "path",
    [
        "",
        "checkpoint",
        "/tile/0/000",
        "tile/0/000/",
        "tile/0/0",
        "tile/0/0000",
        "tile/0/x000/001",
        "tile/0/001/000",
        "tile/0/x001/x000",
        "tile/00/000",
        "tile/01/000",
        "tile/64/000",
        "tile/-1/000",
        "tile/data/000",
        "tile/0/000.p",
        "tile/0/000.p/",
        "tile/0/000.p/0",
        "tile/0/000.p/01",
        "tile/0/000.p/256",
        "tile/0/000.p/+1",
        "tile/0/00٣",
        "tile/0/000\n",
        "tile/0/../000",
        "tile/0/%30%30%30",
        "tile//000",
        "tile/7/x001/000",  # 2^64 leaves and more
        "tile/0/" + "x999/" * 20 + "999",
    ],
)
def test_any_other_spelling_of_a_path_is_refused(path: str) -> None:
    with pytest.raises(DecodeError):
        Tile.parse(path)


@settings(deadline=None)
@given(st.text(alphabet="tile/entrisx.p0123456789 +-_\n٣", max_size=40) | st.text(max_size=40))
def test_any_text_is_a_tile_or_a_decode_error(path: str) -> None:
    try:
        tile = Tile.parse(path)
    except DecodeError:
        return
    assert tile.path == path


@st.composite
def tiles(draw: st.DrawFn) -> Tile:
    level = draw(st.integers(-1, 6))
    index = draw(st.integers(0, (1 << 62 - 8 * max(level, 0) - 8)))
    return Tile(level, index, draw(st.integers(1, TILE_WIDTH)))


@settings(deadline=None)
@given(tiles())
def test_every_tile_comes_back_from_its_path(tile: Tile) -> None:
    assert Tile.parse(tile.path) == tile
    assert tile.end - tile.start == tile.width << 8 * max(tile.level, 0)
    assert width_at(tile.level, tile.index, tile.end) == tile.width
    assert width_at(tile.level, tile.index, tile.end - 1) == tile.width - 1


def test_tiles_that_no_tree_has_cannot_be_made() -> None:
    for level, index, width in ((-2, 0, 1), (64, 0, 1), (0, -1, 1), (0, 0, 0), (0, 0, 257)):
        with pytest.raises(DecodeError):
            Tile(level, index, width)
    with pytest.raises(DecodeError):
        tile_at(0, 1, 256)


@settings(deadline=None)
@given(st.integers(0, 1 << 40), st.integers(0, 1 << 20))
@example(256, 1)
@example(65_536, 0)
def test_partial_tiles_are_prefixes_of_later_ones(size: int, more: int) -> None:
    for tile in edge_of(size):
        later = tile_at(tile.level, tile.index, size + more)
        assert later.width >= tile.width
        assert later.start == tile.start


def test_every_hash_of_a_tree_is_where_it_is_looked_for() -> None:
    size = 70_000
    assert locate(0, 69_999, size) == (Tile(0, 273, 112), 111, 1)
    assert locate(3, 0, size) == (Tile(0, 0), 0, 8)
    assert locate(8, 272, size) == (Tile(1, 1, 17), 16, 1)
    assert locate(16, 0, size) == (Tile(2, 0, 1), 0, 1)
    assert locate(15, 1, size) == (Tile(1, 0), 128, 128)
    for level, index in ((0, size), (8, 273), (17, 0), (0, -1), (-1, 0)):
        with pytest.raises(UsageError):
            locate(level, index, size)


def test_hashes_and_entries_come_back_from_their_encoding() -> None:
    tree = tree_of(leaves_of(256))
    hashes = list(tree.hashes)
    assert decode_tile(b"".join(hashes), 256) == hashes
    assert len(b"".join(hashes)) == 8192
    for width in (255, 257, 0):
        with pytest.raises(DecodeError):
            decode_tile(b"".join(hashes), width)
    # SPEC: big-endian uint16 length-prefixed log entries.
    assert encode_bundle([b"one", b"", b"x" * 258]) == b"\0\3one\0\0\1\2" + b"x" * 258
    with pytest.raises(UsageError):
        encode_bundle([bytes(65_536)])
    assert decode_bundle(encode_bundle([bytes(65_535)]), 1) == [bytes(65_535)]


BUNDLES = st.lists(st.binary(max_size=300), max_size=20)


@settings(deadline=None)
@given(BUNDLES)
def test_bundles_have_one_meaning(leaves: list[bytes]) -> None:
    data = encode_bundle(leaves)
    assert decode_bundle(data, len(leaves)) == leaves
    for count in (len(leaves) - 1, len(leaves) + 1):
        if count >= 0:
            with pytest.raises(DecodeError):
                decode_bundle(data, count)
    for cut in range(1, min(len(data), 8)):
        with pytest.raises(DecodeError):
            decode_bundle(data[:-cut], len(leaves))
    with pytest.raises(DecodeError):
        decode_bundle(data + b"\0", len(leaves))


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 256))
def test_any_bytes_are_a_bundle_or_a_decode_error(data: bytes, count: int) -> None:
    try:
        leaves = decode_bundle(data, count)
    except DecodeError:
        return
    assert encode_bundle(leaves) == data
