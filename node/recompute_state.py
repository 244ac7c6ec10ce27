"""The child that computes an agreed state again: ``python -m artel.node.recompute_state HOME N``.

Everything comes from the home: the ledger, the state before number N, and the contributions. It
prints one line of JSON, the root that state N should have, or why that cannot be said.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from pathlib import Path

from artel.protocol import tether
from artel.protocol.errors import ArtelError, CheckFailed, ResourceError

CHILD = "artel.node.recompute_state"


async def root_in_child(home: Path, number: int) -> str:
    """The root that the state with this number should have, by what lies in a home.

    :raises CheckFailed: something is missing or does not fit
    :raises ResourceError: the child cannot be started, or died
    """
    try:
        child = await asyncio.create_subprocess_exec(
            *tether.tied(sys.executable, "-P", "-m", CHILD, str(home), str(number)),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            env=tether.environment(),
            start_new_session=True,
        )
    except OSError as error:
        raise ResourceError(
            f"cannot start the process that computes states: {error.strerror or error}",
            "free some memory or processes",
        ) from None
    try:
        output, _ = await child.communicate()
    except asyncio.CancelledError:
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()
        raise
    if child.returncode:
        raise ResourceError(f"the process that computes states {tether.ending(child.returncode)}")
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
