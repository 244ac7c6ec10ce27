"""A run whose only coordinator is gone for good: a node that members choose starts the next one."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from pathlib import Path

import pytest

from artel.coordinator.preparation import manifest_path
from artel.ledger.store.verify import verify_home
from artel.protocol import shards
from artel.protocol.manifest import read_manifest
from benchmarks.swarm import Swarm
from swarm_world import ledger_of, round_at_least, write_run

TOTAL = 16


def shards_of(home: Path) -> set[str]:
    """The content ids of all shards that a coordinator has prepared."""
    manifest, _ = read_manifest(manifest_path(home))
    splits = (manifest.data.train, manifest.data.validation)
    indexes = [
        shards.decode_index((home / "blobs" / split.index).read_bytes(), split) for split in splits
    ]
    return {shard for index in indexes for shard in index.shards}


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_members_elect_one_of_themselves_and_the_run_ends(tmp_path: Path) -> None:
    run_file = write_run(tmp_path, total=TOTAL, inner_steps=20, mirror_every=1)
    text = run_file.read_text().replace("shard_tokens = 16384", "shard_tokens = 131072")
    run_file.write_text(f"{text}\n[coordination]\nhandover_s = 3.0\n")
    async with Swarm(tmp_path, run_file) as swarm:
        await swarm.start(nodes=3)
        # Nobody can seal a term before all know of the first state, which makes them electors.
        await swarm.wait_for(round_at_least(2), "two states are agreed")
        homes = [swarm.home_of(number) for number in swarm.nodes]
        needed = shards_of(tmp_path / "coordinator")
        async with asyncio.timeout(120):  # until nobody needs its disk any more
            while not all(needed <= set(os.listdir(home / "blobs")) for home in homes):
                await asyncio.sleep(0.5)
        await asyncio.sleep(1.0)
        await swarm.stop_coordinator(signal.SIGKILL)
        shutil.rmtree(tmp_path / "coordinator")
        await swarm.ended(300)
        ledgers = [ledger_of(swarm.home_of(number)) for number in swarm.nodes]
    for number in swarm.nodes:
        found = verify_home(swarm.home_of(number))
        assert found.verified, found.checks
    decoded, state = max(ledgers, key=lambda ledger: len(ledger[0]))
    assert state.round == TOTAL
    began = [entry for entry in decoded if entry.kind == "handover"]
    assert began
    assert all(state.starts(entry.body.coordinator) for entry in began)
    assert state.term.leader not in state.coordinators
    # What was sealed with it goes on: one history, each round once.
    agreed = [entry.body.round for entry in decoded if entry.kind == "state_agreed"]
    assert agreed == list(range(1, TOTAL + 1))
