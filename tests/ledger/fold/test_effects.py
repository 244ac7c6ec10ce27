"""What each entry did is written beside it, once, and says what a fold of the entries says."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries import Entry, decode
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Outcome
from artel.ledger.fold import effects, kept, shares
from artel.ledger.fold.effects import Fold
from artel.ledger.fold.explain import explain
from artel.ledger.fold.history import History, read
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.protocol.errors import CheckFailed
from explorer_world import busy_world, sharded_world
from ledger_world import World, key
from log_world import replay

KEEP = 16


@pytest.fixture(params=[busy_world, sharded_world])
def world(request: pytest.FixtureRequest) -> World:
    made: World = request.param()
    return made


@pytest.fixture
def home(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home whose ledger was written by its owner, some entries at a time."""
    monkeypatch.setattr(kept, "KEEP_EVERY", KEEP)
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True) as store:
        fold = Fold.open(store)
        for start in range(0, len(world.leaves), 7):
            store.append(world.leaves[start : start + 7], world.sign, fold.beside)
            fold.settle()
    return tmp_path


@pytest.fixture
def store(home: Path) -> Iterator[LedgerStore]:
    with LedgerStore.open(home / DATABASE_NAME) as store:
        yield store


def folded(world: World, size: int) -> tuple[FoldState, list[tuple[Entry, Outcome]]]:
    seen: list[tuple[Entry, Outcome]] = []
    leaves = world.leaves[:size]
    return replay(leaves, observe=lambda _i, entry, outcome: seen.append((entry, outcome))), seen


def assert_told(history: History, world: World, size: int) -> None:
    """It says of ``size`` entries what their fold says."""
    state, seen = folded(world, size)
    assert history.state == state
    for index, (entry, outcome) in enumerate(seen):
        did = history.did(index)
        assert (did.kind, did.status, did.reason) == (entry.kind, outcome.status, outcome.reason)
        told = history.outcome(did)
        assert told.granted == outcome.granted
        assert set(told.vested) == set(outcome.vested)
        assert set(told.invalidated) == set(outcome.invalidated)
        assert told.left_out == outcome.left_out
        assert told.notes == outcome.notes
    kinds = {kind: history.count(kind=kind) for kind in state.kinds}
    assert kinds == state.kinds
    for name, owner in state.accounts.items():
        sums = dict.fromkeys(("pending", "vested", "invalidated"), 0)
        for trail in history.credits_of(name):
            assert trail.credit.account == name
            sums[trail.status] += trail.credit.amount
        assert sums["pending"] == owner.pending
        assert sums["invalidated"] == owner.invalidated - owner.staked
        assert sums["vested"] == owner.vested + owner.staked + owner.sent - owner.received
        by_kind = history.sums_of(name)
        assert sum(by_kind.values()) == sum(sums.values())
    left_out = [item for name in state.accounts for _, item in history.left_out_of(name)]
    assert len(left_out) == sum(sum(counts.values()) for counts in state.rejected.values())


@pytest.mark.parametrize("part", [1.0, 0.7, 0.35])
def test_the_history_says_what_the_fold_says(world: World, store: LedgerStore, part: float) -> None:
    size = int(part * store.size)
    assert_told(read(store, size), world, size)
    assert_told(History(store, store.query, folded(world, size)[0]), world, size)


def test_vested_credit_over_time_ends_at_what_is_held(world: World, store: LedgerStore) -> None:
    history = read(store)
    state = history.state
    for name, owner in state.accounts.items():
        assert history.vested_at(name, [state.round]) == [owner.vested]
    assert history.vested_at("", [state.round]) == [state.total_vested]


def test_a_ledger_without_effects_has_the_same_history(world: World, home: Path) -> None:
    with LedgerStore.open(home / "other" / DATABASE_NAME, create=True) as bare:
        for start in range(0, len(world.leaves), 200):
            bare.append(world.leaves[start : start + 200], world.sign)
        assert not bare.query("SELECT * FROM effects")
        assert_told(read(bare), world, bare.size)
        assert not bare.query("SELECT * FROM effects"), "who only reads writes nothing"
        assert_told(History(bare, bare.query, Fold.open(bare).state), world, bare.size)


