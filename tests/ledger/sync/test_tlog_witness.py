"""A witness cosigns no history that forks, whatever races."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.sync.witness import Witness
from artel.ledger.tlog import note
from artel.ledger.tlog.cosignature import CosignerKey, verify_cosignature
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import root_at
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.merkle import EMPTY_ROOT, leaf_hash
from leaf_hashes import LeafHashes
from tlog_world import LOG_KEY, ORIGIN, key, leaves_of, signed, tree_of

ALICE = key("alice")
ALICE_KEY = CosignerKey("witness/alice", ALICE.public)
TREE = tree_of(leaves_of(40))
FORK = LeafHashes([*TREE.hashes[:10], *(leaf_hash(leaf) for leaf in leaves_of(30, "forked"))])
NOW = 1_700_000_000


class MemoryHeads:
    """Head storage in a dictionary."""

    def __init__(self) -> None:
        self.heads: dict[str, tuple[int, bytes]] = {}
        self.lock = threading.Lock()

    def witnessed(self, origin: str) -> tuple[int, bytes] | None:
        return self.heads.get(origin)

    def advance(self, origin: str, old_size: int, size: int, root: bytes) -> bool:
        with self.lock:
            now, known = self.heads.get(origin, (0, EMPTY_ROOT))
            if now != old_size or (size == old_size and known != root):
                return False
            self.heads[origin] = (size, root)
            return True


class StallingHeads:
    """Head storage; ``stall`` runs once, between a read and whatever its caller does with it."""

    def __init__(self, heads: MemoryHeads | HeadStore) -> None:
        self.heads = heads
        self.stall: Callable[[], object] | None = None

    def witnessed(self, origin: str) -> tuple[int, bytes] | None:
        head = self.heads.witnessed(origin)
        stall, self.stall = self.stall, None
        if stall is not None:
            stall()
        return head

    def advance(self, origin: str, old_size: int, size: int, root: bytes) -> bool:
        return self.heads.advance(origin, old_size, size, root)


@pytest.fixture(params=["memory", "home"])
def heads(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[StallingHeads]:
    """Both a small storage that shows what the protocol asks for, and the one of a home."""
    if request.param == "memory":
        yield StallingHeads(MemoryHeads())
        return
    store = HeadStore(tmp_path / HEADS_NAME)
    yield StallingHeads(store)
    store.close()


def make(heads: MemoryHeads | StallingHeads | HeadStore | None = None) -> Witness:
    origins = {ORIGIN: [VerifierKey(ORIGIN, key("old log key").public), LOG_KEY], "quiet": []}
    return Witness(
        heads or MemoryHeads(),
        ALICE,
        "witness/alice",
        lambda name: origins.get(name, []),
        lambda: NOW + 0.9,
    )


def statuses(witness: Witness, *asked: tuple[LeafHashes, int]) -> list[bool]:
    """Whether each of these heads was cosigned, one after the other."""

    def cosigns(tree: LeafHashes, size: int) -> bool:
        try:
            line = witness.cosign(signed(tree, size), tree)
        except CheckFailed:
            return False
        return verify_cosignature(ALICE_KEY, line, note.parse(signed(tree, size)).text) == NOW

    return [cosigns(tree, size) for tree, size in asked]


@pytest.mark.parametrize("size", [12, 20])
def test_race_between_two_histories_has_one_winner(heads: StallingHeads, size: int) -> None:
    witness = make(heads)
    inner: list[bool] = []
    # One head is checked; before it is stored, that of another history runs to its end.
    heads.stall = lambda: inner.extend(statuses(witness, (FORK, 12)))
    outer = statuses(witness, (TREE, size))
    assert (inner, outer) == ([True], [False])
    assert heads.witnessed(ORIGIN) == (12, root_at(FORK, 12))


def test_many_threads_get_one_history(heads: StallingHeads) -> None:
    witness = make(heads)
    asked = [(tree, size) for tree in (TREE, FORK) for size in range(11, 31)]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda each: statuses(witness, each)[0], asked))
    cosigned = [each for each, yes in zip(asked, answers, strict=True) if yes]
    assert cosigned
    assert len({id(tree) for tree, _ in cosigned}) == 1


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans())))
def test_what_is_cosigned_is_always_one_growing_history(steps: list[tuple[int, bool]]) -> None:
    witness = make()
    history: list[tuple[int, bytes]] = []
    for size, forked in steps:
        tree = FORK if forked else TREE
        if statuses(witness, (tree, size)) == [True]:
            history.append((size, root_at(tree, size)))
    sizes = [size for size, _ in history]
    assert sizes == sorted(sizes)
    assert any(all(root_at(tree, size) == root for size, root in history) for tree in (TREE, FORK))


def test_a_node_with_the_tree_cosigns_without_a_proof(heads: StallingHeads) -> None:
    witness = make(heads)
    for size in (0, 3, 3, 30):
        line = witness.cosign(signed(TREE, size), TREE)
        assert verify_cosignature(ALICE_KEY, line, note.parse(signed(TREE, size)).text) == NOW
    assert heads.witnessed(ORIGIN) == (30, root_at(TREE, 30))
    with pytest.raises(CheckFailed, match="30 entries"):
        witness.cosign(signed(TREE, 29), TREE)


def test_a_node_cosigns_only_what_its_own_tree_gives(
    heads: StallingHeads,
) -> None:
    witness = make(heads)
    short = LeafHashes(TREE.hashes[:20])
    with pytest.raises(CheckFailed, match="21 entries"):
        witness.cosign(signed(TREE, 21), short)
    with pytest.raises(CheckFailed, match="root is not that"):
        witness.cosign(signed(FORK, 20), short)
    with pytest.raises(CheckFailed, match="not signed"):
        witness.cosign(signed(TREE, 20, ORIGIN, ALICE), short)
    with pytest.raises(CheckFailed, match="witnessed"):
        witness.cosign(signed(TREE, 20, "elsewhere"), short)
    with pytest.raises(DecodeError):
        witness.cosign("hello", short)
    assert heads.witnessed(ORIGIN) is None
    witness.cosign(signed(TREE, 20), short)
    # The copy was replaced by one of another history, which its log has signed as well.
    with pytest.raises(CheckFailed, match="tree of 20"):
        witness.cosign(signed(FORK, 40), FORK)
    assert heads.witnessed(ORIGIN) == (20, root_at(TREE, 20))


def test_a_witness_that_was_restarted_remembers(tmp_path: Path) -> None:
    for size, tree, cosigned in ((12, TREE, True), (20, FORK, False), (20, TREE, True)):
        store = HeadStore(tmp_path / HEADS_NAME)
        assert statuses(make(store), (tree, size)) == [cosigned]
        store.close()


def test_a_node_that_races_with_itself_cosigns_once(heads: StallingHeads) -> None:
    witness = make(heads)
    heads.stall = lambda: witness.cosign(signed(TREE, 30), TREE)
    with pytest.raises(CheckFailed, match="in the meantime"):
        witness.cosign(signed(TREE, 8), TREE)
    assert heads.witnessed(ORIGIN) == (30, root_at(TREE, 30))
