"""Pages that are followed: one making for all who listen, and a bounded number of these."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientError, ClientResponse
from aiohttp.test_utils import TestClient, TestServer

from artel.ledger import entries
from artel.ledger.web import exposition, live
from artel.ledger.web.context import Context
from artel.ledger.web.lists import entries_page
from artel.ledger.web.live import LivePage
from artel.ledger.web.server import Gate, Limits
from artel.ledger.web.site import LedgerSite
from artel.protocol.listing import ListingRecord
from artel.protocol.net.doors import Directory
from explorer_world import Client, Shown, shown
from ledger_world import key
from page_world import read

PLAIN = {"Accept-Encoding": "identity"}
OTHER = {"Origin": "http://elsewhere.example"}


class Followed:
    """A ledger whose list of entries is followed."""

    def __init__(self, ledger: Shown) -> None:
        self.ledger, self.made = ledger, 0
        self.endless = False
        self.client: Client

    def view(self, page: Context, _: Any) -> dict[str, Any]:
        self.made += 1
        return entries_page(page, {}) | {"kind": secrets.token_hex(1 << 18) if self.endless else ""}

    def version(self) -> object:
        return object() if self.endless else self.ledger.store.size

    def add(self) -> int:
        """One more entry; returns how many there are."""
        size = self.ledger.store.size
        self.ledger.append(entries.account(key(f"newcomer {size}"), self.ledger.world.run))
        return size + 1


async def no_runs() -> list[ListingRecord]:
    return []


@asynccontextmanager
async def followed(folder: Path, limits: Limits | None = None) -> AsyncIterator[Followed]:
    async with shown(folder) as ledger:
        site = LedgerSite(ledger.store, ledger.heads, lambda: ledger.fold.state)
        found = Followed(ledger)
        page = LivePage(site, "entries.html", found.view, found.version)
        gate = Gate(limits)
        documents, known = {"status": dict}, Directory(no_runs)
        app = exposition.application(gate, site, page.show, page, documents, lambda _: (), known)
        async with TestClient(TestServer(app), auto_decompress=False) as found.client:
            yield found


class Stream:
    """What a browser makes of a stream."""

    def __init__(self, reply: ClientResponse) -> None:
        assert reply.status == 200
        self._content, self._unpack, self._text = (
            reply.content,
            zlib.decompressobj(zlib.MAX_WBITS | 16),
            "",
        )

    async def event(self) -> str:
        """The body of the page that is sent next."""
        while True:
            said, end, rest = self._text.partition("\n\n")
            if not end:
                packed = await asyncio.wait_for(self._content.readany(), 60)
                assert packed, "the stream has ended"
                self._text += self._unpack.decompress(packed).decode()
                continue
            self._text = rest
            if said.startswith("data: "):
                return "\n".join(line.removeprefix("data: ") for line in said.splitlines())


def size_in(text: str) -> int:
    """How many entries a body says that there are."""
    (words,) = [node.text for node in read(text).all("span") if "in all" in node.text]
    return int(words.split()[0])


async def test_all_who_listen_get_the_same_page_made_once_whenever_it_changes(
    tmp_path: Path,
) -> None:
    async with followed(tmp_path) as here:
        async with here.client.get("/live") as one, here.client.get("/live") as other:
            assert one.headers["Content-Type"] == "text/event-stream"
            streams = Stream(one), Stream(other)
            for _ in range(3):
                texts = [await stream.event() for stream in streams]
                assert texts[0] == texts[1]
                assert size_in(texts[0]) == here.ledger.store.size
                made = here.made
                here.add()
            assert made == 3
            texts = [await stream.event() for stream in streams]
        async with here.client.get("/", headers=PLAIN) as reply:
            page = await reply.text()
        assert page[page.index("<body") : page.index("</html>")].split() == texts[0].split()


async def test_there_is_room_for_so_many_and_a_page_is_served_all_the_same(
    tmp_path: Path,
) -> None:
    limits = Limits(streams=2, requests=3)
    async with followed(tmp_path, limits) as here, here.client.get("/live") as first:
        await Stream(first).event()
        # One address has no more than a quarter once half are taken.
        async with here.client.get("/live") as second:
            assert second.status == 503
            assert second.headers["Retry-After"]
        async with here.client.get("/", headers=PLAIN) as page:
            assert page.status == 200, "streams are not counted as requests"


async def test_pages_of_other_sites_take_no_place(tmp_path: Path) -> None:
    async with followed(tmp_path) as here:
        for headers in (OTHER, {"Sec-Fetch-Site": "cross-site"}):
            async with here.client.get("/live", headers=headers) as reply:
                assert reply.status == 403
        async with here.client.request("HEAD", "/live") as reply:
            assert reply.status == 405


async def test_who_cannot_unpack_it_is_told_so(tmp_path: Path) -> None:
    async with followed(tmp_path) as here, here.client.get("/live", headers=PLAIN) as reply:
        assert reply.status == 406


async def test_a_stream_is_cut_off_after_its_time_and_its_place_is_free(tmp_path: Path) -> None:
    async with followed(tmp_path, Limits(streams=1, stream_s=0.2)) as here:
        for _ in range(2):
            async with here.client.get("/live") as reply:
                assert reply.status == 200
                with contextlib.suppress(ClientError):
                    while await asyncio.wait_for(reply.content.readany(), 60):
                        pass


async def test_a_reader_who_takes_nothing_is_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live, "TAKEN_S", 0.2)
    monkeypatch.setattr(live, "EVERY_S", 0.01)
    monkeypatch.setattr(live, "BYTES_PER_S", 1 << 40)
    async with followed(tmp_path, Limits(streams=1)) as here:
        here.endless = True
        _, writer = await asyncio.open_connection("127.0.0.1", here.client.port, limit=1)
        writer.write(b"GET /live HTTP/1.1\r\nHost: x\r\nAccept-Encoding: gzip\r\n\r\n")
        async with asyncio.timeout(120):
            while True:
                async with here.client.get("/live") as reply:
                    if reply.status == 200 and here.made > 1:
                        break
                    assert reply.status in (200, 503)
                await asyncio.sleep(0.05)
        writer.close()
