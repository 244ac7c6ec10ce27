"""Audits of an account's work, and by its nodes, for the commands and the pages that list them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from artel.ledger.entries import Contribution, Verdict
from artel.ledger.entries.audits import CONVICTED, REJECT
from artel.ledger.entries.odds import MILLION
from artel.ledger.entries.records import Audit
from artel.ledger.entries.story import rounds_named
from artel.ledger.entries.trail import AttemptTrail
from artel.ledger.entries.words import differs, plural
from artel.ledger.fold.attempts import newest_attempt
from artel.ledger.fold.history import History

NEWEST = 20
"""Verdicts that are looked through for a conviction: it ends all audits of an account."""


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
    """What the audit came to with it: convicted, cleared, unchecked, undecided; "" when others go
    on."""


def repeated(history: History, audit: Audit) -> Iterator[tuple[Contribution, AttemptTrail]]:
    """The contributions that an audit is about, in order, and the attempt of each."""
    for number in range(audit.first, audit.last + 1):
        trail = newest_attempt(history, number)
        body = history.entry(trail.shown[audit.node]).body
        assert isinstance(body, Contribution)
        yield body, trail


def audits_of(history: History, account: str | None, limit: int) -> list[WorkAudit]:
    """Those under way, and then the newest verdicts.

    :param account: whose work or auditor it is; None for everybody's
    :param limit: at most so many verdicts
    """
    state, found = history.state, list[WorkAudit]()
    for audit in state.audits.values():
        auditors = tuple(draw.node for draw in audit.awaited)
        if account in (None, audit.account, *map(state.account_of, auditors)):
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


def conviction(history: History, account: str) -> str:
    """By what a barred account was convicted, for its owner and for whoever asks."""
    found = [item for item in audits_of(history, account, NEWEST) if item.verdict == REJECT]
    own = [item for item in found if history.state.account_of(item.node) == account]
    last = next((item for item in own if item.result == CONVICTED), None)
    if last is None:
        return ""
    work = (last.node, last.first, last.last)
    judges = sum((item.node, item.first, item.last) == work for item in own)
    return (
        f"entry {last.index} convicted this account: {plural(judges, 'node')} of other accounts, "
        f"drawn by lot, repeated its work of {rounds_named(last.first, last.last)} and came to "
        f"other numbers, which differ from what it sent {differs(last.error)}. What was pending "
        "is gone, it earns nothing any more, and it gets no seat."
    )
