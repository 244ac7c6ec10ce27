"""Evidence of a split view: one key signed two tree heads that cannot both be true.

A log promises (https://c2sp.org/tlog-checkpoint) that of any two checkpoints that it signs one
tree begins with the other; a witness promises (https://c2sp.org/tlog-cosignature) to cosign only
such trees. Two checkpoints of one size with two roots break the promise by themselves. Of
different sizes, it takes one index at which both trees provably have a leaf, and not the same one.
The evidence holds everything that a check needs except the key, so anybody can check it offline
and it can itself be an entry of a ledger.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import MAX_SIZE, Checkpoint, parse_checkpoint
from artel.ledger.tlog.cosignature import CosignerKey, verify_cosignature
from artel.ledger.tlog.note import Note, SignatureLine, VerifierKey, encode_base64
from artel.ledger.tlog.proof import begins_with, decode_hashes
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.identity import verify
from artel.protocol.merkle import HashReader, inclusion, verify_inclusion

MAX_NOTE_CHARACTERS = 1000
"""Of each of the two notes, which carry one signature each."""


@dataclass(frozen=True)
class Fork:
    """Where two trees of different sizes differ: one leaf hash and inclusion proof for each."""

    index: int
    leaves: tuple[bytes, bytes]
    proofs: tuple[tuple[bytes, ...], tuple[bytes, ...]]


@dataclass(frozen=True)
class SplitView:
    """Two signed notes of one log with one signature each, by the same name and key id.

    ``first`` is the note of the smaller tree; ``fork`` is missing when the sizes are equal.
    Constructing it checks the form only, :func:`check` says whether it proves anything.

    :raises DecodeError: when it does not have this form
    """

    first: str
    second: str
    fork: Fork | None = None

    def __post_init__(self) -> None:
        (a, line_a), (b, line_b) = (_open(text) for text in (self.first, self.second))
        if (line_a.name, line_a.key_id) != (line_b.name, line_b.key_id):
            raise DecodeError("the two checkpoints are signed with different keys")
        if a.origin != b.origin:
            raise DecodeError("the two checkpoints are of different logs")
        # One fact has one form: in this order, and with a fork exactly when it is needed.
        if (a.size, self.first) >= (b.size, self.second):
            raise DecodeError("the two checkpoints are in the wrong order")
        if (self.fork is None) != (a.size == b.size):
            raise DecodeError("a fork belongs to checkpoints of different sizes, and only to them")

    @property
    def origin(self) -> str:
        """The log that both checkpoints are of."""
        return _open(self.first)[0].origin

    @property
    def signer(self) -> str:
        """Name of the key that signed both; nothing is verified."""
        return _open(self.first)[1].name

    @property
    def sizes(self) -> tuple[int, int]:
        """Sizes of the two trees, the smaller first."""
        return _open(self.first)[0].size, _open(self.second)[0].size

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON: strings, whole numbers and lists; hashes are base64."""
        value: dict[str, Any] = {"first": self.first, "second": self.second}
        if self.fork is not None:
            value["index"] = self.fork.index
            value["leaves"] = _encode(self.fork.leaves)
            value["proofs"] = [_encode(proof) for proof in self.fork.proofs]
        return value

    @classmethod
    def from_dict(cls, value: Any) -> SplitView:
        """Read what :meth:`to_dict` wrote.

        :raises DecodeError: on anything else
        """
        if not isinstance(value, dict):
            raise DecodeError("evidence is a JSON object")
        first, second = value.get("first"), value.get("second")
        if not isinstance(first, str) or not isinstance(second, str):
            raise DecodeError("evidence holds two checkpoints")
        if set(value) == {"first", "second"}:
            return cls(first, second)
        if set(value) != {"first", "second", "index", "leaves", "proofs"}:
            raise DecodeError("evidence has missing or unknown fields")
        index, proofs = value["index"], value["proofs"]
        if type(index) is not int or not 0 <= index < MAX_SIZE:
            raise DecodeError("evidence names the index of an entry")
        if not isinstance(proofs, list) or len(proofs) != 2:
            raise DecodeError("evidence holds two proofs")
        leaves = _decode(value["leaves"])
        if len(leaves) != 2:
            raise DecodeError("evidence holds two leaf hashes")
        fork = Fork(index, (leaves[0], leaves[1]), (_decode(proofs[0]), _decode(proofs[1])))
        return cls(first, second, fork)


