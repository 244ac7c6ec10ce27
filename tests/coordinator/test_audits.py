"""Audits at the coordinator: who owes one makes fewer steps, and who is convicted gets no seat."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from artel.coordinator import submission
from artel.coordinator.closing import Closing
from artel.coordinator.upkeep import Upkeep
from artel.ledger import entries
from artel.ledger.entries.records import Audit
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import History
from artel.protocol import content, dsse, messages, repeated_work, round_state
from artel.protocol.fingerprints import ROW, ROW_BYTES
from artel.protocol.identity import public_of
from artel.protocol.net import wire
from artel.protocol.tasks import within
from desk_world import HARDWARE, Member, Office, refused, rows_of, run_of
from witness_world import play_round


@pytest_asyncio.fixture
async def office(tmp_path: Path) -> AsyncIterator[Office]:
    """A run with spans, and so with audits."""
    rules = {"total": 8, "span": 4, "inner_steps": 8}
    office = await Office(tmp_path / "coordinator", *run_of(tmp_path / "run", rules)).open()
    yield office
    office.close()


def steps_of(office: Office, audit: Audit) -> bytes:
    """The fingerprints of what an audit repeats, as its node has them."""
    shown = [body for body in office.bodies("contribution") if body.node == audit.node]
    of_it = [body for body in shown if audit.first <= body.round <= audit.last]
    return b"".join(rows_of(f"{one.node} {one.round}", one.tail + one.head) for one in of_it)


async def give(auditor: Member, rows: bytes) -> str:
    """Put the fingerprints of an auditor; returns the name of what it gave."""
    data = public_of(auditor.peer) + rows
    await auditor.put(data, fingerprints=True)
    return content.content_id(data)


async def difference(auditor: Member, rows: str) -> tuple[int, int]:
    question = repeated_work.GetDifference(rows=rows, hardware=HARDWARE)
    answer = await auditor.say(question, to=wire.CONTENT)
    assert isinstance(answer, repeated_work.Difference)
    return answer.round, answer.step


def said(auditor: Member, source: str, verdict: str, **fields: Any) -> dsse.Envelope:
    """A verdict of it."""
    error = 0.5 if verdict == "reject" else 0.0
    fixed: dict[str, Any] = {"round": 0, "error": error, "hardware": HARDWARE, "salt": bytes(32)}
    named: dict[str, Any] = {"contribution": source, "verdict": verdict}
    return entries.verdict(auditor.identity, auditor.office.run, **named | fixed | fields)


async def commit_to(auditor: Member, source: str, made: dsse.Envelope) -> None:
    run = auditor.office.run
    await auditor.submit(
        entries.verdict_committed(auditor.identity, run, contribution=source, verdict=made)
    )


async def judge(office: Office, auditors: list[Member], liar: str = "") -> list[str]:
    """All that these were drawn for is judged: what ``liar`` did is false; returns the verdicts."""
    given = []
    for auditor in auditors:
        owed = office.core.ledger.state.owed_by(auditor.peer)
        if owed is not None:
            source, audit = owed
            found = "reject" if audit.node == liar else "accept"
            true = steps_of(office, audit)
            rows = rows_of("right", len(true) // ROW_BYTES) if found == "reject" else true
            name = content.content_id(public_of(auditor.peer) + rows)
            made = said(auditor, source, found, rows=name)
            assert await refused(auditor.submit(made)) == "not_committed"
            await commit_to(auditor, source, made)
            assert await give(auditor, rows) == name
            differs = await difference(auditor, name)
            assert differs == ((audit.first, 1) if found == "reject" else (0, 0))
            given.append((auditor, said(auditor, source, found, rows=name, differs=differs)))
    told = []
    for auditor, made in given:
        body = entries.decode(made.encode()).body
        # Of who is convicted all audits are gone.
        if body.contribution in office.core.ledger.state.audits:
            await auditor.submit(made)
            told.append(body.verdict)
    return told


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


# --- what an auditor has to show ---


async def test_what_is_audited_stays_however_old_it_is(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else nobody is convicted of it: rejects have to name the step that differs. Where many new
    nodes come, audits wait for longer than contributions are kept."""
    monkeypatch.setattr("artel.coordinator.upkeep.KEEP_ROUNDS", 0)
    monkeypatch.setattr("artel.ledger.entries.audits.rounds_kept", lambda rules: 0)
    core = office.core
    monkeypatch.setattr(core, "state_bytes", 0)
    upkeep = Upkeep(core, "")
    for _ in range(3):
        await play_round(office, members)
        await upkeep._prune()
    made = {(body.node, body.round): body.chain for body in office.bodies("contribution")}
    waiting = {(audit.node, audit.first) for audit in core.ledger.state.audits.values()}
    assert {round for _, round in waiting} == {0, 1, 2}
    assert await judge(office, [m for m in members if core.ledger.state.owed_by(m.peer)])
    await upkeep._prune()
    audited = {(audit.node, audit.first) for audit in core.ledger.state.audits.values()}
    assert audited < waiting
    kept = {work for work, chain in made.items() if core.fingerprints.has(chain)}
    assert kept - {work for work in made if work[1] == core.state.round} == audited


