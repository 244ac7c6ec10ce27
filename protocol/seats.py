"""Who sits in a round: nodes whose accounts have standing, and few whom nobody knows. Pure.

A *newcomer* is a node whose account has no standing. While a run rests on its coordinator all may
sit. Once it rests on its members, at most a quarter of a round's members are newcomers (one, where
that is less), each of another account: so keys that cost nothing are neither many in the sum nor
keep others out. Where all seats could be taken by nodes with standing, a quarter is left to
newcomers, or nobody new would ever get any.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Seat:
    """What a node has when seats are given away."""

    account: str
    standing: int
    place: int
    """In the order that the lot of the newest agreed round drew, from 0."""


UNKNOWN = Seat("", 0, 1 << 53)


def quota(known: int) -> int:
    """How many newcomers may sit beside ``known`` nodes with standing."""
    return max(1, known // 3)


def may_sit(known: int, newcomers: Sequence[str], least: int) -> bool:
    """Whether these may be the members of a round of a run that rests on its members.

    :param known: how many members have standing
    :param newcomers: the account of each other one
    :param least: how many a round needs; one of no more may have any members
    """
    few = len(newcomers) <= quota(known) and len(set(newcomers)) == len(newcomers)
    return few or known + len(newcomers) <= least


def seated(order: Sequence[str], seats: Mapping[str, Seat], most: int) -> list[str]:
    """Those who get one of ``most`` seats, of nodes in the order in which they would."""
    known = [peer for peer in order if seats.get(peer, UNKNOWN).standing]
    by_account: dict[str, str] = {}
    for peer in order:
        seat = seats.get(peer, UNKNOWN)
        if not seat.standing and seat.account:
            by_account.setdefault(seat.account, peer)
    newcomers = list(by_account.values())
    known = known[: most - min(len(newcomers), most // 4)]
    return known + newcomers[: min(quota(len(known)), most - len(known))]
