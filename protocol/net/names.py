"""Names of hosts in addresses: whether this machine can resolve them, said before anybody wonders.

The network daemon and others try for long where a name server does not answer, and say nothing of
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Callable, Iterable

RESOLVE_S = 5.0
FIRST_WORDS_S = 15.0
"""After which somebody who waits is told that this goes on."""
HINT = "check the name, and this machine's name server"


def name_in(address: str) -> str:
    """The host's name in a multiaddr, "" where that has a number."""
    parts = [*address.split("/"), "", ""]
    return parts[2] if parts[1] in ("dns", "dns4", "dns6") else ""


def unresolved(addresses: Iterable[str], seconds: float = RESOLVE_S) -> list[str]:
    """Names in these multiaddrs that cannot be resolved here within so many seconds."""
    names = list(dict.fromkeys(filter(None, map(name_in, addresses))))
    found: set[str] = set()

    def resolve(name: str) -> None:
        with contextlib.suppress(OSError, UnicodeError):
            socket.getaddrinfo(name, None)
            found.add(name)

    # Threads that nobody has to wait for, also not at the end: a resolver cannot be interrupted.
    threads = [threading.Thread(target=resolve, args=(name,), daemon=True) for name in names]
    until = time.monotonic() + seconds
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return [name for name in names if name not in found]


def words(names: Iterable[str]) -> str:
    """What is wrong, for a person."""
    return f"the name {', '.join(names)} cannot be resolved"


async def first_words(
    addresses: Iterable[str], say: Callable[[str], None], spoke: asyncio.Event
) -> None:
    """While nothing else is said: which names cannot be resolved, and that it is being tried on.

    :param addresses: of those who are asked
    :param spoke: set when something else was said
    """
    began = time.monotonic()
    if names := await asyncio.to_thread(unresolved, addresses):
        say(f"! name     {words(names)}: {HINT}")
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(FIRST_WORDS_S - (time.monotonic() - began)):
            await spoke.wait()
    if not spoke.is_set():
        say("! waiting  nobody named in the invite has answered yet; it is tried on")
