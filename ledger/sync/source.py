"""Whoever has a log: a folder of tiles, a web server, a libp2p peer. All hand out bytes for paths.

Spec: https://c2sp.org/tlog-tiles@v0.1.0. A source is trusted with nothing: it hands out a bounded
number of bytes for the paths of the spec and three more, and what they mean is up to
:mod:`ledger.sync.tree`, which ties every one of them to a signed root.
"""

from __future__ import annotations

import json
import os
import re
import stat
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from artel.ledger.tlog.note import MAX_NOTE_BYTES
from artel.ledger.tlog.tiles import CHECKPOINT_PATH, Tile
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, Unreachable, UsageError
from artel.protocol.net.http import BadStatus, fetch
from artel.protocol.terminal import printable

TIMEOUT = 20.0
"""Seconds for one file over HTTP, from the first byte sent to the last byte received."""
FINAL_PATH = "final"
"""The newest final checkpoint of a run, beside the newest one; not part of the C2SP layout."""
ALIASES_PATH = "aliases"
"""JSON: account to the alias and team that its owner wishes to be shown."""
CONFLICTS_PATH = "conflicts"
"""JSON: a list of evidence of split views."""
MAX_JSON_BYTES = 4 << 20
MAX_WORDS = 300
"""Characters of what a stranger says that are shown."""

Service = Literal["submit", "alias"]


class NotFound(CheckFailed):
    """The log does not have this file."""


class TileSource(Protocol):
    """Something that has the files of a log. Methods block; threads may share one."""

    name: str
    """How a person wrote it."""

    def get(self, path: str, limit: int) -> bytes:
        """The content at ``path``: ``checkpoint``, a tile, or one of the three paths above.

        :param limit: the most bytes that are accepted
        :raises NotFound: when there is no such file
        :raises CheckFailed: when the content is longer than ``limit``
        :raises Unreachable: when the source does not answer
        """
        ...


class Holder(TileSource, Protocol):
    """A source that a person named, which may also take something in."""

    def send(self, service: Service, run: str, statement: bytes) -> tuple[int, str] | None:
        """Hand in an entry or an alias: the entry's index and a note that covers it.

        :returns: None when it was passed on, or is an alias
        :raises Refused: with a code
        :raises Unreachable: nobody answers
        """
        ...

    def close(self) -> None:
        """Hang up."""
        ...


def newest_heads(source: TileSource) -> tuple[str, str]:
    """The newest signed head and the newest final one ("" when there is none); not verified."""
    # The final one first: a log that grows meanwhile has then at least as large a newest one.
    try:
        final = _text(source.get(FINAL_PATH, MAX_NOTE_BYTES), FINAL_PATH)
    except NotFound:
        final = ""
    return _text(source.get(CHECKPOINT_PATH, MAX_NOTE_BYTES), CHECKPOINT_PATH), final


def read_json(source: TileSource, path: str) -> Any:
    """What a source says there; None when it says nothing that can be read."""
    try:
        return _json(source.get(path, MAX_JSON_BYTES), path)
    except ArtelError:
        return None


# --- folders --------------------------------------------------------------------------------------


