"""What a state has to pass before it is agreed on: real hosts, and a real child that computes."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from artel.coordinator import agreeing
from artel.coordinator.preparation import manifest_path
from artel.coordinator.recomputing import Order, Recomputer
from artel.ledger import entries
from artel.ledger.fold.layout import LAYOUT_FILE
from artel.protocol import content, messages, round_state
from artel.protocol.errors import ArtelError, CheckFailed, ResourceError
from artel.protocol.exchange.next_state import Base, Given, next_state
from artel.protocol.exchange.pseudogradient import Header
from artel.protocol.net import delivery, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.state import State, read_state, state_root, write_state
from artel.protocol.tasks import within
from delivery_world import Holder, acquainted
from desk_world import FP32, Office, refused, run_of
from host_world import until
from scene_world import Scene, children, scene_of

pytestmark = pytest.mark.timeout(120)


async def test_an_honest_state_is_recomputed_fetched_and_agreed(tmp_path: Path) -> None:
    async with scene_of(tmp_path, 3) as scene:
        await scene.applying()
        right = scene.next()
        for member in scene.members:
            await member.sign_state(scene.give(member, right))
        await scene.over()
        (agreed,) = scene.office.bodies("state_agreed")
        assert (agreed.root, agreed.rests_on) == (state_root(right), "coordinator")
        assert len(agreed.signatures) == 3
        assert scene.office.blobs.has(agreed.root)  # whoever comes now can have it from here
        assert [child.is_running() for child in children()] == [True]
        asked = [h.asked for h in scene.holders.values() if h.asked]
        assert len(asked) <= 1  # none when the coordinator was quicker
    assert children() == []


async def test_the_base_comes_from_nodes_that_are_a_state_further_already(tmp_path: Path) -> None:
    """Who takes over while a round is applied has no state yet; it waited until that failed."""
    async with scene_of(tmp_path, 3) as scene:
        await scene.training()
        scene.office.blobs.delete(scene.base.root)
        await scene.closed()
        right = scene.next()
        for member in scene.members:
            member.root = scene.give(member, right)
            await member.beat()
        for member in scene.members:
            scene.give(member, scene.base.state)
            await member.sign_state(member.root)
        await scene.over()
        assert scene.core.ledger.state.states == [scene.base.root, state_root(right)]


def rot(path: Path, at: int = -3) -> None:
    """One bit of a number changes on the disk."""
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("what", ["base", "contribution", "index", "slice", "slice that was shown"])
async def test_what_rots_on_the_coordinator_s_disk_is_fetched_again_and_nobody_struck(
    tmp_path: Path, what: str
) -> None:
    exchange = {"topology": "gather" if what in ("base", "contribution") else "sharded"}
    if what == "slice that was shown":
        exchange |= {"holders": 2}  # it passes through the coordinator where holders lack it
    async with scene_of(tmp_path, 3, exchange=exchange) as scene:
        await scene.training()
        *first, last = scene.members
        for member in scene.members:
            scene.give(member, scene.base.state)
            for blob in member.blobs():
                scene.holders[member.peer].store.put(blob)
            await member.commit()
        part = first[0].blobs()["slice" in what]
        broken = scene.base.root if what == "base" else content.content_id(part)
        for member in scene.members:
            if member is last:  # with it the coordinator begins
                rot(scene.office.blobs.root / broken)
            for blob in member.blobs() if len(exchange) == 1 else [member.blob()]:
                await member.put(blob)
            await member.reveal()
        right = scene.next()
        for member in scene.members:
            await member.sign_state(scene.give(member, right))
        await scene.over()
        (agreed,) = scene.office.bodies("state_agreed")
        assert (agreed.root, agreed.rests_on) == (state_root(right), "coordinator")
        uncombined = {round_state.UNCOMBINED} if exchange["topology"] == "sharded" else set()
        assert {*struck(scene).values()} == uncombined  # for which nothing of theirs has rotted
        assert content.file_content_id(scene.office.blobs.root / broken) == broken


async def test_nobody_is_asked_for_the_state_that_the_coordinator_has_computed(
    tmp_path: Path,
) -> None:
    async with scene_of(tmp_path, 3) as scene:
        await scene.applying()
        right = scene.next()
        await until(lambda: scene.core.state.own == state_root(right), 60)
        liar, *honest = scene.members
        await liar.sign_state(scene.give(liar, replace(right, params=-right.params)))
        for member in honest:  # none of whom gives it
            await member.sign_state(state_root(right))
        assert scene.core.state.round == 1  # at once
        assert [h.asked for h in scene.holders.values() if h.asked] == []
        assert struck(scene) == {liar.peer: round_state.DISSENT}


async def test_fresh_keys_with_a_state_of_their_own_get_nothing_at_the_start_of_a_run(
    tmp_path: Path,
) -> None:
    """Nobody has standing: four invent a state that all of them hold, two are honest."""
    async with scene_of(tmp_path, 6) as scene:
        honest, fresh = scene.members[:2], scene.members[2:]
        await scene.applying()
        assert len(scene.core.state.accepted) == 6
        right = scene.next()
        false = replace(right, params=-right.params)
        for member in fresh:
            await member.sign_state(scene.give(member, false))
        for member in honest:
            await member.sign_state(scene.give(member, right))
        await scene.over(0, 1)
        assert scene.office.bodies("state_agreed") == []
        assert {*scene.core.state.pauses} == {member.peer for member in fresh}
        # The next attempt is opened with those who were right.
        for member in honest:
            member.root = scene.base.root
        await scene.applying(*honest)
        assert {*scene.core.state.accepted} == {member.peer for member in honest}
        right = scene.next()
        for member in honest:
            await member.sign_state(scene.give(member, right))
        await scene.over()
        fold = scene.core.ledger.state
        earned = {fold.account_of(m.peer): fold.credit(fold.account_of(m.peer)) for m in fresh}
        assert set(earned.values()) == {0}
        assert all(fold.credit(fold.account_of(member.peer)) for member in honest)
        assert fold.states == [scene.base.root, state_root(right)]


async def test_fresh_keys_weigh_nothing_against_nodes_with_standing(tmp_path: Path) -> None:
    async with scene_of(tmp_path, 6, founders=2) as scene:
        honest, fresh = scene.members[:2], scene.members[2:]
        await scene.training()
        fold = scene.core.ledger.state
        for member in honest:
            fold.standing.earned(fold.account_of(member.peer), 100, 0, 500)
        await scene.core.tell()
        await until(lambda: not children(), 20)  # the run stands on its members
        await scene.closed()
        assert len(scene.core.state.accepted) == 6
        right = scene.next()
        false = replace(right, params=-right.params)
        for member in fresh:
            await member.sign_state(scene.give(member, false))
        for member in honest:
            await member.sign_state(scene.give(member, right))
        await scene.over()
        (agreed,) = scene.office.bodies("state_agreed")
        assert (agreed.root, agreed.rests_on) == (state_root(right), "members")
        assert {*agreed.signatures} == {member.peer for member in honest}


async def founded(scene: Scene, inside: int, one_in: int = 0) -> State:
    """A run that stands on its members, all of whom have standing; a round of the first ones is
    closed, the others have come meanwhile. The right state after it."""
    fold = scene.core.ledger.state
    for member in scene.members:
        fold.standing.earned(fold.account_of(member.peer), 100, 0, 500)
    assert fold.rests_on == "members"
    await scene.training(*scene.members[:inside])
    for member in scene.members[inside:]:
        await member.beat()
    await scene.core.tell()
    await until(lambda: not children(), 20)
    scene.core.recompute = one_in
    await scene.closed()
    assert len(scene.core.state.accepted) == inside
    return scene.next()


def struck(scene: Scene) -> dict[str, str]:
    return {peer: pause.reason for peer, pause in scene.core.state.pauses.items()}


async def test_two_honest_nodes_outside_stop_a_whole_round_of_liars_with_standing(
    tmp_path: Path,
) -> None:
    async with scene_of(tmp_path, 5, founders=2) as scene:
        liars, honest = scene.members[:3], scene.members[3:]
        right = await founded(scene, 3)
        false = replace(right, params=-right.params)
        for liar in liars:
            await liar.sign_state(scene.give(liar, false))
        assert scene.core.state.round == 0  # who looks from outside is waited for
        for member in honest:
            await member.sign_state(scene.give(member, right))
        began = scene.office.now
        await scene.over(0, 1)
        assert scene.office.now == began
        assert scene.office.bodies("state_agreed") == []
        assert struck(scene) == dict.fromkeys([m.peer for m in liars], round_state.DISSENT)
        for member in honest:
            member.root = scene.base.root
        await scene.applying(*honest)
        assert {*scene.core.state.accepted} == {member.peer for member in honest}
        right = scene.next()
        for liar in liars:
            await liar.sign_state(state_root(false))  # while they sit out
        for member in honest:
            await member.sign_state(scene.give(member, right))
        await scene.over()
        assert scene.core.ledger.state.states == [scene.base.root, state_root(right)]


async def test_one_honest_member_stops_those_who_weigh_more(tmp_path: Path) -> None:
    async with scene_of(tmp_path, 3, founders=2) as scene:
        *liars, honest = scene.members
        right = await founded(scene, 3)
        false = replace(right, params=-right.params)
        for liar in liars:
            await liar.sign_state(scene.give(liar, false))
        await honest.sign_state(scene.give(honest, right))
        await scene.over(0, 1)
        assert scene.office.bodies("state_agreed") == []
        assert struck(scene) == dict.fromkeys([m.peer for m in liars], round_state.DISSENT)


async def test_a_node_outside_that_came_to_the_same_state_stands_in_the_ledger(
    tmp_path: Path,
) -> None:
    async with scene_of(tmp_path, 4, founders=2) as scene:
        right = await founded(scene, 3)
        *inside, outside = scene.members
        for member in (*inside, outside):
            await member.sign_state(scene.give(member, right))
        await scene.over()
        (agreed,) = scene.office.bodies("state_agreed")
        assert (agreed.rests_on, agreed.outside) == ("members", outside.peer)
        assert {*agreed.signatures} == {member.peer for member in scene.members}
        assert scene.core.ledger.state.states == [scene.base.root, state_root(right)]
        assert scene.core.ledger.state.ignored == {}
        assert children() == []  # none was needed


async def test_a_lie_from_outside_costs_who_told_it_and_nobody_else(tmp_path: Path) -> None:
    async with scene_of(tmp_path, 4, founders=2) as scene:
        right = await founded(scene, 3)
        *inside, liar = scene.members
        await liar.sign_state("ab" * 32)
        for member in inside:
            await member.sign_state(scene.give(member, right))
        await until(lambda: bool(children()), 30)
        assert await refused(liar.sign_state(scene.give(liar, right))) == "duplicate"
        await scene.over()
        (agreed,) = scene.office.bodies("state_agreed")
        grounds = agreed.root, agreed.rests_on, agreed.outside
        assert grounds == (state_root(right), "coordinator", "")
        assert {*agreed.signatures} == {member.peer for member in inside}
        assert struck(scene) == {liar.peer: round_state.DISSENT}
        assert scene.core.ledger.state.ignored == {}
        await until(lambda: not children(), 20)  # it was for this one alone


async def test_silence_outside_takes_one_grace_at_most(tmp_path: Path) -> None:
    async with scene_of(tmp_path, 4, founders=2) as scene:
        right = await founded(scene, 3)
        *inside, silent = scene.members
        for member in inside:
            await member.sign_state(scene.give(member, right))
        await until(lambda: bool(scene.core.state.held), 30)
        await scene.office.pass_time(scene.core.rules.grace - 0.1)
        assert scene.core.state.round == 0
        await scene.office.pass_time(0.1)
        assert scene.core.state.round == 1
        (agreed,) = scene.office.bodies("state_agreed")
        assert (agreed.rests_on, agreed.outside) == ("members", "")
        assert (scene.core.state.unawaited, struck(scene)) == ({silent.peer}, {})


async def test_the_other_node_of_a_member_is_not_outside(tmp_path: Path) -> None:
    async with scene_of(tmp_path, 4, founders=2) as scene:
        *inside, other = scene.members
        other.owner = inside[0].owner
        statement = entries.node(other.identity, other.owner, scene.office.run, seq=2)
        await other.hello(statements=[statement.encode()])
        right = await founded(scene, 3)
        assert scene.core.state.outside == set()
        for member in inside:
            await member.sign_state(scene.give(member, right))
        await scene.over()
        assert scene.office.bodies("state_agreed")[0].outside == ""


async def test_by_chance_the_coordinator_comes_to_a_state_of_a_founded_run(tmp_path: Path) -> None:
    async with scene_of(tmp_path, 3, founders=2) as scene:
        right = await founded(scene, 3, one_in=1)
        false = replace(right, params=-right.params)
        for liar in scene.members:  # all of them, and nobody is outside
            await liar.sign_state(scene.give(liar, false))
        await scene.over(0, 1)
        assert scene.office.bodies("state_agreed") == []
        assert len(struck(scene)) == 3


def no_chunks(holder: Holder, state: State, tmp_path: Path) -> None:
    """It knows the list of chunks and the first of them, and nothing else."""
    store = BlobStore(tmp_path / "secret")
    made = tmp_path / "made in secret"
    store.adopt(write_state(made, state), made)

    async def lie(request: messages.Message, stream: wire.ByteStream) -> bool:
        if isinstance(request, messages.GetIndex):
            await delivery.serve_content(store, request, stream)
            return True
        if isinstance(request, messages.GetChunks):
            size = store.size_of(request.id) or 0
            length = min(content.CHUNK_BYTES, size - request.first * content.CHUNK_BYTES)
            await wire.write_message(stream, messages.Chunks(size=length))
            await stream.write(bytes(length))
            return True
        return False

    holder.lie = lie


async def test_who_signs_a_state_that_it_does_not_hold_has_no_vote(tmp_path: Path) -> None:
    async with scene_of(tmp_path, 3, founders=2) as scene:
        right = await founded(scene, 3)  # so the coordinator does not hold it itself
        root = state_root(right)
        *liars, honest = scene.members
        scene.give(honest, right)
        for liar in liars:
            await liar.sign_state(root)
        # Only then: one signer that has it is enough, and it might be the one that is asked first.
        await until(lambda: {*scene.core.state.not_held} == {liar.peer for liar in liars}, 30)
        await honest.sign_state(root)
        await scene.over(0, 1)
        assert scene.office.bodies("state_agreed") == []
        blamed = {peer: pause.reason for peer, pause in scene.core.state.pauses.items()}
        assert blamed == dict.fromkeys([m.peer for m in liars], round_state.NOT_HELD)
        assert scene.core.state.delivered == {honest.peer}


async def test_a_peer_has_to_give_a_chunk_that_nobody_knows_beforehand(tmp_path: Path) -> None:
    """Of content of several chunks; the list and the first of them do not do."""
    async with acquainted(tmp_path, 2) as hosts:
        holder = Holder(hosts[1], tmp_path / "store")
        await hosts[1].serve(wire.CONTENT, holder.serve)
        state = State(1, "ab" * 32, np.arange(700_000, dtype=np.float32), None)
        made = tmp_path / "made"
        root = write_state(made, state)
        size = made.stat().st_size
        assert content.chunk_count(size) == 3

        async def asked(size: int = size) -> None:
            await delivery.require_held(hosts[0], holder.peer, root, size, "state")

        with pytest.raises(ArtelError):
            await asked()
        no_chunks(holder, state, tmp_path)
        with pytest.raises(ArtelError):
            await asked()
        holder.lie = None
        holder.store.adopt(root, made)
        await asked()
        with pytest.raises(ArtelError):
            await asked(size - 4)

        both = asyncio.Event()

        async def list_last(request: messages.Message, stream: wire.ByteStream) -> bool:
            if isinstance(request, messages.GetChunks):
                both.set()
            await within(both.wait(), 60)
            return False

        holder.lie = list_last
        await asked()  # a round waits for it, so nothing waits for something else in it


async def test_another_signer_is_asked_when_one_keeps_the_coordinator_waiting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agreeing, "HEDGE_S", 0.2)
    async with scene_of(tmp_path, 3, founders=2) as scene:
        right = await founded(scene, 3)

        async def silent(request: messages.Message, stream: wire.ByteStream) -> bool:
            await asyncio.sleep(60)
            return True

        first, *others = sorted(scene.members, key=lambda member: member.peer)
        scene.holders[first.peer].lie = silent
        for member in (first, *others):
            await member.sign_state(scene.give(member, right))
        await scene.over()
        assert len(scene.office.bodies("state_agreed")) == 1


async def test_a_signer_that_keeps_the_coordinator_waiting_is_not_waited_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It held each state up anew; it was not struck, since others gave it in the end."""
    monkeypatch.setattr(agreeing, "HEDGE_S", 2.0)
    monkeypatch.setattr(agreeing, "ASKED_AT_ONCE", 1)
    async with scene_of(tmp_path, 3, founders=2) as scene:
        right = await founded(scene, 3)

        async def silent(request: messages.Message, stream: wire.ByteStream) -> bool:
            await asyncio.sleep(60)
            return True

        first = min(scene.members, key=lambda member: member.peer)
        scene.holders[first.peer].lie = silent
        took = []
        for number in (1, 2):
            for member in sorted(scene.members, key=lambda member: member.peer):
                await member.sign_state(scene.give(member, right))
            began = asyncio.get_running_loop().time()
            await scene.over(number)
            took.append(asyncio.get_running_loop().time() - began)
            if number == 1:
                scene.base = Base(right, state_root(right))
                for member in scene.members:
                    member.root, member.vector = scene.base.root, 2 * member.vector
                await scene.applying()
                right = scene.next()
                scene.core.state = replace(scene.core.state, recompute=False)
        assert took[0] > 1.9
        assert took[1] < 1.5


