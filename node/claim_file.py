"""What this node has shown in rounds, as it says itself: ``claims.jsonl`` in its home.

One JSON object a line, appended right before a contribution is revealed. ``artel ledger me`` puts
it beside what the ledger says (:mod:`ledger.fold.claims` reads it), so that work that did not count
can be seen. A torn last line, as a crash may leave it, is skipped.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from artel.ledger.fold.claims import CLAIMS_FILE, Claim
from artel.protocol import files


class ClaimFile:
    """The claims file of a home."""

    def __init__(self, home: Path, clock: Callable[[], float] = time.time) -> None:
        self.path = home / CLAIMS_FILE
        self._clock = clock
        self._last = ""

    def add(self, *, round: int, attempt: int, entry: str, blob: str, tokens: int) -> None:
        """Append a claim, durably; the same one again in a row is one claim.

        :raises ResourceError: the disk is full or does not work
        """
        if entry == self._last:
            return
        claim = Claim(round, attempt, entry, blob, tokens, int(self._clock()))
        line = json.dumps(asdict(claim)).encode() + b"\n"
        with files.told(self.path.parent), self.path.open("ab") as file:
            # Written after a torn line, a claim would be lost with it.
            if file.tell() and not self._ends_whole():
                line = b"\n" + line
            file.write(line)
            file.flush()
            os.fdatasync(file.fileno())
        self._last = entry

    def _ends_whole(self) -> bool:
        with self.path.open("rb") as file:
            file.seek(-1, os.SEEK_END)
            return file.read(1) == b"\n"
