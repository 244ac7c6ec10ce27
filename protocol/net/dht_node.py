"""A DHT node that strangers can use without filling it: hivemind's, with bounds.

hivemind keeps whatever it is asked to keep, for as long as it is told to, and remembers every peer
that it ever met. What is different here: only the keys of our run and the directory of public runs
are stored, each peer's own record alone, for minutes; a request has a size, few keys and a rate;
lists of peers have an end. Nothing is cached or handed over for others: owners store their records
again every ``dht.RENEW_S``.

A node's place follows from its peer id, so that nobody chooses one beside a key; but keys can be
made until some lie there (Urdaneta, Pierre and van Steen, "A survey of DHT security techniques",
ACM Computing Surveys 43(2), 2011, sections 3 and 4). So :func:`publish` and :func:`lookup` do not
rest on the nearest peers alone: the coordinator and some members store and are asked, too.
Importing this module imports hivemind.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import msgpack
from google.protobuf.message import DecodeError as BadProtobuf
from hivemind.dht.node import Blacklist, DHTNode
from hivemind.dht.protocol import DHTProtocol
from hivemind.dht.routing import DHTID, RoutingTable
from hivemind.dht.storage import DHTLocalStorage, DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.p2p import P2P, P2PHandlerError, PeerID
from hivemind.proto import dht_pb2
from hivemind.utils.timed_storage import ValueWithExpiration, get_dht_time

from artel.protocol.errors import DecodeError
from artel.protocol.identity import Identity
from artel.protocol.listing import MAX_LISTED
from artel.protocol.net import dht
from artel.protocol.net.limits import RateLimits
from artel.protocol.tasks import within

MAX_RECORDS = 256
"""Records under one key."""
MAX_STRANGERS = 32
"""Of them, records of peers that are no members of the run; in the directory ``MAX_LISTED``."""
MAX_KEY_BYTES = 3 << 19
"""Records under one key, together."""
MAX_REQUEST_BYTES = 1 << 15
MAX_REQUEST_KEYS = 1
CALLS_PER_MINUTE, CALLS_AT_ONCE = 240, 60
"""Of one peer."""
STRANGERS_PER_MINUTE, STRANGERS_AT_ONCE = 1200, 200
"""Calls of all strangers together."""
MAX_PEERS = 1024
"""Peers in the routing table, and peers that are remembered as unreachable."""
KEEPERS = 4
"""Members nearest to a key, and peers that were named to us, that keep its records besides."""
WALK_S = 10.0
"""In which the nearest peers have to be found; what the keepers have is there by then."""

_REQUESTS = {
    f"{DHTProtocol.__name__}.{name}": kind
    for name, kind in (
        ("rpc_ping", dht_pb2.PingRequest),
        ("rpc_store", dht_pb2.StoreRequest),
        ("rpc_find", dht_pb2.FindRequest),
    )
}

_DIRECTORY = DHTID.generate(dht.DIRECTORY)

IsMember = Callable[[str], bool]
RawHandler = Callable[[bytes, PeerID], Awaitable[bytes]]


async def start(p2p: P2P, identity: Identity, keys: Iterable[str], is_member: IsMember) -> DHTNode:
    """A DHT node on a network daemon.

    :param keys: those whose records it stores for others; of other keys it stores nothing
    :param is_member: whether a peer's calls and records come before those of strangers
    """
    node = await PlacedNode.create(
        p2p=p2p,
        node_id=place_of(p2p.peer_id),
        record_validator=dht.SignedRecords(identity),
        cache_locally=False,
        cache_nearest=0,
        cache_on_store=False,
    )
    protocol = node.protocol
    protocol.storage = Records(keys, is_member)
    protocol.cache = Records((), is_member)
    protocol.routing_table = BoundedTable(node.node_id, protocol.bucket_size, 5)
    node.blacklist = Silent(base_time=5.0, backoff_rate=2.0)
    _guard(p2p, is_member)
    return node


async def move(node: DHTNode, p2p: P2P, is_member: IsMember) -> None:
    """Let a DHT node answer and ask through another network daemon than before.

    Its records and its routing table are in our own memory: only the connection is new.
    """
    node.p2p = node.protocol.p2p = p2p
    await node.protocol.add_p2p_handlers(p2p)
    _guard(p2p, is_member)


async def ahead_of(node: DHTNode, peer: PeerID) -> float | None:
    """Seconds by which the clock here is ahead of a peer's (negative: behind), at least: it may
    have answered at any time of the round trip. None when it gives no answer that is one."""
    begun, asked = get_dht_time(), time.monotonic()
    request = dht_pb2.PingRequest(peer=node.protocol.node_info, validate=False)
    try:
        answer = await node.protocol.get_stub(peer).rpc_ping(request)
    except (P2PHandlerError, BadProtobuf):
        return None
    trip = time.monotonic() - asked
    differ = begun + trip / 2 - float(answer.dht_time)
    return math.copysign(max(0.0, abs(differ) - trip / 2), differ)


def place_of(peer: PeerID) -> DHTID:
    """The only DHT id of a peer: the SHA-1 of its peer id's bytes."""
    return DHTID.generate(source=peer.to_bytes())


