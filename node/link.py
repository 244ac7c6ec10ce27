"""The link to whoever leads a run: find it, ask it, and find the next one when it is gone.

Who leads says this node's own copy of the ledger; before there is one, the manifest. Nothing that
others say is believed: they are asked for tree heads, and a later term counts when the ledger under
such a head says, and proves, that it has begun.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

from artel.ledger.entries.fold_state import FoldState
from artel.ledger.entries.kinds.handover import open_seal
from artel.ledger.store.published import term_of
from artel.ledger.sync.fork import SplitViewProven
from artel.ledger.sync.peers import HEADS, PeerSource, notes_in
from artel.ledger.sync.replica import Replica
from artel.ledger.sync.signed_tree import TooMuch, manifest_of
from artel.ledger.sync.source import SEAL_PATH, NotFound
from artel.ledger.tlog.checkpoint import parse_checkpoint
from artel.protocol import files, messages
from artel.protocol.errors import ArtelError, CheckFailed, Unreachable
from artel.protocol.events import emit
from artel.protocol.identity import peer_id_of, short_peer
from artel.protocol.invite import Invite
from artel.protocol.manifest import Manifest, open_manifest
from artel.protocol.net import dht, wire
from artel.protocol.net.host import Host, peer_of
from artel.protocol.tasks import end, first_error, uninterrupted

log = logging.getLogger("artel.node")

RETRY_FIRST_S = 0.5
RETRY_MOST_S = 8.0
JOIN_PATIENCE_S = 600.0
"""How long a node waits for a run that it has never reached; for one that it knows, without end."""
ANSWER_S = 5.0
"""For the heads of one peer, while the one who leads is looked for."""
SEEK_S = 8.0
"""For a search: who takes longer is not waited for."""
NEXT_S = 2.0
"""After which the next one is asked for the manifest, too."""
ASKED = 8
"""Peers beside the coordinators that are asked for their heads at a time, in random order: so many
that say to lead, that the ledger knows, and others."""

NEIGHBOURS_FILE = "neighbours"
"""In a node's home: an invite with some nodes of the run, as of lately."""
KEPT = 3
"""Nodes in it; each that is gone can cost a start some seconds."""

Result = TypeVar("Result")


def with_neighbours(home: Path, invite: Invite) -> Invite:
    """The invite, with nodes of the run that this home knew when it was used last: whoever the
    invite names may be gone for good."""
    with contextlib.suppress(OSError, ArtelError, UnicodeError):
        kept = Invite.decode((home / NEIGHBOURS_FILE).read_text())
        if kept.run == invite.run:
            peers = dict.fromkeys([*invite.peers, *kept.peers[:KEPT]])
            return Invite(invite.run, tuple(peers))
    return invite


def keep_neighbours(home: Path, run: str, where: Mapping[str, Sequence[str]]) -> None:
    """Remember some of these peers for the next start of this home."""
    firsts = [addresses[0] for addresses in where.values() if addresses]
    if firsts:
        chosen = random.sample(firsts, min(KEPT, len(firsts)))
        with contextlib.suppress(OSError):  # it is a hint, and a full disk is said elsewhere
            line = Invite(run, tuple(chosen)).encode()
            files.write(home / NEIGHBOURS_FILE, line.encode(), durable=False)


