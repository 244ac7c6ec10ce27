"""What leaves the ledger: the CSV table and the proofs of an account's credit."""

from __future__ import annotations

import csv
import io
import json
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

from artel.ledger.entries import decode, entry_id
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.records import Account
from artel.ledger.fold.shares import SHARE_SCALE
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync import export
from artel.protocol.dsse import Leaf
from artel.protocol.errors import EXIT_OK, CheckFailed, UsageError
from client_world import cosigned, write_key
from command_world import group
from ledger_world import CREDIT, World, digest
from log_server import LogServer, serving

main = group("ledger")

ROOT = bytes.fromhex(digest("root"))


# --- tables ---------------------------------------------------------------------------------------


def state_of(*owners: tuple[str, int, int]) -> FoldState:
    """A state with accounts (name, vested, pending)."""
    state = FoldState(size=77)
    for name, vested, pending in owners:
        account = Account(digest(name), registered=True)
        account.vested, account.pending, account.granted = vested, pending, vested + pending
        account.units = {"compute": vested + pending}
        state.accounts[digest(name)] = account
    return state


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_has_every_account_and_its_shares_add_up_exactly() -> None:
    state = state_of(("a", 1, 0), ("b", 1, 5), ("c", 1, 0), ("d", 0, 3))
    rows = read(export.csv_table(state, ROOT))
    assert [row["account"] for row in rows[-1:]] == [digest("d")]
    assert {row["account"] for row in rows} == set(state.accounts)
    assert sum(int(row["share_units"]) for row in rows) == SHARE_SCALE
    assert sum(int(row["share_ppb"]) for row in rows) == export.BILLION
    assert sum(int(row["with_pending_share_units"]) for row in rows) == SHARE_SCALE
    found = next(row for row in rows if row["account"] == digest("b"))
    assert (found["vested"], found["pending"], found["compute_units"]) == ("1", "5", "6")
    assert (found["as_of"], found["root"]) == ("77", ROOT.hex())
    assert "alias" not in found


def test_a_table_without_any_credit_has_no_shares() -> None:
    (row,) = read(export.csv_table(state_of(("a", 0, 0)), ROOT))
    assert (row["share_units"], row["share_ppb"]) == ("0", "0")


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogServer]:
    """Six rounds, of which the credit of three has vested."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    world = World(ledger={"witnesses": 2})
    path = tmp_path / "coordinator" / DATABASE_NAME
    with LedgerStore.open(path, create=True, run=world.run) as store:
        store.append(world.add(*world.start), world.sign)
        for number in range(6):
            store.append(world.add(*world.round(number)), world.sign)
        with serving(world, store) as log:
            log.certified = cosigned(store.note_at(28), *world.members[:2])
            yield log


@pytest.fixture
def home(server: LogServer, tmp_path: Path) -> Path:
    write_key(tmp_path / "home" / "account.key", server.world.owners[0])
    return tmp_path / "home"


def test_shares_as_csv(server: LogServer, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--from", server.url, "--run", server.world.run]
    assert main(["shares", "--csv", *where]) == EXIT_OK
    rows = read(capsys.readouterr().out)
    assert [row["vested"] for row in rows] == [str(3 * CREDIT)] * 3
    assert {row["root"] for row in rows} == {server.store.root.hex()}
    assert main(["shares", "--csv", *where, "--at", "28"]) == EXIT_OK
    rows = read(capsys.readouterr().out)
    assert {row["as_of"] for row in rows} == {"28"}
    assert {row["root"] for row in rows} == {server.store.root_at(28).hex()}
    assert {row["pending"] for row in rows} == {str(3 * CREDIT)}
    with pytest.raises(UsageError, match="49 entries, not 50"):
        main(["shares", "--csv", *where, "--at", "50"])


def test_proofs_are_all_that_an_owner_needs_later(
    server: LogServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, folder = server.world, home / "proofs"
    where = ["--from", server.url, "--run", world.run, "--home", str(home)]
    assert main(["prove", *where, "-o", str(folder), "--json"]) == EXIT_OK
    facts = json.loads(capsys.readouterr().out)
    kinds = {}
    for item in facts["proofs"]:
        leaf = Path(item["entry"]).read_bytes()
        assert (leaf, entry_id(leaf)) == (server.store.leaf(item["index"]), item["id"])
        if item["document"]:
            leaf = Leaf(leaf, Path(item["document"]).read_bytes())
        kinds[item["index"]] = decode(leaf).kind
        # Offline, and knowing nothing but the run.
        assert main(["verify", item["proof"], item["entry"], "--run", world.run]) == EXIT_OK
    assert kinds[0] == "genesis"
    assert set(kinds.values()) == {"genesis", "account", "node", "contribution", "state_agreed"}
    earned = {server.store.index_of(world.earned(world.members[0], n)) for n in range(6)}
    assert earned == {index for index, kind in kinds.items() if kind == "contribution"}
    certified = {item["index"] for item in facts["proofs"] if item["certified"]}
    assert certified == {index for index in kinds if index < 28}
    artel, ledger, *verify = shlex.split(facts["verify"])
    assert (artel, ledger, "--policy" in verify) == ("artel", "ledger", True)
    assert main(verify) == EXIT_OK
    agreed = sum(kind == "state_agreed" for kind in kinds.values())
    assert len(list(folder.iterdir())) == 2 * len(kinds) + agreed


def test_proofs_of_whom(server: LogServer, home: Path, tmp_path: Path) -> None:
    command = ["prove", "--from", server.url, "-o", str(tmp_path / "p")]
    assert main([*command, "--account", server.world.owners[1].key[:12]]) == EXIT_OK
    assert (tmp_path / "p" / "entry-0.json").exists()
    with pytest.raises(UsageError, match=r"account\.key"):
        main([*command, "--home", str(tmp_path / "nobody")])
    write_key(tmp_path / "stranger" / "account.key", server.world.coordinator)
    with pytest.raises(CheckFailed, match="stranger"):
        main([*command, "--home", str(tmp_path / "stranger")])
    with pytest.raises(UsageError, match="no account is called"):
        main([*command, "--account", "../../etc/passwd"])
