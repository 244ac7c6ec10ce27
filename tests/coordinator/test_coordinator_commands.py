"""``artel coordinator``: what a person types, what goes wrong, and a restart in the same home."""

from __future__ import annotations

import asyncio
import http.server
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from artel import cli
from artel.coordinator import handing_over
from artel.coordinator.commands import render
from artel.coordinator.handing_over import REQUEST_FILE, hand_over, is_asked, take
from artel.coordinator.local_run import LOOPBACK
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.verify import verify_home
from artel.protocol import tether
from artel.protocol.errors import (
    EXIT_INTERRUPTED,
    EXIT_RESOURCE,
    EXIT_USAGE,
    CheckFailed,
    Unreachable,
)
from artel.protocol.identity import HomeLock, load_or_create
from artel.protocol.invite import Invite
from artel.protocol.net.http import API_FILE, announced_in
from artel.protocol.options import endpoint
from benchmarks.swarm import Swarm
from command_world import as_if_alone
from swarm_world import open_to_others, write_run
from two_coordinators import write_run_of_two


def run_cli(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "artel", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env=tether.environment(),
    )


@contextmanager
def serving(body: bytes, status: int = 200) -> Iterator[str]:
    """A web server that is not ours; gives its URL."""

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


# --- what is wrong is said at once ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80)),
        ("localhost:0", ("localhost", 0)),
        ("[::1]:8080", ("::1", 8080)),
    ],
)
def test_an_address_is_host_and_port(text: str, parts: tuple[str, int]) -> None:
    assert endpoint(text) == parts


@pytest.mark.parametrize("text", ["", "8080", ":8080", "host:", "host:65536", "host:-1", "h:8²"])
def test_other_addresses_are_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["coordinator", "start", "RUN.toml", "--home", "x", "--http", text]) == 2
    assert "HOST:PORT" in capsys.readouterr().err


