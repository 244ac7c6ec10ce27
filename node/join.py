"""Joining a run: from an invite to a node that holds the state and has a trainer at work.

The order is chosen so that slow things overlap (the trainer imports torch while this process joins
the network) and so that nothing is downloaded before it is known that this machine can use it.
"""

from __future__ import annotations

import asyncio
import logging
import math
import shlex
import shutil
import time
from collections.abc import Callable
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from artel.ledger.entries.words import plural
from artel.ledger.store import keyfiles
from artel.ledger.store.heads import HeadStore
from artel.ledger.sync import fork
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.serving import LedgerService
from artel.ledger.sync.signed_tree import TooMuch
from artel.ledger.sync.witness import Witness
from artel.ledger.tlog.cosignature import witness_name
from artel.node import holders, preflight, watch
from artel.node.account_link import Owner
from artel.node.child import TrainerDied
from artel.node.claim_file import ClaimFile
from artel.node.closed_rounds import closed_since
from artel.node.corpus import Corpus
from artel.node.daemon import Daemon
from artel.node.elected import Elected
from artel.node.link import JOIN_PATIENCE_S, Link, with_neighbours
from artel.node.sealing import Sealing
from artel.node.session import Session, remembered
from artel.node.settings import OwnerSettings
from artel.node.supervisor import Trainer
from artel.node.sync import States, delta_bytes
from artel.node.trainer.channel import TrainerError
from artel.node.trainer.orders import (
    Benchmark,
    Choose,
    Load,
    Loaded,
    Measured,
    Weigh,
    Weighed,
)
from artel.node.trial import Newcomer
from artel.protocol import assignment, files, messages
from artel.protocol.errors import (
    ArtelError,
    CheckFailed,
    ResourceError,
    Unfit,
    Unreachable,
    UsageError,
)
from artel.protocol.events import emit
from artel.protocol.identity import Identity
from artel.protocol.invite import Invite
from artel.protocol.manifest import Manifest
from artel.protocol.net import dht, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.offer import PRIVACY
from artel.protocol.repeated_work import Trial
from artel.protocol.round_state import RoundRules
from artel.protocol.tasks import beside

log = logging.getLogger("artel.node")

STATE_PATIENCE_S = 120.0
STATE_RETRY_S = 2.0
STATES_TRIED = 8
"""Of a run that makes states faster than this node fetches one."""


@dataclass(frozen=True)
class Options:
    """What the owner of the node chose."""

    home: Path
    invite: Invite
    identity: Identity
    account: Owner
    device: str
    listen: tuple[str, ...]
    announce: tuple[str, ...]
    settings: OwnerSettings
    check: bool
    """Whether to refuse to start on a machine that cannot keep up."""
    patience: float = JOIN_PATIENCE_S
    """Seconds to wait for a run that this home has never reached."""


async def join(options: Options, stack: AsyncExitStack, say: Callable[[str], None]) -> Daemon:
    """Do all that comes before the first round.

    :param stack: what was started here is ended by it, last first
    :raises Unreachable: nobody named in the invite answers, in a home that never reached the run
    :raises CheckFailed: what they show is not the run of the invite
    :raises Unfit: this machine cannot take part; nobody has heard of this node yet
    :raises UsageError: the run is finished, and this node took no part in it
    :raises ResourceError: it turns out later that it cannot
    :raises SplitViewProven: the run's coordinator has signed two histories
    """
    home = options.home
    options = replace(options, invite=with_neighbours(home, options.invite))
    trainer = Trainer(home / "trainer.log", options.settings.cores)
    stack.push_async_callback(trainer.close)
    with suppress(TrainerDied):  # it is started again, and says why it died, when it is needed
        await trainer.restart()
    key, run = options.identity.public.hex(), options.invite.run
    heads, replica = await asyncio.to_thread(remembered, home, key, run, stack)
    host = await Host.start(
        options.identity,
        home / "node.key",
        listen=options.listen,
        announce=options.announce,
        bootstrap=options.invite.peers,
        keys=dht.keys_of(options.invite.run),
        uplink=options.settings.up,
        downlink=options.settings.down,
    )
    stack.push_async_callback(host.close)
    # A coordinator that was started together with us asks before it answers anything.
    await _answer(host, replica, heads, options.invite.run)
    try:
        return await beside(host.watch(), _join(options, host, say, trainer, heads, replica))
    except SplitViewProven as found:
        await asyncio.to_thread(fork.record, home, heads, found.evidence, replica.store)
        raise


