"""Evidence of a split view: convicts whoever signed two histories, and never anybody else."""

from __future__ import annotations

import base64
import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.ledger.entries import evidence
from artel.ledger.entries.evidence import SplitView, build, check
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, origin_of
from artel.ledger.tlog.cosignature import CosignerKey, cosign, witness_key, witness_name
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import root_at
from artel.protocol import canonical
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.merkle import inclusion, leaf_hash, node_hash
from leaf_hashes import LeafHashes
from tlog_world import LOG, LOG_KEY, ORIGIN, cosigned, key, leaves_of, signed, tree_of

TREE = tree_of(leaves_of(60))
ALICE, BOB = key("alice"), key("bob")
ALICE_KEY = CosignerKey("alice", ALICE.public)
WITNESSES = ((ALICE, "alice"), (BOB, "bob"))


def fork_at(index: int, size: int = 60) -> LeafHashes:
    """A tree that is like TREE up to ``index``, and there not."""
    return LeafHashes([*TREE.hashes[:index], *(leaf_hash(b"%d" % i) for i in range(size - index))])


def split(a: int = 20, b: int = 40, at: int = 10, **options: Any) -> SplitView:
    fork = fork_at(at)
    return build(signed(TREE, a), TREE, signed(fork, b), fork, **options)


def test_two_roots_of_one_size_convict_the_log() -> None:
    found = split(40, 40)
    assert found.fork is None
    assert found.sizes == (40, 40)
    assert check(found, [ALICE_KEY, LOG_KEY]) == LOG_KEY


def test_two_trees_of_different_sizes_convict_the_log() -> None:
    found = split(20, 40)
    assert found.fork is not None
    assert (found.fork.index, found.sizes, found.origin, found.signer) == (
        10,
        (20, 40),
        ORIGIN,
        ORIGIN,
    )
    assert check(found, [ALICE_KEY, LOG_KEY]) == LOG_KEY


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.data())
def test_any_fork_convicts_at_its_first_differing_entry(
    a: int, b: int, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, min(a, b) - 1))
    fork = fork_at(at)
    one = build(signed(TREE, a), TREE, signed(fork, b), fork)
    # The order in which the two are given does not matter: there is one evidence of one fact.
    assert one == build(signed(fork, b), fork, signed(TREE, a), TREE)
    assert check(one, [LOG_KEY]) == LOG_KEY
    assert (one.fork.index if one.fork else at) == at
    value = one.to_dict()
    assert SplitView.from_dict(canonical.loads(canonical.dumps(value))) == one


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 60), st.integers(0, 60))
def test_consistent_trees_give_no_evidence(a: int, b: int) -> None:
    with pytest.raises(CheckFailed):
        build(signed(TREE, a), TREE, signed(TREE, b), TREE)
    # Neither do histories that part only beyond the smaller tree.
    if a < b:
        with pytest.raises(CheckFailed):
            build(signed(TREE, a), TREE, signed(fork_at(a), b), fork_at(a))


def test_a_witness_that_cosigned_two_heads_is_convicted() -> None:
    fork = fork_at(10)
    for a, b in ((20, 40), (40, 40), (40, 20)):
        first = cosigned(signed(TREE, a), *WITNESSES)
        second = cosigned(signed(fork, b), *WITNESSES, time=1_700_000_999)
        found = build(first, TREE, second, fork, signer="alice")
        assert found.signer == "alice"
        assert check(found, [LOG_KEY, ALICE_KEY]) == ALICE_KEY
        # It convicts that one only, although others signed the same.
        with pytest.raises(CheckFailed, match="not known"):
            check(found, [LOG_KEY, CosignerKey("bob", BOB.public)])
        assert check(build(first, TREE, second, fork), [LOG_KEY, ALICE_KEY]) == LOG_KEY


def test_a_witness_is_convicted_even_if_two_log_keys_signed() -> None:
    fork = fork_at(10)
    first = cosigned(signed(TREE, 20), *WITNESSES)
    second = cosigned(signed(fork, 40, ORIGIN, key("stolen")), (ALICE, "alice"))
    found = build(first, TREE, second, fork)
    assert check(found, [LOG_KEY, ALICE_KEY]) == ALICE_KEY


def test_a_witness_that_cosigned_the_same_head_twice_did_nothing_wrong() -> None:
    early = cosigned(signed(TREE, 20), *WITNESSES, time=1)
    late = cosigned(signed(TREE, 20), *WITNESSES, time=2)
    with pytest.raises(CheckFailed, match="agree"):
        build(early, TREE, late, TREE, signer="alice")
    first, second = sorted(
        note.Note(note.parse(text).text, (note.parse(text).signatures[1],)).encode()
        for text in (early, late)
    )
    with pytest.raises(CheckFailed, match="agree"):
        check(SplitView(first, second), [ALICE_KEY])


