"""Full verification of the ledger in a home directory, trusting nothing that is stored there.

Every byte of the database file has to be explained by its rows, every row by a signature, every
signature by a key that the signed manifest names. Works on a private copy
(:mod:`ledger.store.snapshot`), so a daemon may be running.
"""

from __future__ import annotations

import hashlib
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass
from pathlib import Path

from artel.ledger.entries import Entry, Genesis
from artel.ledger.fold import labels
from artel.ledger.fold.labels import Unchecked
from artel.ledger.fold.replay import decoded
from artel.ledger.fold.shares import FoldState, Outcome, fold
from artel.ledger.store import database, finality
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.published import heads_error, known_heads, published_error, term_of
from artel.ledger.store.snapshot import Snapshot, snapshot
from artel.ledger.store.store import CHECKPOINT_NAME
from artel.ledger.sync.client import heads_of
from artel.ledger.tlog.checkpoint import open_checkpoint, parse_checkpoint
from artel.ledger.tlog.edge import Edge, FullTile
from artel.ledger.tlog.tiles import Tile
from artel.protocol import merkle
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError

_COMPARE_BYTES = 1 << 20
_PROGRESS_EVERY = 1000
_READ_ROWS = 256
_VERIFY_TRIES = 3
_WAL_MODE = b"\x02\x02"  # header bytes 18 and 19: file format read and write version

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
    :raises ResourceError: when there is no room for two temporary copies
    """
    for attempt in range(1, _VERIFY_TRIES + 1):
        with ExitStack() as stack:
            # The kept heads first: the ledger is never behind them.
            heads = _heads(stack, home)
            copied = stack.enter_context(snapshot(home))
            before = _fingerprint(copied)
            result = _verify(home, copied, heads, progress)
        if result.verified or attempt == _VERIFY_TRIES:
            return result
        # A copy can, very rarely, catch a daemon in the middle of a write without showing it.
        # Damage stays where it is: the next copy is the same, and so is the result.
        with snapshot(home) as again:
            if _fingerprint(again) == before:
                return result
    raise AssertionError("not reached")


def _heads(stack: ExitStack, home: Path) -> HeadStore | ArtelError | None:
    """A copy of the tree heads that a home keeps; None when it keeps none, or why not."""
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="artel-ledger-"))
    try:
        return stack.enter_context(heads_of(home, Path(folder)))
    except ArtelError as error:
        return error


def _fingerprint(copied: Snapshot) -> tuple[bytes, str]:
    return merkle.root(_chunks(copied.path)), copied.note


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_COMPARE_BYTES):
            yield merkle.leaf_hash(chunk)


def _verify(
    home: Path, copied: Snapshot, heads: HeadStore | ArtelError | None, progress: Progress
) -> Verification:
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

    with closing(database.connect_copy(copied.path)) as connection:
        replay = _Replay(connection, progress, heads if isinstance(heads, HeadStore) else None)

        def published() -> str:
            return _published(home, copied, connection, replay.tree.size)

        check("database file", lambda: _same_bytes(connection, copied))
        check("database structure", lambda: _integrity(connection))
        check("entries", replay.run)
        check("signatures", replay.signatures)
        check("tiles", replay.tiles)
        check("checkpoints", replay.checkpoints)
        check("published checkpoint", published)
        if isinstance(heads, HeadStore):
            check("kept tree heads", replay.kept_heads)
        elif heads is not None:
            checks.append(Check("kept tree heads", False, heads.message))
        check("credit", replay.credit)
    state, size = replay.state, replay.tree.size
    return Verification(
        state.run, size, replay.tree.root().hex(), tuple(checks), _unchecked(replay, heads), state
    )


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


# --- the file -------------------------------------------------------------------------------------


def _same_bytes(connection: sqlite3.Connection, copied: Snapshot) -> str:
    """Build the file again from its rows and compare all of it."""
    scratch = copied.path.with_name("rebuilt")
    scratch.unlink(missing_ok=True)
    base: dict[int, bytes] = {}
    count = int(connection.execute("SELECT count(*) FROM checkpoints").fetchone()[0])
    base_at = count - copied.log.commits if copied.log else None

    def at_checkpoint(done: int) -> None:
        # What the database file held before the transactions that are still in the log.
        if done == base_at:
            with scratch.open("rb") as file:
                for number in copied.covered:
                    file.seek((number - 1) * database.PAGE_BYTES)
                    base[number] = file.read(database.PAGE_BYTES)

    database.rebuild(connection, scratch, at_checkpoint)
    version = database.made_with(connection).to_bytes(4, "big")
    size = copied.path.stat().st_size
    with copied.path.open("rb") as stored, scratch.open("rb") as rebuilt:
        offset = 0
        while True:
            ours, expected = stored.read(_COMPARE_BYTES), rebuilt.read(_COMPARE_BYTES)
            if offset == 0:
                expected = _with_header(expected, ours, version)
            if ours != expected:
                _raise_difference(ours, expected, offset)
            if not ours:
                break
            offset += len(ours)
    if copied.log is None:
        return f"all {size} bytes are what the rows give"
    _check_covered(copied, base, version)
    return f"all {size} bytes are what the rows give; {copied.log.commits} appends in the log"


def _with_header(expected: bytes, stored: bytes, version: bytes) -> bytes:
    """``expected`` with the header fields that may differ: see :mod:`ledger.store.database`."""
    header = bytearray(expected)
    header[18:20] = _WAL_MODE
    # Any counter will do, but it stands there twice.
    header[database.CHANGE_COUNTER] = stored[database.CHANGE_COUNTER]
    header[database.VALID_FOR] = stored[database.CHANGE_COUNTER]
    header[database.WRITER_VERSION] = version
    return bytes(header)


def _check_covered(copied: Snapshot, base: dict[int, bytes], version: bytes) -> None:
    """Pages that the log replaces still have to be as they were before, or as the log has them.

    One of them may be in between: a writer that is killed while it folds the log back leaves a
    page of which only the beginning is new. Opening the ledger writes it again from the log.
    """
    assert copied.log is not None
    logged: dict[int, set[bytes]] = {}
    for number, content in copied.log.frames:
        logged.setdefault(number, set()).add(content)
    for number, content in copied.covered.items():
        expected = base.get(number, b"")
        if number == 1 and expected:
            expected = _with_header(expected, content, version)
        if content != expected and not any(_torn(content, new, expected) for new in logged[number]):
            _raise_difference(content, expected, (number - 1) * database.PAGE_BYTES)


def _torn(content: bytes, new: bytes, old: bytes) -> bool:
    """Whether ``content`` begins as ``new`` and, from some byte on, goes on as ``old``."""
    pairs = enumerate(zip(content, new, strict=False))
    at = next((i for i, (left, right) in pairs if left != right), len(content))
    return at == len(content) or content[at:] == old[at:]


def _raise_difference(stored: bytes, expected: bytes, offset: int) -> None:
    pairs = enumerate(zip(stored, expected, strict=False))
    shorter = min(len(stored), len(expected))
    at = offset + next((i for i, (left, right) in pairs if left != right), shorter)
    page = at // database.PAGE_BYTES + 1
    raise CheckFailed(f"byte {at} (page {page}) is not what the rows give")


def _integrity(connection: sqlite3.Connection) -> str:
    found = connection.execute("PRAGMA integrity_check(1)").fetchone()
    if found is None or found[0] != "ok":
        raise CheckFailed(f"SQLite finds: {str(found[0] if found else '')[:200]}")
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
        self._roots: dict[int, bytes] = {}  # size to root, for each stored or kept head
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
        sizes = iter(sorted(wanted))
        self._next_size = next(sizes, None)

        def leaves() -> Iterator[bytes]:
            for start in range(0, total, _READ_ROWS):
                stop = min(start + _READ_ROWS, total)
                rows = iter(database.read_entries(self._connection, start, stop))
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
        if digest != hashlib.sha256(leaf).digest():
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
            self._compare(tile)
        if self._next_size == self.tree.size:
            self._roots[self.tree.size] = self.tree.root()
            self._next_size = next(sizes, None)

    def _compare(self, tile: FullTile) -> None:
        query = "SELECT place, level, idx, hashes FROM tiles WHERE place = ?"
        stored = self._connection.execute(query, (tile.place,)).fetchone()
        if stored == database.tile_row(tile):
            self._tiles += 1
        elif not self._wrong_tile:
            self._wrong_tile = Tile(tile.level, tile.index).path

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

    def kept_heads(self) -> str:
        """Every tree head that this home signed, cosigned or saw cosigned."""
        assert self._heads is not None
        genesis = self._require()
        known = known_heads(self._heads, genesis.run, genesis.coordinators)
        error = heads_error(known, self.tree.size, self._roots.__getitem__)
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


def _published(home: Path, copied: Snapshot, connection: sqlite3.Connection, size: int) -> str:
    """The note in the checkpoint file: without it, a cut-off end could not be noticed."""
    if not copied.note:
        raise CheckFailed(
            f"there is no file {CHECKPOINT_NAME}, without which lost entries would not be noticed; "
            "the node or coordinator writes it again when it starts"
        )

    def note_at(covered: int) -> str:
        query = "SELECT note FROM checkpoints WHERE size = ?"
        row = connection.execute(query, (covered,)).fetchone()
        return str(row[0]) if row else ""

    error = published_error(copied.note, home / CHECKPOINT_NAME, note_at, size)
    if error:
        raise CheckFailed(error)
    return "the published tree head is in the database"
