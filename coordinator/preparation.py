"""A prepared run in a coordinator's home, and the child process that prepares it.

The child is ``python -m artel.coordinator.prepare FILE --home DIR``: torch's memory does not stay
in the coordinator, which gets the model's layout from the file that the child leaves beside the
manifest.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from artel.ledger.fold.layout import LAYOUT_FILE
from artel.protocol import tether
from artel.protocol.errors import ArtelError, CheckFailed, ResourceError, UsageError
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.state import Layout

CHILD = "artel.coordinator.prepare"
MAX_MANIFEST_ENVELOPE_BYTES = 1 << 16


@dataclass(frozen=True)
class Prepared:
    """A run that is ready to start. ``envelope`` is the signed manifest; ``fresh`` if made now."""

    manifest: Manifest
    run: str
    envelope: bytes
    layout: Layout
    fresh: bool = False


def manifest_path(home: Path) -> Path:
    """Where a coordinator's home keeps the signed manifest."""
    return home / "run" / "manifest.json"


def load_prepared(home: Path) -> Prepared:
    """Read the run that was prepared in ``home``.

    :raises CheckFailed: when manifest and layout do not belong together
    """
    path = home / LAYOUT_FILE
    try:
        envelope = manifest_path(home).read_bytes()[:MAX_MANIFEST_ENVELOPE_BYTES]
        layout = Layout.decode(path.read_bytes())
    except OSError as error:
        raise ResourceError(f"cannot read {error.filename}: {error.strerror}") from None
    manifest, run = open_manifest(envelope)
    if layout.digest != manifest.model.layout:
        raise CheckFailed(
            f"{path} is not the layout that the manifest names",
            "delete that file and start again; it is then written anew",
        )
    return Prepared(manifest, run, envelope, layout)


async def prepare_in_child(run_file: Path, home: Path) -> Prepared:
    """Prepare ``run_file`` in ``home`` (cheap when that was done before) and load the result.

    Progress lines of the child go to our standard error.

    :raises ArtelError: what the child could not do, in its words
    """
    child = await asyncio.create_subprocess_exec(
        *tether.tied(sys.executable, "-P", "-m", CHILD, str(run_file), "--home", str(home)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env=tether.environment(),
        start_new_session=True,
    )
    try:
        output, _ = await child.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()  # what it writes is renamed into place when it is whole
        await child.wait()
        raise
    if child.returncode:
        raise _failure(output, child.returncode)
    return await asyncio.to_thread(load_prepared, home)


def _failure(output: bytes, code: int) -> ArtelError:
    """The child's error, with the class that its exit code stands for."""
    try:
        fields = json.loads(output)
        message, hint = str(fields["error"]), str(fields["hint"])
    except (ValueError, KeyError, TypeError):
        message = f"preparing the run failed (exit code {code})"
        hint = "run artel run prepare FILE --home DIR --verbose to see why"
    kinds = {kind.exit_code: kind for kind in (UsageError, ResourceError)}
    return kinds.get(code, CheckFailed)(message, hint)


class Stages:
    """One line a stage and quarter, on stderr: stdout belongs to the result.

    :param quiet_s: nothing is said before so many seconds have passed
    """

    def __init__(self, quiet_s: float = 0.0, indent: str = "") -> None:
        self._begin, self._indent = time.monotonic() + quiet_s, indent
        self._shown = ""

    def __call__(self, stage: str, fraction: float) -> None:
        """A stage in words, and the fraction of it that is done (0 to 1)."""
        quarter = int(fraction * 4)
        line = stage + (f" {quarter * 25:>3} %" if quarter else "")
        if line != self._shown and time.monotonic() >= self._begin:
            self._shown = line
            self.say(line)

    def say(self, line: str) -> None:
        """A line that stands for itself."""
        print(self._indent + line, file=sys.stderr, flush=True)
