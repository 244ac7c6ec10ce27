"""DHT records: anybody may carry them, only their author can write them."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator

import msgpack
import pytest
import pytest_asyncio
from hivemind.dht.validation import DHTRecord
from hivemind.utils import get_dht_time
from hypothesis import given
from hypothesis import strategies as st

from host_world import named, swarm
from protocol import dht
from protocol.errors import DecodeError
from protocol.network import Host

RUN = "cd" * 32
ANN, BOB = named("ann"), named("bob")


def holder(**changes: object) -> dht.HolderRecord:
    fields = {"addresses": ["/ip4/127.0.0.1/tcp/1"], "state": "ab" * 32, "shards": b"\5"}
    return dht.HolderRecord.model_validate(fields | changes)


def signed(**changes: object) -> DHTRecord:
    """Ann's record as a peer would be asked to store it."""
    plain = DHTRecord(
        key=b"k" * 20,
        subkey=msgpack.packb(ANN.peer_id),
        value=dht.encode(holder()),
        expiration_time=1000.5,
    )
    value = dht.SignedRecords(ANN).sign_value(plain)
    return dataclasses.replace(plain, **{"value": value} | changes)


# --- the validator ---


def test_a_signed_record_holds_and_gives_its_value_back() -> None:
    validator = dht.SignedRecords(BOB)
    assert validator.validate(signed())
    assert dht.decode(dht.HolderRecord, validator.strip_value(signed())) == holder()


@pytest.mark.parametrize(
    "changes",
    [
        {"subkey": msgpack.packb(BOB.peer_id)},
        {"key": b"x" * 20},
        {"expiration_time": 2000.5},
        {"value": b"\0" + signed().value[1:]},
        {"value": signed().value[:-1] + bytes([signed().value[-1] ^ 1])},
        {"value": signed().value[:-1]},
        {"value": b""},
        {"subkey": b""},
        {"subkey": msgpack.packb([ANN.peer_id])},
        {"subkey": msgpack.packb({"a": 1})},
        {"subkey": msgpack.packb(ANN.peer_id.encode())},
        {"subkey": msgpack.packb(msgpack.ExtType(0x50, b"junk"))},
        {"subkey": msgpack.packb(7)},
        {"subkey": b"\xc1"},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_a_changed_record_is_refused(changes: dict[str, object]) -> None:
    assert not dht.SignedRecords(BOB).validate(signed(**changes))


def test_an_oversize_record_is_refused_although_it_is_signed() -> None:
    validator = dht.SignedRecords(ANN)
    for size, holds in ((dht.MAX_RECORD_BYTES, True), (dht.MAX_RECORD_BYTES + 1, False)):
        plain = dataclasses.replace(signed(), value=bytes(size))
        record = dataclasses.replace(plain, value=validator.sign_value(plain))
        assert validator.validate(record) is holds


@given(subkey=st.binary(max_size=80), value=st.binary(max_size=200))
def test_the_validator_survives_any_bytes(subkey: bytes, value: bytes) -> None:
    assert not dht.SignedRecords(ANN).validate(DHTRecord(b"k" * 20, subkey, value, 1.0))


def test_the_signed_bytes_are_as_documented() -> None:
    """docs/protocol.md, "DHT"; whoever changes this changes the protocol."""
    record = signed()
    parts = [record.key, record.subkey, record.value[:-64], b"1000.5"]
    message = b"artel/dht/v1\0" + b"".join(len(p).to_bytes(4, "big") + p for p in parts)
    assert record.value[-64:] == ANN.sign(message)


# --- values ---


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"\xc1",
        msgpack.packb([]),
        msgpack.packb({"addresses": [], "state": "", "shards": b"", "more": 1}),
        msgpack.packb({"addresses": [], "state": "AB" * 32, "shards": b""}),
        msgpack.packb({"addresses": [], "state": "", "shards": "text"}),
        msgpack.packb({"addresses": ["/a"] * 9, "state": "", "shards": b""}),
        msgpack.packb({"addresses": ["no slash"], "state": "", "shards": b""}),
        msgpack.packb({"addresses": [], "state": "", "shards": bytes(11_000)}),
        bytes(12_001),
        b"\x91" * 5000,
        None,
        7,
    ],
)
def test_a_malformed_value_is_one_kind_of_error(value: object) -> None:
    with pytest.raises(DecodeError):
        dht.decode(dht.HolderRecord, value)


