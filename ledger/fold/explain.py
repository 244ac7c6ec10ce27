"""What an entry did, in words and with the arithmetic: every number, and the entries it comes from.

Balances are stored nowhere, so this replays the ledger (:mod:`ledger.fold.trail`). Constants are
called by their names in the manifest, as in ``ownership.rates.compute``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import Genesis, reasons, recovery_digest
from artel.ledger.fold import explain_rounds
from artel.ledger.fold.facts import (
    CreditLine,
    Fact,
    arithmetic,
    as_of,
    assigned,
    credit_line,
    earning,
    events_of,
    fate,
    row,
    totals,
    vesting,
)
from artel.ledger.fold.rules_people import MAX_OPEN_DISPUTES
from artel.ledger.fold.text import plural, printable, short_key, short_peer, summary
from artel.ledger.fold.trail import Leaves, Story, follow

WORK = {
    "compute": "token that was assigned, trained on and agreed on",
    "data": "token of contributed text when it is first trained on",
    "audit": "token of a contribution that an auditor repeated",
    "witness": "entry that a contributing account replayed and cosigned",
}


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
        rows = [f"  {row(credit)}" for credit in self.credits]
        facts = [f"  {fact.text}" for fact in self.facts]
        return [f"entry {self.index}, {self.kind}: {self.summary}", *facts, *rows]

    def to_dict(self) -> dict[str, Any]:
        """A JSON value."""
        return asdict(self)


def explain(log: Leaves, index: int) -> Explanation:
    """Explain one entry by a replay of the whole ledger.

    :raises UsageError: when there is no such entry
    """
    story = follow(log, index)
    facts = tuple(_facts(story))
    body, outcome = story.entry.body, story.outcome
    single = isinstance(body, entries.Contribution | entries.Dispute)
    credits = () if single else tuple(credit_line(trail) for trail in story.trails.values())
    return Explanation(
        index=index,
        id=story.entry.id,
        kind=story.entry.kind,
        status=outcome.status,
        reason=outcome.reason,
        summary=summary(body, outcome),
        facts=facts,
        credits=credits,
        size=story.state.size,
    )


def _facts(story: Story) -> Iterator[Fact]:
    body, outcome = story.entry.body, story.outcome
    if outcome.status == "ignored":
        yield Fact(f"it changes nothing: {reasons.explain(outcome.reason)} ({outcome.reason})")
        for trail in story.trails.values():
            yield earning(trail)
            yield fate(story, trail)
        return
    match body:
        case Genesis():
            yield from _genesis(body)
        case entries.Account() | entries.KeyRotated():
            yield from _account(story, body)
        case entries.Node():
            yield from _node(story, body)
        case entries.RoundOpened() | entries.RoundCommitted() | entries.RoundClosed():
            yield from explain_rounds.attempt(story, body)
        case entries.Contribution():
            yield from explain_rounds.contribution(story, body)
        case entries.Aggregate() | entries.SliceWrong():
            yield from explain_rounds.slice(story, body)
        case entries.StateAgreed():
            yield from explain_rounds.agreed(story, body)
        case entries.RunClosed():
            yield from explain_rounds.run_closed(story, body)
        case entries.Witnessed():
            yield from _witnessed(story, body)
        case entries.Verdict() | entries.Dispute() | entries.Ruling():
            yield from _about_work(story, body)
        case entries.Transfer():
            yield from _transfer(story, body)
        case entries.SplitSeen():
            yield from _split_seen(story, body)


# --- the manifest and people ----------------------------------------------------------------------


def _genesis(body: Genesis) -> Iterator[Fact]:
    rules = body.rules
    ownership = rules.ownership
    yield Fact(f"the run is the SHA-256 of this manifest: {body.run}")
    yield Fact(f"{printable(ownership.statement)} (ownership.statement)")
    yield Fact(f"{plural(rules.total, 'round')} (rounds.total); each assigns to each member")
    yield Fact(assigned(body))
    if rules.work.overlap_steps:
        yield Fact(
            f"the last {rules.work.overlap_steps} of {rules.work.inner_steps} inner steps are "
            "trained while the exchange goes on and count in the next round "
            "(exchange.overlap_steps)"
        )
    for kind, rate in rules.rates.items():
        yield Fact(f"{rate:,} credit for each {WORK[kind]} (ownership.rates.{kind})")
    yield Fact(vesting(ownership.vesting_rounds))
    may = "may" if ownership.transfers else "may not"
    yield Fact(f"vested credit {may} be given to others (ownership.transfers)")
    who = plural(len(rules.arbiters), "arbiter")
    yield Fact(
        f"{ownership.arbiter_quorum} of {who} must sign a ruling (ownership.arbiter_quorum)"
        + ("" if ownership.arbiters else "; none is named, so it is the organiser")
    )
    final = plural(rules.witnesses, "account")
    yield Fact(
        f"an entry is final when {final} cosigned a tree head that covers it (ledger.witnesses)"
        if rules.witnesses
        else "no entry ever becomes final (ledger.witnesses = 0)"
    )
    for account, tokens in rules.data.contributed if rules.data is not None else ():
        whose = f"account {short_key(account)} gave" if account else "nobody earns with"
        yield Fact(f"{whose} {plural(tokens, 'token')} of the text (data.contributed)")


def _account(story: Story, body: entries.Account | entries.KeyRotated) -> Iterator[Fact]:
    name, now = short_key(body.account), story.state.accounts[body.account]
    match body:
        case entries.Account():
            yield Fact(f"registered, signed by its own key; its name is {body.account} for ever")
            recovery = "can be recovered with another" if body.recovery else "has no recovery"
            yield Fact(f"at registration it {recovery} key")
        case entries.KeyRotated():
            others = story.entry.signers - {body.key}
            by_recovery = any(
                recovery_digest(bytes.fromhex(key)) == story.accounts[body.account].recovery
                for key in others
            )
            by = "the recovery key" if by_recovery else "the key until then"
            yield Fact(f"signed by the new key {body.key} and by {by}")
            yield Fact(f"number {body.seq} of account {name}; its name and its credit stay")
    at = as_of(story)
    yield Fact(
        f"{at} its key is {now.key}; it has {now.vested:,} credit vested, {now.pending:,} pending"
    )


def _node(story: Story, body: entries.Node) -> Iterator[Fact]:
    yield Fact("signed by the node's and the account's key")
    before = story.node_before
    if before:
        yield Fact(f"until then the node belonged to account {short_key(before)}")
    account = short_key(body.account)
    yield Fact(f"rounds that are opened after entry {story.index} give credit to account {account}")
    now = story.state.account_of(body.node)
    if now != body.account:
        yield Fact(f"{as_of(story)} it belongs to account {short_key(now)}")


def _transfer(story: Story, body: entries.Transfer) -> Iterator[Fact]:
    yield Fact(f"number {body.seq} of account {short_key(body.account)} (ownership.transfers)")
    for name, sign, amount in ((body.account, "-", -body.amount), (body.to, "+", body.amount)):
        before = story.accounts[name].vested
        yield Fact(
            f"account {short_key(name)}: {before:,} vested {sign} {body.amount:,} = "
            f"{before + amount:,}"
        )


# --- trust and disputes ---------------------------------------------------------------------------


def _witnessed(story: Story, body: entries.Witnessed) -> Iterator[Fact]:
    same = story.root == body.root
    yield Fact(
        f"the tree over the first {plural(body.size, 'entry', 'entries')} of this ledger has "
        + (f"the root {short_key(body.root)} that was cosigned" if same else "ANOTHER root")
    )
    needed = story.genesis.rules.witnesses
    seats = sorted(set(story.seats.values()))
    yield Fact(
        f"cosigned by {plural(len(body.cosignatures), 'node')} of {plural(len(seats), 'account')}; "
        f"{needed} must (ledger.witnesses)"
    )
    if needed and len(seats) >= needed:
        yield Fact(f"entries {story.final_before} to {body.size - 1} became final")
    for trail in story.trails.values():
        start = story.accounts[trail.credit.account].witnessed
        yield Fact(
            f"account {short_key(trail.credit.account)} replayed entries {start} to "
            f"{body.size - 1}: {arithmetic(trail)}"
        )
    paid = {trail.credit.account for trail in story.trails.values()}
    for name in seats:
        if name not in paid:
            yield Fact(
                f"account {short_key(name)} earns nothing for it: it did not contribute to the "
                "newest agreed state, or had cosigned all of this before"
            )


def _about_work(
    story: Story, body: entries.Verdict | entries.Dispute | entries.Ruling
) -> Iterator[Fact]:
    trail = story.trails.get(body.contribution)
    assert trail is not None
    yield earning(trail)
    frozen, rounds = story.frozen, story.genesis.rules.ownership.vesting_rounds
    if frozen is not None and frozen.disputed_by and not isinstance(body, entries.Ruling):
        yield Fact(
            f"frozen for account {short_key(frozen.disputed_by)} until somebody rules on it, or "
            f"state {frozen.lapses} is agreed: due with state {frozen.due} + {max(1, rounds)} "
            f"(ownership.vesting_rounds, at least 1)"
        )
    match body:
        case entries.Verdict():
            count = story.genesis.rules.ownership.auditors
            yield Fact(
                f"node {short_peer(body.node)} is one of up to {count} drawn by lot from the "
                "members of other accounts (ownership.auditors)"
            )
        case entries.Dispute():
            yield Fact(f"an account can have {MAX_OPEN_DISPUTES} disputes open")
        case entries.Ruling():
            quorum = story.genesis.rules.ownership.arbiter_quorum
            yield Fact(
                f"signed by {plural(len(story.entry.signers), 'arbiter')}, {quorum} must "
                "(ownership.arbiter_quorum)"
            )
            yield Fact(_DECISIONS[body.decision])
    yield from events_of(trail)
    yield fate(story, trail)
    yield from totals(story)


_DECISIONS = {
    "dismissed": "the contribution is good and cannot be disputed again; it vests when it is due",
    "soft": "the credit of this contribution is taken away",
    "hard": "all pending credit of the account is taken away, and it earns no more",
}


def _split_seen(story: Story, body: entries.SplitSeen) -> Iterator[Fact]:
    key = next(key for key, index in story.state.convicted.items() if index == story.index)
    coordinator = key in story.state.coordinators
    who = "coordinator" if coordinator else "witness"
    yield Fact(f"the {who} with the key {key} signed two tree heads that cannot both be true")
    yield Fact(
        "its heads are not to be believed any more"
        if coordinator
        else "its account loses what is pending and earns no more; its cosignatures count no more"
    )
    yield from totals(story)
