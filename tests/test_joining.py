"""A joiner and its first state: real hosts, of which the coordinator holds none."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from node import join
from node.sync import States
from protocol import dht, messages, wire
from protocol.blobs import BlobStore
from protocol.errors import EXIT_UNREACHABLE, Unreachable
from protocol.network import Host
from transfer_world import Holder, acquainted, answering

RUN = "ab" * 32
MIB = 1 << 20


class Replica:
    """What a joiner knows of the agreed states; ``news`` come when a member is asked."""

    def __init__(self, coordinator: str, states: list[str], news: list[str]) -> None:
        self.state = SimpleNamespace(states=states)
        self.store = SimpleNamespace(size=1)
        self._coordinator, self._news = coordinator, news

    async def catch_up(self, host: Host, peer: str, run: str) -> None:
        if peer == self._coordinator:
            raise Unreachable("the coordinator does not answer")
        if self._news:
            self.state.states.append(self._news.pop(0))


def session(joiner: Host, blobs: BlobStore, coordinator: str, replica: Replica) -> Any:
    link = SimpleNamespace(coordinator=coordinator)
    return SimpleNamespace(host=joiner, blobs=blobs, run=RUN, link=link, replica=replica)


async def announce(member: Host, state: str) -> None:
    record = dht.HolderRecord(addresses=await member.addresses(), state=state, shards=b"")
    assert await member.publish(dht.nodes_key(RUN), record)


def test_a_member_is_asked_for_a_state_that_the_coordinator_lacks(tmp_path: Path) -> None:
    """Though the member announces the newer one that it has made since."""

    async def go() -> None:
        async with acquainted(tmp_path, 3) as (coordinator, member, joiner):
            present = await answering((coordinator, member))
            for host in (coordinator, member):
                present[host] = Holder(host, tmp_path / f"store-{host.peer_id}")
            data = os.urandom(2 * MIB)
            root = present[member].store.put(data)
            await announce(member, "cd" * 32)
            states = States(joiner, BlobStore(tmp_path / "joiner"), RUN, 4 * MIB)
            path = await states.obtain(root, [coordinator.peer_id])
            assert path.read_bytes() == data

    asyncio.run(go())


@pytest.mark.parametrize("wins", [True, False])
def test_a_joiner_that_loses_the_race_with_pruning_takes_the_newer_state(
    wins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(join, "STATES_TRIED", 3)

    async def go() -> None:
        async with acquainted(tmp_path, 3) as (coordinator, member, joiner):
            present = await answering((coordinator, member))
            for host in (coordinator, member):
                present[host] = Holder(host, tmp_path / f"store-{host.peer_id}")
            holder = present[member]
            roots = [holder.store.put(os.urandom(5 * MIB)) for _ in range(4)]
            last = roots[1] if wins else ""

            async def prune(request: messages.Message, stream: wire.Stream) -> bool:
                # Once the first state is begun; all the others are gone at once.
                wanted = getattr(request, "id", last)
                begun = isinstance(request, messages.GetChunks) or wanted in roots[1:]
                if begun and wanted != last:
                    holder.store.delete(wanted)
                return False

            holder.lie = prune
            await announce(member, roots[-1])
            replica = Replica(coordinator.peer_id, roots[:1], roots[1:])
            blobs = BlobStore(tmp_path / "joiner")
            states = States(joiner, blobs, RUN, 6 * MIB)
            said: list[str] = []
            joining = session(joiner, blobs, coordinator.peer_id, replica)
            if wins:
                root, path = await join._state(joining, states, said.append)
                assert (root, path.stat().st_size) == (last, 5 * MIB)
                assert not blobs.partial(roots[0]).exists()
            else:
                with pytest.raises(Unreachable) as given_up:
                    await join._state(joining, states, said.append)
                assert given_up.value.exit_code == EXIT_UNREACHABLE
                assert given_up.value.hint
                assert len(replica.state.states) == 3
            assert any("went on" in line for line in said)

    asyncio.run(go())
