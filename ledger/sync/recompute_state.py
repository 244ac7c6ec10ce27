"""An agreed state computed again: what it is made of is fetched into a home, a child does the rest.

The child is ``python -m artel.ledger.sync.recompute_state HOME N``. Everything comes from the home:
the ledger, the state before number N, and the contributions. It prints one line of JSON, the root
that state N should have, or why that cannot be said.
"""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from artel.protocol.errors import ArtelError, CheckFailed
from artel.protocol.tasks import output_of

if TYPE_CHECKING:
    from artel.ledger.fold.history import History
    from artel.protocol.net.blobs import BlobStore
    from artel.protocol.net.host import Host

CHILD = "artel.ledger.sync.recompute_state"


async def fetch_inputs(
    host: Host, store: BlobStore, history: History, number: int, others: Sequence[str], size: int
) -> None:
    """Have in the store what the agreed state with this number was made of: the one before it, and
    all accepted contributions, whatever single nodes have made of their slices.

    :param others: who is asked for it, beside the members of the round
    :param size: bytes of a state
    :raises Unreachable: nobody gives one of them
    """
    from artel.ledger.entries import Contribution
    from artel.ledger.fold.attempts import newest_attempt
    from artel.protocol.exchange import pseudogradient
    from artel.protocol.net.delivery import Wanted, fetch, fetch_all

    def found() -> tuple[list[str], list[Contribution]]:
        trail = newest_attempt(history, number - 1)
        bodies = (history.entry(trail.shown[node]).body for node in trail.weights)
        return [*trail.steps], [body for body in bodies if isinstance(body, Contribution)]

    members, bodies = await asyncio.to_thread(found)
    holders = [peer for peer in dict.fromkeys([*others, *members]) if peer != host.peer_id]
    base = history.state.states[number - 1]
    await fetch(host, store, Wanted(base, holders, size, "state"))
    store.label("state", base)
    wanted = [Wanted(body.blob, holders, body.size, "contribution") for body in bodies]
    paths = await fetch_all(host, store, wanted)
    if history.genesis.rules.work.topology_of(len(members)) == "gather":
        return
    for body, path in zip(bodies, paths, strict=True):
        data = await asyncio.to_thread(path.read_bytes)
        listed = pseudogradient.open_index(
            data, round=body.round, base=body.base, payload=body.payload
        )
        parts = [Wanted(piece.blob, holders, piece.size, "contribution") for piece in listed]
        await fetch_all(host, store, parts)


async def root_in_child(home: Path, number: int) -> str:
    """The root that the state with this number should have, by what lies in a home.

    :raises CheckFailed: something is missing or does not fit
    :raises ResourceError: the child cannot be started, or died
    """
    what = "the process that computes states"
    output = await output_of(what, sys.executable, "-P", "-m", CHILD, str(home), str(number))
    said = json.loads(output)
    if said["error"]:
        raise CheckFailed(said["error"])
    return str(said["root"])


def main(argv: list[str]) -> int:
    """Compute the state, and print what came of it."""
    from artel.ledger.fold import history
    from artel.ledger.fold.recheck_states import right_root
    from artel.ledger.store.reader import LedgerReader

    home, number = Path(argv[0]), int(argv[1])
    said = {"root": "", "error": ""}
    try:
        with LedgerReader.of(home) as store:
            said["root"] = right_root(history.read(store, processes=False), number, [home])
    except ArtelError as error:
        said["error"] = error.message
    print(json.dumps(said))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
