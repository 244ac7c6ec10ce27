"""Floors and rooms: what imports.toml says about them holds, for every file of the tree."""

from __future__ import annotations

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from places import ROOT


def test_no_room_imports_upwards_and_nothing_goes_in_circles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    outcome = lint_imports(config_filename="imports.toml", no_cache=True)
    assert outcome == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_the_linter_sees_through_the_links_to_every_file() -> None:
    rooms = ("protocol", "ledger", "coordinator", "node")
    files = [file.relative_to(ROOT) for room in rooms for file in (ROOT / room).rglob("*.py")]
    names = {".".join(("artel", *file.with_suffix("").parts)) for file in files}
    modules = {name.removesuffix(".__init__") for name in names}
    assert modules <= grimp.build_graph("artel", cache_dir=None).modules
