"""Whom the home of a coordinator can ask about its run: members that it knows from before, those
who are connected, those whom the DHT names, and the other coordinators.

A coordinator that starts asks them before it signs (:mod:`.recovery`); one that stands by asks them
for the ledger and for seals (:mod:`.standby`).
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from artel.coordinator.members_file import read_members
from artel.ledger.entries.fold_state import FoldState
from artel.protocol.errors import DecodeError
from artel.protocol.identity import peer_id_of
from artel.protocol.net import dht
from artel.protocol.schema import Schema

if TYPE_CHECKING:
    from artel.protocol.net.host import Host


class Circle:
    """Peers that may know of a run; the event loop owns it.

    :param state: what the home knows of the run
    """

    def __init__(self, home: Path, host: Host, run: str, state: Callable[[], FoldState]) -> None:
        self._host, self._run, self._state = host, run, state
        rows = read_members(home)
        self.here = {one.peer for one in rows if one.here}
        """Members that were there when the home was used last."""
        self.known = {one.peer: one.addresses for one in rows}
        """Where members and coordinators are."""
        self._searches: set[asyncio.Future[Any]] = set()
        self.terms: dict[str, int] = {}
        """Coordinator (peer id) to the term that it says to lead, -1 for none."""
        for peer, addresses in self.known.items():
            host.remember(peer, addresses)

    async def _found(self, key: str, schema: type[Schema]) -> dict[str, Schema]:
        """Records under a key. A search that nobody waits for any more ends by itself: hivemind's
        leaves tasks behind when it is cancelled."""
        search = asyncio.ensure_future(self._host.lookup(key, schema))
        self._searches.add(search)
        search.add_done_callback(self._searches.discard)
        return await asyncio.shield(search)

    @property
    def coordinators(self) -> set[str]:
        """Those of the run that this home knows of."""
        state = self._state()
        keys = state.leaders() if state.size else ()
        return {peer_id_of(bytes.fromhex(key)) for key in keys} - {self._host.peer_id}

    def where(self, peers: Iterable[str]) -> dict[str, list[str]]:
        """Addresses of these, as far as they are known."""
        return {peer: self.known[peer][:8] for peer in peers if self.known.get(peer)}

    async def peers(self) -> list[str]:
        """Whoever can be asked now."""
        found = dict.fromkeys([*self.known, *await self._host.connected()])
        return [peer for peer in found if peer != self._host.peer_id]

    async def learn(self, ways: Iterable[str]) -> None:
        """Ask the DHT for members and coordinators, through these addresses."""
        if near := list(ways):
            with contextlib.suppress(DecodeError):  # an address that names no peer
                await self._host.join(near)
        state = self._state()
        named = self.coordinators
        leading = await self._found(dht.run_key(self._run), dht.RunRecord)
        holding = await self._found(dht.nodes_key(self._run), dht.HolderRecord)
        # Not always in the same order: of those who only say so, some are asked.
        claims = random.sample(list(leading.items()), len(leading))
        self.terms = {peer: record.term for peer, record in claims}
        for peer, record in (leading | holding).items():
            # Whoever says to lead is asked, too: members may have elected it.
            known = peer in state.nodes or peer in named or self.terms.get(peer, -1) > 0
            if known and peer != self._host.peer_id:
                self._host.remember(peer, record.addresses)
                self.known[peer] = record.addresses
