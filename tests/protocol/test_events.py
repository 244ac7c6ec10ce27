"""Events are one line each, for people or for programs, whatever is in them."""

from __future__ import annotations

import contextlib
import json
import logging
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from artel.protocol.events import _Human, _Json, configure, emit

log = logging.getLogger("artel.test")


@pytest.fixture(autouse=True)
def quiet_again() -> Iterator[None]:
    """Loggers as they were; they belong to the whole process."""
    root = logging.getLogger("artel")
    before = root.level, root.propagate, list(root.handlers)
    yield
    for handler in set(root.handlers) - set(before[2]):
        root.removeHandler(handler)
        with contextlib.suppress(OSError):  # its disk may be full
            handler.close()
    root.level, root.propagate, root.handlers = before
    logging.raiseExceptions = True


def record(name: str = "round.closed", **fields: object) -> logging.LogRecord:
    made = logging.LogRecord("artel.test", logging.INFO, "", 0, name, (), None)
    made.fields = fields
    return made


def test_a_log_that_cannot_be_written_costs_its_lines_and_prints_no_traceback(
    capfd: pytest.CaptureFixture[str],
) -> None:
    configure(file=Path("/dev/full"))
    emit(log, "round.closed", round=3)
    assert capfd.readouterr().err.splitlines()[0].endswith("round.closed round=3")
    emit(log, "round.closed", round=4)
    assert len(capfd.readouterr().err.splitlines()) == 1


def test_people_get_a_time_a_name_and_fields() -> None:
    line = _Human().format(record(round=3, loss=2.51234, text="two words"))
    assert re.fullmatch(r'\d\d:\d\d:\d\d round\.closed round=3 loss=2\.512 text="two words"', line)


def test_warnings_say_so() -> None:
    made = record()
    made.levelno, made.levelname = logging.WARNING, "WARNING"
    assert " warning round.closed" in _Human().format(made)


def test_programs_get_one_json_object() -> None:
    entry = json.loads(_Json().format(record(round=3, where=Path("/x"))))
    assert entry["event"] == "round.closed"
    assert (entry["level"], entry["round"], entry["where"]) == ("info", 3, "/x")
    assert entry["time"] == pytest.approx(record().created, abs=60)


@given(st.text(max_size=60))
def test_a_peers_text_cannot_make_a_second_line(text: str) -> None:
    for formatter in (_Human(), _Json()):
        line = formatter.format(record(reason=text))
        assert line.isprintable()
        assert len(line.splitlines()) == 1


def test_levels_and_the_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configure(file=tmp_path / "logs" / "log")
    emit(log, "a.detail", logging.DEBUG, x=1)
    emit(log, "an.event", x=2)
    screen = capsys.readouterr().err
    assert "a.detail" not in screen
    assert "an.event x=2" in screen
    kept = (tmp_path / "logs" / "log").read_text().splitlines()
    assert [line.split()[1] for line in kept] == ["a.detail", "an.event"]
    configure(verbose=True, json_lines=True)
    emit(log, "a.detail", logging.DEBUG, x=1)
    assert json.loads(capsys.readouterr().err)["x"] == 1
    assert len((tmp_path / "logs" / "log").read_text().splitlines()) == 2, "the old file is closed"


def test_a_traceback_is_kept(caplog: pytest.LogCaptureFixture) -> None:
    made = record()
    try:
        raise ValueError("deep inside")
    except ValueError as error:
        made.exc_info = (type(error), error, error.__traceback__)
    assert "deep inside" in _Human().format(made)
    assert "deep inside" in json.loads(_Json().format(made))["traceback"]


def test_levels_are_called_what_they_are_whatever_a_library_calls_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(logging._levelToName, logging.WARNING, "WARN")  # hivemind does
    made = logging.LogRecord("artel.test", logging.WARNING, "", 0, "duty.retry", (), None)
    assert " warning duty.retry" in _Human().format(made)
    assert json.loads(_Json().format(made))["level"] == "warning"
