"""Listings of public runs: what makes one, and all that does not."""

from __future__ import annotations

from typing import Any

import msgpack
import pytest
from hivemind.dht.routing import DHTID
from hivemind.dht.validation import DHTRecord

from artel.protocol import dsse, listing
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError
from artel.protocol.identity import Identity
from artel.protocol.listing import ListingRecord, newest, open_listing
from artel.protocol.manifest import run_id
from artel.protocol.net import dht
from artel.protocol.offer import SpeedGuess, offer, offer_words
from listing_world import NOW, STRANGER, WAY, public_manifest, record
from manifest_world import COORDINATOR


def test_a_listing_says_what_organiser_and_coordinator_signed() -> None:
    one = open_listing(record(public_manifest(model_licence="MIT")), NOW)
    assert one.run == run_id(public_manifest(model_licence="MIT").encode())
    assert (one.now.round, one.now.members, one.now.loss) == (7, 3, 4.25)
    assert (one.invite.run, one.invite.peers) == (one.run, (WAY,))
    facts = listing.facts(one)
    assert (facts["name"], facts["model_licence"], facts["data_licence"]) == ("tiny", "MIT", "")
    assert open_listing(ListingRecord.model_validate(facts["listing"]), NOW) == one


def with_changed(which: str, old: str, new: str) -> ListingRecord:
    """A listing whose signed text was changed afterwards."""
    true = record()
    envelope = dsse.decode(getattr(true, which).encode())
    payload = envelope.payload.replace(old.encode(), new.encode())
    assert payload != envelope.payload
    forged = dsse.Envelope(envelope.payload_type, payload, envelope.signatures)
    return true.model_copy(update={which: forged.encode().decode()})


WRONG: dict[str, tuple[ListingRecord, str]] = {
    "of a stranger": (record(by=None), "one coordinator that the manifest names"),
    "of an organiser who wants none": (record(public_manifest(public=False)), "does not want"),
    "of another run": (record(run="ab" * 32), "another run"),
    "old": (record(time=NOW - listing.MAX_AGE_S - 1), "too old"),
    "of the future": (record(time=NOW + listing.MAX_AGE_S + 1), "too old"),
    "with another number of members": (with_changed("said", '"members":3', '"members":9'), "verif"),
    "of another name": (with_changed("manifest", '"name":"tiny"', '"name":"huge"'), "verify"),
    "a manifest twice": (record().model_copy(update={"said": record().manifest}), "is no listing"),
    "junk": (ListingRecord(manifest="{}", said="[]"), "canonical"),
}


@pytest.mark.parametrize("which", WRONG)
def test_a_listing_that_is_wrong_is_refused(which: str) -> None:
    wrong, message = WRONG[which]
    with pytest.raises((CheckFailed, DecodeError), match=message):
        open_listing(wrong, NOW)
    assert newest([wrong, record()], NOW) == [open_listing(record(), NOW)]


def test_a_listing_has_an_end() -> None:
    with pytest.raises(ValueError, match="at most 3000"):
        ListingRecord(manifest="", said="x" * 3001)
    with pytest.raises(ValueError, match="at most 4"):
        record(addresses=(WAY,) * 5)
    with pytest.raises(ValueError, match="pattern"):
        record(addresses=("/ip4/192.0.2.1/tcp/4200",))  # names no peer
    way = f"/dns4/{'x' * 118}/tcp/42000/p2p/{COORDINATOR.peer_id}"
    largest = record(addresses=(way,) * 4, http="h" * 300)
    assert len(largest.said) <= listing.MAX_SAID_BYTES
    most = dsse.MAX_ENVELOPE_BYTES + listing.MAX_SAID_BYTES
    assert most + 100 < dht.MAX_RECORD_BYTES


def test_of_one_run_the_newest_counts_a_later_term_first() -> None:
    records = [record(round=n, time=NOW + n % 3, term=n // 3) for n in range(6)]
    assert [one.now.round for one in newest(records, NOW)] == [5]
    assert [one.now.round for one in newest(records[::-1], NOW)] == [5]
    other = record(public_manifest("other"), members=9)
    assert [one.name for one in newest([*records, other], NOW)] == ["other", "tiny"]


def stored(value: bytes, by: Identity, key: str = dht.DIRECTORY) -> DHTRecord:
    name = msgpack.packb(by.peer_id)
    plain = DHTRecord(DHTID.generate(key).to_bytes(), name, msgpack.packb(value), NOW + 60.0)
    return DHTRecord(plain.key, name, dht.SignedRecords(by).sign_value(plain), NOW + 60.0)


def test_in_the_directory_a_peer_stores_a_listing_of_its_own_and_nothing_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(dht.time, "time", lambda: float(NOW))
    holds = dht.SignedRecords(STRANGER).validate
    true = dht.encode(record())
    assert holds(stored(true, COORDINATOR))
    assert not holds(stored(true, STRANGER))  # who may not carry it under a key of theirs
    assert not holds(stored(dht.encode(record(by=None)), STRANGER))
    assert not holds(stored(dht.encode(record(time=NOW - 3600)), COORDINATOR))
    assert not holds(stored(b"junk", COORDINATOR))
    assert holds(stored(b"junk", COORDINATOR, dht.run_key("ab" * 32)))  # other keys as before


# --- what it asks and gives -----------------------------------------------------------------------


def test_an_offer_is_in_numbers_and_says_them() -> None:
    found = offer(public_manifest(), 3, SpeedGuess(slow=100.0, fast=2000.0, cores=4))
    work = 20 * 8 * 128
    assert found["round_tokens"] == (work, work)
    assert found["round_needs_s"] == (work / 2000, work / 100)
    rare, often = found["rounds_a_day"]
    assert rare == 86_400 / 720
    assert often == 86_400 / (2 + work / 2000)
    assert found["tokens_a_day"] == (round(rare * work), round(often * work))
    assert found["credit_a_day"][1] == 100 * found["tokens_a_day"][1]
    assert found["round_down_bytes"] > 0
    words = dict(offer_words(found))
    assert "about 1/4 of what is trained" in words["earns"]
    assert "kWh a day" in words["electricity"]
    assert "too slow" not in words["this machine"]


def test_a_machine_that_is_too_slow_is_told_so() -> None:
    words = dict(offer_words(offer(public_manifest(), 0, SpeedGuess(slow=1.0, fast=2.0, cores=1))))
    assert "it is too slow for this run" in words["this machine"]
    words = dict(offer_words(offer(public_manifest(), 0)))
    assert "a day" not in words
    assert "as large a part" in words["earns"]


def test_who_signs_for_two_is_refused() -> None:
    true = dsse.decode(record().said.encode())
    twice = dsse.sign(listing.PAYLOAD_TYPE, record_body(), COORDINATOR, STRANGER)
    assert len(twice.signatures) == 2
    assert true.signatures[0] in twice.signatures
    with pytest.raises(ArtelError):
        open_listing(record().model_copy(update={"said": twice.encode().decode()}), NOW)


def record_body() -> dict[str, Any]:
    return open_listing(record(), NOW).now.model_dump(mode="json")
