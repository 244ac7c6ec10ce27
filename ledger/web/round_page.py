"""The page of one round: who took part, who counts and with what weight, and what came of it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from artel.ledger import entries
from artel.ledger.entries import (
    Aggregate,
    Contribution,
    Entry,
    RoundClosed,
    RoundCommitted,
    RoundOpened,
    SliceWrong,
    StateAgreed,
)
from artel.ledger.web.answers import whole
from artel.ledger.web.context import Context
from artel.ledger.web.index import Credited
from artel.protocol.errors import UsageError
from artel.protocol.identity import public_of

MAX_ENTRIES = 400
"""Entries of a round that its page reads; a round that is tried again and again has more."""
MAX_ATTEMPTS = 8


@dataclass
class Attempt:
    """What the ledger says of one attempt: (index, body) of each step."""

    number: int
    opened: tuple[int, RoundOpened] | None = None
    committed: tuple[int, RoundCommitted] | None = None
    closed: list[tuple[int, RoundClosed]] = field(default_factory=list)
    shown: dict[str, tuple[int, Contribution]] = field(default_factory=dict)
    """Node to its contribution."""
    slices: dict[int, tuple[int, Aggregate]] = field(default_factory=dict)
    accused: dict[int, list[tuple[int, SliceWrong]]] = field(default_factory=dict)
    agreed: tuple[int, StateAgreed] | None = None
    members: list[Member] = field(default_factory=list)

    @property
    def wrong(self) -> tuple[int, ...]:
        """Slices that those who signed the state found wrong."""
        return self.agreed[1].wrong if self.agreed is not None else ()

    @property
    def weights(self) -> dict[str, int]:
        """Accepted nodes and their weights; closed a second time, nobody is left: the nodes did
        not agree on a state."""
        closed = self.closed[-1][1].accepted if self.closed else ()
        return {item.node: item.weight for item in closed}

    @property
    def unrecorded(self) -> int:
        """Slices whose result nobody has recorded."""
        return max((body.slices for _, body in self.slices.values()), default=0) - len(self.slices)


@dataclass(frozen=True)
class Member:
    """A node in an attempt: what it was to do, what it did, and what came of it."""

    node: str
    account: str
    steps: int
    commitment: str | None
    shown: tuple[int, Contribution] | None
    weight: int | None
    credit: Credited | None
    rejected: tuple[int, str] | None
    """The entry that left it out, and the reason."""
    wrong: list[int]
    """Slices that it combined wrongly."""


def round_page(page: Context, asked: Mapping[str, str]) -> dict[str, Any]:
    """A round, newest attempt first.

    :raises UsageError: when it has not begun
    """
    number = whole(asked["number"], "a round")
    indices = page.index.of_round(number)
    newest = page.newest_round
    if not indices and number != newest:
        raise UsageError(f"round {number:,} has not begun", f"the newest one is round {newest:,}")
    attempts, agreed = _read(page, indices)
    granted = page.index.granted_by(agreed[0]) if agreed is not None else []
    for attempt in attempts:
        attempt.members = list(_members(page, attempt, granted))
    return {
        "number": number,
        "attempts": attempts[::-1][:MAX_ATTEMPTS],
        "last": attempts[-1] if attempts else Attempt(0),
        "agreed": agreed[0] if agreed is not None else None,
        "state": agreed[1].body if agreed is not None else None,
        "signers": list(_signers(page, agreed[1])) if agreed is not None else [],
        "granted": granted,
        "rate": page.state.rules.rates["compute"] if page.state.rules is not None else 0,
        "indices": indices[-MAX_ENTRIES:],
        "older": max(0, len(indices) - MAX_ENTRIES),
    }


def _read(page: Context, indices: Sequence[int]) -> tuple[list[Attempt], tuple[int, Entry] | None]:
    """The newest entries of the round, those that count, by attempt."""
    found: dict[int, Attempt] = {}
    agreed = None

    def attempt(number: int) -> Attempt:
        return found.setdefault(number, Attempt(number))

    for index in indices[-MAX_ENTRIES:]:
        if page.index.summary(index).reason:
            continue
        entry = entries.decode(page.store.leaf(index))
        match entry.body:
            case RoundOpened() as body:
                attempt(body.attempt).opened = index, body
            case RoundCommitted() as body:
                attempt(body.attempt).committed = index, body
            case Contribution() as body:
                attempt(body.attempt).shown[body.node] = index, body
            case RoundClosed() as body:
                attempt(body.attempt).closed.append((index, body))
            case Aggregate() as body:
                attempt(body.attempt).slices[body.slice] = index, body
            case SliceWrong() as body:
                attempt(body.attempt).accused.setdefault(body.slice, []).append((index, body))
            case StateAgreed() as body:
                agreed = index, entry
                if found:
                    found[max(found)].agreed = index, body
    return [found[number] for number in sorted(found)], agreed


def _members(page: Context, attempt: Attempt, granted: Sequence[Credited]) -> Iterator[Member]:
    if attempt.opened is None:
        return
    credits = {credit.source: credit for credit in granted if credit.kind == "compute"}
    weights, committed = attempt.weights, attempt.committed
    rejected = {
        item.node: (index, item.reason)
        for index, closed in reversed(attempt.closed)  # the first reason is the one
        for item in closed.rejected
    }
    for peer, steps in zip(attempt.opened[1].members, attempt.opened[1].steps, strict=True):
        shown = attempt.shown.get(peer)
        credit = credits.get(shown[0]) if shown else None
        yield Member(
            node=peer,
            account=credit.account if credit is not None else page.state.account_of(peer),
            steps=steps,
            commitment=committed[1].commitments.get(peer) if committed else None,
            shown=shown,
            weight=weights.get(peer),
            credit=credit,
            rejected=rejected.get(peer),
            wrong=[
                n
                for n in attempt.wrong
                if n in attempt.slices and attempt.slices[n][1].node == peer
            ],
        )


def _signers(page: Context, entry: Entry) -> Iterator[tuple[str, str]]:
    """Each key that signed, and the node whose it is, or "" when it is none's."""
    peers = {public_of(peer).hex(): peer for peer in page.state.nodes}
    return ((key, peers.get(key, "")) for key in sorted(entry.signers))
