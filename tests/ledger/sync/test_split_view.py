"""A coordinator that shows two histories is caught by its nodes; an honest one never is."""

from __future__ import annotations

import asyncio
import contextlib
import json
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from artel.ledger.entries.evidence import SplitView, check
from artel.ledger.store.store import LedgerStore
from artel.ledger.sync import fork
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.source import CONFLICTS_PATH
from artel.ledger.tlog import note
from artel.ledger.tlog.checkpoint import Checkpoint, open_checkpoint, sign_checkpoint
from artel.ledger.tlog.note import VerifierKey
from artel.node import watch
from artel.node.watch import Watch
from artel.protocol import canonical, messages, tether
from artel.protocol.errors import CheckFailed
from artel.protocol.net import wire
from host_world import named, start
from ledger_world import World
from split_world import Net


@pytest_asyncio.fixture
async def net(tmp_path: Path) -> AsyncIterator[Net]:
    net = await Net(tmp_path, World()).open()
    yield net
    await net.close()


async def proven(watched: Watch) -> SplitView:
    """What the watch finds within some seconds."""
    async with asyncio.timeout(20):
        with pytest.raises(SplitViewProven) as found:
            await watched.run()
    return found.value.evidence


async def nothing_proven(watched: Watch, rounds: int = 12) -> None:
    """The watch goes on for as many exchanges."""
    asked = 0
    original = watched.exchange

    async def counted(peer: str) -> None:
        nonlocal asked
        await original(peer)
        asked += 1

    watched.exchange = counted  # type: ignore[method-assign]
    task = asyncio.create_task(watched.run())
    async with asyncio.timeout(20):
        while asked < rounds and not task.done():
            await asyncio.sleep(0.01)
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    watched.exchange = original  # type: ignore[method-assign]


async def verified_offline(path: Path) -> str:
    """The key that the file convicts, by a process of its own that is given nothing but the file.

    The manifest in it ties the key to the run id that stands in both heads.
    """
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "artel", "ledger", "verify", str(path), "--json"),
        cwd=path.anchor,
        env=tether.environment(),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    out, err = await child.communicate()
    assert child.returncode == 0, err.decode()[-2000:]
    return str(json.loads(out)["vkey"])


# --- a coordinator that lies ---


async def test_two_histories_shown_to_two_nodes_are_caught_by_both(net: Net) -> None:
    world = net.world
    one, two = net.history("one"), net.history("two")
    for history in (one, two):
        history.add(world.genesis, *world.introductions())
    one.add(*world.round(0), *world.round(1))
    # The other node is told that nobody but the first member worked in round 0; and less of it.
    two.add(world.opened(0, members=[world.members[0].peer_id]))
    two.add(world.committed(0, members=world.members[:1]), world.contribution(world.members[0], 0))
    net.default = one
    a, b = await net.node("a", one), await net.node("b", two)
    assert a.replica.store.size != b.replica.store.size
    await a.meet(b)
    await b.meet(a)

    found = await asyncio.gather(proven(a.watch), proven(b.watch))
    key = VerifierKey(world.origin, world.coordinator.public)
    for node, evidence in zip((a, b), found, strict=True):
        assert check(evidence, [key]) == key
        path = node.home / fork.SPLIT_VIEW_FILE
        assert json.loads(path.read_text())["evidence"] == evidence.to_dict()
        assert await verified_offline(path) == key.encode()
        assert evidence.to_dict() in node.heads.conflicts()
        assert node.watch.doubtful, "it cosigns nothing more"
        # And it does not join again.
        with pytest.raises(SplitViewProven, match="two histories"):
            watch.refuse_convicted(node.replica, node.heads)
    assert net.submitted, "it was offered to the log as well"


