"""A coordinator goes by what the organiser has amended, in the round that it is for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.protocol.net import wire
from artel.protocol.round_state import Phase
from desk_world import ORGANISER, Member, Office, refused, run_of
from witness_world import play_round


async def test_a_run_is_paused_resumed_ended_early_and_extended(tmp_path: Path) -> None:
    rules = {"total": 9, "min_nodes": 2, "max_nodes": 3}
    office = await Office(tmp_path / "home", *run_of(tmp_path / "run", rules)).open()
    members = [Member(office, name) for name in "ab"]
    for member in members:
        await member.hello()
    for member in members:
        await member.beat()

    async def amend(number: int, round: int, **changes: str) -> None:
        named = {name.replace("__", "."): text for name, text in changes.items()}
        said = {"number": number, "round": round, "changes": named, "why": ""}
        await members[0].submit(entries.amended(ORGANISER, office.run, **said))  # type: ignore[arg-type]
        await office.pass_time(0.5)
        # Nobody serves states here (desk_world.Office.open).
        office.core.rules = replace(office.core.rules, checked=False)

    assert office.core.state.phase is Phase.TRAINING
    assert await refused(amend(1, 0, paused="true")) == reasons.OUT_OF_ORDER
    await amend(1, 1, paused="true", rounds__deadline_s="50", rounds__total="2")
    assert not office.core.rules.paused, "the round under way goes on as it began"
    await play_round(office, members)
    told = await members[0].beat()
    assert (told.task, told.reason) == ("wait", "the organiser has paused the run")
    assert office.core.state.phase is Phase.WAITING
    office.core.rules = replace(office.core.rules, checked=False)

    await office.reopen()
    assert (office.core.rules.paused, office.core.rules.deadline) == (True, 50)
    assert (office.core.rules.total, office.core.work.total) == (2, 2)
    await amend(2, 1, paused="false")
    await play_round(office, members)
    await office.pass_time(0.5)
    assert office.core.state.phase is Phase.FINISHED

    await amend(3, 2, rounds__total="3")
    await play_round(office, members)
    await office.pass_time(0.5)
    assert office.core.state.phase is Phase.FINISHED
    fold = office.core.ledger.state
    assert (fold.round, fold.founded.total, fold.ignored) == (3, 3, {})
    office.close()


async def test_nobody_but_the_organiser_gets_an_amendment_into_the_ledger(
    office: Office, members: list[Member]
) -> None:
    size = office.core.ledger.store.size
    said = {"number": 1, "round": 3, "changes": {"optimizer.lr": "0.1"}, "why": ""}
    theirs = entries.amended(members[0].owner, office.run, **said)  # type: ignore[arg-type]
    with pytest.raises(wire.Refused) as no:
        await members[0].submit(theirs)
    assert no.value.code == reasons.WRONG_SIGNERS
    assert office.core.ledger.store.size == size
