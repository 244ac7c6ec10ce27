"""What the round machine speaks of: rules, state, events that come in, actions that come out.

Everything is a frozen value. :mod:`protocol.rounds` has the machine.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from artel.protocol.amending import PAUSED, value_of
from artel.protocol.assignment import GATHER_MEMBERS
from artel.protocol.pauses import Pause
from artel.protocol.run_config import RunConfig
from artel.protocol.seats import Seat


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
WRONG_SPAN = "wrong_span"
COPIED = "copied"
NO_FINGERPRINTS = "no_fingerprints"
NO_NUMBERS = "0" * 64
"""What a contribution is known by whose payload has not one bit set: numbers that are all zero."""
HANDED_BACK = "handed_back"
DISCONNECTED = "disconnected"

FAULTS = frozenset(
    {COMMITMENT_MISMATCH, WRONG_STATE, MALFORMED, NON_FINITE, BAD_SIGNATURE, TOO_LARGE}
    | {WRONG_TOKENS, WRONG_SPAN, MISSING_REVEAL, COPIED, NO_FINGERPRINTS}
)
"""Reasons that count against a node even when the round goes on without it."""

IN_THE_WAY = FAULTS | {LATE}
"""Those, and what makes all others wait."""

# Why a member was in the way of a state; the ledger has who signed it.
UNSIGNED = "signed no state"
DISSENT = "signed another state"
BEHIND = "did not hold the agreed state"
NOT_HELD = "signed a state that it does not give"
UNCOMBINED = "did not combine its slice"
MISCOMBINED = "combined its slice wrongly"
FALSELY_ACCUSED = "called a right slice wrong"


AMENDED = {
    **{f"rounds.{name}": name for name in ("total", "min_nodes", "max_nodes", "quorum")},
    **{f"rounds.{name}_s": name for name in ("deadline", "grace", "reveal", "settle")},
    PAUSED: "paused",
}
"""What of a run's amendments (:mod:`.amending`) is a rule of its rounds."""


@dataclass(frozen=True)
class RoundRules:
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
    checked: bool = False
    """A state is agreed only when one of its signers was seen to hold it and, where that is needed,
    when the coordinator has come to the same root (:class:`Held`, :class:`Recomputed`)."""
    paused: bool = False
    """No round is opened."""

    def amended(self, changes: Mapping[str, str]) -> RoundRules:
        """The rules of a round for which these changes hold."""
        known = {AMENDED[name]: (name, text) for name, text in changes.items() if name in AMENDED}
        return replace(self, **{field: value_of(*said) for field, said in known.items()})

    @classmethod
    def of(cls, config: RunConfig) -> RoundRules:
        """Those of a run's manifest."""
        rounds, most = config.rounds, {"gather": 1 << 30, "auto": GATHER_MEMBERS, "sharded": 0}
        return cls(
            total=rounds.total,
            min_nodes=rounds.min_nodes,
            max_nodes=rounds.max_nodes,
            quorum=rounds.quorum,
            deadline=rounds.deadline_s,
            grace=rounds.grace_s,
            reveal=rounds.reveal_s,
            settle=rounds.settle_s,
            heartbeat_timeout=rounds.heartbeat_timeout_s,
            gather_members=most[config.exchange.topology],
            box=rounds.box_s,
            checked=True,
        )

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
    weights: Mapping[str, int] = field(default_factory=dict)
    """Accepted member to what its signature weighs, see :func:`.seats.carries`."""
    outside: frozenset[str] = frozenset()
    """Nodes with standing that are no part of this attempt and compute its state too: their words
    weigh nothing, but none of them may differ."""
    recompute: bool = True
    """The coordinator has to come to the root itself, whatever is signed."""
    own: str = ""
    """The root that the coordinator has come to; "" when it has not (yet)."""
    held: frozenset[str] = frozenset()
    """Roots of states that a signer was seen to hold, or the coordinator has computed."""
    not_held: frozenset[str] = frozenset()
    """Who signed one and did not give it when it was asked: its vote no longer counts."""
    slices: int = 0
    """Of a sharded attempt: how many are combined; 0 when that is not known."""
    combined: frozenset[int] = frozenset()
    """Those that are recorded."""
    again: frozenset[str] = frozenset()
    """Who had signed before a slice was called wrong, and had to look again."""
    withheld: frozenset[str] = frozenset()
    """Accepted members whose contribution cannot be used: the attempt is over."""
    handed_back: frozenset[str] = frozenset()
    """Members whose contribution stays and whose vote is not waited for."""
    followers: frozenset[str] = frozenset()
    """Who held the state before when the newest one was agreed on: in a moment it holds that."""
    delivered: frozenset[str] = frozenset()
    """Who did its part of the attempt before, as far as that came."""
    begun: Mapping[int, int] = field(default_factory=dict)
    """Rounds that are made again to the number of their first attempt; the others begin with 0."""
    halted: bool = False
    """A state was proven wrong: no round begins until the run has gone back."""
    pauses: Mapping[str, Pause] = field(default_factory=dict)
    proven: frozenset[str] = frozenset()
    """Nodes that have signed an agreed state; they come before strangers, and their commitments
    make a quorum."""
    unawaited: frozenset[str] = frozenset()
    """Nodes whose last signature was waited for in vain: nobody waits for the next one."""
    seats: Mapping[str, Seat] = field(default_factory=dict)
    """What is known of each node when seats are given away; empty: all are alike."""
    sat: Mapping[str, int] = field(default_factory=dict)
    """Node to the newest round that it was a member of."""
    on_members: bool = False
    """The run rests on its members: few of a round's may be newcomers."""
    wary_until: int = -1
    """The last round of a run that rests on its members in which :func:`.members.wary` holds."""
    unranked: bool = False
    """A state was agreed on, and who has which seat now is yet to be said."""

    @property
    def failed(self) -> int:
        """How many attempts of the round have failed."""
        return self.attempt - self.begun.get(self.round, 0)

    @property
    def accepted(self) -> tuple[str, ...]:
        """Members whose contribution was revealed and holds, ascending."""
        return tuple(sorted(self.revealed - set(self.rejected)))

    @property
    def owes_root(self) -> bool:
        """Whether the coordinator still has to come to the root: it was said so, or those with
        standing, inside and outside, have signed different ones."""
        known = [p for p in self.votes if self.weights.get(p, 0) or p in self.outside]
        differ = len({self.votes[peer].root for peer in known}) > 1
        return not self.own and (self.recompute or differ)


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
class Halted:
    """A state was proven wrong: no round begins until the run goes back, or that is upheld."""

    now: float
    halted: bool = True


