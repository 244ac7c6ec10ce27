"""A node that makes half of the steps of each head and claims all of them.

Everything else of it is honest. Run as ``python tests/worlds/cheating_node.py node start ...``.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

from artel import cli
from artel.node.supervisor import Trainer
from artel.node.trainer.orders import Train, Trained

honest = Trainer.do


async def cheating(self: Trainer, command: Any, **options: Any) -> Any:
    if not isinstance(command, Train):
        return await honest(self, command, **options)
    head = command.steps - command.tail
    batch, made = len(command.windows) // head, max(1, head // 2)
    less = replace(command, steps=made + command.tail, windows=command.windows[: made * batch])
    result: Trained = await honest(self, less, **options)
    tokens = result.tokens // (result.head + result.tail) * (head + result.tail)
    return replace(result, head=head, tokens=tokens)


if __name__ == "__main__":
    Trainer.do = cheating  # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[1:]))
