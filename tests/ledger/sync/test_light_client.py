"""``artel ledger --from``: a ledger that somebody else holds, over HTTP, libp2p and from folders.

Commands on libp2p run in processes of their own: py-libp2p and hivemind do not go together.
"""

from __future__ import annotations

import http.server
import json
import shutil
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import pytest

from artel import cli
from artel.ledger import entries
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync import client
from artel.ledger.sync.source import HttpSource
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.protocol.dsse import Envelope
from artel.protocol.errors import CheckFailed, Unreachable
from artel.protocol.identity import Identity
from artel.protocol.invite import Invite
from artel.protocol.net.wire import Refused
from client_world import (
    become_member,
    claim,
    cosign_at,
    cosigned,
    record,
    run_command,
    served,
    write_claims,
    write_tiles,
)
from command_world import group
from ledger_world import CREDIT, World
from places import ROOT, WORLDS

main = group("ledger")

ROUNDS = 40
RULES: dict[str, Any] = {"ledger": {"witnesses": 2}, "ownership": {"rates": {"witness": 0}}}
WORLD = World(**RULES)
A, B, C = WORLD.members
RECORDED = 7 + 7 * ROUNDS
SIZE = RECORDED + 2
"""Entries: more than one bundle of 256."""


@pytest.fixture(autouse=True)
def folder_of_the_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "artel" / "ledger" / WORLD.run / "replica"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of 40 rounds in C's home; A and B have cosigned those, and all but the newest entry,
    by which what they did first is on record."""
    home = tmp_path_factory.mktemp("home")
    WORLD.write(home, rounds=ROUNDS)
    record(home, WORLD, RECORDED, A, B)
    cosign_at(home, SIZE - 1, A, B)
    become_member(home, WORLD, 2)
    write_claims(home, *(claim(WORLD, C, round) for round in range(ROUNDS)))
    return home


@pytest.fixture(scope="module")
def site(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a coordinator serves: ``ledger/`` with tiles, the certified head, aliases."""
    site = tmp_path_factory.mktemp("site")
    folder = write_tiles(home, site / "ledger")
    with LedgerReader.of(home) as store:
        (folder / "certified").write_text(cosigned(store.note_at(SIZE - 1), A, B))
    names = {WORLD.owners[0].key: {"alias": "Ada\x1b[2J", "team": ""}, "x": 1, "y": ["Bob", "Team"]}
    (folder / "aliases").write_text(json.dumps(names))
    return site


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command that must succeed prints."""
    assert main([*arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def spoiled(site: Path, folder: Path, name: str) -> Path:
    """A copy of a site in which the last byte but two of a file is another one."""
    copied = folder / "spoiled"
    shutil.copytree(site, copied)
    path = copied / "ledger" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    return copied


# --- HTTP -----------------------------------------------------------------------------------------


def test_commands_over_http_say_the_same_as_in_the_home(
    home: Path, site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(site) as url:
        for command in (
            ["status"],
            ["me"],
            ["shares"],
            ["log", "--limit", "0"],
            ["explain", "270"],
        ):
            here = answer(capsys, *command, "--home", str(home))
            for target in (url, f"{url}/", f"{url}/ledger"):
                there = answer(capsys, *command, "--home", str(home), "--from", target)
                for own in ("trusting", "from_home"):
                    here.pop(own, None)
                    there.pop(own, None)
                for row in there.get("shares", ()):
                    row["alias"] = ""
                assert there == here, command


def test_a_bare_url_is_not_trusted_silently(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with served(site) as url:
        assert main(["shares", "--from", url]) == 0
        out, err = capsys.readouterr()
        assert f"trusting {url} for the run id {WORLD.run[:12]}…; give --run ID to check" in err
        assert "Ada?[2J" in out, "a stranger's words do not steer the terminal"
        assert main(["shares", "--from", url, "--run", WORLD.run]) == 0
        assert capsys.readouterr().err == ""
        assert cli.main(["ledger", "shares", "--from", url, "--run", "0" * 64]) == 1
        assert "holds run" in capsys.readouterr().err


def test_a_light_client_over_http_loads_nothing_heavy(home: Path, site: Path) -> None:
    with served(site) as url:
        done = run_command("me", "--home", str(home), "--from", url, "--run", WORLD.run)
    assert (done.code, done.err) == (0, "")
    assert f"final up to entry {RECORDED - 1} of {SIZE - 1}, as of checkpoint {SIZE}" in done.out
    assert not done.heavy | done.modules & {"libp2p", "trio", "msgpack"}


def test_nobody_there_exits_with_3(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        for command in (["status", "--from", url], ["audit", url, "--run", WORLD.run]):
            assert cli.main(["ledger", *command]) == 3
            assert "check the address" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["tile/0/001.p/33", "tile/entries/000", "tile/entries/001.p/33"])
def test_a_damaged_tile_is_noticed_and_named(
    site: Path, tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(spoiled(site, tmp_path, name)) as url:
        assert cli.main(["ledger", "shares", "--from", url]) == 1
        assert "ask another one" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["checkpoint", "certified"])
def test_a_damaged_checkpoint_is_refused(site: Path, tmp_path: Path, name: str) -> None:
    copied = spoiled(site, tmp_path, name)
    with served(copied) as url:
        assert cli.main(["ledger", "status", "--from", url]) in (1, 2)
        (copied / "ledger" / name).write_text("no checkpoint at all")
        assert cli.main(["ledger", "status", "--from", url]) == 1


def test_a_manifest_of_another_run_is_refused(tmp_path: Path) -> None:
    """Whoever serves a log under our run's name needs our manifest in it."""
    impostor = World(name="impostor")
    impostor.origin = WORLD.origin
    with LedgerStore.open(tmp_path / "h" / DATABASE_NAME, create=True) as store:
        store.append(impostor.add(*impostor.start), impostor.sign)
    from artel.ledger.tlog.checkpoint import sign_checkpoint

    note = sign_checkpoint(impostor.coordinator, WORLD.origin, len(impostor.leaves), store.root)
    folder = write_tiles(tmp_path / "h", tmp_path / "tiles")
    (folder / "checkpoint").write_text(note)
    assert cli.main(["ledger", "status", "--from", str(folder)]) == 1