async def test_two_heads_of_one_size_need_no_tree(net: Net) -> None:
    world = net.world
    one, two = net.history("one"), net.history("two")
    for history in (one, two):
        history.add(world.genesis, *world.introductions())
    one.add(world.opened(0))
    two.add(world.opened(0, attempt=1))
    net.default = one
    a, b = await net.node("a", one), await net.node("b", two)
    await a.meet(b)
    evidence = await proven(a.watch)
    assert evidence.fork is None
    assert evidence.sizes == (8, 8)
    # The other one is told, although it never asked anybody.
    async with asyncio.timeout(10):
        while not b.watch.doubtful:
            await asyncio.sleep(0.01)
    assert (await proven(b.watch)) == evidence


async def test_a_coordinator_that_changes_its_history_is_caught_while_catching_up(
    net: Net,
) -> None:
    world = net.world
    one, two = net.history("one"), net.history("two")
    for history in (one, two):
        history.add(world.genesis, *world.introductions())
    one.add(world.opened(0))
    two.add(world.opened(0, attempt=1))
    two.add(world.committed(0, attempt=1))
    net.default = one
    a = await net.node("a")
    size, root = a.replica.store.size, a.replica.store.root
    net.default = two
    with pytest.raises(SplitViewProven) as found:
        await a.catch_up(net.host.peer_id)
    check(found.value.evidence, [VerifierKey(world.origin, world.coordinator.public)])
    assert (a.replica.store.size, a.replica.store.root) == (size, root)
    assert a.replica.state.size == size, "nothing of the other history was folded"


async def test_a_head_ahead_of_a_node_that_cannot_catch_up_is_tested_by_its_tiles(
    net: Net,
) -> None:
    """The coordinator goes silent for one node, and shows the others another history."""
    world = net.world
    one, two = net.history("one"), net.history("two")
    for history in (one, two):
        history.add(world.genesis, *world.introductions())
    one.add(world.opened(0))
    two.add(world.opened(0, attempt=1))
    for number in range(3):  # far ahead
        two.add(*(world.opened(0, attempt=2 + 9 * number + i) for i in range(9)))
    net.default = two
    a, b = await net.node("a", one), await net.node("b", two)
    await a.meet(b)
    a.watch._coordinator = lambda: a.host.peer_id  # nobody to ask
    evidence = await proven(a.watch)
    assert evidence.fork is not None
    assert evidence.fork.index == 7
    check(evidence, [VerifierKey(world.origin, world.coordinator.public)])


# --- an honest one ---


async def test_an_honest_coordinator_is_never_accused(net: Net) -> None:
    """Also when one node lags behind, and when the coordinator is started again in between."""
    world = net.world
    history = net.history("one")
    history.add(world.genesis, *world.introductions())
    net.default = history
    a, b = await net.node("a"), await net.node("b")
    await a.meet(b)
    await b.meet(a)
    b.watch._coordinator = lambda: b.host.peer_id  # b does not catch up by itself
    for envelope in world.round(0):
        history.add(envelope)
    await a.catch_up(net.host.peer_id)
    assert a.replica.store.size > b.replica.store.size
    await asyncio.gather(nothing_proven(a.watch), nothing_proven(b.watch))
    assert not b.watch.doubtful
    # A restart of the coordinator: the same files, opened again.
    path = history.store.path
    history.store.close()
    history.store = LedgerStore.open(path, run=world.run)
    history.add(*world.round(1))
    await asyncio.gather(nothing_proven(a.watch), nothing_proven(b.watch))
    await b.catch_up(net.host.peer_id)
    await nothing_proven(b.watch, 3)
    for node in (a, b):
        assert node.replica.store.root == history.store.root
        assert not node.watch.doubtful
        assert node.heads.conflicts() == []
        assert not (node.home / fork.SPLIT_VIEW_FILE).exists()


# --- a third party that lies ---


