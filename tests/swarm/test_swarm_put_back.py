"""A coordinator is killed, and its home put back from a backup while its members run: it takes back
what they have, signs nothing twice, and the run goes on."""

from __future__ import annotations

import itertools
import shutil
import signal
import time
from pathlib import Path

import pytest

from artel.ledger.store.heads import HEADS_NAME
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.fork import SPLIT_VIEW_FILE
from artel.protocol import tether
from backup_world import Backup
from benchmarks.swarm import Swarm
from swarm_world import round_at_least, write_run

BACK_S = 30.0
"""From the start of the process to the next agreed state; rounds take a few seconds of it."""
LEDGER = (DATABASE_NAME, CHECKPOINT_NAME)
ROUNDS = 200


async def killed(swarm: Swarm) -> list[bytes]:
    """Kill the coordinator; all that its ledger held."""
    await swarm.stop_coordinator(signal.SIGKILL)
    return leaves_of(swarm.folder / "coordinator")


def second_of(swarm: Swarm) -> Path:
    """Where the coordinator's second memory is."""
    return swarm.folder / "state"


def leaves_of(home: Path) -> list[bytes]:
    with LedgerReader.of(home) as store:
        return list(store.leaves())


async def begun(swarm: Swarm) -> Backup:
    """A run of some rounds, whose coordinator was stopped once, so that its files are whole."""
    await swarm.start(nodes=2)
    await swarm.wait_for(round_at_least(1), "the first state is agreed")
    await swarm.stop_coordinator()
    backup = Backup(swarm.folder / "coordinator", swarm.folder / "backup")
    await swarm.start_coordinator()
    return backup


async def survives(swarm: Swarm, backup: Backup, *names: str, forget: tuple[Path, ...] = ()) -> int:
    """Kill, put back, start: nothing is lost or signed twice, and the next state comes soon.

    :param names: of the home's files that are put back
    :param forget: what is deleted besides
    :returns: how many entries were taken back
    """
    reached = (await swarm.status())["round"]
    await swarm.wait_for(round_at_least(reached + 2), "rounds go on")
    before = await killed(swarm)
    if second_of(swarm) in forget:  # what nobody has seen is forgotten, and may be signed anew
        before = max((leaves_of(swarm.home_of(number)) for number in swarm.nodes), key=len)
    backup.put_back(*names)
    for path in forget:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    older = len(leaves_of(backup.home))
    assert older < len(before)
    console = swarm.folder / "coordinator" / "console.log"
    said = len(console.read_text())
    began = time.monotonic()
    await swarm.start_coordinator()
    ready = time.monotonic() - began
    reached = (await swarm.status())["round"]
    await swarm.wait_for(round_at_least(reached + 1), "the next state is agreed")
    took = time.monotonic() - began
    print(f"{names or 'all'}: ready after {ready:.1f} s, next state after {took:.1f} s")
    assert took < BACK_S, console.read_text()[said:]
    said_now = console.read_text()[said:]
    assert said_now.count("ledger.recovered") == 1, said_now
    with LedgerReader.of(backup.home) as store:
        assert list(store.leaves(0, len(before))) == before
    swarm.check()
    return len(before) - older


def one_history(swarm: Swarm) -> None:
    """All ledgers verify, and nobody has found two histories."""
    homes = [swarm.folder / "coordinator", *(swarm.home_of(number) for number in swarm.nodes)]
    for home in homes:
        assert verify_home(home).verified, home
        assert not (home / SPLIT_VIEW_FILE).exists()
    ledgers = sorted(map(leaves_of, homes), key=len)
    assert all(long[: len(short)] == short for short, long in itertools.pairwise(ledgers))


async def test_a_home_that_knows_nothing_better_takes_its_ledger_back_from_members(
    tmp_path: Path,
) -> None:
    async with Swarm(tmp_path, write_run(tmp_path, total=ROUNDS, inner_steps=20)) as swarm:
        backup = await begun(swarm)
        # Neither this home nor this machine says that there was more.
        forget = (backup.home / HEADS_NAME, second_of(swarm))
        assert await survives(swarm, backup, *LEDGER, forget=forget)
    one_history(swarm)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_whatever_of_a_home_is_put_back_the_run_goes_on_as_one_history(
    tmp_path: Path,
) -> None:
    async with Swarm(tmp_path, write_run(tmp_path, total=ROUNDS, inner_steps=20)) as swarm:
        backup = await begun(swarm)
        await survives(swarm, backup, *LEDGER)
        await survives(swarm, backup, *LEDGER, HEADS_NAME)
        await survives(swarm, backup, *LEDGER, forget=(backup.home / HEADS_NAME,))
        await survives(swarm, backup)
        await survives(swarm, backup, forget=(second_of(swarm),))
    one_history(swarm)


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_a_coordinator_that_was_told_that_it_is_alone_hears_members_that_come_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with Swarm(tmp_path, write_run(tmp_path, total=ROUNDS, inner_steps=20)) as swarm:
        await swarm.start(nodes=0)
        await swarm.stop_coordinator()
        backup = Backup(swarm.folder / "coordinator", swarm.folder / "backup")
        await swarm.start_coordinator()
        for number in (1, 2):
            await swarm.start_node(number)
        await swarm.wait_for(round_at_least(2), "two rounds")
        await killed(swarm)
        for number in (1, 2):
            await swarm.kill_node(number)
        seen = max((leaves_of(swarm.home_of(number)) for number in (1, 2)), key=len)
        backup.put_back()
        shutil.rmtree(second_of(swarm))
        honest = tether.command

        def alone(*arguments: str) -> tuple[str, ...]:
            return honest(*arguments, *(["--alone"] if arguments[0] == "coordinator" else []))

        monkeypatch.setattr(tether, "command", alone)
        await swarm.start_coordinator()
        for number in (1, 2):
            await swarm.start_node(number)
        await swarm.wait_for(round_at_least(3), "the run goes on")
        console = (backup.home / "console.log").read_text()
        assert console.count("ledger.behind") == console.count("ledger.recovered") == 1
        with LedgerReader.of(backup.home) as store:
            assert list(store.leaves(0, len(seen))) == seen
        swarm.check()
    one_history(swarm)
