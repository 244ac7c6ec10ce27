"""Items of indexes between real hosts: whom is believed, who is asked next, what it costs."""

from __future__ import annotations

import hashlib
import random
from pathlib import Path

import pytest
import pytest_asyncio

from artel.protocol import content, index_items, messages
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.pseudogradient import IndexItem, ProvingIndex
from artel.protocol.index_items import Listed
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from artel.protocol.round_state import NO_NUMBERS
from delivery_world import Answer, Holder, answering, holding

pytestmark = pytest.mark.asyncio(loop_scope="module")

COUNT = 300
BASE = "5a" * 32


def listed(seed: int) -> list[IndexItem]:
    chance = random.Random(seed)
    return [
        IndexItem(chance.randbytes(32).hex(), 1000 + number, chance.randbytes(32).hex())
        for number in range(COUNT)
    ]


MINE, THEIRS = listed(1), listed(2)
INDEX, OTHER = (pseudogradient.pack_index(3, BASE, pieces) for pieces in (MINE, THEIRS))
BLOB = content.content_id(INDEX)
PAYLOAD = pseudogradient.joined_digest([piece.payload for piece in MINE])
WANTED = {("maker", number): MINE[number] for number in (7, 8)}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def serving(hosts: list[Host]) -> dict[Host, Holder]:
    return await answering(hosts[1:])


@pytest.fixture
def holders(hosts: list[Host], serving: dict[Host, Holder], tmp_path: Path) -> list[Holder]:
    return holding(hosts[1:], serving, tmp_path, INDEX)


async def ask(
    hosts: list[Host], *holders: Holder, payload: str = PAYLOAD
) -> dict[tuple[str, int], IndexItem]:
    where = Listed(BLOB, payload, [holder.peer for holder in holders])
    return await index_items.ask(hosts[0], {"maker": where}, [7, 8], THEIRS, 30.0)


def saying(*items: bytes) -> Answer:
    async def lie(request: messages.Message, stream: wire.ByteStream) -> bool:
        if isinstance(request, messages.GetItems):
            await wire.write_message(stream, messages.Items(items=list(items)))
            return True
        return False

    return lie


async def test_items_of_an_index_are_a_part_of_its_bytes(
    hosts: list[Host], holders: list[Holder]
) -> None:
    kinds = hosts[0].traffic.down
    before = kinds.total()
    assert await ask(hosts, holders[0]) == WANTED
    moved = kinds.total() - before
    assert moved < index_items.items_bytes(2, COUNT) + 100 < len(INDEX) / 10
    assert [holder.asked for holder in holders] == [{"get_items": 1}, {}, {}]


async def test_a_holder_that_lies_is_passed_over(hosts: list[Host], holders: list[Holder]) -> None:
    right, other = ProvingIndex(INDEX), ProvingIndex(OTHER)
    here = [right.proven(7), right.proven(8)]
    lies = [
        [other.proven(7), other.proven(8)],
        [right.proven(8), right.proven(7)],
        here[:1],
        [*here, here[0]],
        [],
        [here[0], here[1] + bytes(32)],
        [here[0], here[1][:-32]],
        # More bytes than a slice can have would be fetched from whoever says so.
        [here[0], here[1][:32] + (1 << 40).to_bytes(8, "big") + here[1][40:]],
    ]
    for lie in lies:
        holders[0].lie = saying(*lie)
        assert await ask(hosts, holders[0]) == {}
        assert await ask(hosts, holders[0], holders[1]) == WANTED
    assert holders[1].asked == {"get_items": len(lies)}


async def test_who_has_no_index_says_so(hosts: list[Host], holders: list[Holder]) -> None:
    holders[0].store.delete(BLOB)
    assert await ask(hosts, holders[0]) == {}
    assert await ask(hosts, holders[0], holders[1]) == WANTED
    junk = holders[2].store.put(b"no index")
    large = holders[2].store.put(pseudogradient.pack_index(3, BASE, [MINE[0]] * 1025))
    for blob, number in ((junk, 7), (large, 7), (BLOB, COUNT), (hashlib.sha256().hexdigest(), 7)):
        request = messages.GetItems(id=blob, slices=[number])
        with pytest.raises(wire.Refused) as caught:
            await hosts[0].ask(holders[2].peer, wire.CONTENT, request)
        assert caught.value.code == "not_here"


async def test_zeros_cannot_be_proven_and_nobody_is_asked(
    hosts: list[Host], holders: list[Holder]
) -> None:
    assert await ask(hosts, holders[0], payload=NO_NUMBERS) == {}
    assert not holders[0].asked


async def test_items_are_asked_for_where_they_are_fewer_bytes() -> None:
    assert not index_items.worth(2, 2)
    assert not index_items.worth(2, 3)
    assert index_items.worth(2, 9)
    assert index_items.worth(64, 1024)
    assert not index_items.worth(65, 1024)
    assert not index_items.worth(64, 64)


async def test_the_most_items_fit_their_messages() -> None:
    pieces = [MINE[0]._replace(size=(1 << 64) - 1)] * 1024
    index = ProvingIndex(pseudogradient.pack_index(3, BASE, pieces))
    request = messages.GetItems(id=BLOB, slices=list(range(1024))[-messages.MAX_ITEMS :])
    assert len(wire.encode(request)) <= messages.GetItems.LIMIT
    reply = messages.Items(items=[index.proven(number) for number in request.slices])
    assert len(wire.encode(reply)) <= messages.Items.LIMIT
