"""Credit as tables: what was done, by what rate, and what has become of it."""

from __future__ import annotations

from collections.abc import Iterable

from artel.ledger.entries.words import plural
from artel.ledger.web import markup
from artel.ledger.web.context import Context
from artel.ledger.web.index import INVALIDATED, PENDING, VESTED, Credited
from artel.ledger.web.markup import Column, entry_link, round_link

UNITS = {
    "compute": ("token trained on", "tokens trained on"),
    "data": ("token of text", "tokens of text"),
    "audit": ("token trained again", "tokens trained again"),
    "witness": ("entry cosigned", "entries cosigned"),
}
STATES = {"pending": PENDING, "vested": VESTED, "invalidated": INVALIDATED}

_COLUMNS: tuple[Column, ...] = (
    *(("for", True), ("round", False), ("kind", True), ("units", False), ("rate", False)),
    *(("credit", False), ("granted by", True), ("now", True)),
)


def credit_table(page: Context, credits: Iterable[Credited], *, owner: bool = True) -> str:
    """One line for each; each number beside the entry that it comes from.

    :param owner: whether to name the account
    """
    columns = ((("account", True),) if owner else ()) + _COLUMNS
    rows = []
    for credit in credits:
        what = entry_link(credit.source)
        if credit.node:
            what += f" {page.node(credit.node)}"
        row = (
            what,
            round_link(credit.round),
            credit.kind,
            f"{credit.units:,}",
            f"{credit.rate:,}",
            f"{credit.amount:,}",
            entry_link(credit.granted),
            state_of(page, credit),
        )
        rows.append((page.account(credit.account), *row) if owner else row)
    return markup.table(columns, rows)


def state_of(page: Context, credit: Credited) -> str:
    """Where the credit is, and by which entry."""
    if credit.status == VESTED:
        return f"vested by {entry_link(credit.settled)}"
    if credit.status == INVALIDATED:
        return f'<span class="warn">taken away</span> by {entry_link(credit.settled)}'
    due = page.index.due(credit)
    disputed = page.index.disputed_by(credit)
    if disputed:
        until = f", until a ruling or state {due:,}" if due is not None else ""
        return f'<span class="warn">disputed</span> by {page.account(disputed)}{until}'
    return f"pending, vests with state {due:,}" if due is not None else "pending"


def units(kind: str, number: int) -> str:
    """``3 entries cosigned``."""
    return plural(number, *UNITS.get(kind, ("unit", "units")))
