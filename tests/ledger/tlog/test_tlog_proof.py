"""Proofs against a naive tree, the vectors of transparency-dev/merkle, and every small change."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.ledger.tlog.proof import TlogProof, decimal, root_at
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.merkle import EMPTY_ROOT, inclusion, leaf_hash, node_hash, verify_inclusion
from leaf_hashes import LeafHashes
from places import FIXTURES
from tlog_world import leaves_of, naive_root, signed, tree_of

VECTORS = json.loads(FIXTURES.joinpath("merkle/proofs.json").read_text())
TREE = tree_of(leaves_of(300))
LONGER = tree_of(leaves_of(301))


class Counting(LeafHashes):
    """Counts what it is asked."""

    def __init__(self, hashes: Sequence[bytes]) -> None:
        super().__init__(hashes)
        self.asked: list[tuple[int, int]] = []

    def subtree(self, level: int, index: int) -> bytes:
        self.asked.append((level, index))
        return LeafHashes(self.hashes).subtree(level, index)


def naive_path(index: int, hashes: Sequence[bytes]) -> list[bytes]:
    """RFC 6962 section 2.1.1, word by word."""
    if len(hashes) == 1:
        return []
    k = 1
    while k * 2 < len(hashes):
        k *= 2
    if index < k:
        return [*naive_path(index, hashes[:k]), naive_root(hashes[k:])]
    return [*naive_path(index - k, hashes[k:]), naive_root(hashes[:k])]


def flipped(digest: bytes, bit: int) -> bytes:
    changed = bytearray(digest)
    changed[bit // 8 % len(changed)] ^= 1 << bit % 8
    return bytes(changed)


def damaged(proof: list[bytes], bit: int) -> Iterator[list[bytes]]:
    """The proof with a bit flipped, a hash dropped, added, repeated or two swapped."""
    for place, digest in enumerate(proof):
        yield [*proof[:place], flipped(digest, bit), *proof[place + 1 :]]
        yield proof[:place] + proof[place + 1 :]
        yield [*proof[:place], digest, *proof[place:]]
        yield [*proof[:place], digest[:-1], *proof[place + 1 :]]
    for place in range(len(proof) - 1):
        if proof[place] != proof[place + 1]:
            swapped = list(proof)
            swapped[place : place + 2] = reversed(swapped[place : place + 2])
            yield swapped
    for garbage in (b"", bytes(32), b"x" * 32):
        yield [*proof, garbage]
        yield [garbage, *proof]


def decoded(texts: list[str]) -> list[bytes]:
    return [base64.b64decode(text) for text in texts]


def test_root_is_the_naive_one_at_every_size() -> None:
    for size in range(301):
        assert root_at(TREE, size) == naive_root(TREE.hashes[:size])
    with pytest.raises(UsageError):
        root_at(TREE, 301)
    with pytest.raises(UsageError):
        root_at(TREE, -1)


@pytest.mark.parametrize("vector", VECTORS["inclusion"])
def test_inclusion_vectors_of_another_implementation(vector: dict[str, object]) -> None:
    index, size = int(str(vector["leafIdx"])), int(str(vector["treeSize"]))
    leaf, root = decoded([str(vector["leafHash"]), str(vector["root"])])
    proof = decoded(vector["proof"])  # type: ignore[arg-type]
    verify_inclusion(leaf, index, size, proof, root)
    wrong = [
        (leaf, index + 1, size, proof, root),
        (leaf, index - 1, size, proof, root),
        (leaf, index ^ 2, size, proof, root),
        (leaf, index, size * 2, proof, root),
        (leaf, index, size // 2, proof, root),
        (hashlib.sha256(b"wrong leaf").digest(), index, size, proof, root),
        (leaf, index, size, proof, EMPTY_ROOT),
        (leaf, index, size, proof, hashlib.sha256(b"random").digest()),
        (leaf, index, size, [*proof, b""], root),
        (leaf, index, size, [*proof, root], root),
        (leaf, index, size, [b"", *proof], root),
        (leaf, index, size, [root, *proof], root),
        *((leaf, index, size, other, root) for other in damaged(proof, 3)),
    ]
    for arguments in wrong:
        with pytest.raises(CheckFailed):
            verify_inclusion(*arguments)


def test_all_proofs_of_small_trees_are_the_naive_ones_and_verify() -> None:
    for size in range(1, 70):
        hashes, root = TREE.hashes[:size], root_at(TREE, size)
        for index in range(size):
            proof = inclusion(TREE, index, size)
            assert proof == naive_path(index, hashes)
            verify_inclusion(hashes[index], index, size, proof, root)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_changed_inclusion_proofs_fail(data: st.DataObject) -> None:
    size = data.draw(st.integers(1, 300), "size")
    index = data.draw(st.integers(0, size - 1), "index")
    bit = data.draw(st.integers(0, 255), "bit")
    leaf, root = TREE.hashes[index], root_at(TREE, size)
    proof = inclusion(TREE, index, size)
    verify_inclusion(leaf, index, size, proof, root)
    wrong = [
        (flipped(leaf, bit), index, size, proof, root),
        (leaf[:-1], index, size, proof, root),
        (leaf, index + 1, size, proof, root),
        (leaf, index - 1, size, proof, root),
        (leaf, index, size, proof, flipped(root, bit)),
        *((leaf, index, size, other, root) for other in damaged(proof, bit)),
    ]
    # A path does not always tell neighbouring sizes apart (the root is signed with its size), but
    # it never proves anything about the tree of another size.
    wrong += [
        (leaf, index, size + 1, proof, root_at(LONGER, size + 1)),
        (leaf, index, size - 1, proof, root_at(LONGER, size - 1)),
    ]
    for arguments in wrong:
        with pytest.raises(CheckFailed):
            verify_inclusion(*arguments)


def test_what_is_not_in_the_tree_has_no_proof() -> None:
    for index, size in ((5, 5), (-1, 5), (0, 0), (0, 1 << 60)):
        with pytest.raises(UsageError):
            inclusion(TREE, index, size)
        with pytest.raises(CheckFailed):
            verify_inclusion(bytes(32), index, size, [], bytes(32))


def test_proofs_ask_for_few_subtrees() -> None:
    size = 100_003
    hashes = [leaf_hash(b"%d" % number) for number in range(size)]
    tree = LeafHashes(hashes)

    class Reader(Counting):
        def subtree(self, level: int, index: int) -> bytes:
            self.asked.append((level, index))
            return tree.subtree(level, index)

    for index in (0, 1, 65_535, 65_536, 99_999, size - 1):
        reader = Reader(hashes)
        verify_inclusion(
            hashes[index], index, size, inclusion(reader, index, size), root_at(tree, size)
        )
        assert len(reader.asked) <= 2 * size.bit_length()
    reader = Reader(hashes)
    root_at(reader, size)
    assert len(reader.asked) == size.bit_count()


def test_a_tree_in_memory_may_grow() -> None:
    hashes = list(TREE.hashes[:3])
    tree = LeafHashes(hashes)
    first = root_at(tree, 3)
    hashes += TREE.hashes[3:9]
    assert root_at(tree, 9) == root_at(TREE, 9)
    assert root_at(tree, 3) == first
    assert tree.subtree(1, 0) == node_hash(*TREE.hashes[:2])
    with pytest.raises(UsageError):
        tree.subtree(1, 5)
    with pytest.raises(UsageError):
        tree.subtree(-1, 0)


CHECKPOINT = signed(TREE, 300)
PROOF = TlogProof(17, tuple(inclusion(TREE, 17, 300)), CHECKPOINT)


@pytest.mark.parametrize("extra", [b"", b"x", bytes(1000)])
def test_proof_files_come_back(extra: bytes) -> None:
    proof = TlogProof(17, PROOF.hashes, CHECKPOINT, extra)
    text = proof.encode()
    assert TlogProof.parse(text) == TlogProof.parse(text.encode()) == proof
    assert text.startswith("c2sp.org/tlog-proof@v1\n" + ("extra " if extra else "index 17\n"))
    assert text.endswith("\n\n" + CHECKPOINT)
    empty = TlogProof(0, (), CHECKPOINT)
    assert TlogProof.parse(empty.encode()) == empty


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text.replace("@v1", "@v2"),
        lambda text: text.replace("\n\n", "\n", 1),
        lambda text: text.replace("index 17", "index 017"),
        lambda text: text.replace("index 17", "index +17"),
        lambda text: text.replace("index 17", "index 1_7"),
        lambda text: text.replace("index 17", "index  17"),
        lambda text: text.replace("index 17", "index 9007199254740992"),
        lambda text: text.replace("index 17", "extra \nindex 17"),
        lambda text: text.replace("index 17", "extra AA==\nextra AA==\nindex 17"),
        lambda text: text.replace("index 17\n", ""),
        lambda text: text.replace("index 17\n", "index 17\nAAAA\n"),
        lambda text: text.replace("index 17\n", "index 17\n" + "A" * 43 + "=\n" * 1 + "x\n"),
        lambda text: text.replace("index 17\n", "index 17\n" + ("A" * 43 + "=\n") * 64),
        lambda text: text.replace("index 17\n", "index 17\n" + "A" * 42 + "B=\n"),  # not canonical
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text[:-1],
        lambda text: text + "\n",
        lambda text: text.partition("\n\n")[0] + "\n\n",
        lambda text: text + "x" * 300_000,
    ],
)
def test_malformed_proof_files_are_refused(damage) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DecodeError):
        TlogProof.parse(damage(PROOF.encode()))


@settings(deadline=None)
@given(
    st.binary(max_size=200) | st.text(max_size=100).map(lambda t: PROOF.encode().replace("17", t))
)
def test_any_bytes_are_a_proof_or_a_decode_error(data: bytes | str) -> None:
    try:
        proof = TlogProof.parse(data)
    except DecodeError:
        return
    assert proof.encode() == (data.decode() if isinstance(data, bytes) else data)


@pytest.mark.parametrize(
    "text", ["", "00", "01", "+1", "-1", " 1", "1 ", "1_0", "1.", "٣", "9" * 17]
)
def test_decimals_have_one_spelling(text: str) -> None:
    with pytest.raises(DecodeError):
        decimal(text)
    assert decimal("0") == 0
    assert decimal("9007199254740991") == (1 << 53) - 1
