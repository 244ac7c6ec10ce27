"""Contributions that members hold and the coordinator never takes: real hosts and streams."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from artel.coordinator import availability
from artel.coordinator.availability import Availability
from artel.protocol import assignment, content, messages, round_state
from artel.protocol.exchange import pseudogradient
from artel.protocol.exchange.pseudogradient import IndexItem
from artel.protocol.net import wire
from artel.protocol.round_state import Phase
from artel.protocol.state import state_root
from desk_world import Member, refused
from host_world import until
from scene_world import Scene, scene_of

pytestmark = pytest.mark.timeout(120)
HOLDERS = 2


@contextlib.asynccontextmanager
async def held(tmp_path: Path, count: int, late: int = 0) -> AsyncIterator[Scene]:
    """A round in which all but the first ``late`` members have committed."""
    exchange = {"topology": "sharded", "holders": HOLDERS}
    async with scene_of(tmp_path, count, exchange=exchange) as scene:
        await scene.training()
        for member in scene.members[late:]:
            await member.commit()
        yield scene


def holders(scene: Scene, slice: int) -> list[str]:
    state = scene.core.state
    return assignment.holders(sorted(state.commitments), state.round, slice, HOLDERS)


def hand_out(scene: Scene, member: Member, pieces: list[bytes]) -> None:
    """Its slices lie with their holders."""
    for number, data in enumerate(pieces):
        for peer in holders(scene, number):
            scene.holders[peer].store.put(data)


async def show(scene: Scene, member: Member) -> None:
    """All of a member's part: holders have its slices, the coordinator is given the index."""
    index, *pieces = member.blobs()
    hand_out(scene, member, pieces)
    await member.put(index)
    await member.reveal()


async def shown_by_all(scene: Scene) -> None:
    for member in scene.members:
        await show(scene, member)
    assert scene.core.state.phase is Phase.APPLYING


async def test_contributions_count_that_never_pass_through_the_coordinator(tmp_path: Path) -> None:
    async with held(tmp_path, 4) as scene:
        rest = scene.members[:-1]
        for member in rest:
            await show(scene, member)
        assert len(scene.core.state.accepted) == 3
        slices = {content.content_id(data) for m in rest for data in m.blobs()[1:]}
        assert not any(map(scene.office.blobs.has, slices))
        # A few requests for each contribution, of any holder.
        asked = sum(h.asked["get_index"] for h in scene.holders.values())
        assert 0 < asked <= 3 * availability.SAMPLES


async def test_the_coordinator_gives_items_of_indexes(tmp_path: Path) -> None:
    async with held(tmp_path, 3) as scene:
        await shown_by_all(scene)
        one, other, _ = scene.members
        index, *pieces = one.blobs()
        request = messages.GetItems(id=content.content_id(index), slices=[1])
        reply = await other.say(request, to=wire.CONTENT)
        assert isinstance(reply, messages.Items)
        (body,) = (b for b in scene.office.bodies("contribution") if b.node == one.peer)
        item = pseudogradient.open_proven(reply.items[0], 1, len(pieces), body.payload)
        assert item == IndexItem.of(pieces[1])


async def test_as_long_as_states_rest_on_it_the_coordinator_gets_what_members_hold(
    tmp_path: Path,
) -> None:
    async with held(tmp_path, 3) as scene:
        await shown_by_all(scene)
        right = scene.next()
        await until(lambda: scene.core.state.own == state_root(right), 60)
        for member in scene.members:
            await member.sign_state(scene.give(member, right))
        await scene.over()


async def test_what_nobody_shows_does_not_count(tmp_path: Path) -> None:
    async with held(tmp_path, 3) as scene:
        bad, *good = scene.members
        await bad.put()
        assert await refused(bad.reveal()) == round_state.MISSING_REVEAL
        for member in good:
            await show(scene, member)
        assert scene.office.rejected() == {bad.peer: round_state.MISSING_REVEAL}