def test_a_missing_run_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = tmp_path / "RUN.toml"
    assert cli.main(["coordinator", "start", str(missing), "--home", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert str(missing) in error
    assert "artel run new" in error


def test_a_cut_invite_is_said_before_anything_is_loaded(tmp_path: Path) -> None:
    program = (
        "import sys; from artel import cli; code = cli.main(sys.argv[1:]);"
        "sys.exit(code if 'aiohttp' not in sys.modules else 1)"
    )
    words = ["coordinator", "standby", "artel1.eyJwZWVycyI6WyIv", "--home", str(tmp_path / "home")]
    shown = subprocess.run(
        [sys.executable, "-c", program, *words],
        capture_output=True,
        text=True,
        timeout=120,
        env=tether.environment(),
    )
    assert "the invite is cut short" in shown.stderr
    assert shown.returncode == EXIT_USAGE
    assert not (tmp_path / "home").exists()


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """What a start that fails at once ends with and says; it has prepared nothing."""

    def start(run_file: Path, *more: str) -> tuple[int, str]:
        home = tmp_path / "home"
        with as_if_alone():
            code = cli.main(["coordinator", "start", str(run_file), "--home", str(home), *more])
        assert not (home / "blobs").exists()
        said = capsys.readouterr().err
        assert "→" in said
        return code, said

    return start


Refused = Callable[..., tuple[int, str]]


def test_a_mistake_in_the_run_file_is_shown(tmp_path: Path, refused: Refused) -> None:
    run_file = write_run(tmp_path, total=2)
    run_file.write_text(run_file.read_text().replace("inner_steps", "inner_stepz"))
    code, said = refused(run_file)
    assert (code, "inner_stepz" in said, "inner_steps" in said) == (EXIT_USAGE, True, True)


@pytest.mark.parametrize(
    ("option", "address"), [("--http", "127.0.0.1:{}"), ("--listen", "/ip4/127.0.0.1/tcp/{}")]
)
def test_a_port_in_use_is_refused(
    tmp_path: Path, refused: Refused, option: str, address: str
) -> None:
    options = {"--http": "127.0.0.1:0", "--listen": "/ip4/127.0.0.1/tcp/0"}
    with socket.create_server(("127.0.0.1", 0)) as taken:
        options[option] = address.format(taken.getsockname()[1])
        words = [word for pair in options.items() for word in pair]
        code, said = refused(write_run(tmp_path, total=2), *words)
    assert code == EXIT_RESOURCE
    assert options[option] in said
    assert option in said
    assert "in use\n" in said, "and nothing of Python's"


@pytest.mark.parametrize("target", ["nowhere", "artel1.eyJwZWVycyI6WyIv", "/"])
def test_who_may_have_more_is_looked_at_before_anything(
    tmp_path: Path, refused: Refused, target: str
) -> None:
    code, _ = refused(write_run(tmp_path, total=2), "--from", target)
    assert code == EXIT_USAGE
    assert not (tmp_path / "home").exists()


def test_a_home_in_use_is_refused(tmp_path: Path, refused: Refused) -> None:
    lock = HomeLock(tmp_path / "home")
    try:
        code, said = refused(write_run(tmp_path, total=2))
    finally:
        lock.release()
    assert (code, "home directory" in said) == (EXIT_RESOURCE, True)


# --- homes ----------------------------------------------------------------------------------------


def test_a_key_is_made_in_a_new_home_and_printed_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = list[str]()
    (tmp_path / "home").mkdir()
    HomeLock(tmp_path / "home").release()  # a start that failed leaves no more
    for _ in range(2):
        assert cli.main(["coordinator", "key", "--home", str(tmp_path / "home")]) == 0
        keys.append(capsys.readouterr().out.strip())
    assert keys[0] == keys[1]
    assert re.fullmatch("[0-9a-f]{64}", keys[0])


def test_no_key_is_made_among_other_files(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = write_run(tmp_path, total=2).parent
    before = {path.name for path in run.iterdir()}
    assert cli.main(["coordinator", "key", "--home", str(run)]) == EXIT_USAGE
    said = capsys.readouterr().err
    assert f"{run} holds other files" in said
    assert "--home DIR" in said
    assert {path.name for path in run.iterdir()} == before


@pytest.mark.parametrize("mark", ["account.key", "manifest.json"])
@pytest.mark.parametrize("command", ["key", "start", "standby", "prepare"])
def test_the_home_of_a_node_is_no_home_of_a_coordinator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, mark: str
) -> None:
    home = tmp_path / "node"
    load_or_create(home / "node.key")
    (home / mark).touch()
    before = sorted(home.iterdir())
    run_file = str(write_run(tmp_path, total=2))
    peer = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWBNn2mmzAXQXW4BAFxNEzRqVgXDGRCTPGYHGm7ioMiyru"
    words = {
        "key": ["coordinator", "key"],
        "start": ["coordinator", "start", run_file],
        "standby": ["coordinator", "standby", Invite("0" * 64, (peer,)).encode()],
        "prepare": ["run", "prepare", run_file],
    }
    assert cli.main([*words[command], "--home", str(home)]) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == ""
    assert f"{home} is the home of a node, not of a coordinator" in captured.err
    assert "a folder of its own" in captured.err
    assert sorted(home.iterdir()) == before


@pytest.mark.parametrize("mark", ["organiser.key", "run/manifest.json"])
def test_a_node_takes_no_part_in_the_home_of_a_coordinator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], mark: str
) -> None:
    load_or_create(tmp_path / "node.key")
    (tmp_path / "run").mkdir()
    (tmp_path / mark).touch()
    assert cli.main(["node", "start", "--home", str(tmp_path)]) == EXIT_USAGE
    assert f"{tmp_path} is the home of a coordinator, not of a node" in capsys.readouterr().err
    assert not (tmp_path / "account.key").exists()


MARKS = {"node": ("manifest.json", "account.key"), "coordinator": ("run/manifest.json",)}


@pytest.mark.parametrize(
    ("of", "words", "hint"),
    [
        ("coordinator", "node status", "artel coordinator status --home HOME"),
        ("coordinator", "ledger me", "the home of a node"),
        ("coordinator", "ledger key new", "an account is that of a node"),
        ("node", "coordinator status", "artel node status --home HOME"),
        ("node", "coordinator handover", "that of the one that leads"),
    ],
)
def test_what_is_asked_of_the_other_programs_home_is_refused_with_what_to_ask(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], of: str, words: str, hint: str
) -> None:
    other = words.split()[0].replace("ledger", "node")
    with serving(b'{"phase": "training"}') as url:  # its page answers, as that of a program does
        home = home_at(tmp_path, url)
        for mark in MARKS[of]:
            (home / mark).parent.mkdir(exist_ok=True)
            (home / mark).touch()
        before = sorted(home.rglob("*"))
        line = words.replace("OUT", str(tmp_path / "out")).split()
        assert cli.main([*line, "--home", str(home)]) == EXIT_USAGE
        assert sorted(home.rglob("*")) == before
    said = capsys.readouterr().err
    assert f"error: {home} is the home of a {of}, not of a {other}\n  → " in said
    assert hint.replace("HOME", shlex.quote(str(home))) in said
    assert said.count("\n") == 2
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["key", "handover", "status", "start", "standby"])
def test_every_command_takes_verbose(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["coordinator", command, "--help"]) == 0
    assert "--verbose" in capsys.readouterr().out


