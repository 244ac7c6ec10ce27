"""Command lines that are misspelt: the error names what may have been meant, at every level."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest

from artel import cli
from artel.protocol.errors import EXIT_USAGE
from command_world import commands


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What is said of a wrong command line."""
    code = cli.main(list(arguments))
    captured = capsys.readouterr()
    assert code == EXIT_USAGE
    assert not captured.out
    return captured.err


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("ledgr", "ledger"),
        ("ledger statsu", "status"),
        ("ledger key rotat", "rotate"),
        ("ledger status --frm x", "--from"),
        ("ledger key rotate --hoem x", "--home"),
        ("ledger status --hoem=x", "--home"),
        ("ledger log --kind contributoin", "contribution"),
        ("node strat", "start"),
        ("node start --jion x", "--join"),
        ("node start --device cudda", "cuda"),
        ("run chekc x", "check"),
        ("run new x --nmae y", "--name"),
        ("run new x --size tinny", "tiny"),
        ("coordinator stauts", "status"),
        ("coordinator start x --home y --anounce z", "--announce"),
        ("demo --codec spares", "sparse"),
        ("demo --ruonds 3", "--rounds"),
    ],
)
def test_a_wrong_word_gets_a_suggestion(
    capsys: pytest.CaptureFixture[str], line: str, meant: str
) -> None:
    said = refused(capsys, *line.split()).splitlines()
    assert said[-1] == f"  → did you mean {meant}?"
    assert said[-2].startswith("error: ")


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("xyz", "coordinator"),
        ("node xyz", "measure"),
        ("ledger key xyz", "rotate"),
        ("ledger status --xyz", "artel ledger status --help"),
        ("ledger explain", "artel ledger explain --help"),
        ("run new", "artel run new --help"),
    ],
)
def test_a_word_like_no_other_gets_the_choice(
    capsys: pytest.CaptureFixture[str], line: str, named: str
) -> None:
    assert named in refused(capsys, *line.split()).splitlines()[-1]


def test_after_two_dashes_nothing_is_an_option(capsys: pytest.CaptureFixture[str]) -> None:
    said = refused(capsys, "ledger", "explain", "--", "-1", "--home", ".").splitlines()
    assert "--home" in said[0]
    assert "did you mean" not in said[-1]


@pytest.mark.parametrize(
    "vkey", ["abc", "a+b", "a+b+c", "a+1a2b3c4d+AQ==", "a+1a2b3c4d+" + "A" * 44, "a b+1+AQ=="]
)
def test_a_wrong_verifier_key_gets_its_form(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], vkey: str
) -> None:
    folder = tmp_path / "tiles"
    folder.mkdir()
    (folder / "checkpoint").write_text("example.org/log\n0\n" + "A" * 43 + "=\n\n— x AAAA\n")
    said = refused(capsys, "ledger", "audit", str(folder), "--vkey", vkey)
    assert "NAME+1a2b3c4d+" in said.splitlines()[-1]


@pytest.mark.parametrize(
    "line",
    ["node status --home", "coordinator start RUN.toml --home", "ledger me --home", "run new"],
)
def test_an_empty_path_is_not_the_working_directory(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "empty" in refused(capsys, *line.split(), "")


@pytest.mark.parametrize("line", [line for line, app in commands() if line != "artel"])
def test_help_has_an_example_and_the_exit_codes(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*line.split()[1:], "--help"]) == 0
    shown = capsys.readouterr().out
    codes = " ".join(shown.partition("exit codes: ")[2].split()).split(" · ")
    assert all(re.fullmatch(r"\d+ \D+", code) for code in codes)
    assert f"artel {line.split()[1]}" in shown
    examples = [text for text in shown.splitlines() if text.startswith("example")]
    assert all(text.count("artel ") == 1 for text in examples)
    assert dict(commands())[line].default_command is None or examples


# --- completion -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "completed"),
    [
        ("artel led", {"ledger"}),
        ("artel ledger sta", {"status"}),
        ("artel ledger key ro", {"rotate"}),
        ("artel node start --de", {"--device"}),
        ("artel node start --device c", {"cpu", "cuda"}),
        ("artel ledger me --fr", {"--from"}),
    ],
)
def test_bash_completes_commands_options_and_choices(
    line: str, completed: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "artel"
    script.write_text(capsys.readouterr().out)
    words = line.split()
    ask = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _artel"
    shown = subprocess.run(
        ["bash", "-c", f'{ask}; echo "${{COMPREPLY[@]}}"'], capture_output=True, check=True
    )
    assert set(shown.stdout.decode().split()) == completed


def test_bash_completes_names_of_files_where_nothing_else_fits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", "bash"]) == 0
    script = tmp_path / "artel"
    script.write_text(capsys.readouterr().out)
    ask = f"source {script}; complete -p artel"
    shown = subprocess.run(["bash", "-c", ask], capture_output=True, check=True)
    assert b"-o default" in shown.stdout


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_a_completion_passes_the_screen_unchanged(
    shell: Literal["zsh", "fish"], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", shell]) == 0
    assert capsys.readouterr().out == cli.root().generate_completion(shell=shell) + "\n"


def test_the_man_page_has_each_command_and_option_and_is_good_roff(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["completion", "man"]) == 0
    page = capsys.readouterr().out
    for line, _ in commands():
        heading = line.replace("-", r"\-")
        assert f'.SH "{heading}"' in page
    assert r"\fB\-\-uplink MBIT\fP" in page
    assert page.splitlines()[-1].startswith("130 interrupted")
    if shutil.which("groff") is None:
        pytest.skip("groff is not installed")
    (tmp_path / "artel.1").write_text(page)
    words = ["groff", "-man", "-Tutf8", "-ww", "-k", str(tmp_path / "artel.1")]
    shown = subprocess.run(words, capture_output=True, check=True)
    assert shown.stderr == b""
    assert len(shown.stdout) > 30_000


# --- what a person waits for ----------------------------------------------------------------------

IMPORTED = """
import contextlib, io, sys
from artel import cli
{code}
files = {{name: getattr(module, "__file__", None) or "" for name, module in sys.modules.items()}}
print(*sorted({{name.partition(".")[0] for name in files if "site-packages" in files[name]}}))
"""
WALK = """
def walk(app):
    for name, below in app.resolved_commands().items():
        if not name.startswith("-"):
            walk(below)
walk(cli.root())
"""


def imported(code: str) -> set[str]:
    """The installed packages that a process has imported after running the code."""
    program = IMPORTED.format(code=code)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
    return set(done.stdout.decode().splitlines()[-1].split())


def test_the_first_help_imports_nothing_that_is_installed() -> None:
    found = imported('cli.main(["--help"])')
    # What an editable install and setuptools put before every program.
    ours = {name for name in found if name.startswith(("__editable__", "_distutils_hack"))}
    assert found - ours == set()


def test_reading_any_command_imports_nothing_heavy() -> None:
    found = imported(WALK)
    assert "cyclopts" in found, "the walk saw commands"
    assert not found & {"torch", "hivemind", "transformers", "numpy", "numba", "libp2p", "aiohttp"}
    assert "rich" not in found
