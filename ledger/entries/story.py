"""What an explanation is told from, and the sentences that several kinds of entries share.

A :class:`Story` says what an entry did and what became of it later; :mod:`ledger.fold.explain` puts
it together, and the kind of the entry tells it. Constants are called by their names in the
manifest, as in ``ownership.rates.compute``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from artel.ledger.entries import reasons
from artel.ledger.entries.body import Body, Entry
from artel.ledger.entries.fold_state import Credit, FoldState, Outcome
from artel.ledger.entries.words import plural, short_key
from artel.protocol.assignment import GATHER_MEMBERS
from artel.protocol.identity import short_peer

if TYPE_CHECKING:
    from artel.ledger.entries.genesis import Genesis
    from artel.ledger.entries.kinds.contribution import Contribution


@dataclass(frozen=True)
class Fact:
    """A sentence, and the indices of the entries that it rests on."""

    text: str
    entries: tuple[int, ...] = ()


@dataclass
class AttemptTrail:
    """One attempt of a round; numbers are indices of entries, -1 where there is none."""

    round: int
    attempt: int
    opened: int
    accounts: dict[str, str]
    """Members and the account of each when the round was opened."""
    bound: dict[str, int]
    """Member to the entry that had bound it to its account then."""
    steps: dict[str, int]
    """Member to the inner steps that it was assigned."""
    tails: dict[str, int]
    """Member to the steps of the round before that may count in this one."""
    committed: int = -1
    contributed: dict[str, int] = field(default_factory=dict)
    """Node to the entry that shows its contribution."""
    closed: int = -1
    accepted: int = 0
    left_out: dict[str, str] = field(default_factory=dict)
    slices: dict[int, tuple[int, str, str, int]] = field(default_factory=dict)
    """Slice to the entry that records it, and its node, blob and size."""
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
class Trail:
    """One credit, and what became of it; numbers are indices of entries."""

    credit: Credit
    granted: int
    due: int = 0
    """It vests with the state of this number."""
    lapses: int = 0
    """While it is disputed: with this one at the latest."""
    status: str = "pending"
    """pending, vested or invalidated."""
    settled: int = -1
    attempt: AttemptTrail | None = None
    """Of compute: the attempt that it was earned in, where that is told."""
    events: list[tuple[int, str]] = field(default_factory=list)
    """Disputes, verdicts and rulings on it: index, and what in a word."""


@dataclass
class Story:
    """What is known of the entry at ``index``, as of the newest entry of its ledger."""

    index: int
    entry: Entry
    outcome: Outcome
    genesis: Genesis
    state: FoldState
    """After the newest entry."""
    attempt: AttemptTrail | None = None
    """Of an entry of a round that counted: the attempt that it belongs to."""
    credits: list[Trail] = field(default_factory=list)
    """What it granted, made vest or took away."""
    work: Trail | None = None
    """The credit of the contribution that it is, or speaks of."""
    root: str = ""
    """Of a witnessed entry: the root of the tree that these very entries have."""

    @property
    def trail(self) -> AttemptTrail:
        """Of an entry of a round that counted: its attempt."""
        assert self.attempt is not None
        return self.attempt

    @property
    def about(self) -> Trail:
        """The credit of the contribution that it is, or speaks of; where it has any."""
        assert self.work is not None
        return self.work


def assigned(genesis: Genesis) -> str:
    """The arithmetic of the work that a round asks of a member."""
    work = genesis.rules.work
    steps, tokens = plural(work.most, "inner step"), plural(work.tokens(work.most), "token")
    names = "rounds.inner_steps"
    if work.boxed:
        steps, tokens = f"{work.least} to {steps}", f"{work.tokens(work.least):,} to {tokens}"
        names += " / 4 to × 4, what fits into rounds.box_s;"
    return (
        f"assigned: {steps} × {plural(work.batch_size, 'sequence')} × "
        f"{plural(work.seq_len, 'token')} = {tokens} "
        f"({names} × optimizer.batch_size × data.seq_len)"
    )


def steps_of(genesis: Genesis, trail: AttemptTrail, peer: str) -> str:
    """What a member was assigned, and in which round each part of it counts."""
    work, steps = genesis.rules.work, trail.steps[peer]
    said = f"node {short_peer(peer)} is assigned {plural(steps, 'inner step')}"
    tail = work.tail(trail.round, steps)
    if not tail:
        return said
    return (
        f"{said}: {work.head(trail.round, steps)} count in this round, the last {tail} in the next "
        f"(exchange.overlap_steps {work.overlap_steps} × {steps} / rounds.inner_steps "
        f"{work.inner_steps}, rounded, at least 1)"
    )


def counted(genesis: Genesis, trail: AttemptTrail, body: Contribution) -> str:
    """The arithmetic of what a contribution says that it is made of."""
    work, assigned = genesis.rules.work, trail.steps[body.node]
    head = work.head(trail.round, assigned)
    least = work.least_head(trail.round, assigned)
    made = f"{plural(body.head, 'step')} of this round ({least} to {head} are allowed)"
    if trail.tails.get(body.node, 0):
        made = (
            f"({plural(body.tail, 'step')} of round {trail.round - 1}, at most "
            f"{trail.tails[body.node]}, + {made})"
        )
    return (
        f"made: {made} × {plural(work.batch_size, 'sequence')} × {plural(work.seq_len, 'token')} = "
        f"{plural(body.tokens, 'token')} (optimizer.batch_size × data.seq_len)"
    )


def judged(trail: AttemptTrail, number: int) -> Iterator[Fact]:
    """Who recorded a slice, who called it wrong, and what was agreed on."""
    index, node, recorded, size = trail.slices[number]
    yield Fact(
        f"slice {number}: entry {index} of node {short_peer(node)} names the blob "
        f"{short_key(recorded)}, {plural(size, 'byte')}",
        (index,),
    )
    for peer, (accusation, blob) in sorted(trail.accused.get(number, {}).items()):
        yield Fact(
            f"node {short_peer(peer)} recomputed it and got {short_key(blob)} (entry {accusation})",
            (accusation,),
        )
    if trail.agreed < 0:
        return
    if number in trail.wrong:
        yield Fact(
            f"found wrong by those who signed entry {trail.agreed}: node "
            f"{short_peer(node)} earns nothing in this round ({reasons.WRONG_SLICE})",
            (trail.agreed,),
        )
    elif number in trail.accused:
        yield Fact(
            f"found right by those who signed entry {trail.agreed}: counted as "
            f"{reasons.FALSE_ACCUSATION} of whoever called it wrong",
            (trail.agreed,),
        )


def as_of(story: Story) -> str:
    """The state of the ledger that is spoken of."""
    return f"after {plural(story.state.size, 'entry', 'entries')}"


def standing(story: Story, name: str) -> Fact:
    """An account's key and credit now."""
    owner = story.state.accounts[name]
    return Fact(
        f"{as_of(story)} its key is {owner.key}; it has {owner.vested:,} credit vested, "
        f"{owner.pending:,} pending"
    )


