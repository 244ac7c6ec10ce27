"""Hosts with slow links on one machine: network namespaces, a bridge, and token buckets.

Every host is a namespace of its own with one interface, ``eth0``, and addresses that nothing
outside sees. Its traffic passes a bridge in one more namespace, and another one while it is split
off. A token bucket (``tc tbf``) on each end of the cable holds the host to so many Mbit/s up and
down, as a home connection does: a queue of ``QUEUE_MS`` in front of each, and packets beyond it are
dropped. There is no delay besides that queue, and no loss besides its overflow. The rule that TCP
follows is the kernel's own choice.

What a host has sent and received is counted by the kernel at ``eth0``, with the headers of
Ethernet, IP and TCP and everything that was sent twice.

Needs Linux, root, and the commands ``ip`` and ``tc`` (Debian and Ubuntu: package iproute2).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any

NETWORK = "10.77.0"
MAX_HOSTS = 100
QUEUE_MS = 100
LOOPBACK = "127.0.0.1"
_NAME = re.compile(r"artel-([0-9]+)-[0-9a-z]+")
_STOP_S = 5.0
_links = 0


@dataclass(frozen=True)
class Wire:
    """Bytes on the wire of one host: sent and received."""

    up: int
    down: int

    def since(self, before: Wire) -> Wire:
        return Wire(self.up - before.up, self.down - before.down)


def refusal() -> str | None:
    """Why namespaces with limited links cannot be made here, in one line; None when they can."""
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "the commands ip and tc are missing (Debian, Ubuntu: apt install iproute2)"
    if os.geteuid() != 0:
        return "network namespaces need root"
    try:
        with Links(1, 100, 100):
            return None
    except OSError as error:
        return f"this machine does not allow network namespaces with tbf: {error}"


class Links:
    """``hosts`` hosts on one network; a context manager that makes and removes them.

    :param down_mbit: Mbit/s (10⁶ bits) that a host can receive; None for no limit
    :param up_mbit: Mbit/s that it can send
    :param unlimited: hosts from this number on have no limit (for services that are no peers)
    """

    def __init__(
        self,
        hosts: int,
        down_mbit: float | None = None,
        up_mbit: float | None = None,
        *,
        unlimited: int | None = None,
    ) -> None:
        if not 1 <= hosts <= MAX_HOSTS:
            raise ValueError(f"{hosts} hosts, at least 1 and at most {MAX_HOSTS} are possible")
        global _links
        _links += 1
        self._prefix = f"artel-{os.getpid()}-{_links}"
        self._hosts = hosts
        self._limits = (down_mbit, up_mbit)
        self._limited = hosts if unlimited is None else unlimited

    def __enter__(self) -> Links:
        _sweep()
        try:
            self._make()
        except BaseException:
            with contextlib.suppress(OSError):  # the first error says more
                self._remove()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._remove()

    def address(self, host: int) -> str:
        """IPv4 address of a host, as the others see it."""
        return f"{NETWORK}.{host + 1}"

    def run(self, host: int, argv: Sequence[str], **options: Any) -> subprocess.Popen[Any]:
        """Start a program inside a host; ``options`` as for :class:`subprocess.Popen`."""
        return subprocess.Popen(self.command(host, argv), **options)

    def command(self, host: int, argv: Sequence[str]) -> list[str]:
        """The command that runs ``argv`` inside a host; the process becomes ``argv`` itself."""
        return ["ip", "netns", "exec", self._namespace(host), *argv]

    def split(self, *hosts: int) -> None:
        """Cut these hosts off from the others; they still reach each other."""
        for host in hosts:
            self._plug(host, "island")

    def heal(self) -> None:
        """All are on one network again."""
        for host in range(self._hosts):
            self._plug(host, "bridge")

    def _plug(self, host: int, bridge: str) -> None:
        _ip("-n", f"{self._prefix}sw", "link", "set", f"port{host}", "master", bridge)

    def bytes(self, host: int, interface: str = "eth0") -> Wire:
        """What a host has sent and received so far; with "lo" what it has sent to itself."""
        shown = _ip("-n", self._namespace(host), "-s", "-j", "link", "show", "dev", interface)
        (counters,) = (row["stats64"] for row in json.loads(shown))
        return Wire(counters["tx"]["bytes"], counters["rx"]["bytes"])

    def _namespace(self, host: int) -> str:
        if not 0 <= host < self._hosts:
            raise ValueError(f"there is no host {host}")
        return f"{self._prefix}h{host}"

    def _make(self) -> None:
        down, up = self._limits
        switch = f"{self._prefix}sw"
        _ip("netns", "add", switch)
        for bridge in ("bridge", "island"):
            _ip("-n", switch, "link", "add", bridge, "type", "bridge")
            _ip("-n", switch, "link", "set", bridge, "up")
        for host in range(self._hosts):
            name, port = self._namespace(host), f"port{host}"
            _ip("netns", "add", name)
            _ip("-n", switch, "link", "add", port, "type", "veth", "peer", "eth0", "netns", name)
            _ip("-n", switch, "link", "set", port, "master", "bridge", "up")
            _ip("-n", name, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "eth0", "up")
            _ip("-n", name, "link", "set", "lo", "up")
            if host < self._limited:
                _limit(name, "eth0", up)
                _limit(switch, port, down)

    def _remove(self) -> None:
        """End what still runs inside, then remove everything that :meth:`_make` has made."""
        mine = [name for name in _namespaces() if name.startswith(self._prefix)]
        mine = [name for name in mine if not name[len(self._prefix)].isdigit()]
        for how in (signal.SIGTERM, signal.SIGKILL):
            end = time.monotonic() + _STOP_S
            inside = _processes(mine)
            for pid in inside:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, how)
            while inside and time.monotonic() < end:
                time.sleep(0.05)
                inside = _processes(mine)
        for name in mine:
            with contextlib.suppress(OSError):
                _ip("netns", "delete", name)


def _limit(namespace: str, interface: str, mbit: float | None) -> None:
    if mbit is None:
        return
    # 4 ms of the rate, and never less than one large packet of the sender's offloading.
    burst = max(65536, int(mbit * 1e6 / 8 * 0.004))
    _ip(
        *("netns", "exec", namespace, "tc", "qdisc", "add", "dev", interface, "root", "tbf"),
        *("rate", f"{int(mbit * 1e6)}bit", "burst", str(burst), "latency", f"{QUEUE_MS}ms"),
    )


def _namespaces() -> list[str]:
    return [line.split()[0] for line in _ip("netns", "list").splitlines() if line.strip()]


def _processes(namespaces: Sequence[str]) -> list[int]:
    return [int(pid) for name in namespaces for pid in _ip("netns", "pids", name).split()]


def _sweep() -> None:
    """Remove the namespaces of a run that was killed: nobody else would."""
    for name in _namespaces():
        match = _NAME.match(name)
        if match and not os.path.exists(f"/proc/{match[1]}"):
            for pid in _processes([name]):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            with contextlib.suppress(OSError):
                _ip("netns", "delete", name)


def _ip(*arguments: str) -> str:
    """Output of one ``ip`` command.

    :raises OSError: it failed; the text is its first line of complaint
    """
    done = subprocess.run(["ip", *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        complaint = done.stderr.strip().splitlines() or [f"exit code {done.returncode}"]
        raise OSError(f"ip {' '.join(arguments)}: {complaint[0]}")
    return done.stdout
