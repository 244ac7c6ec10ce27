"""Where a transparency log is read from: a folder, a web server, and what is verified on the way.

Spec: https://c2sp.org/tlog-tiles@v0.1.0. A source is trusted with nothing: it hands out bytes, of
a bounded number, for the paths of the spec and no others. :class:`TileHashes` makes a tree out of
them in which every hash is tied to the signed root.
"""

from __future__ import annotations

import ipaddress
import os
import re
import stat
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from artel.ledger.tlog.note import MAX_NOTE_BYTES
from artel.ledger.tlog.proof import root_at
from artel.ledger.tlog.tiles import (
    CHECKPOINT_PATH,
    TILE_HEIGHT,
    Tile,
    decode_bundle,
    decode_tile,
    edge_of,
    locate,
)
from artel.protocol.errors import CheckFailed, DecodeError, Unreachable, UsageError
from artel.protocol.merkle import node_hash

if TYPE_CHECKING:
    from urllib.request import OpenerDirector

TIMEOUT = 20.0
"""Seconds for one file over HTTP, from the first byte sent to the last byte received."""
MAX_REDIRECTS = 3
FINAL_PATH = "final"
"""The newest final checkpoint of a run, beside the newest one; not part of the C2SP layout."""
CACHED_TILES = 256
"""2 MiB of hashes: enough to compute any proof without reading a tile twice."""
_CHUNK = 1 << 16


class NotFound(CheckFailed):
    """The log does not have this file."""


class Source(Protocol):
    """Something that has the files of a log."""

    def get(self, path: str, limit: int) -> bytes:
        """The content at ``path``: ``checkpoint``, ``final`` or the path of a tile.

        :param limit: the most bytes that are accepted
        :raises NotFound: when there is no such file
        :raises CheckFailed: when the content is longer than ``limit``
        :raises Unreachable: when the source does not answer
        """
        ...


class FolderSource:
    """A log in a folder of this machine, as other C2SP software writes it.

    :raises UsageError: when there is no such folder
    """

    def __init__(self, folder: Path) -> None:
        if not folder.is_dir():
            raise UsageError(
                f"there is no folder {folder}",
                f"name the folder that holds the log's {CHECKPOINT_PATH} and tile/",
            )
        self.folder = folder.resolve()

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
                return bounded(file.read(limit + 1), limit, path)
        except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
            raise NotFound(f"the log in {self.folder} has no {path}") from None
        except (OSError, RuntimeError) as error:  # RuntimeError: links in a circle
            raise Unreachable(
                f"cannot read {place}: {error}", "check the folder's permissions"
            ) from None


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
        self.url = url.rstrip("/")
        self.timeout = timeout
        self._opener: OpenerDirector | None = None

    def get(self, path: str, limit: int) -> bytes:
        from http.client import HTTPException
        from urllib.error import HTTPError
        from urllib.request import Request

        _check_path(path)
        url = f"{self.url}/{path}"
        headers = {"User-Agent": "artel", "Accept-Encoding": "identity"}
        deadline = time.monotonic() + self.timeout
        if self._opener is None:
            self._opener = http_opener(self.url)
        try:
            request = Request(url, headers=headers)
            with self._opener.open(request, timeout=self.timeout) as response:
                if response.headers.get("Content-Encoding", "identity") != "identity":
                    raise CheckFailed(
                        f"{url} came compressed, which nobody asked for",
                        "ask the log's operator to honour Accept-Encoding: identity",
                    )
                data = read_until(response.read1, limit + 1, deadline)
                if len(data) <= limit and response.length:  # what Content-Length still promises
                    raise Unreachable(f"{url} was cut off after {len(data)} bytes", "try again")
                return bounded(data, limit, url)
        except HTTPError as error:
            error.close()
            if error.code in (404, 410):
                raise NotFound(f"the log has no {url}") from None
            said = f"{url} answered {error.code}{through_proxy(url)}"
            raise Unreachable(said, "try again later") from None
        except (OSError, HTTPException, ValueError) as error:
            raise not_reached(url, error) from None


