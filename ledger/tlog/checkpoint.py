"""Checkpoints: the signed size and root of the ledger's Merkle tree.

Spec: https://c2sp.org/tlog-checkpoint. The origin line of a run is ``artel/<run id>/term/<n>``; the
log's key has the same name. The term grows when another sequencer takes over (first: 0).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

from artel.ledger.tlog import note
from artel.ledger.tlog.note import VerifierKey, decode_hash, encode_base64
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.identity import Identity

MAX_SIZE = 1 << 53
"""Sizes stay exact in JSON."""
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,15})", re.ASCII)


@dataclass(frozen=True)
class Checkpoint:
    """What a log says about itself: ``size`` leaves whose Merkle root is ``root`` (32 bytes)."""

    origin: str
    size: int
    root: bytes
    extensions: tuple[str, ...] = ()

    def encode(self) -> str:
        """The note text."""
        lines = (self.origin, self.size, encode_base64(self.root), *self.extensions)
        return "".join(f"{line}\n" for line in lines)

    @classmethod
    def parse(cls, text: str) -> Checkpoint:
        """Read a note text.

        :raises DecodeError: when it is no checkpoint body
        """
        # SPEC: The note text is a sequence of at least three non-empty lines, separated by
        # newlines (U+000A).
        lines = text.split("\n")
        if lines.pop() or len(lines) < 3 or not all(lines):
            raise DecodeError("a checkpoint has at least three non-empty lines")
        origin, size, root, *extensions = lines
        # SPEC: The second line is the tree size, the ASCII decimal representation of the number of
        # leaves in the tree, with no leading zeroes. The third line is the root hash, the base64
        # encoding of the root of the RFC 6962 Merkle hash tree at the specified tree size.
        return cls(origin, decimal(size), decode_hash(root), tuple(extensions))


def decimal(text: str) -> int:
    """An ASCII decimal below 2^53 without leading zeros, sign or space.

    :raises DecodeError: on any other text
    """
    if not _DECIMAL.fullmatch(text) or int(text) >= MAX_SIZE:
        raise DecodeError(f"{text[:32]!r} is not a decimal number without leading zeros")
    return int(text)


def origin_of(run: str, term: int = 0) -> str:
    """The log's name: origin line and key name."""
    return f"artel/{run}/term/{term}"


def verifier_keys(origin: str, keys: Iterable[str]) -> list[VerifierKey]:
    """The keys (hex) that may sign a log, as they are called in its notes."""
    return [VerifierKey(origin, bytes.fromhex(key)) for key in keys]


def sign_checkpoint(identity: Identity, origin: str, size: int, root: bytes) -> str:
    """The signed note for a tree of ``size`` leaves with this root.

    The log must never sign two trees of which one does not begin with the other; the caller signs
    only what :class:`ledger.store.store.LedgerStore` asks for.
    """
    return note.sign(Checkpoint(origin, size, root).encode(), origin, identity).encode()


def parse_checkpoint(data: str | bytes) -> Checkpoint:
    """Read a signed note's checkpoint without verifying it.

    :raises DecodeError: when it is malformed
    """
    return Checkpoint.parse(note.parse(data).text)


def open_checkpoint(data: str | bytes, origin: str, keys: Iterable[str]) -> Checkpoint:
    """Verify a signed note against the log's keys (hex) and read it; see :func:`open_signed`."""
    return open_signed(data, origin, keys)[0]


def open_signed(
    data: str | bytes | note.Note, origin: str, keys: Iterable[str]
) -> tuple[Checkpoint, note.Note]:
    """A checkpoint, and its note with no other lines than the log's own, which were verified.

    :raises DecodeError: when it is malformed
    :raises CheckFailed: when no key signed it, a signature fails, or it is of another log
    """
    signed = note.open_note(data, verifier_keys(origin, keys))
    checkpoint = Checkpoint.parse(signed.text)
    if checkpoint.origin != origin:
        raise CheckFailed(f"the checkpoint is of another log: {checkpoint.origin[:120]!r}")
    return checkpoint, signed
