"""Full verification of the ledger in a home directory, trusting nothing that is stored there.

The newest tree head has to be signed by who leads in its term. All else goes through
the reader (:mod:`.reading`), which holds every entry and tile that it reads against that head; what
it does not need for that (ids, older heads, signatures) is looked at here. SQLite's own check is
for the file around them. Reads one state of the home, so a daemon may be running.
"""

from __future__ import annotations

import hashlib
import sqlite3
from collections.abc import Callable, Mapping
from contextlib import ExitStack, closing, suppress
from dataclasses import dataclass, field
from pathlib import Path

from artel.ledger.entries import Entry, StateAgreed
from artel.ledger.fold import labels
from artel.ledger.fold.effects import Loose, checked
from artel.ledger.fold.kept import SELECT_KEPT, rules
from artel.ledger.fold.labels import Unchecked
from artel.ledger.fold.shares import FoldState
from artel.ledger.store import database, finality
from artel.ledger.store.heads import GONE_HINT, HEADS_NAME, HeadStore
from artel.ledger.store.keyfiles import NODE_KEY
from artel.ledger.store.published import (
    CHECKPOINT_NAME,
    DATABASE_NAME,
    given_up,
    heads_error,
    known_heads,
    published_error,
    read_checkpoint_file,
    require_file,
)
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.second import SecondMemory
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.ledger.tlog.tiles import TILE_WIDTH, tiles_of
from artel.protocol import identity
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from artel.protocol.merkle import EMPTY_ROOT
from artel.protocol.telling import Tell, silent

_PROGRESS_EVERY = 1000
_READ_ROWS = 256
_COMPUTED = {"database", "entries", "documents", "checkpoints", "effects"}
"""Checks that a ledger passes when it is made again from its own entries, if all can be read."""


@dataclass(frozen=True)
class Check:
    """One thing that was checked, and what was found."""

    name: str
    ok: bool
    detail: str
    hint: str = ""
    """What helps, where no other copy of the ledger does."""


_NO_MEMORY = (
    "nothing outside of this home says what it signed last: if it was put back as a whole, it "
    "looks the same (a start asks the members)"
)


class _NotTheLedger(CheckFailed):
    """Something beside the ledger is wrong; the hint says what helps."""


@dataclass(frozen=True)
class Verification:
    """The result. ``state`` is the fold over the entries that could be read."""

    run: str
    size: int
    root: str
    checks: tuple[Check, ...]
    unchecked: tuple[Unchecked, ...]
    state: FoldState
    told: Mapping[str, int] = field(default_factory=dict)
    """See :meth:`labels.Recomputations.counts`."""

    @property
    def verified(self) -> bool:
        """Whether every check holds."""
        return all(check.ok for check in self.checks)

    @property
    def entries_hold(self) -> bool:
        """Whether all that is wrong can be computed again from the entries."""
        failed = {check.name for check in self.checks if not check.ok and not check.hint}
        return self.state.size == self.size > 0 and failed <= _COMPUTED


def verify_home(home: Path, progress: Tell = silent) -> Verification:
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


