"""The layout of a run's model, for whoever recomputes what was made of it.

The manifest names the layout by its digest alone. A coordinator keeps it in a file; elsewhere it is
worked out from the model's configuration, which takes torch and therefore a process of its own:
``python -m artel.ledger.fold.layout`` reads a signed manifest and writes the layout.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from artel.protocol import tether
from artel.protocol.errors import DecodeError, ResourceError
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.state import MAX_LAYOUT_BYTES, Layout

LAYOUT_FILE = Path("run") / "layout.json"
"""Where a coordinator keeps it in its home."""
TIMEOUT_S = 300.0


def layout_of(leaf: bytes, homes: Iterable[Path]) -> Layout:
    """The layout that the signed manifest ``leaf`` (entry 0) names.

    :param homes: folders in which its file may lie
    :raises ResourceError: it lies in none, and cannot be worked out on this machine
    """
    manifest, _ = open_manifest(leaf)
    for home in homes:
        try:
            with (home / LAYOUT_FILE).open("rb") as file:
                found = Layout.decode(file.read(MAX_LAYOUT_BYTES + 1))
        except (OSError, DecodeError):
            continue
        if found.digest == manifest.model.layout:
            return found
    return _computed(leaf, manifest)


def _computed(leaf: bytes, manifest: Manifest) -> Layout:
    try:
        child = subprocess.run(
            tether.tied(sys.executable, "-P", "-m", __name__),
            input=leaf,
            env=tether.environment(),
            capture_output=True,
            timeout=TIMEOUT_S,
            check=True,
            start_new_session=True,
        )
        found = Layout.decode(child.stdout)
    except (OSError, subprocess.SubprocessError, DecodeError):
        found = None
    if found is None or found.digest != manifest.model.layout:
        raise ResourceError(
            "the layout of the run's model cannot be worked out here",
            f"that takes torch and transformers; or copy {LAYOUT_FILE} of a coordinator's home "
            "into one of these homes",
        )
    return found


def main() -> int:
    """Write the layout of the model of the manifest on standard input."""
    from artel.protocol import model

    manifest, _ = open_manifest(sys.stdin.buffer.read())
    module = model.empty(manifest.config.model, manifest.tokenizer.vocab_size)
    sys.stdout.buffer.write(model.layout_of(module).encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
