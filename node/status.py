"""The HTTP side of a node: its status for its owner, and the run's ledger for everybody.

By default it listens on loopback only. ``artel node start --http HOST:PORT`` opens it to others,
who then get the same tiles and pages from this node as from the coordinator, and can compare.
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from aiohttp import web

from artel.ledger.fold.shares import share_of
from artel.ledger.store.keyfiles import require_home_of, status_of
from artel.ledger.web import exposition
from artel.ledger.web.answers import error
from artel.ledger.web.context import Context
from artel.ledger.web.live import LivePage
from artel.ledger.web.server import Gate, Handler
from artel.ledger.web.site import LedgerSite
from artel.ledger.web.visitors import is_owners
from artel.node.overview import gauges, words
from artel.protocol.net.doors import Directory
from artel.protocol.net.http import announced_in, fetch_object

if TYPE_CHECKING:
    from artel.node.session import Session

TEMPLATES = Path(__file__).with_name("templates")
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
) -> AsyncIterator[str]:
    """Serve for as long as the context lasts, and note the address in the home; yields the URL.

    :param status: called in a thread, as shares take longer the more accounts there are
    """
    site.templates.add(TEMPLATES)

    @web.middleware
    async def owner_only(request: web.Request, handler: Handler) -> web.StreamResponse:
        if request.path in PRIVATE and not is_owners(request):
            return error(403, "the status is for this machine alone", "see / and /shares")
        return await handler(request)

    def view(seen: Context, _: Mapping[str, str]) -> dict[str, Any]:
        return node_page(seen, status())

    async def page(request: web.Request) -> web.Response:
        if is_owners(request):
            return await live.show(request)
        return await site.page(request, "node.html", view)

    # A node's numbers change all the time.
    live = LivePage(site, "own.html", view, lambda: time.monotonic() // REFRESH_S)
    gate = Gate()
    app = exposition.application(gate, site, page, live, {"status": status}, gauges, directory)
    app.middlewares.append(owner_only)
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


def node_page(seen: Context, now: dict[str, Any]) -> dict[str, Any]:
    """Values for ``node.html``: the status, and what its account owns."""
    account = now["account"]
    share = share_of(seen.state, account)
    lines = [line for line in words(now | {"page": ""}) if line[0] not in SHOWN]
    owner = seen.state.accounts.get(account)
    return {"now": now, "owner": owner, "share": share, "lines": lines}
