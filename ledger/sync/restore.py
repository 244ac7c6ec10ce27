"""A home's ledger, made again from a copy that somebody else holds: a mirror, a node, a peer; or
from its own entries, where only what follows from them is damaged.

Taken over is exactly the tree of a checkpoint that the run's coordinator signed, and nothing that
contradicts what the home itself is known to have published: a coordinator that goes on from an
older ledger than others have seen would sign a second history.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from artel.ledger.entries import Entry
from artel.ledger.fold.effects import Fold, checked
from artel.ledger.store import finality
from artel.ledger.store.database import SIDE_FILES, storage_errors
from artel.ledger.store.finality import size_of
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.keyfiles import NODE_KEY
from artel.ledger.store.published import (
    LostEntries,
    given_up,
    heads_error,
    known_heads,
    published_error,
    read_checkpoint_file,
    run_of,
    term_of,
)
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.second import SecondMemory
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.fork import require_one_history
from artel.ledger.sync.signed_tree import Offer, Shown, manifest_of, offered, take_over
from artel.ledger.sync.source import TileSource
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, parse_checkpoint, verifier_keys
from artel.protocol import files, identity
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, UsageError
from artel.protocol.files import sync_folder
from artel.protocol.identity import HomeLock
from artel.protocol.telling import Tell, silent


@dataclass(frozen=True)
class Restored:
    """What a home holds now."""

    run: str
    size: int
    root: bytes
    before: int
    """Entries that its own ledger had, as far as it could be read."""
    damage: str
    """Why its own ledger could not be used; "" when it could, or there was none."""
    kept: Path | None
    """Where the old database is now."""
    certified: int
    """Size of the newest certified checkpoint that came along; 0 for none."""
    source: str
    """Where it was taken from; "" for its own entries."""
    coordinator: bool
    """Whether the home holds the key that signs this log."""


def restore(
    source: TileSource | None,
    home: Path,
    run: str = "",
    *,
    accept_older: bool = False,
    progress: Tell = silent,
) -> Restored:
    """Make the ledger of ``home`` again from a source's newest checkpoint.

    Without a source, from its own entries and its newest head: whatever follows from them is
    computed again.

    :param run: the run that it must be; when empty, that of the home's ledger or of the source
    :param accept_older: although the home itself has published a newer checkpoint
    :raises CheckFailed: when something does not hold, when two histories are shown, or the source
        is older than what the home has published
    :raises UsageError: when the home's own ledger is sound and as long; without a source, when
        there is none, or nothing is wrong with it
    :raises Unreachable: when the source does not answer
    :raises ResourceError: when a daemon is using the home, or the disk is full
    """
    lock = HomeLock(home)
    try:
        with _own(home) as own:
            if source is None:
                return _from_itself(home, own, run, progress)
            offer = offered(source, run=run or own.run)
            _require_older(home, own, offer)
            _require_all_said(home, own, offer, accept_older)
            return _from_other(home, own, offer, progress)
    finally:
        lock.release()


# --- what the home has ----------------------------------------------------------------------------


@dataclass(frozen=True)
class _Own:
    """The home's ledger: ``store`` when it is sound; ``published`` is its checkpoint file."""

    store: LedgerReader | None
    damage: str
    published: str

    @property
    def size(self) -> int:
        return self.store.size if self.store is not None else 0

    @property
    def run(self) -> str:
        if self.store is not None and self.store.size:
            return self.store.genesis.run
        with suppress(DecodeError):
            return run_of(parse_checkpoint(self.published).origin)
        return ""


@contextmanager
def _own(home: Path) -> Iterator[_Own]:
    published = read_checkpoint_file(home / CHECKPOINT_NAME)
    if not (home / DATABASE_NAME).exists():
        yield _Own(None, "", published)
        return
    with ExitStack() as stack:
        try:
            store = stack.enter_context(LedgerReader.of(home))
            deque(store.leaves(), maxlen=0)  # each is compared with the tree when it is read
        except CheckFailed as error:
            yield _Own(None, error.message, published)
            return
        path, terms = home / CHECKPOINT_NAME, store.terms()
        wrong = published_error(published, path, store.note_at, store.size, terms)
        yield _Own(None if wrong else store, wrong, published)


