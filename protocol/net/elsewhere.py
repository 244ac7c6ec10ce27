"""Whether our own key answers elsewhere: another process that runs with it, on any machine.

Nobody can dial itself, so a network daemon with a key that is thrown away does it. It dials where
our own record in the DHT says that we are and we are not: an older process with this key left that,
or another one that runs now. Which of the two it is, the handshake tells, in which whoever answers
proves that it has the key. Where it is this process that answers (a port that a router forwards),
the dialler is seen among our own connections.

Importing this module imports hivemind.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Sequence

from hivemind.p2p import PeerID
from multiaddr import Multiaddr

from artel.protocol.errors import ResourceError
from artel.protocol.identity import load_or_create
from artel.protocol.net import dht
from artel.protocol.net.host import Host
from artel.protocol.net.p2pd import NetworkDaemon, Settings, SocketFolder
from artel.protocol.net.reception import STREAM_ERRORS
from artel.protocol.tasks import within

DIAL_S = 3.0
LOOKS, LOOK_S = 10, 0.05
"""After which a connection that has been made is among those of the one who was dialled."""


async def require_alone(host: Host, run: str) -> None:
    """Go on only when no other process is known to run with this coordinator's key.

    What the DHT says is as old as its records (:data:`dht.RENEW_S`): of two that look, each before
    it publishes its own record, the later one finds the other.

    :raises ResourceError: one runs
    """
    record = (await host.lookup(dht.run_key(run), dht.RunRecord)).get(host.peer_id)
    if record is not None and (where := await answers_at(host, record.addresses)):
        raise ResourceError(
            f"another process runs with this coordinator's key, and answers at {where}",
            "stop one of the two: they would lead one term twice. A copy of node.key takes the "
            "place of a coordinator that is gone, never beside it",
        )


async def answers_at(host: Host, addresses: Sequence[str]) -> str:
    """Which of these addresses another process with this host's key answers at; "" for none."""
    ours = await host.addresses()
    others = [address for address in addresses if address not in ours]
    if not ours or not others:  # without addresses of our own (a daemon that hangs) nobody can tell
        return ""
    folder = SocketFolder()
    try:
        file = folder.path / "node.key"
        dialler = load_or_create(file).peer_id
        settings = Settings(file, ("/ip4/127.0.0.1/tcp/0",))
        daemon = await NetworkDaemon.start(settings, str(folder.path / "p2pd"))
        try:
            for address in others:
                if await _answers(daemon, host, address) and not await _is_seen(host, dialler):
                    return address
        finally:
            await daemon.close()
    finally:
        folder.close()
    return ""


async def _answers(daemon: NetworkDaemon, host: Host, address: str) -> bool:
    client, peer = daemon.p2p._client, PeerID.from_base58(host.peer_id)
    try:
        with contextlib.suppress(*STREAM_ERRORS):  # not connected: each is dialled anew
            await within(client.disconnect(peer), DIAL_S)
        plain = Multiaddr(address.removesuffix(f"/p2p/{host.peer_id}"))
        await within(client.connect(peer, [plain]), DIAL_S)
    except (*STREAM_ERRORS, ValueError, KeyError):
        return False
    return True


async def _is_seen(host: Host, dialler: str) -> bool:
    """Whether it is this host that a peer has just connected to."""
    for _ in range(LOOKS):
        if dialler in await host.connected():
            return True
        await asyncio.sleep(LOOK_S)
    return False
