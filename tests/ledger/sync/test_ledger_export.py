"""What leaves the ledger: the CSV table, OpenZeppelin's Merkle tree, EVM addresses."""

from __future__ import annotations

import csv
import io
import json
import random
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from artel.ledger.cli import main
from artel.ledger.entries import decode, entry_id
from artel.ledger.fold.accounts import Account, FoldState
from artel.ledger.fold.shares import SHARE_SCALE
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.sync import evm, export
from artel.protocol.errors import EXIT_OK, CheckFailed, UsageError
from client_world import cosigned, write_key
from ledger_world import CREDIT, World, digest
from log_server import LogServer, serving
from places import FIXTURES

FIXTURES = FIXTURES / "openzeppelin"
GOLDEN = FIXTURES / "golden.json"
ROOT = bytes.fromhex(digest("root"))
NO_NETWORK = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH")

Rows = list[tuple[str, int]]


def row_sets() -> list[Rows]:
    """Rows of many sizes and amounts, always the same."""
    chance = random.Random(20)

    def address() -> str:
        return evm.checksummed("0x" + chance.randbytes(20).hex())

    sets = [[(address(), chance.randrange(1, 10**9)) for _ in range(n)] for n in (1, 2, 3, 7, 100)]
    sets.append([(address(), amount) for amount in (0, 1, 2**53 + 1, 2**200, evm.MAX_AMOUNT)])
    sets.append([(address().lower(), 5), (address().upper().replace("0X", "0x"), 5)])
    return sets


def as_json(rows: Rows) -> list[list[str]]:
    return [[address, str(amount)] for address, amount in rows]


# --- OpenZeppelin ---------------------------------------------------------------------------------


