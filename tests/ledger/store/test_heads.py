"""The head store: a witness never forgets what it cosigned; a name can be forgotten for good."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from artel.ledger.store.heads import HEADS_NAME, MAX_CONFLICTS, MAX_NOTES, HeadStore
from artel.ledger.tlog import note as notes
from artel.ledger.tlog.checkpoint import Checkpoint, origin_of, parse_checkpoint, sign_checkpoint
from artel.ledger.tlog.cosignature import COSIGNATURE_BYTES
from artel.ledger.tlog.note import Note, SignatureLine
from artel.protocol.errors import ArtelError, CheckFailed, DecodeError, ResourceError, UsageError
from ledger_world import key
from places import ROOT

ORIGIN = f"artel/{'ab' * 32}/term/0"


def root(size: int, branch: str = "") -> bytes:
    return hashlib.sha256(f"{branch} {size}".encode()).digest()


def signed(size: int, witnesses: int = 0, *, time: int = 1, branch: str = "") -> str:
    """A note with so many lines that look like cosignatures (nothing here verifies them)."""
    note = notes.parse(sign_checkpoint(key("log"), ORIGIN, size, root(size, branch)))
    lines = [
        SignatureLine(f"w{number}", bytes([number] * 4), time.to_bytes(8, "big") + bytes(64))
        for number in range(witnesses)
    ]
    return Note(note.text, (*note.signatures, *lines)).encode()


@pytest.fixture
def heads(tmp_path: Path) -> Iterator[HeadStore]:
    store = HeadStore(tmp_path / HEADS_NAME)
    yield store
    store.close()


def test_a_witness_only_goes_forward(heads: HeadStore) -> None:
    assert heads.witnessed(ORIGIN) is None
    assert not heads.advance(ORIGIN, 3, 5, root(5)), "nothing of size 3 was cosigned"
    assert heads.advance(ORIGIN, 0, 5, root(5))
    assert heads.advance(ORIGIN, 5, 5, root(5)), "the same head may be cosigned again"
    refused = [(5, 5, root(5, "other")), (0, 9, root(9)), (4, 9, root(9)), (6, 9, root(9))]
    for old, size, digest in refused:
        assert not heads.advance(ORIGIN, old, size, digest)
    with pytest.raises(UsageError):
        heads.advance(ORIGIN, 5, 4, root(4))
    with pytest.raises(UsageError):
        heads.advance(ORIGIN, 5, 6, b"short")
    assert heads.witnessed(ORIGIN) == (5, root(5))
    assert heads.advance(ORIGIN, 5, 9, root(9))
    assert heads.advance("another log", 0, 0, root(0)), "logs do not disturb each other"
    path = heads.path
    heads.close()
    again = HeadStore(path)
    assert again.witnessed(ORIGIN) == (9, root(9))
    assert again.witnessed("another log") == (0, root(0))
    again.close()


def test_nothing_is_signed_of_a_sealed_term_or_of_those_before(heads: HeadStore) -> None:
    heads.seal("ab" * 32, 3)
    signed = [heads.advance(origin_of("ab" * 32, term), 0, 5, root(5)) for term in range(5)]
    assert signed == [False, False, False, False, True]


def test_of_many_who_advance_at_once_one_does(heads: HeadStore) -> None:
    branches = [str(number) for number in range(8)]
    for size in range(20):
        roots = [root(size, branch) for branch in branches]
        with ThreadPoolExecutor(8) as pool:
            won = list(pool.map(partial(heads.advance, ORIGIN, size, size + 1), roots))
        assert sum(won) == 1
        assert heads.witnessed(ORIGIN) == (size + 1, roots[won.index(True)])


def test_lines_of_one_head_are_collected(heads: HeadStore) -> None:
    assert (heads.note(7), next(heads.newest_first(0), "")) == ("", "")
    heads.add_note(signed(7))
    heads.add_note(signed(7, 2))
    heads.add_note(signed(7, 1, time=9))
    merged = notes.parse(heads.note(7))
    assert [line.name for line in merged.signatures] == [ORIGIN, "w0", "w1"]
    assert [line.signature[7] for line in merged.signatures[1:]] == [9, 1], "the later one stays"
    heads.add_note(signed(7, 2))
    assert heads.note(7) == merged.encode()
    heads.add_note(signed(9, 1))
    heads.add_note(signed(8, 3))
    sizes = [parse_checkpoint(next(heads.newest_first(lines), "")).size for lines in range(4)]
    assert sizes == [9, 9, 8, 8]
    assert next(heads.newest_first(4), "") == ""
    for lines in range(5):
        found = [parse_checkpoint(text).size for text in heads.newest_first(lines)]
        assert found == sorted(found, reverse=True)
        assert found[:1] == sizes[lines : lines + 1]


def test_another_head_of_the_same_size_is_refused(heads: HeadStore) -> None:
    heads.add_note(signed(7, 2))
    for other in (
        signed(7, 3, branch="fork"),
        notes.sign(Checkpoint(ORIGIN, 7, root(7), ("more",)).encode(), ORIGIN, key("log")).encode(),
    ):
        with pytest.raises(CheckFailed, match="differ"):
            heads.add_note(other)
    assert heads.note(7) == signed(7, 2)
    for malformed in ("", "note", signed(7)[:-1]):
        with pytest.raises(DecodeError):
            heads.add_note(malformed)


def test_a_note_does_not_grow_without_end(heads: HeadStore) -> None:
    heads.add_note(signed(7, 90))
    note = notes.parse(signed(7))
    more = [SignatureLine(f"v{n}", b"abcd", bytes(COSIGNATURE_BYTES)) for n in range(20)]
    with pytest.raises(DecodeError, match="at most 100"):
        heads.add_note(Note(note.text, tuple(more)).encode())
    assert heads.note(7) == signed(7, 90)


def test_old_notes_go_but_never_the_newest_final_one(heads: HeadStore) -> None:
    heads.add_note(signed(1, 3))
    heads.add_note(signed(2, 1))
    for size in range(3, MAX_NOTES + 40):
        heads.add_note(signed(size))
    count = heads._connection.execute("SELECT count(*) FROM notes").fetchone()[0]
    assert count == MAX_NOTES
    assert parse_checkpoint(next(heads.newest_first(2), "")).size == 1
    assert parse_checkpoint(next(heads.newest_first(1), "")).size == 2
    assert heads.note(3) == ""
    assert heads.note(MAX_NOTES + 39) == next(heads.newest_first(0), "")


def test_evidence_is_kept_once_and_bounded(heads: HeadStore) -> None:
    for number in range(MAX_CONFLICTS + 5):
        evidence = {"number": number, "notes": ["a", "b"]}
        assert heads.add_conflict(evidence) == (number < MAX_CONFLICTS)
        assert not heads.add_conflict(evidence)
    assert [found["number"] for found in heads.conflicts()] == list(range(MAX_CONFLICTS))
    with pytest.raises(UsageError):
        heads.add_conflict({"notes": "x" * 10_000})
    with pytest.raises(DecodeError):
        heads.add_conflict({"number": float("nan")})


def test_a_name_is_forgotten_for_good(heads: HeadStore) -> None:
    assert heads.set_alias("a" * 64, "Ada Erasable", "Team Erasable", 5)
    assert heads.set_alias("b" * 64, "", "Team", 5)
    assert not heads.set_alias("a" * 64, "Eve", "", 5), "no newer statement"
    assert heads.set_alias("a" * 64, "Ada Erasable 2", "Team Erasable", 6)
    assert heads.aliases() == {
        "a" * 64: ("Ada Erasable 2", "Team Erasable"),
        "b" * 64: ("", "Team"),
    }
    heads.forget_alias("a" * 64)
    heads.forget_alias("c" * 64)
    assert heads.aliases() == {"b" * 64: ("", "Team")}
    assert not heads.set_alias("a" * 64, "Ada Erasable", "", 6), "sent again by somebody else"
    for file in heads.path.parent.iterdir():
        assert b"Erasable" not in file.read_bytes(), file
    assert heads.set_alias("a" * 64, "Ada", "", 7)


# --- damage and crashes ---------------------------------------------------------------------------


def test_a_file_that_is_no_head_store_is_refused(tmp_path: Path) -> None:
    path = tmp_path / HEADS_NAME
    path.write_bytes(b"not a database" * 100)
    with pytest.raises(CheckFailed, match="damaged") as caught:
        HeadStore(path)
    assert "backup" in caught.value.hint
    path.unlink()
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE foreign_table(x)")
    other.close()
    with pytest.raises(CheckFailed, match="format"):
        HeadStore(path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ResourceError):
        HeadStore(path)


def test_no_changed_byte_makes_a_witness_remember_something_else(tmp_path: Path) -> None:
    path = tmp_path / "sound" / HEADS_NAME
    heads = HeadStore(path)
    assert heads.advance(ORIGIN, 0, 5, root(5))
    heads.add_note(signed(5, 2))
    assert heads.add_conflict({"evidence": 1})
    heads.close()
    sound = path.read_bytes()
    assert not path.with_name(HEADS_NAME + "-wal").exists()
    rng = random.Random(1)
    noticed = 0
    offsets = [*range(100), *(rng.randrange(len(sound)) for _ in range(150))]
    # Every byte of what must not be wrong.
    offsets += [sound.index(root(5)) + at for at in range(-4, 33)]
    for number, offset in enumerate(offsets):
        copy = tmp_path / str(number) / HEADS_NAME
        copy.parent.mkdir()
        changed = bytearray(sound)
        changed[offset] ^= rng.randrange(1, 256)
        copy.write_bytes(changed)
        try:
            store = HeadStore(copy)
        except ArtelError:
            noticed += 1
            continue
        try:
            assert store.witnessed(ORIGIN) == (5, root(5))
            assert store.conflicts() == [{"evidence": 1}]
        except CheckFailed:
            noticed += 1
        finally:
            store.close()
        shutil.rmtree(copy.parent)
    assert noticed > 60


def test_a_full_disk_is_said_and_nothing_is_half_done(heads: HeadStore) -> None:
    assert heads.advance(ORIGIN, 0, 5, root(5))
    pages = heads._connection.execute("PRAGMA page_count").fetchone()[0]
    heads._connection.execute(f"PRAGMA max_page_count={pages}")
    with pytest.raises(ResourceError, match="full"):
        for size in range(1000):
            heads.add_note(signed(size, 40))
    heads._connection.execute("PRAGMA max_page_count=100000")
    assert heads.witnessed(ORIGIN) == (5, root(5))
    assert heads.advance(ORIGIN, 5, 6, root(6))


ADVANCER = """
import sys
from pathlib import Path
from artel.ledger.store.heads import HeadStore

heads = HeadStore(Path(sys.argv[1]))
size = (heads.witnessed("log") or (0,))[0]
while True:
    assert heads.advance("log", size, size + 1, (size + 1).to_bytes(32, "big"))
    size += 1
    print(size, flush=True)
"""


def test_what_was_noted_survives_sigkill(tmp_path: Path) -> None:
    path = tmp_path / HEADS_NAME
    said = 0
    for lines in (3, 11, 29):
        child = subprocess.Popen(
            [sys.executable, "-c", ADVANCER, str(path)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )
        assert child.stdout is not None
        for _ in range(lines):
            said = int(child.stdout.readline())
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()  # what readline has buffered included, as communicate is not
        child.wait(30)
        child.stdout.close()
        said = max([said, *(int(line) for line in rest.splitlines(True) if line[-1] == "\n")])
        heads = HeadStore(path)
        found = heads.witnessed("log")
        heads.close()
        assert found is not None
        assert found[0] in (said, said + 1)
        assert found[1] == found[0].to_bytes(32, "big")
