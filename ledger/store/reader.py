"""Reading a ledger database: entries, notes, and the Merkle tree over them.

What a :class:`LedgerReader` says about its size comes from one immutable :class:`LedgerHead`, which
is replaced when an append is durable. So nothing here waits for an append that is under way, and
whoever asks for the size, the root and a proof one after the other can name the size they mean.

Opening a ledger reads the right edge of its tree, and holds it against the newest tree head and
that against the coordinators' key. Every entry and every tile is then compared with the hash above
it when it is read, up to that edge: opening costs the same for any length, and no byte that changed
on the disk gets to anybody.
"""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

from artel.ledger.entries import Entry, Genesis, decode, entry_id
from artel.ledger.entries.documents import attached, path_of
from artel.ledger.entries.records import Term, signers_in
from artel.ledger.store import database
from artel.ledger.store.database import storage_errors
from artel.ledger.store.packing import unpack
from artel.ledger.store.published import require_file, term_of
from artel.ledger.tlog import edge, tiles
from artel.ledger.tlog import note as notes
from artel.ledger.tlog.checkpoint import Checkpoint, open_checkpoint, origin_of, parse_checkpoint
from artel.ledger.tlog.edge import Edge
from artel.ledger.tlog.note import KEY_ID_BYTES, SIGNATURE_BYTES, SignatureLine
from artel.ledger.tlog.tiles import TILE_HEIGHT, TILE_WIDTH, Tile
from artel.ledger.tlog.tree import Tiles, TileTree
from artel.protocol.errors import CheckFailed, DecodeError, UsageError
from artel.protocol.merkle import EMPTY_ROOT, HASH_BYTES, leaf_hash

_READ_ROWS = 256
_TERMS = (  # damaged rows can hold anything
    "SELECT number, begins, leader FROM terms WHERE length(leader) = 64 ORDER BY number"
)
WRONG_TILE = "stop and run `artel ledger verify`; restore the home from a backup or another node"


@dataclass(frozen=True)
class LedgerHead:
    """A ledger as of one append."""

    tree: TileTree
    root: bytes = EMPTY_ROOT
    note: str = ""
    genesis: Genesis | None = None

    @property
    def size(self) -> int:
        """Number of entries."""
        return self.tree.size


