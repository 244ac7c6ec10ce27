"""Faults at random in a running swarm: it goes on, loses nothing acknowledged, counts exactly.

Real processes; each fault hits whoever the seed names, and the run has to agree on a further state
before the next one comes.
"""

from __future__ import annotations

import asyncio
import os
import random
import signal
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from artel.coordinator.local_run import Program
from artel.ledger import entries
from artel.ledger.store.verify import verify_home
from artel.protocol import identity
from benchmarks.swarm import Swarm
from swarm_world import ledger_of, write_run

NODES = 3
STANDING_S = 8.0
"""How long a suspended process stands still: longer than a silent node counts as present."""
NEXT_STATE_S = 120.0
"""A fault may cost an attempt and a restart, on a slow machine, but not more."""
SEED = 20261128


def child(member: Program, named: str) -> psutil.Process | None:
    """A process that the member has started: its network daemon, or its trainer."""
    try:
        children = psutil.Process(member.process.pid).children(recursive=True)
        return next((p for p in children if any(named in part for part in p.cmdline())), None)
    except psutil.NoSuchProcess:
        return None


async def kill_network(swarm: Swarm, member: Program, number: int) -> None:
    if (daemon := child(member, "p2pd")) is not None:
        daemon.kill()


async def kill_trainer(swarm: Swarm, member: Program, number: int) -> None:
    if (trainer := child(member, "artel.node.trainer")) is not None:
        trainer.kill()


async def stand_still(swarm: Swarm, member: Program, number: int) -> None:
    os.kill(member.process.pid, signal.SIGSTOP)
    await asyncio.sleep(STANDING_S)
    os.kill(member.process.pid, signal.SIGCONT)


async def power_cut(swarm: Swarm, member: Program, number: int) -> None:
    await swarm.kill_node(number)
    await swarm.start_node(number)


async def polite_restart(swarm: Swarm, member: Program, number: int) -> None:
    swarm.interrupt_node(number)
    assert await swarm.left(number) == 0
    await swarm.start_node(number)


async def coordinator_cut(swarm: Swarm, member: Program, number: int) -> None:
    await swarm.stop_coordinator(signal.SIGKILL)
    await swarm.start_coordinator()


async def coordinator_stop(swarm: Swarm, member: Program, number: int) -> None:
    await swarm.stop_coordinator(signal.SIGTERM)
    await swarm.start_coordinator()


Fault = Callable[[Swarm, Program, int], Awaitable[None]]
NODE_FAULTS: tuple[Fault, ...] = (
    *(kill_network, kill_trainer, stand_still, power_cut, polite_restart),
)
COORDINATOR_FAULTS: tuple[Fault, ...] = (kill_network, coordinator_cut, coordinator_stop)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("faults", [16])
async def test_a_run_goes_on_through_faults_and_counts_exactly(tmp_path: Path, faults: int) -> None:
    rng = random.Random(SEED)
    # Every kind at least once, in an order and on victims that the seed chooses.
    plan = [(fault, rng.randrange(1, NODES + 1)) for fault in NODE_FAULTS * 2]
    plan += [(fault, 0) for fault in COORDINATOR_FAULTS * 2]
    rng.shuffle(plan)
    run_file = write_run(tmp_path, total=1000, inner_steps=100, quorum=0.5, deadline_s=30.0)
    async with Swarm(tmp_path, run_file) as swarm:
        await swarm.start(nodes=NODES)
        await next_state(swarm, 0)
        for fault, number in plan[:faults]:
            member = swarm.nodes[number] if number else swarm.coordinator
            assert member is not None
            status = await settled_status(swarm)
            await asyncio.sleep(rng.uniform(0, 3))  # in whatever phase the round is then
            print(f"{fault.__name__} at node {number}, round {status['round']}", flush=True)
            await fault(swarm, member, number)
            await next_state(swarm, status["round"])
        await next_state(swarm, (await settled_status(swarm))["round"] + 1)
        # Who is asked to end while it still joins has no round to finish.
        await swarm.wait_for(lambda status: len(status["nodes"]) == NODES, "all are back")
        for number in swarm.nodes:
            swarm.interrupt_node(number)
        for number in swarm.nodes:
            assert await swarm.left(number, 120) == 0
        await swarm.stop_coordinator()
        for member in swarm.programs:
            assert "Traceback" not in member.log.read_text(), member.log
    assert_counted(swarm, tmp_path)


async def settled_status(swarm: Swarm) -> dict[str, Any]:
    """The coordinator's status, once it answers (it may have lost its network a moment ago)."""
    return await swarm.wait_for(lambda status: True, "the coordinator answers")


async def next_state(swarm: Swarm, round: int) -> None:
    await swarm.wait_for(
        lambda status: status["round"] > round, f"the state after round {round}", NEXT_STATE_S
    )


def assert_counted(swarm: Swarm, folder: Path) -> None:
    """The ledger holds everywhere, no entry was without effect, credit is what was accepted."""
    decoded, fold = ledger_of(folder / "coordinator")
    assert not fold.ignored, "an own entry had no effect"
    accepted: Counter[str] = Counter()
    closed: dict[int, entries.RoundClosed] = {}
    for entry in decoded:
        body = entry.body
        if isinstance(body, entries.RoundClosed):
            closed[body.round] = body
        elif isinstance(body, entries.StateAgreed):
            for item in closed[body.round - 1].accepted:
                accepted[item.node] += item.weight
    assert fold.node_tokens == dict(accepted)
    ids = [entry.id for entry in decoded]
    for number in swarm.nodes:
        home = swarm.home_of(number)
        held, _ = ledger_of(home)
        assert [entry.id for entry in held] == ids[: len(held)], f"{home} lost something"
        peer = identity.load(home / "node.key").peer_id
        assert accepted[peer] > 0
        assert verify_home(home).verified
    assert verify_home(folder / "coordinator").verified