def vesting(rounds: int) -> str:
    """The rule."""
    if not rounds:
        return "credit vests at once (ownership.vesting_rounds = 0)"
    return f"credit vests after {plural(rounds, 'more round')} (ownership.vesting_rounds)"


def belonged(peer: str, account: str, trail: AttemptTrail) -> str:
    """Whose a member was when the round was opened."""
    return (
        f"node {short_peer(peer)} belongs to account {short_key(account)} since entry "
        f"{trail.bound[peer]}"
    )


_TOKENS = ("token", "tokens")
_UNIT = {"compute": _TOKENS, "data": _TOKENS, "audit": _TOKENS, "witness": ("entry", "entries")}


def arithmetic(trail: Trail) -> str:
    """The arithmetic of one credit."""
    credit = trail.credit
    units = plural(credit.units, *_UNIT[credit.kind])
    return f"{units} × {credit.rate:,} (ownership.rates.{credit.kind}) = {credit.amount:,} credit"


def earning(trail: Trail) -> Fact:
    """What was earned, for what, and why by this account."""
    credit, attempt = trail.credit, trail.attempt
    text = f"{arithmetic(trail)} to account {short_key(credit.account)}"
    if credit.node and attempt is not None:
        bound, opened = attempt.bound[credit.node], attempt.opened
        return Fact(
            f"{text} (node {short_peer(credit.node)} belonged to it, entry {bound}, when the round "
            f"was opened, entry {opened}), for entry {credit.work}",
            (bound, opened, credit.work),
        )
    return Fact(f"{text}, granted by entry {trail.granted}", (trail.granted,))


