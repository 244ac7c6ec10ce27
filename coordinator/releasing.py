"""The newest model for whoever reads the run's page: a release as a tar file, and some text of it.

It is what ``artel model export`` makes of the newest state that this home holds. That takes the
time and the memory of loading the model, so a process of its own does it which everything else
comes before, at most every so often, and in at most a twentieth of the time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import shutil
import sys
import tarfile
import time
from pathlib import Path

from pydantic import ValidationError

from artel.coordinator.service import Coordinator
from artel.protocol import files
from artel.protocol.errors import ArtelError
from artel.protocol.events import emit
from artel.protocol.messages import Count
from artel.protocol.round_state import Phase
from artel.protocol.schema import Record
from artel.protocol.tasks import output_of

log = logging.getLogger("artel.coordinator")

FILE, FACTS_FILE = "release.tar", "release.json"
EVALUATION = "evaluation.json"
"""In a release: what it is, for programs (:mod:`model.exporting`)."""
LARGEST = 100_000_000
"""Parameters of a model that is offered without being asked to."""
EVERY_S = 900.0
OF_TIME = 20
"""The part of the time that goes into releases: one in so many, at most."""
LOOK_BACK = 64
"""Newest states of which one may be here."""


class ReleaseFacts(Record):
    """What is offered: the model after ``round`` rounds, with some text that it makes up."""

    round: Count
    state: str
    bytes: Count
    sample: str


class Releases:
    """Makes them for one coordinator; :meth:`run` returns when there are to be none.

    :param home: of the coordinator
    :param every: seconds from one to the next; None: as its size suggests, 0: there are none
    """

    def __init__(self, core: Coordinator, home: Path, every: float | None) -> None:
        small = core.manifest.model.parameters <= LARGEST
        self._core, self._home = core, home
        self._every = every if every is not None else EVERY_S if small else 0.0
        self.newest = _read(home) if self._every else None

    @property
    def file(self) -> Path:
        """The tar file of :attr:`newest`."""
        return self._home / FILE

    async def run(self) -> None:
        """Make one whenever there is a newer state, until cancelled."""
        core, changed = self._core, self._core.changed
        while self._every:
            async with changed:
                await changed.wait_for(self._wanted)
            began = time.monotonic()
            try:
                await self._make()
            except ArtelError as error:
                said = {"reason": error.message, "hint": error.hint}
                emit(log, "release.failed", logging.WARNING, **said)
            pause = max(self._every, OF_TIME * (time.monotonic() - began))
            with contextlib.suppress(TimeoutError):  # the last state of a run need not wait
                async with asyncio.timeout(pause), changed:
                    await changed.wait_for(
                        lambda: core.state.phase is Phase.FINISHED and self._wanted()
                    )

    def _wanted(self) -> bool:
        """Whether a newer state is here than the one that is offered."""
        states = self._core.ledger.state.states
        first = max(self.newest.round if self.newest else 0, len(states) - LOOK_BACK)
        known = self.newest.state if self.newest else states[0]
        return any(root != known and self._core.blobs.has(root) for root in states[first:])

    async def _make(self) -> None:
        folder = self._home / "release.new"
        for left in self._home.glob(f"*{folder.name}*"):  # a child was killed with this process
            shutil.rmtree(left, ignore_errors=True)
        artel = (sys.executable, "-P", "-m", "artel", "model", "export", str(folder))
        nice = "/usr/bin/env", "nice", "-n", "19"
        await output_of("artel model export", *nice, *artel, "--home", str(self._home))
        self.newest = await asyncio.to_thread(self._pack, folder)
        emit(log, "release.made", round=self.newest.round, bytes=self.newest.bytes)
        await self._core.tell()

    def _pack(self, folder: Path) -> ReleaseFacts:
        """Make the folder the file that is offered."""
        said = json.loads((folder / EVALUATION).read_bytes())
        name = f"{self._core.manifest.config.run.name}-{said['round']}"
        with files.told(self._home):
            with files.replacing(self.file) as out, tarfile.open(fileobj=out, mode="w") as tar:
                tar.add(folder, name, filter=_anonymous)
            shutil.rmtree(folder)
            facts = {name: said[name] for name in ("round", "state", "sample")}
            found = ReleaseFacts(**facts, bytes=self.file.stat().st_size)
            files.write(self._home / FACTS_FILE, found.model_dump_json().encode())
        return found


def _anonymous(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Without who made it here."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    return member


def _read(home: Path) -> ReleaseFacts | None:
    """What a process before this one has made."""
    try:
        found = ReleaseFacts.model_validate_json((home / FACTS_FILE).read_bytes())
        return found if (home / FILE).stat().st_size == found.bytes else None
    except (OSError, ValidationError):
        return None
