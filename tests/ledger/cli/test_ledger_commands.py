"""``artel ledger`` on a home: what a person and a script read, and the exit codes."""

from __future__ import annotations

import hashlib
import json
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import client_world
from artel import cli
from artel.ledger import entries
from artel.ledger.cli.reading import KINDS
from artel.ledger.entries import entry_id, evidence, reasons
from artel.ledger.fold.labels import Trust
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.packing import pack
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import CHECKPOINT_NAME, DATABASE_NAME, LedgerStore
from artel.ledger.sync.source import CERTIFIED_PATH
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import sign_checkpoint
from artel.ledger.tlog.cosignature import witness_key
from artel.ledger.tlog.note import VerifierKey
from artel.ledger.tlog.proof import TlogProof, root_at
from artel.protocol import merkle
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.identity import Identity
from artel.protocol.merkle import inclusion
from artel.protocol.round_state import LATE
from client_world import (
    become_member,
    claim,
    cosign_at,
    record,
    write_claims,
    write_key,
    write_tiles,
)
from command_world import group
from leaf_hashes import LeafHashes
from ledger_world import CREDIT, TOKENS, World
from tlog_world import LOG_KEY, cosigned, key, leaves_of, signed, tree_of, write_log

main = group("ledger")

RULES: dict[str, Any] = {"ledger": {"witnesses": 2}, "ownership": {"rates": {"witness": 0}}}
WORLD = World(**RULES)
A, B, C = WORLD.members
SIZE = 43
AGREED = (13, 20, 27, 34)
"""Indices of the four agreed states; credit vests three states later."""

Run = Callable[..., str]


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """C's home: four good rounds, and a fifth that is closed (without C) but not agreed on.

    A and B have cosigned the checkpoint of 35 entries, which entry 41 says, and that of 42, A alone
    the newest.
    """
    home = tmp_path_factory.mktemp("home")
    WORLD.write(home, rounds=4)
    unfinished = WORLD.add(
        WORLD.opened(4),
        WORLD.committed(4, members=[A, B]),
        WORLD.contribution(A, 4),
        WORLD.contribution(B, 4),
        WORLD.contribution(C, 4),
        WORLD.closed(4, accepted=[A, B], rejected={C.peer_id: LATE}),
    )
    with LedgerStore.open(home / DATABASE_NAME) as store:
        store.append(unfinished, WORLD.sign)
    record(home, WORLD, 35, A, B)
    cosign_at(home, SIZE - 1, A, B)
    cosign_at(home, SIZE, A)
    become_member(home, WORLD, 2)
    write_claims(home, *(claim(WORLD, C, round) for round in range(6)))
    return home


@pytest.fixture
def run(home: Path, capsys: pytest.CaptureFixture[str]) -> Run:
    """Run a command on ``home`` that must succeed; returns its output."""

    def run(*arguments: str) -> str:
        assert main([*arguments, "--home", str(home)]) == 0
        return capsys.readouterr().out

    return run


def as_json(run: Run, *arguments: str) -> Any:
    return json.loads(run(*arguments, "--json"))


# --- status ---------------------------------------------------------------------------------------


def test_status_says_what_is_final_and_what_the_witnesses_are_worth(run: Run) -> None:
    facts = as_json(run, "status")
    root = merkle.root(map(merkle.leaf_hash, WORLD.leaves)).hex()
    assert (facts["size"], facts["as_of"], facts["root"], facts["term"]) == (SIZE, SIZE, root, 0)
    assert (facts["round"], facts["phase"], facts["attempt"]) == (4, "applying", 0)
    assert (facts["vested"], facts["pending"]) == (3 * CREDIT, 9 * CREDIT)
    assert facts["awaiting"] == 2 * CREDIT
    assert facts["ignored"] == {reasons.NOT_COMMITTED: 1}
    assert (facts["certified_size"], facts["final_size"]) == (SIZE - 1, 35)
    assert (facts["witnesses_needed"], facts["witnesses_known"]) == (2, 3)
    assert sorted(w["node"] for w in facts["witnesses"]) == sorted([A.peer_id, B.peer_id])
    shown = run("status")
    assert f"test-run ({WORLD.run})" in shown
    assert "final up to entry 34 of 42, as of checkpoint 43" in shown
    assert "cosigned by 2 accounts, 2 needed, newest " in shown
    assert "only if 1 witness account lied beside the coordinator" in shown
    assert "progress survives 1 absent witness account" in shown
    assert "ALARM" not in shown


