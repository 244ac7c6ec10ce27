"""Homes whose files were put back from a backup, or are gone: nothing is signed on old ones."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path

import pytest
import pytest_asyncio

from artel import cli
from artel.coordinator import process
from artel.coordinator.metrics import METRICS_FILE
from artel.coordinator.own_ledger import OwnLedger
from artel.coordinator.preparation import Prepared, manifest_path
from artel.coordinator.prepare import prepare
from artel.coordinator.process import INVITE_FILE
from artel.coordinator.sequencer import Sequencer
from artel.ledger import entries
from artel.ledger.entries import evidence
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.published import LostEntries
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.second import second_path
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore, Sign
from artel.ledger.store.verify import verify_home
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.replica import Replica
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.ledger.tlog.note import VerifierKey
from artel.node import status
from artel.node.watch import refuse_older
from artel.protocol import dsse, tether
from artel.protocol.errors import ArtelError, CheckFailed, Unreachable, UsageError
from artel.protocol.identity import load
from artel.protocol.invite import Invite
from benchmarks.swarm import Swarm
from client_world import write_key, write_tiles
from ledger_world import World, key
from split_world import Net
from swarm_world import open_to_others, write_run

ENTRIES = 50
OLDER = 38


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A run file, and a home in which it was prepared."""
    folder = tmp_path_factory.mktemp("prepared")
    run_file = write_run(folder, total=2)
    prepare(run_file, folder / "home")
    return run_file, folder / "home"


@pytest.fixture
def run_file(prepared: tuple[Path, Path]) -> Path:
    return prepared[0]


@pytest.fixture
def home(prepared: tuple[Path, Path], tmp_path: Path) -> Path:
    """A coordinator's home with OLDER entries in ``older`` beside it, and ENTRIES in it itself."""
    home = tmp_path / "a home"
    shutil.copytree(prepared[1], home)
    grow(prepared[0], home, OLDER)
    backup = tmp_path / "backup"
    backup.mkdir()
    for name in (DATABASE_NAME, CHECKPOINT_NAME, HEADS_NAME):
        shutil.copy(home / name, backup / name)
    grow(prepared[0], home, ENTRIES)
    return home


def grow(run_file: Path, home: Path, size: int) -> None:
    """Append accounts, and keep heads as a coordinator does whose witnesses cosign each of them."""
    run = prepare(run_file, home)
    with contextlib.ExitStack() as stack:
        heads = HeadStore(home / HEADS_NAME)
        stack.callback(heads.close)
        store = stack.enter_context(
            LedgerStore.open(home / DATABASE_NAME, create=True, run=run.run)
        )
        if not store.size:
            store.append([dsse.decode(run.envelope).encode()], signs(run, home))
        while store.size < size:
            last = min(size, store.size + 6)
            new = [entries.account(key(f"{i}"), run.run) for i in range(store.size, last)]
            store.append([envelope.encode() for envelope in new], signs(run, home))
            heads.add_note(store.latest_note)


def signs(run: Prepared, home: Path) -> Sign:
    """The coordinator's signature under a tree head."""
    return partial(sign_checkpoint, load(home / "node.key"), origin_of(run.run))


def put_back(home: Path, *names: str) -> None:
    for name in names:
        shutil.copy(home.with_name("backup") / name, home / name)


