"""A run that was led by three coordinators, the last of whom no manifest names, for whoever reads
it: commands, copies, proofs and evidence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artel.ledger import entries
from artel.ledger.entries import evidence
from artel.ledger.store.reader import LedgerReader
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.store.verify import verify_home
from artel.ledger.sync import fork, offline
from artel.ledger.sync.audit import audit_log
from artel.ledger.sync.client import home_view, remote_view
from artel.ledger.sync.holding import hold
from artel.ledger.sync.leadership import Mandate
from artel.ledger.sync.mirror import mirror
from artel.ledger.sync.restore import restore
from artel.ledger.sync.signed_tree import offered
from artel.ledger.sync.source import TERMS_PATH, FolderSource
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint, verifier_keys
from artel.ledger.tlog.proof import TlogProof
from artel.protocol.dsse import Leaf
from artel.protocol.errors import CheckFailed, UsageError
from client_world import become_member, run_command, write_key, write_tiles, write_tiles_of
from command_world import group
from ledger_world import key
from places import ROOT, WORLDS
from terms_world import ELECTED, FIRST, RUN, SECOND, WORLD, Ledger, write

main = group("ledger")


@pytest.fixture(scope="module")
def homes(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    return write(tmp_path_factory.mktemp("homes"))


@pytest.fixture(scope="module")
def tiles(homes: tuple[Path, Path, Path]) -> tuple[Path, Path, Path]:
    """A mirror of each."""
    made = []
    for home in homes:
        with home_view(home) as view:
            mirror(view, home.with_name(f"{home.name}-tiles"))
        made.append(home.with_name(f"{home.name}-tiles"))
    return made[0], made[1], made[2]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "cache" / "artel" / "ledger" / RUN / "replica"


def answer(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command that must succeed prints."""
    return json.loads(spoken(capsys, *arguments, "--json"))


