"""The round protocol as a pure state machine: ``step(rules, state, event) -> (state, actions)``.

No input or output, no clock, no randomness: time arrives inside events. The coordinator, the tests
and any simulator run this same function; what a node should be doing is another pure function of
the same state, :func:`protocol.duties.directive`.

One round::

    WAITING --enough nodes with the agreed state--> TRAINING --all or a quorum committed-->
    REVEALING --all revealed or time over--> APPLYING --a majority signed one root--> WAITING ...

A round that does not reach its quorum, or whose contributors do not agree on a state root, is
closed with nobody accepted; the same round is then opened again as its next *attempt*.

In a run with a time box (``Rules.box`` > 0) every member trains as many steps as fit into it
(:mod:`protocol.pace`), so nobody is waited for longer: commitments close when all have committed,
or ``grace`` seconds after the box.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from protocol.identity import public_of


class Phase(StrEnum):
    WAITING = "waiting"
    TRAINING = "training"
    REVEALING = "revealing"
    APPLYING = "applying"
    FINISHED = "finished"


# Why a member's work of a round does not count; these stand in the ledger.
LATE = "late"
MISSING_REVEAL = "missing_reveal"
COMMITMENT_MISMATCH = "commitment_mismatch"
WRONG_STATE = "wrong_state"
MALFORMED = "malformed"
NON_FINITE = "non_finite"
BAD_SIGNATURE = "bad_signature"
TOO_LARGE = "too_large"
WRONG_TOKENS = "wrong_tokens"
HANDED_BACK = "handed_back"
DISCONNECTED = "disconnected"

FAULTS = frozenset(
    {COMMITMENT_MISMATCH, WRONG_STATE, MALFORMED, NON_FINITE, BAD_SIGNATURE, TOO_LARGE}
    | {WRONG_TOKENS, MISSING_REVEAL}
)
"""Reasons that keep a node out of further attempts of the same round."""


@dataclass(frozen=True)
class Rules:
    """The manifest's rules of a round. Times in seconds.

    ``quorum`` is the fraction of members that must commit, rounded up; ``grace`` is how long the
    others may take once they have; ``deadline`` bounds the training of a round; ``box`` is how long
    its members train, 0 when that is not fixed; ``reveal`` and ``settle`` bound the two phases
    after it; ``heartbeat_timeout`` is how long a silent node counts as present.
    """

    total: int
    min_nodes: int
    max_nodes: int
    quorum: float
    deadline: float
    grace: float
    reveal: float
    settle: float
    heartbeat_timeout: float
    box: float = 0.0
    gather_members: int = 1 << 30
    """Rounds of more members are sharded: each slice is checked by one member alone, so who is
    present is waited for until ``settle``, and not only for ``grace`` once a majority agrees."""

    @property
    def training(self) -> float:
        """The longest that a round trains, in seconds from its opening."""
        return min(self.deadline, self.box + self.grace) if self.box else self.deadline

    def needed(self, members: int) -> int:
        """How many contributions a round with this many members needs."""
        return max(1, math.ceil(self.quorum * members - 1e-9))


@dataclass(frozen=True)
class Presence:
    """What is known of a connected node."""

    seen: float
    root: str
    leaving: bool = False


@dataclass(frozen=True, order=True)
class Vote:
    """What a contributor signed: the new state's root, and the slices (numbers, ascending) whose
    recorded aggregate was wrong. Two votes agree only when both are equal."""

    root: str
    wrong: tuple[int, ...] = ()


@dataclass(frozen=True)
class RunState:
    """The whole state of a run's rounds. ``base`` is the root of the newest agreed state."""

    phase: Phase
    round: int
    attempt: int
    base: str
    since: float
    peers: Mapping[str, Presence] = field(default_factory=dict)
    members: tuple[str, ...] = ()
    commitments: Mapping[str, str] = field(default_factory=dict)
    quorum_since: float | None = None
    revealed: frozenset[str] = frozenset()
    rejected: Mapping[str, str] = field(default_factory=dict)
    votes: Mapping[str, Vote] = field(default_factory=dict)
    accused: frozenset[int] = frozenset()
    """Slices that their checkers call wrong; a vote has to know of all of them."""
    suspended: frozenset[str] = frozenset()

    @property
    def accepted(self) -> tuple[str, ...]:
        """Members whose contribution was revealed and holds, ascending."""
        return tuple(sorted(self.revealed - set(self.rejected)))


# --- events; each carries the time at which it happened, in seconds on any steady clock ---


@dataclass(frozen=True)
class Tick:
    now: float


@dataclass(frozen=True)
class Seen:
    """A heartbeat: the peer is here and holds the state with this root ("" for none yet).

    A ``leaving`` peer finishes the round that it is in and is not asked to join another.
    """

    now: float
    peer: str
    root: str
    leaving: bool = False


