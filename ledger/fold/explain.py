"""What an entry did, in words and with the arithmetic: every number, and the entries it comes from.

Each kind of entry tells its own story (:meth:`ledger.entries.body.Body.explain`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from artel.ledger.entries import Witnessed, reasons
from artel.ledger.entries.body import OfWork
from artel.ledger.entries.story import Fact, Story, Trail, earning, fate, summary
from artel.ledger.fold.history import History


@dataclass(frozen=True)
class CreditLine:
    """One credit that the entry granted or settled; ``amount`` = units × rate."""

    kind: str
    account: str
    node: str
    units: int
    rate: int
    amount: int
    work: int
    """Index of the contribution or verdict that it is for."""
    granted: int
    """Index of the entry that granted it."""
    due: int
    """Number of the state with which it vests."""
    status: str
    """pending, vested or invalidated, as of the newest entry."""
    settled: int
    """Index of the entry that vested it or took it away; -1 while it is pending."""

    @classmethod
    def of(cls, trail: Trail) -> CreditLine:
        credit = trail.credit
        return cls(
            kind=credit.kind,
            account=credit.account,
            node=credit.node,
            units=credit.units,
            rate=credit.rate,
            amount=credit.amount,
            work=credit.work,
            granted=trail.granted,
            due=trail.due,
            status=trail.status,
            settled=trail.settled,
        )

    def line(self) -> str:
        """One line of a table."""
        state = f"{self.status} by entry {self.settled}"
        if self.status == "pending":
            state = f"pending until state {self.due}"
        return (
            f"{self.account[:12]:<12}  {self.kind:<7}  {self.units:>9,} × {self.rate:<5,} = "
            f"{self.amount:>12,}  for entry {self.work}, granted by {self.granted}, {state}"
        )


@dataclass(frozen=True)
class Explanation:
    """What the entry at ``index`` did, as of the first ``size`` entries."""

    index: int
    id: str
    kind: str
    status: str
    """recorded, credited or ignored."""
    reason: str
    summary: str
    facts: tuple[Fact, ...]
    credits: tuple[CreditLine, ...]
    size: int

    def lines(self) -> list[str]:
        """For people; the sentences say which entries they rest on."""
        rows = [f"  {credit.line()}" for credit in self.credits]
        facts = [f"  {fact.text}" for fact in self.facts]
        return [f"entry {self.index}, {self.kind}: {self.summary}", *facts, *rows]

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)


def explain(history: History, index: int) -> Explanation:
    """Explain one entry.

    :raises UsageError: when there is no such entry
    """
    story = _story(history, index)
    outcome = story.outcome
    return Explanation(
        index=index,
        id=story.entry.id,
        kind=story.entry.kind,
        status=outcome.status,
        reason=outcome.reason,
        summary=summary(story.entry.body, outcome),
        facts=tuple(_facts(story)),
        credits=tuple(CreditLine.of(trail) for trail in story.credits),
        size=history.size,
    )


def _story(history: History, index: int) -> Story:
    did = history.did(index)
    entry = history.entry(index)
    story = Story(index, entry, history.outcome(did), history.genesis, history.state)
    body = entry.body
    if did.status != "ignored" and did.round >= 0 and not isinstance(body, OfWork):
        story.attempt = history.attempt(did.round, did.attempt)
    story.credits = history.moved_by(index)
    work: int | None = index
    if isinstance(body, OfWork):
        work = did.work if did.work >= 0 else history.log.index_of(body.contribution)
    if work is not None and (trail := history.earned_by(work)) is not None:
        shown = history.did(work)
        trail.attempt = story.attempt or history.attempt(shown.round, shown.attempt)
        trail.events = history.events(work)
        story.work = trail
    if isinstance(body, Witnessed):
        story.root = history.log.root_at(min(body.size, history.size)).hex()
    return story


def _facts(story: Story) -> Iterator[Fact]:
    outcome = story.outcome
    if outcome.status != "ignored":
        yield from story.entry.body.explain(story)
        return
    yield Fact(f"it changes nothing: {reasons.explain(outcome.reason)} ({outcome.reason})")
    if story.work is not None:
        yield earning(story.work)
        yield fate(story, story.work)
