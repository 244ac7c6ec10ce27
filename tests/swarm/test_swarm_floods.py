"""A live run that strangers flood in every way at once: what honest requests feel of it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import statistics
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest

from artel.coordinator import submission
from artel.ledger import entries
from artel.protocol import messages
from artel.protocol.errors import ArtelError
from artel.protocol.invite import Invite
from artel.protocol.net import p2pd, wire
from artel.protocol.net.host import Host
from benchmarks.swarm import Swarm
from host_world import named, start
from strangers_world import slow_strangers, weigh
from swarm_world import ledger_of, round_at_least, write_run

IDLE_S, FLOOD_S = 20.0, 60.0
STRANGERS, STREAMS, SILENT, SILENT_HTTP = 100, 16, 2000, 400
OURS = -10
"""The nice value of the coordinator and of who asks it, where the system lets us take it; whatever
the strangers are has the share of one other program."""
LEAST_S = 0.3
"""Below this a request is quick, whatever it took on an idle machine."""
MEMORY_BYTES, DAEMON_BYTES = 10 << 20, 20 << 20
"""Of the coordinator, and of its network daemon, of which the target of 10 MiB says nothing."""


@dataclass
class Felt:
    """How long honest requests took, in seconds, by who asked for what; and who failed."""

    took: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: list[str] = field(default_factory=list)

    async def ask(self, name: str, request: Callable[[], Awaitable[object]]) -> None:
        began = time.monotonic()
        try:
            await request()
        except ArtelError as error:
            self.failed.append(f"{name}: {error.message}")
        self.took[name].append(time.monotonic() - began)

    def slowest_hundredth(self) -> dict[str, float]:
        return {name: statistics.quantiles(took, n=100)[98] for name, took in self.took.items()}


async def felt(swarm: Swarm, member: Host, visitor: Host, seconds: float) -> Felt:
    """What a member, somebody unknown and a browser feel in so many seconds."""
    invite, found = Invite.decode(swarm.invite), Felt()
    peer = invite.peers[0].rpartition("/")[2]
    beat = messages.Heartbeat(
        run=invite.run,
        instance="0" * 32,
        seen=0,
        patience=0.0,
        report=messages.Report(state_round=-1, state_root="", phase="waiting"),
        addresses=[],
    )
    head = messages.Get(run=invite.run, paths=["checkpoint"])
    requests: dict[str, Callable[[], Awaitable[object]]] = {
        "heartbeat of a member": lambda: member.ask(peer, wire.CONTROL, beat),
        "tree head for a member": lambda: member.ask(peer, wire.LEDGER, head),
        "tree head for a stranger": lambda: visitor.ask(peer, wire.LEDGER, head),
        "status over HTTP": lambda: swarm.get("/api/v1/status"),
    }
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        for name, request in requests.items():
            await found.ask(name, request)
        await asyncio.sleep(0.1)
    return found


@contextlib.asynccontextmanager
async def silent_connections(port: int, count: int, source: str) -> AsyncIterator[None]:
    """Connections that say nothing, from an address of this machine."""
    p2pd.raise_open_files()
    held: list[socket.socket] = []
    try:
        for number in range(count):
            one = socket.socket()
            one.setblocking(False)
            one.bind((source, 0))
            one.connect_ex(("127.0.0.1", port))
            held.append(one)
            if number % 100 == 0:
                await asyncio.sleep(0.01)
        yield
    finally:
        for one in held:
            one.close()


def memory_of(swarm: Swarm) -> dict[str, int]:
    """Resident bytes of the coordinator and of its network daemon."""
    assert swarm.coordinator is not None
    own = psutil.Process(swarm.coordinator.process.pid)
    daemons = [child for child in own.children(recursive=True) if "p2pd" in child.name()]
    return {each.name(): each.memory_info().rss for each in (own, *daemons)}


async def joined(home: Path, swarm: Swarm, name: str, *, member: bool) -> Host:
    """A host that knows the coordinator, and is a member of the run if it shall be."""
    invite = Invite.decode(swarm.invite)
    host = await start(home)
    peer = invite.peers[0].rpartition("/")[2]
    host.remember(peer, invite.peers)
    if member:
        owner = named(f"owner of {name}")
        said = [
            entries.account(owner, invite.run).encode(),
            entries.node(host.identity, owner, invite.run).encode(),
        ]
        hello = messages.Hello(run=invite.run, statements=said, addresses=[])
        assert isinstance(await host.ask(peer, wire.CONTROL, hello), messages.Welcome)
    return host


@pytest.mark.slow
@pytest.mark.timeout(1800)  # where other work goes on, so many handshakes take minutes
async def test_honest_requests_hardly_feel_what_strangers_do(tmp_path: Path) -> None:
    run_file = write_run(tmp_path / "run", total=1000, inner_steps=400)
    async with contextlib.AsyncExitStack() as stack:
        swarm = await stack.enter_async_context(Swarm(tmp_path, run_file))
        await swarm.start(2)
        await swarm.wait_for(round_at_least(2), "two rounds")
        member = await joined(tmp_path / "member", swarm, "member", member=True)
        stack.push_async_callback(member.close)
        visitor = await joined(tmp_path / "visitor", swarm, "visitor", member=False)
        stack.push_async_callback(visitor.close)
        invite = Invite.decode(swarm.invite)
        where = invite.peers[0]
        # What the coordinator shares with strangers and nodes is a line, not a machine.
        stack.callback(weigh, os.getpid(), 0)
        weigh(os.getpid(), OURS)
        for node in swarm.nodes.values():
            weigh(node.process.pid, 0)
        idle = await felt(swarm, member, visitor, IDLE_S)
        before, size = memory_of(swarm), len(ledger_of(tmp_path / "coordinator")[0])
        began = time.monotonic()  # for they begin when they come
        first = (await swarm.get("/api/v1/status"))["round"]
        async with (
            slow_strangers(where, STRANGERS, STREAMS, wire.LEDGER, invite.run) as done,
            silent_connections(int(where.split("/")[4]), SILENT, "127.0.0.1"),
            silent_connections(swarm.http_port, SILENT_HTTP, "127.0.0.2"),
        ):
            flooded = await felt(swarm, member, visitor, FLOOD_S)
            minutes = (time.monotonic() - began) / 60
            during = memory_of(swarm)
        last = (await swarm.get("/api/v1/status"))["round"]
        after = memory_of(swarm)
    written = [entry.kind for entry in ledger_of(tmp_path / "coordinator")[0][size:]]
    strangers = written.count("account")
    usual, now = idle.slowest_hundredth(), flooded.slowest_hundredth()
    for name in usual:
        count = len(flooded.took[name])
        print(f"{name}: slowest hundredth {usual[name]:.3f} s idle, {now[name]:.3f} s of {count}")
    for name, held in before.items():
        grown = ", ".join(f"{(then[name] - held) / 2**20:+.1f}" for then in (during, after))
        print(f"memory of {name}: {held >> 20} MiB; during it and afterwards {grown}")
    print(f"{strangers} accounts of strangers in {minutes:.1f} minutes; rounds {first} to {last}")
    print(f"strangers did in that time: {done}")
    assert done["streams"] >= STRANGERS * STREAMS, "they came back, or this was no flood"
    assert flooded.failed == []
    assert last > first, "the run went on"
    slow = {name: now[name] for name in now if now[name] > max(3 * usual[name], LEAST_S)}
    assert slow == {}
    assert strangers <= submission.FREE_ADMISSIONS + 10 * minutes + submission.STRANGERS_AT_ONCE
    for name in before:
        most = DAEMON_BYTES if "p2pd" in name else MEMORY_BYTES
        assert during[name] - before[name] <= most, name
