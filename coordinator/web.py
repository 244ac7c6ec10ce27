"""The coordinator's HTTP side: a JSON API for programs, the run's page, and the ledger's pages.

====================================  ==============================================================
``GET /``                             the page (HTML, whole without scripts)
``GET /live``                         what changes on it (server-sent events)
``GET /healthz``                      ``ok``
``GET /metrics``                      the same numbers for Prometheus
``GET /api/v1/run``                   what the run is: manifest, invite, organiser
``GET /api/v1/status``                phase, round, nodes, loss, ledger size and root
``GET /api/v1/rounds?last=N``         numbers of the newest N rounds (1 to 1000, default 50)
``GET /api/v1/shares``                who owns what
``GET /model.tar``                    the newest model that is offered, with what belongs to it
``GET /api/v1/openapi.json``          all of these with their schemas, as OpenAPI
``GET /runs``, ``/bootstrap``         the public runs; see :mod:`ledger.web.directory`
``/ledger/...``, ``/entry/...``, ...  the ledger itself; see :mod:`ledger.web.site`
====================================  ==============================================================

Errors are ``{"error": ..., "hint": ...}`` with a fitting status code.
"""

from __future__ import annotations

import asyncio
import os
from collections import Counter
from collections.abc import Hashable, Mapping
from functools import partial

from aiohttp import web

from artel.coordinator import api
from artel.coordinator.page import TEMPLATES, Facts, run_page
from artel.coordinator.releasing import ReleaseFacts, Releases
from artel.coordinator.service import Coordinator
from artel.ledger.web import exposition
from artel.ledger.web.answers import busy, error, whole
from artel.ledger.web.context import Context
from artel.ledger.web.lists import SharesFacts, shares_data
from artel.ledger.web.live import LivePage
from artel.ledger.web.openapi import BYTES, PLAIN, add_openapi, says
from artel.ledger.web.server import Gate
from artel.ledger.web.site import LedgerSite
from artel.protocol.invite import Invite
from artel.protocol.net.doors import Directory, public_runs
from artel.protocol.net.limits import network_of, used_up

DOWNLOADS = 8
"""Of the model at the same time: the line is that of the rounds, too. One address has half of them,
at most."""
CHUNK_BYTES = 1 << 20
DEFAULT_ROUNDS, MAX_ROUNDS = 50, 1000
_LAST = {"type": "integer", "minimum": 1, "maximum": MAX_ROUNDS, "default": DEFAULT_ROUNDS}


class RunPage:
    """Page and API of one coordinator.

    :param invite: the line that volunteers paste
    :param releases: of the newest model, where there are any
    """

    def __init__(self, core: Coordinator, invite: str, releases: Releases | None = None) -> None:
        self._core, self._releases = core, releases
        self.invite = invite
        self._downloads = Counter[str]()  # by network
        self.site = LedgerSite(
            core.ledger.store,
            core.heads,
            lambda: core.ledger.state,
            submit=core.submissions.submit,
            set_alias=core.submissions.set_alias,
            info=self._info,
        )
        self.site.templates.add(TEMPLATES)

    def _info(self) -> Facts:
        return {"addresses": list(Invite.decode(self.invite).peers), "invite": self.invite}

    def application(self, gate: Gate) -> web.Application:
        """The aiohttp application, behind a gate."""
        documents = {
            "run": self._run,
            "status": self._status,
            "shares": self._shares,
        }
        live = LivePage(self.site, "run.html", self._shown, self._version)
        directory = Directory(partial(public_runs, self._core.host))
        app = exposition.application(
            gate, self.site, live.show, live, documents, api.gauges, directory
        )
        app.router.add_get("/api/v1/rounds", self._rounds)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/model.tar", gate.streaming(self._model))
        add_openapi(app, "A coordinator of Artel")
        return app

    def _shown(self, page: Context, _: Mapping[str, str]) -> Facts:
        rounds = api.rounds_facts(self._core, 0)["rounds"]
        return run_page(page, self._run(), self._status(), rounds)

    def _version(self) -> Hashable:
        """Another one when an entry was added, a node reported, or the round went on."""
        core = self._core
        beats = sum(peer.beats for peer in core.peers.values())
        here = self.invite, self._release, core.ledger.store.size, len(core.peers)
        return (*here, id(core.state), beats)

    @property
    def _release(self) -> ReleaseFacts | None:
        return self._releases.newest if self._releases else None

    @says("Whether it answers.", None, PLAIN)
    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    @says("The newest model that is offered, as a release (tar).", None, BYTES)
    async def _model(self, request: web.Request) -> web.StreamResponse:
        if self._releases is None or self._release is None:
            return error(404, "no model is offered here", "artel model export makes one of a home")
        visitor = network_of(request.remote or "")
        if used_up(self._downloads, DOWNLOADS, visitor):
            return busy("too many are fetching the model", 503)
        name = f"{self._core.manifest.config.run.name}-{self._release.round}.tar"
        said = {"Content-Disposition": f'attachment; filename="{name}"', "Content-Type": BYTES}
        answer = web.StreamResponse(headers=said)
        self._downloads[visitor] += 1
        try:
            # Another one may take its name meanwhile; what is open is read to its end.
            with self._releases.file.open("rb") as file:
                answer.content_length = os.fstat(file.fileno()).st_size
                await answer.prepare(request)
                while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                    await answer.write(data)
        finally:
            self._downloads -= Counter((visitor,))
        return answer

    @says("Numbers of the newest rounds.", api.RoundsFacts, last=_LAST)
    async def _rounds(self, request: web.Request) -> web.Response:
        given = request.query.getall("last", [str(DEFAULT_ROUNDS)])
        last = whole(given[0] if len(given) == 1 else "", "last", 1, MAX_ROUNDS)
        return await exposition.object_of(
            self.site, ("rounds", last), lambda: api.rounds_facts(self._core, last)
        )

    # --- what takes a while -----------------------------------------------------------------------

    @says("What the run is.", api.RunFacts)
    def _run(self) -> Facts:
        return api.run_facts(self._core, self.invite)

    @says("How the run goes now.", api.StatusFacts)
    def _status(self) -> Facts:
        return api.status_facts(self._core, self._release)

    @says("Who owns what.", SharesFacts)
    def _shares(self) -> Facts:
        return self.site.look(shares_data)
