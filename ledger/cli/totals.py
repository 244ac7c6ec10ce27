"""``artel ledger status | shares``: how far the ledger is, and who owns what."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from artel.ledger.cli.meant import AccountName
from artel.ledger.cli.opening import At, LedgerOptions, holding
from artel.protocol.commandline import Table, fields
from artel.protocol.errors import EXIT_OK, UsageError

if TYPE_CHECKING:
    from artel.ledger.sync.client import LedgerView


# --- status ---------------------------------------------------------------------------------------


def status(*, ledger: LedgerOptions = LedgerOptions()) -> int:
    """How far the ledger is, and what may be relied on.

    example: artel ledger status --home DIR
    """
    with ledger.opened() as view:
        if not view.log.size:
            return _empty(ledger)
        facts = _facts(view)
        return ledger.show(facts, _status(view, facts))


def _facts(view: LedgerView) -> dict[str, Any]:
    state, log = view.state, view.log
    attempt = state.attempt
    witnesses = view.witnesses()
    trust = view.trust_in_witnesses
    return {
        "name": log.genesis.name,
        "run": state.run,
        "origin": log.origin,
        "term": int(log.origin.rpartition("/")[2]),
        "size": log.size,
        "root": log.root.hex(),
        "as_of": log.size,
        "seen": max(view.seen, log.size),
        "round": state.round,
        "attempt": attempt.attempt if attempt is not None else None,
        "phase": attempt.phase if attempt is not None else "between rounds",
        "state_root": state.states[-1],
        "accounts": len(state.accounts),
        "nodes": len(state.nodes),
        "credit": state.total,
        "vested": state.total_vested,
        "pending": state.total_pending,
        "awaiting": sum(state.awaiting().values()),
        "ignored": state.ignored,
        "final_size": view.final_size,
        "certified_size": view.finality.head,
        "witnesses_needed": view.needed,
        "witnesses_known": trust.known,
        "witnesses": [
            {"account": item.account, "node": item.node, "time": item.time} for item in witnesses
        ],
        "convicted": state.convicted,
        "conflicts": len(view.conflicts),
        "label": trust.label,
        "trusting": view.trust,
    }


def _status(view: LedgerView, facts: dict[str, Any]) -> Iterator[str | Table]:
    from artel.ledger.entries import words as text

    state, size = view.state, view.log.size
    retry = f", attempt {facts['attempt']}" if facts["attempt"] else ""
    closed = f"closed, {text.plural(state.round, 'round')} done" if state.closed else ""
    waiting = f", {facts['awaiting']:,} accepted but not agreed yet" if facts["awaiting"] else ""
    lines = [
        ("run", f"{facts['name']} ({state.run})"),
        ("origin", f"{facts['origin']} (term {facts['term']})"),
        ("size", f"{text.plural(size, 'entry', 'entries')}, as of checkpoint {size:,}"),
        ("root", facts["root"]),
        ("round", closed or f"{state.round}, {facts['phase']}{retry}"),
        ("state", facts["state_root"]),
        (
            "people",
            f"{text.plural(facts['accounts'], 'account')}, {text.plural(facts['nodes'], 'node')}",
        ),
        ("credit", f"{state.total_vested:,} vested, {state.total_pending:,} pending{waiting}"),
        ("ignored", text.counts(state.ignored)),
        ("final", view.finality.label(size)),
        ("", _cosigned(view)),
        *(
            ("trust" if not number else "", line)
            for number, line in enumerate(view.trust_in_witnesses.lines)
        ),
    ]
    yield fields([*lines, *(("ALARM", alarm) for alarm in _alarms(view))])


def _cosigned(view: LedgerView) -> str:
    """Who cosigned, and when last."""
    from artel.ledger.entries import words as text

    witnesses = view.witnesses()
    if not witnesses:
        return ""
    accounts = len({item.account for item in witnesses})
    age = max(0, int(time.time()) - max(item.time for item in witnesses))
    return (
        f"cosigned by {text.plural(accounts, 'account')}, {view.needed} needed, newest {_ago(age)}"
    )


def _ago(seconds: int) -> str:
    for unit, name in ((86400, "day"), (3600, "hour"), (60, "minute")):
        if seconds >= 2 * unit:
            return f"{seconds // unit} {name}s ago"
    return f"{max(0, seconds)} s ago"


def _alarms(view: LedgerView) -> list[str]:
    from artel.ledger.entries import words as text

    alarms = [
        f"key {text.short_key(key)} signed two histories (proven in entry {index})"
        for key, index in view.state.convicted.items()
    ]
    if view.conflicts:
        found = text.plural(len(view.conflicts), "proof")
        alarms.append(f"{found} of a split view is known here: see artel ledger compare --help")
    return alarms


def _empty(ledger: LedgerOptions) -> int:
    from artel.ledger.fold.labels import UNWITNESSED
    from artel.protocol import merkle

    facts = {"size": 0, "root": merkle.EMPTY_ROOT.hex(), "as_of": 0, "label": UNWITNESSED}
    return ledger.show(facts, ["the ledger is still empty"])


# --- shares ---------------------------------------------------------------------------------------


def shares(
    *,
    at: At = None,
    account: AccountName = None,
    as_csv: Annotated[bool, Parameter(name="--csv")] = False,
    ledger: LedgerOptions = LedgerOptions(),
) -> int:
    """Who owns how much, and from what work.

    example: artel ledger shares --json

    :param account: only what this one has, as the newest credit root proves it, without reading the
        whole ledger; with --from
    :param as_csv: print a table for other programs, with all work and credit of each account
    """
    from artel.ledger.fold.holdings import shares_facts
    from artel.ledger.sync.export import csv_table

    if account is not None:
        if at is not None or as_csv:
            raise UsageError("--account goes with neither --at nor --csv", "leave one of them out")
        return _proven_share(account, ledger)

    with ledger.opened() as view:
        state = view.as_of(at)
        size, known = state.size, view.log.size > 0
        if as_csv:
            sys.stdout.write(csv_table(state, view.log.root_at(size)))
            return EXIT_OK
        facts = shares_facts(state, view.aliases) | {
            "checkpoint": not size or bool(view.log.note_at(size)),
            "final": known and 0 < size <= view.final_size,
            "label": view.label if known else "",
        }
        name = view.log.genesis.name if known else ""
        return ledger.show(facts, _shares(view, facts, name))


def _proven_share(account: str, ledger: LedgerOptions) -> int:
    """Print what an account has by the newest credit root that somebody shows."""
    from artel.ledger.entries import RolledBack
    from artel.ledger.sync.client import newest_known_root, require_known_history
    from artel.ledger.sync.share_proof import prove_share

    if ledger.source is None:
        raise UsageError(
            "--account proves a share without the ledger: say who shows it, with --from",
            f"of this home: artel ledger me --account {account[:64]}",
        )
    if not re.fullmatch("[0-9a-f]{64}", account):
        raise UsageError(
            f"{account[:80]!r} is not the whole name of an account",
            "give all 64 hex digits: artel ledger shares --from TARGET lists all accounts",
        )
    with holding(ledger.source, ledger.run) as (holder, run):
        found = prove_share(holder, account, run)
        proven, body = found.root.proven, found.root.body
        require_known_history(holder, proven.checkpoint, proven.run)
        newest = newest_known_root(proven.run, proven.terms[-1].number)
    vested, pending = found.credits or (0, 0)
    facts = {
        "run": proven.run,
        "account": account,
        "known": found.credits is not None,
        "vested": vested,
        "pending": pending,
        "share": vested / (found.total.vested or 1),
        "share_with_pending": (vested + pending) / (sum(found.total) or 1),
        "total_vested": found.total.vested,
        "total_pending": found.total.pending,
        "round": found.root.round,
        "closing": found.root.closing,
        "rolled_back": isinstance(body, RolledBack),
        "entry": proven.index,
        "as_of": proven.checkpoint.size,
        "credit_root": body.credits,
        "signed_by": found.root.nodes,
        "behind": newest if newest > proven.index else None,
        "term": proven.terms[-1].number,
        "sealed_by": proven.sealed_by,
        "cosigning_keys": len(proven.unknown_cosigners),
        "trusting": "" if run else holder.name,
    }
    return ledger.show(facts, _share_lines(facts))


def _share_lines(facts: dict[str, Any]) -> Iterator[str | Table]:
    from artel.ledger.entries import words as text

    cosigned = text.plural(facts["cosigning_keys"], "key")
    of_round = f"the closing of round {facts['round']:,}"
    if facts["rolled_back"]:
        of_round = f"going back to the state of round {facts['round'] + 1:,}"
    alone = facts["closing"] or facts["rolled_back"]
    moment = {0: of_round, 1: "the closing of the run", 2: "the second closing of the run"}
    nodes = text.plural(facts["signed_by"], "node")
    sealed = (
        f"term {facts['term']} begun with the seals of {text.plural(facts['sealed_by'], 'key')}"
    )
    yield fields(
        [
            ("account", facts["account"] + ("" if facts["known"] else ": there is none")),
            ("vested", f"{facts['vested']:,} of {facts['total_vested']:,}"),
            ("share", f"{100 * facts['share']:.6f} %"),
            ("pending", f"{facts['pending']:,} of {facts['total_pending']:,}"),
            ("with pending", f"{100 * facts['share_with_pending']:.6f} %"),
            ("as of", moment[facts["closing"]]),
            ("proven by", f"entry {facts['entry']:,} of {facts['as_of']:,}, its credit root"),
            ("", facts["behind"] and f"behind: entry {facts['behind']:,} names a newer one"),
            ("signed by", f"the coordinator {'alone' if alone else f'and {nodes}'}"),
            ("", f"tree head cosigned by {cosigned}"),
            ("", sealed if facts["term"] else ""),
            ("", "which of these are nodes of the run, the whole ledger shows, not this proof"),
            ("trusting", facts["trusting"] and f"{facts['trusting']} for the run id"),
        ]
    )
    if not facts["known"]:
        yield "an account is named by its first key: give that with --account KEY"
    yield "the history before was not checked: artel ledger audit does that"


def _shares(view: LedgerView, facts: dict[str, Any], name: str) -> Iterator[str | Table]:
    from artel.ledger.entries import words as text

    size, rows = facts["as_of"], facts["shares"]
    where = f"checkpoint {size:,}" if facts["checkpoint"] else f"entry {size:,}"
    yield f"shares of {text.printable(name) or 'the run'} as of {where}, round {facts['round']:,}"
    if not rows:
        yield "nobody has credit yet; it is granted when a round's state is agreed"
        return
    cells = [
        [
            text.short_key(row["account"]) + f" {row['alias']}"[:21],
            f"{row['vested']:,}",
            f"{100 * row['share']:.3f} %",
            f"{row['pending']:,}",
            f"{100 * row['share_with_pending']:.3f} %",
            f"{100 * row['standing'] / (facts['standing'] or 1):.1f} %",
            ", ".join(text.units(n, kind) for kind, n in row["work"].items()) or "-",
            text.counts(row["left_out"]) or "-",
        ]
        for row in rows
    ]
    total = ["total", f"{facts['vested']:,}", "100 %" if facts["vested"] else "0 %"]
    total += [f"{facts['pending']:,}", "100 %", "", "", ""]
    heads = [
        "account",
        "vested",
        "share",
        "pending",
        "with pending",
        "standing",
        "work",
        "left out",
    ]
    yield ""
    yield Table([*cells, total], heads, right=(1, 2, 3, 4, 5))
    if not facts["vested"]:
        yield "\nnothing has vested yet; the share with pending is what it comes to if all vests"
    yield f"\nthe run rests on its {facts['rests_on']} (artel ledger explain 0: trust.founders)"
    yield f"{view.finality.label(size)}"
