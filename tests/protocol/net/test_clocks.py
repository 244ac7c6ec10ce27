"""This machine's clock against those of others, on real hosts."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from artel.node import preflight
from artel.protocol.errors import ResourceError
from artel.protocol.net import clocks, dht_node
from host_world import named, start, swarm


async def test_the_clock_is_compared_with_whoever_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with swarm(tmp_path, 3) as (here, *others):
        peers = [host.peer_id for host in others] + [named("nobody").peer_id]
        found = await clocks.ahead(here, peers)
        assert found is not None
        assert not clocks.is_off(found)
        assert await clocks.ahead(here, [here.peer_id, named("nobody").peer_id]) is None
        assert await clocks.right(here, peers, refuse=True)
        for seconds in (3600.0, -3600.0):
            ahead = seconds
            monkeypatch.setattr(dht_node, "get_dht_time", lambda ahead=ahead: time.time() + ahead)
            found = await clocks.ahead(here, peers)
            assert found == pytest.approx(seconds, abs=1.0)
            with pytest.raises(ResourceError, match=r"differ by 3\d\d\d\.\d s") as error:
                await clocks.right(here, peers, refuse=True)
            assert "NTP" in error.value.hint
            assert await clocks.right(here, []), "nobody answers: nothing is known"


async def test_of_a_node_and_its_coordinator_others_say_whose_clock_is_wrong(
    tmp_path: Path,
) -> None:
    leads = await start(tmp_path / "leads")
    here = await start(tmp_path / "here", leads)
    try:
        now, asked = time.time(), time.monotonic()
        right = await preflight.clock(here, leads.peer_id, now, asked)
        assert right.level == "ok"
        alone = await preflight.clock(here, leads.peer_id, now + 3600, asked)
        assert alone.level == "problem"
        assert alone.text.startswith("this machine and the coordinator differ by 3")
        assert "if this machine has it, the coordinator's is the wrong one" in alone.text
        other = await start(tmp_path / "other", here)
        found = await preflight.clock(here, leads.peer_id, now + 3600, asked)
        assert found.level == "warning"
        assert "tell the organiser" in found.text
        await other.close()
    finally:
        await here.close()
        await leads.close()
