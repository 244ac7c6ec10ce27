"""The HTTP side of a node: its status for its owner, and the run's ledger for everybody.

By default it listens on loopback only. ``artel node start --http HOST:PORT`` opens it to others,
who then get the same tiles and pages from this node as from the coordinator, and can compare.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from aiohttp import web

from artel.ledger.fold.shares import share_of
from artel.ledger.store.keyfiles import require_home_of, status_of
from artel.ledger.web import exposition
from artel.ledger.web.answers import error
from artel.ledger.web.context import Context
from artel.ledger.web.live import LivePage
from artel.ledger.web.openapi import HTML, add_openapi, says
from artel.ledger.web.server import Gate, Handler
from artel.ledger.web.site import LedgerSite
from artel.ledger.web.visitors import is_owners
from artel.node import control
from artel.node.overview import gauges, words
from artel.protocol.errors import ArtelError
from artel.protocol.net.doors import Directory
from artel.protocol.net.http import announced_in, fetch_object

if TYPE_CHECKING:
    from artel.node.session import Session

TEMPLATES = Path(__file__).with_name("templates")
CONTROL_PATH = "/control"
PRIVATE = ("/api/v1/status", "/metrics", exposition.LIVE_PATH)
"""What only programs on this machine are told, and no page of another site in its browsers."""


SHOWN = ("run", "node", "account", "page")
"""What the page shows elsewhere, with links."""
REFRESH_S = 2.0
"""After which its owner's page is made again, while it is open."""


@contextlib.asynccontextmanager
async def serving(
    home: Path,
    status: Callable[[], dict[str, Any]],
    site: LedgerSite,
    listener: socket.socket,
    directory: Directory,
    obey: control.Obey,
) -> AsyncIterator[str]:
    """Serve for as long as the context lasts, and note the address in the home; yields the URL.

    :param status: called in a thread, as shares take longer the more accounts there are
    :param obey: carries out what the owner orders on the page
    """
    site.templates.add(TEMPLATES)

    @web.middleware
    async def owner_only(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in PRIVATE and not is_owners(request):
            return error(403, "the status is for this machine alone", "see / and /shares")
        return await handler(request)

    def view(seen: Context, _: Mapping[str, str]) -> dict[str, Any]:
        return node_page(seen, status())

    @says("The page for people.", None, HTML, errors=HTML)
    async def page(request: web.Request) -> web.Response:
        if is_owners(request):
            return await live.show(request)
        return await site.page(request, "node.html", view)

    @says("An order of the owner's.", takes="application/x-www-form-urlencoded")
    async def ordered(request: web.Request) -> web.Response:
        if not is_owners(request) or not await asyncio.to_thread(_by_owner, request):
            return error(403, "only who runs this node may control it", "see: artel node --help")
        try:
            await obey(control.from_form(await request.post()))
        except ArtelError as wrong:
            return site.refused(wrong)
        return web.Response(status=303, headers={"Location": "/#controls"})

    # A node's numbers change all the time.
    live = LivePage(site, "own.html", view, lambda: time.monotonic() // REFRESH_S)
    gate = Gate()
    said = says("What the node does, for its owner.", dict[str, Any])(lambda: status())
    app = exposition.application(gate, site, page, live, {"status": said}, gauges, directory)
    app.middlewares.append(owner_only)
    app.router.add_post(CONTROL_PATH, ordered)
    add_openapi(app, "A node of Artel")
    async with gate.serving(app, listener, home) as url:
        yield url


async def site_of(session: Session) -> LedgerSite:
    """The ledger of a node on the web."""
    replica = session.replica
    addresses = await session.host.addresses()
    return LedgerSite(
        replica.store,
        session.heads,
        lambda: replica.state,
        info=lambda: {"addresses": addresses},
    )


def read(home: Path) -> dict[str, Any]:
    """The status of the node that runs in ``home``, with the address of its ``page``.

    :raises UsageError: it is a coordinator's home
    :raises Unreachable: none does
    """
    require_home_of("node", home, status_of("coordinator", home))
    page = announced_in(home, "node")
    return fetch_object(f"{page}/api/v1/status") | {"page": page}


def _by_owner(request: web.Request) -> bool:
    """Whether the user who runs this node, or root, holds the other end of a connection: the page
    is for all who sit at this machine, its buttons are not."""
    assert request.transport is not None
    there = tuple(request.transport.get_extra_info("peername")[:2])
    for one in psutil.net_connections("tcp"):
        if one.laddr == there and one.pid is not None:
            with contextlib.suppress(psutil.Error):
                return psutil.Process(one.pid).uids().real in (0, os.getuid())
    return False


def node_page(seen: Context, now: dict[str, Any]) -> dict[str, Any]:
    """Values for ``node.html``: the status, and what its account owns."""
    account = now["account"]
    share = share_of(seen.state, account)
    lines = [line for line in words(now | {"page": ""}) if line[0] not in SHOWN]
    owner = seen.state.accounts.get(account)
    return {"now": now, "owner": owner, "share": share, "lines": lines}
