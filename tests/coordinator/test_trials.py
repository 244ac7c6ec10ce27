"""Trials: a node of an account without standing repeats work before anything of it is recorded."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from artel.coordinator import submission, trials
from artel.ledger import entries
from artel.ledger.entries import Entry, audits
from artel.protocol import messages, repeated_work
from artel.protocol.fingerprints import ROW, ROW_BYTES, TRIAL_APART, Rows, apart, repeats
from artel.protocol.net import wire
from artel.protocol.repeated_work import TRIAL_FAILED, TRIAL_OVER, TRIAL_STEPS
from desk_world import Member, Office, refused, run_of
from witness_world import play_round

STEPS = 12
RULES = {"total": 60, "min_nodes": 2, "max_nodes": 8, "span": 2, "inner_steps": STEPS}
TRUST = {"founders": 2, "audit_rate": 0.05, "newcomer_rounds": 0, "audit_rounds": 2}


def steps_of(name: str, steps: int = STEPS) -> Rows:
    """Fingerprints as steps leave them: a loss that falls a little, weights that move a little."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")
    chance = np.random.default_rng(seed)
    rows = np.zeros((steps, ROW), np.float32)
    rows[:, 0] = 4 + 0.2 * chance.normal(size=steps)
    rows[:, 1] = 1 + chance.random(steps)
    rows[:, 2:] = np.cumsum(1e-3 * chance.normal(size=(steps, ROW - 2)), axis=0) + 0.05
    return rows.astype(np.float32)


def name_of(member: Member, round: int) -> str:
    return f"{member.peer} {round}"


class Trained(Member):
    """A member whose fingerprints are of steps."""

    def rows(self, steps: int) -> bytes:
        return steps_of(name_of(self, self.office.core.state.round), steps).astype("<f4").tobytes()


class Pair(Office):
    """A run of two nodes."""

    honest: list[Member]


async def opened(home: Path, **trust: Any) -> tuple[Pair, list[Member]]:
    sections = {"ownership": {"vesting_rounds": 1}, "trust": TRUST | trust}
    office = Pair(home, *run_of(home, rounds=RULES, **sections))
    await office.open()
    office.honest = honest = [Trained(office, name) for name in ("a", "b")]
    for member in honest:
        await member.hello()
    return office, honest


def known(office: Pair, honest: list[Member]) -> None:
    """The accounts of these nodes have standing, as if others had repeated what they made; until a
    restart, since no entry says so."""
    fold = office.core.ledger.state
    for member in honest:
        fold.standing.earned(member.owner.key, 100, fold.round, 500)


@pytest_asyncio.fixture
async def office(tmp_path: Path) -> AsyncIterator[Pair]:
    """A run that rests on its two members."""
    office, honest = await opened(tmp_path)
    for _ in range(6):
        await play_round(office, honest)
    known(office, honest)
    assert office.core.ledger.state.rests_on == "members"
    yield office
    office.close()


def of(office: Pair, trial: messages.Message) -> tuple[Entry, Rows]:
    """The contribution that a trial is about, and the answer."""
    assert isinstance(trial, repeated_work.Trial)
    assert office.store is not None
    index = office.store.index_of(trial.contribution)
    assert index is not None
    entry = entries.decode(office.store.leaf(index))
    assert isinstance(entry.body, entries.Contribution)
    assert entry.body.span == entry.body.round
    known = steps_of(f"{entry.body.node} {entry.body.round}")[: trial.steps]
    return entry, known


async def answer(member: Member, trial: messages.Message, rows: bytes) -> messages.Message:
    assert isinstance(trial, repeated_work.Trial)
    return await member.say(
        repeated_work.Repeated(
            run=member.office.run,
            contribution=trial.contribution,
            ticket=trial.ticket,
            rows=rows,
        )
    )


async def passes(member: Member) -> str:
    """Do the trial that is asked for, and get in; the contribution that it was about."""
    trial = await member.hello()
    await answer(member, trial, of(member.office, trial)[1].tobytes())
    assert isinstance(await member.hello(), messages.Welcome)
    assert isinstance(trial, repeated_work.Trial)
    return trial.contribution


