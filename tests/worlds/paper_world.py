"""Ledgers, nodes and coordinators on paper, for schedules by the thousand.

What decides is the product's own: the round machine, the fold's rules, the electors. Signatures are
ideal: an entry names its signers, and nobody here signs with another's key. A ledger is a path in a
tree of entries, whose folds all who hold it share, so that an entry costs little.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

from artel.coordinator.resuming import ranked, resumed, seat
from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.state_agreed import is_outside
from artel.ledger.fold.shares import apply
from artel.protocol import content, round_state, rounds
from artel.protocol.dsse import Envelope
from artel.protocol.identity import Identity
from artel.protocol.round_state import Phase, RoundRules, RunState
from ledger_world import World

RULES = RoundRules(
    total=10_000,
    min_nodes=2,
    max_nodes=4,
    quorum=0.6,
    deadline=60.0,
    grace=5.0,
    reveal=10.0,
    settle=10.0,
    heartbeat_timeout=40.0,
    checked=True,
)
NO_SIGNATURE = "00" * 64


class Broken(AssertionError):
    """Something that must never be so; the first word says what."""


# --- ledgers --------------------------------------------------------------------------------------


class Ledger:
    """The entries up to this one; equal ledgers are one object."""

    __slots__ = ("below", "certified", "children", "entry", "paid", "size", "state")

    def __init__(self, below: Ledger | None, entry: Entry | None, state: FoldState) -> None:
        self.below, self.entry, self.state, self.size = below, entry, state, state.size
        self.children: dict[str, Ledger] = {}
        self.certified: tuple[Ledger, ...] = below.certified if below is not None else ()
        """Heads that it records as certified."""
        self.paid: frozenset[tuple[int, str]] = below.paid if below is not None else frozenset()
        """Rounds and nodes whose work has earned."""

    def add(self, entry: Entry) -> Ledger:
        """With one more entry. Nothing may be paid twice.

        :raises Broken: a node's work of a round earns a second time
        """
        found = self.children.get(entry.id)
        if found is not None:
            return found
        state = self.state.copy()
        outcome = apply(state, entry)
        found = self.children[entry.id] = Ledger(self, entry, state)
        body = entry.body
        if isinstance(body, entries.Witnessed) and outcome.notes.get("certified"):
            found.certified = (*self.certified, self.at(body.size))
        if isinstance(body, entries.Handover) and outcome.status == "recorded":
            size = max((seal.of, seal.size) for seal in body.seals)[1]
            found.certified = (*self.certified, *([self.at(size)] if size else []))
        earned = [(c.round, c.node) for c in outcome.granted if c.kind == "compute"]
        if len(set(earned)) < len(earned) or found.paid & set(earned):
            raise Broken(f"credit twice: {entry.kind} at {self.size} pays {earned}")
        if earned:
            found.paid |= set(earned)
        return found

    @property
    def term(self) -> int:
        return self.state.term.number

    @property
    def place(self) -> tuple[int, int]:
        return self.term, self.size

    @property
    def ignored(self) -> dict[str, int]:
        return self.state.ignored

    def at(self, size: int) -> Ledger:
        """Its first entries."""
        found = self
        while found.size > size:
            assert found.below is not None
            found = found.below
        return found

    def begins_with(self, other: Ledger) -> bool:
        return other.size <= self.size and self.at(other.size) is other


@lru_cache(maxsize=1 << 16)
def named(*what: object) -> str:
    return hashlib.sha256(repr(what).encode()).hexdigest()


def signed(kind: Any, fields: dict[str, Any], *signers: str) -> Entry:
    """An entry with ideal signatures."""
    body = kind.model_construct(**fields)
    name = hashlib.sha256(repr((kind.KIND, fields, signers)).encode()).hexdigest()
    envelope = Envelope(entries.ENTRY_TYPE, b"", tuple((each, b"") for each in signers))
    entry = Entry(name, body, envelope)
    entry.__dict__["signers"] = frozenset(signers)
    return entry


# --- who takes part -------------------------------------------------------------------------------


@dataclass(eq=False)
class Member:
    """An honest node. All of this is on its disk before it says what follows from it."""

    name: str
    ledger: Ledger
    sealed: int = -1
    cosigned: dict[int, Ledger] = field(default_factory=dict)
    """Term to the newest head of it that was cosigned here."""
    known: set[Ledger] = field(default_factory=set)
    """Certified heads that it was shown with their cosignatures."""
    up: bool = True

    def takes(self, head: Ledger) -> bool:
        """Whether it takes a signed head over: one that goes on, or one of a later term."""
        if head.term > self.ledger.term or head.begins_with(self.ledger):
            self.ledger = head
            return True
        return self.ledger.begins_with(head)

    def cosigns(self, head: Ledger) -> bool:
        before = self.cosigned.get(head.term)
        if head.term <= self.sealed or not self.takes(head) or head.term != self.ledger.term:
            return False
        if before is not None and not head.begins_with(before):
            return False
        self.cosigned[head.term] = head
        return True

    def newest_certified(self) -> Ledger | None:
        known = [*self.ledger.certified, *self.known]
        return max(known, key=lambda head: head.place, default=None)


@dataclass(eq=False)
class Leader:
    """A coordinator: of the manifest, or one that a node starts when it was chosen."""

    identity: Identity
    ledger: Ledger
    signed: Ledger | None = None
    """The newest head that it signed in its term, which it remembers twice."""
    term: int = -1
    """The one that it leads; -1 while it stands by."""
    up: bool = True
    forks: bool = False
    """It goes on from an old disk without asking."""
    rounds: RunState | None = None
    cosigned: dict[Ledger, set[str]] = field(default_factory=dict)
    now: float = 0.0

    # --- the ledger -------------------------------------------------------------------------------

    def own(self, kind: Any, **fields: Any) -> None:
        """Append an entry of its own."""
        fields = {"run": self.ledger.state.run, **fields}
        self.take(signed(kind, fields, self.identity.key))

    def take(self, entry: Entry) -> None:
        """Append and sign.

        :raises Broken: the entry changes nothing
        """
        self.ledger = self.signed = self.ledger.add(entry)
        if self.ledger.ignored:
            raise Broken(f"ignored: {entry.kind}, {self.ledger.ignored}, in term {self.term}")

    # --- rounds, as coordinator/service.py has them -----------------------------------------------

    def begin(self) -> None:
        """It starts, or begins its term."""
        self.rounds = resumed(self.ledger.state, self.now)

    def feed(self, event: round_state.Event, shown: Entry | None = None) -> bool:
        """One event and all that follows; False when it was refused."""
        assert self.rounds is not None
        state = self.rounds
        if isinstance(event, round_state.Seen) and not (
            state.unranked or event.peer in state.seats
        ):
            here = {event.peer: seat(self.ledger.state, event.peer, len(state.seats))}
            self.turn(round_state.Ranked(self.now, {**state.seats, **here}, state.on_members))
        if not self.turn(event, shown):
            return False
        while self.rounds.unranked:
            self.turn(ranked(self.ledger.state, self.rounds.peers, self.now))
        return True

    def turn(self, event: round_state.Event, shown: Entry | None = None) -> bool:
        assert self.rounds is not None
        state, actions = rounds.step(RULES, self.rounds, event)
        if actions and isinstance(actions[0], round_state.Refuse):
            return False
        if shown is not None:
            self.take(shown)
        closed = False
        for action in actions:
            self.execute(action)
            closed |= isinstance(action, round_state.CloseRound)
        self.rounds = state
        if closed and state.phase is Phase.APPLYING:
            self.weigh()
        return True

    def weigh(self) -> None:
        fold = self.ledger.state
        attempt = fold.attempt
        assert attempt is not None
        assert self.rounds is not None
        own = attempt.rests_on == "coordinator" or not any(attempt.weights.values())
        outside = frozenset(p for p in self.rounds.peers if is_outside(fold, attempt, p))
        place = (attempt.round, attempt.attempt)
        self.turn(round_state.Grounds(self.now, *place, attempt.weights, own, outside))

    def execute(self, action: round_state.Action) -> None:
        fold = self.ledger.state
        attempt = fold.attempt
        if isinstance(action, round_state.OpenRound):
            self.witness()
            steps = (fold.work.inner_steps,) * len(action.members)
            place = {"round": action.round, "attempt": action.attempt, "base": action.base}
            place |= {"members": action.members, "steps": steps, "cursor": fold.cursor}
            self.own(entries.RoundOpened, **place)
        elif isinstance(action, round_state.CloseCommitments):
            place = {"round": action.round, "attempt": action.attempt}
            self.own(entries.RoundCommitted, **place, commitments=dict(action.commitments))
        elif isinstance(action, round_state.CloseRound):
            assert attempt is not None
            shown = attempt.shown
            accepted = tuple(
                entries.Accepted.model_construct(
                    node=peer, entry=shown[peer].entry, weight=shown[peer].tokens
                )
                for peer in action.accepted
            )
            rejected = tuple(
                entries.Rejected.model_construct(node=peer, reason=why)
                for peer, why in sorted(action.rejected.items())
            )
            place = {"round": action.round, "attempt": action.attempt}
            self.own(entries.RoundClosed, **place, accepted=accepted, rejected=rejected)
        elif isinstance(action, round_state.AgreeState):
            assert attempt is not None
            signers = (*action.signers, *action.outside[:1])
            fields: dict[str, Any] = {"round": action.round, "attempt": attempt.attempt}
            fields |= {"root": action.root, "credits": attempt.credits.root, "wrong": action.wrong}
            fields["rests_on"] = "coordinator" if action.recomputed else attempt.rests_on
            fields["outside"] = next(iter(action.outside), "")
            fields["signatures"] = dict.fromkeys(signers, NO_SIGNATURE)
            self.own(entries.StateAgreed, **fields)

    def witness(self) -> None:
        """Record the newest head that is certified by the cosignatures that came."""
        fold = self.ledger.state
        for head in sorted(self.cosigned, key=lambda head: -head.size):
            if head.size <= fold.witnessed or not self.ledger.begins_with(head):
                continue
            nodes = tuple(sorted(self.cosigned[head]))
            if quorum(head, nodes, fold):
                items = tuple(
                    entries.Cosignature.model_construct(node=n, time=1, signature=NO_SIGNATURE)
                    for n in nodes
                )
                place = {"term": head.term, "size": head.size, "root": named(id(head))}
                self.own(entries.Witnessed, **place, cosignatures=items)
                return

    def look(self) -> None:
        """It computes the state itself, and asks for those that were signed."""
        assert self.rounds is not None
        state, fold = self.rounds, self.ledger.state
        if state.phase is not Phase.APPLYING:
            return
        right, place = right_root(fold), (state.round, state.attempt)
        self.feed(round_state.Recomputed(self.now, *place, right))
        for peer, vote in state.votes.items():
            held = round_state.Held(self.now, peer, *place, vote.root, vote.root == right)
            self.feed(held)


def quorum(head: Ledger, nodes: Iterable[str], state: FoldState | None = None) -> bool:
    """Whether so many certify a head."""
    fold = state or head.state
    trusted = fold.trusted(nodes)
    accounts = {fold.account_of(node) for node in trusted}
    return len(accounts) >= fold.founded.witnesses and fold.electors.quorum(trusted, head.size)


def right_root(fold: FoldState) -> str:
    """What the accepted contributions of the attempt under way come to."""
    attempt = fold.attempt
    if attempt is None or attempt.phase != "applying":
        return ""
    return named(fold.states[-1], attempt.round, attempt.attempt, *sorted(attempt.accepted))


def made(fold: FoldState, node: str) -> tuple[str, Entry]:
    """A node's commitment and contribution to the attempt under way."""
    attempt = fold.attempt
    assert attempt is not None
    place = (attempt.round, attempt.attempt)
    blob, salt = named("blob", node, *place), named("salt", node, *place)
    work = fold.work
    head = work.head(attempt.round, attempt.steps.get(node, work.inner_steps))
    fields: dict[str, Any] = {"run": fold.run, "round": place[0], "attempt": place[1]}
    fields |= {"node": node, "base": fold.states[-1], "blob": blob, "size": 9, "payload": blob}
    fields |= {"salt": salt, "tokens": work.tokens(head), "tail": 0, "head": head, "span": 0}
    fields |= {"chain": blob, "hardware": "", "up": 0, "down": 0}
    commitment = content.commitment(fold.run, *place, node, blob, bytes.fromhex(salt))
    return commitment, signed(entries.Contribution, fields, KEYS[node])


WORLDS = {
    members: World(
        nodes=4,
        waiting=1,
        total=10_000,
        rounds={"min_nodes": RULES.min_nodes},
        ledger={"witnesses": 2},
        ownership={"vesting_rounds": 1},
        trust={"founders": 2 if members else 1000, "standing_rounds": 16},
        name="schedules",
    )
    for members in (False, True)
}
KEYS = {member.peer_id: member.key for world in WORLDS.values() for member in world.members}


@lru_cache
def beginning(members: bool) -> Ledger:
    """The first entries, up to the accounts and nodes."""
    world, state = WORLDS[members], FoldState()
    ledger = Ledger(None, None, state)
    for envelope in world.start:
        ledger = ledger.add(entries.decode(envelope.encode()))
    assert not ledger.ignored
    return ledger
