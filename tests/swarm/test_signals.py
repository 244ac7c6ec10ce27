"""Ctrl-C in a real terminal, a service manager's stop, a terminal that closes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import pytest

from artel.coordinator.local_run import LOOPBACK
from artel.ledger import entries
from artel.node import status as node_status
from artel.protocol import identity, leaving, tether
from artel.protocol.errors import Unreachable
from benchmarks.swarm import Swarm
from places import ROOT
from swarm_world import ledger_of, write_run
from terminal_world import Terminal, terminal

WAYS: dict[str, Callable[[Terminal], None]] = {
    "ctrl-c": Terminal.press_ctrl_c,
    "service": Terminal.stop_as_a_service,
    "hang-up": Terminal.hang_up,
}


async def test_however_a_node_is_asked_to_end_it_finishes_its_round(tmp_path: Path) -> None:
    run = write_run(tmp_path, total=500, inner_steps=1200, min_nodes=3, quorum=1.0, deadline_s=120)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=0)
        homes = {way: tmp_path / way for way in WAYS}
        with ExitStack() as stack:
            terminals = {
                way: stack.enter_context(
                    terminal(
                        *("node", "start", "--join", swarm.invite, "--home", str(home)),
                        *("--listen", LOOPBACK, "--threads", "1"),
                    )
                )
                for way, home in homes.items()
            }
            try:
                await swarm.wait_for(
                    lambda _status: all(_training(home) for home in homes.values()),
                    "all of them train",
                )
            except Unreachable:
                print(*(opened.text for opened in terminals.values()), sep="\n---\n")
                raise
            trained_in = (await swarm.status())["round"]
            for way, act in WAYS.items():
                terminals[way].tree()
                act(terminals[way])
            for way, opened in terminals.items():
                code = await asyncio.to_thread(opened.ended, 120)
                assert code == 0, f"{way}: {opened.text}"
                if way != "hang-up":
                    assert "finishing the round" in opened.text
                    assert "left with" in opened.text
        decoded, fold = ledger_of(tmp_path / "coordinator")
    closed = [
        body
        for entry in decoded
        if isinstance(body := entry.body, entries.RoundClosed) and body.round == trained_in
    ]
    assert len(closed) == 1, "the round took one attempt"
    accepted = {item.node for item in closed[0].accepted}
    for home in homes.values():
        peer = identity.load(home / "node.key").peer_id
        assert peer in accepted
        assert peer not in fold.rejected


def _training(home: Path) -> bool:
    """Whether a node is in the middle of training."""
    try:
        now: dict[str, Any] = node_status.read(home)
    except Unreachable:
        return False
    return now["phase"] == "training" and now["step"] > 0


@pytest.mark.parametrize(
    "way", [pytest.param(way, marks=() if way == "hang-up" else pytest.mark.slow) for way in WAYS]
)
def test_a_coordinator_ends_cleanly_however_it_is_asked_to(tmp_path: Path, way: str) -> None:
    run, home = write_run(tmp_path, total=2), tmp_path / "home"
    command = ("coordinator", "start", str(run), "--home", str(home))
    where = ("--http", "127.0.0.1:0", "--listen", LOOPBACK)
    with terminal(*command, *where) as opened:  # in the middle of its preparation
        opened.wait_for(lambda: len(opened.tree()) > 1, "a child")
        opened.press_ctrl_c()
        assert opened.ended(30) == 0
    with terminal(*command, *where) as opened:
        opened.wait_for(lambda: "artel1." in opened.text, "the invite")
        opened.tree()
        WAYS[way](opened)
        assert opened.ended(30) == 0
        assert not (home / "api.json").exists()


def test_a_hang_up_is_never_a_second_wish() -> None:
    script = (
        "import asyncio, sys\n"
        "from artel.protocol.leaving import on_signals\n"
        "async def main():\n"
        "    done = asyncio.get_running_loop().create_future()\n"
        "    on_signals(lambda: print('first', flush=True), lambda: done.set_result(7))\n"
        "    print('ready', flush=True)\n"
        "    return await done\n"
        "sys.exit(asyncio.run(main()))\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGHUP):
            process.send_signal(number)
        assert process.stdout.readline() == b"first\n"
        time.sleep(1.5 * leaving.ONE_WISH_S)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(10) == 7
        finally:
            process.kill()


def test_a_tied_child_ignores_what_is_for_its_parent_and_ends_with_it() -> None:
    """However the parent ends, and even when the child stands still."""
    script = (
        "import subprocess, sys, time\n"
        "from artel.protocol.tether import tied\n"
        "child = subprocess.Popen(tied('/bin/sleep', '60'), start_new_session=True)\n"
        "print(child.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    command = [sys.executable, "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=ROOT) as parent:
        assert parent.stdout is not None
        child = psutil.Process(int(parent.stdout.readline()))
        while child.name() != "sleep":
            time.sleep(0.01)
        for number in tether.SIGNALS:
            child.send_signal(number)
        time.sleep(0.1)
        assert child.status() == psutil.STATUS_SLEEPING
        assert os.getsid(child.pid) == child.pid
        child.suspend()
        parent.kill()
    child.wait(5)
