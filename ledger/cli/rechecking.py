"""``artel ledger recheck``: was what single nodes combined for all in a round right?"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from artel.ledger.cli.opening import DEFAULT_HOME, SourceOptions
from artel.protocol import options
from artel.protocol.commandline import value, values
from artel.protocol.errors import EXIT_FAILED, EXIT_OK, EXIT_RESOURCE, UsageError
from artel.protocol.paths import expanded


def recheck(
    number: Annotated[int, value(options.whole(0, 10**15), "ROUND")],
    /,
    *,
    home: Annotated[tuple[Path, ...], values(options.path, "DIR")] = (DEFAULT_HOME,),
    ledger: SourceOptions = SourceOptions(),
) -> int:
    """Recompute the slices of a sharded round from what its nodes published.

    The blobs of a round lie in the homes of its nodes for some rounds. What one of them lacks
    another may have: name as many homes as there are. Exit code 1 when a slice is wrong, 4 when
    none could be checked.

    example: artel ledger recheck 17 --home node-1 --home node-2

    :param number: of the round, from 0
    :param home: of a node or a coordinator whose content store is read; may be given several times,
        and the ledger is read from the first
    """
    from artel.ledger.entries import words as text
    from artel.ledger.fold import recheck

    homes = [expanded(folder) for folder in home]
    found: list[recheck.Checked] = []
    with ledger.opened_or(homes[0]) as view:
        size = view.log.size
        if not size:
            raise UsageError("the ledger is still empty")
        for checked in recheck.recheck(view.history, number, homes):
            found.append(checked)
            if not ledger.as_json:
                print(checked.line(), flush=True)
    tally = {
        status: sum(item.status == status for item in found)
        for status in (recheck.RIGHT, recheck.WRONG, recheck.UNRECORDED, recheck.UNCHECKED)
    }
    holds = all(item.holds for item in found)
    facts: dict[str, Any] = {"round": number, "as_of": size, "holds": holds}
    facts |= {"slices": [asdict(item) | {"holds": item.holds} for item in found]}
    counts = ", ".join(f"{count} {status}" for status, count in tally.items() if count)
    ledger.show(facts, [f"round {number}: {text.plural(len(found), 'slice')}: {counts}"])
    if not holds:
        return EXIT_FAILED
    return EXIT_RESOURCE if tally[recheck.UNCHECKED] == len(found) else EXIT_OK