async def test_while_a_run_has_no_history_nobody_needs_a_trial(tmp_path: Path) -> None:
    office, honest = await opened(tmp_path)
    assert isinstance(await Member(office, "early").hello(), messages.Welcome)
    await play_round(office, honest)
    assert office.core.ledger.state.rests_on == "coordinator"
    assert isinstance(await Member(office, "second").hello(), messages.Welcome)
    office.close()


async def test_newcomers_pay_while_a_run_still_rests_on_its_coordinator(tmp_path: Path) -> None:
    """Once two accounts have standing; one alone could keep all others away with wrong answers."""
    office, honest = await opened(tmp_path, founders=4)
    for _ in range(6):
        await play_round(office, honest)
    known(office, honest)
    fold = office.core.ledger.state
    assert (fold.rests_on, len(fold.standings())) == ("coordinator", 2)
    assert await passes(Member(office, "comes"))
    fold = office.core.ledger.state
    fold.standing.forfeit(honest[0].owner.key)
    assert isinstance(await Member(office, "free").hello(), messages.Welcome)
    office.close()


async def test_a_run_with_a_list_or_without_audits_asks_for_none(tmp_path: Path) -> None:
    for number, trust in enumerate(({"audit_rate": 0.0}, {"admission": "list"})):
        home = tmp_path / str(number)
        office = Office(home, *run_of(home, rounds=RULES, trust=TRUST | trust))
        await office.open()
        fold = office.core.ledger.state
        fold.standing.earned("ab" * 32, 5, 0, 100)
        fold.standing.earned("cd" * 32, 5, 0, 100)
        assert fold.rests_on == "members"
        assert await office.desk._trials.asked("peer", "ef" * 32, "peer") is None
        office.close()


async def test_nothing_is_recorded_before_a_trial_is_passed(office: Pair) -> None:
    size = office.core.ledger.store.size
    comes = Member(office, "comes")
    trial = await comes.hello()
    entry, known = of(office, trial)
    assert len(known) == TRIAL_STEPS
    assert office.core.ledger.store.size == size
    assert await refused(comes.beat()) == "unknown_node"
    # Another machine comes to about the same.
    near = known.copy()
    near[:, 2:] += 1e-4 * np.random.default_rng(1).normal(size=near[:, 2:].shape)
    assert 0 < apart(known, near, 0)[0] < TRIAL_APART
    office.now += 20
    assert isinstance(await answer(comes, trial, near.tobytes()), messages.Ok)
    assert office.core.ledger.store.size == size
    assert isinstance(await comes.hello(), messages.Welcome)
    assert office.core.ledger.store.size == size + 2
    # The replies that get lost on the way change nothing.
    assert isinstance(await answer(comes, trial, near.tobytes()), messages.Ok)
    assert isinstance(await comes.hello(), messages.Welcome)
    assert isinstance(await comes.hello(statements=[]), messages.Welcome)
    assert office.core.ledger.store.size == size + 2
    assert entry.id == trial.contribution  # type: ignore[union-attr]


async def test_a_node_of_an_account_with_standing_needs_none_nor_does_one_that_is_known(
    office: Pair,
) -> None:
    (one, _) = office.honest
    more = Member(office, "more")
    more.owner = one.owner
    statement = entries.node(more.identity, one.owner, office.run).encode()
    assert isinstance(await more.hello(statements=[statement]), messages.Welcome)
    assert isinstance(await one.hello(), messages.Welcome)
    # What would not count anyway is refused before any work.
    foreign = entries.node(more.identity, Member(office, "x").owner, office.run).encode()
    assert await refused(Member(office, "x").hello(statements=[foreign])) == "failed"


async def test_a_pass_is_for_some_minutes_and_for_one_account(office: Pair) -> None:
    comes = Member(office, "comes")
    trial = await comes.hello()
    await answer(comes, trial, of(office, trial)[1].tobytes())
    other = Member(office, "comes")
    other.owner = Member(office, "other").owner
    assert isinstance(await other.hello(), repeated_work.Trial)
    office.now += trials.PASSED_S + 1
    assert isinstance(await comes.hello(), repeated_work.Trial)


