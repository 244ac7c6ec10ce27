"""A coordinator that answers, and leaves out what members say, or opens no round any more: the next
one leads, and does what it did not."""

from __future__ import annotations

import asyncio
import signal
import sys
from functools import partial
from pathlib import Path

import pytest

from artel.ledger.store.keyfiles import NODE_KEY
from artel.ledger.store.verify import verify_home
from artel.node.link import NEIGHBOURS_FILE
from artel.node.standstill import LEAST_S
from artel.protocol import tether
from artel.protocol.identity import load
from places import WORLDS
from swarm_world import ledger_of
from two_coordinators import HOMES, Two, write_run_of_two

honest_command = tether.command


def led_by(program: str, *arguments: str) -> tuple[str, ...]:
    """As :func:`artel.protocol.tether.command`, but the first coordinator is another program."""
    if arguments[:2] != ("coordinator", "start"):
        return honest_command(*arguments)
    file = str(WORLDS / program)
    return tether.tied(sys.executable, "-P", file, *arguments, death=signal.SIGTERM)


def has_earned(swarm: Two) -> bool:
    """Whether the owner of the first node has credit, as who disputes must, in that node's copy."""
    home = swarm.home_of(min(swarm.nodes))
    _, state = ledger_of(home)
    return state.credit(state.account_of(load(home / NODE_KEY).peer_id)) > 0


async def dispute(swarm: Two, *where: str) -> tuple[int, str]:
    """Have the owner of the first node dispute the newest contribution of another one."""
    home = swarm.home_of(min(swarm.nodes))
    decoded, state = ledger_of(home)
    mine = state.nodes[load(home / NODE_KEY).peer_id]
    others = [
        index
        for index, entry in enumerate(decoded)
        if entry.id in state.pending and state.nodes[entry.body.node] != mine
    ]
    process = await asyncio.create_subprocess_exec(
        *honest_command("ledger", "dispute", str(others[-1]), "--reason", "doubt"),
        *("--home", str(home), *where),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env=tether.environment(),
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out.decode()


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_what_a_coordinator_leaves_out_gets_into_the_ledger_under_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tether, "command", partial(led_by, "censoring_coordinator.py"))
    run_file = write_run_of_two(tmp_path, handover_s=5.0)
    text = run_file.read_text().replace("vesting_rounds = 1", "vesting_rounds = 100")
    run_file.write_text(text)
    async with Two(tmp_path, run_file) as swarm:
        await swarm.begin()
        await swarm.wait_for(lambda _: has_earned(swarm), "the first node has credit")
        code, said = await dispute(swarm)
        assert code == 1, said
        assert "this coordinator likes peace" in said
        # Its owner goes to a node, which the home of the own one names.
        near = swarm.home_of(min(swarm.nodes)) / NEIGHBOURS_FILE
        code, said = await dispute(swarm, "--from", near.read_text())
        assert code in (0, 3), said  # 3: it is there only after the command has waited

        await swarm.until(HOMES[1], lambda status: status["role"] == "leader", "it leads")
        swarm.leads = HOMES[1]
        await swarm.until(HOMES[0], lambda status: status["role"] == "standby", "it stands by")
        await swarm.a_state()
        decoded, state = ledger_of(tmp_path / HOMES[1])
    kinds = [entry.kind for entry in decoded]
    assert kinds.count("handover") == kinds.count("dispute") == 1
    assert kinds.index("handover") < kinds.index("dispute")
    assert state.ignored == {}
    found = verify_home(tmp_path / HOMES[1])
    assert found.verified, found.checks


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_run_whose_coordinator_opens_no_round_goes_on_under_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tether, "command", partial(led_by, "idle_coordinator.py"))
    async with Two(tmp_path, write_run_of_two(tmp_path, handover_s=5.0)) as swarm:
        await swarm.begin()
        leads = swarm.until(HOMES[1], lambda s: s["role"] == "leader", "it leads", 3 * LEAST_S)
        print(f"the other one leads after {await leads:.0f} s")
        swarm.leads = HOMES[1]
        await swarm.a_state()
        await swarm.a_state()
        decoded, state = ledger_of(tmp_path / HOMES[1])
    assert [entry.kind for entry in decoded].count("handover") == 1
    assert (state.round >= 5, state.ignored) == (True, {})
