"""The agreed states that a home holds, for a reader beside the program that is at work there.

A node deletes a state when two newer ones have come, which may be seconds later. So the states are
opened first and chosen from then: what is open can be read to its end, whatever becomes of its
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
from artel.ledger.store.reader import LedgerReader
from artel.protocol.errors import UsageError
from artel.protocol.manifest import Manifest, read_manifest
from artel.protocol.state import MAGIC, state_bytes

TRIES = 5
MANIFESTS = ("manifest.json", "run/manifest.json")
"""Where the home of a node has the run's manifest, and that of a coordinator."""


@dataclass(frozen=True)
class HeldState:
    """An agreed state that a home holds, open, and what is needed to read it."""

    run: str
    manifest: Manifest
    manifest_file: Path
    root: str
    state: BufferedReader
    blobs: Path
    """The home's content, by content id."""

    @property
    def tokenizer(self) -> Path:
        """The run's tokenizer file."""
        return self.blobs / self.manifest.tokenizer.id


@contextlib.contextmanager
def held(home: Path, round: int | None = None) -> Iterator[HeldState]:
    """Find a state and keep it open for as long as the block lasts.

    :param home: of a node or a coordinator
    :param round: after how many rounds; None: the newest one
    :raises UsageError: the home has not joined a run, or holds no such state
    :raises ResourceError: the home cannot be read
    """
    path = next((home / name for name in MANIFESTS if (home / name).exists()), None)
    if path is None:
        raise UsageError(f"{home} has not joined a run", "check --home")
    manifest, run = read_manifest(path)
    blobs, numbers = home / "blobs", list[int]()
    for _ in range(TRIES):
        with contextlib.ExitStack() as stack:
            files = {file.name: file for file in _opened(blobs, manifest, stack)}
            agreed = agreed_states(home, run)
            numbers = [n for n, root in enumerate(agreed) if str(blobs / root) in files]
            wanted = numbers[-1:] if round is None else [n for n in numbers if n == round]
            for number in wanted:
                root = agreed[number]
                file = files[str(blobs / root)]
                yield HeldState(run, manifest, path, root, file, blobs)
                return
    if round is None:
        raise UsageError(f"{home} holds no agreed state yet", "wait until the node has synced")
    have = f"it holds those of {', '.join(map(str, numbers))}" if numbers else "it holds none yet"
    raise UsageError(
        f"{home} does not hold the state after {round} rounds",
        f"{have}; a coordinator keeps every n-th one of a run with [rounds] keep_every = n",
    )


def agreed_states(home: Path, run: str) -> list[str]:
    """Roots of the states that were agreed on, by their rounds."""
    with LedgerReader.of(home, run) as store:
        return history.read(store, processes=False).state.states


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
