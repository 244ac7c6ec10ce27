"""A member combines its slices of what others hold: real hosts, real blobs, no whole index."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import pytest_asyncio

from artel.node import applying, inputs
from artel.node.applying import Applying
from artel.node.closed_rounds import ClosedRound
from artel.node.keeping import Keeping
from artel.node.trainer import orders
from artel.node.trainer.merging import usable
from artel.protocol import assignment, content, index_items, messages
from artel.protocol.errors import Unreachable
from artel.protocol.exchange import codec, pseudogradient
from artel.protocol.exchange.aggregate_slice import recompute, round_slices
from artel.protocol.exchange.pseudogradient import (
    HEADER_BYTES,
    Header,
    IndexItem,
    ProvingIndex,
    open_proven,
)
from artel.protocol.identity import Identity, load_or_create
from artel.protocol.net import swarm, wire
from artel.protocol.net.blobs import BlobStore
from artel.protocol.net.host import Host
from artel.protocol.run_config import ExchangeSection
from artel.protocol.state import Layout
from delivery_world import Holder, acquainted, answering

pytestmark = pytest.mark.asyncio(loop_scope="module")

LAYOUT = Layout.of([("up", (64, 200)), ("norm", (64,)), ("down", (200, 64))])
RULES = ExchangeSection(codec="int4", topology="sharded", holders=2)
BASE, ROUND, MEMBERS, SETTLE_S = "5c" * 32, 3, 5, 16.0
Hosts = tuple[list[Host], dict[Host, Holder], Identity]


@dataclass
class Office:
    """The link to a coordinator that notes what it is told."""

    coordinator: str
    told: list[messages.Message] = field(default_factory=list)

    async def locate(self, peers: object) -> None: ...

    async def tell(self, message: messages.Message, patience: float) -> None:
        self.told.append(message)

    async def ask(self, message: messages.Message, patience: float) -> messages.Message:
        self.told.append(message)
        return messages.Ok()


class Scene:
    """A closed round of five members, each on a host; the last host is the coordinator's."""

    def __init__(
        self, home: Path, hosts: list[Host], present: dict[Host, Holder], key: Identity
    ) -> None:
        self.host = hosts[0]
        others = [Holder(host, home / f"store-{i}") for i, host in enumerate(hosts[1:])]
        present.update({holder.host: holder for holder in others})
        self.office = others[-1]
        self.others = {holder.peer: holder for holder in others[:-1]}
        self.me = self.host.peer_id
        self.store = BlobStore(home / "mine")
        self.members = sorted([self.me, *self.others])
        self.parts = round_slices(LAYOUT, RULES, ROUND, MEMBERS)
        assert len(self.parts) == MEMBERS
        self.pieces = {peer: self._pieces(peer) for peer in self.members}
        self.items = {p: [IndexItem.of(b) for b in made] for p, made in self.pieces.items()}
        self.indexes = {p: pseudogradient.pack_index(ROUND, BASE, i) for p, i in self.items.items()}
        for peer in self.members:
            self._hand_out(peer)
        self.link = Office(self.office.peer)
        session: Any = SimpleNamespace(
            identity=key,
            run="ab" * 32,
            host=self.host,
            link=self.link,
            blobs=self.store,
            holders=RULES.holders,
            rounds=SimpleNamespace(settle_s=SETTLE_S),
            trainer=SimpleNamespace(do=self._combine),
            work_dir=home,
        )
        self.combined: list[int] = []
        self.own = Applying(session, None, 1 << 20)  # type: ignore[arg-type]
        self.own._known = applying._Known((ROUND, 0), inputs.Inputs(session))
        weights = dict.fromkeys(self.members, 7)
        self.closed = ClosedRound(
            *(ROUND, 0, tuple(self.members), tuple(self.members)),
            {peer: self._shown(peer) for peer in self.members},
            weights,
        )

    def _pieces(self, peer: str) -> list[bytes]:
        chance = np.random.default_rng([*peer.encode()])
        vector = chance.normal(0, 1e-3, LAYOUT.parameters).astype(np.float32)
        header = Header(ROUND, BASE, codec.of(RULES))
        return [header.pack(part.layout, part.take(vector)) for part in self.parts]

    def _hand_out(self, maker: str) -> None:
        self._store(maker).put(self.indexes[maker])
        rank = self.members.index(maker)
        self.office.store.put(self.indexes[maker])
        for peer in assignment.holders(self.members, ROUND, rank, RULES.holders):
            self._store(peer).put(self.indexes[maker])
        for number, data in enumerate(self.pieces[maker]):
            for peer in (maker, *assignment.holders(self.members, ROUND, number, RULES.holders)):
                self._store(peer).put(data)

    def _store(self, peer: str) -> BlobStore:
        return self.store if peer == self.me else self.others[peer].store

    def _shown(self, peer: str) -> Any:
        return SimpleNamespace(
            blob=content.content_id(self.indexes[peer]),
            payload=pseudogradient.joined_digest([item.payload for item in self.items[peer]]),
            base=BASE,
        )

    def right(self, number: int, blobs: dict[str, Any] | None = None) -> bytes:
        pieces = blobs or {peer: made[number] for peer, made in self.pieces.items()}
        with usable():
            return recompute(
                LAYOUT,
                RULES,
                round=ROUND,
                members=MEMBERS,
                slice=number,
                base=BASE,
                blobs=pieces,
                tokens=self.closed.weights,
            )

    async def _combine(self, order: orders.Combine) -> Path:
        self.combined.append(order.slice)
        made = self.right(order.slice, {c.node: c.blob for c in order.contributions})
        path = order.out / f"slice-{order.slice}"
        path.write_bytes(made)
        return path

    async def do_my_part(self) -> None:
        await self.own._known.inputs.open_indexes(self.closed, [self.me])
        await self.own._do_my_part(self.closed, 5.0)
        right = {number: content.content_id(self.right(number)) for number in self.mine()}
        assert self.own._known.own == right

    def mine(self) -> list[int]:
        """The slice that this node combines, and the one that it checks."""
        parts = assignment.combined_by, assignment.checked_by
        return [j for of in parts for j in of(self.members, ROUND, MEMBERS, self.me)]

    def blamed(self) -> list[messages.Lacks]:
        return [said for said in self.link.told if isinstance(said, messages.Lacks)]

    def asked(self, kind: str) -> int:
        return sum(holder.asked[kind] for holder in (*self.others.values(), self.office))

    @property
    def strangers(self) -> list[str]:
        """The members whose index this node was not given as one of its holders."""
        held = assignment.held_by(self.members, ROUND, RULES.holders, self.me)
        return [p for p in self.others if self.members.index(p) not in held]

    def fetched(self) -> set[str]:
        """Those of them whose index lies here now."""
        return {p for p in self.strangers if self.store.has(self.closed.shown[p].blob)}

    def lie(self, liar: str, forged: dict[str, list[IndexItem]]) -> None:
        """Have a holder prove other numbers, or name other content than the index does."""

        async def lie(request: messages.Message, stream: wire.ByteStream) -> bool:
            if not isinstance(request, messages.GetItems):
                return False
            makers = [p for p in self.members if self.closed.shown[p].blob == request.id]
            items = forged.get(makers[0])
            if items is None:
                return False
            index = ProvingIndex(pseudogradient.pack_index(ROUND, BASE, items))
            given = [index.proven(number) for number in request.slices]
            await wire.write_message(stream, messages.Items(items=given))
            return True

        self.others[liar].lie = lie

    def keep_back(self, liar: str, items: list[IndexItem]) -> None:
        """Have it be silent when it is asked for what only these items name, or the index."""
        forging, silent = self.others[liar].lie, _silent(messages.GetIndex)
        kept = {item.blob for item in items} - {item.blob for item in self.items[liar]}
        kept.add(self.closed.shown[liar].blob)

        async def both(request: messages.Message, stream: wire.ByteStream) -> bool:
            if isinstance(request, messages.GetIndex) and request.id in kept:
                return await silent(request, stream)
            assert forging is not None
            return await forging(request, stream)

        self.others[liar].lie = both


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hosts(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Hosts]:
    """All hosts, whose service it is, and the key of the first."""
    home = tmp_path_factory.mktemp("hosts")
    async with acquainted(home, MEMBERS + 1) as made:
        key = load_or_create(home / "host-0" / "node.key")
        yield made, await answering(made[1:]), key


