"""The tutorials are followed to the letter, from a wheel, by a script with nothing else at hand."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from artel.protocol.run_file import load_config
from places import ROOT
from tests.run_tutorial import PAGES, TITLES, blocks


def test_the_blocks_of_the_tutorials_are_of_known_kinds() -> None:
    for page in PAGES:
        found = list(blocks(page))
        assert {title for title, _ in found} <= TITLES
        assert (ROOT / f"docs/tutorials/{page}.md").read_text().count("```") == 2 * len(found)
        assert sum(line.startswith("artel ") for _, lines in found for line in lines) >= 5


def test_the_edits_of_the_organisers_tutorial_make_a_public_run_of_six_rounds(
    tmp_path: Path,
) -> None:
    wanted = ("artel run new", "sed ")
    lines = [line for _, lines in blocks("organiser") for line in lines if line.startswith(wanted)]
    command = tmp_path / "bin/artel"
    command.parent.mkdir()
    command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m artel "$@"\n')
    command.chmod(0o755)
    path = f"{command.parent}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(ROOT)}
    subprocess.run(
        ["bash", "-ec", "\n".join(lines)], cwd=tmp_path, env=environment, check=True, timeout=120
    )
    run = load_config(tmp_path / "my-run/RUN.toml")
    assert (run.run.public, run.rounds.total) == (True, 6)
    assert run.run.model_licence
    assert run.run.data_licence


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_tutorials_hold_from_an_installed_wheel(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir"]
    listed = subprocess.run(
        ["git", "archive", "--format=tar", "HEAD"], cwd=ROOT, check=True, capture_output=True
    )
    tree = tmp_path / "tree"
    tree.mkdir()
    subprocess.run(["tar", "-x", "-C", tree], input=listed.stdout, check=True)
    subprocess.run([*pip, tmp_path, tree], check=True, timeout=300)
    [wheel] = tmp_path.glob("*.whl")
    done = subprocess.run(
        [
            *(sys.executable, ROOT / "tests/run_tutorial.py", wheel, tmp_path / "folder"),
            *("--within", "120"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )
    print(done.stdout)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "folder/my-model/model.safetensors").exists()
    assert (tmp_path / "folder/my-copy/checkpoint").exists()
