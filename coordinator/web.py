"""The coordinator's HTTP side: a JSON API for programs and one page for people. Read-only.

====================================  ==============================================================
``GET /``                             the page (HTML, no scripts)
``GET /healthz``                      ``ok``
``GET /api/v1/run``                   what the run is: manifest, invite, organiser
``GET /api/v1/status``                phase, round, nodes, loss, ledger size and root
``GET /api/v1/rounds?last=N``         numbers of the newest N rounds (1 to 1000, default 50)
``GET /api/v1/shares``                who owns what
``GET /api/v1/ledger/checkpoint``     the newest signed tree head, a C2SP note as text/plain
``GET /api/v1/ledger/entries``        entries with their leaf bytes: ``?start=I&count=N``, N <= 100
====================================  ==============================================================

Errors are ``{"error": ..., "hint": ...}`` with a fitting status code.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import socket
from collections.abc import AsyncIterator, Awaitable, Callable

from aiohttp import web

from coordinator import facts
from coordinator.page import STYLE, render
from coordinator.service import Coordinator
from protocol.errors import ArtelError, UsageError
from protocol.events import emit

log = logging.getLogger("artel.web")

DEFAULT_ROUNDS, MAX_ROUNDS = 50, 1000
MAX_ENTRIES = 100
"""Entries of up to 8 KiB in one reply; with base64 and the decoded body about 2 MB."""
PAGE_ROUNDS = 400
"""Rounds that the page's plot shows; its table shows fewer."""
MAX_INDEX = (1 << 53) - 1
MAX_LINE_BYTES = 4096
ANSWER_TIMEOUT_S = 20.0

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    # Nothing is loaded from anywhere and nothing runs, whatever a peer manages to write.
    "Content-Security-Policy": (
        f"default-src 'none'; style-src 'sha256-{_STYLE_HASH}'; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
    "Server": "artel",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class RunPage:
    """Page and API of one coordinator.

    :param invite: the line that volunteers paste
    """

    def __init__(self, core: Coordinator, invite: str) -> None:
        self._core, self._invite = core, invite

    @contextlib.asynccontextmanager
    async def listening(self, listener: socket.socket) -> AsyncIterator[None]:
        """Serve on a listening socket for as long as the context lasts."""
        runner = web.AppRunner(
            self.application(),
            access_log=None,
            keepalive_timeout=15.0,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            shutdown_timeout=2.0,
        )
        await runner.setup()
        try:
            await web.SockSite(runner, listener).start()
            yield
        finally:
            await runner.cleanup()

    def application(self) -> web.Application:
        """The aiohttp application."""
        app = web.Application(client_max_size=1024, middlewares=[_guarded])
        app.router.add_get("/", self._page)
        app.router.add_get("/healthz", self._health)
        app.router.add_get("/api/v1/run", self._run)
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/api/v1/rounds", self._rounds)
        app.router.add_get("/api/v1/shares", self._shares)
        app.router.add_get("/api/v1/ledger/checkpoint", self._checkpoint)
        app.router.add_get("/api/v1/ledger/entries", self._entries)
        return app

    async def _page(self, request: web.Request) -> web.Response:
        core = self._core
        html = render(
            facts.run_facts(core, self._invite),
            await facts.status_facts(core),
            facts.rounds_facts(core, PAGE_ROUNDS)["rounds"],
            await facts.shares_facts(core),
        )
        return web.Response(text=html, content_type="text/html", charset="utf-8")

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _run(self, request: web.Request) -> web.Response:
        return web.json_response(facts.run_facts(self._core, self._invite))

    async def _status(self, request: web.Request) -> web.Response:
        return web.json_response(await facts.status_facts(self._core))

    async def _rounds(self, request: web.Request) -> web.Response:
        last = _number(request, "last", DEFAULT_ROUNDS, 1, MAX_ROUNDS)
        return web.json_response(facts.rounds_facts(self._core, last))

    async def _shares(self, request: web.Request) -> web.Response:
        return web.json_response(await facts.shares_facts(self._core))

    async def _checkpoint(self, request: web.Request) -> web.Response:
        return web.Response(text=await facts.checkpoint_note(self._core))

    async def _entries(self, request: web.Request) -> web.Response:
        start = _number(request, "start", 0, 0, MAX_INDEX)
        count = _number(request, "count", MAX_ENTRIES, 1, MAX_ENTRIES)
        return web.json_response(await facts.entries_facts(self._core, start, count))


def _number(request: web.Request, name: str, default: int, low: int, high: int) -> int:
    """A whole number from the query.

    :raises UsageError: when it is given twice, is none, or lies out of bounds
    """
    given = request.query.getall(name, [])
    if not given:
        return default
    text = given[0]
    if len(given) == 1 and text.isascii() and text.isdigit() and len(text) < 17:
        number = int(text)
        if low <= number <= high:
            return number
    raise UsageError(f"{name} is not a whole number from {low} to {high}", f"for example {default}")


@web.middleware
async def _guarded(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Turns every failure into a JSON error, and adds the security headers."""
    response = await _answered(request, handler)
    response.headers.update(HEADERS)
    return response


async def _answered(request: web.Request, handler: Handler) -> web.StreamResponse:
    try:
        async with asyncio.timeout(ANSWER_TIMEOUT_S):
            return await handler(request)
    except web.HTTPNotFound:
        return _error(404, "there is nothing here", "see / or /api/v1/status")
    except web.HTTPMethodNotAllowed as error:
        response = _error(405, f"{request.method[:20]} is not possible here", "use GET")
        response.headers["Allow"] = ", ".join(sorted(error.allowed_methods))
        return response
    except web.HTTPException as error:
        return _error(error.status, error.reason, "")
    except UsageError as error:
        return _error(400, error.message, error.hint)
    except ArtelError as error:
        emit(log, "web.failed", logging.WARNING, path=request.path, reason=error.message)
        return _error(503, error.message, error.hint)
    except TimeoutError:
        return _error(503, "the coordinator is too busy to answer", "try again in a moment")
    except Exception:
        # A defect of ours: the visitor learns nothing about it, the operator everything.
        log.exception("web.defect")
        return _error(500, "this page is broken", "tell the organiser")


def _error(status: int, message: str, hint: str) -> web.Response:
    return web.json_response({"error": message, "hint": hint}, status=status)