def _require_older(home: Path, own: _Own, best: Offer) -> None:
    """A sound ledger of the home must be the beginning of what is to take its place."""
    if own.store is None or not own.store.size:
        return
    head, name = best.head, best.name
    require_one_history(home, Shown.of(own.store, str(home)), best.shown)
    if (own.store.term, own.store.size) >= head.place:
        raise UsageError(
            f"{home} has a sound ledger of {own.store.size} entries, {name} one of {head.size}",
            "there is nothing to restore; if artel ledger verify finds its effects wrong, "
            "artel ledger restore without --from computes them again",
        )


def _require_all_said(home: Path, own: _Own, best: Offer, accept_older: bool) -> None:
    """No tree head that the home has published, signed or seen must be of another history."""
    size = best.head.size
    known = [head for head in _said(home, own, best) if not given_up(head, best.head.terms)]
    newer = [head for head in known if _place(head) > best.head.place]
    if newer and not accept_older:
        raise CheckFailed(
            f"{home} has published a checkpoint of {newer[0].size} entries, {best.name} has {size}",
            "restore from somebody who has more. If nobody has, nothing of it was final: "
            "--accept-older goes on without these entries. Should anybody have seen them, a "
            "coordinator that does so is caught signing two histories",
        )
    covered = [head for head in known if head not in newer]
    if heads_error(covered, size, best.tree.root_at):
        raise CheckFailed(
            f"{home} has published, signed or seen another history than {best.name} shows: the log "
            "has signed both",
            f"nothing was changed; keep {home}, and what {best.name} shows",
        )


def _said(home: Path, own: _Own, best: Offer) -> list[Checkpoint]:
    """The tree heads of the log that the home keeps, the newest first."""
    known: list[Checkpoint] = []
    with suppress(ArtelError):  # a file that says nothing that could be relied on
        said = parse_checkpoint(own.published)
        note.open_note(own.published, verifier_keys(said.origin, _leaders(own, best)))
        known.append(said)
    run, leaders = best.head.run, _leaders(own, best)
    if (home / HEADS_NAME).exists():
        with closing(HeadStore(home / HEADS_NAME)) as heads:
            known += known_heads(heads, run, best.head.terms)
    if (home / NODE_KEY).exists():
        key = identity.load(home / NODE_KEY).key
        with SecondMemory.reading(run, key) as second:
            known += second.known(run, [*leaders, key]) if second is not None else []
    return sorted(known, key=_place, reverse=True)


def _place(head: Checkpoint) -> tuple[int, int]:
    return term_of(head.origin, run_of(head.origin)) or 0, head.size


def _leaders(own: _Own, best: Offer) -> list[str]:
    """Keys (hex) of all who are known to have led: by the home's ledger, or by what is offered."""
    own_leaders = own.store.leaders() if own.store is not None and own.store.size else []
    named = manifest_of(best.source, best.head.run, best.head.size)[0].coordinators
    return [*dict.fromkeys([*named, *own_leaders, *(term.leader for term in best.head.terms)])]


# --- making it again ------------------------------------------------------------------------------


def _from_other(home: Path, own: _Own, best: Offer, progress: Tell) -> Restored:
    head, notes = best.head, (best.certified, best.head.note)

    def take(store: LedgerStore, fold: Fold) -> None:
        try:
            take_over(store, best.source, head, fold, best.tree, progress=progress)
        except CheckFailed as error:
            raise CheckFailed(
                f"the entries are not those that the checkpoint signs: {error.message}",
                "artel ledger audit TARGET --run ID --full names the one that is wrong",
            ) from None

    return _made(home, own, take, head.run, best.name, notes)


