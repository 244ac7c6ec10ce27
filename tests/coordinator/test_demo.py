"""``artel demo``: from the command to the checked result, and what happens when it is stopped."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import psutil
import pytest

from artel import cli
from artel.coordinator import demo
from artel.coordinator.demo_check import Demo, Facts, checked
from artel.coordinator.demo_run import draw_loss
from artel.coordinator.demo_view import DemoView, summary
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME
from artel.ledger.sync.client import home_view
from artel.ledger.sync.serving import Served
from artel.ledger.sync.share_proof import prove_share
from artel.ledger.tlog import note
from artel.ledger.tlog.cosignature import add_lines
from artel.ledger.tlog.note import Note, SignatureLine
from artel.protocol import tether
from artel.protocol.content import content_id
from artel.protocol.errors import UsageError
from artel.protocol.run_file import parse_config
from ledger_world import World
from terminal_world import Terminal, terminal

STATE = b"the final state of a run" * 1000


def command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "artel", "demo", *arguments]


def processes_of(folder: Path) -> list[psutil.Process]:
    """Everything that runs on behalf of a demo: all of it names its folder."""
    found = []
    for process in psutil.process_iter():
        try:
            if any(str(folder) in part for part in process.cmdline()):
                found.append(process)
        except psutil.Error:
            continue
    return found


def wait_until(condition: Callable[[], bool], timeout: float, why: str) -> None:
    end = time.monotonic() + timeout
    while not condition():
        assert time.monotonic() < end, f"{why}: not within {timeout:.0f} s"
        time.sleep(0.2)


# --- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("nodes", "rounds"), [(1, 1), (3, 6), (3, 12), (16, 1000)])
def test_the_run_file_is_valid_for_every_size(nodes: int, rounds: int) -> None:
    config = parse_config(demo.run_text(nodes, rounds).encode(), "RUN.toml")
    assert (config.rounds.total, config.rounds.min_nodes) == (rounds, nodes)


@pytest.mark.parametrize(
    "arguments", [["--nodes", "0"], ["--rounds", "x"], ["--rounds", "-1"], ["--nodes", "17"]]
)
def test_numbers_out_of_bounds_are_refused(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["demo", *arguments]) == 2
    assert "is not a whole number from" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--overlap", "50", "--inner-steps", "20"], "overlap_steps = 50 is more than half"),
        (["--fragments", "5", "--rounds", "2"], "fragments"),
    ],
)
def test_options_that_contradict_each_other_end_at_once(
    arguments: list[str], complaint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=complaint):
        cli.run(["demo", *arguments])
    assert list(tmp_path.iterdir()) == []


def test_a_folder_with_something_in_it_is_never_used(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("precious")
    with pytest.raises(UsageError, match="is not empty"):
        demo._fresh_folder(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_without_a_wish_each_demo_gets_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    names = [demo._fresh_folder(None).name for _ in range(3)]
    assert names == ["demo-run", "demo-run-2", "demo-run-3"]


def test_a_file_in_the_way_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="cannot use"):
        demo._fresh_folder(tmp_path / "file" / "below")


# --- the check at the end -------------------------------------------------------------------------


def finished_demo(folder: Path, *, signed_by: int = 3, cosigned_by: int = 2) -> Demo:
    """What a demo of two rounds leaves behind: four homes with ledgers, and the final states."""
    world = World(name="demo", total=2, ledger={"witnesses": 2})
    batches = world.batches(1)
    last = world.round(1)[:-1]
    root = content_id(STATE)
    last.append(world.agreed(2, nodes=world.members[:signed_by], root=root))
    for batch in (last[:1], last[1:-1], last[-1:], [world.run_closed(2)]):
        batches.append(world.add(*batch))
    members = world.members[:cosigned_by]
    batches.append(world.add(world.witnessed(world.leaves, members)))
    head = world.head(world.leaves)
    lines = [note.parse(world.cosigned(member, head)).signatures[0] for member in members]
    signed = add_lines(note.parse(world.sign(head.size, head.root)), lines).encode()
    world.batches = lambda rounds: batches  # type: ignore[method-assign]
    for name in ("coordinator", "node-1", "node-2", "node-3"):
        (folder / name / "blobs").mkdir(parents=True)
        world.write(folder / name)
        (folder / name / "blobs" / root).write_bytes(STATE)
        with closing(HeadStore(folder / name / HEADS_NAME)) as heads:
            heads.add_note(signed)
    return Demo(folder, folder / "RUN.toml", nodes=3, rounds=2)


def rows() -> list[dict[str, Any]]:
    seconds = {"training": 3.0, "revealing": 0.25, "applying": 0.5}
    return [
        {"round": 0, "validation": 6.9, "loss": 6.4, "seconds": seconds},
        {"round": 1, "validation": 6.2, "loss": 5.9, "seconds": seconds},
        {"round": 2, "validation": 5.6, "loss": None, "seconds": {}},
    ]


def told(result: Facts) -> str:
    return summary(result | {"seconds": 1.0, "sample": "x\ty"})


def test_a_sound_demo_has_no_problems(tmp_path: Path) -> None:
    result = checked(finished_demo(tmp_path), rows(), {"a": 600, "b": 200, "c": 100})
    assert result["problems"] == []
    found = result
    assert found["state_roots_agree"]
    assert found["ledger"]["verified"]
    assert sum(row["share"] for row in found["shares"]) == 1
    assert (found["first_val_loss"], found["final_val_loss"]) == (6.9, 5.6)
    assert found["bytes_up_per_node_per_round"] == 150
    assert found["seconds_per_round"]["not_training"] == 0.75
    size = found["ledger"]["size"]
    assert (found["ledger"]["final"], found["ledger"]["witnesses"]) == (size - 1, 2)
    assert found["credit"]["pending"] == 0
    text = told(result)
    assert "agree bit for bit" in text
    assert f"{size - 1} of {size} entries; the newest head was cosigned by 2 accounts" in text
    assert f"artel ledger me --home {tmp_path / 'node-1'}" in text


def test_a_ledger_that_is_not_final_is_a_problem(tmp_path: Path) -> None:
    result = checked(finished_demo(tmp_path, cosigned_by=1), rows(), {})
    size = result["ledger"]["size"]
    assert result["problems"] == [f"only 0 of {size} ledger entries are final"]
    assert "no head that 2 accounts cosigned covers another's record" in told(result)


def test_a_forged_cosignature_is_found(tmp_path: Path) -> None:
    finished = finished_demo(tmp_path)
    for name in ("coordinator", "node-1", "node-2", "node-3"):
        with closing(HeadStore(tmp_path / name / HEADS_NAME)) as heads:
            signed = note.parse(next(heads.newest_first(0), ""))
        (tmp_path / name / HEADS_NAME).unlink()
        last = signed.signatures[-1]
        wrong = SignatureLine(
            last.name, last.key_id, last.signature[:-1] + bytes([last.signature[-1] ^ 1])
        )
        with closing(HeadStore(tmp_path / name / HEADS_NAME)) as heads:
            heads.add_note(Note(signed.text, (*signed.signatures[:-1], wrong)).encode())
    result = checked(finished, rows(), {})
    assert any("are final" in problem for problem in result["problems"])
    assert result["ledger"]["final"] == 0


def test_one_flipped_bit_in_a_nodes_state_is_found(tmp_path: Path) -> None:
    finished = finished_demo(tmp_path)
    path = tmp_path / "node-2" / "blobs" / content_id(STATE)
    path.write_bytes(STATE[:100] + bytes([STATE[100] ^ 1]) + STATE[101:])
    result = checked(finished, rows(), {})
    assert result["problems"] == ["the final state of node 2 is another one"]
    assert not result["state_roots_agree"]
    assert "DO NOT AGREE" in told(result)


def test_a_node_without_the_final_state_is_found(tmp_path: Path) -> None:
    finished = finished_demo(tmp_path)
    (tmp_path / "node-3" / "blobs" / content_id(STATE)).unlink()
    result = checked(finished, rows(), {})
    assert result["problems"] == ["node 3 does not hold the final state"]
    assert not result["state_roots_agree"]


def test_a_missing_signature_under_a_state_is_found(tmp_path: Path) -> None:
    result = checked(finished_demo(tmp_path, signed_by=2), rows(), {})
    assert result["problems"] == ["1 contributor(s) did not sign state 2"]


def test_a_damaged_ledger_is_found(tmp_path: Path) -> None:
    finished = finished_demo(tmp_path)
    path = tmp_path / "node-1" / DATABASE_NAME
    data = bytearray(path.read_bytes())
    data[-50] ^= 1
    path.write_bytes(data)
    result = checked(finished, rows(), {})
    assert any("ledger of node-1" in problem for problem in result["problems"])
    assert not result["ledger"]["verified"]


def test_a_node_with_another_history_is_found(tmp_path: Path) -> None:
    finished = finished_demo(tmp_path)
    other = World(name="other")
    path = tmp_path / "node-1" / DATABASE_NAME
    path.unlink()
    (tmp_path / "node-1" / "checkpoint").unlink()
    other.write(tmp_path / "node-1")
    result = checked(finished, rows(), {})
    assert "node-1 holds another ledger than the coordinator" in result["problems"]


def test_a_loss_that_does_not_fall_is_a_problem(tmp_path: Path) -> None:
    flat = [row | {"validation": 6.9} for row in rows()]
    result = checked(finished_demo(tmp_path), flat, {})
    assert result["problems"] == ["the validation loss has not fallen"]


def test_too_few_rounds_are_a_problem(tmp_path: Path) -> None:
    finished = finished_demo(tmp_path)
    longer = Demo(finished.folder, finished.run_file, finished.nodes, rounds=3)
    assert checked(longer, rows(), {})["problems"] == ["2 of 3 rounds were agreed on"]


# --- what it shows --------------------------------------------------------------------------------


def test_lines_show_rounds_and_give_a_sign_of_life() -> None:
    now = [0.0]
    out = io.StringIO()
    view = DemoView(out, clock=lambda: now[0])
    node = {"node": "12D3KooWabcdefgh", "phase": "train\x1bing", "step": 3, "steps": 9, "loss": 5.0}
    status = {
        "round": 0,
        "total": 4,
        "attempt": 0,
        "phase": "waiting",
        "waiting_for": 2,
        "validation": {"first": None, "last": None},
        "nodes": [node],
    }
    for now[0] in (0.0, 1.0, 4.9, 5.1, 6.0):
        view.show(status)
    status |= {"round": 1, "validation": {"first": None, "last": {"round": 0, "loss": 6.9}}}
    view.show(status)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert "round 0/4" in lines[0]
    assert "waiting for 2 more nodes" in lines[1]
    assert "…abcdefgh train?ing 3/9 loss 5.000" in lines[1]
    assert "round 1/4   validation loss 6.9000 (state 0)" in lines[2]


class Tty(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_table_keeps_nodes_that_have_left() -> None:
    out = Tty()
    node = {"node": "12D3KooWabcdefgh", "phase": "training", "step": 3, "steps": 9, "loss": 5.0}
    node |= {"tokens_per_second": 1000.0, "bytes_up": 1, "bytes_down": 1, "credit": 77}
    status = {
        "round": 1,
        "total": 1,
        "attempt": 0,
        "phase": "training",
        "validation": {"first": None, "last": None},
        "ledger": {"size": 9},
        "nodes": [node],
    }
    with DemoView(out) as view:
        view.say("hello \x1b[2J")
        view.show(status)
        view.show(status | {"phase": "finished", "nodes": []})
    last = out.getvalue()
    assert "…abcdefgh" in last
    assert "finished" in last
    assert "hello ?[2J" in last


def test_the_plot_is_a_picture_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "loss.svg"
    draw_loss(path, checked(finished_demo(tmp_path / "demo"), rows(), {}))
    picture = ElementTree.fromstring(path.read_text(encoding="utf-8"))
    tags = [element.tag.rpartition("}")[2] for element in picture.iter()]
    assert (tags[0], tags.count("polyline")) == ("svg", 2)


def test_a_process_whose_runner_is_gone_does_not_start() -> None:
    command = list(tether.command("run", "--help"))
    assert subprocess.run(command, capture_output=True, env=tether.environment()).returncode == 0
    command[command.index(str(os.getpid()))] = "1"
    done = subprocess.run(command, capture_output=True, timeout=60, env=tether.environment())
    assert (done.returncode, done.stdout) == (1, b"")


# --- real ones ------------------------------------------------------------------------------------


def test_a_small_demo_from_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    done = subprocess.run(
        command("--json", "--nodes=2", "--rounds=2", "--inner-steps=6", "--out", str(out)),
        capture_output=True,
        text=True,
        timeout=220,
        env=tether.environment(),
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert (found["rounds"], found["nodes"], found["problems"]) == (2, 2, [])
    assert found["state_roots_agree"] is True
    assert found["ledger"]["verified"] is True
    assert found["final_val_loss"] < found["first_val_loss"]
    assert sum(row["share"] for row in found["shares"]) == 1
    # Both trained the same; who cosigned more entries has a little more.
    assert [row["share"] for row in found["shares"]] == pytest.approx([0.5, 0.5], abs=0.2)
    ledger = found["ledger"]
    assert (ledger["final"], ledger["witnesses"]) == (ledger["size"] - 1, 2)
    assert found["credit"]["pending"] == 0
    assert found["audits"]["verdicts"] >= 1, "new nodes audit each other"
    assert found["bytes_up_per_node_per_round"] > 100_000
    assert found["sample"].startswith("def __init__(self")
    assert len(found["sample"]) > 30
    for name in ("RUN.toml", "loss.svg", "coordinator/ledger.sqlite3", "node-2/ledger.sqlite3"):
        assert (out / name).is_file(), name
    assert "round 2/2" in done.stderr
    assert processes_of(out) == []
    everybody = asked(capsys, "shares", "--home", str(out / "node-1"))
    sums = {name: everybody[name] for name in ("vested", "pending")}
    with home_view(out / "coordinator") as view:
        served = Served(view.log, view.heads, lambda: view.state)
        for row in everybody["shares"]:
            proven = prove_share(served, row["account"])
            assert (proven.root.closing, proven.root.nodes) == (1, 0)
            assert proven.credits is not None
            assert proven.total._asdict() == sums
            assert proven.credits._asdict() == {name: row[name] for name in sums}


def asked(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """What ``artel ledger`` answers."""
    assert cli.main(["ledger", *arguments, "--json"]) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    return facts


@contextmanager
def started(out: Path, *, until: str) -> Iterator[Terminal]:
    """A demo in a terminal, once the process of this name below its folder has begun to speak."""
    log = out / until / "console.log"
    with terminal("demo", "--nodes", "2", "--out", str(out)) as opened:
        opened.wait_for(lambda: log.exists() and log.stat().st_size > 0, f"{until} starts")
        assert len(opened.tree()) >= 2
        yield opened


@pytest.mark.parametrize(
    "act",
    [
        Terminal.press_ctrl_c,
        pytest.param(Terminal.signal_group, marks=pytest.mark.slow),
        pytest.param(Terminal.stop_as_a_service, marks=pytest.mark.slow),
        pytest.param(Terminal.hang_up, marks=pytest.mark.slow),
    ],
)
def test_a_demo_in_a_terminal_ends_with_all_its_processes(
    tmp_path: Path, act: Callable[[Terminal], None]
) -> None:
    out = tmp_path / "demo"
    with started(out, until="node-2") as opened:
        assert len(opened.tree()) >= 4
        act(opened)
        assert opened.ended(60) == 130
    if act is not Terminal.hang_up:
        assert f"everything is stopped, {out}" in opened.text.replace("\r\n", "")
    assert processes_of(out) == []


def test_a_killed_demo_leaves_no_process_behind(tmp_path: Path) -> None:
    out = tmp_path / "demo"
    with started(out, until="coordinator") as opened:
        opened.process.kill()
        opened.process.wait()
        wait_until(lambda: not processes_of(out), 60, "all processes of the demo are gone")
