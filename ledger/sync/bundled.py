"""Entries of a peer that has no signed tree head near enough for a page: read as entry bundles.

A page ends at a signed head and has at most 256 entries. A home that was restored from tiles holds
the newest head alone, so whoever is further behind gets empty pages from it. Tiles
(c2sp.org/tlog-tiles) have no such bound: here they are read up to that one head, and each bundle is
checked against it before the next one is asked for.
"""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from artel.ledger.entries import Genesis, decode
from artel.ledger.sync.fork import PeerSource
from artel.ledger.sync.source import TileHashes, read_bundle
from artel.ledger.tlog.checkpoint import open_checkpoint, origin_of
from artel.ledger.tlog.tiles import ENTRIES, Tile, level_tiles
from artel.protocol.errors import CheckFailed
from artel.protocol.merkle import leaf_hash

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
    source = PeerSource(host, peer, run, asyncio.get_running_loop())
    return await asyncio.to_thread(_read, source, run, store, note)


async def first_entry(host: Host, peer: str, run: str) -> bytes:
    """Entry 0 as the peer serves it, bound to be the run's manifest; raises like the other."""
    source = PeerSource(host, peer, run, asyncio.get_running_loop())
    return await asyncio.to_thread(lambda: _genesis(source, run)[1])


def _read(source: PeerSource, run: str, store: LedgerReader, note: str) -> list[bytes]:
    start = store.size
    genesis = store.genesis if start else _genesis(source, run)[0]
    head = open_checkpoint(note, origin_of(run, store.term), genesis.coordinators)
    if head.size - start > MAX_BUNDLED:
        raise CheckFailed(
            f"the peer has {head.size - start:,} more entries and no signed tree head in between",
            "ask another peer, or take over all of it: artel ledger restore --from PEER",
        )
    tree = TileHashes(source, head.size, head.root)
    leaves: list[bytes] = []
    for bundle in level_tiles(ENTRIES, head.size):
        if bundle.end <= start:
            continue
        for index, leaf in enumerate(read_bundle(source, bundle), bundle.start):
            if leaf_hash(leaf) != tree.subtree(0, index):
                raise CheckFailed(f"entry {index} of the peer is not the one that its head covers")
            if index >= start:
                leaves.append(leaf)
    return leaves


def _genesis(source: PeerSource, run: str) -> tuple[Genesis, bytes]:
    leaf = read_bundle(source, Tile(ENTRIES, 0, 1))[0]
    body = decode(leaf).body
    if not isinstance(body, Genesis) or body.run != run:
        raise CheckFailed("the peer shows the ledger of another run than the invite names")
    return body, leaf
