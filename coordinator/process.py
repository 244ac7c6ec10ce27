"""The coordinator process: puts its parts together, and takes them apart again in order.

Order of the start: the home's lock, the HTTP port (both fail fast), the prepared run (a child
process) while hivemind is imported here, the ledger with the manifest as its first entry, the
network, and only then the invite. Order of the end: web, network, ledger.
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

from artel.coordinator.metrics import METRICS_FILE, Metrics
from artel.coordinator.preparation import Prepared, prepare_in_child
from artel.coordinator.sequencer import Sequencer
from artel.ledger.store.database import holds_nothing
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.published import LostEntries, require_heads
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.web.server import Gate, claimed
from artel.protocol import dsse, files
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ResourceError
from artel.protocol.events import configure, emit
from artel.protocol.identity import load_or_create
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
        async with _opened(options, published) as core:
            await _run(core, options, http, began)
    emit(log, "coordinator.stopped")
    return EXIT_OK


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

    home, identity = options.home, load_or_create(options.home / "node.key")
    with contextlib.ExitStack() as stack:
        store, heads = await asyncio.to_thread(_ledger, home, published.run, stack)
        sequencer = await asyncio.to_thread(Sequencer, store, identity, published.run, heads)
        if not store.size:
            await sequencer.append(dsse.decode(published.envelope))
        host = await Host.start(
            identity,
            home / "node.key",
            listen=options.listen,
            announce=options.announce,
            keys=dht.keys_of(published.run),
        )
        try:
            yield Coordinator(
                manifest=published.manifest,
                run=published.run,
                layout=published.layout,
                identity=identity,
                host=host,
                sequencer=sequencer,
                heads=heads,
                blobs=BlobStore(home / "blobs"),
                fingerprints=BlobStore(home / "fingerprints"),
                metrics=Metrics(home / METRICS_FILE),
            )
        finally:
            with contextlib.suppress(TimeoutError):  # the kernel ends its daemon with us
                await within(host.close(), CLOSE_TIMEOUT_S)


def _ledger(home: Path, run: str, stack: contextlib.ExitStack) -> tuple[LedgerStore, HeadStore]:
    """The home's ledger and tree heads, which ``stack`` closes.

    :raises LostEntries: the ledger is gone, or older than what was signed with it: nothing may be
        signed
    """
    _require_begun_once(home, run)
    heads = HeadStore.owned(home)
    stack.callback(heads.close)
    store = LedgerStore.open(home / DATABASE_NAME, create=True, run=run)
    stack.callback(store.close)
    require_heads(store, heads, run)
    return store, heads


def _require_begun_once(home: Path, run: str) -> None:
    """Do not begin a run again whose ledger is gone: it would have a second history.

    :raises LostEntries: what only a started coordinator writes is still here
    """
    if not holds_nothing(home / DATABASE_NAME):
        return
    for name in (INVITE_FILE, METRICS_FILE):
        if (home / name).exists():
            error = LostEntries(
                f"there is no ledger in {home}, and its file {name} says that the run has begun",
                home,
                run,
            )
            error.hint += "\nif nobody has any of it, publish a new run from a new --home"
            raise error


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
        await together((core.drive(), agreeing.run(), upkeep.run(), core.host.watch()))


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
