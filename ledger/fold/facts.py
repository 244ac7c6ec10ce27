"""Sentences about credit and rounds that the explanations of several kinds of entries share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from artel.ledger.entries import Contribution, Genesis, reasons
from artel.ledger.fold.text import plural, short_key, short_peer
from artel.ledger.fold.trail import AttemptTrail, Story, Trail


@dataclass(frozen=True)
class Fact:
    """A sentence, and the indices of the entries that it rests on."""

    text: str
    entries: tuple[int, ...] = ()


@dataclass(frozen=True)
class CreditLine:
    """One credit that the entry granted, settled or speaks of; ``amount`` = units × rate."""

    source: str
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
    """pending, vested or taken away, as of the newest entry."""
    settled: int
    """Index of the entry that vested it or took it away; -1 while it is pending."""


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
    index, recorded = trail.slices[number]
    yield Fact(
        f"slice {number}: entry {index} of node {short_peer(recorded.node)} names the blob "
        f"{short_key(recorded.blob)}, {plural(recorded.size, 'byte')}",
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
            f"{short_peer(recorded.node)} earns nothing in this round ({reasons.WRONG_SLICE})",
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
            f"was opened, entry {opened}), for entry {trail.work}",
            (bound, opened, trail.work),
        )
    return Fact(f"{text}, granted by entry {trail.granted}", (trail.granted,))


def events_of(trail: Trail) -> Iterator[Fact]:
    """Who disputed, audited and ruled."""
    for index, what in trail.events:
        yield Fact(f"{what} (entry {index})", (index,))


def fate(story: Story, trail: Trail) -> Fact:
    """Where the credit is now, and why."""
    if trail.status != "pending":
        last = trail.events[-1] if trail.events else (-1, "")
        why = f" ({last[1]})" if last[0] == trail.settled else ""
        return Fact(
            f"pending since entry {trail.granted}, {trail.status} by entry {trail.settled}{why}",
            (trail.granted, trail.settled),
        )
    rounds = story.genesis.rules.ownership.vesting_rounds
    item = story.state.pending[trail.credit.source]
    frozen = f"; disputed, so not before state {item.lapses}" if item.disputed_by else ""
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
    outcome = story.outcome
    for credits, what in (
        (outcome.granted, "granted"),
        (outcome.vested, "vested"),
        (outcome.invalidated, "taken away"),
    ):
        if credits:
            amount = sum(credit.amount for credit in credits)
            yield Fact(f"{what}: {amount:,} credit in {plural(len(credits), 'part')}")


def credit_line(trail: Trail) -> CreditLine:
    """The row of a table for one credit."""
    credit = trail.credit
    return CreditLine(
        source=credit.source,
        kind=credit.kind,
        account=credit.account,
        node=credit.node,
        units=credit.units,
        rate=credit.rate,
        amount=credit.amount,
        work=trail.work,
        granted=trail.granted,
        due=trail.due,
        status=trail.status,
        settled=trail.settled,
    )


def row(credit: CreditLine) -> str:
    """One line of a table."""
    state = (
        f"pending until state {credit.due}"
        if credit.status == "pending"
        else f"{credit.status} by entry {credit.settled}"
    )
    return (
        f"{credit.account[:12]:<12}  {credit.kind:<7}  {credit.units:>9,} × {credit.rate:<5,} = "
        f"{credit.amount:>12,}  for entry {credit.work}, granted by {credit.granted}, {state}"
    )
