"""How the network daemon is started: hivemind's way, with what hivemind does not offer."""

from __future__ import annotations

import contextlib
import logging
import resource
from typing import Any, ClassVar

from hivemind.p2p import P2P

from protocol.events import emit

log = logging.getLogger("artel.network")

KEEP_CONNECTIONS, MOST_CONNECTIONS, GRACE_S = 320, 448, 20
"""Above the second number of connections those that are wanted least (see ``Gateway.prefer``) and
are older than the grace end, until the first number is left. Only connections with a handshake
count: those without one the daemon ends after 15 s, and nothing bounds their number."""
OPEN_FILES, FEW_OPEN_FILES = 1 << 16, 4096
"""Open files that we ask the system for, and how few of them to warn of."""


class Daemon(P2P):  # type: ignore[misc]  # hivemind has no types
    """The network daemon, and hivemind's handle on it."""

    DHT_MODE_MAPPING: ClassVar[dict[str, dict[str, Any]]] = {
        "server": {
            "dhtServer": 1,
            "connLo": KEEP_CONNECTIONS,
            "connHi": MOST_CONNECTIONS,
            "connGrace": f"{GRACE_S}s",
        }
    }


def raise_open_files() -> None:
    """Let this process, and the daemon that it starts, have as many open files as the system gives.

    Whoever opens a connection to the daemon costs it one, without any handshake.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with contextlib.suppress(ValueError, OSError):  # macOS may say no
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    if most < FEW_OPEN_FILES:
        emit(log, "files.few", logging.WARNING, open_files=most, better=FEW_OPEN_FILES)
