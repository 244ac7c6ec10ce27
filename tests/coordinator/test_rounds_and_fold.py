"""The coordinator's rounds beside the ledger's fold: whatever happens, they never part ways."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Coroutine, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from artel.coordinator.metrics import Metrics
from artel.coordinator.sequencer import AGAIN
from artel.coordinator.service import Coordinator
from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.ledger.fold import shares
from artel.ledger.fold.shares import FoldState, Outcome
from artel.protocol import assignment, content, dsse, round_state
from artel.protocol.duties import directive
from artel.protocol.identity import Identity
from artel.protocol.manifest import Manifest, sign
from artel.protocol.net import wire
from artel.protocol.round_state import Phase, RunState
from artel.protocol.state import Layout
from desk_world import ORGANISER, Nowhere, run_of

NODES = {
    node.peer_id: node
    for node in (Identity.from_seed(hashlib.sha256(b"side %d" % i).digest()) for i in range(5))
}
PEERS = sorted(NODES)
HONEST, OTHERS = PEERS[:3], PEERS[3:]
RULES = {
    "total": 100,
    "min_nodes": 2,
    "max_nodes": 5,
    "quorum": 0.6,
    "deadline_s": 60.0,
    "grace_s": 5.0,
    "reveal_s": 10.0,
    "settle_s": 10.0,
    "heartbeat_timeout_s": 20.0,
}
FOLDED = {
    Phase.WAITING: ("", "failed"),
    Phase.FINISHED: ("", "failed"),
    Phase.TRAINING: ("training",),
    Phase.REVEALING: ("revealing",),
    Phase.APPLYING: ("applying",),
}
"""What the fold has to call each phase of the machine; "" when it has no attempt of this round."""


def differences(state: RunState, fold: FoldState) -> dict[str, tuple[Any, Any]]:
    """Where the round machine and the fold contradict each other: (machine, fold)."""
    attempt = fold.attempt
    pairs: dict[str, tuple[Any, Any]] = {
        "round": (state.round, fold.round),
        "base": (state.base, fold.states[-1]),
        "ignored": ({}, fold.ignored),
    }
    if attempt is None:
        pairs["attempt"] = (state.attempt, 0)
    else:
        after = state.phase in (Phase.WAITING, Phase.FINISHED)
        pairs["attempt"] = (state.attempt, attempt.attempt + after)
    if attempt is not None and attempt.phase != "failed":
        pairs["members"] = (state.members, tuple(sorted(attempt.accounts)))
        if attempt.phase != "training":
            pairs["commitments"] = (dict(state.commitments), attempt.commitments)
        if attempt.phase == "revealing":
            pairs["revealed"] = (state.revealed, frozenset(attempt.shown))
        if attempt.phase == "applying":
            pairs["accepted"] = (state.accepted, tuple(sorted(attempt.accepted)))
            pairs["weights"] = (dict(state.weights), attempt.weights)
            pairs["on members"] = (state.recompute or attempt.rests_on == "members", True)
    found = {what: pair for what, pair in pairs.items() if pair[0] != pair[1]}
    phase = "" if attempt is None else attempt.phase
    if phase not in FOLDED[state.phase]:
        found["phase"] = (state.phase, phase)
    return found


class Paper:
    """A ledger without a disk: the fold, and what a coordinator asks of sequencer and store."""

    def __init__(self, first: list[Entry]) -> None:
        self.state, self.store, self.waiting = FoldState(), self, 0
        self.ids: dict[str, int] = {}
        self.entries: list[Entry] = []
        for entry in first:
            self.add(entry)

    @property
    def size(self) -> int:
        return len(self.ids)

    def index_of(self, name: str) -> int | None:
        return self.ids.get(name)

    def leaf(self, index: int) -> bytes:
        return self.entries[index].envelope.encode()

    def add(self, entry: Entry) -> Outcome:
        if entry.id in self.ids:
            return AGAIN
        self.ids[entry.id] = len(self.ids)
        self.entries.append(entry)
        return shares.apply(self.state, entry)

    async def append(self, *statements: dsse.Envelope | Entry) -> list[Outcome]:
        return [
            self.add(one if isinstance(one, Entry) else entries.decode(one.encode()))
            for one in statements
        ]


class NoHeads:
    """Nobody has cosigned anything."""

    def newest_first(self, lines: int) -> Iterator[str]:
        return iter(())


class Unsaved(Metrics):
    def save(self, round: int) -> None:
        pass


class Office:
    """A real coordinator on a ledger of paper; nodes that know how to do their part."""

    def __init__(self, manifest: Manifest, layout: Layout) -> None:
        genesis = sign(manifest, ORGANISER)
        self.manifest, self.layout = manifest, layout
        self.run = hashlib.sha256(genesis.payload).hexdigest()
        self.first = [entries.decode(genesis.encode())]
        for peer in PEERS:
            owner = Identity.from_seed(hashlib.sha256(peer.encode()).digest())
            account = entries.account(owner, self.run)
            node = entries.node(NODES[peer], owner, self.run)
            self.first += [entries.decode(one.encode()) for one in (account, node)]

    def open(self) -> Office:
        self.now, self.paper = 0.0, Paper(self.first)
        self.runner = asyncio.Runner()
        self.start()
        return self

    def do(self, work: Coroutine[Any, Any, Any]) -> bool:
        """Whether this was not refused."""
        try:
            self.runner.run(work)
        except wire.Refused:
            return False
        return True

    def start(self) -> None:
        """Begin, or begin again, as the daemon does."""

        async def start() -> None:
            self.core = Coordinator(
                manifest=self.manifest,
                run=self.run,
                layout=self.layout,
                identity=ORGANISER,
                host=Nowhere(),  # type: ignore[arg-type]
                sequencer=self.paper,  # type: ignore[arg-type]
                heads=NoHeads(),  # type: ignore[arg-type]
                blobs=None,  # type: ignore[arg-type]
                fingerprints=None,  # type: ignore[arg-type]
                metrics=Unsaved(Path("/nowhere/metrics.jsonl")),
                clock=lambda: self.now,
            )

        self.runner.run(start())

    @property
    def state(self) -> RunState:
        return self.core.state

    @property
    def fold(self) -> FoldState:
        return self.paper.state

    def feed(self, event: round_state.Event, statement: dsse.Envelope | None = None) -> bool:
        entry = None if statement is None else entries.decode(statement.encode())
        return self.do(self.core.feed(event, entry))

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        self.feed(round_state.Tick(self.now))
        self.look_at_votes()

    def look_at_votes(self) -> None:
        """What the coordinator finds out: its own root, and who holds what they signed."""
        if self.state.phase is not Phase.APPLYING:
            return
        right, place = self.right_root(), (self.state.round, self.state.attempt)
        self.feed(round_state.Recomputed(self.now, *place, right))
        for peer, vote in self.state.votes.items():
            self.feed(round_state.Held(self.now, peer, *place, vote.root, vote.root == right))

    def beat(self, peer: str, root: str, leaving: bool = False) -> None:
        self.feed(round_state.Seen(self.now, peer, root, leaving))

    def secret(self, peer: str) -> tuple[str, bytes, int, int]:
        """Blob, salt, round and attempt of what a node commits to now."""
        round, attempt = self.state.round, self.state.attempt
        name = f"{peer} {round} {attempt}".encode()
        return (
            hashlib.sha256(name).hexdigest(),
            hashlib.sha256(b"s" + name).digest(),
            round,
            attempt,
        )

    def commit(self, peer: str, off: int = 0) -> bool:
        blob, salt, round, attempt = self.secret(peer)
        made = content.commitment(self.run, round, attempt, peer, blob, salt)
        return self.feed(round_state.Committed(self.now, peer, round, attempt + off, made))

    def reveal(self, peer: str, fault: str = "") -> bool:
        blob, salt, round, attempt = self.secret(peer)
        event = round_state.Revealed(self.now, peer, round, attempt, fault)
        if fault:
            return self.feed(event)
        work = self.core.work
        head = work.head(round, self.core.assigned(peer) or work.inner_steps)
        places = {"round": round, "attempt": attempt, "base": self.state.base, "head": head}
        shown = {
            "blob": blob,
            "salt": salt,
            "size": 9,
            "payload": blob,
            "chain": blob,
            "tokens": work.tokens(head),
        }
        return self.feed(event, entries.contribution(NODES[peer], self.run, **places, **shown))

    def vote(self, peer: str, root: str, *, wrong: tuple[int, ...] = (), off: int = 0) -> bool:
        state = self.state
        attempt = self.core.ledger.state.attempt
        credits = attempt.credits.root if attempt is not None else "0" * 64
        at, fields = state.attempt + off, {"root": root, "wrong": wrong, "credits": credits}
        fields |= {"round": state.round + 1, "attempt": at}
        event = round_state.StateSigned(self.now, peer, state.round, at, root, wrong, state.accused)
        made = entries.state_vote(NODES[peer], self.run, **fields)
        return self.do(self.core.feed(event, made.signatures[0][1].hex()))

    def hand_back(self, peer: str) -> bool:
        place = (self.state.round, self.state.attempt)
        return self.feed(round_state.HandedBack(self.now, peer, *place))

    def record(self, envelope: dsse.Envelope) -> bool:
        return self.do(self.core.record(entries.decode(envelope.encode())))

    def combine(self, slice: int) -> bool:
        state = self.state
        if not state.accepted:
            return False
        by = assignment.aggregator(state.accepted, state.round, slice)
        place = {"round": state.round, "attempt": state.attempt}
        made = {"slice": slice, "slices": len(state.members), "blob": "ab" * 32, "size": 9}
        return self.record(entries.aggregate(NODES[by], self.run, **place, **made))

    def accuse(self, peer: str, slice: int) -> bool:
        place = {"round": self.state.round, "attempt": self.state.attempt}
        fields = {"slice": slice, "blob": "cd" * 32}
        return self.record(entries.slice_wrong(NODES[peer], self.run, **place, **fields))

    def right_root(self) -> str:
        return hashlib.sha256(f"state {self.state.round + 1}".encode()).hexdigest()

    def do_duty(self, peer: str, kind: str = "honest") -> None:
        """A heartbeat, and what follows from it."""
        seen = self.state.peers.get(peer)
        self.beat(peer, self.state.base if seen is None else seen.root)
        task = directive(self.core.rules, self.state, peer, self.now).task
        if task == "sync":
            self.beat(peer, self.state.base)
        elif task == "train" and kind != "silent":
            self.commit(peer)
        elif task == "reveal" and kind != "silent":
            self.reveal(peer)
        elif task == "apply" and kind != "silent":
            wrong = hashlib.sha256(peer.encode()).hexdigest()
            wrongs = tuple(sorted(self.state.accused))
            self.vote(peer, wrong if kind == "dissent" else self.right_root(), wrong=wrongs)

    def honest_end(self, kind: str, most: int) -> None:
        """Three honest nodes reach the next state in a few attempts, whatever the others do."""
        before, attempt = self.state.round, self.state.attempt
        for _ in range(3600):
            if self.state.round > before:
                return
            for peer in HONEST:
                self.do_duty(peer)
            for peer in OTHERS:
                if kind != "absent":
                    self.do_duty(peer, kind)
            self.pass_time(1.0)
            assert self.state.attempt <= attempt + most, self.state
        raise AssertionError(f"no state is agreed on: {self.state}")


class SideBySide(RuleBasedStateMachine):
    """Random events, with the coordinator's own code between the machine and the fold."""

    def __init__(self, offices: Callable[[str, int], Office]) -> None:
        super().__init__()
        self.offices = offices

    @initialize(
        topology=st.sampled_from(["gather", "sharded"]),
        others=st.sampled_from(["silent", "dissent", "absent", "honest"]),
        founders=st.sampled_from([1, 4]),
    )
    def begin(self, topology: str, others: str, founders: int) -> None:
        self.office, self.others = self.offices(topology, founders).open(), others
        for peer in PEERS[:4]:
            self.office.beat(peer, self.office.state.base)

    peers = st.sampled_from(PEERS)

    @rule(seconds=st.sampled_from((0.1, 3.0, 6.0, 12.0, 70.0)))
    def time_passes(self, seconds: float) -> None:
        self.office.pass_time(seconds)

    @rule(who=st.sets(peers, min_size=2), kind=st.sampled_from(["honest", "honest", "dissent"]))
    def some_do_their_duty(self, who: set[str], kind: str) -> None:
        for peer in sorted(who):
            self.office.do_duty(peer, kind if peer in OTHERS else "honest")

    @rule(goal=st.sampled_from([Phase.REVEALING, Phase.APPLYING, Phase.APPLYING]))
    def on_to_a_phase(self, goal: Phase) -> None:
        for _ in range(4):
            for peer in PEERS:
                if self.office.state.phase is not goal:
                    self.office.do_duty(peer)

    @rule(peer=peers, root=st.sampled_from(["base", "next", "none"]), leaving=st.booleans())
    def beat(self, peer: str, root: str, leaving: bool) -> None:
        roots = {"base": self.office.state.base, "next": self.office.right_root(), "none": ""}
        self.office.beat(peer, roots[root], leaving)

    @rule(peer=peers)
    def leave(self, peer: str) -> None:
        self.office.feed(round_state.Left(self.office.now, peer))

    @rule(peer=peers)
    def hand_back(self, peer: str) -> None:
        self.office.hand_back(peer)

    @precondition(lambda self: self.office.state.accepted)
    @rule(number=st.integers(0, 4))
    def an_accepted_one_hands_back(self, number: int) -> None:
        accepted = self.office.state.accepted
        self.office.hand_back(accepted[number % len(accepted)])

    @rule(peer=peers, off=st.sampled_from([0, 0, -1, 1]))
    def commit(self, peer: str, off: int) -> None:
        if self.office.state.attempt + off >= 0:
            self.office.commit(peer, off)

    @rule(peer=peers, fault=st.sampled_from(["", round_state.MALFORMED, round_state.TOO_LARGE]))
    def reveal(self, peer: str, fault: str) -> None:
        self.office.reveal(peer, fault)

    @rule(peer=peers, right=st.booleans(), off=st.sampled_from([0, 0, 0, -1, 1]))
    def sign(self, peer: str, right: bool, off: int) -> None:
        office = self.office
        attempt = office.fold.attempt
        wrong = sorted(attempt.wrong) if attempt is not None else []
        root = office.right_root() if right else hashlib.sha256(peer.encode()).hexdigest()
        if office.state.attempt + off >= 0:
            office.vote(peer, root, wrong=tuple(wrong[: len(peer) % 2 + right]), off=off)

    @precondition(lambda self: self.office.state.phase is Phase.APPLYING)
    @rule(slice=st.integers(0, 3))
    def combine(self, slice: int) -> None:
        self.office.combine(slice)

    @precondition(lambda self: self.office.fold.attempt and self.office.fold.attempt.slices)
    @rule(peer=peers, slice=st.integers(0, 3))
    def accuse(self, peer: str, slice: int) -> None:
        self.office.accuse(peer, slice)

    @rule()
    def restart(self) -> None:
        self.office.start()

    @invariant()
    def they_agree(self) -> None:
        if hasattr(self, "office"):
            assert not differences(self.office.state, self.office.fold)

    def teardown(self) -> None:
        if hasattr(self, "office"):
            self.office.honest_end(self.others, most=5)
            self.they_agree()
            self.office.honest_end(self.others, most=5)
            self.they_agree()
            self.office.runner.close()