async def test_what_holders_do_not_show_its_maker_may(tmp_path: Path) -> None:
    async with held(tmp_path, 3) as scene:
        member = scene.members[0]
        for data in member.blobs()[1:]:
            scene.holders[member.peer].store.put(data)
        await member.put()
        await member.reveal()
        assert scene.core.state.accepted == (member.peer,)


async def test_holders_that_are_gone_are_waited_for_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "SHOW_S", 1.5)

    async def silent(*_: object) -> None:
        await asyncio.sleep(60)

    async with held(tmp_path, 5) as scene:
        maker, *others = scene.members
        assert len(maker.blobs()) > availability.SAMPLES
        for data in maker.blobs()[1:]:
            scene.holders[maker.peer].store.put(data)
        for other in others:
            await scene.holders[other.peer].host.serve(wire.CONTENT, silent)
        await maker.put()
        began = time.monotonic()
        await maker.reveal()
        took = time.monotonic() - began
    one_by_one = availability.SAMPLES * (HOLDERS - 1) * availability.SHOW_S
    assert took < one_by_one, "each sample has one holder at least that is not its maker"


@pytest.mark.parametrize("what", ["not finite", "another digest", "another round"])
async def test_what_holders_show_has_to_be_what_the_index_says(tmp_path: Path, what: str) -> None:
    async with held(tmp_path, 3, late=1) as scene:
        bad = scene.members[0]
        pieces = bad.blobs()[1:]
        if what == "not finite":
            pieces[0] = pieces[0][:-4] + b"\xff" * 4
        if what == "another round":
            pieces[0] = pieces[0][:16] + b"\1" * 8 + pieces[0][24:]
        listed = [IndexItem.of(piece) for piece in pieces]
        if what == "another digest":
            listed[0] = listed[0]._replace(payload="ab" * 32)
        state = scene.core.state
        index = pseudogradient.pack_index(state.round, state.base, listed)
        blob = content.content_id(index)
        await bad.commit(commitment=bad.commitment(blob))
        hand_out(scene, bad, pieces)
        await bad.put(index)
        joined = pseudogradient.joined_digest([piece.payload for piece in listed])
        size = len(index) + sum(map(len, pieces))
        statement = bad.statement(blob=blob, size=size, payload=joined)
        reasons = {"not finite": "non_finite", "another round": "wrong_state"}
        assert await refused(bad.reveal(statement.encode())) == reasons.get(what, "malformed")


def lacks(scene: Scene, node: Member, slice: int) -> messages.Lacks:
    state = scene.core.state
    return messages.Lacks(
        run=scene.office.run,
        round=state.round,
        attempt=state.attempt,
        node=node.peer,
        slice=slice,
    )


async def test_what_a_node_lacks_the_coordinator_gets_and_gives(tmp_path: Path) -> None:
    async with held(tmp_path, 3) as scene:
        await shown_by_all(scene)
        one, other, _ = scene.members
        data = one.blobs()[1]
        await other.say(lacks(scene, one, 0))
        assert scene.office.blobs.has(content.content_id(data))
        assert scene.core.state.phase is Phase.APPLYING


async def test_an_attempt_ends_with_a_contribution_that_is_withheld_and_goes_on_without_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "LEAST_S", 3.0)
    async with held(tmp_path, 4) as scene:
        await shown_by_all(scene)
        await until(lambda: bool(scene.core.state.own), 60)  # it has got all of them for that
        bad, *good = scene.members
        blob = content.content_id(bad.blobs()[1])
        for holder in scene.holders.values():
            holder.store.delete(blob)
        scene.office.blobs.delete(blob)
        code = await refused(good[0].say(lacks(scene, bad, 0)))
        assert code == round_state.MISSING_REVEAL
        state = scene.core.state
        assert state.attempt == 1
        assert state.pauses.keys() == {bad.peer}
        assert {*(state.members or state.delivered)} == {member.peer for member in good}
        assert scene.office.bodies("round_closed")[-1].accepted == ()