def test_a_log_that_is_no_run_is_left_to_audit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from tlog_world import LOG_KEY, leaves_of, write_log

    write_log(tmp_path, leaves_of(300))
    assert cli.main(["ledger", "status", "--from", str(tmp_path)]) == 1
    assert "artel ledger audit TARGET --vkey VKEY" in capsys.readouterr().err
    with served(tmp_path) as url:
        assert main(["audit", url, "--vkey", LOG_KEY.encode(), "--full"]) == 0


# --- what is kept between two calls ---------------------------------------------------------------


def test_a_second_call_fetches_only_what_is_new(
    home: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    growing = tmp_path / "growing"
    shutil.copytree(site, growing)
    with LedgerReader.of(home) as store:
        earlier = store.note_at(RECORDED - 7)
    shutil.rmtree(growing / "ledger")
    write_tiles(home, growing / "ledger", earlier)
    asked: list[str] = []
    with served(growing, asked) as url:
        command = ("me", "--home", str(home), "--from", url)
        assert answer(capsys, *command)["as_of"] == RECORDED - 7
        assert "/ledger/tile/entries/000" in asked
        write_tiles(home, growing / "ledger")
        asked.clear()
        facts = answer(capsys, *command)
        assert facts["as_of"] == SIZE
        assert answer(capsys, *command) == facts
        assert not [path for path in asked if path.startswith("/ledger/tile/entries/000")]


def test_a_copy_that_is_behind_is_read_and_said_to_be_behind(
    home: Path,
    site: Path,
    tmp_path: Path,
    folder_of_the_cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with LedgerReader.of(home) as store:
        older = write_tiles(home, tmp_path / "older", store.note_at(14))
    assert main(["status", "--from", str(site / "ledger")]) == 0
    facts = answer(capsys, "status", "--from", str(older)) if capsys.readouterr() else {}
    assert (facts["as_of"], facts["seen"]) == (14, SIZE)
    for command in ("status", "shares", "log"):
        assert main([command, "--from", str(older)]) == 0
        assert f"checkpoint {SIZE} " in capsys.readouterr().err
    with LedgerReader.of(folder_of_the_cache) as kept:
        assert kept.size == SIZE, "what was seen is not forgotten"


def test_a_copy_that_another_version_packed_is_fetched_again(
    home: Path, tmp_path: Path, folder_of_the_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with LedgerReader.of(home) as store:
        few = write_tiles(home, tmp_path / "few", store.note_at(14))
    command = ["shares", "--from", str(few), "--json"]
    assert main(command) == 0
    wanted = json.loads(capsys.readouterr().out)
    with closing(sqlite3.connect(folder_of_the_cache / DATABASE_NAME)) as connection:
        connection.execute("UPDATE entries SET packed = CAST(x'00' || packed AS BLOB)")
        connection.commit()
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out) == wanted


def test_a_log_that_would_fill_the_disk_is_not_fetched(
    site: Path, folder_of_the_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client, "MAX_FETCHED_BYTES", 5000)
    with pytest.raises(CheckFailed, match="more than 5,000 bytes"):
        main(["shares", "--from", str(site / "ledger")])
    with LedgerReader.of(folder_of_the_cache) as kept:
        assert not kept.size


def test_false_alarms_are_not_passed_on(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(site, copied)
    text = (copied / "ledger" / "checkpoint").read_text()
    false = [{"first": text, "second": text}, {}, {"first": "a", "second": "b"}, 7]
    (copied / "ledger" / "conflicts").write_text(json.dumps(false))
    with served(copied) as url:
        assert answer(capsys, "status", "--from", url)["conflicts"] == 0


def test_a_damaged_or_evicted_cache_is_made_again(
    home: Path, site: Path, folder_of_the_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(site) as url:
        command = ("me", "--home", str(home), "--from", url)
        facts = answer(capsys, *command)
        files = [path for path in folder_of_the_cache.rglob("*") if path.name != "lock"]
        files = [path for path in files if path.is_file()]
        assert "ledger.sqlite3" in {path.name for path in files}
        for path in files:
            data = bytearray(path.read_bytes())
            data[len(data) // 2] ^= 1
            path.write_bytes(data)
        if cli.main(["ledger", *command]):  # an entry that is not what it was, far into the file
            assert "is removed: run the command again" in capsys.readouterr().err
        capsys.readouterr()
        assert answer(capsys, *command) == facts
        for path in files:
            path.write_bytes(b"")
        assert answer(capsys, *command) == facts
        shutil.rmtree(folder_of_the_cache)
        assert answer(capsys, *command) == facts


def test_every_byte_of_what_is_kept_is_checked_when_it_is_read(
    site: Path, folder_of_the_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with served(site) as url:
        shown = ("explain", "3", "--from", url)
        leaf = answer(capsys, *shown)
        kept = folder_of_the_cache / DATABASE_NAME
        with sqlite3.connect(kept) as database:
            database.execute("UPDATE entries SET packed = zeroblob(length(packed)) WHERE idx = 3")
        database.close()
        assert cli.main(["ledger", *shown]) == 1
        assert "and is removed: run the command again" in capsys.readouterr().err
        assert answer(capsys, *shown) == leaf


class Older(entries.Dispute):
    """Of a version of before, which this one does not read."""

    KIND: ClassVar = "older"
    kind: Literal["older"] = "older"  # type: ignore[assignment]


def test_what_another_version_has_kept_is_removed_and_fetched_again(
    site: Path,
    folder_of_the_cache: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    past = World(**RULES)
    fields = {"account": A.key, "contribution": "0" * 64, "reason": "doubt", "evidence": ""}
    folder_of_the_cache.mkdir(parents=True)
    with monkeypatch.context() as then:
        then.setitem(entries.BODIES, "older", Older)
        path = folder_of_the_cache / DATABASE_NAME
        with LedgerStore.open(path, create=True, run=WORLD.run) as store:
            store.append(past.add(past.genesis), past.sign)
            store.append(past.add(entries.by_account(Older, A, WORLD.run, **fields)), past.sign)
    with served(site) as url:
        assert cli.main(["ledger", "status", "--from", url]) == 1
        assert "or of another version, and is removed: run the" in capsys.readouterr().err
        assert answer(capsys, "status", "--from", url)["size"] == SIZE


def test_a_cache_that_cannot_be_written_is_done_without(
    home: Path, site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with served(site) as url:
        assert main(["me", "--home", str(home), "--from", url]) == 0


def test_a_server_with_a_newer_head_than_its_tree_is_refused(
    home: Path, site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(site, copied)
    with LedgerReader.of(home) as store:
        older = store.note_at(SIZE - 1)
    shutil.rmtree(copied / "ledger")
    write_tiles(home, copied / "ledger", older)
    (copied / "ledger" / "certified").write_text(older)
    shutil.copy(site / "ledger" / "checkpoint", copied / "ledger" / "checkpoint")
    with served(copied) as url:
        assert cli.main(["ledger", "status", "--from", url]) == 1
        assert "the log has neither tile/" in capsys.readouterr().err


def another_history(home: Path, *more: Envelope) -> Path:
    """A home whose longer ledger does not go on from the one that is served here."""
    other = World(**RULES)
    other.write(home, rounds=1)
    with LedgerStore.open(home / DATABASE_NAME) as store:
        for attempt in range(150):
            closed = other.closed(1, attempt, accepted=())
            store.append(other.add(other.opened(1, attempt, cursor=24), closed), other.sign)
        assert store.size > SIZE
        if more:
            store.append(other.add(*more), other.sign)
    return home


def test_a_ledger_that_contradicts_what_was_seen_is_refused(
    site: Path, tmp_path: Path, folder_of_the_cache: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forked = write_tiles(another_history(tmp_path / "other"), tmp_path / "forked")
    with served(site) as url:
        assert main(["status", "--from", url]) == 0
    capsys.readouterr()
    assert cli.main(["ledger", "status", "--from", str(forked)]) == 1
    said = capsys.readouterr().err
    assert "somebody has signed two histories" in said
    assert f"what was read before is in {folder_of_the_cache}" in said
    shutil.rmtree(folder_of_the_cache)
    assert cli.main(["ledger", "status", "--from", str(forked)]) == 0


def test_a_certified_head_of_another_tree_is_a_split_view(site: Path, tmp_path: Path) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(site, copied)
    other = cosigned(WORLD.sign(100, bytes(32)), A, B)
    (copied / "ledger" / "certified").write_text(other)
    with served(copied) as url:
        assert cli.main(["ledger", "status", "--from", url]) == 1


def test_strangers_cosignatures_make_nothing_final(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = tmp_path / "copied"
    shutil.copytree(site, copied)
    strangers = [Identity.from_seed(bytes([number]) * 32) for number in (1, 2, 3)]
    with served(copied) as url:
        text = (copied / "ledger" / "checkpoint").read_text()
        (copied / "ledger" / "certified").write_text(cosigned(text, A, *strangers))
        facts = answer(capsys, "status", "--from", url)
    assert (facts["final_size"], len(facts["witnesses"])) == (0, 1)


# --- handing in over HTTP -------------------------------------------------------------------------


@contextmanager
def taking(site: Path, status: int, body: dict[str, Any]) -> Iterator[tuple[str, list[bytes]]]:
    """A server of a site that answers every POST in one way; and what was posted."""
    posted: list[bytes] = []

    class Taking(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: Any) -> None:
            super().__init__(*arguments, directory=str(site))

        def log_message(self, *_: object) -> None:
            pass

        def do_POST(self) -> None:
            posted.append(self.rfile.read(int(self.headers["Content-Length"])))
            data = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Taking)
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", posted
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_an_entry_is_handed_in_and_looked_for_in_the_log(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("artel.ledger.sync.view.SUBMITTED_WAIT_S", 0.0)
    new = entries.account(Identity.from_seed(b"7" * 32), WORLD.run)

    def submit(status: int, body: dict[str, Any], envelope: Envelope = new) -> tuple[int, str]:
        with taking(site, status, body) as (url, posted):
            holder = HttpSource(url)
            with client.remote_view(holder, WORLD.run) as view:
                done = view.submit(envelope)
            assert posted == [envelope.encode()]
            return done

    with pytest.raises(Unreachable, match="not in the ledger"):  # whatever it says
        submit(200, {"index": SIZE, "note": WORLD.sign(SIZE + 1, bytes(32))})
    index, note = submit(200, {}, entries.decode(WORLD.leaves[3]).envelope)
    assert (index, parse_checkpoint(note).size) == (3, SIZE)
    with pytest.raises(Refused, match="not now") as refused:
        submit(409, {"error": "not now\x1b", "hint": "later", "code": "duplicate"})
    assert (refused.value.code, refused.value.message) == ("duplicate", "not now?")
    with pytest.raises(Unreachable):
        submit(503, {"error": "busy", "hint": "", "code": "busy"})


def test_an_entry_in_another_history_is_not_in_the_ledger(site: Path, tmp_path: Path) -> None:
    new = entries.account(Identity.from_seed(b"7" * 32), WORLD.run)
    forked = write_tiles(another_history(tmp_path / "other", new), tmp_path / "forked")
    copied = Path(shutil.copytree(site, tmp_path / "copied"))
    with taking(copied, 200, {}) as (url, _), client.remote_view(HttpSource(url)) as view:
        shutil.rmtree(copied / "ledger")
        shutil.copytree(forked, copied / "ledger")
        with pytest.raises(CheckFailed, match="another history"):
            view.submit(new)


# --- libp2p, and a real server --------------------------------------------------------------------


@dataclass(frozen=True)
class Peer:
    """Somebody who serves a copy of the home's ledger, in a process of their own."""

    address: str
    url: str
    home: Path


@contextmanager
def serving(home: Path, folder: Path) -> Iterator[Peer]:
    copied = folder / "home"
    shutil.copytree(home, copied)
    child = subprocess.Popen(
        [sys.executable, str(WORLDS / "serve_ledger.py"), str(copied), json.dumps(RULES)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{WORLDS}", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert child.stdout is not None
        address, url = child.stdout.readline().split()
        yield Peer(address, url, copied)
    finally:
        child.communicate("")


@pytest.fixture(scope="module")
def peer(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Peer]:
    with serving(home, tmp_path_factory.mktemp("peer")) as peer:
        yield peer


@pytest.fixture
def address(peer: Peer) -> str:
    return peer.address


def test_a_light_client_over_libp2p_answers_like_the_home(
    home: Path, address: str, capsys: pytest.CaptureFixture[str]
) -> None:
    here = answer(capsys, "me", "--home", str(home))
    invite = Invite(
        WORLD.run, ("/ip4/127.0.0.1/tcp/1" + address[address.index("/p2p/") :], address)
    )
    for target in (address, invite.encode()):
        done = run_command("me", "--home", str(home), "--from", target, "--json")
        assert (done.code, done.err) == (0, "")
        assert not done.heavy, "neither torch nor hivemind"
        assert "libp2p" in done.modules
        assert json.loads(done.out) == here | {"from_home": False}
    done = run_command("compare", address, str(home))
    assert (done.code, done.err) == (0, "")
    assert "2 holders show one history" in done.out
    done = run_command("audit", address, "--run", WORLD.run, "--full", "--json")
    assert json.loads(done.out)["pending"] == 9 * CREDIT


def test_a_peer_that_is_not_there_or_somebody_else_exits_with_3(address: str) -> None:
    nobody = "/ip4/127.0.0.1/tcp/1/p2p/" + A.peer_id
    done = run_command("status", "--from", nobody)
    assert (done.code, done.out) == (3, "")
    assert "no peer answers at /ip4/127.0.0.1/tcp/1" in done.err
    assert "Traceback" not in done.err
    imposed = address[: address.index("/p2p/")] + "/p2p/" + A.peer_id
    assert run_command("status", "--from", imposed).code == 3, "the handshake names another key"


def test_a_peer_of_another_run_exits_with_1(address: str) -> None:
    done = run_command("status", "--from", address, "--run", "0" * 64)
    assert done.code == 1
    assert "holds run" in done.err


def test_an_address_that_is_not_tcp_is_refused() -> None:
    done = run_command("status", "--from", "/ip4/127.0.0.1/udp/1/quic-v1/p2p/" + A.peer_id)
    assert done.code == 2
    assert "give a TCP address" in done.err


def test_what_a_person_hands_in_is_in_the_ledger(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Over libp2p by the invite in the home, and over HTTP; then everybody can read it."""
    mine = tmp_path / "mine"
    shutil.copytree(home, mine)
    with serving(home, tmp_path) as peer:
        (mine / "invite").write_text(Invite(WORLD.run, (peer.address,)).encode())
        pending = [index for index in range(RECORDED - 7, RECORDED) if is_contribution(index, A)]
        dispute = ("dispute", str(pending[0]), "--reason", "copied", "--home", str(mine), "--json")
        done = run_command(*dispute)
        assert (done.code, done.err) == (0, "")
        assert json.loads(done.out)["index"] == SIZE
        again = run_command(*dispute)
        assert (again.code, again.out) == (1, "")
        assert not again.heavy
        alias = ("alias", "Cleo", "--yes", "--home", str(mine), "--from", peer.url)
        done = run_command(*alias)
        assert done.code == 0, done.err
        facts = answer(capsys, "me", "--home", str(mine), "--from", peer.url)
        assert (facts["alias"], facts["as_of"]) == ("Cleo", SIZE + 1)
        facts = answer(capsys, "explain", str(SIZE), "--from", peer.url, "--run", WORLD.run)
        assert (facts["kind"], facts["status"]) == ("dispute", "recorded")
        done = run_command("me", "--home", str(mine), "--from", peer.address, "--json")
        assert json.loads(done.out)["alias"] == "Cleo"


def is_contribution(index: int, member: Identity) -> bool:
    body = entries.decode(WORLD.leaves[index]).body
    return isinstance(body, entries.Contribution) and body.node == member.peer_id


def test_a_real_server_answers_like_the_home(
    home: Path, peer: Peer, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in (["status"], ["me"], ["shares"], ["log", "--mine"], ["explain", "270"]):
        here = answer(capsys, *command, "--home", str(home))
        there = answer(capsys, *command, "--home", str(home), "--from", peer.url)
        for own in ("trusting", "from_home"):
            here.pop(own, None)
            there.pop(own, None)
        assert there == here, command
    assert main(["audit", peer.url, "--run", WORLD.run, "--full"]) == 0
    assert main(["compare", peer.url, str(home)]) == 0
