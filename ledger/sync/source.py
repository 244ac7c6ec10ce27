"""Whoever has a log: a folder of tiles, a web server, a libp2p peer. All hand out bytes for paths.

Spec: https://c2sp.org/tlog-tiles@v0.1.0. A source is trusted with nothing: it hands out a bounded
number of bytes for the paths of the spec and of :data:`FILES`, and what they mean is up to
:mod:`ledger.sync.signed_tree`, which ties every one of them to a signed root.
"""

from __future__ import annotations

import json
import os
import re
import stat
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable
from urllib.parse import urlsplit

from artel.ledger.entries.credit_map import MAX_PAGE_BYTES
from artel.ledger.entries.documents import MAX_DOCUMENT_BYTES, path_of
from artel.ledger.fold.alias import MAX_TABLE_BYTES
from artel.ledger.store.heads import MAX_CONFLICTS
from artel.ledger.tlog.note import MAX_NOTE_BYTES
from artel.ledger.tlog.tiles import CHECKPOINT_PATH, Tile
from artel.protocol.dsse import MAX_ENVELOPE_BYTES
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, Unreachable, UsageError
from artel.protocol.net.http import BadStatus, fetch
from artel.protocol.terminal import printable

TIMEOUT = 20.0
"""Seconds for one file, from the first byte sent to the last byte received."""
CERTIFIED_PATH = "certified"
"""The newest certified checkpoint of a run, beside the newest one; not part of the C2SP layout."""
ALIASES_PATH = "aliases"
"""JSON: account to the alias and team that its owner wishes to be shown."""
CONFLICTS_PATH = "conflicts"
"""JSON: a list of evidence of split views."""
SEAL_PATH = "seal"
"""The seal of a node that signs nothing more of the present term: a DSSE envelope."""
TERMS_PATH = "terms"
"""JSON: a list of the later terms of a run, each [term, index of its ``handover``]."""
CREDIT_PATH = "credit/newest"
"""JSON: the entry that names the newest credit root, with a proof; its pages lie beside it."""
MAX_ROOTED_BYTES = 48 << 10
FILES = (
    (CHECKPOINT_PATH, MAX_NOTE_BYTES),
    (CERTIFIED_PATH, MAX_NOTE_BYTES),
    (ALIASES_PATH, MAX_TABLE_BYTES),
    (CONFLICTS_PATH, MAX_CONFLICTS * MAX_ENVELOPE_BYTES),
    (SEAL_PATH, MAX_ENVELOPE_BYTES),
    (TERMS_PATH, MAX_NOTE_BYTES),
    (CREDIT_PATH, MAX_ROOTED_BYTES + 2 * MAX_DOCUMENT_BYTES),
    (path_of("[0-9a-f]{64}"), MAX_DOCUMENT_BYTES),
    ("credit/[0-9a-f]{64}", MAX_PAGE_BYTES),
)
"""What a log has beside tiles: patterns of whole paths, and the most bytes of each."""
MAX_WORDS = 300
"""Characters of what a stranger says that are shown."""

Service = Literal["submit", "alias"]


class NotFound(CheckFailed):
    """The log does not have this file."""


class TileSource(Protocol):
    """Something that has the files of a log. Methods block; threads may share one."""

    name: str
    """How a person wrote it."""

    def get(self, path: str, skip: int = 0) -> bytes:
        """The content at ``path``: a tile, or one of :data:`FILES`.

        :param skip: so many bytes at the beginning are known, and left out
        :raises NotFound: when there is no such file
        :raises CheckFailed: when the content is longer than it can be
        :raises Unreachable: when the source does not answer
        """
        ...


@runtime_checkable
class Bringing(TileSource, Protocol):
    """A source to which every question costs a way there and back."""

    def bring(self, *paths: str) -> None:
        """Ask for what :meth:`get` is asked for next, all at once; raises as it does."""
        ...


class Holder(TileSource, Protocol):
    """A source that a person named, which may also take something in."""

    def send(self, service: Service, run: str, statement: bytes) -> None:
        """Hand in an entry or an alias; a node passes entries on.

        :raises Refused: with a code
        :raises Unreachable: nobody answers
        """
        ...

    def close(self) -> None:
        """Hang up."""
        ...


def page_path(name: str) -> str:
    """Where a page of a credit map is."""
    return f"credit/{name}"


def limit_of(path: str) -> int:
    """The most bytes at a path. Only a log's own paths have one, and none can leave its folder.

    :raises NotFound: logs have no such path
    """
    for pattern, limit in FILES:
        if re.fullmatch(pattern, path, re.ASCII):
            return limit
    try:
        return Tile.parse(path).limit
    except DecodeError:
        raise NotFound(f"{path[:80]!r} is not a path that logs have") from None


def newest_heads(source: TileSource) -> tuple[str, str]:
    """The newest signed head and the newest certified one ("" when there is none); not verified."""
    # The certified one first: a log that grows meanwhile has then at least as large a newest one.
    try:
        certified = text_of(source.get(CERTIFIED_PATH), CERTIFIED_PATH)
    except NotFound:
        certified = ""
    return text_of(source.get(CHECKPOINT_PATH), CHECKPOINT_PATH), certified


def read_json(source: TileSource, path: str) -> Any:
    """What a source says there; None when it says nothing that can be read."""
    try:
        return json.loads(source.get(path))
    except (ArtelError, ValueError, RecursionError):
        return None


def text_of(data: bytes, name: str) -> str:
    """The text of a file.

    :raises CheckFailed: when it is none
    """
    try:
        return data.decode("utf-8")
    except UnicodeError:
        raise CheckFailed(f"{name} is not UTF-8 text") from None


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

    def get(self, path: str, skip: int = 0) -> bytes:
        limit, place = limit_of(path), self.folder / path
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
        return data[skip:]

    def send(self, service: Service, run: str, statement: bytes) -> None:
        raise UsageError("a folder takes nothing in", "name a node or a coordinator with --from")

    def close(self) -> None:
        pass


# --- web servers ----------------------------------------------------------------------------------


class HttpSource:
    """A coordinator, a node or a static mirror behind a URL.

    :param url: of the run's page, of its ``/ledger``, or of any tiles
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
        self.name, self._timeout, base = url, timeout, url.rstrip("/")
        self._prefixes = [base] if base.endswith("/ledger") else [f"{base}/ledger", base]

    def get(self, path: str, skip: int = 0) -> bytes:
        limit = limit_of(path)
        for prefix in self._prefixes[:-1]:
            with suppress(NotFound, Unreachable):  # the last one says what is wrong
                return self._at(prefix, path, limit)[skip:]
        return self._at(self._prefixes[-1], path, limit)[skip:]

    def _at(self, prefix: str, path: str, limit: int) -> bytes:
        try:
            data = fetch(f"{prefix}/{path}", limit, self._timeout)
        except BadStatus as error:
            if error.code in (401, 403, 404, 410):  # some forbid what they do not have
                raise NotFound(f"the log has no {path}: {error.message}") from None
            raise
        if path == CHECKPOINT_PATH:
            self._prefixes = [prefix]
        return data

    def send(self, service: Service, run: str, statement: bytes) -> None:
        try:
            fetch(f"{self._prefixes[0]}/{service}", MAX_NOTE_BYTES * 2, TIMEOUT, statement)
        except BadStatus as error:
            raise _refusal(error) from None

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
