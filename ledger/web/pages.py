"""The pages of one account, one entry and one round: what each shows, for its template."""

from __future__ import annotations

import json
from collections.abc import Mapping
from itertools import islice
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import Genesis
from artel.ledger.entries.documents import document_of
from artel.ledger.entries.records import KINDS_OF_WORK
from artel.ledger.entries.trail import AttemptTrail
from artel.ledger.entries.words import short_key, signers
from artel.ledger.fold.attempts import attempts as attempts_of
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import CREDIT_STATES
from artel.ledger.fold.holdings import holding
from artel.ledger.fold.work_audits import audits_of, conviction
from artel.ledger.tlog.tiles import ENTRIES, TILE_WIDTH, tile_at
from artel.ledger.web.answers import whole
from artel.ledger.web.context import Context
from artel.protocol.errors import UsageError
from artel.protocol.merkle import leaf_hash

PAGE_ROWS = 100
STATEMENTS = 50
MAX_REASONS = 20
AUDITS = 20
"""Verdicts that are listed."""
MAX_ENTRIES = 400
"""Entries of a round that its page reads; a round that is tried again and again has more."""
MAX_ATTEMPTS = 8


# --- an account: what it owns, from which entries, and what was left out and why ------------------


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


# --- an entry: what it says, who signed it, what it did, and how to check all that ----------------


def entry_page(page: Context, index: int) -> dict[str, Any]:
    """The entry at ``index``.

    :raises UsageError: when there is none
    """
    history, found = page.history, explain(page.history, index)
    about, entry, leaf = found.did, found.entry, found.leaf
    earned = history.earned_by(index) if about.kind == "contribution" else None
    return {
        "entry": entry,
        "about": about,
        "says": found.summary,
        "granted": found.granted,
        "moved": [
            ("It makes vest", found.settled("vested")),
            ("It takes away", found.settled("invalidated")),
        ],
        "earned": [earned] if earned is not None else [],
        "facts": found.facts if about.status != "ignored" else (),
        "fields": _fields(entry.body),
        "json": _json,
        "signers": signers(entry, page.state),
        "leaf": {"hash": leaf_hash(leaf).hex(), "size": len(leaf)},
        "document": document_of(leaf),
        "place": index % TILE_WIDTH,
        "bundle": tile_at(ENTRIES, index // TILE_WIDTH, history.size).path,
        "tile": tile_at(0, index // TILE_WIDTH, history.size).path,
    }


def _fields(body: Genesis | entries.Body) -> dict[str, Any]:
    """What the body says, by name, without what other parts of the page show."""
    if isinstance(body, Genesis):
        return {"manifest": body.manifest}
    fields = {k: v for k, v in body.to_dict().items() if k not in ("kind", "run", "signatures")}
    if isinstance(body, entries.RoundOpened):
        fields["members"] = list(zip(body.members, fields.pop("steps"), strict=True))
    return fields


def _json(value: object) -> list[str]:
    # Line by line: a line break is the one character without print that is meant.
    return json.dumps(value, indent=2, ensure_ascii=True, sort_keys=True).split("\n")


# --- a round: who took part, who counts and with what weight, and what came of it -----------------


def round_page(page: Context, asked: Mapping[str, str]) -> dict[str, Any]:
    """A round, newest attempt first.

    :raises UsageError: when it has not begun
    """
    number = whole(asked["number"], "a round")
    history, newest = page.history, page.newest_round
    found = history.chosen(round=number, limit=MAX_ENTRIES)[::-1]
    if not found and number != newest:
        raise UsageError(f"round {number:,} has not begun", f"the newest one is round {newest:,}")
    attempts = list(islice(attempts_of(history, found), MAX_ATTEMPTS))
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