async def test_all_that_keep_something_back_at_once_cost_one_attempt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "LEAST_S", 3.0)
    async with held(tmp_path, 5) as scene:
        await shown_by_all(scene)
        await until(lambda: bool(scene.core.state.own), 60)
        *bad, one, other, _ = scene.members
        for number, member in enumerate(bad):
            blob = content.content_id(member.blobs()[1 + number])
            for holder in scene.holders.values():
                holder.store.delete(blob)
            scene.office.blobs.delete(blob)
        said = (one.say(lacks(scene, bad[0], 0)), other.say(lacks(scene, bad[1], 1)))
        codes = await asyncio.gather(*map(refused, said))
        assert round_state.MISSING_REVEAL in codes
        assert scene.core.state.attempt == 1
        assert {p: pause.strikes for p, pause in scene.core.state.pauses.items()} == {
            member.peer: 2 for member in bad
        }


def wary(scene: Scene) -> None:
    """A newcomer has kept something back in the round before; nobody here has standing."""
    scene.core.state = replace(scene.core.state, on_members=True, wary_until=scene.core.state.round)


async def test_after_one_kept_back_what_newcomers_contribute_is_with_the_coordinator(
    tmp_path: Path,
) -> None:
    async with held(tmp_path, 5) as scene:
        wary(scene)
        new, rest = scene.members[0], scene.members[1:]
        await show(scene, new)
        scene.core.state = replace(scene.core.state, wary_until=-1)
        for member in rest:
            await show(scene, member)
        pieces = list(map(content.content_id, new.blobs()[1:]))
        assert all(map(scene.office.blobs.has, pieces))
        for blob in pieces:  # so nothing is lost if all others keep it back
            for holder in scene.holders.values():
                holder.store.delete(blob)
        await rest[0].say(lacks(scene, new, 3))
        assert scene.core.state.phase is Phase.APPLYING


async def test_after_one_kept_back_a_newcomer_that_keeps_one_slice_back_does_not_count(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(availability, "LEAST_S", 1.0)
    monkeypatch.setattr(availability, "SAMPLES", 0)  # none falls on it
    async with held(tmp_path, 5) as scene:
        wary(scene)
        bad = scene.members[0]
        index, *pieces = bad.blobs()
        hand_out(scene, bad, pieces[:-1])
        await bad.put(index)
        assert await refused(bad.reveal()) == round_state.MISSING_REVEAL


async def test_who_says_that_it_lacks_something_is_bounded(tmp_path: Path) -> None:
    async with held(tmp_path, 3) as scene:
        await shown_by_all(scene)
        one, other, third = scene.members
        stranger = Member(scene.office, "stranger")
        await stranger.hello()
        assert await refused(stranger.say(lacks(scene, one, 0))) == "not_member"
        assert await refused(other.say(lacks(scene, stranger, 0))) == "not_member"
        assert await refused(third.say(lacks(scene, one, 63))) == "malformed"
        for _ in range(availability.LACKS_EACH):
            await other.say(lacks(scene, one, 0))
        assert await refused(other.say(lacks(scene, one, 0))) == "too_many"
        old = lacks(scene, one, 0).model_copy(update={"attempt": 7})
        assert await refused(third.say(old)) == "stale"


async def test_reveals_of_one_peer_take_the_turn_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holders that are silent held up as many samples of others as it had streams."""
    async with held(tmp_path, 3) as scene:
        one, looks, go_on = scene.members[0], [0, 0], asyncio.Event()
        index, *pieces = one.blobs()
        hand_out(scene, one, pieces)
        await one.put(index)
        right = Availability.require

        async def slow(self: Availability, *said: Any) -> None:
            looks[0] += 1
            looks[1] += 1
            await go_on.wait()
            await right(self, *said)
            looks[0] -= 1

        monkeypatch.setattr(Availability, "require", slow)
        revealed = [asyncio.create_task(one.reveal()) for _ in range(16)]
        await until(lambda: looks[0] > 0, 10)
        await asyncio.sleep(0.2)
        assert looks[0] == 1
        go_on.set()
        assert all(isinstance(each, messages.Ok) for each in await asyncio.gather(*revealed))
        assert looks == [0, 1]
