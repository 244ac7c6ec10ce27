"""What an entry did, in words and with the arithmetic: every number, and the entries it comes from.

Each kind of entry tells its own story (:meth:`ledger.entries.body.Body.explain`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from artel.ledger.entries import Entry, Witnessed, decode, reasons
from artel.ledger.entries.body import OfWork
from artel.ledger.entries.story import Fact, Story, earning, fate, summary
from artel.ledger.entries.trail import Trail
from artel.ledger.fold.attempts import attempt
from artel.ledger.fold.history import Did, History


@dataclass(frozen=True)
class Explanation:
    """What an entry says and did, as of the first ``size`` entries."""

    did: Did
    entry: Entry
    leaf: bytes
    summary: str
    facts: tuple[Fact, ...]
    credits: tuple[Trail, ...]
    """What it granted, made vest or took away."""
    size: int

    @property
    def granted(self) -> list[Trail]:
        """What it granted."""
        return [trail for trail in self.credits if trail.granted == self.did.index]

    def settled(self, status: str) -> list[Trail]:
        """What it made vest (``vested``) or took away (``invalidated``)."""
        index = self.did.index
        if status == "vested":
            return [trail for trail in self.credits if trail.vested_by == index]
        return [trail for trail in self.credits if (trail.settled, trail.status) == (index, status)]

    def lines(self) -> list[str]:
        """For people; the sentences say which entries they rest on."""
        rows = [f"  {trail.line()}" for trail in self.credits]
        facts = [f"  {fact.text}" for fact in self.facts]
        return [f"entry {self.did.index}, {self.did.kind}: {self.summary}", *facts, *rows]

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return {
            "index": self.did.index,
            "id": self.entry.id,
            "kind": self.did.kind,
            "status": self.did.status,
            "reason": self.did.reason,
            "summary": self.summary,
            "facts": [asdict(fact) for fact in self.facts],
            "credits": [trail.facts() for trail in self.credits],
        }


def explain(history: History, index: int) -> Explanation:
    """Explain one entry.

    :raises UsageError: when there is no such entry
    """
    did, leaf = history.did(index), history.log.leaf(index)
    entry = decode(leaf)
    if not did.reason:
        entry.checked(True)  # by the fold
    story = _story(history, did, entry)
    return Explanation(
        did=did,
        entry=entry,
        leaf=leaf,
        summary=summary(entry.body, story.outcome),
        facts=tuple(_facts(story)),
        credits=tuple(story.credits),
        size=history.size,
    )


def _story(history: History, did: Did, entry: Entry) -> Story:
    index, body = did.index, entry.body
    story = Story(index, entry, history.outcome(did), history.genesis, history.state)
    if did.status != "ignored" and did.round >= 0 and not isinstance(body, OfWork):
        story.attempt = attempt(history, did.round, did.attempt)
    story.credits = history.moved_by(index)
    work: int | None = index
    if isinstance(body, OfWork):
        work = did.work if did.work >= 0 else history.log.index_of(body.contribution)
    if work is not None and (trail := history.earned_by(work)) is not None:
        shown = history.did(work)
        trail.attempt = story.attempt or attempt(history, shown.round, shown.attempt)
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
