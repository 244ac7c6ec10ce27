"""The routes of a ledger: its C2SP log, what may be sent to it, and the explorer pages.

==========================================  ========================================================
``GET /ledger/checkpoint``                  the newest tree head with all known cosignatures
``GET /ledger/tile/...``                    hash tiles and entry bundles (c2sp.org/tlog-tiles)
``GET /ledger/final``                       the newest tree head that is final; 404 when none is
``GET /ledger/run``                         which run this is, and where else to ask (JSON)
``GET /ledger/aliases``                     names that accounts chose; erasable, not in the log
``GET /ledger/leaf/INDEX``                  an entry's bytes
``GET /ledger/proof/INDEX``                 its proof file (c2sp.org/tlog-proof)
``POST /ledger/submit``                     one signed entry of a person's account
``POST /ledger/alias``                      one signed wish to be shown under a name
``POST /ledger/add-checkpoint``             c2sp.org/tlog-witness@v1.0.0, where a witness is
``GET /entry/INDEX``, ``/account/KEY``      pages for people
``GET /round/N``, ``/shares``, ``/entries``  pages for people; ``/shares.csv``,
                                            ``/shares-by-round.csv``
==========================================  ========================================================
"""

from __future__ import annotations

import asyncio
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from aiohttp import web

from artel.ledger.entries.state import FoldState
from artel.ledger.fold import alias
from artel.ledger.fold.explain import Explanation, explain
from artel.ledger.store import finality
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.reading import LedgerReader
from artel.ledger.sync import offline
from artel.ledger.sync.witness import Witness
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.tiles import Tile
from artel.ledger.web import lists
from artel.ledger.web.account_page import Wanted, account_page
from artel.ledger.web.answers import (
    FOREVER,
    body_of,
    download,
    error,
    error_page,
    json_text,
    missing,
    note_text,
    optional,
    refusal,
    tile_bytes,
    url_of,
    whole,
)
from artel.ledger.web.context import Context
from artel.ledger.web.credit_table import STATES
from artel.ledger.web.entry_page import entry_page
from artel.ledger.web.index import LedgerIndex
from artel.ledger.web.round_page import round_page
from artel.ledger.web.standing import standing
from artel.protocol.dsse import MAX_ENVELOPE_BYTES
from artel.protocol.errors import ArtelError, DecodeError, UsageError

Submit = Callable[[bytes, str], Awaitable[tuple[int, str]]]
"""``submit(leaf, network address) -> (index, note)``"""
SetAlias = Callable[[bytes, str], Awaitable[None]]

THREADS = 4
FOLLOW_AT_ONCE = 1024
"""Entries that a request reads on in the index before it shows what there is."""
FOLLOW_WAIT_S = 1.0
EXPLAIN_AT_MOST = 2000
"""Entries of a ledger that is replayed for one page, about half a second; of a larger one the pages
show what the index knows, and ``artel ledger explain`` the rest."""
EXPLANATIONS = 256
BYTES = "application/octet-stream"

T = TypeVar("T")

log = logging.getLogger("artel.web")


