"""Options: what can never be right is refused at once, whatever it is behind."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import Token
from cyclopts.argument import Argument

from artel import cli
from artel.node import preflight
from artel.protocol import files, options
from artel.protocol.errors import ResourceError, UsageError
from artel.protocol.identity import load_or_create
from artel.protocol.invite import Invite
from artel.protocol.units import readable
from command_world import commands
from trainer_world import make_world

NONSENSE = [
    "",
    " ",
    "nan",
    "inf",
    "-inf",
    "1e400",
    "-1",
    "9" * 400,
    "²",
    "0x10",
    "1_000",
    "1;2",
    "--",
]
PEER = "/ip4/127.0.0.1/tcp/1/p2p/12D3KooWBNn2mmzAXQXW4BAFxNEzRqVgXDGRCTPGYHGm7ioMiyru"


WORDS = (str, bool, Path, tuple[str, ...], tuple[Path, ...])
"""What takes any text, or none."""


def typed() -> Iterator[tuple[str, Argument]]:
    """Every argument that not every text can be right for."""
    for line, app in commands():
        for argument in app.assemble_argument_collection() if app.default_command else ():
            bounded = argument.name in ("--listen", "--announce", "--run")
            if bounded or not (argument.children or argument.resolved_hint in WORDS):
                yield f"{line} {argument.name}", argument


ALL = [item for item in typed() if not item[1].get_choices()]


@pytest.mark.parametrize(("name", "argument"), ALL, ids=[name for name, _ in ALL])
def test_nonsense_is_refused_by_every_option_with_a_type(name: str, argument: Argument) -> None:
    read = argument.parameter.converter
    assert callable(read), "bounds are missing"
    for text in NONSENSE:
        with pytest.raises(UsageError):
            read(argument.hint, [Token(keyword="--x", value=text)])


def test_the_walk_over_the_commands_sees_them() -> None:
    names = {name for name, _ in ALL}
    assert {"artel node start --threads", "artel model generate --seed"} <= names
    assert {"artel coordinator start --announce", "artel demo --rounds"} <= names
    assert {"artel ledger shares --at", "artel node start --http"} <= names


# --- addresses ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("203.0.113.7:4200", "/ip4/203.0.113.7/tcp/4200"),
        ("[2001:db8::1]:4200", "/ip6/2001:db8::1/tcp/4200"),
        ("run.example.org:4200", "/dns4/run.example.org/tcp/4200"),
        ("203.0.113.7", options.ANNOUNCE_FORM),
        ("/ip4/203.0.113.7", options.ANNOUNCE_FORM),
        ("/ip4/203.0.113.7/4200", options.ANNOUNCE_FORM),
        ("/ip4/300.0.113.7/tcp/4200", options.ANNOUNCE_FORM),
        ("/ip4/203.0.113.7/tcp/99999", options.ANNOUNCE_FORM),
        ("/ip4/203.0.113.7/tcp/0", options.ANNOUNCE_FORM),
        ("/ip4/203.0.113.7/tcp/4200/nonsense", options.ANNOUNCE_FORM),
        ("/ip4/0.0.0.0/tcp/4200", options.ANNOUNCE_FORM),
        ("/ip6/::/tcp/4200", options.ANNOUNCE_FORM),
        ("/ip4/224.0.0.1/tcp/4200", options.ANNOUNCE_FORM),
        ("/ip4/255.255.255.255/tcp/4200", options.ANNOUNCE_FORM),
        ("/ip4/203.0.113.7/tcp/4200/p2p/" + PEER[-52:], "/ip4/203.0.113.7/tcp/4200"),
    ],
)
@pytest.mark.parametrize("command", ["node", "coordinator"])
def test_an_address_that_nobody_can_dial_is_refused_with_the_right_form(
    command: str, text: str, meant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home = tmp_path / "home"
    file = ["RUN.toml"] if command == "coordinator" else []
    assert cli.main([command, "start", *file, "--home", str(home), "--announce", text]) == 2
    assert meant in capsys.readouterr().err
    assert not home.exists()


@pytest.mark.parametrize(
    "text",
    [
        "/ip4/203.0.113.7/tcp/4200",
        "/ip4/192.168.1.5/tcp/4200",
        "/ip6/2001:db8::1/udp/4200/quic-v1",
        "/dns4/run.example.org/tcp/4200",
        "/ip4/127.0.0.1/tcp/4200",
    ],
)
def test_addresses_that_can_be_dialled_are_taken(text: str) -> None:
    assert options.announce(text) == text
    assert bool(options.only_here([text])) == ("127.0.0.1" in text)


@pytest.mark.parametrize("text", ["4200", "0.0.0.0:4200", "/dns4/a.example/tcp/1", "/ip4/0.0.0.0"])
def test_where_one_cannot_listen_is_said_at_once(text: str, tmp_path: Path) -> None:
    assert cli.main(["node", "start", "--home", str(tmp_path / "home"), "--listen", text]) == 2


@pytest.fixture
def taken() -> Iterator[int]:
    """A port that is in use."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


