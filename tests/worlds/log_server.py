"""A small coordinator for tests: serves a ledger over real HTTP and takes entries in."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from artel.ledger.entries import decode, entry_id, reasons
from artel.ledger.entries.documents import named_by
from artel.ledger.fold.alias import Alias, open_alias
from artel.ledger.fold.shares import FoldState, check, fold
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync.source import CERTIFIED_PATH
from artel.ledger.tlog.tiles import Tile
from artel.protocol.errors import ArtelError
from ledger_world import World
from log_world import replay


class LogServer:
    """Serves ``store`` under /ledger/ as a coordinator does; ``state`` is the fold over it."""

    def __init__(self, world: World, store: LedgerStore) -> None:
        self.world = world
        self.store = store
        self.state: FoldState = replay(store.leaves())
        self.certified = ""
        self.aliases: dict[str, Alias] = {}
        self.after_append: Callable[[], None] = lambda: None
        """Called when an entry is in the ledger and before the answer is sent."""
        self.url = ""
        self._lock = threading.Lock()

    def append(self, *leaves: bytes) -> None:
        """As the coordinator itself."""
        with self._lock:
            self.store.append(list(leaves), self.world.sign)
            self.state = fold(map(decode, leaves), self.state)

    def get(self, path: str) -> tuple[int, bytes]:
        if path == "checkpoint":
            return 200, self.store.latest_note.encode()
        if path == CERTIFIED_PATH and self.certified:
            return 200, self.certified.encode()
        if path == "aliases":
            names = {a: {"alias": n.alias, "team": n.team} for a, n in self.aliases.items()}
            return 200, json.dumps(names).encode()
        if path.startswith(("tile/", "document/")):
            try:
                if name := named_by(path):
                    return 200, self.store.document(name)
                return 200, self.store.tile(Tile.parse(path))
            except ArtelError:
                return 404, b""
        return 404, b""

    def post(self, path: str, body: bytes) -> tuple[int, bytes]:
        try:
            if path == "submit":
                return self._submit(body)
            if path == "alias":
                found = open_alias(body, self.state)
                self.aliases[found.account] = found
                return 200, b"{}"
        except ArtelError as error:
            return _refusal(400, error.message, "malformed")
        return 404, b""

    def _submit(self, leaf: bytes) -> tuple[int, bytes]:
        entry = decode(leaf)
        index = self.store.index_of(entry_id(leaf))
        if index is None:
            reason = check(self.state, entry)
            if reason:
                return _refusal(403, reasons.explain(reason), reason)
            index = self.store.size
            self.append(leaf)
        self.after_append()
        return 200, json.dumps({"index": index, "note": self.store.latest_note}).encode()


def _refusal(status: int, message: str, code: str) -> tuple[int, bytes]:
    return status, json.dumps({"error": message, "hint": "", "code": code}).encode()


@contextmanager
def serving(world: World, store: LedgerStore) -> Iterator[LogServer]:
    """The server on a free port of this machine."""
    log = LogServer(world, store)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self._answer(*log.get(self.path.removeprefix("/ledger/")))

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            self._answer(*log.post(self.path.removeprefix("/ledger/"), body))

        def _answer(self, status: int, body: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    log.url = f"http://127.0.0.1:{server.server_port}"
    try:
        yield log
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