def frozen(story: Story) -> Iterator[Fact]:
    """For whom the contribution was frozen when the entry came, if it was."""
    notes, rounds = story.outcome.notes, story.genesis.rules.ownership.vesting_rounds
    if notes:
        yield Fact(
            f"frozen for account {short_key(notes['frozen_for'])} until somebody rules on it, or "
            f"state {notes['lapses']} is agreed: due with state {notes['due']} + {max(1, rounds)} "
            f"(ownership.vesting_rounds, at least 1)"
        )


def fate_of_work(story: Story) -> Iterator[Fact]:
    """Who disputed, audited and ruled, and what has become of the credit."""
    for index, what in story.about.events:
        yield Fact(f"{what} (entry {index})", (index,))
    yield fate(story, story.about)


def of_slice(story: Story, number: int) -> Iterator[Fact]:
    """A slice: whose it is, what was recorded, and what came of it."""
    trail, work = story.trail, story.genesis.rules.work
    yield Fact(
        f"the round is sharded: {plural(len(trail.accounts), 'member')} (exchange.topology = "
        f"{work.topology}"
        + (f", sharded above {GATHER_MEMBERS})" if work.topology == "auto" else ")")
    )
    rank = (number + trail.round) % trail.accepted
    yield Fact(
        f"slice {number} is for number {rank} = ({number} + round {trail.round}) mod "
        f"{trail.accepted} of the members that entry {trail.closed} accepted, from 0 and "
        f"ascending: node {short_peer(trail.slices[number][1])}",
        (trail.closed,),
    )
    yield from judged(trail, number)
    yield from outcome_of(trail)


def fate(story: Story, trail: Trail) -> Fact:
    """Where the credit is now, and why."""
    if trail.status != "pending":
        last = trail.events[-1] if trail.events else (-1, "")
        why = f" ({last[1]})" if last[0] == trail.settled else ""
        gone = "vested" if trail.status == "vested" else "taken away"
        return Fact(
            f"pending since entry {trail.granted}, {gone} by entry {trail.settled}{why}",
            (trail.granted, trail.settled),
        )
    rounds = story.genesis.rules.ownership.vesting_rounds
    frozen = f"; disputed, so not before state {trail.lapses}" if trail.lapses else ""
    return Fact(
        f"pending since entry {trail.granted}, vests when state {trail.due} is agreed "
        f"({plural(rounds, 'round')}, ownership.vesting_rounds) or the run is closed{frozen}; "
        f"the newest is state {story.state.round}",
        (trail.granted,),
    )


def outcome_of(trail: AttemptTrail) -> Iterator[Fact]:
    """How an attempt came out."""
    if trail.agreed >= 0:
        yield Fact(f"the resulting state was agreed on by entry {trail.agreed}", (trail.agreed,))
    elif trail.void >= 0:
        yield Fact(f"nothing came of it: given up by entry {trail.void}", (trail.void,))
    elif trail.closed >= 0 and not trail.accepted:
        yield Fact(f"closed by entry {trail.closed} with nobody accepted", (trail.closed,))
    elif trail.closed >= 0:
        yield Fact(
            f"closed by entry {trail.closed}; nobody has agreed on a state yet", (trail.closed,)
        )
    else:
        yield Fact("the round is still under way")


def totals(story: Story) -> Iterator[Fact]:
    """Sums of the credit that the entry moved."""
    for credits, what in moved(story.outcome):
        amount = sum(credit.amount for credit in credits)
        yield Fact(f"{what}: {amount:,} credit in {plural(len(credits), 'part')}")


def moved(outcome: Outcome) -> Iterator[tuple[tuple[Credit, ...], str]]:
    """Credit that an entry moved, and what it did with it."""
    for credits, what in (
        (outcome.granted, "granted"),
        (outcome.vested, "vested"),
        (outcome.invalidated, "taken away"),
    ):
        if credits:
            yield credits, what


def summary(body: Genesis | Body, outcome: Outcome) -> str:
    """What an entry says and did, in one line."""
    if outcome.status == "ignored":
        return f"{body.says()}: ignored, {reasons.explain(outcome.reason)}"
    parts = [body.says()]
    for credits, what in moved(outcome):
        parts.append(f"{sum(credit.amount for credit in credits):,} credit {what}")
    denied = sum(item.reason == reasons.WRONG_SLICE for item in outcome.left_out)
    if denied:
        parts.append(f"{plural(denied, 'contribution')} denied credit")
    return ", ".join(parts)