def start(run_file: Path, home: Path) -> subprocess.CompletedProcess[str]:
    """A coordinator; one that gets ready is stopped at once."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "artel", "coordinator", "start", str(run_file), "--json"),
            *("--home", str(home), "--http", "127.0.0.1:0", "--listen", "/ip4/127.0.0.1/tcp/0"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=tether.environment(),
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    process.terminate() if line else None
    _, errors = process.communicate(timeout=120)
    return subprocess.CompletedProcess(process.args, process.returncode, line, errors)


def command_in(text: str, target: Path) -> list[str]:
    """The restore command that an error names, with a copy of the ledger as its target."""
    found = re.search(r"artel (ledger restore --from TARGET .*)$", text, re.MULTILINE)
    assert found is not None, text
    words = shlex.split(found[1])
    return [str(target) if word == "TARGET" else word for word in words]


# --- the coordinator ------------------------------------------------------------------------------


def test_a_coordinator_with_a_ledger_from_a_backup_signs_nothing_until_it_is_restored(
    run_file: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = write_tiles(home, tmp_path / "mirror")
    put_back(home, DATABASE_NAME, CHECKPOINT_NAME)
    before = (home / CHECKPOINT_NAME).read_bytes()
    done = start(run_file, home)
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert not done.stdout
    with LedgerReader.of(home) as store:
        assert store.latest_note.encode() == (home / CHECKPOINT_NAME).read_bytes() == before
    assert cli.main(["ledger", "verify", "--home", str(home)]) == 1
    shown = capsys.readouterr()
    assert str(ENTRIES) in shown.out
    # Both name a command that works as it stands, but for where the copy is.
    command = command_in(done.stderr, mirror)
    assert command == command_in(shown.err, mirror)
    assert cli.main(command) == 0
    capsys.readouterr()
    assert verify_home(home).verified
    assert start(run_file, home).returncode == 0
    assert cli.main(["ledger", "verify", "--home", str(home)]) == 0


def unlink(path: Path) -> None:
    path.unlink()


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("lose", [unlink, empty])
@pytest.mark.parametrize("begun", [CHECKPOINT_NAME, INVITE_FILE, METRICS_FILE])
def test_a_lost_ledger_of_a_coordinator_is_restored_by_the_command_that_it_names(
    run_file: Path, home: Path, tmp_path: Path, begun: str, lose: Callable[[Path], None]
) -> None:
    mirror = write_tiles(home, tmp_path / "mirror")
    lose(home / DATABASE_NAME)
    if begun != CHECKPOINT_NAME:
        lose(home / HEADS_NAME)
        (home / CHECKPOINT_NAME).unlink()
        (home / begun).write_text("the run has begun\n")
    for _ in range(2):
        with pytest.raises(LostEntries) as caught:
            opened(run_file, home)
    assert cli.main(command_in(caught.value.hint, mirror)) == 0
    assert verify_home(home).verified
    assert opened(run_file, home) == ENTRIES


def test_a_prepared_run_that_never_began_begins(
    prepared: tuple[Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(prepared[1], tmp_path / "home")
    assert opened(prepared[0], tmp_path / "home") == 0


def test_a_home_without_its_ledger_is_no_copy_of_a_log(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mirror = write_tiles(home, tmp_path / "mirror")
    (home / DATABASE_NAME).unlink()
    assert cli.main(["ledger", "verify", "--home", str(home)]) == 1
    assert cli.main(command_in(capsys.readouterr().err, mirror)) == 0


def damage(path: Path) -> None:
    path.write_bytes(b"\1" * 5000)


@pytest.mark.parametrize(
    ("name", "lose", "said"),
    [
        (HEADS_NAME, unlink, ["heads.gone"]),
        (HEADS_NAME, empty, ["heads.gone"]),
        (CHECKPOINT_NAME, unlink, []),
    ],
)
def test_what_no_copy_of_the_ledger_brings_back_is_made_by_a_start(
    run_file: Path,
    home: Path,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    name: str,
    lose: Callable[[Path], None],
    said: list[str],
) -> None:
    lose(home / name)
    assert cli.main(["ledger", "verify", "--home", str(home)]) == 1
    assert "ledger restore" not in capsys.readouterr().err
    with caplog.at_level(logging.WARNING, "artel.ledger"):
        assert opened(run_file, home) == ENTRIES
        begun(run_file, home)
    assert [record.message for record in caplog.records] == said
    assert cli.main(["ledger", "verify", "--home", str(home)]) == 0


def test_damaged_heads_are_not_brought_back_by_a_copy_of_the_ledger(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    damage(home / HEADS_NAME)
    assert cli.main(["ledger", "verify", "--home", str(home)]) == 1
    assert "ledger restore" not in capsys.readouterr().err


def opened(run_file: Path, home: Path) -> int:
    """Prepare and open a coordinator's home as its process does; the size of its ledger."""
    found = prepare(run_file, home)
    with contextlib.ExitStack() as stack:
        own = process.own_ledger(home, found, load(home / "node.key"), stack)
        own.require_whole()
        return own.store.size


