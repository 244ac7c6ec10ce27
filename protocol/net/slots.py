"""Who may hold a stream of ours: members have slots of their own, strangers share a few.

Anybody can make as many peer ids as they like, so a bound for each of them bounds nothing. Members
of the run cannot be made at will; what strangers do, by whatever number, leaves members' slots
alone. Among strangers the one that has fallen behind most gives way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from artel.protocol.net.limits import on_loopback
from artel.protocol.net.streams import Stream

MEMBER_STREAMS, MEMBER_STREAMS_EACH = 256, 16
STRANGER_STREAMS, STRANGER_STREAMS_EACH = 64, 8
STRANGER_STREAMS_PER_ADDRESS = 16
"""Of all strangers at one IPv4 address, or one IPv6 network of 64 bits. Not on loopback."""
MEMBER_FIRST_S, STRANGER_FIRST_S = 20.0, 5.0
"""Seconds until the whole first frame of a stream has to be here."""
STRANGER_PATIENCE_S = 30.0
"""How many seconds a stranger may be behind the rate of :mod:`protocol.net.streams` after that."""


class Members:
    """Who is a member of the run: we ourselves, and nobody else until the run is known."""

    def __init__(self, ourselves: str) -> None:
        self._ourselves = ourselves
        self.known: Callable[[str], bool] = lambda peer: False

    def __call__(self, peer: str) -> bool:
        return peer == self._ourselves or self.known(peer)


@dataclass(eq=False, frozen=True)
class Slot:
    """One stream that a peer opened."""

    stream: Stream
    member: bool

    @property
    def first_s(self) -> float:
        """Seconds for its first frame."""
        return MEMBER_FIRST_S if self.member else STRANGER_FIRST_S


class Slots:
    """Streams that peers opened; owned by the event loop.

    :param is_member: whether a peer id is a member of the run
    """

    def __init__(self, is_member: Callable[[str], bool]) -> None:
        self._is_member = is_member
        self._held: dict[Slot, None] = {}  # in the order in which they came

    def take(self, stream: Stream) -> Slot | None:
        """A slot for a new stream; None when it has to be closed.

        For a stranger's, the slowest stream of the same peer, at the same address, or of all
        strangers may be given up, whichever of these have their part already.
        """
        slot = Slot(stream, self._is_member(stream.peer))
        alike = [other for other in self._held if other.member == slot.member]
        own = [other for other in alike if other.stream.peer == stream.peer]
        if slot.member:
            if len(own) >= MEMBER_STREAMS_EACH or len(alike) >= MEMBER_STREAMS:
                return None
        else:
            network = stream.network
            near = [other for other in alike if other.stream.network == network]
            if len(own) >= STRANGER_STREAMS_EACH:
                crowd = own
            elif len(near) >= STRANGER_STREAMS_PER_ADDRESS and not on_loopback(network):
                crowd = near
            else:
                crowd = alike if len(alike) >= STRANGER_STREAMS else []
            if crowd and not self._end_slowest(crowd):
                return None
            stream.patience = STRANGER_PATIENCE_S
        self._held[slot] = None
        return slot

    def give_back(self, slot: Slot) -> None:
        """The stream is over."""
        self._held.pop(slot, None)

    def _end_slowest(self, strangers: Iterable[Slot]) -> bool:
        """Give up the stream that is waited for most, the oldest of equals; False without any."""
        behind = {slot: slot.stream.behind for slot in strangers}
        waited = {slot: seconds for slot, seconds in behind.items() if seconds is not None}
        if not waited:
            return False  # we are at work for all of them
        slowest = max(waited, key=lambda slot: waited[slot])
        slowest.stream.give_up()
        self.give_back(slowest)
        return True
