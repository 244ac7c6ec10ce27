"""Doors that a person names, what lies behind them, and which run is meant by a word."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artel.node.finding import chosen, public
from artel.protocol.errors import Unreachable, UsageError
from artel.protocol.listing import newest
from artel.protocol.net import doors
from client_world import served
from command_world import group
from listing_world import NOW, WAY, public_manifest, record, served_runs

RUNS = group("runs")
PEER = WAY.rpartition("/")[2]


@pytest.fixture(autouse=True)
def nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.delenv("ARTEL_BOOTSTRAP", raising=False)


def test_what_is_given_counts_then_the_environment_then_the_file(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert doors.named_doors(()) == []
    file = doors.bootstrap_file()
    file.parent.mkdir(parents=True)
    file.write_text(f"# mine\n\n{WAY}  # the first\nhttps://runs.example.org/list.txt\n")
    assert doors.named_doors(()) == [WAY, "https://runs.example.org/list.txt"]
    monkeypatch.setenv("ARTEL_BOOTSTRAP", f"http://a.example:1, {WAY}")
    assert doors.named_doors(()) == ["http://a.example:1", WAY]
    assert doors.named_doors(["http://b.example"]) == ["http://b.example"]


@pytest.mark.parametrize("wrong", ["a.example:8080", "/ip4/192.0.2.1/tcp/1", "ftp://a.example"])
def test_what_is_no_door_is_said_with_where_it_stands(wrong: str) -> None:
    with pytest.raises(UsageError, match="is no address of a peer"):
        doors.named_doors([wrong])
    file = doors.bootstrap_file()
    file.parent.mkdir(parents=True)
    file.write_text(f"{wrong}\n")
    with pytest.raises(UsageError, match=f"{file}: "):
        RUNS([])


def test_without_a_door_the_hint_names_the_file() -> None:
    with pytest.raises(UsageError, match="no address of the network") as error:
        RUNS([])
    assert str(doors.bootstrap_file()) in error.value.hint


def test_a_web_door_gives_listings_and_peers_and_no_further_servers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("artel.node.finding.time.time", lambda: float(NOW))
    with served(served_runs(tmp_path, record(), record(by=None))) as url:
        found = doors.opened([url])
        assert list(found.peers) == [WAY]
        assert found.errors == []
        assert len(found.records) == 2
        assert doors.opened([f"{url}/bootstrap"]).records == found.records
        assert [one.name for one in public([url])] == ["tiny"]  # by the manifest, and one alone
        assert RUNS(["--bootstrap", url]) == 0
        assert "3 of 32" in capsys.readouterr().out
        assert RUNS(["--bootstrap", url, "--json"]) == 0
        (row,) = json.loads(capsys.readouterr().out)
        assert (row["name"], row["round"], row["credit_per_token"]) == ("tiny", 7, 100)


def test_what_a_door_answers_is_bounded_and_checked(tmp_path: Path) -> None:
    folder = served_runs(tmp_path)
    odd = '{"runs": [{"listing": {"manifest": "\\ud800", "said": ""}}]}'
    for junk in ("[]", "{", '{"runs": 7}', '{"runs": [{"listing": {}}]}', odd, "[" * 9999):
        (folder / "api/v1/runs").write_text(junk)
        with served(folder) as url:
            assert doors.opened([url]).records == []
            assert len(doors.opened([url]).errors) == 1
    (folder / "bootstrap").write_text("".join(f"{WAY}{n}\n" for n in range(1, 9)) * 20)
    with served(folder) as url:
        assert len(doors.opened([url]).peers) <= doors.MAX_DOORS
    (folder / "bootstrap").write_text("#" * (doors.MAX_FILE_BYTES + 1))
    with served(folder) as url:
        assert len(doors.opened([url]).errors) == 2


def test_closed_doors_are_named() -> None:
    with pytest.raises(Unreachable, match="no door to the network"):
        public(["http://127.0.0.1:9"])


def test_a_run_is_meant_by_its_name_by_its_id_or_not_at_all() -> None:
    other = record(public_manifest("other"))
    twin = record(public_manifest("tiny", description="another one of this name"))
    found = newest([record(), other], NOW)
    (tiny,) = [one for one in found if one.name == "tiny"]
    assert chosen("tiny", found) == chosen(tiny.run, found) == chosen(tiny.run[:8], found) == tiny
    with pytest.raises(UsageError, match="no public run") as error:
        chosen("tinny", found)
    assert error.value.hint == "did you mean tiny?"
    with pytest.raises(UsageError, match="no public run"):
        chosen(tiny.run[:7], found)
    both = newest([record(), other, twin], NOW)
    with pytest.raises(UsageError, match=f"2 public runs are called 'tiny': .*{tiny.run[:12]}"):
        chosen("tiny", both)
    assert chosen(tiny.run[:12], both) == tiny
