"""A node leaves whose coordinator leads: it hands over first."""

from __future__ import annotations

import asyncio
import signal
from pathlib import Path

import pytest

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.store.keyfiles import NODE_KEY
from artel.protocol.identity import load
from artel.protocol.tasks import within
from benchmarks.swarm import Swarm
from swarm_world import ledger_of, round_at_least, write_run


def state_of(home: Path) -> FoldState:
    return ledger_of(home)[1]


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_node_that_leaves_has_another_coordinator_lead_before(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, total=400, inner_steps=20, mirror_every=1)
    with run_file.open("a") as file:
        file.write("\n[coordination]\nhandover_s = 8.0\n")
    first = tmp_path / "coordinator"
    async with Swarm(tmp_path, run_file) as swarm:
        await swarm.start(nodes=3)
        await swarm.wait_for(round_at_least(2), "two states are agreed")
        await swarm.stop_coordinator(signal.SIGKILL)
        homes = {number: swarm.home_of(number) for number in swarm.nodes}

        async def elected() -> int:
            while True:
                for number, home in homes.items():
                    _, state = ledger_of(home)
                    file = home / "coordinator" / NODE_KEY
                    if file.exists() and load(file).key == state.term.leader:
                        return number
                await asyncio.sleep(0.5)

        chosen = await within(elected(), 400)
        # The organiser's machine is back, and stands by.
        await swarm.start_coordinator()
        size = len(ledger_of(homes[chosen])[0])
        async with asyncio.timeout(120):
            while len(ledger_of(first)[0]) < size:
                await asyncio.sleep(0.5)
        # Whose turn is next hangs on whether a state was agreed on in the term. The moment that one
        # is, the leader is told to go: others may not hold that yet, and are to wait until they do.
        async with asyncio.timeout(120):
            while (state := state_of(homes[chosen] / "coordinator")).worked < state.term.number:
                await asyncio.sleep(0.05)
        swarm.interrupt_node(chosen)
        assert await swarm.left(chosen, 120) == 0
        # One of the two copies in the node's home may be a moment behind when it goes.
        seen = {
            state_of(home).term.leader for home in (homes[chosen], homes[chosen] / "coordinator")
        }
        assert load(first / NODE_KEY).key in seen, "it has seen the next one lead"
        log = (homes[chosen] / "coordinator.log").read_text()
        assert "the owner asked for it" in log
        before = ledger_of(first)[1].round
        await swarm.wait_for(round_at_least(before + 1), "the run goes on")
