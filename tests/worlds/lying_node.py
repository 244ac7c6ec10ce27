"""A node that aggregates its slices wrongly: it counts nobody's contribution but its own.

Everything else of it is honest, and so are its first rounds. Run as
``python tests/worlds/lying_node.py node start ...``.
"""

from __future__ import annotations

import sys
from dataclasses import replace

from artel import cli
from artel.node.applying import Applying
from artel.node.closed_rounds import ClosedRound
from artel.protocol import assignment

FIRST_LIE = 2
"""The round in which it begins."""

honest = Applying._aggregate


async def lying(self: Applying, closed: ClosedRound, number: int) -> str:
    me = self._session.identity.peer_id
    if (
        closed.round >= FIRST_LIE
        and assignment.aggregator(closed.accepted, closed.round, number) == me
    ):
        closed = replace(closed, weights={me: closed.weights[me]})
    return await honest(self, closed, number)


if __name__ == "__main__":
    Applying._aggregate = lying  # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[1:]))
