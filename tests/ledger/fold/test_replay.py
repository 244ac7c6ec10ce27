"""Replaying a long ledger: processes check signatures, and the result is the same as without."""

from __future__ import annotations

import psutil
import pytest

from artel.ledger import entries
from artel.ledger.entries import Entry
from artel.ledger.fold import replay
from artel.protocol.errors import DecodeError
from ledger_world import World, forged, key


@pytest.fixture(scope="module")
def leaves() -> list[bytes]:
    world = World()
    found = [leaf for batch in world.batches(3) for leaf in batch]
    unsigned = forged(entries.account(key("a stranger"), world.run), key("another"))
    broken = entries.account(key("a third"), world.run)
    signature = bytes(64)
    bad = type(broken)(
        broken.payload_type, broken.payload, tuple((name, signature) for name in broken.signers)
    )
    return [*found, unsigned.encode(), bad.encode()] * 4


@pytest.fixture
def many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(replay, "MANY", 8)
    monkeypatch.setattr(replay, "_BATCH", 5)
    monkeypatch.setattr(replay, "cores", lambda: 2)


def seen(leaves: list[bytes], *, processes: bool) -> list[tuple[bytes, str, frozenset[str]]]:
    found: list[tuple[bytes, Entry]] = list(replay.decoded(leaves, processes=processes))
    return [(leaf, entry.id, entry.signers) for leaf, entry in found]


def test_processes_and_threads_find_the_same(many: None, leaves: list[bytes]) -> None:
    by_processes = seen(leaves, processes=True)
    assert by_processes == seen(leaves, processes=False)
    assert [leaf for leaf, _, _ in by_processes] == leaves
    assert by_processes[-1][2] == frozenset()
    assert by_processes[0][2]


def test_what_is_no_entry_is_reported_when_it_is_its_turn(many: None, leaves: list[bytes]) -> None:
    before: list[bytes] = []
    with pytest.raises(DecodeError):
        for leaf, _ in replay.decoded([*leaves[:20], b"{}", *leaves], processes=True):
            before.append(leaf)
    assert before == leaves[:20]


def test_a_reader_that_stops_early_leaves_no_process(many: None, leaves: list[bytes]) -> None:
    reading = replay.decoded(leaves, processes=True)
    assert next(reading)[0] == leaves[0]
    reading.close()  # type: ignore[attr-defined]
    assert not replay_children()


def replay_children() -> list[int]:
    return [
        child.pid
        for child in psutil.Process().children()
        if "spawn_main" in " ".join(child.cmdline())
    ]
