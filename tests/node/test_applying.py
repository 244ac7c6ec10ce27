"""Whom a node asks for what a round consists of."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from artel.node.applying import HOLDERS, Applying
from artel.node.closed_rounds import ClosedRound


def holders(me: str, members: int) -> list[str]:
    session: Any = SimpleNamespace(
        identity=SimpleNamespace(peer_id=me), link=SimpleNamespace(coordinator="office")
    )
    names = tuple(f"{number:04}" for number in range(members))
    closed = ClosedRound(0, 0, names, names, {}, {})
    return Applying(session, None, 0)._holders(closed, "0001")  # type: ignore[arg-type]


def test_of_many_members_some_are_asked_and_others_by_each_node() -> None:
    found = holders("0000", 1000)
    assert (found[0], found[-1], len(found)) == ("0001", "office", HOLDERS + 2)
    assert "0000" not in found
    assert found == holders("0000", 1000)
    assert found[1:-1] != holders("0002", 1000)[1:-1]
    assert len(holders("0000", 8)) == 8  # all others, and the coordinator
