"""How often somebody may do something (token buckets), how much one may hold of what is there for
all, and who is one somebody (networks)."""

from __future__ import annotations

import ipaddress
import time
from collections import Counter, OrderedDict
from collections.abc import Callable


class RateLimits:
    """A bucket of ``burst`` tokens for each key, refilled with ``per_minute`` tokens a minute.

    At most ``keys`` buckets are kept, those used last. A key that was forgotten starts with a full
    bucket, so ``keys`` should be well above the number of keys that can get this far at all; where
    anybody can make keys, limit them together as well (one bucket under a fixed name).

    Not for several threads: the event loop owns it.
    """

    def __init__(
        self,
        per_minute: float,
        burst: int,
        keys: int = 10_000,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._per_second = per_minute / 60
        self._burst = float(burst)
        self._keys = keys
        self._clock = clock
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()  # tokens, at what time

    def take(self, key: str) -> float:
        """Take one token. 0 when there was one, else the seconds after which there will be."""
        now = self._clock()
        tokens = self._tokens(key, now)
        allowed = tokens >= 1
        self._buckets[key] = (tokens - allowed, now)
        self._buckets.move_to_end(key)
        if len(self._buckets) > self._keys:
            self._buckets.popitem(last=False)
        return 0.0 if allowed else (1 - tokens) / self._per_second

    def give_back(self, key: str) -> None:
        """Put a token back that was taken for nothing."""
        now = self._clock()
        self._buckets[key] = (min(self._burst, self._tokens(key, now) + 1), now)

    def left(self, key: str) -> float:
        """How many tokens there are; takes none."""
        return self._tokens(key, self._clock())

    def _tokens(self, key: str, now: float) -> float:
        tokens, then = self._buckets.get(key, (self._burst, now))
        return min(self._burst, tokens + max(0.0, now - then) * self._per_second)


def on_loopback(network: str) -> bool:
    """Whether it is this machine: there a whole run, or a proxy, has one address."""
    try:
        return ipaddress.ip_address(network).is_loopback
    except ValueError:
        return False


def network_of(address: str) -> str:
    """What one visitor has at their disposal: an IPv4 address, or an IPv6 network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and not parsed.is_loopback:
        if parsed.ipv4_mapped is None:
            return str(ipaddress.ip_network((int(parsed) >> 64 << 64, 64)))
        return str(parsed.ipv4_mapped)
    return str(parsed)


def used_up(held: Counter[str], most: int, visitor: str) -> bool:
    """Whether a visitor gets no more of what is bounded for all: it is all held or, once half of it
    is, a quarter by that visitor."""
    total = held.total()
    return total >= most or (2 * total >= most and 4 * held[visitor] >= most)
