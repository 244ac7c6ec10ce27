"""Credit and shares: a pure integer fold over the entries.

``state = step(state, index, entry)``. Balances are stored nowhere; whoever has the entries gets the
same numbers. An entry that does not fit (wrong signer, wrong order, unknown contribution) stays in
the log and changes nothing; the :class:`Outcome` says why. ``fold(prefix)`` and then ``fold(rest)``
is ``fold(all)``: the state holds all that later entries need. Time and chance play no part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from artel.ledger.entries import Entry, Genesis, reasons
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Attempt, Credit, Effect, Outcome
from artel.protocol.round_state import BAD_SIGNATURE

__all__ = [
    "SHARE_SCALE",
    "Attempt",
    "Credit",
    "FoldState",
    "Outcome",
    "Share",
    "apply",
    "check",
    "fold",
    "share_of",
    "shares",
    "split",
    "step",
]

SHARE_SCALE = 1 << 30
"""Shares are whole multiples of 2^-30, so that as floats they still add up to exactly 1."""


def check(state: FoldState, entry: Entry) -> str:
    """Why the entry would change nothing if it came next; "" when it would count."""
    decision = _decide(state, entry)
    return decision if isinstance(decision, str) else ""


def apply(state: FoldState, entry: Entry) -> Outcome:
    """Apply the next entry to a state that the caller owns; the state is changed in place.

    What a rule says is decided before anything changes, and is cheap: a lookup or two.
    """
    decision = _decide(state, entry)
    if isinstance(decision, str):
        outcome = Outcome("ignored", decision)
        state.ignored[decision] = state.ignored.get(decision, 0) + 1
    else:
        outcome = decision()
    state.kinds[entry.kind] = state.kinds.get(entry.kind, 0) + 1
    state.size += 1
    return outcome


def step(state: FoldState, index: int, entry: Entry) -> tuple[FoldState, Outcome]:
    """Apply the entry at ``index``, which must be ``state.size``. Copies: for many, use fold."""
    if index != state.size:
        raise ValueError(f"the next entry is {state.size}, not {index}")
    after = state.copy()
    return after, apply(after, entry)


def fold(
    entries: Iterable[Entry],
    state: FoldState | None = None,
    observe: Callable[[int, Entry, Outcome], None] | None = None,
) -> FoldState:
    """Apply entries in order to ``state`` (default: the empty ledger) and return the new state.

    :param observe: called after each entry with its index, itself and its outcome
    """
    state = FoldState() if state is None else state.copy()
    for entry in entries:
        outcome = apply(state, entry)
        if observe is not None:
            observe(state.size - 1, entry, outcome)
    return state


def _decide(state: FoldState, entry: Entry) -> str | Effect:
    body = entry.body
    if isinstance(body, Genesis):
        return body.rule(state, entry)
    if not state.run:
        return reasons.NO_GENESIS
    if body.run != state.run:
        return reasons.WRONG_RUN
    if not entry.signers:
        return BAD_SIGNATURE
    return body.rule(state, entry)


@dataclass(frozen=True)
class Share:
    """``credit``, ``units`` of 2^30, ``share`` = units / 2^30 exactly."""

    account: str
    credit: int
    units: int
    share: float


def shares(state: FoldState, *, with_pending: bool = False) -> list[Share]:
    """Split 2^30 units by vested credit, the largest share first; empty while nothing has vested.

    :param with_pending: as if everything that is pending would vest
    """
    credit = {
        name: owner.vested + (owner.pending if with_pending else 0)
        for name, owner in state.accounts.items()
    }
    units = split(credit, SHARE_SCALE)
    ranked = sorted(units, key=lambda account: (-units[account], account))
    return [Share(a, credit[a], units[a], units[a] / SHARE_SCALE) for a in ranked]


def share_of(state: FoldState, account: str, *, with_pending: bool = False) -> float:
    """The share of one account; see :func:`shares`."""
    found = shares(state, with_pending=with_pending)
    return next((one.share for one in found if one.account == account), 0.0)


def split(credit: Mapping[str, int], whole: int) -> dict[str, int]:
    """Parts of ``whole`` for those who have any credit; they add up to it, unless nobody has.

    Largest remainder: everybody gets the whole units of their quota, and the units that are left
    go to the largest fractions, ties to the account that sorts first.
    """
    total = sum(credit.values())
    parts = {name: amount * whole // total for name, amount in credit.items() if amount > 0}
    remainders = sorted(parts, key=lambda name: (-(credit[name] * whole % total), name))
    for name in remainders[: whole - sum(parts.values())]:
        parts[name] += 1
    return parts
