"""Roots of earlier trees, and the file that carries an inclusion proof.

Spec: https://c2sp.org/tlog-proof. Roots and proofs (:mod:`protocol.merkle`) are computed from a
:class:`~protocol.merkle.HashReader`, whatever it stands on: see :mod:`.tree`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from artel.ledger.tlog.checkpoint import MAX_SIZE, decimal, parse_checkpoint
from artel.ledger.tlog.note import MAX_NOTE_BYTES, decode_base64, decode_hash, encode_base64
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.merkle import EMPTY_ROOT, MAX_HASHES, HashReader, range_hash

MAX_EXTRA_BYTES = 128 * 1024
MAX_PROOF_BYTES = MAX_NOTE_BYTES + 2 * MAX_EXTRA_BYTES
HEADER = "c2sp.org/tlog-proof@v1"


def root_at(reader: HashReader, size: int) -> bytes:
    """Root of the tree over the first ``size`` leaves; asks for at most log2(size) subtrees.

    :raises UsageError: when there cannot be such a tree
    """
    if not 0 <= size <= MAX_SIZE:
        raise UsageError(f"there is no tree of {size} entries")
    return range_hash(reader, 0, size) if size else EMPTY_ROOT


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


@dataclass(frozen=True)
class TlogProof:
    """A proof that fits a file: ``index``, inclusion ``hashes`` and the signed ``checkpoint``.

    Parsing verifies nothing. A verifier opens the checkpoint with the keys that it trusts and then
    calls :func:`~protocol.merkle.verify_inclusion` with the checkpoint's size and root.
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
