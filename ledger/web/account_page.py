"""The page of one account: what it owns, from which entries, and what was left out and why."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from artel.ledger.entries.fold_state import KINDS_OF_WORK
from artel.ledger.entries.words import short_key
from artel.ledger.fold.history import CREDIT_STATES
from artel.ledger.fold.holdings import holding
from artel.ledger.fold.work_audits import audits_of, conviction
from artel.ledger.web.answers import whole
from artel.ledger.web.context import Context
from artel.protocol.errors import UsageError

PAGE_ROWS = 100
STATEMENTS = 50
MAX_REASONS = 20
AUDITS = 20
"""Verdicts that are listed."""


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
    reasons = history.reasons_of(name)
    return {
        "name": name,
        "owner": owner,
        "held": holding(page.state, name, page.aliases),
        "work": history.done_by(name),
        "nodes": page.state.nodes_of(name),
        "kind": kind,
        "state": state,
        "states": CREDIT_STATES,
        "credits": shown[:PAGE_ROWS],
        "older": len(shown) > PAGE_ROWS,
        "reasons": reasons[:MAX_REASONS],
        "times": sum(times for _, times in reasons),
        "left_out": history.left_out_of(name, PAGE_ROWS),
        "statements": history.statements_of(name, STATEMENTS + 1),
        "conviction": conviction(history, name) if owner.barred else "",
        "audits": audits_of(history, name, AUDITS),
        "statement_rows": STATEMENTS,
    }