def openzeppelin(folder: Path, sets: list[Rows]) -> list[dict[str, Any]]:
    """What npm's package makes of the rows; one process for all sets."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed; the golden file is compared all the same")
    for name in ("package.json", "package-lock.json", "trees.mjs"):
        shutil.copy(FIXTURES / name, folder)
    command = [npm, "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--prefer-offline"]
    installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=120)
    if installed.returncode and any(code in installed.stderr for code in NO_NETWORK):
        pytest.skip(f"npm cannot reach its registry: {installed.stderr[:200]}")
    assert installed.returncode == 0, installed.stderr
    asked = [{"rows": as_json(rows), "ours": evm.merkle_tree(rows)} for rows in sets]
    ran = subprocess.run(
        [node, "trees.mjs"],
        cwd=folder,
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stderr
    made: list[dict[str, Any]] = json.loads(ran.stdout)
    return made


def test_trees_equal_those_of_openzeppelin_field_for_field(tmp_path: Path) -> None:
    sets = row_sets()
    made = openzeppelin(tmp_path, sets)
    assert len(made) == len(sets)
    for rows, theirs in zip(sets, made, strict=True):
        ours = evm.merkle_tree(rows)
        assert ours == theirs["dump"]
        assert list(ours) == list(theirs["dump"])  # also in this order
        assert ours["tree"][0] == theirs["root"]
        assert theirs["proven"] is True
    # The golden file, which is compared where there is no node, holds nothing else.
    assert json.loads(GOLDEN.read_text()) == [
        {"rows": as_json(rows), "root": theirs["root"], "dump": theirs["dump"]}
        for rows, theirs in zip(sets, made, strict=True)
    ]


def test_trees_equal_the_golden_ones_that_openzeppelin_made() -> None:
    golden = json.loads(GOLDEN.read_text())
    sizes = [len(item["rows"]) for item in golden]
    assert sizes == [1, 2, 3, 7, 100, 5, 2]
    for item in golden:
        ours = evm.merkle_tree([(address, int(amount)) for address, amount in item["rows"]])
        assert ours == item["dump"]
        assert ours["tree"][0] == item["root"]


def test_any_other_amount_or_address_gives_another_root() -> None:
    rows = row_sets()[2]
    root = evm.merkle_tree(rows)["tree"][0]
    address, amount = rows[1]
    for changed in ((address, amount + 1), (evm.checksummed("0x" + "12" * 20), amount)):
        assert evm.merkle_tree([rows[0], changed, rows[2]])["tree"][0] != root


def test_a_tree_is_refused_when_a_claim_would_be_ambiguous_or_impossible() -> None:
    one = "0x52908400098527886E0F7030069857D2E4169EE7"
    with pytest.raises(UsageError, match="there twice"):
        evm.merkle_tree([(one, 1), (one.lower(), 2)])
    with pytest.raises(UsageError, match="at least one row"):
        evm.merkle_tree([])
    for amount in (-1, evm.MAX_AMOUNT + 1):
        with pytest.raises(UsageError, match="256 bits"):
            evm.merkle_tree([(one, amount)])
    with pytest.raises(UsageError, match="not an EVM address"):
        evm.merkle_tree([(one[:-1], 1)])


# --- addresses ------------------------------------------------------------------------------------

# The examples of ERC-55.
ADDRESSES = [
    "0x52908400098527886E0F7030069857D2E4169EE7",
    "0x8617E340B3D01FA5F11F306F4090FD50E238070D",
    "0xde709f2102306220921060314715629080e2fb77",
    "0x27b1fdb04752bbc536007a920d24acb045561c26",
    "0x5aAeb6053F3E94C9b9A09f33669435E7Ef1BeAed",
    "0xfB6916095ca1df60bB79Ce92cE3Ea74c37c5d359",
    "0xdbF03B407c01E7cD3CBea99509d93f8DDDC8C6FB",
    "0xD1220A0cf47c7B9Be7A2E6BA89F429762e7b9aDb",
]


def test_keccak_is_the_one_of_ethereum_and_not_sha3() -> None:
    empty = "c5d2460186f7233c927e7db2dcc703c0e500b653ca82273b7bfad8045d85a470"
    assert evm.keccak256(b"").hex() == empty


@pytest.mark.parametrize("address", ADDRESSES)
def test_addresses_get_their_checksum_and_are_kept_in_lower_case(address: str) -> None:
    assert evm.checksummed(address.lower()) == address
    for spelling in (address, address.lower(), "0x" + address[2:].upper()):
        assert evm.parse_address(spelling) == address.lower()


def test_a_letter_in_the_wrong_case_is_a_wrong_checksum() -> None:
    address = ADDRESSES[4]
    for place, character in enumerate(address[2:], 2):
        if character.isalpha():
            wrong = address[:place] + character.swapcase() + address[place + 1 :]
            with pytest.raises(UsageError, match="checksum"):
                evm.parse_address(wrong)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "0x",
        ADDRESSES[0][2:],
        ADDRESSES[0] + "0",
        ADDRESSES[0] + "\n",
        "0X" + ADDRESSES[0][2:],
        "0x" + "g" * 40,
        "0x" + "٣" * 40,
        "vitalik.eth",
        "0x" + "0" * 40,
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError):
        evm.parse_address(text)


# --- tables ---------------------------------------------------------------------------------------


def state_of(*owners: tuple[str, int, int, str]) -> FoldState:
    """A state with accounts (name, vested, pending, address)."""
    state = FoldState(size=77)
    for name, vested, pending, address in owners:
        account = Account(digest(name), registered=True, address=address)
        account.vested, account.pending, account.granted = vested, pending, vested + pending
        account.units = {"compute": vested + pending}
        state.accounts[digest(name)] = account
    return state


def read(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_the_table_has_every_account_and_its_shares_add_up_exactly() -> None:
    address = ADDRESSES[4].lower()
    state = state_of(("a", 1, 0, ""), ("b", 1, 5, address), ("c", 1, 0, ""), ("d", 0, 3, ""))
    rows = read(export.csv_text(export.table(state, ROOT)))
    assert [row["account"] for row in rows[-1:]] == [digest("d")]
    assert {row["account"] for row in rows} == set(state.accounts)
    assert sum(int(row["share_units"]) for row in rows) == SHARE_SCALE
    assert sum(int(row["share_ppb"]) for row in rows) == export.BILLION
    assert sum(int(row["with_pending_share_units"]) for row in rows) == SHARE_SCALE
    found = next(row for row in rows if row["account"] == digest("b"))
    assert (found["vested"], found["pending"], found["compute_units"]) == ("1", "5", "6")
    assert (found["address"], found["as_of"], found["root"]) == (ADDRESSES[4], "77", ROOT.hex())
    assert "alias" not in found


def test_a_table_without_any_credit_has_no_shares() -> None:
    (row,) = read(export.csv_text(export.table(state_of(("a", 0, 0, "")), ROOT)))
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
    state = state_of(("a", 1, 0, ""))
    text = export.csv_text(export.table(state, ROOT, {digest("a"): (name, name)}))
    lines = list(csv.reader(io.StringIO(text)))
    assert len(lines) == 2
    assert len(lines[1]) == len(lines[0])
    for shown in lines[1][1:3]:
        assert not shown.lstrip().startswith(("=", "+", "-", "@", "＝"))
        assert shown.isprintable()


def test_harmless_names_are_shown_as_they_are() -> None:
    names = {digest("a"): ("Ada Lovelace", "Night shift – №1")}
    (row,) = read(export.csv_text(export.table(state_of(("a", 1, 0, "")), ROOT, names)))
    assert (row["alias"], row["team"]) == names[digest("a")]


def test_claims_add_up_accounts_of_one_address_and_name_those_without() -> None:
    one, two = ADDRESSES[4].lower(), ADDRESSES[5].lower()
    state = state_of(
        ("a", 5, 1, one), ("b", 7, 0, one), ("c", 2**60, 0, two), ("d", 9, 0, ""), ("e", 0, 4, two)
    )
    claims = export.claims(state)
    assert sorted(item["value"] for item in claims.dump["values"]) == sorted(
        [[ADDRESSES[4], "12"], [ADDRESSES[5], str(2**60)]]
    )
    assert claims.unclaimed == {digest("d"): 9}
    assert claims.root == claims.dump["tree"][0]
    total = sum(int(item["value"][1]) for item in claims.dump["values"])
    assert total + sum(claims.unclaimed.values()) == state.total_vested


def test_without_any_address_there_is_nothing_to_export() -> None:
    with pytest.raises(CheckFailed, match="nobody to export"):
        export.claims(state_of(("a", 5, 0, "")))


# --- the commands ---------------------------------------------------------------------------------


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LogServer]:
    """Six rounds, of which the credit of three has vested; two accounts with one address."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    world = World(ledger={"witnesses": 2})
    path = tmp_path / "coordinator" / DATABASE_NAME
    with LedgerStore.open(path, create=True, run=world.run) as store:
        store.append([envelope.encode() for envelope in world.start], world.sign)
        for number in range(6):
            store.append([envelope.encode() for envelope in world.round(number)], world.sign)
        with serving(world, store) as log:
            log.append(*(world.address(owner).encode() for owner in world.owners[:2]))
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
    assert "3 accounts, as of entry 51 of the ledger, pending" in shown.err
    file = home / "shares.csv"
    assert main(["export", "csv", *where, "-o", str(file)]) == EXIT_OK
    assert file.read_text() == shown.out
    capsys.readouterr()
    assert main(["export", "csv", *where, "--at", "28", "--json"]) == EXIT_OK
    facts = json.loads(capsys.readouterr().out)
    assert (facts["as_of"], facts["final"]) == (28, True)
    assert facts["root"] == server.store.root_at(28).hex()
    assert {row["pending"] for row in facts["accounts"]} == {str(3 * CREDIT)}
    with pytest.raises(UsageError, match="51 entries, not 52"):
        main(["export", "csv", *where, "--at", "52"])


