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
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Credit, Outcome
from artel.ledger.entries.trail import AttemptTrail, Trail
from artel.ledger.entries.words import plural, short_key, units
from artel.protocol.assignment import GATHER_MEMBERS
from artel.protocol.identity import short_peer

if TYPE_CHECKING:
    from artel.ledger.entries.genesis import Genesis
    from artel.ledger.entries.kinds.contribution import Contribution
    from artel.ledger.entries.rules import LedgerRules


@dataclass(frozen=True)
class Fact:
    """A sentence, and the indices of the entries that it rests on."""

    text: str
    entries: tuple[int, ...] = ()


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


def steps_of(story: Story, peer: str) -> str:
    """What a member was assigned, and in which round each part of it counts."""
    trail = story.trail
    work, steps = story.state.rules_at(trail.round).work, trail.steps[peer]
    said = f"node {short_peer(peer)} is assigned {plural(steps, 'inner step')}"
    tail = work.tail(trail.round, steps)
    if not tail:
        return said
    return (
        f"{said}: {work.head(trail.round, steps)} count in this round, the last {tail} in the next "
        f"(exchange.overlap_steps {work.overlap_steps} × {steps} / rounds.inner_steps "
        f"{work.inner_steps}, rounded, at least 1)"
    )


def counted(story: Story, body: Contribution) -> str:
    """The arithmetic of what a contribution says that it is made of."""
    trail = story.trail
    work, assigned = story.state.rules_at(trail.round).work, trail.steps[body.node]
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
    index, slice = trail.slices[number]
    node = short_peer(slice.node)
    yield Fact(
        f"slice {number}: entry {index} of node {node} names the blob "
        f"{short_key(slice.blob)}, {plural(slice.size, 'byte')}",
        (index,),
    )
    accusers = sorted(trail.accused.get(number, []), key=lambda said: said[1].node)
    for accusation, said in accusers:
        yield Fact(
            f"node {short_peer(said.node)} recomputed it and got {short_key(said.blob)} "
            f"(entry {accusation})",
            (accusation,),
        )
    if trail.agreed is None:
        return
    agreed, state = trail.agreed
    if number in state.wrong:
        yield Fact(
            f"found wrong by those who signed entry {agreed}: node {node} earns nothing in this "
            f"round ({reasons.WRONG_SLICE})",
            (agreed,),
        )
    elif accusers:
        yield Fact(
            f"found right by those who signed entry {agreed}: counted as "
            f"{reasons.FALSE_ACCUSATION} of whoever called it wrong",
            (agreed,),
        )


def as_of(story: Story) -> str:
    """The state of the ledger that is spoken of."""
    return f"after {plural(story.state.size, 'entry', 'entries')}"


def account_now(story: Story, name: str) -> Fact:
    """An account's key and credit now."""
    owner = story.state.accounts[name]
    return Fact(
        f"{as_of(story)} its key is {owner.key}; it has {owner.vested:,} credit vested, "
        f"{owner.pending:,} pending"
    )


def vesting(rules: LedgerRules) -> str:
    """The rule."""
    rounds = rules.ownership.vesting_rounds
    said = "credit vests at once (ownership.vesting_rounds = 0)"
    if rounds:
        said = f"credit vests after {plural(rounds, 'more round')} (ownership.vesting_rounds)"
    if rules.audits:
        said += (
            "; compute not before auditors of two other accounts have found work of its node "
            "right that is no older"
        )
    return said


REPEATED = {
    "newcomer": "every round of a node is repeated until trust.newcomer_rounds were found right",
    "first": "the first round of a span is repeated by chance, at once (trust.audit_rate)",
    "prefix": "the beginning of a span that is over is repeated by chance (trust.audit_rate)",
}
"""Why work is repeated."""
RESULTS = {
    "convicted": "most auditors rejected the work: all pending credit of the account is taken "
    "away, what vested lately too, and it earns no more; the account of an auditor that accepted "
    "it loses its standing",
    "cleared": "the work was found right; an auditor that rejected it is not paid, and its account "
    "loses its standing and is not drawn for a while",
    "undecided": "nobody could tell in time: nothing follows from it",
    "unchecked": "the auditors could not tell whether the work was done: it is not paid, and every "
    "round of the node is repeated until some were found right",
}
"""What an audit comes to."""


def audits_drawn(story: Story) -> Iterator[Fact]:
    """Which audits ended for want of verdicts when a state was agreed on, and who was drawn."""
    notes = story.outcome.notes
    for source, result in notes.get("ended", ()):
        yield Fact(f"the audit of contribution {short_key(source)} ends: {RESULTS[result]}")
    for source, auditor, node, why, first, last in notes.get("drawn", ()):
        yield Fact(
            f"node {short_peer(auditor)} was drawn by lot to repeat the work of node "
            f"{short_peer(node)} in {rounds_named(first, last)} (contribution "
            f"{short_key(source)}): {REPEATED[why]}"
        )


def rounds_named(first: int, last: int) -> str:
    """As in "round 3" or "rounds 3 to 7"."""
    return f"rounds {first} to {last}" if last > first else f"round {last}"