async def _answer(
    host: Host, replica: Replica, heads: HeadStore, run: str, seal: Callable[[], bytes] = bytes
) -> None:
    """Serve the ledger that is here."""
    served = LedgerService(replica.store, heads, run, lambda: replica.state, seal=seal)
    await host.serve(wire.LEDGER, served.answer)


async def _join(
    options: Options,
    host: Host,
    say: Callable[[str], None],
    trainer: Trainer,
    heads: HeadStore,
    replica: Replica,
) -> Daemon:
    home, run = options.home, options.invite.run
    manifest_file = home / "manifest.json"
    died = partial(_died, say)
    if options.device == "cuda":  # before anything is fetched for it; torch is imported by now
        await trainer.insist(lambda: _require_device(trainer, options.device), died)
    link = Link(host, options.invite)
    # A machine that starts before its coordinator finds the run that it knows, whenever that is.
    patience = None if manifest_file.exists() else options.patience
    manifest, envelope = await link.insist(link.fetch_manifest, patience, say)
    link.trust(manifest, replica)
    preflight.require_quota(manifest, options.settings.quota_bytes)
    files.write(manifest_file, envelope)
    replica.own = (options.identity.key, options.account.key)
    sealing = Sealing(
        host=host,
        identity=options.identity,
        account=options.account,
        run=run,
        replica=replica,
        heads=heads,
        link=link,
        rules=RoundRules.of(manifest.config),
        handover_s=manifest.config.coordination.handover_s,
        elected=Elected(home, host, link, options.invite, options.listen),
        say=say,
    )
    await _answer(host, replica, heads, run, sealing.statement)
    entering = _enter(
        options, host, say, trainer, heads, replica, link, sealing, manifest, patience
    )
    return await beside(sealing.run(), entering)


