"""A wrong state at the coordinator: it is called wrong, proven wrong, and the rounds go back."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from artel.coordinator.agreeing import Agreeing
from artel.coordinator.returning import Returning
from artel.coordinator.upkeep import Upkeep
from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.ledger.entries.kinds.diverged import in_micro, loss_message
from artel.ledger.entries.kinds.state_wrong import needed
from artel.protocol import content, messages
from artel.protocol.errors import CheckFailed
from artel.protocol.round_state import Phase
from artel.protocol.state import state_root
from desk_world import Member, Office, refused, run_of
from host_world import until
from scene_world import scene_of

RIGHT = hashlib.sha256(b"right").hexdigest()
WRONG = hashlib.sha256(b"wrong").hexdigest()
FIRST = hashlib.sha256(b"first").hexdigest()


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return run_of(tmp_path_factory.mktemp("run"), {"min_nodes": 5})


@pytest_asyncio.fixture
async def members(office: Office) -> list[Member]:
    five = [Member(office, name) for name in "abcde"]
    for member in five:
        await member.hello()
    return five


async def play(members: list[Member], signers: Sequence[Member], root: str) -> None:
    """A round whose state only these sign, and which all then hold."""
    office = members[0].office
    for member in members:
        await member.beat()
    assert office.core.state.phase is Phase.TRAINING
    for member in members:
        await member.commit()
    for member in members:
        await member.show()
    round = office.core.state.round
    for member in signers:
        if office.core.state.round == round:  # whoever did not sign before is not waited for
            await member.sign_state(root)
    await office.pass_time(31)
    assert office.core.state.base == root
    for member in members:
        member.root = root


async def say(member: Member, statement: Any) -> None:
    await member.say(messages.Accuse(run=member.office.run, statement=statement.encode()))


@pytest_asyncio.fixture
async def charged(office: Office, members: list[Member]) -> str:
    """One of two honest nodes has called state 2 wrong; the id of that entry."""
    await play(members, members, FIRST)
    await play(members, members[:3], WRONG)
    honest = members[3]
    fields = {"state": 2, "attempt": 0, "recorded": WRONG, "root": RIGHT}
    charge = entries.state_wrong(honest.identity, office.run, **fields)
    await say(honest, charge)
    return entries.entry_id(charge.encode())


async def prove(office: Office, members: list[Member], charge: str, root: str = RIGHT) -> None:
    """Most of those drawn have computed this root."""
    (found,) = office.core.ledger.state.charges.values()
    owners = {member.owner.key: member for member in members}
    for name in found.jury[: needed(found)]:
        answer = entries.jury_answer(owners[name].identity, office.run, charge=charge, root=root)
        await say(owners[name], answer)


def not_computed_before(office: Office) -> None:
    """As if the run rested on its members when the states were agreed on."""
    fold = office.core.ledger.state
    fold.anchors = [replace(anchor, rests_on="members") for anchor in fold.anchors]


async def returned(office: Office, held: set[str], own: str = RIGHT) -> list[str]:
    """Let the coordinator go back; which states it asked for.

    :param own: what it comes to itself, if it can compute the state
    """
    asked: list[str] = []

    async def copy(number: int, root: str, others: Sequence[str]) -> bool:
        assert others
        assert office.core.ledger.state.states[number] == root
        asked.append(root)
        return root in held

    async def compute(number: int, others: Sequence[str]) -> str:
        assert (number, office.core.ledger.state.charges[number].node in others) == (2, True)
        if not own:
            raise CheckFailed("the contributions are gone")
        return own

    returning = Returning(office.core, copy, compute)
    task = asyncio.create_task(returning.run())
    await asyncio.sleep(0)
    for _ in range(200):
        if not office.core.state.halted:
            break
        await office.core.tell()
        await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return asked


async def test_the_run_goes_on_from_the_state_before(
    office: Office, members: list[Member], charged: str
) -> None:
    await prove(office, members, charged)
    for member in members:
        assert (await member.beat()).task == "wait"  # no round begins
    assert await returned(office, {FIRST}) == [FIRST, FIRST]
    state = office.core.state
    assert (state.round, state.base, state.attempt, state.failed) == (1, FIRST, 1, 0)
    for member in members:
        assert (await member.beat()).task == "sync"
        member.root = FIRST
    await play(members, members, RIGHT)
    await play(members, members, WRONG)
    assert office.core.ledger.state.states[1:] == [FIRST, RIGHT, WRONG]
    assert [body.attempt for body in office.bodies("state_agreed")] == [0, 0, 1, 0]
    assert office.core.state.phase is Phase.FINISHED
    assert not office.core.ledger.state.ignored


def said(caplog: pytest.LogCaptureFixture, name: str) -> dict[str, Any]:
    """The fields of an event that was said once."""
    (record,) = [record for record in caplog.records if record.getMessage() == name]
    return dict(vars(record)["fields"])


@pytest.mark.parametrize(
    ("own", "grounds"), [("", "the jury's word alone"), (RIGHT, "computed here too")]
)
async def test_it_says_what_its_going_back_rests_on(
    office: Office,
    members: list[Member],
    charged: str,
    caplog: pytest.LogCaptureFixture,
    own: str,
    grounds: str,
) -> None:
    await prove(office, members, charged)
    not_computed_before(office)
    await returned(office, {FIRST}, own)
    assert office.core.state.base == FIRST
    assert said(caplog, "run.rolled_back")["grounds"] == grounds


async def test_what_it_has_computed_once_is_upheld_when_its_contributions_are_gone(
    office: Office, members: list[Member], charged: str
) -> None:
    """Else those who have any credit could undo 31 states, while a run rests on its coordinator."""
    await prove(office, members, charged)
    assert {anchor.rests_on for anchor in office.core.ledger.state.anchors[1:]} == {"coordinator"}
    await returned(office, {FIRST}, own="")
    assert (office.core.state.base, office.bodies("rolled_back")) == (WRONG, [])
    assert [body.root for body in office.bodies("state_upheld")] == [WRONG]


async def test_what_comes_out_here_as_it_is_recorded_is_upheld_and_the_run_goes_on(
    office: Office, members: list[Member], charged: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Most of the jury lie."""
    await prove(office, members, charged)
    assert office.core.state.halted
    await returned(office, {FIRST}, own=WRONG)
    assert (office.core.state.base, office.bodies("rolled_back")) == (WRONG, [])
    assert [body.root for body in office.bodies("state_upheld")] == [WRONG]
    assert said(caplog, "state.upheld")["state"] == 2
    fold = office.core.ledger.state
    assert (fold.charges, office.core.state.halted) == ({}, False)
    assert fold.rejected[members[3].peer] == {reasons.FALSE_ACCUSATION: 1}
    for member in members:
        member.root = WRONG
    await play(members, members, RIGHT)
    await office.reopen()
    assert (office.core.state.round, office.core.state.halted) == (3, False)


