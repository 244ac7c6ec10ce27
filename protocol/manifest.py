"""The signed manifest: the whole description of a run, and where its name comes from.

A manifest is the organiser's configuration (:class:`RunConfig`) with the facts that preparing it
resolved (shards, tokenizer, layout, initial state) and the keys in charge. Its canonical bytes
(RFC 8785) are signed by the organiser (DSSE), and their SHA-256 is the **run id**.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from artel.protocol import canonical, dsse
from artel.protocol.errors import CheckFailed, DecodeError, ResourceError
from artel.protocol.identity import Identity
from artel.protocol.run_config import RunConfig
from artel.protocol.schema import MAX_EXACT, Conflict, Digest, OptionalDigest, Section, parsed

PAYLOAD_TYPE = "application/vnd.artel.manifest+json"
MAX_MANIFEST_BYTES = 5600
"""Base64 and one signature bring the envelope to at most 8 KiB, the limit of a ledger leaf."""


class TokenizerFacts(Section):
    """The tokenizer that was trained."""

    id: Digest
    """Content id of its tokenizer.json."""
    vocab_size: Annotated[int, Field(ge=257, le=262_144)]
    """Tokens in the vocabulary; a small text can give fewer than asked for."""


class SplitFacts(Section):
    """One split of the prepared data."""

    index: Digest
    """Content id of the shard index."""
    root: Digest
    """RFC 6962 root over the shard ids."""
    shards: Annotated[int, Field(ge=1, le=65_536)]
    """Number of shards."""
    tokens: Annotated[int, Field(ge=1, le=MAX_EXACT)]
    """Tokens in all shards."""


class ContributedTokens(Section):
    """A stretch of the training split, and who gave it."""

    account: OptionalDigest
    """The contributor's account; empty when nobody earns with it."""
    tokens: Annotated[int, Field(ge=1, le=MAX_EXACT)]
    """Its length."""


TokenCounts = Annotated[tuple[Annotated[int, Field(ge=0, le=MAX_EXACT)], ...], Field(max_length=16)]


class DataFacts(Section):
    """The prepared data."""

    train: SplitFacts
    """What is trained on."""
    validation: SplitFacts
    """What is never trained on."""
    dtype: Literal["uint16", "uint32"]
    """Little-endian type of a token."""
    train_by_source: TokenCounts = ()
    """Tokens to train on of each of data.sources; the splits are in the order of the sources."""
    validation_by_source: TokenCounts = ()
    """Held-out tokens of each source."""
    contributed: Annotated[tuple[ContributedTokens, ...], Field(max_length=17)] = ()
    """Who gave the training split, from its first token on; empty: nobody earns with data."""


class ModelFacts(Section):
    """The model that was built."""

    layout: Digest
    """Digest of the ordered names and shapes of the parameters."""
    parameters: Annotated[int, Field(ge=1, le=2**32)]
    """Number of parameters, tied ones once."""


class Manifest(Section):
    """The signed description of a run."""

    version: Literal[1] = 1
    """Version of the protocol."""
    config: RunConfig
    """What the organiser wrote, defaults included."""
    organiser: Digest
    """Public key that signs this manifest."""
    coordinators: Annotated[tuple[Digest, ...], Field(min_length=1, max_length=8)]
    """Public keys of the coordinators, the first one in charge; then the standbys."""
    tokenizer: TokenizerFacts
    """The tokenizer."""
    data: DataFacts
    """The data."""
    model: ModelFacts
    """The model."""
    initial_state: Digest
    """State root of round 0."""

    @model_validator(mode="after")
    def _fits_together(self) -> Manifest:
        """What the organiser resolved must follow from what the organiser wrote."""
        size = self.config.data.shard_tokens
        for split in (self.data.train, self.data.validation):
            if split.shards != -(-split.tokens // size):
                raise Conflict(
                    f"{split.tokens} tokens do not fill {split.shards} shards of {size} tokens"
                )
        for split, counts in (
            (self.data.train, self.data.train_by_source),
            (self.data.validation, self.data.validation_by_source),
        ):
            if counts and (len(counts), sum(counts)) != (
                len(self.config.data.sources),
                split.tokens,
            ):
                raise Conflict("the tokens by source are not those of the split")
        contributed = sum(part.tokens for part in self.data.contributed)
        if contributed not in (0, self.data.train.tokens):
            raise Conflict("the contributed stretches are not the training split")
        if self.coordinators[1:] != self.config.coordination.standbys:
            raise Conflict("the coordinators after the first are not the standbys")
        if self.coordinators[0] in self.coordinators[1:]:
            raise Conflict(
                "the first coordinator is named as a standby, too",
                "take its key out of [coordination] standbys",
            )
        if self.data.dtype != ("uint16" if self.tokenizer.vocab_size <= 1 << 16 else "uint32"):
            raise Conflict("the dtype of the tokens does not fit the vocabulary")
        return self

    def encode(self) -> bytes:
        """Canonical bytes, the payload that is signed and hashed.

        :raises DecodeError: when they exceed the limit of a ledger leaf
        """
        data = canonical.dumps(self.model_dump(mode="json"))
        if len(data) > MAX_MANIFEST_BYTES:
            raise DecodeError(
                f"the manifest takes {len(data)} bytes, at most {MAX_MANIFEST_BYTES} fit",
                "shorten the description, the statement or [model.config]",
            )
        return data

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Parse canonical bytes.

        :raises DecodeError: on anything but the one encoding of a valid manifest
        """
        manifest = parsed(cls, data, "manifest", MAX_MANIFEST_BYTES, floats=True)
        if manifest.encode() != data:
            raise DecodeError(
                "the manifest leaves fields out that must be written",
                "another version of Artel made it: use that version for its run",
            )
        return manifest


def run_id(payload: bytes) -> str:
    """Hex SHA-256 of a manifest's canonical bytes."""
    return hashlib.sha256(payload).hexdigest()


def sign(manifest: Manifest, organiser: Identity) -> dsse.Envelope:
    """Sign a manifest with the key that it names as its organiser.

    :raises CheckFailed: when it names another key
    """
    if manifest.organiser != organiser.key:
        raise CheckFailed("the manifest names another organiser than the key that signs it")
    payload = manifest.encode()
    signature = organiser.sign(dsse.pae(PAYLOAD_TYPE, payload))
    return dsse.Envelope(PAYLOAD_TYPE, payload, ((organiser.key, signature),))


def open_manifest(envelope: bytes) -> tuple[Manifest, str]:
    """Decode and check a signed manifest; returns it with its run id.

    :raises DecodeError: when the bytes are no manifest envelope
    :raises CheckFailed: when the organiser's signature does not verify
    """
    statement = dsse.decode(envelope)
    if statement.payload_type != PAYLOAD_TYPE:
        raise DecodeError(f"{statement.payload_type[:80]!r} is not a manifest")
    manifest = Manifest.decode(statement.payload)
    if statement.verify() != (manifest.organiser,):
        raise CheckFailed("the manifest must be signed by its organiser and nobody else")
    return manifest, run_id(statement.payload)


def read_manifest(path: Path) -> tuple[Manifest, str]:
    """As :func:`open_manifest`, of a file.

    :raises ResourceError: it cannot be read
    """
    try:
        with path.open("rb") as file:
            envelope = file.read(dsse.MAX_ENVELOPE_BYTES + 1)
    except OSError as error:
        raise ResourceError(f"cannot read the manifest {path}: {error.strerror}") from None
    return open_manifest(envelope)
