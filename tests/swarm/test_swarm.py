"""What the network survives, with real processes: late joins, kills, restarts, dead trainers."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from artel.coordinator.local_run import Program
from artel.ledger import entries
from artel.ledger.fold import claims
from artel.ledger.store import finality
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.offline import verify_evidence
from artel.ledger.tlog.checkpoint import origin_of
from artel.node import status as node_status
from artel.protocol import content, identity, messages, tether
from artel.protocol.errors import EXIT_RESOURCE, EXIT_USAGE, Unreachable
from artel.protocol.invite import Invite
from benchmarks.swarm import Swarm
from places import WORLDS
from swarm_world import (
    assert_all_signed_every_state,
    ledger_of,
    node_named,
    open_to_others,
    round_at_least,
    write_run,
)


def peer_of(swarm: Swarm, number: int) -> str:
    """Peer id of a node; "" before the node has made its key."""
    key = swarm.home_of(number) / "node.key"
    return identity.load(key).peer_id if key.exists() else ""


def assert_no_traceback(swarm: Swarm) -> None:
    for member in swarm.programs:
        assert "Traceback" not in member.log.read_text(), f"{member.log} shows a traceback"


def members_by_round(decoded: list[entries.Entry]) -> dict[int, tuple[str, ...]]:
    opened = (e.body for e in decoded if isinstance(e.body, entries.RoundOpened))
    return {body.round: body.members for body in opened}


async def test_nodes_and_the_coordinator_are_killed_come_late_and_leave(tmp_path: Path) -> None:
    run = write_run(tmp_path, total=500, inner_steps=300, span=3)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=3)
        victim = 3

        def training(status: dict[str, Any]) -> bool:
            row = node_named(status, peer_of(swarm, victim))
            return status["phase"] == "training" and row is not None and row["member"]

        await swarm.wait_for(round_at_least(1), "one round")
        status = await swarm.wait_for(training, "the victim is training")
        await swarm.kill_node(victim)
        await swarm.wait_for(round_at_least(status["round"] + 2), "two more rounds")
        await swarm.stop_coordinator(signal.SIGKILL)
        old, _ = ledger_of(tmp_path / "coordinator")
        await swarm.start_coordinator()
        late = await swarm.add_node()

        def joined(status: dict[str, Any]) -> bool:
            row = node_named(status, peer_of(swarm, late))
            return row is not None and row["credit"] > 0

        await swarm.wait_for(joined, "the late joiner has credit")
        swarm.interrupt_node(1)
        assert await swarm.left(1) == 0
        left_in = (await swarm.status())["round"]
        await swarm.wait_for(round_at_least(left_in + 2), "the others go on")
        assert_no_traceback(swarm)

        decoded, fold = ledger_of(tmp_path / "coordinator")
        assert [entry.id for entry in decoded[: len(old)]] == [entry.id for entry in old]
        assert not fold.ignored
        members = members_by_round(decoded)
        assert peer_of(swarm, late) not in members[0]
        # The late joiner computed the same state as the others, bit for bit: it signed its root.
        agreed = [entry for entry in decoded if isinstance(entry.body, entries.StateAgreed)]
        key = identity.public_of(peer_of(swarm, late)).hex()
        assert any(key in entry.signers for entry in agreed)
        assert peer_of(swarm, late) not in fold.rejected
        # It began a span of its own; the others go on with theirs.
        shown = [e.body for e in decoded if isinstance(e.body, entries.Contribution)]
        first = next(body for body in shown if body.node == peer_of(swarm, late))
        assert first.span == first.round
        assert any(body.span < body.round for body in shown)
        of_the_victim = fold.rejected.get(peer_of(swarm, victim), {})
        assert set(of_the_victim) <= {"disconnected", "late", "missing_reveal"}
        # The leaver is in no later round, and every round that it was a member of was credited.
        assert peer_of(swarm, 1) not in members[max(members)]
        per_round = fold.work.tokens(fold.work.inner_steps)
        rounds_of_1 = sum(peer_of(swarm, 1) in peers for peers in members.values())
        assert fold.node_tokens[peer_of(swarm, 1)] == rounds_of_1 * per_round
        # What it said of itself when it left is what its own ledger says.
        _, seen = ledger_of(swarm.home_of(1))
        owner = identity.load(swarm.home_of(1) / "account.key").key
        last = swarm.nodes[1].log.read_text().splitlines()[-1]
        assert f"{seen.credit(owner):,}" in last
        assert seen.accounts[owner].units["compute"] == rounds_of_1 * per_round
        claimed = claims.read(swarm.home_of(1))
        assert sum(claim.tokens for claim in claimed) >= rounds_of_1 * per_round
        assert verify_home(swarm.home_of(1)).verified


async def test_strangers_hear_at_once_that_a_run_is_finished(tmp_path: Path) -> None:
    async with Swarm(tmp_path, write_run(tmp_path, total=1, min_nodes=1, inner_steps=20)) as swarm:
        await swarm.start(nodes=1)
        await swarm.wait_finished()
        await swarm.start_node(2)
        swarm.nodes[2].expected = True
        assert await swarm.left(2) == EXIT_USAGE
        decoded, fold = ledger_of(tmp_path / "coordinator")
        said = swarm.nodes[2].log.read_text()
        assert fold.states[-1][:12] in said
        assert "artel ledger status --from" in said
        measured = [line for line in said.splitlines() if "✓" in line and "disk" not in line]
        assert not measured, "but the disk, before a ledger of unknown size is fetched"
        assert "public and permanent" not in said
        assert not (swarm.home_of(2) / "blobs" / fold.states[-1]).exists()
        assert identity.load(swarm.home_of(2) / "account.key").key not in fold.accounts

        # A member comes back, to what it has: its account has the name that it began with.
        home, (name,) = swarm.home_of(1), fold.accounts
        rotate = ("ledger", "key", "rotate", "--home", str(home), "--from", swarm.http)
        rotation = await swarm._spawn("rotation", tmp_path / "rotation", *rotate)
        assert await rotation.process.wait() == 0, rotation.log.read_text()
        await swarm.start_node(1)
        assert await swarm.left(1) == 0
        said = swarm.nodes[1].log.read_text()
        assert said.count(f"account {name}") == 2
        assert identity.load(home / "account.key").key not in said
        after, _ = ledger_of(tmp_path / "coordinator")
        assert [entry.kind for entry in after[len(decoded) :]] == ["key_rotated"]
        assert_no_traceback(swarm)


ROUNDS = 5


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a run of two nodes left behind that needed everything an exchange can be."""
    folder = tmp_path_factory.mktemp("finished")
    exchange = 'codec = "sparse"\ntop_k = 128\noverlap_steps = 10\nfragments = 2'
    run = write_run(folder, total=ROUNDS, inner_steps=30, witnesses=2, exchange=exchange)

    async def to_the_end() -> None:
        async with Swarm(folder, run) as swarm:
            await swarm.start(nodes=2)
            await swarm.wait_finished()
            assert_no_traceback(swarm)

    asyncio.run(to_the_end())
    return folder


