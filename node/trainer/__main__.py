"""``python -m artel.node.trainer --fd N``: serve the daemon at the other end of socket N."""

from __future__ import annotations

import argparse
import contextlib
import faulthandler
import socket
from pathlib import Path

from artel.node.trainer.loop import Loop
from artel.protocol import terminal

_OOM_SCORE = 600
"""Of 1000: when memory runs out, the kernel takes the trainer and not the daemon."""


def main() -> None:
    """Entry point of the child process."""
    parser = argparse.ArgumentParser(prog="artel.node.trainer", description=__doc__)
    parser.add_argument("--fd", type=int, required=True, help="inherited socket to the daemon")
    arguments = parser.parse_args()
    terminal.prepare()  # the log is read in a terminal, and holds words of the manifest
    faulthandler.enable()
    with contextlib.suppress(OSError):  # no /proc, or not allowed: only the preference is lost
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    with socket.socket(fileno=arguments.fd) as connection:
        Loop(connection).run()


if __name__ == "__main__":
    main()