def begun(run_file: Path, home: Path) -> None:
    """What a coordinator notes before it adds anything."""
    found = prepare(run_file, home)
    with contextlib.ExitStack() as stack:
        own = process.own_ledger(home, found, load(home / "node.key"), stack)
        Sequencer(own.store, load(home / "node.key"), found.run, own.heads, second=own.second)


@pytest.mark.parametrize(
    ("names", "lost", "failed"),
    [
        ((), False, []),
        ((DATABASE_NAME, CHECKPOINT_NAME), True, ["kept tree heads"]),
        ((DATABASE_NAME,), True, ["kept tree heads"]),
        ((CHECKPOINT_NAME,), False, []),  # as after a crash
        ((HEADS_NAME,), False, ["kept tree heads"]),  # a start mends it
        ((DATABASE_NAME, CHECKPOINT_NAME, HEADS_NAME), False, []),  # nothing here knows better
    ],
)
def test_every_mixture_of_old_and_new_files(
    run_file: Path, home: Path, names: tuple[str, ...], lost: bool, failed: list[str]
) -> None:
    put_back(home, *names)
    if lost:
        with pytest.raises(LostEntries):
            opened(run_file, home)
    else:
        assert opened(run_file, home) == (ENTRIES if DATABASE_NAME not in names else OLDER)
    assert [check.name for check in verify_home(home).checks if not check.ok] == failed


async def test_a_home_that_was_put_back_as_a_whole_is_held_against_what_lies_elsewhere(
    run_file: Path, home: Path
) -> None:
    run = prepare(run_file, home)
    for remembered in (False, True):  # this machine has not seen that home sign, and has
        with contextlib.ExitStack() as stack:
            own = process.own_ledger(home, run, load(home / "node.key"), stack)
            assert own.remembered == remembered
        begun(run_file, home)
    assert verify_home(home).verified
    put_back(home, DATABASE_NAME, CHECKPOINT_NAME, HEADS_NAME)
    with pytest.raises(LostEntries, match=f"head of {ENTRIES}"):
        opened(run_file, home)
    found = verify_home(home)
    assert [check.name for check in found.checks if not check.ok] == ["second memory"]
    # What nobody but the second memory has comes from there.
    with contextlib.ExitStack() as stack:
        own = process.own_ledger(home, run, load(home / "node.key"), stack)
        await own.take_tail()
        assert own.store.size == ENTRIES
        own.require_whole()
    shutil.rmtree(second_path(run.run, load(home / "node.key").key).parent)
    assert "second memory" in {item.name for item in verify_home(home).unchecked}