def keepers(node: DHTNode, key: str, named: Iterable[PeerID], is_member: IsMember) -> list[PeerID]:
    """Who keeps the records of a key, wherever in the DHT its place is.

    :param named: peers that the run's invite or the node's owner named: the coordinator
    """
    near = DHTID.generate(key).xor_distance
    known = sorted(node.protocol.routing_table.uid_to_peer_id.items(), key=lambda at: near(at[0]))
    members = [peer for _, peer in known if is_member(str(peer))]
    chosen = [*[*named][:KEEPERS], *members[:KEEPERS]]
    return [peer for peer in dict.fromkeys(chosen) if peer != node.peer_id]


async def publish(
    node: DHTNode, key: str, value: bytes, expiration: float, keepers: Sequence[PeerID]
) -> bool:
    """Store our own record with the peers nearest to its key, its keepers, and here.

    :returns: whether anybody else says that it has stored it
    """
    protocol, subkey, key_id = node.protocol, str(node.peer_id), DHTID.generate(key)
    name, data = protocol.serializer.dumps(subkey), protocol.serializer.dumps(value)
    plain = DHTRecord(key_id.to_bytes(), name, data, expiration)
    signed = protocol.record_validator.sign_value(plain)
    protocol.storage.store_subkey(key_id, subkey, signed, expiration)
    near, *said = await asyncio.gather(
        node.store(key, value, expiration, subkey=subkey, exclude_self=True),
        *(protocol.call_store(peer, [key_id], [signed], expiration, [subkey]) for peer in keepers),
    )
    return bool(near) or any(reply and all(reply) for reply in said)


async def lookup(node: DHTNode, key: str, keepers: Sequence[PeerID]) -> dict[str, Any]:
    """The newest value of each peer under a key, of all who were asked."""
    protocol, key_id = node.protocol, DHTID.generate(key)
    near, *replies = await asyncio.gather(
        _nearest(node, key), *(protocol.call_find(peer, [key_id]) for peer in keepers)
    )
    newest: dict[str, tuple[float, Any]] = {}

    def take(records: Mapping[Any, ValueWithExpiration], value_of: Callable[[bytes], Any]) -> None:
        for peer, (value, expiration) in records.items():
            if expiration > newest.get(str(peer), (0.0, None))[0]:
                newest[str(peer)] = expiration, value_of(value)

    def opened(signed: bytes) -> Any:
        return protocol.serializer.loads(signed[: -dht.SIGNATURE_BYTES])

    for reply in replies:  # their signatures were checked
        found, _ = (reply or {}).get(key_id, (None, None))
        if found is not None and isinstance(found.value, DictionaryDHTValue):
            take(dict(found.value.items()), opened)
    if near is not None and isinstance(near.value, dict):
        take(near.value, lambda value: value)
    return {peer: value for peer, (_, value) in newest.items()}


async def _nearest(node: DHTNode, key: str) -> Any:
    """What the peers nearest to a key have; None also when that takes long."""
    try:
        return await within(node.get(key, latest=True), WALK_S)
    except TimeoutError:
        return None


def _guard(p2p: P2P, is_member: IsMember) -> None:
    guard, handlers = Guard(is_member), p2p._client.control.unary_handlers
    for name, kind in _REQUESTS.items():
        handlers[name] = guard.around(kind, handlers[name])


class PlacedNode(DHTNode):  # type: ignore[misc]
    """hivemind's, which goes to no place that somebody chose for a peer."""

    def _filter_blacklisted(self, peer_ids: dict[DHTID, PeerID]) -> dict[DHTID, PeerID]:
        found: dict[DHTID, PeerID] = super()._filter_blacklisted(peer_ids)
        return {place: peer for place, peer in found.items() if place == place_of(peer)}


