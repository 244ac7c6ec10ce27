"""The image and the compose file say what can be done; an engine builds them elsewhere."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from artel import cli
from artel.protocol.invite import Invite
from places import ROOT

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text())
INVITE = Invite("ab" * 32, ("/ip4/127.0.0.1/tcp/9",)).encode()
KNOWN = {"FROM", "RUN", "WORKDIR", "COPY", "USER", "VOLUME", "STOPSIGNAL", "ENTRYPOINT"}


def instructions() -> list[tuple[str, str]]:
    """Those of the recipe, with what they are given."""
    text = re.sub(r"\\\n", "", (ROOT / "Containerfile").read_text())
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    found = [line.partition(" ") for line in lines]
    return [(name, rest.strip()) for name, _, rest in found]


def test_the_recipe_is_made_of_known_instructions_and_installs_what_there_is() -> None:
    names = [name for name, _ in instructions()]
    assert names[0] == "FROM"
    assert set(names) <= KNOWN
    said = dict(instructions())
    assert json.loads(said["ENTRYPOINT"]) == ["artel"]
    assert said["USER"] != "root"
    installs = next(rest for name, rest in instructions() if name == "RUN" and "pip" in rest)
    words = shlex.split(installs)
    assert (ROOT / words[words.index("--constraint") + 1]).exists()
    extra = re.fullmatch(r"\.\[(\w+)\]", words[-1])
    assert extra is not None
    assert extra[1] in (ROOT / "pyproject.toml").read_text()


def test_what_is_no_part_of_the_program_does_not_go_into_the_image() -> None:
    ignored = (ROOT / ".containerignore").read_text().splitlines()
    assert {".git", ".venv"} <= set(ignored)
    for needed in ("artel", "node", "pyproject.toml", "constraints.txt"):
        assert needed not in ignored


def commands(service: dict[str, Any]) -> list[list[str]]:
    """The artel commands of a service, as its shell reads them."""
    assert service["entrypoint"] == ["sh", "-c"]
    (script,) = service["command"]
    script = script.replace("$$(cat /coordinator/coordinator/invite)", INVITE)
    assert "$" not in script
    subprocess.run(["sh", "-n", "-c", script], check=True)
    found = re.findall(r"\bartel ([^;]+)", script)
    return [shlex.split(words) for words in found]


@pytest.mark.parametrize("name", COMPOSE["services"])
def test_each_service_calls_a_command_that_there_is(name: str) -> None:
    service = COMPOSE["services"][name]
    assert (ROOT / service["build"]["dockerfile"]).exists()
    found = commands(service)
    assert found
    for words in found:
        cli.root().parse_args(words, print_error=False, exit_on_error=False)


def test_a_node_finds_the_invite_where_the_coordinator_leaves_it() -> None:
    services = COMPOSE["services"]
    assert set(services) == {"coordinator", "node-1", "node-2"}
    (starts,) = [words for words in commands(services["coordinator"]) if "start" in words]
    home = Path("/coordinator") / starts[starts.index("--home") + 1]
    for name in ("node-1", "node-2"):
        assert f"{home}/invite" in services[name]["command"][0]
        mounted = dict(volume.split(":")[:2] for volume in services[name]["volumes"])
        assert mounted == {name: "/data", "coordinator": "/coordinator"}
    assert set(COMPOSE["volumes"]) == set(services)
    announced = starts[starts.index("--announce") + 1]
    listened = starts[starts.index("--listen") + 1]
    assert announced.split("/")[2] == "coordinator"
    assert announced.split("/")[-1] == listened.split("/")[-1]


def test_the_engine_reads_the_compose_file() -> None:
    if (
        shutil.which("docker") is None
        or subprocess.run(["docker", "compose", "version"]).returncode
    ):
        pytest.skip("no engine that reads compose files")
    command = ["docker", "compose", "-f", str(ROOT / "compose.yaml"), "config", "--quiet"]
    subprocess.run(command, check=True, timeout=60)
