"""The story of one account's work, entry by entry: what it showed, and what became of it.

The fold keeps sums; a person asks about single contributions. A journal is filled while the ledger
is replayed and can be kept and continued, like the fold's state.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from artel.ledger.entries import Contribution, Entry, Node, reasons
from artel.ledger.entries.state import Credit, Outcome

PENDING, VESTED, INVALIDATED = "pending", "vested", "invalidated"


_HARMLESS = (reasons.NOT_AGREED, reasons.FALSE_ACCUSATION)


@dataclass
class Shown:
    """A contribution in the ledger; ``reason`` says why the fold ignores it, if it does."""

    index: int
    round: int
    attempt: int
    node: str
    tokens: int
    reason: str = ""


@dataclass
class Earned:
    """Credit for one piece of work, and the newest that happened to it, at entry ``index``."""

    index: int
    kind: str
    node: str
    round: int
    units: int
    amount: int
    status: str = PENDING


@dataclass
class Journal:
    """What the ledger says about the work of ``account``."""

    account: str
    nodes: list[str] = field(default_factory=list)
    """Peer ids that were ever bound to it."""
    shown: dict[str, Shown] = field(default_factory=dict)
    """By entry id."""
    earned: dict[str, Earned] = field(default_factory=dict)
    """By source: a contribution's entry id, or a name made of the kind of work."""
    left_out: dict[str, str] = field(default_factory=dict)
    """Reason codes of work that earned nothing, by :func:`place`."""

    def observe(self, index: int, entry: Entry, outcome: Outcome) -> None:
        """Take note of the next entry."""
        body = entry.body
        if isinstance(body, Node) and body.account == self.account:
            if outcome.status != "ignored" and body.node not in self.nodes:
                self.nodes.append(body.node)
        elif isinstance(body, Contribution) and body.node in self.nodes:
            facts = (index, body.round, body.attempt, body.node, body.tokens, outcome.reason)
            self.shown.setdefault(entry.id, Shown(*facts))
        for item in outcome.left_out:
            if item.node in self.nodes and item.reason not in _HARMLESS:
                self.left_out[place(item.round, item.attempt, item.node)] = item.reason
        self._credits(index, outcome)

    def _credits(self, index: int, outcome: Outcome) -> None:
        for credit in outcome.granted:
            self._credit(index, credit, PENDING)
        for credit in outcome.vested:
            self._credit(index, credit, VESTED)
        for credit in outcome.invalidated:
            self._credit(index, credit, INVALIDATED)

    def _credit(self, index: int, credit: Credit, status: str) -> None:
        if credit.account == self.account:
            facts = (credit.kind, credit.node, credit.round, credit.units, credit.amount)
            self.earned[credit.source] = Earned(index, *facts, status)

    def to_dict(self) -> dict[str, Any]:
        """A JSON value that :meth:`from_dict` reads back (for a cache of one's own making)."""
        return asdict(self)

    @classmethod
    def from_dict(cls, value: dict[str, Any]) -> Journal:
        """Inverse of :meth:`to_dict`; not a decoder for what others wrote."""
        return cls(
            value["account"],
            list(value["nodes"]),
            {entry: Shown(**item) for entry, item in value["shown"].items()},
            {source: Earned(**item) for source, item in value["earned"].items()},
            dict(value["left_out"]),
        )


def place(round: int, attempt: int, node: str) -> str:
    """A node's place in an attempt, as a key."""
    return f"{round}/{attempt}/{node}"
