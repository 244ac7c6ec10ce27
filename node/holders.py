"""Who may have what this node needs, by the DHT: every node of a run says there what it holds."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from artel.protocol import content
from artel.protocol.net import dht
from artel.protocol.net.dht import HolderRecord
from artel.protocol.net.host import Host

MOST = 16
"""Nodes that are asked for one piece of content, beside those that are named by others."""


async def records(host: Host, run: str) -> dict[str, HolderRecord]:
    """The records of all others in a run; where they are is remembered."""
    found = await host.lookup(dht.nodes_key(run), HolderRecord)
    for peer, record in found.items():
        host.remember(peer, record.addresses)
    return {peer: record for peer, record in found.items() if peer != host.peer_id}


def ranked(
    found: Mapping[str, HolderRecord],
    blob: str,
    named: Sequence[str],
    sure: Callable[[HolderRecord], bool] = lambda _record: False,
    most: int = MOST,
) -> list[str]:
    """Whom to ask for content, in this order: those that say that they have it, those that others
    name, and nodes that may have it; the coordinator comes last, to be spared.

    Different nodes begin with different ones, so that the load spreads.

    :param named: peers that may have it, the coordinator at the end
    :param most: nodes to ask beside those
    """
    *likely, coordinator = named

    def rank(peer: str) -> tuple[bool, bool, str]:
        says_so = peer in found and sure(found[peer])
        return not says_so, peer not in likely, content.content_id(f"{peer} {blob}".encode())

    others = set(found).union(likely) - {coordinator}
    return [*sorted(others, key=rank)[: most + len(likely)], coordinator]
