"""A swarm of real processes: a proxy in front of everybody, and an injector in every process.

Party 0 is the coordinator, party n is node n; each listens at an address of its own, 127.0.0.(n+1),
and announces its proxy's. libp2p dials from where it listens, so a proxy sees who comes: what
happens between two parties is a rule of one's proxy for the other's address.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path

from artel.coordinator.local_run import Program
from benchmarks.swarm import Swarm
from fault_proxy import Fault, FaultProxy, Rule
from injector import Injection, inject, listening


def address_of(party: int) -> str:
    return f"127.0.0.{party + 1}"


@dataclass
class FaultySwarm(Swarm):
    """A swarm to which anything can happen.

    :param seed: of what the proxies do
    """

    seed: int = 0
    proxies: dict[int, FaultProxy] = field(default_factory=dict)
    _spawning: asyncio.Lock = field(default_factory=asyncio.Lock)
    """What a process is told in its environment, the others must not get."""

    async def close(self) -> None:
        await super().close()
        for proxy in self.proxies.values():
            await proxy.__aexit__()

    async def _spawn(
        self, name: str, home: Path, *command: str, output: int | None = None
    ) -> Program:
        party = self.party_of(home)
        if "--listen" in command:
            proxy = await self._proxy(party)
            at = command.index("--listen") + 1
            place = f"/ip4/{address_of(party)}/tcp/{proxy.target[1]}"
            command = (*command[:at], place, "--announce", proxy.multiaddr, *command[at + 1 :])
        async with self._spawning:
            with listening(self._injections(party)):
                return await super()._spawn(name, home, *command, output=output)

    def party_of(self, home: Path) -> int:
        return int(home.name.removeprefix("node-")) if "node-" in home.name else 0

    def inject(self, party: int, *injections: Injection) -> None:
        """What one party does from now on at which points, and nothing else."""
        inject(self._injections(party), *injections)

    def _injections(self, party: int) -> Path:
        return self.folder / f"injections-{party}"

    async def _proxy(self, party: int) -> FaultProxy:
        """The proxy in front of a party; its port behind it stays the same."""
        if party not in self.proxies:
            with socket.socket() as probe:
                probe.bind((address_of(party), 0))
                target = probe.getsockname()
            self.proxies[party] = await FaultProxy(target, self.seed).__aenter__()
        return self.proxies[party]

    def sent_by(self, party: int, fault: Fault, seconds: float = 0.0) -> list[Rule]:
        """Let a fault begin on what one party sends to all others.

        :param seconds: after which it ends by itself; 0 for when it is lifted
        """
        return [
            proxy.apply(fault, "down", seconds=seconds)
            if other == party
            else proxy.apply(fault, "up", source=address_of(party), seconds=seconds)
            for other, proxy in self.proxies.items()
        ]

    def cut_soon(self, party: int, other: int, count: int) -> list[Rule]:
        """Let the connections between two end when so many more bytes went from the first to the
        second, whoever of them made them."""
        rules = []
        for proxy, source, way in (
            (self.proxies[other], address_of(party), "up"),
            (self.proxies[party], address_of(other), "down"),
        ):
            for line in proxy.lines.values():
                if line.source == source:
                    fault = Fault(cut_after=line.passed[way] + count)
                    rules.append(proxy.apply(fault, way, nth=line.number))
        return rules

    def cut_off(self, party: int, fault: Fault) -> list[Rule]:
        """Let a fault begin between one party and all others, both ways."""
        return self.divide({party}, fault)

    def divide(self, parties: Collection[int], fault: Fault, seconds: float = 0.0) -> list[Rule]:
        """The same between these parties and all others; among themselves nothing changes."""
        return [
            proxy.apply(fault, source=address_of(other), seconds=seconds)
            for party, proxy in self.proxies.items()
            for other in self.proxies
            if (party in parties) != (other in parties)
        ]

    def cut(self, party: int) -> int:
        """Reset what is open between one party and all others; returns how many connections."""
        return sum(
            proxy.cut("" if other == party else address_of(party))
            for other, proxy in self.proxies.items()
        )

    def heal(self) -> None:
        """The network is whole again."""
        for proxy in self.proxies.values():
            proxy.lift()
