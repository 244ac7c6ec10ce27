"""Opening http and https for :mod:`protocol.net.http`: one deadline for all that a server sends.

Python's own time-out starts anew with every byte. Here each wait on the socket gets what is left
until the deadline: connecting, TLS, a proxy's answer, interim answers, head, body, redirects.
"""

from __future__ import annotations

import io
import ipaddress
import socket
import ssl
import string
import time
from collections.abc import Callable
from email.message import Message
from functools import lru_cache, partial
from http.client import HTTPConnection, HTTPResponse
from typing import Any
from urllib import request
from urllib.parse import quote, urljoin, urlsplit

MAX_REDIRECTS = 3


def http_opener(url: str, timeout: float) -> request.OpenerDirector:
    """Opens http and https once, and follows a few redirects, none of them from https to http, and
    none of what is posted.

    Goes by the proxy that the environment names, except to this machine itself. Whatever it opens
    raises ``TimeoutError`` when the time is over; only the looking up of a name has the limits
    of this machine's resolver instead.

    :param url: what it is for; says whether http is allowed
    :param timeout: seconds from now to the last byte that is read
    """
    opener = request.OpenerDirector()
    opener.addheaders = [("User-Agent", "artel"), ("Accept-Encoding", "identity")]
    for handler in (
        _Proxies(request.getproxies()),
        request.UnknownHandler(),
        _Opened(time.monotonic() + timeout),
        request.HTTPDefaultErrorHandler(),
        request.HTTPErrorProcessor(),
        _Redirects(("https://",) if url.startswith("https://") else ("http://", "https://")),
    ):
        opener.add_handler(handler)
    return opener


def proxy_of(url: str) -> str:
    """The proxy of the environment by which this URL is asked; "" without one."""
    where = urlsplit(url)
    proxy = request.getproxies().get(where.scheme, "")
    address = where.netloc.rpartition("@")[2]
    return "" if _is_here(address) or request.proxy_bypass(address) else proxy


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


class _Proxies(request.ProxyHandler):
    def proxy_open(self, req, proxy, type):  # type: ignore[no-untyped-def]
        return None if _is_here(req.host) else super().proxy_open(req, proxy, type)


class _Redirects(request.BaseHandler):
    """Unlike urllib's own it reads nothing of the answer that redirects, which may have no end."""

    def __init__(self, allowed: tuple[str, ...]) -> None:
        self._allowed, self._left = allowed, MAX_REDIRECTS

    def http_error_302(
        self, req: request.Request, fp: HTTPResponse, code: int, msg: str, headers: Message
    ) -> Any:
        there = urljoin(req.full_url, headers.get("Location", ""))
        there = quote(there, safe=string.punctuation, encoding="latin-1")
        if req.data is not None or not self._left or not there.startswith(self._allowed):
            return None  # then it is an error like others
        fp.close()
        self._left -= 1
        return self.parent.open(there)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


class _Opened(request.AbstractHTTPHandler):
    def __init__(self, deadline: float) -> None:
        super().__init__()
        self._connection = partial(_Connection, deadline=deadline)

    def http_open(self, req: request.Request) -> HTTPResponse:
        return self.do_open(self._connection, req)

    def https_open(self, req: request.Request) -> HTTPResponse:
        return self.do_open(self._connection, req, tls=_tls())

    http_request = https_request = request.AbstractHTTPHandler.do_request_


@lru_cache(1)
def _tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    return context


class _Connection(HTTPConnection):
    """A connection that is over at the deadline (steady seconds), whatever the server does."""

    _tunnel_host: str | None  # http.client's own, of a request through a proxy
    _tunnel: Callable[[], None]

    def __init__(
        self, host: str, *, deadline: float, tls: ssl.SSLContext | None = None, **_: Any
    ) -> None:
        if tls is not None:
            self.default_port = 443
        super().__init__(host)
        self._deadline, self._tls = deadline, tls
        self.response_class = partial(_Answer, deadline=deadline)  # type: ignore[assignment]

    def connect(self) -> None:
        self.sock = _connected(self.host, self.port, self._deadline)
        if self._tunnel_host:
            self._tunnel()
        if self._tls is not None:
            self.sock.settimeout(_left(self._deadline))
            name = self._tunnel_host or self.host
            self.sock = self._tls.wrap_socket(self.sock, server_hostname=name)

    def send(self, data: Any) -> None:
        if self.sock is not None:
            self.sock.settimeout(_left(self._deadline))
        super().send(data)


def _connected(host: str, port: int, deadline: float) -> socket.socket:
    """As ``socket.create_connection``, whose time-out is for each address of a name alone."""
    failed: OSError = OSError("the name has no address")
    for family, kind, protocol, _, where in socket.getaddrinfo(host, port, 0, socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        try:
            sock.settimeout(_left(deadline))
            sock.connect(where)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return sock
        except OSError as error:
            sock.close()
            failed = error
    raise failed


class _Answer(HTTPResponse):
    def __init__(self, sock: socket.socket, *args: Any, deadline: float, **more: Any) -> None:
        super().__init__(sock, *args, **more)
        self.fp = io.BufferedReader(_InTime(self.fp.detach(), sock, deadline))


class _InTime(io.RawIOBase):
    """What a socket receives until the deadline."""

    def __init__(self, raw: io.RawIOBase, sock: socket.socket, deadline: float) -> None:
        self._raw, self._sock, self._deadline = raw, sock, deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(_left(self._deadline))
        return self._raw.readinto(buffer)

    def close(self) -> None:
        self._raw.close()  # the socket lives as long as this
        super().close()


def _left(deadline: float) -> float:
    """Seconds until the deadline.

    :raises TimeoutError: there are none
    """
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError("timed out")
    return left
