"""What an owner says of its node, and when a node rests by it."""

from __future__ import annotations

import asyncio
import os
import stat
from datetime import datetime
from pathlib import Path

import pytest

from artel import cli
from artel.node import settings
from artel.node.rest import Rest, Use, why_rest
from artel.node.settings import OwnerSettings
from artel.protocol.errors import UsageError


def at(hour: int, minute: int = 0) -> datetime:
    return datetime(2026, 3, 1, hour, minute)


def why(wishes: OwnerSettings, now: datetime, unused: float = 0.0, battery: bool = False) -> str:
    return why_rest(wishes, now, lambda: unused, lambda: battery)


@pytest.mark.parametrize(
    ("text", "works", "rests"),
    [
        ("22-7", [at(22), at(23, 59), at(0), at(6, 59)], [at(7), at(12), at(21, 59)]),
        ("9:30-12,18-24", [at(9, 30), at(18), at(23, 59)], [at(9, 29), at(12), at(0)]),
        ("0-24", [at(0), at(12), at(23, 59)], []),
        ("", [at(0), at(13)], []),
    ],
)
def test_hours_of_the_day(text: str, works: list[datetime], rests: list[datetime]) -> None:
    wishes = OwnerSettings(hours=text)
    assert [why(wishes, now) for now in works] == [""] * len(works)
    assert all(text in why(wishes, now) for now in rests)


@pytest.mark.parametrize("text", ["25-7", "7", "7-8-9", "9:60-10", "-", "22-7,", "7–8"])
def test_what_is_no_part_of_a_day_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="part of a day"):
        settings.hours(text)


def test_a_pause_the_battery_and_the_use_of_the_machine_each_end_work() -> None:
    wishes = OwnerSettings(idle=5, battery="no")
    assert why(wishes, at(1), unused=301) == ""
    assert "in use" in why(wishes, at(1), unused=299)
    assert "battery" in why(wishes, at(1), unused=301, battery=True)
    assert "resume" in why(OwnerSettings(paused=True), at(1))
    assert why(OwnerSettings(battery="yes", idle=0), at(1), battery=True) == ""


def test_nobody_is_asked_for_what_does_not_matter() -> None:
    def never() -> float:
        raise AssertionError

    assert why_rest(OwnerSettings(), at(1), never, never) == ""  # type: ignore[arg-type]


def test_a_desktop_that_says_how_long_nobody_touched_it_is_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = tmp_path / "xprintidle"
    asked.write_text("#!/bin/sh\necho 1234500\n")
    asked.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert Use().unused() == 1234.5


def test_a_machine_whose_processors_others_take_is_in_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))  # no desktop
    now, counted = [0.0], [(0.0, 0.0)]
    monkeypatch.setattr(Use, "_counted", staticmethod(lambda: counted[0]))
    use = Use(lambda: now[0])
    now[0], counted[0] = 100.0, (10.0, 200.0)
    assert use.unused() == 100.0
    now[0], counted[0] = 200.0, (60.0, 400.0)
    assert use.unused() == 0.0


def test_own_work_is_not_counted_as_use() -> None:
    before = Use._counted()
    ends = os.times().user + 0.4
    while os.times().user < ends:
        pass
    others, whole = (now - then for now, then in zip(Use._counted(), before, strict=True))
    assert others < whole - 0.3


async def test_a_rest_tells_of_each_change() -> None:
    rest, news = Rest(), asyncio.Event()
    rest.news = (news,)
    rest.set("why")
    assert all(event.is_set() for event in (news, rest.begun))
    over = asyncio.create_task(rest.over())
    await asyncio.sleep(0)
    assert not over.done()
    rest.set("")
    await over
    assert not rest.begun.is_set()


def test_what_was_said_last_is_kept_for_its_owner_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = str(tmp_path)
    assert cli.main(["node", "pause", "--home", home]) == 3, "no node was ever there"
    assert "artel node start" in capsys.readouterr().err
    (tmp_path / "node.key").touch()
    assert cli.main(["node", "set", "--uplink", "5", "--hours", "22-7", "--home", home]) == 0
    assert cli.main(["node", "set", "--idle", "10", "--home", home]) == 0
    assert cli.main(["node", "pause", "--home", home]) == 0
    assert settings.load(tmp_path) == OwnerSettings(uplink=5.0, hours="22-7", idle=10, paused=True)
    assert stat.S_IMODE((tmp_path / "settings.json").stat().st_mode) == 0o600
    said = capsys.readouterr().out
    assert all(words in said for words in ("5 Mbit/s up", "paused", "not running"))
    assert cli.main(["node", "set", "--uplink", "0", "--home", home]) == 0
    assert settings.load(tmp_path).up is None
    assert cli.main(["node", "resume", "--home", home]) == 0
    assert settings.load(tmp_path).paused is False


@pytest.mark.parametrize(
    "option",
    [
        ["--uplink", "-1"],
        ["--threads", "100000"],
        ["--hours", "noon"],
        ["--gpu-memory", "2"],
        ["--battery", "maybe"],
        ["--idle", "x"],
    ],
)
def test_what_cannot_be_right_is_refused_before_anything_is_done(
    option: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["node", "set", *option, "--home", str(tmp_path)]) == 2
    assert option[0] in capsys.readouterr().err
    assert not (tmp_path / "settings.json").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"uplink": -1}', '{"hours": "x"}', '{"speed": 1}', '{"threads": "2"}']
)
def test_a_damaged_file_is_named(text: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(text)
    with pytest.raises(UsageError, match=r"settings\.json"):
        settings.load(tmp_path)
