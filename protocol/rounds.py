"""The round protocol as a pure state machine: ``step(rules, state, event) -> (state, actions)``.

No input or output, no clock, no randomness: time arrives inside events. What a node should be doing
is another pure function of the same state, :func:`protocol.duties.directive`.

One round::

    WAITING --enough nodes with the agreed state--> TRAINING --all or a quorum committed-->
    REVEALING --all revealed or time over--> APPLYING --a majority signed one root--> WAITING ...

A round that does not reach its quorum, or whose contributors do not agree on a state root, is
closed with nobody accepted, and opened again as its next *attempt*, after a while
(:mod:`protocol.pauses`) and with those who delivered (:mod:`protocol.members`). Once somebody was
accepted, no event changes who that is: the ledger has it.

In a run with a time box (``Rules.box`` > 0) every member trains as many steps as fit into it
(:mod:`coordinator.pace`): commitments close when all have committed, or ``grace`` after the box.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace

from artel.protocol import pauses
from artel.protocol.members import (
    due,
    faults_of_slices,
    known_quorum,
    members_of,
    owner,
    patience,
    ready,
    resting,
    sat_now,
    struck,
)
from artel.protocol.round_state import (
    BEHIND,
    COMMITMENT_MISMATCH,
    DISCONNECTED,
    DISSENT,
    HANDED_BACK,
    IN_THE_WAY,
    LATE,
    MISSING_REVEAL,
    NOT_HELD,
    UNSIGNED,
    Accused,
    Action,
    AgreeState,
    Checks,
    CloseCommitments,
    CloseRound,
    Combined,
    Committed,
    Drop,
    Event,
    Grounds,
    Halted,
    HandedBack,
    Held,
    Left,
    OfSlices,
    OpenRound,
    Phase,
    Presence,
    Ranked,
    Recomputed,
    Refuse,
    Revealed,
    RoundRules,
    RunState,
    Seen,
    StateSigned,
    Tick,
    Vote,
    Withheld,
)
from artel.protocol.seats import carries


def step(rules: RoundRules, state: RunState, event: Event) -> tuple[RunState, list[Action]]:
    """Apply one event, then everything that follows from it."""
    refused = refusal(rules, state, event)
    if refused is not None:
        return state, [refused]
    state = _apply(state, event)
    # Who is here decides nothing while members train and show; whoever else is silent, and what
    # time ends, the next tick sees. Looking at all for each heartbeat would cost their square.
    if isinstance(event, Seen) and state.phase in (Phase.TRAINING, Phase.REVEALING):
        return state, []
    actions: list[Action] = []
    for peer, presence in list(state.peers.items()):
        if event.now - presence.seen > rules.heartbeat_timeout:
            state = _without(state, peer)
            actions.append(Drop(peer, f"silent for {rules.heartbeat_timeout:.0f} s"))
    while True:
        state, more = _advance(rules, state, event.now)
        if not more:
            return state, actions
        actions += more


def refusal(rules: RoundRules, state: RunState, event: Event) -> Refuse | None:
    """Why an event does not fit the state; None when it does."""
    if isinstance(event, Tick | Halted | Ranked | Seen | Left):
        return None
    if isinstance(event, Checks):
        place = (event.round, event.attempt, Phase.APPLYING)
        if place != (state.round, state.attempt, state.phase):
            return Refuse("stale", f"the state of round {event.round} is not being agreed on now")
        return None
    if event.round != state.round:
        return Refuse("stale", f"round {event.round} is not the current round {state.round}")
    if isinstance(event, StateSigned):
        if state.phase is not Phase.APPLYING or event.attempt != state.attempt:
            return Refuse("stale", f"the state of round {state.round} is not being agreed on now")
        if not state.accused <= event.accused:
            return Refuse("stale", "a slice has been called wrong meanwhile: look again")
        # Else whoever lies could take it back just before the coordinator knows what is right.
        vote = Vote(event.root, event.wrong)
        if state.votes.get(event.peer, vote) != vote:
            return Refuse("duplicate", "this node has signed another state of this attempt already")
        return None
    if event.attempt != state.attempt:
        return Refuse("stale", f"attempt {event.attempt} of round {event.round} is over")
    if isinstance(event, OfSlices) and state.phase is not Phase.APPLYING:
        return Refuse("stale", f"the slices of round {event.round} are not combined now")
    if isinstance(event, Accused) and event.now - state.since >= patience(rules, state):
        return Refuse("stale", "most have signed, and have waited for the others")
    if isinstance(event, HandedBack) and state.phase in (Phase.WAITING, Phase.FINISHED):
        return Refuse("stale", f"attempt {event.attempt} of round {event.round} is not open")
    if event.peer not in state.members:
        return Refuse("not_member", f"this node is not a member of round {state.round}")
    if event.peer in state.rejected:
        return Refuse(state.rejected[event.peer], "this node is out of the round")
    if isinstance(event, Committed):
        if state.phase is not Phase.TRAINING:
            return Refuse(LATE, "the commitments of this round are closed")
        if state.commitments.get(event.peer, event.commitment) != event.commitment:
            return Refuse(COMMITMENT_MISMATCH, "this node has committed to something else already")
    if isinstance(event, Revealed):
        if state.phase is not Phase.REVEALING:
            return Refuse("too_early", "the commitments of this round are not closed yet")
        if event.peer not in state.commitments:
            return Refuse(COMMITMENT_MISMATCH, "this node has committed to nothing")
    return None


def _apply(state: RunState, event: Event) -> RunState:
    if isinstance(event, Seen):
        presence = Presence(event.now, event.root, event.leaving)
        return replace(state, peers={**state.peers, event.peer: presence})
    if isinstance(event, Left):
        return _without(state, event.peer)
    if isinstance(event, Halted):
        return replace(state, halted=event.halted)
    if isinstance(event, Ranked):
        return replace(state, seats=event.seats, on_members=event.on_members, unranked=False)
    if isinstance(event, HandedBack):
        if state.phase is Phase.APPLYING or event.peer in state.revealed:
            return replace(state, handed_back=state.handed_back | {event.peer})
        return replace(state, rejected={**state.rejected, event.peer: HANDED_BACK})
    if isinstance(event, Committed):
        return replace(state, commitments={**state.commitments, event.peer: event.commitment})
    if isinstance(event, Revealed):
        if event.fault:
            return replace(state, rejected={**state.rejected, event.peer: event.fault})
        return replace(state, revealed=state.revealed | {event.peer})
    if isinstance(event, Accused):
        informed = {p: vote for p, vote in state.votes.items() if event.slice in vote.wrong}
        accused = state.accused | {event.slice}
        again = state.again.union(state.votes.keys() - informed.keys())
        return replace(state, votes=informed, accused=accused, again=again)
    if isinstance(event, Combined):
        return replace(state, combined=state.combined | {event.slice})
    if isinstance(event, Withheld):
        return replace(state, withheld=event.peers)
    if isinstance(event, Grounds):
        # Nobody has a seat outside: a paused node would be followed by the next one of its account.
        paused = resting(state).values()
        outside = frozenset(
            peer
            for peer in event.outside.intersection(ready(state)) - {*state.accepted}
            if owner(state, peer) not in paused
        )
        state = replace(state, weights=event.weights, recompute=event.recompute)
        return replace(state, outside=outside, slices=event.slices)
    if isinstance(event, Recomputed):
        return replace(state, own=event.root, held=state.held | {event.root})
    if isinstance(event, Held):
        if event.held:
            return replace(state, held=state.held | {event.root})
        return replace(state, not_held=state.not_held | {event.peer})
    if isinstance(event, StateSigned):
        state = replace(state, votes={**state.votes, event.peer: Vote(event.root, event.wrong)})
        before = state.peers.get(event.peer)
        presence = Presence(event.now, event.root, before.leaving if before else False)
        return replace(state, peers={**state.peers, event.peer: presence})
    return state


def _without(state: RunState, peer: str) -> RunState:
    """The state after a peer went away.

    What it revealed stays, because the blob is with the coordinator; a commitment alone does not.
    """
    state = replace(state, peers={p: seen for p, seen in state.peers.items() if p != peer})
    unfinished = (
        state.phase in (Phase.TRAINING, Phase.REVEALING)
        and peer in state.members
        and peer not in state.revealed
        and peer not in state.rejected
    )
    if unfinished:
        state = replace(state, rejected={**state.rejected, peer: DISCONNECTED})
    return state


def _advance(rules: RoundRules, state: RunState, now: float) -> tuple[RunState, list[Action]]:
    """One transition if its condition holds, else no actions."""
    if state.phase is Phase.FINISHED and state.round < rules.total:  # it was extended
        state = replace(state, phase=Phase.WAITING, since=now)
    if state.phase is Phase.WAITING:
        return _try_open(rules, state, now)
    if state.phase is Phase.TRAINING:
        return _try_close_commitments(rules, state, now)
    if state.phase is Phase.REVEALING:
        return _try_close_round(rules, state, now)
    if state.phase is Phase.APPLYING:
        return _try_agree(rules, state, now)
    return state, []


def _try_open(rules: RoundRules, state: RunState, now: float) -> tuple[RunState, list[Action]]:
    if state.unranked:  # what comes next may have other rules
        return state, []
    if state.round >= rules.total:
        return replace(state, phase=Phase.FINISHED, since=now), []
    if state.halted or rules.paused or now - state.since < pauses.wait_before(state.failed):
        return state, []
    members = members_of(rules, state)
    if not members:
        return state, []
    # Who is a moment slower to apply the last round is waited for, but nobody twice in vain.
    here = {peer for peer, presence in state.peers.items() if not presence.leaving}
    wanted = state.delivered or {
        peer
        for peer in due(rules, state)
        if not pauses.sits_out(state.pauses, peer, state.round)
        and (peer not in state.pauses or state.pauses[peer].reason != BEHIND)
    }
    slow = wanted & here - set(ready(state))
    if slow and now - state.since < rules.grace:
        return state, []
    # Of the attempt before nothing stays.
    state = RunState(
        Phase.TRAINING,
        state.round,
        state.attempt,
        state.base,
        now,
        peers=state.peers,
        members=members,
        begun=state.begun,
        pauses=struck(state, dict.fromkeys(slow, BEHIND)),
        proven=state.proven,
        unawaited=state.unawaited,
        seats=state.seats,
        sat=sat_now(state, members),
        on_members=state.on_members,
        wary_until=state.wary_until,
    )
    return state, [OpenRound(state.round, state.attempt, state.base, members)]


def _try_close_commitments(
    rules: RoundRules, state: RunState, now: float
) -> tuple[RunState, list[Action]]:
    open_members = [peer for peer in state.members if peer not in state.rejected]
    committed = [peer for peer in open_members if peer in state.commitments]
    known = known_quorum(rules, state, committed)
    if known and state.quorum_since is None:
        state = replace(state, quorum_since=now)
    # In a box everybody has the same time, so that the quick do not cut the slow ones short.
    quorum_since = None if rules.box else state.quorum_since
    graced = quorum_since is not None and now - quorum_since >= rules.grace
    over = now - state.since >= rules.training
    if not (len(committed) == len(open_members) or (known and graced) or over):
        return state, []
    late = {peer: LATE for peer in open_members if peer not in state.commitments}
    state = replace(state, rejected={**state.rejected, **late})
    if not (known or len(committed) >= rules.needed(len(state.members))):
        return _fail(state, now, committed, state.rejected)
    kept = {peer: state.commitments[peer] for peer in sorted(committed)}
    state = replace(state, phase=Phase.REVEALING, since=now, commitments=kept, quorum_since=None)
    return state, [CloseCommitments(state.round, state.attempt, kept)]


def _try_close_round(
    rules: RoundRules, state: RunState, now: float
) -> tuple[RunState, list[Action]]:
    missing = [
        peer
        for peer in state.commitments
        if peer not in state.revealed and peer not in state.rejected
    ]
    known = known_quorum(rules, state, state.accepted)
    if known and state.quorum_since is None:
        state = replace(state, quorum_since=now)
    if missing and now - state.since < min(rules.reveal, patience(rules, state)):
        return state, []
    rejected = {**state.rejected, **dict.fromkeys(missing, MISSING_REVEAL)}
    state = replace(state, rejected=rejected)
    if not (known or len(state.accepted) >= rules.needed(len(state.members))):
        return _fail(state, now, state.accepted, rejected)
    state = replace(state, phase=Phase.APPLYING, since=now, quorum_since=None)
    return state, [CloseRound(state.round, state.attempt, state.accepted, rejected)]


def _try_agree(rules: RoundRules, state: RunState, now: float) -> tuple[RunState, list[Action]]:
    accepted = state.accepted
    if state.withheld:
        rest = [peer for peer in accepted if peer not in state.withheld]
        if not all(state.weights.get(peer) for peer in state.withheld):
            state = replace(state, wary_until=state.round + pauses.WARY)
        return _fail(state, now, rest, dict.fromkeys(sorted(state.withheld), pauses.WITHHELD))
    votes = {peer: state.votes[peer] for peer in accepted if peer in state.votes}
    outside = {peer: state.votes[peer] for peer in sorted(state.outside) if peer in state.votes}
    awaited = [
        peer
        for peer in accepted
        if peer in state.peers and peer not in votes and peer not in state.handed_back
    ]
    sharded = len(state.members) > rules.gather_members
    counted = {peer: vote for peer, vote in votes.items() if _counts(state, peer, vote)}
    best = _heaviest(state, counted)
    signers = tuple(peer for peer in accepted if counted.get(peer) == best)
    majority = carries(state.weights, accepted, signers)
    if majority and not sharded:  # else they may be the only ones who have checked a slice
        awaited = [peer for peer in awaited if peer not in state.unawaited]
    if majority and state.quorum_since is None:
        state = replace(state, quorum_since=now)
    most = rules.settle
    if majority:
        most = min(most, patience(rules, state) if sharded else rules.grace)
    if awaited and now - state.since < most:
        return state, []
    # Whoever looks from outside has the same grace; the coordinator's own word needs no other.
    missed = set() if state.own else state.outside - outside.keys()
    if majority and missed & state.peers.keys() - state.unawaited and now - state.since < most:
        return state, []
    checked = not rules.checked or _checked(state, best.root if majority else "")
    if votes and not checked and now - state.since < rules.settle:
        return state, []
    guilty = {peer: reason for peer, reason in state.rejected.items() if reason in IN_THE_WAY}
    guilty |= dict.fromkeys(state.not_held & set(accepted), NOT_HELD)
    if state.own:
        guilty |= {p: DISSENT for p, vote in (votes | outside).items() if vote.root != state.own}
    if not majority or not checked:
        right = signers if majority else _side(state, votes)
        if state.own:
            right = [*_side(state, votes), *(p for p in outside if p not in guilty)]
        elif rules.checked and state.owes_root:
            right = list(votes)  # nobody can tell
        for peer in accepted:
            if peer not in votes:
                guilty[peer] = HANDED_BACK if peer in state.handed_back else UNSIGNED
            elif right and peer not in right:
                guilty.setdefault(peer, DISSENT)
        return _fail(state, now, right, guilty)
    if sharded:
        # They were waited for until the last; not whoever has to look again.
        guilty |= {peer: UNSIGNED for peer in awaited if peer not in state.again}
        guilty |= faults_of_slices(state, best.wrong)
    agreeing = tuple(peer for peer, vote in outside.items() if vote == best)
    state = replace(
        state,
        phase=Phase.WAITING,
        since=now,
        round=state.round + 1,
        attempt=state.begun.get(state.round + 1, 0),
        base=best.root,
        pauses=pauses.forgiven(struck(state, guilty), signers, state.round + 1),
        proven=state.proven | set(signers),
        unawaited=(state.unawaited | {*accepted, *missed}) - {*signers, *outside},
        unranked=bool(state.seats),
        followers=frozenset(p for p, seen in state.peers.items() if seen.root == state.base),
    )
    agreed = AgreeState(state.round, best.root, signers, best.wrong, agreeing, bool(state.own))
    return state, [agreed]


def _counts(state: RunState, peer: str, vote: Vote) -> bool:
    """Whether a vote counts as far as is known by now."""
    return peer not in state.not_held and state.own in ("", vote.root)


def _checked(state: RunState, root: str) -> bool:
    """Whether all is known that a state rests on beside its signatures.

    :param root: that of the state which has enough of them; "" when none has
    """
    return not state.owes_root and (not root or root in state.held)


def _heaviest(state: RunState, votes: Mapping[str, Vote]) -> Vote:
    """The vote of the most standing, then of the most nodes; an empty one without any."""
    weight: Counter[Vote] = Counter()
    for peer, vote in votes.items():
        weight[vote] += state.weights.get(peer, 0)
    heads = Counter(votes.values())
    return max(sorted(heads), key=lambda vote: (weight[vote], heads[vote]), default=Vote(""))


def _side(state: RunState, votes: Mapping[str, Vote]) -> list[str]:
    """Of voters without a majority: those to go on with; nobody when that cannot be told.

    Those who came to the same root as the coordinator, where that has one. Else the side of the
    most standing; then the one with the most nodes that have signed an agreed state before, so that
    a stranger's word alone puts nobody out; then the one with the most nodes.
    """
    counted = {peer: vote for peer, vote in votes.items() if _counts(state, peer, vote)}
    if state.own:
        return list(counted)
    weight: dict[Vote, tuple[int, int, int]] = {}
    for peer, vote in counted.items():
        standing, proven, heads = weight.get(vote, (0, 0, 0))
        standing += state.weights.get(peer, 0)
        weight[vote] = standing, proven + (peer in state.proven), heads + 1
    heaviest = [vote for vote in weight if weight[vote] == max(weight.values())]
    return [peer for peer, vote in counted.items() if heaviest == [vote]]


def _fail(
    state: RunState, now: float, delivered: Iterable[str], guilty: Mapping[str, str]
) -> tuple[RunState, list[Action]]:
    """Close the attempt with nobody accepted; the same round is opened again.

    :param guilty: whose fault that was, and why
    """
    action = CloseRound(state.round, state.attempt, (), state.rejected)
    state = replace(
        state,
        phase=Phase.WAITING,
        since=now,
        attempt=state.attempt + 1,
        delivered=frozenset(delivered),
        pauses=struck(state, guilty),
    )
    return state, [action]