def test_a_restart_folds_only_what_is_new(
    store: LedgerStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    applied: list[int] = []
    apply = shares.apply

    def counted(state: FoldState, entry: Entry) -> Outcome:
        applied.append(state.size)
        return apply(state, entry)

    monkeypatch.setattr(effects, "apply", counted)
    monkeypatch.setattr(kept, "apply", counted)
    state = Fold.open(store).state
    assert state == replay(store.leaves())
    assert len(applied) < 2 * KEEP < store.size
    assert len(store.query("SELECT size FROM kept")) > 2


@pytest.mark.parametrize(
    "damage",
    [
        "UPDATE kept SET state = CAST(substr(state, 1, 20) || x'00' || substr(state, 22) AS BLOB)",
        "UPDATE kept SET digest = zeroblob(32)",
        "UPDATE kept SET rules = zeroblob(32)",
        "DELETE FROM kept",
        "DELETE FROM effects WHERE idx > 20",
        "UPDATE effects SET reason = 'late', status = 0 WHERE idx = 9",
        "UPDATE effects SET kind = 99 WHERE idx = 9",
        "UPDATE effects SET reason = 'bad_signature' WHERE idx = (SELECT max(idx) FROM effects)",
        "UPDATE credits SET units = units * 2",
        "UPDATE credits SET status = 2 WHERE number = 3",
        "DELETE FROM credits WHERE number = 3",
        "DELETE FROM names WHERE id = 3",
    ],
)
def test_what_is_damaged_or_by_other_rules_is_computed_again(home: Path, damage: str) -> None:
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        connection.execute(damage)
    connection.close()
    with LedgerStore.open(home / DATABASE_NAME) as store:
        assert Fold.open(store).state == replay(store.leaves())
    assert verify_home(home).verified


def flips() -> Iterator[tuple[str, str]]:
    connection = sqlite3.connect(":memory:")
    for statement in effects.TABLES:
        connection.execute(statement)
    for table in effects.tables():
        for _, column, kind, *_ in connection.execute(f"PRAGMA table_info({table})"):
            changed = f"{column} + 1000000" if kind == "INTEGER" else f"{column} || 'x'"
            yield table, f"UPDATE {table} SET {column} = {changed} WHERE %s"
        yield table, f"DELETE FROM {table} WHERE %s"
    connection.close()


@pytest.mark.parametrize(("table", "damage"), list(flips()))
def test_verify_notices_a_change_in_any_effect_or_kept_state(
    home: Path, table: str, damage: str
) -> None:
    key = {"mentions": "name, idx", "bindings": "node, idx", "held": "name, state"}
    columns = key.get(table, "rowid")
    assert verify_home(home).verified
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        rows = connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0]
        assert rows, f"nothing stands in {table}"
        one = f"({columns}) IN (SELECT {columns} FROM {table} LIMIT 1 OFFSET {rows // 2})"
        connection.execute(damage % one)
    connection.close()
    found = verify_home(home)
    failed = [check.name for check in found.checks if not check.ok]
    if table == "terms":  # whose signature a tree head needs stands there, too
        assert failed
        return
    # One state less is kept than might be: nothing that anybody reads is another for it.
    assert failed == ([] if (table, damage[:6]) == ("kept", "DELETE") else ["effects"])


@pytest.mark.parametrize("most", [1, 1000])
def test_it_is_the_same_however_many_entries_are_written_at_once(
    world: World, tmp_path: Path, most: int
) -> None:
    """A newcomer's first entry behind the first credit that vests is where names could differ."""
    newcomer, peer = key("newcomer"), key("newcomer's node")
    joins = [entries.account(newcomer, world.run), entries.node(peer, newcomer, world.run)]
    leaves = [*world.leaves, *(statement.encode() for statement in joins)]
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True) as store:
        fold = Fold.open(store)
        for start in range(0, len(leaves), most):
            store.append(leaves[start : start + most], world.sign, fold.beside)
            fold.settle()
        assert newcomer.key in fold.state.accounts
        names = store.query("SELECT * FROM names")
    state, made = FoldState(), sqlite3.connect(":memory:")
    for table in effects.TABLES:
        made.execute(table)
    for leaf in leaves:
        effects.write(made, state, [decode(leaf)])
    assert made.execute("SELECT * FROM names").fetchall() == names
    made.close()
    assert verify_home(tmp_path).verified


def test_a_fold_that_is_not_at_the_end_takes_nothing(world: World, home: Path) -> None:
    with LedgerStore.open(home / DATABASE_NAME) as store:
        size = store.size
        fold = Fold(folded(world, size - 1)[0])
        with pytest.raises(CheckFailed, match="the fold is at"):
            store.append([world.add(world.opened(30))[0]], world.sign, fold.beside)
        assert store.size == size


def test_credit_that_contradicts_itself_is_not_told(home: Path) -> None:
    with sqlite3.connect(home / DATABASE_NAME) as connection:
        ((work, index),) = connection.execute(
            "SELECT work, granted FROM credits WHERE kind = 0 LIMIT 1"
        ).fetchall()
        connection.execute("UPDATE credits SET units = units * 2")
    connection.close()
    with LedgerReader.of(home) as reader:
        history = read(reader)
        for told in (
            lambda: explain(history, index),
            lambda: explain(history, work),
            *(partial(history.sums_of, name) for name in history.state.accounts),
        ):
            with pytest.raises(CheckFailed, match="contradicts itself"):
                told()


def test_readers_beside_the_owner_see_its_effects(home: Path, world: World) -> None:
    with LedgerReader.of(home) as reader:
        assert_told(read(reader), world, reader.size)
        assert decode(reader.leaf(0)).kind == "genesis"


def test_no_answer_reads_a_whole_table(store: LedgerStore) -> None:
    asked: list[tuple[str, Sequence[object]]] = []

    def query(sql: str, values: Sequence[object]) -> list[tuple[Any, ...]]:
        asked.append((sql, values))
        return store.query(sql, values)

    history = History(store, query, read(store).state)
    account = next(iter(history.state.accounts))
    for index in range(history.size):
        explain(history, index)
    history.chosen(kind="contribution", round=2, limit=5)
    history.chosen(account=account, limit=5)
    history.credits_of(account, kind="compute", state="vested", before=9, limit=5)
    history.sums_of(account)
    history.reasons_of(account)
    history.left_out_of(account, 5)
    history.statements_of(account, 5)
    history.work_of(account)
    history.vested_at("", [history.first_vested, 3])
    for sql, values in asked:
        for *_, step in store.query(f"EXPLAIN QUERY PLAN {sql}", values):
            scanned = step.removeprefix("SCAN ").split()[0] if step.startswith("SCAN") else ""
            assert scanned not in effects.tables() + list("aceghlnps"), (step, sql)
