"""The child that computes states for a coordinator: ``python -m artel.coordinator.apply_worker``.

Its argument is the coordinator's home, by which it knows the run; of the ledger it knows nothing.
Orders and answers are JSON, one a line; states and contributions pass as files. Its parent is
:mod:`.recomputing`.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from artel.coordinator.preparation import Prepared, load_prepared
from artel.protocol.errors import ArtelError
from artel.protocol.exchange.aggregate_slice import CACHE_BYTES
from artel.protocol.exchange.aggregation import HELD_BYTES
from artel.protocol.exchange.next_state import Base, Given, next_state, warm_up
from artel.protocol.rlimit import at_most
from artel.protocol.state import read_state, state_bytes, write_state

BESIDE_BYTES = 1 << 30
"""Memory beside vectors: threads, compiled loops, blobs while they are decoded."""


def memory_bytes(run: Prepared) -> int:
    """The most that computing a state takes: two states, the update and one more vector."""
    exchange, count = run.manifest.config.exchange, run.layout.parameters
    vectors = 2 * state_bytes(count, exchange.outer) + 4 * 4 * count
    return vectors + CACHE_BYTES + HELD_BYTES + BESIDE_BYTES


def compute(run: Prepared, order: dict[str, Any]) -> str:
    """The root of the state that an order leads to, whose file is written.

    :raises ArtelError: it cannot be computed
    """
    config = run.manifest.config
    base = Base(read_state(Path(order["base"]), run.layout), order["root"])
    given = [
        Given(node, tokens, [Path(blob) for blob in blobs])
        for node, tokens, blobs in order["given"]
    ]
    state, _ = next_state(
        config.exchange, order["total"], run.layout, base, given, members=order["members"]
    )
    return write_state(Path(order["out"]), state, durable=False)


def main(argv: list[str]) -> int:
    """Carry out orders until there are no more."""
    run = load_prepared(Path(argv[0]))
    with at_most(memory_bytes(run)):
        warm_up(run.manifest.config.exchange)
        for line in sys.stdin.buffer:
            try:
                said = {"root": compute(run, json.loads(line))}
            except ArtelError as error:
                said = {"error": error.message}
            except MemoryError:
                said = {"error": "it takes more memory than a state may take here"}
            print(json.dumps(said), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