async def test_whoever_has_the_answer_of_another_has_nothing(office: Pair) -> None:
    first, copier = Member(office, "first"), Member(office, "copier")
    given = {}
    for member in (first, copier):
        given[member] = await member.hello()
    size = office.core.ledger.store.size
    rows = of(office, given[first])[1].tobytes()
    # Its ticket is of no use to another peer; nor is a forged one to anybody.
    assert await refused(answer(copier, given[first], rows)) == TRIAL_OVER
    forged = given[first].model_copy(update={"ticket": os.urandom(len(given[first].ticket))})  # type: ignore[union-attr]
    for ticket in (b"", forged.ticket, forged.ticket[:10]):  # type: ignore[union-attr]
        changed = forged.model_copy(update={"ticket": ticket})
        assert await refused(answer(first, changed, rows)) == TRIAL_OVER
    # Nor is one answer given twice: the first takes the contribution.
    many = [Member(office, f"sybil {number}") for number in range(20)]
    same: list[tuple[Member, messages.Message]] = []
    for member in many:
        trial = await member.hello()
        assert isinstance(trial, repeated_work.Trial)
        if trial.contribution == given[first].contribution:  # type: ignore[union-attr]
            same.append((member, trial))
    assert same, "there are few contributions"
    await answer(first, given[first], rows)
    for member, trial in same:
        assert await refused(answer(member, trial, rows)) == TRIAL_OVER
    assert office.core.ledger.store.size == size


async def test_answers_that_did_not_train(office: Pair) -> None:
    """What is public, guesses, and garbage of every size; each costs the task, and time."""
    waits = []
    for number, kind in enumerate(("zeros", "one step", "noise", "nan", "none", "short", "odd")):
        cheat = Member(office, f"cheat {number}")
        trial = await cheat.hello()
        known = of(office, trial)[1]
        guess = known.copy()
        if kind == "zeros":
            guess[:] = 0
        elif kind == "one step":
            guess[1:, 2:] = known[0, 2:] + np.outer(
                np.arange(1, len(known)), known[1, 2:] - known[0, 2:]
            )
        elif kind == "noise":
            guess[:, 2:] = steps_of("noise")[: len(known), 2:]
        elif kind == "nan":
            guess[3, 5] = np.nan
        data = guess.tobytes()
        cut = {"none": 0, "short": ROW_BYTES * 4, "odd": len(data) - 1}.get(kind, len(data))
        assert await refused(answer(cheat, trial, data[:cut])) == TRIAL_FAILED, kind
        # The right answer comes too late for this task.
        waits.append(await refused(answer(cheat, trial, known.tobytes())))
        office.now += trials.PAUSE_S
        assert await refused(answer(cheat, trial, known.tobytes())) == TRIAL_OVER
    assert set(waits) == {"busy"}
    with pytest.raises(ValueError, match="rows"):
        await answer(cheat, trial, bytes(ROW_BYTES * TRIAL_STEPS + 1))


async def test_who_fails_waits_twice_as_long_each_time_and_so_does_its_address(
    office: Pair,
) -> None:
    cheat = Member(office, "cheat")
    cheat.network = "192.0.2.7"
    pause = trials.PAUSE_S
    for _ in range(8):
        trial = await cheat.hello()
        assert await refused(answer(cheat, trial, b"")) == TRIAL_FAILED
        neighbour = Member(office, "neighbour")
        neighbour.network = "192.0.2.7"
        for each in (cheat, neighbour):
            assert await refused(each.hello()) == "busy"
        office.now += pause - 1
        assert await refused(cheat.hello()) == "busy"
        office.now += 1
        pause = min(2 * pause, trials.LONGEST_S)
    office.now += 60
    assert await passes(cheat), "who was wrong by mistake gets in in the end"


