"""Opens a ledger for reading: of a home, or of whoever holds it elsewhere.

What is trusted is the run id alone: it is the hash of the manifest in entry 0, which names the
coordinators, whose key signs the tree head, whose root binds every entry; the entries themselves
are checked signature by signature. With nothing but a URL or an address, the run id is what the
peer says, and :attr:`LedgerView.trust` says so.
"""

from __future__ import annotations

import fcntl
import os
import shlex
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory

from artel.ledger.entries import decode
from artel.ledger.entries.records import Term
from artel.ledger.fold import history
from artel.ledger.fold.alias import read_table
from artel.ledger.fold.effects import Fold
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.published import given_up, run_of, term_of
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync.fork import shared
from artel.ledger.sync.signed_tree import Offer, Shown, SignedHead, offered, take_over
from artel.ledger.sync.source import (
    ALIASES_PATH,
    CONFLICTS_PATH,
    MAX_WORDS,
    Holder,
    TileSource,
    read_json,
)
from artel.ledger.sync.view import LedgerView
from artel.ledger.tlog.checkpoint import Checkpoint, origin_of
from artel.ledger.tlog.proof import begins_with
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, ResourceError, UsageError
from artel.protocol.paths import expanded
from artel.protocol.terminal import printable

__all__ = ["LedgerView", "home_view", "remote_view"]

LAST_NAME = "from"
"""File beside what was fetched of a run: who was asked last."""
MAX_FETCHED_BYTES = 4 << 30
"""Of entries and documents that a reader takes over at a time: a stranger's log must not fill the
disk."""


@contextmanager
def home_view(home: Path) -> Iterator[LedgerView]:
    """The ledger of a home as it is now; nothing in the home is changed.

    :raises UsageError: there is none
    :raises CheckFailed: it is damaged, or its newest checkpoint is not the coordinator's
    """
    home = expanded(home)
    # The kept heads first: the ledger is never behind them.
    with HeadStore.of(home) as heads, LedgerReader.of(home) as store:
        view = LedgerView(store, str(home), home=home)
        if heads is not None:
            view.heads = heads
            view.aliases = heads.aliases()
            view.evidence = heads.conflicts()
        yield view


@contextmanager
def run_view(home: Path, run: str) -> Iterator[LedgerView]:
    """The ledger of a run: of a home that has it, or else as it was read here last.

    :raises UsageError: there is neither
    :raises CheckFailed: it is damaged
    """
    folder = default_folder(run)
    with ExitStack() as stack:
        try:
            view = stack.enter_context(home_view(home))
            if view.log.size and view.log.genesis.run != run:
                raise UsageError(f"{view.where} holds run {view.log.genesis.run[:12]}…")
        except UsageError:
            if not (folder / DATABASE_NAME).is_file():
                raise
            store = stack.enter_context(LedgerReader.of(folder, run))
            where = "somebody"
            with suppress(OSError, UnicodeError):
                where = printable((folder / LAST_NAME).read_text("utf-8")[:MAX_WORDS])
            said = f"as it was read here last, from {where}; --from TARGET reads it anew"
            view = LedgerView(store, str(folder), trust=said)
        yield view


@contextmanager
def remote_view(holder: Holder, run: str = "") -> Iterator[LedgerView]:
    """The ledger that somebody else holds, read from a replica that is brought up to date here.

    The replica is kept for the next call, which then fetches only what is new.

    :param run: the run id that it must have; "" takes the peer's word
    :raises CheckFailed: what is served does not hold, is of another run, or contradicts what was
        read here before
    :raises Unreachable: nobody answers
    """
    try:
        offer = offered(holder, run=run, known=_known_terms)
    except DecodeError as error:
        raise CheckFailed(f"{holder.name}: {error.message}") from None
    name = offer.head.run
    with _replica(default_folder(name), offer) as (store, seen):
        if store.path.parent == default_folder(name):
            with suppress(OSError):
                (store.path.parent / LAST_NAME).write_text(holder.name, "utf-8")
        notes = [offer.certified, offer.head.note]
        view = LedgerView(store, holder.name, holder=holder, notes=notes, seen=seen)
        if not run:
            said = f"trusting {holder.name} for the run id {name[:12]}…"
            view.trust = f"{said}; give --run ID to check"
        view.aliases = _names(holder)
        found = read_json(holder, CONFLICTS_PATH)
        if isinstance(found, list):
            view.evidence = [item for item in found[:64] if isinstance(item, dict)]
        yield view


def default_folder(run: str) -> Path:
    """Where readers keep what they fetched of a run: ``$XDG_CACHE_HOME/artel/ledger/RUN/replica``.

    It can be lost, and is then fetched again.
    """
    try:
        base = Path(os.environ.get("XDG_CACHE_HOME") or expanded(Path("~/.cache")))
    except UsageError:  # a container's user without a home: nothing is kept
        base = Path(os.devnull)
    return base / "artel" / "ledger" / run / "replica"


@contextmanager
def _replica(folder: Path, offer: Offer) -> Iterator[tuple[LedgerStore, int]]:
    """A store that holds exactly the tree that is offered: the one that is kept, or a passing one.

    And the size of what is kept, if that is larger.

    A folder that cannot be written is no reason to fail, nor one that holds more than is offered.
    """
    with ExitStack() as stack:
        store: LedgerStore | None = None
        seen = 0
        with suppress(ResourceError, OSError):
            store = stack.enter_context(_kept(folder, offer))
        if store is not None and (store.term, store.size) > offer.head.place:
            seen, store = store.size, None
        if store is None:
            passing = stack.enter_context(TemporaryDirectory(prefix="artel-ledger-"))
            store = stack.enter_context(_opened(Path(passing), offer))
            _bring_up_to_date(store, offer)
        yield store, seen