def _audited_now(story: Story) -> Iterator[Fact]:
    """Audits under way that judge the contribution."""
    credit = story.about.credit
    for audit in story.state.audits.values():
        if audit.node != credit.node or not audit.first <= credit.round <= audit.last:
            continue
        nodes = ", ".join(f"node {short_peer(draw.node)}" for draw in audit.awaited)
        yield Fact(
            f"the work of {rounds_named(audit.first, audit.last)} is being repeated by {nodes}; "
            "until that is decided it does not vest"
            if nodes
            else f"the work of {rounds_named(audit.first, audit.last)} is to be repeated as soon "
            "as somebody has time; until that is decided it does not vest"
        )


def belonged(peer: str, account: str, trail: AttemptTrail) -> str:
    """Whose a member was when the round was opened."""
    return (
        f"node {short_peer(peer)} belongs to account {short_key(account)} since entry "
        f"{trail.bound[peer]}"
    )


def arithmetic(trail: Trail) -> str:
    """The arithmetic of one credit."""
    credit = trail.credit
    return (
        f"{units(credit.units, credit.kind)} × {credit.rate:,} (ownership.rates.{credit.kind}) = "
        f"{credit.amount:,} credit"
    )


def earning(trail: Trail) -> Fact:
    """What was earned, for what, and why by this account."""
    credit, attempt = trail.credit, trail.attempt
    text = f"{arithmetic(trail)} to account {short_key(credit.account)}"
    if credit.node and attempt is not None and attempt.opened is not None:
        bound, opened = attempt.bound[credit.node], attempt.opened[0]
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
            f"state {notes['lapses']} is agreed: due with state {notes['due']}, or now if that is "
            f"later, + {max(1, rounds)} (ownership.vesting_rounds, at least 1); longer while "
            "nobody has found later work of its node right"
        )


def fate_of_work(story: Story) -> Iterator[Fact]:
    """Who disputed, audited and ruled, and what has become of the credit."""
    for index, what in story.about.events:
        yield Fact(f"{what} (entry {index})", (index,))
    if story.about.status == "pending":
        yield from _audited_now(story)
    yield fate(story, story.about)


def of_slice(story: Story, number: int) -> Iterator[Fact]:
    """A slice: whose it is, what was recorded, and what came of it."""
    trail, work = story.trail, story.genesis.rules.work
    closed, chosen = trail.closed[0]
    yield Fact(
        f"the round is sharded: {plural(len(trail.steps), 'member')} (exchange.topology = "
        f"{work.topology}"
        + (f", sharded above {GATHER_MEMBERS})" if work.topology == "auto" else ")")
    )
    accepted = len(chosen.accepted)
    rank = (number + trail.round) % accepted
    yield Fact(
        f"slice {number} is for number {rank} = ({number} + round {trail.round}) mod "
        f"{accepted} of the members that entry {closed} accepted, from 0 and ascending: node "
        f"{short_peer(trail.slices[number][1].node)}",
        (closed,),
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
    if trail.due <= story.state.round and not frozen:
        return Fact(
            f"pending since entry {trail.granted}, due with state {trail.due}; held back while "
            "work of the account is audited, and until auditors of two other accounts have found "
            "work of its node right that is no older, or the run is closed",
            (trail.granted,),
        )
    return Fact(
        f"pending since entry {trail.granted}, vests when state {trail.due} is agreed "
        f"({plural(rounds, 'round')}, ownership.vesting_rounds) or the run is closed{frozen}; "
        f"the newest is state {story.state.round}",
        (trail.granted,),
    )


def outcome_of(trail: AttemptTrail) -> Iterator[Fact]:
    """How an attempt came out."""
    closed, chosen = trail.closed[0] if trail.closed else (-1, None)
    if trail.agreed is not None:
        agreed, _ = trail.agreed
        yield Fact(f"the resulting state was agreed on by entry {agreed}", (agreed,))
        if trail.undone >= 0:
            yield Fact(f"the run went back behind it by entry {trail.undone}", (trail.undone,))
    elif trail.void >= 0:
        yield Fact(f"nothing came of it: given up by entry {trail.void}", (trail.void,))
    elif chosen is None:
        yield Fact("the round is still under way")
    elif not chosen.accepted:
        yield Fact(f"closed by entry {closed} with nobody accepted", (closed,))
    else:
        yield Fact(f"closed by entry {closed}; nobody has agreed on a state yet", (closed,))


def totals(story: Story) -> Iterator[Fact]:
    """Sums of the credit that the entry moved."""
    for credits, what in moved(story.outcome):
        amount = sum(credit.amount for credit in credits)
        yield Fact(f"{what}: {amount:,} credit in {plural(len(credits), 'part')}")
    for account, amount in story.outcome.stakes:
        yield Fact(f"taken away of what had vested of account {short_key(account)}: {amount:,}")


def moved(outcome: Outcome) -> Iterator[tuple[tuple[Credit, ...], str]]:
    """Credit that an entry moved, and what it did with it."""
    for credits, what in (
        (outcome.granted, "granted"),
        (outcome.vested, "vested"),
        (outcome.invalidated, "taken away"),
        (outcome.taken, "taken away after it had vested"),
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
    if outcome.stakes:
        stake = sum(amount for _, amount in outcome.stakes)
        parts.append(f"{stake:,} credit taken away that had vested lately")
    denied = sum(item.reason == reasons.WRONG_SLICE for item in outcome.left_out)
    if denied:
        parts.append(f"{plural(denied, 'contribution')} denied credit")
    return ", ".join(parts)
