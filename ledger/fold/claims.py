"""What a node says that it has shown in rounds (``claims.jsonl``), and what became of it.

A contribution is claimed (the node showed it), in the ledger, accepted (the round was closed with
it), agreed (a new state was made of it: credit is granted and pending), and then vested or taken
away. Each claim stands at one of these steps, or was left out for a reason that can be named.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from artel.ledger.entries import reasons
from artel.ledger.entries.credit import proven
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.story import rounds_named
from artel.ledger.fold.history import CREDIT_STATES, AccountWork

PENDING, VESTED, INVALIDATED = CREDIT_STATES
MISSING, RECORDED, AWAITING, REJECTED, VOID = "missing", "recorded", "awaiting", "rejected", "void"
NOT_YET = "this copy of the ledger does not reach so far yet"
NEVER = "the coordinator took it and never recorded it: keep claims.jsonl and ask the organiser"
STATUSES = (MISSING, RECORDED, AWAITING, PENDING, VESTED, REJECTED, VOID, INVALIDATED)
CLAIMS_FILE = "claims.jsonl"
MAX_LINE_BYTES = 1024
MAX_READ_BYTES = 64 << 20
"""Only the newest claims of a larger file are read: about 200,000."""


@dataclass(frozen=True)
class Claim:
    """A contribution that was revealed; ``time`` in seconds since 1970."""

    round: int
    attempt: int
    entry: str
    """Id of its ledger entry."""
    blob: str
    tokens: int
    time: int


def read(home: Path) -> list[Claim]:
    """The claims of a home, oldest first; what is no claim (a torn last line) is left out."""
    try:
        with (home / CLAIMS_FILE).open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_READ_BYTES))
            lines = file.read(MAX_READ_BYTES).split(b"\n")
    except FileNotFoundError:
        return []
    return [claim for line in lines if (claim := _claim(line)) is not None]


def _claim(line: bytes) -> Claim | None:
    if not 0 < len(line) <= MAX_LINE_BYTES:
        return None
    try:
        claim = Claim(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = (claim.round, claim.attempt, claim.tokens, claim.time)
    fits = all(type(n) is int and n >= 0 for n in numbers)
    return claim if fits and isinstance(claim.entry, str) and isinstance(claim.blob, str) else None


# --- what became of them --------------------------------------------------------------------------


@dataclass(frozen=True)
class Stand:
    """Where one claim stands; ``index`` is its entry's, ``amount`` its credit, if it has any."""

    claim: Claim
    status: str
    index: int | None = None
    amount: int = 0
    reason: str = ""
    """A code, when it was left out."""
    detail: str = ""
    """A sentence: why, or what is still to happen."""


def stands(claims: Iterable[Claim], node: str, state: FoldState, work: AccountWork) -> list[Stand]:
    """Where each claim of ``node`` stands by this state, in the order of the claims.

    :param work: of the account that the node belongs to
    """
    return [_stand(claim, node, state, work) for claim in claims]


def _stand(claim: Claim, node: str, state: FoldState, work: AccountWork) -> Stand:
    shown = work.shown.get(claim.entry)
    index = shown.index if shown is not None else None
    earned = work.earned.get(claim.entry)
    left_out = work.left_out.get((claim.round, claim.attempt, node))
    if earned is not None:
        amount, why = earned.credit.amount, left_out if earned.status == INVALIDATED else ""
        detail = reasons.explain(why) if why else _outlook(claim, state)
        return Stand(claim, earned.status, index, amount, why or "", detail)
    if left_out is not None:
        return Stand(claim, REJECTED, index, 0, left_out, reasons.explain(left_out))
    attempt = state.attempt
    current = attempt is not None and (attempt.round, attempt.attempt) == (
        claim.round,
        claim.attempt,
    )
    if shown is None:
        return Stand(claim, MISSING, None, 0, "", _missing(claim, state, current))
    if shown.reason:
        return Stand(claim, REJECTED, index, 0, shown.reason, reasons.explain(shown.reason))
    if current and attempt is not None and attempt.phase != "failed":
        if node in attempt.accepted:
            detail = f"accepted; credit is granted when state {claim.round + 1} is agreed"
            return Stand(claim, AWAITING, index, 0, "", detail)
        return Stand(claim, RECORDED, index, 0, "", "the round is not closed yet")
    owner = state.accounts.get(state.account_of(node))
    if owner is not None and owner.barred:
        return Stand(claim, REJECTED, index, 0, reasons.BARRED, reasons.explain(reasons.BARRED))
    return Stand(claim, VOID, index, 0, "", "the attempt failed and was repeated")


def _outlook(claim: Claim, state: FoldState) -> str:
    item = state.pending.get(claim.entry)
    if item is None:
        return ""
    if item.disputed_by:
        return f"disputed; frozen until a ruling, or until state {item.lapses} is agreed"
    for audit in state.audits.values():
        if audit.account == item.credit.account and audit.first <= claim.round:
            return f"audited now ({rounds_named(audit.first, audit.last)}); vests when that is over"
    if state.closed:
        return "vests when the run's accounts are closed"
    if not proven(state, item):
        return "vests when auditors of two other accounts have found this or later work right"
    return f"vests when state {max(item.due, state.round + 1)} is agreed"


def _missing(claim: Claim, state: FoldState, current: bool) -> str:
    newest = state.attempt.round if state.attempt is not None else state.round - 1
    if current or claim.round > newest:
        return NOT_YET
    return NEVER


@dataclass(frozen=True)
class Sum:
    """Claims at one step together."""

    count: int
    tokens: int
    amount: int


def sums(found: Iterable[Stand]) -> dict[str, Sum]:
    """All claims by status; statuses that do not occur are zeros."""
    tally = {status: Sum(0, 0, 0) for status in STATUSES}
    for stand in found:
        old = tally[stand.status]
        tokens = old.tokens + stand.claim.tokens
        tally[stand.status] = Sum(old.count + 1, tokens, old.amount + stand.amount)
    return tally


def rejections(found: Iterable[Stand]) -> dict[str, int]:
    """How often each reason occurred."""
    return dict(Counter(stand.reason for stand in found if stand.reason))
