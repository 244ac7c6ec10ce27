"""The routes of a ledger: its C2SP log, what may be sent to it, and the explorer pages.

==========================================  ========================================================
``GET /ledger/checkpoint``                  the newest tree head with all known cosignatures
``GET /ledger/tile/...``                    hash tiles and entry bundles (c2sp.org/tlog-tiles)
``GET /ledger/certified``                   the newest certified tree head; 404 when there is none
``GET /ledger/run``                         which run this is, and where else to ask (JSON)
``GET /ledger/aliases``                     names that accounts chose; erasable, not in the log
``GET /ledger/conflicts``                   evidence of split views (JSON)
``GET /ledger/credit/newest``               the newest agreed state with its proof (JSON)
``GET /ledger/credit/HEX``                  a page of its credit map
``GET /ledger/leaf/INDEX``                  an entry's bytes
``GET /ledger/proof/INDEX``                 its proof file (c2sp.org/tlog-proof)
``POST /ledger/submit``                     one signed entry of a person's account
``POST /ledger/alias``                      one signed wish to be shown under a name
``GET /entry/INDEX``, ``/account/KEY``      pages for people
``GET /round/N``, ``/shares``, ``/entries``  pages for people; ``/shares.csv``
``GET /search?q=WORD``                      what a word may mean, or straight to the only page
``GET /static/NAME``                        what these load
``GET /api/v1/openapi.json``                all that a server answers, as :mod:`ledger.web.openapi`
==========================================  ========================================================
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable, Hashable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import MappingProxyType
from typing import Any, TypeVar

from aiohttp import web

from artel.ledger import entries
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold.history import History
from artel.ledger.store import finality
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.reader import LedgerReader
from artel.ledger.sync import offline
from artel.ledger.sync.serving import Served
from artel.ledger.sync.source import NotFound
from artel.ledger.tlog.checkpoint import verifier_keys
from artel.ledger.web import assets, lists, openapi, search
from artel.ledger.web.answers import (
    FOREVER,
    body_of,
    download,
    error,
    html,
    json_text,
    log_file,
    missing,
    refusal,
    whole,
)
from artel.ledger.web.context import Context
from artel.ledger.web.openapi import BYTES, HTML, JSON, NUMBER, PLAIN, TEXT, says
from artel.ledger.web.pages import account_page, entry_page, round_page
from artel.ledger.web.render import Templates
from artel.ledger.web.server import Handler
from artel.ledger.web.turns import Turns
from artel.ledger.web.visitors import url_of
from artel.protocol.dsse import MAX_ENVELOPE_BYTES
from artel.protocol.errors import ArtelError, UsageError
from artel.protocol.schema import Record

Submit = Callable[[bytes, str], Awaitable[tuple[int, str]]]
"""``submit(leaf, network address) -> (index, note)``"""
SetAlias = Callable[[bytes, str], Awaitable[None]]
View = Callable[[Context, Mapping[str, str]], dict[str, Any]]
"""What a page shows, from what was asked (path and query); raises UsageError for what is not."""

_KIND = {"enum": ["", *entries.KINDS]}
PAGES: tuple[tuple[str, str, View, dict[str, Any]], ...] = (
    ("/round/{number}", "round.html", round_page, {"number": openapi.NUMBER}),
    ("/shares", "shares.html", lists.shares_page, {}),
    (
        "/entries",
        "entries.html",
        lists.entries_page,
        {"kind": _KIND, "round": openapi.NUMBER, "before": openapi.NUMBER},
    ),
)
"""Path, template, what it shows, and what it is asked."""

NOTHING_ASKED: Mapping[str, str] = MappingProxyType({})
THREADS = 4

T = TypeVar("T")


class SubmittedFacts(Record):
    """Where an entry stands in the log, and what it did."""

    index: int
    note: str


class LedgerSite:
    """A ledger on the web, of a coordinator or of a node. The event loop owns it.

    :param state: the daemon's own fold, always as new as its ledger; with its effects in the store
    :param submit: puts an entry into the log; None where that is not possible
    :param set_alias: keeps a name; None where that is not possible
    :param info: more for ``/ledger/run``, such as libp2p ``addresses``
    """

    def __init__(
        self,
        store: LedgerReader,
        heads: HeadStore | None,
        state: Callable[[], FoldState],
        submit: Submit | None = None,
        set_alias: SetAlias | None = None,
        info: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self._store, self._heads, self._state = store, heads, state
        self._files = Served(store, heads, state)
        self._submit, self._set_alias = submit, set_alias
        self._info = info
        # Threads of its own: visitors who ask for much do not hold up the daemon's other work.
        self._threads = ThreadPoolExecutor(THREADS, thread_name_prefix="web")
        self._turns = Turns()
        self.templates = Templates()

    @property
    def addresses(self) -> tuple[str, ...]:
        """Multiaddrs of the daemon, as others are told."""
        return tuple(self._info().get("addresses", ()))

    def add_routes(self, app: web.Application) -> None:
        """Add everything to an application behind a :class:`ledger.web.server.Gate`."""
        add = app.router.add_get
        add("/ledger/run", self._run)
        add("/ledger/leaf/{index}", self._leaf)
        add("/ledger/proof/{index}", self._proof)
        add("/ledger/{path:.+}", self._file)
        add("/entry/{index}", self._entry_page)
        add("/account/{key}", self._account_page)
        for path, template, view, asked in PAGES:
            add(path, self._page_of(path, template, view, asked))
        add("/shares.csv", self._shares_csv)
        add("/search", self._search)
        add(f"{assets.PATH}{{name}}", assets.answer)
        app.router.add_post("/ledger/submit", self._submitted)
        app.router.add_post("/ledger/alias", self._alias_set)
        app.on_cleanup.append(self._stop)

    async def _stop(self, app: web.Application) -> None:
        await self._turns.close()
        await asyncio.to_thread(self._threads.shutdown, wait=True, cancel_futures=True)

    async def _in_thread(self, call: Callable[..., T], *arguments: Any) -> T:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._threads, call, *arguments)

    # --- the log ----------------------------------------------------------------------------------

    @says("A file of the log.", None, JSON, PLAIN, BYTES, path=TEXT)
    async def _file(self, request: web.Request) -> web.Response:
        # The raw path: a tile has one spelling, without percent signs.
        path = request.raw_path.partition("?")[0].removeprefix("/ledger/")
        try:
            data = await self._in_thread(self._files.get, path)
        except NotFound as wrong:
            return missing(wrong)
        return await self._in_thread(log_file, request, path, data)

    @says("An entry's bytes.", None, BYTES, index=NUMBER)
    async def _leaf(self, request: web.Request) -> web.Response:
        index = whole(request.match_info["index"], "an index")
        try:
            leaf = await self._in_thread(self._store.leaf, index)
        except UsageError as wrong:
            return missing(wrong)
        return download(leaf, BYTES, f"entry-{index}.json", FOREVER)

    @says("Its proof file (c2sp.org/tlog-proof).", None, PLAIN, index=NUMBER)
    async def _proof(self, request: web.Request) -> web.Response:
        index = whole(request.match_info["index"], "an index")
        try:
            proof = await self._in_thread(self._proof_of, index, self._state())
        except UsageError as wrong:
            return missing(wrong)
        return download(proof.encode(), "text/plain", f"entry-{index}.tlog-proof", "no-store")

    def _proof_of(self, index: int, state: FoldState) -> str:
        """What ``artel ledger prove`` writes, byte for byte."""
        final = finality.of_home(self._store, self._heads, state)
        return offline.prove(self._store, final, index).encode()

    @says("Which run this is, and where else to ask.", dict[str, Any])
    async def _run(self, request: web.Request) -> web.Response:
        store = self._store
        origin, genesis, term = store.origin, store.genesis, self._state().term
        keys = [key.encode() for key in verifier_keys(origin, store.signers(store.term))]
        facts = {
            "run": genesis.run,
            "name": genesis.name,
            "origin": origin,
            "term": term.number,
            "leader": term.leader,
            "vkey": keys[0],
            "vkeys": keys,
            "size": store.size,
            "accepts": [
                name
                for name, service in (("submit", self._submit), ("alias", self._set_alias))
                if service is not None
            ],
        }
        return json_text(json.dumps(facts | self._info()).encode())

    def _names(self) -> dict[str, tuple[str, str]]:
        return self._heads.aliases() if self._heads is not None else {}

    # --- what may be sent -------------------------------------------------------------------------

    @says("Take one signed entry of a person's account.", SubmittedFacts, takes=BYTES)
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

    @says("Take a signed wish to be shown under a name.", dict[str, bool], takes=BYTES)
    async def _alias_set(self, request: web.Request) -> web.Response:
        if self._set_alias is None:
            return error(404, "this server keeps no names", "ask the coordinator")
        try:
            await self._set_alias(await body_of(request, MAX_ENVELOPE_BYTES), request.remote or "")
        except ArtelError as refused:
            return refusal(refused)
        return web.json_response({"ok": True})

    # --- pages ------------------------------------------------------------------------------------

    def _page_of(self, path: str, template: str, view: View, asked: dict[str, Any]) -> Handler:
        @says(f"A page for people: {path}.", None, HTML, errors=HTML, **asked)
        async def answer(request: web.Request) -> web.Response:
            return await self.page(request, template, view, asked)

        return answer

    @says("Who owns what, as a table.", None, "text/csv")
    async def _shares_csv(self, request: web.Request) -> web.Response:
        data = await self.made("shares.csv", lambda: self.look(lists.shares_csv).encode())
        return download(data, "text/csv", "shares.csv", "no-store")

    @says("A page of an entry, by its index or its id.", None, HTML, errors=HTML, index=TEXT)
    async def _entry_page(self, request: web.Request) -> web.Response:
        given = request.match_info["index"]
        try:
            if 8 <= len(given) <= 64 and not given.isdigit():
                return await self._found(given)
            index = whole(given, "an index")
        except UsageError as wrong:
            return self.refused(wrong, 404)
        return await self.page(
            request, "entry.html", lambda page, _: entry_page(page, index), ("index",)
        )

    @says("What a word may mean.", None, HTML, errors=HTML, q=TEXT)
    async def _search(self, request: web.Request) -> web.Response:
        asked = request.query.get("q", "")[: search.MAX_LETTERS]

        def looked(page: Context) -> list[search.Hit]:
            return search.hits(page, asked)

        try:
            hits = await self.made(("hits", asked), lambda: self.look(looked))
        except UsageError as wrong:
            return self.refused(wrong, 404)
        if len(hits) == 1:
            return web.Response(status=302, headers={"Location": hits[0].url})
        shown = {"asked": asked, "hits": hits, "most": search.MOST}
        return await self.page(request, "search.html", lambda _, __: shown, ("q",))

    async def _found(self, prefix: str) -> web.Response:
        """Send the reader of an entry id on to the entry."""
        found = await self._in_thread(self._store.find, prefix)
        if len(found) != 1:
            raise UsageError(f"{len(found) or 'no'} entries have an id that begins like that")
        return web.Response(status=302, headers={"Location": f"/entry/{found[0]}"})

    @says(
        "A page of an account.",
        None,
        HTML,
        errors=HTML,
        key=TEXT,
        kind=_KIND,
        state=TEXT,
        before=NUMBER,
    )
    async def _account_page(self, request: web.Request) -> web.Response:
        given = request.match_info["key"].lower()
        if 8 <= len(given) < 64:  # as pages show it
            found = await self._in_thread(self._state().accounts_like, given)
            if len(found) == 1:
                return web.Response(status=302, headers={"Location": f"/account/{found.pop()}"})
        names = ("key", "kind", "state", "before")
        return await self.page(request, "account.html", account_page, names)

    async def page(
        self, request: web.Request, template: str, view: View, names: Iterable[str] = ()
    ) -> web.Response:
        """A page for people, or one that says that there is none.

        :param names: what the view goes by of what was asked; it is given no more
        """
        given = {**request.query, **request.match_info}
        asked = {name: given[name] for name in names if name in given}
        url = url_of(request, self.addresses)

        key = (template, url, *asked.items())
        try:
            return html(await self.made(key, lambda: self.render(template, view, asked, url)))
        except UsageError as wrong:
            return self.refused(wrong, 404)

    def render(
        self, template: str, view: View, asked: Mapping[str, str] = NOTHING_ASKED, url: str = ""
    ) -> bytes:
        """A page as HTML; takes a while, and raises as :meth:`look` and the view."""

        def rendered(page: Context) -> str:
            return self.templates.render(template, page=page, **view(page, asked))

        return self.look(rendered, url).encode()

    def refused(self, wrong: ArtelError, status: int = 400) -> web.Response:
        """A page for people that says what is wrong."""
        title = "Not here" if status == 404 else "Not done"
        text = self.templates.render(
            "error.html", title=title, message=wrong.message, hint=wrong.hint
        )
        return html(text.encode(), status)

    async def made(self, key: Hashable, make: Callable[[], T]) -> T:
        """What takes work, made in a thread when it is its turn (:class:`ledger.web.turns.Turns`).

        :param key: the same for whatever is made in the same way
        """
        return await self._turns.get(key, make)

    def look(self, look: Callable[[Context], T], url: str = "") -> T:
        """Look at the ledger, all of it as of one entry; takes a while.

        :raises UsageError: when there is none yet
        """
        state = self._state()
        if not state.size:
            raise UsageError("the ledger is still empty", "try again in a moment")
        history = History(self._store, self._store.query, state)
        seen = finality.of_heads(self._heads, state)
        return look(Context(self._store, history, seen, url, self._names()))