@pytest.mark.parametrize("jury_lies", [True, False])
async def test_the_coordinator_computes_the_state_from_what_was_contributed(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    jury_lies: bool,
) -> None:
    """Real files, and the real child; the contributions are fetched again where they are gone."""
    # Else the coordinator may find out in time what it is to be told afterwards.
    monkeypatch.setattr(Agreeing, "_owed", lambda self: None)
    monkeypatch.setattr(Agreeing, "_next", lambda self: None)
    async with scene_of(tmp_path, 5, settle_s=30) as scene:
        core, office = scene.core, scene.office
        await scene.applying()
        right = scene.next()
        false = state_root(replace(right, params=-right.params))
        core.rules = replace(core.rules, checked=False)  # else no false one is recorded
        recorded, other = (state_root(right), false) if jury_lies else (false, state_root(right))
        kept = [(member, member.blob()) for member in scene.members]
        for member in scene.members[:3]:
            await member.sign_state(recorded)
        await office.pass_time(31)
        assert core.state.base == recorded
        for member, blob in kept:
            name = content.content_id(blob)
            (tmp_path / "blob").write_bytes(blob)
            scene.holders[member.peer].store.adopt(name, tmp_path / "blob")
            core.blobs.delete(name)
        accuser = scene.members[3]
        fields = {"state": 1, "attempt": 0, "recorded": recorded, "root": other}
        charge = entries.state_wrong(accuser.identity, office.run, **fields)
        await say(accuser, charge)
        await prove(office, scene.members, entries.entry_id(charge.encode()), other)
        assert core.state.halted
        upkeep = asyncio.create_task(Upkeep(core, "").run())
        try:
            done = "state.upheld" if jury_lies else "run.rolled_back"
            await until(lambda: done in [record.getMessage() for record in caplog.records], 60)
        finally:
            upkeep.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await upkeep
        assert said(caplog, "state.recomputed")["right"] is jury_lies
        assert core.ledger.state.states == [scene.base.root, recorded][: 1 + jury_lies]
        if not jury_lies:
            assert said(caplog, "run.rolled_back")["grounds"] == "computed here too"


