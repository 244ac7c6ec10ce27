"""Asking a web server for a few bytes: bounded, in time, by the proxy that the environment names.

From Python's own ``urllib``, as a command that asks once should start fast.
"""

from __future__ import annotations

import contextlib
import json
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from artel.protocol import files
from artel.protocol.errors import CheckFailed, DecodeError, Unreachable
from artel.protocol.identity import in_use

if TYPE_CHECKING:
    from http.client import HTTPResponse

MAX_OBJECT_BYTES = 16 << 20
MAX_ERROR_BYTES = 1 << 16
API_FILE = "api.json"
"""In the home of a program that serves an API, while it does: ``{"url": URL}``."""


class BadStatus(Unreachable):
    """A server answered with an HTTP status that is no success."""

    def __init__(self, url: str, code: int, body: bytes) -> None:
        super().__init__(f"{url} answered {code}{through_proxy(url)}", "try again later")
        self.code = code
        self.body = body
        """At most 64 KiB of it."""


def fetch(
    url: str,
    limit: int,
    timeout: float,
    body: bytes | None = None,
    more: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """What is at ``url``, or the answer to ``body`` (JSON), which is then posted.

    :param limit: the most bytes that are accepted
    :param timeout: seconds from the first byte sent to the last byte received
    :param more: headers
    :raises BadStatus: the server refuses
    :raises CheckFailed: there is more, or it came in a form that was not asked for
    :raises Unreachable: nobody answers, or not to the end
    """
    from http.client import HTTPException
    from urllib.error import HTTPError
    from urllib.request import Request

    from artel.protocol.net.opener import http_opener

    headers = {} if body is None else {"Content-Type": "application/json"}
    try:
        request = Request(url, data=body, headers=headers | dict(more))
        try:
            with http_opener(url, timeout).open(request) as response:
                return _whole(url, response, limit)
        except HTTPError as error:
            with error:
                raise BadStatus(url, error.code, error.read(MAX_ERROR_BYTES)) from None
    except (OSError, HTTPException, ValueError) as error:
        raise not_reached(url, error) from None


def _whole(url: str, response: HTTPResponse, limit: int) -> bytes:
    """The body of an answer, if it is all there and in the form that was asked for."""
    if response.headers.get("Content-Encoding", "identity") != "identity":
        raise CheckFailed(
            f"{url} came compressed, which nobody asked for",
            "ask the log's operator to honour Accept-Encoding: identity",
        )
    data = response.read(limit + 1)
    if len(data) > limit:
        raise CheckFailed(f"{url} is longer than the {limit} bytes that it can have")
    if response.length:  # what Content-Length still promises
        raise Unreachable(f"{url} was cut off after {len(data)} bytes", "try again")
    return data


def fetch_object(url: str, timeout: float = 5.0) -> dict[str, Any]:
    """The JSON object at ``url``, of 16 MiB at most.

    :raises DecodeError: what is there is none
    :raises BadStatus, CheckFailed, Unreachable: as :func:`fetch`
    """
    body = fetch(url, MAX_OBJECT_BYTES, timeout)
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise DecodeError(f"{url} does not answer with a JSON object", "check the address")
    return value


@contextlib.contextmanager
def announced(home: Path, url: str) -> Iterator[None]:
    """Leave the address of an API in the home of its program while the block runs.

    :raises ResourceError: it cannot be written
    """
    with files.told(home):
        files.write(home / API_FILE, json.dumps({"url": url}).encode(), durable=False)
    try:
        yield
    finally:
        (home / API_FILE).unlink(missing_ok=True)


def announced_in(home: Path, program: str) -> str:
    """The address of the API of the program that runs in a home.

    :param program: the group of its commands, "node" or "coordinator"
    :raises Unreachable: none does, or it does not answer yet
    """
    try:
        return str(json.loads((home / API_FILE).read_text(encoding="utf-8"))["url"])
    except (OSError, ValueError, KeyError, TypeError):
        if in_use(home):
            raise Unreachable(
                f"the {program} in {home} does not answer yet: it is starting, or about to stop",
                "ask again in a moment",
            ) from None
        raise Unreachable(
            f"no {program} is running in {home}",
            f"start it with: {start_of(program, home)}",
        ) from None


def start_of(program: str, home: Path) -> str:
    """The command that starts the program of a home, "node" or "coordinator"."""
    folder = shlex.quote(str(home))
    if program == "node":
        return f"artel node start --join INVITE --home {folder}"
    return (
        f"artel coordinator start RUN.toml --home {folder}; a standby with: "
        f"artel coordinator standby INVITE --home {folder}"
    )


def not_reached(url: str, error: Exception) -> Unreachable:
    """The error for a request that got no answer; names the proxy that it went to, if any."""
    import socket

    from artel.protocol.net.names import HINT

    reason = getattr(error, "reason", error)
    proxy = through_proxy(url)
    named = HINT if isinstance(reason, socket.gaierror) else ""
    return Unreachable(
        f"cannot reach {url}: {str(reason)[:200] or type(reason).__name__}{proxy}",
        "check that the proxy of the environment works, or name this host in no_proxy"
        if proxy
        else named or "check the address and that the server runs",
    )


def through_proxy(url: str) -> str:
    """Words for an error: by which proxy of the environment this URL is asked; "" without one."""
    from artel.protocol.net.opener import proxy_of

    proxy = proxy_of(url)
    if not proxy:
        return ""
    return f" (through the proxy {proxy.rpartition('@')[2]}, {urlsplit(url).scheme}_proxy)"
