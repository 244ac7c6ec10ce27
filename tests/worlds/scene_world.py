"""A coordinator that checks states, with real hosts and the real child that computes them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from artel.coordinator.agreeing import Agreeing
from artel.coordinator.preparation import manifest_path
from artel.coordinator.recomputing import Recomputer
from artel.ledger.fold.layout import LAYOUT_FILE
from artel.protocol import model
from artel.protocol.exchange.next_state import Base, Given, next_state
from artel.protocol.identity import load_or_create
from artel.protocol.net import wire
from artel.protocol.net.host import Host
from artel.protocol.round_state import Phase
from artel.protocol.state import State, write_state
from delivery_world import Holder, acquainted
from desk_world import Member, Office, run_of
from host_world import until

GATHER = {"topology": "gather"}


class Scene:
    """A coordinator that checks states, and nodes with hosts of their own that serve content."""

    def __init__(self, office: Office, hosts: list[Host], home: Path) -> None:
        self.office, self.core, self.hosts = office, office.core, hosts
        self.core.rules = replace(self.core.rules, checked=True)
        self.core.host = hosts[0]
        path, run_home = office.home / LAYOUT_FILE, office.home
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(office.layout.encode())
        manifest_path(run_home).write_bytes(office.genesis.encode())
        config = office.manifest.config
        module = model.build(config.model, office.manifest.tokenizer.vocab_size, config.run.seed)
        params = model.read_parameters(module)
        momentum = np.zeros_like(params) if config.exchange.outer.momentum else None
        self.base = Base(State(0, office.layout.digest, params, momentum), "")
        made = office.home / "state-0"
        root = write_state(made, self.base.state)
        assert root == office.manifest.initial_state
        self.base = self.base._replace(root=root)
        office.blobs.adopt(root, made)
        self.members: list[Member] = []
        self.holders: dict[str, Holder] = {}
        for number, host in enumerate(hosts[1:]):
            member = Member(office, f"member {number}")
            member.identity = load_or_create(home / f"host-{number + 1}" / "node.key")
            self.members.append(member)
            self.holders[member.peer] = Holder(host, home / f"store-{number}")

    async def applying(self, *members: Member) -> None:
        """All of these train; their round is closed with everybody accepted."""
        await self.training(*members)
        await self.closed()

    async def training(self, *members: Member) -> None:
        """A round is opened with these, or all."""
        rules, count = self.core.rules, len(members or self.members)
        self.core.rules = replace(rules, min_nodes=count)
        for member in members or self.members:
            await member.beat()
        await self.office.pass_time(20)
        self.core.rules = rules
        assert self.core.state.phase is Phase.TRAINING

    async def closed(self) -> None:
        """All of its members deliver."""
        opened = [m for m in self.members if m.peer in self.core.state.members]
        for member in opened:
            await member.commit()
        for member in opened:
            with contextlib.suppress(wire.Refused):  # there since the attempt before
                await member.put()
            await member.reveal()
        assert self.core.state.phase is Phase.APPLYING

    def next(self) -> State:
        """The right state after the round that is applied."""
        attempt, exchange = self.core.ledger.state.attempt, self.office.manifest.config.exchange
        assert attempt is not None
        blobs = {m.peer: m.blobs() for m in self.opened}
        given = [
            Given(peer, attempt.accepted[peer], each[1:] or each) for peer, each in blobs.items()
        ]
        total, sharded = self.office.manifest.config.rounds.total, len(given[0].blobs) > 1
        members = len(attempt.accounts) if sharded else 0
        run = (exchange, total, self.office.layout)
        return next_state(*run, self.base, given, members=members).state

    @property
    def opened(self) -> list[Member]:
        return [m for m in self.members if m.peer in self.core.state.accepted]

    def give(self, member: Member, state: State) -> str:
        """The node holds this state."""
        made = self.holders[member.peer].store.root / "made"
        root = write_state(made, state)
        self.holders[member.peer].store.adopt(root, made)
        return root

    async def over(self, round: int = 1, attempt: int = 0) -> None:
        """Wait until this round and attempt is the next."""
        state = self.core
        await until(lambda: (state.state.round, state.state.attempt) == (round, attempt), 60)


@contextlib.asynccontextmanager
async def scene_of(
    tmp_path: Path,
    count: int,
    founders: int = 4,
    exchange: Mapping[str, Any] = GATHER,
    **rounds: Any,
) -> AsyncIterator[Scene]:
    manifest, layout = run_of(tmp_path / "run", {"min_nodes": 2, **rounds}, {**exchange})
    trust = manifest.config.trust.model_copy(update={"founders": founders})
    config = manifest.config.model_copy(update={"trust": trust})
    manifest = manifest.model_copy(update={"config": config})
    office = await Office(tmp_path / "coordinator", manifest, layout).open()
    try:
        async with acquainted(tmp_path, count + 1) as hosts:
            scene = Scene(office, hosts, tmp_path)
            for member in scene.members:
                await member.hello()
                await scene.holders[member.peer].host.serve(
                    wire.CONTENT, scene.holders[member.peer].serve
                )
            recomputer = Recomputer(office.home)
            work = asyncio.create_task(Agreeing(office.core, recomputer).run())
            try:
                yield scene
            finally:
                work.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await work
                assert not recomputer.running
    finally:
        office.close()


def children() -> list[psutil.Process]:
    found = []
    for child in psutil.Process().children():
        with contextlib.suppress(psutil.Error):  # it has just ended
            if any("apply_worker" in part for part in child.cmdline()):
                found.append(child)
    return found