class Records(DHTLocalStorage):  # type: ignore[misc]  # hivemind has no types
    """Records of our keys, one of each peer, bounded in number, bytes and time.

    :param keys: nothing is stored under others
    :param clock: seconds since 1970
    """

    def __init__(
        self,
        keys: Iterable[str],
        is_member: IsMember,
        clock: Callable[[], float] = get_dht_time,
    ) -> None:
        super().__init__()
        self._held: dict[int, dict[str, tuple[bytes, float]]] = {
            DHTID.generate(key): {} for key in keys
        }
        self._is_member, self._clock = is_member, clock

    def store(self, key: int, value: bytes, expiration_time: float, subkey: Any = None) -> bool:
        """Keep a record; False when it is refused, or no newer than the one that is here."""
        return self.store_subkey(key, subkey, value, expiration_time)

    def store_subkey(self, key: int, subkey: Any, value: bytes, expiration_time: float) -> bool:
        """The same; ``subkey`` is the peer that the record speaks of."""
        now, records = self._clock(), self._fresh(key)
        if records is None or not isinstance(subkey, str):
            return False
        if not now < expiration_time <= now + dht.MAX_AHEAD_S:  # refuses NaN too
            return False
        if subkey in records and records[subkey][1] >= expiration_time:
            return False
        strangers = MAX_LISTED if key == _DIRECTORY else MAX_STRANGERS
        if not self._make_room(records, subkey, len(value), strangers):
            return False
        records[subkey] = value, expiration_time
        return True

    def get(self, key: int) -> ValueWithExpiration | None:
        """All records of a key, as hivemind wants them; None without any."""
        records = self._fresh(key)
        if not records:
            return None
        found = DictionaryDHTValue()
        for peer, (value, expiration) in records.items():
            found.store(peer, value, expiration)
        return ValueWithExpiration(found, found.latest_expiration_time)

    def items(self) -> Iterator[tuple[int, ValueWithExpiration]]:
        """Nothing: this is what hivemind would hand over to peers that it meets."""
        return iter(())

    def __contains__(self, key: int) -> bool:
        return bool(self._fresh(key))

    def __len__(self) -> int:
        return sum(len(self._fresh(key) or ()) for key in self._held)

    def _fresh(self, key: int) -> dict[str, tuple[bytes, float]] | None:
        """What is held under a key, without what has expired; None when the key is not ours."""
        records = self._held.get(key)
        if records:
            now = self._clock()
            for peer in [peer for peer, (_, expiration) in records.items() if expiration < now]:
                del records[peer]
        return records

    def _make_room(
        self, records: dict[str, tuple[bytes, float]], peer: str, size: int, most_strangers: int
    ) -> bool:
        """Whether a record fits; for a member, strangers' records give way."""
        others = {name: len(value) for name, (value, _) in records.items() if name != peer}
        strangers = [name for name in others if not self._is_member(name)]
        member = self._is_member(peer)
        if not member and len(strangers) >= most_strangers:
            return False
        while len(others) >= MAX_RECORDS or sum(others.values()) + size > MAX_KEY_BYTES:
            if not member or not strangers:
                return False
            name = strangers.pop()
            del others[name], records[name]
        return True


class BoundedTable(RoutingTable):  # type: ignore[misc]
    """A routing table with an end, and each peer in the place that is its own."""

    def add_or_update_node(self, node_id: int, peer_id: PeerID) -> tuple[int, PeerID] | None:
        """As hivemind's; when it is full, a peer that is to be asked whether it still lives."""
        if node_id != place_of(peer_id):
            return None
        if node_id not in self.uid_to_peer_id and len(self.uid_to_peer_id) >= MAX_PEERS:
            oldest: tuple[int, PeerID] | None = self.buckets[
                self.get_bucket_index(node_id)
            ].request_ping_node()
            return oldest
        replaced: tuple[int, PeerID] | None = super().add_or_update_node(node_id, peer_id)
        return replaced


class Silent(Blacklist):  # type: ignore[misc]
    """Peers that did not answer, forgotten when there are too many."""

    def register_failure(self, peer: PeerID) -> None:
        """Note that a peer did not answer."""
        if len(self.ban_counter) >= MAX_PEERS:
            self.clear()
            self.ban_counter.clear()
        super().register_failure(peer)


class Guard:
    """What a call of another peer has to keep to before hivemind sees it."""

    def __init__(self, is_member: IsMember) -> None:
        self._is_member = is_member
        self._each = RateLimits(CALLS_PER_MINUTE, CALLS_AT_ONCE)
        self._strangers = RateLimits(STRANGERS_PER_MINUTE, STRANGERS_AT_ONCE, 1)

    def around(self, kind: Any, handler: RawHandler) -> RawHandler:
        """``handler``, called only for requests of ``kind`` (a protobuf class) that :meth:`check`
        lets pass."""

        async def guarded(data: bytes, remote: PeerID) -> bytes:
            self.check(kind, data, str(remote))
            try:
                return await handler(data, remote)
            except asyncio.CancelledError:
                # hivemind never forgets a call whose task was cancelled, and peers cancel at will.
                raise ConnectionAbortedError("the caller went away") from None

        return guarded

    def check(self, kind: Any, data: bytes, caller: str) -> None:
        """:raises DecodeError: what the peer asks for is not done; it is told the text"""
        if len(data) > MAX_REQUEST_BYTES:
            raise DecodeError(f"a DHT request has at most {MAX_REQUEST_BYTES} bytes")
        if self._each.take(caller) or (
            not self._is_member(caller) and self._strangers.take("strangers")
        ):
            raise DecodeError("too many DHT requests")
        try:
            request = kind.FromString(data)
        except BadProtobuf:
            raise DecodeError("malformed DHT request") from None
        if len(getattr(request, "keys", ())) > MAX_REQUEST_KEYS:
            raise DecodeError(f"a DHT request has at most {MAX_REQUEST_KEYS} key")
        if any(subkey != msgpack.packb(caller) for subkey in getattr(request, "subkeys", ())):
            raise DecodeError("a peer stores its own record alone")
