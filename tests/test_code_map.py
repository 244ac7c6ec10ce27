"""Floors and rooms: what imports.toml says about them holds, for every file of the tree."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import Counter

import grimp
import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS, lint_imports

from places import ROOT

FLOORS = ("protocol", "ledger", "coordinator", "node", "model")
MAP = (ROOT / "docs" / "code-map.md").read_text()
SCENARIOS = (ROOT / "CONTRIBUTING.md").read_text()
TESTS_NAMED = re.findall(r"`([\w/]+\.py)::(test_\w+)`", SCENARIOS)
NAMED = re.findall(r"`((?:artel|node|coordinator|model|ledger|protocol)/[\w./-]*)`", MAP)


def test_no_room_imports_upwards_and_nothing_goes_in_circles(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    # It would switch off the loggers that other tests of this process listen to.
    monkeypatch.setattr("logging.config.dictConfig", lambda _: None)
    outcome = lint_imports(config_filename="imports.toml", no_cache=True)
    assert outcome == EXIT_STATUS_SUCCESS, capsys.readouterr().out


def test_the_linter_sees_through_the_links_to_every_file() -> None:
    files = [file.relative_to(ROOT) for room in FLOORS for file in (ROOT / room).rglob("*.py")]
    names = {".".join(("artel", *file.with_suffix("").parts)) for file in files}
    modules = {name.removesuffix(".__init__") for name in names}
    assert modules <= grimp.build_graph("artel", cache_dir=None).modules


@pytest.mark.parametrize("name", sorted(set(NAMED)))
def test_what_the_code_map_names_is_there(name: str) -> None:
    assert (ROOT / name).exists()
    assert (ROOT / name).is_dir() == name.endswith("/")


@pytest.mark.parametrize(("file", "test"), TESTS_NAMED)
def test_a_scenario_has_the_test_that_is_named_and_it_is_not_a_slow_one(
    file: str, test: str
) -> None:
    tree = ast.parse((ROOT / "tests" / file).read_text())
    (found,) = [item for item in ast.walk(tree) if getattr(item, "name", "") == test]
    assert isinstance(found, ast.FunctionDef | ast.AsyncFunctionDef)
    assert not any("slow" in ast.unparse(mark) for mark in found.decorator_list)


def test_each_scenario_has_a_row() -> None:
    rows = re.findall(r"^\| S(\d+) ", SCENARIOS, re.MULTILINE)
    assert rows == [str(number) for number in range(1, 17)]


def test_every_room_is_on_the_code_map() -> None:
    files = [file for floor in FLOORS for file in (ROOT / floor).rglob("*.py")]
    rooms = {f"{file.parent.relative_to(ROOT)}/" for file in files}
    assert rooms <= set(NAMED)


def test_rooms_stand_on_the_map_in_the_order_of_their_imports() -> None:
    contracts = tomllib.loads((ROOT / "imports.toml").read_text())["tool"]["importlinter"][
        "contracts"
    ]
    layers = next(c["layers"] for c in contracts if c.get("containers") == ["artel.ledger"])
    rooms = [room for layer in layers for room in layer.split(" | ")]
    on_map = re.findall(r"^\| `ledger/(\w+)/`", MAP, re.MULTILINE)
    assert [room for room in on_map if room in rooms] == rooms


def test_a_name_of_a_class_or_a_file_means_one_thing() -> None:
    files = [file for floor in FLOORS for file in (ROOT / floor).rglob("*.py")]
    modules = Counter(file.stem for file in files if not file.stem.startswith("_"))
    classes = Counter(
        item.name
        for file in files
        for item in ast.parse(file.read_text()).body
        if isinstance(item, ast.ClassDef) and not item.name.startswith("_")
    )
    assert {name for name, count in modules.items() if count > 1} == {"commands"}
    assert [name for name, count in classes.items() if count > 1] == []
