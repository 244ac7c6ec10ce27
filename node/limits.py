"""Bounds of what may be asked of a sample of text; light, for the command line."""

from __future__ import annotations

MAX_SAMPLE_TOKENS = 100_000
MAX_TEMPERATURE = 10
MAX_SEED = 2**63 - 1
"""The largest that torch takes."""