def open_source(target: str) -> Source:
    """The source that a person names: an http(s) URL prefix, or a folder.

    :raises UsageError: when it is neither
    """
    if "://" in target:
        return HttpSource(target)
    return FolderSource(Path(target))


def read_checkpoint(source: Source) -> bytes:
    """The log's newest checkpoint, a signed note that nobody has verified yet."""
    return source.get(CHECKPOINT_PATH, MAX_NOTE_BYTES)


def read_tile(source: Source, tile: Tile) -> list[bytes]:
    """The hashes of a tile, in the number that its width says; not verified.

    :raises CheckFailed: when it is missing or not a tile
    """
    return _read_wide(source, tile, decode_tile)


def read_bundle(source: Source, tile: Tile) -> list[bytes]:
    """The entries of a bundle, in the number that its width says; not verified.

    :raises CheckFailed: when it is missing or not a bundle
    """
    return _read_wide(source, tile, decode_bundle)


class TileHashes:
    """The tree of ``size`` leaves in the tiles of a source, as a HashReader.

    Every tile is tied to ``root`` before a hash of it is used: the partial tiles on the right edge
    give the root, and the hash of every full tile is in the tile above it.

    :param root: from a checkpoint whose signature was verified
    :raises CheckFailed: when the right edge does not give the root
    """

    def __init__(
        self, source: Source, size: int, root: bytes, cached_tiles: int = CACHED_TILES
    ) -> None:
        self.size = size
        self._source = source
        self._cached_tiles = cached_tiles
        self._edge = {(tile.level, tile.index): read_tile(source, tile) for tile in edge_of(size)}
        self._cache: OrderedDict[tuple[int, int], list[bytes]] = OrderedDict()
        if root_at(self, size) != root:
            paths = ", ".join(tile.path for tile in edge_of(size)) or "the empty tree"
            raise CheckFailed(f"the root of {size} entries is not that of {paths}")

    @property
    def edge_tiles(self) -> int:
        """How many partial tiles the root was computed from."""
        return len(self._edge)

    def subtree(self, level: int, index: int) -> bytes:
        tile, first, count = locate(level, index, self.size)
        return fold(self._tile(tile)[first : first + count])

    def _tile(self, tile: Tile) -> list[bytes]:
        key = (tile.level, tile.index)
        hashes = self._edge.get(key) or self._cache.get(key)
        if hashes is None:
            hashes = read_tile(self._source, tile)
            # A full tile is one hash of the level above, whose tile is tied to the root in turn.
            if fold(hashes) != self.subtree(TILE_HEIGHT * (tile.level + 1), tile.index):
                raise CheckFailed(f"{tile.path} does not belong to the tree of the checkpoint")
            self._cache[key] = hashes
            if len(self._cache) > self._cached_tiles:
                self._cache.popitem(last=False)
        elif key in self._cache:
            self._cache.move_to_end(key)
        return hashes


def fold(hashes: Sequence[bytes]) -> bytes:
    """Hash of the perfect subtree over these hashes, of which there are a power of two."""
    while len(hashes) > 1:
        pairs = zip(hashes[::2], hashes[1::2], strict=True)
        hashes = [node_hash(left, right) for left, right in pairs]
    return hashes[0]


def _read_wide(
    source: Source, tile: Tile, decode: Callable[[bytes, int], list[bytes]]
) -> list[bytes]:
    try:
        found = tile
        try:
            data = source.get(tile.path, tile.limit)
        except NotFound:
            # SPEC: Logs MAY delete any partial tile once the corresponding full tile is available.
            # Clients MAY fetch the full tile as a fallback in case the partial tile is not
            # available anymore.
            if tile == tile.full:
                raise
            found = tile.full
            try:
                data = source.get(found.path, found.limit)
            except NotFound:
                raise NotFound(
                    f"the log has neither {tile.path} nor {found.path}",
                    "a log serves the tiles of its checkpoint: tell its operator",
                ) from None
        return decode(data, found.width)[: tile.width]
    except DecodeError as error:
        raise CheckFailed(f"{found.path}: {error.message}") from None


