"""The page of one round: who took part, who counts and with what weight, and what came of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

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
from artel.ledger.entries.words import signers
from artel.ledger.fold.history import Did
from artel.ledger.web.answers import whole
from artel.ledger.web.context import Context
from artel.protocol.errors import UsageError

MAX_ENTRIES = 400
"""Entries of a round that its page reads; a round that is tried again and again has more."""
MAX_ATTEMPTS = 8


@dataclass
class AttemptEntries:
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

    @cached_property
    def members(self) -> list[tuple[str, int]]:
        """Nodes, and the inner steps that each was assigned."""
        opened = self.opened[1] if self.opened is not None else None
        return list(zip(opened.members, opened.steps, strict=True)) if opened is not None else []

    @cached_property
    def weights(self) -> dict[str, int]:
        """Accepted nodes and their weights; closed a second time, nobody is left: the nodes did
        not agree on a state."""
        closed = self.closed[-1][1].accepted if self.closed else ()
        return {item.node: item.weight for item in closed}

    @cached_property
    def rejected(self) -> dict[str, tuple[int, str]]:
        """Node to the entry that left it out first, and the reason."""
        return {
            item.node: (index, item.reason)
            for index, closed in reversed(self.closed)
            for item in closed.rejected
        }

    @cached_property
    def wrong(self) -> tuple[int, ...]:
        """Slices that those who signed the state found wrong."""
        return self.agreed[1].wrong if self.agreed is not None else ()

    def wrong_of(self, peer: str) -> list[int]:
        """Those that this node combined."""
        return [n for n in self.wrong if n in self.slices and self.slices[n][1].node == peer]

    @property
    def unrecorded(self) -> int:
        """Slices whose result nobody has recorded."""
        return max((body.slices for _, body in self.slices.values()), default=0) - len(self.slices)


def round_page(page: Context, asked: Mapping[str, str]) -> dict[str, Any]:
    """A round, newest attempt first.

    :raises UsageError: when it has not begun
    """
    number = whole(asked["number"], "a round")
    history, newest = page.history, page.newest_round
    found = history.chosen(round=number, limit=MAX_ENTRIES)[::-1]
    if not found and number != newest:
        raise UsageError(f"round {number:,} has not begun", f"the newest one is round {newest:,}")
    attempts, agreed = _read(page, found)
    granted = history.granted_by(agreed[0]) if agreed is not None else []
    return {
        "number": number,
        "attempts": attempts[::-1][:MAX_ATTEMPTS],
        "last": attempts[-1] if attempts else AttemptEntries(0),
        "agreed": agreed[0] if agreed is not None else None,
        "state": agreed[1].body if agreed is not None else None,
        "signers": signers(agreed[1], page.state) if agreed is not None else {},
        "granted": granted,
        "credits": {t.credit.work: t for t in granted if t.credit.kind == "compute"},
        "rate": page.state.rules.rates["compute"] if page.state.rules is not None else 0,
        "found": found,
        "older": history.count(round=number) - len(found),
    }


def _read(
    page: Context, dids: Sequence[Did]
) -> tuple[list[AttemptEntries], tuple[int, Entry] | None]:
    """Entries of the round, those that count, by attempt."""
    found: dict[int, AttemptEntries] = {}
    agreed = None

    def attempt(number: int) -> AttemptEntries:
        return found.setdefault(number, AttemptEntries(number))

    for index in (did.index for did in dids if not did.reason):
        entry = page.history.entry(index)
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