async def test_forged_heads_and_invented_evidence_accuse_nobody(net: Net, tmp_path: Path) -> None:
    world = net.world
    history = net.history("one")
    history.add(world.genesis, *world.introductions())
    history.add(*world.round(0))
    net.default = history
    a = await net.node("a")
    size = history.store.size
    liar = await start(tmp_path / "liar", net.host)
    real = history.store.latest_note
    thief = named("thief")
    other = Checkpoint(world.origin, size, bytes(32)).encode()
    forged = {
        "another key": sign_checkpoint(thief, world.origin, size, bytes(32)),
        "a spoiled signature": note.Note(other, note.parse(real).signatures).encode(),
        "another run": sign_checkpoint(world.coordinator, "artel/other/term/0", 9, bytes(32)),
        "no note": "hello",
    }
    invented = SplitView(
        *sorted(
            sign_checkpoint(thief, world.origin, size, root) for root in (bytes(32), b"\1" * 32)
        )
    )
    with pytest.raises(CheckFailed):
        open_checkpoint(forged["another key"], world.origin, [world.coordinator.key])
    shown = {"newest": "", "conflicts": [invented.to_dict()]}

    async def lie(
        peer: str, request: messages.Message, stream: wire.ByteStream
    ) -> messages.Message | None:
        assert isinstance(request, messages.Get)
        for path in request.paths:
            text = str(shown["newest"]).encode()
            data = canonical.dumps(shown["conflicts"]) if path == CONFLICTS_PATH else text
            await wire.write_message(stream, messages.File(size=len(data)))
            await stream.write(data)
        return None

    await liar.serve(wire.LEDGER, lie)
    try:
        a.host.remember(liar.peer_id, await liar.addresses())
        for text in [real, *forged.values()]:
            shown["newest"] = text
            await a.watch.exchange(liar.peer_id)
        for junk in ({"first": 1}, [invented.to_dict()], invented.to_dict(), "x" * 1000, 7, None):
            shown["newest"], shown["conflicts"] = real, junk  # type: ignore[assignment]
            await a.watch.exchange(liar.peer_id)
        assert not a.watch.doubtful
        assert a.heads.conflicts() == []
        with pytest.raises(wire.Refused) as refused:
            statement = world.introductions()[0].encode()
            message = messages.Submit(run=world.run, statement=statement)
            await liar.ask(a.host.peer_id, wire.LEDGER, message)
        assert refused.value.code == "not_coordinator"
    finally:
        await liar.close()


async def test_a_real_head_with_an_invented_tree_proves_nothing(net: Net) -> None:
    """A peer shows a head that is ahead, and garbage for its tiles: that is the peer's fault."""
    world = net.world
    history, garbage = net.history("one"), net.history("two")
    history.add(world.genesis, *world.introductions())
    net.default = history
    a = await net.node("a")
    history.add(world.opened(0), world.committed(0))
    ahead = history.store.latest_note
    garbage.add(world.genesis, *world.introductions(), world.opened(0), world.opened(0, attempt=9))
    b = await net.node("b", garbage)
    with pytest.raises(CheckFailed, match="not that of"):
        await asyncio.to_thread(
            fork.examine,
            PeerSource(a.host, b.host.peer_id, world.run),
            a.replica.store,
            ahead,
        )
    await a.watch.consider(b.host.peer_id, ahead)
    await a.meet(b)
    assert not a.watch.doubtful


async def test_a_note_that_many_peers_show_is_looked_at_once(
    net: Net, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has a hundred signatures, and in a large run everybody shows everybody the same."""
    world, looked_at = net.world, list[str]()
    history = net.history("one")
    history.add(world.genesis, *world.introductions())
    net.default = history
    a = await net.node("a")
    verified = watch.finality.verified

    def looked(text: str, *given: Any) -> Any:
        looked_at.append(text)
        return verified(text, *given)

    monkeypatch.setattr(watch.finality, "verified", looked)
    await a.catch_up(net.host.peer_id)
    first = history.store.latest_note
    for peer in ("b", "c"):
        await a.watch.consider(peer, first)
    history.add(world.opened(0))
    await a.catch_up(net.host.peer_id)
    for shown in (first, history.store.latest_note):
        await a.watch.consider("d", shown)
    assert looked_at == [first, history.store.latest_note]
