"""What every account has: one row for the commands, the pages and the files that list them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold.shares import shares

Aliases = Mapping[str, tuple[str, str]]
"""Account to the name and the team that it has published."""


@dataclass(frozen=True)
class Holding:
    """An account's work and credit, as of one entry of the ledger."""

    account: str
    alias: str = ""
    team: str = ""
    work: dict[str, int] = field(default_factory=dict)
    """Units by kind of work."""
    granted: int = 0
    vested: int = 0
    pending: int = 0
    """Granted, and can still be disputed."""
    awaiting: int = 0
    """Accepted; it will be granted when the nodes have agreed on the state."""
    invalidated: int = 0
    sent: int = 0
    received: int = 0
    units: int = 0
    """Its share in units of 2^-30, of what has vested."""
    share: float = 0.0
    """The units as a part of 1, exactly."""
    units_with_pending: int = 0
    share_with_pending: float = 0.0
    """As if everything that is pending had vested."""
    standing: int = 0
    """What its words weigh (:mod:`ledger.entries.standing`)."""
    left_out: dict[str, int] = field(default_factory=dict)
    """Reason to how often its work did not count."""

    @property
    def has_any(self) -> bool:
        """Whether it has or had credit, or work that might become some."""
        return bool(self.granted or self.received or self.awaiting or self.left_out)

    def facts(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


def holdings(state: FoldState, aliases: Aliases | None = None) -> list[Holding]:
    """All accounts, the largest share first, then the largest with what is pending."""
    found = _held(state, state.accounts, aliases or {})
    return sorted(found, key=lambda one: (-one.units, -one.units_with_pending, one.account))


def holding(state: FoldState, account: str, aliases: Aliases | None = None) -> Holding:
    """What one account has; nothing when there is none."""
    found = _held(state, {account} & state.accounts.keys(), aliases or {})
    return next(found, Holding(account))


def shares_facts(state: FoldState, aliases: Aliases) -> dict[str, Any]:
    """Who owns what, as JSON. Shares are of vested credit and add up to exactly 1."""
    return {
        "run": state.run,
        "as_of": state.size,
        "round": state.round,
        "total": state.total,
        "vested": state.total_vested,
        "pending": state.total_pending,
        "standing": sum(state.standings().values()),
        "rests_on": state.rests_on if state.run else "",
        "shares": [one.facts() for one in holdings(state, aliases) if one.has_any],
    }


def _held(state: FoldState, names: Iterable[str], aliases: Aliases) -> Iterator[Holding]:
    now = {share.account: share for share in shares(state)}
    later = {share.account: share for share in shares(state, with_pending=True)}
    awaiting, left_out = state.awaiting(), state.rejected_by_account()
    for name in names:
        owner, (alias, team) = state.accounts[name], aliases.get(name, ("", ""))
        yield Holding(
            account=name,
            alias=alias,
            team=team,
            work=owner.units,
            granted=owner.granted,
            vested=owner.vested,
            pending=owner.pending,
            awaiting=awaiting.get(name, 0),
            invalidated=owner.invalidated,
            sent=owner.sent,
            received=owner.received,
            units=now[name].units if name in now else 0,
            share=now[name].share if name in now else 0.0,
            units_with_pending=later[name].units if name in later else 0,
            share_with_pending=later[name].share if name in later else 0.0,
            standing=state.standings().get(name, 0),
            left_out=left_out.get(name, {}),
        )
