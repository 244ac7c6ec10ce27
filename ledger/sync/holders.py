"""Who holds a ledger and how to ask: a folder of tiles, a web server, or a libp2p peer.

Everything that comes from a holder is only a claim until :mod:`ledger.sync.client` has verified it.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any, Protocol

from artel.ledger.sync.source import (
    FINAL_PATH,
    TIMEOUT,
    FolderSource,
    HttpSource,
    NotFound,
    Source,
    bounded,
    http_opener,
    not_reached,
    read_until,
    through_proxy,
)
from artel.ledger.tlog.note import MAX_NOTE_BYTES
from artel.ledger.tlog.tiles import CHECKPOINT_PATH
from artel.protocol import terminal
from artel.protocol.errors import ArtelError, CheckFailed, Unreachable, UsageError
from artel.protocol.paths import expanded

MAX_JSON_BYTES = 4 << 20
"""Of the answers that are JSON; the longest is the table of aliases."""


class Holder(Protocol):
    """Somebody who has a ledger. Methods block."""

    name: str
    """How a person wrote it."""
    source: Source

    def heads(self) -> tuple[str, str]:
        """The newest tree head and the newest final one ("" when there is none)."""
        ...

    def aliases(self) -> Any:
        """A JSON value: account to alias and team."""
        ...

    def conflicts(self) -> Any:
        """A JSON value: a list of evidence."""
        ...

    def submit(self, run: str, leaf: bytes) -> tuple[int, str] | None:
        """Hand an entry in: its index and a note that covers it; None when it was passed on.

        :raises Refused: with a code
        :raises Unreachable: nobody answers
        """
        ...

    def set_alias(self, run: str, statement: bytes) -> None:
        """Hand a wish to be shown under a name in; raises like :meth:`submit`."""
        ...

    def close(self) -> None:
        """Hang up."""
        ...


class FolderHolder:
    """A folder of tiles, as ``artel ledger mirror`` or other C2SP software writes it."""

    def __init__(self, folder: Path) -> None:
        self.name = str(folder)
        self.source: Source = FolderSource(folder)

    def heads(self) -> tuple[str, str]:
        # The final one first: a copy that is being updated has then at least as new a newest one.
        try:
            final = text_of(self.source.get(FINAL_PATH, MAX_NOTE_BYTES), FINAL_PATH)
        except NotFound:
            final = ""
        newest = self.source.get(CHECKPOINT_PATH, MAX_NOTE_BYTES)
        return text_of(newest, CHECKPOINT_PATH), final

    def aliases(self) -> Any:
        return {}

    def conflicts(self) -> Any:
        return []

    def submit(self, run: str, leaf: bytes) -> tuple[int, str] | None:
        raise UsageError("a folder takes no entries", "name a node or a coordinator with --from")

    def set_alias(self, run: str, statement: bytes) -> None:
        raise UsageError("a folder takes no names", "name a node or a coordinator with --from")

    def close(self) -> None:
        pass


class HttpHolder:
    """A coordinator, a node or a static mirror behind a URL.

    :param url: of the run's page, of its ``/ledger``, or of any tiles
    :raises UsageError: when it is no http(s) URL
    """

    def __init__(self, url: str) -> None:
        self.name = url
        base = HttpSource(url).url
        self._log = HttpSource(base if base.endswith("/ledger") else f"{base}/ledger")
        self._mirror = HttpSource(base)
        self.source: Source = self._log

    def heads(self) -> tuple[str, str]:
        # The final one first: it then cannot be of a larger tree than the newest one.
        final = self._final()
        try:
            newest = self.source.get(CHECKPOINT_PATH, MAX_NOTE_BYTES)
        except (NotFound, Unreachable):  # some servers forbid what they do not have
            if self.source is self._mirror or self._mirror.url == self._log.url:
                raise
            self.source = self._mirror
            final = self._final()
            newest = self.source.get(CHECKPOINT_PATH, MAX_NOTE_BYTES)
        return text_of(newest, CHECKPOINT_PATH), final

    def aliases(self) -> Any:
        return self._optional("aliases", {})

    def conflicts(self) -> Any:
        return self._optional("conflicts", [])

    def submit(self, run: str, leaf: bytes) -> tuple[int, str] | None:
        answer = self._post("submit", leaf)
        index, note = answer.get("index"), answer.get("note")
        if index is None:
            return None
        if type(index) is not int or not isinstance(note, str):
            raise CheckFailed(f"{self.name} answered something else than an index and a note")
        return index, note

    def set_alias(self, run: str, statement: bytes) -> None:
        self._post("alias", statement)

    def close(self) -> None:
        pass

    def _final(self) -> str:
        # Not through the source: a server that forbids what it does not have has no final one.
        base = self._mirror if self.source is self._mirror else self._log
        try:
            return text_of(self._request(f"{base.url}/{FINAL_PATH}", MAX_NOTE_BYTES), FINAL_PATH)
        except NotFound:
            return ""

    def _optional(self, path: str, missing: Any) -> Any:
        try:
            return json_of(self._request(f"{self._log.url}/{path}", MAX_JSON_BYTES), path)
        except NotFound:
            return missing

    def _post(self, path: str, body: bytes) -> dict[str, Any]:
        answer = json_of(self._request(f"{self._log.url}/{path}", MAX_NOTE_BYTES * 2, body), path)
        return answer if isinstance(answer, dict) else {}

    def _request(self, url: str, limit: int, body: bytes | None = None) -> bytes:
        """What is at a URL that is not among those of C2SP logs, or the answer to ``body``."""
        import time
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import Request

        headers = {"User-Agent": "artel", "Accept-Encoding": "identity"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        deadline = time.monotonic() + TIMEOUT
        try:
            request = Request(url, data=body, headers=headers)
            with http_opener(self._log.url).open(request, timeout=TIMEOUT) as response:
                return bounded(read_until(response.read1, limit + 1, deadline), limit, url)
        except HTTPError as error:
            with error:
                answer = error.read(MAX_NOTE_BYTES) if body is not None else b""
            raise _refusal(url, error.code, answer, body is not None) from None
        except (OSError, HTTPException, ValueError) as error:
            raise not_reached(url, error) from None


def _refusal(url: str, status: int, answer: bytes, sent: bool) -> ArtelError:
    """The error for an HTTP status; with what the server says when something was sent."""
    if not sent:
        if 400 <= status < 500 and status != 429:  # some servers forbid what they do not have
            return NotFound(f"there is no {url}")
        return Unreachable(f"{url} answered {status}{through_proxy(url)}", "try again later")
    from artel.protocol.net.wire import Refused

    try:
        value = json.loads(answer)
        message, hint, code = (value.get(name, "") for name in ("error", "hint", "code"))
    except (ValueError, AttributeError, RecursionError):
        message = hint = code = ""
    if not all(isinstance(text, str) for text in (message, hint, code)) or not message:
        message, hint, code = f"{url} answered {status}{through_proxy(url)}", "", ""
    if status >= 500 or status == 429:
        return Unreachable(printable(message), printable(hint) or "try again later")
    return Refused(printable(message), printable(hint), printable(code) or "refused")


def printable(text: str) -> str:
    """A stranger's words, in a bounded number and without what could steer a terminal."""
    return terminal.printable(text[:300])


