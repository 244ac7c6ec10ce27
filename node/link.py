"""The link to a run's coordinator: find it, ask it, find it again when it was away."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from artel.ledger.sync.peers import PeerSource
from artel.ledger.sync.signed_tree import manifest_of
from artel.protocol import messages
from artel.protocol.errors import ArtelError, Unreachable
from artel.protocol.events import emit
from artel.protocol.identity import peer_id_of, short_peer
from artel.protocol.invite import Invite
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.net import dht, wire
from artel.protocol.net.host import Host, peer_of

log = logging.getLogger("artel.node")

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 8.0
JOIN_PATIENCE_S = 600.0
"""How long a node waits for a run that it has never reached; for one that it knows, without end."""

Result = TypeVar("Result")


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
                source = PeerSource(self._host, peer, run)
                _, first = await asyncio.to_thread(manifest_of, source, run)
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
                emit(log, "coordinator.lost", logging.WARNING, peer=short_peer(self.coordinator))
            raise
        if self.lost_since is not None:
            emit(log, "coordinator.found", after=time.monotonic() - self.lost_since)
            self.lost_since = None
        return reply

    async def find_again(self) -> None:
        """Look the coordinator up in the DHT and note its newest addresses."""
        await self._host.join(self._invite.peers)
        found = await self._host.lookup(dht.run_key(self._invite.run), dht.RunRecord)
        for peer, record in found.items():
            if peer in self.coordinators:
                self._host.remember(peer, record.addresses)

    async def tell(self, request: messages.Message, patience: float) -> messages.Message:
        """Ask the coordinator as :meth:`insist` does."""
        return await self.insist(lambda: self.ask(request), patience)

    async def insist(
        self,
        work: Callable[[], Awaitable[Result]],
        patience: float | None,
        say: Callable[[str], None] = lambda line: None,
    ) -> Result:
        """Do ``work`` until it succeeds; the coordinator is looked for in between.

        :param patience: seconds after which it is not tried again; None for no end
        :param say: tells the node's owner in one line that this goes on, however long it does
        :raises ArtelError: ``work`` fails in another way than ``Unreachable`` or ``busy``, or too
            often
        """
        pause, began, failed = RETRY_FIRST_S, time.monotonic(), 0
        limit = "" if patience is None else f" for {_duration(patience)}"
        while True:
            try:
                result = await work()
                if failed > 1:
                    say("✓ waiting  the run answers")
                return result
            except (Unreachable, wire.Refused) as error:
                lost = isinstance(error, Unreachable)
                if isinstance(error, wire.Refused) and error.code != "busy":
                    raise
                if patience is not None and time.monotonic() - began + pause > patience:
                    if not lost:
                        raise
                    hint = error.hint or "ask the organiser whether the coordinator is running"
                    raise Unreachable(f"{error.message}, and that{limit}", hint) from None
                failed += 1
                if failed == 2:  # one that fails once is no news
                    say(f"! waiting  {error.message}; this node keeps trying{limit}")
                emit(log, "run.waiting", logging.DEBUG, reason=error.message)
            await asyncio.sleep(pause)
            pause = min(2 * pause, RETRY_MOST_S)
            if lost:
                await self.find_again()


def _duration(seconds: float) -> str:
    return f"{seconds / 60:g} minutes" if seconds >= 60 else f"{seconds:g} s"
