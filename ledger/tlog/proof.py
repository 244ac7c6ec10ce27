"""Inclusion proofs, and the file that carries one.

Specs: RFC 6962 section 2.1 (the tree and the order of the hashes), RFC 9162 section 2.1.3.2
(how to verify), https://c2sp.org/tlog-proof (the file). A proof is computed from a
:class:`HashReader`, whatever it stands on: see :mod:`.tree`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from artel.ledger.tlog.checkpoint import MAX_SIZE, decimal, parse_checkpoint
from artel.ledger.tlog.note import MAX_NOTE_BYTES, decode_base64, decode_hash, encode_base64
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.merkle import EMPTY_ROOT, HASH_BYTES, node_hash

MAX_HASHES = 63
"""Of a tree with fewer than 2^63 leaves."""
MAX_EXTRA_BYTES = 128 * 1024
MAX_PROOF_BYTES = MAX_NOTE_BYTES + 2 * MAX_EXTRA_BYTES
HEADER = "c2sp.org/tlog-proof@v1"


class HashReader(Protocol):
    """A tree that can tell the hashes of its perfect subtrees."""

    def subtree(self, level: int, index: int) -> bytes:
        """Hash over the 2^level leaves that start at leaf index·2^level; level 0 is a leaf hash."""
        ...


def root_at(reader: HashReader, size: int) -> bytes:
    """Root of the tree over the first ``size`` leaves; asks for at most log2(size) subtrees.

    :raises UsageError: when there cannot be such a tree
    """
    if not 0 <= size <= MAX_SIZE:
        raise UsageError(f"there is no tree of {size} entries")
    return _range_hash(reader, 0, size) if size else EMPTY_ROOT


def begins_with(reader: HashReader, size: int, root: bytes) -> bool:
    """Whether the tree at hand begins with one that somebody claims.

    :raises CheckFailed: when it has fewer entries
    """
    try:
        return root_at(reader, size) == root
    except UsageError:
        raise CheckFailed(
            f"the copy here does not have {size} entries yet", "catch up, then try again"
        ) from None


def inclusion(reader: HashReader, index: int, size: int) -> list[bytes]:
    """The proof that leaf ``index`` is in the tree of ``size`` leaves: siblings, lowest first.

    Asks for at most 2·log2(size) subtrees.

    :raises UsageError: when the tree has no such leaf
    """
    if not 0 <= index < size <= MAX_SIZE:
        raise UsageError(f"a tree of {size} entries has no entry {index}")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        # The largest power of two below the count: where RFC 6962 splits a tree.
        middle = start + (1 << (end - start - 1).bit_length() - 1)
        if index < middle:
            path.append(_range_hash(reader, middle, end))
            end = middle
        else:
            path.append(_range_hash(reader, start, middle))
            start = middle
    path.reverse()
    return path


def verify_inclusion(
    leaf_hash: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes
) -> None:
    """Check that the leaf with this hash is at ``index`` of the tree of ``size`` leaves.

    :raises CheckFailed: when the proof does not show it
    """
    _check_hashes(proof)
    if len(leaf_hash) != HASH_BYTES or not 0 <= index < size:
        raise CheckFailed(f"a tree of {size} entries has no entry {index}")
    # RFC 9162 section 2.1.3.2, with its names.
    fn, sn, r = index, size - 1, leaf_hash
    for p in proof:
        if sn == 0:
            raise CheckFailed("the inclusion proof is too long")
        if fn & 1 or fn == sn:
            r = node_hash(p, r)
            while not fn & 1 and fn:
                fn >>= 1
                sn >>= 1
        else:
            r = node_hash(r, p)
        fn >>= 1
        sn >>= 1
    if sn:
        raise CheckFailed("the inclusion proof is too short")
    if r != root:
        raise CheckFailed(f"the inclusion proof of entry {index} does not lead to the root")


@dataclass(frozen=True)
class TlogProof:
    """A proof that fits a file: ``index``, inclusion ``hashes`` and the signed ``checkpoint``.

    Parsing verifies nothing. A verifier opens the checkpoint with the keys that it trusts and then
    calls :func:`verify_inclusion` with the checkpoint's size and root.
    """

    index: int
    hashes: tuple[bytes, ...]
    checkpoint: str  # the signed note, verbatim
    extra: bytes = b""
    """SPEC: Applications MUST NOT implicitly trust the extra data, as it is not authenticated."""

    def encode(self) -> str:
        """The text of a ``.tlog-proof`` file."""
        # SPEC: If no extra data is present, this line is omitted.
        extra = f"extra {encode_base64(self.extra)}\n" if self.extra else ""
        hashes = "".join(f"{encode_base64(digest)}\n" for digest in self.hashes)
        return f"{HEADER}\n{extra}index {self.index}\n{hashes}\n{self.checkpoint}"

    @classmethod
    def parse(cls, data: str | bytes) -> TlogProof:
        """Read a proof.

        :raises DecodeError: on anything that the spec does not allow, or more than 320 KiB
        """
        if len(data) > MAX_PROOF_BYTES:
            raise DecodeError(f"proof of {len(data)} bytes, at most {MAX_PROOF_BYTES} allowed")
        try:
            text = data.decode("utf-8") if isinstance(data, bytes) else data
        except UnicodeError:
            raise DecodeError("a proof is UTF-8 text") from None
        # SPEC: After the inclusion proof lines and an empty line, the checkpoint issued by the log
        # is included verbatim.
        head, separator, checkpoint = text.partition("\n\n")
        lines = head.split("\n", MAX_HASHES + 4)
        # SPEC: The first line MUST be the string c2sp.org/tlog-proof@v1.
        if not separator or lines.pop(0) != HEADER:
            raise DecodeError(f"a proof starts with the line {HEADER}")
        extra = b""
        if lines and lines[0].startswith("extra "):
            extra = decode_base64(lines.pop(0).removeprefix("extra "))
            if len(extra) > MAX_EXTRA_BYTES:
                raise DecodeError(f"{len(extra)} bytes of extra data, at most {MAX_EXTRA_BYTES}")
        # SPEC: The next line MUST start with the string index followed by a space and the
        # zero-based index of the entry in the log, as an ASCII decimal with no leading zeroes.
        if not lines or not lines[0].startswith("index "):
            raise DecodeError("a proof says the index of its entry")
        index = decimal(lines.pop(0).removeprefix("index "))
        hashes = decode_hashes(lines)
        parse_checkpoint(checkpoint)
        return cls(index, hashes, checkpoint, extra)


def decode_hashes(lines: Sequence[str]) -> tuple[bytes, ...]:
    """The hashes of a proof, one base64 line each.

    :raises DecodeError: when there are more than 63, or a line is not the base64 of 32 bytes
    """
    if len(lines) > MAX_HASHES:
        raise DecodeError(f"a proof has at most {MAX_HASHES} hashes")
    return tuple(map(decode_hash, lines))


def _range_hash(reader: HashReader, start: int, end: int) -> bytes:
    """Hash over the leaves from ``start`` to before ``end``, a subtree of RFC 6962's recursion."""
    # The recursion splits off the largest perfect subtree on the left; here they are read left to
    # right and folded from the right.
    parts = []
    while start < end:
        level = (end - start).bit_length() - 1
        parts.append(reader.subtree(level, start >> level))
        start += 1 << level
    digest = parts.pop()
    while parts:
        digest = node_hash(parts.pop(), digest)
    return digest


def _check_hashes(proof: Sequence[bytes]) -> None:
    if len(proof) > MAX_HASHES or any(len(digest) != HASH_BYTES for digest in proof):
        raise CheckFailed(f"a proof has at most {MAX_HASHES} hashes of {HASH_BYTES} bytes")
