"""What the pages list: shares with their history, and entries; and the same as CSV."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from artel.ledger import entries
from artel.ledger.entries.story import summary
from artel.ledger.fold.holdings import holdings
from artel.ledger.sync.export import csv_text, table
from artel.ledger.web.answers import whole
from artel.ledger.web.chart import history
from artel.ledger.web.context import Context
from artel.ledger.web.entry_page import outcome_of
from artel.protocol.errors import UsageError

MAX_ROWS = 200
PAGE_ENTRIES = 50
MAX_CSV_ROWS = 100_000


# --- shares ---------------------------------------------------------------------------------------


def shares_data(page: Context) -> dict[str, Any]:
    """Who owns what, as of a checkpoint. Shares are of vested credit and add up to exactly 1.

    ``pending`` has been granted and can still be disputed; ``awaiting`` is accepted, and will be
    granted when the nodes have agreed on the state. A JSON value, which the API serves as it is.
    """
    fold, seen = page.state, page.standing
    return {
        "run": fold.run,
        "as_of": seen.size,
        "round": fold.round,
        "total": fold.total,
        "vested": fold.total_vested,
        "pending": fold.total_pending,
        "final": seen.final,
        "witnesses": list(seen.witnesses),
        "witnesses_wanted": seen.wanted,
        "label": seen.label,
        "shares": [one.facts() for one in holdings(fold, page.aliases) if one.has_any],
    }


def shares_page(page: Context, _: Mapping[str, str]) -> dict[str, Any]:
    """Who owns what now, and how that came about."""
    rules = page.state.rules
    return {
        "shares": shares_data(page),
        "rows": MAX_ROWS,
        "statement": rules.ownership.statement if rules is not None else "",
        "history": history(page.index.moves(), page.state.round),
    }


def shares_csv(page: Context) -> str:
    """Every account with its numbers, as ``artel ledger export csv`` writes them."""
    return csv_text(table(page.state, page.store.root_at(page.state.size)))


def history_csv(page: Context) -> str:
    """Vested credit whenever it changed, the newest changes when there are very many."""
    held: dict[str, int] = {}
    rows: dict[tuple[int, str], tuple[int, int]] = {}
    for state, account, amount in page.index.moves():
        held[account] = held.get(account, 0) + amount
        before, _ = rows.get((state, account), (0, 0))
        rows[state, account] = before + amount, held[account]
    lines = [
        f"{state},{account},{change},{total}"
        for (state, account), (change, total) in list(rows.items())[-MAX_CSV_ROWS:]
    ]
    return "\n".join(("state,account,change,vested", *lines)) + "\n"


# --- entries --------------------------------------------------------------------------------------


def entries_page(page: Context, asked: Mapping[str, str]) -> dict[str, Any]:
    """Entries, newest first: of a kind, of a round, below an index.

    :raises UsageError: when the kind is none, or a number
    """
    kind, numbers = asked.get("kind", ""), {}
    for name in ("round", "before"):
        numbers[name] = whole(asked[name], name) if name in asked else None
    if kind and kind not in entries.KINDS:
        raise UsageError(f"there are no entries of kind {kind[:40]!r}", "see /entries")
    found = _chosen(page, kind, numbers["round"], numbers["before"])
    return {
        "kind": kind,
        **numbers,
        "kinds": {each: len(page.index.of_kind(each)) for each in entries.KINDS},
        "rows": [(page.index.summary(index), _says(page, index)) for index in found[:PAGE_ENTRIES]],
        "older": len(found) > PAGE_ENTRIES,
    }


def _says(page: Context, index: int) -> str:
    return summary(entries.decode(page.store.leaf(index)).body, outcome_of(page, index))


def _chosen(page: Context, kind: str, round: int | None, before: int | None) -> list[int]:
    """Indices of one page, newest first, and one more when there are older ones."""
    index = page.index
    pool: Sequence[int] = index.of_kind(kind) if kind else range(index.size)
    if round is not None:
        pool = index.of_round(round)
    if before is not None:
        pool = pool[: bisect_left(pool, before)]
    fitting = (place for place in reversed(pool) if kind in ("", index.summary(place).kind))
    return list(islice(fitting, PAGE_ENTRIES + 1))
