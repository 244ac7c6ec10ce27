"""What the pages list: shares with their history, and entries; and the same as CSV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artel.ledger import entries
from artel.ledger.entries.story import summary
from artel.ledger.fold.history import Did
from artel.ledger.fold.holdings import Holding, shares_facts
from artel.ledger.sync.export import csv_table
from artel.ledger.web.answers import whole
from artel.ledger.web.chart import history
from artel.ledger.web.context import Context
from artel.protocol.errors import UsageError
from artel.protocol.messages import Count
from artel.protocol.schema import Record


class SharesFacts(Record):
    """What :func:`shares_data` answers."""

    run: str
    as_of: Count
    round: int
    total: int
    vested: Count
    pending: Count
    standing: int
    rests_on: str
    shares: list[Holding]
    final: Count
    witnesses: list[str]
    witnesses_wanted: int
    label: str


MAX_ROWS = 200
PAGE_ENTRIES = 50


# --- shares ---------------------------------------------------------------------------------------


def teams(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Accounts that name one team, together, the largest share first; a name is all that they have
    in common, and anybody may give it."""
    found: dict[str, dict[str, Any]] = {}
    for row in rows:
        if name := row["team"]:
            team = found.setdefault(name, {"team": name, "accounts": 0, "share": 0.0, "granted": 0})
            team["accounts"] += 1
            team["share"] += row["share"]
            team["granted"] += row["granted"]
    return sorted(found.values(), key=lambda team: (-team["share"], team["team"]))


def shares_data(page: Context) -> dict[str, Any]:
    """Who owns what, as of a checkpoint. Shares are of vested credit and add up to exactly 1.

    ``pending`` has been granted and can still be disputed; ``awaiting`` is accepted, and will be
    granted when the nodes have agreed on the state. A JSON value, which the API serves as it is.
    """
    return shares_facts(page.state, page.aliases) | page.standing


def shares_page(page: Context, _: Mapping[str, str]) -> dict[str, Any]:
    """Who owns what now, and how that came about."""
    rules = page.state.rules
    return {
        "shares": shares_data(page),
        "rows": MAX_ROWS,
        "statement": rules.ownership.statement if rules is not None else "",
        "history": history(page.history),
    }


def shares_csv(page: Context) -> str:
    """Every account with its numbers, as ``artel ledger shares --csv`` prints them."""
    return csv_table(page.state, page.store.root_at(page.state.size))


# --- entries --------------------------------------------------------------------------------------


def entries_page(page: Context, asked: Mapping[str, str]) -> dict[str, Any]:
    """Entries, newest first: of a kind, of a round, below an index.

    :raises UsageError: when the kind is none, or a number
    """
    kind = asked.get("kind", "")
    round, before = (
        whole(asked[name], name) if name in asked else None for name in ("round", "before")
    )
    if kind and kind not in entries.KINDS:
        raise UsageError(f"there are no entries of kind {kind[:40]!r}", "see /entries")
    found = page.history.chosen(kind=kind, round=round, before=before, limit=PAGE_ENTRIES + 1)
    return {
        "kind": kind,
        "round": round,
        "before": before,
        "kinds": {each: page.state.kinds.get(each, 0) for each in entries.KINDS},
        "rows": [(did, _says(page, did)) for did in found[:PAGE_ENTRIES]],
        "older": len(found) > PAGE_ENTRIES,
    }


def _says(page: Context, did: Did) -> str:
    return summary(page.history.entry(did.index).body, page.history.outcome(did))
