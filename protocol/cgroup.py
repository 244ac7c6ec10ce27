"""What the control groups of this process leave it of its machine: memory and processors.

A container or a service may use less than there is. Every group from that of the process up to the
root can set a limit, and the tightest one counts. Reads versions 1 and 2 (cgroups(7)); a container
can have a path in its ``/proc/self/cgroup`` that only the host knows, and then what is mounted is
the group itself.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MAX_BYTES = 64 << 10
_NO_LIMIT = 1 << 60
"""Version 1 writes a limit near 2^63 when there is none."""


@dataclass(frozen=True)
class Memory:
    """What this process can still take, and the limit of its groups (None: the machine's own)."""

    free: int
    limit: int | None


@dataclass(frozen=True)
class Groups:
    """The control groups of a process; the fields are for tests.

    :param root: where they are mounted
    :param own: which of them the process is in
    :param machine: counters of the whole machine
    """

    root: Path = Path("/sys/fs/cgroup")
    own: Path = Path("/proc/self/cgroup")
    machine: Path = Path("/proc/vmstat")

    def memory(self) -> Memory:
        """Bytes that can be taken before something has to give way."""
        import psutil  # the light client counts processors alone, and is installed without it

        free, tightest = psutil.virtual_memory().available, None
        for group in self._groups("memory"):
            limit = _number(group / "memory.max") or _number(group / "memory.limit_in_bytes")
            if limit is None or limit >= _NO_LIMIT:
                continue
            used = _number(group / "memory.current") or _number(group / "memory.usage_in_bytes")
            counts = _counts(group / "memory.stat")
            # Files that were read and are not in use go first, before anything is killed.
            cache = counts.get("total_inactive_file", counts.get("inactive_file", 0))
            left = max(0, limit - max(0, (used or 0) - cache))
            if left < free:
                free, tightest = left, limit
        return Memory(free, tightest)

    def cores(self) -> int:
        """Processors' worth of time that this process may use, at least 1."""
        allowed = float(len(os.sched_getaffinity(0)))
        for group in self._groups("cpu"):
            quota, period = _number(group / "cpu.cfs_quota_us"), None
            if quota is not None:
                period = _number(group / "cpu.cfs_period_us")
            else:
                words = [*_read(group / "cpu.max").split(), "", ""]
                quota, period = _int(words[0]), _int(words[1])
            if quota is not None and period and quota > 0:
                allowed = min(allowed, quota / period)
        return max(1, math.ceil(allowed))

    def kills(self) -> int | None:
        """How often the kernel killed for lack of memory, here; None when it does not tell."""
        for group in self._groups("memory"):
            for name in ("memory.events", "memory.oom_control"):
                counts = _counts(group / name)
                if "oom_kill" in counts:
                    return counts["oom_kill"]
        return _counts(self.machine).get("oom_kill")

    def _groups(self, controller: str) -> Iterator[Path]:
        """The folders of our group and of those above it that can be seen from here."""
        for line in _read(self.own).splitlines():
            number, _, rest = line.partition(":")
            names, _, path = rest.partition(":")
            if number == "0" and not names:
                mounts = [self.root, self.root / "unified"]
            elif controller in names.split(","):
                mounts = [self.root / names, self.root / controller]
            else:
                continue
            parts = [part for part in path.split("/") if part]
            if ".." in parts:  # outside of what is mounted here
                parts = []
            for mount in dict.fromkeys(mounts):
                for depth in range(len(parts), -1, -1):
                    folder = mount.joinpath(*parts[:depth])
                    if folder.is_dir():
                        yield folder


def _read(path: Path) -> str:
    """A kernel's file, "" when it is missing or not ours to read."""
    try:
        with path.open("rb") as file:
            return file.read(_MAX_BYTES).decode("ascii", "replace")
    except OSError:
        return ""


def _int(text: str) -> int | None:
    try:
        return int(text)
    except ValueError:  # "max", or nothing
        return None


def _number(path: Path) -> int | None:
    return _int(_read(path))


def _counts(path: Path) -> dict[str, int]:
    """Lines of a name and a number."""
    pairs = (line.split() for line in _read(path).splitlines())
    return {pair[0]: int(pair[1]) for pair in pairs if len(pair) == 2 and pair[1].isdecimal()}
