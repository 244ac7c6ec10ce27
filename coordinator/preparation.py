"""Preparing a run in a child process, so that torch's memory does not stay in the coordinator.

``python -m artel.coordinator.preparation FILE --home DIR`` is that child: ``artel run prepare``,
and the model's layout written beside the manifest, because a coordinator needs it and cannot build
models.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from dataclasses import dataclass
from pathlib import Path

from artel.protocol import files, terminal, tether
from artel.protocol.errors import ArtelError, CheckFailed, ResourceError, UsageError
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.state import Layout

LAYOUT_NAME = "layout.json"
MAX_MANIFEST_ENVELOPE_BYTES = 1 << 16


@dataclass(frozen=True)
class Published:
    """A prepared run: what a coordinator serves. ``envelope`` is the signed manifest."""

    manifest: Manifest
    run: str
    envelope: bytes
    layout: Layout


async def prepare_in_child(run_file: Path, home: Path) -> Published:
    """Prepare ``run_file`` in ``home`` (cheap when that was done before) and load the result.

    Progress lines of the child go to our standard error.

    :raises ArtelError: what the child could not do, in its words
    """
    child = await asyncio.create_subprocess_exec(
        *tether.tied(sys.executable, "-P", "-m", __name__, str(run_file), "--home", str(home)),
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
    return await asyncio.to_thread(load_published, home)


def load_published(home: Path) -> Published:
    """Read what the child has left in ``home``.

    :raises CheckFailed: when manifest and layout do not belong together
    """
    path = home / "run" / "manifest.json"
    try:
        envelope = path.read_bytes()[:MAX_MANIFEST_ENVELOPE_BYTES]
        layout = Layout.decode(path.with_name(LAYOUT_NAME).read_bytes())
    except OSError as error:
        raise ResourceError(f"cannot read {error.filename}: {error.strerror}") from None
    manifest, run = open_manifest(envelope)
    if layout.digest != manifest.model.layout:
        raise CheckFailed(
            f"{path.with_name(LAYOUT_NAME)} is not the layout that the manifest names",
            "delete that file and start again; it is then written anew",
        )
    return Published(manifest, run, envelope, layout)


def _failure(output: bytes, code: int) -> ArtelError:
    """The child's error, with the class that its exit code stands for."""
    try:
        fields = json.loads(output)
        message, hint = str(fields["error"]), str(fields["hint"])
    except (ValueError, KeyError, TypeError):
        message = f"preparing the run failed (exit code {code})"
        hint = "run artel run prepare FILE --home DIR --verbose to see why"
    for kind in (UsageError, ResourceError):
        if kind.exit_code == code:
            return kind(message, hint)
    return CheckFailed(message, hint)


# --- the child ------------------------------------------------------------------------------------


def main(argv: list[str]) -> int:
    """Prepare; on failure print the error as one JSON object."""
    run_file, option, home = argv
    assert option == "--home"
    terminal.prepare()
    try:
        _prepare(Path(run_file), Path(home))
    except ArtelError as error:
        print(json.dumps({"error": error.message, "hint": error.hint}))
        return error.exit_code
    return 0


def _prepare(run_file: Path, home: Path) -> None:
    from artel.coordinator.prepare import manifest_path, prepare

    shown = [""]

    def progress(stage: str, fraction: float) -> None:
        quarter = int(fraction * 4)
        line = f"  {stage}" + (f" {quarter * 25:>3} %" if quarter else "")
        if line != shown[0]:
            shown[0] = line
            print(line, file=sys.stderr, flush=True)

    def say(line: str) -> None:
        print(f"  {line}", file=sys.stderr, flush=True)

    prepared = prepare(run_file, home, progress, say)
    path = manifest_path(home).with_name(LAYOUT_NAME)
    if not path.exists():
        _write_layout(prepared.manifest, path)


def _write_layout(manifest: Manifest, path: Path) -> None:
    from artel.protocol import model

    config = manifest.config.model
    layout = model.layout_of(model.empty(config, manifest.tokenizer.vocab_size))
    try:
        files.write(path, layout.encode())
    except OSError as error:
        raise ResourceError(f"cannot write {path}: {error.strerror}") from None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
