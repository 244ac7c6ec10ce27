"""What an owner can look at: the log, what is wrong, the picture in a terminal; and the service."""

from __future__ import annotations

import json
import logging
import os
import pty
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from artel import cli
from artel.node import log_file, systemd_unit
from artel.node.doctor import troubles
from artel.node.panel import KEYS, Panel
from artel.protocol import events
from artel.protocol.errors import UsageError
from trainer_world import World

NOW: dict[str, Any] = {
    "name": "tiny",
    "node": "12D3KooWabcdefgh",
    "phase": "training",
    "reason": "train on the assigned data",
    "resting": "",
    "step": 30,
    "steps": 120,
    "loss": 3.25,
    "tokens_per_second": 1234.0,
    "bytes_up": 0,
    "bytes_down": 0,
    "vested": 1000,
    "pending": 200,
    "share": 0.125,
    "state_round": 3,
    "rounds_total": 13,
    "limits": "1 thread(s), 5 Mbit/s up",
    "uptime": 3700.0,
    "coordinator_lost": False,
    "waiting": "",
    "doubtful": False,
    "reachable": True,
    "rejected": {},
    "last_error": "",
}
WRONG = {
    "coordinator_lost": True,
    "doubtful": True,
    "reachable": False,
    "rejected": {"late": 2},
    "last_error": "the peer was too slow",
}


def test_each_trouble_comes_with_what_to_do() -> None:
    assert list(troubles(NOW)) == []
    for name, value in WRONG.items():
        (found,) = troubles(NOW | {name: value})
        assert found.what
        assert found.advice
    assert len(list(troubles(NOW | WRONG))) == len(WRONG)


def test_in_a_terminal_a_picture_says_what_how_fast_what_for_and_until_when(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    ours, theirs = pty.openpty()
    now = [0.0]
    with os.fdopen(theirs, "w") as out, Panel(out, drawn=True, clock=lambda: now[0]) as panel:
        panel.show(NOW)
        now[0] += 2.0
        panel.say("a line \x1b[2J that would steer")
        panel.show(NOW | WRONG | {"state_round": 4, "bytes_up": 1_250_000})
        out.flush()
        said, text = b"", ""
        while str(WRONG["last_error"]) not in text:  # the end of the picture
            said += os.read(ours, 1 << 16)
            text = said.decode(errors="replace")
    os.close(ours)
    for said in (
        *("tiny", "1 h 1 min", "██████░", "30/120", "loss 3.250", "1,234 tokens/s"),
        *("1,000 credit vested, 200 pending", "12.5 %", "round 4 of 13 agreed", KEYS[:20]),
        *("5.0 Mbit/s up", "about 18 s to the end of the run", "the peer was too slow"),
    ):
        assert said in text, said
    assert "\x1b[2J" not in text


def test_without_a_terminal_there_are_lines_alone(capsys: pytest.CaptureFixture[str]) -> None:
    with Panel(sys.stdout, drawn=False) as panel:
        panel.say("✓ disk 1 GB")
    assert capsys.readouterr().out == "✓ disk 1 GB\n"


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> logging.Logger:
    """A log of parts of 1 kB in a home, as a node writes it."""
    monkeypatch.setattr(events, "MAX_LOG_BYTES", 1000)
    events.configure(file=tmp_path / log_file.LOG_FILE, screen=False)
    return logging.getLogger("artel.node")


def test_a_log_is_bounded_and_read_over_its_parts(
    tmp_path: Path, log: logging.Logger, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in range(200):
        events.emit(log, "test.line", number=number)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 1 + events.LOG_PARTS
    assert sum(file.stat().st_size for file in files) <= 1000 * len(files)
    lines = log_file.last_lines(tmp_path, 40)
    assert [line.split("number=")[1] for line in lines] == [str(n) for n in range(160, 200)]
    assert cli.main(["node", "logs", "--lines", "2", "--home", str(tmp_path)]) == 0
    assert capsys.readouterr().out.splitlines() == lines[-2:]


def test_who_follows_a_log_sees_each_line_once_also_when_a_part_is_full(
    tmp_path: Path, log: logging.Logger
) -> None:
    events.emit(log, "test.before")
    written = iter(range(60))

    def write(_: float) -> None:
        events.emit(log, "test.line", number=next(written))

    seen = []
    for line in log_file.following(tmp_path, write):
        seen.append(line.split("number=")[1])
        if len(seen) == 50:
            break
    assert seen == [str(number) for number in range(50)]


def test_a_home_without_a_log_is_said_to_have_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no log"):
        log_file.last_lines(tmp_path, 1)


def test_the_doctor_of_a_node_that_does_not_run_says_so_and_looks_at_the_machine(
    world: World, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copy(world.manifest, tmp_path / "manifest.json")
    (tmp_path / "node.log").write_text("12:00:00 warning duty.retry reason=gone\n12:00:01 fine\n")
    (tmp_path / "settings.json").write_text('{"quota": 1}')
    assert cli.main(["node", "doctor", "--json", "--home", str(tmp_path)]) == 1
    found = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert found["running"]["level"] == found["quota"]["level"] == "problem"
    assert "artel node start" in found["running"]["text"]
    assert {"disk", "memory"} <= set(found)
    assert "duty.retry" in found["log"]["text"]


# --- the service ---


def test_a_unit_starts_the_node_of_its_home_and_waits_for_the_round(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, units = tmp_path / 'a "home" 5%', tmp_path / "units"
    home.mkdir()
    arguments = ["node", "install-service", "--home", str(home), "--units", str(units)]
    assert cli.main(arguments) == 2, "it has joined no run"
    (home / "invite").write_text("artel1.x")
    assert cli.main(arguments) == 0
    assert "systemctl --user enable --now artel-node.service" in capsys.readouterr().out
    text = (units / systemd_unit.UNIT).read_text()
    (start,) = [line for line in text.splitlines() if line.startswith("ExecStart=")]
    escaped = str(home).replace('"', '\\"').replace("%", "%%")
    assert start.endswith(f'node start --home "{escaped}"')
    assert f"TimeoutStopSec={systemd_unit.STOP_S}" in text
    assert cli.main(arguments) == 0, "its own is replaced"
    (units / systemd_unit.UNIT).write_text("[Unit]\nDescription=mine\n")
    assert cli.main(arguments) == 2
    assert "mine" in (units / systemd_unit.UNIT).read_text()


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    path = tmp_path / systemd_unit.UNIT
    path.write_text(systemd_unit.unit(tmp_path / "a home"))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--user", str(path)], capture_output=True, text=True
    )
    assert systemd_unit.UNIT not in done.stderr, done.stderr
