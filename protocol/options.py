"""What a person writes behind an option, read as far as it can be judged at once.

Each of these refuses what can never be right with a ValueError, so that nothing is fetched or made
before it is noticed; a second line of its text is a hint.
"""

from __future__ import annotations

import errno
import ipaddress
import math
import re
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from artel.protocol.errors import ResourceError

LISTEN_FORM = "/ip4/0.0.0.0/tcp/4200"
ANNOUNCE_FORM = "/ip4/203.0.113.7/tcp/4200 or /dns4/run.example.org/tcp/4200"

_RUN = re.compile(r"[0-9a-f]{64}", re.ASCII)
_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


def whole(low: int, high: int) -> Callable[[str], int]:
    """A parser for whole numbers between two bounds."""

    def parse(text: str) -> int:
        digits = text.removeprefix("-") if low < 0 else text
        if digits.isascii() and digits.isdigit() and len(digits) < 20 and low <= int(text) <= high:
            return int(text)
        raise ValueError(f"{text!r} is not a whole number from {low} to {high}")

    return parse


def number(low: float, high: float) -> Callable[[str], float]:
    """A parser for numbers between two bounds; never NaN or infinite."""

    def parse(text: str) -> float:
        try:
            value = math.nan if "_" in text else float(text)
        except ValueError:
            value = math.nan
        if low <= value <= high:
            return value
        raise ValueError(f"{text!r} is not a number from {low:g} to {high:,g}")

    return parse


def amount(low: int, high: int) -> Callable[[str], int]:
    """A parser for large whole numbers, which may be written as 7B or 1.5T."""

    def parse(text: str) -> int:
        match = re.fullmatch(r"(\d{1,15}(?:\.\d{1,6})?)([kmbt]?)", text.lower(), re.ASCII)
        power = {"": 0, "k": 3, "m": 6, "b": 9, "t": 12}
        count = round(float(match[1]) * 10 ** power[match[2]]) if match else -1
        if low <= count <= high:
            return count
        raise ValueError(f"{text[:40]!r} is not an amount from {low:,} to {high:,}, as in 7B")

    return parse


def path(text: str) -> Path:
    """A file or a folder; an empty path, as an unset variable gives it, is none."""
    if not text:
        raise ValueError("the path is empty\nname a file or a folder")
    return Path(text)


def run_id(text: str) -> str:
    """The id of a run."""
    if not _RUN.fullmatch(text):
        raise ValueError(f"{text[:80]!r} is no run id\nit is 64 hex digits")
    return text


def text(argument: str) -> str:
    """Text that goes on as UTF-8."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{argument!r} is not UTF-8 text") from None
    return argument


def http_url(text: str) -> str:
    """An address on the web.

    :raises ValueError: it is none
    """
    where = urlsplit(text)
    if where.scheme not in ("http", "https") or not where.hostname:
        raise ValueError("an address like https://example.org/path")
    return text


class Endpoint(NamedTuple):
    """Where something is served; port 0 is a free one."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def endpoint(text: str) -> Endpoint:
    """HOST:PORT, or [V6]:PORT."""
    host, colon, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not colon or not host or _port(port) is None:
        raise ValueError(f"{text!r} is not HOST:PORT, as in 127.0.0.1:8090")
    return Endpoint(host, int(port))


def listen(text: str) -> str:
    """A multiaddr to listen on: an address of a machine, and a port (0: a free one)."""
    kind, host, _, _ = _multiaddr(text, LISTEN_FORM)
    if kind not in ("ip4", "ip6"):
        raise ValueError(
            f"one cannot listen on the name {host!r}: write an address, like {LISTEN_FORM}"
        )
    return text


def announce(text: str) -> str:
    """A multiaddr under which others can reach this machine."""
    kind, host, port, rest = _multiaddr(text, ANNOUNCE_FORM)
    if port == 0:
        raise ValueError(f"{text!r} names no port: write it like {ANNOUNCE_FORM}")
    if "p2p" in rest and "p2p-circuit" not in rest:
        bare = text.partition("/p2p/")[0]
        raise ValueError(f"the peer id is added to it: write {bare}")
    if kind in ("ip4", "ip6"):
        address = ipaddress.ip_address(host)
        nowhere = address.is_unspecified or address.is_multicast or address.is_reserved
        if nowhere and not address.is_loopback:  # ::1 counts as reserved
            raise ValueError(
                f"nobody can dial {host}: write the address under which others reach this machine, "
                f"like {ANNOUNCE_FORM}"
            )
    return text


def only_here(announced: Sequence[str]) -> str:
    """A warning about addresses that mean "this machine" wherever they are read; "" for none."""
    for text in announced:
        _, kind, host, *_ = text.split("/")
        if host == "localhost" or (kind[:2] == "ip" and ipaddress.ip_address(host).is_loopback):
            return f"--announce {text} can be reached from this machine alone"
    return ""


def _multiaddr(text: str, form: str) -> tuple[str, str, int, list[str]]:
    """Kind of address, host, port, and the protocols behind them."""
    from multiaddr import Multiaddr  # takes a moment, and most commands do without it

    start, kind, host, transport, number, *rest = [*text.split("/"), *([""] * 5)]
    port = _port(number)
    try:
        if kind in ("ip4", "ip6"):
            host = str((ipaddress.IPv4Address if kind == "ip4" else ipaddress.IPv6Address)(host))
        if start or kind not in ("ip4", "ip6", "dns", "dns4", "dns6") or not host:
            raise ValueError
        if transport not in ("tcp", "udp") or port is None:
            raise ValueError
        Multiaddr(text)
    except Exception:  # the library has classes of its own for what it cannot read
        raise ValueError(
            f"{text!r} is no multiaddr: write it like {_rewritten(text) or form}"
        ) from None
    return kind, host, port, [part for part in rest if part]


def _rewritten(text: str) -> str:
    """What is meant by HOST:PORT, as a multiaddr; "" for anything else."""
    try:
        host, port = endpoint(text.removeprefix("tcp://"))
    except ValueError:
        return ""
    try:
        kind = f"ip{ipaddress.ip_address(host).version}"
    except ValueError:
        kind = "dns4"
    return "" if "/" in host or " " in host else f"/{kind}/{host}/tcp/{port}"


def _port(text: str) -> int | None:
    digits = text.isascii() and text.isdigit() and len(text) <= 5
    return int(text) if digits and int(text) <= 65535 else None


def check_port_free(address: str, option: str = "--listen") -> None:
    """Fail with a clear line before the network daemon fails with an unclear one.

    :param address: as :func:`listen` gives it
    :param option: where another one can be chosen
    :raises ResourceError: one cannot listen on this multiaddr
    """
    try:
        kind, host, port, _ = _multiaddr(listen(address), LISTEN_FORM)
    except ValueError as error:
        raise ResourceError(f"cannot listen on {address!r}", str(error)) from None
    if port == 0:
        return
    family = socket.AF_INET if kind == "ip4" else socket.AF_INET6
    stream = "/tcp/" in address
    with socket.socket(family, socket.SOCK_STREAM if stream else socket.SOCK_DGRAM) as probe:
        if stream:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = "use an address that exists on this machine, or 0.0.0.0 for all of them"
            if error.errno == errno.EADDRINUSE:
                hint = f"another program uses this port: choose another one with {option}"
            elif error.errno == errno.EACCES:
                hint = f"ports below 1024 need root: choose another one with {option}"
            raise ResourceError(f"cannot listen on {address}: {error.strerror}", hint) from None
