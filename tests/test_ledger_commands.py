"""``artel ledger``: what a person and a script read, and the exit codes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import artel
from ledger import reasons
from ledger.commands import UNWITNESSED, main
from ledger.entries import entry_id
from ledger.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore
from ledger_world import TOKENS, World
from protocol import merkle
from protocol.errors import CheckFailed, UsageError

WORLD = World()
A, B, C = WORLD.members


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One good round, and a second that is closed (without C) but not agreed on."""
    home = tmp_path_factory.mktemp("home")
    WORLD.write(home, rounds=1)
    unfinished = WORLD.add(
        WORLD.opened(1),
        WORLD.committed(1, members=[A, B]),
        WORLD.contribution(A, 1),
        WORLD.contribution(B, 1),
        WORLD.contribution(C, 1),
        WORLD.closed(1, accepted=[A, B], rejected={C.peer_id: reasons.LATE}),
    )
    with LedgerStore.open(home / DATABASE_NAME) as store:
        store.append(unfinished, WORLD.sign)
    return home


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    """Run a command on ``home`` that must succeed; returns its output."""

    def run(*arguments: str) -> str:
        assert main([*arguments, "--home", str(home)]) == 0
        return capsys.readouterr().out

    return run


def as_json(run: Any, *arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


def test_status(run: Any) -> None:
    facts = as_json(run, "status")
    root = merkle.root(map(merkle.leaf_hash, WORLD.leaves)).hex()
    assert (facts["size"], facts["as_of"], facts["root"]) == (20, 20, root)
    assert (facts["round"], facts["phase"], facts["attempt"]) == (1, "applying", 0)
    assert (facts["credit"], facts["pending"]) == (3 * TOKENS, 2 * TOKENS)
    assert facts["ignored"] == {reasons.NOT_COMMITTED: 1}
    assert (facts["final"], facts["witnesses"]) == (False, 0)
    shown = run("status")
    assert f"test-run ({WORLD.run})" in shown
    assert "20 entries, as of checkpoint 20" in shown
    assert "384 tokens, 256 accepted but not agreed yet" in shown
    assert f"pending, not final: {UNWITNESSED}" in shown


def test_log_shows_every_entry_and_why_one_does_not_count(run: Any) -> None:
    lines = run("log").splitlines()
    assert len(lines) == 1 + 20
    assert lines[0].split() == ["index", "kind", "round", "what", "it", "says"]
    assert lines[1].split()[:3] == ["0", "genesis", "-"]
    assert "the node committed to nothing in this round" in lines[19]
    assert f"2 accepted, left out: …{C.peer_id[-8:]} late" in lines[20]
    assert max(map(len, lines)) < 130


def test_log_can_be_narrowed(run: Any) -> None:
    def indices(*arguments: str) -> list[int]:
        return [entry["index"] for entry in as_json(run, "log", *arguments)["entries"]]

    assert indices("--kind", "round_opened") == [7, 14]
    assert indices("--round", "0") == list(range(7, 14))
    assert indices("--kind", "state_agreed") == [13]
    assert indices("--kind", "contribution", "--node", C.peer_id) == [11, 18]
    assert indices("--node", C.peer_id[-8:], "--round", "1") == [14, 18, 19]
    assert indices("--limit", "2") == [18, 19]
    assert indices("--limit", "0") == list(range(20))
    assert as_json(run, "log", "--limit", "2")["matches"] == 20
    assert "the last 2 of 20; --limit 0 shows all" in run("log", "--limit", "2")
    assert run("log", "--round", "9") == "no entry fits\n"


def test_show_by_index_and_by_id(run: Any) -> None:
    leaf = WORLD.leaves[13]
    facts = as_json(run, "show", "13")
    assert facts["id"] == entry_id(leaf)
    assert facts["leaf_hash"] == merkle.leaf_hash(leaf).hex()
    assert facts["body"]["kind"] == facts["kind"] == "state_agreed"
    assert sorted(signer["role"] for signer in facts["signers"]) == ["coordinator"] + ["node"] * 3
    assert [credit["tokens"] for credit in facts["credits"]] == [TOKENS] * 3
    assert as_json(run, "show", facts["id"]) == as_json(run, "show", facts["id"][:9]) == facts
    shown = run("show", "13")
    assert "signed by  coordinator " + WORLD.coordinator.key in shown
    assert "signed by  node " + A.peer_id in shown
    assert "credit     128 tokens to account " + WORLD.owners[0].key[:12] in shown
    assert "ignored: not_committed (the node committed" in run("show", "18")
    assert "organiser" in run("show", "0")


def test_shares(run: Any) -> None:
    facts = as_json(run, "shares")
    assert (facts["as_of"], facts["checkpoint"], facts["total"]) == (20, True, 3 * TOKENS)
    assert sum(row["share"] for row in facts["shares"]) == 1
    rows = {row["account"]: row for row in facts["shares"]}
    assert [rows[owner.key]["credit"] for owner in WORLD.owners] == [TOKENS] * 3
    assert [rows[owner.key]["pending"] for owner in WORLD.owners] == [TOKENS, TOKENS, 0]
    assert rows[WORLD.owners[2].key]["rejected"] == {reasons.LATE: 1}
    shown = run("shares")
    assert "as of checkpoint 20, round 1" in shown
    assert "33.333 %" in shown
    assert "1 late" in shown


def test_shares_of_an_earlier_time(run: Any, home: Path) -> None:
    assert as_json(run, "shares", "--at", "13")["shares"] == []
    earlier = as_json(run, "shares", "--at", "14")
    assert [row["pending"] for row in earlier["shares"]] == [0, 0, 0]
    assert "as of checkpoint 14" in run("shares", "--at", "14")
    assert "as of entry 15 (not the end of a checkpoint)" in run("shares", "--at", "15")
    assert "nobody has credit yet" in run("shares", "--at", "0")
    with pytest.raises(UsageError, match="has 20 entries"):
        main(["shares", "--at", "21", "--home", str(home)])


def test_verify_says_what_holds(run: Any) -> None:
    facts = as_json(run, "verify")
    assert facts["verified"] is True
    assert facts["size"] == 20
    assert len(facts["root"]) == 64
    assert all(check["ok"] for check in facts["checks"])
    shown = run("verify")
    assert shown.count("ok  ") == len(facts["checks"])
    assert "the ledger holds: 20 entries" in shown


def test_verify_fails_loudly(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (DATABASE_NAME, CHECKPOINT_NAME):
        (tmp_path / name).write_bytes((home / name).read_bytes())
    path = tmp_path / DATABASE_NAME
    data = bytearray(path.read_bytes())
    data[data.index(b"payloadType") + 40] ^= 1
    path.write_bytes(data)
    assert artel.main(["ledger", "verify", "--home", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "FAIL" in out
    assert "does NOT hold" in err
    assert artel.main(["ledger", "verify", "--json", "--home", str(tmp_path)]) == 1
    facts = json.loads(capsys.readouterr().out)
    assert facts["verified"] is False
    assert artel.main(["ledger", "shares", "--home", str(tmp_path)]) == 1
    assert "damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["log", "--kind", "unknown"],
        ["log", "--limit", "-1"],
        ["log", "--round", "x"],
        ["show"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: artel ledger" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "999"], "there is no entry 999; the ledger has 20"),
        (["show", "f" * 64], "no entry has an id"),
        (["show", "abc"], "8 or more"),
    ],
)
def test_what_is_not_there_exits_with_2(
    home: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert artel.main(["ledger", *arguments, "--home", str(home)]) == 2
    assert message in capsys.readouterr().err


def test_a_home_without_a_ledger_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("status", "log", "shares", "verify"):
        assert artel.main(["ledger", command, "--home", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert f"error: there is no ledger in {tmp_path}" in error
        assert "--home DIR" in error


def test_an_empty_ledger_is_said_to_be_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LedgerStore.open(tmp_path / DATABASE_NAME, create=True).close()
    for command in ("status", "log"):
        assert main([command, "--home", str(tmp_path)]) == 0
        assert capsys.readouterr().out == "the ledger is still empty\n"
    assert main(["shares", "--json", "--home", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["shares"] == []
    assert main(["status", "--json", "--home", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["root"] == merkle.EMPTY_ROOT.hex()
    with pytest.raises(UsageError):
        main(["show", "0", "--home", str(tmp_path)])


def test_a_head_that_the_coordinator_did_not_sign_is_refused(tmp_path: Path) -> None:
    world, impostor = World(), World(name="impostor")
    impostor.origin = world.origin
    from ledger.checkpoint import sign_checkpoint

    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True) as store:
        store.append(
            world.add(world.genesis),
            lambda size, root: sign_checkpoint(impostor.coordinator, world.origin, size, root),
        )
    with pytest.raises(CheckFailed):
        main(["status", "--home", str(tmp_path)])


@pytest.mark.parametrize("command", ["", "status", "log", "show", "shares", "verify"])
def test_help_has_an_example_and_the_exit_codes(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main([*command.split(), "--help"])
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    assert "example: artel ledger " + command in shown
    assert "0 it holds · 1 a check failed · 2 wrong input" in shown


def test_a_command_loads_neither_torch_nor_the_network(home: Path) -> None:
    script = (
        "import sys, artel; code = artel.main(sys.argv[1:]); "
        "heavy = {'torch', 'hivemind', 'numpy', 'transformers', 'aiohttp'} & set(sys.modules); "
        "sys.exit(code or len(heavy))"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, "ledger", "shares", "--home", str(home)],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        timeout=60,
        check=False,
    )
    assert (result.returncode, result.stderr) == (0, b"")
