"""Who stands behind a release: an OpenSSF model signature, and whose key made it.

Spec: OpenSSF Model Signing (the package ``model-signing``) with a bare elliptic-curve key, which
needs no service. Its format knows no Ed25519, so a home has a key of its own for this, and the
Ed25519 key that the ledger knows signs that one (DSSE).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from artel.ledger.store import keyfiles
from artel.protocol import canonical, dsse, identity
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.schema import Digest, Record, parsed

RELEASE_KEY = "release.key"
"""In a home: a P-256 key in PEM, made when it is first needed."""
SIGNATURE, PUBLIC_KEY, VOUCHER = "model.sig", "signer.pub", "signer.json"
"""In a release."""
VOUCHER_TYPE = "application/vnd.artel.release+json"
EXTRA = "pip install 'artel-network[release]'"


class Voucher(Record):
    """What an owner's key says of a release."""

    run: Digest
    state: Digest
    """State root."""
    signer: str
    """The public key of the model signature, in PEM."""


def available() -> bool:
    """Whether this machine can sign and check signatures of models."""
    return importlib.util.find_spec("model_signing") is not None


def public_key(home: Path) -> str:
    """The public half of a home's release key, in PEM; the key is made when there is none.

    :raises UsageError: the key file is damaged
    :raises ResourceError: it cannot be written
    """
    path = home / RELEASE_KEY
    if not path.exists():
        fresh = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PrivateFormat.PKCS8
        plain = serialization.NoEncryption()
        keyfiles.write_new(path, fresh.private_bytes(serialization.Encoding.PEM, form, plain))
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, OSError) as error:
        raise UsageError(
            f"{path} cannot be read as a key: {str(error)[:100]}",
            "move it away: the next export makes another one",
        ) from None
    spki = serialization.PublicFormat.SubjectPublicKeyInfo
    return key.public_key().public_bytes(serialization.Encoding.PEM, spki).decode()


def vouch(home: Path, run: str, state: str, signer: str) -> tuple[str, bytes]:
    """The key that owns a home, in hex, and its word for a signer; two empty ones where it is not
    in the home."""
    for name in (keyfiles.ACCOUNT_KEY, keyfiles.ORGANISER_KEY):
        if (home / name).exists():
            owner = identity.load(home / name)
            payload = canonical.dumps({"run": run, "state": state, "signer": signer})
            signature = owner.sign(dsse.pae(VOUCHER_TYPE, payload))
            envelope = dsse.Envelope(VOUCHER_TYPE, payload, ((owner.key, signature),))
            return owner.key, envelope.encode()
    return "", b""


def open_voucher(data: bytes) -> tuple[str, Voucher]:
    """The key that vouches, in hex, and what it says.

    :raises DecodeError: this is no voucher
    :raises CheckFailed: its signature does not verify
    """
    envelope = dsse.decode(data)
    if envelope.payload_type != VOUCHER_TYPE:
        raise DecodeError(f"{envelope.payload_type[:80]!r} is not the word for a release")
    found = parsed(Voucher, envelope.payload, "word for a release", dsse.MAX_ENVELOPE_BYTES)
    keys = envelope.verify()
    if len(keys) != 1:
        raise CheckFailed("the word for this release is not signed by one key")
    return keys[0], found


def sign(folder: Path, home: Path) -> None:
    """Sign all that a folder holds, into :data:`SIGNATURE` there."""
    from model_signing import hashing, signing

    signature = folder / SIGNATURE
    signing.Config().use_elliptic_key_signer(private_key=home / RELEASE_KEY).set_hashing_config(
        _hashing(hashing, signature)
    ).sign(folder, signature)


def verify(folder: Path) -> None:
    """Check a folder against its signature and the public key beside it.

    :raises CheckFailed: it does not hold
    """
    from model_signing import hashing, verifying

    signature = folder / SIGNATURE
    key = folder / PUBLIC_KEY
    try:
        verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(
            _hashing(hashing, signature)
        ).verify(folder, signature)
    except Exception as error:  # the library has no common base class
        raise CheckFailed(f"the model signature does not hold: {str(error)[:200]}") from None


def _hashing(hashing: Any, signature: Path) -> Any:
    return hashing.Config().set_ignored_paths(paths=[signature], ignore_git_paths=True)