@dataclass(frozen=True)
class Left:
    """The peer said goodbye."""

    now: float
    peer: str


@dataclass(frozen=True)
class HandedBack:
    """The member will not finish this attempt."""

    now: float
    peer: str
    round: int
    attempt: int


@dataclass(frozen=True)
class Committed:
    now: float
    peer: str
    round: int
    attempt: int
    commitment: str


@dataclass(frozen=True)
class Revealed:
    """The member's contribution was checked; ``fault`` is "" when it holds."""

    now: float
    peer: str
    round: int
    attempt: int
    fault: str


@dataclass(frozen=True)
class StateSigned:
    """The peer computed this root for the state after ``round``; ``wrong`` as in :class:`Vote`.

    ``accused`` are the slices that it knew to be called wrong, and has recomputed.
    """

    now: float
    peer: str
    round: int
    attempt: int
    root: str
    wrong: tuple[int, ...] = ()
    accused: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Accused:
    """The checker of a slice recomputed it and got another one than was recorded.

    Who has signed without knowing of it has to look again: that vote no longer counts, and one that
    was on its way is refused. Only the checker's word has this effect, once for each slice, so that
    nobody can hold a round up with one accusation after another.
    """

    now: float
    peer: str
    round: int
    attempt: int
    slice: int


Event = Tick | Seen | Left | HandedBack | Committed | Revealed | StateSigned | Accused


# --- actions (what the coordinator must make durable and public, in order) ------------------------


@dataclass(frozen=True)
class OpenRound:
    round: int
    attempt: int
    base: str
    members: tuple[str, ...]


@dataclass(frozen=True)
class CloseCommitments:
    round: int
    attempt: int
    commitments: Mapping[str, str]


@dataclass(frozen=True)
class CloseRound:
    """``accepted`` is empty when the attempt failed."""

    round: int
    attempt: int
    accepted: tuple[str, ...]
    rejected: Mapping[str, str]


@dataclass(frozen=True)
class AgreeState:
    """``round`` is the number of the new state: the closed round plus one."""

    round: int
    root: str
    signers: tuple[str, ...]
    wrong: tuple[int, ...] = ()


@dataclass(frozen=True)
class Drop:
    peer: str
    reason: str


@dataclass(frozen=True)
class Refuse:
    """The event does not fit the state; nothing changed."""

    code: str
    reason: str


Action = OpenRound | CloseCommitments | CloseRound | AgreeState | Drop | Refuse


def step(rules: Rules, state: RunState, event: Event) -> tuple[RunState, list[Action]]:
    """Apply one event, then everything that follows from it."""
    refusal = _refusal(state, event)
    if refusal is not None:
        return state, [refusal]
    state = _apply(state, event)
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


def _refusal(state: RunState, event: Event) -> Refuse | None:
    if isinstance(event, Tick | Seen | Left):
        return None
    if event.round != state.round:
        return Refuse("stale", f"round {event.round} is not the current round {state.round}")
    if isinstance(event, StateSigned):
        if state.phase is not Phase.APPLYING or event.attempt != state.attempt:
            return Refuse("stale", f"the state of round {state.round} is not being agreed on now")
        if not state.accused <= event.accused:
            return Refuse("stale", "a slice has been called wrong meanwhile: look again")
        return None
    if event.attempt != state.attempt:
        return Refuse("stale", f"attempt {event.attempt} of round {event.round} is over")
    if isinstance(event, Accused) and state.phase is not Phase.APPLYING:
        return Refuse("stale", f"the slices of round {event.round} are not combined now")
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
    if isinstance(event, HandedBack):
        return replace(state, rejected={**state.rejected, event.peer: HANDED_BACK})
    if isinstance(event, Committed):
        return replace(state, commitments={**state.commitments, event.peer: event.commitment})
    if isinstance(event, Revealed):
        if event.fault:
            return replace(state, rejected={**state.rejected, event.peer: event.fault})
        return replace(state, revealed=state.revealed | {event.peer})
    if isinstance(event, Accused):
        informed = {p: vote for p, vote in state.votes.items() if event.slice in vote.wrong}
        return replace(state, votes=informed, accused=state.accused | {event.slice})
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


def _advance(rules: Rules, state: RunState, now: float) -> tuple[RunState, list[Action]]:
    """One transition if its condition holds, else no actions."""
    if state.phase is Phase.WAITING:
        return _try_open(rules, state, now)
    if state.phase is Phase.TRAINING:
        return _try_close_commitments(rules, state, now)
    if state.phase is Phase.REVEALING:
        return _try_close_round(rules, state, now)
    if state.phase is Phase.APPLYING:
        return _try_agree(rules, state, now)
    return state, []


def ready(state: RunState) -> list[str]:
    """Present nodes that hold the agreed state and may take part, ascending."""
    return sorted(
        peer
        for peer, presence in state.peers.items()
        if presence.root == state.base and not presence.leaving and peer not in state.suspended
    )


