"""The page of one account: what it owns, from which entries, and what was left out and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from artel.ledger.entries.fold_state import KINDS_OF_WORK
from artel.ledger.entries.words import short_key
from artel.ledger.fold.history import CREDIT_STATES
from artel.ledger.fold.shares import shares
from artel.ledger.web.answers import whole
from artel.ledger.web.context import Context
from artel.protocol.errors import UsageError

PAGE_ROWS = 100
STATEMENTS = 50
MAX_REASONS = 20
UNITS = {
    "compute": ("token trained on", "tokens trained on"),
    "data": ("token of text", "tokens of text"),
    "audit": ("token trained again", "tokens trained again"),
    "witness": ("entry cosigned", "entries cosigned"),
}


def account_page(page: Context, asked: Mapping[str, str]) -> dict[str, Any]:
    """An account, named by its first key or its present one.

    :param asked: also which ``kind`` and ``state`` of credit is listed, and ``before`` which number
    :raises UsageError: when there is no such account
    """
    name = page.state.keys.get(asked["key"], asked["key"])
    owner = page.state.accounts.get(name)
    if owner is None:
        raise UsageError(
            f"there is no account {short_key(name)}", "see /shares for those there are"
        )
    kind = asked.get("kind", "") if asked.get("kind") in KINDS_OF_WORK else ""
    state = asked.get("state", "") if asked.get("state") in CREDIT_STATES else ""
    before = whole(asked["before"], "before") if "before" in asked else None
    history, more = page.history, PAGE_ROWS + 1
    shown = history.credits_of(name, kind=kind, state=state, before=before, limit=more)
    now, later = (
        next(
            (share.share for share in shares(page.state, with_pending=p) if share.account == name),
            0.0,
        )
        for p in (False, True)
    )
    reasons = history.reasons_of(name)
    return {
        "name": name,
        "owner": owner,
        "team": page.aliases.get(name, ("", ""))[1],
        "share": now,
        "share_later": later,
        "awaiting": page.state.awaiting().get(name, 0),
        "work": list(_work(page, name)),
        "nodes": sorted(peer for peer, account in page.state.nodes.items() if account == name),
        "kind": kind,
        "state": state,
        "states": CREDIT_STATES,
        "credits": shown[:PAGE_ROWS],
        "older": len(shown) > PAGE_ROWS,
        "reasons": reasons[:MAX_REASONS],
        "times": sum(times for _, times in reasons),
        "left_out": history.left_out_of(name, PAGE_ROWS),
        "statements": history.statements_of(name, STATEMENTS + 1),
        "statement_rows": STATEMENTS,
    }


def _work(page: Context, name: str) -> Iterator[tuple[str, int, tuple[str, str], int, list[int]]]:
    """Kind of work, units of it and their name, rate, and credit in each state."""
    sums = page.history.sums_of(name)
    rates = page.state.rules.rates if page.state.rules is not None else {}
    done = page.state.accounts[name].units
    for kind in KINDS_OF_WORK:
        if done.get(kind):
            credit = [sums.get((kind, state), 0) for state in CREDIT_STATES]
            yield kind, done[kind], UNITS[kind], rates.get(kind, 0), credit
