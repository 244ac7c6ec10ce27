"""Keys of an account, and the statements that they sign: real files, real HTTP, real kills."""

from __future__ import annotations

import json
import os
import signal
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.cli.statements import REASONS
from artel.ledger.entries import reasons
from artel.ledger.fold.alias import Alias
from artel.ledger.store import keyfiles
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync.view import LedgerView
from artel.protocol import dsse, identity
from artel.protocol.errors import (
    EXIT_FAILED,
    EXIT_OK,
    ArtelError,
    CheckFailed,
    ResourceError,
    Unreachable,
    UsageError,
)
from artel.protocol.identity import Identity
from command_world import group
from ledger_world import CREDIT, World, digest, key
from log_server import LogServer, serving

main = group("ledger")

RECOVERY = key("recovery")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def world() -> World:
    """Two arbiters; transfers allowed; credit vests at once only in `vested` worlds."""
    arbiters = [key("arbiter 0").key, key("arbiter 1").key]
    return World(
        ownership={"arbiters": arbiters, "arbiter_quorum": 2, "transfers": True},
        ledger={"witnesses": 2},
    )


@pytest.fixture
def server(world: World, tmp_path: Path) -> Iterator[LogServer]:
    """A run after its first round: the credit of three accounts is pending."""
    path = tmp_path / "coordinator" / DATABASE_NAME
    with LedgerStore.open(path, create=True, run=world.run) as store:
        registered = entries.recovery_digest(RECOVERY.public)
        accounts = [entries.account(owner, world.run, registered) for owner in world.owners[:2]]
        # The third account has no recovery key.
        start = [world.genesis, *accounts, *world.introductions()[2:]]
        store.append(world.add(*start, *world.round(0)), world.sign)
        with serving(world, store) as log:
            yield log


@pytest.fixture
def home(world: World, tmp_path: Path) -> Path:
    """A node's home with the key of the first account."""
    keyfiles.write(tmp_path / "home" / keyfiles.ACCOUNT_KEY, world.owners[0])
    return tmp_path / "home"


class Artel:
    """Runs commands against the server, with the keys of a home."""

    def __init__(self, server: LogServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.server, self.home, self._capsys = server, home, capsys
        self.key = home / keyfiles.ACCOUNT_KEY
        self.complaints = ""

    def load(self, name: str) -> Identity:
        return identity.load(self.home / name)

    def __call__(self, *arguments: str, remote: bool = True) -> str:
        where = ["--from", self.server.url, "--run", self.server.world.run] if remote else []
        self._capsys.readouterr()
        assert main([*arguments, *where, "--home", str(self.home)]) == EXIT_OK
        shown = self._capsys.readouterr()
        self.complaints = shown.err
        return shown.out

    def json(self, *arguments: str, remote: bool = True) -> Any:
        return json.loads(self(*arguments, "--json", remote=remote))


@pytest.fixture
def artel(server: LogServer, home: Path, capsys: pytest.CaptureFixture[str]) -> Artel:
    return Artel(server, home, capsys)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def present(server: LogServer, owner: Identity) -> str:
    """The present key of an account."""
    return server.state.accounts[owner.key].key


# --- new ---------------------------------------------------------------------------------


def test_a_new_key_is_private_and_never_overwritten(tmp_path: Path) -> None:
    home = tmp_path / "new"
    assert main(["key", "new", "--recovery", "--home", str(home)]) == EXIT_OK
    owner = identity.load(home / "account.key")
    recovery = identity.load(home / "recovery.key")
    assert owner != recovery
    assert (mode(home / "account.key"), mode(home / "recovery.key")) == (0o600, 0o600)
    assert mode(home) == 0o700
    assert (home / "recovery.pub").read_text() == f"{recovery.key}\n"
    assert keyfiles.recovery_of(home) == entries.recovery_digest(recovery.public)
    assert sorted(path.name for path in home.iterdir()) == [
        "account.key",
        "recovery.key",
        "recovery.pub",
    ]
    for again in ([], ["--recovery"]):
        with pytest.raises(UsageError, match="exists"):
            main(["key", "new", *again, "--home", str(home)])
    assert identity.load(home / "account.key") == owner


def test_no_command_prints_a_secret(artel: Artel) -> None:
    shown = [
        artel("key", "new", "--recovery", remote=False),
        artel("key", "rotate"),
        artel("key", "rotate", "--json"),
    ]
    owners = [identity.load(path) for path in artel.home.iterdir() if ".key" in path.name]
    assert len(owners) == 4  # account, recovery, two retired
    for owner in owners:
        for secret in (owner.seed.hex(), repr(owner.seed)):
            assert not any(secret in text for text in shown)


def test_the_public_half_is_enough_to_enter_a_recovery_key_later(artel: Artel) -> None:
    owner = artel.server.world.owners[2]
    artel.key.unlink()
    keyfiles.write(artel.key, owner)
    assert "no recovery key" in artel("key", "rotate")
    assert "was there already" in artel("key", "new", "--recovery", remote=False)
    recovery = identity.load(artel.home / "recovery.key")
    (artel.home / "recovery.key").unlink()
    assert "no recovery key" not in artel("key", "rotate")
    registered = entries.recovery_digest(recovery.public)
    assert artel.server.state.accounts[owner.key].recovery == registered


def test_only_the_recovery_key_itself_names_another_one(artel: Artel, tmp_path: Path) -> None:
    """Otherwise a thief of the account's key could take the owner's way back."""
    owner = artel.server.world.owners[0]
    artel("key", "new", "--recovery", remote=False)
    old, new = (entries.recovery_digest(k.public) for k in (RECOVERY, artel.load("recovery.key")))
    artel("key", "rotate")
    assert "only that one can name" in artel.complaints
    assert artel.server.state.accounts[owner.key].recovery == old
    keyfiles.write(tmp_path / "old.key", RECOVERY)
    artel("key", "recover", "--recovery-key", str(tmp_path / "old.key"), "--account", owner.key)
    assert artel.server.state.accounts[owner.key].recovery == new


@pytest.mark.parametrize("content", [b"", b"00", b"z" * 64, b"00" * 33, b"\xff" * 64])
def test_a_damaged_recovery_pub_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "recovery.pub").write_bytes(content)
    with pytest.raises(UsageError, match=r"recovery\.pub"):
        keyfiles.recovery_of(tmp_path)


