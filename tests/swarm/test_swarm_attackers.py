"""A real run in which some send what they did not train: who is paid, and what people are told."""

from __future__ import annotations

import asyncio
import contextlib
import time
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from artel import cli
from artel.coordinator.local_run import finished
from artel.ledger import entries
from artel.ledger.entries import reasons
from artel.protocol import identity
from artel.protocol.invite import Invite
from artel.protocol.messages import Commit, Directive, Heartbeat, Hello, Message, Report
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from artel.protocol.repeated_work import TRIAL_FAILED, Repeated, Trial
from artel.protocol.round_state import COPIED
from benchmarks.swarm import Swarm
from host_world import start
from ledger_world import key
from swarm_world import (
    assert_all_signed_every_state,
    lazy,
    ledger_of,
    round_at_least,
    write_run,
)

ROUNDS = 6


@pytest.mark.slow
async def test_who_sends_zeros_or_copies_is_not_paid_for_it_and_the_others_go_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rules = {"total": ROUNDS, "min_nodes": 5, "max_nodes": 8, "inner_steps": 60, "quorum": 0.6}
    async with Swarm(tmp_path, write_run(tmp_path, **rules)) as swarm:
        await swarm.start(nodes=3)
        async with lazy(swarm, "zeros"), lazy(swarm, "copier"):
            await swarm.wait_for(finished, "the run is finished")
            await swarm.wait_finished()
    decoded, fold = ledger_of(tmp_path / "coordinator")
    assert_all_signed_every_state(decoded)
    closed = [e.body for e in decoded if isinstance(e.body, entries.RoundClosed)]
    peers = {
        kind: identity.load(tmp_path / kind / "node.key").peer_id for kind in ("zeros", "copier")
    }
    whole = fold.work.tokens(60)
    for kind, peer in peers.items():
        paid = fold.node_tokens.get(peer, 0)
        with capsys.disabled():
            print(f"{kind}: paid for {paid // whole} rounds, left out {fold.rejected.get(peer)}")
    assert fold.node_tokens.get(peers["zeros"], 0) == 0
    assert fold.rejected[peers["zeros"]] == {reasons.EMPTY: ROUNDS}
    assert fold.node_tokens.get(peers["copier"], 0) <= whole
    assert fold.rejected[peers["copier"]][COPIED] >= 2
    honest = [fold.node_tokens[peer] for peer in fold.node_tokens.keys() - peers.values()]
    assert honest == [ROUNDS * whole] * 3
    assert all(body.accepted for body in closed), "no attempt failed"
    index = next(i for i, e in enumerate(decoded) if e.body in closed and COPIED in str(e.body))
    assert cli.main(["ledger", "explain", str(index), "--home", str(tmp_path / "coordinator")]) == 0
    told = capsys.readouterr().out
    assert COPIED in told
    assert peers["copier"][-6:] in told


class FreshKey:
    """A peer with keys of its own that says hello, claims to hold what it should, and does nothing
    more; or commits to anything at once, and shows nothing. It knows a state's root when the others
    have agreed on it, so it seldom gets as far as a seat; ``test_fresh_keys.py`` gives it some."""

    def __init__(self, host: Host, invite: Invite, number: int) -> None:
        self.host, self.run, self.quick = host, invite.run, number % 2 == 0
        address, _, self.coordinator = invite.peers[0].rpartition("/p2p/")
        host.remember(self.coordinator, [address])

    async def say(self, request: Message) -> Message:
        return await self.host.ask(self.coordinator, wire.CONTROL, request)

    async def hello(self) -> Message:
        node, owner = self.host.identity, key(f"owner of {self.host.peer_id}")
        account = entries.account(owner, self.run).encode()
        statements = [account, entries.node(node, owner, self.run).encode()]
        return await self.say(Hello(run=self.run, statements=statements, addresses=[]))

    async def linger(self) -> None:
        root = ""
        while True:
            report = Report(state_round=0, state_root=root, phase="")
            beat = Heartbeat(
                run=self.run,
                instance="0" * 32,
                seen=0,
                patience=0.0,
                report=report,
                addresses=[],
            )
            told = await self.say(beat)
            assert isinstance(told, Directive)
            root = told.root
            if told.task == "train" and self.quick:
                place = {"round": told.round, "attempt": told.attempt, "commitment": "ab" * 32}
                with contextlib.suppress(wire.Refused):
                    await self.say(Commit(run=self.run, **place))
            await asyncio.sleep(0.5)