def _verify(home: Path, progress: Tell) -> Verification:
    with ExitStack() as stack:
        # The ledger is never behind what it is held against, if that is read first.
        heads = _heads(stack, home)
        published = read_checkpoint_file(home / CHECKPOINT_NAME)
        memory = _second(stack, home, published)
        path, checks = home / DATABASE_NAME, _Checks()
        try:
            connection = stack.enter_context(database.reading(path, database.tables()))
        except CheckFailed as error:
            hint = error.hint if isinstance(error, database.OtherFormat) else ""
            failed = Check("database", False, error.message, hint)
            return Verification("", 0, EMPTY_ROOT.hex(), (failed,), (), FoldState())
        store = LedgerReader(path, connection)
        checks("database", lambda: _integrity(connection))
        if not checks("newest tree head", lambda: _newest(store)):
            return Verification("", 0, EMPTY_ROOT.hex(), tuple(checks.made), (), FoldState())
        replay = stack.enter_context(closing(_Replay(store)))
        if checks("entries", lambda: replay.run(progress)):
            checks("signatures", replay.signatures)
            checks("documents", replay.documents)
        checks("tiles", lambda: _tiles(store))
        checks("checkpoints", lambda: _checkpoints(store))
        checks("published checkpoint", lambda: _published(store, published))
        signer = _signer(home, store)
        if isinstance(heads, HeadStore):
            checks("kept tree heads", lambda: _kept(store, heads, home if signer else None))
        elif heads is not None:
            checks.made.append(Check("kept tree heads", False, heads.message, heads.hint))
        if memory is not None:
            checks("second memory", lambda: _remembered(store, memory, home))
        checks("credit", lambda: _credit(replay.state))
        checks("effects", lambda: replay.effects(connection))
        unchecked = _unchecked(replay.state, store.size, heads, replay.told)
        if signer and memory is None:
            unchecked += (Unchecked("second memory", _NO_MEMORY),)
        size, root = store.size, store.root.hex()
    made = tuple(checks.made)
    return Verification(replay.state.run, size, root, made, unchecked, replay.state, replay.told)


def _signer(home: Path, store: LedgerReader) -> str:
    """The key (hex) with which this home signs the log; "" when it signs none."""
    with suppress(ArtelError):
        key = identity.load(home / NODE_KEY).key
        return key if key in store.leaders() else ""
    return ""


def _second(stack: ExitStack, home: Path, published: str) -> SecondMemory | ArtelError | None:
    """What a coordinator keeps outside of its home; None for nothing, or why it cannot be read."""
    try:
        run = parse_checkpoint(published).origin.split("/")[1]
        key = identity.load(home / NODE_KEY).key
    except (ArtelError, LookupError):
        return None
    try:
        return stack.enter_context(SecondMemory.reading(run, key))
    except ArtelError as error:
        return error


class _Checks:
    """What was checked so far."""

    def __init__(self) -> None:
        self.made: list[Check] = []

    def __call__(self, name: str, action: Callable[[], str]) -> bool:
        """Run one check; every way in which damaged bytes can fail is a result."""
        hint = ""
        try:
            detail, holds = action(), True
        except ArtelError as error:
            detail, holds = error.message, False
            hint = error.hint if isinstance(error, _NotTheLedger) else ""
        except (sqlite3.Error, sqlite3.Warning, ValueError, TypeError, OverflowError) as error:
            # Damaged rows can hold any type and any value.
            detail, holds = f"{type(error).__name__}: {str(error)[:200]}", False
        self.made.append(Check(name, holds, detail, hint))
        return holds


def _heads(stack: ExitStack, home: Path) -> HeadStore | ArtelError | None:
    """The tree heads that a home keeps; None when it never kept any, or why they cannot be read."""
    try:
        heads = stack.enter_context(HeadStore.of(home))
    except ArtelError as error:
        return error
    with suppress(UsageError):  # without a key it signs nothing
        if heads is not None:
            try:
                heads.require_owner(identity.load(home / NODE_KEY).key)
            except CheckFailed as error:
                return error
    # Whoever has a key to sign or cosign with made that file before the ledger.
    if heads is None and (home / NODE_KEY).exists():
        return CheckFailed(f"{HEADS_NAME} is gone or empty", GONE_HINT)
    return heads


def _unchecked(
    state: FoldState, size: int, heads: HeadStore | ArtelError | None, told: Mapping[str, int]
) -> tuple[Unchecked, ...]:
    final = state.final
    if isinstance(heads, HeadStore):
        with suppress(ArtelError):  # what is damaged is a failed check already
            final = max(final, finality.of_heads(heads, state).size)
    found = labels.unchecked(state.round, size, final, told)
    if heads is None:
        missing = f"there is no {HEADS_NAME}: a ledger put back from a backup would look the same"
        found += (Unchecked("kept tree heads", missing),)
    return found


# --- one check each -------------------------------------------------------------------------------