# --- rotate and recover ---------------------------------------------------------------------------


def test_rotation_puts_the_new_key_in_place_and_keeps_the_old_one(artel: Artel) -> None:
    owner = artel.server.world.owners[0]
    shown = artel("key", "rotate")
    fresh = identity.load(artel.key)
    assert fresh != owner
    assert present(artel.server, owner) == fresh.key
    assert f"it is entry {artel.server.store.size - 1} of the ledger" in shown
    assert "pending: final once 2 accounts and a quorum of the electors have cosigned" in shown
    (old,) = keyfiles.retired(artel.key)
    assert identity.load(old) == owner
    assert mode(artel.key) == mode(old) == 0o600
    assert not keyfiles.next_file(artel.key).exists()
    # The recovery key stays registered, and the next rotation is signed by the new key.
    recovery = entries.recovery_digest(RECOVERY.public)
    assert artel.server.state.accounts[owner.key].recovery == recovery
    artel("key", "rotate")
    assert [path.name[-1] for path in keyfiles.retired(artel.key)] == ["1", "2"]
    assert artel.server.state.accounts[owner.key].seq == 2


def killed_at(step: int, command: Callable[[], int]) -> bool:
    """Run a command in a process that is killed at the n-th step; whether it got that far."""
    # A thread that is just ending may hold a lock of OpenSSL, which stays locked in the child.
    time.sleep(0.05)
    child = os.fork()
    if child == 0:
        try:
            _die_at(step)
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            os._exit(command())
        except BaseException:
            os._exit(99)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == EXIT_OK
    return False


def _die_at(step: int) -> None:
    """Count what changes files, and what is sent; die before the n-th of them or right after."""
    left = step

    def tick() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            os.kill(os.getpid(), signal.SIGKILL)

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def call(*arguments: Any, **named: Any) -> Any:
            tick()
            result = real(*arguments, **named)
            if name == "submit":
                tick()
            return result

        setattr(owner, name, call)

    for name in ("link", "replace", "unlink", "fsync"):
        counted(os, name)
    counted(LedgerView, "submit")


