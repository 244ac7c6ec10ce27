"""What stands between a web server and the world: limits, headers, and errors that say little.

Nothing here knows what is served. Every answer gets the same security headers, every failure
becomes ``{"error": ..., "hint": ...}`` with a fitting status, and nobody can hold more than a
bounded part of the server: connections, requests at a time, seconds, and bytes.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import logging
import math
import socket
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web

from artel.ledger.web.answers import busy, error
from artel.ledger.web.render import STYLE
from artel.ledger.web.visitors import from_another_site
from artel.protocol import files
from artel.protocol.dsse import MAX_ENVELOPE_BYTES
from artel.protocol.errors import ArtelError, ResourceError, UsageError
from artel.protocol.events import emit
from artel.protocol.identity import HomeLock
from artel.protocol.net.http import API_FILE, announced
from artel.protocol.net.limits import RateLimits, network_of, used_up
from artel.protocol.options import Endpoint, check_port_free

log = logging.getLogger("artel.web")

MAX_LINE_BYTES = 4096
SMALL_BYTES = 64 << 10
"""Answers up to this size are sent whatever lies there: all connections hold 16 MiB of them."""
BACKLOG = 64
SWEEP_S = 0.5
TOLD_EVERY_S = 60.0
"""Between two lines in the log that say of requests that are none."""
MAX_ADDRESSES = 4096
"""Addresses whose rate is remembered; the one that was quiet longest is forgotten first."""
PUBLIC_PREFIX = "/ledger/"
"""Static public data, which other people's tools may read from within a browser."""

_STYLE_HASH = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
HEADERS = {
    # Only files of this server are loaded and run, whatever a peer manages to write into a page.
    "Content-Security-Policy": (
        f"default-src 'none'; script-src 'self'; style-src 'self' 'sha256-{_STYLE_HASH}'; "
        "connect-src 'self'; base-uri 'none'; form-action 'self'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    # With "no-referrer" a browser keeps from us, too, from which site a form is sent.
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Server": "artel",
}

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True)
class Limits:
    """What all visitors together, and one of them, may take."""

    connections: int = 256
    requests: int = 64
    """Requests that are answered at the same time; more get 503 and shall come back. Once it is
    half as many, no address may have more than a quarter: also not a proxy that stands for many."""
    answer_s: float = 20.0
    """Seconds to make an answer, the reading of a request's body included."""
    first_request_s: float = 15.0
    """Seconds in which a new connection has to send a whole request head."""
    request_s: float = 60.0
    """Seconds from one request to the next on a connection: it has to take the answer in them."""
    untaken_bytes: int = 32 << 20
    """Of answers that lie here because they are not taken; beside so many only small ones are sent,
    and no address has more than a quarter of them once it is half as many."""
    streams: int = 64
    """Pages that are told what changes; more get 503, as requests do, and ask now and then."""
    stream_s: float = 600.0
    """Seconds after which one is cut off; it may ask again, like anybody else."""
    posts: int = 20
    """Requests that change something from one address, at once ..."""
    posts_per_s: float = 1.0
    """... and in the long run."""


