"""The newest agreed state of a home, for a reader beside the node that is at work there.

The node deletes a state when two newer ones have come, which may be seconds later. So the states
are opened first and chosen from then: what is open can be read to its end, whatever becomes of its
name.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path

from artel.ledger.fold import history
from artel.ledger.store.keyfiles import require_home_of
from artel.ledger.store.reader import LedgerReader
from artel.protocol.errors import UsageError
from artel.protocol.manifest import Manifest, read_manifest
from artel.protocol.state import MAGIC, state_bytes

TRIES = 5


@dataclass(frozen=True)
class Newest:
    """The newest agreed state that a home holds, open, and what is needed to read it."""

    run: str
    manifest: Manifest
    root: str
    state: BufferedReader
    tokenizer: Path


@contextlib.contextmanager
def newest(home: Path) -> Iterator[Newest]:
    """Find it and keep it open for as long as the block lasts.

    :raises UsageError: the home is a coordinator's, has not joined a run, or holds no agreed state
    :raises ResourceError: the home cannot be read
    """
    require_home_of("node", home, "name the home of a node of the run: --home DIR")
    path, blobs = home / "manifest.json", home / "blobs"
    if not path.exists():
        raise UsageError(f"{home} has not joined a run", "check --home")
    manifest, run = read_manifest(path)
    for _ in range(TRIES):
        with contextlib.ExitStack() as stack:
            held = {file.name: file for file in _opened(blobs, manifest, stack)}
            for root in reversed(_agreed(home, run)):
                state = held.get(str(blobs / root))
                if state is not None:
                    yield Newest(run, manifest, root, state, blobs / manifest.tokenizer.id)
                    return
    raise UsageError(f"{home} holds no agreed state yet", "wait until the node has synced")


def _opened(
    blobs: Path, manifest: Manifest, stack: contextlib.ExitStack
) -> Iterator[BufferedReader]:
    """Every state of the run in a content store, opened before anything else is looked at."""
    size = state_bytes(manifest.model.parameters, manifest.config.exchange.outer)
    try:
        names = [item.path for item in os.scandir(blobs) if len(item.name) == 64]
    except FileNotFoundError:
        return
    for name in names:
        with contextlib.suppress(FileNotFoundError):  # deleted since
            file = stack.enter_context(open(name, "rb"))  # noqa: SIM115 -- the stack closes it
            if os.fstat(file.fileno()).st_size == size and file.peek(8)[:8] == MAGIC:
                yield file


def _agreed(home: Path, run: str) -> list[str]:
    """Roots of the states that were agreed on, oldest first."""
    with LedgerReader.of(home, run) as store:
        return history.read(store, processes=False).state.states
