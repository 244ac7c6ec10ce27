"""Sizes that follow from the manifest alone."""

from __future__ import annotations

from artel.protocol.manifest import Manifest
from artel.protocol.state import HEADER_BYTES


def state_bytes(manifest: Manifest) -> int:
    """Bytes of a state file of this run."""
    buffers = 2 if manifest.config.exchange.outer.momentum else 1
    return HEADER_BYTES + 4 * buffers * manifest.model.parameters
