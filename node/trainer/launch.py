"""Starting the trainer's process: its socket, its log, its environment."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from artel.protocol import tether
from artel.protocol.cgroup import Groups
from artel.protocol.errors import ResourceError

MAX_LOG_BYTES = 4 << 20
"""A longer log is set aside as ``NAME.old`` when a child starts."""


async def launch(
    log_file: Path | None, threads: int
) -> tuple[asyncio.subprocess.Process, socket.socket, int]:
    """A fresh trainer process, our end of the socket to it, and how long its log was before.

    :param log_file: takes what the child and its libraries print; None: our standard error
    :param threads: torch threads; 0 takes every core that this process may use
    :raises ResourceError: it cannot be started
    """
    ours, theirs = socket.socketpair()
    try:
        with theirs, _log(log_file) as (log, size):
            process = await asyncio.create_subprocess_exec(
                *tether.tied(
                    sys.executable,
                    "-P",  # the working directory is no place to import from
                    "-m",
                    "artel.node.trainer",
                    "--fd",
                    str(theirs.fileno()),
                ),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=_environment(threads),
                start_new_session=True,
            )
    except OSError as error:
        ours.close()
        raise ResourceError(
            f"cannot start the trainer: {error.strerror or error}", "free some memory or processes"
        ) from None
    return process, ours, size


@contextlib.contextmanager
def _log(path: Path | None) -> Iterator[tuple[IO[bytes] | int, int]]:
    """Where the child's output goes, an open file or our own standard error; and its size."""
    if path is None:
        yield sys.stderr.fileno(), 0
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and path.stat().st_size > MAX_LOG_BYTES:
        path.replace(path.with_name(path.name + ".old"))
    with path.open("ab") as file:
        yield file, file.seek(0, os.SEEK_END)


def _environment(threads: int) -> dict[str, str]:
    """Environment of the child: ours, with the switches that its libraries read when imported."""
    cores = threads or Groups().cores()
    return {
        # glibc gives arrays above 32 MiB back when they are freed, and fresh ones cost page faults:
        # on some virtual machines more than the arithmetic that is done on them. One arena, because
        # those of other threads hold nothing above 64 MiB, and keep what the main one could use.
        "MALLOC_ARENA_MAX": "1",
        "MALLOC_MMAP_THRESHOLD_": str(1 << 30),
        "MALLOC_TRIM_THRESHOLD_": str(8 << 30),
        **tether.environment(),
        "OMP_NUM_THREADS": str(cores),
        "MKL_NUM_THREADS": str(cores),
        # Waiting threads sleep instead of spinning: on a machine with other work the spinning costs
        # up to ten times the speed.
        "OMP_WAIT_POLICY": "PASSIVE",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TRANSFORMERS_VERBOSITY": "error",
        "TOKENIZERS_PARALLELISM": "false",
    }