async def test_what_all_fail_at_is_given_to_nobody_while_there_is_other_work(
    office: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A member may have sent false fingerprints, so that newcomers fail."""
    first = await Member(office, "first").hello()
    entry, _ = of(office, first)
    assert isinstance(entry.body, entries.Contribution)
    path = office.core.fingerprints.path(entry.body.chain)
    assert path is not None
    path.write_bytes(os.urandom(path.stat().st_size))
    monkeypatch.setattr(office.core.fingerprints, "sound", office.core.fingerprints.path)
    loser = Member(office, "loser")
    for number in range(40):
        loser = Member(office, f"loser {number}")
        trial = await loser.hello()
        if trial.contribution == entry.id:  # type: ignore[union-attr]
            assert (
                await refused(answer(loser, trial, of(office, trial)[1].tobytes())) == TRIAL_FAILED
            )
            break
    else:
        raise AssertionError("it was handed out to nobody")
    found = {(await Member(office, f"m {n}").hello()).contribution for n in range(12)}  # type: ignore[union-attr]
    assert entry.id not in found


async def test_a_thousand_keys_that_never_answer_take_nothing(office: Pair) -> None:
    size, desk = office.core.ledger.store.size, office.desk._trials
    for number in range(1000):
        key = Member(office, f"key {number}")
        key.network = f"2001:db8:{number:x}::1"
        assert isinstance(await key.hello(), repeated_work.Trial)
    assert office.core.ledger.store.size == size
    assert not desk._passed
    assert not desk._failed
    assert await passes(Member(office, "honest"))
    # From one address they are bounded, too; the others are not.
    said = []
    for number in range(30):
        key = Member(office, f"another {number}")
        key.network = "192.0.2.1"
        try:
            said.append((await key.hello()).KIND)
        except wire.Refused as refusal:
            said.append(refusal.code)
    assert said == ["trial"] * trials.EACH_AT_ONCE + ["busy"] * (30 - trials.EACH_AT_ONCE)


async def test_what_is_remembered_is_bounded(office: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trials, "REMEMBERED", 5)
    for number in range(12):
        key = Member(office, f"key {number}")
        assert await refused(answer(key, await key.hello(), b"")) == TRIAL_FAILED
    assert len(office.desk._trials._failed) == 5


async def test_a_contribution_lets_one_in_and_a_few_more_when_no_other_is_left(
    office: Pair,
) -> None:
    desk, used = office.desk._trials, list[str]()
    await desk._look()
    pieces = len(list(desk._all()))
    assert pieces >= 4
    code = ""
    for number in range(trials.USES * pieces + 1):
        office.now += 60
        try:
            used.append(await passes(Member(office, f"newcomer {number}")))
        except wire.Refused as refusal:
            code = refusal.code
    assert code == "busy"
    assert len(used) == trials.USES * pieces
    for turn in range(trials.USES):
        assert len(set(used[turn * pieces : (turn + 1) * pieces])) == pieces
    await office.pass_time(0)  # the members were silent all that time
    await play_round(office, office.honest)
    await play_round(office, office.honest)
    assert await passes(Member(office, "later")) not in used


async def test_entries_of_those_who_passed_do_not_wait_for_a_flood(
    office: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "FREE_ADMISSIONS", 0)
    flood, said = Member(office, "flood"), set[str]()
    for number in range(20):
        flood.network = f"2001:db8:{number:x}::1"
        owner = Member(office, f"account {number}").owner
        try:
            await flood.submit(entries.account(owner, office.run))
        except wire.Refused as refusal:
            said.add(refusal.code)
    assert said == {"busy"}
    assert await passes(Member(office, "honest"))
    # They have a bound of their own.
    codes = []
    for number in range(6):
        try:
            await passes(Member(office, f"more {number}"))
        except wire.Refused as refusal:
            codes.append(refusal.code)
    assert set(codes) == {"busy"}
    assert 0 < len(codes) < 6


async def test_work_of_the_barred_and_of_the_own_account_is_not_asked_for(office: Pair) -> None:
    one, two = office.honest
    desk = office.desk._trials
    await desk._look()
    office.core.ledger.state.accounts[one.owner.key].barred = True
    for number in range(6):
        trial = await Member(office, f"key {number}").hello()
        assert of(office, trial)[0].body.node == two.peer
    office.core.ledger.state.standing.forfeit(one.owner.key)
    office.core.ledger.state.standing.earned("ab" * 32, 1, 6, 100)
    office.core.ledger.state.accounts[one.owner.key].barred = False
    for _ in range(6):
        trial = await desk.asked("peer", one.owner.key, "peer")
        assert trial is not None
        assert of(office, trial)[0].body.node == two.peer


async def test_what_there_is_is_read_a_part_at_a_time(
    office: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A ledger of many members has too much to be read for one newcomer."""
    desk, found = office.desk._trials, list[int]()
    monkeypatch.setattr(trials, "READ", 2)
    for _ in range(8):
        await desk._look()
        found.append(len(desk._pieces))
    rounds = office.core.ledger.state.round
    assert found[:3] == [1, 2, 3]
    assert found[-1] == min(rounds, 2 + audits.PATIENCE * TRUST["audit_rounds"] - 1)
    monkeypatch.setattr(trials, "HELD", 1)
    await desk._look()
    assert 0 < len(list(desk._all())) <= 2, "those of the newest round that has any"


async def test_zeros_are_no_work_to_repeat(office: Pair) -> None:
    """They count, and whoever sends them may have any fingerprints."""
    one, two = office.honest
    one.vector = np.zeros_like(one.vector)
    first = office.core.ledger.state.round
    for _ in range(4):
        await play_round(office, [one, two])
    desk = office.desk._trials
    await desk._look()
    made = [piece.account for piece in desk._all() if piece.round >= first]
    assert set(made) == {two.owner.key}


async def test_a_restart_makes_trials_over(office: Pair) -> None:
    comes = Member(office, "comes")
    trial = await comes.hello()
    rows = of(office, trial)[1].tobytes()
    await office.reopen()
    known(office, office.honest)
    assert await refused(answer(comes, trial, rows)) == TRIAL_OVER
    assert await passes(comes)


async def test_what_newcomers_have_repeated_outlives_a_restart(office: Pair) -> None:
    """Else each restart let the same answer in once more, for any key."""
    taken = [await passes(Member(office, f"newcomer {number}")) for number in range(2)]
    for turn in range(2):
        await office.reopen()
        known(office, office.honest)
        desk = office.desk._trials
        await desk._look()
        uses = {piece.source: piece.uses for piece in desk._all()}
        assert {source for source, times in uses.items() if times} == set(taken)
        for number in range(12):
            trial = await Member(office, f"key {turn} {number}").hello()
            assert trial.contribution not in taken  # type: ignore[union-attr]
        taken.append(await passes(Member(office, f"later {turn}")))
    # Nor is it forgotten when there was too much to keep in mind.
    desk._pieces.clear()
    await desk._look()
    assert {piece.source for piece in desk._all() if piece.uses} == set(taken)


async def test_what_was_repeated_is_forgotten_with_its_round(office: Pair) -> None:
    assert office.heads is not None
    taken = await passes(Member(office, "newcomer"))
    assert office.heads.repeated() == {taken: 1}
    kept = audits.rounds_kept(office.core.ledger.state.founded)
    for _ in range(kept + 1):
        await play_round(office, office.honest)
    later = await passes(Member(office, "later"))
    assert office.heads.repeated() == {later: 1}


async def test_an_answer_comes_too_late(office: Pair) -> None:
    comes = Member(office, "comes")
    trial = await comes.hello()
    office.now += trials.ANSWER_S + 1
    assert await refused(answer(comes, trial, of(office, trial)[1].tobytes())) == TRIAL_OVER


def test_what_steps_have_in_common() -> None:
    known = steps_of("known", 8)
    assert repeats(known, known)
    assert not repeats(known, known[:7])
    assert not repeats(known[:1], known[:1]), "one step does not move"
    still = np.repeat(known[:1], 8, axis=0)
    assert not repeats(known, still)
    assert not repeats(still, still), "nothing moved, so nothing is known"
    lost = known.copy()
    lost[:, 0] *= 1 + 2 * TRIAL_APART
    assert not repeats(known, lost)
