"""Which agreed states a coordinator's home keeps copies of."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

from artel.coordinator.stock import Stock
from artel.protocol.net.blobs import BlobStore
from manifest_world import config, manifest

NOBODY: Any = None
"""In the place of a network: all states are here."""


def stock(store: BlobStore, rules: str) -> Stock:
    return Stock(cast(Any, NOBODY), store, manifest(config=config(f"[rounds]\n{rules}")), "", "")


async def test_every_nth_state_stays_for_good_and_of_the_others_the_newest(tmp_path: Path) -> None:
    store = BlobStore(tmp_path)
    roots = [store.put(b"state %d" % number) for number in range(11)]

    async def copied(found: Stock, numbers: range) -> set[int]:
        for number in numbers:
            assert found.wanted(number, 60)
            assert await found.mirror(number, roots[number], [])
        return {number for number in range(1, numbers.stop) if store.has(roots[number])}

    rules = "mirror_every = 1\nkeep_every = 3"
    assert await copied(stock(store, rules), range(1, 9)) == {3, 6, 7, 8}
    again = stock(store, rules)  # after a restart
    again.label(roots[:9])
    assert await copied(again, range(9, 11)) == {3, 6, 8, 9, 10}


def test_states_to_be_kept_are_copied_though_no_others_are(tmp_path: Path) -> None:
    found = stock(BlobStore(tmp_path), "total = 20\nmirror_every = 0\nkeep_every = 8")
    assert [number for number in range(1, 21) if found.wanted(number, 20)] == [8, 16, 20]
