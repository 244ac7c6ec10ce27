"""The exchange benchmark: links hold their limit, peers agree, failed syncs are told apart."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from benchmark_world import run
from benchmarks import links
from benchmarks.exchange_findings import Cell, Findings, Series, rows, tables
from benchmarks.exchange_peers import Group, Sample
from benchmarks.exchange_worker import SIZES, layout
from places import ROOT

SERVER = """\
import socket
connection, _ = socket.create_server(("0.0.0.0", 5000)).accept()
while connection.recv(65536):
    pass
"""
CLIENT = """\
import socket, sys, time
for _ in range(100):
    try:
        connection = socket.create_connection((sys.argv[1], 5000))
        break
    except OSError:
        time.sleep(0.05)
connection.sendall(bytes(int(sys.argv[2])))
connection.shutdown(socket.SHUT_WR)
connection.recv(1)
"""


@pytest.fixture(scope="module")
def namespaces() -> None:
    if reason := links.refusal():
        pytest.skip(reason)


@pytest.mark.usefixtures("namespaces")
class TestLinks:
    def test_a_transfer_takes_as_long_as_the_link_needs_and_is_counted(self) -> None:
        size, mbit = 1_000_000, 8.0
        with links.Links(3, 100, mbit, unlimited=2) as hosts:
            seconds = {sender: self.send(hosts, sender, size) for sender in (0, 2)}
            sent, received = hosts.bytes(0), hosts.bytes(1)
        expected = size * 8 / (mbit * 1e6)
        # The bucket is full at the beginning: that much of it needs no time.
        assert 0.85 * expected < seconds[0] < 2 * expected
        assert seconds[2] < 0.6 * expected, "a host without a limit is held back"
        assert size < sent.up < 1.2 * size
        assert 2 * size < received.down < 2.4 * size

    @staticmethod
    def send(hosts: links.Links, sender: int, size: int) -> float:
        server = hosts.run(1, [sys.executable, "-c", SERVER])
        began = time.monotonic()
        argv = [sys.executable, "-c", CLIENT, hosts.address(1), str(size)]
        assert hosts.run(sender, argv).wait(30) == 0
        server.wait(10)
        return time.monotonic() - began

    def test_nothing_is_left_over(self) -> None:
        with links.Links(1) as hosts:
            process = hosts.run(0, ["sleep", "1000"])
            shown = self.listed()
            assert f"artel-{os.getpid()}" in shown
        assert process.wait(5) != 0
        assert f"artel-{os.getpid()}" not in self.listed()

    def test_the_next_run_removes_what_a_killed_one_left(self) -> None:
        code = (
            "import os\nfrom benchmarks.links import Links\n"
            "Links(1).__enter__()\nprint(os.getpid(), flush=True)\nos.kill(os.getpid(), 9)"
        )
        killed = subprocess.run([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE)
        name = f"artel-{int(killed.stdout)}-"
        assert name in self.listed()
        with links.Links(1):
            assert name not in self.listed()

    @staticmethod
    def listed() -> str:
        return subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout


def test_links_refuse_a_machine_without_the_commands(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert "iproute2" in str(links.refusal())


@pytest.mark.parametrize("size", SIZES)
def test_models_have_the_size_that_they_are_called(size: str) -> None:
    named = float(size.removesuffix("M")) * 1e6
    assert layout(size).parameters == pytest.approx(named, rel=0.4 if named < 1e6 else 0.11)


@pytest.mark.parametrize("codec", ["int4", "sparse64"])
async def test_our_peers_end_with_the_same_state(tmp_path: Path, codec: str) -> None:
    async with Group("ours", codec, "0.1M", 3, tmp_path) as group:
        samples = [await group.sync(number) for number in range(2)]
        processes = [process.pid for process in group._processes]
    for sample in samples:
        assert sample.complete
        assert len({reply["digest"] for reply in sample.replies}) == 1
        # Everybody fetches the blobs of the two others.
        assert 2 * sample.payload < sample.streams < 2.2 * sample.payload + 10_000
        assert sample.cpu > 0
        assert sample.memory > 1e8
    assert samples[0].replies[0]["digest"] != samples[1].replies[0]["digest"]
    assert not any(os.path.exists(f"/proc/{pid}") for pid in processes)


async def test_hivemind_averages(tmp_path: Path) -> None:
    async with Group("hivemind", "8bit", "0.1M", 2, tmp_path) as group:
        for number in range(4):  # on a busy machine its peers may not find each other in time
            sample = await group.sync(number)
            if sample.complete:
                break
    assert sample.complete
    # Eight bits of weights of size 0.02, against their true mean.
    assert all(0 < reply["error_of_mean"] < 0.05 for reply in sample.replies)
    assert sample.phases.keys() == {"matchmaking", "all-reduce"}


def sample_of(seconds: float, complete: bool = True, **phases: float) -> Sample:
    return Sample(seconds, complete, phases, 0.5, 10**8, 1e6, 1e6, 9e5, 9 * 10**5, [])


def found() -> Findings:
    ours = Series([sample_of(9.0)], [sample_of(s) for s in (1.0, 3.0, 2.0)])
    averager = [sample_of(s, matchmaking=s / 4, **{"all-reduce": 0.75 * s}) for s in (4.0, 8.0)]
    theirs = Series([], [*averager, sample_of(60.0, complete=False)])
    cell = Cell("9M", 2)
    table = {"ours int4": ours, "hivemind fp16": theirs, "torchft buckets": Series(failed="gone")}
    return Findings({cell: table}, isolated=True)


def test_rows_compare_medians_of_complete_syncs() -> None:
    step, alone = rows(found())
    assert (step["ours"], step["baseline"]) == (2.0, 6.0)
    assert step["ratio"] == pytest.approx(1 / 3)
    assert (alone["baseline"], alone["baseline_is"]) == (4.5, "hivemind fp16, all-reduce alone")
    assert step["ours_costs"]["cold"] == 9.0
    assert (step["baseline_costs"]["syncs"], step["baseline_costs"]["complete"]) == (3, 2)
    assert step["baseline_dtype"] == "fp16"


def test_the_table_names_failures_and_targets() -> None:
    text = tables(found())
    assert "gone" in text
    assert "only 2 of 3 syncs were complete" in text
    assert "target 0.5  0.33  holds  ours int4 / hivemind fp16" in text


@pytest.mark.slow
def test_the_quick_run_fills_every_part(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    done = run("exchange", "--quick", "--json", str(file), timeout=590)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, Any]] = json.loads(file.read_text())
    assert len({row["name"] for row in found}) == len(found)
    for row in found:
        assert 0 < row["ours"] < math.inf
        assert math.isclose(row["ratio"], row["ours"] / row["baseline"])
        assert row["unit"] == ("bytes" if "bytes sent" in row["name"] else "s")
    names = " ".join(row["name"] for row in found)
    for part in ("loopback: ours int4 against", "4 peers", "whole round", "first sync"):
        assert part in names
    assert ("100/20 Mbit/s" in names) == (links.refusal() is None)
