"""The chaos runner: its plan, what it finds, and a short run of it through everything."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

import terms_world
from artel import cli
from artel.coordinator import chaos as command
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync.fork import SPLIT_VIEW_FILE
from artel.protocol import tether
from artel.protocol.errors import ResourceError
from benchmarks.chaos_plan import COORDINATOR, KILLS, KINDS, OF_COORDINATORS, plan
from benchmarks.chaos_strikes import rot
from benchmarks.chaos_swarm import ChaosSwarm
from benchmarks.chaos_watch import Accounts, Watch, count, longest
from explorer_world import busy_world
from ledger_world import World

SHORT, LONG = 3812, 20069
"""Seeds. The short run kills the coordinator, a node and a trainer, and puts a backup back; the
longer one deletes the coordinator's home besides, and ends a term on purpose."""


# --- the plan -------------------------------------------------------------------------------------


def test_a_seed_says_what_goes_wrong_when_and_to_whom() -> None:
    assert plan(8, 1, 900, 20) == plan(8, 1, 900, 20)
    assert plan(8, 1, 900, 20) != plan(8, 2, 900, 20)
    assert plan(8, 1, 450, 20) == [s for s in plan(8, 1, 900, 20) if s.at < 450]
    assert plan(8, 1, 900, 0) == []


@pytest.mark.parametrize("seed", range(5))
def test_a_quarter_of_an_hour_has_faults_of_all_kinds(seed: int) -> None:
    strikes = plan(8, seed, 900, 20)
    kinds = Counter(strike.kind for strike in strikes)
    assert kinds.keys() == KINDS.keys()
    assert sum(kinds[kind] for kind in KILLS) >= 12
    assert sum(kinds[kind] for kind in OF_COORDINATORS) >= 3
    assert all(a.at <= b.at for a, b in itertools.pairwise(strikes))


@pytest.mark.parametrize("nodes", [2, 3, 8])
def test_faults_hit_only_who_is_there(nodes: int) -> None:
    here = set(range(1, nodes + 1))
    for strike in plan(nodes, 5, 10_000, 5):
        if strike.kind == "node joins":
            assert not here & set(strike.parties)
            here |= set(strike.parties)
        elif KINDS[strike.kind].leads:
            assert strike.parties == (COORDINATOR,)
        else:
            assert set(strike.parties) <= here
        if strike.kind == "node leaves":
            here -= set(strike.parties)
        assert 2 <= len(here) <= max(nodes, 3)


# --- what it finds --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world() -> World:
    return busy_world()


def write(home: Path, world: World, leaves: list[bytes]) -> Path:
    with LedgerStore.open(home / DATABASE_NAME, create=True, run=world.run) as store:
        store.append(leaves, world.sign)
    return home


def test_homes_with_one_history_are_as_they_should_be(tmp_path: Path, world: World) -> None:
    homes = {
        COORDINATOR: write(tmp_path / "coordinator", world, world.leaves),
        1: write(tmp_path / "node-1", world, world.leaves[:9]),
    }
    watch = Watch()
    assert watch.look(homes) == watch.look(homes, whole=True) == []
    assert watch.history == world.leaves


def test_two_histories_are_found_also_when_nobody_has_both_any_more(
    tmp_path: Path, world: World
) -> None:
    watch = Watch()
    home = write(tmp_path / "node-1", world, world.leaves[:9])
    assert watch.look({1: home}) == []
    shutil.rmtree(home)
    other = [*world.leaves[:5], world.leaves[6]]
    found = watch.look({1: write(home, world, other)})
    assert len(found) == 1
    assert "node-1 holds another entry 5 than others" in found[0]


def test_what_was_not_final_may_be_given_up_with_a_term(tmp_path: Path) -> None:
    first, second, third = terms_world.write(tmp_path)
    watch = Watch()
    for party, home in enumerate((first, second, third), COORDINATOR):
        assert watch.look({party: home}) == []
    assert (watch.term, len(watch.history)) == (4, len(leaves_of(third)))
    assert watch.look({COORDINATOR: first, 1: second}, whole=True) == []
    watch.there = {1}
    (problem,) = watch.look({COORDINATOR: first, 1: second}, whole=True)
    assert problem == "second still holds what was given up with term 1"
    assert longest([first, third, second]) == (third, leaves_of(third))


def test_a_term_that_loses_what_was_final_is_found(tmp_path: Path) -> None:
    first = terms_world.Ledger(tmp_path / "first")
    first.add(*terms_world.WORLD.start)
    first.rounds(range(3))
    second = first.copied(tmp_path / "second")
    for number in (3, 4, 5):
        first.rounds([number])
        first.certify()
    second.hand_over(1)
    for ledger in (first, second):
        ledger.store.close()
    watch = Watch()
    assert watch.look({COORDINATOR: first.home}) == []
    (problem,) = watch.look({1: second.home})
    assert "than others, which was final: two histories" in problem


def leaves_of(home: Path) -> list[bytes]:
    with LedgerReader.of(home) as ledger:
        return list(ledger.leaves())