@pytest.fixture(scope="module")
def offices(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, int], Office]:
    """By topology, and the accounts that must have standing before newcomers may be few."""
    made: dict[tuple[str, int], Office] = {}
    for topology, founders in product(("gather", "sharded"), (1, 4)):
        home = tmp_path_factory.mktemp(topology)
        sections = {"exchange": {"topology": topology}, "trust": {"founders": founders}}
        run = run_of(home, rounds=RULES, ownership={"vesting_rounds": 0}, **sections)
        made[topology, founders] = Office(*run)
    return lambda topology, founders: made[topology, founders]


def side_by_side(
    offices: Callable[[str, int], Office], examples: int, steps: int, fixed: bool
) -> None:
    run_state_machine_as_test(
        lambda: SideBySide(offices),
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=fixed,
            # To shrink what fails takes minutes; the long test does.
            phases=[hypothesis.Phase.generate] if fixed else list(hypothesis.Phase),
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_after_a_restart_who_is_heard_first_does_not_decide_who_is_known(
    offices: Callable[[str, int], Office],
) -> None:
    office = offices("gather", 1).open()
    try:
        office.honest_end("silent", most=5)
        assert office.fold.rests_on == "members"
        office.start()
        for peer in reversed(PEERS):
            office.beat(peer, office.state.base)
            assert office.state.on_members
        assert office.state.seats.keys() == set(PEERS)
    finally:
        office.runner.close()


def test_the_rounds_and_the_fold_never_disagree(offices: Callable[[str, int], Office]) -> None:
    side_by_side(offices, examples=60, steps=30, fixed=True)


@pytest.mark.slow
@pytest.mark.timeout(7200)  # an hour where other work goes on
def test_the_rounds_and_the_fold_never_disagree_for_long(
    offices: Callable[[str, int], Office],
) -> None:
    side_by_side(offices, examples=2000, steps=60, fixed=False)