def test_a_witness_of_two_logs_did_nothing_wrong() -> None:
    fork = fork_at(10)
    for size in (20, 40):
        here = cosigned(signed(TREE, 20), *WITNESSES)
        there = cosigned(signed(fork, size, "elsewhere"), *WITNESSES)
        with pytest.raises(CheckFailed, match="different logs"):
            build(here, TREE, there, fork, signer="alice")
        real = split(20, size).to_dict()
        texts = [(note.parse(text).text, note.parse(text).signatures[1]) for text in (here, there)]
        first, second = (note.Note(text, (line,)).encode() for text, line in texts)
        first, second = (first, second) if size == 40 else sorted((first, second))
        with pytest.raises(DecodeError, match="different logs"):
            SplitView.from_dict(real | {"first": first, "second": second})


def test_extension_lines_alone_convict_nobody() -> None:
    text = note.parse(signed(TREE, 20)).text
    extended = note.sign(text + "extension\n", ORIGIN, LOG).encode()
    with pytest.raises(CheckFailed):
        build(signed(TREE, 20), TREE, extended, TREE)
    first, second = sorted((signed(TREE, 20), extended))
    with pytest.raises(CheckFailed, match="agree"):
        check(SplitView(first, second), [LOG_KEY])


def test_nothing_is_built_without_a_common_signer_or_the_right_trees() -> None:
    fork = fork_at(10)
    with pytest.raises(CheckFailed, match="no key signed both"):
        build(signed(TREE, 20), TREE, signed(fork, 40, ORIGIN, ALICE), fork)
    with pytest.raises(CheckFailed, match="bob signed both"):
        build(signed(TREE, 20), TREE, signed(fork, 40), fork, signer="bob")
    with pytest.raises(CheckFailed, match="different logs"):
        build(signed(TREE, 20), TREE, signed(fork, 40, "elsewhere"), fork)
    with pytest.raises(CheckFailed, match="not the one"):
        build(signed(TREE, 20), TREE, signed(fork, 40), TREE)
    with pytest.raises(CheckFailed, match="does not have"):
        build(signed(TREE, 20), TREE, signed(fork, 40), fork_at(10, 30))
    with pytest.raises(DecodeError):
        build("hello", TREE, signed(fork, 40), fork)


def single(text: str, place: int = 0) -> str:
    parsed = note.parse(text)
    return note.Note(parsed.text, (parsed.signatures[place],)).encode()


def forged() -> list[dict[str, Any]]:
    """Evidence against the log without its key, or by twisting what it signed."""
    real = split(20, 40).to_dict()
    fork = fork_at(10)
    honest = signed(TREE, 20)
    false = []

    def change(**fields: Any) -> None:
        false.append(copy.deepcopy(real) | fields)

    relabelled = note.Note(
        note.parse(signed(fork, 40)).text, note.parse(signed(TREE, 40)).signatures
    ).encode()
    change(second=relabelled)
    change(second=signed(fork, 40, ORIGIN, LOG).replace("\n40\n", "\n41\n"))
    change(second=signed(TREE, 40))  # proofs of another tree
    change(index=11)
    change(index=9)
    change(index=20)
    change(leaves=real["leaves"][::-1])
    change(leaves=[real["leaves"][0]] * 2)
    change(proofs=real["proofs"][::-1])
    change(proofs=[real["proofs"][0], real["proofs"][1][:-1]])
    change(proofs=[real["proofs"][0], [*real["proofs"][1], real["leaves"][0]]])
    # The same entry in both trees, with true proofs.
    index, trees = 5, ((TREE, 20), (fork, 40))
    texts = [[base64.b64encode(h).decode() for h in inclusion(t, index, s)] for t, s in trees]
    leaf = base64.b64encode(TREE.hashes[index]).decode()
    change(index=index, leaves=[leaf, leaf], proofs=texts)
    # An inner node passed off as a leaf of the honest tree.
    inner = base64.b64encode(node_hash(*TREE.hashes[10:12])).decode()
    change(leaves=[inner, real["leaves"][1]])
    # One note only, twice the same size, honest.
    same = sorted((honest, note.sign(note.parse(honest).text + "x\n", ORIGIN, LOG).encode()))
    false.append({"first": same[0], "second": same[1]})
    return false


@pytest.mark.parametrize("number", range(len(forged())))
def test_forged_evidence_is_refused(number: int) -> None:
    with pytest.raises(CheckFailed):
        check(SplitView.from_dict(forged()[number]), [LOG_KEY, ALICE_KEY])


