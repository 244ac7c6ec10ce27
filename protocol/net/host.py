"""One node on the network: libp2p streams and the DHT, on a network daemon that we own.

The transport is hivemind's go-libp2p daemon (Noise, NAT traversal, relays, hole punching) and
hivemind's Kademlia ``DHTNode`` inside our own event loop. Our services are plain libp2p stream
protocols, ``/artel/<service>/1.0.0``, so that any libp2p implementation can take part.

Importing this module imports hivemind and with it torch: about 3 s and 280 MB.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import socket
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HIVEMIND_LOGLEVEL", "ERROR")  # read by hivemind when it is imported
os.environ.setdefault("HIVEMIND_COLORS", "0")

from hivemind.dht.node import DHTNode
from hivemind.p2p import PeerID
from hivemind.p2p.p2p_daemon_bindings.datastructures import PeerInfo
from hivemind.utils import get_dht_time
from multiaddr import Multiaddr

from artel.protocol.errors import DecodeError, ResourceError, Unreachable
from artel.protocol.events import emit
from artel.protocol.identity import Identity, short_peer
from artel.protocol.messages import Kind, Message
from artel.protocol.net import dht, dht_node, wire
from artel.protocol.net.cap import Cap
from artel.protocol.net.gateway import Gateway
from artel.protocol.net.p2pd import (
    Deaths,
    NetworkDaemon,
    Settings,
    SocketFolder,
    pinned,
    raise_open_files,
    reason_of,
)
from artel.protocol.net.reception import STREAM_ERRORS, Reception
from artel.protocol.net.slots import Caller, Callers
from artel.protocol.net.speeds import Speeds
from artel.protocol.net.streams import Stream, Traffic
from artel.protocol.options import check_port_free
from artel.protocol.schema import Record, Schema
from artel.protocol.tasks import within

log = logging.getLogger("artel.network")

OPEN_TIMEOUT_S = 10.0
REQUEST_TIMEOUT_S = 20.0
CLOSE_TIMEOUT_S = 3.0
_MAX_BOOTSTRAP = 32
_KINDS: dict[str, Kind] = {wire.CONTROL: "control", wire.LEDGER: "ledger"}


class Host:
    """Our libp2p node; make one with :meth:`start`, end it with :meth:`close`."""

    def __init__(
        self,
        identity: Identity,
        folder: SocketFolder,
        daemon: NetworkDaemon,
        settings: Settings,
        node: DHTNode,
        callers: Callers,
        uplink: float | None = None,
        downlink: float | None = None,
    ) -> None:
        self.identity = identity
        self.traffic = Traffic()
        self.uplink, self.downlink = Cap(uplink), Cap(downlink)
        self.speeds = Speeds()
        self._folder, self._daemon, self._settings = folder, daemon, settings
        self._dht, self._callers = node, callers
        self._reception = Reception(
            callers, self._stream, lambda peer: self._gateway.disconnect(peer)
        )
        self._gateway = Gateway(daemon.socket, f"{daemon.socket}.streams", self._reception.take)
        self._preferred: set[str] = set()
        self._addresses: dict[str, list[str]] = {}  # where other peers said that they are
        self._moved: set[str] = set()  # those that were not there
        self._bootstrap: dict[str, None] = {}  # addresses of DHT peers, in the order of asking
        self._joined = False
        self._joining: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._joining.set_result(False)
        self._keeping = asyncio.create_task(self._keep())
        self._keeping.add_done_callback(lambda task: task.cancelled() or task.exception())

    @classmethod
    async def start(
        cls,
        identity: Identity,
        key_file: Path,
        *,
        listen: Sequence[str] = ("/ip4/0.0.0.0/tcp/0",),
        announce: Sequence[str] = (),
        bootstrap: Sequence[str] = (),
        keys: Sequence[str] = (),
        uplink: float | None = None,
        downlink: float | None = None,
    ) -> Host:
        """Start the network daemon and join the DHT.

        :param key_file: the file of ``identity``; the daemon reads it itself
        :param listen: multiaddrs to listen on, without a peer id
        :param announce: multiaddrs to tell others instead of those that the daemon sees
        :param bootstrap: full multiaddrs of peers already in the DHT; those that are down are
            skipped, and :meth:`join` can be called again later
        :param keys: DHT keys whose records are stored here for others (:func:`dht.keys_of`)
        :param uplink: bytes per second that all streams together may write; None for no limit
        :param downlink: the same of what they may read
        :raises ResourceError: a port is in use, or the network daemon does not start
        """
        for address in listen:
            check_port_free(address)
        raise_open_files()
        callers = Callers(identity.peer_id)
        settings = Settings(key_file, tuple(listen), tuple(announce))
        async with contextlib.AsyncExitStack() as undo:
            folder = SocketFolder()
            undo.callback(folder.close)
            daemon = await NetworkDaemon.start(settings, str(folder.path / "p2pd"))
            undo.push_async_callback(daemon.close)
            if str(daemon.p2p.peer_id) != identity.peer_id:
                raise ResourceError(f"the network daemon did not take the key {key_file}")
            node = await dht_node.start(daemon.p2p, identity, keys, callers.is_member)
            host = cls(identity, folder, daemon, settings, node, callers, uplink, downlink)
            undo.pop_all()
            undo.push_async_callback(host.close)
            if not announce:
                seen = await host.addresses()
                host._settings = replace(settings, listen=pinned(listen, seen))
            if bootstrap:
                await host.join(bootstrap)
            undo.pop_all()
        return host

    @property
    def peer_id(self) -> str:
        return self.identity.peer_id

    def admit(self, caller: Callable[[str], Caller]) -> None:
        """Say who is who in the run: members' streams, connections and DHT records come first.

        Until then everybody is a stranger, who gets what :mod:`protocol.net.slots` leaves to those.
        """
        self._callers.named = caller

    async def addresses(self) -> list[str]:
        """Full multiaddrs (with the peer id) under which others may reach this host."""
        try:
            visible = await within(self._daemon.p2p.get_visible_maddrs(latest=True), 5)
        except (*STREAM_ERRORS, ValueError):
            return []  # a host that listens nowhere has no address
        # Addresses of other hosts' loopback are useless to everybody else, ours are not to tests.
        return sorted({str(address) for address in visible}, key=_by_reach)[:8]

    async def join(self, bootstrap: Sequence[str], *, ours: bool = True) -> bool:
        """Connect to DHT peers and learn of others through them; True when one answered.

        They are tried again when the network daemon was replaced, and while none has answered.

        :param ours: whether they are of our run: then they keep its records
        """
        reached = False
        known = [*bootstrap, *self._bootstrap] if ours else [*self._bootstrap, *bootstrap]
        self._bootstrap = dict.fromkeys(known[:_MAX_BOOTSTRAP])
        for address in bootstrap:
            peer = peer_of(address)
            if peer == self.peer_id or not await self.connect(peer, [address]):
                continue
            try:
                await within(
                    self._dht.protocol.call_ping(PeerID.from_base58(peer), strict=False), 10
                )
                reached = True
            except STREAM_ERRORS as error:
                emit(log, "dht.ping_failed", logging.DEBUG, peer=peer, error=error)
        self._joined = reached
        return reached

    def remember(self, peer: str, addresses: Sequence[str]) -> None:
        """Note where a peer is; it is dialled there when a stream to it is first wanted."""
        if addresses and peer != self.peer_id:
            self._addresses[peer] = list(addresses)
            self._moved.discard(peer)

    def lost(self, peers: Iterable[str]) -> list[str]:
        """Those of these peers of which it is not known where they are, or that were not there."""
        known = {self.peer_id, *self._addresses} - self._moved
        return [peer for peer in dict.fromkeys(peers) if peer not in known]

    async def connect(self, peer: str, addresses: Sequence[str]) -> bool:
        """Open a connection to a peer under one of its addresses; True when there is one."""
        plain = []
        for address in addresses:
            with contextlib.suppress(ValueError, KeyError):
                plain.append(Multiaddr(address.removesuffix(f"/p2p/{peer}")))
        try:
            connecting = self._daemon.p2p._client.connect(PeerID.from_base58(peer), plain)
            await within(connecting, OPEN_TIMEOUT_S)
        except (*STREAM_ERRORS, ValueError) as error:
            emit(log, "peer.unreachable", logging.DEBUG, peer=peer, error=error)
            return False
        return True

    async def ahead_of(self, peer: str) -> float | None:
        """Seconds by which the clock here is ahead of a peer's; None when it does not answer."""
        try:
            if known := self._addresses.get(peer):
                await self.connect(peer, known)
            return await within(dht_node.ahead_of(self._dht, PeerID.from_base58(peer)), 3)
        except (*STREAM_ERRORS, ValueError):
            return None

    async def connected(self) -> dict[str, list[str]]:
        """The peers that are connected now, and the addresses of their connections."""
        try:
            known = await within(self._daemon.p2p.list_peers(), 5)
        except STREAM_ERRORS:
            return {}
        return {str(info.peer_id): [str(address) for address in info.addrs] for info in known}

    async def dial_back(self, peer: str, addresses: Sequence[str]) -> bool:
        """Whether a connected peer accepts new connections from outside.

        Only an address at the host that its present connection comes from is dialled, so that
        nobody can make us knock on other people's doors.
        """
        known = await self.connected()
        from_hosts = {address.split("/")[2] for address in known.get(peer, [])}
        for address in addresses:
            parts = address.split("/")
            if len(parts) < 5 or parts[3] != "tcp" or parts[2] not in from_hosts:
                continue
            try:
                _, writer = await within(asyncio.open_connection(parts[2], int(parts[4])), 3)
            except (OSError, TimeoutError, ValueError, OverflowError):
                continue
            writer.close()
            return True
        return False

    # --- streams ---------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def open(
        self, peer: str, service: str, *, kind: Kind | None = None
    ) -> AsyncIterator[Stream]:
        """A fresh stream to a service of a peer.

        :param kind: what its bytes are counted as; None for what the service says
        :raises Unreachable: the peer does not answer, or the stream breaks inside the block
        """
        sock = None
        try:
            try:
                sock = await self._dial(peer, service)
            except STREAM_ERRORS:
                # Not connected yet, or not any more: try where the peer said that it is.
                known = self._addresses.get(peer)
                if not known or not await self.connect(peer, known):
                    self._moved.add(peer)
                    raise
                sock = await self._dial(peer, service)
            yield self._stream(sock, peer, service, kind)
        except STREAM_ERRORS as error:
            emit(log, "stream.failed", logging.DEBUG, peer=peer, service=service, error=error)
            raise Unreachable(
                f"peer {short_peer(peer)} does not answer ({reason_of(error)})"
            ) from None
        finally:
            if sock is not None:
                sock.close()

    def _stream(
        self, sock: socket.socket, peer: str, service: str, kind: Kind | None = None
    ) -> Stream:
        return Stream(
            sock,
            peer,
            kind or _KINDS.get(service, "other"),
            self.traffic,
            self.uplink,
            self.downlink,
            content=service == wire.CONTENT,
        )

    async def _dial(self, peer: str, service: str) -> socket.socket:
        try:
            name = PeerID.from_base58(peer).to_bytes()
        except ValueError:
            raise Unreachable(f"peer {peer[:64]!r} does not answer: that is no peer id") from None
        return await self._gateway.dial(name, service)

    async def ask(
        self, peer: str, service: str, request: Message, timeout: float = REQUEST_TIMEOUT_S
    ) -> Message:
        """One request and its reply on a stream of its own.

        :raises Unreachable: no reply in ``timeout`` seconds
        :raises Refused: the peer says no
        :raises DecodeError: the reply is malformed
        """
        try:
            async with asyncio.timeout(timeout), self.open(peer, service) as stream:
                return await wire.ask(stream, request)
        except TimeoutError:
            raise Unreachable(
                f"peer {short_peer(peer)} did not answer {request.KIND} in {timeout:.0f} s"
            ) from None

    async def serve(self, service: str, handler: wire.Handler) -> None:
        """Answer requests to ``service``: one request per stream, bounded streams per peer.

        A later handler takes the place of an earlier one.
        """
        is_new = service not in self._reception.handlers
        self._reception.handlers[service] = handler
        if is_new:
            await self._gateway.serve(service)

    async def _disconnect(self, peer_id: bytes) -> None:
        await self._gateway.disconnect(peer_id)

    # --- DHT -------------------------------------------------------------------------------------

    async def publish(self, key: str, record: Record) -> bool:
        """Store our own record under ``key`` for ``dht.LIFETIME_S`` seconds."""
        value = dht.encode(record)
        if len(value) > dht.MAX_RECORD_BYTES:
            raise DecodeError(f"DHT record of {len(value)} bytes, at most {dht.MAX_RECORD_BYTES}")
        expiration = get_dht_time() + dht.LIFETIME_S
        try:
            storing = dht_node.publish(self._dht, key, value, expiration, self._keepers(key))
            return await within(storing, 15)
        except STREAM_ERRORS as error:
            emit(log, "dht.store_failed", logging.DEBUG, key=key, error=error)
            return False

    async def lookup(self, key: str, schema: type[Schema]) -> dict[str, Schema]:
        """Valid records under ``key`` by peer id; malformed ones are left out."""
        try:
            found = await within(dht_node.lookup(self._dht, key, self._keepers(key)), 15)
        except STREAM_ERRORS as error:
            emit(log, "dht.get_failed", logging.DEBUG, key=key, error=error)
            return {}
        records: dict[str, Schema] = {}
        for peer, value in found.items():
            with contextlib.suppress(DecodeError):
                records[peer] = dht.decode(schema, value)
        return records

    def _keepers(self, key: str) -> list[PeerID]:
        named = [PeerID.from_base58(peer_of(address)) for address in self._bootstrap]
        return dht_node.keepers(self._dht, key, named, self._callers.is_member)

    # --- life ------------------------------------------------------------------------------------

    async def watch(self) -> None:
        """Ends only when the network daemon has been given up.

        :raises ResourceError: always: it died, or hung, too often
        """
        await asyncio.shield(self._keeping)

    async def _keep(self) -> None:
        """Replace the network daemon whenever it dies or hangs; owns ``_daemon``."""
        deaths = Deaths()
        while True:
            reason = await self._daemon.ends(self._look_after)
            while reason:
                await deaths.another(reason)
                reason = await self._replace()

    async def _look_after(self, connected: Sequence[PeerInfo] = ()) -> None:
        """What is to be done every few seconds while the daemon lives.

        :param connected: its connections
        """
        await self._prefer_members(connected)
        if self._bootstrap and not self._joined and self._joining.done():
            self._joining = asyncio.ensure_future(self.join(tuple(self._bootstrap)))

    async def _replace(self) -> str:
        """A new daemon in place of one that died: the same peer, addresses, services and DHT.

        :returns: why it does not start, or ""
        """
        await self._daemon.close()
        try:
            for address in self._settings.listen:
                check_port_free(address)
            self._daemon = await NetworkDaemon.start(self._settings, self._daemon.socket)
            # Its records and its routing table are in our own memory: only the connection is new.
            moving = dht_node.move(self._dht, self._daemon.p2p, self._callers.is_member)
            await self._daemon.during(moving, REQUEST_TIMEOUT_S)
            for service in self._reception.handlers:
                await self._daemon.during(self._gateway.serve(service), REQUEST_TIMEOUT_S)
        except ResourceError as error:
            return error.message
        except STREAM_ERRORS:
            await self._daemon.close()
            return self._daemon.why()
        emit(log, "network.restarted", logging.WARNING)
        self._joined = False
        await self._look_after()
        return ""

    async def _prefer_members(self, connected: Sequence[PeerInfo]) -> None:
        """Tell the daemon whose connections to keep; it forgets that when they end."""
        peers = {str(info.peer_id) for info in connected}
        members = {peer for peer in peers if self._callers.is_member(peer)}
        with contextlib.suppress(*STREAM_ERRORS):  # a daemon that hangs is found out elsewhere
            for peer in members ^ (self._preferred & peers):
                name = PeerID.from_base58(peer).to_bytes()
                await self._gateway.prefer(name, wanted=peer in members)
            self._preferred = members

    async def close(self) -> None:
        """End the DHT node and the daemon, and remove its sockets."""
        self._keeping.cancel()
        self._joining.cancel()
        await asyncio.gather(self._keeping, self._joining, return_exceptions=True)
        await self._reception.close()
        self._gateway.close()
        with contextlib.suppress(*STREAM_ERRORS):
            # It tells the daemon, and would wait for ever when that has died.
            await within(self._dht.shutdown(), CLOSE_TIMEOUT_S)
        await self._daemon.close()
        self._folder.close()


def peer_of(address: str) -> str:
    """The peer id at the end of a full multiaddr.

    :raises DecodeError: when there is none
    """
    head, mark, peer = address.rpartition("/p2p/")
    if not (head and mark and peer):
        raise DecodeError(f"the address {address[:80]!r} names no peer", "it must end in /p2p/PEER")
    return peer


def _by_reach(address: str) -> tuple[bool, str]:
    return ("/127.0.0.1/" in address or "/::1/" in address, address)
