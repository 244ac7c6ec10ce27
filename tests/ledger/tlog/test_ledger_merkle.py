"""The Merkle tree against the constants of Certificate Transparency and a naive definition."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.ledger.tlog.edge import Edge
from artel.protocol import merkle

# transparency-dev/merkle, testonly/constants.go: leaves and the roots over the first 1..8 of them.
LEAVES = [
    bytes.fromhex(leaf)
    for leaf in (
        "",
        "00",
        "10",
        "2021",
        "3031",
        "40414243",
        "5051525354555657",
        "606162636465666768696a6b6c6d6e6f",
    )
]
ROOTS = (
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
)


def naive_root(leaves: list[bytes]) -> bytes:
    """RFC 6962 section 2.1, word by word."""
    if not leaves:
        return hashlib.sha256(b"").digest()
    if len(leaves) == 1:
        return hashlib.sha256(b"\x00" + leaves[0]).digest()
    split = 1
    while split * 2 < len(leaves):
        split *= 2
    left, right = naive_root(leaves[:split]), naive_root(leaves[split:])
    return hashlib.sha256(b"\x01" + left + right).digest()


def test_hashes_are_those_of_rfc_6962() -> None:
    empty = "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
    leaf = "395aa064aa4c29f7010acfe3f25db9485bbd4b91897b6ad7ad547639252b4d56"
    node = "aa217fe888e47007fa15edab33c2b492a722cb106c64667fc2b044444de66bbb"
    assert merkle.root([]).hex() == merkle.EMPTY_ROOT.hex() == empty
    assert merkle.leaf_hash(b"L123456").hex() == leaf
    assert merkle.node_hash(b"N123", b"N456").hex() == node


@pytest.mark.parametrize("size", range(1, 9))
def test_roots_of_the_eight_leaf_vectors(size: int) -> None:
    assert merkle.root(map(merkle.leaf_hash, LEAVES[:size])).hex() == ROOTS[size - 1]


def test_growing_tree_has_the_naive_root_at_every_size() -> None:
    leaves = [b"%d" % number for number in range(600)]
    tree = Edge()
    for size, leaf in enumerate(leaves):
        if size % 256 < 70:
            expected = naive_root(leaves[:size])
            assert (tree.size, tree.root()) == (size, expected)
            assert merkle.root(map(merkle.leaf_hash, leaves[:size])) == expected
        tree.append(merkle.leaf_hash(leaf))


@settings(max_examples=60, deadline=None)
@given(st.lists(st.binary(max_size=40), max_size=70), st.integers(0, 70))
def test_any_leaves_from_any_start(leaves: list[bytes], split: int) -> None:
    tree = Edge()
    for leaf in leaves[:split]:
        tree.append(merkle.leaf_hash(leaf))
    before = tree.root()
    twin = tree.copy()
    for leaf in leaves[split:]:
        twin.append(merkle.leaf_hash(leaf))
    assert twin.root() == naive_root(leaves) == merkle.root(map(merkle.leaf_hash, leaves))
    assert tree.root() == before == naive_root(leaves[:split])
