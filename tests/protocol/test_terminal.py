"""Whatever a stranger says and whatever the terminal can show: no command ends, nothing steers."""

from __future__ import annotations

import asyncio
import errno
import io
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import ledger_world
import manifest_world
from answer_world import COORDINATOR, HOSTILE, NODE, answering
from artel import cli
from artel.coordinator import demo_view
from artel.node import preflight
from artel.node.panel import Panel
from artel.protocol import messages, options, terminal
from artel.protocol.errors import EXIT_RESOURCE, DecodeError, UsageError
from artel.protocol.manifest import Manifest
from artel.protocol.manifest_template import template
from artel.protocol.net import wire
from artel.protocol.run_file import parse_config
from ledger_world import World
from places import ROOT

STEERING = set("\x1b\x07\u202e\u2066\x9b\x7f")


def run(*arguments: str | bytes, **environment: str) -> subprocess.CompletedProcess[bytes]:
    """An ``artel`` command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "artel", *arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT), **environment},
        capture_output=True,
        timeout=60,
        check=False,
    )


def assert_steers_nothing(text: str) -> None:
    assert "good" in text, "the name itself is shown"
    assert not STEERING & set(text)
    assert "\r" not in text.replace("\r\n", "\n")


def test_a_disk_that_fills_up_under_any_command_is_said_with_what_to_do(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(cli, "run", full)
    assert cli.main(["node", "start"]) == EXIT_RESOURCE
    said = capsys.readouterr().err
    assert said.startswith("error: the disk is full")
    assert "free some space" in said


# --- streams that cannot show everything ----------------------------------------------------------


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8", "cp1252"])
@given(st.text(max_size=40))
def test_any_text_passes_any_stream_and_steers_nothing(encoding: str, text: str) -> None:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        terminal.prepare()
        print("✓ " + text, flush=True)
    shown = raw.getvalue().decode(encoding)
    # A return is kept where it makes a progress line, and before the end of a line.
    assert not terminal.steers(shown.replace("\n", "").replace("\t", "").replace("\r", ""))
    assert terminal.clean(shown) == shown


def test_a_progress_line_is_drawn_over_and_a_name_is_not() -> None:
    assert terminal.clean("\rchecked 3") == "\rchecked 3"
    assert terminal.clean("a\r\nb\tc") == "a\r\nb\tc"
    assert terminal.clean("name\rx") == "name?x"


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_no_command_ends_at_a_character(encoding: str, tmp_path: Path) -> None:
    home = tmp_path / "über-→"
    World().write(home, rounds=1)
    for arguments, code in (
        (("--help",), 0),
        (("nonsense",), 2),
        (("node", "start", "--help"), 0),
        (("node", "status", "--home", str(tmp_path / "✓")), 3),
        (("ledger", "log", "--home", str(home)), 0),
        (("ledger", "me", "--home", str(tmp_path / "✓")), 2),
        (("run", "check", str(tmp_path / "→.toml")), 2),
    ):
        done = run(*arguments, PYTHONIOENCODING=encoding)
        said = done.stdout + done.stderr
        assert done.returncode == code, said
        assert b"Traceback" not in said
        assert b"unexpected" not in said


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_a_node_says_what_it_finds_on_a_stream_without_its_marks(encoding: str) -> None:
    """The line at which a node ended: its checks are marked with a character beyond latin-1."""
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        terminal.prepare()
        found = preflight.Findings(Panel(sys.stdout, drawn=False).say, strict=True)
        found.add(preflight.Finding("memory", "ok", "enough … really"))
    assert raw.getvalue().split() == [b"+", b"memory", b"enough", b"...", b"really"]


@pytest.mark.parametrize(
    "arguments",
    [
        ("model", "generate", "--prompt", b"def \xff("),
        ("node", "start", "--join", b"artel1.\xff"),
        ("ledger", "alias", b"\xff"),
        ("ledger", "dispute", "3", "--reason", b"\xff"),
        ("ledger", "explain", b"\xff"),
        ("ledger", "audit", "http://h/\udcff".encode("utf-8", "surrogateescape")),
        ("coordinator", "status", "--url", b"http://\xff"),
    ],
)
def test_an_argument_that_is_no_text_is_wrong_input(
    arguments: tuple[str | bytes, ...], tmp_path: Path
) -> None:
    World().write(tmp_path, rounds=1)
    home = () if "coordinator" in arguments or "audit" in arguments else ("--home", str(tmp_path))
    done = run(*arguments, *home)
    assert done.returncode == 2, done.stderr
    assert b"unexpected" not in done.stderr


# --- what strangers say ---------------------------------------------------------------------------


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("command", [["--help"], ["ledger", "--help"]])
def test_a_reader_that_goes_away_is_no_error(command: list[str], unbuffered: str) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with open(theirs, "wb") as gone:
        done = subprocess.run(
            [sys.executable, "-m", "artel", *command],
            cwd=ROOT,
            env=os.environ | {"PYTHONUNBUFFERED": unbuffered},
            stdout=gone,
            stderr=subprocess.PIPE,
            timeout=60,
            check=False,
        )
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_organiser_is_told_and_a_volunteer_refuses_the_manifest() -> None:
    text = template()
    parse_config(text.encode(), "RUN.toml")
    for key in ("description", "statement"):
        lines = [
            f"{key} = {json.dumps(HOSTILE)}" if line.lstrip("# ").startswith(f"{key} =") else line
            for line in text.splitlines()
        ]
        with pytest.raises(UsageError, match=key) as refused:
            parse_config("\n".join(lines).encode(), "RUN.toml")
        assert refused.value.hint
        assert not STEERING & set(refused.value.diagnostics())


def test_a_hostile_manifest_is_refused_without_being_quoted() -> None:
    good = manifest_world.manifest()
    run_of = good.config.run.model_copy(update={"description": HOSTILE})
    config = good.config.model_copy(update={"run": run_of})
    hostile = good.model_copy(update={"config": config})
    with pytest.raises(DecodeError) as refused:
        Manifest.decode(hostile.encode())
    assert not STEERING & set(refused.value.diagnostics())


def test_preflight_and_join_print_lines(capsys: pytest.CaptureFixture[str]) -> None:
    Panel(sys.stdout, drawn=False).say(f'run "x": {HOSTILE}\n✓ memory plenty')
    found = preflight.Findings(Panel(sys.stdout, drawn=False).say, strict=True)
    found.add(preflight.Finding("uplink", "warning", HOSTILE))
    shown = capsys.readouterr().out
    assert_steers_nothing(shown)
    assert len(shown.splitlines()) == 2


def test_a_peers_refusal_is_one_line() -> None:
    class Stream:
        async def write(self, data: bytes) -> None:
            pass

    async def reply(_: object) -> messages.Message:
        return messages.Refusal(code="x\x1b", message=HOSTILE + "\nsecond", hint=HOSTILE)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wire, "read_message", reply)
        with pytest.raises(wire.Refused) as refused:
            asyncio.run(wire.ask(Stream(), messages.Leave(run="ab" * 32)))  # type: ignore[arg-type]
    assert_steers_nothing(refused.value.message + refused.value.hint + refused.value.code)
    assert len(refused.value.message.splitlines()) == 1


def test_status_of_a_node_and_of_a_coordinator(tmp_path: Path) -> None:
    with answering(NODE) as url:
        (tmp_path / "api.json").write_text(json.dumps({"url": url}))
        done = run("node", "status", "--home", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert_steers_nothing(done.stdout.decode())
    with answering(COORDINATOR) as url:
        done = run("coordinator", "status", "--url", url)
    assert done.returncode == 0, done.stderr
    assert_steers_nothing(done.stdout.decode())


def test_ledger_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = ledger_world.manifest

    def hostile(*arguments: Any, **options: Any) -> dict[str, Any]:
        fields = plain(*arguments, **options)
        fields["config"]["run"]["name"] = HOSTILE
        return fields

    monkeypatch.setattr(ledger_world, "manifest", hostile)
    World().write(tmp_path, rounds=4)
    for command in (("status",), ("log", "--limit", "0"), ("explain", "0"), ("shares",)):
        done = run("ledger", *command, "--home", str(tmp_path))
        assert done.returncode == 0, done.stderr
        assert_steers_nothing(done.stdout.decode())


def test_the_demo(capsys: pytest.CaptureFixture[str]) -> None:
    view = demo_view.DemoView(sys.stdout)
    view.say(HOSTILE)
    view.show({**COORDINATOR, "waiting_for": 0})
    assert_steers_nothing(capsys.readouterr().out)


def test_errors_and_samples_pass_the_screen(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: Sequence[str]) -> int:
        sys.stdout.write(f"good {HOSTILE}\n")  # as a model may write
        raise ValueError(f"good {HOSTILE}")

    monkeypatch.setattr(cli, "run", fail)
    assert cli.main(["node"]) == 1
    shown = capsys.readouterr()
    assert_steers_nothing(shown.out)
    assert_steers_nothing(shown.err)


def test_a_text_argument_is_text() -> None:
    assert options.text("déf →") == "déf →"
    with pytest.raises(ValueError):
        options.text("\udcff")
