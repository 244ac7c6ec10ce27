"""Rounds and terms together with the fold, by many schedules: of two final histories one begins
with the other, what is final is in every later term, nothing is paid twice, the fold ignores
nothing of an honest leader, and in the end a round gets done.

Rules that are broken on purpose are found by the same schedules.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from typing import Any

import pytest

from artel.coordinator import resuming
from artel.ledger.entries import RoundClosed
from artel.ledger.entries.credit import grant
from artel.ledger.entries.electors import Electorate, Electors
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Outcome
from artel.protocol import round_state
from artel.protocol.round_state import Phase
from paper_world import Broken, Member, beginning
from schedule_world import Schedule, walk

STEPS = 250


def test_no_schedule_breaks_what_must_hold() -> None:
    done: Counter[str] = Counter()
    for seed in range(500):
        schedule = walk(seed, STEPS)
        done.update(schedule.counts)
        done["rounds"] += max(each.ledger.state.round for each in schedule.members.values())
    # And they come to what could go wrong.
    assert min(done[what] for what in ("finals", "handovers", "forks", "rounds")) > 100, done


@pytest.mark.slow
@pytest.mark.timeout(20_000)
def test_no_schedule_of_100_000_does() -> None:
    for seed in range(500, 100_500):
        walk(seed, STEPS)


def any_walk(seed: int) -> Schedule:
    return walk(seed, STEPS)


# --- what chance takes too long to come to --------------------------------------------------------


def together(schedule: Schedule, names: Collection[str], rounds: int) -> None:
    """The first leader and these nodes alone do whole rounds."""
    leader = schedule.leaders[0]
    until = leader.ledger.state.round + rounds
    while leader.ledger.state.round < until:
        assert leader.now < 1000.0, "they are stuck"
        for name in names:
            schedule.on_beat(leader, name, schedule.members[name].ledger.state.states[-1])
            while schedule.mail:
                sent = schedule.mail.pop()
                if sent.to is leader or sent.to.name in names:
                    getattr(schedule, f"on_{sent.kind}")(sent.to, sent.by, sent.what)
        leader.now += 1.0
        leader.feed(round_state.Tick(leader.now))
        leader.look()


def relieved(seed: int) -> Schedule:
    """Two of four honest nodes do the first rounds, the other two the next ones, of which the first
    two learn nothing; with their seals the second leader goes on."""
    schedule = Schedule(seed)
    schedule.members[schedule.liar] = Member(schedule.liar, beginning(schedule.members_carry))
    if schedule.members_carry:  # nobody has standing, or all have
        return schedule
    names = list(schedule.members)
    together(schedule, names[:2], 6)
    together(schedule, names[2:], 2)  # after three stretches, of a round, they would be given up
    for name in names[:2]:
        schedule.seal(schedule.members[name], 0)
    schedule.begin_term(schedule.leaders[1], 1, names[:2])
    return schedule


def test_those_who_were_electors_before_lose_nothing_that_is_final() -> None:
    changed = 0
    for seed in range(40):
        schedule = relieved(seed)
        sets = schedule.leaders[0].ledger.state.electors.sets
        changed += len(sets) == 2 and not sets[0].weights.keys() & sets[1].weights.keys()
        did = schedule.counts["finals"] and schedule.counts["handovers"]
        assert schedule.members_carry or did
    assert changed > 10


# --- rules that are broken on purpose -------------------------------------------------------------


def one_round_of_signatures(patch: pytest.MonkeyPatch) -> None:
    """An entry is final as soon as a head that covers it is certified."""
    patch.setattr(Electors, "final_by", lambda self, size: size)


def half_is_a_quorum(patch: pytest.MonkeyPatch) -> None:
    def half(self: Electorate, nodes: Any) -> bool:
        found = sum(weight for node, weight in self.weights.items() if node in nodes)
        return 2 * found >= sum(self.weights.values())

    patch.setattr(Electorate, "quorum", half)


def credit_on_closing(patch: pytest.MonkeyPatch) -> None:
    rule = RoundClosed.rule

    def changed(self: RoundClosed, state: FoldState, entry: Any) -> Any:
        effect = rule(self, state, entry)
        if isinstance(effect, str):
            return effect

        def paying() -> Outcome:
            done, attempt = effect(), state.attempt
            assert attempt is not None
            granted = tuple(
                given
                for peer, tokens in attempt.accepted.items()
                if (
                    given := grant(
                        state,
                        "compute",
                        attempt.shown[peer].entry,
                        attempt.accounts[peer],
                        node=peer,
                        round=self.round,
                        units=tokens,
                        due=self.round + 9,
                    )
                )
            )
            return Outcome(done.status, granted=granted, left_out=done.left_out)

        return paying

    patch.setattr(RoundClosed, "rule", changed)
    patch.setattr("artel.ledger.entries.kinds.state_agreed._credit_round", lambda *_: ())


def a_seal_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    """It was not written down: the elector goes on cosigning."""
    seal = Schedule.seal

    def forgetful(self: Schedule, member: Member, ahead: int) -> None:
        seal(self, member, ahead)
        member.sealed = -1

    patch.setattr(Schedule, "seal", forgetful)


def the_oldest_certificate_counts(patch: pytest.MonkeyPatch) -> None:
    """Electors name the first one that they know."""

    def oldest(self: Member) -> Any:
        known = [*self.ledger.certified, *self.known]
        return min(known, key=lambda head: head.place, default=None)

    patch.setattr(Member, "newest_certified", oldest)


def electors_change_at_once(patch: pytest.MonkeyPatch) -> None:
    """Without the former ones having agreed."""
    choose = Electors.choose

    def alone(self: Electors, *arguments: Any) -> None:
        choose(self, *arguments)
        self.sets = self.sets[-1:]

    patch.setattr(Electors, "choose", alone)


def an_interrupted_attempt_stays_open(patch: pytest.MonkeyPatch) -> None:
    """Whoever goes on begins the same attempt anew."""
    monkeyed = resuming.resumed

    def same(fold: FoldState, now: float, before: Any = None) -> Any:
        state = monkeyed(fold, now, before)
        interrupted = state.phase in (Phase.TRAINING, Phase.REVEALING)
        return replace(state, phase=Phase.WAITING) if interrupted else state

    patch.setattr("paper_world.resumed", same)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Ledgers are shared by all schedules: none that was folded by broken rules stays."""
    beginning.cache_clear()
    yield
    beginning.cache_clear()


@pytest.mark.usefixtures("fresh")
@pytest.mark.parametrize(
    ("broken", "what", "schedule"),
    [
        (one_round_of_signatures, "two final histories|lost", any_walk),
        (half_is_a_quorum, "two final histories|lost", any_walk),
        (credit_on_closing, "credit twice", any_walk),
        (a_seal_is_forgotten, "two final histories|lost", any_walk),
        (the_oldest_certificate_counts, "lost", relieved),
        (electors_change_at_once, "lost", relieved),
        (an_interrupted_attempt_stays_open, "ignored: round_opened", any_walk),
    ],
)
def test_a_broken_rule_is_found(
    broken: Callable[[pytest.MonkeyPatch], None],
    what: str,
    schedule: Callable[[int], Schedule],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    broken(monkeypatch)
    with pytest.raises(Broken, match=what):
        for seed in range(500):
            schedule(seed)