def test_all_homes_of_a_finished_run_hold_its_state_and_a_certified_head(finished: Path) -> None:
    decoded, fold = ledger_of(finished / "coordinator")
    assert not fold.ignored
    # Most rounds recorded who had replayed the ledger (on a busy machine some are too quick for
    # the witnesses), and in the end everything vested.
    kinds = [entry.kind for entry in decoded]
    assert kinds[-3:] == ["witnessed", "run_closed", "witnessed"]
    assert kinds.count("witnessed") >= 2 + ROUNDS // 2
    assert (fold.closed, fold.total_pending) == (1, 0)
    assert {kind for a in fold.accounts.values() for kind in a.units} == {"compute", "witness"}
    root = fold.states[-1]
    for home in (finished / "node-1", finished / "node-2", finished / "coordinator"):
        assert content.file_content_id(home / "blobs" / root) == root
        assert verify_home(home).verified
        heads = HeadStore(home / HEADS_NAME)
        try:
            found = finality.of_heads(heads, fold)
        finally:
            heads.close()
        head, signed = finality.verified(
            found.certified, origin_of(fold.run), fold.coordinators, fold.nodes
        )
        assert head.size == len(decoded), f"{home} has no certified head over the whole ledger"
        assert found.size == len(decoded) - 1, f"{home}: more than the last record is not final"
        assert len(finality.seats(signed, fold)) == 2
    for number in (1, 2):
        home = finished / f"node-{number}"
        peer = identity.load(home / "node.key").peer_id
        mine = {e.id for e in decoded if getattr(e.body, "node", "") == peer}
        assert {claim.entry for claim in claims.read(home)} <= mine
        assert len(claims.read(home)) == ROUNDS
        assert Invite.decode((home / "invite").read_text()).run == fold.run
        assert open_to_others(home) == []
        console = (home / "console.log").read_text()
        assert console.count("public and permanent") == 1
        assert not (home / "split-view.json").exists()


