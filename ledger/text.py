"""How ledger facts are written for a person: short names, one line for each entry."""

from __future__ import annotations

from ledger import reasons
from ledger.entries import (
    Account,
    Body,
    Contribution,
    Genesis,
    Node,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    StateAgreed,
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
    """What an entry says, in one line."""
    if outcome.status == "ignored":
        return f"{_says(body)}: ignored, {reasons.explain(outcome.reason)}"
    if outcome.credits:
        credited = sum(tokens for _, _, tokens in outcome.credits)
        return f"{_says(body)}, {plural(credited, 'token')} credited"
    return _says(body)


def _says(body: Genesis | Body) -> str:
    match body:
        case Genesis():
            return f"manifest of {printable(body.name) or 'a run'}, run {short_key(body.run)}"
        case Account():
            return f"account {short_key(body.account)}"
        case Node():
            return f"node {short_peer(body.node)} belongs to account {short_key(body.account)}"
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
