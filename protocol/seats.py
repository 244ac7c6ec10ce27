"""Who sits in a round: nodes whose accounts have standing, and few whom nobody knows. Pure.

A *newcomer* is a node whose account has no standing. While a run rests on its coordinator all may
sit. Once it rests on its members, at most a quarter of a round's members are newcomers (one, where
that is less), each of another account: so keys that cost nothing are neither many in the sum nor
keep others out. Where all seats could be taken by nodes with standing, a quarter is left to
newcomers, or nobody new would ever get any.

An account with standing gets no larger part of the seats than it has of all standing, rounded up:
nodes cost nothing either. Its nodes that sit out have theirs (:mod:`protocol.pauses`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Seat:
    """What a node has when seats are given away."""

    account: str
    standing: int
    place: int
    """In the order that the lot of the newest agreed round drew, from 0."""
    whole: int = 0
    """The standing of all accounts together."""


UNKNOWN = Seat("", 0, 1 << 53)


def quota(known: int) -> int:
    """How many newcomers may sit beside ``known`` nodes with standing."""
    return max(1, known // 3)


def share(standing: int, whole: int, members: int) -> int:
    """How many of a round's members an account with standing may have, ``whole`` being that of all
    accounts."""
    return max(1, -(-standing * members // max(1, whole)))


def few_newcomers(accounts: Sequence[str], standings: Mapping[str, int]) -> bool:
    """Whether the members of a round, given by their accounts, have no more newcomers than they
    may."""
    newcomers = [name for name in accounts if name not in standings]
    few = len(newcomers) <= quota(len(accounts) - len(newcomers))
    return few and len(set(newcomers)) == len(newcomers)


def shared_out(accounts: Sequence[str], standings: Mapping[str, int]) -> bool:
    """Whether none of the accounts with standing has more members than its share."""
    whole, members = sum(standings.values()), len(accounts)
    return all(
        count <= share(standings[name], whole, members)
        for name, count in Counter(accounts).items()
        if name in standings
    )


def standing_parts(members: Collection[str], seats: Mapping[str, Seat]) -> dict[str, int]:
    """Member to its part of its account's standing, which those of one account share."""
    found = {peer: seats.get(peer, UNKNOWN) for peer in members}
    shared = Counter(seat.account for seat in found.values())
    return {peer: -(-seat.standing // shared[seat.account]) for peer, seat in found.items()}


def carries(weights: Mapping[str, int], accepted: Collection[str], signers: Iterable[str]) -> bool:
    """Whether these signers of a state are enough: more than half of the standing of all accepted;
    as long as none of them has any, more than half of their number.

    :param weights: node to its part of its account's standing when the round was closed
    """
    signed = [peer for peer in signers if peer in accepted]
    total = sum(weights.get(peer, 0) for peer in accepted)
    if not total:
        return 2 * len(signed) > len(accepted)
    return 2 * sum(weights.get(peer, 0) for peer in signed) > total


def seated(
    order: Sequence[str],
    seats: Mapping[str, Seat],
    most: int,
    resting: Mapping[str, int],
    kept: int,
    new: int,
) -> list[str]:
    """Those who get one of ``most`` seats, of nodes in the order in which they would.

    :param resting: account to its other nodes, which sit out and have one of its seats each
    :param kept: seats that are left to newcomers
    :param new: so many newcomers may have one at most
    """
    by_account: dict[str, str] = {}
    for peer in order:
        seat = seats.get(peer, UNKNOWN)
        if not seat.standing and seat.account and not resting.get(seat.account):
            by_account.setdefault(seat.account, peer)
    newcomers = list(by_account.values())[:new]
    members = min(most, len(order))
    while True:
        # Shares are of those who sit then: with fewer of them an account may have fewer.
        places = most - min(len(newcomers), kept)
        known = [*_within_shares(order, seats, members, resting)][:places]
        found = known + newcomers[: min(quota(len(known)), most - len(known))]
        if len(found) >= members:
            return found
        members = len(found)


def _within_shares(
    order: Sequence[str], seats: Mapping[str, Seat], members: int, resting: Mapping[str, int]
) -> Iterator[str]:
    """Nodes with standing, of each account no more than its share of so many members."""
    taken = Counter(resting)
    for peer in order:
        seat = seats.get(peer, UNKNOWN)
        if seat.standing and taken[seat.account] < share(seat.standing, seat.whole, members):
            taken[seat.account] += 1
            yield peer
