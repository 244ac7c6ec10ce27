"""``artel ledger audit``: is what a log serves what it signed?"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import quote
from artel.ledger.cli.opening import holding
from artel.protocol.commandline import AsJson, RunId, VKeys, progress, show
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.entries import Entry
    from artel.ledger.entries.state import FoldState
    from artel.ledger.sync.source import TileSource

_BATCH = 1024


# --- audit ----------------------------------------------------------------------------------------


def audit(
    target: Annotated[str, Parameter(metavar="TARGET")],
    /,
    *,
    vkey: VKeys = (),
    run: RunId = "",
    origin: str | None = None,
    full: bool = False,
    as_json: AsJson = False,
) -> int:
    """Check that a log serves what it signed: ours, or any other of the C2SP format.

    example: artel ledger audit http://HOST:8080 --vkey VKEY --full

    :param target: an http(s) URL, a folder of tiles, a multiaddr, an invite
    :param run: run id, which vouches for the key of a run's log
    :param origin: origin line, when it is not the name of the log's key
    :param full: read every entry and tile; of a run, replay it all
    """
    from artel.ledger.fold import labels
    from artel.ledger.store.store import DATABASE_NAME
    from artel.ledger.sync.audit import audit
    from artel.ledger.sync.source import newest_heads

    folder = expanded(Path(target))
    if os.path.isfile(folder / DATABASE_NAME):  # also of an invite, too long for a name
        raise UsageError(
            f"{folder} is the home of a node or a coordinator",
            f"check it with: artel ledger verify --home {quote(folder)}",
        )
    with holding(target) as (holder, named):
        newest, _ = newest_heads(holder)  # also finds out where the tiles are
        vkeys = list(vkey) or _vkeys(holder, newest, run or named)
        fold = _Fold() if full and _is_run(newest) else None
        report = audit(
            holder,
            vkeys,
            full=full,
            origin=origin,
            progress=progress("entries audited"),
            on_entry=fold.add if fold is not None else None,
        )
        state = fold.done() if fold is not None else None
    facts: dict[str, Any] = {
        "verified": True,
        "origin": report.origin,
        "size": report.size,
        "root": report.root.hex(),
        "as_of": report.size,
        "signers": list(report.signers),
        "cosigners": report.cosigners,
        "full": report.full,
        "tiles": report.tiles,
        "entries": report.entries,
        "entry_bytes": report.entry_bytes,
    }
    if fold is not None and state is not None:
        facts |= {"signatures": fold.signatures, "unsigned": fold.unsigned, "run": state.run}
        facts |= {"accounts": len(state.accounts), "vested": state.total_vested}
        facts |= {"pending": state.total_pending, "ignored": state.ignored}
        left = labels.unchecked(len(state.states), report.size, state.final)
        facts["not_checked"] = [asdict(item) for item in left]
    return show(facts, _report(facts), as_json=as_json)


def _report(facts: dict[str, Any]) -> Iterator[str]:
    from artel.ledger.entries import words as text

    yield f"origin  {text.printable(facts['origin'])}"
    yield f"size    {facts['size']:,}"
    yield f"root    {facts['root']}"
    signers = ", ".join(map(text.printable, facts["signers"]))
    yield f"ok      the checkpoint is signed by {signers}"
    if facts["cosigners"]:
        yield f"ok      cosigned by {', '.join(map(text.printable, facts['cosigners']))}"
    tiles = text.plural(facts["tiles"], "tile")
    if not facts["full"]:
        yield f"ok      the {tiles} on the right edge give its root; --full reads every entry"
        return
    entries = text.plural(facts["entries"], "entry", "entries")
    yield f"ok      {entries} ({facts['entry_bytes']:,} bytes) and {tiles} give its root"
    if "run" not in facts:
        return
    yield f"ok      every entry decodes; {facts['signatures']:,} signatures verify"
    if facts["unsigned"]:
        yield f"        {facts['unsigned']:,} entries with a bad signature count for nothing"
    yield (
        f"ok      replayed: {text.plural(facts['accounts'], 'account')}, "
        f"{facts['vested']:,} credit vested, {facts['pending']:,} pending"
    )
    if facts["ignored"]:
        yield f"        entries that count for nothing: {text.counts(facts['ignored'])}"
    yield "\nnot checked:"
    for item in facts["not_checked"]:
        yield f"--      {item['name']}: {item['detail']}"


def _is_run(newest: str) -> bool:
    from artel.ledger.sync.offline import run_of
    from artel.ledger.tlog.checkpoint import parse_checkpoint

    return bool(run_of(parse_checkpoint(newest).origin))


def _vkeys(source: TileSource, newest: str, run: str) -> list[str]:
    """The keys of a run's log, by way of the manifest that the run id names.

    :raises UsageError: when the run id is not given
    """
    from artel.ledger.sync.tree import verified_head

    if not run:
        raise UsageError(
            "no key to check the log's signature with",
            "add --vkey VKEY (/ledger/run shows a run's), or --run ID for a run",
        )
    return [key.encode() for key in verified_head(source, newest, run=run).keys]


class _Fold:
    """Decodes entries, checks their signatures on all cores and folds them, as an audit goes."""

    def __init__(self) -> None:
        from artel.ledger.fold.shares import FoldState

        self._waiting: list[bytes] = []
        self._state = FoldState()
        self.signatures = 0
        self.unsigned = 0

    def add(self, index: int, leaf: bytes) -> None:
        self._waiting.append(leaf)
        if len(self._waiting) >= _BATCH:
            self._flush()

    def done(self) -> FoldState:
        self._flush()
        if self._state.size and not self._state.run:
            raise CheckFailed("the manifest is not signed by its organiser")
        return self._state

    def _flush(self) -> None:
        from artel.ledger.fold.shares import apply
        from artel.ledger.sync.view import decoded_entries

        entry: Entry
        for _, entry in decoded_entries(self._waiting, self._state.size):
            self.signatures += len(entry.signers)
            self.unsigned += not entry.signers
            apply(self._state, entry)
        self._waiting = []