def test_export_openzeppelin(
    server: LogServer, home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["export", "openzeppelin", "--from", server.url, "--run", server.world.run]
    assert main(command) == EXIT_OK
    shown = capsys.readouterr()
    dump = json.loads(shown.out)
    address = evm.checksummed("0x" + "ab" * 20)
    assert dump == evm.merkle_tree([(address, 6 * CREDIT)])
    assert f"root {dump['tree'][0]}" in shown.err
    unclaimed = server.world.owners[2].key
    assert unclaimed in shown.err
    file = home / "tree.json"
    assert main([*command, "-o", str(file), "--json"]) == EXIT_OK
    facts = json.loads(capsys.readouterr().out)
    assert json.loads(file.read_text()) == dump
    assert facts["unclaimed"] == {unclaimed: 3 * CREDIT}
    assert facts["claimed"] + 3 * CREDIT == server.state.total_vested
    assert (facts["root"], facts["log_root"]) == (dump["tree"][0], server.store.root.hex())


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
    assert facts["vested"] == sum(c["amount"] for c in facts["credits"] if c["vested_at"])
    assert facts["vested"] + facts["pending"] == sum(c["amount"] for c in facts["credits"])
    assert [c["source"] for c in facts["credits"]] == [world.earned(member, n) for n in range(6)]
    kinds = {item["index"]: item["kind"] for item in facts["files"]}
    for credit in facts["credits"]:
        assert kinds[credit["contribution"]] == "contribution"
        assert kinds[credit["granted_at"]] == "state_agreed"
    assert kinds[0] == "genesis"
    assert set(kinds.values()) == {
        *("genesis", "account", "node", "contribution", "state_agreed", "address")
    }
    assert {item["index"] for item in facts["files"] if item["final"]} == {
        index for index in kinds if index < 28
    }
    for item in facts["files"]:
        leaf = (folder / item["entry"]).read_bytes()
        assert leaf == server.store.leaf(item["index"])
        assert (entry_id(leaf), decode(leaf).kind) == (item["id"], item["kind"])
        # Offline, and knowing nothing but the run.
        files = [str(folder / item["proof"]), str(folder / item["entry"])]
        assert main(["verify", *files, "--run", world.run]) == EXIT_OK
    assert len(list(folder.iterdir())) == 2 * len(kinds) + 1


def test_proofs_of_whom(server: LogServer, home: Path, tmp_path: Path) -> None:
    command = ["export", "proofs", "--from", server.url, "-o", str(tmp_path / "p")]
    other = server.world.owners[1].key
    assert main([*command, "--account", other[:12]]) == EXIT_OK
    assert json.loads((tmp_path / "p" / "index.json").read_text())["account"] == other
    with pytest.raises(UsageError, match="there is no"):
        main([*command, "--home", str(tmp_path / "nobody")])
    write_key(tmp_path / "stranger" / "account.key", server.world.coordinator)
    with pytest.raises(CheckFailed, match="speaks for no account"):
        main([*command, "--home", str(tmp_path / "stranger")])
    with pytest.raises(UsageError, match="no account is called"):
        main([*command, "--account", "../../etc/passwd"])
