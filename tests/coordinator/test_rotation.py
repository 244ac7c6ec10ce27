"""Where more machines want to train than a round has seats, each of them does so regularly."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest

from artel.ledger import entries
from artel.protocol.round_state import Phase
from desk_world import Member, Office, run_of

SEATS, TIMES, ROUNDS = 4, 3, 60
LONGEST_WAIT = 4 * TIMES
"""Rounds; with a lot that knows nothing of who has waited, some never had a seat."""


async def waits(office: Office) -> dict[str, int]:
    """The longest that each of the nodes was left out, in rounds."""
    nodes = [Member(office, f"{number}") for number in range(TIMES * SEATS)]
    for node in nodes:
        account = entries.account(node.owner, office.run)
        bound = entries.node(node.identity, node.owner, office.run)
        await office.core.ledger.append(account, bound)
    sat = {node.peer: [-1] for node in nodes}
    for number in range(ROUNDS):
        for node in nodes:
            await node.beat()
        await office.pass_time(2)
        assert office.core.state.phase is Phase.TRAINING
        members = [node for node in nodes if node.peer in office.core.state.members]
        for step in ("commit", "show"):
            for node in members:
                await getattr(node, step)()
        root = f"{number + 1:064x}"
        for node in nodes:  # those outside compute it too, as nodes do
            if office.core.state.round == number:
                await node.sign_state(root)
            node.root = root
        assert office.core.ledger.state.round == number + 1
        for node in members:
            sat[node.peer].append(number)
    return {peer: max(b - a for a, b in pairwise([*at, ROUNDS])) for peer, at in sat.items()}


@pytest.mark.slow
@pytest.mark.parametrize(("founders", "rests_on"), [(SEATS, "members"), (100, "coordinator")])
async def test_everybody_gets_a_seat_within_a_bounded_number_of_rounds(
    tmp_path: Path, founders: int, rests_on: str
) -> None:
    rounds = {"total": ROUNDS, "min_nodes": SEATS, "max_nodes": SEATS, "inner_steps": 1}
    trust = {"founders": founders, "standing_rounds": 2 * ROUNDS}
    sections = {"ownership": {"vesting_rounds": 2}, "trust": trust}
    manifest, layout = run_of(tmp_path, rounds, {"topology": "gather"}, **sections)
    optimizer = manifest.config.optimizer.model_copy(update={"batch_size": 1})
    config = manifest.config.model_copy(update={"optimizer": optimizer})
    office = Office(tmp_path, manifest.model_copy(update={"config": config}), layout)
    await office.open()
    try:
        found = await waits(office)
        assert office.core.ledger.state.rests_on == rests_on
        assert max(found.values()) <= LONGEST_WAIT
    finally:
        office.close()
