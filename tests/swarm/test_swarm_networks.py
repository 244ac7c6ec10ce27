"""Nodes on other networks: a minority that is cut off and comes back, and one that nobody can dial.

Each party is a host of its own, in a network namespace with a cable to a bridge.
"""

from __future__ import annotations

import asyncio
import ctypes
import itertools
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from artel.coordinator.local_run import Program, Status
from artel.ledger import entries
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.fork import SPLIT_VIEW_FILE
from artel.protocol import identity, tether
from artel.protocol.net.http import fetch_object
from benchmarks.links import Links, refusal
from benchmarks.swarm import Swarm
from swarm_world import ledger_of, round_at_least, write_run

NODES, UNDIALLED = 5, 5
PATIENCE_S = 280.0
_CLONE_NEWNET = 0x40000000

pytestmark = pytest.mark.skipif(refusal() is not None, reason=str(refusal()))


def entered(network: Path) -> None:
    """Let this thread be in another network namespace from now on."""
    with network.open() as file:
        assert not ctypes.CDLL(None).setns(file.fileno(), _CLONE_NEWNET)


@dataclass
class NetworkedSwarm(Swarm):
    """A swarm whose coordinator is host 0, and whose node n is host n; ``inside`` is a thread on
    host 0."""

    links: Links = field(default_factory=lambda: Links(NODES + 1))
    inside: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        network = Path("/run/netns", self.links.command(0, ())[3])
        self.inside = ThreadPoolExecutor(1, initializer=entered, initargs=(network,))

    async def _spawn(
        self, name: str, home: Path, *command: str, output: int | None = None
    ) -> Program:
        host = int(home.name.removeprefix("node-")) if "node-" in home.name else 0
        at = command.index("--listen") + 1
        # Its loopback is its own: whoever listens there alone cannot be dialled by anybody.
        address = "127.0.0.1" if host == UNDIALLED else self.links.address(host)
        place = f"/ip4/{address}/tcp/{command[at].rpartition('/')[2]}"
        command = (*command[:at], place, *command[at + 1 :])
        return await super()._spawn(name, home, *command, output=output)

    def program(self, *command: str) -> tuple[str, ...]:
        home = Path(command[command.index("--home") + 1])
        host = int(home.name.removeprefix("node-")) if "node-" in home.name else 0
        # ip becomes the program, so it is our child.
        return tuple(self.links.command(host, tether.command(*command)))

    async def get(self, path: str) -> Status:
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self.inside, fetch_object, self.http + path)

    def says(self, number: int) -> str:
        """What ``artel node status`` prints on the machine of a node."""
        home = str(self.home_of(number))
        words = (sys.executable, "-P", "-m", "artel", "node", "status", "--home", home)
        command = self.links.command(number, words)
        done = subprocess.run(
            command, capture_output=True, text=True, env=tether.environment(), timeout=60
        )
        return done.stdout + done.stderr

    async def close(self) -> None:
        await super().close()
        self.inside.shutdown()


@pytest.fixture
async def swarm(tmp_path: Path) -> AsyncIterator[NetworkedSwarm]:
    # The run rests on its coordinator: three of five certify. By standing it takes more than two
    # thirds, and of five of one standing four.
    most = NODES + 1
    run = write_run(tmp_path, total=1000, inner_steps=40, max_nodes=8, founders=most, patience=2.0)
    options = ("--threads", "1", "--no-check")
    with Links(NODES + 1) as links:
        async with NetworkedSwarm(tmp_path, run, node_options=options, links=links) as swarm:
            await swarm.start(nodes=NODES)
            yield swarm


def ids(home: Path) -> list[str]:
    return [entry.id for entry in ledger_of(home)[0]]


def peer_ids(swarm: Swarm) -> dict[int, str]:
    return {n: identity.load(swarm.home_of(n) / "node.key").peer_id for n in swarm.nodes}


def two_to_cut_off(swarm: Swarm) -> tuple[int, ...]:
    """Two nodes without which the electors, whoever came in time to be one, are still a quorum."""
    peers, electors = peer_ids(swarm), ledger_of(swarm.folder / "coordinator")[1].electors
    pairs = itertools.combinations(peers, 2)
    return next(
        pair for pair in pairs if electors.quorum({peers[n] for n in peers.keys() - set(pair)})
    )


def accepted(swarm: Swarm, since: int) -> set[int]:
    """Nodes whose work counted in a round from ``since`` on."""
    peers = {peer: number for number, peer in peer_ids(swarm).items()}
    bodies = (entry.body for entry in ledger_of(swarm.folder / "coordinator")[0])
    ends = (b for b in bodies if isinstance(b, entries.RoundClosed) and b.round >= since)
    return {peers[item.node] for body in ends for item in body.accepted}


async def until(holds: Callable[[], Any], why: str) -> None:
    try:
        async with asyncio.timeout(PATIENCE_S):
            while not holds():
                await asyncio.sleep(0.3)
    except TimeoutError:
        pytest.fail(f"{why}: not within {PATIENCE_S:.0f} s")


@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_a_minority_that_is_cut_off_finalises_nothing_and_says_so_until_it_is_back(
    swarm: NetworkedSwarm,
) -> None:
    links, coordinator = swarm.links, swarm.folder / "coordinator"
    await swarm.wait_for(lambda status: len(status["nodes"]) == NODES, "all are there")
    await until(lambda: accepted(swarm, 0) == set(swarm.nodes), "the work of each counts")
    # One of them nobody can dial: it took full part all the same, and knows how it is reached.
    assert "reached" in swarm.says(UNDIALLED)
    assert "by nobody: it opens all connections itself" in swarm.says(UNDIALLED)
    assert "by nobody" not in swarm.says(1)
    before = await swarm.status()
    minority = two_to_cut_off(swarm)
    links.split(*minority)
    logs = [swarm.home_of(number) / "node.log" for number in minority]
    await until(lambda: all("coordinator.lost" in log.read_text() for log in logs), "they notice")
    behind = [ledger_of(swarm.home_of(number)) for number in minority]
    # The others go on, and what they do becomes final.
    await swarm.wait_for(
        lambda status: (
            status["round"] >= before["round"] + 3
            and status["ledger"]["final"] > max(len(held) for held, _ in behind)
        ),
        "the majority goes on",
    )
    for number, (held, fold) in zip(minority, behind, strict=True):
        now, still = ledger_of(swarm.home_of(number))
        assert [entry.id for entry in now] == [entry.id for entry in held]
        assert still.final == fold.final
        assert "nothing becomes final here" in swarm.says(number)
    links.heal()
    since = (await swarm.status())["round"] + 1
    await until(lambda: accepted(swarm, since) == set(swarm.nodes), "all count again")
    await swarm.wait_for(round_at_least(since + 2), "the run goes on")
    for number in minority:
        assert "nothing becomes final here" not in swarm.says(number)
    for number in swarm.nodes:
        swarm.interrupt_node(number)
    for number in swarm.nodes:
        assert await swarm.left(number) == 0
    await swarm.stop_coordinator()
    longest = ids(coordinator)
    for home in (coordinator, *map(swarm.home_of, swarm.nodes)):
        held = ids(home)
        assert held == longest[: len(held)]
        assert len(held) > max(len(entries_held) for entries_held, _ in behind)
        assert verify_home(home).verified
        assert not (home / SPLIT_VIEW_FILE).exists()