class Link:
    """Requests to the coordinator that leads the run which an invite names."""

    def __init__(self, host: Host, invite: Invite) -> None:
        self._host = host
        self._invite = invite
        where: dict[str, list[str]] = {}
        for address in invite.peers:
            where.setdefault(peer_of(address), []).append(address)
        self.coordinators: tuple[str, ...] = tuple(where)
        """Peer ids of those that the manifest names, in order; before it is known, the invite's."""
        self.liar = ""
        """Who leads, where it is proven to have signed two histories: it is not asked any more."""
        self.near = ""
        """A coordinator that this node has started itself."""
        self.seals: dict[str, int] = {}
        """Node to the latest term that it is known to have sealed."""
        self._replica: Replica | None = None
        self._records: dict[str, dht.RunRecord] = {}
        self._holders: list[str] = []  # whoever has anything of the run
        self._lost: tuple[str, float] | None = None
        self._seeking = asyncio.Lock()
        self._looks: set[asyncio.Task[None]] = set()
        self._followed = set[str]()  # peers whose ledger is being taken over
        self._answers = 0, 0  # in the search before the last one, and in that
        for peer, addresses in where.items():
            host.remember(peer, addresses)

    @property
    def coordinator(self) -> str:
        """Peer id of the coordinator that leads, as far as is known here."""
        replica = self._replica
        if replica is None or not replica.state.size:
            return self.coordinators[0]
        return peer_id_of(bytes.fromhex(replica.state.term.leader))

    @property
    def lost_since(self) -> float | None:
        """Since when (steady seconds) the one who leads has not answered; None while it does."""
        if self._lost is None or self._lost[0] != self.coordinator:
            return None
        return self._lost[1]

    async def fetch_manifest(self) -> tuple[Manifest, bytes]:
        """The run's manifest from whoever of the invite, or of the run, answers, checked against
        the run id.

        :raises Unreachable: nobody answers
        :raises ArtelError: all that answer serve another run, or show what is wrong
        """
        errors, run = list[ArtelError](), self._invite.run

        async def shown_by(peer: str) -> tuple[Manifest, bytes]:
            source = PeerSource(self._host, peer, run)
            work = asyncio.to_thread(manifest_of, source, run)
            _, first = await uninterrupted(work, source.close)
            return open_manifest(first)[0], first

        named = dict.fromkeys([*self.coordinators, *self._others(), *self._holders[:ASKED]])
        left, asked = list(named), set[asyncio.Task[tuple[Manifest, bytes]]]()
        try:
            while left or asked:
                if left:
                    asked.add(asyncio.create_task(shown_by(left.pop(0))))
                first_of = asyncio.FIRST_COMPLETED
                done, asked = await asyncio.wait(asked, timeout=NEXT_S, return_when=first_of)
                for task in done:
                    try:
                        return task.result()
                    except ArtelError as error:
                        errors.append(error)
        finally:
            for task in asked:
                await end(task)
        # A coordinator that lacks entry 0 stands by, and waits for it as we do.
        if not any(isinstance(error, Unreachable | NotFound) for error in errors):
            raise errors[0]
        reasons = dict.fromkeys(error.message for error in errors)
        raise Unreachable(
            f"nobody named in the invite answers: {'; '.join(reasons)}"[:400],
            "check this machine's connection; ask the organiser whether the coordinator runs, "
            "and for the invite of now: it names who leads",
        )

    def trust(self, manifest: Manifest, replica: Replica) -> None:
        """From now on the manifest's coordinators count, and whom the ledger says to lead."""
        self.coordinators = tuple(peer_id_of(bytes.fromhex(k)) for k in manifest.coordinators)
        self._replica, replica.coordinators = replica, self.coordinators

    async def ask(self, request: messages.Message, timeout: float = 20.0) -> messages.Message:
        """Ask the coordinator that leads once.

        :raises Unreachable: it does not answer, or does not lead (any more)
        :raises Refused: it says no
        """
        peer = self.coordinator
        try:
            if peer == self.liar:
                raise Unreachable("the coordinator is proven to have signed two histories")
            reply = await self._host.ask(peer, wire.CONTROL, request, timeout)
        except Unreachable:
            self._lose(peer)
            raise
        except wire.Refused as refusal:
            if refusal.code != messages.NOT_LEADING:
                raise
            self._lose(peer)
            raise Unreachable(f"nobody leads the run: {refusal.message}") from None
        lost = self.lost_since
        if lost is not None:
            emit(log, "coordinator.found", after=time.monotonic() - lost)
        self._lost = None
        return reply

    async def locate(self, peers: Iterable[str]) -> None:
        """Have the coordinator say where these are, as far as it is not known here; directives tell
        of some only. What it does not know either is found otherwise, or not at all."""
        lost = self._host.lost(peers)
        with contextlib.suppress(ArtelError):
            while lost:
                few, lost = lost[: messages.TOLD], lost[messages.TOLD :]
                reply = await self.ask(messages.Where(run=self._invite.run, peers=few))
                if isinstance(reply, messages.There):
                    for peer in reply.peers.keys() & set(few):
                        self._host.remember(peer, reply.peers[peer])

    def _lose(self, peer: str) -> None:
        if peer == self.coordinator and self.lost_since is None:
            self._lost = (peer, time.monotonic())
            emit(log, "coordinator.lost", logging.WARNING, peer=short_peer(peer))

    # --- who leads --------------------------------------------------------------------------------

    async def find_again(self) -> None:
        """Look coordinators up in the DHT, and see whether somebody knows who leads now."""
        host, run = self._host, self._invite.run
        await host.join(self._invite.peers)
        self._records = await host.lookup(dht.run_key(run), dht.RunRecord)
        for peer in {*self.coordinators, self.coordinator} & self._records.keys():
            host.remember(peer, self._records[peer].addresses)
        holding = await host.lookup(dht.nodes_key(run), dht.HolderRecord)
        self._holders = random.sample(sorted(holding), min(ASKED, len(holding)))
        for peer in self._holders:
            host.remember(peer, holding[peer].addresses)
        await self.seek()

    async def seek(self, neighbours: Iterable[str] = ()) -> int:
        """Ask those who may know for their newest heads, and take over a ledger that is ahead, or
        in which a later term has begun.

        :param neighbours: peers that may be asked, beside the coordinators and the connected ones
        :returns: how many answered
        :raises SplitViewProven: the coordinator that leads has signed two histories
        :raises TooMuch: what somebody has is more than is taken over
        """
        replica = self._replica
        if replica is None:
            return 0
        if self._seeking.locked():
            return self.reached
        async with self._seeking:
            others = await self._candidates(neighbours)
            self._answers = self._answers[-1], 0
            looks = [asyncio.create_task(self._look_at(replica, peer)) for peer in others]
            self._looks |= set(looks)
            try:
                if looks:  # the earlier ones that go on were waited for
                    await asyncio.wait(looks, timeout=SEEK_S)
            except asyncio.CancelledError:
                for look in looks:
                    look.cancel()
                raise
            done = {look for look in self._looks if look.done()}
            self._looks -= done
            errors = [
                found for look in done if not look.cancelled() and (found := look.exception())
            ]
            if errors:
                raise first_error(BaseExceptionGroup("", errors))
            return self._answers[-1]

    @property
    def reached(self) -> int:
        """How many have answered in the last search, or by now in the present one."""
        return max(self._answers) if self._seeking.locked() else self._answers[-1]

    async def catch_up(self) -> None:
        """Take over what the coordinator that leads, or else somebody, has beyond the copy here.

        :raises Unreachable: nobody answers
        :raises ArtelError: as :meth:`Replica.catch_up`
        """
        assert self._replica is not None
        try:
            await self._replica.catch_up(self._host, self.coordinator, self._invite.run)
        except (Unreachable, wire.Refused):
            if not await self.seek() or not self._replica.state.size:
                raise

    def _others(self) -> list[str]:
        """Coordinators by their own word, those that stand by last. Which term they say to lead
        costs nothing to say, and hides nobody."""
        known = list(self._records)
        random.shuffle(known)
        return sorted(known, key=lambda peer: self._records[peer].term < 0)

    async def _candidates(self, neighbours: Iterable[str]) -> list[str]:
        others = self._others()[:ASKED]
        for peer in others:  # at once: they are looked up anew at any time
            self._host.remember(peer, self._records[peer].addresses)
        state = self._replica.state if self._replica is not None else FoldState()
        electors = {peer for each in state.electors.sets for peer in each.weights}
        # Strangers can connect by the thousand: they have places of their own.
        told = {*neighbours, *electors.difference(self._host.lost(electors))}
        near = list({*told, *self._holders, *await self._host.connected()})
        random.shuffle(near)
        near.sort(key=lambda peer: peer not in electors)
        known = [peer for peer in near if peer in told or peer in state.nodes]
        rest = [peer for peer in near if peer not in known]
        named = [self.near, *self.coordinators, self.coordinator, *others]
        chosen = dict.fromkeys([*named, *known[:ASKED], *rest[:ASKED]])
        return [peer for peer in chosen if peer not in ("", self._host.peer_id, self.liar)]

    async def _look_at(self, replica: Replica, peer: str) -> None:
        """Count whether a peer answers; take over what it has beyond the copy here."""
        source = PeerSource(self._host, peer, self._invite.run)
        try:
            try:
                *found, seal = await source.files(*HEADS, SEAL_PATH, timeout=ANSWER_S)
                self._answers = self._answers[0], self._answers[1] + 1
            except wire.Refused:  # it is there
                self._answers = self._answers[0], self._answers[1] + 1
                raise
            if seal and peer in replica.state.nodes:  # so many are remembered, and no more
                self._sealed(peer, seal)
            texts = notes_in(found)
            heads = [parse_checkpoint(text) for text in texts]
            places = [(term_of(head.origin, self._invite.run) or 0, head.size) for head in heads]
            ahead = places and max(places) > (replica.store.term, replica.store.size)
            if ahead and peer not in self._followed:
                self._followed.add(peer)
                try:
                    await replica.catch_up(self._host, peer, self._invite.run)
                finally:
                    self._followed.discard(peer)
        except (SplitViewProven, TooMuch):
            raise
        except ArtelError as error:
            said = {"peer": short_peer(peer), "reason": error.message}
            emit(log, "head.not_exchanged", logging.DEBUG, **said)

    def _sealed(self, peer: str, data: bytes) -> None:
        said, part = open_seal(data)
        if (said.run, part.node) != (self._invite.run, peer):
            raise CheckFailed("the seal is of another node, or of another run")
        self.seals[peer] = max(said.term, self.seals.get(peer, -1))

    # --- insisting --------------------------------------------------------------------------------

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
