"""Which entries gave rise to what one entry did, and what became of it later.

One replay, for :mod:`ledger.fold.explain`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Protocol

from artel.ledger import entries
from artel.ledger.entries import Entry, Genesis, decode
from artel.ledger.entries.body import OfWork
from artel.ledger.entries.state import FoldState, Outcome
from artel.ledger.entries.story import AttemptTrail, Story, Trail
from artel.ledger.fold.replay import check_signatures
from artel.ledger.fold.shares import apply
from artel.protocol.errors import UsageError
from artel.protocol.merkle import CompactRange, leaf_hash


class Leaves(Protocol):
    """Where a ledger is read from."""

    @property
    def size(self) -> int: ...

    def leaf(self, index: int) -> bytes: ...

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]: ...


def follow(log: Leaves, index: int) -> Story:
    """Replay the ledger, signatures included, with an eye on the entry at ``index``.

    :raises UsageError: when there is no such entry
    """
    if not 0 <= index < log.size:
        raise UsageError(f"there is no entry {index}; the ledger has {log.size}")
    genesis = decode(log.leaf(0)).body
    assert isinstance(genesis, Genesis)
    story = Story(index, decode(log.leaf(index)), Outcome("recorded"), genesis, FoldState())
    _Follower(story).run(log)
    return story


class _Follower:
    """Watches each entry before and after the fold applies it."""

    def __init__(self, story: Story) -> None:
        self.story, self.state = story, story.state
        body = story.entry.body
        self.wanted = body.contribution if isinstance(body, OfWork) else story.entry.id
        self.trails: dict[str, Trail] = {}
        self.bound: dict[str, int] = {}
        self.attempt: AttemptTrail | None = None

    def run(self, log: Leaves) -> None:
        body, story = self.story.entry.body, self.story
        if isinstance(body, entries.Witnessed):
            tree = CompactRange()
            for leaf in log.leaves(0, min(body.size, log.size)):
                tree.append(leaf_hash(leaf))
            story.root = tree.root().hex()
        for index, entry in enumerate(check_signatures(map(decode, log.leaves(0, log.size)))):
            attempt = self.state.attempt
            phase = attempt.phase if attempt is not None else ""
            outcome = apply(self.state, entry)
            if index == story.index:
                story.outcome = outcome
            if outcome.status != "ignored":
                self._round(index, entry, outcome, phase)
                self._work(index, entry, outcome)
        story.work = self.trails.get(self.wanted)
        for trail in self.trails.values():
            item = self.state.pending.get(trail.credit.source)
            if item is not None and item.disputed_by:
                trail.lapses = item.lapses

    def _round(self, index: int, entry: Entry, outcome: Outcome, phase: str) -> None:
        """Keep up with the round under way; ``phase`` is the one that it was in before."""
        body, trail, now = entry.body, self.attempt, self.state.attempt
        again = isinstance(body, entries.RoundClosed) and phase == "applying"
        replaced = isinstance(body, entries.RoundOpened) and phase not in ("", "failed")
        if trail is not None and (replaced or again):
            trail.void = index
        if isinstance(body, entries.RoundOpened):
            assert now is not None
            bound = {peer: self.bound[peer] for peer in body.members}
            tails = outcome.notes.get("tails", {})
            trail = AttemptTrail(
                body.round, body.attempt, index, now.accounts, bound, now.steps, tails
            )
            self.attempt = trail
        elif isinstance(body, entries.Node):
            self.bound[body.node] = index
        if trail is None:
            return
        match body:
            case entries.RoundCommitted():
                trail.committed = index
            case entries.Contribution():
                trail.contributed[body.node] = index
            case entries.RoundClosed() if not again:
                trail.closed, trail.accepted = index, len(body.accepted)
                trail.left_out = {item.node: item.reason for item in body.rejected}
            case entries.StateAgreed():
                trail.agreed, trail.agreeing = index, outcome.notes["agreeing"]
                trail.wrong = body.wrong
            case entries.Aggregate():
                trail.slices[body.slice] = (index, body.node, body.blob, body.size)
            case entries.SliceWrong():
                trail.accused.setdefault(body.slice, {})[body.node] = (index, body.blob)
        in_round = entry.body.place(self.state) != (-1, -1) and not isinstance(body, OfWork)
        if index == self.story.index and in_round:
            self.story.attempt = trail

    def _work(self, index: int, entry: Entry, outcome: Outcome) -> None:
        if isinstance(entry.body, OfWork) and entry.body.contribution in self.trails:
            self.trails[entry.body.contribution].events.append((index, entry.body.event()))
        for credit in outcome.granted:
            item = self.state.pending.get(credit.source)
            due = item.due if item is not None else self.state.round
            attempt = self.attempt if credit.kind == "compute" else None
            self.trails[credit.source] = Trail(credit, index, due, attempt=attempt)
        for status, gone in (("vested", outcome.vested), ("taken away", outcome.invalidated)):
            for credit in gone:
                trail = self.trails[credit.source]
                trail.settled, trail.status = index, status
        if index == self.story.index:
            touched = (*outcome.granted, *outcome.vested, *outcome.invalidated)
            sources = dict.fromkeys(credit.source for credit in touched)
            self.story.credits = [self.trails[source] for source in sources]
