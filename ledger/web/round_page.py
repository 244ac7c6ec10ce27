"""The page of one round: who took part, who counts and with what weight, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice
from typing import Any

from artel.ledger.entries.story import AttemptTrail
from artel.ledger.entries.words import signers
from artel.ledger.web.answers import whole
from artel.ledger.web.context import Context
from artel.protocol.errors import UsageError

MAX_ENTRIES = 400
"""Entries of a round that its page reads; a round that is tried again and again has more."""
MAX_ATTEMPTS = 8


def round_page(page: Context, asked: Mapping[str, str]) -> dict[str, Any]:
    """A round, newest attempt first.

    :raises UsageError: when it has not begun
    """
    number = whole(asked["number"], "a round")
    history, newest = page.history, page.newest_round
    found = history.chosen(round=number, limit=MAX_ENTRIES)[::-1]
    if not found and number != newest:
        raise UsageError(f"round {number:,} has not begun", f"the newest one is round {newest:,}")
    attempts = list(islice(history.attempts(found), MAX_ATTEMPTS))
    last = attempts[0] if attempts else AttemptTrail(number, 0)
    agreed, state = last.agreed if last.agreed is not None else (None, None)
    granted = history.granted_by(agreed) if agreed is not None else []
    return {
        "number": number,
        "attempts": attempts,
        "last": last,
        "agreed": agreed,
        "state": state,
        "signers": signers(history.counted(agreed), page.state) if agreed is not None else {},
        "granted": granted,
        "credits": {t.credit.work: t for t in granted if t.credit.kind == "compute"},
        "works": {i: history.entry(i).body for each in attempts for i in each.shown.values()},
        "rate": page.state.rules.rates["compute"] if page.state.rules is not None else 0,
        "found": found,
        "older": history.count(round=number) - len(found),
    }