@pytest.fixture
def scene(tmp_path: Path, hosts: Hosts) -> Scene:
    return Scene(tmp_path, *hosts)


async def test_a_member_combines_its_slices_without_the_index_of_anybody_else(scene: Scene) -> None:
    await scene.do_my_part()
    assert len(scene.mine()) == 2
    assert len(scene.strangers) >= 2
    assert scene.asked("get_items") == len(scene.strangers), "one request for each contribution"
    assert scene.asked("get_index") == scene.asked("get_chunks") == 0
    assert not scene.fetched()
    assert [said.KIND for said in scene.link.told] == ["aggregated"]


async def test_a_slice_that_has_rotted_on_the_own_disk_is_combined_again(scene: Scene) -> None:
    await scene.do_my_part()
    for number, blob in scene.own._known.own.items():
        path = scene.store.root / blob
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        assert await scene.own._aggregate(scene.closed, number) == blob
        assert path.read_bytes() == scene.right(number)


async def test_whoever_sits_further_down_fetches_the_blobs_that_items_name(scene: Scene) -> None:
    """As when members before it have committed and were left out: nobody gave it these slices."""
    number = next(j for j in range(MEMBERS) if j not in scene.mine())
    await scene.own._known.inputs.open_indexes(scene.closed, [scene.me])
    blob = await scene.own._aggregate(scene.closed, number)
    assert blob == content.content_id(scene.right(number))
    assert scene.asked("get_items") == len(scene.strangers)
    assert scene.asked("get_index") >= MEMBERS - 1, "the blobs, of somebody each"
    assert not scene.fetched()


