"""Parties of a run without rounds: each has a host, a home and a copy of the ledger; electors look
after the term. Real hosts, ledgers and files; only the clocks are the tests'."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path

import pytest

from artel.ledger import entries
from artel.ledger.entries.fold_state import peer_of
from artel.ledger.store.heads import HEADS_NAME, HeadStore
from artel.ledger.store.keyfiles import NODE_KEY
from artel.ledger.store.store import DATABASE_NAME
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.serving import LedgerService
from artel.ledger.tlog.checkpoint import origin_of, sign_checkpoint
from artel.node.link import Link
from artel.node.sealing import Sealing
from artel.protocol import messages
from artel.protocol.dsse import Envelope
from artel.protocol.errors import Unreachable
from artel.protocol.identity import Identity
from artel.protocol.invite import Invite
from artel.protocol.net import dht, wire
from artel.protocol.net.host import Host
from artel.protocol.round_state import RoundRules
from host_world import LOOPBACK
from ledger_world import World, complete
from log_world import replay

HANDOVER_S = 100.0
RULES = RoundRules(
    total=60,
    min_nodes=2,
    max_nodes=4,
    quorum=0.66,
    deadline=600.0,
    grace=10.0,
    reveal=60.0,
    settle=60.0,
    heartbeat_timeout=20.0,
)


def two_coordinators() -> World:
    """A run with two coordinators and three electors, whose first state is agreed on."""
    world = World(nodes=3, waiting=1, name="sealing")
    world.add(*world.start)
    world.add(*world.round(0))
    world.add(world.witnessed(world.leaves))
    return world


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Party:
    """Somebody with a host, a home and a copy of the ledger, which it serves."""

    def __init__(self, home: Path, host: Host, world: World) -> None:
        self.home, self.host, self.world = home, host, world
        self.replica = Replica.open(home / DATABASE_NAME, world.run)
        self.heads = HeadStore(home / HEADS_NAME)
        self.link = Link(host, Invite(world.run, (f"/ip4/127.0.0.1/tcp/1/p2p/{host.peer_id}",)))
        self.clock, self.said, self.submitted = Clock(), list[str](), list[bytes]()
        self.leads = True
        self.takes: Callable[[bytes], Awaitable[None]] | None = None
        """What it does with what is submitted, beside noting it."""
        self.sealing: Sealing

    @classmethod
    async def at(cls, folder: Path, identity: Identity, world: World) -> Party:
        home = folder / identity.peer_id[-6:]
        home.mkdir()
        file = home / NODE_KEY
        file.write_bytes(identity.encode())
        file.chmod(0o600)
        keys = dht.keys_of(world.run)
        party = cls(home, await Host.start(identity, file, listen=[LOOPBACK], keys=keys), world)
        await party.serve()
        return party

    async def serve(self, sealing: Sealing | None = None) -> None:
        async def submit(_: str, statement: bytes) -> None:
            self.submitted.append(statement)
            if self.takes is not None:
                await self.takes(statement)

        async def control(*_: object) -> messages.Message:
            if not self.leads:
                raise wire.Refused("it stands by", code=messages.NOT_LEADING)
            return messages.Ok()

        service = LedgerService(
            self.replica.store,
            self.heads,
            self.world.run,
            lambda: self.replica.state,
            submit=sealing.petitions.take if sealing else submit,
            seal=sealing.statement if sealing else bytes,
        )
        await self.host.serve(wire.LEDGER, service.answer)
        await self.host.serve(wire.CONTROL, control)

    async def add(self, leaves: Sequence[bytes], by: Identity, term: int = 0) -> None:
        """Have the ledger here go on, as a coordinator has it."""
        store = self.replica.store
        if store.size and term > store.term:
            store.begin_term(term)
        sign = partial(sign_checkpoint, by, origin_of(self.world.run, term))
        await asyncio.to_thread(store.append, leaves, sign, self.replica.fold.beside)
        self.replica._settle()

    async def follow(self, other: Party) -> None:
        await self.replica.catch_up(self.host, other.host.peer_id, self.world.run)

    def watches(self, account: Identity) -> Sealing:
        self.link.coordinators = tuple(
            peer_of(each.key) for each in (self.world.coordinator, *self.world.standbys)
        )
        self.link._replica = self.replica
        self.sealing = Sealing(
            host=self.host,
            identity=self.host.identity,
            account=account,
            run=self.world.run,
            replica=self.replica,
            heads=self.heads,
            link=self.link,
            rules=RULES,
            handover_s=HANDOVER_S,
            elected=None,
            say=self.said.append,
            clock=self.clock,
        )
        return self.sealing

    async def lose(self) -> None:
        """Notice that the coordinator does not answer."""
        with pytest.raises(Unreachable):
            await self.link.ask(messages.Leave(run=self.world.run), 3.0)
        self.link._lost = (self.link.coordinator, self.clock.now)

    async def close(self) -> None:
        await self.host.close()
        self.replica.store.close()
        self.heads.close()


class Parties:
    """Parties of one run, who know where the others are."""

    def __init__(self, folder: Path, world: World, stack: AsyncExitStack) -> None:
        self._folder, self.world, self._stack = folder, world, stack
        self.parties: list[Party] = []

    async def party(self, identity: Identity) -> Party:
        party = await Party.at(self._folder, identity, self.world)
        self._stack.push_async_callback(party.close)
        for other in self.parties:
            party.host.remember(other.host.peer_id, await other.host.addresses())
            other.host.remember(party.host.peer_id, await party.host.addresses())
        self.parties.append(party)
        return party

    async def coordinator(self) -> Party:
        party = await self.party(self.world.coordinator)
        await party.add(self.world.leaves, self.world.coordinator)
        return party

    async def elector(self, leader: Party, number: int = 0) -> Party:
        party = await self.party(self.world.members[number])
        await party.follow(leader)
        sealing = party.watches(self.world.owners[number])
        sealing.neighbours = lambda: [each.host.peer_id for each in self.parties[1:]]
        await party.serve(sealing)
        return party


def after(leaves: Sequence[bytes], *envelopes: Envelope) -> list[bytes]:
    """These entries as they stand behind those."""
    return [each.encode() for each in complete(envelopes, replay(leaves))]


def handover(world: World, *sealers: Party, term: int = 1) -> Envelope:
    seals = [entries.open_seal(party.sealing.statement())[1] for party in sealers]
    return entries.handover(world.standbys[0], world.run, term=term, seals=seals)
