"""How ledger facts are written for a person: short names, one line for each entry."""

from __future__ import annotations

from ledger import reasons
from ledger.entries import (
    Account,
    Address,
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
    SplitSeen,
    StateAgreed,
    Transfer,
    Verdict,
    Witnessed,
)
from ledger.shares import Outcome


def short_key(key: str) -> str:
    """An account, a root or another hex name."""
    return key[:12]


def short_peer(peer: str) -> str:
    """A node; all peer ids begin alike, so the end is shown."""
    return "…" + peer[-8:]


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def printable(text: str) -> str:
    """Foreign text without anything that could steer a terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


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
        case Address():
            return f"account {short_key(body.account)} names the address {body.address}"
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
            return f"{plural(len(body.members), 'member')}, data from window {body.cursor:,}"
        case RoundCommitted():
            return plural(len(body.commitments), "commitment")
        case Contribution():
            size = plural(body.size, "byte")
            return f"node {short_peer(body.node)}: {plural(body.tokens, 'token')}, {size}"
        case RoundClosed():
            left_out = ", ".join(f"{short_peer(r.node)} {r.reason}" for r in body.rejected)
            accepted = f"{len(body.accepted)} accepted" if body.accepted else "nobody accepted"
            return accepted + (f", left out: {left_out}" if left_out else "")
        case StateAgreed():
            return f"state {body.round} is {short_key(body.root)}"
    return ""