def _try_open(rules: Rules, state: RunState, now: float) -> tuple[RunState, list[Action]]:
    if state.round >= rules.total:
        return replace(state, phase=Phase.FINISHED, since=now), []
    nodes = ready(state)
    if len(nodes) < rules.min_nodes:
        return state, []
    # Members of the last round that are a moment slower to apply it are waited for, not left out.
    stragglers = [
        peer
        for peer in state.members
        if peer in state.peers
        and not state.peers[peer].leaving
        and peer not in nodes
        and peer not in state.suspended
    ]
    if stragglers and now - state.since < rules.grace:
        return state, []
    members = tuple(nodes[: rules.max_nodes])
    state = replace(
        state,
        phase=Phase.TRAINING,
        since=now,
        members=members,
        commitments={},
        quorum_since=None,
        revealed=frozenset(),
        rejected={},
        votes={},
        accused=frozenset(),
    )
    return state, [OpenRound(state.round, state.attempt, state.base, members)]


def _try_close_commitments(
    rules: Rules, state: RunState, now: float
) -> tuple[RunState, list[Action]]:
    open_members = [peer for peer in state.members if peer not in state.rejected]
    committed = [peer for peer in open_members if peer in state.commitments]
    enough = len(committed) >= rules.needed(len(state.members))
    if enough and state.quorum_since is None:
        state = replace(state, quorum_since=now)
    # In a box everybody has the same time, so that the quick do not cut the slow ones short.
    quorum_since = None if rules.box else state.quorum_since
    graced = quorum_since is not None and now - quorum_since >= rules.grace
    over = now - state.since >= rules.training
    if not (len(committed) == len(open_members) or (enough and graced) or over):
        return state, []
    late = {peer: LATE for peer in open_members if peer not in state.commitments}
    state = replace(state, rejected={**state.rejected, **late})
    if not enough:
        return _fail(state, now)
    kept = {peer: state.commitments[peer] for peer in sorted(committed)}
    state = replace(state, phase=Phase.REVEALING, since=now, commitments=kept)
    return state, [CloseCommitments(state.round, state.attempt, kept)]


def _try_close_round(rules: Rules, state: RunState, now: float) -> tuple[RunState, list[Action]]:
    missing = [
        peer
        for peer in state.commitments
        if peer not in state.revealed and peer not in state.rejected
    ]
    if missing and now - state.since < rules.reveal:
        return state, []
    rejected = {**state.rejected, **dict.fromkeys(missing, MISSING_REVEAL)}
    state = replace(state, rejected=rejected)
    if len(state.accepted) < rules.needed(len(state.members)):
        return _fail(state, now)
    state = replace(state, phase=Phase.APPLYING, since=now)
    return state, [CloseRound(state.round, state.attempt, state.accepted, rejected)]


def _try_agree(rules: Rules, state: RunState, now: float) -> tuple[RunState, list[Action]]:
    accepted = state.accepted
    votes = {peer: state.votes[peer] for peer in accepted if peer in state.votes}
    awaited = [peer for peer in accepted if peer in state.peers and peer not in votes]
    cast = list(votes.values())
    best = max(sorted(set(cast)), key=cast.count, default=Vote(""))
    signers = tuple(peer for peer in accepted if votes.get(peer) == best)
    majority = 2 * len(signers) > len(accepted)
    waited = now - state.since
    sharded = len(state.members) > rules.gather_members
    if awaited and waited < (rules.grace if majority and not sharded else rules.settle):
        return state, []
    if not majority:
        return _fail(state, now)
    state = replace(
        state,
        phase=Phase.WAITING,
        since=now,
        round=state.round + 1,
        attempt=0,
        base=best.root,
        suspended=frozenset(),
    )
    return state, [AgreeState(state.round, best.root, signers, best.wrong)]


def _fail(state: RunState, now: float) -> tuple[RunState, list[Action]]:
    """Close the attempt with nobody accepted; the same round is opened again."""
    action = CloseRound(state.round, state.attempt, (), state.rejected)
    faulty = {peer for peer, reason in state.rejected.items() if reason in FAULTS}
    state = replace(
        state,
        phase=Phase.WAITING,
        since=now,
        attempt=state.attempt + 1,
        suspended=state.suspended | faulty,
    )
    return state, [action]


def commitment(run: str, round: int, attempt: int, peer: str, blob: str, salt: bytes) -> str:
    """The hash that a node publishes before it reveals its contribution.

    It binds the peer, so that repeating somebody else's commitment is useless; the salt hides a
    blob that could be guessed.
    """
    parts = (
        b"artel/commitment/v1\0",
        bytes.fromhex(run),
        round.to_bytes(8, "big"),
        attempt.to_bytes(8, "big"),
        public_of(peer),
        bytes.fromhex(blob),
        salt,
    )
    return hashlib.sha256(b"".join(parts)).hexdigest()
