"""``artel ledger recheck``: was what single nodes combined for all in a round right?"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from pathlib import Path

from artel.ledger.cli import DEFAULT_HOME, Add, add_source, count, print_json
from artel.ledger.cli.opening import opened
from artel.protocol.errors import EXIT_FAILED, EXIT_OK, EXIT_RESOURCE, UsageError
from artel.protocol.paths import expanded


def register(add: Add) -> None:
    """Add the command."""
    command = add(
        "recheck",
        _recheck,
        "recompute the slices of a sharded round from what its nodes published",
        "17 --home node-1 --home node-2\n\nThe blobs of a round lie in the homes of its nodes for "
        "some rounds. What one of them lacks\nanother may have: name as many homes as there are. "
        "Exit code 1 when a slice is wrong, 4 when\nnone could be checked.",
        target=False,
    )
    command.add_argument("round", type=count, metavar="ROUND", help="number of the round, from 0")
    command.add_argument(
        "--home",
        dest="homes",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="home of a node or a coordinator whose content store is read; may be given several "
        f"times, and the ledger is read from the first (default: {DEFAULT_HOME})",
    )
    add_source(command)


def _recheck(arguments: argparse.Namespace) -> int:
    from artel.ledger.entries import words as text
    from artel.ledger.fold import recheck

    homes = [expanded(home) for home in arguments.homes or [DEFAULT_HOME]]
    arguments.home = homes[0]
    round = recheck.Round(arguments.round)
    with opened(arguments) as view:
        rules = view.replay(observe=round.observe).rules
        size = view.log.size
        leaf = view.log.leaf(0) if size else b""
    if rules is None:
        raise UsageError("the ledger is still empty")
    found: list[recheck.Checked] = []
    for checked in recheck.recheck(leaf, rules, round, homes):
        found.append(checked)
        if not arguments.json:
            print(checked.line(), flush=True)
    tally = {
        status: sum(item.status == status for item in found)
        for status in (recheck.RIGHT, recheck.WRONG, recheck.UNRECORDED, recheck.UNCHECKED)
    }
    holds = all(item.holds for item in found)
    if arguments.json:
        facts = {"round": round.number, "as_of": size, "holds": holds}
        print_json(facts | {"slices": [asdict(item) | {"holds": item.holds} for item in found]})
    else:
        counts = ", ".join(f"{number} {status}" for status, number in tally.items() if number)
        print(f"round {round.number}: {text.plural(len(found), 'slice')}: {counts}")
    if not holds:
        return EXIT_FAILED
    return EXIT_RESOURCE if tally[recheck.UNCHECKED] == len(found) else EXIT_OK