async def _enter(
    options: Options,
    host: Host,
    say: Callable[[str], None],
    trainer: Trainer,
    heads: HeadStore,
    replica: Replica,
    link: Link,
    sealing: Sealing,
    manifest: Manifest,
    patience: float | None,
) -> Daemon:
    """Join a run whose manifest is known. Its term is looked after meanwhile: a home that knows the
    run may be that of an elector, and nobody may lead."""
    home, run = options.home, options.invite.run
    insist = partial(link.insist, patience=patience, say=say)
    await _refuse_convicted(replica, heads, sealing)
    found = preflight.Findings(say, strict=options.check)
    found.add(preflight.disk(manifest, home, options.settings.quota_bytes))
    found.conclude(Unfit)
    # Of a run that has not welcomed this node; nobody but who made it says how long its ledger is.
    replica.most = preflight.most_of_a_ledger(home, options.settings.quota_bytes)
    try:
        await insist(link.catch_up)
    except TooMuch:
        raise preflight.too_much(replica.most) from None
    await _refuse_convicted(replica, heads, sealing)
    await asyncio.to_thread(watch.refuse_older, replica, heads)
    name = witness_name(options.identity.peer_id)
    blobs = BlobStore(home / "blobs", options.settings.quota_bytes)
    shutil.rmtree(home / "fingerprints", ignore_errors=True)  # nothing goes on with those
    session = Session(
        home,
        run,
        manifest,
        options.identity,
        options.account,
        host,
        link,
        sealing,
        replica,
        heads,
        Witness(heads, options.identity, name, replica.keys_of),
        ClaimFile(home),
        blobs,
        BlobStore(home / "fingerprints"),
        trainer,
        options.device,
        keyfiles.recovery_of(home),
    )
    died = partial(_died, say)
    session.work_dir.mkdir(exist_ok=True)
    files.sweep(session.work_dir)
    states = States(session)
    say(f"account {session.account_name}")
    say(f'run "{manifest.config.run.name}": {manifest.config.run.description or "no description"}')
    await _require_open(session, options.invite, say)
    weighed = await trainer.insist(lambda: _weighed(trainer, session.manifest_file), died)
    found.add(preflight.memory(manifest, weighed, options.settings.memory_bytes))
    found.conclude(Unfit)
    if session.account_name not in replica.state.accounts:
        for line in PRIVACY:
            say(line)
    corpus = Corpus(session)

    newcomer = Newcomer(session, corpus, states, say)

    async def admitted() -> messages.Welcome:
        while isinstance(reply := await insist(lambda: _register(session, found)), Trial):
            await insist(partial(newcomer.take, reply))
        return reply

    welcome = await trainer.insist(admitted, died)
    replica.most = math.inf
    if not 0 < welcome.payload_bytes <= 8 * manifest.model.parameters + (1 << 20):
        raise CheckFailed("the coordinator names an impossible size for contributions")
    states.found_on_disk(replica.state.states)

    async def load() -> tuple[str, Loaded, Measured]:
        await insist(corpus.tokenizer)
        root, path = await insist(lambda: _state(session, states, say))
        loaded = await trainer.do(Load(session.manifest_file, path, options.device))
        if loaded.root != root:  # a file of an earlier session, torn by a crash of the machine
            blobs.delete(root)
            root, path = await insist(lambda: _state(session, states, say))
            loaded = await trainer.do(Load(session.manifest_file, path, options.device))
        return root, loaded, await trainer.do(Benchmark(2))

    root, loaded, measured = await trainer.insist(load, died)
    states.become(replica.state.states.index(root), root)
    # By the rules as they are by now: what was too slow may be fast enough.
    config = session.config_at(replica.state.round)
    manifest = manifest.model_copy(update={"config": config})
    found.add(
        preflight.speed(manifest, measured.step_seconds, measured.tokens_per_second),
        await preflight.uplink(host, link.coordinator, manifest, welcome.payload_bytes),
        *preflight.unchecked(manifest, loaded.hardware),
    )
    rounds, least = config.rounds, assignment.Work.of(config).least
    found.conclude(
        ResourceError,
        f"This machine can keep up: its part of a round takes about "
        f"{measured.step_seconds * least:.0f} s of the {rounds.box_s or rounds.deadline_s:.0f} s "
        f"allowed. ({loaded.device})",
    )
    daemon = Daemon(session, states, corpus, welcome.payload_bytes, say)
    daemon.reachable = welcome.reachable
    # The coordinator assigns the steps of a time-boxed round by it.
    daemon.worker.progress.tokens_per_second = measured.tokens_per_second
    return daemon


def _died(say: Callable[[str], None], death: TrainerDied) -> None:
    say(f"! trainer  {death.message}; starting it again")
    emit(log, "trainer.died", logging.WARNING, task="join", reason=death.message)


async def _refuse_convicted(replica: Replica, heads: HeadStore, sealing: Sealing) -> None:
    """Follow nobody who is proven to have signed two histories.

    :raises SplitViewProven: whoever leads is, and nobody could lead after it
    """
    try:
        watch.refuse_convicted(replica, heads)
    except SplitViewProven as found:
        await sealing.convict(found)


async def _require_open(session: Session, invite: Invite, say: Callable[[str], None]) -> None:
    """Only who took part in a run that is finished still fetches its last state.

    :raises UsageError: to all others there is nothing to do
    """
    state, total = session.replica.state, session.rounds.total
    if state.round < total:
        return
    ended = f"the run is finished: all of its {total:,} rounds are agreed"
    if session.identity.peer_id in state.nodes:
        say(f"! finished {ended}; this node fetches its last state")
        return
    run, coordinator = session.run, session.link.coordinator
    record = (await session.host.lookup(dht.run_key(run), dht.RunRecord)).get(coordinator)
    page = record.http if record is not None else ""
    source = page or invite.peers[0]
    raise UsageError(
        f"{ended}, {state.total_vested + state.total_pending:,} credit belongs to "
        f"{plural(len(state.accounts), 'account')}",
        f"the ledger says more: artel ledger status --from {shlex.quote(source)}; the model, state "
        f"{state.states[-1][:12]}…, is in its nodes' homes: artel model export takes it from there",
    )


