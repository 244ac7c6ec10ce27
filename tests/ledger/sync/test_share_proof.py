"""One account's share, proven without the history: by a home, a mirror, a web server."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artel import cli
from artel.ledger import entries
from artel.ledger.entries import decode
from artel.ledger.entries.credit_map import Credits
from artel.ledger.fold.shares import FoldState, fold
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync import offline
from artel.ledger.sync.mirror import mirror
from artel.ledger.sync.serving import Served
from artel.ledger.sync.share_proof import prove_share
from artel.ledger.sync.source import CREDIT_PATH, FolderSource, NotFound, TileSource, page_path
from artel.ledger.sync.view import LedgerView
from artel.protocol.dsse import Leaf
from artel.protocol.errors import ArtelError, CheckFailed, UsageError
from client_world import served
from command_world import group
from ledger_world import CREDIT, World, complete, digest, key

main = group("ledger")
ROUNDS = 3


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def world() -> World:
    """Many accounts, of which three work; the newest state is not the last entry."""
    world = World(total=60, ownership={"vesting_rounds": 1})
    world.batches(ROUNDS)
    return world


@pytest.fixture
def store(world: World, tmp_path: Path) -> Iterator[LedgerStore]:
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True, run=world.run) as store:
        store.append(world.leaves, world.sign)
        yield store


@pytest.fixture
def home(world: World, store: LedgerStore) -> Served:
    return Served(store, None, lambda: world.state)


@pytest.fixture
def copy(store: LedgerStore, tmp_path: Path) -> Path:
    mirror(LedgerView(store, "home"), tmp_path / "mirror")
    return tmp_path / "mirror"


def at_closing(world: World) -> FoldState:
    """The fold when the last round was closed."""
    state = FoldState()
    complete([world.genesis, *world.introductions()], state)
    for number in range(ROUNDS - 1):
        complete(world.round(number), state)
    return state


def test_a_share_is_what_the_fold_had_when_the_round_was_closed(world: World, home: Served) -> None:
    state = at_closing(world)
    for name, owner in state.accounts.items():
        found = prove_share(home, name, world.run)
        assert found.credits == Credits(owner.vested, owner.pending) != Credits(0, 0)
        assert found.total == Credits(state.total_vested, state.total_pending)
        assert (found.root.body.round, found.root.nodes) == (ROUNDS, 3)
    assert prove_share(home, key("stranger").key, world.run).credits is None


def test_a_mirror_and_a_web_server_prove_the_same(world: World, home: Served, copy: Path) -> None:
    name = world.owners[0].key
    wanted = prove_share(home, name, world.run)
    assert prove_share(FolderSource(copy), name, world.run) == wanted
    asked: list[str] = []
    with served(copy, asked) as url:
        assert main(["shares", "--account", name, "--from", url, "--run", world.run]) == 0
    assert not [path for path in asked if "tile" in path]


def test_the_share_of_a_finished_run_is_all_of_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World(total=2)
    last = world.earned(world.members[0], 1)
    batches = [*world.batches(2), world.add(world.dispute(world.owners[1], last))]
    batches += [world.add(world.run_closed(2, closing)) for closing in (1, 2)]
    state = FoldState()
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True, run=world.run) as store:
        for batch in batches:
            store.append(batch, world.sign)
            state = fold(map(decode, batch), state)
            if not state.closed:
                continue
            folder = tmp_path / "mirror"
            mirror(LedgerView(store, "home"), folder)
            for account, owner in state.accounts.items():
                found = prove_share(FolderSource(folder), account, world.run)
                assert found.credits == Credits(owner.vested, owner.pending)
                assert (found.root.closing, found.root.nodes) == (state.closed, 0)
                assert found.root.proven.index == store.size - 1
    line = ["shares", "--account", world.owners[0].key, "--from", str(folder)]
    assert main([*line, "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["closing"], facts["signed_by"], facts["round"]) == (2, 0, 1)
    assert (facts["vested"], facts["total_vested"], facts["total_pending"]) == (
        2 * CREDIT,
        6 * CREDIT,
        0,
    )
    assert main(line) == 0
    assert "the coordinator alone" in capsys.readouterr().out


def test_the_command_says_what_it_is_proven_by(
    world: World, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    owner = at_closing(world).accounts[world.owners[1].key]
    line = ["shares", "--account", world.owners[1].key, "--from", str(copy), "--json"]
    assert main(line) == 0
    facts: dict[str, Any] = json.loads(capsys.readouterr().out)
    assert (facts["vested"], facts["pending"]) == (owner.vested, owner.pending)
    assert facts["share"] == pytest.approx(1 / 3)
    assert (facts["round"], facts["as_of"], facts["signed_by"]) == (
        ROUNDS - 1,
        len(world.leaves),
        3,
    )
    with pytest.raises(UsageError):
        main(["shares", "--account", "abc", "--from", str(copy)])


def test_a_mirror_follows_and_keeps_no_page_that_is_replaced(
    world: World, store: LedgerStore, copy: Path
) -> None:
    before = set((copy / "credit").iterdir())
    other = World(total=60, ownership={"vesting_rounds": 1})
    other.batches(ROUNDS)
    store.append(other.add(*other.round(ROUNDS)), other.sign)
    mirror(LedgerView(store, "home"), copy)
    assert prove_share(FolderSource(copy), world.owners[0].key).root.body.round == ROUNDS + 1
    assert len(set((copy / "credit").iterdir())) == len(before) == 2
    # Who asked just before still finds the pages of the state before.
    old = Served(store, None, lambda: state)
    state = world.state
    old.get(CREDIT_PATH)
    state = other.state
    old.get(CREDIT_PATH)
    assert old.get(page_path(world.state.rooted.root))


def test_a_share_is_of_the_history_that_was_read_before(
    world: World, copy: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(name: str, rounds: int, *, fork: bool) -> str:
        other = World(total=60, ownership={"vesting_rounds": 1})
        other.batches(1)
        if fork:
            other.add(other.dispute(other.owners[0], other.earned(other.members[1], 0), "lie"))
        for number in range(1, rounds):
            other.add(*other.round(number))
        with LedgerStore.open(tmp_path / name / DATABASE_NAME, create=True, run=world.run) as store:
            store.append(other.leaves, other.sign)
            mirror(LedgerView(store, name), tmp_path / f"{name}-copy")
        return str(tmp_path / f"{name}-copy")

    line = ["ledger", "shares", "--account", world.owners[0].key, "--run", world.run, "--from"]
    forks = [shown(f"fork-{rounds}", rounds, fork=True) for rounds in (ROUNDS - 1, ROUNDS + 1)]
    honest = [shown(f"honest-{rounds}", rounds, fork=False) for rounds in (ROUNDS - 1, ROUNDS + 1)]
    assert [cli.main([*line, where]) for where in (*forks, *honest)] == [0] * 4
    assert cli.main(["ledger", "status", "--from", str(copy)]) == 0
    for where, behind in zip((*honest, str(copy)), (True, False, False), strict=True):
        capsys.readouterr()
        assert cli.main([*line, where, "--json"]) == 0
        known = len(world.leaves) - 1 if behind else None
        assert json.loads(capsys.readouterr().out)["behind"] == known
        assert cli.main([*line, where]) == 0
        assert ("names a newer one" in capsys.readouterr().out) == behind
    for where in forks:
        capsys.readouterr()
        assert cli.main([*line, where]) == 1
        assert "two histories" in capsys.readouterr().err


def test_before_the_first_state_there_is_nothing_to_prove(tmp_path: Path) -> None:
    world = World()
    leaves = world.add(*world.start)
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True, run=world.run) as store:
        store.append(leaves, world.sign)
        with pytest.raises(NotFound):
            prove_share(Served(store, None, lambda: world.state), world.owners[0].key)


class Lying:
    """A source that shows something else at one path."""

    name = "liar"

    def __init__(self, source: TileSource, path: str, data: bytes) -> None:
        self._source, self._path, self._data = source, path, data

    def get(self, path: str, skip: int = 0) -> bytes:
        return self._data[skip:] if path == self._path else self._source.get(path, skip)


def test_no_changed_byte_is_believed(world: World, home: Served) -> None:
    wanted = prove_share(home, world.owners[0].key, world.run)
    for path in (CREDIT_PATH, page_path(world.state.rooted.root)):
        data = home.get(path)
        for at in range(0, len(data), max(1, len(data) // 150)):
            changed = data[:at] + bytes([data[at] ^ 2]) + data[at + 1 :]
            try:
                found = prove_share(Lying(home, path, changed), world.owners[0].key, world.run)
            except ArtelError:
                continue
            # A witness that nobody knows, or white space: nothing of what is said.
            assert (found.credits, found.total) == (wanted.credits, wanted.total)


def test_another_entry_is_no_agreed_state(world: World, store: LedgerStore, home: Served) -> None:
    from artel.ledger.store import finality

    final = finality.of_notes([store.latest_note], store, world.state)

    def shown(index: int) -> bytes:
        proof = offline.prove(store, final, index).encode()
        leaf = store.leaf(index)
        document = leaf.document.decode() if isinstance(leaf, Leaf) else ""
        entry = base64.b64encode(leaf).decode()
        return json.dumps({"document": document, "entry": entry, "proof": proof}).encode()

    name = world.owners[0].key
    assert prove_share(Lying(home, CREDIT_PATH, shown(store.size - 1)), name).credits is not None
    with pytest.raises(CheckFailed):
        prove_share(Lying(home, CREDIT_PATH, shown(store.size - 2)), name)
    with pytest.raises(CheckFailed):
        prove_share(home, name, digest("another run"))


def test_a_state_that_no_node_signed_is_none(tmp_path: Path) -> None:
    """The fold ignores it; whoever does not fold must not take the coordinator's word alone."""
    world = World()
    lie = entries.state_agreed(
        world.coordinator,
        world.run,
        round=1,
        attempt=0,
        root=digest("r"),
        credits=digest("c"),
        rests_on="coordinator",
        signatures={},
    )
    leaves = world.add(*world.start, lie)
    state = replace(world.state, rooted_by=len(leaves) - 1)
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True, run=world.run) as store:
        store.append(leaves, world.sign)
        with pytest.raises(CheckFailed, match="signed by no node"):
            prove_share(Served(store, None, lambda: state), world.owners[0].key)