def test_a_cosignature_does_not_convict_the_log_nor_the_other_way_round() -> None:
    fork = fork_at(10)
    found = build(
        cosigned(signed(TREE, 20), *WITNESSES),
        TREE,
        cosigned(signed(fork, 40), *WITNESSES),
        fork,
        "bob",
    )
    bob_as_log = VerifierKey("bob", BOB.public)
    with pytest.raises(CheckFailed, match="not known"):
        check(found, [bob_as_log])
    log_as_cosigner = CosignerKey(ORIGIN, LOG.public)
    with pytest.raises(CheckFailed, match="not known"):
        check(split(), [log_as_cosigner])


def changed(**fields: Any) -> dict[str, Any]:
    return split(20, 40).to_dict() | fields


def without(name: str) -> dict[str, Any]:
    value = split(20, 40).to_dict()
    del value[name]
    return value


HASH = base64.b64encode(bytes(32)).decode()


@pytest.mark.parametrize(
    "value",
    [
        None,
        [],
        {},
        "text",
        *(without(name) for name in ("first", "second", "index", "leaves", "proofs")),
        changed(more=1),
        changed(first=1),
        changed(first="hello"),
        changed(first=b"bytes"),
        changed(first=signed(TREE, 40), second=signed(TREE, 20)),  # order
        changed(first=signed(TREE, 20), second=signed(TREE, 20)),
        changed(first=cosigned(signed(TREE, 20), *WITNESSES)),  # two signatures more than needed
        changed(second=signed(fork_at(10), 40, "elsewhere")),
        changed(second=signed(fork_at(10), 40, ORIGIN, ALICE)),
        changed(second=signed(fork_at(10), 20)),  # equal sizes need no fork
        split(20, 20).to_dict() | {"index": 1},
        {"first": signed(TREE, 20), "second": signed(TREE, 40)},  # different sizes need one
        changed(index=-1),
        changed(index=True),
        changed(index="1"),
        changed(index=1.0),
        changed(index=1 << 53),
        changed(leaves=[HASH]),
        changed(leaves=[HASH] * 3),
        changed(leaves=HASH),
        changed(leaves=[HASH, 1]),
        changed(leaves=[HASH, HASH[:-4]]),
        changed(leaves=[HASH, HASH[:-2] + "B="]),
        changed(proofs=[]),
        changed(proofs=[[]]),
        changed(proofs=[[], [], []]),
        changed(proofs=[[], [HASH] * 64]),
        changed(proofs=[[], {}]),
        changed(proofs={"0": [], "1": []}),
    ],
)
def test_malformed_evidence_is_refused(value: Any) -> None:
    with pytest.raises(DecodeError):
        SplitView.from_dict(value)


class VastTree:
    """10^9 leaves that are all alike, or not alike in one place."""

    def __init__(self, odd: int | None = None) -> None:
        self.odd = odd
        self.alike = [leaf_hash(b"same")]
        for _ in range(40):
            self.alike.append(node_hash(self.alike[-1], self.alike[-1]))

    def subtree(self, level: int, index: int) -> bytes:
        if self.odd is None or self.odd >> level != index:
            return self.alike[level]
        if level == 0:
            return leaf_hash(b"odd")
        return node_hash(self.subtree(level - 1, 2 * index), self.subtree(level - 1, 2 * index + 1))


def test_evidence_of_a_billion_entries_fits_a_ledger_entry() -> None:
    size, origin = 1_000_000_000, origin_of("ab" * 32, 1000)
    honest, forked = VastTree(), VastTree(odd=123_456_789)
    notes = []
    for tree, length in ((honest, size - 1), (forked, size)):
        text = Checkpoint(origin, length, root_at(tree, length)).encode()
        lines = [
            cosign(witness, witness_name(witness.peer_id), text, 1_700_000_000)
            for witness in (ALICE, BOB)
        ]
        log = note.sign(text, origin, LOG)
        notes.append(note.Note(text, (*log.signatures, *lines)).encode())
    log_key = VerifierKey(origin, LOG.public)
    for signer, guilty in (
        (None, log_key),
        (witness_name(ALICE.peer_id), witness_key(ALICE.peer_id)),
    ):
        found = build(notes[0], honest, notes[1], forked, signer)
        assert found.fork is not None
        assert found.fork.index == 123_456_789
        assert len(found.fork.proofs[1]) >= 28
        assert check(found, [log_key, witness_key(ALICE.peer_id)]) == guilty
        payload = canonical.dumps(found.to_dict())
        assert len(payload) <= 5_600 - 400  # the entry around it needs some too
    assert evidence.SplitView.from_dict(canonical.loads(payload)) == found
