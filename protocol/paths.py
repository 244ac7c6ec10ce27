"""Paths as a person writes them."""

from __future__ import annotations

from pathlib import Path

from artel.protocol.errors import UsageError


def expanded(path: Path) -> Path:
    """The path with its ``~`` replaced; a container's user may have no home directory.

    :raises UsageError: nobody knows which folder is meant
    """
    try:
        return path.expanduser()
    except RuntimeError:
        raise UsageError(
            f"no home directory is known for the ~ in {path}", "give --home DIR, or set HOME"
        ) from None
