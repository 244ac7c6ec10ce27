"""Cosignatures: what a witness adds to a checkpoint once it has checked it.

Spec: https://c2sp.org/tlog-cosignature@v1.0.1, the Ed25519 type (0x04). A cosignature says: at this
time, this was the largest consistent tree of this log that I have seen. A node cosigns with the
key of its network identity, under the name ``artel/witness/<peer id>``.
"""

from __future__ import annotations

from collections.abc import Container, Iterable
from contextlib import suppress
from functools import lru_cache

from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint
from artel.ledger.tlog.note import NamedKey, Note, SignatureLine, VerifierKey
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.identity import Identity, public_of, verify

COSIGNATURE_TYPE = b"\x04"
COSIGNATURE_BYTES = 8 + 64
"""SPEC: The signature MUST be a timestamped_signature structure: u64 timestamp, 64 bytes."""
MAX_TIME = (1 << 63) - 1
WITNESS_PREFIX = "artel/witness/"


class CosignerKey(NamedKey):
    """A key that cosigns checkpoints (type 0x04), as a witness does."""

    # SPEC: The key ID for Ed25519 cosignatures MUST be computed as
    # SHA-256(<name> || "\n" || 0x04 || 32-byte Ed25519 cosigner public key)[:4]
    signature_type = COSIGNATURE_TYPE


def witness_name(peer_id: str) -> str:
    """The cosigner name of a node."""
    return WITNESS_PREFIX + peer_id


@lru_cache(maxsize=4096)
def witness_key(peer_id: str) -> CosignerKey:
    """The cosigner key of a node, which its peer id contains.

    :raises DecodeError: when it is no Ed25519 peer id
    """
    return CosignerKey(witness_name(peer_id), public_of(peer_id))


def named_key(line: SignatureLine) -> CosignerKey | None:
    """The key that a node's line names; None for the lines of others."""
    peer = line.name.removeprefix(WITNESS_PREFIX)
    if peer == line.name:
        return None
    with suppress(DecodeError):  # somebody else's name that begins alike
        key = witness_key(peer)
        return key if key.key_id == line.key_id else None
    return None


def node_lines(signed: Note, nodes: Container[str] | None = None) -> list[SignatureLine]:
    """The lines of nodes that verify. A false one says nothing of its node: anybody can add it.

    :param nodes: peer ids of those that are meant; None: whoever has such a line
    """
    found = []
    for line in signed.signatures:
        key = named_key(line)
        if key is None or (nodes is not None and line.name[len(WITNESS_PREFIX) :] not in nodes):
            continue
        with suppress(CheckFailed):
            verify_cosignature(key, line, signed.text)
            found.append(line)
    return found


def parse_key(text: str) -> VerifierKey | CosignerKey:
    """Read a vkey of a log (0x01) or of a cosigner (0x04).

    :raises DecodeError: when it is malformed or of another type
    """
    _, _, data = note.vkey_parts(text)
    return (CosignerKey if data[:1] == COSIGNATURE_TYPE else VerifierKey).parse(text)


def cosign(identity: Identity, name: str, note_text: str, time: int) -> SignatureLine:
    """The signature line of cosigner ``name`` for a checkpoint.

    Whoever calls this has made sure that the checkpoint extends the last one that was cosigned for
    its origin, see :class:`ledger.sync.witness.Witness`.

    :param note_text: the checkpoint's whole body, without signatures
    :param time: POSIX seconds
    :raises DecodeError: when the text is no checkpoint
    """
    Checkpoint.parse(note_text)
    # SPEC: It MUST NOT exceed 2^63 - 1.
    if not 0 < time <= MAX_TIME:
        raise UsageError(f"{time} is not a time to sign", "set this machine's clock")
    key = CosignerKey(name, identity.public)
    signature = identity.sign(cosigned_bytes(note_text, time))
    return SignatureLine(name, key.key_id, time.to_bytes(8, "big") + signature)


def verify_cosignature(key: CosignerKey, line: SignatureLine, note_text: str) -> int:
    """Check one cosignature; returned is its time in POSIX seconds.

    :raises CheckFailed: when it is not a cosignature by this key over this text
    """
    if (line.name, line.key_id) != (key.name, key.key_id):
        raise CheckFailed(f"the signature line is not by the cosigner {key.name}")
    time = time_of(line)
    if time is None or not verify(key.public, line.signature[8:], cosigned_bytes(note_text, time)):
        raise CheckFailed(f"the cosignature by {key.name} does not verify")
    return time


def time_of(line: SignatureLine) -> int | None:
    """The time that a line claims if it is a cosignature; nothing is verified."""
    if len(line.signature) != COSIGNATURE_BYTES:
        return None
    time = int.from_bytes(line.signature[:8], "big")
    return time if time <= MAX_TIME else None


def open_cosigned(
    data: str | bytes,
    log_keys: Iterable[VerifierKey],
    cosigners: Iterable[CosignerKey],
    origin: str | None = None,
) -> tuple[Checkpoint, dict[str, int]]:
    """Verify a checkpoint and its cosignatures.

    :param origin: the log's origin line; by default the name of a log key that signed
    :returns: the checkpoint, and the newest time (POSIX seconds) of each cosigner that signed it
    :raises DecodeError: when it is malformed
    :raises CheckFailed: when no log key signed it, any known key's signature fails, or it is of
        another log
    """
    parsed = note.parse(data)
    signed = note.open_note(parsed, log_keys)
    checkpoint = Checkpoint.parse(parsed.text)
    origins = {line.name for line in signed.signatures} if origin is None else {origin}
    if checkpoint.origin not in origins:
        raise CheckFailed(f"the checkpoint is of another log: {checkpoint.origin[:120]!r}")
    # SPEC: Clients are configured with tuples of (cosigner name, public key, supported cosignature
    # version) and based on that they can compute the expected name and key ID, and ignore any
    # signature lines that don't match the name and key ID.
    known = {(key.name, key.key_id): key for key in cosigners}
    times: dict[str, int] = {}
    for line in parsed.signatures:
        key = known.get((line.name, line.key_id))
        if key is not None:
            time = verify_cosignature(key, line, parsed.text)
            times[key.name] = max(time, times.get(key.name, 0))
    return checkpoint, times


def add_lines(signed: Note, lines: Iterable[SignatureLine]) -> Note:
    """The note with further signature lines, which the caller has verified.

    There is one line for each name and key: of two cosignatures the newer, otherwise the first.

    :raises DecodeError: when that is more lines than a note may have
    """
    kept: dict[tuple[str, bytes], SignatureLine] = {}
    for line in (*signed.signatures, *lines):
        before = kept.setdefault((line.name, line.key_id), line)
        if (time_of(line) or 0) > (time_of(before) or 0):
            kept[line.name, line.key_id] = line
    if len(kept) > note.MAX_SIGNATURE_LINES:
        raise DecodeError(f"{len(kept)} signatures, at most {note.MAX_SIGNATURE_LINES} fit a note")
    return Note(signed.text, tuple(kept.values()))


def cosigned_bytes(note_text: str, time: int) -> bytes:
    """What a cosigner signs at ``time``."""
    # SPEC: The signed message MUST be two newline terminated lines (one header line and one
    # timestamp line) followed by the whole note body of the cosigned checkpoint (including the
    # final newline, but not including any signature lines). The header line MUST be the fixed
    # string cosignature/v1. The timestamp line MUST consist of the string time, a single space and
    # the timestamp encoded as an ASCII decimal with no leading zeroes.
    return f"cosignature/v1\ntime {time}\n{note_text}".encode()
