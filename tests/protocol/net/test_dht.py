"""DHT records: anybody may carry them, only their author can write them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import msgpack
import pytest
import pytest_asyncio
from hivemind.dht.routing import DHTID
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import PeerID
from hivemind.proto import dht_pb2
from hivemind.utils import MSGPackSerializer, get_dht_time
from hypothesis import given
from hypothesis import strategies as st

from artel.protocol.errors import DecodeError
from artel.protocol.net import dht, dht_node
from artel.protocol.net.host import Host
from host_world import named, swarm

RUN = "cd" * 32
RUNS = (RUN, "ee" * 32, "ff" * 32)
KEYS = [key for run in RUNS for key in dht.keys_of(run)]
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


def test_a_subkey_has_one_encoding() -> None:
    """Another one would be encoded anew for readers, who would then refuse all of the key."""
    name = ANN.peer_id.encode()
    plain = dataclasses.replace(signed(), subkey=b"\xda\0" + bytes([len(name)]) + name, value=b"x")
    assert msgpack.unpackb(plain.subkey) == ANN.peer_id
    validator = dht.SignedRecords(ANN)
    assert not validator.validate(dataclasses.replace(plain, value=validator.sign_value(plain)))


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
    async with contextlib.AsyncExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:  # the rate of calls has a test of its own
            patch.setattr(dht_node, "CALLS_AT_ONCE", 10_000)
            patch.setattr(dht_node, "STRANGERS_AT_ONCE", 10_000)
            world = swarm(tmp_path_factory.mktemp("hosts"), 3, RUNS)
            three = await stack.enter_async_context(world)
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


# --- what a node stores for others ---

CENTURY_S = 3.2e9


async def store(
    by: Host, at: Host, key: str, subkey: object = "", ahead: float = 60.0, count: int = 1
) -> list[bool] | None:
    """What ``at`` says when a hostile peer asks it to store a record that the peer signed."""
    key_id, expiration = DHTID.generate(key), get_dht_time() + ahead
    subkey = subkey or by.peer_id
    data = MSGPackSerializer.dumps(dht.encode(holder()))
    plain = DHTRecord(key_id.to_bytes(), MSGPackSerializer.dumps(subkey), data, expiration)
    value = dht.SignedRecords(by.identity).sign_value(plain)
    many = [key_id] * count, [value] * count, [expiration] * count, [subkey] * count
    reply = await by._dht.protocol.call_store(PeerID.from_base58(at.peer_id), *many)
    return None if reply is None else list(reply)


@pytest_asyncio.fixture(loop_scope="module")
async def victim(hosts: list[Host], monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Host]:
    """A host that stores nothing yet, and is asked by nobody else meanwhile."""
    first, *_ = hosts
    monkeypatch.setattr(
        first._dht.protocol, "storage", dht_node.Records(KEYS, first._callers.is_member)
    )
    yield first


@pytest.mark.asyncio(loop_scope="module")
async def test_a_hostile_peer_fills_nothing(hosts: list[Host], victim: Host) -> None:
    hostile, honest = hosts[1:]
    stored = victim._dht.protocol.storage
    assert await store(honest, victim, dht.nodes_key(RUN)) == [True]
    for number in range(1000):
        assert await store(hostile, victim, f"junk/{number}", ahead=CENTURY_S) == [False]
    for number in range(60):
        assert await store(hostile, victim, f"more/{number}", ahead=CENTURY_S, count=16) is None
    assert len(stored) == 1
    assert len(victim._dht.protocol.cache) == 0
    assert honest.peer_id in await honest.lookup(dht.nodes_key(RUN), dht.HolderRecord)


@pytest.mark.asyncio(loop_scope="module")
async def test_only_a_peers_own_record_of_our_keys_is_kept_and_for_minutes(
    hosts: list[Host], victim: Host
) -> None:
    _, hostile, honest = hosts
    ours = dht.nodes_key(RUN)
    victim._dht.protocol.storage.store_subkey(
        DHTID.generate(ours), honest.peer_id, b"theirs", get_dht_time() + 60
    )
    assert await store(hostile, victim, ours, ahead=dht.MAX_AHEAD_S + 30) == [False]
    assert await store(hostile, victim, ours, ahead=float("nan")) == [False]
    assert await store(hostile, victim, ours, ahead=CENTURY_S) == [False]
    for subkey in (honest.peer_id, ["a"], 7, {"a": 1}):
        assert await store(hostile, victim, ours, subkey) is None
    whole = DictionaryDHTValue()
    whole.store(hostile.peer_id, b"x", get_dht_time() + 60)
    call = hostile._dht.protocol.call_store
    key, target = DHTID.generate(ours), PeerID.from_base58(victim.peer_id)
    for value in (whole, b"no subkey at all"):
        assert await call(target, [key], [value], [get_dht_time() + 60]) is None
    assert len(victim._dht.protocol.storage) == 1
    assert await store(hostile, victim, ours, ahead=dht.LIFETIME_S) == [True]
    assert await store(hostile, victim, ours, ahead=dht.LIFETIME_S + 1) == [True], "renewed"
    assert await store(hostile, victim, ours, ahead=dht.LIFETIME_S - 1) == [False], "older"
    assert len(victim._dht.protocol.storage) == 2


@pytest.mark.asyncio(loop_scope="module")
async def test_a_record_that_nobody_renews_is_gone(hosts: list[Host], victim: Host) -> None:
    _, owner, _ = hosts
    key = dht.nodes_key(RUN)
    assert await store(owner, victim, key, ahead=1.5) == [True]
    assert len(victim._dht.protocol.storage) == 1
    await asyncio.sleep(1.7)
    assert len(victim._dht.protocol.storage) == 0


@pytest.mark.asyncio(loop_scope="module")
async def test_a_request_is_bounded_before_it_is_parsed(hosts: list[Host]) -> None:
    victim, hostile, _ = hosts
    target, find = PeerID.from_base58(victim.peer_id), hostile._dht.protocol.call_find
    assert await find(target, [DHTID.generate(dht.nodes_key(RUN))]) is not None
    assert await find(target, [DHTID.generate(f"key {n}") for n in range(2)]) is None
    guard = dht_node.Guard(lambda peer: False)
    request = dht_pb2.FindRequest(keys=[bytes(20)]).SerializeToString()
    for data in (bytes(dht_node.MAX_REQUEST_BYTES + 1), b"\xff\xff"):
        with pytest.raises(DecodeError):
            guard.check(dht_pb2.FindRequest, data, ANN.peer_id)
    with pytest.raises(DecodeError, match="too many"):
        for _ in range(dht_node.CALLS_AT_ONCE + 1):
            guard.check(dht_pb2.FindRequest, request, BOB.peer_id)


@given(data=st.binary(max_size=200))
@pytest.mark.parametrize(
    "kind",
    [dht_pb2.PingRequest, dht_pb2.StoreRequest, dht_pb2.FindRequest],
    ids=["ping", "store", "find"],
)
def test_the_guard_survives_any_bytes(kind: Any, data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        dht_node.Guard(lambda peer: True).check(kind, data, ANN.peer_id)


@pytest.mark.asyncio(loop_scope="module")
async def test_a_call_that_its_caller_gives_up_ends_as_an_error() -> None:
    """hivemind forgets calls that fail, and keeps those that are cancelled for ever."""

    async def slow(data: bytes, remote: PeerID) -> bytes:
        await asyncio.sleep(10)
        return b""

    guarded = dht_node.Guard(lambda peer: True).around(dht_pb2.PingRequest, slow)
    task = asyncio.ensure_future(guarded(b"", PeerID.from_base58(ANN.peer_id)))
    await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(ConnectionAbortedError):
        await task


def test_the_store_has_an_end_and_members_come_first() -> None:
    key, now = dht.nodes_key(RUN), 1000.0
    records = dht_node.Records([key], lambda peer: peer.startswith("m"), lambda: now)
    key_id = DHTID.generate(key)
    size = dht_node.MAX_KEY_BYTES // dht_node.MAX_RECORDS
    for number in range(1000):
        records.store_subkey(key_id, f"stranger {number}", bytes(100), now + 60)
    assert len(records) == dht_node.MAX_STRANGERS
    kept = [records.store_subkey(key_id, f"m{n}", bytes(size), now + 60) for n in range(1000)]
    assert sum(kept) == dht_node.MAX_RECORDS
    assert len(records) == dht_node.MAX_RECORDS
    assert not records.store_subkey(key_id, "stranger", b"", now + 60)
    assert records.store_subkey(key_id, "m1", bytes(size), now + 61), "members renew theirs"
    wide = dht_node.Records([key], lambda peer: True, lambda: now)
    for number in range(1000):
        wide.store_subkey(key_id, f"m{number}", bytes(dht.MAX_RECORD_BYTES + 64), now + 60)
    assert sum(len(value) for value, _ in wide._held[key_id].values()) <= dht_node.MAX_KEY_BYTES
    now += 61
    assert len(wide) == 0
    assert len(records) == 1


def test_the_lists_of_peers_have_an_end() -> None:
    def peer(number: int) -> PeerID:
        return PeerID.from_base58(named(f"sybil {number}").peer_id)

    table = dht_node.BoundedTable(DHTID.generate("ours"), 20, 5)
    for number in range(500):
        table.add_or_update_node(DHTID.generate(f"place {number}"), peer(0))
    assert len(table.uid_to_peer_id) == len(table.peer_id_to_uid) == 1
    for number in range(dht_node.MAX_PEERS + 500):
        table.add_or_update_node(DHTID.generate(f"node {number}"), peer(number))
    assert len(table.uid_to_peer_id) <= dht_node.MAX_PEERS
    table.add_or_update_node(DHTID.generate("node 7"), peer(8))
    assert table.get(node_id=DHTID.generate("node 7")) == peer(7)

    unreachable = dht_node.Silent(base_time=5.0, backoff_rate=2.0)
    for number in range(dht_node.MAX_PEERS + 500):
        unreachable.register_failure(peer(number))
    assert len(unreachable.ban_counter) <= dht_node.MAX_PEERS


class _Wide(dht.Record):
    data: bytes