@pytest.mark.parametrize("lie", ["proof", "place", "bytes", "header", "silence", "slow"])
async def test_who_gives_false_items_is_got_round_and_nobody_is_blamed(
    scene: Scene, lie: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(index_items, "ANSWER_S", 1.0)
    liar = scene.strangers[0]
    items = list(scene.items[liar])
    for number in scene.mine():
        data = scene.pieces[liar][number]
        if lie == "proof":  # numbers that it did not sign for
            items[number] = items[number]._replace(payload="ab" * 32)
        elif lie == "header":  # the right numbers, as of another round
            data = data[:16] + bytes(8) + data[24:]
        elif lie == "bytes":
            data = data[:HEADER_BYTES] + bytes(len(data) - HEADER_BYTES)
        other = IndexItem.of(data)
        if lie == "place":  # what nobody has
            other = other._replace(blob="cd" * 32)
        if lie == "slow":
            other = IndexItem.of(b"\1" * len(data))
            scene.others[liar].store.put(b"\1" * len(data))
        scene.others[liar].store.put(data)
        if lie != "proof":
            items[number] = other._replace(payload=items[number].payload)
    if lie == "silence":
        scene.others[liar].lie = _silent(messages.GetItems)
    else:
        scene.lie(liar, {liar: items})
    if lie == "slow":
        scene.keep_back(liar, items)
    began = time.monotonic()
    await scene.do_my_part()
    assert time.monotonic() - began < 15
    # What is not proven another holder gives; what is not there the index has to show.
    assert scene.fetched() == (set() if lie in ("proof", "silence") else {liar})
    assert not scene.blamed()


@pytest.mark.parametrize("liars", [1, 2])
async def test_all_who_keep_back_what_their_items_name_take_one_wait(
    scene: Scene, liars: int
) -> None:
    """Each lies about another slice: one wait for each slice was all the time that a round has."""
    lying = list(zip(scene.strangers, scene.mine(), strict=False))[:liars]
    assert len(lying) == liars
    for liar, number in lying:
        items = list(scene.items[liar])
        fake = IndexItem.of(b"\1" * items[number].size)
        items[number] = fake._replace(payload=items[number].payload)
        scene.lie(liar, {liar: items})
        scene.keep_back(liar, items)
    began = time.monotonic()
    await scene.do_my_part()
    took = time.monotonic() - began
    wait = SETTLE_S * inputs.HINTED / 2
    assert wait < took < wait + swarm.SLOW_S + 3.0, "makers keep their indexes back as well"
    assert scene.fetched() == {liar for liar, _ in lying}
    assert not scene.blamed()
    assert scene.own._known.inputs.waited < SETTLE_S * inputs.HINTED


async def test_all_false_headers_are_found_before_anything_is_combined(scene: Scene) -> None:
    """What combines stops at the first of them: so many liars cost one index after another."""
    for liar in scene.strangers:
        items = list(scene.items[liar])
        for number in scene.mine():
            data = scene.pieces[liar][number]
            data = data[:16] + bytes(8) + data[24:]
            scene.others[liar].store.put(data)
            items[number] = IndexItem.of(data)
        scene.lie(liar, {liar: items})
    await scene.do_my_part()
    assert scene.combined == scene.mine()
    assert scene.fetched() == {*scene.strangers}
    assert not scene.blamed()


async def test_who_is_silent_about_items_takes_no_more_than_a_part_of_the_time(
    scene: Scene,
) -> None:
    for liar in scene.strangers:
        scene.others[liar].lie = _silent(messages.GetItems)
    began = time.monotonic()
    await scene.do_my_part()
    assert time.monotonic() - began < index_items.ANSWER_S - 1.0
    assert scene.fetched() == {*scene.strangers}


def _silent(kind: type[messages.Message], about: Collection[str] = ()) -> Any:
    async def silent(request: messages.Message, stream: wire.ByteStream) -> bool:
        if isinstance(request, kind) and (not about or getattr(request, "id", "") in about):
            await asyncio.sleep(60)
        return False

    return silent


async def test_whom_the_index_itself_convicts_is_named(scene: Scene) -> None:
    """Its slice lies nowhere: items and index agree on that."""
    bad = next(iter(scene.others))
    number = scene.mine()[0]
    blob = scene.items[bad][number].blob
    for holder in (*scene.others.values(), scene.office):
        holder.store.delete(blob)
    scene.store.delete(blob)
    with pytest.raises(Unreachable):
        await scene.do_my_part()
    (said,) = scene.blamed()
    assert (said.node, said.slice) == (bad, number)


async def test_who_keeps_slices_back_in_silence_is_named_while_the_round_has_time(
    scene: Scene,
) -> None:
    """A request that is not answered ended after 60 s, which is all the time that a round has; and
    then the coordinator was believed for as long once more."""
    bad = next(iter(scene.others))
    kept = {scene.items[bad][number].blob for number in scene.mine()}
    for blob in kept:
        for peer, holder in scene.others.items():
            if peer != bad:
                holder.store.delete(blob)
        for store in (scene.store, scene.office.store):
            store.delete(blob)
    scene.others[bad].lie = _silent(messages.GetIndex, kept)
    began = time.monotonic()
    with pytest.raises(Unreachable):
        await scene.do_my_part()
    assert time.monotonic() - began < 2 * inputs.LEAST_S + 3.0, "it looks twice"
    assert {said.node for said in scene.blamed()} == {bad}


async def test_without_holders_whole_indexes_are_kept_by_who_combines(scene: Scene) -> None:
    scene.own._session.__dict__["holders"] = 0
    await scene.do_my_part()
    assert scene.asked("get_items") == 0
    assert all(scene.store.has(scene.closed.shown[p].blob) for p in scene.others)


async def test_a_member_gives_items_of_the_indexes_that_it_has(scene: Scene) -> None:
    keeping = Keeping(scene.own._session, 1 << 20)
    request = messages.GetItems(id=scene.closed.shown[scene.me].blob, slices=[2, 0])
    reply = await keeping.answer("somebody", request, None)  # type: ignore[arg-type]
    assert isinstance(reply, messages.Items)
    payload = scene.closed.shown[scene.me].payload
    found = [
        open_proven(item, j, MEMBERS, payload) for item, j in zip(reply.items, (2, 0), strict=True)
    ]
    assert found == [scene.items[scene.me][j] for j in (2, 0)]
