"""Writing the trainer's files: whole or not at all, and safe from a power cut soon afterwards.

A file has its final name once all of its bytes are with the operating system. That they reach the
disk is seen to in a thread of its own, since nobody has to wait for it: these files are named by
their content, and what a crash of the whole machine tears in between is found out by its content id
and fetched again.
"""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from artel.node.trainer.channel import coded
from artel.protocol import files
from artel.protocol.errors import ResourceError
from artel.protocol.exchange.codec import Payload
from artel.protocol.state import HEADER_BYTES, State, write_state

_disk = ThreadPoolExecutor(1, thread_name_prefix="disk")


def write(path: Path, pieces: Sequence[Payload]) -> None:
    """Write the pieces one behind the other into a file.

    :raises TrainerError: ``disk_full``, ``disk``
    """
    with _coded(path, sum(map(len, pieces))):
        with files.replacing(path, durable=False) as file:
            for piece in pieces:
                file.write(piece)
        _flush_later(path)


def write_agreed(path: Path, state: State) -> str:
    """Write a state; returns its root, computed on the way.

    :raises TrainerError: ``disk_full``, ``disk``
    """
    with _coded(path, HEADER_BYTES + 4 * len(state.params)):
        root = write_state(path, state, durable=False)
        _flush_later(path)
    return root


@contextlib.contextmanager
def _coded(path: Path, size: int) -> Iterator[None]:
    """Make the folder of a file, and tell a full disk from one that does not work."""
    with coded("disk", ResourceError), coded("disk_full", files.DiskFull), files.told(path, size):
        path.parent.mkdir(parents=True, exist_ok=True)
        yield


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
