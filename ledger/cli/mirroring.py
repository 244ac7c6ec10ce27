"""``artel ledger mirror | restore``: a copy of a log for others, and a home's ledger out of one."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from artel.ledger.cli import DEFAULT_HOME, Add, print_json, quote
from artel.ledger.cli.opening import run_id
from artel.protocol.errors import EXIT_OK, Unreachable, UsageError
from artel.protocol.options import whole
from artel.protocol.paths import expanded

if TYPE_CHECKING:
    from artel.ledger.sync.holders import Holder
    from artel.ledger.sync.mirror import Mirrored, Progress

_EVERY_S = 10
_PROGRESS_EVERY = 256


def register(add: Add) -> None:
    """Add the commands."""
    mirror = add(
        "mirror",
        _mirror,
        "copy a log into a folder of static files that any web server can serve",
        "http://HOST:8080 public/ledger --follow",
        target=False,
    )
    mirror.add_argument(
        "source",
        metavar="TARGET",
        help="the log: an invite, http(s)://..., a multiaddr with /p2p/PEER, or a folder of tiles",
    )
    mirror.add_argument("folder", type=Path, metavar="DIR", help="where the files go")
    mirror.add_argument(
        "--vkey",
        action="append",
        default=[],
        metavar="VKEY",
        help="key to trust; needed for logs that are not those of a run",
    )
    _add_run(mirror)
    mirror.add_argument("--follow", action="store_true", help="go on until Ctrl-C")
    mirror.add_argument(
        "--every",
        type=whole(1, 86_400),
        default=_EVERY_S,
        metavar="SECONDS",
        help=f"with --follow: between two looks ({_EVERY_S})",
    )

    restore = add(
        "restore",
        _restore,
        "make a home's ledger again out of a copy that somebody else holds",
        "--from http://HOST:8080 --home coordinator",
        target=False,
    )
    restore.add_argument(
        "--from",
        dest="sources",
        action="append",
        required=True,
        metavar="TARGET",
        help="a mirror's folder, http(s)://..., an invite, or a multiaddr with /p2p/PEER; may be "
        "given several times, the newest one is taken",
    )
    restore.add_argument(
        "--home",
        type=Path,
        default=DEFAULT_HOME,
        metavar="DIR",
        help=f"home to restore, while nothing uses it (default: {DEFAULT_HOME})",
    )
    _add_run(restore)
    restore.add_argument(
        "--accept-older",
        action="store_true",
        help="although this home has published a newer checkpoint than anybody holds",
    )


@contextmanager
def _held(target: str) -> Iterator[tuple[Holder, str]]:
    """Who holds the log that a person names, and the run id that an invite adds."""
    from artel.ledger.sync.holders import hold

    holder, run = hold(target)
    try:
        yield holder, run
    finally:
        holder.close()


def _progress(what: str) -> Progress:
    """Shows a person how far it is, where there is somebody who looks."""

    def show(done: int, of: int) -> None:
        if done % _PROGRESS_EVERY == 0:
            print(f"\r{done:,} of {of:,} {what}", end="", file=sys.stderr, flush=True)
        if done == of and of >= _PROGRESS_EVERY:
            print(file=sys.stderr)

    return show if sys.stderr.isatty() else lambda _done, _of: None


def _add_run(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--run", default="", metavar="ID", help="run id that the log has to have")


# --- mirror ---------------------------------------------------------------------------------------


def _mirror(arguments: argparse.Namespace) -> int:
    from artel.ledger.sync.mirror import mirror
    from artel.ledger.tlog.note import VerifierKey

    vkeys = [VerifierKey.parse(text) for text in arguments.vkey]
    run = run_id(arguments.run or None)
    with _held(arguments.source) as (holder, named):
        while True:
            try:
                found = mirror(holder, arguments.folder, vkeys, run or named, _progress("files"))
            except Unreachable as error:
                if not arguments.follow:
                    raise
                print(f"{error.message}; trying again", file=sys.stderr)
            else:
                _say_trust(arguments, found.origin, bool(vkeys or run or named or found.before))
                _tell(arguments, found)
            if not arguments.follow:
                return EXIT_OK
            time.sleep(arguments.every)


def _say_trust(arguments: argparse.Namespace, origin: str, pinned: bool) -> None:
    if not pinned and not arguments.json:
        print(
            f"trusting the source for which log it is: {origin}; --run ID checks", file=sys.stderr
        )


def _tell(arguments: argparse.Namespace, found: Mirrored) -> None:
    from artel.ledger.sync.offline import run_of

    if arguments.json:
        facts = {
            "origin": found.origin,
            "size": found.size,
            "root": found.root.hex(),
            "before": found.before,
            "files": found.files,
            "final": found.final,
            "behind": found.behind,
        }
        print_json(facts)
        return
    if found.behind:
        print(f"the source is {found.behind} entries behind this copy of {found.size}; kept it")
    elif arguments.follow and found.size == found.before:
        return
    else:
        final = f", final up to {found.final}" if found.final else ""
        print(
            f"{arguments.folder} holds {found.origin} up to entry {found.size}{final} "
            f"({found.size - found.before} new, {found.files} files written)",
            flush=True,
        )
        if not arguments.follow:
            trusted = [word for key in arguments.vkey for word in ("--vkey", key)]
            trusted = trusted or ["--run", run_of(found.origin)]
            audit = ["artel", "ledger", "audit", str(arguments.folder), *trusted, "--full"]
            print(f"check all of it with: {shlex.join(audit)}")


# --- restore --------------------------------------------------------------------------------------


def _restore(arguments: argparse.Namespace) -> int:
    from artel.ledger.sync.restore import restore

    home = expanded(arguments.home)
    with ExitStack() as stack:
        held = [stack.enter_context(_held(name)) for name in arguments.sources]
        runs = {run for _, run in held if run} | {run_id(arguments.run or None)} - {""}
        if len(runs) > 1:
            raise UsageError("the invites and --run name different runs")
        found = restore(
            [holder for holder, _ in held],
            home,
            next(iter(runs), ""),
            accept_older=arguments.accept_older,
            progress=_progress("entries"),
        )
    if arguments.json:
        facts = {
            "run": found.run,
            "size": found.size,
            "root": found.root.hex(),
            "before": found.before,
            "damage": found.damage,
            "kept": str(found.kept) if found.kept is not None else None,
            "final": found.final,
            "source": found.source,
            "coordinator": found.coordinator,
        }
        print_json(facts)
        return EXIT_OK
    _say_trust(arguments, f"run {found.run}", bool(runs or found.before))
    print(f"run {found.run}")
    if found.damage:
        print(f"the old ledger could not be used: {found.damage}")
    print(f"{home} has {found.size} entries now, taken from {found.source} ({found.before} before)")
    print(f"every one is covered by the coordinator's checkpoint, root {found.root.hex()}")
    if found.kept is not None:
        print(f"the old database is {found.kept}")
    if found.coordinator:
        print(
            "this home signs the log: before you start it, make sure that nobody holds more than "
            f"these\n{found.size} entries. Whoever does would see a second history, and prove it"
        )
    print(f"check it with: artel ledger verify --home {quote(home)}")
    return EXIT_OK
