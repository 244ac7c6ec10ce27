"""Entries of a peer that has no signed tree head near enough for a page: read as entry bundles.

A page ends at a signed head and has at most 256 entries. A home that was restored from tiles holds
the newest head alone, so whoever is further behind gets empty pages from it. Tiles
(c2sp.org/tlog-tiles) have no such bound: here they are read up to that one head, and each bundle is
checked against it before the next one is asked for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from artel.ledger.sync.peers import HostSource
from artel.ledger.sync.tree import Tree, manifest_of
from artel.ledger.tlog.checkpoint import open_checkpoint, origin_of
from artel.protocol.errors import CheckFailed

if TYPE_CHECKING:
    from artel.ledger.store.reading import LedgerReader
    from artel.protocol.net.host import Host

MAX_BUNDLED = 16_384
"""Entries that are taken over at once: 64 bundles, and about 20 MiB of entries as they are in runs.
They are stored and folded as a whole, which takes a second or two."""


async def fetch_bundled(
    host: Host, peer: str, run: str, store: LedgerReader, note: str
) -> list[bytes]:
    """The entries from the end of ``store`` up to the head ``note``, all covered by it.

    :param run: whose ledger it must be; the store may be empty
    :raises DecodeError: the note or a reply is malformed
    :raises CheckFailed: no coordinator of the run signed the note, what the peer serves is not the
        tree of the note, or it is too much for this way
    :raises Unreachable: the peer does not answer
    """
    source = HostSource(host, peer, run)
    return await asyncio.to_thread(_read, source, run, store, note)


async def first_entry(host: Host, peer: str, run: str) -> bytes:
    """Entry 0 as the peer serves it, bound to be the run's manifest; raises like the other."""
    source = HostSource(host, peer, run)
    return (await asyncio.to_thread(manifest_of, source, run))[1]


def _read(source: HostSource, run: str, store: LedgerReader, note: str) -> list[bytes]:
    start = store.size
    genesis = store.genesis if start else manifest_of(source, run)[0]
    head = open_checkpoint(note, origin_of(run, store.term), genesis.coordinators)
    if head.size - start > MAX_BUNDLED:
        raise CheckFailed(
            f"the peer has {head.size - start:,} more entries and no signed tree head in between",
            "ask another peer, or take over all of it: artel ledger restore --from PEER",
        )
    return list(Tree(source, head.size, head.root).leaves(start))
