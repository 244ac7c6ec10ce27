"""What silence and dissent cost: who sits out, and how long a round that failed waits. Pure.

A member is *struck* when it was in the way: it committed to nothing, showed nothing, signed no
state or another one than the rest, in an attempt that failed for that; or it committed a fault. The
first time this costs nothing but the rest of that round. From then on each time doubles the rounds
that are opened without it: 1, 2, 4, 8, 16, 16, ... (At once where it kept back what it had shown to
have.) Every eighth signature under an agreed state halves its strikes: who was in the way in every
second round, after one signature, could be so for ever.

An account has several nodes, and each begins without strikes. So a node counts with its own ones
one for each other node of its account that has any, but none more than the one of them with the
most: nodes that take turns are paused as one would be, while a machine beside a broken one counts
one more, and those that fail together, behind one line, count once.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

MAX_PAUSE = 16
"""Rounds that are opened without a node, at most; after as many more its strikes are forgotten."""
MAX_STRIKES = 2 + MAX_PAUSE.bit_length() - 1
"""More do not make a pause longer."""
FIRST_WAIT_S = 5.0
MAX_WAIT_S = 300.0
WITHHELD = "kept back what it has contributed"
"""The reason for which even the first time is not free."""
WARY = 32
"""Rounds with few newcomers, after one of them did that (:func:`protocol.members.wary`)."""
FORGIVING = 8
"""Signatures that halve the strikes of a node."""


@dataclass(frozen=True)
class Pause:
    """A node that was in the way, the last time for ``reason``."""

    strikes: int
    until: int
    """The last round that is opened without it."""
    reason: str
    account: str
    """Its owner then; the node itself where that is unknown."""
    signed: int = 0
    """States that it signed since then, or since strikes were taken from it."""


Pauses = Mapping[str, Pause]


def struck(
    pauses: Pauses, reasons: Mapping[str, str], round: int, owner: Callable[[str], str]
) -> dict[str, Pause]:
    """The pauses after these nodes (peer id to reason) were in the way in ``round``.

    :param owner: the account of each of them
    """
    after = dict(pauses)
    for peer, reason in reasons.items():
        account = owner(peer)
        others = [p.strikes for name, p in pauses.items() if p.account == account and name != peer]
        own = pauses[peer].strikes if peer in pauses else 0
        strikes = 1 + min(own + len(others), max([own, *others]))
        strikes = min(max(strikes, 2 if reason == WITHHELD else 1), MAX_STRIKES)
        until = round + (2 ** (strikes - 2) if strikes > 1 else 0)
        after[peer] = Pause(strikes, until, reason, account)
    return after


def forgiven(pauses: Pauses, peers: Collection[str], round: int) -> dict[str, Pause]:
    """The pauses once ``peers`` have signed the state that ``round`` starts from."""
    after = {}
    for peer, pause in pauses.items():
        if peer in peers:  # it was called although it sat out, and is back
            until = min(pause.until, round - 1)
            pause = replace(pause, signed=pause.signed + 1, until=until)
            if pause.signed == FORGIVING:
                pause = replace(pause, strikes=pause.strikes // 2, signed=0)
        if pause.strikes and round <= pause.until + MAX_PAUSE:
            after[peer] = pause
    return after


def sits_out(pauses: Pauses, peer: str, round: int) -> bool:
    """Whether ``round`` is opened without this node."""
    return peer in pauses and round <= pauses[peer].until


def wait_before(attempt: int) -> float:
    """Seconds between a failed attempt and this one, its successor.

    The first repetition comes at once. Then the wait doubles, because every attempt leaves entries
    in the ledger for ever: 5 s, 10 s, ..., 300 s.
    """
    if attempt < 2:
        return 0.0
    return float(min(FIRST_WAIT_S * 2 ** min(attempt - 2, 16), MAX_WAIT_S))