def _integrity(connection: sqlite3.Connection) -> str:
    error = database.integrity_error(connection)
    if error:
        raise CheckFailed(error)
    return "SQLite finds nothing wrong"


def _newest(store: LedgerReader) -> str:
    """What the newest tree head signs; all other rows are held against it."""
    store.term = store.load()
    if not store.size:
        raise CheckFailed("the ledger is empty")
    return f"who leads term {store.term} signed {store.size} entries, root {store.root.hex()}"


class _Replay:
    """One pass over the entries; keeps what the checks after it report on."""

    def __init__(self, store: LedgerReader) -> None:
        self._store = store
        self._fresh = Loose()
        self._documents: set[bytes] = set()
        self._signatures = 0
        self._unsigned: list[int] = []
        self._told = labels.Recomputations()

    @property
    def told(self) -> dict[str, int]:
        """See :meth:`labels.Recomputations.counts`."""
        return self._told.counts(self.state.round)

    @property
    def state(self) -> FoldState:
        """The fold over all that could be read."""
        return self._fresh.state

    def close(self) -> None:
        """Throw away what was computed."""
        self._fresh.close()

    def run(self, progress: Tell) -> str:
        """Read, decode and fold every entry; the store compares each with what was signed."""
        total, ids = self._store.size, list[str]()
        wrong: list[CheckFailed] = []

        def observe(index: int, entry: Entry) -> None:
            ids.append(entry.id)
            if len(ids) == _READ_ROWS or index + 1 == total:
                try:
                    self._store.require_ids(ids, index + 1 - len(ids))
                except CheckFailed as error:  # the entries themselves can all be read
                    wrong.append(error)
                ids.clear()
            self._signatures += len(entry.signings)
            if isinstance(entry.body, StateAgreed):
                self._told.note(entry.body)
            try:
                entry.require_of(total, self._store.root_at)
            except CheckFailed as error:
                wrong.append(error)
            if entry.envelope.document:
                self._documents.add(hashlib.sha256(entry.envelope.document).digest())
            if not entry.signers:
                self._unsigned.append(index)
            if (index + 1) % _PROGRESS_EVERY == 0 or index + 1 == total:
                progress(index + 1, total)

        self._fresh = Loose(self._store.query(SELECT_KEPT))
        for index, entry in enumerate(checked(self._store.leaves(), 0, processes=True)):
            self._fresh.add(entry)
            observe(index, entry)
        self._fresh.flush()
        if wrong:
            raise wrong[0]
        if self._store.query("SELECT count(*) FROM ids") != [(total,)]:
            raise CheckFailed(f"there are more ids than the {total} entries have")
        return f"{total} entries, every one decoded and hashed"

    def documents(self) -> str:
        """No more of them than the entries name; those were held against their names."""
        ((count,),) = self._store.query("SELECT count(*) FROM documents")
        if count != len(self._documents):
            raise CheckFailed(f"{count} are stored, the entries name {len(self._documents)}")
        return f"{count} are what the entries name"

    def signatures(self) -> str:
        if self._unsigned:
            more = f" and {len(self._unsigned) - 1} more" if len(self._unsigned) > 1 else ""
            raise CheckFailed(f"a signature of entry {self._unsigned[0]} does not verify{more}")
        return f"{self._signatures} signatures verify"

    def effects(self, stored: sqlite3.Connection) -> str:
        """What is stored of what each entry did, and of the fold's state."""
        if self.state.size < self._store.size:
            raise CheckFailed("not checked: not all entries can be read")
        ((written,),) = self._store.query("SELECT count(*) FROM effects")
        kept = [by for _, by, *_ in self._store.query(SELECT_KEPT)]
        if not written and not kept:
            return "none are stored; they are computed when they are asked for"
        if kept and rules() not in kept and not self._fresh.wrong:
            return "not compared: another version of this program wrote them"
        error = self._fresh.differing(stored)
        if error or not kept:
            raise CheckFailed(error or "no state is kept beside them")
        return f"those of {written} entries are what a fresh fold gives, and so is the kept state"


