"""A coordinator that does everything but take disputes. Run as ``python censoring_coordinator.py
coordinator start ...``."""

from __future__ import annotations

import sys

from artel import cli
from artel.coordinator.submission import Submissions
from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.protocol.net import wire

honest = Submissions._append


async def append(self: Submissions, entry: Entry, who: str) -> int:
    if isinstance(entry.body, entries.Dispute):
        raise wire.Refused("this coordinator likes peace", code="unknown")
    return await honest(self, entry, who)


if __name__ == "__main__":
    Submissions._append = append  # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[1:]))
