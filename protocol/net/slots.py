"""Who may hold a stream of ours: each rank has slots of its own, and in each the slowest gives way.

Anybody can make as many peer ids as they like, and register them too, so a bound for each of them
bounds nothing. What strangers do, by whatever number, leaves the slots of those alone whom the
ledger binds to an account; what these do leaves the slots of those alone who sit in the round or
have standing. Where slots are missing, one gives way in which we wait for its peer: one of whoever
keeps us waiting in the most of them. A peer that is no member and has its part already is refused,
which costs nearly nothing; whoever is refused, or gives way, again and again is shut out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from typing import NamedTuple

from artel.protocol.net.limits import RateLimits, on_loopback
from artel.protocol.net.streams import Stream

FIRST_S = 10.0
"""Seconds until the whole first frame of a stream has to be here."""
STRANGER_PATIENCE_S = 30.0
"""How many seconds a stranger may be behind the rate of :mod:`protocol.net.streams` after that."""
SLOW_S = 2.0
"""Who is so far behind that rate gives way before others, as who has not asked yet does."""
LOSSES, LOSSES_PER_MINUTE = 32, 6
"""Streams of one peer that are refused, give way, are too slow or end before they have asked, at
once and in the long run. Whoever loses more and is no member is shut out: until there is one more
to lose its streams are closed at once, and its connections with them."""


class Rank(IntEnum):
    """What is known of a peer."""

    STRANGER = 0
    REGISTERED = 1
    """The ledger binds it to an account, which costs nothing."""
    KNOWN = 2
    """It sits in the round, its account has standing, or it coordinates the run."""


class Caller(NamedTuple):
    """A peer's rank, and its account where the ledger names one."""

    rank: Rank
    account: str = ""

    @property
    def is_member(self) -> bool:
        """Whether it comes before strangers: wherever two kinds alone are told apart, whoever is
        merely registered is one of those, since that costs nothing."""
        return self.rank is Rank.KNOWN


STRANGER = Caller(Rank.STRANGER)


@dataclass(frozen=True)
class Room:
    """How many streams a rank has, and of them one peer, one account and one address."""

    streams: int
    each: int
    account: int
    address: int
    """An IPv4 address, or an IPv6 network of 64 bits. Not on loopback."""


ROOMS = {
    Rank.STRANGER: Room(64, 8, 64, 16),
    Rank.REGISTERED: Room(1024, 16, 64, 64),
    Rank.KNOWN: Room(4096, 16, 64, 1024),
}
"""A coordinator keeps a heartbeat of each member back, of a thousand in a full round; and before
the first one all of them are merely registered."""


class Callers:
    """Who is who in the run: we ourselves are known, and nobody else until the run is."""

    def __init__(self, ourselves: str) -> None:
        self._ourselves = ourselves
        self.named: Callable[[str], Caller] = lambda peer: STRANGER

    def of(self, peer: str) -> Caller:
        """What is known of a peer now."""
        return Caller(Rank.KNOWN) if peer == self._ourselves else self.named(peer)

    def is_member(self, peer: str) -> bool:
        """Whether a peer comes before strangers now."""
        return self.of(peer).is_member


Crowd = tuple[Rank, str, str]
"""Streams of one rank that are of one peer, account or address, or all of them."""


@dataclass(eq=False)
class Slot:
    """One stream that a peer opened."""

    stream: Stream
    caller: Caller
    asked: bool = False
    """Whether its whole first frame is here."""
    answered: bool = False
    """Whether its answer is written, and the peer is to close it."""

    @property
    def owner(self) -> str:
        """Whose it is: an account's, or a peer's that has none."""
        return self.caller.account or self.stream.peer

    @property
    def behind(self) -> float | None:
        """As the stream's; where it has just come and nobody has begun to read, 0."""
        behind = self.stream.behind
        return 0.0 if behind is None and not self.asked else behind

    @property
    def crowds(self) -> tuple[Crowd, Crowd, Crowd, Crowd]:
        """Those that it belongs to: its peer's, its owner's, its address's and its rank's."""
        rank, stream = self.caller.rank, self.stream
        return (
            (rank, "peer", stream.peer),
            (rank, "owner", self.owner),
            (rank, "address", stream.network),
            (rank, "all", ""),
        )


class Slots:
    """Streams that peers opened; owned by the event loop.

    :param caller: what is known of a peer
    :param shut_out: called with a peer that is shut out, whenever it opens a stream
    """

    def __init__(
        self, caller: Callable[[str], Caller], shut_out: Callable[[str], object] = lambda peer: None
    ) -> None:
        self._caller, self._shut_out = caller, shut_out
        self._held: dict[Slot, None] = {}  # in the order in which they came
        self._count: Counter[Crowd] = Counter()
        """How many of them each crowd holds."""
        self._losses = RateLimits(LOSSES_PER_MINUTE, LOSSES)

    def take(self, stream: Stream) -> Slot | None:
        """A slot for a new stream; None when it has to be closed.

        Another one may be given up for it: of the same peer if that is a member, the same account,
        at the same address, or of all with this rank, whichever of these have their part already.
        """
        slot = Slot(stream, self._caller(stream.peer))
        room, outside = ROOMS[slot.caller.rank], not slot.caller.is_member
        if outside and self._losses.left(stream.peer) < 1:
            self._shut_out(stream.peer)
            return None
        own, ours, near, alike = slot.crowds
        full: Crowd | None = None
        if self._count[own] >= room.each:
            full = own
        elif self._count[ours] >= room.account:
            full = ours
        elif self._count[near] >= room.address and not on_loopback(stream.network):
            full = near
        elif self._count[alike] >= room.streams:
            full = alike
        over = full is own and outside  # then what it has left open alone gives way
        if full is not None and not self._end_slowest(full, answered=over):
            self._losses.take(stream.peer)
            return None
        if slot.caller.rank is Rank.STRANGER:
            stream.patience = STRANGER_PATIENCE_S
        self._held[slot] = None
        self._count.update(slot.crowds)
        return slot

    def give_back(self, slot: Slot) -> None:
        """The stream is over."""
        if slot not in self._held:
            return
        del self._held[slot]
        self._count.subtract(slot.crowds)
        for crowd in slot.crowds:
            if not self._count[crowd]:
                del self._count[crowd]
        if not slot.asked or (slot.stream.given_up and not slot.answered):
            self._losses.take(slot.stream.peer)

    def _end_slowest(self, crowd: Crowd, *, answered: bool = False) -> bool:
        """Give up one stream whose peer is waited for; False without any.

        One that has not asked yet, or is below the rate, before one that is not; of these, one of
        whoever has the most of them, and has lost the most; of these the one that is waited for
        most, the oldest of equals. Who waits for our answer keeps nobody waiting.

        :param answered: of those that have their answer alone
        """
        crowded = [slot for slot in self._held if crowd in slot.crowds]
        behind = {slot: slot.behind for slot in crowded if slot.answered or not answered}
        waited = {slot: seconds for slot, seconds in behind.items() if seconds is not None}
        if not waited:
            return False  # we are at work for all of them
        slow = [slot for slot, late in waited.items() if late >= SLOW_S or not slot.asked]
        first = slow or list(waited)
        shares = Counter(slot.owner for slot in first)
        left = {slot: self._losses.left(slot.stream.peer) for slot in first}
        slowest = max(first, key=lambda slot: (shares[slot.owner], -left[slot], waited[slot]))
        slowest.stream.give_up()
        self.give_back(slowest)
        return True
