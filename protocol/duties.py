"""What each node should be doing, as a pure function of the state of a run's rounds."""

from __future__ import annotations

from dataclasses import dataclass

from artel.protocol.members import patience, ready
from artel.protocol.messages import Task
from artel.protocol.pauses import wait_before
from artel.protocol.round_state import Phase, RoundRules, RunState


@dataclass(frozen=True)
class Duty:
    """What one node should be doing now, and why, in words for its owner."""

    task: Task
    reason: str
    root: str = ""
    remaining: float = 0.0


def directive(rules: RoundRules, state: RunState, peer: str, now: float) -> Duty:
    """The duty of ``peer``; ``remaining`` is in seconds.

    In a time box that of ``train`` is what is left of the box: a node then commits what it has.
    Below 0 it is already over.
    """
    presence = state.peers.get(peer)
    root = presence.root if presence else ""
    if state.phase is Phase.APPLYING:
        if peer in state.votes:
            return Duty("wait", "others are still computing the new state", state.base)
        if root == state.base or peer in state.accepted:
            # An accepted peer with another root has applied already; its signature got lost.
            left = rules.settle - (now - state.since)
            return Duty("apply", "compute the new state", state.base, left)
        return Duty("wait", "a new state is being agreed on", state.base)
    if root != state.base:
        return Duty("sync", "this node does not hold the agreed state", state.base)
    if state.phase is Phase.FINISHED:
        return Duty("stop", "the run is finished", state.base)
    if state.phase is Phase.WAITING:
        missing = rules.min_nodes - len(ready(state))
        left = wait_before(state.failed) - (now - state.since)
        reason = f"waiting for {missing} more node(s)" if missing > 0 else "the round opens soon"
        if missing <= 0 and left > 0:
            reason = f"attempt {state.failed + 1} of the round opens in {left:.0f} s"
        if rules.paused:
            reason = "the organiser has paused the run"
        if state.halted:
            reason = "a state was wrong; the run goes back, or its organiser has to amend it"
        return Duty("wait", _sitting_out(state, peer) or reason, state.base)
    if peer not in state.members:
        reason = "joined in the middle of a round; the next one counts"
        return Duty("wait", _sitting_out(state, peer) or reason, state.base)
    if peer in state.rejected:
        return Duty("wait", f"out of this round: {state.rejected[peer]}", state.base)
    if state.phase is Phase.TRAINING:
        if peer in state.commitments:
            return Duty("wait", "others are still training", state.base)
        left = (rules.box or rules.deadline) - (now - state.since)
        if state.quorum_since is not None and not rules.box:
            left = min(left, rules.grace - (now - state.quorum_since))
        return Duty("train", "train on the assigned data", state.base, left)
    if peer in state.commitments and peer not in state.revealed:
        left = min(rules.reveal, patience(rules, state)) - (now - state.since)
        return Duty("reveal", "show the contribution", state.base, left)
    return Duty("wait", "others are still revealing", state.base)


def _sitting_out(state: RunState, peer: str) -> str:
    """Why this node is left out for a while; "" when it is not."""
    pause = state.pauses.get(peer)
    if pause is None or state.round > pause.until:
        return ""
    return f"left out up to round {pause.until}, because of the last time: {pause.reason}"