@pytest.fixture
def order(tmp_path: Path) -> tuple[Path, Order, str]:
    """A prepared home, an order, and the root that is right."""
    manifest, layout = run_of(tmp_path / "run", None, {"topology": "gather"})
    office = Office(tmp_path / "home", manifest, layout)
    (office.home / LAYOUT_FILE).parent.mkdir(parents=True)
    (office.home / LAYOUT_FILE).write_bytes(layout.encode())
    manifest_path(office.home).write_bytes(office.genesis.encode())
    initial = next(path for path in (tmp_path / "run").rglob("state*") if path.is_file())
    base = Base(read_state(initial, layout), manifest.initial_state)
    blob = tmp_path / "blob"
    vector = np.full(layout.parameters, 0.5, np.float32)
    blob.write_bytes(Header(0, base.root, FP32).pack(layout, vector))
    config = manifest.config
    given = [Given("a", 7, [blob])]
    state = next_state(config.exchange, config.rounds.total, layout, base, given).state
    out = str(tmp_path / "out")
    work = Order(str(initial), base.root, [("a", 7, [str(blob)])], 0, 9, out)
    return office.home, work, state_root(state)


async def test_a_child_that_dies_or_cannot_do_it_leaves_the_next_one_to_it(
    order: tuple[Path, Order, str],
) -> None:
    home, work, right = order
    recomputer = Recomputer(home)
    try:
        assert await recomputer.compute(work) == right
        assert content.file_content_id(Path(work.out)) == right
        with pytest.raises(CheckFailed):
            await recomputer.compute(replace(work, root="00" * 32))  # a blob for another base
        (child,) = children()
        child.send_signal(signal.SIGKILL)
        child.wait(10)
        await asyncio.sleep(0)
        with contextlib.suppress(ResourceError):
            await recomputer.compute(work)
        assert await recomputer.compute(work) == right
    finally:
        await recomputer.close()
    assert children() == []