def test_the_tree_heads_of_another_home_are_not_taken_for_ones_own(
    run_file: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert opened(run_file, home) == ENTRIES  # from now on the file names its owner
    other = tmp_path / "other"
    other.mkdir()
    HeadStore.owned(other, key("somebody else").key).close()
    shutil.copy(other / HEADS_NAME, home / HEADS_NAME)
    with pytest.raises(CheckFailed, match="of another home"):
        opened(run_file, home)
    assert cli.main(["ledger", "verify", "--home", str(home)]) == 1
    shown = capsys.readouterr()
    assert "of another home" in shown.out
    assert "ledger restore" not in shown.err


def test_another_history_than_the_heads_of_the_home_is_not_gone_on_with(
    run_file: Path, home: Path, tmp_path: Path
) -> None:
    other = tmp_path / "other"
    shutil.copytree(home, other)
    for name in (DATABASE_NAME, CHECKPOINT_NAME):
        shutil.copy(home.with_name("backup") / name, other / name)
    run = prepare(run_file, other)
    with LedgerStore.open(other / DATABASE_NAME, run=run.run) as store:
        leaves = [entries.account(key(f"other {i}"), run.run).encode() for i in range(20)]
        store.append(leaves, signs(run, other))
    with pytest.raises(LostEntries, match="two histories"):
        opened(run_file, other)
    failed = [check.name for check in verify_home(other).checks if not check.ok]
    assert failed == ["kept tree heads"]


async def test_heads_that_nobody_cosigned_are_remembered_too(tmp_path: Path) -> None:
    world = World()
    home = tmp_path / "home"
    with contextlib.ExitStack() as stack:
        heads = HeadStore(home / HEADS_NAME)
        stack.callback(heads.close)
        store = stack.enter_context(LedgerStore.open(home / DATABASE_NAME, create=True))
        sequencer = Sequencer(store, world.coordinator, world.run, heads)
        for envelope in world.start:
            await sequencer.append(envelope)
            assert heads.witnessed(world.origin) == (store.size, store.root)
            if store.size == 2:
                shutil.copy(home / DATABASE_NAME, tmp_path / "older")
                shutil.copy(home / CHECKPOINT_NAME, tmp_path / "checkpoint")
    shutil.copy(tmp_path / "older", home / DATABASE_NAME)
    shutil.copy(tmp_path / "checkpoint", home / CHECKPOINT_NAME)
    with contextlib.ExitStack() as stack, pytest.raises(LostEntries):
        key, coordinators = world.coordinator.key, [world.coordinator.key]
        OwnLedger.open(home, world.run, key, coordinators, "", stack).require_whole()
    assert not verify_home(home).verified


def test_an_owner_may_go_on_from_an_older_ledger_that_nobody_has_more_of(
    run_file: Path, home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    put_back(home, DATABASE_NAME, CHECKPOINT_NAME)
    mirror = write_tiles(home, tmp_path / "mirror")
    (home / DATABASE_NAME).unlink()
    (home / CHECKPOINT_NAME).unlink()
    command = ["ledger", "restore", "--from", str(mirror), "--home", str(home)]
    assert cli.main(command) == 1
    assert "--accept-older" in capsys.readouterr().err
    assert cli.main([*command, "--accept-older"]) == 0
    assert opened(run_file, home) == OLDER


@pytest.mark.parametrize(
    ("name", "error"),
    [
        (DATABASE_NAME, LostEntries),
        (CHECKPOINT_NAME, None),
        (HEADS_NAME, None),
        ("node.key", UsageError),
        ("organiser.key", None),
        ("run/manifest.json", None),
        ("run/lock", None),
        ("lock", None),
        ("blobs", CheckFailed),
    ],
)
def test_each_file_of_a_coordinators_home_heals_or_gives_one_clear_error(
    run_file: Path,
    home: Path,
    name: str,
    error: type[ArtelError] | None,
) -> None:
    run = prepare(run_file, home).run
    path = home / name
    shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    for _ in range(2):  # a failed start leaves nothing behind that makes the next one worse
        if error is None:
            assert opened(run_file, home) == ENTRIES
            assert prepare(run_file, home).run == run
        else:
            with pytest.raises(error) as caught:
                opened(run_file, home)
            assert caught.value.hint
    assert manifest_path(home).exists()


# --- a node ---------------------------------------------------------------------------------------


@pytest.fixture
def world() -> World:
    world = World()
    world.add(*world.start, *world.round(0))
    return world


@pytest_asyncio.fixture
async def net(tmp_path: Path, world: World) -> AsyncIterator[Net]:
    net = await Net(tmp_path, world).open()
    net.default = net.history("honest")
    net.default.store.append(world.leaves[:10], world.sign)
    net.default.store.append(world.leaves[10:], world.sign)
    yield net
    await net.close()


@contextlib.contextmanager
def reopened(home: Path, world: World) -> Iterator[tuple[Replica, HeadStore]]:
    """A node's ledger and heads, as the node opens them."""
    heads = HeadStore(home / HEADS_NAME)
    with contextlib.closing(heads):
        replica = Replica.open(home / DATABASE_NAME, world.run, heads)
        with contextlib.closing(replica.store):
            yield replica, heads


@pytest.mark.parametrize("gone", [(DATABASE_NAME,), (CHECKPOINT_NAME,), (HEADS_NAME,), "older"])
async def test_a_node_fetches_its_ledger_again_and_holds_it_against_what_it_saw(
    net: Net, world: World, gone: tuple[str, ...] | str
) -> None:
    node = await net.node("node")
    node.replica.store.close()
    node.heads.close()
    if gone == "older":
        (node.home / DATABASE_NAME).unlink()
        note = net.default.store.note_at(10)
        kept = (node.home / CHECKPOINT_NAME).read_text()
        (node.home / CHECKPOINT_NAME).unlink()
        with LedgerStore.open(node.home / DATABASE_NAME, create=True) as store:
            store.append_replica(world.leaves[:10], note)
        (node.home / CHECKPOINT_NAME).write_text(kept)
    else:
        for name in gone:
            (node.home / name).unlink()
    with reopened(node.home, world) as (replica, heads):
        await replica.catch_up(node.host, net.host.peer_id, world.run)
        refuse_older(replica, heads)
        assert replica.store.root == net.default.store.root
    assert (node.home / CHECKPOINT_NAME).read_text() == net.default.store.latest_note
    assert verify_home(node.home).verified


async def test_a_node_takes_no_older_ledger_in_the_place_of_its_own(net: Net, world: World) -> None:
    node = await net.node("node")
    node.replica.store.close()
    node.heads.close()
    (node.home / DATABASE_NAME).unlink()
    net.default = net.history("older")
    net.default.store.append(world.leaves[:10], world.sign)
    for _ in range(2):  # it is not forgotten by having been refused once
        with reopened(node.home, world) as (replica, heads):
            await replica.catch_up(node.host, net.host.peer_id, world.run)
            with pytest.raises(CheckFailed, match="is older"):
                refuse_older(replica, heads)


async def test_a_node_tells_a_coordinator_that_shows_less_than_it_signed(
    net: Net, world: World
) -> None:
    node = await net.node("node")
    await node.watch.exchange(net.host.peer_id)
    assert net.told == []
    newest = net.default.store.latest_note
    net.default = net.history("older")
    net.default.store.append(world.leaves[:10], world.sign)
    await node.watch.exchange(net.host.peer_id)
    assert net.told == [newest]


async def test_a_node_that_fetches_another_history_proves_it(net: Net, world: World) -> None:
    node = await net.node("node")
    node.replica.store.close()
    node.heads.close()
    (node.home / DATABASE_NAME).unlink()
    net.default = net.history("other")
    other = world.dispute(world.owners[0], world.earned(world.members[1], 0), "another").encode()
    net.default.store.append([*world.leaves[:-1], other], world.sign)
    with reopened(node.home, world) as (replica, heads):
        await replica.catch_up(node.host, net.host.peer_id, world.run)
        with pytest.raises(SplitViewProven) as caught:
            refuse_older(replica, heads)
    evidence.check(caught.value.evidence, [VerifierKey(world.origin, world.coordinator.public)])


def test_a_node_does_not_begin_another_account_when_its_key_is_gone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_key(tmp_path / "node.key", key("node"))
    invite = Invite("ab" * 32, (f"/ip4/127.0.0.1/tcp/1/p2p/{key('c').peer_id}",)).encode()
    (tmp_path / "invite").write_text(f"{invite}\n")
    assert cli.main(["node", "start", "--home", str(tmp_path), "--join", invite]) == 2
    assert "account.key" in capsys.readouterr().err
    assert not (tmp_path / "account.key").exists()


@pytest.mark.slow  # a dozen starts of a real node
@pytest.mark.timeout(900)
async def test_each_file_of_a_nodes_home_heals_when_the_node_starts_again(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, total=500, min_nodes=1)
    async with Swarm(tmp_path, run_file) as swarm:
        await swarm.start(nodes=1)
        home = swarm.home_of(1)

        async def works(without: str = "") -> None:
            """Wait until the node has joined and has cosigned what the coordinator has; where its
            record of what it signed is gone, it cosigns nothing of the present term."""
            for _ in range(240):
                swarm.check()
                with contextlib.suppress(Unreachable):
                    now = await asyncio.to_thread(status.read, home)
                    cosigns = now["cosigned_size"] or without == HEADS_NAME
                    if now["phase"] == "training" and cosigns:
                        return
                await asyncio.sleep(0.5)
            raise AssertionError(f"{without}: {swarm.nodes[1].log.read_text()[-2000:]}")

        await works()
        names = ["ledger.sqlite3", "checkpoint", "manifest.json", "claims.jsonl", "invite"]
        # Not the blobs: the only member's states are nowhere else.
        for name in [*names, "node.log", "trainer.log", "lock", "work", HEADS_NAME]:
            await swarm._end(swarm.nodes[1])
            path = home / name
            shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
            await swarm.start_node(1)
            await works(name)
            assert path.exists() or name == "claims.jsonl", name
        await swarm._end(swarm.nodes[1])
        assert (await asyncio.to_thread(verify_home, home)).verified
        assert open_to_others(home) == []
