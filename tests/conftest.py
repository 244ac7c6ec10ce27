"""The longest files first: with a file at a time for each core, all of them are done together.

``durations.json`` holds the seconds of each file that takes long, as ``make durations`` measured
them.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from places import TESTS

DURATIONS = TESTS / "durations.json"
LONG = 2.0
"""Seconds of a file that is written down."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--durations-out", action="store_true", help=f"write {DURATIONS.name} anew")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("--durations-out") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Recorder())


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    known = json.loads(DURATIONS.read_text())
    items.sort(key=lambda item: -known.get(file_of(item.nodeid), 0))


def file_of(nodeid: str) -> str:
    return nodeid.partition("::")[0]


@pytest.fixture(scope="session", autouse=True)
def no_real_state(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is kept outside of homes goes nowhere where a person, or a test of before, has some."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_STATE_HOME", str(tmp_path_factory.mktemp("state")))
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True)
def own_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runs of different tests have the same keys."""
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "xdg-state"))


@pytest.fixture(autouse=True)
def own_log() -> Iterator[None]:
    """A command that a test runs in this process takes its log for its own."""
    log = logging.getLogger("artel")
    kept = log.level, log.propagate, list(log.handlers)
    yield
    log.level, log.propagate, log.handlers = kept


class Recorder:
    """Adds up what every file takes, its fixtures too."""

    def __init__(self) -> None:
        self.seconds: Counter[str] = Counter()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.seconds[file_of(report.nodeid)] += report.duration

    def pytest_sessionfinish(self) -> None:
        long = {file: round(took) for file, took in self.seconds.most_common() if took >= LONG}
        DURATIONS.write_text(json.dumps(long, indent=1) + "\n")
