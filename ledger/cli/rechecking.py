"""``artel ledger recheck | accuse``: is what nodes agreed on right? What single nodes combined for
all in a round, and the state that a round led to."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

from artel.ledger.cli import sending
from artel.ledger.cli.opening import LedgerOptions
from artel.protocol import options
from artel.protocol.commandline import value, values
from artel.protocol.errors import EXIT_FAILED, EXIT_OK, EXIT_RESOURCE, UsageError
from artel.protocol.paths import expanded

Also = Annotated[
    tuple[Path, ...],
    values(
        options.path,
        "DIR",
        help="further homes whose content stores are read; may be given several times",
    ),
]


def _homes(ledger: LedgerOptions, also: tuple[Path, ...]) -> list[Path]:
    return [ledger.folder, *map(expanded, also)]


def recheck(
    number: Annotated[int, value(options.whole(0, 10**15), "ROUND")],
    /,
    *,
    also: Also = (),
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Recompute the slices of a sharded round from what its nodes published.

    The blobs of a round lie in the homes of its nodes for some rounds. What one of them lacks
    another may have: name further homes with --also. Exit code 1 when a slice is wrong, 4 when
    none could be checked.

    example: artel ledger recheck 17 --home node-1 --also node-2

    :param number: of the round, from 0
    """
    from artel.ledger.entries import words as text
    from artel.ledger.fold import recheck

    found: list[recheck.Checked] = []
    with ledger.opened() as view:
        size = view.log.size
        if not size:
            raise UsageError("the ledger is still empty")
        for checked in recheck.recheck(view.history, number, _homes(ledger, also)):
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


def accuse(
    number: Annotated[int, value(options.whole(1, 10**15), "STATE")],
    /,
    *,
    also: Also = (),
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Call an agreed state wrong, when it does not come out of what was contributed.

    It is computed from the state before it and the blobs that lie in the homes, and what comes out
    is said in the name of the home's node. A running node does so by itself for its own rounds. A
    jury drawn by lot decides; a false accusation costs the account its standing.

    example: artel ledger accuse 17 --home node-1 --also node-2

    :param number: of the state, from 1
    """
    from artel.ledger import entries
    from artel.ledger.entries.anchors import anchor_of, oldest_anchor
    from artel.ledger.fold.recheck_states import right_root
    from artel.protocol import identity

    node = identity.load(ledger.folder / "node.key")
    with ledger.opened() as view:
        fold, anchor = view.state, anchor_of(view.state, number)
        if anchor is None or number == oldest_anchor(fold):
            first = oldest_anchor(fold) + 1
            raise UsageError(
                f"state {number:,} cannot be called wrong",
                f"states {first:,} to {fold.round:,} can, the newest of this ledger",
            )
        root = right_root(view.history, number, _homes(ledger, also))
        if root == fold.states[number]:
            facts = {"state": number, "root": root, "right": True}
            return ledger.show(facts, [f"state {number:,} is right; nothing was sent"])
        envelope = entries.state_wrong(
            node,
            fold.run,
            state=number,
            attempt=anchor.attempt,
            recorded=fold.states[number],
            root=root,
        )
        saying = f"node {node.peer_id} says that state {number:,} is {root}, not what is recorded"
        sending.send(ledger, view, saying, envelope)
    return EXIT_OK