def along_a_line(rows: bytes) -> bytes:
    """What is guessed from where the weights were and where they came to, which is public."""
    table = np.frombuffer(rows, "<f4").reshape(-1, ROW).copy()
    part = np.linspace(0, 1, len(table), dtype=np.float32)[:, None]
    table[:, 2:] = table[0, 2:] + part * (table[-1, 2:] - table[0, 2:])
    return table.tobytes()


async def test_a_verdict_that_is_not_shown_takes_no_place_of_an_entry(
    office: Office, members: list[Member], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(submission, "PER_KEY_AT_ONCE", 2)
    monkeypatch.setattr(submission, "BESIDE_AT_ONCE", 3)
    await office.reopen()
    await play_round(office, members)
    fold = office.core.ledger.state
    late = next(member for member in members if fold.owed_by(member.peer))
    source, audit = fold.owed_by(late.peer) or pytest.fail("it was drawn")
    rows = steps_of(office, audit)
    name = content.content_id(public_of(late.peer) + rows)
    made = said(late, source, "accept", rows=name)
    await commit_to(late, source, made)
    for _ in range(3):
        assert await refused(late.submit(made)) == "no_fingerprints"
    assert await refused(late.submit(made)) == "busy"
    office.now += 60 / submission.BESIDE_MINUTE
    assert await give(late, rows) == name
    await late.submit(made)


GUESSES: dict[str, Callable[[Member, Audit, bytes], bytes | None]] = {
    "nothing": lambda _, audit, rows: None,
    "zeros": lambda _, audit, rows: bytes(len(rows)),
    "its own of that round": lambda me, audit, rows: rows_of(
        f"{me.peer} {audit.last}", len(rows) // ROW_BYTES
    ),
    "the node's of another round": lambda _, audit, rows: rows_of(
        f"{audit.node} {audit.last + 1}", len(rows) // ROW_BYTES
    ),
    "a line": lambda _, audit, rows: along_a_line(rows),
    "no numbers": lambda _, audit, rows: b"\xff" * len(rows),
}


@pytest.mark.parametrize("guess", GUESSES)
async def test_who_accepts_and_made_no_steps_is_replaced_and_never_paid(
    office: Office, members: list[Member], guess: str
) -> None:
    await play_round(office, members)
    fold = office.core.ledger.state
    lazy = next(member for member in members if fold.owed_by(member.peer))
    source, audit = fold.owed_by(lazy.peer) or pytest.fail("it was drawn")
    guessed = GUESSES[guess](lazy, audit, steps_of(office, audit))
    name = content.content_id(public_of(lazy.peer) + (guessed or b""))
    made = said(lazy, source, "accept", rows=name)
    await commit_to(lazy, source, made)
    if guessed is not None:
        await give(lazy, guessed)
        # It hears no more than where its steps begin to be others.
        assert await difference(lazy, name) == (audit.first, 2 if guess == "a line" else 1)
    code = await refused(lazy.submit(made))
    assert code == ("rows_differ" if guessed is not None else "no_fingerprints")
    others = [member for member in members if member is not lazy]
    while source in office.core.ledger.state.audits:
        await judge(office, others)
        await play_round(office, members)
    told = [body for body in office.bodies("verdict") if body.contribution == source]
    assert [body.verdict for body in told] == ["accept"]
    assert told[0].node != lazy.peer
    about = {item.credit.source for item in office.core.ledger.state.pending.values()}
    assert f"audit/{source}/{told[0].node}" in about
    assert f"audit/{source}/{lazy.peer}" not in about
    assert lazy.peer not in office.core.ledger.state.struck


async def test_a_name_that_the_ledger_tells_is_no_proof(
    office: Office, members: list[Member]
) -> None:
    await play_round(office, members)
    fold = office.core.ledger.state
    lazy, other = [member for member in members if fold.owed_by(member.peer)][:2]
    source, audit = fold.owed_by(lazy.peer) or pytest.fail("it was drawn")
    rows = steps_of(office, audit)
    chain = next(b.chain for b in office.bodies("contribution") if b.node == audit.node)
    assert chain == content.content_id(rows)
    made = said(lazy, source, "accept", rows=chain)
    await commit_to(lazy, source, made)
    assert await refused(lazy.submit(made)) == round_state.NO_FINGERPRINTS
    # Nor what another auditor has given, and nothing else is taken from it.
    await lazy.put(public_of(other.peer) + rows, fingerprints=True)
    stolen = content.content_id(public_of(other.peer) + rows)
    assert await difference(lazy, stolen) == (audit.first, 1)
    assert await refused(give(lazy, rows)) == "present"
    assert await refused(
        other.say(repeated_work.GetDifference(rows=stolen, hardware=""), to=wire.CONTENT)
    ) == ("not_drawn"), "it has not committed to anything"
    assert await refused(give(other, rows)) == "too_early"


async def test_who_computes_otherwise_is_not_refused(office: Office, members: list[Member]) -> None:
    """Rows that are as far from the node's as other kernels were measured to bring them."""
    await play_round(office, members)
    fold = office.core.ledger.state
    auditor = next(member for member in members if fold.owed_by(member.peer))
    source, audit = fold.owed_by(auditor.peer) or pytest.fail("it was drawn")
    table = np.frombuffer(steps_of(office, audit), "<f4").reshape(-1, ROW).copy()
    table[:, 2:] += np.random.default_rng(1).normal(0, 5e-6, table[:, 2:].shape)
    name = content.content_id(public_of(auditor.peer) + table.tobytes())
    made = said(auditor, source, "accept", rows=name, hardware="cpu/native/fp32/t2/2")
    await commit_to(auditor, source, made)
    await give(auditor, table.tobytes())
    await auditor.submit(made)
    assert [body.node for body in office.bodies("verdict")] == [auditor.peer]


async def test_a_reject_names_the_first_step_that_differs(
    office: Office, members: list[Member]
) -> None:
    await play_round(office, members)
    fold = office.core.ledger.state
    auditor = next(member for member in members if fold.owed_by(member.peer))
    source, audit = fold.owed_by(auditor.peer) or pytest.fail("it was drawn")
    true = steps_of(office, audit)
    rows = true[: 5 * ROW_BYTES] + rows_of("right", 8)[5 * ROW_BYTES :]
    name = content.content_id(public_of(auditor.peer) + rows)
    made = said(auditor, source, "reject", rows=name)
    await commit_to(auditor, source, made)
    await give(auditor, rows)
    assert await refused(auditor.submit(made)) == "wrong_step"
    differs = await difference(auditor, name)
    assert differs == (audit.first, 6)
    await auditor.submit(said(auditor, source, "reject", rows=name, differs=differs))
    assert office.store is not None
    history = History(office.store, office.store.query, office.core.ledger.state)
    index = office.store.size - 1
    told = "\n".join(explain(history, index).lines())
    assert f"step 6 of round {audit.first} is the first that differs" in told


@pytest.mark.parametrize("rotten", [False, True])
async def test_of_work_whose_fingerprints_are_lost_nobody_is_convicted_and_nobody_is_held_up(
    office: Office, members: list[Member], rotten: bool
) -> None:
    """As after a takeover: they were with the coordinator that led before; or its disk rots."""
    await play_round(office, members)
    owing = [member for member in members if office.core.ledger.state.owed_by(member.peer)]
    source, audit = office.core.ledger.state.owed_by(owing[0].peer) or pytest.fail("it was drawn")
    true = steps_of(office, audit)
    for body in office.bodies("contribution"):
        if rotten:
            path = office.core.fingerprints.root / body.chain
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        else:
            office.core.fingerprints.delete(body.chain)
    rows = rows_of("right", len(true) // ROW_BYTES)
    name = content.content_id(public_of(owing[0].peer) + rows)
    made = said(owing[0], source, "reject", rows=name)
    await commit_to(owing[0], source, made)
    await give(owing[0], rows)
    assert await difference(owing[0], name) == (0, 0)
    assert await refused(owing[0].submit(made)) == "fingerprints_lost"
    for other in owing[1:]:
        found = office.core.ledger.state.owed_by(other.peer)
        assert found is not None
        data = steps_of(office, found[1])
        name = content.content_id(public_of(other.peer) + data)
        made = said(other, found[0], "accept", rows=name)
        await commit_to(other, found[0], made)
        await give(other, data)
        await other.submit(made)
    assert [body.verdict for body in office.bodies("verdict")] == ["accept"] * len(owing[1:])
    assert not any(each.barred for each in office.core.ledger.state.accounts.values())
