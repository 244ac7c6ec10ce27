"""DHT records: anybody may carry them, only their author can write them."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator
from pathlib import Path
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
from artel.protocol.identity import load_or_create
from artel.protocol.listing import MAX_LISTED
from artel.protocol.net import dht, dht_node
from artel.protocol.net.host import Host
from host_world import named, start, swarm, until

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
        value=msgpack.packb(dht.encode(holder())),
        expiration_time=1000.5,
    )
    value = dht.SignedRecords(ANN).sign_value(plain)
    return dataclasses.replace(plain, **{"value": value} | changes)


# --- the validator ---


def test_a_signed_record_holds_and_gives_its_value_back() -> None:
    validator = dht.SignedRecords(BOB)
    assert validator.validate(signed())
    value = msgpack.unpackb(validator.strip_value(signed()))
    assert dht.decode(dht.HolderRecord, value) == holder()


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
        plain = dataclasses.replace(signed(), value=msgpack.packb(bytes(size - 3)))
        record = dataclasses.replace(plain, value=validator.sign_value(plain))
        assert validator.validate(record) is holds


@given(subkey=st.binary(max_size=80), value=st.binary(max_size=200))
def test_the_validator_survives_any_bytes(subkey: bytes, value: bytes) -> None:
    assert not dht.SignedRecords(ANN).validate(DHTRecord(b"k" * 20, subkey, value, 1.0))


def test_a_subkey_has_one_encoding() -> None:
    """Another one would be encoded anew for readers, who would then refuse all of the key."""
    name = ANN.peer_id.encode()
    plain = dataclasses.replace(
        signed(), subkey=b"\xda\0" + bytes([len(name)]) + name, value=b"\xc4\x01x"
    )
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
    where = await second.addresses()
    run = dht.RunRecord(name="a run", addresses=where, http="", round=3, term=0)
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
async def test_a_value_that_nobody_can_read_is_not_stored_and_ends_no_search(
    hosts: list[Host],
) -> None:
    """Signed as it should be, it made hivemind's search fail for all records of the key."""
    first, hostile, third = hosts
    key, protocol = dht.nodes_key(RUN), hostile._dht.protocol
    key_id, expiration = DHTID.generate(key), get_dht_time() + 60
    name = MSGPackSerializer.dumps(hostile.peer_id)
    for junk in (b"\xc1", b"", msgpack.packb(7), msgpack.packb(b"x") + b"more"):
        plain = DHTRecord(key_id.to_bytes(), name, junk, expiration)
        value = dht.SignedRecords(hostile.identity).sign_value(plain)
        for host in (first, third):
            peer = PeerID.from_base58(host.peer_id)
            said = await protocol.call_store(peer, [key_id], [value], expiration, [hostile.peer_id])
            assert list(said) == [False]
    assert await third.publish(key, holder())
    assert third.peer_id in await first.lookup(key, dht.HolderRecord)


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
    assert not wide.store_subkey(DHTID.generate("other"), "m1", b"", now + 60)
    listed = dht_node.Records([dht.DIRECTORY], lambda peer: False, lambda: now)
    for number in range(1000):
        listed.store_subkey(DHTID.generate(dht.DIRECTORY), f"stranger {number}", b"", now + 60)
    assert len(listed) == MAX_LISTED
    assert listed.store_subkey(DHTID.generate(dht.DIRECTORY), "stranger 1", b"", now + 61)
    now += 61
    assert len(wide) == 0
    assert len(records) == 1


def sybil(number: int) -> PeerID:
    return PeerID.from_base58(named(f"sybil {number}").peer_id)


def test_the_lists_of_peers_have_an_end() -> None:
    table = dht_node.BoundedTable(DHTID.generate("ours"), 20, 5)
    for number in range(dht_node.MAX_PEERS + 500):
        table.add_or_update_node(dht_node.place_of(sybil(number)), sybil(number))
    assert len(table.uid_to_peer_id) == len(table.peer_id_to_uid) <= dht_node.MAX_PEERS

    unreachable = dht_node.Silent(base_time=5.0, backoff_rate=2.0)
    for number in range(dht_node.MAX_PEERS + 500):
        unreachable.register_failure(sybil(number))
    assert len(unreachable.ban_counter) <= dht_node.MAX_PEERS