def test_sparse_overlap_and_fragments_give_one_state_everywhere(finished: Path) -> None:
    decoded, fold = ledger_of(finished / "coordinator")
    assert not fold.rejected
    assert_all_signed_every_state(decoded)
    shown = [e.body for e in decoded if isinstance(e.body, entries.Contribution)]
    # The first round has no tail before it, the last none behind: 20, 30, 30, 30, 40 steps.
    made = [(body.round, body.tail, body.head) for body in shown]
    assert {(0, 0, 20), (1, 10, 20), (4, 10, 30)} <= set(made)
    assert all(body.tokens == (body.tail + body.head) * 4 * 32 for body in shown)
    assert all(body.up > body.size for body in shown)


@pytest.mark.slow  # in the middle of other things it is killed, and goes on, above
async def test_a_restarted_coordinator_goes_on_and_nodes_reconnect(tmp_path: Path) -> None:
    async with Swarm(tmp_path, write_run(tmp_path, total=8, inner_steps=300)) as swarm:
        await swarm.start(nodes=2)
        before = await swarm.wait_for(round_at_least(2), "two rounds")
        await swarm.stop_coordinator()
        old, _ = ledger_of(tmp_path / "coordinator")
        await swarm.start_coordinator()
        await swarm.wait_finished()
        assert_no_traceback(swarm)
        decoded, fold = ledger_of(tmp_path / "coordinator")
        assert [entry.id for entry in decoded[: len(old)]] == [entry.id for entry in old]
        assert len(fold.states) == 9
        assert len(old) > 4 * before["round"]
        assert not fold.ignored
        for number in (1, 2):
            theirs, _ = ledger_of(swarm.home_of(number))
            assert [e.id for e in theirs] == [e.id for e in decoded[: len(theirs)]]
            assert len(theirs) >= len(old)


