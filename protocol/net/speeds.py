"""How near other peers are, as measured: seconds to the first byte, bytes per second after it."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

MEMORY = 0.3
"""Weight of the newest measurement in the exponential averages."""
MIN_BYTES = 1 << 16
"""Transfers below this say nothing about the rate."""
UNKNOWN_LATENCY_S = 0.1
UNKNOWN_RATE = 2e6
_MAX_PEERS = 1024


@dataclass
class Speed:
    """Exponential averages for one peer; None before the first measurement."""

    latency: float | None = None
    rate: float | None = None


class Speeds:
    """Measurements by peer; the peers measured last are kept."""

    def __init__(self) -> None:
        self._peers: OrderedDict[str, Speed] = OrderedDict()

    def of(self, peer: str) -> Speed:
        """What is known about a peer."""
        return self._peers.get(peer, Speed())

    def waited(self, peer: str, seconds: float) -> None:
        """The first byte of an answer came after so long."""
        speed = self._touch(peer)
        speed.latency = _averaged(speed.latency, seconds)

    def moved(self, peer: str, count: int, seconds: float) -> None:
        """So many bytes came in so long, after the first one."""
        if count >= MIN_BYTES:
            speed = self._touch(peer)
            speed.rate = _averaged(speed.rate, count / max(seconds, 1e-4))

    def expected(self, peer: str, count: int) -> float:
        """Seconds that ``count`` bytes from this peer should take; a guess when it is unknown."""
        speed = self.of(peer)
        latency = UNKNOWN_LATENCY_S if speed.latency is None else speed.latency
        return latency + count / (UNKNOWN_RATE if speed.rate is None else speed.rate)

    def _touch(self, peer: str) -> Speed:
        speed = self._peers.setdefault(peer, Speed())
        self._peers.move_to_end(peer)
        if len(self._peers) > _MAX_PEERS:
            self._peers.popitem(last=False)
        return speed


def _averaged(before: float | None, now: float) -> float:
    return now if before is None else (1 - MEMORY) * before + MEMORY * now
