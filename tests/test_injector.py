"""Processes do at a named point what is injected there, and nothing else."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from artel.protocol import tether
from injector import VARIABLE, Injection, inject, listening

pytestmark = pytest.mark.timeout(120)
PROGRAM = """
import logging, sys, time
from artel.protocol import events
events.configure()
log = logging.getLogger("artel.test")
for number in range(5):
    try:
        began = time.monotonic()
        events.emit(log, "step.made", logging.DEBUG, number=number)
        print(number, "slow" if time.monotonic() - began > 0.2 else "ok", flush=True)
    except OSError as error:
        print(number, error.strerror, flush=True)
    if "again" in sys.argv:
        sys.stdin.readline()
"""


def start(file: Path, *arguments: str) -> subprocess.Popen[str]:
    with listening(file):
        return subprocess.Popen(
            [sys.executable, "-P", "-c", PROGRAM, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=tether.environment(),
        )


def outcome(tmp_path: Path, *injections: Injection) -> tuple[list[str], int]:
    """What a process with these injections prints, and how it ends."""
    inject(tmp_path / "injections", *injections)
    process = start(tmp_path / "injections")
    printed, _ = process.communicate(timeout=60)
    return printed.splitlines(), process.returncode


ALL = ["0 ok", "1 ok", "2 ok", "3 ok", "4 ok"]


def test_a_process_is_killed_at_the_nth_time(tmp_path: Path) -> None:
    printed, code = outcome(tmp_path, Injection("step.made", "kill", nth=3))
    assert (printed, code) == (ALL[:2], -signal.SIGKILL)


def test_fields_say_which_event_is_meant(tmp_path: Path) -> None:
    never = Injection("step.made", "kill", fields={"number": "9"})
    once = Injection("step.made", "fail", errno=28, fields={"number": "3"})
    printed, code = outcome(tmp_path, never, once, Injection("other", "kill"))
    assert (printed, code) == ([*ALL[:3], "3 No space left on device", "4 ok"], 0)


def test_a_process_is_slowed_each_time(tmp_path: Path) -> None:
    printed, _ = outcome(tmp_path, Injection("step.made", "slow", nth=0, seconds=0.25))
    assert printed == [f"{number} slow" for number in range(5)]


def test_a_seed_draws_the_times(tmp_path: Path) -> None:
    def drawn(seed: int) -> list[str]:
        return outcome(tmp_path, Injection("step.made", "fail", nth=0, odds=0.5, seed=seed))[0]

    assert drawn(1) == drawn(1)
    assert len({tuple(drawn(seed)) for seed in range(4)}) > 1


def test_a_process_stands_still_for_its_time(tmp_path: Path) -> None:
    printed, code = outcome(tmp_path, Injection("step.made", "stop", nth=2, seconds=0.3))
    assert (printed, code) == ([ALL[0], "1 slow", *ALL[2:]], 0)


def test_the_clock_on_the_wall_jumps_and_comes_back(tmp_path: Path) -> None:
    program = """
import logging, time
from artel.protocol import events
log = logging.getLogger("artel.test")
events.configure()
for number in range(3):
    events.emit(log, "step.made", number=number)
    print(round((time.time() - time.clock_gettime(time.CLOCK_REALTIME)) / 100), flush=True)
"""
    ahead = Injection("", "clock", seconds=3600.0, fields={"number": "1"})
    inject(tmp_path / "injections", ahead, Injection("", "clock", fields={"number": "2"}))
    with listening(tmp_path / "injections"):
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            capture_output=True,
            text=True,
            env=tether.environment(),
        )
    assert done.stdout.split() == ["0", "36", "0"]


def test_what_is_injected_changes_while_the_process_runs(tmp_path: Path) -> None:
    file = tmp_path / "injections"
    process = start(file, "again")
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline() == "0 ok\n"
        inject(file, Injection("step.made", "stop"))
        process.stdin.write("\n")
        process.stdin.flush()
        seen = psutil.Process(process.pid)
        while seen.status() != psutil.STATUS_STOPPED:
            assert process.poll() is None
        inject(file)
        process.send_signal(signal.SIGCONT)
        rest, _ = process.communicate("\n" * 4, timeout=60)
        assert [line[:1] for line in rest.splitlines()] == ["1", "2", "3", "4"]
    finally:
        process.kill()


def test_only_what_is_started_meanwhile_hears_of_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(VARIABLE, raising=False)
    inject(tmp_path / "injections", Injection("step.made", "kill"))
    with listening(tmp_path / "injections"):
        assert VARIABLE in tether.environment()
    assert VARIABLE not in tether.environment()
    run = [sys.executable, "-P", "-c", PROGRAM]
    done = subprocess.run(run, capture_output=True, text=True, env=tether.environment(), check=True)
    assert done.stdout.splitlines() == ALL
