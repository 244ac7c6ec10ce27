"""A run whose rules change while it goes on: real processes, none of which is started again."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from artel import cli
from artel.coordinator.local_run import finished
from artel.ledger import entries
from artel.protocol.fingerprints import ROW_BYTES
from benchmarks.swarm import Swarm
from swarm_world import ledger_of, round_at_least, write_run

SPAN = 2


@pytest.mark.slow  # nine rounds and their audits; test_following_amendments is its short form
async def test_all_nodes_follow_an_amendment_from_its_round_on_and_audits_before_and_after_agree(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, total=60, inner_steps=20, min_nodes=3, span=SPAN, audit_rate=0.5)
    coordinator, since = tmp_path / "coordinator", 2

    async def artel(*words: str) -> None:
        line = ["run", *words, "--home", str(coordinator)]
        assert await asyncio.to_thread(cli.main, line) == 0

    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=0)
        await artel("amend", "lr=1e-5", "--from-round", str(since), "--why", "to go slowly")
        for _ in range(3):
            await swarm.add_node()
        await swarm.wait_for(round_at_least(since + 4), "it holds for four rounds")
        await artel("pause")

        def paused(status: dict[str, Any]) -> bool:
            return bool(status["paused"]) and status["phase"] == "waiting"

        await swarm.wait_for(paused, "the run is paused")
        still = (await swarm.status())["round"]
        await asyncio.sleep(2)
        assert (await swarm.status())["round"] == still
        await artel("resume")
        await swarm.wait_for(round_at_least(still + 1), "the run goes on")
        await artel("stop", "--why", "seen enough")
        await swarm.wait_for(finished, "the run is finished")
        await swarm.wait_finished()
    decoded, fold = ledger_of(coordinator)
    assert not fold.ignored
    assert fold.closed
    assert fold.round == fold.founded.total < 60
    assert len(fold.amendments) == 4
    made = {e.id: e.body for e in decoded if isinstance(e.body, entries.Contribution)}
    steps = {each: coordinator / "fingerprints" / body.chain for each, body in made.items()}
    moved = {(made[each].round, made[each].node): _moved(path) for each, path in steps.items()}
    assert len({node for _, node in moved}) == 3
    assert min(how for (round, _), how in moved.items() if round < since) > 1e-3
    assert max(how for (round, _), how in moved.items() if round >= since) < 5e-4
    # Auditors repeat work of both times, and come to the same.
    verdicts = [entry.body for entry in decoded if isinstance(entry.body, entries.Verdict)]
    assert {body.verdict for body in verdicts} == {"accept"}
    judged = {made[body.contribution].round >= since for body in verdicts}
    assert judged == {False, True}
    capsys.readouterr()
    index = str(fold.amendments[0].index)
    assert cli.main(["ledger", "explain", index, "--home", str(coordinator)]) == 0
    said = capsys.readouterr().out
    assert "0.00001 from it on" in said
    assert "because: to go slowly" in said
    await artel("status")
    assert f"from round {since} on: optimizer.lr = 0.00001" in capsys.readouterr().out


def _moved(path: Path) -> float:
    """How far weights moved between the first and the last step of a contribution."""
    rows = np.frombuffer(path.read_bytes(), "<f4").reshape(-1, ROW_BYTES // 4)
    return float(np.abs(rows[-1, 2:] - rows[0, 2:]).max())
