"""A public run in the directory: what its organiser signed, and how its leader says that it goes.

A listing is the signed manifest, whose hash is the run id, and a second statement by a coordinator
that the manifest names: where it is, which round it is in, how many members there are. So nobody
lists a run in another's name, and none whose organiser does not want that. The second statement
grows old within minutes: an earlier one cannot be shown for long.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any

from pydantic import Field, StringConstraints

from artel.protocol import dsse
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError
from artel.protocol.identity import Identity, peer_id_of
from artel.protocol.invite import Invite
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.messages import Count, Loss, Text
from artel.protocol.schema import Digest, Record, parsed

PAYLOAD_TYPE = "application/vnd.artel.listing+json"
MAX_SAID_BYTES = 3000
"""With the largest manifest still less than a DHT record (``net.dht.MAX_RECORD_BYTES``)."""
MAX_AGE_S = 900
"""Seconds between the clock here and the one of who signed, either way; clocks may be wrong."""
MAX_LISTED = 128
"""Public runs that a peer keeps, and that are read from one."""

_Address = Annotated[str, StringConstraints(max_length=200, pattern="^/[!-~]*/p2p/[!-~]+$")]


class ListingRecord(Record):
    """Both statements, as DSSE envelopes in canonical JSON."""

    manifest: Annotated[str, Field(max_length=dsse.MAX_ENVELOPE_BYTES)]
    said: Annotated[str, Field(max_length=MAX_SAID_BYTES)]


class ListingBody(Record):
    """What changes while a run goes on; signed by the coordinator that leads."""

    run: Digest
    time: Count
    """Seconds since 1970."""
    term: Count
    round: Count
    total: Count
    """Rounds of the run."""
    members: Count
    """Nodes that take part now."""
    loss: Loss | None
    """Newest on the validation split, nats per token."""
    addresses: Annotated[tuple[_Address, ...], Field(min_length=1, max_length=4)]
    """Of the coordinator, with its peer id."""
    http: Text
    """Its page; "" where others could not open it."""


@dataclass(frozen=True)
class Listing:
    """A listing whose signatures hold."""

    run: str
    manifest: Manifest
    now: ListingBody
    record: ListingRecord

    @property
    def name(self) -> str:
        """The run's name, which other runs may have, too."""
        return self.manifest.config.run.name

    @property
    def invite(self) -> Invite:
        """What a node joins with."""
        return Invite(self.run, self.now.addresses)


def listed(leader: Identity, manifest: bytes, body: ListingBody) -> ListingRecord:
    """The record of a run that its coordinator lists.

    :param manifest: the signed manifest
    """
    said = dsse.sign(PAYLOAD_TYPE, body.model_dump(mode="json"), leader)
    return ListingRecord(manifest=manifest.decode(), said=said.encode().decode())


def open_listing(record: ListingRecord, now: float, peer: str = "") -> Listing:
    """Check a listing.

    :param now: seconds since 1970
    :param peer: whose record it has to be; "" for anybody's
    :raises DecodeError: it is malformed
    :raises CheckFailed: a signature does not hold, the run is not public, or the listing is old
    """
    manifest, run = _opened(record.manifest.encode())
    if not manifest.config.run.public:
        raise CheckFailed("the organiser of this run does not want it to be listed")
    said = dsse.decode(record.said.encode())
    if said.payload_type != PAYLOAD_TYPE:
        raise DecodeError(f"{said.payload_type[:80]!r} is no listing")
    body = parsed(ListingBody, said.payload, "listing", MAX_SAID_BYTES, floats=True)
    if body.run != run:
        raise CheckFailed("the listing speaks of another run than its manifest")
    (signer, *more) = said.verify()
    if more or signer not in manifest.coordinators:
        raise CheckFailed("a listing is signed by one coordinator that the manifest names")
    if peer not in ("", peer_id_of(bytes.fromhex(signer))):
        raise CheckFailed("the listing is another coordinator's")
    if abs(now - body.time) > MAX_AGE_S:
        raise CheckFailed("the listing is too old, or of a clock that is wrong")
    return Listing(run, manifest, body, record)


@lru_cache(maxsize=2 * MAX_LISTED)
def _opened(envelope: bytes) -> tuple[Manifest, str]:
    """A manifest never changes, and comes again with each search."""
    return open_manifest(envelope)


def newest(records: Iterable[ListingRecord], now: float) -> list[Listing]:
    """Of each run the newest listing that holds; most members first."""
    found: dict[str, Listing] = {}
    for record in records:
        try:
            one = open_listing(record, now)
        except ArtelError:
            continue  # a stranger wrote it; there is nobody to tell
        before = found.get(one.run)
        if before is None or _age(before) < _age(one):
            found[one.run] = one
    return sorted(found.values(), key=lambda one: (-one.now.members, one.name, one.run))


def _age(listing: Listing) -> tuple[int, int]:
    return listing.now.term, listing.now.time


def facts(listing: Listing) -> dict[str, Any]:
    """A listing for programs and pages; ``listing`` is what all of it can be checked by."""
    config, now = listing.manifest.config, listing.now
    return {
        "run": listing.run,
        "name": listing.name,
        "description": config.run.description,
        "organiser": listing.manifest.organiser,
        "model": config.model.type,
        "parameters": listing.manifest.model.parameters,
        "model_licence": config.run.model_licence,
        "data_licence": config.run.data_licence,
        "admission": config.trust.admission,
        "round": now.round,
        "rounds": now.total,
        "members": now.members,
        "most_members": config.rounds.max_nodes,
        "loss": now.loss,
        "term": now.term,
        "time": now.time,
        "page": now.http,
        "invite": listing.invite.encode(),
        "listing": listing.record.model_dump(mode="json"),
    }