def test_what_no_log_may_hold_is_found_once(tmp_path: Path, world: World) -> None:
    home, watch = write(tmp_path / "node-1", world, world.leaves[:3]), Watch()
    log = home / "console.log"
    log.write_text("12:00:01 round.closed round=3\n")
    assert watch.look({1: home}) == []
    with log.open("a") as file:
        file.write("Traceback (most recent call last):\n  File x\nKeyError: 7\n")
    assert "KeyError: 7" in watch.look({1: home})[0]
    assert watch.look({1: home}) == []
    (home / SPLIT_VIEW_FILE).touch()
    assert watch.look({1: home}) == ["node-1 holds a proof of two histories"]


def test_entries_without_effect_and_credit_are_counted(world: World) -> None:
    found = Accounts()
    count(world.leaves, found)
    assert found.attempts["agreed"] == world.state.round
    said = " ".join(found.problems)
    # This ledger has some of everything that can be wrong.
    assert "entries without effect" in said
    assert "entry" in said


def test_one_bit_of_a_blob_rots(tmp_path: Path) -> None:
    assert rot(tmp_path, 0.5) == ""
    (tmp_path / "blobs").mkdir()
    (tmp_path / "blobs" / "a").write_bytes(bytes(100))
    assert rot(tmp_path, 0.5) == "a"
    assert (tmp_path / "blobs" / "a").read_bytes().count(1) == 1


def test_a_process_that_nobody_owns_any_more_is_found(tmp_path: Path) -> None:
    swarm = ChaosSwarm(tmp_path, tmp_path / "RUN.toml")
    environment = {**os.environ, "XDG_STATE_HOME": str(tmp_path / "state")}
    mine = subprocess.Popen(["sleep", "100"], env=environment)
    left = subprocess.run(
        ["sh", "-c", "sleep 100 >/dev/null 2>&1 & echo $!"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    orphan = int(left.stdout)
    try:
        assert [line.split()[1] for line in swarm.strays()] == [f"{orphan}:"]
    finally:
        mine.kill()
        mine.wait()
        os.kill(orphan, signal.SIGKILL)


# --- the command ----------------------------------------------------------------------------------


def test_without_a_source_tree_it_says_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(command, "TREE", tmp_path)
    with pytest.raises(ResourceError, match=r"needs a source tree.* no benchmarks/chaos\.py"):
        command.chaos()


def test_a_folder_to_keep_is_empty(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    assert cli.main(["chaos", "--keep", str(tmp_path)]) == 2
    assert "not empty" in capsys.readouterr().err


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder for temporary files whose path leaves room for those of sockets (107 bytes)."""
    with tempfile.TemporaryDirectory(prefix="c-", dir="/tmp") as folder:
        yield Path(folder)


def chaos(tmp_path: Path, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "artel", "chaos", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=tether.environment(TMPDIR=str(tmp_path)),
    )


def test_ctrl_c_leaves_nothing_behind(short: Path) -> None:
    program = chaos(short, "--mtbf", "0")
    try:
        assert program.stdout is not None
        assert "seed 1" in program.stdout.readline()
        while not (below := psutil.Process(program.pid).children(recursive=True)):
            assert program.poll() is None
        program.send_signal(signal.SIGINT)
        _, err = program.communicate(timeout=60)
        assert program.returncode == 130, err
        assert "interrupted" in err
        psutil.wait_procs(below, timeout=20)
        assert not [process for process in below if process.is_running()]
        assert not list(short.iterdir())
    finally:
        program.kill()


def survived(
    folder: Path, nodes: int, seed: int, duration: int, mtbf: int
) -> tuple[dict[str, Any], set[str]]:
    """What came out of a run that survived, and the kinds of faults that it had."""
    lasts = ("--duration", str(duration), "--mtbf", str(mtbf), "--seed", str(seed))
    program = chaos(folder, "--nodes", str(nodes), *lasts, "--json")
    out, err = program.communicate(timeout=3500)
    print(err)
    result = json.loads(out)
    assert program.returncode == 0, result["problems"]
    assert result["ok"]
    planned = plan(nodes, seed, duration, mtbf)
    assert [blow["kind"] for blow in result["blows"]] == [strike.kind for strike in planned]
    assert result["states_recomputed"] >= 1
    assert f"--seed={seed}" in result["command"]
    assert not list(folder.iterdir())
    return result, {strike.kind for strike in planned}


@pytest.mark.timeout(1800)
def test_a_run_survives_half_a_minute_of_faults(short: Path) -> None:
    result, kinds = survived(short, 3, SHORT, 30, 7)
    assert kinds == {"node killed", "trainer killed", "coordinator killed", "backup restored"}
    assert result["attempts"]["agreed"] >= 3


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_run_survives_a_minute_of_faults_and_goes_from_term_to_term(short: Path) -> None:
    result, kinds = survived(short, 3, LONG, 60, 8)
    assert kinds >= {"coordinator's home deleted", "handover on purpose"}
    assert result["handovers"] >= 1
    assert result["without_leader_s"]["most"] > 0


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_eight_nodes_survive_a_fault_every_twenty_seconds(short: Path) -> None:
    result, _ = survived(short, 8, 2, 900, 20)
    assert result["faults"] >= 45
    assert result["kills"] >= 15
    assert result["kills_of_coordinators"] >= 3
    assert result["committed"] >= 0.9