@given(st.sets(st.integers(0, 99)), st.integers(100, 130))
def test_shard_bits_survive(held: set[int], count: int) -> None:
    bits = dht.shard_bits(held, count)
    assert {n for n in range(count + 20) if dht.has_shard(bits, n)} == held


# --- real hosts ---


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[list[Host]]:
    async with swarm(tmp_path_factory.mktemp("hosts"), 3) as three:
        yield three


@pytest.mark.asyncio(loop_scope="module")
async def test_a_record_is_read_by_a_third_host(hosts: list[Host]) -> None:
    _, second, third = hosts
    run = dht.RunRecord(name="a run", addresses=await second.addresses(), http="", round=3)
    assert await second.publish(dht.run_key(RUN), run)
    assert await third.publish(dht.run_key(RUN), run.model_copy(update={"round": 4}))
    for host in hosts:
        found = await host.lookup(dht.run_key(RUN), dht.RunRecord)
        assert {peer: record.round for peer, record in found.items()} == {
            second.peer_id: 3,
            third.peer_id: 4,
        }
        assert found[second.peer_id] == run


@pytest.mark.asyncio(loop_scope="module")
async def test_a_newer_record_takes_the_place_of_the_older(hosts: list[Host]) -> None:
    _, second, third = hosts
    for state in ("aa" * 32, "bb" * 32):
        assert await second.publish(dht.nodes_key(RUN), holder(state=state))
    found = await third.lookup(dht.nodes_key(RUN), dht.HolderRecord)
    assert found[second.peer_id].state == "bb" * 32


@pytest.mark.asyncio(loop_scope="module")
async def test_a_forged_record_is_stored_by_nobody(hosts: list[Host]) -> None:
    first, second, third = hosts
    key, value = dht.nodes_key("ee" * 32), dht.encode(holder())
    # Under another peer's name, and unsigned under one's own.
    expiration = get_dht_time() + 60
    await second._dht.store(key, value, expiration, subkey=third.peer_id)
    second._dht.protocol.record_validator, kept = None, second._dht.protocol.record_validator
    try:
        await second._dht.store(key, value, expiration, subkey=second.peer_id)
    finally:
        second._dht.protocol.record_validator = kept
    assert await first.lookup(key, dht.HolderRecord) == {}
    assert await third.lookup(key, dht.HolderRecord) == {}


@pytest.mark.asyncio(loop_scope="module")
async def test_a_malformed_record_hides_no_other(hosts: list[Host]) -> None:
    first, second, third = hosts
    key = dht.nodes_key("ff" * 32)
    expiration = get_dht_time() + 60
    assert await second._dht.store(key, b"\xc1junk", expiration, subkey=second.peer_id)
    assert await third.publish(key, holder())
    assert await first.lookup(key, dht.HolderRecord) == {third.peer_id: holder()}


@pytest.mark.asyncio(loop_scope="module")
async def test_an_oversize_record_is_refused_before_it_is_sent(hosts: list[Host]) -> None:
    addresses = ["/" + "a" * 199] * 8
    with pytest.raises(DecodeError, match="at most 12000"):
        await hosts[0].publish("key", holder(addresses=addresses, shards=bytes(10_000)))
        await hosts[0].publish("key", _Wide(data=bytes(12_000)))


@pytest.mark.asyncio(loop_scope="module")
async def test_an_unknown_key_is_empty(hosts: list[Host]) -> None:
    assert await hosts[1].lookup("artel/run/none", dht.RunRecord) == {}


class _Wide(dht.BaseModel):
    data: bytes
