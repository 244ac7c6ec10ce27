"""A running node does what its owner says: it pauses and goes on, and keeps to its limits."""

from __future__ import annotations

import asyncio
import json
import time
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import psutil
import pytest

from artel.node import control
from artel.node import status as node_status
from artel.node.control import OwnerOrder
from artel.node.settings import OwnerSettings
from artel.protocol import content
from artel.protocol.errors import ArtelError, UsageError
from artel.protocol.identity import Identity, load_or_create
from artel.protocol.invite import Invite
from artel.protocol.net import delivery, dht
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.delivery import Wanted
from artel.protocol.net.host import Host
from benchmarks.swarm import Swarm
from host_world import LOOPBACK
from swarm_world import ledger_of, write_run

HELD_BYTES = 24 << 20
"""Of a file that a stranger fetches."""


async def tell(home: Path, **wishes: Any) -> str:
    return await asyncio.to_thread(control.tell, home, OwnerOrder("set", OwnerSettings(**wishes)))


async def seen(home: Path) -> dict[str, Any]:
    return await asyncio.to_thread(node_status.read, home)


async def until(home: Path, what: str, holds: Any, seconds: float = 120) -> dict[str, Any]:
    now: dict[str, Any] = {}
    ends = time.monotonic() + seconds
    while time.monotonic() < ends:
        try:
            now = await seen(home)
        except ArtelError:
            now = {}
        if now and holds(now):
            return now
        await asyncio.sleep(0.1)
    raise AssertionError(f"{what}: {json.dumps(now, indent=1)}")


def trains(now: dict[str, Any]) -> bool:
    return bool(now["phase"] == "training" and now["step"] > 0)


def trainer_of(pid: int) -> psutil.Process:
    """The child that computes: the one with most threads' worth of torch."""
    children = psutil.Process(pid).children(recursive=True)
    return next(child for child in children if "artel.node.trainer" in child.cmdline())


def spent(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@pytest.mark.slow  # several rounds; test_control and test_looking show the same in one process
async def test_a_node_pauses_within_a_step_and_goes_on_and_nobody_waits_for_it(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path, total=500, inner_steps=1500, min_nodes=1, quorum=0.5, deadline_s=120)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(2)
        home, other = swarm.home_of(1), swarm.home_of(2)
        await asyncio.gather(*(until(each, "it trains", trains, 240) for each in (home, other)))
        trainer = trainer_of(swarm.nodes[1].process.pid)
        before = spent(trainer)
        await asyncio.sleep(1)
        assert spent(trainer) - before > 0.1, "it is not at work"
        assert "paused" in await tell(home, paused=True)
        # A step takes some milliseconds.
        await asyncio.sleep(0.3)
        before, began = spent(trainer), time.monotonic()
        round = (await swarm.status())["round"]
        await asyncio.sleep(4)
        share = (spent(trainer) - before) / (time.monotonic() - began)
        assert share < 0.02, f"a paused trainer takes {100 * share:.0f} % of a processor"
        now = await until(home, "it rests", lambda now: now["phase"] == "resting")
        assert "resume" in now["resting"]
        await swarm.wait_for(lambda status: status["round"] >= round + 2, "others go on")
        assert spent(trainer) - before < 0.3
        await tell(home, paused=False)
        await until(home, "it trains again", trains, 240)
        resumed = (await swarm.status())["round"]
        await swarm.wait_for(lambda status: status["round"] >= resumed + 2, "it goes on")
        assert "finishing" in await asyncio.to_thread(control.tell, home, OwnerOrder("finish"))
        assert await swarm.left(1) == 0
        assert "leaving now" in await asyncio.to_thread(control.tell, other, OwnerOrder("leave"))
        assert await swarm.left(2) == 130
        swarm.nodes[1].expected = swarm.nodes[2].expected = True
    decoded, fold = ledger_of(tmp_path / "coordinator")
    peer = load_or_create(home / "node.key").peer_id
    rounds = {
        entry.body.round: {item.node for item in entry.body.accepted}
        for entry in decoded
        if entry.kind == "round_closed"
    }
    assert any(peer not in accepted for accepted in rounds.values()), "it gave up its place"
    assert peer in rounds[resumed + 1], "and had one again"
    assert set(fold.rejected.get(peer, ())) <= {"handed_back"}, "nobody waited for it"


@pytest.mark.slow
async def test_the_limits_of_a_running_node_are_obeyed_while_they_are_changed(
    tmp_path: Path,
) -> None:
    run = write_run(tmp_path, total=500, min_nodes=2)
    async with Swarm(tmp_path, run) as swarm:
        data = tmp_path / "held"
        data.write_bytes(bytes(range(256)) * (HELD_BYTES // 256))
        home = swarm.home_of(1)
        blob = content.file_content_id(data)
        (home / "blobs").mkdir(parents=True, mode=0o700)
        home.chmod(0o700)
        data.rename(home / "blobs" / blob)
        await swarm.start(1)
        now = await until(home, "it has joined", lambda now: True)
        stranger = tmp_path / "stranger"
        stranger.mkdir()
        ours: Identity = load_or_create(stranger / "node.key")
        invite = Invite.decode(swarm.invite)
        host = await Host.start(
            ours, stranger / "node.key", listen=[LOOPBACK], bootstrap=invite.peers
        )
        try:
            where: dict[str, dht.HolderRecord] = {}
            while now["node"] not in where:
                where = await host.lookup(dht.nodes_key(invite.run), dht.HolderRecord)
            host.remember(now["node"], where[now["node"]].addresses)
            await tell(home, uplink=2.0)
            wanted = Wanted(blob, [now["node"]], HELD_BYTES)
            fetching = asyncio.create_task(
                delivery.fetch(host, BlobStore(stranger / "blobs"), wanted)
            )
            for megabits in (2.0, 5.0, 10.0):
                said = await tell(home, uplink=megabits)
                assert f"{megabits:g} Mbit/s up" in said
                await asyncio.sleep(1)
                began, before = time.monotonic(), (await seen(home))["bytes_up"]
                await asyncio.sleep(4)
                moved = (await seen(home))["bytes_up"] - before
                rate = 8e-6 * moved / (time.monotonic() - began)
                assert 0.9 * megabits < rate < 1.1 * megabits, f"{rate} at {megabits} Mbit/s"
            assert not fetching.done()
            await tell(home, uplink=0.0)
            async with asyncio.timeout(60):
                assert content.file_content_id(await fetching) == blob
        finally:
            await host.close()
        await _quota(home, blob)
        await _hours_and_idle(home)


async def _quota(home: Path, blob: str) -> None:
    """A smaller one evicts at once; one into which no round fits is refused, as too little memory
    is, and changes nothing."""
    path = home / "blobs" / blob
    assert path.exists()
    await tell(home, quota=20)
    assert not path.exists()
    for wishes in ({"quota": 1}, {"memory": 1}):
        with pytest.raises(UsageError) as refused:
            await tell(home, **wishes)
        assert refused.value.hint
    now = await seen(home)
    assert now["settings"]["quota"] == 20
    assert "memory" not in now["settings"]


async def _hours_and_idle(home: Path) -> None:
    """Outside its hours, and while somebody may use the machine, it rests; then it works on."""
    later = (datetime.now() + timedelta(hours=3)).hour
    for wishes, why in (
        ({"hours": f"{later}-{(later + 1) % 24}"}, "it works from"),
        ({"hours": "", "idle": 1440}, "the machine is in use"),
        ({"idle": 0}, ""),
    ):
        await tell(home, **wishes)
        now = await seen(home)
        assert now["resting"].startswith(why), now["resting"]
        assert bool(now["resting"]) == bool(why)
