"""Measuring machines: spans are recorded, and repeated from their folder alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from artel.node import measuring
from artel.node.supervisor import Trainer
from artel.protocol.errors import DecodeError, UsageError
from trainer_world import started


@pytest.fixture
async def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Trainer]:
    monkeypatch.setattr(measuring, "STEPS", 6)
    monkeypatch.setattr(measuring, "ROUNDS", 2)
    monkeypatch.setattr(measuring, "OVERLAP", 2)
    child = await started(tmp_path / "trainer.log")
    yield child
    await child.close()


async def test_what_a_machine_recorded_it_repeats_to_the_bit_wherever_it_lies(
    trainer: Trainer, tmp_path: Path
) -> None:
    first, kinds = tmp_path / "first", ["adamw int4", "muon sparse"]
    hardware = await measuring.record(trainer, first, kinds)
    with pytest.raises(UsageError):
        await measuring.record(trainer, first, kinds)
    moved = tmp_path / "moved"
    shutil.move(first, moved)
    found = await measuring.measure(trainer, moved)
    assert [(one.kind, one.error, one.overlap) for one in found] == [
        ("adamw int4", 0.0, None),
        ("muon sparse", 0.0, 1.0),
    ]
    assert {one.made_on for one in found} == {one.repeated_on for one in found} == {hardware}
    assert all(len(one.rounds) == 2 for one in found)

    # Another's contribution in its place is not near; and nothing outside of the folder is read.
    file = moved / "adamw-int4" / "span.json"
    told = json.loads(file.read_bytes())
    last = told["replay"]["rounds"][-1]
    last["windows"]["at"] = [[0, start // 2] for _, start in last["windows"]["at"]]
    last["state"] = f"/etc/{Path(last['state']).name}"
    file.write_text(json.dumps(told))
    assert (await measuring.measure(trainer, moved))[0].rounds[-1] > 0.1


@pytest.mark.parametrize("data", [b"", b"{}", b"[[[", b'{"hardware":"x","replay":{"rounds":[1]}}'])
async def test_folders_with_something_else_are_refused(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(DecodeError):
        await measuring.measured(tmp_path, 1)
    (tmp_path / "span").mkdir()
    (tmp_path / "span" / "span.json").write_bytes(data)
    with pytest.raises(DecodeError):
        measuring.read_span(tmp_path / "span")
