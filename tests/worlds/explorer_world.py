"""A small ledger in which everything happens once, on the web, for the explorer's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from artel.ledger.fold.effects import Fold
from artel.ledger.fold.history import History
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.store import DATABASE_NAME, LedgerStore
from artel.ledger.tlog import note
from artel.ledger.tlog.cosignature import add_lines
from artel.ledger.web.server import Gate, Limits
from artel.ledger.web.site import LedgerSite
from artel.protocol.dsse import Envelope
from ledger_world import World, digest, key

Client = TestClient[web.Request, web.Application]
NASTY = '"><script>alert(1)</script>'
TURNED = "\u202eevil\u200f\x1b[2J"


def busy_world(store: LedgerStore | None = None) -> World:
    """Eight rounds, one of them tried twice; a dispute, a ruling, a rotation, a transfer."""
    world = World(
        nodes=4,
        name="explorer",
        total=20,
        ownership={"transfers": True, "vesting_rounds": 2},
        ledger={"witnesses": 2},
    )

    def add(*envelopes: Any) -> None:
        leaves = world.add(*envelopes)
        if store is not None:
            store.append(leaves, world.sign)

    add(world.genesis)
    add(*world.introductions())
    first, second, third, late = world.members
    for number in range(8):
        members, rejected = list(world.members), {}
        if number % 3 == 0:
            members, rejected = [first, second, third], {late.peer_id: "late"}
        attempt = 0
        if number == 2:
            gone = {member.peer_id: "missing_reveal" for member in world.members}
            add(world.opened(2), world.committed(2), world.closed(2, accepted=[], rejected=gone))
            attempt = 1
        add(world.opened(number, attempt))
        add(
            world.committed(number, attempt, members=members),
            *(world.contribution(member, number, attempt) for member in members),
            world.closed(number, attempt, accepted=members, rejected=rejected),
        )
        add(world.agreed(number + 1, nodes=members))
        if number == 3:
            add(world.dispute(world.owners[0], world.earned(third, 3)))
        if number == 4:
            add(world.ruling(world.earned(third, 3), "soft"))
            add(world.rotated(world.owners[1], key("explorer new key"), world.owners[1]))
        if number == 5:
            add(world.transfer(world.owners[0], world.owners[3].key, 12_800))
            add(world.witnessed(world.leaves, [first, second, third]))
        if number == 6:
            other = [*world.leaves[:3], world.leaves[4]]
            add(world.split_seen(world.owners[2], world.split_view(world.leaves[:4], other, late)))
    add(world.dispute(world.owners[2], world.earned(first, 0)))  # too late: it has vested
    add(world.opened(8))
    add(world.committed(8), *(world.contribution(m, 8) for m in world.members[:2]))
    return world


def sharded_world(store: LedgerStore | None = None) -> World:
    """Four rounds in slices: all well, a wrong one, a false accusation, and one under way."""
    world = World(
        nodes=4,
        name="sharded explorer",
        total=20,
        ownership={"vesting_rounds": 1},
        exchange={"topology": "sharded", "overlap_steps": 1},
    )
    rounds = [
        [world.genesis],
        world.introductions(),
        world.round(0),
        [
            *world.round(1)[:-1],
            world.slice_wrong(world.aggregator(1, 3), 1, 2),
            world.agreed(2, wrong=[2]),
        ],
        [
            *world.round(2)[:-1],
            world.slice_wrong(world.aggregator(2, 1), 2, 0),
            world.agreed(3),
        ],
        [*world.until_closed(3), world.aggregate(3, 0), world.aggregate(3, 2)],
    ]
    for envelopes in rounds:
        leaves = world.add(*envelopes)
        if store is not None:
            store.append(leaves, world.sign)
    return world


def undone_world(store: LedgerStore | None = None) -> World:
    """Four of six agree on a wrong state 3, the others prove it, and round 2 is made again."""
    world = World(nodes=6, name="undone explorer", total=20, ownership={"vesting_rounds": 1})
    right, (*liars, accuser, _) = digest("right 3"), world.members
    charge = world.state_wrong(accuser, 3)
    nodes = {owner.key: node for owner, node in zip(world.owners, world.members, strict=True)}

    def add(*envelopes: Envelope) -> None:
        leaves = world.add(*envelopes)
        if store is not None:
            store.append(leaves, world.sign)

    add(*world.start, *world.round(0), *world.round(1))
    add(*world.until_closed(2), world.agreed(3, liars), *world.round(3), charge)
    jury = [nodes[name] for name in world.state.charges[3].jury]
    add(*(world.jury_answer(node, charge, right) for node in jury[:3]))
    add(world.rolled_back(charge, 2))
    again = [world.contribution(member, 2, 1) for member in world.members]
    add(world.opened(2, 1), world.committed(2, 1), *again, world.closed(2, 1), world.agreed(3))
    return world


@dataclass
class Shown:
    """The ledger, and a browser that has opened it over a real socket."""

    world: World
    store: LedgerStore
    fold: Fold
    heads: HeadStore
    site: LedgerSite
    client: Client

    @property
    def history(self) -> History:
        return History(self.store, self.store.query, self.fold.state)

    def append(self, *envelopes: Envelope) -> None:
        self.store.append(self.world.add(*envelopes), self.world.sign, self.fold.beside)
        self.fold.settle()

    async def get(self, path: str, status: int = 200) -> str:
        """A page or a document as text."""
        async with self.client.get(path, allow_redirects=False) as reply:
            body = await reply.text()
            assert reply.status == status, f"{path}: {reply.status} {body[:300]}"
            return body

    async def bytes(self, path: str) -> bytes:
        async with self.client.get(path) as reply:
            assert reply.status == 200, path
            return await reply.read()

    def cosign(self, size: int, *members: int) -> None:
        """Let members (by number) cosign the tree over the first ``size`` entries."""
        world = self.world
        signed = note.parse(self.store.note_at(size))
        head = world.head(world.leaves[:size])
        lines = [note.parse(world.cosigned(world.members[i], head)).signatures[0] for i in members]
        self.heads.add_note(add_lines(signed, lines).encode())


@asynccontextmanager
async def shown(
    home: Path,
    limits: Limits | None = None,
    made: Callable[[LedgerStore | None], World] = busy_world,
    **services: Any,
) -> AsyncIterator[Shown]:
    """Serve the busy ledger, or another one, from a home."""
    run = made(None).run
    heads = HeadStore(home / HEADS_NAME)
    with LedgerStore.open(home / DATABASE_NAME, create=True, run=run) as store:
        world = made(store)
        fold = Fold.open(store)
        site = LedgerSite(store, heads, lambda: fold.state, **services)
        app = Gate(limits).application()
        site.add_routes(app)
        plain = {"Accept-Encoding": "identity"}
        async with TestClient(TestServer(app), auto_decompress=False, headers=plain) as client:
            yield Shown(world, store, fold, heads, site, client)
    heads.close()
