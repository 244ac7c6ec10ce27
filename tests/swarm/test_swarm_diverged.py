"""A run whose training really goes astray, by a learning rate that is much too high."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest

from artel import cli
from artel.ledger import entries
from benchmarks.swarm import Swarm
from swarm_world import ledger_of, round_at_least, write_run

TOO_HIGH_FROM = 10


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_run_that_diverges_goes_back_and_learns_on_by_other_rules(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, total=100, inner_steps=40, min_nodes=2)
    coordinator = tmp_path / "coordinator"

    async def artel(*words: str) -> None:
        line = ["run", *words, "--home", str(coordinator)]
        assert await asyncio.to_thread(cli.main, line) == 0

    def count(kind: str) -> int:
        return sum(entry.kind == kind for entry in ledger_of(coordinator)[0])

    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=3)
        await swarm.wait_for(round_at_least(3), "three states")
        await artel("amend", "lr=1", "--from-round", str(TOO_HIGH_FROM), "--why", "a slip")
        await swarm.wait_for(lambda _: count("rolled_back") > 0, "the run has gone back", 600)
        page = await asyncio.to_thread(lambda: urlopen(swarm.http).read().decode())
        assert "Training went astray though nobody cheated" in page
        decoded, fold = ledger_of(coordinator)
        await artel("amend", "lr=3e-3", "--why", "as it was")
        index, diverged = next(
            (index, entry.body)
            for index, entry in enumerate(decoded)
            if isinstance(entry.body, entries.TrainingDiverged)
        )
        now, before = diverged.medians()

        def learns(status: dict[str, Any]) -> bool:
            newest = status["validation"]["last"]
            return newest["round"] > TOO_HIGH_FROM and 1e6 * newest["loss"] < 1.05 * before

        # It may go back once more, since the first of these rounds had begun before that was said.
        await swarm.wait_for(learns, "it learns again", 600)
        await artel("stop", "--why", "seen enough")
        await swarm.wait_finished()
    (back,) = (e.body for e in decoded if isinstance(e.body, entries.RolledBack))
    assert back.state <= diverged.better < diverged.state
    assert diverged.state > TOO_HIGH_FROM
    assert not any(account.barred for account in fold.accounts.values()), "nobody is to blame"
    assert now > 1.25 * before
    capsys.readouterr()
    assert cli.main(["ledger", "explain", str(index), "--home", str(coordinator)]) == 0
    assert "nobody is to blame" in capsys.readouterr().out
    assert cli.main(["ledger", "verify", "--home", str(coordinator)]) == 0
