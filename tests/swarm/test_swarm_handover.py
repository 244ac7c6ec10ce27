"""A run outlives its coordinator: killed in each phase, with its home gone, or on purpose; real
processes, two coordinators that change places."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from artel.coordinator.local_run import LOOPBACK
from artel.coordinator.process import INVITE_FILE
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.fork import SPLIT_VIEW_FILE
from artel.protocol import tether
from artel.protocol.errors import EXIT_RESOURCE
from artel.protocol.identity import LOCK_FILE
from artel.protocol.net.http import announced_in
from benchmarks.swarm import PATIENCE_S
from injector import Injection
from swarm_world import ledger_of
from two_coordinators import HOMES, Two, write_run_of_two

SOON_S = 10.0
"""From the kill to the next round; docs/results/handover.md has more."""
PHASES = {
    "training": Injection("round.opened", "kill"),
    "committed": Injection("ledger.committed", "kill", fields={"last": "round_committed"}),
    "revealing": Injection("ledger.committed", "kill", fields={"last": "contribution"}),
    "applying": Injection("round.closed", "kill"),
    "waiting": Injection("state.agreed", "kill"),
}
"""What a coordinator does last."""


async def taken_over_in(swarm: Two, phase: str) -> None:
    """The leader dies; the other one leads soon, and has all that was final."""
    await swarm.a_state()
    final = await swarm.kill_leader(PHASES[phase])
    took = await swarm.taken_over()
    print(f"{phase}: the next round opens after {took:.1f} s")
    assert took < SOON_S
    with LedgerReader.of(swarm.folder / swarm.leads) as store:
        assert list(store.leaves(0, len(final))) == final


async def killed_in(swarm: Two, phase: str, *, anew: bool = False) -> None:
    """The leader dies; the other one leads soon; the former stands by when it is started again."""
    await taken_over_in(swarm, phase)
    await swarm.back(anew=anew)
    await swarm.a_state()


async def artel(*words: str) -> tuple[int, str]:
    """Exit code and output of a command."""
    program = await asyncio.create_subprocess_exec(
        *tether.command(*words), stdout=asyncio.subprocess.PIPE, env=tether.environment()
    )
    said, _ = await program.communicate()
    assert program.returncode is not None
    return program.returncode, said.decode()


async def handed_over(swarm: Two) -> None:
    """The leader hands over on purpose, and stands by."""
    await swarm.a_state()
    home = swarm.folder / swarm.leads
    code, said = await artel("coordinator", "handover", "--home", str(home), "--json")
    swarm.died = time.monotonic()
    assert code == 0, said
    took = await swarm.taken_over()
    print(f"on purpose: the next round opens {took:.1f} s after the command has ended")
    key = (await swarm.status())["leader"]
    assert json.loads(said)["leader"] == key
    assert (await swarm.status_of(swarm.other))["role"] == "standby"
    await swarm.a_state()


def one_history(swarm: Two, names: Sequence[str] = HOMES) -> None:
    """All ledgers verify and begin alike; each contribution is credited once; nobody has found two
    histories.

    :param names: coordinators whose homes count: one that is gone may hold more that was not final
    """
    homes = [swarm.folder / name for name in names] + [swarm.home_of(n) for n in swarm.nodes]
    leaves = []
    for home in homes:
        found = verify_home(home)
        assert found.verified, (home, found.checks)
        assert not (home / SPLIT_VIEW_FILE).exists()
        with LedgerReader.of(home) as store:
            leaves.append(list(store.leaves()))
    leaves.sort(key=len)
    assert all(long[: len(short)] == short for short, long in itertools.pairwise(leaves))
    decoded, state = ledger_of(homes[0])
    agreed = [entry.body.round for entry in decoded if entry.kind == "state_agreed"]
    assert agreed == sorted(set(agreed)), "no round is paid twice"
    terms = [entry.body.term for entry in decoded if entry.kind == "handover"]
    assert terms == sorted(set(terms))
    assert not state.ignored.get("handover")


@pytest.mark.slow  # three coordinators start; test_standby and test_elsewhere show what they do
@pytest.mark.timeout(900)
async def test_a_copy_of_a_standbys_key_stands_by_nowhere_else(tmp_path: Path) -> None:
    async with Two(tmp_path, write_run_of_two(tmp_path)) as swarm:
        await swarm.start_coordinator()
        await swarm.start_again(HOMES[1])
        copy = tmp_path / "copy"
        copy.mkdir(mode=0o700)
        shutil.copy2(tmp_path / HOMES[1] / "node.key", copy)
        invite = (tmp_path / HOMES[0] / INVITE_FILE).read_text().strip()
        command = ["coordinator", "standby", invite, "--home", str(copy)]
        program = await asyncio.create_subprocess_exec(
            *tether.command(*command, "--http", "127.0.0.1:0", "--listen", LOOPBACK),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env=tether.environment() | {"XDG_STATE_HOME": str(tmp_path / "elsewhere")},
        )
        async with asyncio.timeout(PATIENCE_S):
            said, _ = await program.communicate()
        assert program.returncode == EXIT_RESOURCE, said.decode()
        assert b"another process runs with this coordinator's key" in said
        assert {each.name for each in copy.iterdir()} <= {"node.key", LOCK_FILE}
        assert swarm.pair[HOMES[1]].running


@pytest.mark.timeout(900)
async def test_a_coordinator_that_is_killed_is_followed_by_the_other(tmp_path: Path) -> None:
    async with Two(tmp_path, write_run_of_two(tmp_path)) as swarm:
        await swarm.begin()
        await taken_over_in(swarm, "training")
    one_history(swarm, [swarm.leads])


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_coordinator_that_is_killed_or_hands_over_is_followed_by_the_other(
    tmp_path: Path,
) -> None:
    async with Two(tmp_path, write_run_of_two(tmp_path)) as swarm:
        await swarm.begin()
        await killed_in(swarm, "training")
        await handed_over(swarm)
        await killed_in(swarm, "applying")
        swarm.check()
    one_history(swarm)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_coordinator_that_is_killed_in_any_phase_is_followed_by_the_other(
    tmp_path: Path,
) -> None:
    async with Two(tmp_path, write_run_of_two(tmp_path)) as swarm:
        await swarm.begin()
        for phase in PHASES:
            await killed_in(swarm, phase)
        # Nothing of its home is left but the key.
        await killed_in(swarm, "training", anew=True)
        await killed_in(swarm, "revealing", anew=True)
        await handed_over(swarm)
        swarm.check()
    one_history(swarm)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_run_ends_by_itself_though_the_organisers_home_is_deleted(tmp_path: Path) -> None:
    run_file = write_run_of_two(tmp_path)
    run_file.write_text(run_file.read_text().replace("total = 400", "total = 8"))
    async with Two(tmp_path, run_file) as swarm:
        await swarm.begin()
        await swarm.a_state()
        await swarm.kill_leader(PHASES["training"])
        (tmp_path / HOMES[0]).rename(tmp_path / "gone")
        await swarm.taken_over()
        await swarm.until(swarm.leads, lambda status: status["phase"] == "finished", "the end")
        await swarm.ended(PATIENCE_S)
        url = announced_in(tmp_path / HOMES[1], "coordinator")
        said = await artel("ledger", "mirror", str(tmp_path / "copy"), "--from", url)
        assert said[0] == 0, said
    decoded, state = ledger_of(tmp_path / HOMES[1])
    assert state.round == 8
    assert state.term.number > 0
    for home in (tmp_path / HOMES[1], *map(swarm.home_of, swarm.nodes)):
        assert verify_home(home).verified
    # Nothing runs any more: a copy as any web server could serve it proves the same.
    checks = ("ledger", "audit", str(tmp_path / "copy"), "--run", state.run, "--full", "--json")
    code, out = await artel(*checks)
    assert code == 0, out
    found = json.loads(out)
    assert (found["verified"], found["size"]) == (True, len(decoded))