@dataclass(frozen=True)
class Left:
    """The peer said goodbye."""

    now: float
    peer: str


@dataclass(frozen=True)
class Ranked:
    """Who has which seat, by the ledger; said at first, and after each agreed state."""

    now: float
    seats: Mapping[str, Seat]
    on_members: bool


@dataclass(frozen=True)
class AttemptEvent:
    """Base of what a member does in an attempt."""

    now: float
    peer: str
    round: int
    attempt: int


@dataclass(frozen=True)
class HandedBack(AttemptEvent):
    """The member will not finish this attempt. What it has revealed stays."""


@dataclass(frozen=True)
class Committed(AttemptEvent):
    commitment: str


@dataclass(frozen=True)
class Revealed(AttemptEvent):
    """The member's contribution was checked; ``fault`` is "" when it holds."""

    fault: str


@dataclass(frozen=True)
class StateSigned(AttemptEvent):
    """The peer computed this root for the state after ``round``; ``wrong`` as in :class:`Vote`.

    ``accused`` are the slices that it knew to be called wrong, and has recomputed.
    """

    root: str
    wrong: tuple[int, ...] = ()
    accused: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Accused(AttemptEvent):
    """The checker of a slice recomputed it and got another one than was recorded.

    Who has signed without knowing of it has to look again: that vote no longer counts, and one that
    was on its way is refused. Only the checker may say so, once for each slice, and not when the
    state would have been agreed on but for earlier accusations, so that nobody can hold a round up
    with one after another.
    """

    slice: int


@dataclass(frozen=True)
class Combined(AttemptEvent):
    """The member has combined a slice, which is recorded."""

    slice: int


@dataclass(frozen=True)
class Grounds:
    """What is known of a closed attempt: what each accepted member's signature weighs, whether the
    coordinator has to compute the state too, which nodes with standing are outside, and how many
    slices are to be combined."""

    now: float
    round: int
    attempt: int
    weights: Mapping[str, int]
    recompute: bool
    outside: frozenset[str] = frozenset()
    slices: int = 0


@dataclass(frozen=True)
class Recomputed:
    """The coordinator itself has come to this root."""

    now: float
    round: int
    attempt: int
    root: str


@dataclass(frozen=True)
class Withheld:
    """What these accepted members have contributed cannot be had, or is not what they said."""

    now: float
    round: int
    attempt: int
    peers: frozenset[str]


@dataclass(frozen=True)
class Held(AttemptEvent):
    """A signer was asked for the state with this root, and gave it or not."""

    root: str
    held: bool


OfSlices = Accused | Combined
Checks = Grounds | Recomputed | Withheld | Held
"""What the coordinator finds out about a state that is being agreed on."""
Event = (
    Tick
    | Halted
    | Ranked
    | Seen
    | Left
    | HandedBack
    | Committed
    | Revealed
    | StateSigned
    | OfSlices
    | Checks
)


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
    """``round`` is the number of the new state: the closed round plus one. ``outside`` signed the
    same without being accepted; ``recomputed``: the coordinator has come to it too."""

    round: int
    root: str
    signers: tuple[str, ...]
    wrong: tuple[int, ...] = ()
    outside: tuple[str, ...] = ()
    recomputed: bool = False


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
