"""A witness: cosigns a log's checkpoints as long as each begins with the one before.

Spec: https://c2sp.org/tlog-witness@v1.0.0. A witness remembers one tree head for each log and
never goes back or sideways. Logs that are strangers come through :meth:`Witness.add_checkpoint`
with a consistency proof; a node that holds the whole tree itself uses :meth:`Witness.cosign`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, decimal, parse_checkpoint
from artel.ledger.tlog.cosignature import CosignerKey, cosign
from artel.ledger.tlog.note import Note, SignatureLine, VerifierKey
from artel.ledger.tlog.proof import (
    MAX_HASHES,
    HashReader,
    begins_with,
    decode_hashes,
    verify_consistency,
)
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.identity import Identity
from artel.protocol.merkle import EMPTY_ROOT

if TYPE_CHECKING:
    from artel.ledger.store.heads import HeadStore

MAX_BODY_BYTES = note.MAX_NOTE_BYTES + 45 * MAX_HASHES + 32
"""The longest request: an old size, 63 hashes, an empty line and the longest note."""
TEXT = "text/plain; charset=utf-8"
SIZE = "text/x.tlog.size"


@dataclass(frozen=True)
class Answer:
    """What a witness answers over HTTP."""

    status: int
    content_type: str
    body: bytes


class Witness:
    """Cosigns for the logs in ``origins``, each with the keys that it trusts for that origin.

    :param heads: belongs to this witness key alone; to lose it is to forget what was cosigned
    :param name: cosigner name; an identity has one, as the spec forbids one key for several
    :param clock: POSIX seconds
    """

    def __init__(
        self,
        heads: HeadStore,
        identity: Identity,
        name: str,
        origins: Mapping[str, Sequence[VerifierKey]],
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.key = CosignerKey(name, identity.public)
        self._heads = heads
        self._identity = identity
        self._origins = origins
        self._clock = clock

    def add_checkpoint(self, body: bytes) -> Answer:
        """Answer the request ``POST add-checkpoint``; the caller has bounded the body's length."""
        try:
            old, proof, signed, checkpoint = _parse_request(body)
        except DecodeError as error:
            return _refusal(400, error.message)
        # SPEC: If the checkpoint origin is unknown, the witness MUST respond with a "404 Not Found"
        # HTTP status code.
        keys = self._origins.get(checkpoint.origin)
        if keys is None:
            return _refusal(404, "this witness does not know that log")
        # SPEC: The witness MUST verify the checkpoint signature against the public key(s) it trusts
        # for the checkpoint origin, and it MUST ignore signatures from unknown keys. If none of the
        # signatures verify against a trusted public key, the witness MUST respond with a "403
        # Forbidden" HTTP status code.
        try:
            note.open_note(signed, keys)
        except CheckFailed as error:
            return _refusal(403, error.message)
        # SPEC: The old size MUST be equal to or lower than the checkpoint size. Otherwise, the
        # witness MUST respond with a "400 Bad Request" HTTP status code.
        if old > checkpoint.size:
            return _refusal(400, "the old size is larger than the checkpoint")
        # SPEC: The witness MUST check that the old size matches the size of the latest checkpoint
        # it cosigned for the checkpoint's origin (or zero if it never cosigned a checkpoint for
        # that origin). If it doesn't match, the witness MUST respond with a "409 Conflict".
        size, root = self._latest(checkpoint.origin)
        if old != size:
            return self._conflict(checkpoint.origin)
        # SPEC: The proof MUST be empty if the old size is zero. If the Merkle Consistency Proof
        # doesn't verify, the witness MUST respond with a "422 Unprocessable Entity".
        if old < checkpoint.size or proof or checkpoint.size == 0:
            try:
                verify_consistency(old, checkpoint.size, proof, root, checkpoint.root)
            except CheckFailed as error:
                return _refusal(422, error.message)
        # SPEC: If the old size matches the checkpoint size, the witness MUST check that the root
        # hashes are also identical. If they don't match, the witness MUST respond with a "409
        # Conflict" HTTP status code.
        elif checkpoint.root != root:
            return _refusal(409, "another tree of this size was cosigned before")
        # SPEC: The witness MUST persist the new checkpoint before responding. Note that checking
        # the old size against the latest checkpoint and persisting the new checkpoint must be
        # performed atomically.
        if not self._heads.advance(checkpoint.origin, old, checkpoint.size, checkpoint.root):
            return self._conflict(checkpoint.origin)
        # SPEC: The response body MUST be a sequence of one or more note signature lines.
        return Answer(200, TEXT, self._sign(signed.text).encode().encode())

    def cosign(self, signed: str | bytes, reader: HashReader) -> SignatureLine:
        """Cosign a checkpoint of a log whose whole tree is at hand.

        :param reader: this node's own copy, every entry of which it has verified
        :raises DecodeError: when the note is malformed
        :raises CheckFailed: when the log or its key is not known here, the root is not the one of
            this copy, or the tree does not extend what this node has cosigned before
        """
        checkpoint = parse_checkpoint(signed)
        keys = self._origins.get(checkpoint.origin)
        if keys is None:
            raise CheckFailed(f"{checkpoint.origin[:120]!r} is not a log that is witnessed here")
        text = note.open_note(signed, keys).text
        size, root = self._latest(checkpoint.origin)
        if checkpoint.size < size:
            raise CheckFailed(f"a tree of {size} entries was cosigned before this one")
        if not begins_with(reader, size, root):
            raise CheckFailed(
                f"the copy here does not begin with the tree of {size} entries that was cosigned",
                "keep this home as it is: the log has shown two histories",
            )
        if not begins_with(reader, checkpoint.size, checkpoint.root):
            raise CheckFailed(
                f"the checkpoint's root is not that of the {checkpoint.size} entries here",
                "keep this home as it is: the log has shown two histories",
            )
        if not self._heads.advance(checkpoint.origin, size, checkpoint.size, checkpoint.root):
            raise CheckFailed("another checkpoint was cosigned in the meantime", "try again")
        return self._sign(text)

    def _latest(self, origin: str) -> tuple[int, bytes]:
        return self._heads.witnessed(origin) or (0, EMPTY_ROOT)

    def _conflict(self, origin: str) -> Answer:
        # SPEC: The response body MUST consist of the tree size of the latest cosigned checkpoint in
        # decimal, followed by a newline (U+000A). The response MUST have a Content-Type of
        # text/x.tlog.size.
        size, _ = self._latest(origin)
        return Answer(409, SIZE, b"%d\n" % size)

    def _sign(self, text: str) -> SignatureLine:
        return cosign(self._identity, self.key.name, text, int(self._clock()))