# --- status ---------------------------------------------------------------------------------------


def test_status_of_a_stopped_coordinator_is_unreachable(tmp_path: Path) -> None:
    with pytest.raises(Unreachable, match="no coordinator is running") as error:
        announced_in(tmp_path, "coordinator")
    assert f"artel coordinator start RUN.toml --home {tmp_path}" in error.value.hint
    assert f"artel coordinator standby INVITE --home {tmp_path}" in error.value.hint
    lock = HomeLock(tmp_path)
    with pytest.raises(Unreachable, match="does not answer yet"):
        announced_in(tmp_path, "coordinator")
    lock.release()
    with socket.create_server(("127.0.0.1", 0)) as unused:
        port = unused.getsockname()[1]
    assert cli.main(["coordinator", "status", "--url", f"http://127.0.0.1:{port}"]) == 3


@pytest.mark.parametrize(
    ("answer", "status", "code"),
    [(b"<html>hello", 200, 2), (b"[1]", 200, 2), (b"{}", 200, 2), (b"{}", 404, 3)],
)
def test_status_does_not_trust_other_servers(answer: bytes, status: int, code: int) -> None:
    with serving(answer, status=status) as url:
        assert cli.main(["coordinator", "status", "--url", url]) == code


def test_status_asks_web_servers_only() -> None:
    assert cli.main(["coordinator", "status", "--url", "file:///etc/passwd"]) == 2


def test_status_shows_control_characters_of_nodes_as_question_marks() -> None:
    status: dict[str, Any] = {
        "name": "run",
        "run": "ab" * 32,
        "role": "leader",
        "term": 0,
        "phase": "training",
        "round": 3,
        "total": 9,
        "attempt": 1,
        "state_root": "cd" * 32,
        "validation": {"first": {"round": 0, "loss": 6.0}, "last": {"round": 3, "loss": 4.5}},
        "last_round": {"seconds": {"training": 7.5}},
        "ledger": {"size": 20, "root": "ef" * 32},
        "nodes": [
            {
                "node": "12D3KooW" + "x" * 44,
                "phase": "\x1b[2Jevil",
                "step": 2,
                "steps": 40,
                "loss": None,
                "tokens_per_second": 1234.0,
                "bytes_up": 1_500_000,
                "bytes_down": 0,
                "heard_s": 1.0,
            }
        ],
    }
    shown = "\n".join(map(str, render(status, "http://host")))
    assert "\x1b" not in shown
    assert "?[2Jevil" in shown
    assert "3 of 9, training, attempt 2" in shown
    assert "4.5000 on the validation split (first 6.0000)" in shown


# --- handover -------------------------------------------------------------------------------------

LEADS = json.dumps({"role": "leader", "term": 2}).encode()


def home_at(folder: Path, url: str) -> Path:
    home = folder / "a home"
    home.mkdir()
    (home / API_FILE).write_text(json.dumps({"url": url}))
    return home


def test_it_ends_when_its_coordinator_has_stopped(tmp_path: Path) -> None:
    with serving(LEADS) as url:
        home = home_at(tmp_path, url)
        lock = HomeLock(home)
        threading.Timer(1.0, lock.release).start()
        began = time.monotonic()
        with pytest.raises(Unreachable, match="has stopped") as said:
            hand_over(home, patience=20.0)
    assert 0.9 < time.monotonic() - began < 10.0
    assert f"--home '{home}'" in said.value.hint
    assert not (home / REQUEST_FILE).exists()


@pytest.mark.parametrize(
    ("why", "hint"),
    [(handing_over.NO_OTHER, "of the next run; "), ("it does not answer", "coordinator standby ")],
)
def test_what_helps_depends_on_why_the_term_goes_on(tmp_path: Path, why: str, hint: str) -> None:
    with serving(json.dumps({"role": "leader", "term": 2, "not_ending": why}).encode()) as url:
        home = home_at(tmp_path, url)
        lock = HomeLock(home)
        threading.Timer(0.5, take, [home]).start()
        with pytest.raises(CheckFailed, match="the term goes on: ") as said:
            hand_over(home, patience=20.0)
        lock.release()
    assert hint in said.value.hint