@contextmanager
def _kept(folder: Path, offer: Offer) -> Iterator[LedgerStore]:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    # Two commands at once: the second one waits, and has then less to fetch.
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        try:
            store = _opened(folder, offer)
        except (CheckFailed, DecodeError):  # damaged, or another form: it is fetched again
            _remove(folder)
            store = _opened(folder, offer)
        with closing(store):
            try:
                _bring_up_to_date(store, offer)
                fcntl.flock(lock, fcntl.LOCK_UN)
                yield store
            except (CheckFailed, DecodeError) as error:
                _explain_damage(folder, store, error)
                raise


def _known_terms(origin: str) -> list[Term]:
    """Who has led up to a term, by what was read of its run before."""
    run = run_of(origin)
    with suppress(ArtelError), _read_before(run) as reader:
        if reader is not None and reader.size:
            terms = [term for term in reader.terms() if term.number <= (term_of(origin, run) or 0)]
            return terms if terms and origin == origin_of(run, terms[-1].number) else []
    return []


@contextmanager
def _read_before(run: str) -> Iterator[LedgerReader | None]:
    """The replica of a run that is kept; None when there is none, or it cannot be opened."""
    folder = default_folder(run)
    with ExitStack() as stack:
        reader = None
        if run and (folder / DATABASE_NAME).is_file():
            with suppress(ArtelError):
                reader = stack.enter_context(LedgerReader.of(folder, run))
        yield reader


def require_known_history(source: TileSource, head: Checkpoint, run: str) -> None:
    """Hold a head that a source proves something by against what was read of the run before.

    The log is not fetched: where the head is newer than the replica that is kept, a few tiles tell.

    :raises CheckFailed: they are of two histories, the head was given up with its term, or the
        source does not show the head's tree
    :raises Unreachable: the source does not answer
    """
    with _read_before(run) as kept:
        if kept is None or not kept.size:
            return
        if SignedHead("", head, ()).place > (kept.term, kept.size):
            offer = offered(source, run=run)
            if not begins_with(offer.tree, head.size, head.root):
                raise CheckFailed(
                    f"{source.name} does not show the tree that it proves something by"
                )
            _require_one_history(kept, offer)
        elif given_up(head, kept.terms()):
            raise CheckFailed(
                f"{source.name} proves it by a tree head that was given up when its term ended",
                "ask another holder: this one does not know yet who leads the run",
            )
        else:
            try:
                ours = kept.root_at(head.size)
            except CheckFailed:  # damaged: whoever reads the ledger fetches it again
                return
            if ours != head.root:
                raise _two_histories(kept.path.parent, head.size)


def newest_known_root(run: str, term: int) -> int:
    """The entry that names the newest credit root in what was read of a run before; 0 for none, and
    where that was before this term."""
    with suppress(ArtelError), _read_before(run) as kept:
        if kept is not None and kept.size and kept.term >= term:
            return history.read(kept).state.rooted_by
    return 0


def _two_histories(folder: Path, shared: int) -> CheckFailed:
    return CheckFailed(
        f"this ledger does not begin with the {shared:,} entries that were read and checked "
        "here before: somebody has signed two histories",
        "see which: artel ledger compare URL OTHER-URL; what was read before is in "
        f"{shlex.quote(str(folder))}: without it this one is read anyway",
    )


def _explain_damage(folder: Path, store: LedgerStore, error: ArtelError) -> None:
    """Was it the copy here that did not hold? Then the next call fetches it again."""
    try:
        for leaf in store.leaves():
            decode(leaf)
    except (CheckFailed, DecodeError):
        _remove(folder)
        error.hint = (
            f"the copy in {folder} was damaged, or of another version, and is removed: "
            "run the command again"
        )


def _remove(folder: Path) -> None:
    for path in folder.glob("*"):
        if path.name != "lock":
            path.unlink(missing_ok=True)


def _opened(folder: Path, offer: Offer) -> LedgerStore:
    path = folder / DATABASE_NAME
    return LedgerStore.open(path, create=True, run=offer.head.run)


def _bring_up_to_date(store: LedgerStore, offer: Offer) -> None:
    """Take over what the store has not, if it goes on from what the store has.

    :raises CheckFailed: it does not
    """
    head, tree = offer.head, offer.tree
    fold = Fold.open(store)
    if store.size:
        _require_one_history(store, offer)
    if (store.term, store.size) < head.place:
        take_over(store, offer.source, head, fold, tree, most=MAX_FETCHED_BYTES, processes=True)


def _require_one_history(kept: LedgerReader, offer: Offer) -> None:
    """What is offered has to go on from what was read before, but for what was given up."""
    size = shared(Shown.of(kept, "").head, offer.head)
    if kept.root_at(size) != offer.tree.root_at(size):
        raise _two_histories(kept.path.parent, size)


def _names(holder: Holder) -> dict[str, tuple[str, str]]:
    """What a holder says that accounts want to be called; shown, and trusted with nothing else."""
    try:
        names = read_table(read_json(holder, ALIASES_PATH))
    except DecodeError:
        return {}

    def shown(text: str) -> str:
        return printable(text[:MAX_WORDS])

    return {shown(key): (shown(name), shown(team)) for key, (name, team) in names.items()}
