"""Another version of this program: its homes, and its nodes.

``previous-home.tar.xz`` holds the homes of a coordinator and of a node, without their content, as
the version before wrote them: two rounds of ``swarm_world``'s run. They are made anew when formats
have changed again.
"""

from __future__ import annotations

import asyncio
import hashlib
import re
import shlex
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from artel.coordinator.local_run import LOOPBACK
from artel.protocol import tether
from artel.protocol.net import wire
from benchmarks.swarm import Swarm
from places import TESTS
from swarm_world import round_at_least, write_run

OLD_NODE = """
import sys
from artel.protocol.net import wire
wire.VERSION -= 1
from artel import cli
sys.exit(cli.main())
"""


def contents(folder: Path) -> dict[str, str]:
    """What the databases, keys and checkpoints of a folder hold."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != "lock"]
    return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def artel(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-P", "-m", "artel", *shlex.split(line)],
        cwd=cwd,
        capture_output=True,
        text=True,
        timeout=200,
        env=tether.environment(),
    )


@pytest.fixture
def previous(tmp_path: Path) -> Path:
    with tarfile.open(TESTS / "fixtures" / "previous-home.tar.xz") as archive:
        archive.extractall(tmp_path, filter="data")
    return tmp_path / "previous"


@pytest.mark.parametrize(
    "line",
    [
        "ledger status --home node-1",
        "ledger me --home node-1",
        "ledger verify --home node-1",
        "ledger verify --home coordinator",
        "model export model --home node-1",
        f"node start --home node-1 --no-check --listen {LOOPBACK}",
        f"coordinator start RUN.toml --home coordinator --listen {LOOPBACK} --http 127.0.0.1:0",
    ],
)
def test_a_home_of_the_version_before_is_refused_in_one_clear_line_and_stays_as_it_is(
    previous: Path, line: str
) -> None:
    before = contents(previous)
    done = artel(line, previous)
    said = done.stdout + done.stderr
    assert done.returncode in (1, 2), said
    assert len(re.findall(r"^(?:error:|FAIL) .*", said, re.MULTILINE)) == 1
    # The ledger's file says so, or the manifest, whichever is read first.
    assert re.search(
        r"(error:|FAIL) .*sqlite3 is in another format than the one that this program reads and "
        r"writes\n[^→]*→ use the program that made it, or fetch the ledger again into a new "
        r"--home; a coordinator: with its node\.key in it\n|"
        r"error: the manifest .*\n  → another version of Artel made it: use that version",
        said,
    ), said
    for misleading in ("damaged", "describes another one", "restore --from"):
        assert misleading not in said
    assert before.items() <= contents(previous).items()


async def test_an_old_node_meets_one_clear_refusal_and_the_run_goes_on(tmp_path: Path) -> None:
    async with Swarm(tmp_path, write_run(tmp_path, total=100, inner_steps=20)) as swarm:
        await swarm.start(nodes=2)
        words = ("node", "start", "--join", swarm.invite, "--home", str(tmp_path / "old"))
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-P", "-c", OLD_NODE, *words, "--listen", LOOPBACK, "--no-check"],
            capture_output=True,
            text=True,
            timeout=200,
            env=tether.environment(),
        )
        assert done.returncode == 1, done.stderr
        errors = [text for text in done.stderr.splitlines() if text.startswith(("error", "  →"))]
        said, hint = errors
        new, old = wire.VERSION, wire.VERSION - 1
        assert said.endswith(f"the peer speaks protocol version {new}, this program speaks {old}")
        assert hint == "  → update the older of the two programs"
        reached = (await swarm.status())["round"]
        await swarm.wait_for(round_at_least(reached + 1), "the run goes on")
        assert "Traceback" not in (tmp_path / "coordinator" / "console.log").read_text()