async def seconds_of(swarm: Swarm, rounds: int) -> float:
    """How long a round takes, over so many of them."""
    began, first = time.monotonic(), (await swarm.status())["round"]
    await swarm.wait_for(round_at_least(first + rounds), f"{rounds} more rounds")
    return (time.monotonic() - began) / rounds


@pytest.mark.slow
async def test_fresh_keys_at_three_to_one_neither_stop_nor_slow_two_nodes_that_have_worked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, total=500, max_nodes=8, deadline_s=300.0)
    async with Swarm(tmp_path, run) as swarm, AsyncExitStack() as stack:
        await swarm.start(nodes=2)
        await swarm.wait_for(round_at_least(4), "both have standing")
        before, invite = await seconds_of(swarm, 5), Invite.decode(swarm.invite)
        hosts = [await start(tmp_path / f"fresh-{number}") for number in range(6)]
        for host in hosts:
            stack.push_async_callback(host.close)
        fresh = [FreshKey(host, invite, number) for number, host in enumerate(hosts)]
        for each in fresh:
            await each.hello()
        begun = (await swarm.status())["round"]
        async with asyncio.TaskGroup() as group:
            lingering = [group.create_task(each.linger()) for each in fresh]
            during = await seconds_of(swarm, 12)
            for task in lingering:
                task.cancel()
    with capsys.disabled():
        print(f"a round took {before:.1f} s, under attack {during:.1f} s")
    decoded, fold = ledger_of(tmp_path / "coordinator")
    assert not fold.ignored
    honest = set(fold.node_tokens)
    assert len(honest) == 2, "nobody else has any credit"
    opened = [e.body for e in decoded if isinstance(e.body, entries.RoundOpened)]
    under_attack = [body for body in opened if begun < body.round <= begun + 12]
    assert all(honest <= set(body.members) for body in under_attack)
    assert {body.attempt for body in under_attack} == {0}, "no attempt failed"
    assert during <= before + 2 * 3.0, "a grace period for silence, one for what is not shown"


async def membered(home: Path) -> None:
    """Wait until a run rests on its members."""
    async with asyncio.timeout(400):
        while ledger_of(home)[1].rests_on != "members":
            await asyncio.sleep(1)


@pytest.mark.slow
@pytest.mark.timeout(1500)
async def test_a_newcomer_repeats_work_of_others_and_is_seated_and_keys_that_do_not_are_unknown(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, total=500, inner_steps=30, span=5, audit_rate=0.05, founders=2)
    home = tmp_path / "coordinator"
    async with Swarm(tmp_path, run) as swarm, AsyncExitStack() as stack:
        await swarm.start(nodes=2)
        await membered(home)
        invite = Invite.decode(swarm.invite)
        hosts = [await start(tmp_path / f"fresh-{number}") for number in range(2)]
        for host in hosts:
            stack.push_async_callback(host.close)
        for number, host in enumerate(hosts):
            fresh = FreshKey(host, invite, number)
            asked = await fresh.hello()
            assert isinstance(asked, Trial)
            place = {"contribution": asked.contribution, "ticket": asked.ticket}
            for rows in (b"", bytes(512 * asked.steps)):
                with pytest.raises(wire.Refused) as refused:
                    await fresh.say(Repeated(run=invite.run, **place, rows=rows))
                assert refused.value.code == ("busy" if rows else TRIAL_FAILED)
        await swarm.add_node()
        async with asyncio.timeout(400):
            while len(ledger_of(home)[1].node_tokens) < 3:
                await asyncio.sleep(1)
        newcomer = identity.load(swarm.home_of(3) / "node.key").peer_id
        assert newcomer in ledger_of(home)[1].node_tokens
        told = swarm.nodes[3].log.read_text()
    with capsys.disabled():
        print("\n".join(line for line in told.splitlines() if "trial" in line))
    assert "repeating 8 steps of round" in told
    assert "✓ trial    passed after" in told
    decoded, fold = ledger_of(home)
    assert not fold.ignored
    assert len(fold.nodes) == len(fold.accounts) == 3, "nothing of the others is recorded"
    assert not fold.nodes.keys() & {host.peer_id for host in hosts}
    assert all(e.body.accepted for e in decoded if isinstance(e.body, entries.RoundClosed))
