"""The exchange with real processes: sparse, overlapped, in fragments, in slices, on uneven
machines, with a node that lies about its slice, and with one that comes back late."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from artel import cli
from artel.coordinator.local_run import finished
from artel.ledger import entries
from artel.node import status as node_status
from artel.protocol import identity
from artel.protocol.exchange.pseudogradient import open_index
from benchmarks.swarm import Swarm
from lying_node import FIRST_LIE
from places import WORLDS
from swarm_world import ledger_of, round_at_least, write_run

SPARSE = 'codec = "sparse"\ntop_k = 128'


def peer_of(home: Path) -> str:
    return identity.load(home / "node.key").peer_id


async def test_anybody_can_check_the_slices_of_a_round_and_a_wrong_aggregator_is_convicted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, total=4, min_nodes=3, inner_steps=20, exchange='topology = "sharded"')
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=2)
        home = tmp_path / "liar"
        home.mkdir()
        with (home / "console.log").open("wb") as log:
            liar = await asyncio.create_subprocess_exec(
                *(sys.executable, str(WORLDS / "lying_node.py"), "node", "start"),
                *("--join", swarm.invite, "--home", str(home), "--threads", "1"),
                *("--listen", "/ip4/127.0.0.1/tcp/0"),
                stdout=log,
                stderr=log,
                env=os.environ | {"PYTHONPATH": os.pathsep.join(map(str, sys.path))},
            )
        try:
            await swarm.wait_for(finished, "the run is finished")
            await swarm.wait_finished()
        finally:
            if liar.returncode is None:
                liar.send_signal(signal.SIGTERM)
            await liar.wait()
    decoded, fold = ledger_of(tmp_path / "coordinator")
    liars = peer_of(home)
    others = [peer_of(tmp_path / f"node-{number}") for number in (1, 2)]
    made = [e.body for e in decoded if isinstance(e.body, entries.Aggregate)]
    for number in range(4):
        assert {body.slice for body in made if body.round == number} == {0, 1, 2}
        assert {body.node for body in made if body.round == number} == {liars, *others}
    agreed = [e for e in decoded if isinstance(e.body, entries.StateAgreed)]
    # The honest nodes found it, corrected it, and signed that it was wrong.
    found = [
        (e.body.round - 1, slice)
        for e in agreed
        if isinstance(e.body, entries.StateAgreed)
        for slice in e.body.wrong
    ]
    assert found == [(b.round, b.slice) for b in made if b.node == liars and b.round >= FIRST_LIE]
    assert fold.rejected == {liars: {"wrong_slice": 4 - FIRST_LIE}}
    per_round = fold.work.tokens(20)
    assert [fold.node_tokens[peer] for peer in others] == [4 * per_round] * 2
    assert fold.node_tokens[liars] == FIRST_LIE * per_round
    # Whoever looks later finds the same, from the files alone.
    for number in (FIRST_LIE - 1, FIRST_LIE):
        code = cli.main(["ledger", "recheck", str(number), "--home", str(tmp_path / "coordinator")])
        assert code == int("WRONG" in capsys.readouterr().out) == int(number == FIRST_LIE)


async def test_members_hold_contributions_and_a_run_outlives_one_that_is_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exchange = 'topology = "sharded"\nholders = 2'
    run = write_run(tmp_path, total=5, min_nodes=3, inner_steps=20, exchange=exchange)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=4)
        await swarm.wait_for(round_at_least(2), "two rounds")
        await swarm.kill_node(4)
        await swarm.wait_finished()
        console = (tmp_path / "coordinator" / "console.log").read_text()
    decoded, fold = ledger_of(tmp_path / "coordinator")
    assert "contribution.withheld" not in console
    assert not fold.ignored
    peers = {peer_of(tmp_path / f"node-{number}") for number in (1, 2, 3)}
    shown = [e.body for e in decoded if isinstance(e.body, entries.Contribution)]
    last = {body.node for body in shown if body.round == 4}
    assert last == peers
    # What a node was given lies with it, under the names of the makers' slices.
    indexes = [tmp_path / "coordinator" / "blobs" / b.blob for b in shown if b.round == 4]
    listed = [
        piece.blob
        for path, body in zip(indexes, (b for b in shown if b.round == 4), strict=True)
        for piece in open_index(path.read_bytes(), round=4, base=body.base)
    ]
    # An index lies with its maker and two others: who combined a slice asked for items of it.
    four = [tmp_path / f"node-{number}" / "blobs" for number in (1, 2, 3, 4)]
    for round in range(4):
        made = [body.blob for body in shown if body.round == round]
        held = [sum((home / blob).exists() for home in four) for blob in made]
        assert len(made) < 4 or min(held) < 4
    homes = [tmp_path / f"node-{number}" / "blobs" for number in (1, 2, 3)]
    assert all(sum((home / blob).exists() for home in homes) >= 2 for blob in listed)
    where = [part for home in homes for part in ("--home", str(home.parent))]
    assert cli.main(["ledger", "recheck", "4", *where]) == 0, capsys.readouterr().out


async def test_who_comes_back_fetches_the_updates_and_not_the_state(tmp_path: Path) -> None:
    # Sparse updates of a node or two are smaller than this state for some fifty rounds.
    rounds = {"total": 500, "inner_steps": 120, "min_nodes": 1, "span": 500}
    run = write_run(tmp_path, **rounds, exchange=SPARSE, hidden=128)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=2)
        await swarm.wait_for(round_at_least(2), "two rounds")
        swarm.interrupt_node(2)
        assert await swarm.left(2) == 0
        missed = (await swarm.status())["round"]
        await swarm.wait_for(round_at_least(missed + 3), "three rounds without it")
        await swarm.start_node(2)
        home = swarm.home_of(2)

        def back(status: dict[str, Any]) -> bool:
            decoded, _ = ledger_of(tmp_path / "coordinator")
            bodies = [e.body for e in decoded if isinstance(e.body, entries.Contribution)]
            return any(b.node == peer_of(home) and b.round >= missed for b in bodies)

        await swarm.wait_for(back, "it contributes again")
        now = await asyncio.to_thread(node_status.read, home)
        console = (home / "console.log").read_text()
        assert "behind: fetching" in console
        assert "state.not_caught_up" not in console
        state = (home / "blobs" / now["state_root"]).stat().st_size
        # No state came over the wire; whoever signed one is asked by the coordinator to show it.
        assert now["down_by_kind"].get("state", 0) < state / 20
        assert 0 < now["down_by_kind"]["contribution"] < state
        # It has lost what training remembers, so it began a span of its own; the other went on.
        decoded, fold = ledger_of(tmp_path / "coordinator")
        assert not fold.ignored
        shown = [e.body for e in decoded if isinstance(e.body, entries.Contribution)]
        mine = [body for body in shown if body.node == peer_of(home)]
        first = next(body.round for body in mine if body.round >= missed)
        begun = mine[0].round  # of two nodes that start at once, one may be in time for round 0
        assert [b.span for b in mine] == [first if b.round >= first else begun for b in mine]
        others = [body for body in shown if body.node != peer_of(home)]
        assert {body.span for body in others} == {others[0].round}


async def test_a_slow_machine_stalls_nobody_and_still_earns(tmp_path: Path) -> None:
    # So many steps that the slower node never reaches the most that anybody may make.
    run = write_run(tmp_path, total=6, inner_steps=200, box_s=4.0, deadline_s=60.0)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=2)
        await swarm.wait_for(lambda status: len(status["nodes"]) == 2, "both are here")
        slow = asyncio.create_task(_slow_down(swarm, 2))
        try:
            await swarm.wait_for(finished, "the run is finished")
        finally:
            slow.cancel()
            await asyncio.wait({slow})
        await swarm.wait_finished()
    decoded, fold = ledger_of(tmp_path / "coordinator")
    opened = [e.body for e in decoded if isinstance(e.body, entries.RoundOpened)]
    fast, slowed = peer_of(tmp_path / "node-1"), peer_of(tmp_path / "node-2")
    assert all(body.attempt == 0 for body in opened)
    assert fast not in fold.rejected
    assert 0 < fold.node_tokens[slowed] < fold.node_tokens[fast]
    last = dict(zip(opened[-1].members, opened[-1].steps, strict=True))
    assert last[slowed] < last[fast]
    assert min(last.values()) >= 50
    assert max(last.values()) <= 800


async def _slow_down(swarm: Swarm, number: int) -> None:
    """Let a node's trainer run for a quarter of the time."""
    while True:
        pid = swarm.nodes[number].process.pid
        trainers = [
            child
            for child in psutil.Process(pid).children(recursive=True)
            if any("artel.node.trainer" in part for part in child.cmdline())
        ]
        for child in trainers:
            child.suspend()
        try:
            await asyncio.sleep(0.15)
        finally:  # cancelled or not: a trainer left standing would keep its node from ending
            for child in trainers:
                child.resume()
        await asyncio.sleep(0.05)