def text_of(data: bytes, name: str) -> str:
    """UTF-8 text from elsewhere.

    :raises CheckFailed: when it is none
    """
    try:
        return data.decode("utf-8")
    except UnicodeError:
        raise CheckFailed(f"{name} is not UTF-8 text") from None


def json_of(data: bytes, name: str) -> Any:
    """JSON from elsewhere.

    :raises CheckFailed: when it is none
    """
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise CheckFailed(f"{name} is not JSON") from None


def hold(target: str) -> tuple[Holder, str]:
    """Whoever a person names, and the run id that an invite adds ("" without one).

    :param target: an invite, an http(s) URL, a multiaddr with /p2p/PEER, or a folder of tiles
    :raises UsageError: when it is none of these
    :raises Unreachable: when none of an invite's peers answers
    """
    from artel.protocol.invite import PREFIX, Invite

    is_url = re.match("[a-z]+://", target)
    folder = expanded(Path(target))
    is_folder = os.path.isdir(folder)  # also of what is too long for a name
    if PREFIX in target and not is_url and not is_folder:
        from artel.ledger.sync.lightnode import PeerHolder

        invite = Invite.decode(target)
        return PeerHolder(invite.peers), invite.run
    if is_url:
        return HttpHolder(target), ""
    if target.startswith("/") and "/p2p/" in target:
        from artel.ledger.sync.lightnode import PeerHolder

        return PeerHolder((target,)), ""
    if not is_folder:
        raise UsageError(
            f"{target[:200]!r} is no invite, no URL, no multiaddr and no folder",
            "write artel1..., http(s)://HOST[:PORT], /ip4/HOST/tcp/PORT/p2p/PEER or a folder",
        )
    return FolderHolder(folder), ""
