"""Keys, their files, the home lock and signed statements."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artel.protocol import canonical, dsse, identity
from artel.protocol.errors import CheckFailed, DecodeError, ResourceError, UsageError
from artel.protocol.identity import HomeLock, Identity
from artel.protocol.invite import Invite
from client_world import write_key
from swarm_world import open_to_others

ALICE = Identity.from_seed(b"a" * 32)
BOB = Identity.from_seed(b"b" * 32)


def test_rfc_8032_test_1() -> None:
    seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
    who = Identity.from_seed(seed)
    assert who.key == "d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a"
    assert who.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a")


def test_a_peer_id_contains_the_key() -> None:
    assert ALICE.peer_id.startswith("12D3KooW")
    assert identity.public_of(ALICE.peer_id) == ALICE.public
    for wrong in ("", "12D3KooW", ALICE.peer_id[:-1], "Qm" + ALICE.peer_id[2:], "é" * 52):
        with pytest.raises(DecodeError):
            identity.public_of(wrong)


def test_key_files_are_private_and_found_again(tmp_path: Path) -> None:
    path = tmp_path / "home" / "node.key"
    made = identity.load_or_create(path)
    assert path.stat().st_mode & 0o777 == 0o600
    assert identity.load_or_create(path) == made
    assert repr(made.seed) not in repr(made)


def test_a_key_below_a_file_is_refused_with_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ResourceError, match="it is a file") as refused:
        identity.load_or_create(tmp_path / "file" / "node.key")
    assert "--home DIR" in refused.value.hint


def test_a_key_file_that_others_can_read_is_refused_with_the_command(tmp_path: Path) -> None:
    path = tmp_path / "node.key"
    identity.load_or_create(path)
    path.chmod(0o644)
    with pytest.raises(UsageError) as caught:
        identity.load(path)
    assert "chmod 600" in caught.value.hint


@pytest.mark.parametrize("content", [b"", b"\x08\x01\x12\x40" + b"x" * 63, b"rsa" * 30])
def test_a_damaged_key_file_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "node.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(UsageError):
        identity.load(path)


def test_a_second_process_on_the_same_home_is_refused(tmp_path: Path) -> None:
    lock = HomeLock(tmp_path)
    code = (
        "import sys; from pathlib import Path; from artel.protocol.identity import HomeLock\n"
        "from artel.protocol.errors import ResourceError\n"
        "try: HomeLock(Path(sys.argv[1]))\n"
        "except ResourceError as error: print(error.diagnostics()); sys.exit(4)\n"
    )
    command = [sys.executable, "-c", code, str(tmp_path)]
    second = subprocess.run(command, capture_output=True, text=True, check=False)
    assert second.returncode == 4
    assert f"another process ({os.getpid()}) is using" in second.stdout
    assert "--home" in second.stdout
    lock.release()
    assert subprocess.run(command, check=False).returncode == 0


def test_statements_verify_and_any_changed_bit_does_not() -> None:
    envelope = dsse.sign("text/x", {"a": 1}, ALICE, BOB)
    assert dsse.decode(envelope.encode()) == envelope
    assert envelope.verify() == tuple(sorted((ALICE.key, BOB.key)))
    data = envelope.encode()
    for position in range(0, len(data), 7):
        changed = bytearray(data)
        changed[position] ^= 1
        with pytest.raises((DecodeError, CheckFailed)):
            dsse.decode(bytes(changed)).verify()


def test_signatures_of_two_signers_merge_only_over_the_same_statement() -> None:
    one, two = dsse.sign("t", {"a": 1}, ALICE), dsse.sign("t", {"a": 1}, BOB)
    assert one.merged(two) == dsse.sign("t", {"a": 1}, ALICE, BOB)
    with pytest.raises(CheckFailed):
        one.merged(dsse.sign("t", {"a": 2}, BOB))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_decoders_of_statements_raise_only_our_error(data: bytes) -> None:
    for decode in (dsse.decode, canonical.loads):
        try:
            decode(data)
        except DecodeError:
            continue


@pytest.mark.parametrize(
    "text",
    [
        *(b'{"a":1,"a":1}', b'{"b":1,"a":2}', b'{ "a":1}', b'{"a":NaN}', b'{"a":1.5}', b"[1e3]"),
        *(b'"\\u0041"', b"\xff", b"[" * 5000, b"1" * 5000, b'{"a":9007199254740993}'),
    ],
)
def test_only_canonical_json_is_accepted(text: bytes) -> None:
    with pytest.raises(DecodeError):
        canonical.loads(text)


@pytest.fixture
def open_umask() -> Iterator[None]:
    before = os.umask(0)
    yield
    os.umask(before)


def test_what_a_process_makes_under_a_lock_is_for_its_owner_alone(
    tmp_path: Path, open_umask: None
) -> None:
    home = tmp_path / "home"
    lock = HomeLock(home)
    make = (
        "import sqlite3, sys; from pathlib import Path; import torch\n"
        "from safetensors.torch import save_file\n"
        "home = Path(sys.argv[1]); (home / 'work').mkdir()\n"
        "save_file({'a': torch.zeros(2)}, home / 'work' / 'state')\n"
        "db = sqlite3.connect(home / 'ledger.sqlite3', isolation_level=None)\n"
        "db.execute('PRAGMA journal_mode=WAL'); db.execute('CREATE TABLE t(a)')\n"
        "import os; os._exit(0)\n"  # the log stays behind
    )
    subprocess.run([sys.executable, "-c", make, str(home)], check=True)
    write_key(home / "node.key", ALICE)
    (home / "blobs").mkdir()
    assert {path.name for path in home.iterdir()} >= {"ledger.sqlite3-wal", "ledger.sqlite3-shm"}
    lock.release()
    assert open_to_others(home) == []
    (tmp_path / "export").touch()
    assert (tmp_path / "export").stat().st_mode & 0o777 == 0o666, "as before the lock"


def test_a_home_that_was_open_is_closed_and_nothing_else_is(
    tmp_path: Path, open_umask: None
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "RUN.toml").touch()
    HomeLock(home).release()
    assert [path.name for path in open_to_others(home)] == ["RUN.toml"]


def test_a_working_directory_as_a_home_is_left_as_it_is_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    tmp_path.chmod(0o755)
    monkeypatch.chdir(tmp_path)
    HomeLock(Path()).release()
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert "other users" in capsys.readouterr().err


def test_an_invite_survives_copying_and_a_part_of_it_is_noticed() -> None:
    invite = Invite("ab" * 32, (f"/ip4/127.0.0.1/tcp/4001/p2p/{ALICE.peer_id}",))
    line = invite.encode()
    assert Invite.decode(f"  {line[:40]}\n{line[40:]} ") == invite
    for cut in range(len(line)):
        with pytest.raises(UsageError):
            Invite.decode(line[:cut])
    with pytest.raises(UsageError, match="was changed on the way"):
        Invite.decode(line[:30] + ("x" if line[30] != "x" else "y") + line[31:])


def test_the_lock_names_no_process_when_it_is_free(tmp_path: Path) -> None:
    HomeLock(tmp_path).release()
    HomeLock(tmp_path).release()
    with pytest.raises(ResourceError):
        first = HomeLock(tmp_path)
        try:
            HomeLock(tmp_path)
        finally:
            first.release()
