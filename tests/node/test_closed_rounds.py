"""What a node that was away reads in the ledger: the rounds that it missed, and what they cost."""

from __future__ import annotations

from pathlib import Path

import pytest

from artel.ledger import entries
from artel.ledger.fold.history import read
from artel.ledger.fold.shares import fold
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.node.closed_rounds import closed_since, under_way
from artel.node.sync import delta_bytes
from artel.protocol.dsse import Envelope
from artel.protocol.exchange.pseudogradient import index_bytes
from artel.protocol.net.blobs import BlobStore
from ledger_world import World, digest

SHARDED = {"topology": "sharded"}


def stored(world: World, home: Path, *batches: list[Envelope]) -> LedgerStore:
    store = LedgerStore.open(home / DATABASE_NAME, create=True, run=world.run)
    for batch in ([world.genesis], world.introductions(), *batches):
        store.append(world.add(*batch), world.sign)
    return store


def test_missed_rounds_are_those_behind_the_state_that_one_has(tmp_path: Path) -> None:
    world = World()
    with stored(world, tmp_path, *(world.round(number) for number in range(5))) as store:
        missed = closed_since(read(store), 3)
        assert [(closed.round, closed.root) for closed in missed] == [
            (3, digest("state 4")),
            (4, digest("state 5")),
        ]
        assert [closed.round for closed in closed_since(read(store), 0)] == [0, 1, 2, 3, 4]
        assert closed_since(read(store), 5) == []
        first = missed[0]
        assert first.accepted == sorted(member.peer_id for member in world.members)
        for member in world.members:
            assert first.shown[member.peer_id].blob == world.blob(3, 0, member)[0]
            assert first.weights[member.peer_id] == first.shown[member.peer_id].tokens


def test_an_attempt_that_failed_is_not_repeated(tmp_path: Path) -> None:
    world = World()
    failed = [world.opened(1), world.closed(1, accepted=[])]
    redone = [
        world.opened(1, 1),
        world.committed(1, 1),
        *(world.contribution(member, 1, 1) for member in world.members),
        world.closed(1, 1),
        world.agreed(2),
    ]
    under = [world.opened(2), world.committed(2)]
    with stored(world, tmp_path, world.round(0), failed, redone, under) as store:
        (missed,) = closed_since(read(store), 1)
        assert (missed.round, missed.attempt) == (1, 1)
        assert missed.shown[world.members[0].peer_id].blob == world.blob(1, 1, world.members[0])[0]


def test_slices_and_accusations_come_along(tmp_path: Path) -> None:
    world = World(exchange=SHARDED)
    accuser = world.aggregator(0, 2)
    round_0 = world.until_closed(0) + [world.aggregate(0, number) for number in range(3)]
    round_0 += [world.slice_wrong(accuser, 0, 1), world.agreed(1, wrong=[1])]
    with stored(world, tmp_path, round_0, world.round(1)) as store:
        first, second = closed_since(read(store), 0)
    assert first.accused == {1}
    assert second.accused == frozenset()
    assert {number: made.blob for number, made in second.aggregates.items()} == {
        number: digest(f"slice 1 0 {number}") for number in range(3)
    }
    assert first.aggregates[2].node == world.aggregator(0, 2).peer_id


def test_what_does_not_count_in_the_ledger_is_not_applied(tmp_path: Path) -> None:
    world = World(exchange=SHARDED)
    right = world.aggregate(0, 1)
    wrong = world.aggregate(0, 1, by=world.aggregator(0, 2), blob=digest("another"))
    round_0 = [*world.until_closed(0), wrong, right, world.agreed(1)]
    with stored(world, tmp_path, round_0) as store:
        (closed,) = closed_since(read(store), 0)
    assert closed.aggregates[1].blob == digest("slice 0 0 1")


def test_the_attempt_under_way_is_read_from_the_fold(tmp_path: Path) -> None:
    world = World(exchange=SHARDED)
    batch = [*world.until_closed(0), world.aggregate(0, 0)]
    with stored(world, tmp_path, batch) as store:
        state = fold(map(entries.decode, store.leaves()))
        assert state.attempt is not None
        closed = under_way(store, state.attempt)
    assert closed.accepted == sorted(member.peer_id for member in world.members)
    assert closed.aggregates[0].blob == digest("slice 0 0 0")
    assert closed.root == ""


def test_contributions_are_read_once_however_often_slices_are_looked_for(tmp_path: Path) -> None:
    """A thousand members that look would read a million of them each time."""

    class Unread:
        def leaf(self, index: int) -> bytes:
            raise AssertionError("it was read before")

    world, unread = World(exchange=SHARDED), Unread()
    accuser = world.aggregator(0, 1)
    batch = [*world.until_closed(0), world.aggregate(0, 0)]
    with stored(world, tmp_path, batch) as store:
        attempt = fold(map(entries.decode, store.leaves())).attempt
        assert attempt is not None
        before = under_way(store, attempt)
        store.append(world.add(world.slice_wrong(accuser, 0, 0), world.aggregate(0, 1)), world.sign)
        attempt = fold(map(entries.decode, store.leaves())).attempt
        assert attempt is not None
        now = under_way(unread, attempt, before)  # type: ignore[arg-type]
        assert now == under_way(store, attempt)
        assert (len(now.aggregates), now.accused) == (2, {0})
        attempt.attempt = 1
        with pytest.raises(AssertionError, match="read before"):
            under_way(unread, attempt, before)  # type: ignore[arg-type]


def test_a_delta_costs_what_is_not_here_yet(tmp_path: Path) -> None:
    world, sharded = World(), World(exchange=SHARDED, name="sharded")
    blobs = BlobStore(tmp_path / "blobs")
    with stored(world, tmp_path / "a", world.round(0), world.round(1)) as store:
        missed = closed_since(read(store), 0)
    assert delta_bytes(missed, blobs) == 2 * 3 * 1000
    with stored(sharded, tmp_path / "b", sharded.round(0)) as store:
        (closed,) = closed_since(read(store), 0)
    assert delta_bytes([closed], blobs) == 3 * 500 + 3 * index_bytes(3)