class LedgerSite:
    """A ledger on the web, of a coordinator or of a node. The event loop owns it.

    :param state: the daemon's own fold, always as new as its ledger; looked at between two awaits
    :param submit: puts an entry into the log; None where that is not possible
    :param set_alias: keeps a name; None where that is not possible
    :param witness: answers ``add-checkpoint``; None where there is no witness
    :param info: more for ``/ledger/run``, such as libp2p ``addresses``
    """

    def __init__(
        self,
        store: LedgerReader,
        heads: HeadStore | None,
        state: Callable[[], FoldState],
        submit: Submit | None = None,
        set_alias: SetAlias | None = None,
        witness: Witness | None = None,
        info: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.index = LedgerIndex(store)
        self._store, self._heads, self._state = store, heads, state
        self._submit, self._set_alias, self._witness = submit, set_alias, witness
        self._info = info
        # Threads of its own: visitors who ask for much do not hold up the daemon's other work.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="web")
        self._explaining = threading.Lock()
        self._explanations: OrderedDict[tuple[int, int], Explanation] = OrderedDict()
        self._follower: asyncio.Task[None] | None = None

    def add_routes(self, app: web.Application) -> None:
        """Add everything to an application behind a :class:`ledger.web.server.Gate`."""
        add = app.router.add_get
        add("/ledger/checkpoint", self._checkpoint)
        add("/ledger/final", self._final)
        add("/ledger/run", self._run)
        add("/ledger/aliases", self._aliases)
        add("/ledger/tile/{rest:.+}", self._tile)
        add("/ledger/leaf/{index}", self._leaf)
        add("/ledger/proof/{index}", self._proof)
        add("/entry/{index}", self._entry_page)
        add("/account/{key}", self._account_page)
        add("/round/{number}", self._round_page)
        add("/shares", self._shares_page)
        add("/entries", self._entries_page)
        add("/shares.csv", self._shares_csv)
        add("/shares-by-round.csv", self._history_csv)
        app.router.add_post("/ledger/submit", self._submitted)
        app.router.add_post("/ledger/alias", self._alias_set)
        app.router.add_post("/ledger/add-checkpoint", self._add_checkpoint)
        app.on_startup.append(self._start)
        app.on_cleanup.append(self._stop)

    async def _start(self, app: web.Application) -> None:
        self._follower = asyncio.create_task(self._follow_first())

    async def _follow_first(self) -> None:
        """Read what is there at the start, so that the first visitor does not wait for it."""
        try:
            while not await self._in_thread(self.index.follow, FOLLOW_AT_ONCE):
                pass
        except Exception:  # every page tells its reader; the operator hears it now
            log.exception("web.index")

    async def _stop(self, app: web.Application) -> None:
        if self._follower is not None:
            self._follower.cancel()
            await asyncio.wait({self._follower})
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, call, *arguments)

    # --- the log ----------------------------------------------------------------------------------

    async def _checkpoint(self, request: web.Request) -> web.Response:
        return note_text(await self._in_thread(finality.newest_note, self._store, self._heads))

    async def _final(self, request: web.Request) -> web.Response:
        state = self._state()
        return note_text(
            await self._in_thread(finality.final_note, self._store, self._heads, state)
        )

    async def _tile(self, request: web.Request) -> web.Response:
        # The raw path: a tile has one spelling, without percent signs.
        path = request.raw_path.partition("?")[0].removeprefix("/ledger/")
        try:
            tile = Tile.parse(path)
            data = await self._in_thread(self._store.tile, tile)
        except (DecodeError, UsageError) as wrong:
            return missing(wrong)
        return await self._in_thread(tile_bytes, request, tile, data)

    async def _leaf(self, request: web.Request) -> web.Response:
        index = whole(request.match_info["index"], "an index")
        try:
            leaf = await self._in_thread(self._store.leaf, index)
        except UsageError as wrong:
            return missing(wrong)
        return download(leaf, BYTES, f"entry-{index}.json", FOREVER)

    async def _proof(self, request: web.Request) -> web.Response:
        index = whole(request.match_info["index"], "an index")
        try:
            proof = await self._in_thread(self._proof_of, index, self._state())
        except UsageError as wrong:
            return missing(wrong)
        return download(proof.encode(), "text/plain", f"entry-{index}.tlog-proof", "no-store")

    def _proof_of(self, index: int, state: FoldState) -> str:
        """What ``artel ledger prove`` writes, byte for byte."""
        store = self._store
        notes = (*finality.kept_notes(self._heads, state), store.latest_note)
        return offline.prove(store, finality.of_notes(notes, store, state), index).encode()

    async def _run(self, request: web.Request) -> web.Response:
        store = self._store
        origin, genesis = store.origin, store.genesis
        keys = [VerifierKey(origin, bytes.fromhex(key)).encode() for key in genesis.coordinators]
        facts = {
            "run": genesis.run,
            "name": genesis.name,
            "origin": origin,
            "vkey": keys[0],
            "vkeys": keys,
            "size": store.size,
            "accepts": [
                name
                for name, service in (
                    ("submit", self._submit),
                    ("alias", self._set_alias),
                    ("add-checkpoint", self._witness),
                )
                if service is not None
            ],
        }
        return json_text(json.dumps(facts | self._info()).encode())

    async def _aliases(self, request: web.Request) -> web.Response:
        table = alias.write_table(await self._in_thread(self._names))
        return json_text(table)

    def _names(self) -> dict[str, tuple[str, str]]:
        return self._heads.aliases() if self._heads is not None else {}

    # --- what may be sent -------------------------------------------------------------------------

    async def _submitted(self, request: web.Request) -> web.Response:
        if self._submit is None:
            return error(404, "this server takes no entries", "ask the coordinator")
        submit = self._submit
        try:
            leaf = await body_of(request, MAX_ENVELOPE_BYTES)
            index, note = await submit(leaf, request.remote or "")
        except ArtelError as refused:
            return refusal(refused)
        return web.json_response({"index": index, "note": note})

    async def _alias_set(self, request: web.Request) -> web.Response:
        if self._set_alias is None:
            return error(404, "this server keeps no names", "ask the coordinator")
        try:
            await self._set_alias(await body_of(request, MAX_ENVELOPE_BYTES), request.remote or "")
        except ArtelError as refused:
            return refusal(refused)
        return web.json_response({"ok": True})

    async def _add_checkpoint(self, request: web.Request) -> web.Response:
        if self._witness is None:
            return error(404, "there is no witness here", "the nodes of a run are witnesses")
        answer = await self._in_thread(self._witness.add_checkpoint, await request.read())
        content_type, _, parameter = answer.content_type.partition(";")
        return web.Response(
            status=answer.status,
            body=answer.body,
            headers={
                "Content-Type": content_type + (f"; {parameter.strip()}" if parameter else "")
            },
        )

    # --- pages ------------------------------------------------------------------------------------

    async def _entry_page(self, request: web.Request) -> web.Response:
        given = request.match_info["index"]
        if 8 <= len(given) <= 64 and not given.isdigit():
            return await self._found(given)
        index = whole(given, "an index")
        explained = await self._in_thread(self._explained, index)
        return await self._page(request, lambda page: entry_page(page, index, explained))

    def _explained(self, index: int) -> Explanation | None:
        """The arithmetic of an entry; None where that would take a replay of too many."""
        size = self._store.size
        if not index < size <= EXPLAIN_AT_MOST:
            return None
        with self._explaining:  # one at a time: each is a replay
            known = self._explanations.get((index, size))
            if known is None:
                known = explain(self._store, index)
                self._explanations[index, size] = known
                if len(self._explanations) > EXPLANATIONS:
                    self._explanations.popitem(last=False)
            return known

    async def _found(self, prefix: str) -> web.Response:
        """Send the reader of an entry id on to the entry."""
        try:
            found = await self._in_thread(self._store.find, prefix)
            if len(found) != 1:
                raise UsageError(f"{len(found) or 'no'} entries have an id that begins like that")
        except UsageError as wrong:
            return error_page(wrong)
        return web.Response(status=302, headers={"Location": f"/entry/{found[0]}"})

    async def _account_page(self, request: web.Request) -> web.Response:
        key, query = request.match_info["key"], request.query
        kind, state = query.get("kind", ""), query.get("state", "")
        wanted = Wanted(
            kind if kind.isalpha() and len(kind) < 20 else "",
            state if state in STATES else "",
            optional(request, "before"),
        )

        def render(page: Context) -> str:
            return account_page(page, page.state.keys.get(key, key), wanted)

        return await self._page(request, render)

    async def _round_page(self, request: web.Request) -> web.Response:
        number = whole(request.match_info["number"], "a round")
        return await self._page(request, lambda page: round_page(page, number))

    async def _shares_page(self, request: web.Request) -> web.Response:
        return await self._page(request, lists.shares_page)

    async def _entries_page(self, request: web.Request) -> web.Response:
        wanted = lists.Filter(
            request.query.get("kind", ""),
            optional(request, "round"),
            optional(request, "before"),
        )
        return await self._page(request, lambda page: lists.entries_page(page, wanted))

    async def _shares_csv(self, request: web.Request) -> web.Response:
        table = await self._rendered(request, lists.shares_csv)
        return download(table.encode(), "text/csv", "shares.csv", "no-store")

    async def _history_csv(self, request: web.Request) -> web.Response:
        table = await self._rendered(request, lists.history_csv)
        return download(table.encode(), "text/csv", "shares-by-round.csv", "no-store")

    async def _page(self, request: web.Request, render: Callable[[Context], str]) -> web.Response:
        try:
            html = await self._rendered(request, render)
        except UsageError as wrong:
            return error_page(wrong)
        return web.Response(text=html, content_type="text/html", charset="utf-8")

    async def _rendered(self, request: web.Request, render: Callable[[Context], str]) -> str:
        return await self.read(render, url_of(request))

    async def read(self, look: Callable[[Context], T], url: str = "") -> T:
        """Look at the ledger in a thread, all of it as of one entry.

        :raises UsageError: when the first entry has not been read yet
        """
        return await self._in_thread(self._look, look, url)

    def _look(self, look: Callable[[Context], T], url: str) -> T:
        index = self.index
        index.follow(FOLLOW_AT_ONCE, FOLLOW_WAIT_S)
        aliases = self._names()
        with index.reading():
            if not index.size:
                raise UsageError("the ledger is still being read", "try again in a moment")
            seen = standing(self._store, self._heads, index.state)
            return look(Context(self._store, index, seen, url, aliases))
