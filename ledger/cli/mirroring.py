"""``artel ledger mirror | restore``: a copy of a log for others, and a home's ledger out of one."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from artel.ledger.cli.meant import quote
from artel.ledger.cli.opening import DEFAULT_HOME, Home, LedgerOptions, holding
from artel.ledger.entries.words import plural
from artel.protocol.commandline import AsJson, Folder, RunId, progress, show
from artel.protocol.errors import EXIT_OK, Unreachable
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.sync.mirror import Mirrored
    from artel.ledger.sync.restore import Restored

FOLLOW_S = 10.0

# --- mirror ---------------------------------------------------------------------------------------


def mirror(
    folder: Folder, /, *, follow: bool = False, ledger: LedgerOptions = LedgerOptions()
) -> int:
    """Copy a ledger into a folder of static files that any web server can serve.

    example: artel ledger mirror public/ledger --from http://HOST:8080 --follow

    :param folder: where the files go
    :param follow: go on until Ctrl-C
    """
    from artel.ledger.sync.mirror import mirror

    while True:
        try:
            with ledger.opened() as view:
                found = mirror(view, folder, progress("files"))
                ledger = replace(ledger, run=view.state.run)  # one run, and one word about trust
        except Unreachable as error:
            if not follow:
                raise
            print(f"{error.message}; trying again", file=sys.stderr)
        else:
            ledger.show(found, _mirrored(found, folder, ledger.run, follow))
        if not follow:
            return EXIT_OK
        sys.stdout.flush()
        time.sleep(FOLLOW_S)


def _mirrored(found: Mirrored, folder: Path, run: str, follow: bool) -> Iterator[str]:
    if found.behind:
        yield f"the source is {found.behind} entries behind this copy of {found.size}; kept it"
        return
    if follow and found.size == found.before:
        return
    certified = f", {found.certified} of them certified" if found.certified else ""
    yield (
        f"{folder} holds {plural(found.size, 'entry', 'entries')} of {found.origin}{certified} "
        f"({found.size - found.before} new, {found.files} files written)"
    )
    if not follow:
        audit = ["artel", "ledger", "audit", str(folder), "--run", run, "--full"]
        yield f"check all of it with: {shlex.join(audit)}"


# --- restore --------------------------------------------------------------------------------------


def restore(
    *,
    source: Annotated[str | None, Parameter(name="--from", metavar="TARGET")] = None,
    home: Home = DEFAULT_HOME,
    run: RunId = "",
    accept_older: bool = False,
    as_json: AsJson = False,
) -> int:
    """Make a home's ledger again out of a copy that somebody else holds.

    Without --from, out of its own entries: whatever follows from them is computed again.

    example: artel ledger restore --from http://HOST:8080 --home coordinator

    :param source: a mirror's folder, another home, http(s)://..., an invite, or a multiaddr with
        /p2p/PEER
    :param home: home to restore, while nothing uses it
    :param run: run id that the log has to have
    :param accept_older: although this home has published a newer checkpoint than anybody holds
    """
    from artel.ledger.sync.restore import restore

    home, shown = expanded(home), progress("entries")
    if source is None:
        found = restore(None, home, run, progress=shown)
    else:
        with holding(source, run) as (holder, run):
            found = restore(holder, home, run, accept_older=accept_older, progress=shown)
        if not (run or found.before or as_json):
            print(
                f"trusting the source for the run id {found.run}; --run ID checks", file=sys.stderr
            )
    return show(found, _restored(found, home), as_json=as_json)


def _restored(found: Restored, home: Path) -> Iterator[str]:
    yield f"run {found.run}"
    if found.damage:
        yield f"the old ledger could not be used: {found.damage}"
    taken = f"taken from {found.source} ({found.before} before)" if found.source else "its own"
    yield f"{home} has {found.size} entries now, {taken}"
    yield f"every one is covered by the coordinator's checkpoint, root {found.root.hex()}"
    if found.kept is not None:
        yield f"the old database is {found.kept}"
    if found.coordinator and found.source:
        yield (
            "this home signs the log: before you start it, make sure that nobody holds more than "
            f"these\n{found.size} entries. Whoever does would see a second history, and prove it"
        )
    yield f"check it with: artel ledger verify --home {quote(home)}"
