"""The protocol of terms as a model: whatever comes late, twice or never, and whoever lies, of two
final histories one begins with the other.

Six honest electors, a seventh that signs anything where words weigh by standing, and leaders that
show different histories as they like. Messages are whatever was signed, delivered in any order, any
number of times, or never; an honest elector that crashes comes back with what it had written down
before it signed. Some are cut off from the rest. Who counts is decided by the product's own
:class:`Electors`; what an honest elector signs, and from where a candidate goes on, is what
``docs/ledger.md`` (Terms) says.

That former electors who did not agree in a whole stretch are gone for good is a bet of the protocol
(``docs/design.md``), and holds here: who is left behind so does nothing any more, and nobody is
after less.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    rule,
    run_state_machine_as_test,
)

from artel.ledger.entries.electors import FEW, Electorate, Electors

HONEST, LIAR = tuple("abcxyz"), "d"
TERMS = 4
STRETCH = 3
"""Rounds of one."""


@dataclass(frozen=True, eq=False)
class Item:
    """An entry: of nothing, of a state, of a certified head, or a handover."""

    kind: str
    size: int = 0
    """Of the head that is recorded as certified; of a handover of the newest one in its seals."""
    term: int = 0
    weights: tuple[str, ...] = ()
    """Of a state: who may be electors from here on."""
    by_standing: bool = False


Log = tuple[Item, ...]
Head = tuple[int, Log]
"""Term, and what its leader signed in it."""


def term_of(log: Log) -> int:
    return max((item.term for item in log if item.kind == "handover"), default=0)


def asked_no_less(former: Electorate, rest: Collection[Electorate]) -> bool:
    """Whether who agrees to anything by the sets beside a former one agrees to it by that as well.
    A set that comes later does not do: it has no voice for heads that do not cover it."""
    few = (each for each in rest if not each.by_standing and len(each.weights) < FEW)
    return any(former.weights.keys() <= each.weights.keys() for each in few)


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
        self.chance = chance = Random(seed)
        self.electors = {node: Elector() for node in HONEST}
        self.signed: dict[int, list[Log]] = {0: [()]}
        """Term to the histories that its leader has signed, any of which it goes on from."""
        self.cosigned: dict[Head, set[str]] = {}
        self.certified: list[Head] = []
        self.seals: dict[int, dict[str, Head | None]] = {}
        """Term to node to the newest certified head that it knows."""
        self.final: Log = ()
        self.done = 0
        self.gone = set[str]()
        self.left_behind: Log = ()
        """The newest history in which electors were taken for gone: no other one does that."""
        cut = chance.sample(HONEST, chance.randint(1, 5))
        self.sides = [HONEST, tuple(cut), tuple(n for n in HONEST if n not in cut)]
        found = Electors()
        found.choose(-1, self.round(()), STRETCH, *self.members(chance.choice(self.sides)))
        self.folds: dict[Log, Electors] = {(): found}

    # --- the log ----------------------------------------------------------------------------------

    def electors_of(self, log: Log) -> Electors:
        """As the fold has them after these entries; the first are there from the beginning."""
        found = self.folds.get(log)
        if found is None:
            found, item, index = self.electors_of(log[:-1]).copy(), log[-1], len(log) - 1
            if item.kind == "state":
                weights = dict.fromkeys(item.weights, 1)
                found.choose(index, self.round(log), STRETCH, weights, item.by_standing)
            elif item.kind == "certified":
                self.is_final(log[: found.certify(index, item.size)])
            self.folds[log] = found
        return found

    @staticmethod
    def round(log: Log) -> int:
        return 1 + sum(item.kind == "state" for item in log)

    def members(self, side: Collection[str]) -> tuple[dict[str, int], bool]:
        """Who could be electors from some state on, and whether by standing. Without standing, they
        may only crash; with it, less than a third of them may lie."""
        by_standing = self.chance.random() < 0.3
        few = self.chance.randint(1, min(4, len(side)))
        there = list(side) if self.chance.random() < 0.5 else self.chance.sample(list(side), few)
        if by_standing and len(there) >= 3:
            there.append(LIAR)
        return dict.fromkeys(sorted(there), 1), by_standing

    def histories(self) -> Iterator[Head]:
        return ((term, log) for term, logs in self.signed.items() for log in logs)

    def some_head(self, side: Collection[str]) -> Head:
        """Mostly of the newest ones, and of such as one of these takes, so that something comes of
        it."""
        heads, far = list(self.histories()), self.chance.random()
        name = self.chance.choice(list(side))
        if far < 0.8:
            heads = [head for head in heads if self.takes(name, head)] or heads
        return self.chance.choice(heads[-1:] if far < 0.5 else heads[-4:] if far < 0.8 else heads)

    def grow(self, head: Head, item: Item) -> None:
        """A leader signs a head with one more entry: of a history that it has signed before, so
        that it may sign two that go different ways."""
        term, log = head
        before, after = self.electors_of(log).sets, self.electors_of((*log, item)).sets
        if item.kind == "state" and not self.may_leave_behind(head, item, before, after):
            return
        self.signed[term].append((*log, item))

    def may_leave_behind(
        self, head: Head, item: Item, before: list[Electorate], after: list[Electorate]
    ) -> bool:
        """Whether electors who are asked no more, after a whole stretch, are gone for good. Then
        they are from here on."""
        term, log = head
        if (
            len(before) < 2
            or after[0].since == before[0].since
            or asked_no_less(before[0], before[1:])
        ):
            return True
        former, (since, *_) = before[0], (each.since for each in before[1:])
        if self.round((*log, item)) - self.round(log[: since + 1]) < STRETCH:
            return True  # what must not be: no bet covers it
        gone = {n for n in former.weights if n != LIAR and not any(n in s.weights for s in after)}
        heads = [log_ for (_, log_), by in self.cosigned.items() if by & gone]
        heads += [self.electors[name].log for name in gone]
        ahead = any(log[: len(other)] != other for other in heads)
        sealed = any(name in self.seals.get(t, {}) for name in gone for t in range(term, TERMS))
        others = log[: len(self.left_behind)] != self.left_behind
        if ahead or sealed or others or former.quorum((former.weights.keys() - gone) | {LIAR}):
            return False
        self.left_behind = (*log, item)
        self.gone |= gone
        return True

    @rule(number=st.integers(0, 3), side=st.integers(0, 2))
    def leader_adds(self, number: int, side: int) -> None:
        head = self.some_head(self.sides[side])
        if number == 3:
            self.grow(head, Item("entry"))
        else:
            weights, by_standing = self.members(self.sides[side])
            self.grow(head, Item("state", weights=tuple(weights), by_standing=by_standing))

    @rule(side=st.integers(0, 2))
    def leader_records_a_certificate(self, side: int) -> None:
        """Of a head that its history begins with: the signatures are checked by everybody, and
        counted by those who are electors where they are recorded."""
        head = self.some_head(self.sides[side])
        sizes = [
            len(log)
            for (_, log), by in self.cosigned.items()
            if head[1][: len(log)] == log
            and self.electors_of(head[1]).quorum(by | {LIAR}, len(log))
        ]
        if sizes:
            self.grow(head, Item("certified", self.chance.choice(sorted(sizes)[-3:])))

    # --- electors ---------------------------------------------------------------------------------

    def takes(self, name: str, head: Head) -> bool:
        """Whether an honest elector takes a head over: it goes on with what it has, or with a
        later term."""
        node, (term, log) = self.electors[name], head
        if name in self.gone or term_of(log) != term:
            return False
        return term > node.term or (term == node.term and log[: len(node.log)] == node.log)

    @rule(side=st.integers(0, 2), all=st.booleans())
    def electors_cosign(self, side: int, all: bool) -> None:
        names = self.sides[side]
        head = self.some_head(names)
        for name in names if all else [self.chance.choice(names)]:
            if self.takes(name, head):
                node = self.electors[name]
                node.term, node.log = head
                if node.term > node.sealed:
                    self.cosigned.setdefault(head, set()).add(name)
        electors, by = self.electors_of(head[1]), self.cosigned.get(head, set())
        if by and electors.quorum(by | {LIAR}, len(head[1])):
            self.certified.append(head)
            self.is_final(head[1][: electors.final_by(len(head[1]))])

    @rule(name=st.sampled_from(HONEST))
    def elector_is_shown_a_certificate(self, name: str) -> None:
        if self.certified:
            self.electors[name].seen.append(self.chance.choice(self.certified))

    @rule(side=st.integers(0, 2), ahead=st.sampled_from([0, 0, 0, 1]), all=st.booleans())
    def electors_seal(self, side: int, ahead: int, all: bool) -> None:
        """The term that they are in, or the one after, whose leader never came."""
        names = [name for name in self.sides[side] if name not in self.gone]
        for name in names if all else names[:1]:
            node = self.electors[name]
            term = node.term + ahead
            if term < TERMS:
                node.sealed = max(node.sealed, term)
                self.seals.setdefault(term, {})[name] = self.newest(node)

    def newest(self, node: Elector) -> Head | None:
        """The newest certified head that it knows: one that its log records, that the seals of its
        handovers name, or that it was shown."""
        known = [head for head in node.seen if head[0] <= node.sealed]
        for item in node.log:
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
        for _ in range(4):
            group = self.chance.sample(sorted(given), self.chance.randint(0, len(given)))
            claims = [claim for claim in (given[name] for name in group) if claim is not None]
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
            if group and self.electors_of(base).quorum({*group, LIAR}):
                begun = Item("handover", certified, term + 1)
                self.signed.setdefault(term + 1, []).append((*base, begun))
                self.done += 1
                return

    # --- what must hold ---------------------------------------------------------------------------

    def is_final(self, log: Log) -> None:
        """Of two final histories one begins with the other."""
        shorter, self.final = sorted((log, self.final), key=len)
        assert self.final[: len(shorter)] == shorter, TWO_FINAL


TWO_FINAL = "two final histories"


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
        which, side = chance.random(), chance.randrange(3)
        if which < 0.25:
            machine.leader_adds(chance.randrange(4), side)
        elif which < 0.45:
            machine.leader_records_a_certificate(side)
        elif which < 0.8:
            machine.electors_cosign(side, chance.random() < 0.7)
        elif which < 0.85:
            machine.elector_is_shown_a_certificate(chance.choice(HONEST))
        elif which < 0.92:
            machine.electors_seal(side, chance.choice([0, 0, 1]), chance.random() < 0.7)
        else:
            machine.candidate_takes_over(chance.randrange(TERMS - 1))
    return machine


def test_walks_come_to_final_entries_and_to_handovers() -> None:
    walks = [walk(seed, 120) for seed in range(60)]
    assert sum(bool(each.final) for each in walks) > 20
    assert sum(each.done for each in walks) > 20
    assert any(each.left_behind for each in walks)


def small_sets_grow_at_once(patch: pytest.MonkeyPatch) -> None:
    def grows(self: Electors, chosen: Mapping[str, int], by: bool) -> bool:
        last = self.sets[-1]
        few = not by and not last.by_standing and len(last.weights) < FEW
        return few and last.weights.keys() < chosen.keys()

    patch.setattr(Electors, "_grows", grows)


def a_run_rests_on_others_at_once(patch: pytest.MonkeyPatch) -> None:
    choose = Electors.choose

    def chosen(self: Electors, *how: Any) -> None:
        if self.sets and self.sets[-1].by_standing != how[-1]:
            self.sets = self.sets[-1:]
        choose(self, *how)

    patch.setattr(Electors, "choose", chosen)


def a_change_lasts_to_the_end_of_its_own_stretch(patch: pytest.MonkeyPatch) -> None:
    choose = Electors.choose

    def chosen(self: Electors, since: int, round: int, length: int, *who: Any) -> None:
        choose(self, since, round // length * length, length, *who)

    patch.setattr(Electors, "choose", chosen)


@pytest.mark.parametrize(
    "broken",
    [
        small_sets_grow_at_once,
        a_run_rests_on_others_at_once,
        a_change_lasts_to_the_end_of_its_own_stretch,
    ],
)
def test_walks_find_what_breaks_a_rule(
    broken: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    broken(monkeypatch)
    with pytest.raises(AssertionError, match=TWO_FINAL):
        for seed in range(400):
            walk(seed, 100)


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_no_long_schedule_makes_two_final_histories() -> None:
    for seed in range(20_000):
        walk(seed, 100)
