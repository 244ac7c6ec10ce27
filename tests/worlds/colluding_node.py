"""A node that, with others like it, agrees on a state that is not what follows from the round.

In the first attempt of one round it changes a number of the state that it has computed, as all of
its kind do, and signs that. Run as ``python tests/worlds/colluding_node.py node start ...``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace

from artel import cli
from artel.node.applying import Applying
from artel.node.closed_rounds import ClosedRound
from artel.node.trainer.orders import Applied, Command, SetState
from artel.protocol import content

LIE = 2
"""The round after which they lie."""

honest = Applying._advance


def lie_if(wanted: Callable[[ClosedRound], bool]) -> None:
    """Sign what is not so in these rounds."""

    async def advance(self: Applying, closed: ClosedRound, order: Command[Applied]) -> Applied:
        applied = await honest(self, closed, order)
        return await lying(self, closed, applied) if wanted(closed) else applied

    Applying._advance = advance  # type: ignore[method-assign]


async def lying(self: Applying, closed: ClosedRound, applied: Applied) -> Applied:
    path = self._session.blobs.path(applied.root)
    assert path is not None
    data = path.read_bytes()
    false = self._session.work_dir / "false"
    false.write_bytes(data[:-4] + bytes(4))  # the last number of all is 0
    root = content.content_id(false.read_bytes())
    await self._session.trainer.do(SetState(false, root))
    self._session.blobs.adopt(root, false)
    self._states.become(closed.round + 1, root)
    return replace(applied, root=root)


if __name__ == "__main__":
    lie_if(lambda closed: (closed.round, closed.attempt) == (LIE, 0))
    sys.exit(cli.main(sys.argv[1:]))
