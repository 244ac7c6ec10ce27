"""A page whose readers see it change: made once for all of them, sent only when it is another.

A stream of server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)
carries the body of the page as the server would show it now; ``static/live.js`` puts what is new
into the page that is open. How many may listen is the gate's to say
(:class:`ledger.web.server.Limits`); a reader who does not take what is sent loses its connection.
"""

from __future__ import annotations

import asyncio
import logging
import zlib
from collections.abc import Callable, Hashable

from aiohttp import web

from artel.ledger.web.answers import error
from artel.ledger.web.openapi import HTML, says
from artel.ledger.web.site import LedgerSite, View
from artel.protocol.errors import ArtelError

log = logging.getLogger("artel.web")

EVERY_S = 1.0
"""From one making of the page to the next, at least."""
BYTES_PER_S = 256 << 10
"""What all listeners together are sent: the more there are, the more seldom."""
TAKEN_S = 10.0
"""In which a reader has to take what is sent."""
BEAT_S = 15.0
"""From one sign of life to the next, while nothing changes."""
RETRY = b"retry: 5000\n\n"
BEAT = b":\n\n"
_GZIP_HEAD = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\xff"  # RFC 1952, 2.3


class LivePage:
    """The page of a daemon, and the stream of its changes. Owned by the event loop.

    :param version: another value when the page may have changed; cheap
    """

    def __init__(
        self, site: LedgerSite, template: str, view: View, version: Callable[[], Hashable]
    ) -> None:
        self._site, self._template, self._view = site, template, view
        self._version = version
        self._listeners = 0
        self._newest = b""  # packed
        self._changed = asyncio.Event()  # replaced each time
        self._feeding: asyncio.Task[None] | None = None

    @says("The page for people.", None, HTML, errors=HTML)
    async def show(self, request: web.Request) -> web.Response:
        """The page as it is now."""
        return await self._site.page(request, self._template, self._view)

    @says("What changes on it (server-sent events).", None, "text/event-stream")
    async def stream(self, request: web.Request) -> web.StreamResponse:
        """Its changes from now on, until the reader goes or the feed ends.

        :raises TimeoutError: the reader does not take them
        """
        if "gzip" not in request.headers.get("Accept-Encoding", ""):
            return error(406, "this is sent packed with gzip", "see / for the page as it is")
        headers = {"Content-Type": "text/event-stream", "Content-Encoding": "gzip"}
        response = web.StreamResponse(headers=headers | {"X-Accel-Buffering": "no"})
        await response.prepare(request)
        self._listeners += 1
        if self._feeding is None:
            self._feeding = asyncio.create_task(self._feed())
        try:
            await self._tell(response)
        finally:
            self._listeners -= 1
        return response

    async def close(self, app: web.Application) -> None:
        """End the streams."""
        if self._feeding is not None:
            self._feeding.cancel()
            await asyncio.wait([self._feeding])
        self._feeding = None
        self._changed.set()

    async def _tell(self, response: web.StreamResponse) -> None:
        """Send whatever is new; a slow reader misses what was replaced meanwhile."""

        async def send(data: bytes) -> None:
            async with asyncio.timeout(TAKEN_S):
                await response.write(data)

        sent = b""
        await send(_GZIP_HEAD + _packed(RETRY))
        while self._feeding is not None:
            newest, changed = self._newest, self._changed
            if newest is not sent:
                await send(newest)
                sent = newest
                continue
            try:
                async with asyncio.timeout(BEAT_S):
                    await changed.wait()
            except TimeoutError:
                await send(_packed(BEAT))

    async def _feed(self) -> None:
        """Make the page whenever it may have changed, for as long as somebody listens."""
        known: Hashable = None
        try:
            while self._listeners:
                if (version := self._version()) != known:
                    known = version if await self._renew() else None
                size = self._listeners * len(self._newest)
                await asyncio.sleep(max(EVERY_S, size / BYTES_PER_S))
        except Exception:  # a defect: readers are told nothing of it, and fall back
            log.exception("web.defect")
        finally:
            self._newest, self._feeding = b"", None
            self._changed.set()
            self._changed = asyncio.Event()

    async def _renew(self) -> bool:
        """Make the page; False when that is not possible now."""

        def make() -> bytes:
            return _news(self._site.render(self._template, self._view))

        try:
            news = await self._site.made((self._template, "news"), make)
        except ArtelError:
            return False
        if news != self._newest:
            self._newest = news
            self._changed.set()
            self._changed = asyncio.Event()
        return True


def _news(page: bytes) -> bytes:
    """The body of a page as an event."""
    end = page.rindex(b"</body>") + len(b"</body>")
    body = page[page.index(b"<body") : end].replace(b"\r", b"")
    return _packed(b"".join(b"data: %b\n" % line for line in body.split(b"\n")) + b"\n")


def _packed(data: bytes) -> bytes:
    """A piece of a gzip stream that refers to nothing before it, so that all can be sent the same.

    Full flushes end on whole bytes and forget what came before (RFC 1951; zlib's manual).
    """
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush(zlib.Z_FULL_FLUSH)
