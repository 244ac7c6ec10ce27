"""Writing the trainer's files: whole or not at all, and safe from a power cut soon afterwards.

A file has its final name once all of its bytes are with the operating system. That they reach the
disk is seen to in a thread of its own, since nobody has to wait for it: these files are named by
their content, and what a crash of the whole machine tears in between is found out by its content id
and fetched again.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from artel.node.trainer.channel import TrainerError
from artel.protocol import files
from artel.protocol.errors import ResourceError
from artel.protocol.exchange.codec import Payload
from artel.protocol.state import HEADER_BYTES, State, write_state
from artel.protocol.units import readable

_disk = ThreadPoolExecutor(1, thread_name_prefix="disk")


def write(path: Path, pieces: Sequence[Payload]) -> None:
    """Write the pieces one behind the other into a file.

    :raises TrainerError: ``disk_full``, ``disk``
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with files.replacing(path, durable=False) as file:
            for piece in pieces:
                file.write(piece)
        _flush_later(path)
    except OSError as error:
        raise _disk_error(error, path, sum(map(len, pieces))) from None


def write_agreed(path: Path, state: State) -> str:
    """Write a state; returns its root, computed on the way.

    :raises TrainerError: ``disk_full``, ``disk``
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        root = write_state(path, state, durable=False)
        _flush_later(path)
    except OSError as error:
        raise _disk_error(error, path, HEADER_BYTES + 4 * len(state.params)) from None
    except ResourceError as error:
        cause = error.__context__
        full = isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT)
        raise TrainerError("disk_full" if full else "disk", error.message, error.hint) from None
    return root


def _flush_later(path: Path) -> None:
    """Have the bytes of a file brought to the disk, whatever it is called by then."""
    descriptor = os.open(path, os.O_RDONLY)

    def flush() -> None:
        try:
            os.fsync(descriptor)
        except OSError as error:
            print(f"cannot bring {path.name} to the disk: {error.strerror}", file=sys.stderr)
        finally:
            os.close(descriptor)

    _disk.submit(flush)


def _disk_error(error: OSError, path: Path, size: int) -> TrainerError:
    """A write that failed, as a person wants to hear it."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return TrainerError(
            "disk_full",
            f"the disk is full: cannot write {path}",
            f"free at least {readable(size)} there",
        )
    return TrainerError(
        "disk", f"cannot write {path}: {error.strerror}", "check the home directory"
    )
