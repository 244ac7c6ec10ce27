"""Signed notes: a text, a blank line, and signature lines that anybody may add to.

Spec: https://c2sp.org/signed-note@v1.0.0, Ed25519 keys (signature type 0x01) only. Lines marked
``SPEC:`` quote the sentence that the next statement implements.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import ClassVar, Self

from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.identity import Identity, verify
from artel.protocol.merkle import HASH_BYTES

ED25519_TYPE = b"\x01"
KEY_ID_BYTES = 4
SIGNATURE_BYTES = 64
MAX_NOTE_BYTES = 64 * 1024
"""Far more than the 16 signatures that a verifier has to accept, post-quantum ones included."""
MAX_SIGNATURE_LINES = 100
"""The limit of Go's ``golang.org/x/mod/sumdb/note``."""
_SIGNATURE_PREFIX = "— "
VKEY_HINT = (
    "copy the whole of it, as in NAME+1a2b3c4d+AV9x…=: `artel ledger status --json` and "
    "/ledger/run of a run's page show it"
)


@dataclass(frozen=True)
class NamedKey:
    """A named Ed25519 public key for one type of signature; its text is ``name+keyid+base64``."""

    signature_type: ClassVar[bytes]
    name: str
    public: bytes  # 32 bytes

    def __post_init__(self) -> None:
        if not _valid_name(self.name):
            raise DecodeError(f"{self.name[:80]!r} cannot be a key name")
        if len(self.public) != 32:
            raise DecodeError(f"an Ed25519 public key has 32 bytes, not {len(self.public)}")

    @property
    def key_id(self) -> bytes:
        """The 4 bytes that, with the name, say which key signed."""
        # SPEC: key ID = SHA-256(key name || 0x0A || signature type || public key)[:4]
        tagged = self.name.encode() + b"\n" + self.signature_type + self.public
        return hashlib.sha256(tagged).digest()[:KEY_ID_BYTES]

    def encode(self) -> str:
        """The vkey text that other tools take."""
        key = encode_base64(self.signature_type + self.public)
        return f"{self.name}+{self.key_id.hex()}+{key}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read a vkey.

        :raises DecodeError: when it is malformed, of another type, or its key id is wrong
        """
        name, key_id, data = vkey_parts(text)
        if data[:1] != cls.signature_type:
            raise DecodeError(
                f"the verifier key is of type 0x{data[:1].hex()}, not 0x{cls.signature_type.hex()}",
                VKEY_HINT,
            )
        try:
            key = cls(name, data[1:])
        except DecodeError as error:
            raise DecodeError(error.message, VKEY_HINT) from None
        if key.key_id.hex() != key_id:
            raise DecodeError(
                "the verifier key's id does not belong to its name and key", VKEY_HINT
            )
        return key


class VerifierKey(NamedKey):
    """A key that signs the text of a note (type 0x01), as a log does."""

    signature_type = ED25519_TYPE


@dataclass(frozen=True)
class SignatureLine:
    """One signature under a note, of whatever type its key has."""

    name: str
    key_id: bytes  # 4 bytes
    signature: bytes  # 64 bytes when the key is Ed25519

    def encode(self) -> str:
        data = encode_base64(self.key_id + self.signature)
        return f"{_SIGNATURE_PREFIX}{self.name} {data}\n"


@dataclass(frozen=True)
class Note:
    """A text ending in a newline, and its signature lines in order (not yet verified)."""

    text: str
    signatures: tuple[SignatureLine, ...]

    def encode(self) -> str:
        return self.text + "\n" + "".join(line.encode() for line in self.signatures)


def sign(text: str, name: str, identity: Identity) -> Note:
    """Sign ``text`` (ending in a newline) as key ``name``."""
    _check_characters(text)
    if not text.endswith("\n"):
        raise DecodeError("the text of a note ends in a newline")
    key = VerifierKey(name, identity.public)
    # SPEC: Ed25519 signatures are generated according to RFC 8032 over the note text.
    line = SignatureLine(name, key.key_id, identity.sign(text.encode()))
    return Note(text, (line,))


def parse(data: str | bytes) -> Note:
    """Split a note into its text and its signature lines; nothing is verified.

    :raises DecodeError: on anything that the spec does not allow, or more than 64 KiB
    """
    # SPEC: Verifiers SHOULD apply a maximum limit to the number of signatures in a note (or,
    # equivalently, to the overall size of a note), but MUST accept at least up to 16 signatures.
    if len(data) > MAX_NOTE_BYTES:
        raise DecodeError(f"note of {len(data)} bytes, at most {MAX_NOTE_BYTES} allowed")
    # SPEC: Signed notes MUST be valid UTF-8 and MUST NOT contain any ASCII control characters
    # (those below U+0020) other than newline.
    try:
        text = data.decode("utf-8") if isinstance(data, bytes) else data
        text.encode("utf-8")
    except UnicodeError:
        raise DecodeError("a note is valid UTF-8") from None
    _check_characters(text)
    # SPEC: The note text MAY contain empty lines; the text is separated from the signatures by the
    # last empty line in the note.
    body, separator, tail = text.rpartition("\n\n")
    if not separator or not tail.endswith("\n"):
        raise DecodeError("a note is a text, an empty line and signature lines")
    lines = tail[:-1].split("\n")
    if len(lines) > MAX_SIGNATURE_LINES:
        raise DecodeError(f"note with {len(lines)} signatures, at most {MAX_SIGNATURE_LINES}")
    return Note(body + "\n", tuple(_signature_line(line) for line in lines))


def open_note(data: str | bytes | Note, keys: Iterable[VerifierKey]) -> Note:
    """Verify a note, parsed or not; returned are only the signatures of ``keys`` that verified.

    :raises DecodeError: when it is malformed
    :raises CheckFailed: when a known key's signature fails, or no known key signed
    """
    note = data if isinstance(data, Note) else parse(data)
    known = {(key.name, key.key_id): key for key in keys}
    verified: list[SignatureLine] = []
    for line in note.signatures:
        # SPEC: Verifiers MUST ignore signatures from unknown keys, even if they share a name or ID
        # (but not both) with a known key.
        key = known.get((line.name, line.key_id))
        if key is None:
            continue
        # SPEC: If the key name and ID match a known key, verifiers MUST verify the signature. If a
        # signature from a known key fails to verify, clients SHOULD reject the whole note.
        if not verify(key.public, line.signature, note.text.encode()):
            raise CheckFailed(f"the note's signature by {line.name} does not verify")
        verified.append(line)
    # SPEC: If no signature from a known key verifies successfully, clients MUST reject the note.
    if not verified:
        raise CheckFailed("the note is not signed by any key that is trusted here")
    return Note(note.text, tuple(verified))


def _signature_line(line: str) -> SignatureLine:
    # SPEC: em dash (U+2014), space (U+0020), key name, space, base64-encoded signature, newline.
    if not line.startswith(_SIGNATURE_PREFIX):
        raise DecodeError("a signature line starts with an em dash and a space")
    name, separator, encoded = line.removeprefix(_SIGNATURE_PREFIX).partition(" ")
    if not separator or not _valid_name(name):
        raise DecodeError("a signature line is: em dash, key name, base64")
    data = decode_base64(encoded)
    # SPEC: Signatures are the base64 encoding of 4+n bytes.
    if len(data) <= KEY_ID_BYTES:
        raise DecodeError("a signature is longer than its 4-byte key id")
    return SignatureLine(name, data[:KEY_ID_BYTES], data[KEY_ID_BYTES:])


_NAME = re.compile("[^\\s+\x00-\x1f\ud800-\udfff]+")


def _valid_name(name: str) -> bool:
    # SPEC: Key names MUST be non-empty and MUST NOT contain any Unicode spaces or plus (U+002B)
    # characters.
    # (A command line can hold surrogates, which no UTF-8 text has.)
    return _NAME.fullmatch(name) is not None


_CONTROL = re.compile("[\x00-\x09\x0b-\x1f]")


def _check_characters(text: str) -> None:
    if _CONTROL.search(text):
        raise DecodeError("a note holds no control characters other than newline")


def encode_base64(data: bytes) -> str:
    """Standard base64."""
    return base64.b64encode(data).decode()


def vkey_parts(text: str) -> tuple[str, str, bytes]:
    """Name, key id and bytes (of the type and the key) that a vkey's text spells.

    :raises DecodeError: when it is not written like one
    """
    # The base64 part may hold plus signs, the name may not: split from the left.
    parts = text.split("+", 2) if len(text) <= 1000 else []
    if len(parts) != 3:
        raise DecodeError("a verifier key is written name+keyid+base64", VKEY_HINT)
    try:
        return parts[0], parts[1], decode_base64(parts[2])
    except DecodeError:
        raise DecodeError("the last part of the verifier key is no base64", VKEY_HINT) from None


def decode_base64(text: str) -> bytes:
    """Standard base64 in its one canonical spelling.

    :raises DecodeError: when it is empty, or spelled in any other way
    """
    try:
        data = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not data or encode_base64(data) != text:
        raise DecodeError("a note field is not canonical base64")
    return data


def decode_hash(text: str) -> bytes:
    """The base64 of a hash.

    :raises DecodeError: when it is not that of 32 bytes
    """
    digest = decode_base64(text)
    if len(digest) != HASH_BYTES:
        raise DecodeError(f"a hash is the base64 of {HASH_BYTES} bytes")
    return digest
