"""The coordinator process: puts its parts together, and takes them apart again in order.

Order of the start: the home's lock, the HTTP port (both fail fast), the prepared run (a child
process) while hivemind is imported here, the ledger as it lies there, the network; then others are
asked whether more was signed (:mod:`.recovery`), and what they have is taken over. Only after that
anything is signed, the manifest as the first entry, and the invite is shown. Order of the end: web,
network, ledger.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artel.coordinator.members_file import keep_members
from artel.coordinator.metrics import METRICS_FILE, Metrics
from artel.coordinator.preparation import Prepared, prepare_in_child
from artel.coordinator.recovery import Asking, Behind, OwnLedger
from artel.coordinator.sequencer import Sequencer
from artel.ledger.sync.holding import hold
from artel.ledger.web.server import Gate, claimed
from artel.protocol import dsse, files
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ResourceError
from artel.protocol.events import configure, emit
from artel.protocol.identity import Identity, load_or_create
from artel.protocol.invite import PREFIX, Invite
from artel.protocol.leaving import on_signals
from artel.protocol.net import dht
from artel.protocol.net.blobs import BlobStore
from artel.protocol.options import Endpoint
from artel.protocol.tasks import together, within

if TYPE_CHECKING:
    from artel.coordinator.service import Coordinator

log = logging.getLogger("artel.coordinator")

INVITE_FILE = "invite"
"""In the home: the line that a volunteer pastes."""
CLOSE_TIMEOUT_S = 10.0
STOP_AT_MOST_S = 30.0


@dataclass(frozen=True)
class Startup:
    """What a person asked for on the command line."""

    run_file: Path
    home: Path
    http: Endpoint
    listen: tuple[str, ...]
    announce: tuple[str, ...] = ()
    as_json: bool = False
    verbose: bool = False
    log_json: bool = False
    recompute: int = 10
    sources: tuple[str, ...] = ()
    """Who may have more of the ledger than this home."""
    alone: bool = False
    """Nobody has: a person says so."""


async def serve(options: Startup) -> int:
    """Coordinate the run of ``options.run_file`` until SIGINT, SIGTERM or SIGHUP.

    :returns: the exit code, 0 after a clean stop
    :raises ArtelError: the run cannot be started, or cannot go on
    """
    began = time.monotonic()
    configure(json_lines=options.log_json, verbose=options.verbose)
    home = options.home
    with _until_stopped(), claimed(home, options.http, options.listen) as (_, http):
        files.require_ours(home / INVITE_FILE, lambda data: data.startswith(PREFIX.encode()))
        published = await _prepared_and_imported(options)
        while await _was_behind(options, published, http, began):
            pass
    emit(log, "coordinator.stopped")
    return EXIT_OK


async def _was_behind(
    options: Startup, published: Prepared, http: socket.socket, began: float
) -> bool:
    """Coordinate until that ends; True when it is to begin again, and to ask before it signs."""
    try:
        async with _opened(options, published) as core:
            await _run(core, options, http.dup(), began)
    except Behind as error:
        emit(log, "ledger.behind", logging.WARNING, reason=error.message)
        return True
    return False


@contextlib.contextmanager
def _until_stopped() -> Iterator[None]:
    """A block that the first signal cancels, and that then counts as done.

    A second signal ends the process at once, and the kernel what it had started.
    """
    task, loop, stopped = asyncio.current_task(), asyncio.get_running_loop(), asyncio.Event()
    assert task is not None

    def stop() -> None:
        stopped.set()
        task.cancel()
        # Whatever hangs on the way out: the ledger is durable at every moment.
        loop.call_later(STOP_AT_MOST_S, os._exit, EXIT_OK)

    on_signals(stop, lambda: os._exit(EXIT_INTERRUPTED))
    try:
        yield
    except asyncio.CancelledError:
        if not stopped.is_set():
            raise
        task.uncancel()


async def _prepared_and_imported(options: Startup) -> Prepared:
    """Prepare the run in a child, and load the network (about 3 s) here at the same time."""
    imported = asyncio.to_thread(importlib.import_module, "artel.coordinator.service")
    published, _ = await together((prepare_in_child(options.run_file, options.home), imported))
    assert isinstance(published, Prepared)
    return published


@contextlib.asynccontextmanager
async def _opened(options: Startup, published: Prepared) -> AsyncIterator[Coordinator]:
    """The coordinator on its ledger and its network, which are closed in the end."""
    from artel.coordinator.service import Coordinator
    from artel.protocol.net.host import Host

    home, run = options.home, published.run
    identity = load_or_create(home / "node.key")
    with contextlib.ExitStack() as stack:
        named = [hold(target)[0] for target in options.sources]
        for holder in named:
            stack.callback(holder.close)
        own = await asyncio.to_thread(_own_ledger, home, published, identity, stack)
        host = await Host.start(
            identity,
            home / "node.key",
            listen=options.listen,
            announce=options.announce,
            keys=dht.keys_of(run),
        )
        try:
            await Asking(own, host, named, alone=options.alone).settle()
            sequencer = await asyncio.to_thread(
                Sequencer, own.store, identity, run, own.heads, second=own.second
            )
            if not own.store.size:
                await sequencer.append(dsse.decode(published.envelope))
            yield Coordinator(
                manifest=published.manifest,
                run=run,
                layout=published.layout,
                identity=identity,
                host=host,
                sequencer=sequencer,
                heads=own.heads,
                blobs=BlobStore(home / "blobs"),
                fingerprints=BlobStore(home / "fingerprints"),
                metrics=Metrics(home / METRICS_FILE),
            )
        finally:
            with contextlib.suppress(TimeoutError):  # the kernel ends its daemon with us
                await within(host.close(), CLOSE_TIMEOUT_S)


def _own_ledger(
    home: Path, published: Prepared, identity: Identity, stack: contextlib.ExitStack
) -> OwnLedger:
    """The home's ledger, and what says what was signed with it; ``stack`` closes them."""
    coordinators = published.manifest.coordinators
    # Only a started coordinator writes these.
    begun = next((name for name in (INVITE_FILE, METRICS_FILE) if (home / name).exists()), "")
    return OwnLedger.open(home, published.run, identity.key, coordinators, begun, stack)