class FolderSource:
    """A log in a folder of this machine, as ``artel ledger mirror`` or other software writes it.

    :raises UsageError: when there is no such folder
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(
                f"there is no folder {folder}",
                f"name the folder that holds the log's {CHECKPOINT_PATH} and tile/",
            )
        self.folder = folder.resolve()
        self.name = str(folder)

    def get(self, path: str, limit: int) -> bytes:
        _check_path(path)
        place = self.folder / path
        try:
            # A link in a folder that came from elsewhere must not lead out of it, nor a named pipe
            # stop the reader.
            if not place.resolve(strict=True).is_relative_to(self.folder):
                raise NotFound(f"{place} is a link that leads out of the log's folder")
            descriptor = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            with os.fdopen(descriptor, "rb") as file:
                if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                    raise NotFound(f"{place} is not a file")
                data = file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"the log in {self.folder} has no {path}") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise Unreachable(
                f"cannot read {place}: {error}", "check the folder's permissions"
            ) from None
        if len(data) > limit:
            raise CheckFailed(f"{path} is longer than the {limit} bytes that it can have")
        return data

    def send(self, service: Service, run: str, statement: bytes) -> tuple[int, str] | None:
        raise UsageError("a folder takes nothing in", "name a node or a coordinator with --from")

    def close(self) -> None:
        pass


def _check_path(path: str) -> None:
    """Let only a log's own paths through; none of them can leave the log's folder."""
    if path in (CHECKPOINT_PATH, FINAL_PATH, ALIASES_PATH, CONFLICTS_PATH):
        return
    try:
        Tile.parse(path)
    except DecodeError:
        raise NotFound(f"{path[:80]!r} is not a path that logs have") from None


# --- web servers ----------------------------------------------------------------------------------


class HttpSource:
    """A log behind a URL prefix.

    :param timeout: seconds for one file
    :raises UsageError: when this is no http(s) URL prefix
    """

    def __init__(self, url: str, timeout: float = TIMEOUT) -> None:
        try:
            parts = urlsplit(url)
            valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            valid = False
        if not valid or parts.query or parts.fragment or not re.fullmatch(r"[!-~]+", url):
            raise UsageError(
                f"{url[:200]!r} is not the address of a log",
                "write http(s)://HOST[:PORT]/PREFIX, without ? and #",
            )
        self.name = url
        self.url = url.rstrip("/")
        self.timeout = timeout

    def get(self, path: str, limit: int) -> bytes:
        _check_path(path)
        try:
            return fetch(f"{self.url}/{path}", limit, self.timeout)
        except BadStatus as error:
            if error.code in (401, 403, 404, 410):  # some forbid what they do not have
                raise NotFound(f"the log has no {path}: {error.message}") from None
            raise


class HttpHolder:
    """A coordinator, a node or a static mirror behind a URL.

    :param url: of the run's page, of its ``/ledger``, or of any tiles
    :raises UsageError: when it is no http(s) URL
    """

    def __init__(self, url: str) -> None:
        self.name = url
        base = HttpSource(url)
        self._places = [base]
        if not base.url.endswith("/ledger"):
            self._places.insert(0, HttpSource(f"{base.url}/ledger"))

    def get(self, path: str, limit: int) -> bytes:
        for place in self._places[:-1]:
            try:
                return self._at(place, path, limit)
            except (NotFound, Unreachable):
                continue  # the last one says what is wrong
        return self._at(self._places[-1], path, limit)

    def _at(self, place: HttpSource, path: str, limit: int) -> bytes:
        data = place.get(path, limit)
        if path == CHECKPOINT_PATH:
            self._places = [place]
        return data

    def send(self, service: Service, run: str, statement: bytes) -> tuple[int, str] | None:
        url = f"{self._places[0].url}/{service}"
        try:
            answer = _json(fetch(url, MAX_NOTE_BYTES * 2, TIMEOUT, statement), url)
        except BadStatus as error:
            raise _refusal(error) from None
        answer = answer if isinstance(answer, dict) else {}
        index, note = answer.get("index"), answer.get("note")
        if index is None:
            return None
        if type(index) is not int or not isinstance(note, str):
            raise CheckFailed(f"{self.name} answered something else than an index and a note")
        return index, note

    def close(self) -> None:
        pass


def _refusal(error: BadStatus) -> ArtelError:
    """The error for a server that takes something not in, in its own words."""
    from artel.protocol.net.wire import Refused

    try:
        value = json.loads(error.body)
        said = [value.get(name, "") for name in ("error", "hint", "code")]
    except (ValueError, AttributeError, RecursionError):
        said = [""]
    if not all(isinstance(text, str) for text in said) or not said[0]:
        said = [error.message, error.hint, ""]
    message, hint, code = (printable(text[:MAX_WORDS]) for text in said)
    if error.code >= 500 or error.code == 429:
        return Unreachable(message, hint or error.hint)
    return Refused(message, hint, code or "refused")


def _text(data: bytes, name: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeError:
        raise CheckFailed(f"{name} is not UTF-8 text") from None


def _json(data: bytes, name: str) -> Any:
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        raise CheckFailed(f"{name} is not JSON") from None
