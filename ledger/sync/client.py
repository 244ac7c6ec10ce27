"""Opens a ledger for reading: of a home, or of whoever holds it elsewhere.

What is trusted is the run id alone: it is the hash of the manifest in entry 0, which names the
coordinators, whose key signs the tree head, whose root binds every entry; the entries themselves
are checked signature by signature. With nothing but a URL or an address, the run id is what the
peer says, and :attr:`View.trust` says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from artel.ledger.fold.alias import read_table
from artel.ledger.store import cache
from artel.ledger.store.cache import TileCache
from artel.ledger.store.published import term_of
from artel.ledger.sync.remote import RemoteLog
from artel.ledger.sync.source import (
    ALIASES_PATH,
    CONFLICTS_PATH,
    MAX_WORDS,
    Holder,
    newest_heads,
    read_json,
)
from artel.ledger.sync.view import Cosigner, Log, View
from artel.ledger.tlog.checkpoint import Checkpoint, open_checkpoint, parse_checkpoint
from artel.protocol.errors import CheckFailed, DecodeError
from artel.protocol.paths import expanded
from artel.protocol.terminal import printable

__all__ = ["Cosigner", "Log", "View", "home_view", "open_log", "remote_view"]


@contextmanager
def home_view(home: Path, *, caching: bool = True) -> Iterator[View]:
    """The ledger of a home as it is now; nothing in the home is changed.

    :raises UsageError: there is none
    :raises CheckFailed: it is damaged, or its newest checkpoint is not the coordinator's
    """
    from artel.ledger.store.heads import HeadStore
    from artel.ledger.store.reading import LedgerReader

    home = expanded(home)
    # The kept heads first: the ledger is never behind them.
    with HeadStore.of(home) as heads, LedgerReader.of(home) as store:
        view = View(store, str(home), home=home)
        if store.size and caching:
            place = hashlib.sha256(str(home.resolve()).encode()).hexdigest()[:16]
            view.keep = cache.default_folder(store.genesis.run) / f"home-{place}.json"
        if heads is not None:
            view.heads = heads
            view.names = heads.aliases()
            view.evidence = heads.conflicts()
        yield view


@contextmanager
def remote_view(holder: Holder, run: str = "", *, caching: bool = True) -> Iterator[View]:
    """The ledger that somebody else holds.

    :param run: the run id that it must have; "" takes the peer's word
    :raises CheckFailed: what is served does not hold, or is of another run
    :raises Unreachable: nobody answers
    """
    log, final = open_log(holder, run, None if not caching else cache.default_folder)
    view = View(log, holder.name, holder=holder, notes=[final, log.latest_note])
    name = log.genesis.run
    if not run:
        view.trust = f"trusting {holder.name} for the run id {name[:12]}…; give --run ID to check"
    if caching:
        view.keep, view.shared = cache.default_folder(name) / "log.json", True
    view.names = _names(holder)
    found = read_json(holder, CONFLICTS_PATH)
    if isinstance(found, list):
        view.evidence = [item for item in found[:64] if isinstance(item, dict)]
    yield view


def open_log(
    holder: Holder, run: str, folder: Callable[[str], Path] | None
) -> tuple[RemoteLog, str]:
    """The newest tree of a holder, verified down from the run id, and its final tree head.

    :param folder: where tiles of a run are cached; None for nowhere
    """
    try:
        newest, final = newest_heads(holder)
        # Asked for one after the other, the final one may be the newer one.
        heads = [parse_checkpoint(text) for text in (newest, final) if text]
    except DecodeError as error:
        raise CheckFailed(f"{holder.name}: {error.message}") from None
    log = open_head(holder, newest if heads[0] == max(heads, key=_size) else final, run, folder)
    if final:
        log.notes.setdefault(parse_checkpoint(final).size, final)
    return log, final


def open_head(
    holder: Holder, text: str, run: str, folder: Callable[[str], Path] | None
) -> RemoteLog:
    """The tree behind one head of a holder, verified down from the run id.

    :param folder: where tiles of a run are cached; None for nowhere
    :raises CheckFailed: it is not served, or not signed by the run's coordinators
    """
    head = parse_checkpoint(text)
    claimed = head.origin.split("/")[1] if head.origin.count("/") == 3 else ""
    if term_of(head.origin, claimed) is None:
        raise CheckFailed(
            f"{holder.name} holds a log that is no run of Artel: {printable(head.origin[:120])!r}",
            "other logs can be audited: artel ledger audit TARGET --vkey VKEY",
        )
    if run and claimed != run:
        raise CheckFailed(f"{holder.name} holds run {claimed[:12]}…, not {run[:12]}…")
    cached = TileCache(folder(claimed) if folder is not None else None)
    log = RemoteLog(holder, head, text, cached)
    if log.genesis.run != claimed:
        raise CheckFailed(
            f"the manifest that {holder.name} shows is not that of run {claimed[:12]}…"
        )
    open_checkpoint(text, head.origin, log.genesis.coordinators)
    return log


def _size(head: Checkpoint) -> int:
    return head.size


def _names(holder: Holder) -> dict[str, tuple[str, str]]:
    """What a holder says that accounts want to be called; shown, and trusted with nothing else."""
    try:
        names = read_table(read_json(holder, ALIASES_PATH))
    except DecodeError:
        return {}

    def shown(text: str) -> str:
        return printable(text[:MAX_WORDS])

    return {shown(key): (shown(name), shown(team)) for key, (name, team) in names.items()}
