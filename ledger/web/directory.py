"""The public runs on the web: a page, its document, and the way into the network.

======================  ============================================================================
``GET /runs``           public runs that the DHT names (HTML)
``GET /api/v1/runs``    the same, with the signed listings (JSON)
``GET /bootstrap``      addresses of peers, one a line, to enter the network by
======================  ============================================================================
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from aiohttp import web

from artel.ledger.web.answers import json_text
from artel.ledger.web.context import Context
from artel.ledger.web.openapi import HTML, PLAIN, says
from artel.ledger.web.site import LedgerSite
from artel.protocol.listing import facts
from artel.protocol.net.doors import BOOTSTRAP_PATH, MAX_DOORS, RUNS_PATH, Directory
from artel.protocol.offer import offer, offer_words
from artel.protocol.schema import Record


class RunsFacts(Record):
    """What ``/api/v1/runs`` answers."""

    runs: list[dict[str, Any]]


def add_directory(app: web.Application, site: LedgerSite, directory: Directory) -> None:
    """Add the routes to a daemon's application; its own addresses are those of the site."""

    @says("The public runs that the network names.", RunsFacts)
    async def document(request: web.Request) -> web.Response:
        rows = [facts(one) for one in await directory.runs()]
        return json_text(json.dumps({"runs": rows}).encode())

    @says("The same as a page for people.", None, HTML, errors=HTML)
    async def page(request: web.Request) -> web.Response:
        found = await directory.runs()

        def shown(page: Context, _: Mapping[str, str]) -> dict[str, Any]:
            offers = [[*offer_words(offer(one.manifest, one.now.members))] for one in found]
            return {"runs": [*zip(map(facts, found), offers, strict=True)]}

        return await site.page(request, "runs.html", shown)

    @says("Addresses to enter the network by, one a line.", None, PLAIN)
    async def bootstrap(request: web.Request) -> web.Response:
        others = (way for one in await directory.runs() for way in one.now.addresses[:1])
        lines = dict.fromkeys((*site.addresses[:4], *others))
        text = "".join(f"{line}\n" for line in [*lines][:MAX_DOORS])
        return web.Response(text=text)

    app.router.add_get("/runs", page)
    app.router.add_get(RUNS_PATH, document)
    app.router.add_get(BOOTSTRAP_PATH, bootstrap)
