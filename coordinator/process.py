"""The coordinator process: puts its parts together, and takes them apart again in order.

It leads a term of the run, or stands by until it may, and goes from the one to the other as often
as terms end. Order of the start: the home's lock, the HTTP port (both fail fast), the prepared run
(a child process; whoever stands by asks for it instead) while hivemind is imported here, the
network. Order of a term: the ledger as it lies there; whoever leads by it asks others whether more
was signed (:mod:`.recovery`), and takes over what they have; whoever does not follows it until it
is its turn (:mod:`.standby`). Only then anything is signed, the manifest as the first entry of a
run, ``handover`` as that of a later term. Order of the end: web, ledger, network.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import json
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from artel.coordinator.circle import Circle
from artel.coordinator.members_file import keep_members
from artel.coordinator.metrics import METRICS_FILE, Metrics
from artel.coordinator.own_ledger import OwnLedger
from artel.coordinator.peer import addresses_of
from artel.coordinator.preparation import Prepared, prepare_in_child
from artel.coordinator.recomputing import Recomputer
from artel.coordinator.recovery import Asking, Behind
from artel.coordinator.sequencer import Sequencer
from artel.coordinator.takeover import TermOver, Turn, begin
from artel.coordinator.traces import tracing
from artel.coordinator.webhook import posting
from artel.ledger.store.keyfiles import NODE_KEY, require_home_of
from artel.ledger.sync.holding import hold
from artel.ledger.web.server import Gate, claimed
from artel.protocol import dsse, files
from artel.protocol.errors import EXIT_INTERRUPTED, EXIT_OK, ResourceError, UsageError
from artel.protocol.events import configure, emit
from artel.protocol.identity import Identity, load, load_or_create, peer_id_of, short_peer
from artel.protocol.invite import MAX_PEERS, PREFIX, Invite
from artel.protocol.leaving import on_signals
from artel.protocol.net import dht, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.names import first_words
from artel.protocol.options import Endpoint
from artel.protocol.tasks import beside, end, together, within

if TYPE_CHECKING:
    from artel.coordinator.service import Coordinator
    from artel.coordinator.web import RunPage
    from artel.protocol.net.host import Host

log = logging.getLogger("artel.coordinator")

INVITE_FILE = "invite"
"""In the home: the line that a volunteer pastes."""
INVITE_S = 30.0
"""Between two looks for where the other coordinators are."""
CLOSE_TIMEOUT_S = 10.0
STOP_AT_MOST_S = 30.0


@dataclass(frozen=True)
class Startup:
    """What a person asked for on the command line."""

    run_file: Path | None
    """None where another coordinator has prepared the run of ``invite``."""
    home: Path
    http: Endpoint
    listen: tuple[str, ...]
    announce: tuple[str, ...] = ()
    bootstrap: tuple[str, ...] = ()
    """Doors to the network of public runs (:mod:`protocol.net.doors`), where the run is listed."""
    as_json: bool = False
    verbose: bool = False
    log_json: bool = False
    recompute: int = 10
    sources: tuple[str, ...] = ()
    """Who may have more of the ledger than this home."""
    alone: bool = False
    """Nobody has: a person says so."""
    invite: Invite | None = None
    webhook: str = ""
    """Told what happens (:mod:`.webhook`)."""
    release_every: float | None = None
    """Seconds from one release of the newest model to the next (:mod:`.releasing`)."""
    node_key: Path | None = None
    """Of the node for which this coordinator runs: members may elect that."""


async def serve(options: Startup) -> int:
    """Lead the run of ``options.run_file``, or stand by in that of ``options.invite``, until
    SIGINT, SIGTERM or SIGHUP.

    :returns: the exit code, 0 after a clean stop
    :raises UsageError: the home is that of a node
    :raises ArtelError: the run cannot be started, or cannot go on
    """
    began = time.monotonic()
    configure(json_lines=options.log_json, verbose=options.verbose)
    home = options.home
    require_home_of("coordinator", home)
    with _until_stopped(), claimed(home, options.http, options.listen) as (_, http):
        files.require_ours(home / INVITE_FILE, lambda data: data.startswith(PREFIX.encode()))
        async with _started(options, http, began) as process:
            run = process.prepared.run
            with posting(options.webhook, home, run), tracing(run):
                await beside(process.host.watch(), process.run())
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


@contextlib.asynccontextmanager
async def _started(
    options: Startup, http: socket.socket, began: float
) -> AsyncIterator[CoordinatorProcess]:
    """Everything that outlasts a term: the prepared run, the network."""
    prepared, invite, found_run = None, options.invite, asyncio.Event()
    telling: asyncio.Task[None] | None = None
    if invite is not None:
        _tell(f"starting, to stand by for run {invite.run[:12]} …")
        telling = asyncio.create_task(first_words(invite.peers, _tell, found_run))
    # The network takes about 3 s to load; the run is prepared in a child at the same time.
    imported = asyncio.to_thread(importlib.import_module, "artel.coordinator.service")
    if options.run_file is not None:
        work = prepare_in_child(options.run_file, options.home)
        found, _ = await together((work, imported))
        assert isinstance(found, Prepared)
        prepared = found
    else:
        await imported
    from artel.coordinator.joining import run_of_invite
    from artel.protocol.net.elsewhere import require_alone
    from artel.protocol.net.host import Host

    assert prepared is not None or invite is not None
    run = prepared.run if prepared is not None else invite.run if invite is not None else ""
    elected = load(options.node_key).elected if options.node_key is not None else None
    identity = load_or_create(options.home / NODE_KEY, elected)
    host = await Host.start(
        identity,
        options.home / NODE_KEY,
        listen=options.listen,
        announce=options.announce,
        bootstrap=invite.peers if invite is not None else (),
        keys=dht.keys_of(run),
    )
    try:
        if prepared is None:
            assert invite is not None
            await require_alone(host, run)
            prepared = await run_of_invite(host, invite, options.home, identity, elected is None)
        found_run.set()
        yield CoordinatorProcess(options, prepared, identity, host, http, began)
    finally:
        if telling is not None:
            await end(telling)
        with contextlib.suppress(TimeoutError):  # the kernel ends its daemon with us
            await within(host.close(), CLOSE_TIMEOUT_S)


def _tell(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@dataclass
class CoordinatorProcess:
    """A coordinator on its network; :meth:`run` goes from term to term."""

    options: Startup
    prepared: Prepared
    identity: Identity
    host: Host
    http: socket.socket
    began: float
    said: str = ""
    """The part of which a person was told."""

    def __post_init__(self) -> None:
        self.recomputer = Recomputer(self.options.home)
        """Outlasts a term, so that who takes over has it running."""
        from artel.protocol.net.host import peer_of

        keys = {*self.prepared.manifest.coordinators} - {self.identity.key}
        self.others = {peer_id_of(bytes.fromhex(key)): "" for key in keys}
        """The run's other coordinators, and an address of each, "" where none is known."""
        with contextlib.suppress(OSError, UnicodeError, UsageError):
            before = Invite.decode((self.options.home / INVITE_FILE).read_text("utf-8"))
            for address in before.peers if before.run == self.prepared.run else ():
                if peer_of(address) in self.others:
                    self.others[peer_of(address)] = address

    async def run(self) -> None:
        """Lead, or stand by; ends only with an error."""
        try:
            await self._terms()
        finally:
            await self.recomputer.close()

    async def _terms(self) -> None:
        while True:
            try:
                await self._term()
            except Behind as error:
                emit(log, "ledger.behind", logging.WARNING, reason=error.message)
            except TermOver as over:
                emit(log, "term.over", logging.WARNING, reason=over.message)
            finally:
                for service in (wire.CONTROL, wire.CONTENT, wire.LEDGER):
                    await self.host.serve(service, _aside)

    async def _term(self) -> None:
        """One term: stand by until it begins, unless it is this home's already, and lead it."""
        from artel.protocol.net.elsewhere import require_alone

        key = self.identity.key
        with contextlib.ExitStack() as stack:
            home, prepared = self.options.home, self.prepared
            own = await asyncio.to_thread(own_ledger, home, prepared, self.identity, stack)
            # Whoever has an invite alone begins no run: it takes back what the others have.
            may_begin = own.store.size > 0 or self.options.run_file is not None
            if own.leads(key) and may_begin:
                named = [hold(target)[0] for target in self.options.sources]
                for holder in named:
                    stack.callback(holder.close)
                ways = {peer: way for peer, way in self.others.items() if way}
                asking = Asking(own, self.host, named, ways, alone=self.options.alone)
                await asking.settle()
                await require_alone(self.host, self.prepared.run)
            if own.leads(key) and may_begin:
                sequencer = await asyncio.to_thread(
                    Sequencer, own.store, self.identity, own.run, own.heads, second=own.second
                )
                if not own.store.size:
                    await sequencer.append(dsse.decode(self.prepared.envelope))
            else:
                turn = await self._stand_by(own)
                if turn is None:
                    return  # the newest ledger says that this home leads: it asks first
                sequencer = await begin(own, turn, self.identity)
            try:
                await self._lead(self._coordinator(own, sequencer), own)
            except TermOver:
                own.heads.seal(own.run, own.store.term)
                raise

    async def _stand_by(self, own: OwnLedger) -> Turn | None:
        from artel.coordinator.joining import stand_by

        invite = await self.invited()
        ways = self.options.invite.peers if self.options.invite is not None else ()
        with contextlib.closing(self.http.dup()) as listener:
            return await stand_by(
                own,
                self.host,
                self.prepared,
                self.identity.key,
                ways,
                listener,
                self.recomputer,
                lambda url, words: self.greet(url, invite, "stands by", lambda: words),
                is_new=not self.said,
            )

    def _coordinator(self, own: OwnLedger, sequencer: Sequencer) -> Coordinator:
        from artel.coordinator.service import Coordinator

        home = self.options.home
        return Coordinator(
            manifest=self.prepared.manifest,
            run=self.prepared.run,
            layout=self.prepared.layout,
            identity=self.identity,
            host=self.host,
            sequencer=sequencer,
            heads=own.heads,
            blobs=BlobStore(home / "blobs"),
            fingerprints=BlobStore(home / "fingerprints"),
            metrics=Metrics(home / METRICS_FILE),
        )

    async def _lead(self, core: Coordinator, own: OwnLedger) -> None:
        """Everything that goes on at the same time; ends with an error or by being cancelled."""
        from artel.coordinator.agreeing import Agreeing
        from artel.coordinator.desk import Desk
        from artel.coordinator.releasing import Releases
        from artel.coordinator.term_watch import TermWatch
        from artel.coordinator.upkeep import Upkeep
        from artel.coordinator.web import RunPage

        home, run = self.options.home, core.run
        core.recompute = self.options.recompute
        await Desk(core).open()
        invite = await self.invited()
        gate = Gate()
        releases = Releases(core, home, self.options.release_every)
        page = RunPage(core, invite, releases)
        application = page.application(gate)
        async with gate.serving(application, self.http.dup(), home) as url:
            part = f"leads term {own.store.term}"
            self.greet(url, invite, part, lambda: leading_words(core, url, invite))
            seconds = time.monotonic() - self.began
            emit(log, "coordinator.ready", run=run[:12], term=own.store.term, seconds=seconds)
            upkeep = Upkeep(core, self.public(url), self.options.bootstrap)
            agreeing = Agreeing(core, self.recomputer)
            circle = Circle(home, self.host, run, lambda: core.ledger.state)
            members = keep_members(
                home, lambda: addresses_of(core.peers), lambda: circle.where(circle.coordinators)
            )
            watch = TermWatch(core, home, circle)
            beside_it = members, watch.run(), self._keep_invite(page, circle), releases.run()
            await together((core.drive(), agreeing.run(), upkeep.run(), *beside_it))

    async def _keep_invite(self, page: RunPage, circle: Circle) -> None:
        """Name in the invite where the other coordinators are, as soon as that is known."""
        while self.others:
            await circle.learn(())
            known = {peer: ways[0] for peer, ways in circle.known.items() if ways}
            found = {peer: known.get(peer, way) for peer, way in self.others.items()}
            if found != self.others:
                before, self.others = self.others, found
                page.invite = await self.invited()
                named = Invite.decode(page.invite).peers
                met = [peer for peer, way in found.items() if way in named and not before[peer]]
                if met and not self.options.as_json:
                    print(met_words(met, page.invite), flush=True)
            await asyncio.sleep(INVITE_S)

    async def invited(self) -> str:
        """The line for volunteers, with where this coordinator is first; it is left in the home.

        :raises ResourceError: it is nowhere
        """
        addresses = await self.host.addresses()
        if not addresses:
            raise ResourceError(
                "the network daemon has no address that nodes could connect to",
                "check --listen, or name the address with --announce",
            )
        home = self.options.home
        known = [address for address in self.others.values() if address]
        others = self.options.invite.peers if self.options.invite is not None else ()
        peers = dict.fromkeys((*addresses[: MAX_PEERS - 2], *known, *others))
        line = Invite(self.prepared.run, tuple(peers)[:MAX_PEERS]).encode()
        with files.told(home):
            files.write(home / INVITE_FILE, f"{line}\n".encode(), durable=False)
        return line

    def public(self, url: str) -> str:
        """The page's address for the run's public record; "" when others could not open it."""
        host = self.options.http.host
        return "" if host in ("0.0.0.0", "::", "localhost", "::1") or host[:4] == "127." else url

    def greet(self, url: str, invite: str, part: str, words: Callable[[], str]) -> None:
        """Say that this coordinator answers, and where; to a person again when its part changes.

        :param part: leads a term, or stands by
        :param words: for a person
        """
        if part == self.said or (self.said and self.options.as_json):
            return
        self.said = part
        run, home = self.prepared.run, str(self.options.home)
        ready = {"run": run, "invite": invite, "http": url, "home": home}
        print(json.dumps(ready) if self.options.as_json else words(), flush=True)


