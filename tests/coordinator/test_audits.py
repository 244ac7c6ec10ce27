"""Audits at the coordinator: who owes one makes fewer steps, and who is convicted gets no seat."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest_asyncio

from artel.coordinator.closing import Closing
from artel.ledger import entries
from artel.protocol import messages
from artel.protocol.tasks import within
from desk_world import Member, Office, refused, run_of
from witness_world import play_round


@pytest_asyncio.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """A run with spans, and so with audits."""
    rules = {"total": 8, "span": 4, "inner_steps": 8}
    office = await Office(tmp_path / "coordinator", *run_of(tmp_path / "run", rules)).open()
    yield office
    office.close()


async def judge(office: Office, auditors: list[Member], liar: str = "") -> list[str]:
    """All that these were drawn for is judged: what ``liar`` did is false; returns the verdicts."""
    given = []
    for auditor in auditors:
        owed = office.core.ledger.state.owed_by(auditor.peer)
        if owed is not None:
            source, audit = owed
            fields = {"contribution": source, "salt": bytes(32), "round": audit.last}
            said = "reject" if audit.node == liar else "accept"
            made = entries.verdict(auditor.identity, office.run, verdict=said, error=0.5, **fields)
            assert await refused(auditor.submit(made)) == "not_committed"
            committed = entries.verdict_committed(
                auditor.identity, office.run, contribution=source, verdict=made
            )
            await auditor.submit(committed)
            given.append((auditor, made, said))
    for auditor, made, _ in given:
        await auditor.submit(made)
    return [said for _, _, said in given]


async def test_who_owes_an_audit_makes_fewer_steps_until_it_is_covered(
    office: Office, members: list[Member]
) -> None:
    await play_round(office, members)
    fold = office.core.ledger.state
    owing = [member for member in members if fold.owed_by(member.peer)]
    assert owing
    for member in members:
        await member.beat()
    opened = office.bodies("round_opened")[-1]
    steps = dict(zip(opened.members, opened.steps, strict=True))
    assert opened.round == 1
    assert {steps[member.peer] for member in owing} == {2}
    assert {steps[m.peer] for m in members if m not in owing} <= {8}
    assert await judge(office, owing) == ["accept"] * len(owing)
    assert len(office.bodies("verdict")) == len(owing)
    # The round goes on as it was opened, whoever has done its audit meanwhile.
    await play_round(office, members)
    assert office.core.ledger.state.round == 2
    assert not office.core.ledger.state.ignored


async def test_who_is_convicted_gets_no_seat_any_more(
    office: Office, members: list[Member]
) -> None:
    fourth = Member(office, "d")
    await fourth.hello()
    everybody = [*members, fourth]
    fourth.root = hashlib.sha256(b"state 1").hexdigest()
    await fourth.beat()
    await play_round(office, members)
    bad = everybody[0]
    said = []
    while not office.core.ledger.state.accounts[bad.owner.key].barred:
        said += await judge(office, everybody[1:], bad.peer)
        if not office.core.ledger.state.accounts[bad.owner.key].barred:
            await play_round(office, everybody)
    assert said.count("reject") >= 2
    assert office.core.ledger.state.round <= 3
    await play_round(office, everybody)  # it had been opened before
    await play_round(office, everybody[1:])
    for member in everybody:
        await member.beat()
    assert bad.peer not in office.bodies("round_opened")[-1].members


async def test_the_end_of_a_run_waits_for_auditors_as_long_as_they_are_here(
    office: Office, members: list[Member]
) -> None:
    async def release() -> None:
        raise AssertionError("not yet")

    closing = Closing(office.core, release)
    await play_round(office, members)
    waiting = asyncio.create_task(closing._audited())
    await asyncio.sleep(0)
    assert not waiting.done()
    assert await judge(office, members)
    await within(waiting, 5.0)
    await play_round(office, members)
    assert any(audit.awaited for audit in office.core.ledger.state.audits.values())
    for member in members:
        await member.say(messages.Leave(run=office.run))
    await within(closing._audited(), 0.2)
