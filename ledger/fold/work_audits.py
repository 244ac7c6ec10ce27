"""Audits of an account's work, and by its nodes, for the commands and the pages that list them."""

from __future__ import annotations

from dataclasses import dataclass

from artel.ledger.entries import Contribution, Verdict
from artel.ledger.entries.audits import MILLION
from artel.ledger.fold.history import History


@dataclass(frozen=True)
class WorkAudit:
    """A verdict on the work of ``node`` in rounds ``first`` to ``last``, or (without an index) an
    audit under way."""

    node: str
    first: int
    last: int
    auditors: tuple[str, ...]
    """Of a verdict the one that gave it, else those who still have to."""
    index: int | None = None
    verdict: str = ""
    error: float = 0.0
    """Relative."""
    result: str = ""
    """What the audit came to with it: convicted, cleared, undecided; "" when others go on."""


def audits_of(history: History, account: str, limit: int) -> list[WorkAudit]:
    """Those under way, and then the newest verdicts.

    :param limit: at most so many verdicts
    """
    state, found = history.state, list[WorkAudit]()
    for audit in state.audits.values():
        auditors = tuple(draw.node for draw in audit.awaited)
        if account == audit.account or account in map(state.account_of, auditors):
            found.append(WorkAudit(audit.node, audit.first, audit.last, auditors))
    for did in history.chosen(kind=Verdict.KIND, account=account, limit=limit):
        body = history.entry(did.index).body
        if did.reason or not isinstance(body, Verdict):
            continue
        work = history.log.index_of(body.contribution)
        shown = history.entry(work).body if work is not None else None
        node = shown.node if isinstance(shown, Contribution) else ""
        first, last = did.notes["rounds"]
        said = (body.verdict, body.error / MILLION, did.notes["result"])
        found.append(WorkAudit(node, first, last, (body.node,), did.index, *said))
    return found