@pytest.mark.parametrize(
    ("taken", "said"),
    [(False, "the request is taken back: term 2 goes on"), (True, "term 2 is being ended, and")],
)
@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGTERM])
def test_who_gives_up_is_told_what_becomes_of_the_request(
    tmp_path: Path, *, taken: bool, said: str, stop: signal.Signals
) -> None:
    with serving(LEADS) as url:
        home = home_at(tmp_path, url)
        lock = HomeLock(home)
        try:
            command = tether.command("coordinator", "handover", "--home", str(home))
            process = subprocess.Popen(
                command, env=tether.environment(), stderr=subprocess.PIPE, text=True
            )
            until = time.monotonic() + 30.0
            while not is_asked(home) and time.monotonic() < until:
                time.sleep(0.05)
            assert is_asked(home)
            if taken:
                assert take(home)
            process.send_signal(stop)
            _, errors = process.communicate(timeout=30.0)
            assert process.returncode == EXIT_INTERRUPTED
        finally:
            lock.release()
    assert errors.startswith(said)
    assert errors.count("\n") == 1
    assert not (home / REQUEST_FILE).exists()


# --- a real coordinator ---------------------------------------------------------------------------

WRONG_CLOCK = """
import sys, time
wall = time.time
time.time = lambda: wall() + 3600
from artel import cli
sys.exit(cli.main())
"""


async def test_a_standby_with_a_wrong_clock_ends_at_its_start(tmp_path: Path) -> None:
    async with Swarm(tmp_path, write_run_of_two(tmp_path)) as swarm:
        await swarm.start_coordinator()
        words = ("standby", swarm.invite, "--home", str(tmp_path / "standby"))
        options = ("--http", "127.0.0.1:0", "--listen", LOOPBACK)
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-P", "-c", WRONG_CLOCK, "coordinator", *words, *options],
            capture_output=True,
            text=True,
            timeout=120,
            env=tether.environment(),
        )
    assert done.returncode == EXIT_RESOURCE, done.stderr
    said, hint = done.stderr.splitlines()[-2:]
    assert re.match(r"error: this machine and those who answer differ by 3(600|599)\.\d s", said)
    assert hint.startswith("  → turn on automatic time (NTP); if this machine has it, theirs")


async def test_it_stops_on_ctrl_c_and_goes_on_in_the_same_home(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, total=2)
    async with Swarm(tmp_path, run_file) as swarm:
        await swarm.start_coordinator()
        home, first = tmp_path / "coordinator", swarm.invite
        assert (home / "invite").read_text().strip() == first
        assert open_to_others(home) == []
        run = await swarm.get("/api/v1/run")
        invite = Invite.decode(first)
        assert invite.run == run["run"]
        status = await swarm.status()
        assert (status["phase"], status["ledger"]["size"]) == ("waiting", 1)

        shown = await asyncio.to_thread(run_cli, "coordinator", "status", "--home", str(home))
        assert shown.returncode == 0, shown.stderr
        assert re.search(r"round +0 of 2, waiting", shown.stdout)

        assert swarm.coordinator is not None
        started = psutil.Process(swarm.coordinator.process.pid).children(recursive=True)
        assert started, "it runs a network daemon"
        await swarm.stop_coordinator()
        assert swarm.coordinator.process.returncode == 0
        _, alive = psutil.wait_procs(started, timeout=5)
        assert not alive
        assert not (home / "api.json").exists()
        assert "Traceback" not in swarm.coordinator.log.read_text()

    # Started again it goes on, here with what scripts read.
    process = await asyncio.create_subprocess_exec(
        *tether.command("coordinator", "start", str(run_file), "--home", str(home), "--json"),
        *("--http", "127.0.0.1:0", "--listen", invite.peers[0].partition("/p2p/")[0], "--log-json"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env=tether.environment(XDG_STATE_HOME=str(tmp_path / "state")),
    )
    assert process.stdout is not None
    ready = json.loads(await asyncio.wait_for(process.stdout.readline(), 120))
    assert set(ready) == {"run", "invite", "http", "home"}
    assert ready["invite"] == first, "volunteers need no new one"
    process.send_signal(signal.SIGTERM)
    rest, events = await asyncio.wait_for(process.communicate(), 30)
    assert (process.returncode, rest) == (0, b"")
    lines = [line for line in events.decode().splitlines() if not line.startswith("  ")]
    assert [json.loads(line)["event"] for line in lines][-1] == "coordinator.stopped"
    report = await asyncio.to_thread(verify_home, home)
    assert report.verified
    with LedgerReader.of(home) as store:
        assert store.size == status["ledger"]["size"]