def test_status_raises_the_alarm_about_split_views(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = copy_of(home, tmp_path)
    proof = split_view()
    heads = HeadStore(copied / HEADS_NAME)
    heads.add_conflict(proof.to_dict())
    heads.close()
    assert main(["status", "--home", str(copied)]) == 0
    assert "ALARM    1 proof of a split view is known here" in capsys.readouterr().out
    owner = WORLD.owners[0]
    seen = entries.by_account(
        entries.SplitSeen, owner, WORLD.run, account=owner.key, evidence=proof.to_dict()
    )
    with LedgerStore.open(copied / DATABASE_NAME) as store:
        store.append([seen.encode()], WORLD.sign)
    assert main(["status", "--home", str(copied)]) == 0
    shown = capsys.readouterr().out
    assert f"key {WORLD.coordinator.key[:12]} signed two histories (proven in entry 43)" in shown


@pytest.mark.parametrize(
    ("needed", "known", "said"),
    [
        (0, 3, "tamper-evident to whoever kept a checkpoint"),
        (2, 4, "do not prevent a split view"),
        (3, 4, "only if 2 witness accounts lied"),
        (3, 4, "progress survives 1 absent witness account"),
        (4, 4, "every witness account is needed"),
        (2, 1, "nothing can become final yet"),
        (1, 1, "seats are open"),
    ],
)
def test_the_label_does_not_promise_too_much(needed: int, known: int, said: str) -> None:
    assert said in Trust(needed, known).label


@pytest.mark.parametrize(
    ("needed", "known", "voices", "said"),
    [
        (2, 9, 1, "only if 1 witness account lied"),
        (2, 9, 4, "only if 2 witness accounts lied"),
        (2, 9, 5, "only if 1 witness account lied"),
        (3, 4, 5, "only if 2 witness accounts lied"),
        (2, 9, 4, "progress survives 1 absent witness account"),
        (2, 9, 5, "progress survives 2 absent witness accounts"),
        (8, 9, 5, "progress survives 1 absent witness account"),
        (2, 9, 2, "every witness account is needed"),
        (3, 2, 5, "nothing can become final yet"),
        (0, 9, 5, "not witnessed"),
        (2, 9, 5, "seats are open"),
    ],
)
def test_a_quorum_of_electors_is_needed_beside_the_accounts(
    needed: int, known: int, voices: int, said: str
) -> None:
    assert said in Trust(needed, known, voices).label


def test_words_that_weigh_by_standing_are_counted_by_standing() -> None:
    split, progress, seats = Trust(2, 9, by_standing=True).lines
    assert "only if electors with more than a third of all standing lied" in split
    assert "needs electors with more than two thirds of all standing" in progress
    assert "weigh by standing" in seats


def test_a_reader_changes_nothing_in_a_home(home: Path, run: Run) -> None:
    def content() -> dict[str, str]:
        files = sorted(path for path in home.rglob("*") if path.is_file())
        return {str(path): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}

    before = content()
    for command in ("status", "me", "shares", "log", "verify"):
        run(command)
    assert content() == before


# --- log, explain ---------------------------------------------------------------------------


def test_log_shows_every_entry_and_why_one_does_not_count(run: Run) -> None:
    lines = run("log").splitlines()
    assert len(lines) == 1 + SIZE + 1
    assert lines[0].split() == ["index", "kind", "round", "what", "it", "says"]
    assert lines[1].split()[:3] == ["0", "genesis", "-"]
    assert "the node committed to nothing" in lines[40]
    assert f"2 accepted, left out: …{C.peer_id[-8:]} late" in lines[41]
    assert lines[-1] == "as of checkpoint 43; final before entry 35"
    assert max(map(len, lines)) < 140


def test_log_can_be_narrowed(run: Run) -> None:
    def indices(*arguments: str) -> list[int]:
        return [entry["index"] for entry in as_json(run, "log", *arguments)["entries"]]

    assert indices("--kind", "round_opened") == [7, 14, 21, 28, 35]
    assert indices("--round", "0") == list(range(7, 14))
    assert indices("--limit", "2") == [41, 42]
    assert indices("--limit", "0") == list(range(SIZE))
    assert as_json(run, "log", "--limit", "2")["matches"] == SIZE
    assert "the last 2 of 43; --limit 0 shows all" in run("log", "--limit", "2")
    assert run("log", "--round", "9") == "no entry fits\n"
    kinds = ("--kind", "contribution")
    assert indices(*kinds, "--mine") == [11, 18, 25, 32, 39]
    assert indices(*kinds, "--account", WORLD.owners[0].key) == [9, 16, 23, 30, 37]
    assert set(AGREED) <= set(indices("--mine")), "what grants credit to the account is about it"


def test_every_kind_of_entry_can_be_asked_for() -> None:
    assert set(KINDS) == {"genesis", *entries.BODIES}


def test_explain_by_index_and_by_id(run: Run) -> None:
    leaf = WORLD.leaves[34]
    facts = as_json(run, "explain", "34")
    assert facts["id"] == entry_id(leaf)
    assert facts["leaf_hash"] == merkle.leaf_hash(leaf).hex()
    assert facts["body"]["kind"] == facts["kind"] == "state_agreed"
    assert sorted(signer["role"] for signer in facts["signers"]) == ["coordinator"] + ["node"] * 3
    assert [credit["amount"] for credit in facts["credits"]] == [CREDIT] * 6  # granted, vested
    assert as_json(run, "explain", facts["id"]) == facts
    assert as_json(run, "explain", facts["id"][:9]) == facts
    shown = run("explain", "34")
    assert "signed by  coordinator " + WORLD.coordinator.key in shown
    assert "signed by  node " + A.peer_id in shown
    assert "as of checkpoint 43; entry 34 is final" in shown
    shown = run("explain", "39")
    assert "it changes nothing: the node committed" in shown
    assert "as of checkpoint 43; entry 39 is pending" in shown
    assert "organiser" in run("explain", "0")


def test_explain_fills_in_the_numbers(run: Run) -> None:
    assert "128 tokens × 100" in run("explain", "11")


# --- shares ---------------------------------------------------------------------------------------


def test_shares(run: Run) -> None:
    facts = as_json(run, "shares")
    assert (facts["as_of"], facts["checkpoint"], facts["vested"]) == (SIZE, True, 3 * CREDIT)
    assert sum(row["share"] for row in facts["shares"]) == 1
    assert sum(row["share_with_pending"] for row in facts["shares"]) == 1
    rows = {row["account"]: row for row in facts["shares"]}
    ours = [rows[owner.key] for owner in WORLD.owners]
    assert [row["vested"] for row in ours] == [CREDIT] * 3
    assert [row["pending"] for row in ours] == [3 * CREDIT] * 3
    assert [row["awaiting"] for row in ours] == [CREDIT, CREDIT, 0]
    assert ours[2]["left_out"] == {LATE: 1}
    assert ours[0]["work"] == {"compute": 4 * TOKENS, "witness": 34}
    shown = run("shares")
    assert "as of checkpoint 43, round 4" in shown
    assert "33.333 %" in shown
    assert "1 late" in shown
    assert "final up to entry 34 of 42" in shown


def test_shares_of_an_earlier_time(run: Run, home: Path) -> None:
    assert as_json(run, "shares", "--at", "12")["shares"] == []
    earlier = as_json(run, "shares", "--at", "14")
    assert [row["pending"] for row in earlier["shares"]] == [CREDIT] * 3
    assert [row["share"] for row in earlier["shares"]] == [0] * 3
    assert "as of checkpoint 14" in run("shares", "--at", "14")
    assert "nothing has vested yet" in run("shares", "--at", "14")
    assert "as of entry 17" in run("shares", "--at", "17")
    assert "nobody has credit yet" in run("shares", "--at", "0")
    with pytest.raises(UsageError, match="has 43 entries"):
        main(["shares", "--at", "44", "--home", str(home)])


# --- me -------------------------------------------------------------------------------------------


def test_me_puts_claims_and_ledger_side_by_side(run: Run) -> None:
    facts = as_json(run, "me")
    assert (facts["account"], facts["nodes"]) == (WORLD.owners[2].key, [C.peer_id])
    assert (facts["claimed"], facts["in_ledger"]) == (6, 5)
    counts = {status: item["count"] for status, item in facts["steps"].items() if item["count"]}
    assert counts == {"vested": 1, "pending": 3, "rejected": 1, "missing": 1}
    assert facts["steps"]["pending"] == {"count": 3, "tokens": 3 * TOKENS, "amount": 3 * CREDIT}
    assert facts["rejected"] == {LATE: 1}
    assert facts["vesting"] == {"5": CREDIT, "6": CREDIT, "7": CREDIT}
    assert (facts["vested"], facts["pending"], facts["granted"]) == (CREDIT, 3 * CREDIT, 4 * CREDIT)
    statuses = [item["status"] for item in facts["contributions"]]
    assert statuses == ["vested", "pending", "pending", "pending", "rejected", "missing"]
    assert [item["index"] for item in facts["contributions"]] == [11, 18, 25, 32, 39, None]
    shown = run("me")
    assert "next: 12,800 vest when state 5 is agreed" in shown
    assert "1 late: came after the round's commitments were closed" in shown
    assert "ask the coordinator, whose copy is newer: add --from INVITE" in shown
    assert "33.333 % now, 33.333 % with all that is pending" in shown
    assert "final up to entry 34 of 42, as of checkpoint 43" in shown


def test_me_names_what_still_has_to_happen(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = copy_of(home, tmp_path)
    become_member(copied, WORLD, 0)
    write_claims(copied, claim(WORLD, A, 4), claim(WORLD, A, 3, attempt=1))
    assert main(["me", "--home", str(copied), "--json"]) == 0
    awaiting, missing = json.loads(capsys.readouterr().out)["contributions"]
    assert awaiting["status"] == "awaiting"
    assert awaiting["detail"] == "accepted; credit is granted when state 5 is agreed"
    assert missing["status"] == "missing"
    assert "never recorded it" in missing["detail"]


def test_me_of_others_and_of_a_home_without_claims(run: Run) -> None:
    facts = as_json(run, "me", "--account", WORLD.owners[1].key[:10])
    assert facts["account"] == WORLD.owners[1].key
    assert (facts["claimed"], facts["in_ledger"]) == (None, 5)
    assert facts["steps"]["awaiting"]["count"] == 1
    assert "claimed" not in run("me", "--account", WORLD.owners[1].key)


def test_me_finds_the_account_after_a_change_of_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    world = World()
    world.write(tmp_path, rounds=1)
    fresh = Identity.from_seed(bytes(range(32)))
    rotated = entries.key_rotated(
        world.owners[0], fresh, world.run, account=world.owners[0].key, seq=1
    )
    with LedgerStore.open(tmp_path / DATABASE_NAME) as store:
        store.append(world.add(rotated), world.sign)
    write_key(tmp_path / "account.key", fresh)
    assert main(["me", "--home", str(tmp_path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["account"], facts["key"]) == (world.owners[0].key, fresh.key)
    assert facts["pending"] == CREDIT


def test_me_without_an_account_says_what_to_do(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = copy_of(home, tmp_path)
    for name in ("account.key", "node.key", "claims.jsonl"):
        (copied / name).unlink()
    assert cli.main(["ledger", "me", "--home", str(copied)]) == 2
    assert "--account KEY" in capsys.readouterr().err
    write_key(copied / "account.key", Identity.from_seed(bytes(32)))
    assert cli.main(["ledger", "me", "--home", str(copied)]) == 1
    assert "artel node start --join INVITE" in capsys.readouterr().err
    write_claims(copied, claim(WORLD, C, 5))
    assert main(["me", "--home", str(copied)]) == 0
    assert "not in this ledger" in capsys.readouterr().out


def test_torn_and_strange_claims_are_skipped(home: Path, tmp_path: Path) -> None:
    copied = copy_of(home, tmp_path)
    good = json.dumps(claim(WORLD, C, 0))
    path = copied / "claims.jsonl"
    path.write_text(
        "\n".join(["{}", "[1]", "\0", '{"round": -1}', good, "", good[: len(good) // 2]])
    )
    from artel.ledger.fold.claims import read

    assert [item.round for item in read(copied)] == [0]


# --- prove and verify -----------------------------------------------------------------------------


@pytest.fixture
def proof(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[Path, Path]:
    """Proof of entry 11 under the certified checkpoint, and the entry."""
    path = tmp_path / "mine.tlog-proof"
    assert main(["prove", "11", "--home", str(home), "-o", str(path)]) == 0
    capsys.readouterr()
    return path, tmp_path / "mine.json"


def test_a_proof_verifies_offline_from_the_run_id_alone(
    proof: tuple[Path, Path], tmp_path: Path
) -> None:
    empty = tmp_path / "elsewhere"
    empty.mkdir()
    done = client_world.run_command(
        "verify", *map(str, proof), "--json", cwd=empty, HOME=str(empty), http_proxy="127.0.0.1:1"
    )
    assert (done.code, done.err) == (0, "")
    facts = json.loads(done.out)
    assert (facts["verified"], facts["index"], facts["as_of"]) == (True, 11, 42)
    assert facts["run"] == WORLD.run
    assert (facts["log_key"], facts["log_key_from"]) == (WORLD.coordinator.key, "the run id")
    assert (len(facts["unknown_cosigners"]), facts["cosigners"]) == (2, {})
    assert facts["signers"] == [C.key]
    assert not done.heavy | done.modules & {
        "libp2p",
        "trio",
        "sqlite3",
        "ssl",
        "artel.protocol.net.wire",
    }


def test_verify_says_what_is_and_what_is_not_proven(
    proof: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    named = ["--vkey", witness_key(A.peer_id).encode()]
    assert main(["verify", *map(str, proof), *named, "--policy", "1", "--run", WORLD.run]) == 0
    shown = capsys.readouterr().out
    assert f"ok  entry 11 is in the log of run {WORLD.run}" in shown
    assert f"its signatures verify: node …{C.peer_id[-8:]}" in shown
    assert "cosigned by node …" + A.peer_id[-8:] + ", 2023-11-14 22:13:20 UTC" in shown
    assert "not proven  that the entry counts" in shown


def test_verify_wants_as_many_witnesses_as_asked_for(
    proof: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["ledger", "verify", *map(str, proof)]
    assert cli.main([*command, "--policy", "1"]) == 1, "anybody can make a key that is in its name"
    vkeys = [VerifierKey(WORLD.origin, WORLD.coordinator.public), witness_key(A.peer_id)]
    pinned = [argument for vkey in vkeys for argument in ("--vkey", vkey.encode())]
    assert cli.main([*command, *pinned, "--policy", "1"]) == 0
    assert cli.main([*command, *pinned, "--policy", "2"]) == 1, "only the named witness counts"


def test_prove_prints_how_to_see_that_a_checkpoint_is_certified(
    proof: tuple[Path, Path], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, entry = proof
    assert main(["prove", "11", "--home", str(home), "-o", str(path), "--json"]) == 0
    artel, *command = shlex.split(json.loads(capsys.readouterr().out)["verify"])
    assert (artel, command[command.index("--policy") + 1]) == ("artel", "2")
    assert cli.main(command) == 0
    parsed = TlogProof.parse(path.read_text())
    log = note.open_note(parsed.checkpoint, [VerifierKey(WORLD.origin, WORLD.coordinator.public)])
    strangers = [key(f"stranger {number}") for number in range(30)]
    forged = client_world.cosigned(log.encode(), *strangers)
    path.write_text(TlogProof(11, parsed.hashes, forged, parsed.extra).encode())
    assert cli.main(command) == 1
    assert cli.main(["ledger", "verify", str(path), str(entry), "--policy", "1"]) == 1
    capsys.readouterr()
    assert main(["verify", str(path), str(entry), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (len(facts["unknown_cosigners"]), facts["cosigners"]) == (30, {})


def test_verify_refuses_what_was_changed(
    proof: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    path, entry = proof
    good_proof, good_entry = path.read_text(), entry.read_bytes()

    def code(proof_text: str, leaf: bytes, *more: str) -> int:
        path.write_text(proof_text)
        entry.write_bytes(leaf)
        return cli.main(["ledger", "verify", str(path), str(entry), *more])

    assert code(good_proof, good_entry) == 0
    assert code(good_proof, good_entry + b"\n") == 1
    assert code(good_proof, WORLD.leaves[12]) == 1
    parsed = TlogProof.parse(good_proof)
    moved = TlogProof(12, parsed.hashes, parsed.checkpoint, parsed.extra)
    assert code(moved.encode(), good_entry) == 1
    other = World(name="other")
    forged = TlogProof(11, parsed.hashes, parsed.checkpoint, other.genesis.encode())
    assert code(forged.encode(), good_entry) == 1
    bare = TlogProof(11, parsed.hashes, parsed.checkpoint)
    assert code(bare.encode(), good_entry) == 2
    assert "--vkey" in capsys.readouterr().err
    vkey = VerifierKey(WORLD.origin, WORLD.coordinator.public).encode()
    assert code(bare.encode(), good_entry, "--vkey", vkey) == 0
    assert code(good_proof, good_entry, "--run", other.run) == 1
    assert code("nonsense", good_entry) == 2


def test_a_signed_checkpoint_of_another_key_is_refused(
    proof: tuple[Path, Path], tmp_path: Path
) -> None:
    path, entry = proof
    parsed = TlogProof.parse(path.read_text())
    impostor = World(name="impostor").coordinator
    tree = LeafHashes([merkle.leaf_hash(leaf) for leaf in WORLD.leaves])
    note = sign_checkpoint(impostor, WORLD.origin, 42, root_at(tree, 42))
    path.write_text(TlogProof(11, parsed.hashes, note, parsed.extra).encode())
    assert cli.main(["ledger", "verify", str(path), str(entry)]) == 1


def test_an_entry_that_is_not_certified_is_proven_under_the_newest_checkpoint(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prove", "42", "--home", str(home), "--json"]) == 0
    (facts,) = json.loads(capsys.readouterr().out)["proofs"]
    assert (facts["size"], facts["certified"]) == (SIZE, False)
    assert (facts["proof"], facts["entry"]) == ("entry-42.tlog-proof", "entry-42.json")
    assert (tmp_path / "entry-42.json").read_bytes() == WORLD.leaves[42]
    assert main(["verify", "entry-42.tlog-proof"]) == 0
    assert cli.main(["ledger", "prove", "43", "--home", str(home)]) == 2


def test_a_proof_of_a_foreign_log_verifies_with_its_key(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    leaves = leaves_of(300)
    tree = tree_of(leaves)
    note = cosigned(signed(tree, 300), (key("w"), "example.com/w"))
    path, entry = tmp_path / "p.tlog-proof", tmp_path / "entry"
    path.write_text(TlogProof(7, tuple(inclusion(tree, 7, 300)), note).encode())
    entry.write_bytes(leaves[7])
    command = ["ledger", "verify", str(path), str(entry)]
    assert cli.main(command) == 2
    assert cli.main([*command, "--vkey", LOG_KEY.encode()]) == 0
    assert "entry 7 is in the log of example.com/test-log" in capsys.readouterr().out


def test_verify_says_what_holds_in_a_home(run: Run) -> None:
    facts = as_json(run, "verify")
    assert facts["verified"] is True
    assert (facts["size"], len(facts["root"])) == (SIZE, 64)
    assert all(check["ok"] for check in facts["checks"])
    shown = run("verify")
    assert shown.count("ok  ") == len(facts["checks"])
    assert f"{SIZE} entries" in shown


def test_verify_and_audit_say_what_they_do_not_check(
    home: Path, tmp_path: Path, run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    facts, shown = as_json(run, "verify"), run("verify")
    left = {item["name"]: item["detail"] for item in facts["not_checked"]}
    assert set(left) == {"state roots", "training", "other copies", "finality"}
    assert "35 to 42" in left["finality"], "A and B cosigned the record of the first 35 entries"
    assert all(detail in shown for detail in left.values())
    # Without the heads it cannot know that it was put back from a backup, and says so.
    copied = copy_of(home, tmp_path)
    (copied / HEADS_NAME).unlink()
    (copied / "node.key").unlink(missing_ok=True)  # whoever has a key must have kept heads
    assert main(["verify", "--home", str(copied), "--json"]) == 0
    without = json.loads(capsys.readouterr().out)
    assert "kept tree heads" in {item["name"] for item in without["not_checked"]}
    tiles = write_tiles(home, tmp_path / "tiles")
    with LedgerReader.of(home) as store:
        notes = {size: store.note_at(size) for size in (42, SIZE)}
    (tiles / CERTIFIED_PATH).write_text(client_world.cosigned(notes[42], A, B))
    audit = ["audit", str(tiles), "--run", WORLD.run, "--full"]
    assert main([*audit, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["not_checked"]
    assert {item["name"]: item["detail"] for item in found} == left
    assert main(audit) == 0
    assert "state roots" in capsys.readouterr().out
    # A folder that has the newest checkpoint alone: it covers the record as well, once cosigned.
    (tiles / CERTIFIED_PATH).unlink()
    assert main([*audit, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["not_checked"]
    assert "entries 0 to 42" in {item["name"]: item["detail"] for item in found}["finality"]
    (tiles / CHECKPOINT_NAME).write_text(client_world.cosigned(notes[SIZE], A, B))
    assert main([*audit, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)["not_checked"]
    assert {item["name"]: item["detail"] for item in found} == left


def test_verify_fails_loudly(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in (DATABASE_NAME, CHECKPOINT_NAME):
        (tmp_path / name).write_bytes((home / name).read_bytes())
    path = tmp_path / DATABASE_NAME
    data = bytearray(path.read_bytes())
    leaf = WORLD.leaves[-1]
    data[data.index(pack(leaf, entries.decode(leaf).envelope)) + 40] ^= 1
    path.write_bytes(data)
    assert cli.main(["ledger", "verify", "--home", str(tmp_path)]) == 1
    out, err = capsys.readouterr()
    assert "FAIL" in out
    assert "does NOT hold" in err
    assert cli.main(["ledger", "verify", "--json", "--home", str(tmp_path)]) == 1
    assert json.loads(capsys.readouterr().out)["verified"] is False
    assert cli.main(["ledger", "shares", "--home", str(tmp_path)]) == 1
    assert "damaged" in capsys.readouterr().err


def contribution_of(member: Identity, round: int) -> int:
    """Index of a contribution of the test's run."""
    leaf = WORLD.contribution(member, round).encode()
    return WORLD.leaves.index(leaf)


def test_a_dispute_that_changes_nothing_is_not_sent(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copied = copy_of(home, tmp_path)
    disputed = contribution_of(B, 3)
    dispute = WORLD.dispute(WORLD.owners[0], entries.entry_id(WORLD.leaves[disputed]))
    with LedgerStore.open(copied / DATABASE_NAME) as store:
        store.append([dispute.encode()], WORLD.sign)

    def answer(index: int, *more: str) -> tuple[int, str, str]:
        command = ["dispute", str(index), "--reason", "copied", "--home", str(copied)]
        return cli.main(["ledger", *command, *more]), *capsys.readouterr()

    for index, reason in (
        (contribution_of(A, 0), "not_pending"),  # vested
        (contribution_of(C, 3), "own_work"),
        (disputed, "duplicate"),
        (contribution_of(A, 4), "not_pending"),  # of a round that is not agreed on
    ):
        code, shown, error = answer(index)
        assert (code, shown) == (1, ""), index
        assert reason in error
        assert answer(index, "--json")[0] == 1
    for index in (0, 9999):
        assert answer(index)[0] == 2


# --- compare and evidence -------------------------------------------------------------------------


def other_history() -> World:
    """The same run, told differently from entry 7 on."""
    world = World(**RULES)
    world.add(*world.start, world.opened(0, cursor=24), world.committed(0))
    return world


def split_view() -> evidence.SplitView:
    ours, theirs = (
        LeafHashes([merkle.leaf_hash(leaf) for leaf in world.leaves])
        for world in (WORLD, other_history())
    )
    notes = [WORLD.sign(size, root_at(tree, size)) for tree, size in ((ours, SIZE), (theirs, 9))]
    return evidence.build(notes[0], ours, notes[1], theirs)


def copy_of(home: Path, folder: Path) -> Path:
    """A copy that a test may spoil."""
    copied = folder / "copied"
    shutil.copytree(home, copied)
    return copied


def test_compare_finds_one_history(home: Path, tmp_path: Path, run: Run) -> None:
    tiles = write_tiles(home, tmp_path / "tiles")
    with LedgerReader.of(home) as store:
        older = write_tiles(home, tmp_path / "older", store.note_at(14))
    facts = as_json(run, "compare", str(tiles), str(older), str(home))
    assert facts["consistent"] is True
    assert [head["size"] for head in facts["heads"]] == [SIZE, 14, SIZE]
    assert "2 holders show one history" in run("compare", str(older)), "the home is the other"


def test_compare_writes_evidence_of_a_split_view(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    other, world = tmp_path / "other", other_history()
    with LedgerStore.open(other / DATABASE_NAME, create=True) as store:
        store.append(world.leaves, world.sign)
    tiles = write_tiles(other, tmp_path / "tiles")
    assert cli.main(["ledger", "compare", str(home), str(tiles)]) == 1
    shown = capsys.readouterr().out
    assert "SPLIT VIEW" in shown
    assert "artel ledger split-view split-view.json" in shown
    assert cli.main(["ledger", "verify", "split-view.json", "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert (facts["signer"], facts["sizes"], facts["index"]) == (WORLD.origin, [9, SIZE], 7)
    # Alone, without the manifest around it, the evidence needs the key.
    bare = tmp_path / "bare.json"
    bare.write_text(json.dumps(json.loads(Path("split-view.json").read_text())["evidence"]))
    assert cli.main(["ledger", "verify", str(bare)]) == 2
    vkey = VerifierKey(WORLD.origin, WORLD.coordinator.public).encode()
    assert cli.main(["ledger", "verify", str(bare), "--vkey", vkey]) == 0
    value = json.loads(Path("split-view.json").read_text())
    value["evidence"]["leaves"].reverse()
    bare.write_text(json.dumps(value))
    assert cli.main(["ledger", "verify", str(bare)]) == 1


def test_compare_wants_holders_of_one_log(home: Path, tmp_path: Path) -> None:
    other = World(name="other")
    other.write(tmp_path, rounds=0)
    assert cli.main(["ledger", "compare", str(home), str(tmp_path)]) == 2
    assert cli.main(["ledger", "compare", str(home), str(tmp_path / "nothing")]) == 2


# --- audit ----------------------------------------------------------------------------------------


def test_audit_of_a_run_replays_it(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = write_tiles(home, tmp_path / "tiles")
    vkey = VerifierKey(WORLD.origin, WORLD.coordinator.public).encode()
    for trust in (["--vkey", vkey], ["--run", WORLD.run]):
        assert main(["audit", str(tiles), *trust, "--full", "--json"]) == 0
        facts = json.loads(capsys.readouterr().out)
        assert (facts["size"], facts["entries"], facts["unsigned"]) == (SIZE, SIZE, 0)
        assert (facts["vested"], facts["pending"]) == (3 * CREDIT, 9 * CREDIT)
    assert main(["audit", str(tiles), "--vkey", vkey]) == 0
    assert "--full reads every entry" in capsys.readouterr().out
    assert cli.main(["ledger", "audit", str(tiles)]) == 2
    assert cli.main(["ledger", "audit", str(home)]) == 2
    assert f"artel ledger verify --home {home}" in capsys.readouterr().err


def test_a_mirror_is_no_home_and_the_hint_audits_it(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiles = write_tiles(home, tmp_path / "tiles")
    assert cli.main(["ledger", "verify", "--home", str(tiles)]) == 2
    command = capsys.readouterr().err.partition("artel ")[2].split()
    assert cli.main([WORLD.run if word == "ID" else word for word in command]) == 0


def test_audit_finds_a_damaged_tile_and_a_wrong_key(home: Path, tmp_path: Path) -> None:
    tiles = write_tiles(home, tmp_path / "tiles")
    assert cli.main(["ledger", "audit", str(tiles), "--run", "0" * 64]) == 1
    (path,) = (tiles / "tile/entries").rglob(str(SIZE))
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    assert cli.main(["ledger", "audit", str(tiles), "--run", WORLD.run, "--full"]) == 1


def test_audit_of_a_foreign_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    leaves = leaves_of(700)
    write_log(tmp_path, leaves)
    assert main(["audit", str(tmp_path), "--vkey", LOG_KEY.encode(), "--full"]) == 0
    shown = capsys.readouterr().out
    assert "size    700" in shown
    assert tree_root(leaves) in shown
    assert "replayed" not in shown


def tree_root(leaves: list[bytes]) -> str:
    return merkle.root(map(merkle.leaf_hash, leaves)).hex()


# --- usage ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["unknown"],
        ["log", "--kind", "unknown"],
        ["log", "--limit", "-1"],
        ["log", "--round", "x"],
        ["explain"],
        ["compare"],
    ],
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ledger", *arguments]) == 2
    assert "→" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explain", "f" * 64], "no entry has an id"),
        (["explain", "abc"], "8 or more"),
        (["prove", "999"], "there is no entry 999"),
        (["explain", "999"], "there is no entry 999"),
        (["explain", "99999999"], "there is no entry 99999999; the ledger has 43"),
        (["explain", "-1"], "there is no entry -1; the ledger has 43"),
        (["me", "--account", "nobody"], "no account"),
        (["status", "--run", "short"], "is no run id"),
        (["status", "--run", "0" * 64], "holds run"),
        (["status", "--from", "nowhere"], "is no invite, no URL, no multiaddr and no folder"),
        (["status", "--from", ""], "is no invite, no URL, no multiaddr and no folder"),
        (["status", "--from", "artel1.broken"], "invite is cut short"),
        (["status", "--from", "/"], "there is no ledger in /: neither checkpoint and tile/ nor"),
        (["restore", "--from", "/"], "there is no ledger in /: neither checkpoint and tile/ nor"),
    ],
)
def test_what_is_not_there_exits_with_2(
    home: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["ledger", *arguments, "--home", str(home)]) == 2
    assert message in capsys.readouterr().err


def test_a_home_without_a_ledger_exits_with_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for command in ("status", "me", "log", "shares", "verify"):
        assert cli.main(["ledger", command, "--home", str(tmp_path)]) == 2
        error = capsys.readouterr().err
        assert f"error: there is no ledger in {tmp_path}" in error
        assert "--home DIR" in error


def test_another_home_is_taken_like_a_mirror(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy, files = tmp_path / "copy", tmp_path / "files"
    assert main(["restore", "--from", str(home), "--home", str(copy)]) == 0
    assert main(["mirror", str(files), "--from", str(home)]) == 0
    capsys.readouterr()
    roots = list[str]()
    for named in (["--home", str(home)], ["--home", str(copy)], ["--from", str(home)]):
        assert main(["status", "--json", *named]) == 0
        roots.append(json.loads(capsys.readouterr().out)["root"])
    assert len(set(roots)) == 1
    with pytest.raises(UsageError, match="a home takes nothing in"):
        main(["alias", "name", "--yes", "--from", str(home), "--home", str(home)])


def test_an_empty_ledger_is_said_to_be_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    LedgerStore.open(tmp_path / DATABASE_NAME, create=True).close()
    for command in ("status", "log"):
        assert main([command, "--home", str(tmp_path)]) == 0
        assert capsys.readouterr().out == "the ledger is still empty\n"
    assert main(["shares", "--json", "--home", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["shares"] == []
    assert main(["status", "--json", "--home", str(tmp_path)]) == 0
    assert json.loads(capsys.readouterr().out)["root"] == merkle.EMPTY_ROOT.hex()
    with pytest.raises(UsageError):
        main(["explain", "0", "--home", str(tmp_path)])


def test_a_head_that_the_coordinator_did_not_sign_is_refused(tmp_path: Path) -> None:
    world, impostor = World(), World(name="impostor")
    with LedgerStore.open(tmp_path / DATABASE_NAME, create=True) as store:
        store.append(
            world.add(world.genesis),
            lambda size, root: sign_checkpoint(impostor.coordinator, world.origin, size, root),
        )
    with pytest.raises(CheckFailed):
        main(["status", "--home", str(tmp_path)])


def test_a_command_on_a_home_loads_neither_torch_nor_the_network(home: Path) -> None:
    done = client_world.run_command("shares", "--home", str(home))
    assert (done.code, done.err) == (0, "")
    assert not done.heavy | done.modules & {"libp2p", "trio", "ssl", "artel.protocol.net.wire"}
