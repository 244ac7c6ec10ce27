"""Telling a URL of the organiser what happened, from the events that the coordinator logs anyhow.

Whatever the receiver does, no round waits for it: events are put into a queue of bounded length,
and a thread of its own posts them, tries again a few times, and gives one up that is not taken.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import json
import logging
import os
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

from artel.protocol import files
from artel.protocol.errors import ArtelError
from artel.protocol.events import emit
from artel.protocol.net.http import fetch

log = logging.getLogger("artel.webhook")

EVENTS = frozenset(
    {
        "state.agreed",  # a round is done
        "round.failed",
        "run.paused",
        "run.goes_on",
        "run.closed",
        "run.rolled_back",
        "node.dropped",
        "node.in_the_way",  # and sits out
        "term.begun",  # this coordinator leads
        "term.over",
    }
)
KEY_FILE = "webhook.key"
"""In the home: 64 hex digits, made at the first start, by which the receiver knows who posts."""
SIGNATURE = "X-Artel-Signature"
"""``sha256=`` and the HMAC-SHA256 of the body, by the ASCII letters of the key, in hex."""
MOST_WAITING = 256
TRIES, TIMEOUT_S, BACKOFF_S = 6, 10.0, 1.0
"""An event is given up after 31 s of waiting; each wait is twice the one before."""
LAST_S = 5.0
"""At the end, for what is still to be posted."""
MAX_ANSWER_BYTES = 1 << 16


class Webhook(logging.Handler):
    """A handler of the log that posts some of its events; :meth:`emit` never waits."""

    def __init__(self, url: str, key: str, run: str) -> None:
        super().__init__()
        self._url, self._key, self._run = url, key.encode(), run
        self._waiting: queue.Queue[bytes | None] = queue.Queue(MOST_WAITING)
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._post_all, name="webhook", daemon=True)
        self._thread.start()

    def emit(self, record: logging.LogRecord) -> None:
        """Have an event posted, if it is one of those and there is room."""
        name = getattr(record, "event", "")
        if name in EVENTS:
            fields, when = getattr(record, "fields", {}), round(record.created, 3)
            body = {"event": name, "run": self._run, "time": when, "fields": fields}
            self._put(json.dumps(body, default=str).encode())

    def end(self) -> None:
        """Post what waits, for a few seconds, and no more."""
        self._put(None)
        self._thread.join(LAST_S)
        self._ended.set()

    def _put(self, body: bytes | None) -> None:
        try:
            self._waiting.put_nowait(body)
        except queue.Full:
            # In place of the oldest; the thread may take that, or another event come, between.
            with contextlib.suppress(queue.Empty, queue.Full):
                self._waiting.get_nowait()
                self._waiting.put_nowait(body)

    def _post_all(self) -> None:
        while (body := self._waiting.get()) is not None:
            if not self._posted(body):
                emit(log, "webhook.given_up", logging.WARNING, of=json.loads(body)["event"])

    def _posted(self, body: bytes) -> bool:
        sign = hmac.new(self._key, body, hashlib.sha256).hexdigest()
        for turn in range(TRIES):
            if turn and self._ended.wait(BACKOFF_S * 2 ** (turn - 1)):
                return False
            try:
                fetch(self._url, MAX_ANSWER_BYTES, TIMEOUT_S, body, {SIGNATURE: f"sha256={sign}"})
                return True
            except ArtelError as error:
                emit(log, "webhook.failed", logging.DEBUG, reason=error.message)
        return False


@contextlib.contextmanager
def posting(url: str, home: Path, run: str) -> Iterator[None]:
    """Post the events of this process to ``url`` while the block runs; "" for no URL.

    :raises ResourceError: the key cannot be written
    """
    if not url:
        yield
        return
    hook, root = Webhook(url, _key(home / KEY_FILE), run), logging.getLogger("artel")
    root.addHandler(hook)
    try:
        yield
    finally:
        root.removeHandler(hook)
        hook.end()


def _key(file: Path) -> str:
    if not file.exists():
        with files.told(file):
            files.write(file, os.urandom(32).hex().encode() + b"\n", mode=0o600)
    return file.read_text("ascii").strip()
