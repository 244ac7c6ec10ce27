"""Runs an ``artel`` command as the child of a runner, and ends with it.

``python -m coordinator.tether RUNNER-PID node start ...`` asks the kernel for a SIGTERM when the
runner dies, however it dies (``PR_SET_PDEATHSIG``, prctl(2)), and then becomes that command. So a
swarm whose runner was killed leaves no process behind.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

import artel

_PR_SET_PDEATHSIG = 1


def command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs ``artel ARGUMENTS`` tied to this process."""
    return (sys.executable, "-m", "coordinator.tether", str(os.getpid()), *arguments)


def environment() -> dict[str, str]:
    """Our environment for a child, which must find the packages that we were imported from."""
    root = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, (root, inherited)))
    # What it prints goes to pipes and logs, which are UTF-8 whatever the terminal is.
    fixed = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return os.environ | {"PYTHONPATH": path} | fixed


def main(argv: list[str]) -> int:
    """Tie this process to the runner and run the command after it."""
    runner = int(argv[0])
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != runner:  # it died before the kernel knew of our wish
        return 1
    return artel.main(argv[1:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
