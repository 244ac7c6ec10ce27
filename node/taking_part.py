"""A node from its command to its end: what it is given of a machine, and what ends it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Parameter

from artel.protocol import files, identity
from artel.protocol import options as types
from artel.protocol.cgroup import Groups
from artel.protocol.commandline import (
    Announce,
    Bootstrap,
    File,
    Http,
    Listen,
    LogJson,
    Verbose,
    value,
)
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ArtelError, Unfit, UsageError
from artel.protocol.invite import Invite
from artel.protocol.leaving import on_signals
from artel.protocol.terminal import printable

if TYPE_CHECKING:
    from artel.node.daemon import Daemon
    from artel.node.join import Options

DEFAULT_LISTEN = "/ip4/0.0.0.0/tcp/0"
DEFAULT_HTTP = types.Endpoint("127.0.0.1", 0)
"""For this machine only, at a free port."""
LEAVE_AT_ONCE_S = 15.0
CORES = Groups().cores()


def rate(text: str) -> int:
    """Megabits per second as bytes per second."""
    return round(types.number(0.01, 1e6)(text) * 1e6 / 8)


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
    threads: Annotated[
        int,
        value(types.whole(0, CORES), "N"),
        Parameter(help="for training, at most the cores of this machine; 0 takes all"),
    ] = 0
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
    quota: Annotated[
        int, value(types.whole(1, 10**9), "MB"), Parameter(help="disk space to use at most")
    ] = 10_000
    uplink: Annotated[
        int | None,
        value(rate, "MBIT"),
        Parameter(help="megabits per second to send at most, all traffic together"),
    ] = None
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
            file = home / "node.log"
            events.configure(json_lines=node.log_json, verbose=node.verbose, file=file)
            from artel.node.join import Options  # takes seconds

            options = Options(
                home=home,
                invite=invite,
                identity=key,
                account=owner,
                device=node.device,
                threads=node.threads or CORES,
                listen=node.listen,
                announce=node.announce,
                quota_bytes=node.quota * 1_000_000,
                uplink=node.uplink,
                check=not node.no_check,
            )
            return asyncio.run(_serve(options, page))
        except (Unfit, UsageError):  # nobody knows the keys in it yet
            # The log goes with the home.
            events.configure(json_lines=node.log_json, verbose=node.verbose)
            lock.abandon()
            raise


def _owner(given: Path | None, home: Path) -> identity.Identity:
    """The key of the account: the file that was given, or this home's own, made when it is new."""
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


async def _serve(options: Options, http: socket.socket) -> int:
    """Join, take part, leave. A signal once leaves after the round, twice at once."""
    from artel.node import status
    from artel.node.join import join
    from artel.node.overview import overview
    from artel.protocol.net.doors import Directory, public_runs
    from artel.protocol.net.names import first_words
    from artel.protocol.tasks import end

    running: list[Daemon] = []
    task = asyncio.current_task()
    assert task is not None

    def leave() -> None:
        if not running:
            leave_now()
            return
        seconds = running[0].leave()
        after = f"finishing the round under way, {seconds:.0f} s at most" if seconds else "leaving"
        _say(f"{after}; press Ctrl-C again to leave now")

    def leave_now() -> None:
        task.cancel()
        # Whatever hangs on the way out must not keep a machine that its owner wants back.
        asyncio.get_running_loop().call_later(LEAVE_AT_ONCE_S, os._exit, EXIT_INTERRUPTED)

    spoke = asyncio.Event()

    def say(line: str) -> None:
        spoke.set()
        _say(line)

    on_signals(leave, leave_now)
    try:
        async with contextlib.AsyncExitStack() as stack:
            _say(f"node {options.identity.peer_id}")
            if types.only_here(options.announce):
                _say(f"! announce {types.only_here(options.announce)}")
            first = asyncio.create_task(first_words(options.invite.peers, _say, spoke))
            stack.push_async_callback(end, first)
            daemon = await join(options, stack, say)
            running.append(daemon)
            site = await status.site_of(daemon.session)
            url = await stack.enter_async_context(
                status.serving(
                    options.home,
                    partial(overview, daemon),
                    site,
                    http,
                    Directory(partial(public_runs, daemon.session.host)),
                )
            )
            _say(f"page {url}")
            try:
                await daemon.run()
            except asyncio.CancelledError:
                await asyncio.shield(daemon.goodbye())
                raise
            _say(f"left with {daemon.credit():,} credit, vested and pending")
            return EXIT_OK
    except asyncio.CancelledError:
        had = "a round that was not finished gives no credit"
        _say(f"left at once; {had if running else 'it had not joined the run yet'}")
        return EXIT_INTERRUPTED


def _say(line: str) -> None:
    with contextlib.suppress(OSError):  # the terminal is gone; the node is not
        print(printable(line), flush=True)
