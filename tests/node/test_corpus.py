"""Which shards a node keeps for the others, so that a run outlives the disk of its coordinator."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from artel.node import corpus
from artel.node.corpus import COPIES, Corpus, falling_to
from artel.protocol import content
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.delivery import Wanted
from artel.protocol.tasks import within

NODES = [f"node {number}" for number in range(10)]
SHARDS = [hashlib.sha256(f"shard {number}".encode()).hexdigest() for number in range(500)]


def parts(nodes: list[str]) -> dict[str, set[int]]:
    return {node: set(falling_to(node, nodes, SHARDS, COPIES)) for node in nodes}


def test_each_shard_falls_to_so_many_and_who_goes_moves_only_its_own_part() -> None:
    before = parts(NODES)
    for number in range(len(SHARDS)):
        assert sum(number in part for part in before.values()) == COPIES
    assert all(len(part) > len(SHARDS) * COPIES / len(NODES) / 2 for part in before.values())
    after = parts(NODES[1:])
    assert all(before[node] <= after[node] for node in after)
    moved = sum(len(after[node] - before[node]) for node in after)
    assert moved == len(before[NODES[0]])
    # Of fewer nodes than copies, each has all.
    assert all(len(part) == len(SHARDS) for part in parts(NODES[:2]).values())


@pytest.mark.parametrize(
    ("electors", "standbys", "quota", "kept"),
    [
        (NODES[:2], 0, None, 40),  # all of it
        (NODES[:2], 2, None, 20),  # the standbys have it, and one of the two
        (NODES[:2], 3, None, 0),
        (NODES[1:], 0, None, 0),  # this node is none of them
        (NODES[:2], 0, 4_000_000, 20),  # not more than half of the quota and what is under way
    ],
)
async def test_an_elector_fetches_what_falls_to_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    electors: list[str],
    standbys: int,
    quota: int | None,
    kept: int,
) -> None:
    bodies = [bytes([number]) * 100_000 for number in range(40)]
    ids = [content.content_id(body) for body in bodies]
    blobs = BlobStore(tmp_path, quota)
    split = SimpleNamespace(index="train", shards=40)
    other = SimpleNamespace(index="validation", shards=0)
    manifest: Any = SimpleNamespace(
        data=SimpleNamespace(train=split, validation=other),
        config=SimpleNamespace(coordination=SimpleNamespace(standbys=("",) * standbys)),
    )
    session: Any = SimpleNamespace(
        manifest=manifest,
        blobs=blobs,
        identity=SimpleNamespace(peer_id=NODES[0]),
        host=None,
        replica=SimpleNamespace(
            state=SimpleNamespace(electors=SimpleNamespace(present=dict.fromkeys(electors, 1)))
        ),
    )

    class Known(Corpus):
        async def _index(self, split: Any) -> Any:
            shards = ids if split.index == "train" else []
            index = SimpleNamespace(shards=shards, bytes_in=lambda number: 100_000)
            return self._indexes.setdefault(split.index, index)  # type: ignore[arg-type]

        async def _holders(self, missing: Any, index: Any, first: int) -> Any:
            return {number: ["somebody"] for number in missing}

        def _verify(self, path: Path, index: Any, number: int) -> None:
            assert path.read_bytes() == bodies[number]

    async def fetch_all(host: object, store: BlobStore, wanted: list[Wanted]) -> list[Path]:
        for one in wanted:
            store.put(bodies[ids.index(one.blob)])
        return [path for one in wanted if (path := store.path(one.blob))]

    monkeypatch.setattr(corpus.delivery, "fetch_all", fetch_all)
    monkeypatch.setattr(corpus, "LOOK_S", 0.01)
    monkeypatch.setattr(corpus, "REST", 0.0)
    monkeypatch.setattr(corpus, "PAUSE_S", 0.01)
    with contextlib.suppress(TimeoutError):
        await within(Known(session).keep(), 0.7)
    await asyncio.sleep(0)
    held = [number for number, blob in enumerate(ids) if blobs.has(blob)]
    if quota is not None:
        assert kept <= len(held) <= kept + corpus.AT_ONCE
    elif kept in (0, 40):
        assert len(held) == kept
    else:
        assert held == falling_to(NODES[0], electors, ids, COPIES - standbys)