async def _require_device(trainer: Trainer, device: str) -> None:
    try:
        await trainer.do(Choose(device))
    except TrainerError as error:
        raise Unfit(error.message, error.hint) from None


async def _weighed(trainer: Trainer, manifest: Path) -> Weighed:
    try:
        return await trainer.do(Weigh(manifest))
    except TrainerError as error:
        raise Unfit(error.message, error.hint) from None


async def _state(session: Session, states: States, say: Callable[[str], None]) -> tuple[str, Path]:
    """Root and file of an agreed state to begin with, tried for a while: holders come and go.

    The newest one; or an older one that lies here already, when the rounds since then are fewer
    bytes than the newest state. The worker catches up from there. The others delete states that
    are two rounds old: when that is faster than this node can fetch, a newer one is begun.

    :raises Unreachable: nobody has given a state
    """
    agreed = session.replica.state.states
    held = states.newest_held(agreed)
    if 0 <= held < len(agreed) - 1:
        missed = await asyncio.to_thread(closed_since, session.replica.history, held)
        delta, whole = delta_bytes(missed, session.blobs), session.state_bytes
        path = session.blobs.path(agreed[held])
        if delta < whole and path is not None:
            say(
                f"state    {len(missed)} round(s) behind: fetching {delta / 1e6:.1f} MB of updates "
                f"instead of {whole / 1e6:.1f} MB"
            )
            return agreed[held], path

    def progress(done: int, size: int) -> None:
        say(f"state    {done / 1e6:.1f} of {size / 1e6:.1f} MB")

    deadline, tried = 0.0, list[str]()
    while True:
        root = session.replica.state.states[-1]
        if root not in tried:
            if tried:
                number = len(session.replica.state.states) - 1
                say(f"! state    the run went on meanwhile: fetching the state of round {number}")
            tried.append(root)
            deadline = time.monotonic() + STATE_PATIENCE_S
        try:
            return root, await states.obtain(root, [session.link.coordinator], progress)
        except Unreachable as error:
            if len(tried) == STATES_TRIED:
                raise Unreachable(
                    f"{len(tried)} states were deleted by the others before this node had them "
                    f"({error.message})",
                    "the run makes states faster than this connection brings one; try again with "
                    "a faster one, or ask the organiser for longer rounds",
                ) from None
            if time.monotonic() > deadline:
                raise
            say(f"! state    {error.message}; trying again")
            await _learn_more(session)
            if session.replica.state.states[-1] == root:
                await asyncio.sleep(STATE_RETRY_S)


async def _learn_more(session: Session) -> None:
    """Bring the ledger up to date: from the coordinator, or else from a node that answers."""
    coordinator = session.link.coordinator
    if not await _caught_up(session, coordinator):
        for peer in list(await holders.records(session.host, session.run))[: holders.MOST]:
            if peer != coordinator and await _caught_up(session, peer):
                return


async def _caught_up(session: Session, peer: str) -> bool:
    try:
        await session.replica.catch_up(session.host, peer, session.run)
    except SplitViewProven:
        raise
    except ArtelError:
        return False
    return True


async def _register(session: Session, found: preflight.Findings) -> messages.Welcome | Trial:
    """Be admitted, or be told what comes before."""
    hello = await session.hello()
    start = time.monotonic()
    welcome = await session.link.ask(hello)
    if isinstance(welcome, Trial):
        return welcome
    if not isinstance(welcome, messages.Welcome):
        raise CheckFailed(f"the coordinator answered hello with {welcome.KIND}")
    found.add(
        await preflight.clock(session.host, session.link.coordinator, welcome.clock, start),
        preflight.reachable(welcome.reachable),
    )
    return welcome
