"""Who takes part in a round, who of these are a quorum, how long the others are waited for, and who
owes its slices."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial

from artel.protocol import assignment, pauses
from artel.protocol.round_state import (
    FALSELY_ACCUSED,
    MISCOMBINED,
    UNCOMBINED,
    RoundRules,
    RunState,
)
from artel.protocol.seats import UNKNOWN, Seat, seated, standing_parts

REMEMBERED = 4096
"""Nodes of which it is known when they last sat."""


def ready(state: RunState) -> list[str]:
    """Present nodes that hold the agreed state and may take part, ascending."""
    return sorted(
        peer
        for peer, presence in state.peers.items()
        if presence.root == state.base and not presence.leaving
    )


def _seat(state: RunState, peer: str) -> Seat:
    return state.seats.get(peer, UNKNOWN)


def owner(state: RunState, peer: str) -> str:
    """The account of a node; where that is unknown the node itself."""
    return _seat(state, peer).account or peer


def struck(state: RunState, reasons: Mapping[str, str]) -> dict[str, pauses.Pause]:
    """The pauses after these were in the way of this round."""
    return pauses.struck(state.pauses, reasons, state.round, partial(owner, state))


def resting(state: RunState) -> dict[str, str]:
    """Who sits this round out, and whose node it is."""
    out = (p for p in state.pauses if pauses.sits_out(state.pauses, p, state.round))
    return {peer: state.pauses[peer].account for peer in out}


def wary(state: RunState) -> bool:
    """Whether a newcomer has kept back what it had contributed, not long ago. Then at most one sits
    in a round, and none in its repetitions."""
    return state.on_members and state.round <= state.wary_until


def distrusted(state: RunState, peer: str) -> bool:
    """Whether a node is such a newcomer: what it contributes has to be with the coordinator before
    it counts, so that nothing of it can be kept back."""
    return wary(state) and not _seat(state, peer).standing


def members_of(rules: RoundRules, state: RunState) -> tuple[str, ...]:
    """Who the attempt that comes next is opened with, ascending; () when there are too few.

    - The first attempt of a round: everybody who does not sit it out.
    - A repetition: those who delivered in the attempt before. That way nobody who only gets in the
      way, and no stranger who came meanwhile, can make a round fail again and again.
    - When these are fewer than ``min_nodes``, every second repetition is filled up to that number,
      so that a quorum may do without one; the others take everybody, sitting out or not, to find
      out who does deliver now. The same when nobody had delivered.

    Where places are short, everybody gets one now and then. Once the run rests on its members, half
    of the places go to accounts with standing as the lot has drawn them, a quarter to those of
    their nodes that have waited longest, and a quarter to newcomers (:mod:`protocol.seats`); see
    also :func:`wary`. Before
    that a quarter goes to nodes that have not signed an agreed state yet, and of all others those
    that have waited longest come first. Who has fewer strikes comes before who has more.
    """
    nodes = sorted(ready(state), key=partial(_rank, state))
    if len(nodes) < rules.min_nodes:
        return ()
    if state.failed == 0:
        chosen = [p for p in nodes if not pauses.sits_out(state.pauses, p, state.round)]
    else:
        chosen = [peer for peer in nodes if peer in state.delivered]
        if not chosen or (len(chosen) < rules.min_nodes and state.failed % 2 == 0):
            chosen = nodes
    # A quarter, also of fewer than four.
    quarter = (rules.max_nodes + state.round % 4) // 4
    if state.on_members:
        by_lot = max(0, rules.max_nodes - 2 * quarter)
        chosen[by_lot:] = sorted(chosen[by_lot:], key=partial(_waits, state))
        # Whoever sits out has its seat: else nodes of one account would take turns.
        out = Counter(name for peer, name in resting(state).items() if peer not in chosen)
        most = int(not state.failed) if wary(state) else rules.max_nodes
        chosen = seated(chosen, state.seats, rules.max_nodes, out, quarter, most)
    elif len(chosen) > rules.max_nodes:
        known = sorted((p for p in chosen if _known(state, p)), key=partial(_waits, state))
        new = [peer for peer in chosen if peer not in known]
        kept = min(len(new), quarter)
        chosen = [*known[: rules.max_nodes - kept], *new]
    missing = max(0, rules.min_nodes - len(chosen))
    chosen += [peer for peer in nodes if peer not in chosen][:missing]
    return tuple(sorted(chosen[: rules.max_nodes]))


def due(rules: RoundRules, state: RunState) -> Collection[str]:
    """Who is to sit in the round that comes next: the members of the last one, and before every
    fourth round those who followed it, since else a newcomer never holds the state in time where
    all members are quick; where places are short those who would if all who are here held the
    agreed state."""
    if state.failed:
        return state.members
    if len(state.peers) <= rules.max_nodes:
        return {*state.members, *(state.followers if state.round % 4 == 0 else ())}
    here = {p: replace(presence, root=state.base) for p, presence in state.peers.items()}
    return members_of(rules, replace(state, peers=here))


def sat_now(state: RunState, members: Collection[str]) -> dict[str, int]:
    """When nodes last sat, with the members of the round that begins."""
    sat = {**state.sat, **dict.fromkeys(members, state.round)}
    oldest = set(sorted(sat, key=lambda peer: sat[peer])[:-REMEMBERED])
    return {peer: round for peer, round in sat.items() if peer not in oldest}


def _known(state: RunState, peer: str) -> bool:
    return peer in state.proven or bool(_seat(state, peer).standing)


def _strikes(state: RunState, peer: str) -> int:
    return state.pauses[peer].strikes if peer in state.pauses else 0


def _rank(state: RunState, peer: str) -> tuple[bool, bool, int, int, str]:
    """In which order nodes get places, but for those who have waited."""
    seat, strange = _seat(state, peer), peer not in state.proven and not state.on_members
    return not seat.standing, strange, _strikes(state, peer), seat.place, peer


def _waits(state: RunState, peer: str) -> tuple[int, int, int, str]:
    """The longer a node has waited, the earlier."""
    return _strikes(state, peer), state.sat.get(peer, -1), _seat(state, peer).place, peer


def known_quorum(rules: RoundRules, state: RunState, done: Collection[str]) -> bool:
    """Whether these are a quorum of the members that have delivered lately: they have signed an
    agreed state, and no node of their account was in the way since.

    So whoever never delivered makes nobody wait, and does not end the waiting for others either.
    All count where so few have that the round would not be one without the others. Once the run
    rests on its members standing is counted, and not nodes: little of it gets a seat, too. Half of
    all who have ever delivered are needed, so that a few who never failed cut nobody short.
    """
    few, members = max(2, rules.min_nodes), frozenset(state.members)
    known = members & state.proven
    known = known if len(known) >= few else members
    struck = {pause.account for pause in state.pauses.values()}
    lately = {peer for peer in known if owner(state, peer) not in struck}
    parts = standing_parts(known, state.seats) if state.on_members else {}
    if not any(parts.values()):
        parts = dict.fromkeys(known, 1)
    some = known.intersection(done)

    def are(part: float, whole: Collection[str]) -> bool:
        needed = part * sum(parts[peer] for peer in whole) - 1e-9
        return sum(parts[peer] for peer in some.intersection(whole)) >= needed

    enough = are(rules.quorum, lately if len(lately) >= few else known)
    return enough and are(min(rules.quorum, 0.5), known) and len(some) >= min(2, len(known))


def patience(rules: RoundRules, state: RunState) -> float:
    """Seconds of a phase after which nobody is waited for: once a quorum is done, as long again as
    it took, and ``grace`` at least."""
    if state.quorum_since is None:
        return math.inf
    took = state.quorum_since - state.since
    return took + max(rules.grace, took)


def faults_of_slices(state: RunState, wrong: Collection[int]) -> dict[str, str]:
    """Whose slices all others had to wait for or to combine themselves, and who let them do so for
    nothing.

    :param wrong: slices that the agreed state was made without
    """
    place = (state.accepted, state.round)
    missing = set(range(state.slices)) - state.combined
    found = {assignment.aggregator(*place, number): UNCOMBINED for number in missing}
    found |= {assignment.aggregator(*place, number): MISCOMBINED for number in wrong}
    for number in state.accused.difference(wrong):
        if (peer := assignment.checker(*place, number)) is not None:
            found[peer] = FALSELY_ACCUSED
    return found