def _from_itself(home: Path, own: _Own, run: str, progress: Tell) -> Restored:
    """The home's sound entries under its newest head in a new file."""
    store = own.store
    if store is None and own.damage:
        raise CheckFailed(own.damage, LostEntries("", home, run or own.run).hint)
    if store is None or not store.size:
        raise UsageError(f"there is no ledger in {home}", "name a copy of it with --from TARGET")
    if run not in ("", store.genesis.run):
        raise UsageError(f"{home} has the ledger of another run: {store.genesis.run}")
    if verify_home(home).verified:
        raise UsageError(f"{home} has a sound ledger of {store.size} entries", "nothing to restore")
    signed = store

    def take(new: LedgerStore, fold: Fold) -> None:
        def read() -> Iterator[Entry]:
            for done, entry in enumerate(checked(signed.leaves(), 0), 1):
                yield entry
                progress(done, signed.size)

        new.append_replica(read(), signed.latest_note, fold.beside)

    return _made(home, own, take, store.genesis.run)


def _made(
    home: Path,
    own: _Own,
    take: Callable[[LedgerStore, Fold], None],
    run: str,
    source: str = "",
    notes: Sequence[str] = (),
) -> Restored:
    """Put a ledger that ``take`` fills in the place of the home's.

    :param notes: heads of it that came along with their cosignatures
    """
    work = files.unfinished(home / "ledger")
    with storage_errors(home):
        work.mkdir()
    try:
        with LedgerStore.open(work / DATABASE_NAME, create=True) as store:
            fold = Fold.open(store)
            take(store, fold)
            fold.settle()
            if fold.state.run != run:
                raise CheckFailed("the manifest is not signed by its organiser")
            found = finality.of_notes(notes, store, fold.state)
            size, root, newest = store.size, store.root, store.latest_note
            leaders, terms = store.leaders(), store.terms()
        kept = _put_in_place(home, work)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    signs = _signs(home, leaders)
    if source:
        with closing(HeadStore(home / HEADS_NAME)) as heads:
            heads.look_again(run, terms)
            if signs:  # there are newer ones only when an older ledger was accepted
                heads.forget_after(newest)
                heads.add_note(newest)
            for text in {found.certified, found.cosigned} - {""}:
                heads.add_note(text)
        second = SecondMemory.of(run, identity.load(home / NODE_KEY).key) if signs else None
        if second is not None:
            with closing(second):
                second.begin_with(newest)
    certified = size_of(found.certified)
    return Restored(run, size, root, own.size, own.damage, kept, certified, source, signs)


def _signs(home: Path, leaders: Collection[str]) -> bool:
    """Whether the key of the home's node is one of those that sign this log."""
    path = home / NODE_KEY
    return path.exists() and identity.load(path).key in leaders


def _put_in_place(home: Path, work: Path) -> Path | None:
    """Let the new ledger take the place of the old one, which stays under another name.

    At every moment the home has a ledger, or never had one: a coordinator that found none would
    begin the run anew. Should this be cut off between the two replacements, the old checkpoint
    file does not fit the database; it is then opened by nobody, and restored once more.
    """
    path = home / DATABASE_NAME
    kept = None
    with storage_errors(path):
        if path.exists():
            kept = _free_name(home)
            os.link(path, kept)
        beside = kept or _free_name(home)
        # An old log must never be applied to the new file.
        for suffix in SIDE_FILES:
            side = path.with_name(path.name + suffix)
            if side.exists():
                side.rename(f"{beside}{suffix}")
        sync_folder(home)
        os.replace(work / DATABASE_NAME, path)
        os.replace(work / CHECKPOINT_NAME, home / CHECKPOINT_NAME)
        sync_folder(home)
    return kept


def _free_name(home: Path) -> Path:
    """A name for a ledger that is replaced, under which the home has nothing yet."""
    stem = f"{DATABASE_NAME}.replaced-"
    taken = {path.name.removeprefix(stem).partition("-")[0] for path in home.glob(f"{stem}*")}
    number = next(n for n in itertools.count(1) if str(n) not in taken)
    return home / f"{stem}{number}"
