"""A witness: every status of c2sp.org/tlog-witness, and no history that forks, whatever races."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.sync.witness import (
    MAX_BODY_BYTES,
    SIZE,
    TEXT,
    Answer,
    Witness,
)
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint
from artel.ledger.tlog.cosignature import CosignerKey, open_cosigned, verify_cosignature
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import root_at
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.merkle import EMPTY_ROOT, leaf_hash
from leaf_hashes import LeafHashes, consistency
from tlog_world import LOG, LOG_KEY, ORIGIN, encode_request, key, leaves_of, signed, tree_of

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
    return Witness(heads or MemoryHeads(), ALICE, "witness/alice", origins, lambda: NOW + 0.9)


def request(old: int, size: int, tree: LeafHashes = TREE) -> bytes:
    return encode_request(old, consistency(tree, old, size), signed(tree, size))


def test_a_growing_log_is_cosigned(heads: StallingHeads) -> None:
    witness = make(heads)
    old = 0
    for size in (0, 1, 1, 5, 8, 40, 40):
        answer = witness.add_checkpoint(request(old, size))
        assert (answer.status, answer.content_type) == (200, TEXT)
        text = note.parse(signed(TREE, size)).text
        (line,) = note.parse(f"{text}\n".encode() + answer.body).signatures
        assert answer.body == line.encode().encode()
        assert verify_cosignature(ALICE_KEY, line, text) == NOW
        # SPEC: the client MAY concatenate it to the checkpoint.
        joined = signed(TREE, size).encode() + answer.body
        assert open_cosigned(joined, [LOG_KEY], [ALICE_KEY])[1] == {"witness/alice": NOW}
        old = size


def test_request_of_the_spec_parses_up_to_its_unknown_origin() -> None:
    body = (
        "old 20852014\n"
        "PlRNCrwHpqhGrupue0L7gxbjbMiKA9temvuZZDDpkaw=\n"
        "jrJZDmY8Y7SyJE0MWLpLozkIVMSMZcD5kvuKxPC3swk=\n"
        "5+pKlUdi2LeF/BcMHBn+Ku6yhPGNCswZZD1X/6QgPd8=\n"
        "/6WVhPs2CwSsb5rYBH5cjHV/wSmA79abXAwhXw3Kj/0=\n"
        "\n"
        "example.com/behind-the-sofa\n"
        "20852163\n"
        "CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=\n"
        "\n"
        "— example.com/behind-the-sofa Az3grlgtzPICa5OS8npVmf1Myq/5IZniMp+ZJurmRDeOoRDe4URYN7u5/Z"
        "hcyv2q1gGzGku9nTo+zyWE+xeMcTOAYQ8=\n"
    ).encode()
    assert make().add_checkpoint(body).status == 404


def test_unknown_log_is_not_found() -> None:
    body = encode_request(0, [], signed(TREE, 5, "example.com/other", LOG))
    assert make().add_checkpoint(body).status == 404


def test_signatures_of_strangers_are_forbidden() -> None:
    witness = make()
    stranger = encode_request(0, [], signed(TREE, 5, ORIGIN, key("stranger")))
    assert witness.add_checkpoint(stranger).status == 403
    assert witness.add_checkpoint(encode_request(0, [], signed(TREE, 5, "quiet"))).status == 403
    # A known key's line that does not verify, beside a good one.
    good = note.parse(signed(TREE, 5))
    bad = note.parse(signed(TREE, 6)).signatures
    both = note.Note(good.text, (*good.signatures, *bad)).encode()
    assert witness.add_checkpoint(encode_request(0, [], both)).status == 403
    # Lines of unknown keys are ignored.
    more = note.Note(
        good.text, (*note.parse(signed(TREE, 5, ORIGIN, ALICE)).signatures, *good.signatures)
    )
    assert witness.add_checkpoint(encode_request(0, [], more.encode())).status == 200


def test_old_size_beyond_the_checkpoint_is_a_bad_request() -> None:
    witness = make()
    assert witness.add_checkpoint(request(0, 8)).status == 200
    assert witness.add_checkpoint(encode_request(8, [], signed(TREE, 5))).status == 400
    assert witness.add_checkpoint(encode_request(9, [], signed(TREE, 8))).status == 400


def test_another_old_size_conflicts_and_tells_the_right_one(heads: StallingHeads) -> None:
    witness = make(heads)
    fresh = witness.add_checkpoint(request(5, 8))
    assert (fresh.status, fresh.content_type, fresh.body) == (409, SIZE, b"0\n")
    assert witness.add_checkpoint(request(0, 8)).status == 200
    for old in (0, 5, 9):
        answer = witness.add_checkpoint(request(old, 20))
        assert (answer.status, answer.content_type, answer.body) == (
            409,
            "text/x.tlog.size",
            b"8\n",
        )
    # A smaller tree is never cosigned again.
    assert witness.add_checkpoint(request(5, 5)).status == 409
    assert witness.add_checkpoint(request(8, 20)).status == 200


def test_a_proof_that_does_not_verify_is_unprocessable(heads: StallingHeads) -> None:
    witness = make(heads)
    assert witness.add_checkpoint(request(0, 12)).status == 200
    proof = consistency(TREE, 12, 20)
    bad = [
        encode_request(12, proof[:-1], signed(TREE, 20)),
        encode_request(12, [*proof, bytes(32)], signed(TREE, 20)),
        encode_request(12, proof, signed(FORK, 20)),
        encode_request(12, consistency(FORK, 12, 20), signed(FORK, 20)),
        encode_request(12, [], signed(TREE, 20)),
        encode_request(12, proof, signed(TREE, 12)),  # equal sizes need no proof
    ]
    for body in bad:
        assert witness.add_checkpoint(body).status == 422
    assert heads.witnessed(ORIGIN) == (12, root_at(TREE, 12))
    # SPEC: The proof MUST be empty if the old size is zero.
    assert make().add_checkpoint(encode_request(0, proof, signed(TREE, 20))).status == 422
    # The empty tree has one root.
    empty = note.sign(Checkpoint(ORIGIN, 0, bytes(32)).encode(), ORIGIN, LOG).encode()
    assert make().add_checkpoint(encode_request(0, [], empty)).status == 422


def test_another_root_of_the_same_size_conflicts(heads: StallingHeads) -> None:
    witness = make(heads)
    assert witness.add_checkpoint(request(0, 12)).status == 200
    answer = witness.add_checkpoint(encode_request(12, [], signed(FORK, 12)))
    assert answer.status == 409
    assert answer.content_type != SIZE  # nothing that a client could retry with
    assert witness.add_checkpoint(request(12, 12)).status == 200


HASH = "A" * 43 + "="


@pytest.mark.parametrize(
    "damage",
    [
        lambda body: b"",
        lambda body: body[4:],
        lambda body: body.replace(b"old 5", b"old 05"),
        lambda body: body.replace(b"old 5", b"old +5"),
        lambda body: body.replace(b"old 5", b"old  5"),
        lambda body: body.replace(b"old 5", b"old 5 "),
        lambda body: body.replace(b"old 5", b"old 1_0"),
        lambda body: body.replace(b"old 5", b"Old 5"),
        lambda body: body.replace(b"old 5", b"old -5"),
        lambda body: body.replace(b"old 5", "old ٥".encode()),
        lambda body: body.replace(b"old 5", b"old 99999999999999999999"),
        lambda body: body.replace(b"old 5\n", b"old 5\nAAAA\n"),
        lambda body: body.replace(b"old 5\n", b"old 5\n" + HASH.encode() + b" \n"),
        lambda body: body.replace(b"old 5\n", b"old 5\n" + HASH[:-2].encode() + b"B=\n"),
        lambda body: body.replace(b"old 5\n", b"old 5\n" + (HASH.encode() + b"\n") * 64),
        lambda body: body.replace(b"\n\n", b"\n", 1),
        lambda body: body.replace(b"\n", b"\r\n"),
        lambda body: body[:-1],
        lambda body: body + b"\n",
        lambda body: body.replace(b"\n8\n", b"\n08\n"),
        lambda body: body.partition(b"\n\n")[0] + b"\n\n",
        lambda body: body + b"x" * MAX_BODY_BYTES,
        lambda body: body + b"\xff\n",
    ],
)
def test_malformed_requests_are_bad_requests(damage) -> None:  # type: ignore[no-untyped-def]
    witness = make()
    assert witness.add_checkpoint(request(0, 5)).status == 200
    assert witness.add_checkpoint(damage(request(5, 8))).status == 400
    assert witness.add_checkpoint(request(5, 8)).status == 200


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_any_bytes_are_answered(data: bytes) -> None:
    assert make().add_checkpoint(data).status == 400


def test_race_of_the_spec_never_rolls_back(heads: StallingHeads) -> None:
    witness = make(heads)
    assert witness.add_checkpoint(request(0, 5)).status == 200
    inner: list[Answer] = []
    # Request A (5 to 8) is checked; before it is stored, request B (5 to 20) runs to its end.
    heads.stall = lambda: inner.append(witness.add_checkpoint(request(5, 20)))
    outer = witness.add_checkpoint(request(5, 8))
    assert [answer.status for answer in inner] == [200]
    assert (outer.status, outer.content_type, outer.body) == (409, SIZE, b"20\n")
    assert heads.witnessed(ORIGIN) == (20, root_at(TREE, 20))


@pytest.mark.parametrize("size", [12, 20])
def test_race_between_two_histories_has_one_winner(heads: StallingHeads, size: int) -> None:
    witness = make(heads)
    inner: list[Answer] = []
    body = encode_request(0, [], signed(FORK, 12))
    heads.stall = lambda: inner.append(witness.add_checkpoint(body))
    outer = witness.add_checkpoint(request(0, size))
    assert [inner[0].status, outer.status] == [200, 409]
    assert heads.witnessed(ORIGIN) == (12, root_at(FORK, 12))


def test_race_on_an_unchanged_checkpoint_does_not_repeat_the_past(heads: StallingHeads) -> None:
    witness = make(heads)
    assert witness.add_checkpoint(request(0, 5)).status == 200
    heads.stall = lambda: witness.add_checkpoint(request(5, 20))
    # At this moment 5 entries are no longer the largest tree that the witness has seen.
    assert witness.add_checkpoint(request(5, 5)).status == 409


def test_many_threads_get_one_history(heads: StallingHeads) -> None:
    witness = make(heads)
    bodies = [
        encode_request(0, [], signed(tree, size)) for tree in (TREE, FORK) for size in range(11, 31)
    ]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(witness.add_checkpoint, bodies))
    assert sorted(answer.status for answer in answers) == [200] + [409] * 39


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.integers(0, 40), st.booleans(), st.booleans())))
def test_what_is_cosigned_is_always_one_growing_history(
    steps: list[tuple[int, int, bool, bool]],
) -> None:
    witness = make()
    history: list[tuple[int, bytes]] = []
    for first, second, forked, use_latest in steps:
        tree = FORK if forked else TREE
        latest = history[-1][0] if history else 0
        old, size = (latest, max(latest, second)) if use_latest else sorted((first, second))
        answer = witness.add_checkpoint(request(old, size, tree))
        if answer.status == 200:
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
    for old, size, tree, status in ((0, 12, TREE, 200), (12, 20, FORK, 422), (12, 20, TREE, 200)):
        store = HeadStore(tmp_path / HEADS_NAME)
        proof = consistency(tree, old, size)
        answer = make(store).add_checkpoint(encode_request(old, proof, signed(tree, size)))
        assert answer.status == status
        store.close()


def test_a_node_that_races_with_itself_cosigns_once(heads: StallingHeads) -> None:
    witness = make(heads)
    heads.stall = lambda: witness.cosign(signed(TREE, 30), TREE)
    with pytest.raises(CheckFailed, match="in the meantime"):
        witness.cosign(signed(TREE, 8), TREE)
    assert heads.witnessed(ORIGIN) == (30, root_at(TREE, 30))