@pytest.mark.slow  # nodes compare heads every 20 s; test_split_view shows the same without waiting
async def test_a_coordinator_that_goes_on_from_an_old_backup_is_caught_by_every_node(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks nobody, forgets what it has signed, and signs the entries of a newcomer instead."""
    home, backup = tmp_path / "coordinator", tmp_path / "backup"
    async with Swarm(tmp_path, write_run(tmp_path, total=500, inner_steps=300)) as swarm:
        await swarm.start(nodes=2)
        await swarm.wait_for(round_at_least(1), "a round")
        await swarm.stop_coordinator()
        shutil.copytree(home, backup)
        await swarm.start_coordinator()
        await swarm.wait_for(round_at_least(4), "more rounds")
        await swarm.stop_coordinator(signal.SIGKILL)
        shutil.rmtree(home)
        backup.rename(home)
        shutil.rmtree(tmp_path / "state")
        honest = tether.command

        def forgetful(*arguments: str) -> tuple[str, ...]:
            if arguments[0] != "coordinator":
                return honest(*arguments)
            program = str(WORLDS / "forgetful_coordinator.py")
            return tether.tied(sys.executable, "-P", program, *arguments, death=signal.SIGTERM)

        monkeypatch.setattr(tether, "command", forgetful)
        await swarm.start_coordinator()
        await swarm.start_node(3)  # it is told by the others
        for number in (1, 2):
            console = swarm.home_of(number) / "console.log"
            async with asyncio.timeout(90):
                while "term.sealed" not in console.read_text():
                    await asyncio.sleep(0.5)
            assert "ledger.split_view" in console.read_text()
            assert "proven to have signed two histories" in console.read_text()
            split, key = verify_evidence((swarm.home_of(number) / "split-view.json").read_bytes())
            assert key.public.hex() == identity.load(home / "node.key").key
            assert split.origin == key.name
        assert_no_traceback(swarm)


async def test_what_dies_in_a_round_costs_nobody_the_round(tmp_path: Path) -> None:
    """A trainer and two network daemons; behind that, a second Ctrl-C leaves at once."""
    # Who dialled in the moment without a network daemon is not let dial again for 5 s (go-libp2p).
    rules: dict[str, Any] = {"deadline_s": 120, "quorum": 1.0, "patience": 3.0}
    run = write_run(tmp_path, total=500, inner_steps=800, **rules)
    async with Swarm(tmp_path, run) as swarm:
        await swarm.start(nodes=2)
        assert swarm.coordinator is not None
        while not (training_step(swarm.home_of(1)) and training_step(swarm.home_of(2))):
            await asyncio.sleep(0.05)
        for member in (swarm.nodes[1], swarm.coordinator):
            child_of(member, lambda child: child.name() == "p2pd").kill()
        died_in = node_status.read(swarm.home_of(2))["round"]
        trainer = child_of(swarm.nodes[2], is_trainer)
        trainer.kill()
        await swarm.wait_for(round_at_least(died_in + 2), "two rounds")
        assert "network.restarted" in (swarm.home_of(1) / "node.log").read_text()
        assert "network.restarted" in swarm.coordinator.log.read_text()
        assert "trainer.died" in (swarm.home_of(2) / "node.log").read_text()
        assert child_of(swarm.nodes[2], is_trainer).pid != trainer.pid

        while training_step(swarm.home_of(1)) == 0:
            await asyncio.sleep(0.05)
        trainer = child_of(swarm.nodes[1], is_trainer)
        swarm.interrupt_node(1)
        console = swarm.nodes[1].log
        while "press Ctrl-C again" not in console.read_text():
            await asyncio.sleep(0.05)
        swarm.interrupt_node(1)
        assert await swarm.left(1, timeout=20) == 130
        assert "left at once; a round that was not finished" in console.read_text()
        trainer.wait(5)
        assert_no_traceback(swarm)
        decoded, fold = ledger_of(tmp_path / "coordinator")
        assert not fold.rejected
        opened = [e.body for e in decoded if isinstance(e.body, entries.RoundOpened)]
        assert [body.round for body in opened] == list(range(len(opened))), "one attempt each"


def is_trainer(child: psutil.Process) -> bool:
    return "artel.node.trainer" in child.cmdline()


def child_of(member: Program, wanted: Callable[[psutil.Process], bool]) -> psutil.Process:
    """The one child process of a program that is wanted."""
    return next(filter(wanted, psutil.Process(member.process.pid).children()))


@pytest.mark.slow  # several trainings are thrown away on purpose
async def test_a_round_that_a_dead_trainer_cannot_meet_is_handed_back(tmp_path: Path) -> None:
    run = write_run(tmp_path, total=50, inner_steps=800, deadline_s=16, quorum=1.0)
    options = ("--threads", "1", "--no-check")
    async with Swarm(tmp_path, run, node_options=options) as swarm:
        await swarm.start(nodes=3)
        log = swarm.home_of(1) / "node.log"
        # Each kill costs most of a training; after the second or third the time is not enough.
        while not log.exists() or "round.handed_back" not in log.read_text():
            await swarm.wait_for(
                lambda _status: training_step(swarm.home_of(1)) > 650, "most of the training"
            )
            child_of(swarm.nodes[1], is_trainer).kill()
            await swarm.wait_for(
                lambda _status: training_step(swarm.home_of(1)) < 650, "the kill is noticed"
            )
        handed_back_in = node_status.read(swarm.home_of(1))["round"]
        # All must commit in this run, so the round is opened again, and then all do.
        await swarm.wait_for(round_at_least(handed_back_in + 1), "the round is agreed on")
        _, fold = ledger_of(tmp_path / "coordinator")
        assert "handed_back" in fold.rejected[peer_of(swarm, 1)]
        assert swarm.nodes[1].running
        assert_no_traceback(swarm)


def training_step(home: Path) -> int:
    """Inner step that a node is at; 0 while it does anything else."""
    try:
        now = node_status.read(home)
    except Unreachable:
        return 0
    return int(now["step"]) if now["phase"] == "training" else 0


@pytest.mark.slow  # three joins; test_desk shows what follows for each heartbeat
async def test_of_a_home_and_its_copy_the_older_process_ends_and_says_why(tmp_path: Path) -> None:
    async with Swarm(tmp_path, write_run(tmp_path, total=8, min_nodes=2)) as swarm:
        await swarm.start(nodes=1)
        await swarm.wait_for(lambda status: len(status["nodes"]) == 1, "it is there")
        swarm.interrupt_node(1)
        assert await swarm.left(1) == 0
        shutil.copytree(swarm.home_of(1), swarm.home_of(2))
        await swarm.start_node(1)  # started again, it goes on
        await swarm.wait_for(lambda status: len(status["nodes"]) == 1, "it is there again")
        swarm.nodes[1].expected = True
        await swarm.start_node(2)
        assert await swarm.left(1) == EXIT_RESOURCE
        console = (swarm.home_of(1) / "console.log").read_text()
        assert "another process runs with this node's key" in console
        assert "--account FILE" in console
        await asyncio.sleep(2 * messages.PATIENCE_S)
        assert (await swarm.status())["nodes"], "the newer one goes on"
        assert swarm.nodes[2].running
