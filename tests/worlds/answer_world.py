"""A local page that answers as a test wants."""

from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

TITLE = "\x1b]0;owned\x07"

HOSTILE = f"good{TITLE}\u202edoog\u2066\x9b31m\r\x7fname"

"""An OSC sequence that sets the terminal's title, a mark that turns text round, C1, CR, DEL."""


@contextmanager
def answering(value: dict[str, Any]) -> Iterator[str]:
    """A server that gives one JSON object for every path."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.end_headers()
            self.wfile.write(json.dumps(value).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


NODE = {
    **dict.fromkeys(
        ("run", "node", "account", "phase", "reason", "resting", "limits", "name", "last_error"),
        HOSTILE,
    ),
    **dict.fromkeys(("step", "steps", "state_round", "rounds_total", "vested", "pending"), 1),
    **dict.fromkeys(("awaiting", "share", "ledger_size", "cosigned_size", "tokens_per_second"), 1),
    **dict.fromkeys(("memory_daemon", "memory_trainer", "final_size", "reachable"), 1),
    **{key: {HOSTILE: 1} for key in ("seconds", "up_by_kind", "down_by_kind", "served", "fetched")},
    "rejected": {HOSTILE: 1},
    "loss": None,
    "computing": None,
    "coordinator_lost": False,
    "waiting": "",
}

COORDINATOR = {
    **dict.fromkeys(("name", "run", "phase", "state_root"), HOSTILE),
    **dict.fromkeys(("round", "total", "attempt", "term"), 1),
    "role": "leader",
    "last_round": {"seconds": {HOSTILE: 1.0}},
    "ledger": {"size": 1, "root": HOSTILE},
    "validation": {"first": None, "last": None},
    "nodes": [
        {
            **dict.fromkeys(("node", "phase"), HOSTILE),
            **dict.fromkeys(("step", "steps", "tokens_per_second", "heard_s", "credit"), 1),
            **dict.fromkeys(("bytes_up", "bytes_down"), 1),
            "loss": None,
        }
    ],
}
