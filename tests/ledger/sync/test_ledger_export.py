"""What leaves the ledger: the CSV table and the proofs of an account's credit."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from artel.ledger.entries import decode, entry_id
from artel.ledger.entries.fold_state import Account, FoldState
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
    rows = read(export.csv_text(export.table(state, ROOT)))
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
    (row,) = read(export.csv_text(export.table(state_of(("a", 0, 0)), ROOT)))
    assert (row["share_units"], row["share_ppb"]) == ("0", "0")


@pytest.mark.parametrize(
    "name",
    [
        '=HYPERLINK("http://evil")',
        "+1+1",
        "-2+3",
        "@SUM(A1)",
        "\t=1+1",
        "\r=1+1",
        "  =1+1",
        "＝1+1",
        'a","b\n=1',
        "x\x1b[31mred\x1b[0m",
        "abc\u202egnp.exe",
    ],
)
def test_names_cannot_become_formulas_new_cells_or_terminal_commands(name: str) -> None:
    state = state_of(("a", 1, 0))
    text = export.csv_text(export.table(state, ROOT, {digest("a"): (name, name)}))
    lines = list(csv.reader(io.StringIO(text)))
    assert len(lines) == 2
    assert len(lines[1]) == len(lines[0])
    for shown in lines[1][1:3]:
        assert not shown.lstrip().startswith(("=", "+", "-", "@", "＝"))
        assert shown.isprintable()


def test_harmless_names_are_shown_as_they_are() -> None:
    names = {digest("a"): ("Ada Lovelace", "Night shift – №1")}
    (row,) = read(export.csv_text(export.table(state_of(("a", 1, 0)), ROOT, names)))
    assert (row["alias"], row["team"]) == names[digest("a")]


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
            log.final = cosigned(store.note_at(28), *world.members[:2])
            yield log


@pytest.fixture
def home(server: LogServer, tmp_path: Path) -> Path:
    write_key(tmp_path / "home" / "account.key", server.world.owners[0])
    return tmp_path / "home"


def test_export_csv(server: LogServer, home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--from", server.url, "--run", server.world.run]
    assert main(["export", "csv", *where]) == EXIT_OK
    shown = capsys.readouterr()
    rows = read(shown.out)
    assert [row["vested"] for row in rows] == [str(3 * CREDIT)] * 3
    assert {row["root"] for row in rows} == {server.store.root.hex()}
    assert "3 accounts, as of entry 49 of the ledger, pending" in shown.err
    file = home / "shares.csv"
    assert main(["export", "csv", *where, "-o", str(file)]) == EXIT_OK
    assert file.read_text() == shown.out
    capsys.readouterr()
    assert main(["export", "csv", *where, "--at", "28", "--json"]) == EXIT_OK
    facts = json.loads(capsys.readouterr().out)
    assert (facts["as_of"], facts["final"]) == (28, True)
    assert facts["root"] == server.store.root_at(28).hex()
    assert {row["pending"] for row in facts["accounts"]} == {str(3 * CREDIT)}
    with pytest.raises(UsageError, match="49 entries, not 50"):
        main(["export", "csv", *where, "--at", "50"])


def test_export_proofs_are_all_that_an_owner_needs_later(
    server: LogServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world, folder = server.world, home / "proofs"
    owner, member = world.owners[0], world.members[0]
    command = ["export", "proofs", "--from", server.url, "--run", world.run, "-o", str(folder)]
    assert main([*command, "--home", str(home), "--json"]) == EXIT_OK
    facts = json.loads(capsys.readouterr().out)
    assert facts == json.loads((folder / "index.json").read_text())
    assert facts["account"] == owner.key
    vested = [credit for credit in facts["credits"] if credit["status"] == "vested"]
    assert facts["vested"] == sum(credit["amount"] for credit in vested)
    assert facts["vested"] + facts["pending"] == sum(c["amount"] for c in facts["credits"])
    assert [c["source"] for c in facts["credits"]] == [world.earned(member, n) for n in range(6)]
    kinds = {item["index"]: item["kind"] for item in facts["files"]}
    for credit in facts["credits"]:
        assert kinds[credit["work"]] == "contribution"
        assert kinds[credit["granted"]] == "state_agreed"
    assert kinds[0] == "genesis"
    assert set(kinds.values()) == {*("genesis", "account", "node", "contribution", "state_agreed")}
    assert {item["index"] for item in facts["files"] if item["final"]} == {
        index for index in kinds if index < 28
    }
    for item in facts["files"]:
        leaf = (folder / item["entry"]).read_bytes()
        assert leaf == server.store.leaf(item["index"])
        assert (entry_id(leaf), item["kind"]) == (item["id"], kinds[item["index"]])
        if item["document"]:
            leaf = Leaf(leaf, (folder / item["document"]).read_bytes())
        assert decode(leaf).kind == item["kind"]
        # Offline, and knowing nothing but the run.
        files = [str(folder / item["proof"]), str(folder / item["entry"])]
        policy = facts["policy"] if item["final"] else []
        assert main(["verify", *files, "--run", world.run, *policy]) == EXIT_OK
    assert facts["policy"][0] == "--policy"
    agreed = sum(kind == "state_agreed" for kind in kinds.values())
    assert len(list(folder.iterdir())) == 2 * len(kinds) + agreed + 1


def test_proofs_of_whom(server: LogServer, home: Path, tmp_path: Path) -> None:
    command = ["export", "proofs", "--from", server.url, "-o", str(tmp_path / "p")]
    other = server.world.owners[1].key
    assert main([*command, "--account", other[:12]]) == EXIT_OK
    assert json.loads((tmp_path / "p" / "index.json").read_text())["account"] == other
    with pytest.raises(UsageError, match=r"account\.key"):
        main([*command, "--home", str(tmp_path / "nobody")])
    write_key(tmp_path / "stranger" / "account.key", server.world.coordinator)
    with pytest.raises(CheckFailed, match="stranger"):
        main([*command, "--home", str(tmp_path / "stranger")])
    with pytest.raises(UsageError, match="no account is called"):
        main([*command, "--account", "../../etc/passwd"])
