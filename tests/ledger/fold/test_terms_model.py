"""The protocol of terms as a model: whatever comes late, twice or never, and whoever lies, of two
final histories one begins with the other.

Four electors, one of whom signs anything, and leaders that show different histories as they like.
Messages are whatever was signed, delivered in any order, any number of times, or never; an honest
elector that crashes comes back with what it had written down before it signed. Who counts is
decided by the product's own :class:`Electors`; what an honest elector signs, and from where a
candidate goes on, is what ``docs/ledger.md`` (Terms) says.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import combinations
from random import Random

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from artel.ledger.entries.electors import Electors

HONEST, LIAR = ("a", "b", "c"), "d"
NODES = (*HONEST, LIAR)
TERMS = 4


@dataclass(frozen=True)
class Item:
    """An entry: of nothing, of new electors, of a certified head, or a handover."""

    name: int
    kind: str
    size: int = 0
    """Of the head that is recorded as certified; of a handover of the newest one in its seals."""
    term: int = 0
    weights: tuple[str, ...] = ()


Log = tuple[Item, ...]
Head = tuple[int, Log]
"""Term, and what its leader signed in it."""


def electors_of(log: Log) -> Electors:
    """As the fold has them after these entries; the first are there from the beginning."""
    found = Electors()
    found.choose(-1, 0, 1, dict.fromkeys(NODES, 1), True)
    for index, item in enumerate(log):
        if item.kind == "electors":
            found.choose(index, index + 1, 1, dict.fromkeys(item.weights, 1), True)
        elif item.kind == "certified":
            found.certify(index, item.size)
    return found


def term_of(log: Log) -> int:
    return max((item.term for item in log if item.kind == "handover"), default=0)


@dataclass
class Elector:
    """An honest one: all of this is on its disk before it signs anything that follows from it."""

    log: Log = ()
    term: int = 0
    sealed: int = -1
    seen: list[Head] = field(default_factory=list)
    """Certified heads that it was shown with their cosignatures."""


class Terms(RuleBasedStateMachine):
    """Any schedule of what can happen."""

    @initialize(seed=st.integers(0, 1 << 30))
    def begin(self, seed: int) -> None:
        self.chance, self.names = Random(seed), 0
        self.electors = {node: Elector() for node in HONEST}
        self.signed: dict[int, list[Log]] = {0: [()]}
        """Term to the histories that its leader has signed, any of which it goes on from."""
        self.cosigned: dict[Head, set[str]] = {}
        self.seals: dict[int, dict[str, set[Head | None]]] = {}
        """Term to node to the certified heads that it says to know (a liar, several)."""
        self.finals: list[Log] = []
        self.done = 0

    # --- the log ----------------------------------------------------------------------------------

    def certified(self, head: Head) -> bool:
        term, log = head
        by = self.cosigned.get(head, set()) | {LIAR}
        return electors_of(log).quorum(by, len(log)) and term_of(log) == term

    def histories(self) -> Iterator[Head]:
        return ((term, log) for term, logs in self.signed.items() for log in logs)

    def some_head(self) -> Head:
        """Mostly of the newest ones, so that something comes of it."""
        heads = list(self.histories())
        far = self.chance.random()
        return self.chance.choice(heads[-1:] if far < 0.5 else heads[-4:] if far < 0.8 else heads)

    def grow(self, head: Head, item: Item) -> Head:
        """A leader signs a head with one more entry: of a history that it has signed before, so
        that it may sign two that go different ways."""
        term, log = head
        self.signed[term].append((*log, item))
        return term, (*log, item)

    def name(self) -> int:
        self.names += 1
        return self.names

    @rule(number=st.integers(0, 3))
    def leader_adds(self, number: int) -> None:
        head = self.some_head()
        if number:
            self.grow(head, Item(self.name(), "entry"))
        else:
            others = self.chance.choice([NODES, ("a", "b", "c"), ("b", "c", "d"), ("a", "d", "c")])
            self.grow(head, Item(self.name(), "electors", weights=tuple(others)))

    @rule()
    def leader_records_a_certificate(self) -> None:
        """Of a head that its history begins with: the signatures are checked by everybody."""
        head = self.some_head()
        known = [
            size
            for size in range(1, len(head[1]) + 1)
            if any(self.certified((t, head[1][:size])) for t in range(head[0] + 1))
        ]
        if known:
            self.grow(head, Item(self.name(), "certified", self.chance.choice(known[-3:])))

    # --- electors ---------------------------------------------------------------------------------

    def take(self, name: str, head: Head) -> bool:
        """Whether an honest elector takes a head over: it goes on with what it has, or with a
        later term."""
        node, (term, log) = self.electors[name], head
        goes_on = term == node.term and log[: len(node.log)] == node.log
        if term_of(log) != term or not (goes_on or term > node.term):
            return False
        node.log, node.term = log, term
        return True

    @rule(name=st.sampled_from(HONEST))
    def elector_cosigns(self, name: str) -> None:
        head = self.some_head()
        if self.take(name, head) and head[0] > self.electors[name].sealed:
            self.cosigned.setdefault(head, set()).add(name)

    @rule(name=st.sampled_from(HONEST))
    def elector_is_shown_a_certificate(self, name: str) -> None:
        known = [head for head in self.cosigned if self.certified(head)]
        if known:
            self.electors[name].seen.append(self.chance.choice(known))

    @rule(name=st.sampled_from(HONEST), ahead=st.sampled_from([0, 0, 0, 1]))
    def elector_seals(self, name: str, ahead: int) -> None:
        """The term that it is in, or the one after, whose leader never came."""
        node = self.electors[name]
        term = node.term + ahead
        if term >= TERMS:
            return
        node.sealed = max(node.sealed, term)
        self.seals.setdefault(term, {})[name] = {self.newest(node)}

    def newest(self, node: Elector) -> Head | None:
        """The newest certified head that it knows: one that its log records, that the seals of its
        handovers name, or that it was shown."""
        known = [head for head in node.seen if head[0] <= node.sealed]
        begun = 0
        for item in node.log:
            begun = max(begun, item.term)
            if item.kind in ("certified", "handover"):
                head = node.log[: item.size]
                known.append((term_of(head), head))
        return max(known, key=lambda head: (head[0], len(head[1])), default=None)

    # --- a candidate ------------------------------------------------------------------------------

    @rule(term=st.integers(0, TERMS - 2))
    def candidate_takes_over(self, term: int) -> None:
        """With any quorum of seals of that term, from the newest certified head in them, or from a
        larger signed one that begins with it, of its term or of a later one that was sealed."""
        given = self.seals.get(term, {})
        sealers = [*given, LIAR]
        groups = [g for n in range(1, 5) for g in combinations(sealers, n)]
        self.chance.shuffle(groups)
        for group in groups:
            claims = [self.chance.choice(list(given[n])) for n in group if n != LIAR]
            claims = [claim for claim in claims if claim is not None]
            of, base = max(claims, key=lambda head: (head[0], len(head[1])), default=(0, ()))
            certified = len(base)
            longer = [
                log
                for t, logs in self.signed.items()
                for log in logs
                if of <= t <= term and log[: len(base)] == base and term_of(log) == t
            ]
            if self.chance.random() < 0.5:
                base = self.chance.choice(longer or [base])
            if electors_of(base).quorum(group):
                begun = Item(self.name(), "handover", certified, term + 1)
                self.signed.setdefault(term + 1, []).append((*base, begun))
                self.done += 1
                return

    # --- what must hold ---------------------------------------------------------------------------

    @invariant()
    def one_final_history(self) -> None:
        for head in list(self.cosigned):
            if self.certified(head):
                size = electors_of(head[1]).final_by(len(head[1]))
                if size:
                    self.finals.append(head[1][:size])
        self.finals = sorted(set(self.finals), key=len)
        for shorter, longer in combinations(self.finals, 2):
            assert longer[: len(shorter)] == shorter, (shorter, longer)


def run(examples: int, steps: int, *, fixed: bool) -> None:
    run_state_machine_as_test(
        Terms,
        settings=settings(
            max_examples=examples,
            stateful_step_count=steps,
            deadline=None,
            derandomize=fixed,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_no_schedule_makes_two_final_histories() -> None:
    run(examples=100, steps=60, fixed=True)


def walk(seed: int, steps: int) -> Terms:
    """Any rules one after the other; hypothesis is for small counterexamples, this for many."""
    chance, machine = Random(seed), Terms()
    machine.begin(seed)
    for _ in range(steps):
        which = chance.random()
        if which < 0.1:
            machine.leader_adds(chance.randrange(8))
        elif which < 0.25:
            machine.leader_records_a_certificate()
        elif which < 0.8:
            machine.elector_cosigns(chance.choice(HONEST))
        elif which < 0.9:
            machine.elector_is_shown_a_certificate(chance.choice(HONEST))
        elif which < 0.95:
            machine.elector_seals(chance.choice(HONEST), chance.choice([0, 0, 1]))
        else:
            machine.candidate_takes_over(chance.randrange(TERMS - 1))
        machine.one_final_history()
    return machine


def test_walks_come_to_final_entries_and_to_handovers() -> None:
    walks = [walk(seed, 120) for seed in range(60)]
    assert sum(bool(each.finals) for each in walks) > 20
    assert sum(each.done for each in walks) > 20


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_long_schedule_makes_two_final_histories() -> None:
    for seed in range(100_000):
        walk(seed, 100)
