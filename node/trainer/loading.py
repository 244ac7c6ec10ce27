"""Loading: from the files of a run to a session, and from a file to a state."""

from __future__ import annotations

from pathlib import Path

from artel.node.trainer.channel import TrainerError
from artel.protocol import content, dsse
from artel.protocol.errors import ArtelError
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.state import Layout, State, read_state


def read_manifest(path: Path) -> Manifest:
    """The run that a signed manifest describes.

    :raises TrainerError: ``bad_manifest``
    """
    try:
        with path.open("rb") as file:
            return open_manifest(file.read(dsse.MAX_ENVELOPE_BYTES + 1))[0]
    except OSError as error:
        raise TrainerError("bad_manifest", f"cannot read {path}: {error.strerror}") from None
    except ArtelError as error:
        raise TrainerError("bad_manifest", error.message, error.hint) from None


def read_agreed(manifest: Manifest, layout: Layout, path: Path) -> tuple[State, str]:
    """A state of this run, with its root.

    :raises TrainerError: ``bad_state``
    """
    try:
        state = read_state(path, layout)
    except ArtelError as error:
        raise TrainerError("bad_state", error.message, error.hint) from None
    if (state.momentum is None) != (manifest.config.exchange.outer.momentum == 0):
        raise TrainerError(
            "bad_state", f"the state {path.name} does not fit the run's outer momentum"
        )
    return state, content.file_content_id(path)
