"""Runs from their beginning to their end, as a coordinator and its ledger see them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from artel.ledger.store.verify import verify_home
from artel.protocol import assignment, messages, round_state
from artel.protocol.round_state import Phase
from desk_world import Member, Office, run_of
from witness_world import play_round

EPOCHS = 3


@pytest.mark.parametrize("nodes", [1, 2, 3])
async def test_three_passes_over_the_data_by_some_nodes(tmp_path: Path, nodes: int) -> None:
    """Every window of the data is trained on once in each pass, and each node is paid alike."""
    steps = 8
    windows = 6 * steps * 4  # of which so many rounds make a pass: 6, 3 or 2
    rounds = EPOCHS * 6 // nodes
    rules = {"total": rounds, "min_nodes": nodes, "max_nodes": 3, "inner_steps": steps}
    manifest, layout = run_of(tmp_path / "run", rules, data={"span_windows": 1})
    train = manifest.data.train.model_copy(update={"tokens": windows * 32 + 1})
    manifest = manifest.model_copy(
        update={"data": manifest.data.model_copy(update={"train": train})}
    )
    assert assignment.train_split(manifest).windows == windows
    office = await Office(tmp_path / "coordinator", manifest, layout).open()
    try:
        members = [Member(office, name) for name in "abc"[:nodes]]
        for member in members:
            await member.hello()
        trained: list[Counter[assignment.WindowRef]] = [Counter() for _ in range(EPOCHS)]
        for number in range(rounds):
            for member in members:
                await member.beat()
            for member in members:
                trained[EPOCHS * number // rounds].update(windows_of(office, member))
            await play_round(office, members)
        assert office.core.state.phase is Phase.FINISHED
        fold = office.core.ledger.state
        assert len(fold.states) == rounds + 1
        assert not fold.ignored
        for once in trained:
            assert set(once.values()) == {1}
            assert len(once) == windows
        each = EPOCHS * windows * 32 // nodes
        assert fold.node_tokens == {member.peer: each for member in members}
        assert [fold.credit(member.owner.key) for member in members] == [100 * each] * nodes
    finally:
        office.close()
    assert verify_home(tmp_path / "coordinator").verified


def windows_of(office: Office, member: Member) -> list[assignment.WindowRef]:
    """What a node has to train on in the round under way, by the ledger."""
    fold, manifest = office.core.ledger.state, office.manifest
    assert fold.attempt is not None
    nodes = sorted(fold.attempt.steps)
    return assignment.assign(
        manifest.config.run.seed,
        assignment.train_split(manifest),
        fold.cursor,
        nodes,
        [fold.attempt.steps[node] for node in nodes],
        member.peer,
        batch_size=manifest.config.optimizer.batch_size,
    )


async def test_when_all_leave_before_the_first_round_is_done_nobody_is_paid_and_they_may_come_back(
    office: Office, members: list[Member]
) -> None:
    for member in members:
        await member.beat()
    await members[0].commit()
    for member in members:
        await member.say(messages.Leave(run=office.run))
    assert office.core.state.phase is Phase.WAITING
    assert office.rejected() == {member.peer: round_state.DISCONNECTED for member in members}
    fold = office.core.ledger.state
    assert office.accepted() == []
    assert (fold.total, fold.total_pending, len(fold.states)) == (0, 0, 1)
    # Whoever has gone may come back, and is paid for what it then does.
    await office.pass_time(1000)
    await play_round(office, members)
    fold = office.core.ledger.state
    assert {fold.credit(member.owner.key) for member in members} == {100 * office.tokens}