@pytest.mark.parametrize("recovering", [False, True])
def test_a_rotation_that_is_killed_at_any_step_loses_no_key(
    artel: Artel, tmp_path: Path, recovering: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))  # whoever is killed tidies nothing up
    owner = artel.server.world.owners[0]
    command = ["key", "rotate"]
    if recovering:
        keyfiles.write(tmp_path / "usb" / "recovery.key", RECOVERY)
        command = ["key", "recover", "--recovery-key", str(tmp_path / "usb" / "recovery.key")]
        command += ["--account", owner.key]
    where = ["--from", artel.server.url, "--home", str(artel.home)]
    step = 0
    while killed_at(step := step + 1, lambda: main([*command, *where])):
        files = [artel.key, keyfiles.next_file(artel.key), *keyfiles.retired(artel.key)]
        held = [identity.load(path).key for path in files if path.exists()]
        assert present(artel.server, owner) in held, f"killed at step {step}"
        artel(*command)
        assert identity.load(artel.key).key == present(artel.server, owner)
        assert not keyfiles.next_file(artel.key).exists()
        kept = [identity.load(path) for path in keyfiles.retired(artel.key)]
        assert owner in kept
        assert len(kept) == len(set(kept))  # none was kept twice
        assert all(mode(path) == 0o600 for path in [artel.key, *keyfiles.retired(artel.key)])
    assert step > 10


