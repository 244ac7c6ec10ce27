"""How a coordinator with an invite alone comes to the run's manifest."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import pytest_asyncio

from artel.coordinator import joining
from artel.coordinator.joining import run_of_invite
from artel.coordinator.preparation import manifest_path
from artel.ledger.entries.fold_state import FoldState
from artel.ledger.fold.layout import LAYOUT_FILE
from artel.ledger.store.heads import HeadStore
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync.serving import LedgerService
from artel.protocol.errors import CheckFailed, UsageError
from artel.protocol.identity import load
from artel.protocol.invite import Invite
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from host_world import start
from ledger_world import World


class Invited:
    """A peer of an invite with a ledger that is still empty, and somebody who has the invite."""

    def __init__(self, folder: Path, world: World) -> None:
        self.home, self.world = folder / "home", world
        self.store = LedgerStore.open(folder / "ledger.sqlite3", create=True, run=world.run)
        self.heads = HeadStore(folder / "heads.sqlite3")
        self.peer: Host
        self.host: Host
        self.invite: Invite

    async def open(self, folder: Path) -> None:
        self.peer, self.host = await start(folder / "peer"), await start(self.home)
        answering = LedgerService(self.store, self.heads, self.world.run, FoldState)
        await self.peer.serve(wire.LEDGER, answering.answer)
        self.invite = Invite(self.world.run, (*(await self.peer.addresses())[:1],))

    def publish(self) -> None:
        self.store.append(self.world.leaves, self.world.sign)


@pytest_asyncio.fixture
async def invited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Invited, World]]:
    monkeypatch.setattr(joining, "RETRY_S", 0.1)
    world = World()
    world.add(*world.start)
    named = SimpleNamespace(coordinators=[world.coordinator.key])
    monkeypatch.setattr(joining, "open_manifest", lambda _: (named, world.run))
    found = Invited(tmp_path, world)
    await found.open(tmp_path)
    yield found, world
    for host in (found.peer, found.host):
        await host.close()
    found.store.close()
    found.heads.close()


async def test_a_peer_whose_ledger_is_still_empty_is_waited_for(
    invited: tuple[Invited, World],
) -> None:
    here, world = invited
    asked = asyncio.create_task(joining._manifest(here.host, here.invite))
    await asyncio.sleep(1.0)
    assert not asked.done(), "it stands by itself, and will have the manifest"
    here.publish()
    assert await asyncio.wait_for(asked, 30.0) == world.leaves[0]


async def test_a_peer_that_shows_another_run_ends_the_waiting(
    invited: tuple[Invited, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    here, _ = invited
    here.publish()
    monkeypatch.setattr(joining, "manifest_of", lambda source, run: _another(source))
    with pytest.raises(CheckFailed, match="of another run"):
        await asyncio.wait_for(joining._manifest(here.host, here.invite), 30.0)


async def test_peers_that_serve_another_run_end_the_waiting(
    invited: tuple[Invited, World],
) -> None:
    here, _ = invited
    here.publish()
    of_another = Invite("ab" * 32, here.invite.peers)
    with pytest.raises(CheckFailed, match="nobody of the invite serves run abab"):
        await asyncio.wait_for(joining._manifest(here.host, of_another), 30.0)


def _another(source: object) -> None:
    from artel.ledger.sync.signed_tree import manifest_of

    manifest_of(source, "ab" * 32)  # type: ignore[arg-type]


async def test_a_home_whose_key_the_run_does_not_name_is_left_as_it_was(
    invited: tuple[Invited, World],
) -> None:
    here, _ = invited
    here.publish()
    identity = load(here.home / "node.key")
    with pytest.raises(UsageError, match=f"none of the run's coordinators: {identity.key}") as said:
        await asyncio.wait_for(
            run_of_invite(here.host, here.invite, here.home, identity, True), 30.0
        )
    assert "node.key" in said.value.hint
    assert not manifest_path(here.home).exists()
    assert not (here.home / LAYOUT_FILE).exists()
