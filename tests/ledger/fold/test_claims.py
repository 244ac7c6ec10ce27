"""What a node notes of its own contributions survives crashes, and junk in the file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from artel.ledger.fold import claims
from artel.ledger.fold.claims import Claim
from artel.node.claim_file import ClaimFile
from artel.protocol.errors import ResourceError

BLOB = "cd" * 32


def add(notes: ClaimFile, number: int) -> None:
    notes.add(round=number, attempt=0, entry=f"{number:064x}", blob=BLOB, tokens=512)


def test_claims_are_read_back_in_order(tmp_path: Path) -> None:
    notes = ClaimFile(tmp_path, clock=lambda: 1_700_000_000.9)
    for number in range(3):
        add(notes, number)
        add(notes, number)  # a reveal that is said again is one claim
    assert [claim.round for claim in claims.read(tmp_path)] == [0, 1, 2]
    assert claims.read(tmp_path)[0] == Claim(0, 0, "0" * 64, BLOB, 512, 1_700_000_000)
    (line, *_) = (tmp_path / "claims.jsonl").read_text().splitlines()
    assert set(json.loads(line)) == {"round", "attempt", "entry", "blob", "tokens", "time"}


def test_a_torn_last_line_costs_only_itself(tmp_path: Path) -> None:
    notes = ClaimFile(tmp_path)
    for number in range(2):
        add(notes, number)
    path = tmp_path / "claims.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    assert [claim.round for claim in claims.read(tmp_path)] == [0]
    add(ClaimFile(tmp_path), 2)
    assert [claim.round for claim in claims.read(tmp_path)] == [0, 2]


def test_junk_is_left_out(tmp_path: Path) -> None:
    assert claims.read(tmp_path) == []
    add(ClaimFile(tmp_path), 5)
    good = (tmp_path / "claims.jsonl").read_bytes()
    fields = json.loads(good)
    junk = [
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"[" * 900,
        json.dumps(fields | {"round": "5"}).encode(),
        json.dumps(fields | {"tokens": -1}).encode(),
        json.dumps(fields | {"more": 1}).encode(),
        json.dumps(fields | {"blob": "x" * 2000}).encode(),
    ]
    (tmp_path / "claims.jsonl").write_bytes(b"\n".join([*junk, good]))
    assert [claim.round for claim in claims.read(tmp_path)] == [5]


def test_a_home_that_cannot_be_written_is_said_plainly(tmp_path: Path) -> None:
    (tmp_path / "claims.jsonl").mkdir()
    with pytest.raises(ResourceError, match="cannot write"):
        add(ClaimFile(tmp_path), 1)