@pytest.mark.parametrize("option", ["--listen", "--http"])
@pytest.mark.parametrize("command", ["node", "coordinator"])
def test_a_port_in_use_is_said_before_anything_is_made(
    command: str, option: str, taken: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    home, run_file = tmp_path / "home", tmp_path / "a-run" / "RUN.toml"
    assert cli.main(["run", "new", str(run_file.parent)]) == 0
    rest = [str(run_file), "--http", "127.0.0.1:0"] if command == "coordinator" else []
    where = f"/ip4/127.0.0.1/tcp/{taken}" if option == "--listen" else f"127.0.0.1:{taken}"
    assert cli.main([command, "start", *rest, "--home", str(home), option, where]) == 4
    assert option in capsys.readouterr().err
    assert not home.exists()


def test_the_demo_looks_at_its_port_before_it_makes_a_folder(taken: int, tmp_path: Path) -> None:
    assert cli.main(["demo", "--port", str(taken), "--out", str(tmp_path / "demo")]) == 4
    assert not (tmp_path / "demo").exists()


# --- this machine ---------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["-3", "5000"])
def test_threads_are_bounded_by_the_cores(
    text: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["node", "start", "--home", str(tmp_path / "home"), "--threads", text]) == 2
    assert f"0 to {len(os.sched_getaffinity(0))}" in capsys.readouterr().err


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere", "/dev/null/home"])
@pytest.mark.parametrize(
    "line",
    [
        "node start --home HOME",
        "node status --home HOME",
        "model export OUT --home HOME",
        "model generate --home HOME",
        "coordinator start RUN --home HOME",
        "run prepare RUN --home HOME",
        "ledger me --home HOME",
        "ledger key new --home HOME",
        "ledger restore --from OUT --home HOME",
    ],
)
def test_a_home_in_an_impossible_place_is_one_error_with_a_hint(
    line: str, place: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("somebody's")
    (tmp_path / "run").mkdir()
    cli.main(["run", "new", str(tmp_path / "run")])
    capsys.readouterr()
    values = {
        "HOME": str(tmp_path / place),
        "OUT": str(tmp_path / "out"),
        "RUN": str(tmp_path / "run" / "RUN.toml"),
    }
    code = cli.main([values.get(word, word) for word in line.split()])
    error = capsys.readouterr().err
    assert code in (2, 3, 4)
    assert "unexpected" not in error
    assert "→" in error
    assert (tmp_path / "file").read_text() == "somebody's"


def test_a_device_that_is_not_there_is_found_out_before_anything_is_fetched(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The invite's peer does not answer: without the check this would be exit code 3."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    invite = Invite("0" * 64, (PEER,)).encode()
    home = tmp_path / "home"
    start = ["node", "start", "--home", str(home), "--join", invite, "--device", "cuda"]
    assert cli.main([*start, "--listen", "/ip4/127.0.0.1/tcp/0"]) == 4
    assert "--device cpu" in capsys.readouterr().err
    assert not home.exists()


def test_a_home_is_not_left_behind_by_a_start_that_was_refused(tmp_path: Path) -> None:
    for name in ("new", "mine"):
        home = tmp_path / name
        if name == "mine":
            home.mkdir()
            load_or_create(home / "account.key")
        assert cli.main(["node", "start", "--home", str(home), "--join", "artel1.no"]) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "account.key").exists()


def test_a_quota_below_what_the_run_needs_is_refused_with_the_number(tmp_path: Path) -> None:
    manifest = make_world(tmp_path).run
    with pytest.raises(ResourceError) as refused:
        preflight.require_quota(manifest, 1)
    needed = int(refused.value.hint.split()[-1]) * 10**6
    preflight.require_quota(manifest, needed)
    with pytest.raises(ResourceError):
        preflight.require_quota(manifest, needed - 10**6)


@pytest.mark.parametrize(
    ("count", "text"),
    [(1, "1 B"), (999, "999 B"), (1001, "1.1 kB"), (94_000, "94.0 kB"), (2_000_001, "2.1 MB")],
)
def test_amounts_are_rounded_up_and_never_0(count: int, text: str) -> None:
    assert readable(count) == text


def test_a_full_disk_says_how_much_is_needed(tmp_path: Path) -> None:
    error = files.disk_error(OSError(28, "full"), tmp_path / "state", 400_000)
    assert isinstance(error, files.DiskFull)
    assert "400.0 kB" in error.hint


def test_the_key_of_a_home_is_not_made_before_its_options_are_right(tmp_path: Path) -> None:
    load_or_create(tmp_path / "node.key")
    assert cli.main(["node", "start", "--home", str(tmp_path / "other"), "--quota", "0"]) == 2
    assert not (tmp_path / "other").exists()
