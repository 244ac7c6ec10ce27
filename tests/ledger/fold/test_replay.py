"""Replaying a long ledger: processes check signatures, and the result is the same as without."""

from __future__ import annotations

from collections.abc import Iterator

import psutil
import pytest

from artel.ledger import entries
from artel.ledger.entries import Cosignature, Entry, Witnessed
from artel.ledger.entries.body import size_of
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
    monkeypatch.setattr(replay, "MANY", 4000)
    monkeypatch.setattr(replay, "_BATCH", 2500)
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


@pytest.mark.parametrize("processes", [False, True])
def test_what_is_held_is_bounded_by_bytes(
    monkeypatch: pytest.MonkeyPatch, leaves: list[bytes], processes: bool
) -> None:
    """Not by entries: one document can have more signatures than a thousand other entries."""
    monkeypatch.setattr(replay, "cores", lambda: 2)
    large = cosigned_by_many(leaves)
    most = (replay.MANY + replay._IN_FLIGHT + replay._BATCH) // size_of(large) + 2
    taken = done = ahead = 0

    def taking() -> Iterator[bytes]:
        nonlocal taken
        for _ in range(most + 20):
            taken += 1
            yield large

    for _ in replay.decoded(taking(), processes=processes):
        ahead = max(ahead, taken - done)
        done += 1
    assert done == most + 20
    assert ahead <= most


def cosigned_by_many(leaves: list[bytes]) -> bytes:
    nodes = sorted(key(f"node {number}").peer_id for number in range(1024))
    signed = [Cosignature(node=node, time=1, signature="f" * 128) for node in nodes]
    run = entries.decode(leaves[1]).body.run
    fields = {"term": 0, "size": 5, "root": "0" * 64, "cosignatures": tuple(signed)}
    made = entries.by_account(Witnessed, key("coordinator"), run, **fields)
    return made.encode()


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
