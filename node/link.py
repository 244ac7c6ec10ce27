"""The link to a run's coordinator: find it, ask it, find it again when it was away."""

from __future__ import annotations

import asyncio
import logging
import time

from artel.ledger import entries
from artel.ledger.sync.bundled import first_entry
from artel.ledger.sync.replica import fetch_page
from artel.protocol import messages
from artel.protocol.errors import ArtelError, CheckFailed, Unreachable
from artel.protocol.events import emit
from artel.protocol.identity import peer_id_of
from artel.protocol.invite import Invite
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.net import dht, wire
from artel.protocol.net.host import Host, peer_of, short

log = logging.getLogger("artel.node")

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 8.0


class Link:
    """Requests to the coordinator of the run that an invite names."""

    def __init__(self, host: Host, invite: Invite) -> None:
        self._host = host
        self._invite = invite
        where: dict[str, list[str]] = {}
        for address in invite.peers:
            where.setdefault(peer_of(address), []).append(address)
        self.coordinators: tuple[str, ...] = tuple(where)
        self.lost_since: float | None = None
        """Since when (steady seconds) the coordinator has not answered."""
        for peer, addresses in where.items():
            host.remember(peer, addresses)

    @property
    def coordinator(self) -> str:
        """Peer id of the coordinator in charge."""
        return self.coordinators[0]

    async def fetch_manifest(self) -> tuple[Manifest, bytes]:
        """The run's manifest from whoever of the invite answers, checked against the run id.

        :raises Unreachable: none of the invite's peers answers
        :raises ArtelError: all that answer serve another run, or show what is wrong
        """
        errors, run = list[ArtelError](), self._invite.run
        for peer in self.coordinators:
            try:
                _, leaves = await fetch_page(self._host, peer, run, 0)
                # A restored home may have no signed head near enough for a page.
                first = leaves[0] if leaves else await first_entry(self._host, peer, run)
                if entries.decode(first).body.run != run:
                    raise CheckFailed(f"peer {short(peer)} shows another run than the invite names")
                manifest, _ = open_manifest(first)
                return manifest, first
            except ArtelError as error:
                errors.append(error)
        if not any(isinstance(error, Unreachable) for error in errors):
            raise errors[0]
        reasons = dict.fromkeys(error.message for error in errors)
        raise Unreachable(
            f"nobody named in the invite answers: {'; '.join(reasons)}"[:400],
            "check this machine's connection; ask the organiser whether the coordinator is running",
        )

    def trust(self, manifest: Manifest) -> None:
        """From now on only the manifest's coordinators count."""
        self.coordinators = tuple(peer_id_of(bytes.fromhex(k)) for k in manifest.coordinators)

    async def ask(self, request: messages.Message, timeout: float = 20.0) -> messages.Message:
        """Ask the coordinator once.

        :raises Unreachable: it does not answer
        :raises Refused: it says no
        """
        try:
            reply = await self._host.ask(self.coordinator, wire.CONTROL, request, timeout)
        except Unreachable:
            if self.lost_since is None:
                self.lost_since = time.monotonic()
                emit(log, "coordinator.lost", logging.WARNING, peer=short(self.coordinator))
            raise
        if self.lost_since is not None:
            emit(log, "coordinator.found", after=time.monotonic() - self.lost_since)
            self.lost_since = None
        return reply

    async def find_again(self, run: str) -> None:
        """Look the coordinator up in the DHT and note its newest addresses."""
        await self._host.join(self._invite.peers)
        for peer, record in (await self._host.lookup(dht.run_key(run), dht.RunRecord)).items():
            if peer in self.coordinators:
                self._host.remember(peer, record.addresses)

    async def insist(
        self, request: messages.Message, run: str, patience: float
    ) -> messages.Message:
        """Ask until there is an answer other than ``busy``, for at most ``patience`` seconds.

        :raises Unreachable: there was none
        :raises Refused: the coordinator says no
        """
        pause = RETRY_FIRST_S
        deadline = time.monotonic() + patience
        while True:
            try:
                return await self.ask(request)
            except (Unreachable, wire.Refused) as error:
                if isinstance(error, wire.Refused) and error.code != "busy":
                    raise
                if time.monotonic() + pause > deadline:
                    raise
                await asyncio.sleep(pause)
                pause = min(2 * pause, RETRY_MOST_S)
                if isinstance(error, Unreachable):
                    await self.find_again(run)
