"""Which model states a node keeps, and for how long."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.ledger.entries import audits
from artel.ledger.entries.genesis import read_genesis
from artel.node.sync import KEEP_LONGER, KEEP_STATES, States
from artel.protocol.net.blobs import BlobStore
from ledger_world import World

SIZE = 1000


def states_of(folder: Path, rules: Any, room: int) -> tuple[States, BlobStore]:
    """Of a home whose quota has room for so many states."""
    blobs = BlobStore(folder, room * SIZE)
    state = SimpleNamespace(rules=rules)
    session: Any = SimpleNamespace(blobs=blobs, replica=SimpleNamespace(state=state))
    return States(session), blobs


def held(states: States, blobs: BlobStore, count: int) -> list[int]:
    """Numbers of the states that are here after so many of them."""
    roots = []
    for number in range(count):
        roots.append(blobs.put(number.to_bytes(4, "big") * (SIZE // 4)))
        states.become(number, roots[-1])
    return [number for number, root in enumerate(roots) if blobs.has(root)]


@pytest.mark.parametrize(("span", "rate"), [(0, 0.05), (4, 0.0), (4, 0.05)])
def test_states_are_kept_as_long_as_auditors_may_need_them(
    tmp_path: Path, span: int, rate: float
) -> None:
    world = World(rounds={"span": span}, trust={"audit_rate": rate, "audit_rounds": 1})
    rules = read_genesis(world.genesis.payload).rules
    states, blobs = states_of(tmp_path, rules, 100)
    kept = KEEP_STATES + (4 + audits.PATIENCE if span and rate else KEEP_LONGER)
    assert audits.rounds_kept(rules) in (0, kept - KEEP_STATES)
    assert held(states, blobs, 20) == list(range(20 - kept, 20))


def test_where_the_quota_is_small_the_oldest_states_go_first(tmp_path: Path) -> None:
    world = World(rounds={"span": 50})
    rules = read_genesis(world.genesis.payload).rules
    states, blobs = states_of(tmp_path, rules, 5)
    found = held(states, blobs, 12)
    assert len(found) == 5
    assert found[-KEEP_STATES:] == [10, 11]
