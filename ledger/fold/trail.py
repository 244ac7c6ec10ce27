"""Which entries gave rise to what one entry did, and what became of it later.

One replay, for :mod:`ledger.fold.explain`. Only what is pending, the round under way and what
concerns the entry in question is remembered on the way, so the memory does not grow with the
ledger.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Protocol

from artel.ledger import entries
from artel.ledger.entries import Entry, Genesis, decode
from artel.ledger.fold.accounts import Account, Attempt, Credit, FoldState, Outcome, Pending, Slice
from artel.ledger.fold.replay import check_signatures
from artel.ledger.fold.rules_common import key_of
from artel.ledger.fold.shares import apply
from artel.protocol.errors import UsageError
from artel.protocol.merkle import CompactRange, leaf_hash


class Leaves(Protocol):
    """Where a ledger is read from."""

    @property
    def size(self) -> int: ...

    def leaf(self, index: int) -> bytes: ...

    def leaves(self, start: int = 0, stop: int | None = None) -> Iterator[bytes]: ...


@dataclass
class Trail:
    """One credit; numbers are indices of entries, -1 where there is none."""

    credit: Credit
    granted: int
    work: int
    """The contribution or verdict that it is for."""
    attempt: AttemptTrail | None = None
    """Of compute and data: the round that it was earned in."""
    due: int = 0
    """It vests with the state of this number."""
    events: list[tuple[int, str]] = field(default_factory=list)
    """Disputes, verdicts and rulings on it: index, and what in a word."""
    settled: int = -1
    status: str = "pending"
    """pending, vested or taken away."""


@dataclass
class AttemptTrail:
    """One attempt of a round."""

    round: int
    attempt: int
    accounts: dict[str, str]
    bound: dict[str, int]
    """Member to the entry that had bound it to its account when the round was opened."""
    opened: int
    steps: dict[str, int] = field(default_factory=dict)
    """Member to the inner steps that it was assigned."""
    tails: dict[str, int] = field(default_factory=dict)
    """Node to the steps of the round before that may count in this one."""
    committed: int = -1
    contributed: dict[str, int] = field(default_factory=dict)
    """Node to the entry that shows its contribution."""
    closed: int = -1
    accepted: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    slices: dict[int, tuple[int, Slice]] = field(default_factory=dict)
    """Slice to the entry that records it, and what that says."""
    accused: dict[int, dict[str, tuple[int, str]]] = field(default_factory=dict)
    """Slice to those who say that it is wrong: the entry, and the blob that they got."""
    wrong: tuple[int, ...] = ()
    """Slices that the agreed state was made without."""
    agreed: int = -1
    agreeing: int = 0
    """How many of the accepted contributors signed the state."""
    void: int = -1
    """The entry by which what had been accepted came to nothing."""


@dataclass
class Story:
    """What :func:`follow` found out about the entry at ``index``."""

    index: int
    entry: Entry
    outcome: Outcome = field(default_factory=lambda: Outcome("recorded"))
    attempt: AttemptTrail | None = None
    """Of an entry of a round: the attempt that it belongs to."""
    accounts: dict[str, Account] = field(default_factory=dict)
    """Accounts that it may change, as they were before it."""
    node_before: str = ""
    """Of a node entry: the account that the node belonged to."""
    final_before: int = 0
    frozen: Pending | None = None
    """Of a verdict, dispute or ruling: the contribution just after it."""
    trails: dict[str, Trail] = field(default_factory=dict)
    """What it granted, settled or speaks of, by source."""
    root: str = ""
    """Of a witnessed entry: the root of the tree that these very entries have."""
    seats: dict[str, str] = field(default_factory=dict)
    """Of a witnessed entry: node to the account whose seat it took; none for the barred."""
    state: FoldState = field(default_factory=FoldState)
    """After the newest entry."""
    founded: Genesis | None = None

    @property
    def genesis(self) -> Genesis:
        """The manifest. Only where an entry counted."""
        assert self.founded is not None
        return self.founded


def follow(log: Leaves, index: int) -> Story:
    """Replay the ledger, signatures included, with an eye on the entry at ``index``.

    :raises UsageError: when there is no such entry
    """
    if not 0 <= index < log.size:
        raise UsageError(f"there is no entry {index}; the ledger has {log.size}")
    story = Story(index, decode(log.leaf(index)))
    return _Follower(story).run(log)


class _Follower:
    """Watches each entry before and after the fold applies it."""

    def __init__(self, story: Story) -> None:
        self.story, self.state = story, story.state
        self.wanted = {getattr(story.entry.body, "contribution", "")}
        if isinstance(story.entry.body, entries.Contribution):
            self.wanted.add(story.entry.id)
        self.pending: dict[str, Trail] = {}
        self.bound: dict[str, int] = {}
        self.attempt: AttemptTrail | None = None

    def run(self, log: Leaves) -> Story:
        body, story = self.story.entry.body, self.story
        tree, covered = CompactRange(), 0
        if isinstance(body, entries.Witnessed):
            covered = min(body.size, log.size)
        for leaf in log.leaves(0, covered):
            tree.append(leaf_hash(leaf))
        story.root = tree.root().hex() if covered else ""
        for index, entry in enumerate(check_signatures(map(decode, log.leaves(0, log.size)))):
            if index == story.index:
                self._before(entry)
            attempt = self.state.attempt
            phase = attempt.phase if attempt is not None else ""
            outcome = apply(self.state, entry)
            if outcome.status != "ignored":
                self._round(index, entry, attempt, phase)
                self._people(index, entry)
                self._credit(index, entry, outcome)
            elif index == story.index:
                self._at(entry, outcome)
        return story

    def _before(self, entry: Entry) -> None:
        body, state = entry.body, self.state
        names = {getattr(body, "account", ""), getattr(body, "to", "")}
        if isinstance(body, entries.Witnessed):
            for node in (item.node for item in body.cosignatures):
                name = state.account_of(node)
                names.add(name)
                known = name in state.accounts and key_of(node) not in state.convicted
                if known and not state.accounts[name].barred:
                    self.story.seats[node] = name
        if isinstance(body, entries.Node):
            self.story.node_before = state.account_of(body.node)
        self.story.accounts = {
            name: deepcopy(state.accounts[name]) for name in names if name in state.accounts
        }
        self.story.final_before = state.final

    def _at(self, entry: Entry, outcome: Outcome) -> None:
        story, body = self.story, entry.body
        story.outcome = outcome
        touched = (*outcome.granted, *outcome.vested, *outcome.invalidated)
        self.wanted |= {credit.source for credit in touched}
        story.trails |= {s: trail for s, trail in self.pending.items() if s in self.wanted}
        in_round = isinstance(
            body,
            entries.RoundOpened
            | entries.RoundCommitted
            | entries.Contribution
            | entries.RoundClosed
            | entries.Aggregate
            | entries.SliceWrong
            | entries.StateAgreed,
        )
        if in_round and outcome.status != "ignored":
            story.attempt = self.attempt
        frozen = self.state.pending.get(getattr(body, "contribution", ""))
        story.frozen = deepcopy(frozen)

    def _round(self, index: int, entry: Entry, before: Attempt | None, phase: str) -> None:
        """Keep up with the round under way; ``phase`` is the one that it was in before."""
        body, trail, now = entry.body, self.attempt, self.state.attempt
        if isinstance(body, Genesis):
            self.story.founded = body
        if trail is not None:
            replaced = isinstance(body, entries.RoundOpened) and phase not in ("", "failed")
            again = isinstance(body, entries.RoundClosed) and phase == "applying"
            if replaced or again:
                trail.void = index
            if again:
                return
        if isinstance(body, entries.RoundOpened):
            assert now is not None
            bound = {peer: self.bound[peer] for peer in body.members}
            accounts = dict(now.accounts)
            self.attempt = AttemptTrail(body.round, body.attempt, accounts, bound, index)
            self.attempt.steps, self.attempt.tails = dict(now.steps), dict(self.state.tails)
        elif trail is None:
            return
        elif isinstance(body, entries.RoundCommitted):
            trail.committed = index
        elif isinstance(body, entries.Contribution):
            trail.contributed[body.node] = index
        elif isinstance(body, entries.RoundClosed):
            trail.closed, trail.accepted = index, len(body.accepted)
            trail.left_out = {item.node: item.reason for item in body.rejected}
        elif isinstance(body, entries.StateAgreed) and before is not None:
            signers = {key_of(peer) for peer in before.accepted} & entry.signers
            trail.agreed, trail.agreeing, trail.wrong = index, len(signers), body.wrong
        elif now is not None and isinstance(body, entries.Aggregate):
            trail.slices[body.slice] = (index, now.slices[body.slice])
        elif isinstance(body, entries.SliceWrong):
            trail.accused.setdefault(body.slice, {})[body.node] = (index, body.blob)

    def _people(self, index: int, entry: Entry) -> None:
        body = entry.body
        if isinstance(body, entries.Node):
            self.bound[body.node] = index
        elif isinstance(body, entries.Dispute | entries.Verdict | entries.Ruling):
            trail = self.pending.get(body.contribution)
            if trail is not None:
                trail.events.append((index, _word(body)))

    def _credit(self, index: int, entry: Entry, outcome: Outcome) -> None:
        for credit in outcome.granted:
            work, attempt = index, None
            if credit.kind in ("compute", "data"):
                attempt = self.attempt
                assert attempt is not None
                work = attempt.contributed.get(credit.node, index)
            trail = Trail(credit, index, work, attempt)
            self.pending[credit.source] = trail
            if credit.source in self.wanted:
                self.story.trails[credit.source] = trail
        if index == self.story.index:
            self._at(entry, outcome)  # before what it settles is forgotten
        for credit in outcome.granted:
            item = self.state.pending.get(credit.source)
            self.pending[credit.source].due = item.due if item is not None else self.state.round
        for status, gone in (("vested", outcome.vested), ("taken away", outcome.invalidated)):
            for credit in gone:
                trail = self.pending.pop(credit.source)
                trail.settled, trail.status = index, status


def _word(body: entries.Dispute | entries.Verdict | entries.Ruling) -> str:
    match body:
        case entries.Dispute():
            return "disputed"
        case entries.Verdict():
            return f"audited: {body.verdict}"
    return f"ruling: {body.decision}"