async def test_it_goes_further_back_when_nobody_holds_that_state(
    office: Office, members: list[Member], charged: str
) -> None:
    await prove(office, members, charged)
    not_computed_before(office)
    first = office.manifest.initial_state
    assert await returned(office, {first}) == [FIRST, FIRST, first]
    state = office.core.state
    assert (state.round, state.base, state.attempt, state.begun) == (0, first, 1, {0: 1, 1: 1})


async def test_a_restart_in_between_loses_nothing(
    office: Office, members: list[Member], charged: str
) -> None:
    await prove(office, members, charged)
    await office.reopen()
    assert office.core.state.halted
    for member in members:
        await member.beat()
    assert office.core.state.phase is Phase.WAITING
    await returned(office, {FIRST})
    await office.reopen()
    assert (office.core.state.round, office.core.state.attempt) == (1, 1)
    for member in members:
        member.root = FIRST
    await play(members, members, RIGHT)


async def test_an_accusation_that_is_false_changes_nothing_for_the_run(
    office: Office, members: list[Member], charged: str
) -> None:
    await prove(office, members, charged, WRONG)
    assert office.core.ledger.state.charges == {}
    assert not office.core.state.halted
    await play(members, members, RIGHT)
    again = {"state": 2, "attempt": 0, "recorded": WRONG, "root": FIRST}
    accused = entries.state_wrong(members[3].identity, office.run, **again)
    assert await refused(say(members[3], accused)) == "duplicate"


async def test_what_is_settled_is_not_gone_back_behind(
    office: Office, members: list[Member], charged: str
) -> None:
    await prove(office, members, charged, WRONG)
    await office.core.go_back(charged, 1)
    await office.core.go_back("00" * 32, 0)
    assert (office.core.state.round, office.bodies("rolled_back")) == (2, [])


async def test_only_the_node_itself_accuses(
    office: Office, members: list[Member], charged: str
) -> None:
    assert charged
    fields = {"state": 1, "attempt": 0, "recorded": FIRST, "root": RIGHT}
    other = entries.state_wrong(members[1].identity, office.run, **fields)
    assert await refused(say(members[0], other)) == "failed"
    assert await refused(say(members[0], members[0].statement())) == "malformed"


async def measure(members: list[Member], loss: float) -> None:
    """Whoever is asked says what it measured of the state that the round starts from."""
    office = members[0].office
    for member in [*members, *members]:  # one is asked first, and what it says has all be asked
        asked = await member.beat()
        if not asked.evaluate or office.core.state.halted:
            continue
        said = loss_message(office.run, asked.round, office.core.state.base, in_micro(loss))
        found = messages.Validation(
            round=asked.round, loss=loss, signature=member.identity.sign(said).hex()
        )
        fields = {"state_round": asked.round, "state_root": member.root, "phase": "x"}
        await member.beat(report=messages.Report(**fields, validation=found))


async def test_training_that_diverged_is_undone_and_the_run_goes_on(
    office: Office, members: list[Member], caplog: pytest.LogCaptureFixture
) -> None:
    initial = office.core.state.base
    for member in members:
        await member.beat()
    await measure(members, 3.5)
    await play(members, members, FIRST)
    for member in members:
        await member.beat()
    await measure(members, messages.MAX_LOSS)
    assert office.core.state.halted
    (diverged,) = office.bodies("diverged")
    assert (diverged.state, diverged.root, diverged.better) == (1, FIRST, 0)
    assert len(diverged.losses) > len(members) / 2
    assert await returned(office, {initial}) == [initial]
    (back,) = office.bodies("rolled_back")
    assert (back.state, office.core.state.base) == (0, initial)
    assert said(caplog, "run.rolled_back")["grounds"] == "training diverged"
    assert office.core.metrics.rounds[1].validation is None
    for member in members:
        member.root = initial
    await play(members, members, RIGHT)
    assert office.core.ledger.state.states == [initial, RIGHT]