def test_a_refused_rotation_leaves_the_old_key_and_can_be_repeated(
    artel: Artel, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = artel.server.world.owners[0]
    with monkeypatch.context() as patch:
        patch.setattr(artel.server, "post", lambda path, body: (503, b'{"error":"busy"}'))
        with pytest.raises(Unreachable, match="busy") as caught:
            artel("key", "rotate")
        assert "run this again" in caught.value.hint
    assert identity.load(artel.key) == owner
    fresh = identity.load(keyfiles.next_file(artel.key))
    artel("key", "rotate")
    assert identity.load(artel.key) == fresh
    assert present(artel.server, owner) == fresh.key


def test_an_answer_that_got_lost_does_not_lose_the_key(
    artel: Artel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The entry is in the ledger, the answer never came."""
    owner = artel.server.world.owners[0]
    real = artel.server.post
    with monkeypatch.context() as patch:
        patch.setattr(
            artel.server, "post", lambda path, body: (real(path, body) and 0) or (500, b"")
        )
        with pytest.raises(Unreachable):
            artel("key", "rotate")
    assert identity.load(artel.key) == owner
    fresh = identity.load(keyfiles.next_file(artel.key))
    assert present(artel.server, owner) == fresh.key
    assert "since an earlier run" in artel("key", "rotate")
    assert identity.load(artel.key) == fresh


def test_two_rotations_at_once_are_one_too_many(artel: Artel) -> None:
    with keyfiles.locked(artel.home), pytest.raises(ResourceError, match="another process"):
        artel("key", "rotate")
    artel("key", "rotate")


def test_a_lost_key_is_recovered_and_the_thiefs_key_stops_to_speak(
    artel: Artel, tmp_path: Path
) -> None:
    owner, other = artel.server.world.owners[:2]
    usb = tmp_path / "recovery.key"
    keyfiles.write(usb, RECOVERY)
    stolen = artel.key.rename(tmp_path / "thief.key")
    with pytest.raises(UsageError, match="2 accounts"):
        artel("key", "recover", "--recovery-key", str(usb))
    artel("key", "recover", "--recovery-key", str(usb), "--account", owner.key[:12])
    fresh = identity.load(artel.key)
    assert present(artel.server, owner) == fresh.key
    assert present(artel.server, other) == other.key
    with pytest.raises(CheckFailed, match="speaks for no account"):
        artel("key", "rotate", "--key", str(stolen))
    artel("key", "rotate")


def test_a_stranger_recovers_nothing(artel: Artel, tmp_path: Path) -> None:
    keyfiles.create(tmp_path / "mine.key")
    with pytest.raises(CheckFailed, match="no account"):
        artel("key", "recover", "--recovery-key", str(tmp_path / "mine.key"))
    assert not keyfiles.next_file(artel.key).exists()


# --- statements -----------------------------------------------------------------------------------


def index_of(artel: Artel, node: int) -> int:
    """Index of the contribution of a node to round 0."""
    world = artel.server.world
    index = artel.server.store.index_of(world.earned(world.members[node], 0))
    assert index is not None
    return index


def test_a_dispute_freezes_and_only_the_evidences_hash_is_published(
    artel: Artel, tmp_path: Path
) -> None:
    world = artel.server.world
    evidence = tmp_path / "evidence.txt"
    evidence.write_text("what I saw, with names")
    index = index_of(artel, 1)
    facts = artel.json("dispute", str(index), "--reason", "copied", "--evidence", str(evidence))
    assert facts["index"] == artel.server.store.size - 1
    assert facts["statement"]["evidence"] == digest("what I saw, with names")
    assert b"names" not in artel.server.store.leaf(facts["index"])
    item = artel.server.state.pending[world.earned(world.members[1], 0)]
    assert item.disputed_by == world.owners[0].key
    with pytest.raises(CheckFailed, match=reasons.explain(reasons.DUPLICATE)):
        artel("dispute", str(index), "--reason", "copied")


def test_what_the_ledger_would_ignore_is_not_sent(artel: Artel) -> None:
    size = artel.server.store.size
    with pytest.raises(CheckFailed, match="own work") as ignored:
        artel("dispute", str(index_of(artel, 0)), "--reason", "copied")
    assert "--from" not in ignored.value.hint, "it was given"
    with pytest.raises(UsageError, match="genesis"):
        artel("dispute", "0", "--reason", "copied")
    with pytest.raises(UsageError):
        artel("dispute", "999", "--reason", "copied")
    for wrong in ((), ("--reason", "Bad Reason")):
        with pytest.raises(UsageError) as refused:
            artel("dispute", "0", *wrong)
        assert all(code in refused.value.hint for code in REASONS)
    assert artel.server.store.size == size


def test_a_refusal_of_the_coordinator_is_explained(
    artel: Artel, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = json.dumps({"error": "no", "hint": "look", "code": reasons.TOO_MANY}).encode()
    monkeypatch.setattr(artel.server, "post", lambda path, body: (403, answer))
    with pytest.raises(CheckFailed, match="too many open disputes") as caught:
        artel("dispute", str(index_of(artel, 1)), "--reason", "copied")
    assert (caught.value.hint, caught.value.exit_code) == ("look", EXIT_FAILED)


def test_a_transfer_needs_agreement_and_vested_credit(artel: Artel) -> None:
    world = artel.server.world
    to = world.owners[1].key
    with pytest.raises(UsageError, match="agreed to") as caught:
        artel("transfer", to, "100")
    assert caught.value.hint == "add --yes"
    with pytest.raises(CheckFailed, match="vested"):
        artel("transfer", to, "100", "--yes")
    for number in (1, 2, 3):
        artel.server.append(*world.add(*world.round(number)))
    shown = Alias(run=world.run, account=to, alias="Ada", team="", time=1)
    artel.server.aliases[to] = shown
    for name in ("Ada", to[:15]):
        with pytest.raises(UsageError, match="no account is called"):
            artel("transfer", name, "100", "--yes")
    artel("transfer", to[:16], "100", "--yes")
    assert artel.server.state.accounts[world.owners[0].key].vested == CREDIT - 100
    assert artel.server.state.accounts[to].vested == CREDIT + 100
    for unknown in ("nobody", to[:7]):
        with pytest.raises(UsageError, match="no account is called") as refused:
            artel("transfer", unknown, "100", "--yes")
        assert " 16 " in refused.value.hint


def test_arbiters_sign_one_after_the_other_until_there_are_enough(
    artel: Artel, tmp_path: Path
) -> None:
    world, state = artel.server.world, artel.server.state
    keys = []
    for number in range(2):
        keys.append(tmp_path / f"arbiter-{number}.key")
        keyfiles.write(keys[-1], key(f"arbiter {number}"))
    source = world.earned(world.members[2], 0)
    rule = ["rule", source[:12], "soft"]
    with pytest.raises(UsageError, match="arbiters"):
        artel(*rule, "--key", str(keys[0]))
    with pytest.raises(UsageError, match="arbiter"):
        artel(*rule, "--key", str(artel.key))
    file = tmp_path / "ruling.json"
    assert "1 of 2 arbiters" in artel(*rule, "--key", str(keys[0]), "--statement", str(file))
    # Somebody else's signature on the way makes nothing of it void.
    envelope = dsse.decode(file.read_bytes().strip())
    stranger = entries.ruling(world.run, key("stranger"), contribution=source, decision="soft")
    file.write_bytes(envelope.merged(stranger).encode())
    with pytest.raises(CheckFailed, match="two different statements"):
        artel("rule", source[:12], "hard", "--key", str(keys[1]), "--statement", str(file))
    assert source in artel.server.state.pending
    facts = artel.json(*rule, "--key", str(keys[1]), "--statement", str(file))
    assert facts["signers"] == sorted(key(f"arbiter {n}").key for n in range(2))
    assert source not in artel.server.state.pending
    assert artel.server.state.accounts[world.owners[2].key].invalidated == CREDIT
    assert state is not artel.server.state


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"[" * 5000, b"x" * 100_000])
def test_a_damaged_statement_file_is_an_error_of_ours(
    artel: Artel, tmp_path: Path, content: bytes
) -> None:
    arbiter, file = tmp_path / "a.key", tmp_path / "statement.json"
    keyfiles.write(arbiter, key("arbiter 0"))
    file.write_bytes(content)
    rule = ["rule", str(index_of(artel, 1)), "soft", "--key", str(arbiter)]
    with pytest.raises(ArtelError):
        artel(*rule, "--statement", str(file))
    with pytest.raises(ArtelError):
        artel("split-view", str(file))
    assert file.read_bytes() == content


def test_a_name_is_published_with_consent_and_erased_again(artel: Artel) -> None:
    owner = artel.server.world.owners[0]
    size = artel.server.store.size
    with pytest.raises(UsageError, match="agreed to"):
        artel("alias", "Ada")
    shown = artel("alias", "Ada", "--team", "Night shift", "--yes")
    assert "beside the ledger, not in it" in shown
    name = artel.server.aliases[owner.key]
    assert (name.alias, name.team) == ("Ada", "Night shift")
    artel("alias", "--forget")
    assert artel.server.aliases[owner.key].alias == ""
    assert artel.server.store.size == size  # never an entry


@pytest.mark.parametrize(
    "name", ["x" * 41, "a\nb", "a\x1b[31m", "abc\u202egnp.exe", " a", "a\u2028b", ""]
)
def test_names_that_cannot_be_shown_are_refused(artel: Artel, name: str) -> None:
    with pytest.raises(ArtelError):
        artel("alias", name, "--yes")
    assert not artel.server.aliases


def test_a_proven_split_view_is_entered(artel: Artel, tmp_path: Path) -> None:
    world, store = artel.server.world, artel.server.store
    leaves = list(store.leaves())
    other = [
        *leaves[:-1],
        world.dispute(world.owners[0], world.earned(world.members[1], 0)).encode(),
    ]
    file = tmp_path / "split-view.json"
    file.write_text(json.dumps(world.split_view(leaves, other), indent=1))
    shown = artel("split-view", str(file))
    assert f"{world.origin} signed two histories" in shown
    assert world.coordinator.key in artel.server.state.convicted
    harmless = world.split_view(leaves, other)
    harmless["second"] = harmless["first"]
    file.write_text(json.dumps(harmless))
    with pytest.raises(ArtelError):
        artel("split-view", str(file))


# --- admission ------------------------------------------------------------------------------------


def test_where_everybody_may_come_nobody_is_let_in(artel: Artel) -> None:
    with pytest.raises(UsageError, match="admission to this run is open"):
        artel("admit", key("newcomer").key)


class TestWhereNotEverybodyMayCome:
    @pytest.fixture
    def world(self) -> World:
        listed = [key(f"world account {number}").key for number in range(3)]
        return World(trust={"admission": "list", "admitted": listed})

    def test_the_organiser_lets_in(self, artel: Artel, tmp_path: Path) -> None:
        world, comes = artel.server.world, key("newcomer").key
        with pytest.raises(UsageError, match="is the home of a node, not of a coordinator") as no:
            artel("admit", comes)
        assert "organiser.key" in no.value.hint
        keyfiles.write(artel.home / keyfiles.ORGANISER_KEY, world.organiser)
        with pytest.raises(UsageError, match="64 hex digits"):
            artel("admit", comes[:12])
        assert not artel.server.state.admits(comes)
        assert artel.json("admit", comes)["statement"]["key"] == comes
        assert artel.server.state.admits(comes)
        with pytest.raises(CheckFailed):
            artel("admit", comes)
