"""How ledger facts are written for a person: short names, one line for each entry."""

from __future__ import annotations

from artel.ledger.entries import (
    Account,
    Aggregate,
    Body,
    Contribution,
    Dispute,
    Genesis,
    KeyRotated,
    Node,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    Ruling,
    RunClosed,
    SliceWrong,
    SplitSeen,
    StateAgreed,
    Transfer,
    Verdict,
    Witnessed,
    reasons,
)
from artel.ledger.fold.shares import Outcome
from artel.protocol.terminal import printable as printable


def short_key(key: str) -> str:
    """An account, a root or another hex name."""
    return key[:12]


def short_peer(peer: str) -> str:
    """A node; all peer ids begin alike, so the end is shown."""
    return "…" + peer[-8:]


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def counts(tally: dict[str, int]) -> str:
    """Reason codes with how often each occurred, as in "2 late, 1 malformed"."""
    return ", ".join(f"{count} {reason}" for reason, count in sorted(tally.items()))


def summary(body: Genesis | Body, outcome: Outcome) -> str:
    """What an entry says and did, in one line."""
    if outcome.status == "ignored":
        return f"{_says(body)}: ignored, {reasons.explain(outcome.reason)}"
    parts = [_says(body)]
    for credits, what in (
        (outcome.granted, "granted"),
        (outcome.vested, "vested"),
        (outcome.invalidated, "taken away"),
    ):
        if credits:
            parts.append(f"{sum(credit.amount for credit in credits):,} credit {what}")
    if outcome.denied:
        parts.append(f"{plural(len(outcome.denied), 'contribution')} denied credit")
    return ", ".join(parts)


def _says(body: Genesis | Body) -> str:
    match body:
        case Genesis():
            return f"manifest of {printable(body.name) or 'a run'}, run {short_key(body.run)}"
        case Account():
            recovery = ", with a recovery key" if body.recovery else ""
            return f"account {short_key(body.account)}{recovery}"
        case KeyRotated():
            return f"account {short_key(body.account)} has the key {short_key(body.key)}"
        case Node():
            return f"node {short_peer(body.node)} belongs to account {short_key(body.account)}"
        case RunClosed():
            again = " again" if body.closing > 1 else ""
            return f"the run is closed{again} after {plural(body.round, 'round')}"
        case Witnessed():
            cosigned = plural(len(body.cosignatures), "cosignature")
            return f"{cosigned} of the first {plural(body.size, 'entry', 'entries')}"
        case Verdict():
            what = short_key(body.contribution)
            return f"node {short_peer(body.node)} repeated contribution {what}: {body.verdict}"
        case Dispute():
            by, what = short_key(body.account), short_key(body.contribution)
            return f"account {by} disputes contribution {what}: {body.reason}"
        case Ruling():
            return f"ruling on contribution {short_key(body.contribution)}: {body.decision}"
        case Transfer():
            giver, taker = short_key(body.account), short_key(body.to)
            return f"{body.amount:,} vested credit from account {giver} to {taker}"
        case SplitSeen():
            return f"account {short_key(body.account)} reports two histories signed with one key"
    return _says_of_round(body)


def _says_of_round(body: Genesis | Body) -> str:
    match body:
        case RoundOpened():
            members, steps = plural(len(body.members), "member"), plural(sum(body.steps), "step")
            return f"{members}, {steps}, data from window {body.cursor:,}"
        case RoundCommitted():
            return plural(len(body.commitments), "commitment")
        case Contribution():
            steps = f"{body.tail} + {body.head}" if body.tail else f"{body.head}"
            tokens, size = plural(body.tokens, "token"), plural(body.size, "byte")
            many = "step" if body.tail + body.head == 1 else "steps"
            return f"node {short_peer(body.node)}: {steps} {many}, {tokens}, {size}"
        case RoundClosed():
            left_out = ", ".join(f"{short_peer(r.node)} {r.reason}" for r in body.rejected)
            accepted = f"{len(body.accepted)} accepted" if body.accepted else "nobody accepted"
            return accepted + (f", left out: {left_out}" if left_out else "")
        case StateAgreed():
            wrong = ", ".join(str(number) for number in body.wrong)
            found = f", made without the wrong slice {wrong}" if len(body.wrong) == 1 else ""
            found = f", made without the wrong slices {wrong}" if len(body.wrong) > 1 else found
            return f"state {body.round} is {short_key(body.root)}{found}"
        case Aggregate():
            what = f"slice {body.slice} (of {body.slices})"
            return f"node {short_peer(body.node)} combined {what}: {plural(body.size, 'byte')}"
        case SliceWrong():
            return f"node {short_peer(body.node)} says that slice {body.slice} is wrong"
    return ""
