"""``artel run amend | pause | resume | stop | extend | status``: a run that goes on, and its rules.

Each command but the last signs an entry ``amended`` with the organiser's key and hands it in, to
the coordinator of a home or to anybody who holds the ledger.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli import sending
from artel.ledger.cli.opening import LedgerOptions
from artel.protocol.commandline import Count, File, fields
from artel.protocol.errors import EXIT_OK, ArtelError, UsageError, suggestion

if TYPE_CHECKING:
    from artel.ledger.entries.fold_state import FoldState
    from artel.ledger.sync.client import LedgerView

TRIES = 5
"""How often the next round may open while an amendment of it is on its way."""


def _change(text: str) -> tuple[str, str]:
    """A setting and its value, of SETTING=VALUE.

    :raises UsageError: it cannot be amended, or not to that
    """
    from artel.protocol.amending import AMENDABLE, VALUE, value_of

    name, _, wanted = text.partition("=")
    known = {short: each for each in AMENDABLE for short in (each, each.partition(".")[2])}
    if name not in known:
        raise UsageError(
            f"{name[:40]!r} cannot be changed while a run goes on",
            suggestion(name, AMENDABLE) or f"one of {', '.join(AMENDABLE)}",
        )
    try:
        if not VALUE.fullmatch(wanted):  # people write 1e-4, and no entry holds an exponent
            wanted = f"{float(wanted):.12f}".rstrip("0").rstrip(".")
        value_of(known[name], wanted)
    except ValueError as error:
        raise UsageError(f"{text[:60]!r}: {error}", "give SETTING=VALUE") from None
    return known[name], wanted


FromRound = Annotated[
    Count | None, Parameter(help="the first round that it holds for; otherwise the next one")
]
Why = Annotated[str, Parameter(help="said in the ledger, in one line of at most 200 characters")]
OrganiserKey = Annotated[
    File | None, Parameter(help="the organiser's key file; otherwise HOME/organiser.key")
]


def amend(
    *changes: Annotated[str, Parameter(name="SETTING=VALUE")],
    from_round: FromRound = None,
    why: Why = "",
    key: OrganiserKey = None,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Change rules of a run from a round on; all nodes follow without a restart.

    example: artel run amend optimizer.lr=1e-4 --from-round 40 --home my-home

    :param changes: names as in the run file: optimizer.lr, optimizer.schedule,
        optimizer.final_lr_fraction; rounds.total, min_nodes, max_nodes, quorum, deadline_s,
        grace_s, reveal_s, settle_s; or paused
    """
    if not changes:
        raise UsageError("there is nothing to change", "say what: SETTING=VALUE")
    return _amend(ledger, dict(map(_change, changes)), from_round, why, key)


def pause(
    *,
    from_round: FromRound = None,
    why: Why = "",
    key: OrganiserKey = None,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Open no round any more, until the run is resumed; the one under way is finished.

    example: artel run pause --home my-home
    """
    return _amend(ledger, {"paused": "true"}, from_round, why, key)


def resume(
    *, why: Why = "", key: OrganiserKey = None, ledger: LedgerOptions = LedgerOptions()
) -> int:
    """Open rounds again.

    example: artel run resume --home my-home
    """
    return _amend(ledger, {"paused": "false"}, None, why, key)


def stop(
    *,
    from_round: FromRound = None,
    why: Why = "",
    key: OrganiserKey = None,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """End the run before its last round: what is pending vests, and its nodes leave.

    example: artel run stop --home my-home
    """
    return _amend(ledger, {"rounds.total": "", "paused": "false"}, from_round, why, key)


def extend(
    total: Annotated[Count, Parameter(metavar="TOTAL")],
    /,
    *,
    why: Why = "",
    key: OrganiserKey = None,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Let the run have so many rounds in all; after its last one nodes leave, and it is closed.

    example: artel run extend 200 --home my-home

    :param total: rounds of the whole run
    """
    return _amend(ledger, dict([_change(f"rounds.total={total}")]), None, why, key)


def _amend(
    ledger: LedgerOptions, changes: dict[str, str], round: int | None, why: str, key: Any
) -> int:
    from artel.ledger.entries import reasons

    for left in reversed(range(TRIES)):
        try:
            return _say(ledger, dict(changes), round, why, key)
        except ArtelError as error:
            # Meanwhile the next round has opened, of which this was to be the rule.
            late = round is None and getattr(error, "code", "") == reasons.OUT_OF_ORDER
            if not (late and left):
                raise
    raise AssertionError


def _say(
    ledger: LedgerOptions, changes: dict[str, str], round: int | None, why: str, key: Any
) -> int:
    from artel.ledger import entries

    with ledger.opened() as view:
        organiser, state = sending.organiser(ledger, key), view.state
        first, rules = entries.earliest(state), state.founded
        # Where nothing holds it up, the round that comes next will be open when this arrives.
        waits = rules.paused or state.halted or state.round >= rules.total
        number = round if round is not None else first if waits else state.round + 1
        if number < first:
            raise UsageError(
                f"round {number:,} was opened already, and what it is made of is settled",
                f"leave --from-round out, or give {first:,} or a later one",
            )
        if changes.get("rounds.total") == "":
            changes["rounds.total"] = str(number)
        envelope = entries.amended(
            organiser,
            state.run,
            number=len(state.amendments) + 1,
            round=number,
            changes=changes,
            why=why,
        )
        said = ", ".join(f"{name} = {text}" for name, text in sorted(changes.items()))
        sending.send(ledger, view, f"from round {number:,} on: {said}", envelope)
    return EXIT_OK


def status(*, ledger: LedgerOptions = LedgerOptions()) -> int:
    """How far a run is, which of its rules were changed, and by which entries.

    example: artel run status --home my-home
    """
    from artel.ledger.entries.words import plural

    with ledger.opened() as view:
        facts = _facts(view)
    said = [
        ("run", facts["name"] or facts["run"]),
        ("round", f"{facts['round']:,} of {facts['total']:,}, {facts['phase']}"),
        *((f"entry {one['index']:,}", _line(one)) for one in facts["amendments"]),
    ]
    none = [] if facts["amendments"] else [f"{plural(0, 'amendment')}: all is as in the manifest"]
    return ledger.show(facts, [fields(said), *none])


def _facts(view: LedgerView) -> dict[str, Any]:
    state = view.state
    return {
        "run": state.run,
        "name": view.history.genesis.name,
        "round": state.round,
        "total": state.founded.total,
        "phase": _phase(state),
        "changes": state.changes_at(state.round),
        "amendments": [
            {"index": one.index, "round": one.round, "changes": one.changes}
            for one in state.amendments
        ],
    }


def _phase(state: FoldState) -> str:
    """Where the run stands, in a word or two."""
    if state.closed:
        return "closed"
    if state.round >= state.founded.total:
        return "finished"
    if state.stuck:
        return "stopped, since training diverged again and again; amend its rules"
    if state.attempt is not None:
        return state.attempt.phase
    return "paused" if state.founded.paused else "between two rounds"


def _line(one: Mapping[str, Any]) -> str:
    said = ", ".join(f"{name} = {text}" for name, text in sorted(one["changes"].items()))
    return f"from round {one['round']:,} on: {said}"