class Gate:
    """Holds the visitors of one server to its limits. Owned by the event loop.

    :param clock: steady seconds
    """

    def __init__(
        self, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.limits = limits or Limits()
        self._clock = clock
        self.answers: Counter[str] = Counter()
        """How many there were, by status."""
        self._active: Counter[str] = Counter()
        """Requests that are being answered, by network."""
        self._streams: Counter[str] = Counter()
        """Answers that go on, by network."""
        self._streaming: set[Handler] = set()
        self._posts = RateLimits(
            60 * self.limits.posts_per_s, self.limits.posts, MAX_ADDRESSES, clock
        )
        self._deadlines: dict[Any, float] = {}  # connection: when it has to have begun a request
        self._malformed, self._told_at = 0, -math.inf

    def streaming(self, handler: Handler) -> Handler:
        """Let the answers of a handler go on for :attr:`Limits.stream_s`; it raises TimeoutError
        when a reader does not take them."""
        self._streaming.add(handler)
        return handler

    def application(self) -> web.Application:
        """An application without routes, behind this gate."""
        app = web.Application(client_max_size=MAX_ENVELOPE_BYTES, middlewares=[self._guarded])
        app.on_response_prepare.append(self._prepared)
        return app

    @contextlib.asynccontextmanager
    async def serving(
        self, application: web.Application, listener: socket.socket, home: Path
    ) -> AsyncIterator[str]:
        """As :meth:`listening`, with the address noted in a daemon's home; yields the URL."""
        url = address_of(listener)
        async with self.listening(application, listener):
            with announced(home, url):
                yield url

    @contextlib.asynccontextmanager
    async def listening(
        self, application: web.Application, listener: socket.socket
    ) -> AsyncIterator[None]:
        """Serve on a listening socket for as long as the context lasts."""
        runner = web.AppRunner(application, shutdown_timeout=2.0)
        await runner.setup()
        sweeper = None
        try:
            server = runner.server
            assert server is not None
            accepting = await asyncio.get_running_loop().create_server(
                lambda: self._accepted(server), sock=listener, backlog=BACKLOG
            )
            sweeper = asyncio.create_task(self._sweep(server))
            try:
                yield
            finally:
                accepting.close()
        finally:
            if sweeper is not None:
                sweeper.cancel()
            await runner.cleanup()

    # --- connections ------------------------------------------------------------------------------

    def _accepted(self, server: Any) -> asyncio.Protocol:
        """The protocol of a new connection; one that closes it when there are too many."""
        live = _live(server)
        if len(live) >= self.limits.connections:
            victim = self._victim(live)
            if victim is None:
                return _Refused()
            _abort(victim)
        return _Connection(self, server)

    def _victim(self, live: list[Any]) -> Any:
        """Whoever has most connections loses the one that has been idle longest; None when nobody
        has two."""
        addresses = [network_of(_address_of(connection)) for connection in live]
        ((greedy, count),) = Counter(addresses).most_common(1)
        if count < 2:
            return None
        mine = (c for c, address in zip(live, addresses, strict=True) if address == greedy)
        return min(mine, key=lambda c: self._deadlines.get(c, math.inf))

    async def _sweep(self, server: Any) -> None:
        """End connections on which nothing happens, however slowly somebody sends or reads."""
        while True:
            now, live = self._clock(), _live(server)
            fresh = now + self.limits.first_request_s
            self._deadlines = {c: self._deadlines.get(c, fresh) for c in live}
            # Those that came in one burst were counted only after they had been let in.
            while len(live) > self.limits.connections:
                victim = self._victim(live) or live[-1]
                _abort(victim)
                live.remove(victim)
            for connection in live:
                if now > self._deadlines[connection]:
                    _abort(connection)
            await asyncio.sleep(SWEEP_S)

    # --- requests ---------------------------------------------------------------------------------

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self._deadlines[request.protocol] = self._clock() + self.limits.request_s
        if request.match_info.handler in self._streaming:
            return await self._streamed(request, handler)
        return await self._admitted(request, handler)

    async def _streamed(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        visitor = network_of(request.remote or "")
        if from_another_site(request):
            return error(403, "pages of other sites may only read here", "")
        if used_up(self._streams, self.limits.streams, visitor):
            return busy("too many pages are told what changes", 503)
        self._deadlines[request.protocol] += self.limits.stream_s
        self._streams[visitor] += 1
        try:
            async with asyncio.timeout(self.limits.stream_s):
                return await handler(request)
        except TimeoutError:
            _abort(request.protocol)
            raise ConnectionResetError("the stream was cut off") from None
        finally:
            self._streams -= Counter((visitor,))

    async def _prepared(self, request: web.Request, response: web.StreamResponse) -> None:
        self.dress(request, response)

    def dress(self, request: web.BaseRequest, response: web.StreamResponse) -> None:
        """Count an answer, and give it the headers that all have."""
        self.answers[str(response.status)] += 1
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        if request.path.startswith(PUBLIC_PREFIX) and request.method in ("GET", "HEAD"):
            response.headers["Access-Control-Allow-Origin"] = "*"
            response.headers["Cross-Origin-Resource-Policy"] = "cross-origin"

    async def _admitted(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        visitor = network_of(request.remote or "")
        if used_up(self._active, self.limits.requests, visitor):
            return busy("too many requests at the same time", 503)
        if request.method == "POST":
            if from_another_site(request):
                return error(403, "pages of other sites may only read here", "")
            if self._posts.take(visitor):
                return busy("too many requests from your address", 429)
        self._active[visitor] += 1
        try:
            response = await self._answered(request, handler)
        finally:
            self._active -= Counter((visitor,))  # without the one that has none left
        # Nothing comes between this and the writing of it.
        if (response.content_length or 0) > SMALL_BYTES and self._untaken_by(visitor):
            return busy("too much of what was asked for is not taken", 503)
        return response

    def _untaken_by(self, visitor: str) -> bool:
        """Whether so much lies here that a visitor gets no more of it."""
        held: Counter[str] = Counter()
        for connection in self._deadlines:
            transport = connection.transport
            if transport is not None and (size := transport.get_write_buffer_size()):
                held[network_of(_address_of(connection))] += size
        return used_up(held, self.limits.untaken_bytes, visitor)

    async def _answered(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            async with asyncio.timeout(self.limits.answer_s):
                return await handler(request)
        except web.HTTPNotFound:
            return error(404, "there is nothing here", "see / or /api/v1/status")
        except web.HTTPMethodNotAllowed as wrong:
            allowed = ", ".join(sorted(wrong.allowed_methods))
            hint = f"use {'GET' if 'GET' in allowed else allowed}"
            response = error(405, f"{request.method[:20]} is not possible here", hint)
            response.headers["Allow"] = allowed
            return response
        except web.HTTPException as other:
            return error(other.status, other.reason, "")
        except UsageError as wrong:
            return error(400, wrong.message, wrong.hint)
        except ArtelError as failed:
            emit(log, "web.failed", logging.WARNING, path=request.path, reason=failed.message)
            return error(503, failed.message, failed.hint)
        except (web.RequestPayloadError, ConnectionError) as broken:
            return self.refusal(request.remote, broken)
        except TimeoutError:
            if not request.content.is_eof():
                return self._incomplete()
            return busy("this server is too busy to answer", 503)
        except Exception:
            # A defect of ours: the visitor learns nothing about it, the operator everything.
            log.exception("web.defect")
            return error(500, "this page is broken", "tell the organiser")

    def _incomplete(self) -> web.Response:
        """The answer to a request of which the rest is still missing; the connection ends."""
        within = f"{self.limits.answer_s:g} s"
        response = error(408, f"the body did not come within {within}", "send all of it at once")
        response.force_close()
        return response

    def refusal(self, address: str | None, reason: BaseException | None) -> web.Response:
        """The answer to what is no whole request; the log tells of these now and then."""
        self._malformed += 1
        now = self._clock()
        if now >= self._told_at + TOLD_EVERY_S:
            said = " ".join(str(reason).split())[:100]
            fields = {"times": self._malformed, "address": address, "reason": said}
            emit(log, "web.malformed", logging.WARNING, **fields)
            self._malformed, self._told_at = 0, now
        return error(400, "this is no whole HTTP request", "")


@contextlib.contextmanager
def claimed(
    home: Path, http: Endpoint, listen: Iterable[str]
) -> Iterator[tuple[HomeLock, socket.socket]]:
    """The home of a daemon and the socket of its page, until the block ends.

    All that can be in the way is looked at, so that nobody waits for a daemon that cannot start.

    :param listen: libp2p addresses whose ports have to be free
    :raises ResourceError: the home or a port is in use
    :raises UsageError: the home is not one of ours
    """
    lock = HomeLock(home)
    with contextlib.ExitStack() as ends:
        ends.callback(lock.release)
        try:
            files.require_ours(home / API_FILE, files.holds("url"))
            page = ends.enter_context(contextlib.closing(bind(*http)))
            for address in listen:
                check_port_free(address)
        except ArtelError:
            lock.abandon()
            raise
        yield lock, page


def bind(host: str = "127.0.0.1", port: int = 0) -> socket.socket:
    """A listening socket; port 0 takes a free one.

    :raises ResourceError: the port is in use, or the address is not of this machine
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, _, _, _, where = found[0]
        return socket.create_server(where[:2], family=family, backlog=BACKLOG)
    except OSError as error:
        # Python's own words of an address follow those of the system.
        reason = (error.strerror or str(error)).partition(" (while ")[0].lower()
        raise ResourceError(
            f"cannot serve the page on {host}:{port}: {reason}",
            "choose another address with --http HOST:PORT; port 0 takes a free one",
        ) from None


def address_of(listener: socket.socket) -> str:
    """How somebody on this machine reaches it."""
    host, port = listener.getsockname()[:2]
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Connection(web.RequestHandler):
    """aiohttp's, which prints a traceback of each request that it cannot read."""

    __slots__ = ("_gate",)

    def __init__(self, gate: Gate, server: Any) -> None:
        super().__init__(
            server,
            loop=asyncio.get_running_loop(),
            access_log=None,  # type: ignore[arg-type]
            keepalive_timeout=15.0,
            max_line_size=MAX_LINE_BYTES,
            max_field_size=MAX_LINE_BYTES,
            auto_decompress=False,  # nobody sends compressed statements
        )
        self._gate = gate

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        if status != 400:
            return super().handle_error(request, status, exc, message)
        response = self._gate.refusal(request.remote, exc)
        self._gate.dress(request, response)
        response.force_close()
        return response


class _Refused(asyncio.Protocol):
    """Ends a connection as soon as it is there."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _live(server: Any) -> list[Any]:
    """Connections that are not being closed."""
    return [c for c in server.connections if c.transport and not c.transport.is_closing()]


def _address_of(connection: Any) -> str:
    transport = connection.transport
    peer = transport.get_extra_info("peername") if transport is not None else None
    return str(peer[0]) if peer else ""


def _abort(connection: Any) -> None:
    # Not close(): that would wait until what is still to be sent has been taken.
    if connection.transport is not None:
        connection.transport.abort()
