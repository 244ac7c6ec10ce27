"""``artel ledger mirror | restore``: a copy of a log for others, and a home's ledger out of one."""

from __future__ import annotations

import shlex
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from artel.ledger.cli.meant import quote
from artel.ledger.cli.opening import DEFAULT_HOME, Home, holding
from artel.protocol import options
from artel.protocol.commandline import AsJson, Folder, RunId, VKeys, progress, show, value
from artel.protocol.errors import EXIT_OK, Unreachable, UsageError
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.sync.mirror import Mirrored
    from artel.ledger.sync.restore import Restored

# --- mirror ---------------------------------------------------------------------------------------


def mirror(
    source: Annotated[str, Parameter(metavar="TARGET")],
    folder: Folder,
    /,
    *,
    vkey: VKeys = (),
    run: RunId = "",
    follow: bool = False,
    every: Annotated[int, value(options.whole(1, 86_400), "SECONDS")] = 10,
    as_json: AsJson = False,
) -> int:
    """Copy a log into a folder of static files that any web server can serve.

    example: artel ledger mirror http://HOST:8080 public/ledger --follow

    :param source: the log: an invite, http(s)://..., a multiaddr with /p2p/PEER, or a folder of
        tiles
    :param folder: where the files go
    :param run: run id that the log has to have
    :param follow: go on until Ctrl-C
    :param every: with --follow: between two looks
    """
    from artel.ledger.sync.mirror import mirror
    from artel.ledger.tlog.note import VerifierKey

    vkeys = [VerifierKey.parse(text) for text in vkey]
    with holding(source) as (holder, named):
        while True:
            try:
                found = mirror(holder, folder, vkeys, run or named, progress("files"))
            except Unreachable as error:
                if not follow:
                    raise
                print(f"{error.message}; trying again", file=sys.stderr)
            else:
                pinned = bool(vkeys or run or named or found.before)
                _say_trust(found.origin, pinned or as_json)
                show(
                    found,
                    _mirrored(found, folder, vkey, follow),
                    as_json=as_json,
                )
            if not follow:
                return EXIT_OK
            sys.stdout.flush()
            time.sleep(every)


def _say_trust(origin: str, pinned: bool) -> None:
    if not pinned:
        print(
            f"trusting the source for which log it is: {origin}; --run ID checks", file=sys.stderr
        )


def _mirrored(found: Mirrored, folder: Path, vkeys: Sequence[str], follow: bool) -> Iterator[str]:
    from artel.ledger.sync.offline import run_of

    if found.behind:
        yield f"the source is {found.behind} entries behind this copy of {found.size}; kept it"
        return
    if follow and found.size == found.before:
        return
    final = f", final up to {found.final}" if found.final else ""
    yield (
        f"{folder} holds {found.origin} up to entry {found.size}{final} "
        f"({found.size - found.before} new, {found.files} files written)"
    )
    if not follow:
        trusted = [word for key in vkeys for word in ("--vkey", key)]
        trusted = trusted or ["--run", run_of(found.origin)]
        audit = ["artel", "ledger", "audit", str(folder), *trusted, "--full"]
        yield f"check all of it with: {shlex.join(audit)}"


# --- restore --------------------------------------------------------------------------------------


def restore(
    *,
    source: Annotated[tuple[str, ...], Parameter(name="--from", metavar="TARGET")] = (),
    home: Home = DEFAULT_HOME,
    run: RunId = "",
    accept_older: bool = False,
    as_json: AsJson = False,
) -> int:
    """Make a home's ledger again out of a copy that somebody else holds.

    Without --from, out of its own entries: whatever follows from them is computed again.

    example: artel ledger restore --from http://HOST:8080 --home coordinator

    :param source: a mirror's folder, http(s)://..., an invite, or a multiaddr with /p2p/PEER; may
        be given several times, the newest one is taken
    :param home: home to restore, while nothing uses it
    :param run: run id that the log has to have
    :param accept_older: although this home has published a newer checkpoint than anybody holds
    """
    from artel.ledger.sync.restore import restore

    home = expanded(home)
    with ExitStack() as stack:
        held = [stack.enter_context(holding(name)) for name in source]
        runs = ({named for _, named in held} | {run}) - {""}
        if len(runs) > 1:
            raise UsageError("the invites and --run name different runs")
        found = restore(
            [holder for holder, _ in held],
            home,
            next(iter(runs), ""),
            accept_older=accept_older,
            progress=progress("entries"),
        )
    _say_trust(f"run {found.run}", as_json or bool(runs or found.before))
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
