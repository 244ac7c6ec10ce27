"""Joining when not everything is there yet: the coordinator starts later, the trainer dies."""

from __future__ import annotations

import asyncio
import contextlib
import re
import signal
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from artel.coordinator.local_run import LOOPBACK, Program
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.node import join as joining
from artel.node import preflight
from artel.node.settings import OwnerSettings
from artel.node.supervisor import MAX_RESTARTS
from artel.protocol import identity, tether
from artel.protocol.errors import (
    EXIT_INTERRUPTED,
    EXIT_RESOURCE,
    EXIT_UNREACHABLE,
    DecodeError,
    ResourceError,
    Unfit,
    Unreachable,
)
from artel.protocol.invite import Invite
from artel.protocol.tasks import beside
from benchmarks.swarm import Swarm
from host_world import named
from swarm_world import ledger_of, write_run


def options(home: Path, invite: Invite, patience: float) -> joining.Options:
    home.mkdir(exist_ok=True)
    return joining.Options(
        home=home,
        invite=invite,
        identity=identity.load_or_create(home / "node.key"),
        account=identity.load_or_create(home / "account.key"),
        device="cpu",
        listen=(LOOPBACK,),
        announce=(),
        settings=OwnerSettings(threads=1, quota=1000),
        check=False,
        patience=patience,
    )


async def test_a_node_that_starts_before_its_coordinator_finds_it_later(tmp_path: Path) -> None:
    run = write_run(tmp_path, total=500, min_nodes=1, inner_steps=60)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start_coordinator()
        await swarm.stop_coordinator()
        await swarm.start_node(1)
        log = swarm.nodes[1].log
        await _until(lambda: "! waiting" in log.read_text(), swarm.nodes[1])
        await asyncio.sleep(3)  # several tries
        shown = log.read_text()
        assert shown.count("! waiting") == 1
        assert "10 minutes" in shown
        assert "dial" not in shown, "the library's text"
        assert len(shown.splitlines()) < 6, shown
        await swarm.start_coordinator()
        await swarm.wait_for(lambda status: status["round"] >= 1, "the node has found its run")

        # The same home with nobody there: it knows the run, and waits however long that takes.
        swarm.interrupt_node(1)
        assert await swarm.left(1) == 0
        await swarm.stop_coordinator()
        said = list[str]()
        home = swarm.home_of(1)
        async with AsyncExitStack() as stack:
            chosen = options(home, Invite.decode(swarm.invite), patience=0.1)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(8):
                    await joining.join(chosen, stack, said.append)
        assert any("waiting" in line for line in said)
        assert not any("minutes" in line for line in said)
        assert "Traceback" not in log.read_text()


async def test_a_node_that_ends_before_it_has_joined_says_so(tmp_path: Path) -> None:
    invite = Invite("0" * 64, (f"{LOOPBACK[:-1]}1/p2p/{named('nobody').peer_id}",))
    words = ("node", "start", "--join", invite.encode(), "--home", str(tmp_path / "home"))
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-P", "-m", "artel", *words, "--listen", LOOPBACK),
        stdout=asyncio.subprocess.PIPE,
        env=tether.environment(),
    )
    assert process.stdout is not None
    assert (await asyncio.wait_for(process.stdout.readline(), 60)).startswith(b"node ")
    process.send_signal(signal.SIGINT)
    shown, _ = await asyncio.wait_for(process.communicate(), 60)
    assert process.returncode == EXIT_INTERRUPTED
    assert shown.decode().splitlines()[-1] == "left at once; it had not joined the run yet"


async def test_a_run_that_was_never_reached_is_given_up_after_a_stated_time(tmp_path: Path) -> None:
    addresses = [f"/ip4/127.0.0.{n}/tcp/1/p2p/{named('nobody').peer_id}" for n in range(1, 5)]
    said = list[str]()
    chosen = options(tmp_path / "home", Invite("ab" * 32, tuple(addresses)), patience=3.0)
    async with AsyncExitStack() as stack:
        with pytest.raises(Unreachable) as error:
            await asyncio.wait_for(joining.join(chosen, stack, said.append), 30)
    assert error.value.exit_code == EXIT_UNREACHABLE
    assert "3 s" in error.value.message
    assert error.value.message.count("…") == 1, "each peer is named once"
    assert re.search(r"\((no connection|connection refused)\)", error.value.message)
    assert len(error.value.message) < 160
    assert len(said) == 1