def _check_path(path: str) -> None:
    """Let only a log's own paths through; none of them can leave the log's folder."""
    if path in (CHECKPOINT_PATH, FINAL_PATH):
        return
    try:
        Tile.parse(path)
    except DecodeError:
        raise NotFound(f"{path[:80]!r} is not a path that logs have") from None


def bounded(data: bytes, limit: int, name: str) -> bytes:
    """The same bytes, if they are at most ``limit``; ``name`` is for the error.

    :raises CheckFailed: when they are more
    """
    if len(data) > limit:
        raise CheckFailed(f"{name} is longer than the {limit} bytes that it can have")
    return data


def read_until(read: Callable[[int], bytes], limit: int, deadline: float) -> bytes:
    """Up to ``limit`` bytes, piece by piece.

    :param read: returns up to so many bytes, and none at the end
    :raises TimeoutError: when the deadline (monotonic seconds) has passed
    """
    parts = []
    while limit and (part := read(min(limit, _CHUNK))):
        parts.append(part)
        limit -= len(part)
        if time.monotonic() > deadline:
            raise TimeoutError("it took too long")
    return b"".join(parts)


def not_reached(url: str, error: Exception) -> Unreachable:
    """The error for a request that got no answer; names the proxy that it went to, if any."""
    reason = getattr(error, "reason", error)
    proxy = through_proxy(url)
    return Unreachable(
        f"cannot reach {url}: {str(reason)[:200] or type(reason).__name__}{proxy}",
        "check that the proxy of the environment works, or name this host in no_proxy"
        if proxy
        else "check the address and that the server runs",
    )


def through_proxy(url: str) -> str:
    """Words for an error: by which proxy of the environment this URL is asked; "" without one."""
    from urllib.request import getproxies, proxy_bypass

    where = urlsplit(url)
    proxy = getproxies().get(where.scheme, "")
    address = where.netloc.rpartition("@")[2]
    if not proxy or _is_here(address) or proxy_bypass(address):
        return ""
    return f" (through the proxy {proxy.rpartition('@')[2]}, {where.scheme}_proxy)"


def _is_here(address: str) -> bool:
    """Whether HOST[:PORT] is this machine, which no proxy can reach for us."""
    host = urlsplit(f"//{address}").hostname or ""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    return found.is_loopback or found.is_unspecified


def http_opener(url: str) -> OpenerDirector:
    """Opens http and https, and follows a few redirects, none of them from https to http.

    Goes by the proxy that the environment names, except to this machine itself.

    :param url: what it is for; says whether http is allowed
    """
    from urllib import request
    from urllib.error import HTTPError

    class Redirects(request.HTTPRedirectHandler):
        max_redirections = MAX_REDIRECTS

        def redirect_request(self, req, fp, code, msg, headers, newurl):  # type: ignore[no-untyped-def]
            allowed = ("https://",) if url.startswith("https://") else ("http://", "https://")
            if not newurl.startswith(allowed):
                raise HTTPError(req.full_url, code, "redirect elsewhere", headers, fp)
            return super().redirect_request(req, fp, code, msg, headers, newurl)

    class Proxies(request.ProxyHandler):
        def proxy_open(self, req, proxy, type):  # type: ignore[no-untyped-def]
            return None if _is_here(req.host) else super().proxy_open(req, proxy, type)

    opener = request.OpenerDirector()
    for handler in (
        Proxies(),
        request.UnknownHandler(),
        request.HTTPHandler(),
        request.HTTPSHandler(),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        Redirects(),
    ):
        opener.add_handler(handler)
    return opener
