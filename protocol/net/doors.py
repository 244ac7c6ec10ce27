"""Where the network of public runs is entered: addresses that a person, or the machine, names.

A door is the multiaddr of any peer, or a URL: of a text file that anybody can serve with one door
a line, or of a coordinator or a node, which serve such a file at ``/bootstrap`` and the public runs
that they know of at ``/api/v1/runs``. There is no door that is built in: nobody runs one for all.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from artel.protocol.errors import ArtelError, DecodeError, UsageError
from artel.protocol.listing import MAX_LISTED, Listing, ListingRecord, newest
from artel.protocol.net.http import fetch
from artel.protocol.paths import expanded
from artel.protocol.schema import checked

if TYPE_CHECKING:
    from artel.protocol.net.host import Host

VARIABLE = "ARTEL_BOOTSTRAP"
BOOTSTRAP_PATH, RUNS_PATH = "/bootstrap", "/api/v1/runs"
MAX_DOORS = 32
"""Addresses of peers, and URLs, that are tried."""
MAX_FILE_BYTES = 64 << 10
MAX_RUNS_BYTES = 4 << 20
ANSWER_S = 5.0
FRESH_S = 20.0
_HINT = (
    "name any peer of the network: --bootstrap http://HOST:PORT of a coordinator or a node, or "
    "/ip4/HOST/tcp/PORT/p2p/PEER"
)


@dataclass
class Doors:
    """What lies behind the doors that were named."""

    peers: dict[str, None] = field(default_factory=dict)
    """Multiaddrs with /p2p/PEER, in the order of asking."""
    records: list[ListingRecord] = field(default_factory=list)
    """Listings, not checked yet."""
    answered: bool = False
    """Whether one of the URLs gave something."""
    errors: list[ArtelError] = field(default_factory=list)
    """Of doors that were closed."""


def bootstrap_file() -> Path:
    """Where a person keeps doors: one a line, ``#`` begins a comment."""
    return expanded(Path(os.environ.get("XDG_CONFIG_HOME") or "~/.config")) / "artel/bootstrap"


def named_doors(given: Sequence[str]) -> list[str]:
    """The doors that were given, else those of the environment, else those of the file.

    :raises UsageError: one of them is no door
    """
    if given:
        return _doors_in("\n".join(given), "--bootstrap")
    if words := os.environ.get(VARIABLE, "").replace(",", " ").split():
        return _doors_in("\n".join(words), VARIABLE)
    path = bootstrap_file()
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(MAX_FILE_BYTES)
    except (OSError, UnicodeError):
        return []
    return _doors_in(text, str(path))


def require_doors(given: Sequence[str]) -> list[str]:
    """As :func:`named_doors`.

    :raises UsageError: there is none
    """
    if found := named_doors(given):
        return found
    raise UsageError(
        "no address of the network of public runs is known here",
        f"{_HINT}; to have it always, write it into {bootstrap_file()} or {VARIABLE}",
    )


def _doors_in(text: str, where: str) -> list[str]:
    """:raises UsageError: a line is no door; names ``where`` it stands"""
    lines = [line.partition("#")[0].strip() for line in text.splitlines()]
    found = [line for line in lines if line]
    for line in found:
        if not re.fullmatch(r"https?://[!-~]+|/[!-~]+/p2p/[1-9A-HJ-NP-Za-km-z]{40,60}", line):
            raise UsageError(f"{where}: {line[:100]!r} is no address of a peer, and no URL", _HINT)
    return found[:MAX_DOORS]


def opened(doors: Iterable[str]) -> Doors:
    """Ask the doors that are URLs, all at once; takes some seconds at most."""
    found = Doors()
    urls = [door for door in doors if not door.startswith("/")]
    found.peers.update((door, None) for door in doors if door.startswith("/"))
    asked = [part for url in urls for part in _parts(url)]
    if asked:
        with ThreadPoolExecutor(len(asked)) as threads:
            list(threads.map(lambda part: _ask(part, found), asked))
    for door in [*found.peers][MAX_DOORS:]:
        del found.peers[door]
    return found


def _parts(url: str) -> list[str]:
    """A file's URL; of a coordinator or a node, what it serves for this."""
    split = urlsplit(url)
    if split.path not in ("", "/", BOOTSTRAP_PATH, "/runs", RUNS_PATH):
        return [url]
    return [f"{split.scheme}://{split.netloc}{path}" for path in (BOOTSTRAP_PATH, RUNS_PATH)]


def _ask(url: str, found: Doors) -> None:
    try:
        if url.endswith(RUNS_PATH):
            found.records += _records(fetch(url, MAX_RUNS_BYTES, ANSWER_S))
        else:
            text = fetch(url, MAX_FILE_BYTES, ANSWER_S).decode("utf-8", "replace")
            # Only peers: a file of a stranger does not have us ask web servers.
            found.peers.update((door, None) for door in _doors_in(text, url) if door[0] == "/")
        found.answered = True
    except ArtelError as error:
        found.errors.append(error)


def _records(data: bytes) -> list[ListingRecord]:
    """:raises DecodeError: this is not what ``/api/v1/runs`` answers"""
    try:
        rows = json.loads(data)["runs"][:MAX_LISTED]
        return [checked(ListingRecord, row["listing"], "listing") for row in rows]
    except (ValueError, TypeError, KeyError, RecursionError):
        raise DecodeError("this is no list of public runs") from None


# --- by the DHT -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def visiting(peers: Sequence[str]) -> AsyncIterator[Host]:
    """A host with a key for this once, which has joined the DHT through these peers."""
    from artel.protocol.identity import load_or_create
    from artel.protocol.net.host import Host

    with TemporaryDirectory(prefix="artel-visit-") as folder:
        file = Path(folder) / "node.key"
        host = await Host.start(load_or_create(file), file, bootstrap=peers)
        try:
            yield host
        finally:
            await host.close()


async def public_runs(host: Host) -> list[ListingRecord]:
    """What the DHT has in the directory."""
    from artel.protocol.net import dht

    return [*(await host.lookup(dht.DIRECTORY, ListingRecord)).values()]


class Directory:
    """The public runs that a daemon's host knows of, looked up when somebody asks and the last
    answer is no longer fresh; all who ask meanwhile wait for one search, and not long.

    :param search: looks once, as :func:`public_runs` does
    """

    def __init__(self, search: Callable[[], Awaitable[list[ListingRecord]]]) -> None:
        self._search = search
        self._searching: asyncio.Future[None] | None = None
        self._found: list[Listing] = []
        self._until = 0.0

    async def runs(self) -> list[Listing]:
        """As :func:`listing.newest`; what was found before, while a search takes longer."""
        if self._searching is None and time.monotonic() > self._until:
            self._searching = asyncio.ensure_future(self._look())
        if self._searching is not None:
            await asyncio.wait({self._searching}, timeout=ANSWER_S)
        return self._found

    async def _look(self) -> None:
        try:
            self._found = newest(await self._search(), time.time())
        finally:
            self._until, self._searching = time.monotonic() + FRESH_S, None