def _tiles(store: LedgerReader) -> str:
    """Every stored tile, which proofs are read from."""
    full = [tile for tile in tiles_of(store.size) if tile.width == TILE_WIDTH]
    for tile in full:
        store.tile(tile)
    ((count,),) = store.query("SELECT count(*) FROM tiles")
    if count != len(full):
        raise CheckFailed(f"{count} tiles are stored, the entries give {len(full)}")
    return f"{count} full tiles are what the entries give"


def _checkpoints(store: LedgerReader) -> str:
    """Every note that was stored: by who led in its term, and of this tree."""
    heads = store.query("SELECT size, follows, term FROM checkpoints ORDER BY size")
    before = 0
    for size, follows, _ in heads:
        if follows != before:
            raise CheckFailed(f"the checkpoint before the one of size {size} is not the one stored")
        before = size
        if not store.note_at(size):
            raise CheckFailed(f"the checkpoint of size {size} is not of this tree")
    if (terms := [term for *_, term in heads]) != sorted(terms):
        raise CheckFailed("a checkpoint is of an earlier term than the one before it")
    return f"{len(heads)} signed tree heads match the tree"


def _published(store: LedgerReader, note: str) -> str:
    """The note in the checkpoint file: without it, a cut-off end could not be noticed."""
    if not note:
        raise _NotTheLedger(
            f"there is no file {CHECKPOINT_NAME}, without which lost entries would not be noticed",
            f"the node or coordinator writes {CHECKPOINT_NAME} again when it starts",
        )
    path = store.path.parent / CHECKPOINT_NAME
    error = published_error(note, path, store.note_at, store.size, store.terms())
    if error:
        raise CheckFailed(error)
    return "the published tree head is in the database"


def _kept(store: LedgerReader, heads: HeadStore, signing: Path | None) -> str:
    """Every tree head that this home signed, cosigned or saw cosigned.

    :param signing: the home, if it signs the log: then the newest heads have to be among them
    """
    run, terms = store.genesis.run, store.terms()
    known = known_heads(heads, run, terms)
    error = heads_error(known, store.size, store.root_at)
    if error:
        raise CheckFailed(f"this ledger was put back: {error}")
    if signing is not None:
        ((before,),) = store.query("SELECT follows FROM checkpoints WHERE size = ?", (store.size,))
        # Again, since a daemon may have gone on signing: at any moment all but the newest is noted.
        with HeadStore.of(signing) as now:
            noted = known_heads(now, run, terms) if now is not None else []
        if not noted or noted[0].size < before:
            newest = noted[0].size if noted else 0
            raise _NotTheLedger(
                f"the newest tree head in {HEADS_NAME} is of {newest} entries, and this home has "
                f"signed one of {store.size}: that file was put back, or is another home's",
                GONE_HINT,
            )
    return f"{len(known)} that this home signed or saw signed are of this tree"


def _remembered(store: LedgerReader, memory: SecondMemory | ArtelError, home: Path) -> str:
    """What is known outside of the home to have been signed."""
    if not isinstance(memory, SecondMemory):
        raise _NotTheLedger(memory.message, memory.hint)
    own, terms = identity.load(home / NODE_KEY).key, store.terms()
    known = [
        head
        for head in memory.known(store.genesis.run, [*store.leaders(), own])
        if not given_up(head, terms)
    ]
    error = heads_error(known, store.size, store.root_at)
    if error:
        raise CheckFailed(f"this home was put back; {memory.path} says: {error}")
    return f"{memory.path} knows of nothing more"


def _credit(state: FoldState) -> str:
    if not state.size:
        raise CheckFailed("not checked: not all entries can be read")
    if not state.run:
        raise CheckFailed("the manifest is not signed by its organiser")
    ignored = sum(state.ignored.values())
    note = f"; {ignored} of the entries count for nothing" if ignored else ""
    return f"{state.total} of credit in {state.round} rounds{note}"
