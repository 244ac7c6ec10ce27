"""Full verification of the ledger in a home directory, trusting nothing that is stored there.

Every entry, tile, tree head and id has to be what the signatures bind, and every signature by a key
that the signed manifest names; SQLite's own check is for the file around them. Reads one state of
the home (:func:`.database.reading`), so a daemon may be running.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

from artel.ledger.entries import Entry, Genesis
from artel.ledger.fold import labels
from artel.ledger.fold.labels import Unchecked
from artel.ledger.fold.replay import decoded
from artel.ledger.fold.shares import FoldState, Outcome, fold
from artel.ledger.store import database, finality
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.keyfiles import NODE_KEY
from artel.ledger.store.published import (
    CHECKPOINT_NAME,
    DATABASE_NAME,
    heads_error,
    known_heads,
    published_error,
    read_checkpoint_file,
    require_file,
    term_of,
)
from artel.ledger.store.store import SELECT_TILE, read_rows
from artel.ledger.tlog.checkpoint import open_checkpoint, parse_checkpoint
from artel.ledger.tlog.edge import Edge
from artel.ledger.tlog.tiles import Tile
from artel.protocol import merkle
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError

_PROGRESS_EVERY = 1000
_READ_ROWS = 256

Progress = Callable[[int, int], None]
"""``progress(entries checked, entries in all)``"""


@dataclass(frozen=True)
class Check:
    """One thing that was checked, and what was found."""

    name: str
    ok: bool
    detail: str


@dataclass(frozen=True)
class Verification:
    """The result. ``state`` is the fold over the entries that could be read."""

    run: str
    size: int
    root: str
    checks: tuple[Check, ...]
    unchecked: tuple[Unchecked, ...]
    state: FoldState

    @property
    def verified(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)


def verify_home(home: Path, progress: Progress = lambda _done, _all: None) -> Verification:
    """Check the ledger of a home directory.

    :returns: what was checked; damage is a failed check, not an exception
    :raises UsageError: when there is no ledger
    :raises ResourceError: when it cannot be read
    """
    path = require_file(home)
    before = path.stat().st_mtime_ns
    result = _verify(home, progress)
    if not result.verified and path.stat().st_mtime_ns != before:
        # A daemon that started meanwhile changed a file that was read as a closed one.
        result = _verify(home, progress)
    return result


def _verify(home: Path, progress: Progress) -> Verification:
    checks: list[Check] = []

    def check(name: str, action: Callable[[], str]) -> None:
        """Run one check; every way in which damaged bytes can fail is a result."""
        try:
            checks.append(Check(name, True, action()))
        except ArtelError as error:
            checks.append(Check(name, False, error.message))
        except (sqlite3.Error, sqlite3.Warning, ValueError, TypeError, OverflowError) as error:
            # Damaged rows can hold any type and any value.
            checks.append(Check(name, False, f"{type(error).__name__}: {str(error)[:200]}"))

    with ExitStack() as stack:
        # The ledger is never behind what it is held against, if that is read first.
        heads = _heads(stack, home)
        published = read_checkpoint_file(home / CHECKPOINT_NAME)
        reading = database.reading(home / DATABASE_NAME, database.tables())
        try:
            connection = stack.enter_context(reading)
        except CheckFailed as error:
            failed = Check("database", False, error.message)
            root = merkle.EMPTY_ROOT.hex()
            return Verification("", 0, root, (failed,), (), FoldState())
        replay = _Replay(connection, progress, heads if isinstance(heads, HeadStore) else None)
        check("database", lambda: _integrity(connection))
        check("entries", replay.run)
        check("signatures", replay.signatures)
        check("tiles", replay.tiles)
        check("checkpoints", replay.checkpoints)
        check("published checkpoint", lambda: replay.published(published, home / CHECKPOINT_NAME))
        if isinstance(heads, HeadStore):
            check("kept tree heads", replay.kept_heads)
        elif heads is not None:
            checks.append(Check("kept tree heads", False, heads.message))
        check("credit", replay.credit)
        state, tree = replay.state, replay.tree
        unchecked = _unchecked(replay, heads)
    return Verification(state.run, tree.size, tree.root().hex(), tuple(checks), unchecked, state)


def _heads(stack: ExitStack, home: Path) -> HeadStore | ArtelError | None:
    """The tree heads that a home keeps; None when it never kept any, or why they cannot be read."""
    try:
        heads = stack.enter_context(HeadStore.of(home))
    except ArtelError as error:
        return error
    # Whoever has a key to sign or cosign with made that file before the ledger.
    if heads is None and (home / NODE_KEY).exists():
        return CheckFailed(f"{HEADS_NAME} is gone: nothing says whether this ledger was put back")
    return heads


def _unchecked(replay: _Replay, heads: HeadStore | ArtelError | None) -> tuple[Unchecked, ...]:
    state, size = replay.state, replay.tree.size
    final = state.final
    if isinstance(heads, HeadStore):
        with suppress(ArtelError):  # what is damaged is a failed check already
            final = max(final, finality.of_heads(heads, state).size)
    found = labels.unchecked(len(state.states), size, final)
    if heads is None:
        missing = f"there is no {HEADS_NAME}: a ledger put back from a backup would look the same"
        found += (Unchecked("kept tree heads", missing),)
    return found


def _integrity(connection: sqlite3.Connection) -> str:
    error = database.integrity_error(connection)
    if error:
        raise CheckFailed(error)
    return "SQLite finds nothing wrong"


# --- the entries ----------------------------------------------------------------------------------


class _Replay:
    """One pass over the entries; keeps what the checks after it report on."""

    def __init__(
        self, connection: sqlite3.Connection, progress: Progress, heads: HeadStore | None
    ) -> None:
        self._connection = connection
        self._heads = heads
        self._progress = progress
        self.tree = merkle.CompactRange()
        self._edge = Edge()
        self._tiles = 0
        self._wrong_tile = ""
        self.state = FoldState()
        self.genesis: Genesis | None = None
        self._roots = {0: merkle.EMPTY_ROOT}  # size to root, for each stored or kept head
        self._complete = False
        self._signatures = 0
        self._unsigned: list[int] = []

    def run(self) -> str:
        """Read, hash, decode and fold every entry."""
        query = "SELECT count(*) FROM entries"
        total = int(self._connection.execute(query).fetchone()[0])
        rows = self._connection.execute("SELECT size FROM checkpoints")
        wanted = {size for (size,) in rows if isinstance(size, int)}
        if self._heads is not None:
            wanted |= {head.size for head in self._heads.witnessed_heads()}
            wanted |= {parse_checkpoint(text).size for text in self._heads.newest_first(0)}
        sizes = iter(sorted(size for size in wanted if 0 < size <= total))
        self._next_size = next(sizes, None)

        def leaves() -> Iterator[bytes]:
            for start in range(0, total, _READ_ROWS):
                stop = min(start + _READ_ROWS, total)
                rows = iter(read_rows(self._connection, start, stop))
                for number in range(start, stop):
                    yield self._leaf(number, next(rows, None))

        def hashed() -> Iterator[Entry]:
            try:
                for leaf, entry in decoded(leaves(), processes=True):
                    self._add(leaf, entry, sizes)
                    yield entry
            except DecodeError as error:
                at = self.tree.size
                raise CheckFailed(f"entry {at} does not decode: {error.message}") from None

        def observe(index: int, entry: Entry, _outcome: Outcome) -> None:
            self._signatures += len(entry.envelope.signatures)
            if not entry.signers:
                self._unsigned.append(index)
            if (index + 1) % _PROGRESS_EVERY == 0 or index + 1 == total:
                self._progress(index + 1, total)

        self.state = fold(hashed(), observe=observe)
        if self.genesis is None:
            raise CheckFailed("the ledger is empty")
        self._complete = True
        return f"{self.tree.size} entries, every one decoded and hashed"

    @staticmethod
    def _leaf(expected: int, row: tuple[int, bytes, bytes] | None) -> bytes:
        if row is None or row[0] != expected:
            raise CheckFailed(f"entry {expected} is missing or not stored as bytes")
        _, digest, leaf = row
        if digest != sha256(leaf).digest():
            raise CheckFailed(f"entry {expected} is not stored under its own id")
        return leaf

    def _add(self, leaf: bytes, entry: Entry, sizes: Iterator[int]) -> None:
        if self.tree.size == 0:
            if not isinstance(entry.body, Genesis):
                raise CheckFailed("entry 0 is not a manifest")
            self.genesis = entry.body
        digest = merkle.leaf_hash(leaf)
        self.tree.append(digest)
        for tile in self._edge.append(digest):
            place = (tile.level, tile.index)
            if self._connection.execute(SELECT_TILE, place).fetchone() == (tile.hashes,):
                self._tiles += 1
            else:
                self._wrong_tile = self._wrong_tile or Tile(*place).path
        if self._next_size == self.tree.size:
            self._roots[self.tree.size] = self.tree.root()
            self._next_size = next(sizes, None)

    def _require(self) -> Genesis:
        if self.genesis is None or not self._complete:
            raise CheckFailed("not checked: not all entries can be read")
        return self.genesis

    def signatures(self) -> str:
        self._require()
        if self._unsigned:
            more = f" and {len(self._unsigned) - 1} more" if len(self._unsigned) > 1 else ""
            raise CheckFailed(f"a signature of entry {self._unsigned[0]} does not verify{more}")
        return f"{self._signatures} signatures verify"

    def tiles(self) -> str:
        """Every stored tile of the tree, which proofs are read from."""
        self._require()
        if self._wrong_tile:
            raise CheckFailed(f"{self._wrong_tile} is not what the entries give")
        count = int(self._connection.execute("SELECT count(*) FROM tiles").fetchone()[0])
        if count != self._tiles:
            raise CheckFailed(f"{count} tiles are stored, the entries give {self._tiles}")
        return f"{count} full tiles are what the entries give"

    def checkpoints(self) -> str:
        """Every stored note: by the manifest's coordinators, and of the tree that we computed."""
        genesis = self._require()
        count = last = term = 0
        for size, note in self._connection.execute("SELECT size, note FROM checkpoints ORDER BY 1"):
            origin = parse_checkpoint(str(note)).origin
            found = term_of(origin, genesis.run)
            if found is None or found < term:
                raise CheckFailed(f"the checkpoint of size {size} is of another log")
            head = open_checkpoint(str(note), origin, genesis.coordinators)
            if head.size != size or head.root != self._roots.get(size):
                raise CheckFailed(f"the checkpoint of size {size} is not of this tree")
            count, last, term = count + 1, size, found
        if last != self.tree.size:
            raise CheckFailed(f"the newest checkpoint covers {last} of {self.tree.size} entries")
        return f"{count} signed tree heads match the tree"

    def published(self, note: str, path: Path) -> str:
        """The note in the checkpoint file: without it, a cut-off end could not be noticed."""
        if not note:
            raise CheckFailed(
                f"there is no file {CHECKPOINT_NAME}, without which lost entries would not be "
                "noticed; the node or coordinator writes it again when it starts"
            )

        def note_at(size: int) -> str:
            query = "SELECT note FROM checkpoints WHERE size = ?"
            row = self._connection.execute(query, (size,)).fetchone()
            return str(row[0]) if row else ""

        error = published_error(note, path, note_at, self.tree.size)
        if error:
            raise CheckFailed(error)
        return "the published tree head is in the database"

    def kept_heads(self) -> str:
        """Every tree head that this home signed, cosigned or saw cosigned."""
        assert self._heads is not None
        genesis = self._require()
        known = known_heads(self._heads, genesis.run, genesis.coordinators)
        error = heads_error(known, self.tree.size, lambda size: self._roots.get(size, b""))
        if error:
            raise CheckFailed(f"this ledger was put back: {error}")
        return f"{len(known)} that this home signed or saw signed are of this tree"

    def credit(self) -> str:
        self._require()
        if not self.state.run:
            raise CheckFailed("the manifest is not signed by its organiser")
        ignored = sum(self.state.ignored.values())
        note = f"; {ignored} of the entries count for nothing" if ignored else ""
        return f"{self.state.total} of credit in {self.state.round} rounds{note}"
