"""The exchange with real processes: sparse, overlapped, in fragments, in slices, on uneven
machines, with a node that lies about its slice, and with one that comes back late."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from artel import cli
from artel.coordinator.local_run import finished
from artel.ledger import entries
from artel.ledger.store.verify import verify_home
from artel.node import status as node_status
from artel.protocol import identity
from benchmarks.swarm import Swarm
from places import WORLDS
from swarm_world import ledger_of, write_run

pytestmark = pytest.mark.timeout(300)

SPARSE = 'codec = "sparse"\ntop_k = 128'


def peer_of(home: Path) -> str:
    return identity.load(home / "node.key").peer_id


def round_at_least(number: int) -> Callable[[dict[str, Any]], bool]:
    return lambda status: status["round"] >= number


def assert_all_signed_every_state(decoded: list[entries.Entry]) -> None:
    """Everybody whose contribution counted came to the agreed root."""
    accepted: set[str] = set()
    for entry in decoded:
        if isinstance(entry.body, entries.RoundClosed):
            accepted = {identity.public_of(item.node).hex() for item in entry.body.accepted}
        elif isinstance(entry.body, entries.StateAgreed):
            assert accepted <= entry.signers
            assert entry.body.wrong == ()


async def run_to_the_end(folder: Path, run: Path, nodes: int) -> list[entries.Entry]:
    async with Swarm(folder, run) as swarm:
        await swarm.start(nodes=nodes)
        await swarm.wait_for(finished, 240, "the run is finished")
        await swarm.wait_finished(timeout=60)
    decoded, fold = ledger_of(folder / "coordinator")
    assert not fold.rejected
    assert verify_home(folder / "node-1").verified
    return decoded


async def test_sparse_overlap_and_fragments_give_one_state_everywhere(tmp_path: Path) -> None:
    exchange = f"{SPARSE}\noverlap_steps = 10\nfragments = 2"
    run = write_run(tmp_path, total=5, inner_steps=30, exchange=exchange)
    decoded = await run_to_the_end(tmp_path, run, 2)
    assert_all_signed_every_state(decoded)
    shown = [e.body for e in decoded if isinstance(e.body, entries.Contribution)]
    # The first round has no tail before it, the last none behind: 20, 30, 30, 30, 40 steps.
    made = [(body.round, body.tail, body.head) for body in shown]
    assert {(0, 0, 20), (1, 10, 20), (4, 10, 30)} <= set(made)
    assert all(body.tokens == (body.tail + body.head) * 4 * 32 for body in shown)
    assert all(body.up > body.size for body in shown)


async def test_a_sharded_run_agrees_and_anybody_can_check_its_slices(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, total=3, min_nodes=3, inner_steps=20, exchange='topology = "sharded"')
    decoded = await run_to_the_end(tmp_path, run, 3)
    assert_all_signed_every_state(decoded)
    made = [e.body for e in decoded if isinstance(e.body, entries.Aggregate)]
    for number in range(3):
        assert {body.slice for body in made if body.round == number} == {0, 1, 2}
        assert len({body.node for body in made if body.round == number}) == 3
    assert cli.main(["ledger", "recheck", "1", "--home", str(tmp_path / "coordinator")]) == 0
    assert "WRONG" not in capsys.readouterr().out


async def test_a_wrong_aggregator_is_convicted(
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
            await swarm.wait_for(finished, 240, "the run is finished")
            await swarm.wait_finished(timeout=60)
        finally:
            if liar.returncode is None:
                liar.send_signal(signal.SIGTERM)
            await liar.wait()
    decoded, fold = ledger_of(tmp_path / "coordinator")
    liars = peer_of(home)
    agreed = [e for e in decoded if isinstance(e.body, entries.StateAgreed)]
    lied = {
        (e.body.round, e.body.slice)
        for e in decoded
        if isinstance(e.body, entries.Aggregate) and e.body.node == liars
    }
    assert len(lied) == 4
    for entry in agreed:
        assert isinstance(entry.body, entries.StateAgreed)
        # The honest nodes found it, corrected it, and signed that it was wrong.
        assert {(entry.body.round - 1, slice) for slice in entry.body.wrong} <= lied
        assert entry.body.wrong
    assert fold.rejected[liars] == {"wrong_slice": 4}
    assert liars not in fold.node_tokens
    others = [peer_of(tmp_path / f"node-{number}") for number in (1, 2)]
    assert all(fold.node_tokens[peer] for peer in others)
    # Whoever looks later finds the same, from the files alone.
    assert cli.main(["ledger", "recheck", "2", "--home", str(tmp_path / "coordinator")]) == 1
    assert "WRONG" in capsys.readouterr().out


async def test_who_comes_back_fetches_the_updates_and_not_the_state(tmp_path: Path) -> None:
    # Sparse updates of a node or two are smaller than this state for some fifty rounds.
    run = write_run(tmp_path, total=500, inner_steps=120, min_nodes=1, exchange=SPARSE, hidden=128)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=2)
        await swarm.wait_for(round_at_least(2), 120, "two rounds")
        swarm.interrupt_node(2)
        assert await swarm.left(2) == 0
        missed = (await swarm.status())["round"]
        await swarm.wait_for(round_at_least(missed + 3), 120, "three rounds without it")
        await swarm.start_node(2)
        home = swarm.home_of(2)

        def back(status: dict[str, Any]) -> bool:
            rows = [row for row in status["nodes"] if row["node"] == peer_of(home)]
            return bool(rows) and bool(rows[0]["seconds"])  # of a round that it has finished

        await swarm.wait_for(back, 120, "it takes part again")
        now = await asyncio.to_thread(node_status.read, home)
        console = (home / "console.log").read_text()
        assert "behind: fetching" in console
        assert "state.not_caught_up" not in console
        # Not a byte of any state came over the wire.
        assert "state" not in now["down_by_kind"]
        state = (home / "blobs" / now["state_root"]).stat().st_size
        assert 0 < now["down_by_kind"]["contribution"] < state


async def test_a_slow_machine_stalls_nobody_and_still_earns(tmp_path: Path) -> None:
    # So many steps that the slower node never reaches the most that anybody may make.
    run = write_run(tmp_path, total=6, inner_steps=200, box_s=4.0, deadline_s=60.0)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=2)
        await swarm.wait_for(lambda status: len(status["nodes"]) == 2, 120, "both are here")
        slow = asyncio.create_task(_slow_down(swarm, 2))
        try:
            await swarm.wait_for(finished, 240, "the run is finished")
        finally:
            slow.cancel()
            await asyncio.wait({slow})
        await swarm.wait_finished(timeout=60)
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
