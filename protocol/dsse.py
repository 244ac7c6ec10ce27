"""Signed statements: DSSE envelopes around canonical JSON.

Spec: DSSE v1.0.2 (secure-systems-lab/dsse). The envelope itself is canonical JSON too, its
signatures are sorted by key, and ``keyid`` is the signer's public key in hex, so that equal
statements with equal signers are equal bytes.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Self

from artel.protocol import canonical
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.identity import Identity, verify

MAX_ENVELOPE_BYTES = 8192
"""Policy limit of a ledger leaf; the C2SP tile format would allow 65,535."""
MAX_SIGNATURES = 40
_SIGNED = rb'{"keyid":"[0-9a-f]{64}","sig":"[^"]*"}'
_SIGNATURE = re.compile(rb'"keyid":"([^"]*)","sig":"([^"]*)"')
# The one form that canonical JSON has for it; types are printable ASCII that is not escaped.
_ENVELOPE = re.compile(
    rb'{"payload":"([^"]*)","payloadType":"([ !#-\[\]-~]*)",'
    rb'"signatures":\[((?:%b(?:,%b){0,%d})?)\]}' % (_SIGNED, _SIGNED, MAX_SIGNATURES - 1)
)

Signing = tuple[str, bytes, bytes]
"""A signature to be checked: the public key in hex, the signature, and the message."""


class Leaf(bytes):
    """The bytes of an envelope, and beside them the document that its payload names by hash.

    Both travel as one, so that nobody goes on with the one alone. A copy that is plain bytes has
    lost the document.
    """

    document: bytes

    def __new__(cls, data: bytes, document: bytes = b"") -> Self:
        leaf = super().__new__(cls, data)
        leaf.document = document
        return leaf


def pae(payload_type: str, payload: bytes) -> bytes:
    """Pre-authentication encoding (DSSE protocol.md, "Signature Definition")."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


@dataclass(frozen=True)
class Envelope:
    """A payload with its signatures: ``{public key hex: 64-byte signature}``."""

    payload_type: str
    payload: bytes
    signatures: tuple[tuple[str, bytes], ...]
    document: bytes = b""
    """What the payload names by its SHA-256, if it names something; not signed as such."""

    def encode(self) -> bytes:
        """Canonical bytes: what is hashed into the ledger; a :class:`Leaf` with a document."""
        # Written out, because a ledger encodes every entry that it takes in. Hex and base64 need no
        # escapes, and the names of the fields are in RFC 8785's order.
        signatures = b",".join(
            b'{"keyid":"%b","sig":"%b"}' % (key.encode(), base64.b64encode(signature))
            for key, signature in self.signatures
        )
        data = b'{"payload":"%b","payloadType":%b,"signatures":[%b]}' % (
            base64.b64encode(self.payload),
            _named(self.payload_type),
            signatures,
        )
        return Leaf(data, self.document) if self.document else data

    @property
    def signers(self) -> tuple[str, ...]:
        """Hex public keys that the envelope names (not yet verified)."""
        return tuple(key for key, _ in self.signatures)

    def signings(self) -> list[Signing]:
        """What :meth:`verify` checks."""
        message = pae(self.payload_type, self.payload)
        return [(key, signature, message) for key, signature in self.signatures]

    def verify(self) -> tuple[str, ...]:
        """Check every signature and return the signers.

        :raises CheckFailed: when any signature does not verify or there is none
        """
        for key, signature, message in self.signings():
            if not verify(bytes.fromhex(key), signature, message):
                raise CheckFailed(f"the signature of {key[:16]}… does not verify")
        if not self.signatures:
            raise CheckFailed("the statement carries no signature")
        return self.signers

    def merged(self, other: Envelope) -> Envelope:
        """The same statement with the signatures of both envelopes."""
        if (self.payload_type, self.payload) != (other.payload_type, other.payload):
            raise CheckFailed("cannot merge the signatures of two different statements")
        both = dict(self.signatures) | dict(other.signatures)
        return replace(self, signatures=tuple(sorted(both.items())))


_named = lru_cache(maxsize=64)(canonical.dumps)


def sign(payload_type: str, body: dict[str, Any], *signers: Identity) -> Envelope:
    """Sign the canonical JSON of ``body`` with each of ``signers``."""
    payload = canonical.dumps(body)
    message = pae(payload_type, payload)
    signatures = {identity.key: identity.sign(message) for identity in signers}
    return Envelope(payload_type, payload, tuple(sorted(signatures.items())))


def hold(signings: Iterable[Signing]) -> bool:
    """Whether all of these signatures verify."""
    return all(verify(bytes.fromhex(key), signature, text) for key, signature, text in signings)


def which_hold(batch: Iterable[Sequence[Signing]]) -> bytes:
    """For each list of signatures 1 if it has some and all of them verify, else 0.

    Lies here because it runs in processes of its own, which start sooner the less they import.
    """
    return bytes(bool(signings) and hold(signings) for signings in batch)


def decode(data: bytes) -> Envelope:
    """Parse an envelope; signatures are *not* checked here, see :meth:`Envelope.verify`.

    :raises DecodeError: on anything but the canonical encoding of an envelope within the limits
    """
    if len(data) > MAX_ENVELOPE_BYTES:
        raise DecodeError(f"envelope of {len(data)} bytes, at most {MAX_ENVELOPE_BYTES} allowed")
    match = _ENVELOPE.fullmatch(data)
    if match is None:
        raise DecodeError("not the canonical encoding of a signed statement")
    payload, payload_type, signed = match.groups()
    pairs = [(key.decode(), _base64(value, 64)) for key, value in _SIGNATURE.findall(signed)]
    if [key for key, _ in pairs] != sorted({key for key, _ in pairs}):
        raise DecodeError("signatures are not sorted by key, or a key signs twice")
    document = data.document if isinstance(data, Leaf) else b""
    return Envelope(payload_type.decode(), _base64(payload), tuple(pairs), document)


def _base64(value: bytes, length: int | None = None) -> bytes:
    """Strict base64: only the canonical encoding is accepted."""
    try:
        data = binascii.a2b_base64(value)
    except binascii.Error:
        raise DecodeError("a field is not base64") from None
    if binascii.b2a_base64(data, newline=False) != value:
        raise DecodeError("a field is not canonical base64")
    if length is not None and len(data) != length:
        raise DecodeError(f"a field has {len(data)} bytes instead of {length}")
    return data
