"""Audits at the coordinator: who owes one makes fewer steps, and who is convicted gets no seat."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import pytest_asyncio

from artel.coordinator.closing import Closing
from artel.coordinator.upkeep import Upkeep
from artel.ledger import entries
from artel.protocol import content, messages, round_state
from artel.protocol.fingerprints import ROW_BYTES
from artel.protocol.net import wire
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


# --- fingerprints ---


async def test_fingerprints_come_with_a_contribution_and_are_given_to_nobody(
    office: Office, members: list[Member]
) -> None:
    for member in members:
        await member.beat()
    for member in members:
        await member.commit()
    one, *_ = members
    await one.put()
    await one.put_rows()
    await one.reveal()
    chain = content.content_id(one.rows(8))
    assert office.core.fingerprints.size_of(chain) == 8 * ROW_BYTES
    for who in members:
        for request in (
            messages.GetIndex(id=chain),
            messages.GetChunks(id=chain, first=0, count=1),
        ):
            assert await refused(who.say(request, to=wire.CONTENT)) == "not_here"
        have = await who.say(messages.GetHave(ids=[chain]), to=wire.CONTENT)
        assert isinstance(have, messages.Have)
        assert have.held == [0]
    # Nor after a restart, in which all that is said of content is forgotten.
    await office.reopen()
    assert office.core.fingerprints.has(chain)
    assert await refused(one.say(messages.GetIndex(id=chain), to=wire.CONTENT)) == "not_here"
    assert office.blobs.has(content.content_id(one.blob()))


async def test_who_sends_no_fingerprints_or_too_few_does_not_count(
    office: Office, members: list[Member]
) -> None:
    none, few, right = members
    for member in members:
        await member.beat()
    for member in members:
        await member.commit()
    for member in (none, few):
        await member.put()
    assert await refused(none.reveal()) == round_state.NO_FINGERPRINTS
    cut_off = few.rows(7)
    await few.put_rows(cut_off)
    with pytest.raises(wire.Refused, match=r"4096 bytes of fingerprints.*put them first"):
        await few.reveal(few.statement(chain=content.content_id(cut_off)).encode())
    await right.show()
    assert office.rejected() == {m.peer: round_state.NO_FINGERPRINTS for m in (none, few)}
    assert not office.core.ledger.state.ignored


async def test_fingerprints_are_taken_from_who_owes_them_and_no_more_than_its_steps_have(
    office: Office, members: list[Member]
) -> None:
    one, *_ = members
    for member in members:
        await member.beat()
    assert await refused(one.put_rows()) == "too_early"
    for member in members:
        await member.commit()
    for wrong in (bytes(9 * ROW_BYTES), bytes(8 * ROW_BYTES + 1)):
        put = messages.Put(id=content.content_id(wrong), size=len(wrong), fingerprints=True)
        assert await refused(one.say(put, wrong, to=wire.CONTENT)) == round_state.NO_FINGERPRINTS
        assert one.last is not None
        assert one.last.read == len(wire.encode(put)), "not one byte of it is read"
    for number in range(2):
        await one.put_rows(bytes([number]) * 8 * ROW_BYTES)
    await one.put_rows()
    assert await refused(one.put_rows(bytes([2]) * 8 * ROW_BYTES)) == "too_many"
    for member in members:
        await member.show()
    for member in members:
        await member.sign_state(hashlib.sha256(b"state 1").hexdigest())
    # What nobody has named goes when others come.
    await play_round(office, members)
    held = {path.name for path in office.core.fingerprints.root.iterdir()}
    assert held == {body.chain for body in office.bodies("contribution")}


async def test_fingerprints_go_when_their_contributions_go(
    office: Office, members: list[Member]
) -> None:
    for _ in range(2):
        await play_round(office, members)
    upkeep = Upkeep(office.core, "")
    upkeep._look_back()
    old = [body for body in office.bodies("contribution") if body.round == 0]
    upkeep._delete({body.blob: body for body in old})
    held = {path.name for path in office.core.fingerprints.root.iterdir()}
    assert held == {body.chain for body in office.bodies("contribution") if body.round == 1}
