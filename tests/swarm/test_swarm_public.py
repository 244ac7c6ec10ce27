"""A public run is found through any door, by name, and joined with one command; real processes."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from artel.protocol.invite import Invite
from artel.protocol.net.http import fetch_object
from benchmarks.swarm import Swarm
from swarm_world import round_at_least, write_run


def public_run(folder: Path, name: str) -> Path:
    path = write_run(folder, total=500, inner_steps=20, min_nodes=1)
    text = path.read_text().replace('name = "tiny"', f'name = "{name}"\npublic = true', 1)
    path.write_text(text.replace("public = true", 'public = true\nmodel_licence = "MIT"', 1))
    return path


async def artel(*words: str) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "artel", *words),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await process.communicate()
    return process.returncode or 0, out.decode(), err.decode()


async def listed_at(url: str, count: int) -> list[dict[str, Any]]:
    """The runs that a server shows, once there are so many."""
    async with asyncio.timeout(120):
        while True:
            rows: list[dict[str, Any]] = (await asyncio.to_thread(fetch_object, url))["runs"]
            if len(rows) >= count:
                return rows
            await asyncio.sleep(0.5)


async def test_a_public_run_is_found_through_another_one_and_joined_by_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    first = Swarm(tmp_path / "a", public_run(tmp_path / "a", "first"))
    second = Swarm(tmp_path / "b", public_run(tmp_path / "b", "second"))
    async with first, second:
        await first.start_coordinator()
        code, _, said = await artel("runs")
        assert code == 2
        assert "no address of the network" in said
        with monkeypatch.context() as only:
            only.setenv("ARTEL_BOOTSTRAP", first.http)
            await second.start_coordinator()
        for swarm in (first, second):  # one network has both, whoever is asked
            rows = await listed_at(f"{swarm.http}/api/v1/runs", 2)
            assert {row["name"] for row in rows} == {"first", "second"}

        (way, *_) = Invite.decode(first.invite).peers
        code, out, _ = await artel("runs", "--bootstrap", way, "--json")  # by the DHT alone
        assert code == 0
        by_name = {row["name"]: row for row in json.loads(out)}
        assert by_name["second"]["model_licence"] == "MIT"

        (tmp_path / "config/artel").mkdir(parents=True)
        (tmp_path / "config/artel/bootstrap").write_text(f"# the first one\n{first.http}\n")
        code, out, said = await artel("join", "no-such-run")
        assert code == 2
        assert "no public run" in said
        options = "--yes", "--threads", "1", "--listen", "/ip4/127.0.0.1/tcp/0"
        node = tmp_path / "b/node-1"
        program = await second._spawn("node 1", node, "join", "second", *options)
        second.nodes[1] = program
        await second.wait_for(round_at_least(1), "the node that joined by name trains")
        (home,) = (tmp_path / "data/artel").iterdir()
        assert home.name == f"second-{by_name['second']['run'][:8]}"
        told = program.log.read_text()
        assert "electricity" in told
        assert "public and permanent" in told
        page = json.loads((home / "api.json").read_text())["url"]
        rows = await listed_at(f"{page}/api/v1/runs", 2)  # a node is a door, too
        assert {row["name"] for row in rows} == {"first", "second"}
