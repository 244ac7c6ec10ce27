"""How a coordinator that has not prepared a run comes to stand by in it.

It knows an invite alone: the manifest comes from whoever of that answers, and has to name this
home's key among the run's coordinators; or members may elect the node for which it runs.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from aiohttp import web

from artel.coordinator.circle import Circle
from artel.coordinator.members_file import keep_members
from artel.coordinator.own_ledger import OwnLedger
from artel.coordinator.page import TEMPLATES
from artel.coordinator.preparation import Prepared, load_prepared, manifest_path
from artel.coordinator.recomputing import Recomputer
from artel.coordinator.standby import Standby
from artel.coordinator.stock import Stock
from artel.coordinator.takeover import Turn
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold.layout import LAYOUT_FILE, layout_of
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.serving import OTHER_RUN
from artel.ledger.sync.signed_tree import manifest_of
from artel.ledger.sync.source import NotFound
from artel.ledger.web import exposition
from artel.ledger.web.exposition import metric
from artel.ledger.web.live import LivePage
from artel.ledger.web.server import Gate
from artel.ledger.web.site import LedgerSite
from artel.protocol import files
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from artel.protocol.events import emit
from artel.protocol.identity import Identity, peer_id_of, short_peer
from artel.protocol.invite import Invite
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.net import clocks, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.doors import Directory, public_runs
from artel.protocol.net.host import Host, peer_of
from artel.protocol.tasks import beside, together

log = logging.getLogger("artel.coordinator")

RETRY_S = 2.0
WARM_S = 5.0


async def run_of_invite(
    host: Host, invite: Invite, home: Path, identity: Identity, named: bool
) -> Prepared:
    """The run of an invite as a prepared one, which is left in the home.

    :param named: it has to be one of the manifest's; else a node may be elected for which it runs
    :raises UsageError: this home's key is none of the run's coordinators, or it holds another run
    :raises CheckFailed: whoever answers shows another run
    """
    path = manifest_path(home)
    if not path.exists():
        envelope = await _manifest(host, invite)
        if named:  # before anything of the run is left in the home
            _require_named(open_manifest(envelope)[0], identity.key, home)
        layout = await asyncio.to_thread(layout_of, envelope, [home])
        with files.told(home):
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write(home / LAYOUT_FILE, layout.encode())
            files.write(path, envelope)
    prepared = await asyncio.to_thread(load_prepared, home)
    if prepared.run != invite.run:
        raise UsageError(f"{home} holds another run than the invite's", "use another --home DIR")
    if named:
        _require_named(prepared.manifest, identity.key, home)
    return prepared


def _require_named(manifest: Manifest, key: str, home: Path) -> None:
    if key not in manifest.coordinators:
        raise UsageError(
            f"the key of {home} is none of the run's coordinators: {key}",
            "the organiser names it in the run file, [coordination] standbys, before the run is "
            "prepared: artel coordinator key --home DIR; a coordinator whose home is gone needs "
            "its node.key in the new one",
        )


async def _manifest(host: Host, invite: Invite) -> bytes:
    """The signed manifest, from whoever of the invite answers, whenever that is."""
    peers = {peer_of(address): address for address in invite.peers}
    said = -RETRY_S
    for peer, address in peers.items():
        host.remember(peer, [address])
    while True:
        errors = list[ArtelError]()
        for peer in peers:
            try:
                source = PeerSource(host, peer, invite.run)
                _, leaf = await asyncio.to_thread(manifest_of, source, invite.run)
                open_manifest(leaf)
                return leaf
            except ArtelError as error:
                errors.append(error)
        # One that lacks entry 0 stands by itself, and waits for it as we do.
        if errors and all(_is_wrong(error) for error in errors):
            raise CheckFailed(
                f"nobody of the invite serves run {invite.run[:12]}: {errors[0].message}",
                "ask the organiser for the invite of now",
            )
        if time.monotonic() - said > 10 * RETRY_S:
            said = time.monotonic()
            reason = errors[0].message if errors else ""
            hint = "the invite of now, on the page of whoever leads, names who is there"
            emit(log, "run.waiting", logging.WARNING, reason=reason, hint=hint)
        await asyncio.sleep(RETRY_S)


def _is_wrong(error: ArtelError) -> bool:
    if isinstance(error, wire.Refused):
        return error.code == OTHER_RUN
    return isinstance(error, CheckFailed) and not isinstance(error, NotFound)


async def stand_by(
    own: OwnLedger,
    host: Host,
    prepared: Prepared,
    key: str,
    ways: Sequence[str],
    listener: socket.socket,
    recomputer: Recomputer,
    greet: Callable[[str, str], None],
    *,
    is_new: bool,
) -> Turn | None:
    """Stand by until a term may be begun; None when the newest ledger says that this home leads.

    :param key: as of :class:`.standby.Standby`
    :param ways: addresses of the invite
    :param listener: of the page
    :param recomputer: runs while the run rests on its coordinator: loading it takes seconds
    :param greet: is told the address of the page, and what to say to a person
    :param is_new: this process has led nothing and stood by nowhere yet
    :raises ResourceError: it is new, and its machine's clock is not that of those who answer
    """
    home = own.home
    blobs = BlobStore(home / "blobs")
    circle = Circle(home, host, own.run, lambda: own.replica.state)
    for address in ways:
        circle.known.setdefault(peer_of(address), [address])
        host.remember(peer_of(address), [address])
    await clocks.right(host, [*map(peer_of, ways), *await circle.peers()], refuse=is_new)
    gate, stock = Gate(), Stock(host, blobs, prepared.manifest, own.run, "")
    standby = Standby(own, host, blobs, stock, circle, key)
    await standby.open()
    directory = Directory(partial(public_runs, host))
    async with gate.serving(_page(standby, prepared, gate, directory), listener, home) as url:
        greet(url, _words(prepared, standby.state, host.peer_id, url))
        emit(log, "coordinator.stands_by", run=own.run[:12], term=own.store.term)
        beside_it = (
            standby.learn(ways),
            standby.announce(),
            standby.keep(),
            keep_members(home, standby.present, lambda: circle.where(circle.coordinators)),
            _warm(standby, recomputer),
        )
        return await beside(_all(beside_it), standby.until_turn())


async def _warm(standby: Standby, recomputer: Recomputer) -> None:
    while True:
        state = standby.state
        if state.size and state.rests_on == "coordinator":
            await recomputer.start()
        else:
            await recomputer.close()
        await asyncio.sleep(WARM_S)


async def _all(work: Iterable[Coroutine[Any, Any, None]]) -> None:
    await together(work)


def _words(prepared: Prepared, state: FoldState, own: str, url: str) -> str:
    """What a person is told.

    :param state: what is known of the run; nothing yet in a new home
    :param own: peer id of this coordinator, which may be who led last
    """
    leader = peer_id_of(bytes.fromhex(state.term.leader)) if state.size else own
    leads = f"\n  leads   {short_peer(leader)}, term {state.term.number}" if leader != own else ""
    return (
        f"{prepared.manifest.config.run.name}: this coordinator stands by; it leads when it is its "
        f"turn{leads}\n  run id  {prepared.run}\n  page    {url}\n"
    )


def _page(
    standby: Standby, prepared: Prepared, gate: Gate, directory: Directory
) -> web.Application:
    """The pages of a standby: its status, and its copy of the ledger."""
    own, name = standby.own, prepared.manifest.config.run.name
    site = LedgerSite(own.store, own.heads, lambda: standby.state)
    site.templates.add(TEMPLATES)

    def status() -> dict[str, Any]:
        return {"name": name} | standby.facts()

    live = LivePage(
        site,
        "standby.html",
        lambda seen, _: {"now": status()},
        lambda: (own.store.size, standby.waits),
    )

    def numbers(now: dict[str, Any]) -> Any:
        yield metric("artel_round", "The round under way.", now["round"])
        yield metric("artel_term", "The term of the run.", now["term"])
        yield metric("artel_ledger_entries", "Entries of the ledger.", now["ledger"]["size"])

    return exposition.application(
        gate, site, live.show, live, {"status": status}, numbers, directory
    )
