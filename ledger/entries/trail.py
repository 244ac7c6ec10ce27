"""What the ledger says of an attempt of a round and of a credit, put together from all entries that
speak of it; :mod:`ledger.fold.attempts` and :mod:`ledger.fold.history` do, and :mod:`.story` tells.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from artel.ledger.entries.records import Credit
from artel.ledger.entries.words import short_key

if TYPE_CHECKING:
    from artel.ledger.entries.kinds.aggregate import Aggregate
    from artel.ledger.entries.kinds.round_closed import RoundClosed
    from artel.ledger.entries.kinds.round_committed import RoundCommitted
    from artel.ledger.entries.kinds.round_opened import RoundOpened
    from artel.ledger.entries.kinds.slice_wrong import SliceWrong
    from artel.ledger.entries.kinds.state_agreed import StateAgreed


@dataclass
class AttemptTrail:
    """What the ledger says of one attempt of a round: the entries that count, (index, body) each;
    and what the history adds. Other numbers are indices of entries, -1 where there is none."""

    round: int
    attempt: int
    opened: tuple[int, RoundOpened] | None = None
    committed: tuple[int, RoundCommitted] | None = None
    shown: dict[str, int] = field(default_factory=dict)
    """Node to its contribution. There are as many as members: who needs the bodies reads them."""
    closed: list[tuple[int, RoundClosed]] = field(default_factory=list)
    """A second time with nobody: no majority agreed on a state."""
    slices: dict[int, tuple[int, Aggregate]] = field(default_factory=dict)
    accused: dict[int, list[tuple[int, SliceWrong]]] = field(default_factory=dict)
    """Slice to the entries that call it wrong."""
    agreed: tuple[int, StateAgreed] | None = None
    agreeing: int = 0
    """How many of the accepted contributors signed the state."""
    undone: int = -1
    """The entry by which the run went back behind that state."""
    void: int = -1
    """The entry by which what had been accepted came to nothing."""
    accounts: dict[str, str] = field(default_factory=dict)
    """Members and the account of each when the round was opened."""
    bound: dict[str, int] = field(default_factory=dict)
    """Member to the entry that had bound it to its account then."""
    tails: dict[str, int] = field(default_factory=dict)
    """Member to the steps of the round before that may count in this one."""

    @cached_property
    def steps(self) -> dict[str, int]:
        """Members, and the inner steps that each was assigned."""
        opened = self.opened[1] if self.opened is not None else None
        return dict(zip(opened.members, opened.steps, strict=True)) if opened is not None else {}

    @cached_property
    def weights(self) -> dict[str, int]:
        """Accepted nodes and their weights; closed a second time, nobody is left."""
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

    @property
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
    vested_by: int = -1
    """The entry by which it had vested; it may have been taken away since."""
    attempt: AttemptTrail | None = None
    """Of compute: the attempt that it was earned in, where that is told."""
    events: list[tuple[int, str]] = field(default_factory=list)
    """Disputes, verdicts and rulings on it: index, and what in a word."""

    def facts(self) -> dict[str, Any]:
        """As JSON: the credit with its amount, and what became of it."""
        told = {name: getattr(self, name) for name in ("granted", "due", "status", "settled")}
        return asdict(self.credit) | {"amount": self.credit.amount} | told

    def line(self) -> str:
        """One line of a table."""
        credit, state = self.credit, f"{self.status} by entry {self.settled}"
        if self.status == "pending":
            state = f"pending until state {self.due}"
        return (
            f"{short_key(credit.account):<12}  {credit.kind:<7}  {credit.units:>9,} × "
            f"{credit.rate:<5,} = {credit.amount:>12,}  for entry {credit.work}, granted by "
            f"{self.granted}, {state}"
        )
