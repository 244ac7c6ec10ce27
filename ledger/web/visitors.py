"""Who asks a web server, and by what name: the owner of this machine, a page of another site."""

from __future__ import annotations

import re
from collections.abc import Iterable
from urllib.parse import urlsplit

from aiohttp import web

from artel.protocol.net.limits import network_of, on_loopback

_HOST = re.compile(r"[A-Za-z0-9.\-]{1,253}(:[0-9]{1,5})?|\[[0-9A-Fa-f:.]{2,45}\](:[0-9]{1,5})?")


def is_owners(request: web.Request) -> bool:
    """Whether a program on this machine asks, and by one of this machine's own names.

    A browser's page whose name was turned to our address (DNS rebinding) has another name, and what
    a proxy passes on comes from anywhere.
    """
    assert request.transport is not None
    here = network_of(str(request.transport.get_extra_info("sockname")[0]))
    there = network_of(request.remote or "")
    if there != here and not on_loopback(there):
        return False
    if any(name in request.headers for name in ("Forwarded", "X-Forwarded-For", "Via")):
        return False
    return _names_us(request) and not from_another_site(request)


def url_of(request: web.Request, announced: Iterable[str]) -> str:
    """How the visitor reaches this server, if they name it as it names itself, else "".

    A link or a rebound name could make a visitor's browser say anything, and commands with that
    address are copied.

    :param announced: multiaddrs of this machine that others are told; their hosts are its names
    """
    host = request.host
    names = {address.split("/")[2] for address in announced}
    known = _names_us(request) or _host_of(f"//{host}") in names
    return f"{request.scheme}://{host}" if known and _HOST.fullmatch(host) else ""


def _names_us(request: web.Request) -> bool:
    """Whether the visitor calls us by the address that they came to, or as this machine does."""
    assert request.transport is not None
    here = network_of(str(request.transport.get_extra_info("sockname")[0]))
    name = _host_of(f"//{request.host}")
    return name == "localhost" or network_of(name) == here or on_loopback(name)


def from_another_site(request: web.Request) -> bool:
    """Whether a browser's page that is not ours asks; old browsers say no more than ``Origin``."""
    if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        return True
    origin = request.headers.get("Origin")
    return origin is not None and origin.partition("://")[2] != request.host


def _host_of(url: str) -> str:
    try:
        return urlsplit(url).hostname or ""
    except ValueError:
        return ""