async def _run(core: Coordinator, options: Startup, http: socket.socket, began: float) -> None:
    """Everything that goes on at the same time; ends with an error or by being cancelled."""
    from artel.coordinator.agreeing import Agreeing
    from artel.coordinator.desk import Desk
    from artel.coordinator.recomputing import Recomputer
    from artel.coordinator.upkeep import Upkeep
    from artel.coordinator.web import RunPage

    core.recompute = options.recompute
    await core.close_interrupted_attempt()
    await Desk(core).open()
    addresses = await core.host.addresses()
    if not addresses:
        raise ResourceError(
            "the network daemon has no address that nodes could connect to",
            "check --listen, or name the address with --announce",
        )
    invite = Invite(core.run, tuple(addresses)).encode()
    with files.told(options.home):
        files.write(options.home / INVITE_FILE, f"{invite}\n".encode(), durable=False)
    gate = Gate()
    application = RunPage(core, invite).application(gate)
    async with gate.serving(application, http, options.home) as url:
        _greet(core, options, url, invite)
        emit(log, "coordinator.ready", run=core.run[:12], seconds=time.monotonic() - began)
        upkeep = Upkeep(core, _public(url, options.http.host))
        agreeing = Agreeing(core, Recomputer(options.home))
        members = keep_members(core, options.home)
        await together((core.drive(), agreeing.run(), upkeep.run(), members, core.host.watch()))


def _public(url: str, host: str) -> str:
    """The page's address for the run's public record; "" when others could not open it."""
    return "" if host in ("0.0.0.0", "::", "localhost", "::1") or host[:4] == "127." else url


def _greet(core: Coordinator, options: Startup, url: str, invite: str) -> None:
    config = core.manifest.config
    if options.as_json:
        ready = {"run": core.run, "invite": invite, "http": url, "home": str(options.home)}
        print(json.dumps(ready), flush=True)
        return
    needed = f"{core.rules.min_nodes} node(s) to begin"
    call = (
        "Volunteers take part with this line:\n\n"
        f"artel node start --join {invite} --home artel-node\n"
    )
    if core.ledger.state.closed:
        needed, call = "closed", "The run is over; its ledger is served until Ctrl-C.\n"
    print(
        f"{config.run.name}: {core.manifest.model.parameters:,} parameters, round "
        f"{core.state.round} of {core.rules.total}, {needed}\n"
        f"  run id  {core.run}\n"
        f"  page    {url}\n\n{call}",
        flush=True,
    )
