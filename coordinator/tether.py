"""``artel`` commands as children of a runner, which end when it ends, however it ends.

A swarm whose runner was killed leaves no process behind: each one then gets a SIGTERM from the
kernel, and takes its leave (:mod:`protocol.tether`).
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

from protocol.tether import tied


def command(*arguments: str) -> tuple[str, ...]:
    """The command line that runs ``artel ARGUMENTS`` tied to this process."""
    return tied(sys.executable, "-P", "-m", "artel", *arguments, death=signal.SIGTERM)


def environment() -> dict[str, str]:
    """Our environment for a child, which must find the packages that we were imported from."""
    root = str(Path(__file__).resolve().parent.parent)
    inherited = os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, (root, inherited)))
    # What it prints goes to pipes and logs, which are UTF-8 whatever the terminal is.
    fixed = {"PYTHONUNBUFFERED": "1", "PYTHONIOENCODING": "utf-8"}
    return os.environ | {"PYTHONPATH": path} | fixed
