"""A running swarm with quick rounds: its states can be taken along, and a late node joins."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from benchmarks.swarm import Swarm
from swarm_world import write_run


async def artel(*arguments: str) -> bytes:
    """Run a command beside the swarm; returns what it printed."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "artel", *arguments),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    assert process.returncode == 0, err.decode()
    return out


@pytest.mark.slow
@pytest.mark.timeout(500)
async def test_the_states_of_a_running_node_are_exported_and_sampled(tmp_path: Path) -> None:
    run = write_run(tmp_path, total=1000, inner_steps=10, quorum=0.5)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(2)
        await swarm.wait_for(lambda status: status["round"] >= 3, "three rounds are agreed")
        home, rounds = str(swarm.home_of(1)), []
        for number in range(3):
            out = tmp_path / f"model-{number}"
            text = await artel("model", "export", str(out), "--home", home, "--json")
            assert json.loads(text)["state"] in (out / "README.md").read_text()
            await artel("model", "generate", "--home", home, "--tokens", "5")
            rounds.append((await swarm.status())["round"])
        assert rounds[-1] > rounds[0], "no round was agreed meanwhile"
        await swarm.add_node()
        await swarm.wait_for(lambda status: status["members"] == 3, "the late node is a member")