async def test_a_ledger_is_not_taken_over_before_it_is_known_to_fit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The ledger of a stranger's run must not fill the disk of whoever tries to join."""
    run = write_run(tmp_path, total=500, min_nodes=1, inner_steps=60)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start_coordinator()
        chosen = options(tmp_path / "home", Invite.decode(swarm.invite), patience=20.0)
        full = preflight.Finding("disk", "problem", "none free")
        for strict, said in ((True, "cannot keep up"), (False, "the ledger of this run is more")):
            with monkeypatch.context() as patch:
                patch.setattr(preflight, "disk", lambda *of: full)
                patch.setattr(preflight, "most_of_a_ledger", lambda *of: 100)
                async with AsyncExitStack() as stack:
                    with pytest.raises(Unfit, match=said):
                        await joining.join(replace(chosen, check=strict), stack, lambda line: None)
            with LedgerStore.open(chosen.home / DATABASE_NAME, run=chosen.invite.run) as store:
                assert store.size == 0
    assert preflight.most_of_a_ledger(tmp_path, 10**6) == 10**6
    assert "--quota" in (preflight.too_much(10**6).hint or "")


async def test_a_trainer_that_dies_while_its_node_joins_is_started_again(tmp_path: Path) -> None:
    run = write_run(tmp_path, total=500, min_nodes=1, inner_steps=60)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start_coordinator()
        await swarm.start_node(1)
        await swarm.start_node(2)
        for number, times in ((1, 2), (2, MAX_RESTARTS + 1)):
            member = swarm.nodes[number]
            member.expected = True
            # The state is here: what follows needs the trainer.
            await _until(lambda member=member: "✓ address" in member.log.read_text(), member)
            await _kill_trainers(member, times)
        assert await swarm.left(2, 30) == EXIT_RESOURCE
        text = swarm.nodes[2].log.read_text()
        assert f"failed {MAX_RESTARTS + 1} times in a row" in text.splitlines()[-2]
        assert "SIGKILL" in text.splitlines()[-2]
        assert text.count("! trainer") == MAX_RESTARTS
        peer = identity.load(swarm.home_of(1) / "node.key").peer_id

        def credited(status: dict[str, Any]) -> bool:
            return any(row["node"] == peer and row["credit"] > 0 for row in status["nodes"])

        await swarm.wait_for(credited, "the first node has credit")
        assert swarm.nodes[1].log.read_text().count("! trainer") == 2
        for number in (1, 2):
            assert "Traceback" not in swarm.nodes[number].log.read_text()
    _, fold = ledger_of(tmp_path / "coordinator")
    assert peer not in fold.rejected


async def test_what_guards_a_piece_of_work_ends_it() -> None:
    async def fails() -> None:
        await asyncio.sleep(0.01)
        raise ResourceError("gone")

    ended = asyncio.Event()

    async def works(result: int | None) -> int:
        try:
            while result is None:
                await asyncio.sleep(1)
            return result
        finally:
            ended.set()

    with pytest.raises(ResourceError, match="gone"):
        await beside(fails(), works(None))
    assert ended.is_set()
    assert await beside(asyncio.sleep(60), works(7)) == 7

    async def breaks() -> int:
        raise DecodeError("its own")

    with pytest.raises(DecodeError, match="its own"):
        await beside(asyncio.sleep(60), breaks())
    assert len(asyncio.all_tasks()) == 1


async def _kill_trainers(member: Program, times: int) -> None:
    """Kill the trainer of a node, and then those that take its place."""
    daemon, killed = psutil.Process(member.process.pid), set[int]()
    while len(killed) < times:
        assert member.running, member.log.read_text()
        with contextlib.suppress(psutil.NoSuchProcess):
            for child in daemon.children():
                command = child.cmdline()
                if child.pid not in killed and command[1:3] == ["-P", "-m"]:
                    child.kill()
                    killed.add(child.pid)
        await asyncio.sleep(0.02)


async def _until(condition: Callable[[], bool], member: Program, seconds: float = 90) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            assert member.running, member.log.read_text()
            await asyncio.sleep(0.05)