def _parse_request(body: bytes) -> tuple[int, tuple[bytes, ...], Note, Checkpoint]:
    if len(body) > MAX_BODY_BYTES:
        raise DecodeError(f"request of {len(body)} bytes, at most {MAX_BODY_BYTES} allowed")
    # SPEC: The request body MUST be a sequence of an old size line, zero or more consistency proof
    # lines, and an empty line, followed by a checkpoint.
    head, separator, rest = body.partition(b"\n\n")
    if not separator or not head.isascii():
        raise DecodeError("a request is an old size, a proof, an empty line and a checkpoint")
    first, *lines = head.decode("ascii").split("\n", MAX_HASHES + 1)
    # SPEC: The old size line MUST consist of the string old, a single space (0x20), and the tree
    # size of the previous checkpoint encoded as an ASCII decimal with no leading zeroes.
    if not first.startswith("old "):
        raise DecodeError("a request starts with the old size")
    old = decimal(first.removeprefix("old "))
    # SPEC: Each consistency proof line MUST encode a single hash in base64. The client MUST NOT
    # send more than 63 consistency proof lines.
    proof = decode_hashes(lines)
    signed = note.parse(rest)
    return old, proof, signed, Checkpoint.parse(signed.text)


def _refusal(status: int, message: str) -> Answer:
    return Answer(status, TEXT, f"{message}\n".encode())
