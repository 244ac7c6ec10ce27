"""What a node is started with: its options, its keys, its invite."""

from __future__ import annotations

import asyncio
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from cyclopts import Parameter

from artel.node import settings
from artel.node.account_link import Linked, Owner
from artel.node.log_file import LOG_FILE
from artel.node.settings import OwnerSettings
from artel.protocol import files, identity
from artel.protocol import options as types
from artel.protocol.commandline import (
    Announce,
    Bootstrap,
    File,
    Http,
    Listen,
    LogJson,
    Verbose,
)
from artel.protocol.errors import ArtelError, Unfit, UsageError
from artel.protocol.invite import Invite

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/0"
DEFAULT_HTTP = types.Endpoint("127.0.0.1", 0)
"""For this machine only, at a free port."""


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class NodeOptions:
    """What a node is given of its machine, and how it is reached."""

    account: Annotated[
        File | None, Parameter(help="key file of the owner; otherwise HOME/account.key")
    ] = None
    device: Annotated[
        Literal["auto", "cpu", "cuda"], Parameter(help="what the trainer computes on")
    ] = "auto"
    limits: OwnerSettings = OwnerSettings()
    listen: Annotated[
        Listen, Parameter(help="where to accept connections; port 0 is a free one")
    ] = (DEFAULT_LISTEN,)
    announce: Annotated[
        Announce,
        Parameter(
            help="address to tell others instead, like /ip4/203.0.113.7/tcp/4200 or "
            "/dns4/run.example.org/tcp/4200"
        ),
    ] = ()
    http: Annotated[
        Http,
        Parameter(
            help="where to serve the run's ledger and this node's page; port 0 is a free one"
        ),
    ] = DEFAULT_HTTP
    no_check: Annotated[bool, Parameter(help="start on a slow machine too")] = False
    bootstrap: Bootstrap = ()
    log_json: LogJson = False
    verbose: Verbose = False


def take_part(home: Path, join: str | None, node: NodeOptions) -> int:
    """Run a node until it is finished or has left; returns the exit code.

    :param join: the invite, when it is not in the home
    :raises ArtelError: it cannot start, or cannot go on
    """
    from artel.ledger.store.keyfiles import require_home_of
    from artel.ledger.web.server import claimed
    from artel.protocol import events

    require_home_of("node", home)
    with claimed(home, node.http, node.listen) as (lock, page):
        try:
            files.require_ours(home / "manifest.json", _is_manifest)
            invite = _invite(join, home)
            owner = _owner(node.account, home)
            key = identity.load_or_create(home / "node.key")
            # In a terminal there is a picture; the events are in the log.
            drawn = sys.stdout.isatty() and not (node.log_json or node.verbose)
            events.configure(
                json_lines=node.log_json,
                verbose=node.verbose,
                file=home / LOG_FILE,
                screen=not drawn,
            )
            wishes = settings.load(home).updated(node.limits)
            settings.save(home, wishes)
            from artel.node.join import Options  # takes seconds
            from artel.node.running import run

            options = Options(
                home=home,
                invite=invite,
                identity=key,
                account=owner,
                device=node.device,
                settings=wishes,
                listen=node.listen,
                announce=node.announce,
                check=not node.no_check,
            )
            return asyncio.run(run(options, page, drawn=drawn))
        except (Unfit, UsageError):  # nobody knows the keys in it yet
            # The log goes with the home.
            events.configure(json_lines=node.log_json, verbose=node.verbose)
            lock.abandon()
            raise


def _owner(given: Path | None, home: Path) -> Owner:
    """The key of the account: the file that was given, or this home's own, made when it is new; or
    what an account elsewhere has signed for this node."""
    if given is None and (linked := Linked.load(home)) is not None:
        return linked
    own = home / "account.key"
    path = given or own
    if not path.exists() and (home / "node.key").exists():
        raise UsageError(
            f"the account of this node is not here: there is no {path}",
            "restore it from a backup, or name its key file with --account; to begin anew with "
            "another account, move node.key away too",
        )
    return identity.load(given) if given else identity.load_or_create(own)


def _is_manifest(data: bytes) -> bool:
    """Whether this is a manifest, of any version; one of another version is refused later."""
    from artel.protocol import dsse
    from artel.protocol.manifest import PAYLOAD_TYPE

    try:
        return dsse.decode(data).payload_type == PAYLOAD_TYPE
    except ArtelError:
        return False


def _invite(given: str | None, home: Path) -> Invite:
    """The invite on the command line, or the one that this home joined with before."""
    kept = home / "invite"
    if given is None:
        if not kept.exists():
            raise UsageError(
                "this node has not joined a run yet",
                "add --join INVITE, the organiser has the line; or --join NAME of a public run, as "
                "artel runs shows it",
            )
        given = kept.read_text(encoding="utf-8", errors="replace")
    invite = Invite.decode(given)
    if kept.exists():
        before = Invite.decode(kept.read_text(encoding="utf-8", errors="replace"))
        if before.run != invite.run:
            raise UsageError(
                f"{home} belongs to another run ({before.run[:12]}…)",
                "choose another --home for this run",
            )
    files.write(kept, f"{invite.encode()}\n".encode())
    return invite
