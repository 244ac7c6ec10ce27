"""A real run in which a majority agrees on a wrong state, and the coordinator lets it: the others
prove it, and the run goes back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from artel import cli
from artel.ledger import entries
from artel.ledger.entries import Entry, reasons
from artel.protocol import identity, tether
from benchmarks.swarm import Swarm
from colluding_node import LIE
from places import WORLDS
from swarm_world import ledger_of, round_at_least, write_run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
HONEST, LIARS = 3, 4


async def colluder(swarm: Swarm, home: Path) -> asyncio.subprocess.Process:
    home.mkdir()
    with (home / "console.log").open("wb") as log:
        return await asyncio.create_subprocess_exec(
            *(sys.executable, str(WORLDS / "colluding_node.py"), "node", "start"),
            *("--join", swarm.invite, "--home", str(home), "--threads", "1"),
            *("--listen", "/ip4/127.0.0.1/tcp/0"),
            stdout=log,
            stderr=log,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
        )


def colluding(*arguments: str) -> tuple[str, ...]:
    """As :func:`artel.protocol.tether.command`, but for a coordinator that colludes."""
    if arguments[0] != "coordinator":
        return honest_command(*arguments)
    program = str(WORLDS / "colluding_coordinator.py")
    arguments = (*arguments, "--recompute", "0")
    return tether.tied(sys.executable, "-P", program, *arguments, death=signal.SIGTERM)


honest_command = tether.command


async def test_honest_nodes_prove_a_majority_wrong_and_the_run_goes_back_and_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tether, "command", colluding)
    # The run rests on its members as soon as anything has vested.
    rules: dict[str, Any] = {"min_nodes": 7, "max_nodes": 8, "quorum": 0.9, "founders": 1}
    run = write_run(tmp_path, **rules, total=200, inner_steps=100)
    homes = [tmp_path / f"liar-{number}" for number in range(LIARS)]
    coordinator = tmp_path / "coordinator"
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=HONEST)
        liars = [await colluder(swarm, home) for home in homes]
        try:

            def returned(status: dict[str, Any]) -> bool:
                return any(entry.kind == "rolled_back" for entry in ledger_of(coordinator)[0])

            await swarm.wait_for(round_at_least(LIE + 1), "the wrong state is agreed")
            await swarm.wait_for(returned, "the run goes back")
            await swarm.wait_for(round_at_least(LIE + 2), "the run goes on")
        finally:
            for liar in liars:
                if liar.returncode is None:
                    liar.send_signal(signal.SIGKILL)
                await liar.wait()
    assert "the jury's word alone" not in (console := (coordinator / "console.log").read_text())
    assert "computed here too" in console
    decoded, fold = ledger_of(coordinator)
    assert_gone_back(decoded)
    guilty = {identity.load(home / "node.key").peer_id for home in homes}
    signed = {node for node, why in fold.rejected.items() if reasons.SIGNED_WRONG in why}
    assert signed == guilty
    assert cli.main(["ledger", "explain", str(index_of(decoded)), "--home", str(coordinator)]) == 0
    assert f"called state {LIE + 1} wrong" in capsys.readouterr().out
    assert cli.main(["ledger", "verify", "--home", str(coordinator)]) == 0


async def test_a_node_without_a_seat_comes_to_the_state_too_and_stands_in_the_ledger(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of four seats one is kept for newcomers, so one of four nodes with standing has none."""
    rules: dict[str, Any] = {"min_nodes": 3, "max_nodes": 4, "founders": 1}
    run = write_run(tmp_path, **rules, total=200, inner_steps=40)
    coordinator = tmp_path / "coordinator"

    def seen(status: dict[str, Any]) -> bool:
        return any(b.outside for b in bodies(coordinator) if isinstance(b, entries.StateAgreed))

    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=5)
        await swarm.wait_for(seen, "a node outside a round has signed its state")
    nodes = [identity.load(tmp_path / f"node-{n}" / "node.key").peer_id for n in range(1, 6)]
    made = [body for body in bodies(coordinator) if isinstance(body, entries.StateAgreed)]
    assert {body.outside for body in made if body.outside} <= set(nodes)
    assert all(body.outside in body.signatures for body in made if body.outside)
    assert cli.main(["ledger", "verify", "--home", str(coordinator)]) == 0
    assert "a node from outside the round signed" in capsys.readouterr().out


def bodies(home: Path) -> list[Any]:
    return [entry.body for entry in ledger_of(home)[0]]


def index_of(decoded: list[Entry]) -> int:
    return next(index for index, entry in enumerate(decoded) if entry.kind == "rolled_back")


def assert_gone_back(decoded: list[Entry]) -> None:
    """Once, to the state before the wrong one; and its round was made again, honestly."""
    bodies = [entry.body for entry in decoded]
    (back,) = [body for body in bodies if isinstance(body, entries.RolledBack)]
    assert back.state == LIE
    made = [b for b in bodies if isinstance(b, entries.StateAgreed) and b.round == LIE + 1]
    (accused,) = [b for b in bodies if isinstance(b, entries.StateWrong)]
    wrong, right = made
    assert (accused.recorded, wrong.attempt) == (wrong.root, 0)
    assert right.attempt > 0
    # Not the root that the accuser had: what nodes remember from round to round is lost by then.
    assert right.root != wrong.root