async def test_nobody_chooses_a_place(tmp_path: Path) -> None:
    key = int(DHTID.generate(dht.nodes_key(RUN)))
    table = dht_node.BoundedTable(DHTID.generate("ours"), 20, 5)
    table.add_or_update_node(DHTID(key ^ 1), sybil(1))
    assert len(table.uid_to_peer_id) == 0
    table.add_or_update_node(dht_node.place_of(sybil(1)), sybil(1))
    table.add_or_update_node(DHTID(key ^ 1), sybil(1))
    table.add_or_update_node(dht_node.place_of(sybil(1)), sybil(2))
    assert table.uid_to_peer_id == {dht_node.place_of(sybil(1)): sybil(1)}
    async with swarm(tmp_path, 1, RUNS) as (host,):
        # Nor does anybody else for a peer, in what it answers to a search.
        told = {DHTID(key ^ 1): sybil(1), dht_node.place_of(sybil(2)): sybil(2)}
        assert host._dht._filter_blacklisted(told) == {dht_node.place_of(sybil(2)): sybil(2)}
        ours = PeerID.from_base58(host.peer_id)
        assert host._dht.node_id == dht_node.place_of(ours) == DHTID.generate(ours.to_bytes())
        # The members among those that are known keep records, the nearest of them.
        places = host._dht.protocol.routing_table
        for number in range(20):
            places.add_or_update_node(dht_node.place_of(sybil(number)), sybil(number))
        known = {str(sybil(number)) for number in range(10)}
        named_to_us = [ours, sybil(19)]
        keepers = dht_node.keepers(host._dht, dht.nodes_key(RUN), named_to_us, known.__contains__)
        nearest = sorted(map(sybil, range(10)), key=lambda peer: dht_node.place_of(peer) ^ key)
        assert keepers == [sybil(19), *nearest[: dht_node.KEEPERS]]


async def test_keys_that_were_made_to_lie_beside_a_key_hide_no_record(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five are nearer than all others, say that they store records, and store none."""
    key, place_of = dht.nodes_key(RUN), dht_node.place_of
    homes = [tmp_path / f"hostile-{number}" for number in range(5)]
    made = {load_or_create(home / "node.key").peer_id: number for number, home in enumerate(homes)}

    def placed(peer: PeerID) -> DHTID:  # as if so many keys had been made
        near = made.get(str(peer))
        return place_of(peer) if near is None else DHTID(int(DHTID.generate(key)) ^ near)

    monkeypatch.setattr(dht_node, "place_of", placed)
    async with contextlib.AsyncExitStack() as stack:
        honest = await stack.enter_async_context(swarm(tmp_path, 3, RUNS))
        for home in homes:
            hostile = await start(home, honest[0])
            stack.push_async_callback(hostile.close)
            monkeypatch.setattr(
                hostile._dht.protocol.storage, "store_subkey", lambda *record, **more: True
            )
            for host in honest:
                peer = PeerID.from_base58(host.peer_id)
                await hostile.connect(host.peer_id, await host.addresses())
                await hostile._dht.protocol.call_ping(peer, strict=False)
        tables = [host._dht.protocol.routing_table.peer_id_to_uid for host in honest]
        await until(lambda: all({*map(str, table)} >= made.keys() for table in tables))
        late = await start(tmp_path / "late", honest[0])
        stack.push_async_callback(late.close)
        for host in (*honest, late):  # five are more than a search looks at, as 21 would be
            monkeypatch.setattr(host._dht.protocol, "bucket_size", 4)
        for host in honest:
            assert await host.publish(key, holder())
        for reader in (*honest, late):
            assert {*await reader.lookup(key, dht.HolderRecord)} == {h.peer_id for h in honest}


class _Wide(dht.Record):
    data: bytes
