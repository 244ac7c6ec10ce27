"""Whom a node asks for what a round consists of."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from artel.node import applying
from artel.node.applying import Applying
from artel.node.closed_rounds import ClosedRound
from artel.node.inputs import HOLDERS, Inputs
from artel.node.link import Link
from artel.protocol import assignment, messages
from artel.protocol.errors import Unreachable
from artel.protocol.identity import Identity
from artel.protocol.invite import Invite


def holders(me: str, members: int) -> list[str]:
    session: Any = SimpleNamespace(
        identity=SimpleNamespace(peer_id=me), link=SimpleNamespace(coordinator="office")
    )
    names = tuple(f"{number:04}" for number in range(members))
    closed = ClosedRound(0, 0, names, names, {}, {})
    return Inputs(session).holders(closed, "0001")  # type: ignore[arg-type]


def test_of_many_members_some_are_asked_and_others_by_each_node() -> None:
    found = holders("0000", 1000)
    assert (found[0], found[-1], len(found)) == ("0001", "office", HOLDERS + 2)
    assert "0000" not in found
    assert found == holders("0000", 1000)
    assert found[1:-1] != holders("0002", 1000)[1:-1]
    assert len(holders("0000", 8)) == 8  # all others, and the coordinator


@pytest.mark.parametrize("given_to", [0, 3])
def test_a_slice_is_asked_of_its_maker_and_of_those_who_have_it(given_to: int) -> None:
    """Whoever combines one has to ask a thousand makers, and nobody for what it cannot have."""
    names = tuple(f"{number:04}" for number in range(1000))
    session: Any = SimpleNamespace(
        identity=SimpleNamespace(peer_id="0000"),
        link=SimpleNamespace(coordinator="office"),
        holders=given_to,
    )
    own = Inputs(session)
    closed = ClosedRound(5, 0, names, names, {}, dict.fromkeys(names, 1))
    others = own._fetching(closed, 600)
    assert others[:2] == [
        assignment.aggregator(names, 5, 600),
        assignment.checker(names, 5, 600),
    ]
    assert len(others) == (given_to or 2)
    assert own.holders(closed, "0900", others) == ["0900", *others, "office"]


async def test_those_who_wait_for_slices_ask_no_more_often_than_the_coordinator_bears(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each of 1,000 looked twice a second: more than a coordinator answers, so that who had
    something to do did not get there."""
    now = 0.0

    async def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(applying, "asyncio", SimpleNamespace(**vars(asyncio) | {"sleep": sleep}))
    monkeypatch.setattr(applying, "time", SimpleNamespace(monotonic=lambda: now))
    session: Any = SimpleNamespace(identity=SimpleNamespace(peer_id="none of them"))
    for count, most in ((4, 2 / 1.0), (1000, messages.BEATS_S / 1000)):
        now, looked = 0.0, 0
        names = tuple(f"{number:04}" for number in range(count))
        closed = ClosedRound(0, 0, names, names, {}, dict.fromkeys(names, 1))
        own = Applying(session, None, 0)  # type: ignore[arg-type]
        own._known.inputs._indexes["0000"] = [None] * 8  # type: ignore[list-item]

        async def refresh(closed: ClosedRound = closed) -> ClosedRound:
            nonlocal looked
            looked += 1
            return closed

        assert await own._all_aggregates(closed, refresh, 200.0) is closed
        assert now == pytest.approx(200, abs=1)
        assert looked == pytest.approx(200 * most, abs=3)


async def test_a_node_asks_where_those_are_of_whom_no_directive_told_it() -> None:
    """Outside of the DHT, whoever combined a slice of 128 members reached 64 of them."""
    where: dict[str, list[str]] = {}
    asked: list[list[str]] = []
    crowd = [Identity.from_seed(bytes([n]) * 32).peer_id for n in range(200)]

    async def ask(peer: str, service: str, request: Any, timeout: float) -> Any:
        asked.append(request.peers)
        if len(asked) == 4:
            raise Unreachable("gone")
        told = {peer: ["/ip4/192.0.2.1/tcp/1"] for peer in request.peers}
        return messages.There(peers=told)

    host: Any = SimpleNamespace(
        remember=where.__setitem__,
        lost=lambda peers: [peer for peer in peers if peer not in where],
        ask=ask,
    )
    address = f"/ip4/192.0.2.9/tcp/1/p2p/{crowd[-1]}"
    link = Link(host, Invite("ab" * 32, (address,)))
    for peer in crowd[:50]:
        where[peer] = ["/ip4/192.0.2.1/tcp/1"]
    await link.locate(crowd)
    assert [len(few) for few in asked] == [64, 64, 21]
    assert where.keys() == set(crowd)
    await link.locate(crowd)
    assert len(asked) == 3, "what is known is not asked for again"
    del where[crowd[0]]
    await link.locate(crowd)  # and a coordinator that does not answer stops nobody
    assert len(asked) == 4