def own_ledger(
    home: Path, prepared: Prepared, identity: Identity, stack: contextlib.ExitStack
) -> OwnLedger:
    """The home's ledger, and what says what was signed with it; ``stack`` closes them."""
    coordinators = prepared.manifest.coordinators
    # Only a started coordinator writes these.
    begun = next((name for name in (INVITE_FILE, METRICS_FILE) if (home / name).exists()), "")
    return OwnLedger.open(home, prepared.run, identity.key, coordinators, begun, stack)


async def _aside(*_: object) -> None:
    raise wire.Refused("this coordinator changes its part", "try again", code="busy")


def met_words(peers: Sequence[str], invite: str) -> str:
    """What a person is told when it is known where coordinators are who may lead next."""
    names = ", ".join(map(short_peer, peers))
    return (
        f"The invite names {names} now, who may lead next. Publish this line in place of the\n"
        "one before, which is of no use when this coordinator is gone:\n\n"
        f"artel join {invite}\n"
    )


def leading_words(core: Coordinator, url: str, invite: str) -> str:
    """What a person is told when a coordinator begins to lead."""
    config = core.manifest.config
    needed = f"{core.rules.min_nodes} node(s) to begin"
    call = f"Volunteers take part with this line:\n\nartel join {invite}\n"
    if config.run.public:
        call += f"\nor, as the run is public, with: artel join {core.run[:12]} --bootstrap {url}\n"
    term = core.ledger.state.term.number
    leads = f"  leads   this coordinator, term {term}\n" if term else ""
    if core.ledger.state.closed:
        needed, call = "closed", "The run is over; its ledger is served until Ctrl-C.\n"
    return (
        f"{config.run.name}: {core.manifest.model.parameters:,} parameters, round "
        f"{core.state.round} of {core.rules.total}, {needed}\n{leads}"
        f"  run id  {core.run}\n"
        f"  page    {url}\n\n{call}"
    )