class LedgerReader:
    """An append-only log and its tree, for any thread; see :class:`.store.LedgerStore`."""

    def __init__(self, path: Path, connection: sqlite3.Connection) -> None:
        self.path = path
        self.term = 0
        """Of the newest head."""
        self._reader = connection
        self._reading = threading.RLock()  # guards the connection
        self._tiles = Tiles(self._stored_tile, WRONG_TILE)
        self._head = LedgerHead(TileTree(Edge(), self._tiles))

    @classmethod
    @contextmanager
    def of(cls, home: Path, run: str | None = None) -> Iterator[LedgerReader]:
        """The ledger of a home as it is now, whoever goes on writing it; nothing is changed.

        :param run: the run that it must belong to (when it is not empty)
        :raises UsageError: when there is none, or it is of another run
        :raises CheckFailed: when it is damaged
        """
        path = require_file(home)
        with database.reading(path, database.tables()) as connection:
            reader = cls(path, connection)
            reader.term = reader.load()
            reader._require_run(run)
            yield reader

    def load(self) -> int:
        """Take what the newest tree head signs as the ledger; returns the head's term.

        :raises DecodeError: when that head or the manifest is malformed
        :raises CheckFailed: when the edge of the tree is not the one that is signed
        """
        with storage_errors(self.path):
            newest = "SELECT max(size) FROM checkpoints"
            (covered,) = self._reader.execute(newest).fetchone()
            query = "SELECT coalesce(max(idx) + 1, 0) FROM entries"
            (size,) = self._reader.execute(query).fetchone()
        if (covered or 0) != size:
            raise CheckFailed(
                f"{self.path} holds {size} entries, its newest checkpoint covers {covered or 0}"
            )
        if not size:
            return 0
        tree = TileTree(Edge.of(size, self._edge_hashes), self._tiles)
        self._head = LedgerHead(tree, tree.edge.root())
        genesis = first_entry(self.leaf(0))
        self._head = LedgerHead(tree, self.root, genesis=genesis)
        note = self.note_at(size)
        self._head = LedgerHead(tree, self.root, note, genesis)
        return term_of(parse_checkpoint(note).origin, genesis.run) or 0

    def _edge_hashes(self, level: int, index: int, count: int) -> Iterator[bytes]:
        if level == 0:
            yield from map(leaf_hash, self._stored(index, index + count))
        else:
            for place in range(index, index + count):
                yield edge.pyramid(self._stored_tile(Tile(level - 1, place)))[TILE_HEIGHT]

    def _require_run(self, run: str | None) -> None:
        genesis = self._head.genesis
        if run is not None and genesis is not None and genesis.run != run:
            raise UsageError(
                f"{self.path} is the ledger of run {genesis.run[:12]}…, not {run[:12]}…",
                "use another --home for each run",
            )

    # --- the newest head --------------------------------------------------------------------------

    @property
    def size(self) -> int:
        """Number of entries."""
        return self._head.size

    @property
    def root(self) -> bytes:
        """Merkle root over all entries, 32 bytes."""
        return self._head.root

    @property
    def latest_note(self) -> str:
        """The newest checkpoint as a signed note; empty for an empty ledger."""
        return self._head.note

    @property
    def genesis(self) -> Genesis:
        """Entry 0.

        :raises CheckFailed: when the ledger is empty
        """
        genesis = self._head.genesis
        if genesis is None:
            raise CheckFailed(f"the ledger {self.path} is still empty")
        return genesis

    @property
    def origin(self) -> str:
        """The log's name, in its present term."""
        return origin_of(self.genesis.run, self.term)

    # --- terms ------------------------------------------------------------------------------------

    def terms(self) -> list[Term]:
        """Who has led the run, as the entries have it, the last one does; none without effects."""
        return [Term(*row) for row in self.query(_TERMS)]

    def leaders(self) -> list[str]:
        """Keys (hex) that may lead: those of the manifest's coordinators, and of whoever has led
        since. Whose heads of a term count says :meth:`signers`."""
        named = self.genesis.coordinators
        return [*named, *{term.leader for term in self.terms()}.difference(named)]

    def signers(self, term: int | None) -> list[str]:
        """Keys (hex) by which a head of one term counts: its leader's (see :func:`signers_in`).

        Without effects it is not known who led the later ones: any coordinator of the manifest.
        """
        terms, named = self.terms(), self.genesis.coordinators
        return signers_in(term, terms) if terms else list(named if term else named[:1])

    def last_of(self, term: int) -> str:
        """The newest checkpoint of a term, as a signed note; "" when there is none."""
        query = "SELECT coalesce(max(size), 0) FROM checkpoints WHERE term = ?"
        ((size,),) = self.query(query, (term,))
        return self.note_at(size)

    # --- entries and notes ------------------------------------------------------------------------

    def leaf(self, index: int) -> bytes:
        """The bytes of one entry.

        :raises UsageError: when there is no such entry
        """
        found = next(self.leaves(index, index + 1), None) if index >= 0 else None
        if found is None:
            raise UsageError(f"there is no entry {index}; the ledger has {self.size}")
        return found

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """Entries ``start`` to ``stop`` (default: all that are there now) with their documents.

        :raises CheckFailed: when one is not what was signed
        """
        return attached(self.bare(start, stop), self._named)

    def _named(self, name: str) -> bytes:
        try:
            return self.document(name)
        except UsageError:
            raise database.damaged(self.path, f"{path_of(name)} is missing") from None

    def document(self, name: str) -> bytes:
        """The document with this SHA-256 (hex).

        :raises UsageError: when no entry names such a one
        :raises CheckFailed: when it is not what was stored
        """
        rows = self.query("SELECT content FROM documents WHERE id = ?", (bytes.fromhex(name),))
        if not rows:
            raise UsageError(f"there is no {path_of(name)}")
        ((content,),) = rows
        if not isinstance(content, bytes) or sha256(content).hexdigest() != name:
            raise database.damaged(self.path, f"{path_of(name)} is another")
        return content

    def bare(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
        """The same entries without their documents, a tile at a time."""
        tree = self._head.tree
        stop = tree.size if stop is None else min(stop, tree.size)
        first = max(0, start)
        while first < stop:
            tile = tiles.tile_at(0, first // TILE_WIDTH, tree.size)
            last = min(stop, tile.end)
            page = self._stored(first, last)
            hashes = b"".join([sha256(b"\x00" + leaf).digest() for leaf in page])
            within = slice((first - tile.start) * HASH_BYTES, (last - tile.start) * HASH_BYTES)
            if hashes != tree.hashes(tile)[within]:
                raise database.damaged(self.path, f"an entry from {first} to {last - 1} is another")
            yield from page
            first = last

    def _stored(self, start: int, stop: int) -> list[bytes]:
        """Entries as they are stored, not yet compared with anything."""
        query = "SELECT packed FROM entries WHERE idx >= ? AND idx < ? ORDER BY idx"
        with self._reading, storage_errors(self.path):
            rows = self._reader.execute(query, (start, stop)).fetchall()
        if len(rows) != stop - start or not all(isinstance(row[0], bytes) for row in rows):
            raise database.damaged(self.path, f"an entry from {start} to {stop - 1} is missing")
        try:
            return [unpack(row[0]) for row in rows]
        except DecodeError as error:
            raise database.damaged(self.path, error.message) from None

    def index_of(self, entry: str) -> int | None:
        """Index of the entry with this id (hex), if it is there."""
        return next(iter(self.find(entry)), None) if len(entry) == 64 else None

    def find(self, prefix: str, limit: int = 2) -> list[int]:
        """Indices of entries whose id begins with ``prefix`` (hex, at least 8 digits)."""
        digits = prefix.lower()
        if not 8 <= len(digits) <= 64 or not set(digits) <= set("0123456789abcdef"):
            raise UsageError("an entry id is 64 hex digits, of which the first 8 or more will do")
        query = "SELECT idx FROM ids WHERE id BETWEEN ? AND ? ORDER BY idx"
        between = (short_id(digits.ljust(64, "0")), short_id(digits.ljust(64, "f")))
        found = (index for (index,) in self.query(query, between))
        return list(islice((i for i in found if self._id(i).startswith(digits)), limit))

    def known(self, ids: Iterable[str]) -> set[str]:
        """Those of these entry ids (hex) that are in the ledger already."""
        wanted = list(ids)
        found: set[str] = set()
        for first in range(0, len(wanted), _READ_ROWS):
            page = wanted[first : first + _READ_ROWS]
            query = f"SELECT idx FROM ids WHERE id IN ({', '.join('?' * len(page))})"
            indices = self.query(query, [short_id(entry) for entry in page])
            found.update({self._id(index) for (index,) in indices}.intersection(page))
        return found

    def _id(self, index: int) -> str:
        """An id needs no check: it is that of exactly these bytes."""
        return entry_id(self._stored(index, index + 1)[0])

    def require_ids(self, ids: Sequence[str], first: int) -> None:
        """Entries have to be found by their ids, which are those of the entries ``first`` on.

        :raises CheckFailed: when one is not
        """
        places = ", ".join(["(?, ?)"] * len(ids))
        values = [value for at, entry in enumerate(ids, first) for value in (short_id(entry), at)]
        query = f"SELECT count(*) FROM ids WHERE (id, idx) IN (VALUES {places})"
        if self.query(query, values) != [(len(ids),)]:
            last = first + len(ids) - 1
            raise CheckFailed(f"an entry from {first} to {last} is not stored under its own id")

    def note_at(self, size: int) -> str:
        """The checkpoint of exactly this size, as a signed note; "" when there is none.

        :raises CheckFailed: when what is stored is no signature of that tree
        """
        head, query = self._head, "SELECT term, lines FROM checkpoints WHERE size = ?"
        rows = self.query(query, (size,)) if size <= head.size else []
        if not rows or head.genesis is None:
            return ""
        ((term, lines),) = rows
        origin = origin_of(head.genesis.run, term)
        if not isinstance(lines, bytes) or term_of(origin, head.genesis.run) is None:
            raise database.damaged(self.path, f"no checkpoint is stored for {size} entries")
        text = Checkpoint(origin, size, head.tree.root_at(size)).encode()
        note = notes.Note(text, signed_lines(origin, lines)).encode()
        try:
            open_checkpoint(note, origin, self.signers(term))
        except (CheckFailed, DecodeError):
            text = f"its tree of {size} entries is not what was signed"
            raise database.damaged(self.path, text) from None
        return note

    def query(self, sql: str, parameters: Sequence[object] = ()) -> list[tuple[Any, ...]]:
        """The rows of a reading statement, for what lies beside the entries.

        What an append that is under way has written is not among them.
        """
        with self._reading, storage_errors(self.path):
            return self._reader.execute(sql, parameters).fetchall()

    # --- the tree ---------------------------------------------------------------------------------

    def subtree(self, level: int, index: int) -> bytes:
        """Hash over the 2^level leaves from leaf index·2^level on (see :mod:`ledger.tlog.proof`).

        :raises UsageError: when the subtree is not wholly inside the tree
        :raises CheckFailed: when the stored tile is not what its entries gave
        """
        return self._head.tree.subtree(level, index)

    def root_at(self, size: int) -> bytes:
        """Root of the tree over the first ``size`` entries.

        :raises UsageError: when the ledger has fewer
        """
        return self._head.tree.root_at(size)

    def tile(self, tile: Tile) -> bytes:
        """The content of a tile or entry bundle, full or partial, that lies within the tree.

        :raises UsageError: when the tree does not have it
        :raises CheckFailed: when the stored tile is not what its entries gave
        """
        tree = self._head.tree
        if tile.level != tiles.ENTRIES or tile.end > tree.size:
            return tree.hashes(tile)
        return tiles.encode_bundle(list(self.bare(tile.start, tile.end)))

    def _stored_tile(self, tile: Tile) -> bytes:
        """A full tile as it is stored, not yet compared with anything."""
        query = "SELECT hashes FROM tiles WHERE level = ? AND idx = ?"
        with self._reading, storage_errors(self.path):
            row = self._reader.execute(query, (tile.level, tile.index)).fetchone()
        if row is None or not isinstance(row[0], bytes) or len(row[0]) != edge.TILE_BYTES:
            raise database.damaged(self.path, f"{tile.path} is missing")
        return row[0]


def first_entry(leaf: bytes | Entry) -> Genesis:
    """The manifest that entry 0 is.

    :raises CheckFailed: when it is something else
    """
    body = (decode(leaf) if isinstance(leaf, bytes) else leaf).body
    if not isinstance(body, Genesis):
        raise CheckFailed("the first entry of a ledger must be the signed manifest")
    return body


def short_id(entry: str) -> int:
    """What an entry is found by: the first 8 bytes of its id (hex)."""
    return int.from_bytes(bytes.fromhex(entry[:16]), "big", signed=True)


def signed_lines(origin: str, stored: bytes) -> tuple[SignatureLine, ...]:
    """The lines under a checkpoint, which are stored without the name that they have in common."""
    width = KEY_ID_BYTES + SIGNATURE_BYTES
    lines = [stored[at : at + width] for at in range(0, len(stored), width)]
    return tuple(SignatureLine(origin, e[:KEY_ID_BYTES], e[KEY_ID_BYTES:]) for e in lines)