def spoken(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """What a command that must succeed says; py-libp2p gets a process without hivemind."""
    if any(argument.startswith("/ip4/") for argument in arguments):
        done = run_command(*arguments)
        assert done.code == 0, done.err
        return done.out
    assert main([*arguments]) == 0
    return capsys.readouterr().out


def size_of(home: Path) -> int:
    with LedgerReader.of(home) as reader:
        return reader.size


# --- commands -------------------------------------------------------------------------------------


@contextmanager
def over_libp2p(home: Path) -> Iterator[tuple[str, str]]:
    """A multiaddr and a URL of somebody who serves a home."""
    rules = {"nodes": 4, "waiting": 1, "total": 200, "ledger": WORLD.ledger}
    process = subprocess.Popen(
        [sys.executable, str(WORLDS / "serve_ledger.py"), str(home), json.dumps(rules)],
        cwd=ROOT,
        env={"PYTHONPATH": f"{ROOT}:{WORLDS}", "PATH": "/usr/bin:/bin"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        address, _, url = process.stdout.readline().strip().partition(" ")
        yield address, url
    finally:
        process.stdin.close()
        process.wait(30)


def test_every_command_reads_a_home_a_copy_http_and_libp2p(
    homes: tuple[Path, Path, Path],
    tiles: tuple[Path, Path, Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    home = tmp_path / "home"
    shutil.copytree(homes[2], home)
    become_member(home, WORLD, 0)
    with over_libp2p(home) as (address, url):
        for command in (
            ["status"],
            ["me"],
            ["shares"],
            ["log", "--limit", "0"],
            ["explain", "260"],
            ["log", "--kind", "handover"],
        ):
            here = answer(capsys, *command, "--home", str(home))
            for target in (str(tiles[2]), url, address):
                there = answer(
                    capsys, *command, "--home", str(home), "--from", target, "--run", RUN
                )
                for own in ("trusting", "from_home"):
                    here.pop(own, None)
                    there.pop(own, None)
                assert there == here, (command, target)
        handed = answer(capsys, "log", "--kind", "handover", "--home", str(home))["entries"]
        assert [item["status"] for item in handed] == ["recorded", "recorded"]
        for target in (str(tiles[2]), url, address):
            spoken(capsys, "audit", target, "--run", RUN)
            spoken(capsys, "audit", target, "--run", RUN, "--full")
            share = answer(
                capsys, "shares", "--account", WORLD.owners[0].key, "--from", target, "--run", RUN
            )
            assert (share["term"], share["sealed_by"], share["behind"]) == (4, 3, None)
        spoken(capsys, "compare", str(tiles[2]), url, address, str(home))
        spoken(capsys, "compare", str(homes[0]), str(homes[1]), url)
        assert main(["verify", "--home", str(home)]) == 0


# --- copies ---------------------------------------------------------------------------------------


def files_in(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_a_mirror_goes_on_across_terms(
    homes: tuple[Path, Path, Path], tiles: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """A copy that saw what was given up is in the end the copy of who never did."""
    for home, whole in zip(homes, tiles, strict=True):
        with home_view(home) as view:
            found = mirror(view, tmp_path / "copy")
        assert (found.size, found.origin) == (size_of(home), found.origin)
        assert found.behind == 0
        mine, theirs = files_in(tmp_path / "copy"), files_in(whole)
        assert mine == theirs
    with home_view(homes[0]) as view:  # who does not know it yet takes nothing back
        assert mirror(view, tmp_path / "copy").behind > 0
    assert files_in(tmp_path / "copy") == theirs


def test_a_mirror_that_was_cut_off_in_a_change_of_term_is_made_whole(
    homes: tuple[Path, Path, Path],
    tiles: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shutil.copytree(tiles[0], tmp_path / "copy")

    def killed() -> None:
        raise KeyboardInterrupt

    with home_view(homes[2]) as view:
        with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
            patch.setattr("os.sync", killed)
            mirror(view, tmp_path / "copy")
        assert mirror(view, tmp_path / "copy").size == size_of(homes[2])
    assert main(["audit", str(tmp_path / "copy"), "--run", RUN, "--full"]) == 0


def test_a_home_is_restored_from_a_later_term(
    homes: tuple[Path, Path, Path], tiles: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    for number, owner in enumerate((FIRST, SECOND, ELECTED)):
        home = tmp_path / f"home-{number}"
        shutil.copytree(homes[number], home)
        write_key(home / "node.key", owner)
        if number == 2:
            with pytest.raises(UsageError, match="sound ledger"):
                restore(FolderSource(tiles[0]), home)
            (home / DATABASE_NAME).unlink()
            with pytest.raises(CheckFailed, match="has published a checkpoint"):
                restore(FolderSource(tiles[1]), home)
        found = restore(FolderSource(tiles[2]), home)
        assert (found.size, found.coordinator) == (size_of(homes[2]), True)
        checked = verify_home(home)
        assert checked.verified, [each for each in checked.checks if not each.ok]


def test_a_reader_follows_the_terms_and_does_not_go_back(
    homes: tuple[Path, Path, Path],
    tiles: tuple[Path, Path, Path],
    cache: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for number in (0, 2):
        with remote_view(hold(str(tiles[number]))[0], RUN) as view:
            assert (view.log.size, view.seen) == (size_of(homes[number]), 0)
    with remote_view(hold(str(tiles[1]))[0], RUN) as view:
        assert (view.log.term, view.seen) == (1, size_of(homes[2]))
    with LedgerReader.of(cache) as kept:
        assert kept.term == 4
    # Without anybody to ask, that is what a run's id leads to.
    assert main(["status", "--run", RUN, "--home", str(cache / "none")]) == 0
    out, err = capsys.readouterr()
    assert f"as it was read here last, from {tiles[2]}" in err
    assert "term/4" in out
    with pytest.raises(UsageError, match="there is no ledger"):
        main(["status", "--run", "0" * 64, "--home", str(cache / "none")])
    # And what was given up proves nothing any more.
    account = WORLD.owners[0].key
    with pytest.raises(CheckFailed, match="given up when its term ended"):
        main(["shares", "--account", account, "--from", str(tiles[1]), "--run", RUN])


# --- who leads ------------------------------------------------------------------------------------


def test_a_coordinator_whose_term_was_not_sealed_leads_nobody(
    homes: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    shutil.copytree(homes[1], tmp_path / "home")
    ledger = Ledger(tmp_path / "home")
    ledger.hand_over(4, sealed=2)
    write_tiles_of(ledger.store, tmp_path / "copy")
    handed = ledger.store.size - 1
    ledger.store.close()
    with pytest.raises(CheckFailed, match="not what was signed"):
        LedgerStore.open(tmp_path / "home" / DATABASE_NAME)
    (tmp_path / "copy" / TERMS_PATH).write_text(f"[[1,{handed - 1}],[4,{handed}]]")
    with pytest.raises(CheckFailed, match="another entry"):
        offered(FolderSource(tmp_path / "copy"), RUN)
    (tmp_path / "copy" / TERMS_PATH).write_text(f"[[4,{handed}]]")
    # Its head is signed by whom an entry names; only the fold knows that this is worth nothing.
    assert offered(FolderSource(tmp_path / "copy"), RUN).head.term == 4
    with (
        pytest.raises(CheckFailed, match="does not begin term 4"),
        remote_view(hold(str(tmp_path / "copy"))[0], RUN),
    ):
        raise AssertionError
    with pytest.raises(CheckFailed, match="its entries are of"):
        audit_log(FolderSource(tmp_path / "copy"), [], RUN, full=True)


def test_a_key_of_another_term_is_told_from_a_forgery(tiles: tuple[Path, Path, Path]) -> None:
    (vkey,) = (each.encode() for each in verifier_keys(origin_of(RUN, 0), [FIRST.key]))
    with pytest.raises(CheckFailed, match="somebody else leads"):
        audit_log(FolderSource(tiles[2]), [vkey], RUN)


# --- proofs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("index", [3, 230, 260, 300])
def test_a_proof_shows_who_leads(
    homes: tuple[Path, Path, Path], tmp_path: Path, index: int, capsys: pytest.CaptureFixture[str]
) -> None:
    place = tmp_path / "entry.tlog-proof"
    assert main(["prove", str(index), "--home", str(homes[2]), "-o", str(place)]) == 0
    capsys.readouterr()
    assert main(["verify", str(place), "--run", RUN]) == 0
    assert "not proven  that the entry counts" in (out := capsys.readouterr().out)
    assert "sealed by 3 nodes" in out
    leaf, beside = place.with_name("entry.json").read_bytes(), tmp_path / "entry.document.json"
    if beside.exists():
        leaf = Leaf(leaf, beside.read_bytes())
    proof = TlogProof.parse(place.read_bytes())
    shown = Mandate.decode(proof.extra)
    assert offline.verify(place.read_bytes(), leaf).log_key == ELECTED.key
    own = [part for part in shown.handed if part[0] > 240]
    for spoilt in (
        replace(shown, handed=()),
        replace(shown, handed=tuple(part for part in shown.handed if part not in own)),
    ):
        made = replace(proof, extra=spoilt.encode()).encode().encode()
        with pytest.raises(UsageError, match="the key of the log is not known"):
            offline.verify(made, leaf)
    wrong = [(at, each, (bytes(32), *hashes[1:])) for at, each, hashes in shown.handed]
    made = replace(proof, extra=replace(shown, handed=tuple(wrong)).encode()).encode().encode()
    with pytest.raises(CheckFailed, match="not shown to be in the log"):
        offline.verify(made, leaf)


# --- two histories --------------------------------------------------------------------------------


def test_two_heads_of_one_term_convict_its_leader_and_of_two_terms_nobody(
    homes: tuple[Path, Path, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("one", "other"):
        shutil.copytree(homes[2], tmp_path / name)
        ledger = Ledger(tmp_path / name)
        ledger.add(entries.account(key(name), RUN))
        ledger.store.close()
    assert main(["compare", str(homes[0]), str(homes[2])]) == 0
    assert main(["compare", str(homes[1]), "one"]) == 0
    assert not (tmp_path / "split-view.json").exists()
    assert main(["compare", "one", "other"]) == 1
    assert main(["verify", "split-view.json"]) == 0
    assert ELECTED.key[:16] in capsys.readouterr().out
    split, _ = offline.read_evidence((tmp_path / "split-view.json").read_bytes())
    with LedgerReader.of(homes[2]) as store:
        assert fork.convicts_leader(split.to_dict(), store)
        assert split.origin == store.origin
    with LedgerReader.of(homes[1]) as store:
        assert not fork.convicts_leader(split.to_dict(), store)
        # A head that the second one signed, and that was given up, fits to what it signed.
        text = store.latest_note
    with LedgerReader.of(homes[2]) as store:
        with home_view(homes[1]) as view:
            mirror(view, tmp_path / "tiles")
        assert fork.examine(FolderSource(tmp_path / "tiles"), store, text) is None


def test_a_former_leader_is_convicted_by_what_it_signed_in_its_own_term(
    homes: tuple[Path, Path, Path], tmp_path: Path
) -> None:
    """The first coordinator signed another history before its term ended."""
    forked = Ledger(tmp_path / "forked")
    forked.add(*WORLD.start)
    forked.add(entries.account(key("for others"), RUN))
    with home_view(homes[2]) as view, closing(forked.store):
        text = sign_checkpoint(FIRST, origin_of(RUN), forked.store.size, forked.store.root)
        write_tiles(tmp_path / "forked", tmp_path / "tiles", text)
        assert isinstance(view.log, LedgerReader)
        proof = fork.examine(FolderSource(tmp_path / "tiles"), view.log, text)
        assert proof is not None
        signer = evidence.check(proof, verifier_keys(origin_of(RUN), [FIRST.key]))
        assert signer.public == FIRST.public
        path = fork.write_split_view(
            tmp_path, proof, fork.mandate_of(proof, view.log, view.log.terms())
        )
    assert main(["verify", str(path)]) == 0