def build(
    note_a: str, reader_a: HashReader, note_b: str, reader_b: HashReader, signer: str | None = None
) -> SplitView:
    """Make evidence out of two signed notes and the trees behind them.

    :param signer: name of the key to convict; by default the log's own, or else any that signed
        both notes. Signatures are not verified here, :func:`check` does that.
    :raises DecodeError: when a note is malformed
    :raises CheckFailed: when they prove nothing: consistent trees, no common signer, or a tree is
        not the one behind its note
    """
    a, b = parse_checkpoint(note_a), parse_checkpoint(note_b)
    if a.size > b.size:
        return build(note_b, reader_b, note_a, reader_a, signer)
    if a.origin != b.origin:
        raise CheckFailed("the two checkpoints are of different logs")
    if a.size == b.size:
        if a.root == b.root:
            raise CheckFailed("the two checkpoints agree")
        # The order of equal sizes has to be the same whoever builds the evidence.
        first, second = sorted(_single(note_a, note_b, signer))
        return SplitView(first, second)
    for checkpoint, reader in ((a, reader_a), (b, reader_b)):
        if not begins_with(reader, checkpoint.size, checkpoint.root):
            raise CheckFailed(
                f"the tree at hand is not the one that the checkpoint of {checkpoint.size} names"
            )
    index = _first_difference(reader_a, reader_b, a.size)
    readers = ((reader_a, a.size), (reader_b, b.size))
    leaves = tuple(reader.subtree(0, index) for reader, _ in readers)
    proofs = tuple(tuple(inclusion(reader, index, size)) for reader, size in readers)
    first, second = _single(note_a, note_b, signer)
    return SplitView(first, second, Fork(index, (leaves[0], leaves[1]), (proofs[0], proofs[1])))


def check(
    evidence: SplitView, keys: Iterable[VerifierKey | CosignerKey]
) -> VerifierKey | CosignerKey:
    """Which of ``keys`` has signed two histories.

    :raises CheckFailed: when the evidence does not prove that of any of them
    """
    (a, line_a), (b, line_b) = (_open(text) for text in (evidence.first, evidence.second))
    signer = (line_a.name, line_a.key_id)
    culprit = next((key for key in keys if (key.name, key.key_id) == signer), None)
    if culprit is None:
        raise CheckFailed(f"the checkpoints are signed by {line_a.name!r}, which is not known here")
    for text, line in ((evidence.first, line_a), (evidence.second, line_b)):
        _check_signature(culprit, line, note.parse(text).text)
    if evidence.fork is None:
        if a.root == b.root:  # extension lines or the time differ, which is allowed
            raise CheckFailed("the two checkpoints agree")
        return culprit
    fork = evidence.fork
    if fork.leaves[0] == fork.leaves[1]:
        raise CheckFailed(f"both trees have the same entry {fork.index}")
    for checkpoint, leaf, proof in zip((a, b), fork.leaves, fork.proofs, strict=True):
        verify_inclusion(leaf, fork.index, checkpoint.size, proof, checkpoint.root)
    return culprit


def _open(text: str) -> tuple[Checkpoint, SignatureLine]:
    """The checkpoint and its only signature line."""
    if len(text) > MAX_NOTE_CHARACTERS:
        raise DecodeError(f"a checkpoint in evidence has at most {MAX_NOTE_CHARACTERS} characters")
    parsed = note.parse(text)
    if len(parsed.signatures) != 1:
        raise DecodeError("a checkpoint in evidence has one signature")
    return Checkpoint.parse(parsed.text), parsed.signatures[0]


def _check_signature(key: VerifierKey | CosignerKey, line: SignatureLine, note_text: str) -> None:
    if isinstance(key, CosignerKey):
        verify_cosignature(key, line, note_text)
    elif not verify(key.public, line.signature, note_text.encode()):
        raise CheckFailed(f"the signature by {key.name} does not verify")


def _single(text_a: str, text_b: str, signer: str | None) -> tuple[str, str]:
    """Both notes with nothing but the line of one key that signed both."""
    note_a, note_b = note.parse(text_a), note.parse(text_b)
    lines_a, lines_b = (
        {(line.name, line.key_id): line for line in parsed.signatures}
        for parsed in (note_a, note_b)
    )
    origin = note_a.text.partition("\n")[0]
    common = [key for key in lines_a if key in lines_b and signer in (None, key[0])]
    if not common:
        who = "no key" if signer is None else signer
        raise CheckFailed(f"{who} signed both checkpoints, so nobody is convicted")
    # The log's own key first: a log that signs two histories is the one that misleads everybody.
    key = min(common, key=lambda key: key[0] != origin)
    return (
        Note(note_a.text, (lines_a[key],)).encode(),
        Note(note_b.text, (lines_b[key],)).encode(),
    )


def _first_difference(reader_a: HashReader, reader_b: HashReader, size: int) -> int:
    """Index of the first of ``size`` leaves that differs between two trees."""
    start = 0
    while start < size:
        level = (size - start).bit_length() - 1
        index = start >> level
        if reader_a.subtree(level, index) != reader_b.subtree(level, index):
            while level:
                level, index = level - 1, 2 * index
                if reader_a.subtree(level, index) == reader_b.subtree(level, index):
                    index += 1
            return index
        start += 1 << level
    raise CheckFailed("the two checkpoints agree: one tree begins with the other")


def _encode(hashes: Iterable[bytes]) -> list[str]:
    return [encode_base64(digest) for digest in hashes]


def _decode(value: Any) -> tuple[bytes, ...]:
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        raise DecodeError("evidence holds lists of hashes")
    return decode_hashes(value)
